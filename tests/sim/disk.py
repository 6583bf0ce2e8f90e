"""A disk in memory behind the seam of `home/disk.py`, with the faults of real ones.

Files are inodes, folders map names to them, and both know what was synced and what was only written since.  Death of
the process keeps what was written; power loss keeps what was synced, and of the rest a part drawn by the dice: none,
all, the first writes with a torn one at their end, or any of them, which leaves zeros where one is missing.  Names are
lost in the order of a journal: those changed last, folder by folder.  After a failed sync a part of the writes is on
the disk, all of them are read until the power goes, and no later sync writes the others: so Linux does it.

Rejected: real files and copies of them at each sync.  They show the same calls, cost a system call each, and what the
kernel wrote back meanwhile is not ours to choose.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from spl.home.disk import Disk, File, Lock

CAPACITY_BYTES: Final = 2_000_000_000
_Write = tuple[int, bytes]
"""An offset and what was written there; an empty text cuts the file at the offset."""


class Died(BaseException):
    """The process or the machine is gone: nothing that it still does has an effect."""


class Inode:
    """One file: `data` is what is read, `synced` what a power loss leaves for sure."""

    __slots__ = ("data", "synced", "writes")

    def __init__(self, synced: bytes = b"") -> None:
        self.data, self.synced = bytearray(synced), bytearray(synced)
        self.writes: list[_Write] = []

    def put(self, offset: int, data: bytes) -> None:
        _apply(self.data, offset, data)
        self.writes.append((offset, data))

    def keep(self) -> None:
        for offset, data in self.writes:
            _apply(self.synced, offset, data)
        self.writes.clear()

    def lose(self, dice: Random) -> None:
        """Let a sync fail: a part of the writes reached the disk, and the kernel takes the others for written too."""
        for offset, data in self.writes:
            if dice.random() < 0.5:
                _apply(self.synced, offset, data)
        self.writes.clear()

    def left(self, dice: Random) -> "Inode":
        """Return the file as a power loss leaves it."""
        synced = bytearray(self.synced)
        writes = self.writes
        match dice.randrange(4):
            case 0:
                writes = []
            case 1:
                writes = writes[: dice.randint(0, len(writes))]
                if writes and writes[-1][1]:
                    offset, data = writes[-1]
                    writes[-1] = offset, data[: dice.randint(1, len(data))]
            case 2:
                writes = [write for write in writes if dice.random() < 0.5]
        for offset, data in writes:
            _apply(synced, offset, data)
        return Inode(bytes(synced))


def _apply(content: bytearray, offset: int, data: bytes) -> None:
    if not data:
        del content[offset:]
        return
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class MemoryFile(File):
    """An open file of a `MemoryDisk`."""

    __slots__ = ("disk", "inode")

    def __init__(self, disk: "MemoryDisk", inode: Inode) -> None:
        super().__init__(-1)
        self.disk, self.inode = disk, inode

    def write(self, data: bytes) -> None:
        self.pwrite(data, len(self.inode.data))

    def pwrite(self, data: bytes, offset: int) -> None:
        if self.disk.step():
            self.inode.put(offset, bytes(data[: self.disk.dice.randint(0, len(data))]) or b"\0")
            raise Died
        room = self.disk.room_bytes() + len(self.inode.data) - offset
        if data and room < len(data):
            if room > 0:
                self.inode.put(offset, bytes(data[:room]))
            raise _fault(errno.ENOSPC)
        if data:
            self.inode.put(offset, bytes(data))

    def pread(self, size: int, offset: int) -> bytes:
        self.disk.check()
        return bytes(self.inode.data[offset : offset + size])

    def map(self, size: int, offset: int) -> memoryview:
        return memoryview(self.pread(size, offset))

    def sync(self) -> float:
        if self.disk.step():
            raise Died
        if self.disk.syncs_to_fail:
            self.disk.syncs_to_fail -= 1
            self.disk.failed = True
            self.inode.lose(self.disk.dice)
            raise _fault(errno.EIO)
        self.inode.keep()
        return 0.1

    def truncate(self, size: int) -> None:
        if self.disk.step():
            raise Died
        if size < len(self.inode.data):
            self.inode.put(size, b"")

    def size(self) -> int:
        self.disk.check()
        return len(self.inode.data)

    def size_in_place(self) -> int:
        return self.size()

    def close(self) -> None:
        pass


class MemoryDisk(Disk):
    """The disk of one node; it outlives the processes that use it."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.names: dict[Path, Inode] = {}
        self.synced_names: dict[Path, Inode] = {}
        self.changes: dict[Path, list[dict[Path, Inode | None]]] = {}
        self.capacity_bytes = CAPACITY_BYTES
        self.syncs_to_fail = 0
        self.failed = False
        """A sync of this process failed; so the writer may be gone for good."""
        self.dead = False
        self.steps_left = 0
        """The process dies in this step from now; 0: in none."""
        self.on_death: Callable[[], None] = lambda: None

    def check(self) -> None:
        if self.dead:
            raise Died

    def step(self) -> bool:
        """Count one effect; return whether the process dies in the middle of it."""
        self.check()
        if self.steps_left:
            self.steps_left -= 1
            if not self.steps_left:
                self.dead = True
                self.on_death()
                return True
        return False

    def room_bytes(self) -> int:
        if self.capacity_bytes == CAPACITY_BYTES:
            return CAPACITY_BYTES
        return max(0, self.capacity_bytes - self.used_bytes())

    def used_bytes(self) -> int:
        return sum(len(inode.data) for inode in self.names.values())

    def revive(self, *, power_lost: bool) -> None:
        """Make the disk usable for the next process."""
        self.dead, self.steps_left, self.failed, self.syncs_to_fail = False, 0, False, 0
        if power_lost:
            for changes in self.changes.values():
                for change in changes[: self.dice.randint(0, len(changes))]:
                    _rename(self.synced_names, change)
            self.names = {path: inode.left(self.dice) for path, inode in self.synced_names.items()}
            self.synced_names = dict(self.names)
            self.changes.clear()

    def open_append(self, path: Path) -> File:
        self.check()
        if path not in self.names:
            self._change({path: Inode()})
        return MemoryFile(self, self.names[path])

    def open_edit(self, path: Path) -> File:
        return self.open_read(path)

    def open_read(self, path: Path) -> File:
        self.check()
        if path not in self.names:
            raise _fault(errno.ENOENT)
        return MemoryFile(self, self.names[path])

    def create(self, path: Path) -> File:
        self._change({path: Inode()})
        return MemoryFile(self, self.names[path])

    def read(self, path: Path, bytes_max: int, *, follow: bool = False) -> bytes | None:
        self.check()
        if path not in self.names:
            return None
        if len(self.names[path].data) > bytes_max:
            raise _fault(errno.EFBIG)
        return bytes(self.names[path].data)

    def rename(self, old: Path, new: Path) -> None:
        self.check()
        if old not in self.names:
            raise _fault(errno.ENOENT)
        self._change({old: None, new: self.names[old]})

    def unlink(self, path: Path) -> None:
        self.check()
        if path in self.names:
            self._change({path: None})

    def list(self, folder: Path) -> list[str]:
        self.check()
        return sorted(path.name for path in self.names if path.parent == folder)

    def own(self, home: Path) -> None:
        self.check()

    def lock(self, home: Path) -> Lock:
        self.check()
        return Lock(-1)

    def mkdir(self, folder: Path) -> None:
        self.check()

    def fsync_dir(self, folder: Path) -> None:
        if self.step():
            raise Died
        if self.syncs_to_fail:
            self.syncs_to_fail -= 1
            self.failed = True
            raise _fault(errno.EIO)
        for change in self.changes.pop(folder, []):
            _rename(self.synced_names, change)

    def free_bytes(self, folder: Path) -> int:
        self.check()
        return self.room_bytes()

    def _change(self, change: dict[Path, Inode | None]) -> None:
        if self.step():
            raise Died
        _rename(self.names, change)
        self.changes.setdefault(next(iter(change)).parent, []).append(change)


def _rename(names: dict[Path, Inode], change: dict[Path, Inode | None]) -> None:
    for path, inode in change.items():
        names.pop(path, None) if inode is None else names.__setitem__(path, inode)


def _fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))
