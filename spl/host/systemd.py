"""What a service manager hands over and is told: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

Nothing of systemd is linked: the protocol is a datagram of NAME=VALUE lines to a socket, and descriptors from 3 on.
"""

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from ..core.errors import SplError, count
from ..core.event import event
from ..core.pair.diff import THREAD_PAIRS
from ..core.pair.pair import Pair, Phase
from ..home.tables.lists import by_thread
from ..home.writer import Writer
from ..sync.notify import Notifier
from ..sync.supervise import wait

log = logging.getLogger("spl.daemon")

FIRST_FD: Final = 3
BEATS: Final = 4
"""Signs of life within the time after which the manager kills."""
READY_LOOK_S: Final = 0.5
_OURS: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Manager:
    """The service manager that started this process, if one did; without one every method does nothing."""

    def __init__(self, env: MutableMapping[str, str], pid: int) -> None:
        """Take what the manager left in the environment, and remove it, so that no child answers in our place.

        `plain` and `secure` are the listening sockets that were handed over: those named `tls` are secure.
        Raises SplError "listen-failed" for one that is no listening TCP socket.
        """
        found = {name: env.pop(name, "") for name in _OURS}
        address = found["NOTIFY_SOCKET"]
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        ours = found["WATCHDOG_PID"] in ("", str(pid))
        self.watchdog_s = int(found["WATCHDOG_USEC"]) / 1e6 if ours and found["WATCHDOG_USEC"].isdigit() else 0.0
        given = int(found["LISTEN_FDS"]) if found["LISTEN_PID"] == str(pid) and found["LISTEN_FDS"].isdigit() else 0
        self.plain: list[socket.socket] = []
        self.secure: list[socket.socket] = []
        names = found["LISTEN_FDNAMES"].split(":")
        for place, fd in enumerate(range(FIRST_FD, FIRST_FD + given)):
            is_tls = names[place : place + 1] == ["tls"]
            (self.secure if is_tls else self.plain).append(_listening(fd))
        self.folders = env.get("RUNTIME_DIRECTORY", "").split(":")[:1] if env.get("RUNTIME_DIRECTORY") else []
        self._status = ""
        self.is_ready = False
        """Whether it was told that the daemon serves."""

    @property
    def is_there(self) -> bool:
        """Whether a service manager asked for notifications."""
        return bool(self._address)

    def status(self, pairs: Mapping[str, Pair]) -> None:
        """Tell how many pairs there are, by state, if that changed."""
        before, self._status = self._status, status_of(pairs)
        if self.is_ready and before != self._status:
            self._tell(STATUS=self._status)

    def ready(self, trouble: str = "") -> None:
        """Tell that the daemon serves; `trouble` is what the last reload found wrong."""
        self.is_ready = True
        self._tell(READY="1", STATUS=trouble or self._status)

    def reloading(self) -> None:
        """Tell that the configuration is read again; `ready` ends it, also if it failed, or a reload would hang."""
        self._tell(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def opening(self, done: int, total: int) -> None:
        """Tell how far an opening is, and that it goes on."""
        status = f"rebuilding the index: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        self._tell(STATUS=status, EXTEND_TIMEOUT_USEC="60000000")

    def stopping(self) -> None:
        """Tell that the stop has begun."""
        self._tell(STOPPING="1")

    def beat(self) -> None:
        """Give a sign of life."""
        self._tell(WATCHDOG="1")

    def _tell(self, **fields: str) -> None:
        if not self._address:
            return
        text = "".join(f"{name}={value}\n" for name, value in fields.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)


def _listening(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise SplError("listen-failed", f"descriptor {fd} was handed over and is no socket") from exc
    if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise SplError("listen-failed", f"descriptor {fd} was handed over and is no listening TCP socket")
    os.set_inheritable(fd, False)
    sock.setblocking(False)
    return sock


class ManagedService:
    """Tells the manager how the pairs are, when the daemon is ready, and that it lives.

    A sign of life is given while the loop turns, for this runs on it, and the writer's thread does: it has answered
    the last empty submission, or written something since.  A disk that hangs thus ends in a restart.
    """

    def __init__(self, manager: Manager, writer: Writer, notifier: Notifier) -> None:
        self._manager, self._writer, self._notifier = manager, writer, notifier
        self._asked: Future[list[object]] | None = None
        self._seq = -1

    async def run(self, stop: asyncio.Event) -> None:
        """Tell until the notifier stops."""
        every_s = self._manager.watchdog_s / BEATS or None
        with self._notifier.listening([by_thread(THREAD_PAIRS)]) as news:
            while not (stop.is_set() or self._notifier.stopping):
                news.clear()
                self._manager.status(self._writer.views.pairs)
                if not self._manager.is_ready and not (self._writer.store.readonly or self._writer.store.full):
                    self._manager.ready()
                if every_s and self._manager.is_ready and self._moves():
                    self._manager.beat()
                await wait(news, every_s if self._manager.is_ready else READY_LOOK_S)

    def _moves(self) -> bool:
        seq, last = self._writer.store.last_seq, self._seq
        self._seq = seq
        if self._asked is None or self._asked.done():
            try:
                self._asked = self._writer.submit([])  # type: ignore[assignment]
            except SplError:  # it has more than it takes, and what it has written tells
                return seq != last
            return True
        log.warning(**event("daemon.writer_waits", seq=seq))
        return seq != last


def status_of(pairs: Mapping[str, Pair]) -> str:
    """Return "3 pairs: 2 active, 1 paused"."""
    states = Counter(pair.phase for pair in pairs.values() if pair.phase is not Phase.REVOKED)
    told = ", ".join(f"{number} {phase}" for phase, number in states.most_common())
    return count(states.total(), "pair") + (f": {told}" if told else "")
