"""What becomes of a page: the position that it leads to, what is known already, what is asked for again and why."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spl.core.consent import Inbound
from spl.core.errors import SplError
from spl.core.gate import ALWAYS_MS, Gate, Verdict
from spl.core.pair.pair import Pair
from spl.core.record.page import Page, PushBody
from spl.core.record.record import Envelope
from spl.home.writes import Arrive, Projected, Refuse, SavedPosition, size_of
from spl.sync.budget import IntakeBudget, IntakeError, peer_of
from spl.sync.ingest import GATE_AGE_MS, ON_LOOP_BYTES, ON_LOOP_RECORDS, WORKERS, Ingest, _arrivals, _is_ahead, _name_of
from spl.sync.peer import WITHHELD, SyncError
from tests.home.test_writer import claimed, from_peer
from tests.nodes import Node, join, nodes
from tests.sync.test_ingest import PAIR, born, leading, signed

OTHER_ID = "f" * 64


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[list[Node]]:
    async with nodes(tmp_path, "alice", "bob") as made:
        join(*made)
        yield made


@pytest.fixture
def alice(both: list[Node]) -> Node:
    return both[0]


@pytest.fixture
def bob(both: list[Node]) -> Node:
    return both[1]


def pair_of(node: Node) -> Pair:
    return node.home.views.pairs[PAIR]


def page(*values: Any, cursor: str = "", ns: Any = "default", view: Mapping[str, Any] | None = None) -> Page:
    values = tuple(json.loads(value.raw) if isinstance(value, Envelope) else value for value in values)
    return Page(list(values), [ns] * len(values), cursor, False, view or {}, 0)


def spoilt(envelope: Envelope) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(envelope.raw)
    value["record"]["clock"] += 1
    return value


def place(node: Node, pair_id: str = PAIR) -> tuple[str, int] | None:
    found = node.home.views.positions.get(pair_id)
    return None if found is None else (found.cursor, found.count)


def owes(node: Node) -> bool:
    """Return whether refused records are asked for again, and have them asked for."""
    inbound = node.ingest.inbound(pair_of(node))
    found = node.ingest.refused.owes(PAIR, inbound)
    node.ingest.refused.settle(PAIR, inbound)
    return found


async def test_a_page_moves_the_position_to_where_it_leads(alice: Node, bob: Node) -> None:
    ingest, pair = bob.ingest, pair_of(bob)
    taken = await ingest.take(pair, leading("a", 5), moves=False)
    assert (taken.fresh, taken.clock, place(bob)) == (0, 5, None)
    await ingest.take(pair, leading("", 5), moves=True)
    assert place(bob) is None
    taken = await ingest.take(pair, page(alice.emit("1"), alice.emit("2"), cursor="b"), moves=True)
    assert (taken.fresh, taken.clock, place(bob)) == (2, 2, ("b", 2)), "without a number of the source ours counts"
    before = bob.home.store.last_seq
    await ingest.take(pair, leading("b", 2), moves=True)
    assert bob.home.store.last_seq == before
    for cursor, clock in (("b", 3), ("c", 1)):
        await ingest.take(pair, leading(cursor, clock), moves=True)
        assert place(bob) == (cursor, clock)
    judged = await ingest.judge(pair, leading("d", 9))
    await ingest.keep(pair, judged, moves=False, beside=[SavedPosition("pair_2", "e", 4)])
    assert (place(bob), place(bob, "pair_2")) == (("c", 1), ("e", 4))


async def test_a_pair_that_superseded_another_goes_on_from_its_position_and_saves_its_own(bob: Node) -> None:
    bob.change_pair(PAIR, inherits="pair_old")
    bob.write(SavedPosition("pair_old", "there", 0))
    assert bob.ingest.since(pair_of(bob)) == "there"
    await bob.ingest.take(pair_of(bob), leading("there", 0), moves=True)
    assert place(bob) == ("there", 0)


async def test_a_position_that_was_not_stored_stands_in_nobodys_way(bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest, pair = bob.ingest, pair_of(bob)

    async def fails(*_: object) -> int:
        raise SplError("store-full")

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_store", fails)
        with pytest.raises(SplError):
            await ingest.take(pair, leading("far", 100), moves=True)
    await ingest.take(pair, leading("near", 50), moves=True, base="elsewhere")
    assert place(bob) == ("near", 50)


async def test_only_what_is_held_by_id_voucher_and_namespace_is_dropped_unjudged(alice: Node, bob: Node) -> None:
    ingest, sent = bob.ingest, alice.emit("x")
    await ingest.take(pair_of(bob), page(sent), moves=False)
    value = json.loads(sent.raw)

    async def judged(value: Any, ns: Any = "default") -> int:
        return len((await ingest.judge(pair_of(bob), page(value, ns=ns), {})).verdicts)

    assert await judged(value) == 0
    others: list[Any] = [
        {**value, "sig": None}, {**value, "sig": {**value["sig"], "by": bob.did}}, "text", [value], {**value, "id": 7},
        *({**value, "id": id_} for id_ in (None, "", "ab", value["id"][:-1], OTHER_ID)),
    ]  # fmt: skip
    for other in others:
        assert await judged(other) == 1, other
    for ns in ("org", 7, None):
        assert await judged(value, ns) == 1, ns


async def test_a_projection_is_dropped_if_it_is_held_or_shows_no_more_than_its_record(alice: Node, bob: Node) -> None:
    sent = alice.emit("x")
    bob.write(Arrive(sent, "default", PAIR), Projected(claimed(1), "default", PAIR))

    async def judged(id_: str, level: Any) -> int:
        value = {"id": id_, "projection": {"level": level}}
        return len((await bob.ingest.judge(pair_of(bob), page(value), {})).verdicts)

    assert [await judged(sent.id, level) for level in ("L1", "L2", "L9", 1, None, [])] == [0, 1, 1, 1, 1, 1]
    assert [await judged(claimed(1).id, level) for level in ("L1", "L2")] == [0, 1]
    assert await judged(OTHER_ID, "L1") == 1


async def test_what_is_withheld_is_named_while_the_pair_may_sync(bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = bob.ingest
    assert ingest.withheld(PAIR) == ()
    bob.write(*(Refuse(pair_id, OTHER_ID, WITHHELD, "default") for pair_id in (PAIR, "pair_gone")))
    assert (ingest.withheld(PAIR), ingest.withheld("pair_gone")) == ((OTHER_ID,), ())
    with monkeypatch.context() as patch:
        patch.setattr(ingest.peers.vault, "identity", None)
        assert ingest.withheld(PAIR) == ()
    bob.change_pair(PAIR, sync_allowed=False)
    assert ingest.withheld(PAIR) == ()


async def test_a_pair_that_may_not_sync_brings_nothing_in(bob: Node) -> None:
    pair, before = pair_of(bob), bob.home.store.last_seq
    bob.change_pair(PAIR, sync_allowed=False)
    with pytest.raises(SyncError):
        await bob.ingest.refuse(pair, {OTHER_ID: "record-id"})
    with pytest.raises(SyncError):
        bob.ingest.pair(PAIR)
    assert bob.home.store.last_seq == before
    bob.change_pair(PAIR, sync_allowed=True)
    await bob.ingest.refuse(pair, {OTHER_ID: "record-id"})
    assert bob.home.views.refused == {PAIR: 1}


async def test_what_may_be_sound_soon_is_asked_for_again(alice: Node, bob: Node) -> None:
    ingest, pair = bob.ingest, pair_of(bob)
    judged = await ingest.judge(pair, page())
    for changes, again in (({}, False), ({"later": True}, True), ({"unshown": True}, True)):
        taken = await ingest.keep(pair, replace(judged, **changes), moves=False)
        assert (owes(bob), taken.later) == (again, "later" in changes)
    key, chain = born(1)
    learnt = await ingest.take(pair, page(), moves=False)
    assert (learnt.learnt, owes(bob)) == (False, False)
    chains = {chain.did: chain.to_json()}
    pins = await ingest.judge(pair, page(signed(key, chain.did, 1)), chains)
    assert (await ingest.keep(pair, pins, moves=False)).learnt
    assert not owes(bob), "nothing was refused that a chain could make sound"
    await ingest.take(pair, page(alice.emit("x"), ns="org"), moves=False)
    assert not owes(bob), "out of scope it stays whatever way it comes"
    await ingest.take(pair, page(alice.emit("y")), moves=False)
    assert not owes(bob)
    await ingest.keep(pair, await ingest.judge(pair, page(*_of_another(2)[0]), _of_another(2)[1]), moves=False)
    assert owes(bob), "a chain was learnt while something is refused"
    await ingest.take(pair, page(spoilt(alice.emit("z"))), moves=False)
    assert owes(bob), "its bytes may have changed on the way"


def _of_another(number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    key, chain = born(number)
    return [signed(key, chain.did, number)], {chain.did: chain.to_json()}


async def test_what_was_asked_for_again_and_is_refused_again_adds_no_line(alice: Node, bob: Node) -> None:
    ingest, pair = bob.ingest, pair_of(bob)
    judged = await ingest.judge(pair, page(alice.emit("x"), spoilt(alice.emit("y"))))
    taken = await ingest.keep_again(pair, judged)
    assert (taken.fresh, [verdict.code for verdict in taken.refused], taken.learnt) == (1, ["record-id"], False)
    assert (bob.home.views.refused, owes(bob)) == ({}, False)
    taken = await ingest.keep_again(pair, replace(await ingest.judge(pair, page()), later=True))
    assert (taken.later, owes(bob)) == (True, True)
    values, chains = _of_another(1)
    taken = await ingest.keep_again(pair, await ingest.judge(pair, page(*values), chains))
    assert (taken.fresh, taken.learnt, owes(bob)) == (1, True, True)


async def test_a_push_is_heard_moves_the_position_and_is_told_what_is_wanted(alice: Node, bob: Node) -> None:
    ingest, pair = bob.ingest, pair_of(bob)
    bob.write(Refuse(PAIR, OTHER_ID, "chain-unknown", "default"))
    assert ingest.received_ms(PAIR) is None
    taken = await ingest.take_pushed(pair, PushBody("", leading("p", 3)))
    assert (taken.wanted, place(bob)) == ((OTHER_ID,), ("p", 3))
    assert ingest.received_ms(PAIR) is not None
    assert bob.watched.views[-1] == (PAIR, {"clock": 3})
    taken = await ingest.take_pushed(pair, PushBody("p", page(alice.emit("x")), again=True))
    assert (taken.fresh, taken.wanted) == (1, ()), "it sent what it has of them"


async def test_a_reading_asks_for_what_the_last_process_left_refused(bob: Node) -> None:
    bob.write(Refuse(PAIR, OTHER_ID, "chain-unknown", "default"))
    inbound = bob.ingest.inbound(pair_of(bob))
    assert not bob.ingest.refused.owes(PAIR, inbound)
    bob.ingest.begin(PAIR)
    assert bob.ingest.refused.owes(PAIR, inbound)


async def test_large_pages_are_judged_beside_the_loop(bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest, threads = bob.ingest, list[int]()
    in_threads = ingest._in_threads

    async def counted(judge: Any, rows: Any) -> Any:
        threads.append(len(rows))
        return await in_threads(judge, rows)

    monkeypatch.setattr(ingest, "_in_threads", counted)
    for count, size, found in (
        (ON_LOOP_RECORDS, ON_LOOP_BYTES, []), (1, ON_LOOP_BYTES + 1, [1]),
        (ON_LOOP_RECORDS + 1, 0, [ON_LOOP_RECORDS + 1]),
    ):  # fmt: skip
        await ingest.judge(pair_of(bob), replace(page(*["x"] * count), size=size))
        assert threads == found
        threads.clear()


async def test_two_threads_share_signatures_and_one_takes_a_batch(bob: Node) -> None:
    async def parts(value: Any, count: int) -> list[int]:
        found: list[int] = []
        rows = [(value, "default")] * count
        assert await bob.ingest._in_threads(lambda part: found.append(len(part)) or list(part), rows) == rows
        return sorted(found)

    for alone in ({"sig": {}}, {"sig": "batch"}, {}, "text"):
        assert await parts(alone, ON_LOOP_RECORDS) == [ON_LOOP_RECORDS]
        assert await parts(alone, ON_LOOP_RECORDS + 1) == [ON_LOOP_RECORDS // 2, ON_LOOP_RECORDS // 2 + 1]
    assert await parts({"sig": {"batch": {}}}, 20) == [20]
    assert await parts({}, 0) == []


async def test_what_our_retired_keys_signed_is_taken_where_something_is_lost(
    bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, store = bob.ingest, bob.home.store

    def always() -> bool:
        return ingest._gate(pair_of(bob)).trust.regains_ms == ALWAYS_MS

    assert not always()
    ingest.regaining.add(PAIR)
    assert always()
    ingest.regaining.clear()
    assert not always()
    for owner, name, value in ((store, "lost", (1,)), (store.index.reader, "left_out", {1})):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert always()
        assert not always()


async def test_rules_are_kept_for_a_minute(bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest, now_ms = bob.ingest, [10**12]
    monkeypatch.setattr(bob.home.writer, "now_ms", lambda: now_ms[0])
    rules = ingest._gate(pair_of(bob))
    now_ms[0] += GATE_AGE_MS - 1
    assert ingest._gate(pair_of(bob)) is rules
    now_ms[0] += 1
    later = ingest._gate(pair_of(bob))
    assert later is not rules
    assert ingest._gate(cast(Pair, replace(cast(Any, pair_of(bob)), actors=("x",)))) is not later


def budget_of(ingest: Ingest, day_bytes: int) -> None:
    ingest.budget = IntakeBudget(ingest.writer, day_bytes, {}, lambda: 0.0)


async def test_a_day_may_be_used_up_to_its_last_byte(alice: Node, bob: Node) -> None:
    sent = [alice.emit(f"{n}") for n in range(3)]
    size = sum(size_of(Arrive(each, "default", PAIR)) for each in sent)
    budget_of(bob.ingest, size)
    assert (await bob.ingest.take(pair_of(bob), page(*sent), moves=False)).fresh == 3
    with pytest.raises(IntakeError):
        await bob.ingest.take(pair_of(bob), page(alice.emit("x")), moves=False)
    assert len(bob.ids()) == 3
    bob.ingest.renew_intake(PAIR)
    assert bob.ingest.budget.left(PAIR) == size
    bob.write(SavedPosition(PAIR, "c", 1))
    line = bob.home.store.line(bob.home.store.last_seq - 1)
    assert (line.kind, json.loads(line.payload)) == ("day", {"pair": PAIR, "day_bytes": 0})


async def test_what_the_rest_of_a_day_does_not_hold_is_left_out_with_the_position(alice: Node, bob: Node) -> None:
    sent = [alice.emit(f"{n}") for n in range(4)]
    budget_of(bob.ingest, sum(size_of(Arrive(each, "default", PAIR)) for each in sent[:2]) + 1)
    with pytest.raises(IntakeError):
        await bob.ingest.take(pair_of(bob), page(*sent, cursor="c"), moves=True)
    assert (len(bob.ids()), place(bob)) == (3, None), "the one with which the day ends is stored"
    assert bob.ingest.budget.status(PAIR).wait_s > 0


async def test_what_the_disk_refused_uses_up_no_day(alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise SplError("store-full")

    budget_of(bob.ingest, 10_000)
    monkeypatch.setattr(bob.ingest, "_submitted", full)
    with pytest.raises(SplError) as caught:
        await bob.ingest.take(pair_of(bob), page(alice.emit("x")), moves=False)
    assert (caught.value.code, bob.ingest.budget.left(PAIR)) == ("store-full", 10_000)


async def test_all_pairs_of_a_peer_share_its_day(alice: Node, bob: Node) -> None:
    assert (peer_of(bob.home.writer, PAIR), peer_of(bob.home.writer, "pair_gone")) == (alice.did, "pair_gone")


async def test_an_end_waits_for_no_signature_and_begins_no_other(bob: Node) -> None:
    begun, ended = Barrier(WORKERS + 1, timeout=60), Event()
    running = [bob.ingest.pool.submit(lambda: (begun.wait(), ended.wait(60))) for _ in range(WORKERS)]
    waiting = bob.ingest.pool.submit(time.monotonic)
    begun.wait()
    bob.ingest.close()
    ended.set()
    assert [each.result(30)[1] for each in running] == [True, True]
    assert waiting.cancelled()
    with pytest.raises(RuntimeError):
        bob.ingest.pool.submit(time.monotonic)


def test_what_was_accepted_is_written_and_nothing_else() -> None:
    envelope, projection = from_peer(1), claimed(2)
    pair = cast(Pair, SimpleNamespace(pair_id=PAIR))
    verdicts = [
        Verdict("1", "a", envelope=envelope), Verdict("2", "b", "record-id", envelope=envelope),
        Verdict("3", "c", projection=projection), Verdict("4", "d", "record-id", projection=projection),
        Verdict("5", "e", "record-id"), Verdict("6", "f"),
    ]  # fmt: skip
    assert _arrivals(pair, verdicts) == [Arrive(envelope, "a", PAIR), Projected(projection, "c", PAIR)]


def test_the_ledger_names_a_namespace_only_if_it_can_be_one() -> None:
    assert [_name_of(ns) for ns in ("default", "a/b", "Bad Name", "")][::2] == ["default", ""]
    assert _name_of("") == ""


def test_a_record_is_ahead_that_came_in_full_where_we_want_to_grant_that() -> None:
    rules = cast(Gate, SimpleNamespace(inbound={"a": Inbound("a", False, 1, True), "b": Inbound("b", False, 1, False)}))
    found = from_peer(1)
    for verdict, ahead in (
        (Verdict("1", "a", "scope-violation", envelope=found), True),
        (Verdict("1", "a", "scope-violation"), False), (Verdict("1", "a", "record-id", envelope=found), False),
        (Verdict("1", "b", "scope-violation", envelope=found), False),
        (Verdict("1", "c", "scope-violation", envelope=found), False),
    ):  # fmt: skip
        assert _is_ahead(rules, verdict) is ahead, verdict
