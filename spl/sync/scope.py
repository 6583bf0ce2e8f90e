"""Who may see what: the rows of the log that a pair may read, and how many there are.

The scope of a pair is what consent shares and its filter admits, from the pair's start on.  Pages, streams, waiting
readers, fetches by id, fingerprints and counts all ask this one module, so they cannot disagree about a row.

Two questions are kept apart.  `admits` says whether the pair may know of a row; `counts` says whether the row is to
be sent, which excludes what the pair delivered or the peer signed.  A row that is not admitted must leave no trace:
no position, count, page end or waiting time may depend on it.

Rows are judged by what the index holds of them, and a payload is read from disk only if the filter has a rule over
records: 2,048 rows take 5 ms without such a rule and 80 ms with one.  A list of admitted rows per pair was rejected:
it would have to be rebuilt at each change of consent, and it costs memory for each pair and record.  The costly part is
remembered instead, in memory and bounded: which ranges hold nothing for the pair (`EmptyRanges`), and how far the
rows were counted (`Counts`).  Both begin again after a restart.

Any thread may ask: the index answers without locks.
"""

import json
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from ..core import consent
from ..core.consent import Outbound
from ..core.limits import MIB
from ..core.pair.pair import Pair
from ..core.record import levels
from ..core.record.cursor import LANES_MAX, lane_key
from ..core.record.filter import PairFilter, fields_of
from ..core.record.levels import EXACT, STRUCTURAL
from ..core.value import dataclass, field
from ..home.index import Index, Row
from ..home.tables.lists import by_namespace, received, received_vouched, vouched
from ..home.views import THREAD_NAMESPACES, THREAD_PAIRS

SCAN_ROWS: Final = 2048
"""Rows scanned between two yields: 5 ms for plain ones, 80 ms if a rule reads the records."""
COUNT_ROWS: Final = 4096
"""Rows counted in one step."""
SHARING_THREADS: Final = frozenset({THREAD_PAIRS, THREAD_NAMESPACES, consent.THREAD})
"""Threads whose records decide what a pair shares, and whether it syncs."""

_FACTS_BYTES: Final = 4 * MIB
"""Records read at once if the filter has a rule over records."""
_INHERITED_MAX: Final = 16
"""Superseded pairs that are followed; what those before them delivered goes out once more and is known there."""
_LANES_REMEMBERED: Final = 256
_RANGES_MAX: Final = 8
"""Bounds of `EmptyRanges`: what is forgotten is scanned again."""

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""Work that yields between its steps, so that the thread running it can serve others, and returns its result."""


def advance(work: Steps[_T], result: list[_T]) -> bool:
    """Do one step; return whether it was the last, having put the result into the list."""
    try:
        next(work)
    except StopIteration as done:
        result.append(done.value)
        return True
    return False


@dataclass(frozen=True, slots=True)
class Scope:
    """What one pair may read now, and what it has already; `filters` are the present one and those before it."""

    shares: Mapping[str, Outbound]
    filters: tuple[PairFilter, ...]
    origins: frozenset[str]
    """The pair, and those that it inherits from."""
    peer_did: str
    own_did: str
    floor: int = 0
    """The line after which the pair starts."""

    @property
    def filter(self) -> PairFilter:
        """The filter in force."""
        return self.filters[0]

    @property
    def plain(self) -> bool:
        """Whether each record goes out as it is stored and the row alone decides."""
        return not self.filter.reads_records and all(share.level == EXACT for share in self.shares.values())

    @property
    def tallied(self) -> bool:
        """Whether the index keeps the count of it."""
        return not self.floor and not self.filter.reads_records

    def key(self, ns: str) -> str:
        """Return the key of the lane of a shared namespace."""
        return lane_key(ns, self.shares[ns].level, self.filter.digest)

    def admits(self, row: Row) -> bool:
        """Return whether the pair may know of the row, as far as the row alone decides.

        If `filter.reads_records`, the filter must admit the record's facts as well.
        """
        return (
            row.kind == "rec"
            and row.ns in self.shares
            and row.seq > self.floor
            and (self.filter.relay or row.voucher == self.own_did)
        )

    def counts(self, row: Row) -> bool:
        """Return whether an admitted row is to be sent: the pair did not deliver it and the peer did not sign it."""
        return row.origin not in self.origins and row.voucher != self.peer_did


class EmptyRanges:
    """Ranges of one pair's lanes that were scanned and hold nothing that the pair may know of.

    In memory and bounded: a range that was dropped is scanned again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: dict[str, tuple[tuple[int, int], ...]] = {}

    def beyond(self, key: str, seq: int) -> int:
        """Return the end of the known empty range that `seq` lies in; `seq` itself if there is none."""
        return max((high for low, high in self._ranges.get(key, ()) if low <= seq <= high), default=seq)

    def note(self, key: str, low: int, high: int) -> None:
        """Record that nothing lies after `low` up to `high`."""
        if low >= high:
            return
        with self._lock:
            known = self._ranges.pop(key, ())
            rest = [each for each in known if each[1] < low or each[0] > high]
            joined = [(low, high), *(each for each in known if each not in rest)]
            merged = min(each[0] for each in joined), max(each[1] for each in joined)
            self._ranges[key] = (*rest, merged)[-_RANGES_MAX:]
            if len(self._ranges) > _LANES_REMEMBERED:
                del self._ranges[next(iter(self._ranges))]


@dataclass(frozen=True, slots=True)
class LogView:
    """The log as one pair may see it, up to `last_seq`.

    `last_seq` must be read before the scope: a record written after a withdrawal is then never in view, since the
    scope already knows of the withdrawal.  `whole` includes what the pair itself delivered.
    """

    index: Index
    read: Callable[[Sequence[Row]], Iterable[tuple[Row, bytes]]]
    scope: Scope
    last_seq: int
    empty: EmptyRanges = field(default_factory=EmptyRanges, compare=False)
    whole: bool = False

    def after(self, names: Sequence[str], seq: int, limit: int) -> list[Row]:
        """Return the next rows of lists; an empty answer alone means their end, since a filter may shorten others."""
        rows = self.index.after_any(names, seq, limit)
        while rows and rows[-1].seq > self.last_seq:
            rows.pop()
        return within(rows, _FACTS_BYTES) if self.scope.filter.reads_records else rows

    def fitting(self, rows: Sequence[Row], bytes_max: int) -> list[Row]:
        """Return the first rows that fit in the form they are sent in, at least one if there is one.

        A projection is measured by what it shows: the end of a page must not reveal the length of the hidden part.
        """
        if sum(row.length + levels.REST_BYTES for row in rows) <= bytes_max:
            return list(rows)
        return within(rows, bytes_max, self._bytes_out)

    def _bytes_out(self, row: Row) -> int:
        level = self.scope.shares[row.ns].level
        if level == EXACT:
            return row.length
        for _, payload in self.read([row]):
            return levels.shown_bytes(json.loads(payload)["record"], level)
        return levels.REST_BYTES  # damaged, so it is left out

    def judged(
        self, rows: Sequence[Row], covers: Sequence[tuple[PairFilter, int]] = ()
    ) -> Iterator[tuple[Row, bool, bool]]:
        """Yield each row with whether the pair may know of it, and whether one of `covers` gave it already."""
        scope, own = self.scope, self.scope.own_did
        covers = [each for each in covers if rows and each[1] >= rows[0].seq]
        reads = scope.filter.reads_records or any(each.reads_records for each, _ in covers)
        if not reads and not covers:
            yield from ((row, scope.admits(row), False) for row in rows)
            return
        stored = {row.seq: raw for row, raw in self.read([row for row in rows if scope.admits(row)])} if reads else {}
        for row in rows:
            if not scope.admits(row) or (reads and row.seq not in stored):
                yield row, False, False
                continue
            relayed, facts = row.voucher != own, _facts(row, stored[row.seq]) if reads else {}
            if not scope.filter.admits(facts, relayed):
                yield row, False, False
                continue
            yield row, True, any(row.seq <= upto and each.admits(facts, relayed) for each, upto in covers)


class Counts:
    """How many records each pair is offered, for scopes that the index does not count.

    In memory, so a restart counts again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counted: dict[str, dict[str, tuple[int, int]]] = {}
        """pair_id -> namespace and filter -> (counted up to, records found)."""
        self.complete: dict[str, tuple[frozenset[str], int]] = {}
        """pair_id -> what was counted, and the last complete count of it."""
        self.tallied: dict[str, tuple[Index, Scope, int, int]] = {}
        """pair_id -> what was asked, up to which line, and the tally: all pairs are asked while nothing is written."""

    def last_known(self, pair_id: str, view: LogView) -> int | None:
        """Return the present count, else the last complete one of the same scope; None before the first."""
        found = self.present(pair_id, view)
        if found is not None:
            return found
        counted, total = self.complete.get(pair_id, (None, 0))
        return total if counted == _keys(view) else None

    def present(self, pair_id: str, view: LogView) -> int | None:
        """Return how many records the pair is offered; None until all rows are counted."""
        if view.scope.tallied:
            return self._tally(pair_id, view.index, view.scope)
        counted, total = self.counted.get(pair_id, {}), 0
        for ns in view.scope.shares:
            upto, count = counted.get(_key(view, ns), (view.scope.floor, 0))
            last = view.index.last(by_namespace(ns))
            if last is not None and last.seq > upto:
                return None
            total += count
        return total

    def _tally(self, pair_id: str, index: Index, scope: Scope) -> int:
        covered, kept = index.covered, self.tallied.get(pair_id)  # before the tally, which may hold a later line
        if kept is not None and kept[0] is index and kept[1] is scope and kept[2] == covered:
            return kept[3]
        found = tally(index, scope)
        self.tallied[pair_id] = index, scope, covered, found
        return found

    def advance(self, pair_id: str, view: LogView) -> bool:
        """Count at most COUNT_ROWS more rows; return whether the count is complete."""
        scope = view.scope
        if scope.tallied:
            return True
        with self._lock:
            before, left = self.counted.get(pair_id, {}), COUNT_ROWS
            counted = {key: before.get(key, (scope.floor, 0)) for key in (_key(view, ns) for ns in scope.shares)}
            for ns in scope.shares:
                upto, count = counted[_key(view, ns)]
                while left > 0 and (rows := view.after([by_namespace(ns)], upto, min(left, SCAN_ROWS))):
                    count += sum(visible and scope.counts(row) for row, visible, _ in view.judged(rows))
                    upto, left = rows[-1].seq, left - len(rows)
                counted[_key(view, ns)] = upto, count
            self.counted = {**self.counted, pair_id: counted}
            if left > 0:
                self.complete = {**self.complete, pair_id: (_keys(view), sum(each for _, each in counted.values()))}
        return left > 0


def scope_of(pair: Pair, shares: Iterable[Outbound], pairs: Mapping[str, Pair], own_did: str) -> Scope:
    """Return what the pair may read of these shares.

    What a superseded pair delivered counts as delivered by the pair that supersedes it.
    """
    origins, older = {pair.pair_id}, pair.inherits
    while older and older not in origins and len(origins) < _INHERITED_MAX:
        origins.add(older)
        before = pairs.get(older)
        older = before.inherits if before is not None else ""
    floor = pair.start_seq if pair.start == "present" else 0
    # A cursor holds this many lanes; a namespace beyond would begin again with each page.
    chosen = {share.ns: share for share in [*shares][:LANES_MAX]}
    return Scope(chosen, pair.filters, frozenset(origins), pair.peer_did, own_did, floor)


def tally(index: Index, scope: Scope) -> int:
    """Return how many records a `tallied` scope offers, from counters of the index and without reading rows."""
    return sum(tally_of(index, scope, ns) for ns in scope.shares)


def find(view: LogView, ids: Iterable[str]) -> list[Row]:
    """Return the rows of those ids that the pair may have, in order of arrival.

    Records that are shared below L1 are not found, since the peer does not know their ids, nor those that the disk
    damaged.  Of a record that several shared namespaces hold, the first copy is found: the peer asks by id alone.
    """
    copies = (next(filter(view.scope.admits, view.index.copies(id_)), None) for id_ in ids)
    rows = [row for row in copies if row is not None]
    named = [row for row in rows if view.scope.shares[row.ns].level <= STRUCTURAL and row.seq <= view.last_seq]
    listed = sorted((row for row in named if _is_listed(view.index, row)), key=lambda row: row.seq)
    return [row for row, visible, _ in view.judged(listed) if visible]


def within(rows: Sequence[Row], bytes_max: int, size: Callable[[Row], int] = lambda row: row.length) -> list[Row]:
    """Return the first rows whose sizes, stored or as given, fit together; at least one if there is one."""
    total, kept = 0, list[Row]()
    for row in rows:
        total += size(row) + 1
        if kept and total > bytes_max:
            break
        kept.append(row)
    return kept


def _facts(row: Row, payload: bytes) -> dict[str, str]:
    """Return the facts of a stored record."""
    return fields_of(json.loads(payload)["record"], row.ns, row.voucher)


def tally_of(index: Index, scope: Scope, ns: str) -> int:
    """Return how many records of one namespace a `tallied` scope offers."""
    if not scope.filter.relay:
        own = scope.own_did
        return index.tally(vouched(ns, own)) - sum(
            index.tally(received_vouched(ns, pair, own)) for pair in scope.origins
        )
    peer = scope.peer_did
    had = index.tally(vouched(ns, peer)) + sum(
        index.tally(received(ns, pair)) - index.tally(received_vouched(ns, pair, peer)) for pair in scope.origins
    )
    return index.count(by_namespace(ns)) - had


def _is_listed(index: Index, row: Row) -> bool:
    """Return whether the row is in its namespace's list: records of reserved threads are in none."""
    found = index.after(by_namespace(row.ns), row.seq - 1, 1)
    return bool(found) and found[0].seq == row.seq


def _keys(view: LogView) -> frozenset[str]:
    return frozenset(_key(view, ns) for ns in view.scope.shares)


def _key(view: LogView, ns: str) -> str:
    return lane_key(ns, rule=view.scope.filter.digest)
