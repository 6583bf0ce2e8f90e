"""What a pair may bring in within a day: it pauses that pair alone, loses nothing, and ends by itself."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.record import page
from spl.core.record.page import Page
from spl.home.writer import Writer
from spl.home.writes import Arrive, DayBytes, Emit, Own, Refuse, SavedPosition, size_of
from spl.sync.budget import DAY_S, INTAKE_PAUSED, IntakeBudget, IntakeError, saved_sums
from tests.nodes import LIMITS, Node, join, nodes
from tests.waiting import until

PAIR, OTHER = "pair_00000001", "pair_00000002"
DAY_BYTES = 960_000
FEW: Limits = replace(LIMITS, intake_day_bytes=2000)
"""So little that two records use it up."""


class Clock:
    """A steady clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1024.0  # a sum of seconds and bytes stays exact

    def __call__(self) -> float:
        return self.now_s


def made(peers: Mapping[str, str] = {}, **saved: int) -> tuple[IntakeBudget, Clock]:
    """Return a budget and its clock; `peers` are those of the pairs, each its own without."""
    clock, pairs = Clock(), {pair_id: SimpleNamespace(peer_did=did) for pair_id, did in peers.items()}
    return IntakeBudget(
        cast(Writer, SimpleNamespace(views=SimpleNamespace(pairs=pairs))), DAY_BYTES, saved, clock
    ), clock


def refused(budget: IntakeBudget, pair_id: str) -> float:
    """Return for how long the budget refuses a pair, as a caller is told; 0 if it does not."""
    try:
        budget.check(pair_id)
    except IntakeError as exc:
        assert (exc.code, exc.status) == (INTAKE_PAUSED, 429)
        return float(str(exc.facts["retry_after_s"]))
    return 0.0


def test_the_limit_pauses_one_pair_and_no_other() -> None:
    budget, _ = made()
    budget.charge(PAIR, DAY_BYTES - 1)
    assert refused(budget, PAIR) == 0
    budget.charge(PAIR, 1)
    assert refused(budget, PAIR) > 0
    assert refused(budget, OTHER) == 0


def test_pairs_of_one_peer_share_a_day() -> None:
    peers = {PAIR: "did:a", OTHER: "did:a", "pair_00000003": "did:b"}
    budget, _ = made(peers)
    budget.charge(PAIR, DAY_BYTES)
    assert refused(budget, OTHER) > 0
    assert refused(budget, "pair_00000003") == 0
    budget.renew(OTHER)
    assert refused(budget, PAIR) == 0


def test_intake_resumes_when_a_96th_of_the_day_is_over_and_not_for_each_byte() -> None:
    budget, clock = made()
    budget.charge(PAIR, DAY_BYTES)
    clock.now_s += DAY_S / 97
    left_s = refused(budget, PAIR)
    assert 0 < left_s < DAY_S / 96
    clock.now_s += left_s
    assert refused(budget, PAIR) == 0
    clock.now_s -= 100  # a clock that steps back pauses nothing
    assert refused(budget, PAIR) == 0


def test_no_day_brings_in_more_than_twice_the_budget() -> None:
    """The sum runs off while it is used: a burst and a flow on the first day, and the flow on each later one."""
    budget, clock = made()
    brought = []
    for _ in range(3):
        brought.append(0)
        for _ in range(24 * 60):
            clock.now_s += 60
            while not refused(budget, PAIR):
                budget.charge(PAIR, 1000)
                brought[-1] += 1000
    assert brought[0] <= 2 * DAY_BYTES
    assert max(brought[1:]) <= DAY_BYTES * 1.02


def test_a_saved_sum_goes_on_where_it_was() -> None:
    budget, clock = made(**{PAIR: DAY_BYTES, OTHER: DAY_BYTES - 1})
    assert refused(budget, PAIR) > 0
    assert refused(budget, OTHER) == 0
    assert (budget.left(PAIR), budget.left(OTHER)) == (0, 1)
    clock.now_s += DAY_S / 2
    assert abs(budget.brought(PAIR) - DAY_BYTES // 2) <= 1  # the time of the start decides how it is rounded


def test_a_pause_ends_within_a_day_whatever_one_record_weighs() -> None:
    budget, _ = made()
    added = budget.charge(PAIR, 100 * DAY_BYTES)
    assert 0 < refused(budget, PAIR) <= DAY_S
    budget.refund(PAIR, added)
    assert budget.brought(PAIR) == 0


def test_pages_are_asked_for_that_fit_and_have_one_record_at_least() -> None:
    budget, _ = made()
    assert budget.records(PAIR) == DAY_BYTES // 1024
    budget.charge(PAIR, DAY_BYTES - 3000)
    assert budget.records(PAIR) == 2
    budget.charge(PAIR, 2999)
    assert budget.records(PAIR) == 1


def test_the_operators_word_gives_another_day() -> None:
    budget, _ = made(**{PAIR: DAY_BYTES})
    budget.charge(PAIR, DAY_BYTES)
    budget.renew(PAIR)
    assert budget.status(PAIR).day_bytes == 0
    assert refused(budget, PAIR) == 0


def test_a_status_shows_when_it_resumes() -> None:
    budget, _ = made()
    assert budget.status(PAIR).to_json(0) == {"day_bytes": 0, "day_bytes_max": DAY_BYTES, "paused_until": None}
    budget.charge(PAIR, DAY_BYTES)
    assert budget.status(PAIR).to_json(0)["paused_until"] == "1970-01-01T00:15:00.000Z"


def test_what_was_not_stored_after_all_does_not_count() -> None:
    budget, _ = made()
    for _ in range(1000):
        budget.refund(PAIR, budget.charge(PAIR, DAY_BYTES))
    assert budget.status(PAIR).day_bytes == 0
    assert refused(budget, PAIR) == 0


# -- every way in


def spent(node: Node) -> Clock:
    """Use up a node's budget for the pair and return the clock of its budget."""
    clock = Clock()
    node.ingest.budget._steady_s = clock
    node.ingest.budget.charge(PAIR, node.limits.intake_day_bytes)
    return clock


async def code_of(awaitable: object) -> str:
    try:
        await awaitable  # type: ignore[misc]
    except SplError as exc:
        return exc.code
    return ""


async def test_a_pull_stops_within_a_page_and_goes_on_where_it_was(tmp_path: Path) -> None:
    small = replace(FEW, page_records_default=2, queue_records=4)
    async with nodes(tmp_path, "alice", "bob", limits=small) as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}").id for n in range(12)]
        clock = Clock()
        bob.ingest.budget._steady_s = clock
        assert await code_of(bob.sync.pull(PAIR)) == INTAKE_PAUSED
        assert 0 < len(bob.ids()) < 8
        for _ in range(100):
            clock.now_s += DAY_S / 4
            await code_of(bob.sync.pull(PAIR))
        assert sorted(bob.ids()) == sorted(sent)
        assert bob.home.views.refused == {}


async def test_a_paused_intake_is_no_error_of_the_pair(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        spent(bob)
        for _ in range(2 * FEW.errors_until_degraded):
            assert await code_of(bob.sync.pull(PAIR)) == INTAKE_PAUSED
        status = bob.sync.status(PAIR)
        assert (status.attempt, status.last_error, bob.watched.heard) == (0, None, [])
        assert status.intake.wait_s > 0
        assert status.next_attempt_ms is not None


async def test_what_a_peer_pushes_is_refused_and_comes_later(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server", limits=FEW) as (laptop, server):
        join(laptop, server)
        laptop.network.walled = {"laptop"}
        await laptop.sync.pull(PAIR)
        sent = laptop.emit("1")
        clock = spent(server)
        item = Page([json.loads(sent.raw)], ["default"], "place", False, {"clock": 1}, 0)
        assert await code_of(server.push.receive(PAIR, page.assemble_push("", item))) == INTAKE_PAUSED
        assert server.ids() == []
        clock.now_s += DAY_S
        assert (await server.push.receive(PAIR, page.assemble_push("", item)))["records"] == 1
        assert server.ids() == [sent.id]


async def test_repair_brings_in_no_more_than_a_pull(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        clock = spent(bob)
        assert await code_of(bob.reconcile.verify(PAIR, repair=True)) == INTAKE_PAUSED
        assert bob.ids() == []
        clock.now_s += DAY_S
        await bob.reconcile.verify(PAIR, repair=True)
        assert len(bob.ids()) == 1


async def test_a_stream_ends_when_the_budget_is_used_up_and_comes_back(tmp_path: Path) -> None:
    """The task of the pair waits for the budget by itself, and our operator's word ends the wait at once."""
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob), asyncio.TaskGroup() as tasks:
        join(alice, bob, mode="continuous")
        stop = asyncio.Event()
        tasks.create_task(bob.sync.run(stop))
        stream = lambda: bob.sync.status(PAIR).stream  # noqa: E731
        await until(lambda: (found := stream()) is not None and found.state == "open")
        for n in range(8):
            alice.emit(f"{n}")
        await until(lambda: bob.sync.status(PAIR).intake.wait_s)
        await until(lambda: (found := stream()) is not None and found.state == "down")
        for _ in range(8):
            bob.sync.renew_intake(PAIR)
            await until(lambda: len(bob.ids()) == 8 or bob.sync.status(PAIR).intake.wait_s)
        await until(lambda: len(bob.ids()) == 8)
        stop.set()


async def test_positions_without_records_count_too(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob):
        join(alice, bob)
        pair, before, codes = bob.home.views.pairs[PAIR], bob.home.store.last_seq, set[str]()
        for number in range(50):
            codes.add(await code_of(bob.ingest.take(pair, Page([], [], f"cursor-{number}", True, {}, 0), moves=True)))
        assert bob.home.store.last_seq - before <= 4
        assert INTAKE_PAUSED in codes


async def test_a_page_that_does_not_fit_is_stored_as_far_as_it_does(tmp_path: Path) -> None:
    """One record beyond the budget at most, by page and push alike; the position comes with the rest."""
    small = replace(FEW, intake_day_bytes=10_000)
    async with nodes(tmp_path, "alice", "bob", limits=small) as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(40)]
        clock = Clock()
        bob.ingest.budget._steady_s = clock
        item = Page([json.loads(each.raw) for each in sent], ["default"] * 40, "place", False, {"clock": 40}, 0)
        one = max(size_of(Arrive(each, "default", PAIR)) for each in sent)
        for number in range(100):
            code = await code_of(bob.ingest.take(bob.pair(PAIR), item, moves=True))  # type: ignore[arg-type]
            assert bob.ingest.budget.brought(PAIR) < small.intake_day_bytes + one
            if not code:
                break
            assert (code, bob.home.views.positions) == (INTAKE_PAUSED, {}), number
            clock.now_s += DAY_S / 8
        assert len(bob.ids()) == 40
        assert bob.home.views.positions[PAIR].cursor == "place"


@pytest.mark.parametrize("way", ["page", "again", "statement"])
async def test_a_restart_neither_gives_back_nor_adds(tmp_path: Path, way: str) -> None:
    """Whatever other pairs and clients wrote, and however often: each process goes on with the sum of the last one."""
    limits = replace(LIMITS, intake_day_bytes=DAY_BYTES)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        join(alice, bob, OTHER)
        bob.ingest.budget._steady_s = Clock()
        sent = [json.loads(alice.emit(f"{n}").raw) for n in range(3)]
        item, pair = Page(sent, ["default"] * 3, "place", False, {"clock": 3}, 0), bob.pair(PAIR)
        if way == "page":
            await bob.ingest.take(pair, item, moves=True)  # type: ignore[arg-type]
        elif way == "again":
            await bob.ingest.keep_again(pair, await bob.ingest.judge(pair, item))  # type: ignore[arg-type]
        else:
            bob.write(Own("th_federation_pairs", "syncropel.federation.note.v1", {}), DayBytes(PAIR, 5000))
            bob.ingest.budget.charge(PAIR, 5000)
        brought = bob.ingest.budget.brought(PAIR)
        assert brought > 2000
        for _ in range(100):
            bob.emit("x" * 1000)
        for _ in range(3):
            now_ms = bob.home.store.line(bob.home.store.last_seq).at_ms
            saved = saved_sums(bob.home.writer, DAY_BYTES, now_ms)
            assert list(saved) == [alice.did]
            assert brought - 100 <= saved[alice.did] <= brought


async def test_what_is_asked_for_again_in_vain_counts(tmp_path: Path) -> None:
    """It costs the way and the judging each time, and is stored never; nothing more is asked for in a day used up."""
    limits = replace(LIMITS, intake_day_bytes=DAY_BYTES)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        bob.ingest.budget._steady_s = Clock()
        value = {**json.loads(alice.emit("one").raw), "id": "0" * 64}
        bob.write(Refuse(PAIR, "0" * 64, "record-id"))
        pair, item = bob.pair(PAIR), Page([value], ["default"], "", False, {}, 3000)
        await bob.ingest.keep_again(pair, await bob.ingest.judge(pair, item))  # type: ignore[arg-type]
        assert bob.ingest.budget.brought(PAIR) == 3000
        bob.ingest.budget.charge(PAIR, DAY_BYTES)
        with pytest.raises(IntakeError):
            await anext(bob.sync.puller.retry_refused(pair))  # type: ignore[arg-type]
        assert not bob.network.log


async def test_a_peer_that_pairs_again_has_no_new_day_and_after_a_restart_neither(tmp_path: Path) -> None:
    limits = replace(LIMITS, intake_day_bytes=DAY_BYTES)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        join(alice, bob, OTHER)
        budget = bob.ingest.budget
        budget._steady_s = Clock()
        item = Page([json.loads(alice.emit("1").raw)], ["default"], "place", False, {"clock": 3}, 0)
        await bob.ingest.take(bob.pair(PAIR), item, moves=True)  # type: ignore[arg-type]
        first = budget.brought(PAIR)
        assert budget.brought(OTHER) == first > 0
        item = Page([json.loads(alice.emit("2").raw)], ["default"], "place", False, {"clock": 4}, 0)
        await bob.ingest.take(bob.pair(OTHER), item, moves=True)  # type: ignore[arg-type]
        brought = budget.brought(OTHER)
        assert brought > first
        now_ms = bob.home.store.line(bob.home.store.last_seq).at_ms
        saved = saved_sums(bob.home.writer, DAY_BYTES, now_ms)
        assert list(saved) == [alice.did]
        assert brought - 100 <= saved[alice.did] <= brought


async def test_what_runs_off_while_the_daemon_is_down_runs_off(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        await bob.sync.pull(PAIR)
        writer, at_ms, times = bob.home.writer, bob.home.views.positions[PAIR].at_ms, (0, DAY_S * 250, -DAY_S * 9e5)
        whole, half, back = (saved_sums(writer, 2000, at_ms + int(ms))[alice.did] for ms in times)
        assert whole == back == bob.ingest.budget.brought(PAIR)
        assert abs(whole - half - 500) < 1


async def test_the_operators_word_holds_over_a_restart(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob):
        join(alice, bob)
        for n in range(4):
            alice.emit(f"{n}")
        assert await code_of(bob.sync.pull(PAIR)) == INTAKE_PAUSED
        assert bob.sync.renew_intake(PAIR)
        bob.write(Emit({"act": "DO", "actor": "did:sync:user:b", "thread": "th", "body": {}}))
        assert saved_sums(bob.home.writer, 2000, bob.now_ms())[alice.did] == 0


async def test_a_position_that_an_older_version_saved_counts_what_the_log_took(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.write(SavedPosition(PAIR, "cursor", 3))
        for _ in range(10):
            bob.emit("x" * 1000)
        saved = saved_sums(bob.home.writer, DAY_BYTES, bob.now_ms())
        assert 10_000 < saved[alice.did] <= bob.home.store.stats().log_bytes
        assert saved_sums(bob.home.writer, 1000, bob.now_ms()) == {alice.did: 1000 * 23 // 24}


def full(lots: list[tuple[object, asyncio.Future[object]]], *ways: object) -> None:
    for _, answer in lots:
        answer.set_exception(SplError("store-full"))


def busy(lots: list[tuple[object, asyncio.Future[object]]], *ways: object) -> None:
    raise SplError("overloaded")


@pytest.mark.parametrize(("refuse", "code"), [(full, "store-full"), (busy, "overloaded")])
async def test_what_the_writer_refuses_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None], code: str
) -> None:
    """A page that is tried again and again while the disk is full would otherwise pause the pair for a day."""
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}").id for n in range(2)]
        before = bob.sync.status(PAIR).intake.day_bytes
        with monkeypatch.context() as patched:
            patched.setattr(bob.home.writer, "submit_posted", refuse)
            for _ in range(5):
                assert await code_of(bob.sync.pull(PAIR)) == code
        assert bob.sync.status(PAIR).intake.day_bytes <= before
        await code_of(bob.sync.pull(PAIR))
        assert sorted(bob.ids()) == sorted(sent)


async def test_the_operators_word_has_a_polled_pair_read_at_once(tmp_path: Path) -> None:
    """It does not wait for the end of an interval, which may be a day."""
    async with nodes(tmp_path, "alice", "bob", limits=FEW) as (alice, bob), asyncio.TaskGroup() as tasks:
        join(alice, bob, poll_interval_ms=86_400_000)
        sent = alice.emit("1").id
        spent(bob)
        assert await code_of(bob.sync.pull(PAIR)) == INTAKE_PAUSED
        stop = asyncio.Event()
        tasks.create_task(bob.sync.run(stop))
        assert bob.sync.renew_intake(PAIR)
        await until(lambda: bob.ids() == [sent])
        stop.set()
