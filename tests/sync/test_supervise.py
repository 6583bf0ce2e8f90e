"""One task per name while it is wanted: crashes are bounded, and a stop ends every task."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from spl.core.backoff import Backoff
from spl.core.errors import SplError
from spl.net.address import ReachError
from spl.sync.supervise import Handoff, Kick, Rest, Supervisor, drop_ended, guard, run_together, wait
from tests.counting import calls_of
from tests.waiting import DEADLINE_S, turns, until


class Owner:
    """Wants the jobs in `jobs`."""

    def __init__(self) -> None:
        self.jobs: dict[str, Callable[[], Awaitable[object]]] = {}
        self.crashes: list[tuple[str, int]] = []
        self.arranged = asyncio.Event()
        self.restart = True
        self.tasks = Supervisor("test", self, random_bytes=lambda size: bytes(size), backoff_max_s=0.0)

    async def arrange(self) -> float | None:
        self.tasks.cancel_except(self.jobs.keys())
        for name, job in self.jobs.items():
            self.tasks.start(name, job, restart=self.restart)
        self.arranged.set()
        return None

    def crashed(self, name: str, count: int) -> None:
        self.crashes.append((name, count))


class Boundary:
    """Counts crashes as they are reported."""

    def __init__(self) -> None:
        self.crashes: list[int] = []

    def died(self, name: str, error: Exception, crashes: int) -> None:
        assert isinstance(error, ZeroDivisionError)
        self.crashes.append(crashes)


@asynccontextmanager
async def running(owner: Owner) -> AsyncIterator[None]:
    """Run the owner's tasks; they must have ended within 10 s after the block."""
    stop = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(owner.tasks.run(stop))
        await owner.arranged.wait()
        yield
        stop.set()
    assert owner.tasks.running == set()


async def test_a_start_costs_the_same_however_many_tasks_run() -> None:
    owner, done = Owner(), asyncio.Event()

    def start(names: range) -> None:
        for name in names:
            owner.tasks.start(f"{name}", done.wait)

    async with running(owner):
        few = calls_of(lambda: start(range(100)))
        calls_of(lambda: start(range(100, 900)))
        assert calls_of(lambda: start(range(900, 1000))) < 2 * few


async def test_a_job_runs_once_while_it_is_wanted() -> None:
    owner, runs, ended = Owner(), asyncio.Queue[str](), asyncio.Event()

    async def job(name: str) -> None:
        runs.put_nowait(name)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    owner.jobs = {"a": partial(job, "a")}
    async with running(owner):
        assert await runs.get() == "a"
        owner.jobs["b"] = partial(job, "b")
        owner.tasks.kick()
        assert await runs.get() == "b"
        assert owner.tasks.running == {"a", "b"}
        del owner.jobs["a"]
        owner.tasks.kick()
        await ended.wait()
        assert runs.empty()


async def test_a_job_that_rests_has_no_task_until_it_is_woken() -> None:
    owner, kick, runs = Owner(), Kick(), list[int]()

    async def job() -> Rest | None:
        runs.append(len(owner.tasks._tasks))
        kick.clear()
        return Rest(kick, None, job) if len(runs) < 3 else None

    owner.jobs = {"a": job}
    async with running(owner):
        await until(lambda: owner.tasks._rests)
        for count in (1, 2):
            assert owner.tasks.running == {"a"}
            assert not owner.tasks._tasks
            owner.tasks.kick()  # it counts as running, so it is not started beside its rest
            await turns()
            assert len(runs) == count
            kick.set()
            await until(lambda count=count: len(runs) > count)
            await turns()
        assert owner.tasks.running == set()


async def test_a_rest_ends_by_its_seconds_and_a_kick_before_it_counts() -> None:
    owner, kick, runs = Owner(), Kick(), list[int]()

    async def job() -> Rest | None:
        runs.append(1)
        if len(runs) == 1:
            return Rest(kick, 0.01, job)
        if len(runs) == 2:
            kick.set()
            return Rest(kick, None, job)
        return None

    owner.jobs = {"a": job}
    async with running(owner):
        await until(lambda: len(runs) == 3)


async def test_what_is_not_wanted_any_more_rests_no_longer() -> None:
    owner, kick, runs = Owner(), Kick(), list[int]()

    async def job() -> Rest:
        runs.append(1)
        kick.clear()
        return Rest(kick, None, job)

    owner.jobs = {"a": job}
    async with running(owner):
        await until(lambda: owner.tasks._rests)
        owner.jobs.clear()
        owner.tasks.kick()
        await until(lambda: not owner.tasks.running)
        kick.set()
        await turns()
        assert len(runs) == 1


async def test_a_crash_after_a_rest_is_counted_and_run_again() -> None:
    owner, kick, sound = Owner(), Kick(), asyncio.Event()

    async def later() -> None:
        if len(owner.crashes) < 2:
            raise ZeroDivisionError
        sound.set()

    async def job() -> Rest:
        return Rest(kick, 0.0, later)

    owner.jobs = {"a": job}
    async with running(owner):
        await sound.wait()
    assert [name for name, _ in owner.crashes] == ["a", "a"]


async def test_a_crash_is_counted_and_the_job_runs_again() -> None:
    owner, sound = Owner(), asyncio.Event()

    async def job() -> None:
        if len(owner.crashes) < 3:
            raise ZeroDivisionError
        sound.set()
        await asyncio.Event().wait()

    owner.jobs = {"a": job}
    async with running(owner):
        await sound.wait()
    assert [name for name, _ in owner.crashes] == ["a"] * 3


async def test_a_sound_run_ends_the_row_of_crashes() -> None:
    boundary, backoff, stop = Boundary(), Backoff(lambda size: bytes(size), 1.0, 0.0), asyncio.Event()

    async def job() -> None:
        boundary.crashes.append(0)
        if len(boundary.crashes) > 4:
            return
        began_s = asyncio.get_running_loop().time()
        # Longer than the longest delay, which is none.
        await until(lambda: asyncio.get_running_loop().time() > began_s)
        raise ZeroDivisionError

    await guard("a", job, boundary, backoff, stop)
    assert boundary.crashes == [0, 1, 0, 1, 0]


async def test_a_stop_ends_the_wait_after_a_crash() -> None:
    boundary, stop = Boundary(), asyncio.Event()

    async def job() -> None:
        stop.set()
        raise ZeroDivisionError

    await guard("a", job, boundary, Backoff(lambda size: bytes(size), 3600.0, 3600.0), stop)
    assert boundary.crashes == [1]


async def test_without_restart_a_crash_ends_the_job_and_no_other() -> None:
    owner, others = Owner(), asyncio.Event()
    owner.restart = False

    async def broken() -> None:
        raise ZeroDivisionError

    async def sound() -> None:
        await until(lambda: owner.crashes)
        others.set()

    owner.jobs = {"broken": broken, "sound": sound}
    async with running(owner):
        await others.wait()
    assert owner.crashes == [("broken", 1)]


async def test_the_stop_ends_a_task_that_misses_its_first_cancellation() -> None:
    """As one does whose task group is just ending by an error, in Python 3.11."""
    owner, missed = Owner(), list[int]()

    async def deaf() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            missed.append(1)
        await asyncio.Event().wait()

    owner.jobs = {"deaf": deaf}
    async with running(owner):
        pass
    assert missed == [1]


async def test_a_wait_ends_by_its_event_or_its_seconds() -> None:
    changed = asyncio.Event()
    await wait(changed, 0)
    await wait(changed, -1.0)
    changed.set()
    await wait(changed, None)


async def test_the_result_of_the_main_part_ends_its_helpers() -> None:
    ended = list[str]()

    async def helper() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("helper")

    async def main() -> int:
        await turns()
        return 7

    assert await run_together(main(), helper()) == 7
    assert ended == ["helper"]


@pytest.mark.parametrize("in_main", [True, False])
async def test_the_first_error_ends_all_and_is_raised_as_it_is(in_main: bool) -> None:
    async def fail() -> None:
        raise ReachError("connect", "no way")

    parts = [fail(), asyncio.Event().wait()]
    with pytest.raises(SplError) as caught:
        await run_together(*(parts if in_main else reversed(parts)))
    assert caught.value.code == "connect"


async def test_a_cancellation_is_not_lost_while_the_parts_end_by_an_error() -> None:
    """The main part fails and its helper takes a moment to end; the stop comes in that moment."""
    ending, go = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        await turns()
        raise ReachError("connect", "no way")

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await go.wait()

    async def life() -> None:
        try:
            await run_together(fail(), slow())
        except SplError:
            await asyncio.Event().wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        task = group.create_task(life())
        await ending.wait()
        task.cancel()
        await turns()
        go.set()
    assert task.cancelled()


async def test_a_kick_wakes_all_that_wait_and_passes_those_that_come_later() -> None:
    kick = Kick()
    waiting = [asyncio.create_task(kick.wait()) for _ in range(3)]
    await turns()
    waiting[0].cancel()
    await turns()
    kick.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting[1:]), DEADLINE_S) == [True, True]
    assert await kick.wait()
    kick.clear()
    late = asyncio.create_task(kick.wait())
    await turns()
    assert not late.done()
    kick.set()
    assert await asyncio.wait_for(late, DEADLINE_S)


async def test_a_handoff_holds_one_value_and_loses_none() -> None:
    handoff: Handoff[int] = Handoff()
    put = list[int]()

    async def give() -> None:
        for value in range(100):
            await handoff.put(value)
            put.append(value)

    giving = asyncio.create_task(give())
    await turns()
    assert put == [0]
    assert not handoff.empty()
    assert [await asyncio.wait_for(handoff.get(), DEADLINE_S) for _ in range(100)] == list(range(100))
    await asyncio.wait_for(giving, DEADLINE_S)
    assert handoff.empty()
    taking = asyncio.create_task(handoff.get())
    await turns()
    await handoff.put(7)
    assert await asyncio.wait_for(taking, DEADLINE_S) == 7


def test_what_is_known_of_a_pair_ends_with_it() -> None:
    pairs: Any = {"pair_1": SimpleNamespace(ended=False), "pair_2": SimpleNamespace(ended=True)}
    states = {"pair_1": "kept", "pair_2": "ended", "pair_3": "unknown"}
    drop_ended(states, pairs)
    assert states == {"pair_1": "kept"}
