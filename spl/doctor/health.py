"""What the daemon remembers of itself for people: how late its loop runs, and how each pair did in the last half hour.

Each `limits.beat_s` seconds every pair is sampled.  A finding needs to know for how long a condition lasts, which a
status read now and then cannot say.  All samples are in memory, of fixed size for each pair that has not ended, and
begin again after a restart.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from ..core.limits import QUEUE_RECORDS, Limits
from ..core.pair.status import PairStatus
from ..core.presence import PAUSE_S
from ..core.value import dataclass, field
from ..home.writer import Writer
from ..sync.changes import Feed, OfferedStatus
from ..sync.schedule import Sync
from ..sync.supervise import wait

MINUTE_S: Final = 60.0
LAGS_COUNT: Final = 30
LATE_COUNT: Final = 12
UNKNOWN: Final = -1


@dataclass(slots=True)
class _PairSamples:
    """One pair: lags and fullest queues by the minute, oldest first; since when (steady seconds) a condition has held.

    `still_s`: our position does not move; `stalled_s`: the same while records wait on the peer; `behind_s`: the peer
    acknowledges nothing while records wait here; `mute_s`: streams are opened that bring no event.
    """

    lags: "array[int]" = field(default_factory=lambda: array("q", [UNKNOWN] * LAGS_COUNT))
    queues: "array[int]" = field(default_factory=lambda: array("q", [UNKNOWN] * LAGS_COUNT))
    queue: int = 0
    clock: int = -1
    failing_s: float | None = None
    still_s: float | None = None
    stalled_s: float | None = None
    behind_s: float | None = None
    full_s: float | None = None
    mute_s: float | None = None
    acked: int | None = None
    missing: int = 0
    crashes: int = 0

    def skip(self, late_s: float) -> None:
        """Count nothing of the time in which this daemon did not run."""
        for name in ("failing_s", "still_s", "stalled_s", "behind_s", "full_s", "mute_s"):
            if (since_s := getattr(self, name)) is not None:
                setattr(self, name, since_s + late_s)


_UNSEEN: Final = _PairSamples()
"""Stands for a pair that was never sampled; only looked at."""


class HealthSampler:
    """Samples on the loop; `steady_s()` is a clock that never jumps."""

    def __init__(
        self, writer: Writer, sync: Sync, feed: Feed, limits: Limits, *, steady_s: Callable[[], float]
    ) -> None:
        self._beat_s = limits.beat_s
        self._writer, self._sync, self._feed, self._steady_s = writer, sync, feed, steady_s
        self._samples: dict[str, _PairSamples] = {}
        self._late_ms: deque[float] = deque(maxlen=LATE_COUNT)
        self._minute_s = self._beat_at_s = steady_s()

    async def run(self, stop: asyncio.Event) -> None:
        """Sample until `stop`."""
        while not stop.is_set():
            due_s = self._steady_s() + self._beat_s
            self._sync.beat(self._beat_s)
            await wait(stop, self._beat_s)
            if not stop.is_set():
                self.beat((self._steady_s() - due_s) * 1000)

    def running(self) -> Collection[str]:
        """Return the names of the jobs that run or rest; those of a pair end with its id."""
        return self._sync.running

    def beat(self, late_ms: float) -> None:
        """Sample every pair; `late_ms` is by how much the loop missed the time of this beat."""
        now_s = self._steady_s()
        self._late_ms.append(max(0.0, late_ms))
        self._beat_at_s = now_s
        turned = now_s - self._minute_s >= MINUTE_S
        if turned:
            self._minute_s = now_s
        alive = {pair_id: pair for pair_id, pair in self._writer.views.pairs.items() if not pair.ended}
        self._samples = {pair_id: samples for pair_id, samples in self._samples.items() if pair_id in alive}
        named = {name.rpartition(" ")[2] for name in self.running()}
        for pair_id, pair in alive.items():
            samples = self._samples.setdefault(pair_id, _PairSamples())
            if late_ms > PAUSE_S * 1000:
                samples.skip(late_ms / 1000)
            samples.missing = samples.missing + 1 if pair.sync_allowed and pair_id not in named else 0
            self._sample(samples, self._sync.status(pair_id), now_s, turned)
            self._sample_peer(samples, self._feed.offered(pair_id) if pair.serve_allowed else OfferedStatus(), now_s)

    def _sample(self, samples: _PairSamples, status: PairStatus, now_s: float, turned: bool) -> None:
        lag, queue, clock = status.lag_records, status.queue_records, status.clock
        samples.failing_s = _since(samples.failing_s, bool(status.attempt), now_s)
        samples.full_s = _since(samples.full_s, queue > QUEUE_RECORDS, now_s)
        samples.still_s = _since(samples.still_s, clock == samples.clock, now_s)
        samples.stalled_s = _since(samples.stalled_s, bool(lag) and clock == samples.clock, now_s)
        state = status.stream.state if status.stream is not None else ""
        # From the first that is opened until one brings an event; a stream that only broke does not begin it.
        mute = state == "opening" or (state == "down" and samples.mute_s is not None)
        samples.mute_s = _since(samples.mute_s, mute, now_s)
        samples.clock, samples.crashes = clock, status.crashes
        samples.queue = max(samples.queue, queue)
        if turned:
            samples.queues.pop(0)
            samples.queues.append(samples.queue)
            samples.queue = 0
            samples.lags.pop(0)
            samples.lags.append(UNKNOWN if lag is None or status.attempt else lag)

    def _sample_peer(self, samples: _PairSamples, offered: OfferedStatus, now_s: float) -> None:
        """Sample how far the peer is with what we offer; a lag that is unknown counts as none."""
        waits = bool(offered.lag_records) and offered.acked == samples.acked
        samples.behind_s, samples.acked = _since(samples.behind_s, waits, now_s), offered.acked

    # -- for people

    @property
    def loop_lag_ms(self) -> float:
        """How late the loop ran within the last twelve beats; a single late beat does not count."""
        return sorted(self._late_ms)[-2] if len(self._late_ms) > 1 else 0.0

    def lags(self, pair_id: str) -> list[int | None]:
        """Return the records by which the pair lagged in each of the last 30 minutes, oldest first; None if unknown."""
        return [None if lag == UNKNOWN else lag for lag in self._of(pair_id).lags]

    def queues(self, pair_id: str) -> list[int | None]:
        """Return the most records of the pair between network and store in each of the last 30 minutes, as `lags`."""
        return [None if queue == UNKNOWN else queue for queue in self._of(pair_id).queues]

    def dead(self) -> list[str]:
        """Return the pairs whose task crashed since it last succeeded, or that have had none for two beats."""
        return [pair_id for pair_id, samples in self._samples.items() if samples.missing > 1 or samples.crashes]

    def failing_s(self, pair_id: str) -> float:
        """Return for how long every attempt failed; 0 if the last one did not."""
        return self._passed_s(self._of(pair_id).failing_s)

    def still_s(self, pair_id: str) -> float:
        """Return for how long our position has not moved, whether or not records wait."""
        return self._passed_s(self._of(pair_id).still_s)

    def stalled_s(self, pair_id: str) -> float:
        """Return for how long records wait on the peer while our position does not move."""
        return self._passed_s(self._of(pair_id).stalled_s)

    def behind_s(self, pair_id: str) -> float:
        """Return for how long records wait here while the peer acknowledges none."""
        return self._passed_s(self._of(pair_id).behind_s)

    def full_s(self, pair_id: str) -> float:
        """Return for how long more than 50 records of this peer wait between network and store."""
        return self._passed_s(self._of(pair_id).full_s)

    def mute_s(self, pair_id: str) -> float:
        """Return for how long the pair's streams, opened again and again, have brought no event; 0 while one does."""
        return self._passed_s(self._of(pair_id).mute_s)

    def _of(self, pair_id: str) -> _PairSamples:
        return self._samples.get(pair_id, _UNSEEN)

    def _passed_s(self, since_s: float | None) -> float:
        if since_s is None:
            return 0.0
        now_s = self._steady_s()
        if now_s > self._beat_at_s + self._beat_s + PAUSE_S:
            now_s = self._beat_at_s  # the daemon did not run, and what passed meanwhile shows nothing of the peer
        return now_s - since_s


def _since(before: float | None, holds: bool, now_s: float) -> float | None:
    """Return since when it holds: as before, or from now; None if it does not."""
    return (now_s if before is None else before) if holds else None
