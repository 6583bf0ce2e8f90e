"""Opening a log: from whatever the last process left in the folder to a log and an index that agree.

The index's last line is compared with the log by its running hash, and what follows it is read:

    clean stop      damaged lines are passed over and reported, nothing is cut
    any other end   bytes after the last good line of the last segment are cut (they were never acknowledged), and
                    the rest is written again and synced before it is served, because it may be in the page cache only
    shortened       the mark of a clean stop counts more lines than there are: the others are lost
    mixed up        files that are no segment of this log, by their own headers, are taken out of it first, and so are
                    last ones without a header whose names count more lines than fit before them

A damaged or lost line keeps its seq and has an empty row in the index; its bytes stay where they are.  Rejected: to
give the seqs of a shortened log again, which makes the loss unknown at the next opening.
"""

import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..core.errors import SplError
from ..core.limits import MIB
from ..core.record import record
from ..core.record.levels import NAMES
from ..core.value import dataclass
from .disk import TEMP_SUFFIX, Disk, File, for_shell
from .index import Added, Index
from .segments import LINE_BYTES_MIN, RUN_START, Line, LineError, Place, RunChain, Segments, entry_of
from .tables.lists import by_namespace

CLEAN_NAME: Final = "clean"
INDEX_FOLDER: Final = "index"
SETTLED_NAME: Final = "settled"
LOST_NAME: Final = "lost"
UNREAD_NAME: Final = "unread"
DAMAGES_MAX: Final = 1000  # places that are named; all are counted
TAIL_BYTES: Final = 16 * MIB
"""More than one write of the log: behind a write whose sync failed there is none."""

_SMALL_BYTES_MAX: Final = 4096  # a mark takes 200 bytes; what is longer is none
_SETTLED_BYTES_MAX: Final = 64 * DAMAGES_MAX  # two numbers a place
_LOST_BYTES_MAX: Final = 256 * DAMAGES_MAX  # six numbers a place
_BATCH_LINES: Final = 512
_CUT_LINES_MAX: Final = 10_000_000  # behind the last segment; a mark that says more is damaged
_NUMBERS: Final = 2**63
_UNREADABLE: Final = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
_NOT_MISSED: Final = re.compile(rb'\{"k":"(?:pos|ref)",')
"""Positions and refusals: sync reads on from an earlier place, and judges again what is offered again."""
# In canonical JSON "env" never follows "run", so no record can hold these bytes.
_STATED: Final = re.compile(rb',"run":".{32}","(env|body)":\{"id":"([0-9a-f]{64})",')
_RECORD: Final = re.compile(rb'"record":(\{.*\}),"sig":\{', re.DOTALL)
_FROM: Final = re.compile(rb'"from":"([^"]*)"')
_NAMESPACE: Final = re.compile(rb'"from":"[^"]*","ns":"([^"]*)"')


class StoreError(SplError):
    """The store cannot be opened, or does not take appends any more."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A place in the log that is not served: the first seq lost there, how many lines, and where it begins.

    `lines` is 0 if a header or foreign bytes were damaged and no line is missing.  `end` is the place, a segment and
    an offset, where the log goes on.
    """

    seq: int
    lines: int
    segment: int
    offset: int
    end: tuple[int, int]

    @property
    def is_header(self) -> bool:
        """Whether a segment's header was damaged, and nothing else."""
        return not self.lines and (self.segment, self.offset) == (self.seq, 0) != self.end

    @property
    def behind(self) -> int:
        """The seq behind those lost."""
        return self.seq + self.lines

    def is_in(self, other: "Damage") -> bool:
        """Return whether all that is lost here is lost at another place, too."""
        return other.seq <= self.seq and self.behind <= other.behind


@dataclass(frozen=True, slots=True)
class OpenReport:
    """What opening found: `lines` were read to bring the index up to date, `rebuilt` when it covered none before.

    `damaged` names the first 1000 places among those lines; `cut_bytes` were the torn tail.
    """

    unclean: bool
    cut_bytes: int
    damaged: tuple[Damage, ...]
    rebuilt: bool
    lines: int
    took_ms: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """A log ready to be appended to: its files, the last one open, the complete index, and what was found."""

    segments: Segments
    active: File
    index: Index
    epoch: str
    report: OpenReport


def recover(
    folder: Path, disk: Disk, random_bytes: Callable[[int], bytes], progress: Callable[[int, int], None], epoch: str
) -> Opened:
    """Return the log in `folder`, created when it is empty; everything in it is durable.

    `epoch` is that of the home's log, "" if it is not known: then that which most headers state.
    Raises StoreError "store-damaged" when the log is gone, LineError "store-newer", OSError.
    """
    disk.mkdir(folder)
    segments = Segments(folder, disk)
    epochs = [header.epoch for header in segments.headers()]
    epoch = epoch or (max(epochs, key=epochs.count) if epochs else random_bytes(16).hex())
    wrong = [*segments.put_right(epoch, segments.firsts), *segments.put_strays_aside()]
    mark = _read_mark(folder, disk)
    if not segments.firsts and (wrong or (mark and mark["seq"])):
        lines = f"had {mark['seq']} lines at the last stop, and its files" if mark else "began, and its files"
        raise StoreError("store-damaged", f"the log {lines} are gone", hint="restore the home from a copy")
    # A segment is begun behind the last line, so its name says how many there were.
    lines_before = segments.firsts[-1] - 1 if segments.firsts else 0
    cut, fresh = _clear_up(folder, disk, segments), not segments.firsts
    index = Index(folder / INDEX_FOLDER, disk, epoch, segments.read, random_bytes)
    if fresh:
        segments.begin(epoch, 1, RUN_START)
    known = read_lost(folder, disk)
    unread = [place.seq for place in map(misplaced, segments.aside()) if place not in known]
    before = _fit(index, min([*wrong, *unread], default=index.covered + 1) - 1)
    replay = Replay(segments, index, lambda found: write_lost(folder, disk, joined(known, found)))
    for done, total in replay.run():
        progress(done, total)
    # The mark is gone while the log is open, so nothing was written since: what it counts was cut off from outside.
    if mark and (_fits(mark, segments) or _is_cut(folder, mark, segments, index)):
        bad_tail = replay.pass_over_tail(mark["seq"], mark["run"])
    else:
        mark = None
        cut += replay.cut_tail()
        disk.fsync_dir(folder)
        bad_tail = replay.pass_over_tail(lines_before, index.run)
    if bad_tail or not (fresh or epochs):
        # A new segment keeps an epoch that no header states, and bad lines that are not a torn tail: only the last
        # segment is ever cut.
        segments.begin(epoch, index.covered + 1, index.run)
    disk.unlink(folder / CLEAN_NAME)
    disk.fsync_dir(folder)
    unclean = mark is None and not (fresh and not cut)
    report = OpenReport(unclean, cut, tuple(replay.damaged), not before and replay.lines > 0, replay.lines)
    return Opened(segments, segments.open_last(), index, epoch, report)


def clean_mark(seq: int, run: str, segment: int, size: int) -> bytes:
    """Return the content of the file that marks a clean stop."""
    return json.dumps({"seq": seq, "run": run, "segment": segment, "bytes": size}).encode()


def held_lines(index: Index, segments: Segments, damage: Damage, *, settled: bool) -> int:
    """Return how many of the lines lost at a place are held elsewhere, or are not missed; 0 if the index is old.

    That is an index made before the damage: what it finds may be the damaged lines themselves.  At a `settled` place
    only those lines are missed of which an id can be read.
    """
    if index.place(damage.seq) is not None:
        return 0
    held = missed = 0
    for segment, at, raw, _ in segments.lines(damage.segment, damage.offset):
        if (segment, at) >= damage.end:
            break
        here = _held_in(index, damage, raw)
        held += here
        missed += max(0, (len(_STATED.findall(raw)) or bool(_computed_id(raw))) - here)
    return max(0, damage.lines - missed) if settled else min(held, damage.lines)


def known_lost(folder: Path, disk: Disk, index: Index) -> list[Damage]:
    """Return the remembered places that are of this log and not served again."""
    return [
        item
        for item in read_lost(folder, disk)
        if not item.lines or (item.behind <= index.covered + 1 and not index.place(item.seq))
    ]


def joined(known: Iterable[Damage], found: Sequence[Damage]) -> list[Damage]:
    """Return all places; of those that were found once more, perhaps with other bounds, the new ones."""
    return [*(item for item in known if not (item.lines and any(map(item.is_in, found)))), *found]


def read_settled(folder: Path, disk: Disk) -> frozenset[tuple[int, int]]:
    """Return (first seq, lines) of the places that were settled; what cannot be read is none."""
    try:
        found = json.loads(_noted(folder / SETTLED_NAME, disk, _SETTLED_BYTES_MAX))
        return frozenset((int(seq), int(lines)) for seq, lines in found)
    except _UNREADABLE:
        return frozenset()


def write_settled(folder: Path, disk: Disk, places: frozenset[tuple[int, int]]) -> None:
    """Keep the first 1000 settled places.  Raises OSError."""
    disk.replace_atomic(folder / SETTLED_NAME, json.dumps(sorted(places)[:DAMAGES_MAX]).encode())


def headless(first: int) -> Damage:
    """Return the place of a segment's header that is damaged; no line is missing for that."""
    return Damage(first, 0, first, 0, (first, 1))


def misplaced(aside: Path) -> Damage:
    """Return the place of a file that was taken out of the log; what it hid is counted apart."""
    first = int(aside.name.partition(".")[0])
    return Damage(first, 0, first, 0, (first, 0))


def read_lost(folder: Path, disk: Disk) -> list[Damage]:
    """Return the places where something was lost that are remembered; what cannot be read is none."""
    try:
        found = json.loads(_noted(folder / LOST_NAME, disk, _LOST_BYTES_MAX))
        rows = [[int(number) for number in row] for row in found]
        return [
            Damage(seq, lines, segment, at, (to, end))
            for seq, lines, segment, at, to, end in rows
            if all(0 <= number < _NUMBERS for number in (seq, lines, segment, at, to, end))
        ]
    except _UNREADABLE:
        return []


def write_lost(folder: Path, disk: Disk, places: Sequence[Damage]) -> None:
    """Remember the first 1000 places where something was lost, for openings that do not read them.  Raises OSError."""
    rows = [(each.seq, each.lines, each.segment, each.offset, *each.end) for each in places[:DAMAGES_MAX]]
    disk.replace_atomic(folder / LOST_NAME, json.dumps(rows).encode())


def is_whole_before(segments: Segments, first: int, end: tuple[int, int]) -> bool:
    """Return whether the seqs before `first` were kept for an unreadable tail that is sound lines up to its `end`."""
    return (first, *end) in _tails(segments) and segments.size(end[0]) == end[1]


class Replay:
    """Reads the lines behind the index into it.

    `remember` is called with all damages so far before the index covers a new one: the next opening does not read
    there, whatever ends this one.
    """

    def __init__(
        self, segments: Segments, index: Index, remember: Callable[[Sequence[Damage]], None] | None = None
    ) -> None:
        self._segments, self._index = segments, index
        self._remember, self._remembered = remember, 0
        self.damaged: list[Damage] = []
        self.lines = 0
        place = index.place(index.covered)
        self._next = (place.segment, place.end) if place else (segments.firsts[0], 0)
        self._good_end = self._next  # behind the last good line, or behind a header
        self._pending: tuple[int, int] | None = None  # where the bad bytes since then begin
        self._chain = RunChain(index.covered + 1, index.run)
        self._batch: list[Added] = []
        self._unread = 0  # lines that may stand in a tail that cannot be read

    def run(self, end: tuple[int, int] | None = None) -> Iterator[tuple[int, int]]:
        """Read to the end, or up to a place (segment, offset); yield (bytes read, bytes in all) between batches.

        May be called again for what follows.  Bad bytes at the end are left to `cut_tail` or `pass_over_tail`.
        """
        first, offset = self._next
        total = sum(self._segments.size(each) for each in self._segments.firsts if each >= first) - offset
        done = 0
        for segment, at, raw, whole in self._segments.lines(first, offset):
            if end is not None and (segment, at) >= end:
                break
            if at == 0:
                self._enter(segment, raw)
            elif whole and (line := self._judge(raw, (segment, at))):
                self._batch.append(
                    (line.seq, Place(segment, at, len(raw) - len(line.payload) - 1, len(line.payload)), entry_of(line))
                )
                self._good_end = (segment, at + len(raw) + 1)
                self.lines += 1
            else:
                self._pending = self._pending or (segment, at)
            self._next = (segment, at + len(raw) + whole)
            done += len(raw) + whole
            if len(self._batch) >= _BATCH_LINES:
                self._commit()
                yield done, total
        self._commit()

    def cut_tail(self) -> int:
        """Cut what follows the last good line in the last segment, write and sync the rest; return the bytes cut.

        A tail that the disk cannot read is left to `pass_over_tail`.
        """
        last, end = self._good_end
        if self._pending and self._pending < self._good_end:
            self._close_gap(self._chain.expected, self._pending, self._good_end)
        active, self._pending = self._segments.open_last(), None
        cut = active.size() - end
        if any(not data for _, data in active.stretches(end, end + cut, TAIL_BYTES)):
            # Nobody knows what stands there, so it stays, and each line that has room in it keeps its seq.
            self._unread = cut // LINE_BYTES_MIN + 1
            self._pending, self._next = (last, end), (last, end + cut)
            cut = 0
        elif cut:
            active.truncate(end)
        self._segments.write_again(TAIL_BYTES)
        return cut

    def pass_over_tail(self, seq: int, run: str) -> bool:
        """Report what is bad or missing at the end of a log that was stopped cleanly behind line `seq`, if anything."""
        seq = max(seq, self._chain.expected - 1 + self._unread)
        if not self._pending and seq < self._chain.expected:
            return False
        if self._unread:
            with suppress(OSError):  # then they count as lost for good
                note = json.dumps([*_tails(self._segments), (seq + 1, *self._next)][-DAMAGES_MAX:])
                self._segments.disk.replace_atomic(self._segments.folder / UNREAD_NAME, note.encode())
        self._close_gap(seq + 1, self._pending or self._next, self._next)
        self._chain.run = run
        self._commit()
        return True

    def _enter(self, segment: int, raw: bytes) -> None:
        """Begin a segment; if its header is bad, its name tells the seq and the running hash just goes on."""
        if segment > self._chain.expected or self._pending:
            if self._pending or not is_whole_before(self._segments, segment, self._good_end):
                self._close_gap(segment, self._pending or self._good_end, (segment, 0))
            else:
                self._leave_empty(self._chain.expected, segment)
        if not self._chain.enter(raw, segment):
            self._pending = (segment, 0)
        self._good_end = (segment, len(raw) + 1)

    def _judge(self, raw: bytes, place: tuple[int, int]) -> Line | None:
        expected = self._chain.expected
        line = self._chain.judge(raw)
        if line and (self._pending or line.seq > expected):
            self._close_gap(line.seq, self._pending or self._good_end, place, expected)
        return line

    def _close_gap(self, seq: int, start: tuple[int, int], end: tuple[int, int], expected: int = 0) -> None:
        """Report what was passed over before `seq`, and leave the rows of those lines empty."""
        expected = expected or self._chain.expected
        if len(self.damaged) < DAMAGES_MAX:
            self.damaged.append(Damage(expected, max(0, seq - expected), *start, end))
        self._leave_empty(expected, seq)
        self._pending = None

    def _leave_empty(self, first: int, behind: int) -> None:
        for seq in range(first, behind):
            self._batch.append((seq, None, None))
            if len(self._batch) >= _BATCH_LINES:
                self._commit()

    def _commit(self) -> None:
        if self._remember and self._remembered < len(self.damaged):
            self._remembered = len(self.damaged)
            with suppress(OSError):  # the log is opened on a full disk, too
                self._remember(self.damaged)
        if self._batch:
            self._index.add(self._batch, self._chain.run)
            self._batch = []


def _fit(index: Index, seq_max: int) -> int:
    """Drop what the index has and the log has not; return the last seq that both have, at most `seq_max`."""
    while index.covered:
        try:
            if index.covered <= seq_max and index.line(index.covered).run == index.run:
                break
        except LineError:
            pass  # gone or damaged, which is as good as another log
        index.drop_newest()
    return index.covered


def _read_mark(folder: Path, disk: Disk) -> dict[str, Any] | None:
    """Return the mark of a clean stop; None when there is none to rely on."""
    try:
        mark: dict[str, Any] = json.loads(_noted(folder / CLEAN_NAME, disk, _SMALL_BYTES_MAX))
        sound = (
            isinstance(mark["run"], str)
            and len(bytes.fromhex(mark["run"])) == len(RUN_START) // 2
            and all(type(mark[name]) is int for name in ("seq", "segment", "bytes"))
        )
    except _UNREADABLE:
        return None
    # A mark that was hit must not make lines lost: the last segment had room for those that are counted.
    sound = sound and mark["segment"] - 1 <= mark["seq"] < mark["segment"] + mark["bytes"] // LINE_BYTES_MIN
    return mark if sound else None


def _noted(path: Path, disk: Disk, bytes_max: int) -> bytes:
    """Return what stands in a small file beside the log; nothing if it is absent, or the disk cannot read it."""
    try:
        return disk.read(path, bytes_max) or b""
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        return b""


def _tails(segments: Segments) -> list[tuple[int, ...]]:
    """Return (first seq behind, segment, size) of tails that could not be read, for which seqs were kept."""
    try:
        found = json.loads(_noted(segments.folder / UNREAD_NAME, segments.disk, _LOST_BYTES_MAX))
        return [tuple(int(number) for number in row) for row in found]
    except _UNREADABLE:
        return []


def _fits(mark: dict[str, Any], segments: Segments) -> bool:
    return segments.firsts[-1:] == [mark["segment"]] and segments.size(mark["segment"]) == mark["bytes"]


def _is_cut(folder: Path, mark: dict[str, Any], segments: Segments, index: Index) -> bool:
    """Return whether the log is shorter than the mark of its clean stop says.

    Raises StoreError "store-damaged" if it lost so many lines that the mark may be wrong, or the disk that of another.
    """
    if mark["segment"] > segments.firsts[-1] + _CUT_LINES_MAX:
        clean = for_shell(folder / CLEAN_NAME)
        raise StoreError(
            "store-damaged",
            f"the log had {mark['seq']} lines at the last stop, and ends at line {index.covered}",
            hint=f"restore the home from a copy; to go on with what is left: rm {clean}",
        )
    return bool(mark["seq"] > index.covered)


def _clear_up(folder: Path, disk: Disk, segments: Segments) -> int:
    """Remove what a killed process left half made; return the bytes of last segments without a whole header."""
    for name in disk.list(folder):
        if name.endswith(TEMP_SUFFIX):
            disk.unlink(folder / name)
    cut = 0
    while segments.firsts:
        last = segments.firsts[-1]
        begun = next((whole or not raw for _, _, raw, whole in segments.lines(last, 0)), False)
        if begun:  # or it cannot be read
            break
        cut += segments.size(last)
        segments.drop_last()
    return cut


def _held_in(index: Index, damage: Damage, raw: bytes) -> int:
    """Return how many lines in these bytes without line feed, mostly one, are not lost."""
    if _NOT_MISSED.match(raw):
        return 1
    held = 0
    for member, id_ in _STATED.findall(raw):
        held += _is_held(index, damage, raw, id_.decode()) if member == b"env" else _is_shown(index, raw, id_.decode())
    return held or _is_held(index, damage, raw, _computed_id(raw))


def _is_held(index: Index, damage: Damage, raw: bytes, id_: str) -> bool:
    """Return whether a record that a lost line in these bytes held stands elsewhere in the same namespace.

    A namespace that no record is in counts as damaged itself; then any namespace will do.
    """
    lost = range(damage.seq, damage.seq + damage.lines)
    found = _NAMESPACE.search(raw)
    ns = found[1].decode("utf-8", "replace") if found else ""
    is_known = index.count(by_namespace(ns)) > 0
    return any(row.seq not in lost and (row.ns == ns or not is_known) for row in index.copies(id_))


def _is_shown(index: Index, raw: bytes, id_: str) -> bool:
    pair = _FROM.search(raw)
    return pair is not None and any(
        index.has_projection(pair[1].decode("utf-8", "replace"), level, id_) for level in NAMES
    )


def _computed_id(raw: bytes) -> str:
    """Return the id of the record in a line, "" if it cannot be read."""
    found = _RECORD.search(raw)
    try:
        return record.record_id(json.loads(found[1])) if found else ""
    except (ValueError, KeyError, TypeError, RecursionError, SplError):
        return ""
