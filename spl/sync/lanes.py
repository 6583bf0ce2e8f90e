"""Where a reading stands: lanes through the rows that a pair may see (`scope.py`), and the next page of them.

A lane runs through one namespace at one level under one filter.  A cursor holds one position for each lane, not one for
the log, because consent changes: widening starts one lane at the pair's start, narrowing leaves one where it is, and
neither sends anything again.  A single position would skip the older records of a namespace that is granted later, or
send everything again.  A new lane passes over what an earlier lane of the same cursor gave at least as fully
(`covers`), so raising and lowering a level or a filter sends nothing twice either.

`LaneScan` has two positions that leave this process, and one that never does:

    sent_to      the last row of the lane that the cursor accounts for; `count` is how many rows to send lie up to it
    visible_to   the last scanned row that the pair may know of, with its own count; `sent_to` moves here once all
                 that was found is sent
    scanned_to   the last row scanned.  It never enters a cursor: from two cursors a peer could learn that hidden
                 records arrived.  `EmptyRanges` remembers it instead, so hidden rows are scanned once

Each page is divided among the lanes that are behind, so that a backfill does not delay new records of another
namespace.  Scans are generators that yield every SCAN_ROWS rows: a reading thread runs one step at a time, so a pair
whose filter hides a million records delays another pair by one step at most.  The cost of lanes is the length of
the cursor: the 64 that a pair may have take 2 KiB before it is sealed.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Final

from ..core.record.cursor import LANES_MAX, Cursor, Lane, lane_key
from ..core.record.filter import PairFilter
from ..core.record.record import is_reserved
from ..core.value import dataclass, field
from ..home.index import Row
from ..home.tables.lists import by_namespace, by_thread_in
from .scope import SCAN_ROWS, LogView, Scope, Steps

PASSED_ROWS_MAX: Final = 10_000
"""A page ends early once it passed over this many rows that the peer has already."""

_CHUNK_ROWS: Final = 256


@dataclass(slots=True)
class LaneScan:
    """One lane while a page is made; the module's docstring explains the positions."""

    key: str
    lists: tuple[str, ...]
    """The index's lists that the lane runs through: of its namespace, or of one thread in all that are shared."""
    sent_to: int
    count: int
    covers: tuple[tuple[PairFilter, int], ...] = ()
    """Filters of earlier lanes, and up to where those gave what they admit."""
    found: list[tuple[Row, int]] = field(default_factory=list)
    """Rows to send, each with the count up to it."""
    scanned_to: int = field(init=False)
    visible_to: int = field(init=False)
    visible_count: int = field(init=False)
    ended: bool = False
    """Whether the list has no more rows."""
    passed: int = 0
    """Rows passed over because the peer has them already."""

    def __post_init__(self) -> None:
        self.scanned_to = self.visible_to = self.sent_to
        self.visible_count = self.count

    @property
    def may_find_more(self) -> bool:
        """Whether scanning on may find more rows for this page."""
        return not self.ended and self.passed < PASSED_ROWS_MAX

    def lane(self) -> Lane:
        """Return the lane as a cursor holds it."""
        return Lane(self.key, self.sent_to, self.count)

    def restarted(self) -> "LaneScan":
        """Return a scan of the same lane from where it was sent to; this one stays as it is."""
        return LaneScan(self.key, self.lists, self.sent_to, self.count, self.covers)


def lanes_through(view: LogView, known: Mapping[str, Lane], thread: str = "", alone: bool = False) -> list[LaneScan]:
    """Return a scan of each lane from its known position; a new lane begins at the pair's start.

    With `thread` there is one lane, through what the shared namespaces hold of that thread: the rows of others are not
    read, so no time shows whether there are any.  `alone` gives the lanes keys of their own, so that a reading
    narrowed to a namespace is never taken for the pair's position.  If nothing is shared there is one empty lane.
    """
    scope, digest = view.scope, view.scope.filter.digest
    lanes: list[tuple[str, tuple[str, ...], str]]
    if thread:
        names = ",".join(f"{ns}:{scope.shares[ns].level}" for ns in sorted(scope.shares))
        lists = tuple(by_thread_in(ns, thread) for ns in scope.shares)
        lanes = [(lane_key(names, rule=f"thread:{digest}:{thread}"), lists, "")]
    elif alone:
        lanes = [
            (lane_key(ns, share.level, f"alone:{digest}"), (by_namespace(ns),), "")
            for ns, share in scope.shares.items()
        ]
    else:
        lanes = [(scope.key(ns), (by_namespace(ns),), ns) for ns in sorted(scope.shares)]
    if not lanes or is_reserved(thread):
        lanes = [(lane_key("", rule=f"nothing:{digest}"), (), "")]
    scans = []
    for key, lists, ns in lanes:
        lane = known.get(key) or Lane(key, scope.floor)
        scans.append(LaneScan(key, lists, lane.position, lane.count, _covers(scope, ns, lane, known) if ns else ()))
    return scans


def collect(view: LogView, scans: Sequence[LaneScan], limit: int, bytes_max: int) -> Steps[tuple[list[Row], bool]]:
    """Return the next page's rows in order of arrival and whether there are more; the lanes move to the page's end.

    Each lane gets an equal share of the page, and what one leaves over goes to the others.  There is more if a row is
    left over, or if rows that the peer has already ended the scan early.
    """
    _begin(scans)
    while (left := limit - _found(scans)) > 0 and (behind := [each for each in scans if each.may_find_more]):
        share = max(1, left // len(behind))
        for scan in behind:
            yield from _scan(view, scan, len(scan.found) + share)
    for scan in scans:
        # One row beyond the page shows that there are more; hidden rows must not show it.
        if scan.may_find_more and _found(scans) <= limit:
            yield from _scan(view, scan, len(scan.found) + 1)
    in_turn = chain.from_iterable(zip_longest(*([row for row, _ in scan.found] for scan in scans)))
    turns = [row for row in in_turn if row is not None]
    rows = sorted(view.fitting(turns[:limit], bytes_max), key=lambda row: row.seq)
    sent = {row.seq for row in rows}
    for scan in scans:
        _settle(scan, sent)
    return rows, len(rows) < len(turns) or any(scan.passed >= PASSED_ROWS_MAX for scan in scans)


def has_news(view: LogView, scans: Iterable[LaneScan]) -> Steps[bool]:
    """Return whether any lane has a row to send; the scans keep what they passed over, so a later call skips it."""
    for scan in scans:
        _begin([scan])
        while not scan.found and not scan.ended:
            scan.passed = 0
            yield from _scan(view, scan, 1)
        if scan.found:
            return True
    return False


def next_lanes(scans: Sequence[LaneScan], before: Cursor | None) -> tuple[Lane, ...]:
    """Return the lanes of the next cursor.

    Lanes that consent or a rule took away keep their position, the farthest first and as many as fit: they record
    what was given already.
    """
    lanes = {scan.key: scan.lane() for scan in scans}
    kept = [lane for lane in (before.lanes if before is not None else ()) if lane.key not in lanes]
    kept.sort(key=lambda lane: (-lane.position, lane.key))
    return (*lanes.values(), *kept)[:LANES_MAX]


def clock_of(scans: Sequence[LaneScan]) -> int:
    """Return how many records in scope lie up to where the lanes are: the clock of a page."""
    return sum(scan.count for scan in scans)


def _covers(scope: Scope, ns: str, lane: Lane, known: Mapping[str, Lane]) -> tuple[tuple[PairFilter, int], ...]:
    """Return the filters of earlier lanes that gave rows beyond this lane's position, at its level or more fully."""
    if len(known) < 2 and lane.key in known:
        return ()
    found = []
    for each in scope.filters:
        keys = (lane_key(ns, level, each.digest) for level in range(scope.shares[ns].level + 1))
        upto = max((known[key].position for key in keys if key in known and key != lane.key), default=0)
        if upto > lane.position:
            found.append((each, upto))
    return tuple(found)


def _begin(scans: Iterable[LaneScan]) -> None:
    for scan in scans:
        scan.ended, scan.passed = False, 0


def _found(scans: Iterable[LaneScan]) -> int:
    return sum(len(scan.found) for scan in scans)


def _scan(view: LogView, scan: LaneScan, goal: int) -> Steps[None]:
    """Scan on until the lane has `goal` rows, its list ends, or enough rows were passed over that the peer has.

    Hidden rows are passed over without a bound: ending a page among them would show that they are there.
    """
    scanned, size = 0, goal - len(scan.found)
    while len(scan.found) < goal and scan.may_find_more:
        scan.scanned_to = view.empty.beyond(scan.key, scan.scanned_to)
        rows = view.after(scan.lists, scan.scanned_to, size)
        for row, visible, covered in view.judged(rows, scan.covers):
            scan.scanned_to = row.seq
            if not visible:
                continue
            scan.visible_to = row.seq
            counts = view.scope.counts(row)
            scan.visible_count += counts
            if covered or not (counts or view.whole):
                scan.passed += 1
            else:
                scan.found.append((row, scan.visible_count))
            if len(scan.found) == goal or not scan.may_find_more:
                break
        if not rows:
            scan.ended, scan.scanned_to = True, max(scan.scanned_to, view.last_seq)
        view.empty.note(scan.key, scan.visible_to, scan.scanned_to)
        scanned, size = scanned + len(rows), max(goal - len(scan.found), _CHUNK_ROWS)
        if scanned >= SCAN_ROWS:
            scanned = 0
            yield


def _settle(scan: LaneScan, sent: set[int]) -> None:
    """Move a lane to the end of the page; found rows that had no room are scanned again for the next one."""
    mine = [(row.seq, count) for row, count in scan.found if row.seq in sent]
    if len(mine) == len(scan.found):
        scan.sent_to, scan.count = scan.visible_to, scan.visible_count
    elif mine:
        scan.sent_to, scan.count = mine[-1]
