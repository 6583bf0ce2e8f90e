"""What a pair is offered: the rows of the log in its scope, and lanes through them.

The scope is what consent shares and the pair's filter lets pass, from the pair's start on, without what the pair
delivered or the peer signed.  Pages, streams, waiting readers, batch fetches and counts all go by it, so they cannot
disagree.

A lane goes through one namespace at one level under one filter.  Its position is the last row that the peer may know
of, so rows that the filter hides move nothing that the peer sees, however many there are; how far they were looked at
is remembered aside (`Blanks`).  A new lane begins at the pair's start and passes over what an earlier lane of the same
cursor gave at least as fully: widening, narrowing, raising and lowering never send everything again.

Long looks are generators that yield now and then, so that whoever runs them in a thread can let others have a turn.
Any thread may ask: the index answers without locks.
"""

import json
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Final, TypeVar

from ..core.consent import Outbound
from ..core.limits import MIB
from ..core.pair.pair import Pair
from ..core.record import levels
from ..core.record.cursor import LANES_MAX, Lane, lane_key
from ..core.record.filter import PairFilter, facts_of
from ..core.record.levels import EXACT, STRUCTURAL
from ..core.record.record import is_reserved
from ..home.index import Index, Row

LOOK_ROWS: Final = 2048
"""After so many rows a look yields: 5 ms of plain ones, 80 ms where a rule reads the records."""
PASSED_ROWS_MAX: Final = 10_000
"""A page ends early when it passed over so many rows that the peer has already."""

_CHUNK_ROWS: Final = 256
_FACTS_BYTES: Final = 4 * MIB
_INHERITED_MAX: Final = 16
_LANES_REMEMBERED: Final = 256
_STRETCHES_MAX: Final = 8
_NOTHING: Final = ""
"""The name of a list that is always empty: what is read of threads and namespaces that are not shared."""

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""Work that yields between its steps and returns its result."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What one pair may read now, and what it has already; `filters` are the present one and those before it."""

    shares: Mapping[str, Outbound]
    filters: tuple[PairFilter, ...]
    origins: frozenset[str]
    peer_did: str
    own_did: str
    floor: int = 0

    @property
    def filter(self) -> PairFilter:
        """The filter that holds now."""
        return self.filters[0]

    @property
    def plain(self) -> bool:
        """Whether all of it goes out as it is stored, and no verdict needs more than the row."""
        return not self.filter.reads_records and all(share.level == EXACT for share in self.shares.values())

    @property
    def tallied(self) -> bool:
        """Whether the index counts it."""
        return not self.floor and not self.filter.reads_records

    def key(self, ns: str) -> str:
        """Return the key of the lane of a namespace that is shared."""
        return lane_key(ns, self.shares[ns].level, self.filter.digest)

    def admits(self, row: Row) -> bool:
        """Tell whether the pair may have the row, as far as the row tells.

        That is all, unless `filter.reads_records`: then the filter must admit the record's facts, too.
        """
        return (
            row.kind == "rec"
            and row.ns in self.shares
            and row.seq > self.floor
            and (self.filter.relay or row.voucher == self.own_did)
        )

    def counts(self, row: Row) -> bool:
        """Tell whether an admitted row is one that the peer does not have by its own doing."""
        return row.origin not in self.origins and row.voucher != self.peer_did


class EmptyRanges:
    """Stretches of one pair's lanes that were looked at and hold nothing that the pair may know of.

    In memory and bounded: what is forgotten is looked at again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[tuple[int, int], ...]] = {}

    def beyond(self, key: str, place: int) -> int:
        """Return the place up to which nothing follows this one on the lane, this one where that is not known."""
        return max((high for low, high in self._held.get(key, ()) if low <= place <= high), default=place)

    def note(self, key: str, low: int, high: int) -> None:
        """Take note that nothing lies after `low` up to `high`."""
        if low >= high:
            return
        with self._lock:
            held = self._held.pop(key, ())
            rest = [each for each in held if each[1] < low or each[0] > high]
            joined = [(low, high), *(each for each in held if each not in rest)]
            merged = min(each[0] for each in joined), max(each[1] for each in joined)
            self._held[key] = (*rest, merged)[-_STRETCHES_MAX:]
            if len(self._held) > _LANES_REMEMBERED:
                del self._held[next(iter(self._held))]


@dataclass(frozen=True, slots=True)
class LogView:
    """One look at the log for one pair: nothing after `last_seq` is taken, for the scope may not know of it.

    `whole`: leave out nothing, not even what the pair itself delivered.
    """

    index: Index
    payloads: Callable[[Sequence[Row]], list[bytes]]
    scope: Scope
    last_seq: int
    blanks: EmptyRanges = field(default_factory=EmptyRanges, compare=False)
    whole: bool = False

    def after(self, name: str, place: int, limit: int) -> list[Row]:
        """Return the next rows of a list; fewer than `limit` do not mean its end where a filter reads the records."""
        rows = self.index.after(name, place, limit)
        while rows and rows[-1].seq > self.last_seq:
            rows.pop()
        return within(rows, _FACTS_BYTES) if self.scope.filter.reads_records else rows

    def fitting(self, rows: Sequence[Row], bytes_max: int) -> list[Row]:
        """Return the first rows that fit as they go out, at least one where there is one.

        A projection counts as long as what it shows: where a page ends must not tell how long the hidden part is.
        """
        if sum(row.length + levels.REST_BYTES for row in rows) <= bytes_max:
            return list(rows)
        return within(rows, bytes_max, self._bytes_out)

    def _bytes_out(self, row: Row) -> int:
        level = self.scope.shares[row.ns].level
        if level == EXACT:
            return row.length
        try:
            return levels.shown_bytes(json.loads(self.payloads([row])[0])["record"], level)
        except (ValueError, KeyError, TypeError):
            return levels.REST_BYTES  # damaged on the disk meanwhile

    def judged(
        self, rows: Sequence[Row], covers: Sequence[tuple[PairFilter, int]] = ()
    ) -> Iterator[tuple[Row, bool, bool]]:
        """Yield each row with whether the pair may have it, and whether one of `covers` gave it already."""
        scope, own = self.scope, self.scope.own_did
        covers = [each for each in covers if rows and each[1] >= rows[0].seq]
        reads = scope.filter.reads_records or any(each.reads_records for each, _ in covers)
        if not reads and not covers:
            yield from ((row, scope.admits(row), False) for row in rows)
            return
        stored = iter(self.payloads([row for row in rows if scope.admits(row)]) if reads else ())
        for row in rows:
            if not scope.admits(row):
                yield row, False, False
                continue
            relayed, facts = row.voucher != own, _facts(row, next(stored)) if reads else {}
            if facts is None or not scope.filter.admits(facts, relayed):
                yield row, False, False
                continue
            yield row, True, any(row.seq <= upto and each.admits(facts, relayed) for each, upto in covers)


@dataclass(slots=True)
class LaneScan:
    """One lane while a page is made: list of the index, place in it, and rows found but not yet taken.

    `covers`: filters of earlier lanes, and up to where those gave what they admit.
    """

    key: str
    name: str
    position: int
    count: int
    covers: tuple[tuple[PairFilter, int], ...] = ()
    found: list[tuple[Row, int]] = field(default_factory=list)
    """Rows to give, each with the count up to it."""
    place: int = field(init=False)
    spot: int = field(init=False)
    tally: int = field(init=False)
    """Looked at up to `place`; `spot`: the last row up to there that the pair may know of; `tally`: the count there."""
    ended: bool = False
    passed: int = 0
    """The list has no more rows; so many that the peer has already were passed over."""

    def __post_init__(self) -> None:
        self.place = self.spot = self.position
        self.tally = self.count

    @property
    def goes_on(self) -> bool:
        """Whether looking on may find more."""
        return not self.ended and self.passed < PASSED_ROWS_MAX

    def lane(self) -> Lane:
        """Return the lane as a cursor holds it."""
        return Lane(self.key, self.position, self.count)


def scope_of(pair: Pair, shares: Iterable[Outbound], pairs: Mapping[str, Pair], own_did: str) -> Scope:
    """Return what the pair may read of these shares.

    What a pair that this one superseded had delivered counts as delivered by this one.
    """
    origins, older = {pair.pair_id}, pair.inherits
    while older and older not in origins and len(origins) < _INHERITED_MAX:
        origins.add(older)
        before = pairs.get(older)
        older = before.inherits if before is not None else ""
    floor = pair.start_seq if pair.start == "present" else 0
    # A cursor holds so many lanes; a namespace beyond would begin again with each page.
    chosen = {share.ns: share for share in [*shares][:LANES_MAX]}
    return Scope(chosen, pair.filters, frozenset(origins), pair.peer_did, own_did, floor)


def head(index: Index, scope: Scope) -> int:
    """Return how many records a pair whose scope is `tallied` is offered, without looking at any."""
    return sum(_head_of(index, scope, ns) for ns in scope.shares)


def lanes_through(look: LogView, known: Mapping[str, Lane], thread: str = "", alone: bool = False) -> list[LaneScan]:
    """Return the lanes of a reading at their known places; a lane that is new begins at the pair's start.

    With `thread` there is one lane, through that thread.  `alone` gives keys of their own, so that a reading narrowed
    to a namespace never passes for the pair's position.  Where nothing is shared there is one empty lane.
    """
    scope, digest = look.scope, look.scope.filter.digest
    lanes: list[tuple[str, str, str]]
    if thread:
        names = ",".join(f"{ns}:{scope.shares[ns].level}" for ns in sorted(scope.shares))
        lanes = [(lane_key(names, rule=f"thread:{digest}:{thread}"), f"t:{thread}", _NOTHING)]
    elif alone:
        lanes = [(lane_key(ns, share.level, f"alone:{digest}"), f"n:{ns}", "") for ns, share in scope.shares.items()]
    else:
        lanes = [(scope.key(ns), f"n:{ns}", ns) for ns in sorted(scope.shares)]
    if not lanes or is_reserved(thread):
        lanes = [(lane_key(_NOTHING, rule=f"nothing:{digest}"), _NOTHING, "")]
    readings = []
    for key, name, ns in lanes:
        lane = known.get(key) or Lane(key, scope.floor)
        readings.append(LaneScan(key, name, lane.position, lane.count, _covers(scope, ns, lane, known) if ns else ()))
    return readings


def collect(look: LogView, readings: Sequence[LaneScan], limit: int, bytes_max: int) -> Steps[tuple[list[Row], bool]]:
    """Return the next page's rows in order of arrival and whether there are more; the lanes move to where it ends.

    Each lane gets its share, so that one far behind does not hold up the others; what one leaves over they may have.
    There is more when a row is left over, or rows that the peer has already ended the look early.
    """
    _begin(readings)
    while (left := limit - _found(readings)) > 0 and (behind := [each for each in readings if each.goes_on]):
        share = max(1, left // len(behind))
        for reading in behind:
            yield from _hunt(look, reading, len(reading.found) + share)
    for reading in readings:
        # One row beyond the page tells whether there are more; rows that are hidden must not.
        if reading.goes_on and _found(readings) <= limit:
            yield from _hunt(look, reading, len(reading.found) + 1)
    in_turn = chain.from_iterable(zip_longest(*([row for row, _ in reading.found] for reading in readings)))
    turns = [row for row in in_turn if row is not None]
    rows = sorted(look.fitting(turns[:limit], bytes_max), key=lambda row: row.seq)
    taken = {row.seq for row in rows}
    for reading in readings:
        _settle(reading, taken)
    return rows, len(rows) < len(turns) or any(reading.passed >= PASSED_ROWS_MAX for reading in readings)


def has_news(look: LogView, readings: Iterable[LaneScan]) -> Steps[bool]:
    """Tell whether any lane has a record to give; what it passes over it does not look at again."""
    for reading in readings:
        _begin([reading])
        while not reading.found and not reading.ended:
            reading.passed = 0
            yield from _hunt(look, reading, 1)
        if reading.found:
            return True
    return False


def find(look: LogView, ids: Iterable[str]) -> list[Row]:
    """Return the rows of those ids that the pair may have, in order of arrival.

    Records that are shared below L1 cannot be found: the peer knows no id of theirs.
    """
    rows = [row for id_ in ids if (row := look.index.find(id_)) is not None and look.scope.admits(row)]
    named = [row for row in rows if look.scope.shares[row.ns].level <= STRUCTURAL and row.seq <= look.last_seq]
    listed = sorted((row for row in named if _is_listed(look.index, row)), key=lambda row: row.seq)
    return [row for row, visible, _ in look.judged(listed) if visible]


def offered(look: LogView, ns: str, place: int = 0) -> Iterator[list[Row]]:
    """Yield, a part at a time and in order of arrival, all that the pair may have of one shared namespace.

    What the peer has by its own doing is included: it is for comparing what both sides hold.
    """
    place = max(place, look.scope.floor)
    while rows := look.after(f"n:{ns}", place, LOOK_ROWS):
        yield [row for row, visible, _ in look.judged(rows) if visible]
        place = rows[-1].seq


def within(rows: Sequence[Row], bytes_max: int, size: Callable[[Row], int] = lambda row: row.length) -> list[Row]:
    """Return the first rows that fit by their sizes, as stored or as given, at least one where there is one."""
    total, kept = 0, list[Row]()
    for row in rows:
        total += size(row) + 1
        if kept and total > bytes_max:
            break
        kept.append(row)
    return kept


def _covers(scope: Scope, ns: str, lane: Lane, known: Mapping[str, Lane]) -> tuple[tuple[PairFilter, int], ...]:
    """Return the filters of earlier lanes that gave rows beyond this lane's place, at its level or more fully."""
    if len(known) < 2 and lane.key in known:
        return ()
    found = []
    for each in scope.filters:
        keys = (lane_key(ns, level, each.digest) for level in range(scope.shares[ns].level + 1))
        upto = max((known[key].position for key in keys if key in known and key != lane.key), default=0)
        if upto > lane.position:
            found.append((each, upto))
    return tuple(found)


def _begin(readings: Iterable[LaneScan]) -> None:
    for reading in readings:
        reading.ended, reading.passed = False, 0


def _found(readings: Iterable[LaneScan]) -> int:
    return sum(len(reading.found) for reading in readings)


def _hunt(look: LogView, reading: LaneScan, goal: int) -> Steps[None]:
    """Look on along a lane until it has `goal` rows, its list ends, or it passed over enough that the peer has.

    Rows that the filter hides are passed over without end: stopping among them would show that they are there.
    """
    looked, size = 0, goal - len(reading.found)
    while len(reading.found) < goal and reading.goes_on:
        reading.place = look.blanks.beyond(reading.key, reading.place)
        rows = look.after(reading.name, reading.place, size)
        for row, visible, covered in look.judged(rows, reading.covers):
            reading.place = row.seq
            if not visible:
                continue
            reading.spot = row.seq
            counts = look.scope.counts(row)
            reading.tally += counts
            if covered or not (counts or look.whole):
                reading.passed += 1
            else:
                reading.found.append((row, reading.tally))
            if len(reading.found) == goal or not reading.goes_on:
                break
        if not rows:
            reading.ended, reading.place = True, max(reading.place, look.last_seq)
        look.blanks.note(reading.key, reading.spot, reading.place)
        looked, size = looked + len(rows), max(goal - len(reading.found), _CHUNK_ROWS)
        if looked >= LOOK_ROWS:
            looked = 0
            yield


def _settle(reading: LaneScan, taken: set[int]) -> None:
    """Move a lane to where the page leaves it; rows that found no room are read again."""
    mine = [(row.seq, count) for row, count in reading.found if row.seq in taken]
    if len(mine) == len(reading.found):
        reading.position, reading.count = reading.spot, reading.tally
    elif mine:
        reading.position, reading.count = mine[-1]


def _facts(row: Row, payload: bytes) -> dict[str, str] | None:
    """Return the facts of a stored record; None for one that the disk has damaged meanwhile: it is not given."""
    try:
        return facts_of(json.loads(payload)["record"], row.ns, row.voucher)
    except (ValueError, KeyError, TypeError):
        return None


def _head_of(index: Index, scope: Scope, ns: str) -> int:
    """Return how many records of a namespace the pair is offered, without looking at any."""
    if not scope.filter.relay:
        own = scope.own_did
        return index.tally(f"v:{ns}:{own}") - sum(index.tally(f"ov:{ns}:{pair}:{own}") for pair in scope.origins)
    peer = scope.peer_did
    had = index.tally(f"v:{ns}:{peer}") + sum(
        index.tally(f"o:{ns}:{pair}") - index.tally(f"ov:{ns}:{pair}:{peer}") for pair in scope.origins
    )
    return index.count(f"n:{ns}") - had


def _is_listed(index: Index, row: Row) -> bool:
    """Tell whether the row stands in its namespace's list: records of reserved threads stand in none."""
    found = index.after(f"n:{row.ns}", row.seq - 1, 1)
    return bool(found) and found[0].seq == row.seq


STEP_ROWS: Final = 4096


class Counts:
    """The counts of all pairs; in memory, so a restart counts again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, tuple[int, int]]] = {}
        """pair_id -> namespace and filter -> (looked up to, records found)."""
        self._told: dict[str, tuple[frozenset[str], int]] = {}
        """pair_id -> what was counted, and the last complete count of it."""

    def told(self, pair_id: str, look: LogView) -> int | None:
        """Return how many records the pair is offered, as of when that was last known; None before the first count."""
        found = self.head(pair_id, look)
        if found is not None:
            return found
        counted, total = self._told.get(pair_id, (None, 0))
        return total if counted == _keys(look) else None

    def head(self, pair_id: str, look: LogView) -> int | None:
        """Return how many records the pair is offered; None while that is still being counted."""
        if look.scope.tallied:
            return head(look.index, look.scope)
        held, total = self._held.get(pair_id, {}), 0
        for ns in look.scope.shares:
            place, count = held.get(_key(look, ns), (look.scope.floor, 0))
            last = look.index.last(f"n:{ns}")
            if last is not None and last.seq > place:
                return None
            total += count
        return total

    def advance(self, pair_id: str, look: LogView) -> bool:
        """Count on, at most STEP_ROWS rows; return whether the count is complete."""
        scope = look.scope
        if scope.tallied:
            return True
        with self._lock:
            before, left = self._held.get(pair_id, {}), STEP_ROWS
            held = {key: before.get(key, (scope.floor, 0)) for key in (_key(look, ns) for ns in scope.shares)}
            for ns in scope.shares:
                place, count = held[_key(look, ns)]
                while left > 0 and (rows := look.after(f"n:{ns}", place, min(left, LOOK_ROWS))):
                    count += sum(visible and scope.counts(row) for row, visible, _ in look.judged(rows))
                    place, left = rows[-1].seq, left - len(rows)
                held[_key(look, ns)] = place, count
            self._held = {**self._held, pair_id: held}
            if left > 0:
                self._told = {**self._told, pair_id: (_keys(look), sum(count for _, count in held.values()))}
        return left > 0


def _keys(look: LogView) -> frozenset[str]:
    return frozenset(_key(look, ns) for ns in look.scope.shares)


def _key(look: LogView, ns: str) -> str:
    return lane_key(ns, rule=look.scope.filter.digest)
