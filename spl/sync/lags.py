"""How long it takes until peers hold what was written here: from the write to the peer's ack, both by our clock."""

from collections.abc import Callable
from typing import Final

from ..core.recent import Histogram, Lags, summary
from ..home.writes import LOCAL, Commit

MARKS_MAX: Final = 1024
"""Local writes whose acks are timed; older ones are left out of the lag."""

_Mark = tuple[int, int, frozenset[str]]  # last local record of a write, its time, the write's namespaces


class ServedLags:
    """The lags of all pairs; the writer's thread marks writes, the loop measures."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._marks: list[_Mark | None] = [None] * MARKS_MAX
        self._marked = 0
        self._lags: dict[str, tuple[Lags, int]] = {}
        self._live_from: dict[str, int] = {}
        """Pair -> the end of the log when its records began to reach the peer at once; no lag is older."""

    def ms(self, pair_id: str = "") -> dict[str, int | None]:
        """Return p50_ms, p99_ms and samples of the last five minutes, of one pair or all."""
        chosen = self._lags if not pair_id else self._lags.keys() & {pair_id}
        return summary([self._lags[each][0].counts(self._now_ms()) for each in chosen])

    def histogram(self, pair_id: str) -> Histogram:
        """Return the lags of one pair since the start; all zero while nothing was measured."""
        return (self._lags.get(pair_id) or (Lags(), 0))[0].histogram

    def mark(self, commit: Commit) -> None:
        """Keep the time of a commit's local records; runs on the writer's thread."""
        local = [seq for seq, entry in commit.fresh if entry.origin == LOCAL and entry.ns]
        if local:
            self._marks[self._marked % MARKS_MAX] = (local[-1], commit.at_ms, commit.namespaces)
            self._marked += 1

    def go_live(self, pair_id: str, last_seq: int) -> None:
        """Record that from the end of the log on the pair's records reach the peer at once."""
        self._live_from.setdefault(pair_id, last_seq)

    def measure(self, pair_id: str, namespaces: frozenset[str], position: int, *, is_live: bool) -> None:
        """Record the lags of the writes that an ack of these namespaces is the first to cover.

        Only while the peer reads by a stream or our push, and only of writes since then: the age of what waited for a
        poll, or for the pair to be made, is no lag.
        """
        lags, before = self._lags.get(pair_id) or (Lags(), 0)
        self._lags[pair_id] = lags, max(before, position)
        if not is_live:
            self._live_from.pop(pair_id, None)
            return
        before = max(before, self._live_from.setdefault(pair_id, position))
        now_ms = self._now_ms()
        for number in range(self._marked - 1, max(-1, self._marked - MARKS_MAX - 1), -1):
            mark = self._marks[number % MARKS_MAX]
            if mark is None or mark[0] <= before:
                return
            if mark[0] <= position and namespaces & mark[2]:
                lags.add(now_ms - mark[1], now_ms)
