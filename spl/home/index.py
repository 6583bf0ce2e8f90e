"""The disposable index over the log: where each line is, and which lines belong to which list.

A list holds seqs in order of arrival, a tally counts; `tables/lists.py` names them.  A projection is found by pair,
level and id, since no list of records and no record id leads to one.

The newest lines stand in memory (`Memory`), all others in immutable tables (`tables/`).  After any crash those that are
whole cover the log up to some line, and only what follows is read again; what is not whole is dropped.  So there is no
journal, and nothing is synced.  Rejected: SQLite, at 29-45 us a row with random ids once there are a million.

Names are kept as keyed 8-byte hashes, because a name may be long and comes from outside (the salt is drawn here); ids
by their first 8 bytes and checked against the log.  One writer adds; queries run in any thread without a lock, on one
`state` each.  Only durable lines may be added, or a query would show what a crash takes back.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from struct import error as StructError
from typing import Final
from zlib import crc32

from ..core.record.record import is_id
from .disk import Disk
from .segments import PROJECTION, RUN_START, Entry, Line, LineError, Place, entry_of, parse
from .tables.adding import Adder, clock_key, key_of
from .tables.compaction import Compaction, IndexState, IndexStats, may_have, newest_of, rows_of, values_of
from .tables.lists import (
    LineFacts,
    all_of,
    by_thread_in,
    clock_name,
    facts_name,
    lists,
    projection_name,
)
from .tables.rows import HOLE, MARK, NO_START, ROW, PayloadReader
from .tables.rows import Row as Row
from .tables.sstable import KEY_BYTES, NEXT_PREFIX, load

CLOCK_MAX: Final = 2**63 - 1  # what a row holds
MEMORY_ROWS: Final = 4096

_CACHE_FACTS: Final = 2048
_SAME_ID_PAGE: Final = 16
_SAME_ID_MAX: Final = 4096  # lines tried for one id: its copies and alternates in all namespaces, and equal beginnings
_WINDOW_ROWS: Final = 64
_NAMES_PAGE: Final = 512
_ID_AT: Final = len('{"id":"')
_ID_END: Final = _ID_AT + 64

Added = tuple[int, Place | None, Entry | None]  # seq and its line, or None twice for a damaged one


class Index:
    """Answers from tables and memory.  `covered` is the last seq added, `run` the running hash there."""

    def __init__(
        self, folder: Path, disk: Disk, epoch: str, read: Callable[[int, int, int], bytes],
        random_bytes: Callable[[int], bytes], memory_rows: int = MEMORY_ROWS, *, replaces: bool = False,
    ) -> None:  # fmt: skip
        """Open what is whole of an index, or begin a new one; `read(segment, offset, size)` gives bytes of the log.

        `replaces` begins one beside another in the same folder, which it does not touch until it takes its place.
        """
        self.reader: Final = PayloadReader(read)
        """The one way from a row to the bytes of its payload."""
        self._read = read
        self._facts: dict[int, LineFacts] = {}
        disk.mkdir(folder)
        tables = [] if replaces else load(disk, folder, ROW.size, epoch)
        self._salt = bytes.fromhex(tables[0].span.salt) if tables else random_bytes(16)
        self._tables = Compaction(
            folder, disk, epoch=epoch, salt=self._salt, row_bytes=ROW.size, memory_rows=memory_rows,
            prefix=NEXT_PREFIX if replaces else "",
        )  # fmt: skip
        self._tables.begin(tuple(tables))
        self._adder = Adder(self._tables, self._salt)
        self._reset()

    # -- changes: the writer's thread only

    def drop_newest(self) -> None:
        """Forget the newest table, because the log does not agree with it."""
        self._tables.drop_newest()
        self._reset()

    def add(self, batch: Sequence[Added], run: str) -> None:
        """Take the next lines, seqs dense; `run` is the running hash after the last of them.

        A table that cannot be written is tried again later; `stats` says why.  The log is not concerned.
        """
        memory = self._tables.state[1]
        for seq, place, entry in batch:
            if place is None or entry is None:
                memory.rows += HOLE
            else:
                rows = len(memory.rows)
                try:
                    self._adder.add(memory, seq, place, entry)
                except LineError:  # what the disk cannot read of the index is in the one that is built next, as this is
                    memory.rows += HOLE[len(memory.rows) - rows :]
                    self.reader.leave_out(seq)
            self.covered = seq
        self.run = run
        self._tables.advance(self.covered, run, len(batch))

    def close(self) -> None:
        """Write what is in memory, so that the next opening need not read the log."""
        self._tables.close(self.covered, self.run)

    def replace(self, other: "Index") -> None:
        """Take the place of another index on the disk, once this one, begun with `replaces`, covers the same log.

        Readers may go on with the other.  Raises OSError; then the other stays the one to use.
        """
        self._tables.replace(other._tables)

    def discard(self) -> None:
        """Remove the files of an index that was begun with `replaces` and did not take the other's place."""
        self._tables.discard()

    # -- queries: any thread

    @property
    def doubted(self) -> bool:
        """Whether the index did not agree with the log or could not be read, so that it should be built again."""
        return self.reader.doubted or any(table.unread for table in self._tables.state[0])

    def place(self, seq: int) -> Place | None:
        """Return where a line stands, as soon as a key leads to it; None when it is damaged or not there."""
        found = self._place(seq)
        return found[0] if found else None

    def leads_to(self, seq: int, place: Place, payload: bytes) -> bool:
        """Return whether the row of a line is that of this place and payload."""
        return self._place(seq) == (place, crc32(payload))

    def _place(self, seq: int) -> tuple[Place, int] | None:
        """Return where a line stands, with the CRC-32 of its payload."""
        raw = b"" if seq in self.reader.left_out else rows_of(self._tables.state, seq, 1)
        segment, offset, head, length, _, _, _, crc = ROW.unpack(raw if len(raw) == ROW.size else HOLE)
        return (Place(segment, offset, head, length), crc) if head else None

    def line(self, seq: int) -> Line:
        """Return one line.  Raises LineError "not-found", or "store-damaged" for one that is not served."""
        found = self._place(seq)
        if found is None:
            if 0 < seq <= self.covered:
                raise LineError("store-damaged", f"line {seq} is damaged")
            raise LineError("not-found", f"there is no line {seq}")
        place, crc = found
        try:
            raw = self._read(place.segment, place.offset, place.end - place.offset)
            line = parse(raw[:-1])
            if line.seq != seq or crc32(line.payload) != crc or not raw.endswith(b"\n"):
                raise LineError("store-damaged", f"line {seq} is damaged")
        except LineError as exc:
            if exc.code == "store-damaged":
                self.reader.leave_out(seq)
            raise
        return line

    def find(self, record_id: str, ns: str) -> Row | None:
        """Return the record with this id in a namespace ("": those that are in none, as of reserved threads)."""
        # Of most ids that are asked for there is nothing, and the filters of the tables show it at once.
        if not is_id(record_id) or not may_have(self._tables.state, bytes.fromhex(record_id[: 2 * KEY_BYTES])):
            return None
        return next((row for row, _ in self._same_id(record_id) if row.kind == "rec" and row.ns == ns), None)

    def copies(self, record_id: str, namespaces: Collection[str] = ()) -> Iterator[Row]:
        """Yield the record with this id in each namespace that holds it, or of these namespaces, by arrival."""
        return (row for row, _ in self.stored(record_id if is_id(record_id) else "", namespaces))

    def stored(self, record_id: str, namespaces: Collection[str] = ()) -> Iterator[tuple[Row, bytes]]:
        """Yield the same rows as `copies`, each with its envelope; also by the first 16 or more characters of an id."""
        return (found for found in self._same_id(record_id, namespaces) if found[0].kind == "rec")

    def alternates(self, record_id: str, ns: str) -> list[Row]:
        """Return the other envelopes of a record in a namespace (kind alt), by arrival."""
        return [row for row, _ in self._same_id(record_id) if row.kind == "alt" and row.ns == ns]

    def has_projection(self, pair: str, level: str, name: str) -> bool:
        """Return whether the peer of a pair showed us this projection; `name` is its id, a record's or a pseudonym."""
        state = self._tables.state
        rows = self._rows(state, values_of(state, self._hash(projection_name(pair, level, name)), 0, _NAMES_PAGE))
        return any(row.kind == PROJECTION and row.origin == pair and self._payload_of(row, name) for row in rows)

    def after(self, name: str, seq: int, limit: int) -> list[Row]:
        """Return up to `limit` rows of a list with a higher seq, ascending.

        Tables that end at or before `seq` are not touched; each other one costs a binary search (about 10 us).
        """
        state = self._tables.state
        return list(self._rows(state, values_of(state, self._hash(name), max(seq, 0) + 1, limit)))

    def after_any(self, names: Iterable[str], seq: int, limit: int) -> list[Row]:
        """Return up to `limit` rows with a higher seq of any of these lists, which share no row, ascending."""
        state = self._tables.state
        return list(self._rows(state, self._merged(state, names, max(seq, 0) + 1, limit)))

    def before_any(self, names: Iterable[str], seq: int, limit: int) -> list[Row]:
        """Return the newest `limit` rows with a lower seq of any of these lists, which share no row, ascending."""
        state, found = self._tables.state, list[int]()
        for name in names:
            found = sorted([*found, *newest_of(state, self._hash(name), seq, limit)])[-limit:]
        return list(self._rows(state, found))

    def rows(self, seqs: Sequence[int]) -> list[Row]:
        """Return the rows of ascending seqs, without those of damaged lines."""
        return list(self._rows(self._tables.state, seqs))

    def last(self, name: str) -> Row | None:
        """Return the newest row of a list."""
        state = self._tables.state
        key = self._hash(name)
        values = state[1].values(key)
        seq = values[-1] if values else next(filter(None, (table.last(key) for table in reversed(state[0]))), None)
        return None if seq is None else next(self._rows(state, [seq]), None)

    def count(self, name: str) -> int:
        """Return how many rows a list has."""
        tables, memory = self._tables.state
        key = self._hash(name)
        return sum(table.count(key) for table in tables) + len(memory.values(key))

    def names(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` names of lists that start with `prefix`, in order of their first line.

        `prefix` begins with THREADS or its like; `after` is the last name of the page before, and a name that is
        not there ends the listing.  Cost: one line read for each name of the letter.
        """
        state, found = self._tables.state, list[str]()
        seq = self._first(state, [after]) if after else 0
        while seq is not None and len(found) < limit:
            page = self._merged(state, [all_of(prefix)], seq + 1, _NAMES_PAGE)
            for entry in filter(None, map(self._entry, page)):
                found += [name for name in lists(entry) if name.startswith(prefix)]
            seq = page[-1] if page else None
        return found[:limit]

    def threads_in(self, namespaces: Collection[str], after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` threads that have records in one of these namespaces, in order of the first of those.

        `after` as in `names`.  Nothing that other namespaces hold is read.
        """
        state, found = self._tables.state, list[str]()
        every = [all_of(by_thread_in(ns, "")) for ns in namespaces]
        seq = self._first(state, [by_thread_in(ns, after) for ns in namespaces]) if after else 0
        while seq is not None and len(found) < limit:
            page = self._merged(state, every, seq + 1, limit)
            for first, entry in zip(page, map(self._entry, page), strict=True):
                # A thread of several namespaces is named once, at the first of its records.
                names = [by_thread_in(ns, entry.thread) for ns in namespaces] if entry else []
                if entry and self._first(state, names) == first:
                    found.append(entry.thread)
            seq = page[-1] if page else None
        return found[:limit]

    def tally(self, name: str) -> int:
        """Return a tally; 0 if it never counted."""
        tables, memory = self._tables.state
        key = self._hash("#" + name)
        return sum(sum(table.values(key, 0, table.shape.rows)) for table in tables) + memory.tallies.get(key, 0)

    def taken(self, ns: str, actor: str, thread: str, clock: int) -> Row | None:
        """Return the record of our own that has this clock in a namespace."""
        state = self._tables.state
        key = clock_key(self._hash(clock_name(ns, actor, thread)), clock)
        rows = self._rows(state, values_of(state, key, 0, _NAMES_PAGE))
        return next((row for row in rows if row.own and row.clock == clock), None)

    def clock_next(self, ns: str, actor: str, thread: str) -> int | None:
        """Return the clock after the highest of our own records; 0 when there is none, None at the end of clocks."""
        tables, memory = self._tables.state
        key = self._hash(clock_name(ns, actor, thread))
        clocks = [clock for table in tables if (clock := table.last(key)) is not None]
        clock = max([*clocks, *memory.values(key)], default=-1)
        return clock + 1 if clock < CLOCK_MAX else None

    def marks(self, seq: int, count: int) -> list[tuple[int, bytes]]:
        """Return (number of its facts, start of its id) of the lines from `seq` on: at least one, at most `count`.

        Only records of n: lists and projections show an id; the start of any other line is NO_START.  0.1 us a line.
        """
        found = list(MARK.iter_unpack(rows_of(self._tables.state, seq, count)))
        for lost in self.reader.left_out & set(range(seq, seq + len(found))) if self.reader.left_out else ():
            found[lost - seq] = 0, NO_START
        return found

    def facts(self, number: int, seq: int) -> LineFacts | None:
        """Return the facts with this number, which the line `seq` has; None when they cannot be read."""
        return self._facts.get(number) or self._facts_of(number, seq)

    def starting(self, start: bytes) -> list[tuple[Row, str]]:
        """Return the records, with their ids, whose id begins with these bytes, at least 8."""
        state, found = self._tables.state, list[tuple[Row, str]]()
        for row in self._rows(state, values_of(state, start[:KEY_BYTES], 0, _NAMES_PAGE)):
            id_ = (self.reader.one(row) or b"")[_ID_AT:_ID_END].decode(errors="replace")
            if row.kind == "rec" and id_.startswith(start.hex()):
                found.append((row, id_))
        return found

    def stats(self) -> IndexStats:
        """Return how large the index is, and why the last table could not be written."""
        return self._tables.stats()

    def _hash(self, name: str) -> bytes:
        return key_of(name, self._salt)

    def _reset(self) -> None:
        tables = self._tables.state[0]
        self.covered = tables[-1].span.last if tables else 0
        self.run = tables[-1].span.run if tables else RUN_START
        self._facts.clear()
        self._adder.forget()
        self.reader.begin()

    # -- reading

    def _rows(self, state: IndexState, seqs: Sequence[int]) -> Iterator[Row]:
        """Yield the rows of ascending seqs, reading neighbours together."""
        start, raw = 0, b""
        for i, seq in enumerate(seqs):
            at = (seq - start) * ROW.size
            if not start or at >= len(raw):
                near = bisect_right(seqs, seq + _WINDOW_ROWS - 1, i)
                start, raw, at = seq, rows_of(state, seq, seqs[near - 1] + 1 - seq), 0
            try:
                segment, offset, head, length, source, clock, _, crc = ROW.unpack_from(raw, at)
            except StructError:  # a list leads behind the last line
                self.reader.doubted = True
                continue
            facts = self.facts(source, seq) if head and seq not in self.reader.left_out else None
            if facts:
                kind, ns, origin, voucher, own = facts
                yield Row(seq, kind, segment, offset + head, length, ns, origin, voucher, own, clock, crc)

    def _merged(self, state: IndexState, names: Iterable[str], low: int, limit: int) -> list[int]:
        """Return up to `limit` seqs from `low` on that one of these lists has, ascending."""
        found: list[int] = []
        for name in names:
            found = sorted([*found, *values_of(state, self._hash(name), low, limit)])[:limit]
        return found

    def _first(self, state: IndexState, names: Iterable[str]) -> int | None:
        """Return the first seq of these lists."""
        return next(iter(self._merged(state, names, 0, 1)), None)

    def _facts_of(self, source: int, seq: int) -> LineFacts | None:
        """Return the facts of a line, read from the first line that had them, or from itself if that is damaged.

        They stand outside of the payload, so its CRC does not cover them: facts that a flipped bit made lead to
        another first line than this, and are not those of these rows.
        """
        state = self._tables.state
        for entry in filter(None, map(self._entry, (source, seq))):
            facts = (entry.kind, entry.ns, entry.origin, entry.voucher, entry.own)
            if values_of(state, self._hash(facts_name(facts)), 0, 1) == [source]:
                if len(self._facts) >= _CACHE_FACTS:
                    self._facts.clear()
                self._facts[source] = facts
                return facts
        self.reader.doubted = True
        return None

    def _entry(self, seq: int) -> Entry | None:
        """Return what was appended as a line; None if it is damaged or not there.  Raises LineError "overloaded"."""
        try:
            return entry_of(self.line(seq))
        except LineError as exc:
            if exc.code == "overloaded":
                raise
            return None

    def _same_id(self, record_id: str, namespaces: Collection[str] = ()) -> Iterator[tuple[Row, bytes]]:
        if len(record_id) < 2 * KEY_BYTES or not is_id(record_id.ljust(64, "0")):
            return
        key = bytes.fromhex(record_id[: 2 * KEY_BYTES])
        state, low = self._tables.state, 0
        for _ in range(_SAME_ID_MAX // _SAME_ID_PAGE):
            seqs = values_of(state, key, low, _SAME_ID_PAGE)
            for row in self._rows(state, seqs):
                if (not namespaces or row.ns in namespaces) and (payload := self._payload_of(row, record_id)):
                    yield row, payload
            if len(seqs) < _SAME_ID_PAGE:
                return
            low = seqs[-1] + 1

    def _payload_of(self, row: Row, id_: str) -> bytes:
        """Return a row's payload, an envelope or a projection, if its id begins so and it is sound, else nothing."""
        payload = self.reader.one(row)
        return payload if payload is not None and payload[_ID_AT:_ID_END].startswith(id_.encode()) else b""
