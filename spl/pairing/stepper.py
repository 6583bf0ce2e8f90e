"""Steps of pairs from the event loop: each taken on one thread, and what follows it kept until the service starts it.

A step blocks on the disk, and no step may meet a pair that another is changing; so there is one thread, and the event
loop awaits it here.  Effects go into one queue, from which the service starts a job for each.  Rejected: the parts call
the service back, which then must exist before them and takes as many callbacks as it has parts.  A crash may lose the
queue: what a restart must do again is in the records.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from ..core.pair.pair import Pair
from ..core.pair.steps import Effect, PairEvent
from ..home.logs import CountedLog
from ..sync.supervise import Job, Supervisor
from .machine import Pairs

log = logging.getLogger("spl.federation")

JOBS_MAX: Final = 4096
"""Effects, and jobs, that wait; the oldest goes when one more comes, which only happens while none can be started."""
_T = TypeVar("_T")
_P = ParamSpec("_P")


class Changes:
    """The event that the next change sets; waiters take it before they read the state, so that none is missed."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def notify(self) -> None:
        """Wake all that wait."""
        self.next.set()
        self.next = asyncio.Event()


class Stepper:
    """Takes the steps of one machine; wakes the supervisor of the service and all that wait for `changes`."""

    def __init__(self, pairs: Pairs, supervisor: Supervisor) -> None:
        self.pairs, self.changes = pairs, Changes()
        self._supervisor = supervisor
        self._thread = ThreadPoolExecutor(1, "spl-pairing")
        self._effects: deque[tuple[str, Effect]] = deque()
        self._jobs: deque[tuple[str, Job]] = deque()
        self._lines = CountedLog(log)

    def close(self) -> None:
        """Take no more steps; the one that runs ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def do(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what the function returns on the thread of the steps."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def step(self, pair_id: str, event: PairEvent) -> Pair:
        """Take one step of the pair as it stands when its turn comes, and return it."""
        pair, effects = await self.do(lambda: self.pairs.take(self.pairs.known(pair_id), event))
        self.follow(pair_id, effects)
        return pair

    def follow(self, pair_id: str, effects: Sequence[Effect]) -> None:
        """Keep what follows a step, now that it is durable."""
        for effect in effects:
            self._keep(self._effects, (pair_id, effect))
        self.notify()

    def start(self, pair_id: str, job: Job) -> None:
        """Queue a job about a pair for the service to run."""
        self._keep(self._jobs, (pair_id, job))
        self.notify()

    def notify(self) -> None:
        """Wake the service and what waits for a change of a pair; for the event loop's thread."""
        self._supervisor.kick()
        self.changes.notify()

    def take_effects(self) -> list[tuple[str, Effect]]:
        """Return (pair id, effect) of what is still to be started, once."""
        taken = list(self._effects)
        self._effects.clear()
        return taken

    def take_jobs(self) -> list[tuple[str, Job]]:
        """Return (pair id, job) of the jobs to be started, once."""
        taken = list(self._jobs)
        self._jobs.clear()
        return taken

    def _keep(self, queue: deque[tuple[str, _T]], entry: tuple[str, _T]) -> None:
        """Queue one entry; if the oldest has to go for it, say so."""
        if len(queue) >= JOBS_MAX:
            pair_id, _ = queue.popleft()
            self._lines.warning("pairing.queue_overflowed", "", "overloaded", dropped=pair_id)
        queue.append(entry)
