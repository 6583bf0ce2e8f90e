"""What goes out of a row: the envelope as it is stored, or a projection that its reader can check."""

import json
from pathlib import Path

import pytest

from spl.core.consent import Outbound
from spl.core.record import levels
from spl.core.record.filter import OPEN, PairFilter
from spl.core.record.levels import NAMES
from spl.home.index import Row
from spl.net.client import Reply
from spl.sync.scope import Scope
from spl.sync.source import OutgoingForm
from tests.nodes import LIMITS, Node, join, nodes

PAIR = "pair_00000001"


def scope_of(node: Node, level: int, filter_: PairFilter = OPEN, floor: int = 0) -> Scope:
    shares = {"default": Outbound("default", "theirs", level)}
    return Scope(shares, (filter_,), frozenset({PAIR}), "did:peer", node.did, floor)


def rows(node: Node) -> list[Row]:
    return node.home.store.index.after("n:default", 0, 1000)


async def test_full_records_are_their_stored_bytes(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        sent = [alice.emit(f"é{n}").raw for n in range(3)]
        found = alice.feed.source.outgoing.envelopes(PAIR, scope_of(alice, 0), rows(alice))
        assert [raw for _, raw in found] == sent


@pytest.mark.parametrize("level", [1, 2, 3])
async def test_a_projection_is_signed_by_us_and_shows_its_level_and_no_more(tmp_path: Path, level: int) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        parent, secret = alice.emit("parent"), "zq-secret-zq"
        sent = alice.emit(secret, thread="th", actor="did:sync:user:zq")
        source = alice.feed.source.outgoing
        _, raw = source.envelopes(PAIR, scope_of(alice, level), rows(alice))[1]
        found = levels.parse(json.loads(raw), LIMITS)
        assert (found.level, found.ns, found.by, found.raw) == (level, "default", alice.did, raw)
        assert levels.verify(found, PAIR, alice.chain.present)
        assert not levels.verify(found, "pair_00000002", alice.chain.present)
        assert secret.encode() not in raw
        assert (sent.id in raw.decode()) == (level == 1)
        assert (b"user:zq" in raw) == (level == 1)
        assert set(found.record["body"]["hashes"]) == set(NAMES[level:])
        assert found.id == (sent.id if level == 1 else source.pseudonym(PAIR, sent.id))
        assert parent.id != found.id


async def test_pseudonyms_differ_from_pair_to_pair_and_are_not_made_with_the_cursors_key(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        source, id_ = alice.feed.source.outgoing, "0" * 64
        one, two = source.pseudonym(PAIR, id_), source.pseudonym("pair_00000002", id_)
        assert len({one, two, levels.pseudonym(alice.home.vault.cursor_key(), PAIR, id_)}) == 3
        assert source.pseudonym(PAIR, id_) == one


async def test_signers_are_known_by_tally_or_by_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spl.sync.source.SIGNERS_MAX", 2)
    async with nodes(tmp_path, "alice") as [alice]:
        alice.emit("x")
        source, own = alice.feed.source.outgoing, alice.did
        row = rows(alice)[0]
        ruled = scope_of(alice, 0, PairFilter(thread_rule="true"))

        def by(voucher: str) -> Row:
            return Row(1, "rec", row.segment, row.offset, row.length, "default", "pair_x", voucher, False, 0)

        assert source.may_see_signer(PAIR, scope_of(alice, 0), own)
        assert not source.may_see_signer(PAIR, scope_of(alice, 0), "did:other")
        assert not source.may_see_signer(PAIR, ruled, "did:other")
        source.note_signers(PAIR, scope_of(alice, 1, PairFilter(thread_rule="true")), [by("did:other")])
        assert not source.may_see_signer(PAIR, ruled, "did:other")
        source.note_signers(PAIR, ruled, [by("did:other")])
        assert source.may_see_signer(PAIR, ruled, "did:other")
        assert not source.may_see_signer("pair_00000002", ruled, "did:other")
        assert not source.may_see_signer(PAIR, scope_of(alice, 1, PairFilter(thread_rule="true")), "did:other")
        source.note_signers(PAIR, ruled, [by("did:two"), by("did:three")])
        assert not source.may_see_signer(PAIR, ruled, "did:other")


async def test_a_source_that_forgot_whose_records_it_gave_stalls_none(tmp_path: Path) -> None:
    """Under a rule it knows by memory alone, which a restart ends: between a page and the question for the chain."""
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(carol, alice, "pair_00000002")
        join(alice, bob, filters=(PairFilter(thread_rule="true"), OPEN))
        sent = [carol.emit(f"{n}") for n in range(2)]
        await alice.sync.pull("pair_00000002")

        def forget(path: str, reply: Reply) -> Reply:
            if path == "/v1/sync/changes":
                alice.feed.source.outgoing = OutgoingForm(alice.home.writer, alice.home.vault)
            return reply

        alice.network.change = forget
        assert await bob.sync.pull(PAIR) == 2
        assert bob.ids() == sorted(each.id for each in sent)
        # A second pull asks for nothing that stands in the ledger.
        before = len(alice.network.log)
        await bob.sync.pull(PAIR)
        assert ("POST", "/v1/sync/records") not in alice.network.log[before:]


def damage(node: Node, row: Row, how: str) -> None:
    """Change the stored envelope of a row on the disk, as a failing disk does."""
    [path] = node.home.path.rglob(f"{row.segment:020}.jsonl")
    if how == "cut":
        with path.open("r+b") as file:
            file.truncate(row.offset + 5)
        return
    data = bytearray(path.read_bytes())
    at = data.index(b'"', row.offset + 20) + (how == "letter")
    data[at] = {"letter": data[at] ^ 1, "quote": ord("x"), "line feed": ord("\n"), "bytes": 0xFF}[how]
    path.write_bytes(data)


@pytest.mark.parametrize(("how", "number"), [("letter", 1), ("quote", 1), ("line feed", 1), ("bytes", 1), ("cut", 3)])
@pytest.mark.parametrize("level", [0, 1])
async def test_a_damaged_record_stops_none_behind_it(tmp_path: Path, how: str, number: int, level: int) -> None:
    """It is left out, of a page in slices and of a fetch too, and counts as damage until the index drops it."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(4)]
        gone = rows(alice)[number]
        damage(alice, gone, how)
        kept = [each for each in sent if each is not sent[number]]
        source = alice.feed.source.outgoing
        left = [row for at, row in enumerate(rows(alice)) if at != number]
        assert [row for row, _ in source.envelopes(PAIR, scope_of(alice, level), rows(alice))] == left
        assert alice.home.store.index.reader.left_out == {gone.seq}
        assert await bob.sync.pull(PAIR) == 3
        assert bob.ids() == sorted(each.id for each in kept)
        fetched = json.loads(await alice.feed.fetch(PAIR, [each.id for each in sent]))
        assert [each["id"] for each in fetched["records"]] == [each.id for each in kept]
        assert len(fetched["ns"]) == 3
