"""How the index's memory becomes tables, and tables become fewer: the only file that changes the index's files.

A flush turns memory into a table.  As soon as four neighbours of a size class stand, they are merged into one of the
next class, a piece with each commit: about 16 entries a line added and class, so a merge ends before its class is full
again and no commit waits for one.  Rejected: a merge thread, because it needs locks and competes with the writer for
the GIL; merging eight at a time, which merges a third less and doubles the cost of looking for an unknown id.

`state` is one tuple (tables, memory), replaced whole.  Readers take it once and need no lock, because tables never
change and memory only grows; a table whose file was unlinked serves the readers that still hold it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...core.value import dataclass
from ..disk import Disk
from ..segments import LineError
from .rows import ROW
from .sstable import NEXT_PREFIX, Memory, Span, Table, TableWriter

IndexState = tuple[tuple[Table, ...], Memory]

_MERGE_TABLES: Final = 4
_MERGE_ENTRIES: Final = 16
"""Merged for each line added and each size class; a line has at most 8 entries."""
_PIECE_BYTES: Final = 128 * 1024
_FLUSH_ENTRIES: Final = 4096
"""Given to the writer at once, which takes a multiple of them meanwhile."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Sizes of an index; `fault` is why the last table could not be written."""

    tables_count: int
    memory_lines: int
    fault: str


@dataclass(slots=True)
class _Merge:
    """A merge under way; `credit` is how many entries it may still take now."""

    sources: tuple[Table, ...]
    writer: TableWriter
    steps: Iterator[int]
    credit: int = 0


class Compaction:
    """The tables of one index, and the memory that is in none yet.  All but `stats` is for the writer's thread only."""

    def __init__(
        self, folder: Path, disk: Disk, *, epoch: str, salt: bytes, row_bytes: int, memory_rows: int, prefix: str = ""
    ) -> None:
        """`prefix` begins the names of the files of an index that is to replace another one."""
        self._folder, self._disk, self._prefix = folder, disk, prefix
        self._epoch, self._salt, self._row_bytes = epoch, salt.hex(), row_bytes
        self._memory_rows, self._flush_at = memory_rows, memory_rows
        self._merges: dict[int, _Merge] = {}
        self.state: IndexState = ((), Memory(1))
        self.fault = ""
        """Why the last table could not be written; it is tried again after as many lines."""

    def begin(self, tables: tuple[Table, ...]) -> None:
        """Go on with these tables and an empty memory behind them."""
        self.state = (tables, Memory(tables[-1].span.last + 1 if tables else 1))

    def drop_newest(self) -> None:
        """Remove the newest table, and forget what is in memory."""
        *kept, newest = self.state[0]
        self._disk.unlink(newest.path)
        self.begin(tuple(kept))

    def advance(self, covered: int, run: str, added: int) -> None:
        """Flush if due and take the merges forward, `added` lines having come up to seq `covered`.

        A fault of the disk is kept in `fault`: the log is not concerned, and its lines are read at the next opening.
        """
        try:
            if len(self.state[1].rows) >= self._flush_at * self._row_bytes:
                self._flush(covered, run)
            self._merge_some(added * _MERGE_ENTRIES)
        except (OSError, LineError) as exc:
            self.abandon()
            self._flush_at += self._memory_rows
            self.fault = str(exc)

    def close(self, covered: int, run: str) -> None:
        """Write what is in memory, so that the next opening need not read the log."""
        try:
            self._flush(covered, run)
        except OSError as exc:
            self.fault = str(exc)
        self.abandon()

    def replace(self, other: "Compaction") -> None:
        """Take the place of another index's files.  Readers may go on with the other's, which lose their names only.

        Raises OSError; the other is then to be used on, and the next opening reads what is missing from the log.
        """
        other.abandon()
        self.abandon()
        # Ascending, and all gone before the first new one has its name: no opening may take the old for the new.
        for table in other.state[0]:
            self._disk.unlink(table.path)
        self._disk.fsync_dir(self._folder)
        for table in self.state[0]:
            path = table.path.with_name(table.path.name.removeprefix(NEXT_PREFIX))
            self._disk.rename(table.path, path)
            table.path = path
        self._prefix = ""
        self._plan()

    def discard(self) -> None:
        """Remove the files of an index that did not take the other's place."""
        self.abandon()
        for table in self.state[0]:
            with suppress(OSError):
                self._disk.unlink(table.path)

    def stats(self) -> IndexStats:
        """Return the sizes; for any thread."""
        tables, memory = self.state
        return IndexStats(len(tables), len(memory.rows) // self._row_bytes, self.fault)

    def abandon(self) -> None:
        """Give up the running merges; their sources still stand."""
        for merging in self._merges.values():
            with suppress(OSError):
                merging.writer.give_up()
        self._merges.clear()

    def _span(self, first: int, last: int, run: str) -> Span:
        return Span(self._epoch, self._salt, first, last, run)

    def _writer(self, span: Span, entries: int, keys_max: int) -> TableWriter:
        # The folder may be deleted at any time, also while the daemon runs.
        self._disk.mkdir(self._folder)
        return TableWriter(self._disk, self._folder, span, self._row_bytes, entries, keys_max, self._prefix)

    def _flush(self, covered: int, run: str) -> None:
        """Turn memory into a table."""
        tables, memory = self.state
        if not memory.rows:
            return
        span = self._span(memory.first, covered, run)
        writer = self._writer(span, memory.count, len(memory.keys) + len(memory.tallies))
        writer.add_rows(bytes(memory.rows))
        for entries in memory.entries(_FLUSH_ENTRIES):
            writer.add_entries(entries)
        self.state = ((*tables, writer.finish()), Memory(covered + 1))
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
        tables = self.state[0]
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
        tables, memory = self.state
        at = tables.index(sources[0])
        self.state = ((*tables[:at], merged, *tables[at + len(sources) :]), memory)
        for table in sources:
            self._disk.unlink(table.path)


def may_have(state: IndexState, key: bytes) -> bool:
    """Return whether the key may have values; False is certain."""
    tables, memory = state
    return key in memory.keys or True in [table.has(key) for table in tables]


def values_of(state: IndexState, key: bytes, low: int, limit: int) -> list[int]:
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


def newest_of(state: IndexState, key: bytes, end: int, limit: int) -> list[int]:
    """Return up to `limit` seqs of a key below `end`, the highest there are, ascending."""
    tables, memory = state
    values = memory.values(key)
    stop = bisect_right(values, end - 1)
    found = values[max(0, stop - limit) : stop]
    for table in reversed(tables):
        if len(found) == limit:
            break
        found = table.newest(key, end, limit - len(found)) + found
    return found


def rows_of(state: IndexState, seq: int, count: int) -> bytes:
    """Return the rows from `seq` on, at most `count`; none behind the last line, else at least one."""
    tables, memory = state
    if seq < 1:
        return b""
    if seq >= memory.first:
        start = (seq - memory.first) * ROW.size
        return bytes(memory.rows[start : start + count * ROW.size])
    table = tables[bisect_right(tables, seq, key=lambda table: table.span.first) - 1]
    return table.rows(seq, min(count, table.span.last + 1 - seq))


def merge(tables: Sequence[Table], writer: TableWriter) -> Iterator[int]:
    """Copy neighbouring tables into one; yield after each piece how many entries it had.

    Takes from all tables what is not above the lowest of their blocks' last entries, so that a piece is about one
    block a table, whatever the keys are.
    """
    for table in tables:
        width, first, last = table.shape.row_bytes, table.span.first, table.span.last
        step = _PIECE_BYTES // width
        for start in range(first, last + 1, step):
            writer.add_rows(table.rows(start, min(step, last + 1 - start)))
            yield 1
    sources = [table.blocks() for table in tables]
    heads = [next(source, []) for source in sources]
    while any(heads):
        bound = min(head[-1] for head in heads if head)
        piece: list[bytes] = []
        for i, head in enumerate(heads):
            if head and head[0] <= bound:
                taken = bisect_right(head, bound)
                piece += head[:taken]
                heads[i] = head[taken:] or next(sources[i], [])
        piece.sort()
        writer.add_entries(piece)
        yield len(piece)
