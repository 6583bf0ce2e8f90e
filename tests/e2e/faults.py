"""A real daemon on a machine, or of a version, that is at fault: `python -m tests.e2e.faults FAULT serve …`.

What no test can do to a disk or to code from outside is done here, before the daemon starts; all else is the product.
While the file that SPL_FAULT names is there, the fault lasts.
"""

import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final

SWITCH: Final = Path(os.environ.get("SPL_FAULT", "/nonexistent"))
LOOK_AGAIN_S: Final = 0.01
BAD_SECTOR: Final = range(12_288, 16_384)


def slow_disk() -> None:
    """Let each sync of a file wait for as long as the fault lasts, as on a disk that hangs."""
    sync = os.fdatasync

    def waits(fd: Any) -> None:
        while SWITCH.exists():
            time.sleep(LOOK_AGAIN_S)
        sync(fd)

    os.fdatasync = waits


def full_disk() -> None:
    """Let each write into a file find no space for as long as the fault lasts."""

    def bounded(write: Callable[..., int]) -> Callable[..., int]:
        def finds_none(fd: int, *args: Any) -> int:
            if SWITCH.exists() and stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, *args)

        return finds_none

    os.write, os.pwrite = bounded(os.write), bounded(os.pwrite)


def broken_disk() -> None:
    """Let each sync of a file fail for as long as the fault lasts, as on a disk with bad sectors."""
    sync = os.fdatasync

    def fails(fd: Any) -> None:
        if SWITCH.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    os.fdatasync = fails


def bad_sector() -> None:
    """Let no read get 4 KiB in the middle of the first segment of the log for as long as the fault lasts."""
    pread = os.pread

    def bounded(fd: int, size: int, offset: int) -> bytes:
        hit = offset < BAD_SECTOR.stop and offset + size > BAD_SECTOR.start and SWITCH.exists()
        if hit and os.readlink(f"/proc/self/fd/{fd}").endswith("/store/00000000000000000001.jsonl"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)

    os.pread = bounded


def dying_task() -> None:
    """Let the task that reads from a peer die each time it is started, as a fault of our own code would."""
    from spl.sync.schedule import Sync

    follow = Sync._wait_s

    def dies(self: Sync, *args: Any) -> float | None:
        if SWITCH.exists() and sys._getframe(1).f_code.co_name == "_follow":
            raise RuntimeError("a fault that a test put here")
        return follow(self, *args)

    Sync._wait_s = dies  # type: ignore[method-assign]


def dying_service() -> None:
    """Let one of the services beside the listeners die each time it is started."""
    from spl.doctor.health import HealthSampler

    run = HealthSampler.run

    async def dies(self: HealthSampler, *args: Any) -> None:
        if SWITCH.exists():
            raise RuntimeError("a fault that a test put here")
        await run(self, *args)

    HealthSampler.run = dies  # type: ignore[method-assign]


def deaf_loop() -> None:
    """Let the event loop never come back from a service, and so never hear of a signal; the file `deaf` says so."""
    from spl.doctor.health import HealthSampler

    beat = HealthSampler.beat

    def spins(self: HealthSampler, late_ms: float) -> None:
        while SWITCH.exists():
            SWITCH.with_name("deaf").touch()
        beat(self, late_ms)

    HealthSampler.beat = spins  # type: ignore[method-assign]


def slow_adapter() -> None:
    """Let the views take a twentieth of a second for each record."""
    from spl.home.views import Views

    folded = Views.folded

    def lingers(self: Views, *args: Any) -> Views:
        if SWITCH.exists():
            time.sleep(0.05)
        return folded(self, *args)

    Views.folded = lingers  # type: ignore[method-assign]


def slow_rebuild() -> None:
    """Let the index take as long to rebuild as the fault lasts; the file `rebuilding` says that it has begun."""
    from spl.home.recovery import Replay

    run = Replay.run

    def lingers(self: Replay, *args: Any) -> Iterator[tuple[int, int]]:
        while SWITCH.exists():
            SWITCH.with_name("rebuilding").touch()
            time.sleep(LOOK_AGAIN_S)
            yield 0, 1
        yield from run(self, *args)

    Replay.run = lingers  # type: ignore[method-assign]


def hung_reading() -> None:
    """Let a thread that checks the store never come back; the file `reading` says that it has begun."""
    from spl.home.check import StoreCheck

    run = StoreCheck.run

    def hangs(self: StoreCheck) -> Iterator[dict[str, Any]]:
        while SWITCH.exists():
            SWITCH.with_name("reading").touch()
            time.sleep(LOOK_AGAIN_S)
        yield from run(self)

    StoreCheck.run = hangs  # type: ignore[method-assign]


def no_network() -> None:
    """Have no network that leads to any peer."""
    from spl.net import sockets

    class Cut(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            if SWITCH.exists():
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
            super().setsockopt(*args)

    shim = ModuleType("socket")
    vars(shim).update(vars(socket) | {"socket": Cut})
    sockets.socket = shim  # type: ignore[attr-defined]


def poor_file_system() -> None:
    """Have no modes to set and no folders to sync, as network file systems and those of other systems."""

    def refuses(*args: Any, **named: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    sync = os.fsync

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(fd)

    os.chmod, os.fsync = refuses, files_only  # type: ignore[assignment]


def slow_import() -> None:
    """Let the import of the daemon take as long as the fault lasts; the file `importing` says that it has begun."""

    class Lingers:
        def find_spec(self, name: str, *args: Any) -> None:
            while name == "spl.daemon" and SWITCH.exists():
                SWITCH.with_name("importing").touch()
                time.sleep(LOOK_AGAIN_S)

    sys.meta_path.insert(0, Lingers())  # type: ignore[arg-type]


def later(seconds: int) -> Callable[[], None]:
    """Return what lets the process live so many seconds after the present, on a clock that runs on from there."""

    def shift() -> None:
        time_ns = time.time_ns
        time.time_ns = lambda: time_ns() + seconds * 10**9

    return shift


def wrong_clock() -> None:
    """Let the clock be ahead of that of other machines: by as many seconds as the switch says, or by ten minutes."""
    time_ns, time_s = time.time_ns, time.time

    def ahead_s() -> int:
        with suppress(FileNotFoundError):
            return int(SWITCH.read_text() or 600)
        return 0

    time.time_ns = lambda: time_ns() + ahead_s() * 10**9
    time.time = lambda: time_s() + ahead_s()


def other_version() -> None:
    """Be a daemon of a later time, whose protocol is another one."""
    import spl.core.version

    spl.core.version.PROTOCOL = 99  # type: ignore[misc]


FAULTS: Final[dict[str, Callable[[], None]]] = {
    "slow-disk": slow_disk,
    "full-disk": full_disk,
    "broken-disk": broken_disk,
    "bad-sector": bad_sector,
    "dying-task": dying_task,
    "dying-service": dying_service,
    "deaf-loop": deaf_loop,
    "slow-adapter": slow_adapter,
    "hung-reading": hung_reading,
    "no-network": no_network,
    "poor-file-system": poor_file_system,
    "slow-import": slow_import,
    "slow-rebuild": slow_rebuild,
    "wrong-clock": wrong_clock,
    "other-version": other_version,
    "46-seconds-later": later(46),
    "85-days-later": later(85 * 86_400),
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    from spl.cli.main import main

    sys.exit(main(sys.argv[2:]))
