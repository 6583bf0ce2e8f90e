"""What the tests of the log and its index share: entries, disks that fail or skip syncs, opening, comparing."""

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from spl.core import canon
from spl.core.limits import Limits
from spl.home.disk import Disk, File
from spl.home.home import Home
from spl.home.log import Log
from spl.home.segments import Entry

AT_MS = 1_763_877_600_123


def record(
    n: int,
    ns: str = "default",
    thread: str = "",
    actor: str = "did:sync:user:ann",
    clock: int | None = None,
    origin: str = "local",
    voucher: str = "did:sync:instance:me",
    kind: str = "rec",
    text: str = "",
) -> Entry:
    """Return an envelope entry; `n` makes its id, `own` follows from the origin."""
    record_id = hashlib.sha256(str(n).encode()).hexdigest()
    thread, clock = thread or f"th_{n % 3}", n if clock is None else clock
    fields = {
        "act": "DO",
        "actor": actor,
        "body": {"namespace": ns, "text": text},
        "clock": clock,
        "data_type": "SCALAR",
        "judged_by": None,
        "parents": [],
        "thread": thread,
    }
    payload = canon.encode({"id": record_id, "record": fields, "sig": {"by": voucher, "key": "k", "value": "v"}})
    own = origin == "local" and kind == "rec"
    return Entry(kind, payload, origin, ns, own, record_id, thread, actor, clock, voucher)


def note(kind: str, **body: Any) -> Entry:
    """Return an entry of a kind with a body."""
    return Entry(kind, canon.encode(body), pair=body.get("pair", "") if kind in ("pos", "ref") else "")


def shown(n: int, pair: str = "pair_1", level: str = "L1", ns: str = "default") -> Entry:
    """Return a projection's entry; `n` makes its id."""
    id_ = hashlib.sha256(str(n).encode()).hexdigest()
    payload = canon.encode({"id": id_, "projection": {"level": level, "ns": ns}, "record": {"body": {}}})
    return Entry("proj", payload, pair, ns, id=id_, pair=pair, level=level)


class LazyFile(File):
    """A file whose syncs are skipped, for tests that open a store thousands of times."""

    def sync(self) -> float:
        return 0.0


class LazyDisk(Disk):
    """A disk without durability."""

    def open_append(self, path: Path) -> File:
        return LazyFile(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))

    def open_edit(self, path: Path) -> File:
        return LazyFile(os.open(path, os.O_RDWR))

    def create(self, path: Path) -> File:
        return LazyFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))

    def fsync_dir(self, folder: Path) -> None:
        pass


class FaultyDisk(Disk):
    """A disk on which, once armed, the log's files fail to sync, or to take more than some bytes.

    `fail_sync`, `fail_cut` and `fail_create` are the error numbers that syncs, truncations and new files fail with.
    """

    def __init__(self) -> None:
        self.fail_sync = 0
        self.fail_cut = 0
        self.fail_create = 0
        self.room: int | None = None
        self.free: int | None = None

    def free_bytes(self, folder: Path) -> int:
        return super().free_bytes(folder) if self.free is None else self.free

    def open_append(self, path: Path) -> File:
        return FaultyFile(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), self)

    def open_edit(self, path: Path) -> File:
        return FaultyFile(os.open(path, os.O_RDWR), self)

    def create(self, path: Path) -> File:
        fail(self.fail_create)
        return super().create(path)


class FaultyFile(File):
    """A file of a FaultyDisk."""

    __slots__ = ("_disk",)

    def __init__(self, fd: int, disk: FaultyDisk) -> None:
        super().__init__(fd)
        self._disk = disk

    def write(self, data: bytes) -> None:
        if self._disk.room is not None and len(data) > self._disk.room:
            super().write(data[: self._disk.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(data)

    def sync(self) -> float:
        fail(self._disk.fail_sync)
        return super().sync()

    def truncate(self, size: int) -> None:
        fail(self._disk.fail_cut)
        super().truncate(size)


def fail(number: int) -> None:
    """Raise what the kernel raises with this error number, unless it is 0."""
    if number:
        raise OSError(number, os.strerror(number))


def open_store(
    folder: Path,
    disk: Disk | None = None,
    limits: Limits | None = None,
    *,
    random_byte: bytes = b"\x2a",
    progress: Any = lambda done, total: None,
    epoch: str = "",
) -> Log:
    """Open a store with a fixed clock and fixed randomness."""
    return Log.open(
        folder,
        disk or LazyDisk(),
        limits or Limits(),
        now_ms=lambda: AT_MS,
        random_bytes=lambda size: random_byte * size,
        progress=progress,
        epoch=epoch,
    )


def set_views(home: Home, **changes: Any) -> None:
    """Put other values into the views than the log has; for the thread that writes, or while nothing is written."""
    home.writer.views = replace(home.writer.views, **changes)


def contents(store: Log) -> list[tuple[int, bytes]]:
    """Return (seq, payload) of every good line."""
    return [(line.seq, line.payload) for line in store.scan(1)]


def log_files(folder: Path) -> list[Path]:
    """Return the segments, oldest first."""
    return sorted(folder.glob("*.jsonl"))
