"""Steps of pairs from the event loop: each taken on one thread, and what follows it kept until the service starts it.

A step blocks on the disk, and no step may meet a pair that another is changing; so there is one thread, and the event
loop awaits it here.  Effects go into one queue, from which the service starts a job for each.  Rejected: the parts call
the service back, which then must exist before them and takes as many callbacks as it has parts.  A crash may lose the
queue: what a restart must do again is in the records.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from ..core.pair.pair import Pair
from ..core.pair.steps import Effect, PairEvent
from ..sync.supervise import Job, Supervisor
from .machine import Pairs

JOBS_MAX: Final = 4096
_T = TypeVar("_T")


class Changes:
    """The event that the next change sets; who waits takes it before looking, so that no change is missed."""

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
        self._effects: deque[tuple[str, Effect]] = deque(maxlen=JOBS_MAX)
        self._jobs: deque[tuple[str, Job]] = deque(maxlen=JOBS_MAX)

    async def do(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Return what the function returns on the thread of the steps."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def step(self, pair_id: str, event: PairEvent) -> Pair:
        """Take one step of the pair as it stands when its turn comes, and return it."""
        pair, effects = await self.do(lambda: self.pairs.take(self.pairs.known(pair_id), event))
        self.follow(pair_id, effects)
        return pair

    def follow(self, pair_id: str, effects: Sequence[Effect]) -> None:
        """Keep what follows a step, now that it is durable."""
        self._effects.extend((pair_id, effect) for effect in effects)
        self.notify()

    def start(self, pair_id: str, job: Job) -> None:
        """Have the service run a job about a pair soon."""
        self._jobs.append((pair_id, job))
        self.notify()

    def notify(self) -> None:
        """Have the service look at its pairs, and wake what waits for a change of one; for the event loop's thread."""
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
