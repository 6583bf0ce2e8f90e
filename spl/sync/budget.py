"""How many bytes each pair may bring in within a day: `limits.intake_day_bytes`.

Counted is what a peer makes us append: records, projections, positions, refusals, pins, and what its signed messages
change: grants, states, tokens, manifests.  Only the handshake itself, once for each pair, is not counted.  The sum
runs off evenly over a day, so the window moves with the clock and no bytes are kept by the hour.  A page that begins
within the budget is stored whole, so a pair exceeds it by one page at most; what the writer refuses does not count.
When the sum reaches the limit, intake from that pair pauses, and it resumes by itself when a 96th of the day's bytes
is free again: with less, a stream would be opened for every record.  Nothing is lost, because the saved position stays
where it is, and a peer that pushes is told when to come again.

Nothing is on disk.  A new process knows how many bytes the log took in the last day, from all pairs and clients, and
counts each pair as if it had brought them all, up to 23/24 of its budget.  So a restart hands out an hour's share at
most once the log is busy, and a day's to a home that was idle.  Rejected: the sums in the log, a line more for each
page; and an empty sum at each start, because an attacker who can have us restarted would multiply it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

from ..core import when
from ..core.errors import SplError

INTAKE_PAUSED: Final = "intake-paused"
DAY_S: Final = 86_400.0
_RESTART_SHARE: Final = 23 / 24
_FREE_SHARE: Final = 1 / 96


class IntakeError(SplError):
    """The pair brought in a day's bytes; code intake-paused, with `retry_after_s`."""


@dataclass(frozen=True, slots=True)
class IntakeStatus:
    """What a pair brought in within a day, what it may bring in, and the seconds until intake resumes (0: it runs)."""

    day_bytes: int = 0
    day_bytes_max: int = 0
    wait_s: float = 0.0

    def to_json(self, now_ms: int) -> dict[str, object]:
        """Return {day_bytes, day_bytes_max, paused_until}; None while it runs."""
        until = when.text_of(now_ms + int(self.wait_s * 1000)) if self.wait_s else None
        return {"day_bytes": self.day_bytes, "day_bytes_max": self.day_bytes_max, "paused_until": until}


@dataclass(slots=True)
class _Sum:
    """The bytes of one pair that count at `at_s`."""

    bytes: float
    at_s: float
    paused: bool = False


class IntakeBudget:
    """The sums of all pairs; `taken` are the bytes that the log took in the day before this process.

    With a lock, because the signed messages are counted on the thread of the steps.
    """

    def __init__(self, day_bytes: int, taken: int, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._day_bytes, self._steady_s, self._lock = day_bytes, steady_s, Lock()
        self._start, self._start_s = min(float(taken), day_bytes * _RESTART_SHARE), steady_s()
        self._sums: dict[str, _Sum] = {}

    def charge(self, pair_id: str, size: int) -> None:
        """Count bytes that the pair brings in; negative for those that were not stored after all."""
        with self._lock:
            found = self._sum(pair_id)
            found.bytes += size
            found.paused = found.paused or found.bytes >= self._day_bytes

    def check(self, pair_id: str) -> None:
        """Raise IntakeError "intake-paused" while intake from the pair is paused."""
        wait_s = self.status(pair_id).wait_s
        if wait_s:
            hint = "it resumes by itself: wait for the Retry-After seconds"
            raise IntakeError(INTAKE_PAUSED, hint=hint, retry_after_s=int(wait_s) + 1)

    def status(self, pair_id: str) -> IntakeStatus:
        """Return how much counts now, and how long intake pauses."""
        with self._lock:
            found = self._sum(pair_id)
            over = found.bytes - self._day_bytes * (1 - _FREE_SHARE)
            found.paused = found.paused and over > 0
            wait_s = over * DAY_S / self._day_bytes if found.paused else 0.0
            return IntakeStatus(int(found.bytes), self._day_bytes, wait_s)

    def renew(self, pair_id: str) -> None:
        """Let the pair bring in a whole day's bytes again, by our operator's word."""
        with self._lock:
            self._sums[pair_id] = _Sum(0.0, self._steady_s())

    def _sum(self, pair_id: str) -> _Sum:
        found = self._sums.setdefault(pair_id, _Sum(self._start, self._start_s))
        now_s = self._steady_s()
        found.bytes = max(0.0, found.bytes - (now_s - found.at_s) * self._day_bytes / DAY_S)
        found.at_s = now_s
        return found
