"""What the daemon remembers of itself for people: late loops, and how each pair did in the last half hour.

Beats every `limits.beat_s` seconds.  All of it lives in memory, in rings of fixed size for each pair that has not
ended; a restart begins anew.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..core.limits import Limits
from ..core.pair.pair import Pair
from .conditions import QUEUE_RECORDS

MINUTE_S: Final = 60.0
LAGS_COUNT: Final = 30
LATE_COUNT: Final = 12
UNKNOWN: Final = -1


@dataclass(slots=True)
class _Series:
    """One pair: lags by the minute, oldest first, and since when (steady seconds) it fails, stands still or is full.

    `still_s`: since when the position has not moved; `stalled_s`: the same, while records wait on the peer.
    `mute_s`: since when streams have been opened that brought no event.
    """

    lags: "array[int]" = field(default_factory=lambda: array("q", [UNKNOWN] * LAGS_COUNT))
    clock: int = -1
    failing_s: float | None = None
    still_s: float | None = None
    stalled_s: float | None = None
    full_s: float | None = None
    mute_s: float | None = None
    missing: int = 0
    crashes: int = 0


class HealthSampler:
    """`status(pair_id)` is the sync service's; `steady_s` a clock that never jumps; `tasks()` names those that run."""

    def __init__(
        self,
        pairs: Callable[[], Mapping[str, Pair]],
        status: Callable[[str], Mapping[str, Any]],
        *,
        steady_s: Callable[[], float],
        tasks: Callable[[], Iterable[str]],
        limits: Limits,
    ) -> None:
        self._beat_s = limits.beat_s
        self._pairs, self._status, self._steady_s, self._tasks = pairs, status, steady_s, tasks
        self._traces: dict[str, _Series] = {}
        self._late_ms: deque[float] = deque(maxlen=LATE_COUNT)
        self._minute_s = steady_s()

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until `stop`."""
        while not stop.is_set():
            due_s = self._steady_s() + self._beat_s
            try:
                async with asyncio.timeout(self._beat_s):
                    await stop.wait()
            except TimeoutError:
                self.beat((self._steady_s() - due_s) * 1000)

    def beat(self, late_ms: float) -> None:
        """Look at every pair; `late_ms` is by how much the loop missed the time of this beat."""
        now_s = self._steady_s()
        self._late_ms.append(max(0.0, late_ms))
        turned = now_s - self._minute_s >= MINUTE_S
        if turned:
            self._minute_s = now_s
        alive = {pair_id: pair for pair_id, pair in self._pairs().items() if not pair.ended}
        self._traces = {pair_id: trace for pair_id, trace in self._traces.items() if pair_id in alive}
        names = set(self._tasks())
        for pair_id, pair in alive.items():
            status = self._status(pair_id)
            trace = self._traces.setdefault(pair_id, _Series())
            runs = any(name.endswith(pair_id) for name in names)
            trace.missing = trace.missing + 1 if pair.sync_allowed and not runs else 0
            self._look(trace, status, now_s, turned)

    def _look(self, trace: _Series, status: Mapping[str, Any], now_s: float, turned: bool) -> None:
        lag, queue, clock = status["lag_records"], int(status["queue_records"]), int(status["clock"])
        trace.failing_s = _since(trace.failing_s, bool(status["attempt"]), now_s)
        trace.full_s = _since(trace.full_s, queue > QUEUE_RECORDS, now_s)
        trace.still_s = _since(trace.still_s, clock == trace.clock, now_s)
        trace.stalled_s = _since(trace.stalled_s, bool(lag) and clock == trace.clock, now_s)
        state = (status["stream"] or {}).get("state")
        # From the first that is opened until one brings something; one that broke alone does not begin it.
        mute = state == "opening" or (state == "down" and trace.mute_s is not None)
        trace.mute_s = _since(trace.mute_s, mute, now_s)
        trace.clock, trace.crashes = clock, int(status["crashes"])
        if turned:
            trace.lags.pop(0)
            trace.lags.append(UNKNOWN if lag is None or status["attempt"] else lag)

    # -- what people ask

    @property
    def loop_lag_ms(self) -> float:
        """By how much the loop ran late within the last twelve beats; a single hiccup does not count."""
        return sorted(self._late_ms)[-2] if len(self._late_ms) > 1 else 0.0

    def lags(self, pair_id: str) -> list[int | None]:
        """Return the records by which the pair lagged, each minute of the last 30, oldest first; None for unknown."""
        trace = self._traces.get(pair_id) or _Series()
        return [None if lag == UNKNOWN else lag for lag in trace.lags]

    def dead(self) -> list[str]:
        """Return the pairs whose task crashed since it last succeeded, or that have had none for two beats."""
        return [pair_id for pair_id, trace in self._traces.items() if trace.missing > 1 or trace.crashes]

    def failing_s(self, pair_id: str) -> float:
        """Return for how long every attempt failed, 0 when the last one did not."""
        return self._passed_s(pair_id, "failing_s")

    def still_s(self, pair_id: str) -> float:
        """Return for how long our position has not moved, whether or not anything waits."""
        return self._passed_s(pair_id, "still_s")

    def stalled_s(self, pair_id: str) -> float:
        """Return for how long records wait on the peer while our position stands still."""
        return self._passed_s(pair_id, "stalled_s")

    def full_s(self, pair_id: str) -> float:
        """Return for how long more than 50 records of this peer wait between network and store."""
        return self._passed_s(pair_id, "full_s")

    def mute_s(self, pair_id: str) -> float:
        """Return for how long the pair's streams, opened again and again, have brought no event; 0 while one does."""
        return self._passed_s(pair_id, "mute_s")

    def _passed_s(self, pair_id: str, name: str) -> float:
        trace = self._traces.get(pair_id)
        since_s = getattr(trace, name) if trace is not None else None
        return self._steady_s() - since_s if since_s is not None else 0.0


def _since(before: float | None, holds: bool, now_s: float) -> float | None:
    """Return since when it holds: as before, or from now; None when it does not."""
    return (now_s if before is None else before) if holds else None
