"""The disposable index over the log: where each line is, and which lines belong to which list.

`index_names.py` names the lists and tallies: a list holds seqs in order of arrival, a tally counts.  `is_shown` finds a
projection by pair, level and id, since no list of records and no record id leads to one.

The newest lines stand in memory (`Memory`); every few thousand go into an immutable table (`sstable.py`), and four
neighbouring tables of a size class are merged into one, a little with each commit, so that no commit waits for it.
After any crash the tables that are whole cover the log up to some line, and only what follows is read again; what
is not whole is dropped.  So this file has no journal and syncs nothing.

Names are kept as keyed 8-byte hashes (the salt is drawn here), ids by their first 8 bytes and checked against the
log.  One writer adds; queries run in any thread without a lock, because tables never change, `Memory` only grows,
and (tables, memory) is replaced as one tuple.  Only durable lines may be added.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import Final

from .disk import Disk
from .index_names import clock_name, has_start, is_offered, lists, shown_name, tallies
from .segments import ENVELOPE_KINDS, PROJECTION, RUN_START, Entry, Line, LineError, Place, entry_of, parse
from .sstable import KEY_BYTES, NEXT_PREFIX, Memory, Span, Table, TableWriter, load, merge

CLOCK_MAX: Final = 2**63 - 1
MEMORY_ROWS: Final = 4096

# segment, offset of the line in it, bytes before the payload, bytes of the payload, seq of the facts, clock, id's start
_ROW: Final = Struct(">QIIIQQ16s")
_MARK: Final = Struct(">20xQ8x16s")
_HOLE: Final = bytes(_ROW.size)
NO_START: Final = bytes(16)
_MERGE_TABLES: Final = 4  # with 8, merging costs a third less and looking up an unknown id twice as much
_MERGE_ENTRIES: Final = 16  # merged for each line added and each size class; a line has at most 8 entries
_CACHE_NAMES: Final = 8192
_CACHE_FACTS: Final = 2048
_SAME_ID_MAX: Final = 64  # lines tried for one id in each table: its alternates, and ids that share 8 bytes
_WINDOW_ROWS: Final = 64
_NAMES_PAGE: Final = 512
_ODD: Final = 0x9E3779B97F4A7C15
_ID_AT: Final = len('{"id":"')
_ALL_LISTS: Final = "names:"


@dataclass(frozen=True, slots=True)
class Row:
    """One line as the index knows it; `offset` and `length` are the payload's, `segment` is the segment's first seq."""

    seq: int
    kind: str
    segment: int
    offset: int
    length: int
    ns: str
    origin: str
    voucher: str
    own: bool
    clock: int


Facts = tuple[str, str, str, str, bool]  # kind, ns, origin, voucher, own: few combinations, many rows
Added = tuple[int, Place | None, Entry | None]  # seq and its line, or None twice for a damaged one


@dataclass(slots=True)
class _Merge:
    """A merge under way; `credit` is how many entries it may still take now."""

    sources: tuple[Table, ...]
    writer: TableWriter
    steps: Iterator[int]
    credit: int = 0


class Index:
    """Answers from tables and memory.  `covered` is the last seq added, `run` the running hash there."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        epoch: str,
        read: Callable[[int, int, int], bytes],
        random_bytes: Callable[[int], bytes],
        memory_rows: int = MEMORY_ROWS,
        *,
        anew: bool = False,
    ) -> None:
        """Open what is whole of an index, or begin a new one; `read(segment, offset, size)` gives bytes of the log.

        `anew` begins one beside another in the same folder, which it does not touch until it takes its place.
        """
        self._folder, self._disk, self._epoch, self._read = folder, disk, epoch, read
        self._memory_rows, self._flush_at = memory_rows, memory_rows
        self._facts: dict[int, Facts] = {}
        self._known: dict[str, bytes] = {}
        self._sources: dict[Facts, tuple[int, tuple[bytes, ...]]] = {}
        self._merges: dict[int, _Merge] = {}
        self.fault = ""
        self._prefix = NEXT_PREFIX if anew else ""
        disk.mkdir(folder)
        tables = [] if anew else load(disk, folder, _ROW.size, epoch)
        self._salt = bytes.fromhex(tables[0].span.salt) if tables else random_bytes(16)
        self._reset(tuple(tables))

    # -- upkeep: the writer's thread only

    def drop_newest(self) -> None:
        """Forget the newest table, because the log does not agree with it."""
        tables = self._state[0]
        self._disk.unlink(tables[-1].path)
        self._reset(tables[:-1])

    def add(self, batch: Sequence[Added], run: str) -> None:
        """Take the next lines, seqs dense; `run` is the running hash after the last of them.

        A table that cannot be written is tried again later; `fault` says why.  The log is not concerned.
        """
        for seq, place, entry in batch:
            if place is None or entry is None:
                self._state[1].rows += _HOLE
            else:
                self._add(seq, place, entry)
            self.covered = seq
        self.run = run
        try:
            if len(self._state[1].rows) >= self._flush_at * _ROW.size:
                self._flush()
            self._merge_some(len(batch) * _MERGE_ENTRIES)
        except OSError as exc:
            self._abandon()
            self._flush_at += self._memory_rows
            self.fault = str(exc)

    def close(self) -> None:
        """Write what is in memory, so that the next open need not read the log."""
        try:
            self._flush()
        except OSError as exc:
            self.fault = str(exc)
        self._abandon()

    def replace(self, other: "Index") -> None:
        """Take the place of another index on the disk, once this one, begun `anew`, covers the same log.

        Whoever still reads the other may do so: its files lose their names only.  Raises OSError; the other is then
        to be used on, and the next opening reads what is missing from the log.
        """
        other._abandon()
        self._abandon()
        # Ascending, and all gone before the first new one has its name: no opening may take the old for the new.
        for table in other._state[0]:
            self._disk.unlink(table.path)
        self._disk.fsync_dir(self._folder)
        for table in self._state[0]:
            path = table.path.with_name(table.path.name.removeprefix(NEXT_PREFIX))
            self._disk.rename(table.path, path)
            table.path = path
        self._prefix = ""
        self._plan()

    def discard(self) -> None:
        """Remove the files of an index that was begun `anew` and did not take the other's place."""
        self._abandon()
        for table in self._state[0]:
            with suppress(OSError):
                self._disk.unlink(table.path)

    # -- queries: any thread

    def place(self, seq: int) -> Place | None:
        """Return where a line stands, as soon as a key leads to it; None when it is damaged or not there."""
        raw = (self._raw_rows(self._state, seq, 1) if seq > 0 else b"") or _HOLE
        segment, offset, head, length, *_ = _ROW.unpack(raw)
        return Place(segment, offset, head, length) if head else None

    def line(self, seq: int) -> Line:
        """Return one line.  Raises LineError "not-found", or "store-damaged" for one that is not served."""
        place = self.place(seq)
        if place is None:
            if 0 < seq <= self.covered:
                raise LineError("store-damaged", f"line {seq} is damaged")
            raise LineError("not-found", f"there is no line {seq}")
        raw = self._read(place.segment, place.offset, place.end - place.offset)
        line = parse(raw[:-1])
        if line.seq != seq or len(line.payload) != place.length or not raw.endswith(b"\n"):
            raise LineError("store-damaged", f"line {seq} is damaged")
        return line

    def find(self, record_id: str) -> Row | None:
        """Return the record with this id."""
        return next((row for row in self._same_id(record_id) if row.kind == "rec"), None)

    def alternates(self, record_id: str) -> list[Row]:
        """Return the other envelopes of this id (kind alt), by arrival."""
        return [row for row in self._same_id(record_id) if row.kind == "alt"]

    def has_projection(self, pair: str, level: str, name: str) -> bool:
        """Tell whether the peer of a pair showed us this projection; `name` is its id, a record's or a pseudonym."""
        state = self._state
        rows = self._rows(state, self._values(state, self._hash(shown_name(pair, level, name)), 0, _SAME_ID_MAX))
        return any(row.kind == PROJECTION and row.origin == pair and self._is_of(row, name) for row in rows)

    def after(self, name: str, seq: int, limit: int) -> list[Row]:
        """Return up to `limit` rows of a list with a higher seq, ascending.

        Tables that end at or before `seq` are not touched; each other one costs a binary search (about 10 us).
        """
        state = self._state
        return list(self._rows(state, self._values(state, self._hash(name), max(seq, 0) + 1, limit)))

    def last(self, name: str) -> Row | None:
        """Return the newest row of a list."""
        state = self._state
        key = self._hash(name)
        values = state[1].values(key)
        seq = values[-1] if values else next(filter(None, (table.last(key) for table in reversed(state[0]))), None)
        return None if seq is None else next(self._rows(state, [seq]), None)

    def count(self, name: str) -> int:
        """Return how many rows a list has."""
        tables, memory = self._state
        key = self._hash(name)
        return sum(table.count(key) for table in tables) + len(memory.values(key))

    def names(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` names of lists that start with `prefix`, in order of their first line.

        `prefix` has at least the letter and colon; `after` is the last name of the page before, and a name that is
        not there ends the listing.  Cost: one line read for each name of the letter.
        """
        state = self._state
        key, seq = self._hash(_ALL_LISTS + prefix[:2]), 0
        if after:
            first = self._values(state, self._hash(after), 0, 1)
            if not first:
                return []
            seq = first[0]
        found: list[str] = []
        while len(found) < limit and (page := self._values(state, key, seq + 1, _NAMES_PAGE)):
            for seq in page:
                with suppress(LineError):
                    found += [name for name in lists(entry_of(self.line(seq))) if name.startswith(prefix)]
        return found[:limit]

    def tally(self, name: str) -> int:
        """Return a counter of the module's docstring; 0 when it never counted."""
        tables, memory = self._state
        key = self._hash("#" + name)
        return sum(sum(table.values(key, 0, table.shape.rows)) for table in tables) + memory.tallies.get(key, 0)

    def taken(self, actor: str, thread: str, clock: int) -> Row | None:
        """Return the record of our own that has this clock."""
        state = self._state
        key = _clock_key(self._hash(clock_name(actor, thread)), clock)
        rows = self._rows(state, self._values(state, key, 0, _SAME_ID_MAX))
        return next((row for row in rows if row.own and row.clock == clock), None)

    def clock_next(self, actor: str, thread: str) -> int | None:
        """Return the clock after the highest of our own records; 0 when there is none, None at the end of clocks."""
        tables, memory = self._state
        key = self._hash(clock_name(actor, thread))
        clocks = [clock for table in tables if (clock := table.last(key)) is not None]
        clock = max([*clocks, *memory.values(key)], default=-1)
        return clock + 1 if clock < CLOCK_MAX else None

    def marks(self, seq: int, count: int) -> list[tuple[int, bytes]]:
        """Return (number of its facts, start of its id) of the lines from `seq` on: at least one, at most `count`.

        Only records of n: lists and projections show an id; the start of any other line is NO_START.  0.1 us a line.
        """
        return list(_MARK.iter_unpack(self._raw_rows(self._state, seq, count)))

    def facts(self, number: int, seq: int) -> Facts | None:
        """Return the facts with this number, which the line `seq` has; None when they cannot be read."""
        return self._facts.get(number) or self._facts_of(number, seq)

    def starting(self, start: bytes) -> list[tuple[Row, str]]:
        """Return the records, with their ids, whose id begins with these bytes, at least 8."""
        state, found = self._state, list[tuple[Row, str]]()
        for row in self._rows(state, self._values(state, start[:KEY_BYTES], 0, _SAME_ID_MAX)):
            id_ = self._read(row.segment, row.offset + _ID_AT, 64).decode(errors="replace")
            if row.kind == "rec" and id_.startswith(start.hex()):
                found.append((row, id_))
        return found

    def stats(self) -> dict[str, int | str]:
        """Return counts for `spl store stats`."""
        tables, memory = self._state
        return {"tables_count": len(tables), "memory_lines": len(memory.rows) // _ROW.size, "fault": self.fault}

    # -- adding

    def _add(self, seq: int, place: Place, entry: Entry) -> None:
        memory = self._state[1]
        facts = (entry.kind, entry.ns, entry.origin, entry.voucher, entry.own)
        source = self._sources.get(facts) or self._source(facts, seq)
        # The row first: whoever finds the seq under a key must find the row too.
        start = bytes.fromhex(entry.id[:32]) if has_start(entry) else NO_START
        memory.rows += _ROW.pack(place.segment, place.offset, place.head, place.length, source[0], entry.clock, start)
        if entry.kind in ENVELOPE_KINDS:
            memory.put(bytes.fromhex(entry.id[:16]), seq)
        for name in lists(entry):
            memory.put(self._known.get(name) or self._join(name, seq), seq)
        for key in source[1] if is_offered(entry) else source[1][:1]:
            memory.tallies[key] = memory.tallies.get(key, 0) + 1
        if entry.kind == PROJECTION:
            memory.put(self._hash(shown_name(entry.pair, entry.level, entry.id)), seq)
        if entry.kind == "rec" and entry.own:
            key = self._hash(clock_name(entry.actor, entry.thread))
            memory.put(key, entry.clock)
            memory.put(_clock_key(key, entry.clock), seq)

    def _join(self, name: str, seq: int) -> bytes:
        """Return the key of a list, after noting the list itself when this is its first line."""
        key = self._hash(name)
        tables, memory = self._state
        # The newest first: a list that was left out of the cache is most likely still young.
        if key not in memory.keys and not any(table.values(key, 0, 1) for table in reversed(tables)):
            memory.put(self._hash(_ALL_LISTS + name[:2]), seq)
        if len(self._known) >= _CACHE_NAMES:
            del self._known[next(iter(self._known))]
        self._known[name] = key
        return key

    def _source(self, facts: Facts, seq: int) -> tuple[int, tuple[bytes, ...]]:
        """Return (seq of the first line with these facts, keys of its tallies).

        Rows name that line instead of holding texts; so nothing about vouchers and origins is kept but in the log.
        """
        state = self._state
        key = self._hash("facts:" + json.dumps(facts))
        first = self._values(state, key, 0, 1)
        if not first:
            state[1].put(key, seq)
        source = (first[0] if first else seq, tuple(self._hash("#" + name) for name in tallies(*facts[:4])))
        if len(self._sources) >= _CACHE_FACTS:
            self._sources.clear()
        self._sources[facts] = source
        return source

    def _hash(self, name: str) -> bytes:
        return blake2b(name.encode(), digest_size=KEY_BYTES, key=self._salt).digest()

    # -- reading

    def _values(self, state: "_State", key: bytes, low: int, limit: int) -> list[int]:
        """Return up to `limit` seqs of a key from `low` on."""
        tables, memory = state
        found: list[int] = []
        for table in tables:
            if table.span.last >= low and len(found) < limit:
                found += table.values(key, low, limit - len(found))
        if len(found) < limit:
            values = memory.values(key)
            start = bisect_right(values, low - 1)
            found += values[start : start + limit - len(found)]
        return found

    def _raw_rows(self, state: "_State", seq: int, count: int) -> bytes:
        """Return the rows from `seq` on, at most `count`, at least one."""
        tables, memory = state
        if seq >= memory.first:
            start = (seq - memory.first) * _ROW.size
            return bytes(memory.rows[start : start + count * _ROW.size])
        table = tables[bisect_right(tables, seq, key=lambda table: table.span.first) - 1]
        return table.rows(seq, min(count, table.span.last + 1 - seq))

    def _rows(self, state: "_State", seqs: Sequence[int]) -> Iterator[Row]:
        """Yield the rows of ascending seqs, reading neighbours together."""
        start, raw = 0, b""
        for i, seq in enumerate(seqs):
            at = (seq - start) * _ROW.size
            if not start or at >= len(raw):
                near = bisect_right(seqs, seq + _WINDOW_ROWS - 1, i)
                start, raw, at = seq, self._raw_rows(state, seq, seqs[near - 1] + 1 - seq), 0
            segment, offset, head, length, source, clock, _ = _ROW.unpack_from(raw, at)
            facts = self.facts(source, seq)
            if facts:
                kind, ns, origin, voucher, own = facts
                yield Row(seq, kind, segment, offset + head, length, ns, origin, voucher, own, clock)

    def _facts_of(self, source: int, seq: int) -> Facts | None:
        """Return the facts of a line, read from the first line that had them, or from itself where that is damaged."""
        for at in (source, seq):
            with suppress(LineError):
                entry = entry_of(self.line(at))
                facts = (entry.kind, entry.ns, entry.origin, entry.voucher, entry.own)
                if len(self._facts) >= _CACHE_FACTS:
                    self._facts.clear()
                self._facts[source] = facts
                return facts
        return None

    def _same_id(self, record_id: str) -> Iterator[Row]:
        if len(record_id) != 64 or not record_id.isascii() or not record_id.isalnum():
            return
        try:
            key = bytes.fromhex(record_id[:16])
        except ValueError:
            return
        state = self._state
        parts = (table.values(key, 0, _SAME_ID_MAX) for table in state[0])
        for seqs in chain(parts, [state[1].values(key)]):
            for row in self._rows(state, seqs):
                if self._is_of(row, record_id):
                    yield row

    def _is_of(self, row: Row, id_: str) -> bool:
        """Tell whether a row's payload, an envelope or a projection, has this id."""
        return self._read(row.segment, row.offset + _ID_AT, 64) == id_.encode()

    # -- tables

    def _reset(self, tables: tuple[Table, ...]) -> None:
        self.covered = tables[-1].span.last if tables else 0
        self.run = tables[-1].span.run if tables else RUN_START
        self._state: _State = (tables, Memory(self.covered + 1))
        self._facts.clear()
        self._known.clear()
        self._sources.clear()

    def _span(self, first: int, last: int, run: str) -> Span:
        return Span(self._epoch, self._salt.hex(), first, last, run)

    def _writer(self, span: Span, entries: int, keys_max: int) -> TableWriter:
        return TableWriter(self._disk, self._folder, span, _ROW.size, entries, keys_max, self._prefix)

    def _flush(self) -> None:
        """Turn memory into a table."""
        tables, memory = self._state
        if not memory.rows:
            return
        entries = memory.entries()
        span = self._span(memory.first, self.covered, self.run)
        writer = self._writer(span, len(entries), len(memory.keys) + len(memory.tallies))
        writer.add_rows(bytes(memory.rows))
        writer.add_entries(entries)
        self._state = ((*tables, writer.finish()), Memory(self.covered + 1))
        self._flush_at, self.fault = self._memory_rows, ""
        self._plan()

    def _merge_some(self, entries: int) -> None:
        """Take each running merge forward by about `entries`, so that it ends before its size class is full again."""
        for tier, merging in list(self._merges.items()):
            merging.credit += entries
            while merging.credit > 0:
                done = next(merging.steps, None)
                if done is None:
                    del self._merges[tier]
                    self._swap(merging.sources, merging.writer.finish())
                    self._plan()
                    break
                merging.credit -= done

    def _plan(self) -> None:
        """Begin a merge in each size class that has four neighbours and none running."""
        tables = self._state[0]
        tiers = [(table.shape.rows // self._memory_rows).bit_length() // 2 for table in tables]
        for start in range(len(tables) - _MERGE_TABLES, -1, -1):
            tier = tiers[start]
            if tier in self._merges or tiers[start : start + _MERGE_TABLES] != [tier] * _MERGE_TABLES:
                continue
            chosen = tables[start : start + _MERGE_TABLES]
            span = self._span(chosen[0].span.first, chosen[-1].span.last, chosen[-1].span.run)
            entries, keys = sum(table.shape.entries for table in chosen), sum(table.keys for table in chosen)
            writer = self._writer(span, entries, keys)
            self._merges[tier] = _Merge(chosen, writer, merge(chosen, writer))

    def _swap(self, sources: tuple[Table, ...], merged: Table) -> None:
        tables, memory = self._state
        at = tables.index(sources[0])
        self._state = ((*tables[:at], merged, *tables[at + len(sources) :]), memory)
        for table in sources:
            self._disk.unlink(table.path)

    def _abandon(self) -> None:
        """Give up the running merges; their sources still stand."""
        for merging in self._merges.values():
            with suppress(OSError):
                merging.writer.give_up()
        self._merges.clear()


_State = tuple[tuple[Table, ...], Memory]


def _clock_key(key: bytes, clock: int) -> bytes:
    """Return the key of one clock: the list's key, moved by the clock; saves a hash for each record."""
    return ((int.from_bytes(key, "big") + (clock + 1) * _ODD) % 2**64).to_bytes(8, "big")
