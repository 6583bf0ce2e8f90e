"""Claims are read apart from records, and left out where something better is held or given."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from spl.core import consent
from spl.core.consent import Grant
from spl.core.identity.did import multibase
from spl.core.limits import Limits
from spl.core.pair.pair import Pair
from spl.core.record import levels
from spl.core.record.record import Envelope
from spl.home import projections
from spl.home.writes import Arrive, Projected
from tests.nodes import Node, join, nodes
from tests.store_kit import set_views

PAIR = "pair_00000001"
SECRET = b"s" * 32


def grant(node: Node, ns: str, maps: str, level: int | None, version: int) -> None:
    """Let the node hold its peer's statement."""
    statement = Grant(ns, maps, level, version).to_json()
    body = {"kind": consent.KIND_PEER_GRANT, "pair_id": PAIR, "grant": statement}
    set_views(node.home, consents=consent.fold(node.home.views.consents, body))


def shown(source: Node, made: Envelope, level: int, ns: str) -> levels.Projection:
    """Return a projection of a record as the source would send it."""
    content = levels.content(made.record, made.id, level, PAIR, SECRET)
    raw = levels.project(content, level, ns, PAIR, source.did, multibase(source.chain.present), source.key)
    return levels.parse(json.loads(raw), Limits())


def read(node: Node, namespace: str = "", after: int = 0, limit: int = 100) -> projections.Claims:
    pair = cast(Pair, node.pair(PAIR))
    return projections.read(node.home.store, node.home.views, pair, namespace, after, limit)


async def test_claims_come_in_pages_by_namespace_and_are_marked(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.share("a", "b")
        grant(bob, "x", "a", 1, 1)
        made = [alice.emit(f"{n}", actor="did:sync:user:ann") for n in range(7)]
        bob.write(*(Projected(shown(alice, each, 1, "x"), "ab"[n % 2], PAIR) for n, each in enumerate(made)))
        assert [claim.id for claim in read(bob).found] == [each.id for each in made]
        assert [claim.id for claim in read(bob, "b").found] == [each.id for each in made[1::2]]
        assert read(bob, "c") == projections.Claims([], None)
        seen, after = list[str](), 0
        while after is not None:
            page = read(bob, after=after, limit=3)
            seen += [claim.id for claim in page.found]
            after = page.after
        assert seen == [each.id for each in made]
        first = read(bob).found[0].to_json()
        assert (first["object"], first["claimed_by"], first["level"]) == ("projection", alice.did, "L1")
        assert (first["namespace"], first["peer_namespace"], first["actor"]) == ("a", "x", "did:sync:user:ann")
        assert cast(dict[str, Any], first["body"])["redacted"] is True


async def test_the_record_itself_replaces_its_claim(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        grant(bob, "x", "default", 1, 1)
        one, two = alice.emit("one"), alice.emit("two")
        bob.write(*(Projected(shown(alice, each, 1, "x"), "default", PAIR) for each in (one, two)))
        bob.write(Arrive(one, "default", PAIR))
        assert [claim.id for claim in read(bob).found] == [two.id]
        assert bob.ids() == [one.id]


@pytest.mark.parametrize(("granted", "left"), [
    (3, [1, 2, 3]), (2, [1, 2]), (1, [1]), (0, [1]), (None, [1, 2, 3]),
])  # fmt: skip
async def test_a_raised_level_hides_coarser_claims_and_a_withdrawn_grant_none(
    tmp_path: Path, granted: int | None, left: list[int]
) -> None:
    """L0 of one side behaves as L1."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        made = alice.emit("x")
        bob.write(*(Projected(shown(alice, made, level, "x"), "default", PAIR) for level in (1, 2, 3)))
        grant(bob, "x", "default", granted, 1)
        assert [claim.level for claim in read(bob).found] == left


async def test_a_reading_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may be empty and still have a next one; walking on finds what is there."""
    monkeypatch.setattr(projections, "SCAN_ROWS_MAX", 8)
    monkeypatch.setattr(projections, "_CHUNK_ROWS", 4)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        made = [alice.emit(f"{n}") for n in range(21)]
        bob.write(*(Projected(shown(alice, each, 1, "x"), "default", PAIR) for each in made))
        bob.write(*(Arrive(each, "default", PAIR) for each in made[:20]))
        first = read(bob)
        assert (first.found, first.after is not None) == ([], True)
        pages, after = 1, first.after
        while after is not None:
            page = read(bob, after=after)
            pages, after = pages + 1, page.after
        assert [claim.id for claim in page.found] == [made[20].id]
        assert pages == 3


def agree(node: Node, ns: str, maps: str, level: int | None, version: int) -> None:
    """Let the node hold its own grant, which the peer holds too."""
    body = {"kind": consent.KIND_GRANT, "pair_id": PAIR, "grant": Grant(ns, maps, level, version).to_json()}
    set_views(node.home, consents=consent.fold(node.home.views.consents, body))


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("way", ["page", "push"])
async def test_what_a_source_shows_is_what_is_read(tmp_path: Path, level: int, way: str) -> None:
    """Through the source's own filter and our gate, over both ways; raised to L0, the records take their place."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.share("music")
        bob.share("projects", "projects/music")

        async def carry() -> None:
            if way == "page":
                await bob.sync.pull(PAIR)
            else:
                alice.network.walled = {"alice"}
                await alice.sync.pull(PAIR)
                alice.reaches.heard(PAIR, {"reach": "peer-pushes"})
                await alice.push.push(PAIR)

        agree(alice, "music", "projects/music", level, 1)
        grant(bob, "music", "projects/music", level, 1)
        made = [alice.emit(f"{n}", ns="music") for n in range(3)]
        await carry()
        found = read(bob).found
        assert [(claim.level, claim.ns, claim.peer_ns) for claim in found] == [(level, "projects/music", "music")] * 3
        expected = [levels.hashes(each.record["act"], each.record["body"])[level] for each in made]
        assert [claim.record["body"]["hashes"][levels.NAMES[level]] for claim in found] == expected
        assert (bob.ids("projects/music"), bob.home.views.refused) == ([], {})
        for node, word in ((alice, agree), (bob, grant)):
            word(node, "music", "projects/music", 0, 2)
            other = grant if node is alice else agree
            other(node, "projects/music", "music", 0, 1)
        await carry()
        assert bob.ids("projects/music") == sorted(each.id for each in made)
        assert (read(bob).found, bob.home.views.refused) == ([], {})
