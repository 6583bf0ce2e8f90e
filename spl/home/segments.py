"""The log's files and the lines in them.

Segments are files named by the first seq in them; many threads read them through a few descriptors.  A segment begins
with a header, and each line ends with a line feed:

    {"k":"head","format":1,"epoch":…,"seq":…,"run":…,"sum":…}
    {"k":kind,"seq":…,"at":Unix ms,"from":pair or "local","ns":…,"own":true,"run":32 hex,"env" or "body":payload}

`run` is a running hash: SHA-256, cut to 128 bits, over that of the line before and all of this line but the member
itself.  So two logs agree up to a line exactly if they agree in its `run`, a line that was lost or moved shows, and an
index or a peer can name a place in the log that no other log has.  A payload is stored as it was signed or sent, byte
for byte, and served as a slice of the file.  Rejected: a checksum for each line alone, which a missing line passes.
"""

import errno
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from ..core import canon
from ..core.errors import SplError
from ..core.limits import Limits
from ..core.value import dataclass
from .disk import Disk, File

FORMAT: Final = 1
LINE_BYTES_MIN: Final = 80
SUFFIX: Final = ".jsonl"
ASIDE_SUFFIX: Final = ".foreign"
"""Of a file that stood in the place of a segment and is not that segment; nothing reads it any more."""
RUN_START: Final = "0" * 32
ENVELOPE_KINDS: Final = frozenset({"rec", "alt"})
PROJECTION: Final = "proj"

_NAME_DIGITS: Final = 20
_HEADER_BYTES_MAX: Final = 4096  # a header takes 200 bytes; what is longer is none
_CHUNK_BYTES: Final = 256 * 1024
_SEGMENT_BYTES: Final = Limits().segment_bytes
_ASIDE: Final = re.compile(r"[0-9]{20}\.[0-9]+" + re.escape(ASIDE_SUFFIX))
_OPEN_MAX: Final = 16  # descriptors are shared with connections; a reader of old lines changes seldom
_RUN: Final = b',"run":"'
_ENV: Final = b'"env":'
_BODY: Final = b'"body":'
_SUM: Final = b',"sum":"'
_RUN_DIGITS: Final = 32
_ANCHORS_MAX: Final = 8  # runs that may go on behind a gap; a damaged file offers any number
_SEQ: Final = re.compile(rb'\{"k":"[a-z]{1,9}","seq":([0-9]{1,20}),')
_RUN_FIELD: Final = re.compile(rb',"run":"([0-9a-f]{32})","(?:env|body)":')


class LineError(SplError):
    """A line is not of the log's form."""


class Place(NamedTuple):
    """Where a line stands: segment (its first seq), offset in it, bytes before the payload, bytes of the payload."""

    segment: int
    offset: int
    head: int
    length: int

    @property
    def end(self) -> int:
        """The offset behind the line: after the payload come a brace and the line feed."""
        return self.offset + self.head + self.length + 2


class Entry(NamedTuple):
    """What is appended.  `payload` is canonical JSON; the fields after `own` are derived from it, for the index.

    id, thread, actor, clock and voucher belong to envelopes (kinds rec and alt), pair to kinds pos and ref; pair, id
    and level to projections (kind proj).
    """

    kind: str
    payload: bytes
    origin: str = "local"
    ns: str = ""
    own: bool = False
    id: str = ""
    thread: str = ""
    actor: str = ""
    clock: int = 0
    voucher: str = ""
    pair: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it stands in the log; `at_ms` is its arrival in Unix ms, `run` the running hash after it."""

    kind: str
    seq: int
    at_ms: int
    origin: str
    ns: str
    own: bool
    run: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a segment: format, the store's epoch, the first seq in it and the running hash before."""

    format: int
    epoch: str
    seq: int
    run: str


class Segments:
    """The segments of one log; `firsts` are their first seqs, ascending."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self.disk = folder, disk
        self._files: dict[int, File] = {}
        self._lock = Lock()
        names = [name for name in disk.list(folder) if name.endswith(SUFFIX)]
        digits = [name.removesuffix(SUFFIX) for name in names]
        self.firsts = [int(text) for text in digits if len(text) == _NAME_DIGITS and text.isascii() and text.isdigit()]

    def begin(self, epoch: str, first: int, run: str) -> None:
        """Create the segment that starts with seq `first`; its header and name are durable on return."""
        self.disk.replace_atomic(self._path(first), encode_header(epoch, first, run))
        with self._lock:
            self._files.pop(first, None)
        if first not in self.firsts:
            self.firsts = [*self.firsts, first]

    def withdraw(self, first: int) -> None:
        """Forget a segment whose beginning failed halfway; no line is in it.

        Its name may come back after a crash, in the middle of the lines that went elsewhere; `RunChain.enter` knows.
        """
        with self._lock:
            self._files.pop(first, None)
        self.firsts = [each for each in self.firsts if each != first]
        with suppress(OSError):
            self.disk.unlink(self._path(first))

    def open_last(self) -> File:
        """Return the last segment opened to append."""
        return self.disk.open_append(self._path(self.firsts[-1]))

    def write_again(self, bytes_max: int) -> None:
        """Write the last bytes of the last segment once more, as they are, and sync them.

        If a sync of an earlier process failed, the kernel may hold pages that it never writes: they are read as if
        they were on the disk, and a later sync says nothing of them.
        """
        file = self.disk.open_edit(self._path(self.firsts[-1]))
        at = max(0, file.size() - bytes_max)
        try:
            for offset, data in file.stretches(at, file.size(), bytes_max):
                file.pwrite(data, offset)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):  # some file systems copy what is written again
                raise
        file.sync()
        file.close()

    def headers(self) -> list[Header]:
        """Return the readable headers.  Raises LineError "store-newer"."""
        return [header for first in self.firsts if (header := self._header(self._path(first)))]

    def put_right(self, epoch: str, firsts: Iterable[int]) -> list[int]:
        """Take out of the log what a restore mixed up: files whose sound header is that of another segment or log.

        Of those named `firsts`; return which had to go.  Their bytes stay, under another name, and such a file takes
        its own place in the log if that is free; what stood there before counts as gone.  Rejected: to read the lines
        where they are, whose seqs hide those of the segments behind them.
        """
        with self._lock:
            self._files.clear()  # what is open may have gone since
        wrong = [
            first
            for first in firsts
            if (header := self._header(self._path(first)))
            and (header.seq, header.epoch) != (first, epoch)
            and not (header.epoch == epoch and self._goes_on(first))
        ]
        for first in wrong:
            self._put_aside(first)
        for path in self.aside():
            header = self._header(path)
            if header and header.epoch == epoch and header.seq not in self.firsts:
                self._rename(path, self._path(header.seq))
                self.firsts = sorted([*self.firsts, header.seq])
        return wrong

    def put_strays_aside(self) -> list[int]:
        """Take last files out of the log that cannot be of it: no header, and a name behind more lines than fitted."""
        at = len(self.firsts)
        while at and not self._header(self._path(self.firsts[at - 1])):
            at -= 1
        while at < len(self.firsts):
            before = self.firsts[at - 1] if at else 1
            if self.firsts[at] - before > max(self.size(before), _SEGMENT_BYTES) // LINE_BYTES_MIN:
                break
            at += 1
        strays = self.firsts[at:]
        for first in strays:
            self._put_aside(first)
        return strays

    def headless(self) -> list[int]:
        """Return the segments whose files are there, and their headers damaged."""
        names = set(self.disk.list(self.folder))
        paths = {first: self._path(first) for first in self.firsts}
        return [first for first, path in paths.items() if path.name in names and not self._header(path)]

    def aside(self) -> list[Path]:
        """Return the files that were taken out of the log; their names begin with the place where they stood."""
        return [self.folder / name for name in self.disk.list(self.folder) if _ASIDE.fullmatch(name)]

    def _goes_on(self, first: int) -> bool:
        """Return whether the line that belongs there is behind a header: a former version wrote on like that."""
        _, _, behind = self.disk.open_read(self._path(first)).pread(_HEADER_BYTES_MAX, 0).partition(b"\n")
        found = _SEQ.match(behind)
        return found is not None and int(found[1]) == first

    def _put_aside(self, first: int) -> None:
        names = {path.name for path in self.aside()}
        free = (f"{first:0{_NAME_DIGITS}d}.{number}{ASIDE_SUFFIX}" for number in count())
        self._rename(self._path(first), self.folder / next(name for name in free if name not in names))
        self.firsts = [each for each in self.firsts if each != first]

    def _header(self, path: Path) -> Header | None:
        try:
            return header_of(self.disk.open_read(path).pread(_HEADER_BYTES_MAX, 0).split(b"\n", 1)[0])
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EIO):
                raise
            return None

    def _rename(self, old: Path, new: Path) -> None:
        self.disk.rename(old, new)
        self.disk.fsync_dir(self.folder)

    def drop_last(self) -> None:
        """Remove the last segment durably."""
        *self.firsts, last = self.firsts
        with self._lock:
            self._files.pop(last, None)
        self.disk.unlink(self._path(last))
        self.disk.fsync_dir(self.folder)

    def size(self, first: int) -> int:
        """Return the bytes of a segment, 0 if its file is gone."""
        try:
            return self._file(first).size()
        except FileNotFoundError:
            return 0

    def read(self, first: int, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of a segment.

        Raises LineError "store-damaged" when they cannot be had, "overloaded" if there is no descriptor for now.
        """
        try:
            file = self._file(first)
            # What a damaged row asks for need not fit into memory.
            data = file.pread(size, offset) if size <= _CHUNK_BYTES or offset + size <= file.size() else b""
        except OSError as exc:
            code = "overloaded" if exc.errno in (errno.EMFILE, errno.ENFILE) else "store-damaged"
            raise LineError(code, f"segment {first} cannot be read: {exc.strerror or exc}") from exc
        if len(data) != size:
            raise LineError("store-damaged", f"segment {first} ends too early")
        return data

    def lines(self, first: int, offset: int) -> Iterator[tuple[int, int, bytes, bool]]:
        """Yield (segment, offset, bytes without line feed, whether it had one) from a place to the end of the log.

        What the disk cannot read ends a line without one, of no bytes if nothing is before it.  A segment that is gone,
        with others behind it, is passed over; the numbers of the lines show what is missing.
        """
        for segment in [each for each in self.firsts if each >= first]:
            try:
                file, at = self._file(segment), offset if segment == first else 0
            except FileNotFoundError:
                if segment == self.firsts[-1]:
                    raise
                continue
            rest = b""
            for place, data in file.stretches(at, file.size(), _CHUNK_BYTES):
                at = at if rest else place
                if not data:
                    yield segment, at, rest, False
                    rest = b""
                    continue
                *whole, rest = (rest + data).split(b"\n")
                for raw in whole:
                    yield segment, at, raw, True
                    at += len(raw) + 1
            if rest:
                yield segment, at, rest, False

    def is_in_place(self) -> bool:
        """Return whether the last segment still stands in the folder under its name."""
        return self._path(self.firsts[-1]).name in self.disk.list(self.folder)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:0{_NAME_DIGITS}d}{SUFFIX}"

    def _file(self, first: int) -> File:
        """Return a segment opened to read; of too many the first opened is dropped, and closes with its last reader."""
        with self._lock:
            file = self._files.get(first)
            if file is None:
                if len(self._files) >= _OPEN_MAX:
                    del self._files[next(iter(self._files))]
                file = self._files[first] = self.disk.open_read(self._path(first))
            return file


class RunChain:
    """Judges the lines of a log in order: good ones by the running hash, the rest as damaged.

    `expected` is the seq after the last good line or header, `run` the running hash there.

    After a damaged line the hash goes on from either its stored or its computed value, so one bad byte costs one
    line wherever it hit.  If a line cannot even be taken apart, what looks like its running hash is tried; if that
    was hit too, the line after it counts as damaged as well, and its stored hash carries on.
    """

    __slots__ = ("_anchors", "expected", "run")

    def __init__(self, expected: int, run: str) -> None:
        self.expected, self.run = expected, run
        self._anchors = [run]

    def enter(self, raw: bytes, first: int) -> bool:
        """Go on behind the first line of the segment named `first`; return whether it is a good header.

        A good one is as good as a line; of a bad one the segment's name gives the seq, and the hash just goes on.  One
        that begins before lines already seen was withdrawn, and changes nothing.
        """
        header = header_of(raw)
        is_next = header is not None and header.seq >= self.expected
        self.expected = max(self.expected, header.seq if header else first)
        if header and is_next:
            self.run, self._anchors = header.run, [header.run]
        elif header:
            self._remember([*self._anchors, header.run])
        else:
            self._remember(_runs_in(raw) + self._anchors)
        return header is not None

    def judge(self, raw: bytes) -> Line | None:
        """Return the line in these bytes (no line feed), or None when it is damaged."""
        try:
            prefix, run, tail = split(raw)
        except LineError:
            self._remember(_runs_in(raw) + self._anchors)
            return None
        computed = [chain(anchor, prefix, tail) for anchor in self._anchors]
        if run in computed:
            line = assemble(prefix, run, tail)
            if line.seq >= self.expected:
                self._anchors, self.expected, self.run = [run], line.seq + 1, run
                return line
        self._remember(_runs_in(raw) + computed)
        return None

    def _remember(self, candidates: list[str]) -> None:
        # Bounded, or a long stretch of bad lines would cost its square.
        self._anchors = list(dict.fromkeys(candidates))[:_ANCHORS_MAX]


def encode(entry: Entry, seq: int, at_ms: int, before: str) -> tuple[bytes, str, int]:
    """Return (line with its line feed, running hash after it, bytes before the payload)."""
    begin, facts, member = _parts(entry.kind, entry.origin, entry.ns, entry.own)
    prefix = b'%b%d,"at":%d%b' % (begin, seq, at_ms, facts)
    tail = b"%b%b}" % (member, entry.payload)
    run = chain(before, prefix, tail)
    line = b'%b"run":"%b",%b\n' % (prefix, run.encode(), tail)
    return line, run, len(prefix) + len(_RUN) - 1 + _RUN_DIGITS + 2 + len(member)


@lru_cache(maxsize=1024)
def _parts(kind: str, origin: str, ns: str, own: bool) -> tuple[bytes, bytes, bytes]:
    """Return what stands before the seq, between time and running hash, and before the payload."""
    facts = b',"from":%b%b%b,' % (
        canon.encode(origin), b',"ns":' + canon.encode(ns) if ns else b"", b',"own":true' if own else b""
    )  # fmt: skip
    return b'{"k":%b,"seq":' % canon.encode(kind), facts, _ENV if kind in ENVELOPE_KINDS else _BODY


def chain(before: str, prefix: bytes, tail: bytes) -> str:
    """Return the running hash after a line of these parts, `before` being the one before it."""
    return sha256(b"%b%b%b" % (bytes.fromhex(before), prefix, tail)).hexdigest()[:_RUN_DIGITS]


def split(raw: bytes) -> tuple[bytes, str, bytes]:
    """Return (prefix, stored running hash, tail) of a line without its line feed.

    The first `,"run":"` is the member itself: in the texts before it a quote would stand behind a backslash.
    Raises LineError "store-damaged".
    """
    at = raw.find(_RUN)
    start = at + len(_RUN)
    end = start + _RUN_DIGITS
    if at < 0 or raw[end : end + 2] != b'",':
        raise LineError("store-damaged", "a line has no running hash")
    try:
        return raw[: at + 1], raw[start:end].decode("ascii"), raw[end + 2 :]
    except UnicodeDecodeError as exc:
        raise LineError("store-damaged", "a line has no running hash") from exc


def assemble(prefix: bytes, run: str, tail: bytes) -> Line:
    """Return the Line of the parts that `split` returned.  Raises LineError "store-damaged"."""
    try:
        head = json.loads(prefix[:-1].decode() + "}")
        kind, seq, at_ms, origin = head["k"], head["seq"], head["at"], head["from"]
        ns, own = head.get("ns", ""), head.get("own", False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise LineError("store-damaged", "a line's facts are not readable") from exc
    member = _ENV if kind in ENVELOPE_KINDS else _BODY
    if not (tail.startswith(member) and tail.endswith(b"}")):
        raise LineError("store-damaged", "a line's payload does not stand at the place of its kind")
    return Line(kind, seq, at_ms, origin, ns, own, run, tail[len(member) : -1])


def parse(raw: bytes) -> Line:
    """Return the Line in these bytes (no line feed), its running hash not checked.  Raises LineError."""
    return assemble(*split(raw))


def entry_of(line: Line) -> Entry:
    """Return what was appended as this line; the index is rebuilt from it.  Raises LineError "store-damaged"."""
    kind, payload = line.kind, line.payload
    try:
        if kind in ENVELOPE_KINDS:
            value = json.loads(payload.decode())
            record = value["record"]
            return Entry(
                kind, payload, line.origin, line.ns, line.own, value["id"], record["thread"], record["actor"],
                record["clock"], value["sig"]["by"],
            )  # fmt: skip
        if kind == PROJECTION:
            value = json.loads(payload.decode())
            level = value["projection"]["level"]
            return Entry(kind, payload, line.origin, line.ns, id=value["id"], pair=line.origin, level=level)
        if kind in ("pos", "ref", "day"):
            return Entry(kind, payload, line.origin, line.ns, line.own, pair=json.loads(payload.decode())["pair"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise LineError("store-damaged", f"the payload of line {line.seq} is not readable") from exc
    return Entry(kind, payload, line.origin, line.ns, line.own)


def encode_header(epoch: str, seq: int, run: str) -> bytes:
    """Return the header line of a segment, with its line feed."""
    text = b'{"k":"head","format":%d,"epoch":"%b","seq":%d,"run":"%b"' % (FORMAT, epoch.encode(), seq, run.encode())
    return b'%b%b%b"}\n' % (text, _SUM, _checksum(text))


def parse_header(raw: bytes) -> Header:
    """Return the header in these bytes (no line feed).

    Raises LineError "store-newer" for a later format, or "store-damaged".
    """
    text, _, rest = raw.partition(_SUM)
    # The checksum first: every format keeps these two members, or one bad bit would look like a newer format.
    if not text.startswith(b'{"k":"head","format":') or rest != _checksum(text) + b'"}':
        raise LineError("store-damaged", "a segment's header is not readable")
    value: dict[str, Any] = json.loads(text + b"}")
    if value["format"] > FORMAT:
        raise LineError("store-newer", f"the store has format {value['format']}, this version knows {FORMAT}")
    return Header(value["format"], value["epoch"], value["seq"], value["run"])


def header_of(raw: bytes) -> Header | None:
    """Return the header in a line's bytes, None when it is damaged or none.  Raises LineError "store-newer"."""
    try:
        return parse_header(raw)
    except LineError as exc:
        if exc.code == "store-newer":
            raise
        return None


def _runs_in(raw: bytes) -> list[str]:
    """Return what looks like running hashes in bytes that may be parts of lines."""
    return [text.decode() for text in _RUN_FIELD.findall(raw)[-_ANCHORS_MAX // 2 :]]


def _checksum(text: bytes) -> bytes:
    return sha256(text).hexdigest()[:_RUN_DIGITS].encode()
