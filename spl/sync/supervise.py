"""Long-lived tasks: one per name while it is wanted, restarted with backoff after a crash, all ended at the stop.

An owner (sync, push, pairing) holds one Supervisor.  Its `arrange` compares what should run with what runs, and is
called at the start, after each `kick`, and after as many seconds as it asked for.

A job that would only wait returns a Rest, and has no task until that is over: a task that waits takes 3 KiB, a rest a
tenth of it, and most of a thousand pairs rest.

No error crosses a task group here.  The group of Python 3.11 swallows a cancellation that arrives while the group ends
by an error, and a task that missed its cancellation at SIGTERM kept the daemon alive for ever.  So `run_together` takes
expected errors out of its tasks and raises them after the group, and the supervisor repeats the cancellation at the
stop until every task has ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Set
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.pair.pair import Pair
from ..core.value import dataclass

log = logging.getLogger("spl.federation")

BACKOFF_BASE_S: Final = 1.0
CANCEL_AGAIN_S: Final = 0.5

_T = TypeVar("_T")
Job = Callable[[], Awaitable[object]]


class Boundary(Protocol):
    """Where crashes end."""

    def died(self, name: str, error: Exception, crashes: int) -> None:
        """Log and record the exception that just ended a run of this job, the `crashes`th in a row."""


class Owner(Protocol):
    """The service whose tasks are supervised."""

    async def arrange(self) -> float | None:
        """Start and cancel tasks; return the seconds until the next call, None to wait for a kick."""

    def crashed(self, name: str, count: int) -> None:
        """Record that the task failed for an unexpected exception, `count` times in a row."""


class Kick(asyncio.Event):
    """An event at a fifth of the memory: a deque takes 0.6 KiB to hold the one task that waits, and a pair has ten."""

    on_set: Callable[[], object] | None = None
    """Called once, at the next `set`."""

    def __init__(self) -> None:
        super().__init__()
        self._waiters = []  # type: ignore[assignment]  # the base class appends, removes and iterates

    def set(self) -> None:
        """Wake all that wait."""
        super().set()
        if (act := self.on_set) is not None:
            self.on_set = None
            act()


@dataclass(slots=True)
class Rest:
    """What a job returns to be run again once `kick` is set or `seconds` (None: no limit) are over."""

    kick: Kick
    seconds: float | None
    job: "Job"
    timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Forget the rest."""
        self.kick.on_set = None
        if self.timer is not None:
            self.timer.cancel()


class Supervisor:
    """The tasks of one owner; `family` begins their names and the names of their log lines."""

    def __init__(
        self, family: str, owner: Owner, *, random_bytes: Callable[[int], bytes], backoff_max_s: float
    ) -> None:
        self._family = family
        self._owner = owner
        self._backoff = partial(Backoff, random_bytes, BACKOFF_BASE_S, backoff_max_s)
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[object]] = {}
        self._rests: dict[str, Rest] = {}
        self._ending: list[asyncio.Task[object]] = []
        """Cancelled tasks; one that misses its cancellation is cancelled again at the stop."""
        self._group: asyncio.TaskGroup | None = None

    @property
    def running(self) -> Set[str]:
        """The names of the jobs that have not ended, those that rest among them."""
        return {name for name, task in self._tasks.items() if not task.done()} | self._rests.keys()

    def kick(self) -> None:
        """Have the owner arrange its tasks soon; for the event loop's thread."""
        self._changed.set()

    def start(self, name: str, job: Job, *, restart: bool = True) -> None:
        """Run the job under this name unless one of that name runs; without `restart` a crash ends it.

        A job that returns is not run again until it is started again.  Call it from `arrange`.
        """
        task = self._tasks.get(name)
        if name not in self._rests and (task is None or task.done()):
            self._run(name, job, self._stop if restart else None)

    def _run(self, name: str, job: Job, stop: asyncio.Event | None) -> None:
        assert self._group is not None
        running = self._run_or_rest(name, job, stop)
        self._tasks[name] = self._group.create_task(running, name=f"{self._family} {name}")

    async def _run_or_rest(self, name: str, job: Job, stop: asyncio.Event | None) -> None:
        rest = await guard(name, job, self, self._backoff(), stop)
        is_wanted = self._tasks.get(name) is asyncio.current_task() and not self._stop.is_set()
        if isinstance(rest, Rest) and is_wanted:
            del self._tasks[name]
            self._rests[name] = rest
            rest.kick.on_set = wake = partial(self._wake, name, stop)
            seconds = 0.0 if rest.kick.is_set() else rest.seconds
            if seconds is not None:
                rest.timer = asyncio.get_running_loop().call_later(max(0.0, seconds), wake)

    def _wake(self, name: str, stop: asyncio.Event | None) -> None:
        rest = self._rests.pop(name)
        rest.end()
        self._run(name, rest.job, stop)

    def cancel_except(self, wanted: Set[str]) -> None:
        """Cancel the tasks of other names, and end their rests."""
        for name in self._rests.keys() - wanted:
            self._rests.pop(name).end()
        for name in self._tasks.keys() - wanted:
            task = self._tasks.pop(name)
            task.cancel()
            self._ending.append(task)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the owner's tasks until `stop`, then cancel them and return when they have ended."""
        async with asyncio.TaskGroup() as group:
            self._group, self._stop = group, stop
            group.create_task(self._kick_at(stop))
            try:
                while not stop.is_set():
                    self._changed.clear()
                    self._tasks = {name: task for name, task in self._tasks.items() if not task.done()}
                    self._ending = [task for task in self._ending if not task.done()]
                    seconds = await self._owner.arrange()
                    if not stop.is_set():
                        await wait(self._changed, seconds)
            finally:
                for rest in self._rests.values():
                    rest.end()
                self._rests.clear()
            while tasks := [task for task in (*self._tasks.values(), *self._ending) if not task.done()]:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)

    async def _kick_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.kick()

    def died(self, name: str, error: Exception, crashes: int) -> None:
        """Log a crash and tell the owner."""
        log.exception(**event(f"{self._family}.task_died", pair=name, crashes=crashes))
        self._owner.crashed(name, crashes)


async def guard(name: str, job: Job, boundary: Boundary, backoff: Backoff, stop: asyncio.Event | None) -> object:
    """Run a job until it returns, and return the same; a task boundary: a crash goes to `boundary` and ends no other.

    A job that crashed runs again after a delay, unless `stop` is set; without `stop`, never.
    """
    loop = asyncio.get_running_loop()
    while stop is None or not stop.is_set():
        started_s = loop.time()
        try:
            return await job()
        except Exception as exc:  # noqa: BLE001 - the boundary logs it
            if loop.time() > started_s + backoff.cap_s:
                backoff.reset()  # a run that outlasted the longest delay was sound
            delay_s = backoff.failed()
            boundary.died(name, exc, backoff.attempt)
        if stop is None:
            break
        await wait(stop, delay_s)
    return None


def drop_ended(states: dict[str, _T], pairs: Mapping[str, Pair]) -> None:
    """Forget what a service knows of pairs that have ended: strangers may make and end any number of them.

    Other threads may add to it meanwhile.
    """
    for pair_id in [each for each in list(states) if (pair := pairs.get(each)) is None or pair.ended]:
        states.pop(pair_id, None)


class Handoff(Generic[_T]):
    """One value at a time from one task to another: `asyncio.Queue(1)` at a tenth of the memory."""

    def __init__(self) -> None:
        self._held: list[_T] = []
        self._changed = Kick()

    def empty(self) -> bool:
        """Return whether nothing waits to be taken."""
        return not self._held

    async def put(self, value: _T) -> None:
        """Give a value once the one before was taken."""
        while self._held:
            self._changed.clear()
            await self._changed.wait()
        self._held.append(value)
        self._changed.set()

    async def get(self) -> _T:
        """Take the value, once there is one."""
        while not self._held:
            self._changed.clear()
            await self._changed.wait()
        self._changed.set()
        return self._held.pop()


async def wait(changed: asyncio.Event, seconds: float | None) -> None:
    """Return when the event is set or after `seconds` (None: no limit), whichever is first."""
    try:
        async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
            await changed.wait()
    except TimeoutError:
        return


async def run_together(main: Awaitable[_T], *helpers: Awaitable[object]) -> _T:
    """Return the result of `main`, with the helpers running beside it until it ends.

    The first SplError of any of them ends all and is raised.  A helper may end before `main`.
    """
    failed: list[SplError] = []
    tasks: list[asyncio.Task[None]] = []
    results: list[_T] = []

    async def lead() -> None:
        results.append(await main)

    async def step(part: Awaitable[object]) -> None:
        try:
            await part
        except SplError as exc:
            failed.append(exc)
            tasks[0].cancel()

    async with asyncio.TaskGroup() as group:
        tasks += [group.create_task(step(part)) for part in (lead(), *helpers)]
        await asyncio.wait(tasks[:1])
        for task in tasks[1:]:
            task.cancel()
    if failed:
        try:
            raise failed[0]
        finally:
            failed.clear()
            tasks.clear()
    if not results:
        raise asyncio.CancelledError  # something that `main` waited for was cancelled
    return results[0]
