"""The HTTP/1.1 server: accepts within a connection limit, sweeps deadlines, ends gracefully.

It accepts by itself rather than through `loop.create_server`, so that TLS
handshakes count towards the limit too and a slow handshake delays no other connection.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ..core.event import event
from ..core.limits import Limits
from .address import Proxies
from .admission import Admission, Seat
from .connection import Connection
from .handshakes import Handshakes, begun
from .routes import App
from .shared import Shared
from .sockets import Listener

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FATAL: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
_REFUSED_COUNT = 64  # connections over the limit that are told 503; further ones are only closed
_SWEEP_S = 1.0
_CROWDED_SHARE = 5  # while more than half of the seats are taken, an idle connection has a fifth of its time

log = logging.getLogger("spl.net")


class Server:
    """Serves one app on any number of listeners.  `now_ms` is Unix time, for the Date header."""

    def __init__(self, app: App, limits: Limits, *, now_ms: Callable[[], int], proxies: Proxies | None = None) -> None:
        self._app = app
        self._limits = limits
        self._now_ms = now_ms
        self._admission = Admission(
            limits.connections_count, limits.connections_per_source, Proxies() if proxies is None else proxies
        )
        self._handshakes = Handshakes(self._admission.proxies)
        self._sweeping = False
        shortest = min(
            limits.head_timeout_s,
            limits.body_timeout_s,
            limits.write_stall_timeout_s,
            limits.idle_timeout_s,
            limits.linger_s,
        )
        self._sweep_s = min(_SWEEP_S, shortest / 4)

    async def serve(self, listeners: Sequence[Listener], stop: asyncio.Event) -> None:
        """Accept until `stop` is set, then let requests that run end within `shutdown_s`.

        The listeners' sockets are closed at the end.  A streamed answer is the app's to
        end at the stop; what still runs after `shutdown_s` is cancelled and cut.
        """
        async with asyncio.TaskGroup() as tasks:
            shared: Shared[Connection] = Shared(self._app, self._limits, self._now_ms, tasks, self._admission)
            self._shared = shared
            try:
                async with asyncio.TaskGroup() as accepting:
                    running = [accepting.create_task(self._accept(listener)) for listener in listeners]
                    await stop.wait()
                    for task in running:
                        task.cancel()
                _close(listeners)
                await self._end(shared)
            finally:
                _close(listeners)
                for connection in list(shared.connections):
                    connection.abort()

    async def _end(self, shared: Shared[Connection]) -> None:
        """Close idle connections and wait for the others."""
        shared.stopping = True
        for connection in list(shared.connections):
            connection.stop()
        try:
            async with asyncio.timeout(self._limits.shutdown_s):
                while shared.connections:
                    shared.emptied.clear()
                    await shared.emptied.wait()
        except TimeoutError:
            log.warning(**event("http.cut", connections=len(shared.connections), msg="connections did not end in time"))

    async def _accept(self, listener: Listener) -> None:
        """Accept until cancelled; handshakes that are under way end with it."""
        async with asyncio.TaskGroup() as handshakes:
            await self._accept_into(listener, handshakes)

    async def _accept_into(self, listener: Listener, handshakes: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener.sock)
            except OSError as exc:
                if exc.errno in _FATAL:
                    raise
                if exc.errno in _EXHAUSTED:
                    log.error(**event("http.exhausted", error=exc.strerror, msg="cannot accept, trying again"))
                    await asyncio.sleep(_SWEEP_S)
                continue
            seat = self._admission.take("unix" if listener.local else str(address[0]))
            if seat is None and (listener.tls or self._shared.refused >= _REFUSED_COUNT):
                sock.close()
            elif listener.tls is None:
                await self._adopt(sock, listener, seat)
            else:
                assert seat is not None
                task = handshakes.create_task(self._adopt_tls(sock, listener, seat, str(address[0])))
                seat.holder = _Handshake(task, loop.time())

    async def _adopt_tls(self, sock: socket.socket, listener: Listener, seat: Seat, address: str) -> None:
        """Adopt a socket once its peer has sent something and a handshake may begin."""
        with self._held(sock, seat):
            async with asyncio.timeout(self._limits.head_timeout_s) as waiting:
                await begun(sock)
                with self._handshakes.turn(address) as turn:
                    self._sweep_later()
                    await turn.free
                    waiting.reschedule(None)
                    await self._adopt(sock, listener, seat)

    async def _adopt(self, sock: socket.socket, listener: Listener, seat: Seat | None) -> None:
        """Make a connection of an accepted socket, after the TLS handshake if it has one."""
        scheme = "https" if listener.tls else "http"
        handshake_s = self._limits.head_timeout_s if listener.tls else None
        with self._held(sock, seat):
            sock.setblocking(False)
            _tune(sock, self._limits.write_stall_timeout_s)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self._shared, seat, local=listener.local, scheme=scheme),
                sock,
                ssl=listener.tls,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=self._limits.linger_s if listener.tls else None,
            )
        self._sweep_later()

    @contextmanager
    def _held(self, sock: socket.socket, seat: Seat | None) -> Iterator[None]:
        """Drop a socket that does not become a connection."""
        try:
            yield
        except OSError as exc:  # ssl.SSLError is one
            log.debug(**event("http.handshake", error=type(exc).__name__, msg="connection not established"))
            self._drop(sock, seat)
        except asyncio.CancelledError:  # it gave way to another one, or the server stops
            self._drop(sock, seat)
            raise

    def _drop(self, sock: socket.socket, seat: Seat | None) -> None:
        sock.close()
        if seat is not None:
            self._admission.leave(seat)

    def _sweep_later(self) -> None:
        if not self._sweeping and (self._shared.connections or self._handshakes.are_waited_for):
            self._sweeping = True
            self._shared.loop.call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        """Expire deadlines; goes on only while there is something to expire, so an idle daemon sleeps."""
        self._sweeping = False
        now = self._shared.loop.time()
        idle_s = self._limits.idle_timeout_s / (_CROWDED_SHARE if self._admission.is_crowded else 1)
        for connection in [found for found in self._shared.connections if found.is_late(now, idle_s)]:
            connection.expire(now)
        self._handshakes.hurry(now, self._limits.head_timeout_s)
        self._sweep_later()


class _Handshake:
    """Occupies a slot during a TLS handshake, which counts as quiet from its start."""

    __slots__ = ("began", "task")

    def __init__(self, task: asyncio.Task[None], began: float) -> None:
        self.task, self.began = task, began

    def quiet_since(self) -> float:
        """Return when the handshake began."""
        return self.began

    def abort(self) -> None:
        """End the handshake."""
        self.task.cancel()


def _tune(sock: socket.socket, stall_s: float) -> None:
    """Send small answers at once; let the kernel end a peer that acknowledges nothing.

    The kernel's own buffer hides a dead peer from a stream that sends little, and
    TCP_USER_TIMEOUT (Linux) is the only clock that sees it.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))


def _close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.sock.close()
