"""The port to the file system: every file effect in a home goes through a `Disk`.

Methods raise OSError as the kernel says it; the caller knows what a failure means (an append is refused, the index is
dropped).  Only what first touches a home translates it to `home-unusable`: `own`, `mkdir` and `lock_home`.
A `Disk` may be subclassed by one that fails, tears writes or forgets what was not synced.

Durability: `File.sync` makes content durable, `fsync_dir` names; `replace_atomic` does both.

A home is ours alone: another user who writes into it could give us keys, tokens and settings.  So a home of another
owner, or one that others may write into, is refused; and no link inside it is followed, because one planted before the
home was ours would send what we write elsewhere.  The home itself may be a link: its owner made it.

Below a home that others can enter the same is asked of each file and folder that they can reach, and that they cannot
read the secrets; files are made so, but may be given other modes.  A home of mode 0700 is not looked through, because
nobody else reaches anything in it.  Only regular files are opened: opening a FIFO would wait for ever.

Rejected: to set the mode of the home to 0700 at each start, which would take from an operator the access that it gave
a group; and to refuse a home below a folder that everybody can write, because containers get volumes of that mode.
Anyone who may write there can move the home away and put nothing of use in its place, which has to be ours; the daemon
warns of it.
"""

import errno
import fcntl
import hashlib
import heapq
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from ..core.errors import SplError

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
TEMP_SUFFIX: Final = ".tmp"
RUN_IDS: Final = 65_536
SPOOL_NAME: Final = "snapshot-ids"

_ID_BYTES: Final = 32
_READ_IDS: Final = 256
_SECTOR_BYTES: Final = 4096
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT})
_LACKING: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_LOCKS: Final = _LACKING | {errno.ENOLCK}
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ENTER: Final = stat.S_IXGRP | stat.S_IXOTH
_SECRETS: Final = frozenset({"keys", "secrets", "token"})
"""What nobody but the owner and a group that it chose may read."""


def for_shell(path: Path) -> str:
    """Return a path as one word of a command to paste; `shlex` is imported then, and not by every daemon."""
    return str(import_module("shlex").quote(str(path)))


class DiskError(SplError):
    """The home folder cannot be used, or another process holds it."""


class File:
    """An open file.  Positioned reads are safe from many threads; writes belong to one.

    The descriptor lives as long as the last reference: a reader that still holds a file which was meanwhile
    evicted or unlinked must never find its descriptor number given to another file.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Append all of `data`; a short write is continued."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`; not for files opened to append."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes at `offset`; fewer only at the end of the file."""
        data = os.pread(self._fd, size, offset)
        if len(data) == size or not data:
            return data
        parts, have = [data], len(data)
        while have < size and (data := os.pread(self._fd, size - have, offset + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def stretches(self, offset: int, end: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, at most `size` bytes) of a part of the file; b"" for 4 KiB that the disk cannot read."""
        careful_to = offset
        while offset < end:
            careful = offset < careful_to
            stop = min(end, offset - offset % _SECTOR_BYTES + _SECTOR_BYTES if careful else offset + size)
            try:
                data = self.pread(stop - offset, offset)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                if not careful:
                    careful_to = stop
                    continue
                data, careful_to = b"", 0
            else:
                if not data:
                    return
                stop = offset + len(data)
            yield offset, data
            offset = stop

    def map(self, size: int, offset: int) -> memoryview:
        """Return `size` bytes at `offset` as shared, read-only memory; the kernel may take the pages back any time."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._fd, offset - start + size, access=mmap.ACCESS_READ, offset=start)
        return memoryview(mapped)[offset - start :]

    def sync(self) -> float:
        """Make everything written so far durable (fdatasync); return the milliseconds it took."""
        start = time.perf_counter_ns()
        os.fdatasync(self._fd)
        return (time.perf_counter_ns() - start) / 1e6

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; durable only after `sync`."""
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        """Return the size in bytes."""
        return os.fstat(self._fd).st_size

    def size_in_place(self) -> int | None:
        """Return the size in bytes; None if it has no name any more, so that it is gone with the last descriptor."""
        found = os.fstat(self._fd)
        return found.st_size if found.st_nlink else None

    def close(self) -> None:
        """Close now; for a file that no other thread reads.  A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound early: while the interpreter shuts down, this module's names are gone before its objects.
        if self._fd >= 0:
            close(self._fd)


class Disk:
    """The real file system.  Files are created 0600 and folders 0700."""

    def open_append(self, path: Path) -> File:
        """Return the file opened to append, created when absent (its name is durable after `fsync_dir`)."""
        return File(_open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT))

    def open_edit(self, path: Path) -> File:
        """Return a file that is there opened to read and write anywhere."""
        return File(_open(path, os.O_RDWR))

    def open_read(self, path: Path) -> File:
        """Return the file opened to read."""
        return File(_open(path, os.O_RDONLY))

    def create(self, path: Path) -> File:
        """Return a new empty file opened to read and write anywhere; an older one of that name is removed."""
        self.unlink(path)
        return File(_open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    def read(self, path: Path, bytes_max: int, *, follow: bool = False) -> bytes | None:
        """Return the whole file, or None when it is absent; OSError EFBIG when it is over `bytes_max`.

        `follow` allows a link, for files that an operator may keep elsewhere and that nothing is written to.
        """
        try:
            file = File(_open(path, os.O_RDONLY, follow=follow))
        except FileNotFoundError:
            return None
        data = file.pread(bytes_max + 1, 0)
        if len(data) > bytes_max:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return data

    def replace_atomic(self, path: Path, data: bytes) -> None:
        """Give `path` the content `data`, durably and all or nothing: a reader or a crash sees old or new."""
        temp = path.with_name(path.name + TEMP_SUFFIX)
        file = self.create(temp)
        file.write(data)
        file.sync()
        file.close()
        self.rename(temp, path)
        self.fsync_dir(path.parent)

    def rename(self, old: Path, new: Path) -> None:
        """Rename, replacing `new`; durable after `fsync_dir`."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Remove a file; absent is fine.  Durable after `fsync_dir`."""
        path.unlink(missing_ok=True)

    def list(self, folder: Path) -> list[str]:
        """Return the names in a folder, ascending; empty when the folder is absent."""
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def own(self, home: Path) -> None:
        """Create a home if it is absent; raise DiskError "home-unusable" unless it is ours and ours alone to write."""
        self._mkdir(home)
        found = os.stat(home)
        if found.st_uid != os.geteuid():
            text = f"{home} is owned by user {found.st_uid}, and this process runs as user {os.geteuid()}"
            raise DiskError(
                "home-unusable", text, hint="run as its owner, or set SYNCROPEL_HOME to a folder of your own"
            )
        if found.st_mode & _OTHERS_WRITE:
            text = f"others may write into {home}, its mode is {stat.S_IMODE(found.st_mode):04o}"
            raise DiskError("home-unusable", text, hint=f"look at what is in it, then: chmod go-w {home}")
        if found.st_mode & _OTHERS_ENTER:
            try:
                for entry in _entries(home):
                    _check_entry(entry, secret=entry.name in _SECRETS)
            except OSError as exc:
                raise unusable(home, exc) from exc

    def open_parent(self, home: Path) -> Path | None:
        """Return a folder above the home in which everybody may rename and remove what is not theirs, if there is one.

        A sticky folder such as /tmp is none.
        """
        for folder in home.resolve().parents:
            if os.stat(folder).st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                return folder
        return None

    def lock(self, home: Path) -> "Lock":
        """Return the lock on a home (`lock_home`)."""
        return lock_home(home)

    def mkdir(self, folder: Path) -> None:
        """Create a folder in a home and those above it, 0700, durably; present is fine, a link is not.

        Raises DiskError "home-unusable".
        """
        if folder.is_symlink():
            raise _link(folder)
        self._mkdir(folder)

    def _mkdir(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            if folder == folder.parent:
                break
            folder = folder.parent
        for path in reversed(missing):
            try:
                path.mkdir(FOLDER_MODE, exist_ok=True)
                self.fsync_dir(path.parent)
            except OSError as exc:
                raise unusable(path, exc) from exc

    def fsync_dir(self, folder: Path) -> None:
        """Make creations, renames and removals in the folder durable.

        Some file systems, such as SMB, sync no folders and say so; there a name is as durable as they make it.
        """
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as exc:
            if exc.errno not in _LACKING:
                raise
        finally:
            os.close(fd)

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that this user may still write on the folder's file system."""
        stat = os.statvfs(folder)
        return stat.f_bavail * stat.f_frsize


class Lock:
    """The advisory lock on a home, held until `release` or the end of the process, however it ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Release the home.  The file stays: removing it would let two processes hold one name each."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def lock_home(folder: Path) -> Lock:
    """Return the lock on `<folder>/lock` (flock), with our pid and start time (UTC) written into it.

    Raises DiskError "store-locked" naming pid and start time of the holder, or "home-unusable".
    """
    Disk().own(folder)
    path = folder / "lock"
    try:
        fd = _open(path, os.O_RDWR | os.O_CREAT)
    except OSError as exc:
        raise unusable(path, exc) from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        pid = f"{os.getpid()}\n".encode()
        os.pwrite(fd, pid, 0)
        # The file system's clock stamps the start; so this needs no clock of its own.
        os.pwrite(fd, _utc(os.fstat(fd).st_mtime).encode() + b"\n", len(pid))
    except BlockingIOError as exc:
        holder, started = _holder(fd)
        os.close(fd)
        raise DiskError(
            "store-locked", f"process {holder} holds {folder} since {started}", pid=holder, started_at=started
        ) from exc
    except OSError as exc:
        os.close(fd)
        if exc.errno in _NO_LOCKS:
            text = f"the file system of {folder} has no locks, so two daemons could write into one home"
            raise DiskError("home-unusable", text, hint="move the home to a local file system") from exc
        raise unusable(path, exc) from exc
    return Lock(fd)


def scratch(disk: Disk, folder: Path, name: str) -> File:
    """Return a new file that has no name any more: it goes with its last user, however that ends."""
    disk.mkdir(folder)
    path = folder / name
    file = disk.create(path)
    disk.unlink(path)
    return file


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


def unusable(path: Path, exc: OSError) -> DiskError:
    """Return the DiskError for an OSError that keeps a home from being used; "store-full" if space is all it lacks."""
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    if exc.errno in _NO_SPACE:
        return DiskError("store-full", reason)  # peers are told, so it names no path
    hint = "" if exc.errno in _REFUSED else "look at the disk, then start again"
    return DiskError("home-unusable", f"{path}: {reason}", hint=hint)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, in the order of names."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _check_entry(entry: os.DirEntry[str], *, secret: bool) -> None:
    """Raise DiskError for what others own or can write, and for a secret that everybody can read; all below it too."""
    with suppress(FileNotFoundError):  # removed since it was listed
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            return  # is not followed, or leads out of the home
        if found.st_uid not in (0, os.geteuid()):
            text = f"{entry.path} is owned by user {found.st_uid}, and this process runs as user {os.geteuid()}"
            raise DiskError("home-unusable", text, hint="look at what is in it, then remove it or change its owner")
        mode = stat.S_IMODE(found.st_mode)
        if mode & _OTHERS_WRITE:
            text = f"others may write into {entry.path}, its mode is {mode:04o}"
            raise DiskError("home-unusable", text, hint=f"look at what is in it, then: chmod go-w {entry.path}")
        if stat.S_ISDIR(found.st_mode) and mode & _OTHERS_ENTER:
            for inner in _entries(entry.path):
                _check_entry(inner, secret=secret)
        elif secret and stat.S_ISREG(found.st_mode) and mode & stat.S_IROTH:
            text = f"everybody may read the secret in {entry.path}, its mode is {mode:04o}"
            raise DiskError("home-unusable", text, hint=f"chmod go-rwx {entry.path}; and replace what was readable")


def _open(path: Path, flags: int, *, follow: bool = False) -> int:
    """Return the descriptor of a regular file in a home, whose opening waits for nobody.

    Raises DiskError "home-unusable" for anything else, such as a FIFO, and without `follow` for a link; else OSError.
    """
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), FILE_MODE)
    except OSError as exc:
        if exc.errno == errno.ELOOP and not follow:
            raise _link(path) from exc
        if exc.errno == errno.ENXIO:  # a FIFO that nobody reads, or a socket
            raise _irregular(path) from exc
        raise
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _irregular(path)


def _irregular(path: Path) -> DiskError:
    return DiskError("home-unusable", f"{path} is no regular file", hint="put a file in its place, or nothing")


def _link(path: Path) -> DiskError:
    text = f"{path} is a symbolic link, and none is followed inside a home"
    return DiskError("home-unusable", text, hint="put the file or folder itself in its place")


def _holder(fd: int) -> tuple[str, str]:
    """Return pid and start time as the holder wrote them; it may be between the two writes."""
    lines = os.pread(fd, 128, 0).decode("ascii", "replace").split("\n")
    return lines[0] or "?", (lines[1] if len(lines) > 1 else "") or _utc(os.fstat(fd).st_mtime)


def _utc(unix_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
