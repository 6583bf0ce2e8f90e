"""What a pair is offered: the rows of the log in its scope, how many there are, and lanes through them.

The scope is agreed namespaces, without what the pair delivered or the peer signed, from the pair's start on.  Pages,
waiting readers, batch fetches and the counts shown to people all go by it, so they cannot disagree, and nothing here
looks at a row outside of it but to pass it over.  Any thread may ask: the index answers without locks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Final

from .core.cursor import Lane, lane_key
from .core.pair import Pair
from .core.record import is_reserved
from .index import Index, Row

SCAN_ROWS_MAX: Final = 10_000
_CHUNK_ROWS: Final = 256
_INHERITED_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Scope:
    """What one pair may read now, and what it has already."""

    namespaces: frozenset[str]
    origins: frozenset[str]
    peer_did: str
    own_did: str
    relay: bool
    floor: int
    whole: bool = False

    def admits(self, row: Row) -> bool:
        """Tell whether the pair may have the row."""
        return (
            row.kind == "rec"
            and row.ns in self.namespaces
            and row.seq > self.floor
            and (self.relay or row.voucher == self.own_did)
        )

    def counts(self, row: Row) -> bool:
        """Tell whether an admitted row is one that the peer does not have by its own doing."""
        return row.origin not in self.origins and row.voucher != self.peer_did

    def wants(self, row: Row) -> bool:
        """Tell whether the row goes into this reading."""
        return self.admits(row) and (self.whole or self.counts(row))


@dataclass(slots=True)
class Reading:
    """One lane while a page is made: list of the index, place in it, and rows found but not yet taken."""

    key: str
    name: str
    position: int
    count: int
    rows: list[Row] = field(default_factory=list)
    end: int = 0
    more: bool = False

    def lane(self) -> Lane:
        """Return the lane as a cursor holds it."""
        return Lane(self.key, self.position, self.count)


def scope_of(pair: Pair, pairs: Mapping[str, Pair], own_did: str, namespace: str = "") -> Scope:
    """Return what the pair may read, of one namespace only where it is given.

    What a pair that this one superseded had delivered counts as delivered by this one.
    """
    origins, older = {pair.pair_id}, pair.inherits
    while older and older not in origins and len(origins) < _INHERITED_MAX:
        origins.add(older)
        before = pairs.get(older)
        older = before.inherits if before is not None else ""
    names = frozenset(pair.namespaces)
    floor = pair.start_seq if pair.start == "present" else 0
    return Scope(
        names & {namespace} if namespace else names, frozenset(origins), pair.peer_did, own_did, pair.relay, floor
    )


def head(index: Index, scope: Scope) -> int:
    """Return how many records the pair is offered, without looking at any."""
    return sum(_head_of(index, scope, ns) for ns in scope.namespaces)


def lanes_through(
    index: Index, scope: Scope, known: Mapping[str, Lane], thread: str = "", alone: bool = False
) -> list[Reading]:
    """Return the lanes of a reading at their known places; a lane that is new begins at the pair's start.

    With `thread` there is one lane, through that thread.  `alone` gives keys of their own, so that a reading narrowed
    to a namespace never passes for the pair's position.
    """
    if is_reserved(thread):
        names = []
    elif thread:
        names = [(lane_key(",".join(sorted(scope.namespaces)), rule=f"thread:{thread}"), f"t:{thread}")]
    else:
        names = [(lane_key(ns, rule="alone" if alone else ""), f"n:{ns}") for ns in sorted(scope.namespaces)]
    found = []
    for key, name in names:
        lane = known.get(key) or Lane(key, scope.floor, _count_before(index, scope, name))
        found.append(Reading(key, name, lane.position, lane.count))
    return found


def collect(
    index: Index, scope: Scope, readings: Sequence[Reading], limit: int, bytes_max: int
) -> tuple[list[Row], bool]:
    """Return the next page's rows in order of arrival and whether there are more; the lanes move to where it ends.

    Each lane gets its share, so that one far behind does not hold up the others; what one leaves over they may have.
    """
    behind = list(readings)
    while behind and (left := limit - sum(len(reading.rows) for reading in readings)) > 0:
        share = max(1, left // len(behind))
        behind = [reading for reading in behind if _advance(index, scope, reading, share)]
    in_turn = chain.from_iterable(zip_longest(*(reading.rows for reading in readings)))
    turns = [row for row in in_turn if row is not None]
    rows = sorted(within(turns[:limit], bytes_max), key=lambda row: row.seq)
    for reading in readings:
        _settle(scope, reading, rows)
    return rows, len(rows) < len(turns) or any(reading.more for reading in readings)


def has_news(index: Index, scope: Scope, readings: Iterable[Reading]) -> bool:
    """Tell whether any lane has a record to give; what it passes over it does not look at again."""
    for reading in readings:
        _advance(index, scope, reading, 1)
    return any(reading.rows for reading in readings)


def find(index: Index, scope: Scope, ids: Iterable[str]) -> list[Row]:
    """Return the rows of those ids that the pair may have, in order of arrival."""
    found = [row for id_ in ids if (row := index.find(id_)) is not None and scope.admits(row)]
    return sorted((row for row in found if _is_listed(index, row)), key=lambda row: row.seq)


def within(rows: Sequence[Row], bytes_max: int) -> list[Row]:
    """Return the first rows that fit, at least one where there is one."""
    total, kept = 0, list[Row]()
    for row in rows:
        total += row.length + 1
        if kept and total > bytes_max:
            break
        kept.append(row)
    return kept


def _advance(index: Index, scope: Scope, reading: Reading, want: int) -> bool:
    """Find up to `want` more rows of a lane, passing over what the reading leaves out; True if it can go on."""
    scanned = found = 0
    place = max(reading.end, reading.position)
    reading.more = False
    while scanned < SCAN_ROWS_MAX:
        chunk = index.after(reading.name, place, want if not scanned else max(want - found, _CHUNK_ROWS))
        if not chunk:
            reading.end = place
            return False
        for row in chunk:
            if found == want:
                break
            place = row.seq
            if scope.wants(row):
                reading.rows.append(row)
                found += 1
        if found == want:
            break
        scanned += len(chunk)
    reading.end = place
    reading.more = bool(index.after(reading.name, place, 1))
    return reading.more and found == want


def _settle(scope: Scope, reading: Reading, page_rows: Sequence[Row]) -> None:
    """Move a lane to where the page leaves it; rows that found no room are read again."""
    taken = {row.seq for row in page_rows}
    mine = [row for row in reading.rows if row.seq in taken]
    reading.count += sum(scope.counts(row) for row in mine)
    if len(mine) == len(reading.rows):
        reading.position = max(reading.end, reading.position)
    elif mine:
        reading.position = mine[-1].seq


def _count_before(index: Index, scope: Scope, name: str) -> int:
    """Return how many records in scope a lane that starts in the present passes over: all, less what came since.

    So `clock` stays comparable to `head`, which counts all in O(1).
    """
    if not scope.floor or not name.startswith("n:"):
        return 0
    since, position = 0, scope.floor
    while rows := index.after(name, position, SCAN_ROWS_MAX):
        since += sum(scope.admits(row) and scope.counts(row) for row in rows)
        position = rows[-1].seq
    return max(0, _head_of(index, scope, name[2:]) - since)


def _head_of(index: Index, scope: Scope, ns: str) -> int:
    """Return how many records of a namespace the pair is offered, without looking at any."""
    if not scope.relay:
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
