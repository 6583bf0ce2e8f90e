"""Our own requests on their way to becoming pairs: who drives them, and what those who wait are told.

An initiator's pair has a driver that asks, polls or confirms until the pair is made or over; it reads what to do from
the records alone, so a restart goes on where the crash was.  Whoever runs `spl federation pair` only watches, and may
leave.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from .core.backoff import full_jitter_s
from .core.errors import SplError
from .core.pair import Pair, PairError
from .core.standing import Answered, Asked, Requested, Waiting
from .initiator import PASSING, Initiator, Learned
from .pairs import Pairs

log = logging.getLogger("spl.federation")

POLL_S: Final = 2.0
POLL_SLOWER_AFTER: Final = 16
POLL_MAX_S: Final = 60.0
BACKOFF_BASE_S: Final = 1.0
WAITING_EVERY_S: Final = 1.0


class Changes:
    """The event that the next change sets; who waits takes it before looking, so that no change is missed."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def ring(self) -> None:
        """Wake whoever waits."""
        self.next.set()
        self.next = asyncio.Event()


class Driver:
    """Drives and watches.  `say(pair_id, poll=…)` sends one message and returns what its answer made of the pair."""

    def __init__(
        self, pairs: Pairs, initiator: Initiator, changes: Changes, *, poll_s: float,
        say: Callable[..., Awaitable[tuple[Learned, dict[str, Any]]]], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.pairs, self.trouble = pairs, dict[str, SplError]()
        self.synced: dict[str, dict[str, object] | None] = {}
        """What the first sync of a pair brought; None while it runs."""
        self._initiator, self._changes, self._say = initiator, changes, say
        self._poll_s, self._random_bytes = poll_s, random_bytes
        self._kicks: dict[str, asyncio.Event] = {}

    async def watch(self, pair_id: str, wait_s: float) -> AsyncIterator[dict[str, object]]:
        """Yield what the records of the pair, and this process's attempts, have to tell."""
        shown: set[str] = set()
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + wait_s
        while "active" not in shown:
            changed = self._changes.next
            pair = self._initiator.standing_for(self._known(pair_id))
            pair_id = pair.pair_id
            for step in self._initiator.news(pair, shown, self.synced.get(pair_id)):
                shown.add(str(step["step"]))
                yield step
            left_s = end_s - now_s()
            trouble = self.trouble.get(pair_id)
            if trouble is not None and (left_s <= 0 or trouble.exit_code not in PASSING):
                raise trouble
            if left_s <= 0 and "active" not in shown:
                yield {"step": "pending", "pair_id": pair_id}
                return
            if isinstance(pair.state, Waiting | Asked):
                yield {"step": "waiting", "pair_id": pair_id, "left_ms": int(left_s * 1000)}
            if "active" not in shown:
                await wait(changed, min(left_s, WAITING_EVERY_S))

    async def drive(self, pair_id: str) -> None:
        """Ask until the request became a pair or is over; failures back off with full jitter, at most a minute."""
        attempt = polls = 0
        kick = self._kicks.setdefault(pair_id, asyncio.Event())
        while on_its_way(self.pairs.get(pair_id)):
            kick.clear()
            delay_s = min(POLL_MAX_S, self._poll_s * 2.0 ** (polls // POLL_SLOWER_AFTER))
            try:
                before = self._known(pair_id)
                after = await self.advance(pair_id)
                attempt, polls = 0, polls + 1
                self.trouble.pop(pair_id, None)
                if after.state != before.state:
                    continue
            except SplError as exc:
                attempt += 1
                unit = int.from_bytes(self._random_bytes(4)) / 2**32
                delay_s = full_jitter_s(attempt, min(BACKOFF_BASE_S, self._poll_s), POLL_MAX_S, unit)
                self.trouble[pair_id] = exc
                fields = {"pair": pair_id, "code": exc.code, "attempt": attempt, "msg": exc.message}
                log.warning("pair.attempt_failed", extra={"fields": fields})
                self._changes.ring()
            await wait(kick, delay_s)

    async def advance(self, pair_id: str) -> Pair:
        """Say what the pair's state calls for, take in the answer, and return the pair; raise what went wrong."""
        learned, _ = await self._say(pair_id)
        if learned.poll:
            learned, _ = await self._say(pair_id, poll=True)
        if learned.fault is not None:
            raise learned.fault
        return learned.pair

    def kick(self, pair_id: str) -> None:
        """Let the pair's driver try now."""
        self.trouble.pop(pair_id, None)
        self._kicks.setdefault(pair_id, asyncio.Event()).set()
        self._changes.ring()

    def _known(self, pair_id: str) -> Pair:
        pair = self.pairs.get(pair_id)
        if pair is None:
            raise PairError("pair-unknown", f"no pair {pair_id[:80]!r}")
        return pair


def on_its_way(pair: Pair | None) -> bool:
    """Tell whether a request of ours still has to be driven."""
    return pair is not None and pair.initiator and isinstance(pair.state, Requested | Waiting | Answered)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set or after so many seconds, whichever is first."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return
