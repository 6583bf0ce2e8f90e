"""How many bytes each peer may bring in within a day: `limits.intake_day_bytes`.

Callers name the pair; all pairs with one peer share a sum, so a peer that pairs again has no new day.

Counted is what a peer makes us append: records, projections, positions, refusals, pins, and what its signed messages
change: grants, states, tokens, manifests.  Only the handshake itself, once for each pair, is not counted.  The sum
runs off evenly over a day, so the window moves with the clock and no bytes are kept by the hour.  Of a page that does
not fit as much is stored as fits, one record at least, without its position; the rest comes when the page is read
again.  So a pair exceeds its budget by one record at most; what the writer refuses does not count.
When the sum reaches the limit, intake from that pair pauses, and it resumes by itself when a 96th of the day's bytes
is free again: with less, a stream would be opened for every record.  Nothing is lost, because the saved position stays
where it is, and a peer that pushes is told when to come again.

A sum is on disk as a member of the position that is saved with each page, and as a line of its own where there is
none, so a restart neither gives back nor adds.  Rejected: an estimate at each start, which hands out a share of the day
again and again to an attacker who can have us restarted; and adding up what the log holds of the pair's last day, which
is gigabytes to read.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final

from ..core.errors import SplError
from ..core.pair.status import IntakeStatus
from ..core.value import dataclass, replace
from ..home.log import Line, LineError, Log
from ..home.tables.lists import DAYS, POSITIONS, name_in
from ..home.writer import Writer
from ..home.writes import DayBytes, Item, SavedPosition, size_of

INTAKE_PAUSED: Final = "intake-paused"
DAY_S: Final = 86_400.0
SMALL_RECORD_BYTES: Final = 1024
"""What a record takes of the budget when a page is asked for; one that takes more is stored, and nothing behind it."""
_FREE_SHARE: Final = 1 / 96
_MOST_SHARE: Final = 2 - 2 * _FREE_SHARE
"""What counts at most: one large record uses up a small budget many times, and the pause is to end within a day."""
_OLD_SHARE: Final = 23 / 24
"""What counts of a pair whose last position an older version saved, if the log took so much in the last day."""
_PAGE_NAMES: Final = 500


class IntakeError(SplError):
    """The pair brought in a day's bytes; code intake-paused, with `retry_after_s`."""


@dataclass(slots=True)
class _Sum:
    """The bytes of one peer that count at `at_s`."""

    bytes: float
    at_s: float
    paused: bool = False


class IntakeBudget:
    """The sums of all peers; `saved` are those of the last process, by now; the writer's views say whose a pair is.

    With a lock, because the signed messages are counted on the thread of the steps.
    """

    def __init__(
        self, writer: Writer, day_bytes: int, saved: Mapping[str, float], steady_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer, self._day_bytes, self._steady_s, self._lock = writer, day_bytes, steady_s, Lock()
        now_s = steady_s()
        self._sums = {peer: _Sum(size, now_s, size >= day_bytes) for peer, size in saved.items()}

    def charge(self, pair_id: str, size: int) -> int:
        """Count bytes that the pair brings in; return how many of them count, which is what `refund` takes back."""
        with self._lock:
            found = self._sum(pair_id)
            added = max(0, min(size, int(self._day_bytes * _MOST_SHARE - found.bytes)))
            found.bytes += added
            found.paused = found.paused or found.bytes >= self._day_bytes
            return added

    def refund(self, pair_id: str, added: int) -> None:
        """Do not count bytes that were not stored after all."""
        with self._lock:
            found = self._sum(pair_id)
            found.bytes = max(0.0, found.bytes - added)

    def use_up(self, pair_id: str) -> None:
        """Pause intake from a pair that brought more than the rest of its day, of which less than a record is left."""
        with self._lock:
            found = self._sum(pair_id)
            found.bytes, found.paused = max(found.bytes, float(self._day_bytes)), True

    def brought(self, pair_id: str) -> int:
        """Return what counts now, for the log."""
        with self._lock:
            return int(self._sum(pair_id).bytes)

    def left(self, pair_id: str) -> int:
        """Return how many bytes the pair may still bring in now."""
        with self._lock:
            return max(0, int(self._day_bytes - self._sum(pair_id).bytes))

    def records(self, pair_id: str) -> int:
        """Return how many records a page may have that is asked for now; one at least."""
        return max(1, self.left(pair_id) // SMALL_RECORD_BYTES)

    def check(self, pair_id: str) -> None:
        """Raise IntakeError "intake-paused" while intake from the pair is paused."""
        wait_s = self.status(pair_id).wait_s
        if wait_s:
            hint = (
                "it resumes by itself after the Retry-After seconds, or where it pauses: spl federation resume PAIR_ID"
            )
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
            self._sums[peer_of(self._writer, pair_id)] = _Sum(0.0, self._steady_s())

    def _sum(self, pair_id: str) -> _Sum:
        now_s = self._steady_s()
        found = self._sums.setdefault(peer_of(self._writer, pair_id), _Sum(0.0, now_s))
        found.bytes = max(0.0, found.bytes - max(0.0, now_s - found.at_s) * self._day_bytes / DAY_S)
        found.at_s = now_s
        return found


def peer_of(writer: Writer, pair_id: str) -> str:
    """Return the DID of a pair's peer; of a pair that there is not, its id."""
    pair = writer.views.pairs.get(pair_id)
    return pair.peer_did if pair is not None else pair_id


def saved_sums(writer: Writer, day_bytes: int, now_ms: int) -> dict[str, float]:
    """Return what counts now of each peer, by the last line of the log that says it of any pair with the peer.

    A clock that was set back since lets nothing run off.
    """
    found, of_peers = dict[str, float](), dict[str, list[Line]]()
    for pair_id, lines in _newest(writer.store).items():
        of_peers.setdefault(peer_of(writer, pair_id), []).extend(lines)
    for peer, lines in of_peers.items():
        marks = [(line, value) for line in lines if type(value := _body(line).get("day_bytes")) is int]
        if marks:
            line, value = max(marks, key=lambda mark: mark[0].seq)
            past_s = max(0.0, (now_ms - line.at_ms) / 1000)
        else:
            value, past_s = min(_taken(writer.store, now_ms), int(day_bytes * _OLD_SHARE)), 0.0
        found[peer] = max(0.0, value - past_s * day_bytes / DAY_S)
    return found


def _newest(store: Log) -> dict[str, list[Line]]:
    """Return the last line of each pair that may say what it brought in: of its positions, and of others."""
    found: dict[str, list[Line]] = {}
    for prefix in (POSITIONS, DAYS):
        for name in _names(store, prefix):
            row = store.index.last(name)
            if row is not None:
                with suppress(LineError):  # what the disk damaged says nothing
                    found.setdefault(name_in(name), []).append(store.line(row.seq))
    return found


def _names(store: Log, prefix: str) -> Iterator[str]:
    last = ""
    while page := store.index.names(prefix, last, _PAGE_NAMES):
        yield from page
        last = page[-1]


def _body(line: Line) -> dict[str, Any]:
    value = json.loads(line.payload)
    return value if isinstance(value, dict) else {}


def _taken(store: Log, now_ms: int) -> int:
    """Return how many bytes the log took in the last day, of everybody."""
    return store.bytes_since(now_ms - int(DAY_S * 1000))


def fitting(items: Sequence[Item], left: int) -> Sequence[Item]:
    """Return the first of the items that use up so many bytes; all of them if they do not."""
    for count, size in enumerate(itertools.accumulate(map(size_of, items)), 1):
        if size >= left:
            return items[:count]
    return items


def marked(pair_id: str, items: Sequence[Item], day_bytes: int) -> list[Item]:
    """Return the items with what the pair brought in within a day: in its position, or beside them."""
    last = items[-1]
    if isinstance(last, SavedPosition) and last.pair == pair_id:
        return [*items[:-1], replace(last, day_bytes=day_bytes)]
    return [*items, DayBytes(pair_id, day_bytes)]
