"""Recent measurements in bounded memory: confirmation lags, peaks of a queue, costs of records, repeated events.

Times are arguments, in Unix ms; a clock that steps back only makes the samples a little younger.
"""

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

from .backoff import TokenBucket
from .value import Json

SLOTS: Final = 10
SLOT_MS: Final = 30_000
PEAK_SLOTS: Final = 12
PEAK_SLOT_MS: Final = 300_000

_FINE: Final = 8  # steps a doubling: a value is held within an eighth of itself, below 8 exactly
_BUCKETS: Final = 128  # the last one holds everything over four minutes


LAG_BOUNDS_MS: Final = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
SYNC_BOUNDS_MS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000, 5000)
"""Upper bounds of the buckets of a Histogram, each part of its bucket; the last bucket has none."""


class Histogram:
    """Times in ms since the daemon started, by buckets.  Every number only grows, as a scraper needs it."""

    __slots__ = ("_counts", "bounds_ms", "sum_ms")

    def __init__(self, bounds_ms: Sequence[float]) -> None:
        self.bounds_ms, self._counts = bounds_ms, [0] * (len(bounds_ms) + 1)
        self.sum_ms = 0.0

    def add(self, ms: float) -> None:
        """Count one time; a negative one, as of a clock that was set back, as 0."""
        self._counts[bisect_left(self.bounds_ms, ms)] += 1
        self.sum_ms += max(0, ms)

    @property
    def at_most(self) -> tuple[int, ...]:
        """How many were at most each of the bounds, then all of them."""
        return tuple(accumulate(self._counts))

    def to_json(self) -> Json:
        """Return {le_s, counts, sum_s, count}; one bound fewer than counts, as the last count has none."""
        bounds_s, counts = [bound / 1000 for bound in self.bounds_ms], list(self.at_most)
        return {"le_s": bounds_s, "counts": counts, "sum_s": self.sum_ms / 1000, "count": counts[-1]}


class Lags:
    """Lags in ms: those of the last five minutes in fine steps (5 KiB at most), and all since the start in buckets."""

    __slots__ = ("_slots", "histogram")

    def __init__(self) -> None:
        self._slots: dict[int, array[int]] = {}
        self.histogram = Histogram(LAG_BOUNDS_MS)
        """All lags since the start."""

    def add(self, lag_ms: int, now_ms: int) -> None:
        """Count one lag."""
        slot = now_ms // SLOT_MS
        counts = self._slots.get(slot)
        if counts is None:
            self._forget(slot)
            counts = self._slots[slot] = array("I", bytes(4 * _BUCKETS))
        counts[_bucket(lag_ms)] += 1
        self.histogram.add(lag_ms)

    def counts(self, now_ms: int) -> list[int]:
        """Return how often each step was met in the last five minutes."""
        self._forget(now_ms // SLOT_MS)
        return [sum(column) for column in zip(*self._slots.values(), strict=True)]

    def _forget(self, slot: int) -> None:
        for old in [each for each in self._slots if not slot - SLOTS < each <= slot]:
            del self._slots[old]


class Peaks:
    """The greatest value of the last hour."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}

    def add(self, value: int, now_ms: int) -> None:
        """Add a value."""
        slot = now_ms // PEAK_SLOT_MS
        if value > self._slots.get(slot, 0):
            self._slots[slot] = value

    def greatest(self, now_ms: int) -> int:
        """Return the greatest value of the last hour, 0 without any."""
        slot = now_ms // PEAK_SLOT_MS
        self._slots = {each: value for each, value in self._slots.items() if slot - PEAK_SLOTS < each <= slot}
        return max(self._slots.values(), default=0)


class Costs:
    """Costs of records in us, over the last five minutes; 5 KiB.  One thread adds while others read, without a lock."""

    __slots__ = ("_counts", "_slots")

    def __init__(self) -> None:
        self._slots = [-1] * SLOTS
        self._counts = [array("I", bytes(4 * _BUCKETS)) for _ in range(SLOTS)]

    def add(self, cost_us: int, records: int, now_ms: int) -> None:
        """Add `records` samples of `cost_us` each."""
        slot = now_ms // SLOT_MS
        place = slot % SLOTS
        if self._slots[place] != slot:
            self._counts[place] = array("I", bytes(4 * _BUCKETS))
            self._slots[place] = slot
        self._counts[place][cost_us if 0 <= cost_us < _FINE else _bucket(cost_us)] += records

    def records(self, now_ms: int) -> int:
        """Return how many records there were."""
        return sum(self._total(now_ms))

    def percentile_us(self, percent: int, now_ms: int) -> int | None:
        """Return the cost that `percent` of the records do not exceed, None without records."""
        total = self._total(now_ms)
        return _percentile(total, sum(total), percent)

    def _total(self, now_ms: int) -> list[int]:
        slot = now_ms // SLOT_MS
        fresh = [counts for at, counts in zip(self._slots, self._counts, strict=True) if slot - SLOTS < at <= slot]
        return [sum(column) for column in zip(*fresh, strict=True)]


class Ages:
    """How old things are, by their dates and by a clock that nobody sets: a clock that is ahead for a moment ages none.

    A thing that is met with an age, as at a start, is taken to be 23/24 of the limit old at most, so a clock that is
    ahead at that moment can be set right before anything ends.
    """

    __slots__ = ("_met",)

    def __init__(self) -> None:
        self._met: dict[str, tuple[int, int]] = {}
        """Steady time at which each was met first, and its age then."""

    def meet(self, key: str, steady_ms: int) -> None:
        """Record that a thing begins now."""
        self._met[key] = steady_ms, 0

    def older(self, dates_ms: Mapping[str, int], now_ms: int, steady_ms: int, limit_ms: int) -> list[str]:
        """Return those that are `limit_ms` old or older; what has no date here any more is forgotten."""
        most_ms, found = limit_ms * 23 // 24, list[str]()
        self._met = {key: met for key, met in self._met.items() if key in dates_ms}
        for key, date_ms in dates_ms.items():
            by_date_ms = now_ms - date_ms
            met_ms, age_ms = self._met.setdefault(key, (steady_ms, min(max(0, by_date_ms), most_ms)))
            is_ahead = by_date_ms < 0  # it was dated by a clock that ran ahead, and its date says nothing
            if age_ms + steady_ms - met_ms >= limit_ms and (is_ahead or by_date_ms >= limit_ms):
                found.append(key)
        return found


class Repeats:
    """Lets `burst` of a kind through in `every_s` seconds, and counts the others; at most `per_minute` of all kinds.

    What can be repeated at no cost (a refusal, a denial, a failure) thus fills no log.  For at most `kinds_max` kinds;
    the one not met for longest is forgotten first.  Any clock; one thread at a time.
    """

    __slots__ = ("_bucket", "_burst", "_every_s", "_kinds", "_kinds_max")

    def __init__(self, every_s: float, kinds_max: int, per_minute: int, burst: int = 1) -> None:
        self._every_s, self._kinds_max, self._burst = every_s, kinds_max, burst
        self._bucket = TokenBucket(float(per_minute), per_minute / 60)
        self._kinds: OrderedDict[tuple[str, ...], tuple[float, int, int]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many kinds are remembered."""
        return len(self._kinds)

    def due(self, kind: tuple[str, ...], now_s: float) -> int | None:
        """Return how many of the kind were only counted since the last one let through; None to count this one."""
        since_s, told, count = self._kinds.pop(kind, (now_s, 0, 0))
        if not 0 <= now_s - since_s < self._every_s:
            since_s, told = now_s, 0
        due = told < self._burst
        if due:
            self._bucket, due, _ = self._bucket.take(now_s)
        self._kinds[kind] = (since_s, told + 1, 0) if due else (since_s, told, count + 1)
        if len(self._kinds) > self._kinds_max:
            self._kinds.popitem(last=False)
        return count if due else None


def summary(counts: Iterable[list[int]]) -> dict[str, int | None]:
    """Return p50_ms, p99_ms (None without samples) and samples over the counts of any number of Lags."""
    total = [sum(column) for column in zip(*filter(None, counts), strict=True)]
    samples = sum(total)
    return {"p50_ms": _percentile(total, samples, 50), "p99_ms": _percentile(total, samples, 99), "samples": samples}


def _percentile(counts: list[int], samples: int, percent: int) -> int | None:
    left = -(-samples * percent // 100)
    for bucket, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            return _value(bucket)
    return None


def _bucket(lag_ms: int) -> int:
    if lag_ms < _FINE:
        return max(0, lag_ms)
    doublings = lag_ms.bit_length() - _FINE.bit_length()
    return min(_BUCKETS - 1, _FINE * (doublings + 1) + (lag_ms >> doublings) - _FINE)


def _value(bucket: int) -> int:
    """Return the middle of a step."""
    if bucket < _FINE:
        return bucket
    doublings, place = divmod(bucket - _FINE, _FINE)
    return ((_FINE + place) << doublings) + ((1 << doublings) >> 1)
