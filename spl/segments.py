"""The log's files: named by the first seq in them, read by many threads through a few descriptors.

Nothing here knows what a line means, except that it ends with a line feed and that a segment begins with a header.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from .disk import Disk, File
from .line import LineError, encode_header

SUFFIX: Final = ".jsonl"

_NAME_DIGITS: Final = 20
_CHUNK_BYTES: Final = 256 * 1024
_OPEN_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line stands: segment (its first seq), offset in it, bytes before the payload, bytes of the payload."""

    segment: int
    offset: int
    head: int
    length: int

    @property
    def end(self) -> int:
        """The offset behind the line: after the payload come a brace and the line feed."""
        return self.offset + self.head + self.length + 2


class Segments:
    """The segments of one log; `firsts` are their first seqs, ascending."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self._disk = folder, disk
        self._files: dict[int, File] = {}
        self._lock = Lock()
        names = [name for name in disk.list(folder) if name.endswith(SUFFIX)]
        digits = [name.removesuffix(SUFFIX) for name in names]
        self.firsts = [int(text) for text in digits if len(text) == _NAME_DIGITS and text.isdigit()]

    def begin(self, epoch: str, first: int, run: str) -> None:
        """Create the segment that starts with seq `first`; its header and name are durable on return."""
        self._disk.replace_atomic(self._path(first), encode_header(epoch, first, run))
        with self._lock:
            self._files.pop(first, None)
        if first not in self.firsts:
            self.firsts = [*self.firsts, first]

    def open_last(self) -> File:
        """Return the last segment opened to append."""
        return self._disk.open_append(self._path(self.firsts[-1]))

    def drop_last(self) -> None:
        """Remove the last segment durably."""
        *self.firsts, last = self.firsts
        with self._lock:
            self._files.pop(last, None)
        self._disk.unlink(self._path(last))
        self._disk.fsync_dir(self.folder)

    def size(self, first: int) -> int:
        """Return the bytes of a segment."""
        return self._file(first).size()

    def head(self, first: int, bytes_max: int) -> bytes:
        """Return a segment's first line without its line feed, or its first `bytes_max` bytes when there is none."""
        return self._file(first).pread(bytes_max, 0).split(b"\n", 1)[0]

    def read(self, first: int, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of a segment.  Raises LineError "store-damaged" when they cannot be had."""
        try:
            data = self._file(first).pread(size, offset)
        except OSError as exc:
            raise LineError("store-damaged", f"segment {first} cannot be read: {exc.strerror or exc}") from exc
        if len(data) != size:
            raise LineError("store-damaged", f"segment {first} ends too early")
        return data

    def lines(self, first: int, offset: int) -> Iterator[tuple[int, int, bytes, bool]]:
        """Yield (segment, offset, bytes without line feed, whether it had one) from a place to the end of the log."""
        for segment in [each for each in self.firsts if each >= first]:
            file, at = self._file(segment), offset if segment == first else 0
            rest, end = b"", file.size()
            while data := file.pread(max(0, min(_CHUNK_BYTES, end - at - len(rest))), at + len(rest)):
                *whole, rest = (rest + data).split(b"\n")
                for raw in whole:
                    yield segment, at, raw, True
                    at += len(raw) + 1
            if rest:
                yield segment, at, rest, False

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:0{_NAME_DIGITS}d}{SUFFIX}"

    def _file(self, first: int) -> File:
        """Return a segment opened to read; of too many the first opened is let go, and closes with its last reader."""
        with self._lock:
            file = self._files.get(first)
            if file is None:
                if len(self._files) >= _OPEN_MAX:
                    del self._files[next(iter(self._files))]
                file = self._files[first] = self._disk.open_read(self._path(first))
            return file
