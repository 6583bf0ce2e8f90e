"""The log: everything this instance knows, in the order of arrival, in append-only segments of JSON lines.

    <home>/store/00000000000000000001.jsonl …  segments, named by their first seq; the lines are `segments.py`'s
    <home>/store/clean                          stands while no process has the store open and the last one ended well
    <home>/store/index/                         disposable, `index.py`
    <home>/store/lost                           places where lines were lost, if there are any
    <home>/store/settled, unread                those of them no longer missed; tails that could not be read
    <home>/store/….foreign                      files that stood in the place of a segment of this log; not read

An append is acknowledged after one write and one fdatasync for all that waited.  A failed sync is final, because the
kernel may have dropped the pages and says so once: this Log never appends again, and what it wrote is not served; the
next opening sees what became of those bytes (`recovery.py`).

A lack that passes (descriptors, space, quota) is waited out.  No room for the data: what was written of it is cut off
again, and the append is refused with "store-full"; records are taken again once more is free than then, or a line of
the daemon's own or a try of `look_for_room` was written: quotas and memory do not show in what is free.  No new
segment: the present one grows until there is.  Rejected: to count a lack as a fault of the disk, because a stranger's
idle connections then end all writing until a restart.

The caller holds the home's lock (`disk.lock_home`).
"""

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, Self

from ..core.limits import Limits
from ..core.recent import SYNC_BOUNDS_MS, Histogram
from ..core.value import dataclass, replace
from .disk import Disk, unusable
from .index import Added, Index, Row
from .recovery import (
    CLEAN_NAME,
    INDEX_FOLDER,
    Damage,
    Opened,
    OpenReport,
    Replay,
    StoreError,
    clean_mark,
    headless,
    held_lines,
    joined,
    known_lost,
    misplaced,
    read_settled,
    recover,
    write_lost,
    write_settled,
)
from .segments import PROJECTION, RUN_START, Entry, Line, LineError, Place, RunChain, encode
from .tables.compaction import IndexStats
from .tables.lists import RECORDS

__all__ = ["Damage", "Entry", "Line", "LineError", "OpenReport", "Row", "Log", "StoreError"]

_SYNCS_KEPT: Final = 512
_SEGMENT_BYTES_MAX: Final = 2**32 - 1  # an offset has four bytes in the index
_TRY_BYTES: Final = 4096
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class LogStats:
    """Counts, sizes, and times of syncs; `spl store stats` shows it under these names."""

    records_count: int
    projections_count: int
    lines_count: int
    segments_count: int
    log_bytes: int
    free_bytes: int
    sync_last_ms: float
    sync_p50_ms: float
    sync_p99_ms: float
    readonly: str
    full: str
    index: IndexStats


class Log:
    """An open log and its index.  One thread appends; any thread reads, and sees only lines that are durable."""

    def __init__(self, folder: Path, disk: Disk, limits: Limits, opened: Opened, took_ms: int) -> None:
        """Take over what `recover` returned; use `open`."""
        self.epoch: Final = opened.epoch
        self.index: Index = opened.index
        self.report: Final = replace(opened.report, took_ms=took_ms)
        self.lost: tuple[Damage, ...] = ()
        """The places that have empty rows in the index, where something was lost and has not come back."""
        self._settled = read_settled(folder, disk)
        self.last_seq, self.last_run = opened.index.covered, opened.index.run
        self._folder, self._disk, self._limits = folder, disk, limits
        self._segments, self._active = opened.segments, opened.active
        self._places: tuple[Damage, ...] = ()
        self._size = opened.active.size()
        self._readonly = self._full = ""
        self._stopping = False
        self._free_at_fault = 0
        self._free_bytes = disk.free_bytes(folder)
        self._sealed_bytes = sum(map(opened.segments.size, opened.segments.firsts[:-1]))
        # Held by an append, and while one index replaces another.
        self._turn = Lock()
        self._indexing = Lock()
        self._syncs: deque[float] = deque(maxlen=_SYNCS_KEPT)
        self.sync_times: Final = Histogram(SYNC_BOUNDS_MS)
        """Of the disk syncs since the start."""
        self._remember(joined(known_lost(folder, disk, opened.index), opened.report.damaged))
        self.look_again()

    @classmethod
    def open(
        cls,
        folder: Path,
        disk: Disk,
        limits: Limits,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        progress: Callable[[int, int], None],
        epoch: str = "",
    ) -> Self:
        """Return the store in `folder`, created when absent; its index is complete and every line durable.

        `progress(done, total)` is called with bytes of the log while many lines are read into the index; `epoch` as in
        `recover`.
        Raises StoreError "store-damaged", LineError "store-newer", DiskError "home-unusable".
        """
        start_ms = now_ms()
        try:
            opened = recover(folder, disk, random_bytes, progress, epoch)
            return cls(folder, disk, limits, opened, now_ms() - start_ms)
        except OSError as exc:
            raise unusable(folder, exc) from exc

    def append(self, entries: Sequence[Entry], at_ms: int) -> list[int]:
        """Append all entries durably with one write and one sync, index them, and return their seqs.

        All stand in one segment.  For the writer's thread.  Raises StoreError "store-full" if there is no room now, or
        "store-readonly" when the write or the sync fails otherwise, and ever after.
        """
        with self._turn:
            return self._append(entries, at_ms)

    def _append(self, entries: Sequence[Entry], at_ms: int) -> list[int]:
        self._check_writable()
        lines: list[bytes] = []
        heads: list[int] = []
        run = self.last_run
        for seq, entry in enumerate(entries, self.last_seq + 1):
            line, run, head = encode(entry, seq, at_ms, run)
            lines.append(line)
            heads.append(head)
        if not lines:
            return []
        data = b"".join(lines)
        if data.count(b"\n") != len(lines):
            raise StoreError("internal", "a payload that holds a line feed is not canonical JSON")
        ended = False
        try:
            self._write(data)
            segment, offset = self._segments.firsts[-1], self._size - len(data)
            seqs = range(self.last_seq + 1, self.last_seq + 1 + len(lines))
            added: list[Added] = []
            for seq, entry, line, head in zip(seqs, entries, lines, heads, strict=True):
                added.append((seq, Place(segment, offset, head, len(entry.payload)), entry))
                offset += len(line)
            self.index.add(added, run)
            self.last_seq, self.last_run = seqs[-1], run
            ended = True
        except StoreError as exc:
            ended = exc.code == "store-full"
            raise
        finally:
            # Whatever went wrong: the next append must not use the same seqs again.
            if not ended:
                self._readonly = self._readonly or "an append broke off; its lines are read at the next start"
        return list(seqs)

    def line(self, seq: int) -> Line:
        """Return one line.  Raises LineError "not-found", or "store-damaged" for one that is not served."""
        return self.index.line(seq)

    def run_at(self, seq: int) -> str:
        """Return the running hash after a line, 32 zeros for seq 0.  Raises LineError as `line` does."""
        return self.line(seq).run if seq else RUN_START

    def payloads(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the payloads of the rows, in their order, without damaged ones; raises as `read` does."""
        return [payload for _, payload in self.read(rows)]

    def read(self, rows: Sequence[Row]) -> Iterator[tuple[Row, bytes]]:
        """Yield the rows, in their order, with their payloads; without those that are damaged, see `PayloadReader`.

        Raises LineError "overloaded" if there is no descriptor for now.
        """
        return self.index.reader.each(rows)

    def payload(self, row: Row) -> bytes | None:
        """Return the payload of one row, None if it is damaged; raises as `read` does."""
        return self.index.reader.one(row)

    def scan(self, first_seq: int) -> Iterator[Line]:
        """Yield the lines from `first_seq` on that are there now, checked by the running hash, without bad ones."""
        last_seq = self.last_seq
        before, place = min(first_seq, last_seq + 1) - 1, None
        while before > 0 and place is None:
            try:
                chain, place = RunChain(before + 1, self.line(before).run), self.index.place(before)
            except LineError:
                before -= 1
        if place is None:
            chain = RunChain(1, RUN_START)
        where = (place.segment, place.end) if place else (self._segments.firsts[0], 0)
        for segment, at, raw, whole in self._segments.lines(*where):
            if at == 0:
                chain.enter(raw, segment)
            elif whole and (line := chain.judge(raw)):
                if line.seq > last_seq:
                    return
                if line.seq >= first_seq:
                    yield line

    def bytes_since(self, at_ms: int) -> int:
        """Return how many bytes the log took since a time, counted by whole segments: at most one too many."""
        total = 0
        for first in reversed(self._segments.firsts):
            total += self._segments.size(first)
            try:
                if self.line(first).at_ms >= at_ms:
                    continue
            except LineError:
                continue  # a line that is damaged, or not there yet, says no time; the segments before it do
            break
        return total

    def held_lines(self, damage: Damage) -> int:
        """Return how many of the lines lost at a place are held elsewhere, or are not missed.  Raises OSError."""
        return self._held_in(self.index, damage)

    def is_settled(self, damage: Damage) -> bool:
        """Return whether `settle` was called for this place."""
        return (damage.seq, damage.lines) in self._settled

    def settle(self, places: Iterable[Damage]) -> None:
        """Do not miss lines any more that were lost at these places without leaving a readable id.

        It is for the caller to know that no pair has more to give.  A place at which no line was lost is settled once
        a repair looked at it.  Kept beside the log; raises OSError.
        """
        self._settled |= {(place.seq, place.lines) for place in places}
        write_settled(self._folder, self._disk, self._settled)
        self.look_again()

    def look_again(self) -> None:
        """Leave out of `lost` those places of which everything is held again.  Raises OSError."""
        self.lost = self._lost_in(self.index)

    def doubt(self, seqs: Iterable[int]) -> None:
        """Take in what a check found: lines that are damaged, and headers, of which no reading tells.  Raises OSError.

        The lines are lost as soon as the index is built again.
        """
        for seq in seqs:
            if self.index.place(seq) is not None:
                self.index.reader.leave_out(seq)
        self._remember(self._places)
        self.look_again()

    def look_for_room(self) -> None:
        """Write and sync some bytes behind the last line and cut them off again, if the last append found no room.

        Any thread may; after a crash they are a torn tail.  Raises StoreError as `append` does.
        """
        with self._turn:
            if not self._full or self.full != self._full:
                return
            self._check_alone(self._size)
            try:
                self._active.write(bytes(_TRY_BYTES))
                self._active.sync()
                self._active.truncate(self._size)
                self._active.sync()
            except OSError as exc:
                raise self._fault(exc, self._size + _TRY_BYTES) from exc
            self._full = ""

    def stop(self) -> None:
        """End what reads much of the log, at its next line, with "shutting-down": snapshots, restores, checks."""
        self._stopping = True

    def check_open(self) -> None:
        """Raise StoreError "shutting-down" after `stop`."""
        if self._stopping:
            raise StoreError("shutting-down")

    def reindex(self, random_bytes: Callable[[int], bytes]) -> Generator[tuple[int, int], None, None]:
        """Read the log into a new index and use that from then on; yield (bytes read, bytes in all) between batches.

        Lines that the disk damaged since they were indexed, or that went with their segment, have empty rows in it, as
        after an opening.  Appends go on; they wait for the end only.  If it is given up early, nothing changes.
        Raises StoreError "overloaded" when another one is under way, "shutting-down", "store-readonly" or
        "store-damaged".
        """
        if not self._indexing.acquire(blocking=False):
            raise StoreError("overloaded", "the index is being built already")
        folder, read = self._folder / INDEX_FOLDER, self._segments.read
        fresh = Index(folder, self._disk, self.epoch, read, random_bytes, replaces=True)
        try:
            with self._turn:
                self._segments.put_right(self.epoch, self._segments.firsts[:-1])
                end = self._end()
            replay = Replay(self._segments, fresh)
            for piece in replay.run(end):
                self.check_open()
                yield piece
            with self._turn:
                self.check_open()  # the next process may have opened the index otherwise
                self._put_in(fresh, replay)
        except OSError as exc:
            raise StoreError("store-readonly", f"the index cannot be built: {exc.strerror or exc}") from exc
        finally:
            if self.index is not fresh:
                fresh.discard()
            self._indexing.release()

    @property
    def readonly(self) -> str:
        """Why no more appends are taken; empty while they are."""
        return self._readonly

    @property
    def full(self) -> str:
        """Why records are not taken for now; empty while they are.  Lines of the daemon's own are still tried."""
        if self._readonly:
            return ""
        try:
            free = self._disk.free_bytes(self._folder)
        except OSError:
            return self._full
        floor = self._limits.disk_floor_bytes
        if free < floor:
            return f"{free / 1e6:,.1f} MB are free on the disk of the store, and {floor / 1e6:,.1f} are to stay free"
        return self._full if free <= self._free_at_fault else ""

    @property
    def gone(self) -> str:
        """Why the log is not in its place any more, though it is open; empty while it is."""
        if self._segments.is_in_place():
            return ""
        return f"the log is not in {self._folder} any more: it was moved, or its volume was unmounted"

    def stats(self) -> LogStats:
        """Return counts, sizes and the times of the last 512 syncs; also of a log that is not in its place."""
        with suppress(OSError):
            self._free_bytes = self._disk.free_bytes(self._folder)
        syncs = sorted(self._syncs) or [0.0]
        return LogStats(
            records_count=self.index.tally(RECORDS),
            projections_count=self.index.tally(PROJECTION),
            lines_count=self.last_seq,
            segments_count=len(self._segments.firsts),
            log_bytes=self._sealed_bytes + self._size,
            free_bytes=self._free_bytes,
            sync_last_ms=self._syncs[-1] if self._syncs else 0.0,
            sync_p50_ms=syncs[len(syncs) // 2],
            sync_p99_ms=syncs[len(syncs) * 99 // 100],
            readonly=self._readonly,
            full=self.full,
            index=self.index.stats(),
        )

    def close(self) -> None:
        """Complete the index and mark the stop as clean, unless a write failed.  The writer's last call."""
        with self._turn:
            self.index.close()
            if self._readonly:
                return
            self._readonly = "the store is closed"
            if self._active.size() != self._size:
                return  # another process wrote into it; the mark would say that its lines are none
        mark = clean_mark(self.last_seq, self.last_run, self._segments.firsts[-1], self._size)
        try:
            self._disk.replace_atomic(self._folder / CLEAN_NAME, mark)
        except OSError as exc:
            # Without the mark the next open reads the tail carefully; nothing is lost.
            self._readonly = f"the store is closed, without a mark: {exc.strerror or exc}"

    def _put_in(self, fresh: Index, replay: Replay) -> None:
        """Complete a new index and use it."""
        self._check_writable()
        for _ in replay.run(self._end()):
            pass
        replay.pass_over_tail(self.last_seq, self.last_run)
        if fresh.covered != self.last_seq:
            raise StoreError("store-damaged", f"the log ends at line {fresh.covered} of {self.last_seq}")
        # What is lost first: at no moment the damage is neither left out nor lost, nor forgotten after a crash.
        self._remember(replay.damaged)
        fresh.replace(self.index)
        self.lost = self._lost_in(fresh)
        self.index = fresh

    def _remember(self, damaged: Iterable[Damage]) -> None:
        """Keep where something was lost, with bad headers and files taken out; later openings may not read there."""
        known, lines = self._places, [place for place in damaged if not place.is_header]
        scars = *map(headless, self._segments.headless()), *map(misplaced, self._segments.aside())
        self._places = tuple(dict.fromkeys([*lines, *scars]))
        if self._places != known:
            with suppress(OSError):  # the next check finds them again
                write_lost(self._folder, self._disk, self._places)

    def _lost_in(self, index: Index) -> tuple[Damage, ...]:
        """Return the places of which something is missing, or that nobody looked at if no line was lost there."""
        return tuple(
            item
            for item in self._places
            if not (self._held_in(index, item) >= item.lines if item.lines else self.is_settled(item))
        )

    def _held_in(self, index: Index, damage: Damage) -> int:
        return held_lines(index, self._segments, damage, settled=self.is_settled(damage))

    def _check_writable(self) -> None:
        if self._readonly:
            raise StoreError("store-readonly", self._readonly)

    def _end(self) -> tuple[int, int]:
        """Return the place behind the last durable line."""
        return self._segments.firsts[-1], self._size

    def _write(self, data: bytes) -> None:
        """Write and sync lines, in a new segment when they do not fit into this one."""
        if self._size + len(data) > self._limits.segment_bytes and self._segments.firsts[-1] <= self.last_seq:
            self._rotate()
        if self._size + len(data) > _SEGMENT_BYTES_MAX:
            raise StoreError("store-full", "no new segment can be begun")
        self._check_alone(self._size)
        try:
            self._active.write(data)
            self._syncs.append(took_ms := self._active.sync())
            self.sync_times.add(took_ms)
        except OSError as exc:
            raise self._fault(exc, self._size + len(data)) from exc
        self._check_alone(self._size + len(data))
        self._size += len(data)
        self._full = ""

    def _check_alone(self, size: int) -> None:
        """Refuse this append and all others unless the last segment has the size that we left it with.

        Locks do not reach everywhere: on some network file systems two machines may hold one home.  Both appending, one
        would acknowledge lines that do not follow from those of the other, and the next opening cannot keep both.
        Looked at before the write, so that nothing is added to the other's lines, and after it, because both may have
        looked at once; 2 us each.
        """
        try:
            found = self._active.size_in_place()
        except OSError as exc:
            raise self._fault(exc, size) from exc
        if found != size:
            what = "removed" if found is None else f"changed: it has {found:,} bytes and not {size:,}"
            self._readonly = f"the log's last segment was {what}; stop any other process on this home, then restart"
            raise StoreError("store-readonly", self._readonly)

    def _fault(self, exc: OSError, size_max: int) -> StoreError:
        """Return what refuses an append that failed: for now, if what was written of it could be cut off durably.

        Nothing is cut if the segment is longer than `size_max`, what it would have without the failure.
        """
        if exc.errno in _PASSING:
            try:
                if self._active.size() > size_max:
                    raise OSError(errno.EBUSY, "another process wrote into it")
                self._active.truncate(self._size)
                self._active.sync()
                self._free_at_fault = self._disk.free_bytes(self._folder)
            except OSError as other:
                exc = other
            else:
                self._full = f"there is no room for the log: {exc.strerror or exc}"
                return StoreError("store-full", self._full)
        self._readonly = f"writing the log failed: {exc.strerror or exc}"
        return StoreError("store-readonly", self._readonly)

    def _rotate(self) -> None:
        """Begin a new segment behind the last line; stay in this one if that fails, until a later append."""
        first = self.last_seq + 1
        try:
            self._segments.begin(self.epoch, first, self.last_run)
            active = self._segments.open_last()
            size = active.size()
        except OSError:
            self._segments.withdraw(first)
            return
        self._sealed_bytes += self._size
        self._active, self._size = active, size
