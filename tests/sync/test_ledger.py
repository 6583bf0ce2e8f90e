"""When refused records are asked for again, and of whom; the ways through pull and push are tested with those."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from spl.home.writes import Refuse
from spl.sync.ledger import WANTED_ANSWERS_MAX, RefusedLedger
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
