"""Taking snapshots: a thread, or everything, as it stands up to one sequence, in memory that does not grow with it.

Two passes over the same lines: the first counts the ids and digests them in order, for the header; the second gives
the stored bytes.  Both stop at the sequence that was the last at the start, so what arrives meanwhile is in neither.
The bytes are the log's: whether they are still sound is what `spl store check` asks.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from .core.snapshot import Header
from .disk import Disk, File
from .store import Row, Store

ROWS: Final = 500
PIECE_BYTES: Final = 256 * 1024
RUN_IDS: Final = 65_536
SPOOL_NAME: Final = "snapshot-ids"

_ID_BYTES: Final = 32
_READ_IDS: Final = 256
_ID_AT: Final = len('{"id":"')

MayRead = Callable[[Row], bool]


class IdDigest:
    """The digest over ids in ascending order: sorted runs in an unlinked file, merged at the end.

    Memory: one run of ids, and 8 KiB for each run written.
    """

    def __init__(self, disk: Disk, folder: Path, run_ids: int = RUN_IDS) -> None:
        self._disk, self._folder, self._run_ids = disk, folder, run_ids
        self._run: list[bytes] = []
        self._spool: File | None = None
        self._counts: list[int] = []
        self.count = 0

    def add(self, record_id: str) -> None:
        """Take one id, in any order."""
        self._run.append(bytes.fromhex(record_id))
        self.count += 1
        if len(self._run) >= self._run_ids:
            self._flush()

    def finish(self) -> tuple[str, str]:
        """Return (digest, an id that came twice or "")."""
        found, before, twice = hashlib.sha256(), b"", ""
        for raw in heapq.merge(sorted(self._run), *(self._read(number) for number in range(len(self._counts)))):
            if raw == before:
                twice = raw.hex()
            found.update(raw.hex().encode() + b"\n")
            before = raw
        return found.hexdigest(), twice

    def _flush(self) -> None:
        if self._spool is None:
            self._spool = scratch(self._disk, self._folder, SPOOL_NAME)
        self._spool.pwrite(b"".join(sorted(self._run)), sum(self._counts) * _ID_BYTES)
        self._counts.append(len(self._run))
        self._run = []

    def _read(self, number: int) -> Iterator[bytes]:
        assert self._spool is not None
        at, left = sum(self._counts[:number]), self._counts[number]
        while left:
            count = min(left, _READ_IDS)
            data = self._spool.pread(count * _ID_BYTES, at * _ID_BYTES)
            yield from (data[start : start + _ID_BYTES] for start in range(0, len(data), _ID_BYTES))
            at, left = at + count, left - count


def take(
    store: Store, disk: Disk, folder: Path, *, instance: str, thread: str, may_read: MayRead = lambda row: True
) -> Iterator[bytes]:
    """Yield a snapshot: the header, then pieces of whole lines of about 256 KiB.

    `thread` "" takes all, reserved ones too, and asks no `may_read`.  A thread that does not exist, or of which nothing
    may be read, is an empty snapshot.  `folder` is where many ids are sorted.  Raises LineError "store-damaged".
    """
    upto, ids = store.last_seq, IdDigest(disk, folder)
    for payload in _payloads(store, thread, upto, may_read):
        ids.add(payload[_ID_AT : _ID_AT + 2 * _ID_BYTES].decode())
    digest, _ = ids.finish()
    yield Header(instance, thread, ids.count, digest).encode()
    piece = bytearray()
    for payload in _payloads(store, thread, upto, may_read):
        piece += payload + b"\n"
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def scratch(disk: Disk, folder: Path, name: str) -> File:
    """Return a new file that has no name any more: it goes with its last user, however that ends."""
    disk.mkdir(folder)
    path = folder / name
    file = disk.create(path)
    disk.unlink(path)
    return file


def _payloads(store: Store, thread: str, upto: int, may_read: MayRead) -> Iterator[bytes]:
    """Yield the stored envelopes up to a sequence, in order of arrival."""
    if not thread:
        for line in store.scan(1):
            if line.seq > upto:
                return
            if line.kind == "rec":
                yield line.payload
        return
    seq = 0
    while page := store.index.after(f"t:{thread}", seq, ROWS):
        yield from store.payloads([row for row in page if row.kind == "rec" and row.seq <= upto and may_read(row)])
        seq = page[-1].seq
        if seq >= upto:
            return
