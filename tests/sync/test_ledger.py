"""When refused records are asked for again, and of whom; the ways through pull and push are tested with those."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.consent import Inbound
from spl.home.writes import Refuse
from spl.sync.ledger import WANTED_ANSWERS_MAX, RefusedLedger, Withheld
from spl.sync.peer import WITHHELD
from tests.nodes import Node, join, nodes

PAIR = "pair_00000001"
IDS = tuple(f"{number:064x}" for number in range(3))


@pytest.fixture
async def bob(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that refused three records of its pair."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.write(*(Refuse(PAIR, id_, "chain-unknown", "default") for id_ in IDS))
        yield bob


def ledger_of(node: Node) -> RefusedLedger:
    """Return a ledger as a new process has it."""
    return RefusedLedger(node.home.writer, node.limits, node.ingest.pool)


async def test_each_line_is_read_once_for_what_the_way_does_not_carry(
    bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    payloads, read = bob.home.store.payloads, list[int]()
    monkeypatch.setattr(bob.home.store, "payloads", lambda rows: read.append(len(rows)) or payloads(rows))
    assert ledger.withheld(PAIR, inbound) == ()
    for at, id_ in enumerate(f"{number:064x}" for number in range(10, 14)):
        bob.write(Refuse(PAIR, id_, WITHHELD if at % 2 else "chain-unknown", "default"))
        assert len(ledger.withheld(PAIR, inbound)) == len(ledger.withheld(PAIR, inbound)) == (at + 1) // 2
    assert ledger.withheld(PAIR, inbound) == ledger_of(bob).withheld(PAIR, inbound) == (f"{11:064x}", f"{13:064x}")
    assert read == [3, 1, 1, 1, 1, 7]


async def test_of_two_lines_of_a_record_the_later_one_counts(bob: Node) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    for code, withheld in [(WITHHELD, IDS[:1]), ("record-id", ()), (WITHHELD, IDS[:1])]:
        bob.write(Refuse(PAIR, IDS[0], code))
        found = await ledger.read(PAIR, inbound)
        assert (found.withheld, sorted(found.ids)) == (withheld, sorted(set(IDS) - set(withheld)))
        assert ledger.withheld(PAIR, inbound) == ledger_of(bob).withheld(PAIR, inbound) == withheld


async def test_it_is_asked_for_once_a_process_and_when_the_rules_change(bob: Node) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    assert not ledger.owes(PAIR, inbound)
    ledger.begin(PAIR)
    assert ledger.owes(PAIR, inbound)
    assert (await ledger.read(PAIR, inbound)).ids == list(IDS)
    ledger.settle(PAIR, inbound)
    assert not ledger.owes(PAIR, inbound)
    assert ledger.owes(PAIR, {})
    ledger.owe(PAIR)
    assert ledger.owes(PAIR, inbound)


async def test_nothing_is_owed_where_nothing_was_refused(bob: Node) -> None:
    ledger = ledger_of(bob)
    ledger.begin("pair_00000002")
    assert not ledger.owes("pair_00000002", {})
    assert await ledger.wanted("pair_00000002", {}) == ()


async def test_a_pusher_is_told_the_same_ids_until_it_answers(bob: Node) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    ledger.begin(PAIR)
    assert [await ledger.wanted(PAIR, inbound) for _ in range(2)] == [IDS, IDS]
    ledger.answered(PAIR)
    assert await ledger.wanted(PAIR, inbound) == ()
    assert not ledger.owes(PAIR, inbound)


async def test_a_pusher_that_never_answers_is_told_a_few_times(bob: Node) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    ledger.begin(PAIR)
    told = [await ledger.wanted(PAIR, inbound) for _ in range(2 * WANTED_ANSWERS_MAX)]
    assert told == [IDS] * WANTED_ANSWERS_MAX + [()] * WANTED_ANSWERS_MAX


async def test_each_answer_gives_the_next_ids_their_own_number_of_tellings(bob: Node) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    ledger._limits = replace(bob.limits, fetch_ids=1)
    ledger.begin(PAIR)
    for id_ in IDS:
        assert [await ledger.wanted(PAIR, inbound) for _ in range(WANTED_ANSWERS_MAX)] == [(id_,)] * WANTED_ANSWERS_MAX
        ledger.answered(PAIR)
    assert await ledger.wanted(PAIR, inbound) == ()


async def test_what_is_owed_again_is_told_again_from_the_first_id(bob: Node) -> None:
    ledger, inbound = ledger_of(bob), bob.ingest.inbound(bob.home.views.pairs[PAIR])
    ledger.begin(PAIR)
    assert await ledger.wanted(PAIR, inbound) == IDS
    ledger.answered(PAIR)
    assert await ledger.wanted(PAIR, inbound) == ()
    ledger.owe(PAIR)
    told = [await ledger.wanted(PAIR, inbound) for _ in range(WANTED_ANSWERS_MAX + 1)]
    assert told == [IDS] * WANTED_ANSWERS_MAX + [()]


async def test_what_arrived_meanwhile_is_not_lacking_in_the_namespace_that_it_enters(bob: Node) -> None:
    here = bob.emit("x").id
    bob.write(Refuse(PAIR, here, "signature", "default"), Refuse(PAIR, here, "signature"))
    ledger = ledger_of(bob)
    for inbound in ({"default": Inbound("default", full=True)}, {"other": Inbound("default", full=True)}):
        assert (await ledger.read(PAIR, inbound)).ids == list(IDS)
    elsewhere = {"default": Inbound("org", full=True)}
    assert (await ledger.read(PAIR, elsewhere)).ids == [*IDS, here]


async def test_what_was_out_of_scope_waits_until_its_namespace_may_enter(bob: Node) -> None:
    one, other, third = (f"{number:064x}" for number in (7, 8, 9))
    bob.write(
        Refuse(PAIR, one, "scope-violation", "music"), Refuse(PAIR, other, "scope-violation", "org"),
        Refuse(PAIR, third, "signature", "music"),
    )  # fmt: skip
    ledger = ledger_of(bob)
    closed = await ledger.read(PAIR, {"default": Inbound("default", full=True)})
    assert (closed.ids, closed.awaited, closed.namespaces) == ([*IDS, one, other, third], frozenset(), [])
    opened = await ledger.read(PAIR, {"music": Inbound("music", full=True)})
    assert (opened.ids, opened.awaited) == ([*IDS, one, other, third], {one})


async def test_a_namespace_whose_ids_are_pseudonyms_is_read_again_instead_of_asked_for(bob: Node) -> None:
    one, other = f"{7:064x}", f"{8:064x}"
    bob.write(Refuse(PAIR, one, "scope-violation", "music"), Refuse(PAIR, other, "signature", "music"))
    for level, namespaces, ids in ((1, [], [*IDS, one, other]), (2, ["music"], [*IDS, other])):
        found = await ledger_of(bob).read(PAIR, {"music": Inbound("music", full=False, level=level)})
        assert (found.namespaces, found.ids) == (namespaces, ids)
        assert found.awaited == ({one} if level == 1 else set())


async def test_what_was_passed_over_is_known_after_a_restart(bob: Node) -> None:
    withheld = Withheld(bob.home.vault, bytes)
    for ids in (IDS[:2], ()):
        for id_ in IDS:
            withheld.add(PAIR, id_) if id_ in ids else withheld.end(PAIR, [id_])
        await withheld.save(PAIR)
        assert Withheld(bob.home.vault, bytes).ids(PAIR) == tuple(ids)
    assert not bob.home.vault.names("withheld.")


def test_only_so_many_records_are_passed_over_for_one_peer(bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that refuses everything must not fill our memory with ids."""
    monkeypatch.setattr("spl.sync.ledger.WITHHELD_MAX", 2)
    withheld = Withheld(bob.home.vault, bytes)
    for id_ in IDS:
        if withheld.failed(PAIR, id_, for_size=True):
            withheld.add(PAIR, id_)
    assert withheld.ids(PAIR) == IDS[:2]
    assert withheld.failed(PAIR, IDS[0], for_size=True), "one that waits already may go on waiting"
    withheld.end(PAIR, IDS[:1])
    assert withheld.failed(PAIR, IDS[2], for_size=True)
