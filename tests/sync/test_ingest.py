"""Judging: rules are kept as long as what they are made of, and counted at once when it changes."""

import asyncio
import json
import logging
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from spl.core.identity.did import Chain, chain_of, did_of, multibase
from spl.core.keys import SecretKey
from spl.core.presence import ANSWER_S
from spl.core.record import record
from spl.core.record.page import Page
from spl.core.record.record import Envelope, Sig
from spl.sync import ingest
from spl.sync.ingest import ON_LOOP_RECORDS, UNSHOWN_MAX
from tests.nodes import LIMITS, Node, join, nodes
from tests.store_kit import set_views

PAIR = "pair_00000001"


def page_of(*envelopes: Envelope) -> Page:
    return Page([json.loads(each.raw) for each in envelopes], ["default"] * len(envelopes), "c", False, {}, 0)


async def codes(node: Node, page: Page) -> list[str]:
    judged = await node.ingest.judge(node.home.views.pairs[PAIR], page)
    return [verdict.code for verdict in judged.verdicts]


async def test_few_and_many_are_judged_alike(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(3 * ON_LOOP_RECORDS)]
        for count in range(len(sent) + 1):
            assert await codes(bob, page_of(*sent[:count])) == [""] * count
            spoilt = page_of(*sent[:count])
            for value in spoilt.values:
                value["record"]["clock"] += 1
            assert await codes(bob, spoilt) == ["record-id"] * count


async def test_rules_are_made_once_and_again_when_the_pair_or_the_chains_change(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit("x")
        verifier = bob.ingest
        rules = verifier._gate(bob.home.views.pairs[PAIR], {})
        assert verifier._gate(bob.home.views.pairs[PAIR], {}) is rules
        assert await codes(bob, page_of(sent)) == [""]
        bob.change_pair(PAIR, namespaces=("org",))
        assert await codes(bob, page_of(sent)) == ["scope-violation"]
        bob.change_pair(PAIR, namespaces=("default",), actors=("did:sync:user:other",))
        assert await codes(bob, page_of(sent)) == ["scope-violation"]
        bob.change_pair(PAIR, actors=())
        for changed in ("pins", "consents", "namespaces"):
            rules = verifier._gate(bob.home.views.pairs[PAIR], {})
            set_views(bob.home, **{changed: copy(getattr(bob.home.views, changed))})
            assert verifier._gate(bob.home.views.pairs[PAIR], {}) is not rules, changed
        set_views(bob.home, blocked=frozenset({alice.did}))
        assert await codes(bob, page_of(sent)) != [""]


async def test_what_is_held_is_not_judged_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(2)]
        await bob.sync.pull(PAIR)
        assert await codes(bob, page_of(*sent)) == []


def born(number: int) -> tuple[SecretKey, Chain]:
    """Return the key of another instance and its chain."""
    key = SecretKey(number.to_bytes(32))
    return key, chain_of(did_of(f"ghost-{number}", key.public), key.public, [], LIMITS)


def signed(key: SecretKey, by: str, clock: int) -> dict[str, Any]:
    """Return the envelope of a record under any key and name."""
    value = {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {"n": 1}, "clock": clock}
    checked = record.check(value, LIMITS)
    id_, text = record.identify(checked, LIMITS)
    sig = Sig(by, multibase(key.public), key.sign(record.signed_text(id_, None)))
    found: dict[str, Any] = json.loads(record.seal(checked, id_, text, sig).raw)
    return found


async def test_all_signers_of_a_page_are_learnt_at_once(tmp_path: Path) -> None:
    """One that is left over stays refused until something else has it asked for again."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        others = [born(number) for number in range(1, 41)]
        values = [signed(key, chain.did, clock) for clock, (key, chain) in enumerate(others)]
        chains = {chain.did: chain.to_json() for _, chain in others}
        pair, page = bob.home.views.pairs[PAIR], Page(values, ["default"] * 40, "c", False, {}, 0)
        judged = await bob.ingest.judge(pair, page, chains)
        assert {verdict.code for verdict in judged.verdicts} == {""}
        taken = await bob.ingest.keep(pair, judged, moves=True)
        assert (taken.fresh, taken.refused, taken.learnt) == (40, (), True)
        assert {chain.did for _, chain in others} <= bob.home.views.pins.by_did.keys()


async def test_a_signer_that_is_no_did_is_neither_asked_for_nor_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        key, _ = born(1)
        page = Page([signed(key, "did:\x1b]0;owned", 1)], ["default"], "c", False, {}, 0)
        with caplog.at_level(logging.DEBUG):
            taken = await bob.ingest.take(bob.home.views.pairs[PAIR], page, moves=True)
        assert [verdict.code for verdict in taken.refused] == ["chain-unknown"]
        assert not bob.network.log
        assert "owned" not in repr([vars(line) for line in caplog.records])


async def test_refusals_are_counted_and_not_repeated_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        pair, (key, chain) = bob.home.views.pairs[PAIR], born(1)
        with caplog.at_level(logging.DEBUG):
            for clock in range(20):
                page = Page([signed(key, chain.did, clock)], ["default"], f"c{clock}", False, {}, 0)
                await bob.ingest.keep(pair, await bob.ingest.judge(pair, page, {}), moves=True)
        assert bob.home.views.refused == {PAIR: 20}
        assert [line.getMessage() for line in caplog.records].count("sync.refused") == 1


async def test_a_peer_that_invents_signers_is_not_asked_for_all_of_them(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        pair, asked = bob.home.views.pairs[PAIR], ("GET", "/v1/sync/chains")
        for first in (1, 101):
            ghosts = [born(number) for number in range(first, first + 100)]
            values = [signed(key, chain.did, clock) for clock, (key, chain) in enumerate(ghosts)]
            taken = await bob.ingest.take(pair, Page(values, ["default"] * 100, "c", False, {}, 0), moves=True)
            assert {verdict.code for verdict in taken.refused} == {"chain-unknown"}
        assert bob.network.log.count(asked) == UNSHOWN_MAX
        bob.ingest.begin(PAIR)
        await bob.ingest.take(pair, Page(values, ["default"] * 100, "c", False, {}, 0), moves=True)
        assert bob.network.log.count(asked) == 2 * UNSHOWN_MAX


async def test_the_chains_of_a_page_are_asked_for_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that lets an answer trickle ends each request, then all of a page; the rest is owed, as after a cut."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        pair, within = bob.home.views.pairs[PAIR], list[object]()
        ghosts = [born(number) for number in range(1, 4)]
        values = [signed(key, chain.did, clock) for clock, (key, chain) in enumerate(ghosts)]
        page = Page(values, ["default"] * 3, "c", False, {}, 0)
        ask = bob.ingest.peers.ask

        async def watched(*args: Any, **named: Any) -> Any:
            within.append(named["timeout_s"])
            return await ask(*args, **named)

        monkeypatch.setattr(bob.ingest.peers, "ask", watched)
        await bob.ingest.judge(pair, page)
        assert within == [ANSWER_S] * 3
        bob.ingest.begin(PAIR)
        monkeypatch.setattr(ingest, "CHAINS_S", 0.0)
        taken = await bob.ingest.take(pair, page, moves=True)
        assert within == [ANSWER_S] * 3
        assert {verdict.code for verdict in taken.refused} == {"chain-unknown"}
        assert taken.later
        assert bob.ingest.refused.owes(PAIR, bob.ingest.inbound(pair))


def leading(cursor: str, clock: int) -> Page:
    return Page([], [], cursor, True, {"clock": clock}, 0)


async def test_a_page_that_was_on_its_way_moves_no_position_back(tmp_path: Path) -> None:
    """A push came meanwhile and went further; the reading moves on once the source counts more for it."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        ingest, pair = bob.ingest, bob.home.views.pairs[PAIR]

        def place() -> str:
            return ingest.since(pair)

        await ingest.take(pair, leading("start", 10), moves=True, base="")
        await ingest.take(pair, leading("pushed", 30), moves=True, base="start")
        for cursor, clock, base, now in [
            ("page 1", 20, "start", "pushed"), ("page 2", 30, "page 1", "pushed"), ("page 3", 31, "page 2", "page 3"),
            # Whoever stands where we stand is right about what follows, also if less is shared since.
            ("page 4", 5, "page 3", "page 4"),
        ]:  # fmt: skip
            await ingest.take(pair, leading(cursor, clock), moves=True, base=base)
            assert place() == now


async def test_two_positions_on_their_way_to_the_disk_keep_their_order(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        ingest, pair = bob.ingest, bob.home.views.pairs[PAIR]
        async with asyncio.TaskGroup() as tasks:
            for cursor, clock in (("pushed", 30), ("page", 20)):
                tasks.create_task(ingest.take(pair, leading(cursor, clock), moves=True, base=""))
        assert ingest.since(pair) == "pushed"
        await ingest.take(pair, leading("next", 40), moves=True, base="pushed")
        assert ingest.since(pair) == "next"
