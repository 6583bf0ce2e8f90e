"""Backoff and token buckets: time and the source of random numbers are arguments.

Full jitter (a uniform draw below the doubling ceiling) spreads the retries of many peers better than a fixed ladder
with a little noise: after an outage they do not return in waves.  A small floor, a tenth of the ceiling, keeps an
unlucky draw from hammering the peer at once.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .value import dataclass, replace

_DOUBLINGS_MAX: Final = 60
"""More would overflow a float; any cap is reached long before."""


class Backoff:
    """Failures in a row of one thing, and when to try it again.

    `attempt` counts the failures, `retry_ms` is the earliest time of the next try by the caller's steady clock.  Both
    may be set: a pause after a success is held like one after a failure.
    """

    __slots__ = ("_base_s", "_random_bytes", "_unit", "attempt", "cap_s", "retry_ms")

    def __init__(self, random_bytes: Callable[[int], bytes], base_s: float, cap_s: float) -> None:
        self._random_bytes, self._base_s, self.cap_s = random_bytes, base_s, cap_s
        self.attempt = self.retry_ms = 0
        self.redraw()

    def redraw(self) -> None:
        """Draw another random number, for the times that `spread_s` moves."""
        self._unit = int.from_bytes(self._random_bytes(4)) / 2.0**32

    def failed(self, now_ms: int = 0, pause_ms: int = 0) -> float:
        """Count a failure and return the seconds until the next try; `retry_ms` is that, or `pause_ms` if longer."""
        self.attempt += 1
        self.redraw()
        delay_s = self.delay_s()
        self.retry_ms = now_ms + max(pause_ms, int(delay_s * 1000))
        return delay_s

    def reset(self) -> None:
        """Count a success: the next failure is the first of its row."""
        self.attempt = 0

    def delay_s(self, base_s: float = 0.0, cap_s: float = 0.0) -> float:
        """Return the seconds from the last failure to the next try, within the bounds given or else its own."""
        doublings = min(max(self.attempt, 1) - 1, _DOUBLINGS_MAX)
        return min(cap_s or self.cap_s, (base_s or self._base_s) * 2.0**doublings) * max(0.1, self._unit)

    def spread_s(self, interval_s: float) -> float:
        """Return the interval between regular tries, moved by at most a tenth of itself: pairs do not poll in step."""
        return interval_s * (0.9 + 0.2 * self._unit)


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """At most `size` takes at once and `per_s` a second over time; full when new.

    `at_s` is the time of the last change on any steady clock.  A clock that steps back refills nothing.
    """

    size: float
    per_s: float
    level: float = -1.0
    at_s: float = 0.0

    def take(self, now_s: float, cost: float = 1.0) -> "tuple[TokenBucket, bool, float]":
        """Return (next bucket, whether the take is allowed, seconds to wait if it is not)."""
        held = self.size if self.level < 0 else self.level
        held = min(self.size, held + max(0.0, now_s - self.at_s) * self.per_s)
        if held >= cost:
            return replace(self, level=held - cost, at_s=now_s), True, 0.0
        wait_s = (cost - held) / self.per_s if self.per_s > 0 else float("inf")
        return replace(self, level=held, at_s=now_s), False, wait_s


class Buckets:
    """One token bucket per source of messages, for at most `sources_max` of them; any steady clock.

    The source not heard for longest is forgotten first, which gives it a full bucket: the bound protects memory, and
    the owner of that many sources has as many buckets anyway.  One thread at a time.
    """

    __slots__ = ("_buckets", "_per_s", "_size", "_sources_max")

    def __init__(self, size: float, per_s: float, sources_max: int) -> None:
        self._size, self._per_s, self._sources_max = size, per_s, sources_max
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, source: str, now_s: float, cost: float = 1.0) -> float:
        """Return 0.0 and take the cost from the bucket of this source, or the seconds until it holds as much."""
        bucket = self._buckets.pop(source, TokenBucket(self._size, self._per_s))
        self._buckets[source], _, wait_s = bucket.take(now_s, cost)
        if len(self._buckets) > self._sources_max:
            self._buckets.popitem(last=False)
        return wait_s

    def wait_s(self, source: str, now_s: float, cost: float = 1.0) -> float:
        """Return what `take` would, and take nothing."""
        return self._buckets.get(source, TokenBucket(self._size, self._per_s)).take(now_s, cost)[2]
