"""Searches through the log take turns: a step of one principal, then a step of the next, in threads of their own.

A search reads as many rows as its client asks for, so a tenant can keep any number of threads busy for as long as it
likes.  In the executor that the whole API shares, sixty searches of one tenant held up the reads and the larger writes
of all others for seconds.  So every reading whose cost depends on how much the log holds comes here, cut into steps of
some milliseconds.  A principal has at most one step under way, and those that wait are served round robin: however many
searches one principal begins, another one's step waits for one step of each other principal.  One thread is kept from
the steps of queries, which judge a record of a megabyte in one: lists, states and watches go on however many query.

Writes of many records are held here as well, BULK_WRITES of a principal at a time: they are decoded in threads, where
sixty of one tenant held up the single write of another one.

Rejected: a limit of searches per principal, which alone is no fairness among principals; a pool for each, which lets
them compete for the interpreter, where the event loop loses as well.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from ..core.errors import SplError
from ..core.value import dataclass, field
from ..sync.scope import advance
from .auth import Principal

WORKERS: Final = 2
"""Two, so that one that waits for the disk does not stop the others; more would only compete for the interpreter."""
LONG_SPARED: Final = 1
"""Threads that the steps of queries and of first passes through the log, `run`, leave to lists, states and watches."""

BULK_WRITES: Final = 2
"""Of one principal: while one waits for the disk the other is decoded."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Step:
    """One step that waits for its turn, and where its result goes."""

    work: Callable[[], Any]
    done: "asyncio.Future[Any]"


@dataclass(slots=True)
class _Bulk:
    """The places of one principal, and how many writes hold one or wait."""

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BULK_WRITES))
    count: int = 0


class Searches:
    """The searches of one daemon; used on the event loop."""

    def __init__(self) -> None:
        # Its threads begin with the first search.
        self._pool = ThreadPoolExecutor(WORKERS, "spl-search")
        self._waiting: dict[tuple[str, bool], deque[_Step]] = {}
        """Steps by principal and whether they are of `run`, those whose turn is next first."""
        self._running: set[str] = set()
        self._long = 0
        """How many steps of `run` are under way."""
        self._closed = False
        self._bulk: dict[str, _Bulk] = {}

    @asynccontextmanager
    async def bulk(self, principal: Principal) -> AsyncIterator[None]:
        """Hold one of the principal's places for a write of many records; those beyond wait in the order they came."""
        held = self._bulk.setdefault(principal.who, _Bulk())
        held.count += 1
        try:
            async with held.places:
                yield
        finally:
            held.count -= 1
            if not held.count:
                del self._bulk[principal.who]

    def close(self) -> None:
        """End all searches: steps that wait for their turn, and those asked for later, raise "shutting-down"."""
        self._closed = True
        waiting = [step for steps in self._waiting.values() for step in steps]
        self._waiting.clear()
        for step in waiting:
            if not step.done.done():
                step.done.set_exception(SplError("shutting-down"))
        self._pool.shutdown(wait=False)

    async def step(self, principal: Principal, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return the result of one step of a search, made in a thread once it is the principal's turn.

        A step that was cancelled before its turn is not made.  Raises SplError "shutting-down" after `close`.
        """
        return await self._result(principal, partial(work, *args, **kwargs), long=False)

    async def run(self, principal: Principal, work: Generator[None, None, _T]) -> _T:
        """Return the result of a search that yields between its steps, which never take the last thread."""
        result = list[_T]()
        while not await self._result(principal, partial(advance, work, result), long=True):
            pass
        return result[0]

    async def _result(self, principal: Principal, work: Callable[[], _T], *, long: bool) -> _T:
        if self._closed:
            raise SplError("shutting-down")
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((principal.who, long), deque()).append(_Step(work, done))
        self._begin()
        return await done

    def _begin(self) -> None:
        """Make as many steps as there are threads for, each of another principal."""
        while len(self._running) < WORKERS:
            key = next((key for key in self._waiting if self._may_begin(*key)), None)
            if key is None:
                return
            steps = self._waiting.pop(key)
            step, (who, long) = steps.popleft(), key
            if steps:
                self._waiting[key] = steps  # behind all others
            if step.done.cancelled():
                continue
            self._running.add(who)
            self._long += long
            made = asyncio.get_running_loop().run_in_executor(self._pool, step.work)
            made.add_done_callback(partial(self._ended, who, long, step.done))

    def _may_begin(self, who: str, long: bool) -> bool:
        return who not in self._running and (not long or self._long < max(WORKERS - LONG_SPARED, 1))

    def _ended(self, who: str, long: int, done: "asyncio.Future[Any]", made: "asyncio.Future[Any]") -> None:
        """Hand over a result, and go on with the next step."""
        self._running.discard(who)
        self._long -= long
        fault = None if made.cancelled() else made.exception()
        if not done.done():
            if made.cancelled():
                done.cancel()
            elif fault is not None:
                done.set_exception(fault)
            else:
                done.set_result(made.result())
        self._begin()


def following(items: Iterator[_T]) -> _T | None:
    """Return the next one, None at the end: what a step of a search may return."""
    return next(items, None)
