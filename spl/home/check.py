"""Checking the store: every line's running hash and every record's id, read from the disk, one line at a time.

Works beside a running daemon, which writes behind the place where the check ends, and on a stopped home, under its
lock; opening that cuts a torn tail as a start of the daemon would, and the first step says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ..core import canon
from ..core.errors import SplError
from ..core.limits import Limits
from ..core.record import levels, record
from ..core.value import Json, asdict
from .disk import Disk, lock_home
from .home import BACK, STORE, epoch_of, log_lacking, now_ms, random_bytes
from .log import Log
from .recovery import DAMAGES_MAX, Damage, headless, is_whole_before, misplaced
from .segments import ENVELOPE_KINDS, PROJECTION, RUN_START, Line, Place, RunChain, Segments

PROGRESS_LINES: Final = 20_000

Step = Json


class CheckError(SplError):
    """There is nothing to check."""


class StoreCheck:
    """One run over the log up to what is durable now."""

    def __init__(self, store: Log, folder: Path, disk: Disk) -> None:
        self._segments = Segments(folder, disk)
        if store.gone:
            raise CheckError("store-missing", store.gone, hint=BACK)
        self._segments.put_right(store.epoch, self._segments.firsts[:-1])
        self._last_seq = store.last_seq
        self._chain = RunChain(1, RUN_START)
        self._bad: tuple[int, int] | None = None
        self._good_end = (self._segments.firsts[0], 0)
        self._store, self._limits = store, Limits()
        self.places: list[Damage] = []
        """The first places where lines were lost."""
        self.scars: list[Damage] = []
        """The first places where bytes are damaged and no line was lost, such as headers."""
        self._misled: Damage | None = None
        self.lines = self.records = self.projections = self.damaged = self.lost = self.held = 0

    def run(self) -> Iterator[Step]:
        """Yield {"step": "progress"|"damage"|"done", …}; the last is "done".

        A damage names segment (its first seq), offset in bytes, the first seq lost, how many lines are lost there (0:
        a header, or bytes that were no line), how many of these are held elsewhere or not missed, whether a repair
        settled it, and what; the first 1000 are named, all are counted.  Behind them the files that stood in the place
        of a segment ("foreign").  At last the first sound line that the index does not lead to ("index").
        Raises StoreError "shutting-down".
        """
        for segment, at, raw, whole in self._segments.lines(self._segments.firsts[0], 0):
            self._store.check_open()
            expected = self._chain.expected
            if expected > self._last_seq:
                break  # what follows is being written
            if at == 0:
                yield from self._enter(segment, raw)
            elif whole and (line := self._chain.judge(raw)):
                if self._bad or line.seq > expected:
                    found = Damage(expected, line.seq - expected, *(self._bad or (segment, at)), end=(segment, at))
                    yield from self._damage("line", found)
                if line.seq <= self._last_seq:
                    self._look_up(line, Place(segment, at, len(raw) - len(line.payload) - 1, len(line.payload)))
                    yield from self._line(line, segment, at)
                self._good_end = segment, at + len(raw) + 1
            else:
                self._bad = self._bad or (segment, at)
        expected = self._chain.expected
        if self._bad or expected <= self._last_seq:
            end = (self._segments.firsts[-1], self._segments.size(self._segments.firsts[-1]))
            found = Damage(expected, max(0, self._last_seq + 1 - expected), *(self._bad or end), end=end)
            yield from self._damage("line", found)
        for aside in self._segments.aside():
            yield from self._damage("foreign", misplaced(aside))
        if self._misled:
            yield from self._damage("index", self._misled)
        if self.damaged:
            self._store.index.reader.doubted |= not self.fits_index()
            self._store.doubt(place.seq for place in self.places)
        yield {
            "step": "done", "lines": self.lines, "records": self.records, "damaged": self.damaged,
            "projections": self.projections, "lost_lines": self.lost, "held_lines": self.held,
            "segments": len(self._segments.firsts),
        }  # fmt: skip

    def still_lost(self) -> int:
        """Return how many of the lines lost are held nowhere now; those at places that are not named count as lost."""
        return self.lost - sum(self._store.held_lines(place) for place in self.places)

    def fits_index(self) -> bool:
        """Return whether the index leads to each sound line, and to no damaged one."""
        index = self._store.index
        doubted = bool(self._misled) or index.doubted
        return not doubted and all(index.place(place.seq) is None for place in self.places)

    def _enter(self, segment: int, raw: bytes) -> Iterator[Step]:
        expected = self._chain.expected
        is_whole = not self._bad and is_whole_before(self._segments, segment, self._good_end)
        self._good_end = segment, len(raw) + 1
        if (segment > expected and not is_whole) or self._bad:
            found = Damage(expected, max(0, segment - expected), *(self._bad or (segment, 0)), end=(segment, 0))
            yield from self._damage("line", found)
        if not self._chain.enter(raw, segment):
            yield from self._damage("header", headless(segment))

    def _look_up(self, line: Line, place: Place) -> None:
        if not self._misled and not self._store.index.leads_to(line.seq, place, line.payload):
            self._misled = Damage(line.seq, 0, place.segment, place.offset, end=(place.segment, place.offset))

    def _line(self, line: Line, segment: int, at: int) -> Iterator[Step]:
        self.lines += 1
        self.records += line.kind == "rec"
        self.projections += line.kind == PROJECTION
        if (line.kind in ENVELOPE_KINDS and not self._is_record(line.payload)) or (
            line.kind == PROJECTION and not self._is_projection(line.payload)
        ):
            yield from self._damage("id", Damage(line.seq, 1, segment, at, end=(segment, at)))
        if self.lines % PROGRESS_LINES == 0:
            yield {"step": "progress", "lines": self.lines, "of_lines": self._last_seq}

    def _is_record(self, payload: bytes) -> bool:
        try:
            return record.parse(payload, self._limits).raw == payload
        except SplError:
            return False

    def _is_projection(self, payload: bytes) -> bool:
        try:
            return levels.parse(canon.decode(payload), self._limits).raw == payload
        except SplError:
            return False

    def _damage(self, what: str, found: Damage) -> Iterator[Step]:
        self._bad = None
        self.damaged += 1
        self.lost += found.lines
        if self.damaged > DAMAGES_MAX:
            return
        held = self._store.held_lines(found)
        self.held += held
        if what == "line" and found.lines:
            self.places.append(found)
        elif what in ("line", "header", "foreign"):
            self.scars.append(found)
        yield {
            "step": "damage", "what": what, "segment": found.segment, "offset": found.offset, "seq": found.seq,
            "lines": found.lines, "held_lines": held, "settled": self._store.is_settled(found),
        }  # fmt: skip


def facts(store: Log) -> dict[str, Any]:
    """Return sizes, counts and sync times of an open store, and what its last opening found."""
    report = store.report
    damaged = [
        {"segment": item.segment, "offset": item.offset, "seq": item.seq, "lines": item.lines}
        for item in report.damaged
    ]
    found = {
        "unclean": report.unclean, "cut_bytes": report.cut_bytes, "rebuilt": report.rebuilt,
        "lines_read": report.lines, "took_ms": report.took_ms, "damaged": damaged,
    }  # fmt: skip
    return {**asdict(store.stats()), "epoch": store.epoch, "opened": found}


def check_home(home: Path) -> Iterator[Step]:
    """Yield the steps of checking a stopped home, the first of them {"step": "opened", "cut_bytes"}.

    Raises CheckError "not-found", DiskError "store-locked", StoreError.
    """
    with opened(home) as (store, disk):
        yield {"step": "opened", "cut_bytes": store.report.cut_bytes}
        check = StoreCheck(store, home / STORE, disk)
        yield from check.run()
        if not check.fits_index():  # so that the next start knows
            with suppress(SplError):
                for _ in store.reindex(random_bytes):
                    pass


def facts_of_home(home: Path) -> dict[str, Any]:
    """Return `facts` of a stopped home; raises as `check_home` does."""
    with opened(home) as (store, _):
        return facts(store)


@contextmanager
def opened(home: Path) -> Iterator[tuple[Log, Disk]]:
    """Give the store of a home under its lock; keys and configuration are not touched.  Raises "store-missing"."""
    disk = Disk()
    if lacking := log_lacking(home, disk):
        raise lacking
    if not (home / STORE).is_dir():
        raise CheckError("not-found", f"there is no store in {home}", hint="spl init")
    lock = lock_home(home)
    try:
        store = Log.open(
            home / STORE, disk, Limits(), now_ms=now_ms, random_bytes=random_bytes,
            progress=lambda done, total: None, epoch=epoch_of(home, disk),
        )  # fmt: skip
        try:
            yield store, disk
        finally:
            store.close()
    finally:
        lock.release()
