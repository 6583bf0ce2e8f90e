"""The HTTP/1.1 server: accepts within a connection limit, sweeps deadlines, ends gracefully.

It accepts by itself rather than through `loop.create_server`, so that TLS
handshakes count towards the limit too and one slow handshake holds up nobody.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from ..core.event import event
from ..core.limits import Limits
from .connection import App, Connection, Match, Shared
from .sockets import Listener

__all__ = ["App", "Match", "Server"]

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FATAL: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
_REFUSED_COUNT = 64  # connections over the limit that are told 503; further ones are only closed
_SWEEP_S = 1.0

log = logging.getLogger("spl.net")


class Server:
    """Serves one app on any number of listeners.  `now_ms` is Unix time, for the Date header."""

    def __init__(self, app: App, limits: Limits, *, now_ms: Callable[[], int]) -> None:
        self._app = app
        self._limits = limits
        self._now_ms = now_ms
        self._handshakes = 0
        self._sweeping = False
        self._emptied = asyncio.Event()
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
            shared = Shared(self._app, self._limits, self._now_ms, tasks, self._closed)
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

    async def _end(self, shared: Shared) -> None:
        """Close idle connections and wait for the others."""
        shared.stopping = True
        for connection in list(shared.connections):
            connection.stop()
        try:
            async with asyncio.timeout(self._limits.shutdown_s):
                while shared.connections:
                    self._emptied.clear()
                    await self._emptied.wait()
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
                sock, _ = await loop.sock_accept(listener.sock)
            except OSError as exc:
                if exc.errno in _FATAL:
                    raise
                if exc.errno in _EXHAUSTED:
                    log.error(**event("http.exhausted", error=exc.strerror, msg="cannot accept, trying again"))
                    await asyncio.sleep(_SWEEP_S)
                continue
            if len(self._shared.connections) + self._handshakes >= self._limits.connections_count + _REFUSED_COUNT:
                sock.close()
                continue
            self._handshakes += 1
            if listener.tls is None:
                await self._adopt(sock, listener)
            else:
                handshakes.create_task(self._adopt(sock, listener))

    async def _adopt(self, sock: socket.socket, listener: Listener) -> None:
        """Make a connection of an accepted socket, after the TLS handshake where there is one."""
        scheme = "https" if listener.tls else "http"
        handshake_s = self._limits.head_timeout_s if listener.tls else None
        try:
            sock.setblocking(False)
            _tune(sock, self._limits.write_stall_timeout_s)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self._shared, local=listener.local, scheme=scheme),
                sock,
                ssl=listener.tls,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=self._limits.linger_s if listener.tls else None,
            )
        except OSError as exc:  # ssl.SSLError is one
            log.debug(**event("http.handshake", error=type(exc).__name__, msg="connection not established"))
            sock.close()
        finally:
            self._handshakes -= 1
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._sweeping and self._shared.connections:
            self._sweeping = True
            self._shared.loop.call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        """Expire deadlines; goes on only while there are connections, so an idle daemon sleeps."""
        self._sweeping = False
        now = self._shared.loop.time()
        late = [connection for connection in self._shared.connections if connection.deadline <= now]
        for connection in late:
            connection.expire(now)
        self._sweep_later()

    def _closed(self) -> None:
        if not self._shared.connections:
            self._emptied.set()


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
