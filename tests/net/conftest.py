"""A small app behind a real server, raw sockets to talk to it, and certificates.

The loop is the one SPL_TEST_LOOP names (tests/conftest.py).
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.net.http1 import RequestHead
from spl.net.routes import Later, Match, Request, Response, Route, RouteTable
from spl.net.server import Server
from spl.net.sockets import Listener, bind_tcp
from tests.waiting import DEADLINE_S, turns, until

CLOCK_MS = 1_764_000_000_000  # Mon, 24 Nov 2025 16:00:00 GMT


@dataclass
class Echo:
    """An app with one route of each kind; events tell tests what has happened."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Request] = field(default_factory=list)
    matched: asyncio.Event = field(default_factory=asyncio.Event)
    promises: list[Later[bytes]] = field(default_factory=list)
    broken: bool = False
    yielded: int = 0

    def __post_init__(self) -> None:
        self.table = RouteTable(
            [
                Route("GET", "/here/{name}", self.here, "open"),
                Route("POST", "/echo", self.echo, "open", body_bytes=1000),
                Route("POST", "/later", self.later, "open", body_bytes=1000),
                Route("POST", "/promised", self.promised, "open", body_bytes=1000),
                Route("GET", "/wait", self.wait, "open"),
                Route("GET", "/poll", self.wait, "open", streams=True),
                Route("GET", "/stream", self.stream, "open", streams=True),
                Route("GET", "/flood", self.flood, "open", streams=True),
                Route("GET", "/late-flood", self.late_flood, "open"),
                Route("GET", "/big", self.big, "open"),
                Route("GET", "/crash", self.crash, "open"),
                Route("GET", "/crash-later", self.crash_later, "open"),
                Route("GET", "/crash-stream", self.crash_stream, "open", streams=True),
                Route("GET", "/withdrawn-stream", self.withdrawn_stream, "open", streams=True),
                Route("GET", "/refuse", self.refuse_now, "open"),
                Route("GET", "/bad-header", self.bad_header, "open"),
                Route("DELETE", "/gone", self.gone, "open"),
            ]
        )

    def match(self, head: RequestHead) -> Match:
        self.matched.set()
        if head.headers.get("authorization") == "Bearer wrong":
            raise SplError("auth-invalid")
        route, params = self.table.match(head.method, head.path)
        return Match(route, params)

    def respond(self, request: Request, match: Match) -> Response | Awaitable[Response]:
        self.seen.append(request)
        return match.route.handler(request)

    def refuse(self, error: SplError, head: RequestHead | None) -> Response:
        if self.broken:
            raise ZeroDivisionError("even here")
        return Response(error.status, json.dumps(error.to_json()).encode())

    def here(self, request: Request) -> Response:
        return Response(body=json.dumps([request.params["name"], dict(request.query), request.peer]).encode())

    def echo(self, request: Request) -> Response:
        return Response(body=request.body)

    async def later(self, request: Request) -> Response:
        await turns()
        return Response(201, request.body, headers=(("location", "/echo"),))

    def promised(self, request: Request) -> Response | Awaitable[Response]:
        answer = Later[bytes](self._form)
        self.promises.append(answer)
        if request.body.startswith(b"at once"):
            answer.set_result(request.body)
        self.started.set()
        return answer

    def _form(self, body: bytes) -> Response:
        if body == b"crash":
            raise ZeroDivisionError("secret")
        return Response(201, body)

    async def wait(self, request: Request) -> Response:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Response(body=b"released")

    async def stream(self, request: Request) -> Response:
        return Response(body=self._pieces(), content_type="text/event-stream")

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            yield b"one"
            self.started.set()
            await self.release.wait()
            yield b""
            yield b"two"
        finally:
            self.closed.set()

    def flood(self, request: Request) -> Response:
        return Response(body=self._flood())

    async def late_flood(self, request: Request) -> Response:
        self.started.set()
        await self.release.wait()
        return Response(body=Flood(self))

    async def _flood(self) -> AsyncIterator[bytes]:
        self.started.set()
        try:
            while True:
                yield bytes(65536)
        finally:
            self.closed.set()

    def big(self, request: Request) -> Response:
        return Response(body=bytes(24_000_000))

    def crash(self, request: Request) -> Response:
        raise ZeroDivisionError("a secret detail")

    async def crash_later(self, request: Request) -> Response:
        raise ZeroDivisionError("a secret detail")

    async def withdrawn_stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise SplError("pair-state-conflict", "withdrawn")

        return Response(body=pieces())

    async def crash_stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise ZeroDivisionError("a secret detail")

        return Response(body=pieces())

    async def refuse_now(self, request: Request) -> Response:
        raise SplError("rate-limited")

    def bad_header(self, request: Request) -> Response:
        return Response(headers=(("x", "a\r\nset-cookie: b"),))

    def gone(self, request: Request) -> Response:
        return Response(204)


class Flood:
    """An endless body that counts what was taken of it."""

    def __init__(self, app: Echo) -> None:
        self.app = app

    def __aiter__(self) -> "Flood":
        return self

    async def __anext__(self) -> bytes:
        self.app.yielded += 1
        return bytes(65536)

    async def aclose(self) -> None:
        self.app.closed.set()


@dataclass
class Running:
    """A server under test."""

    app: Echo
    server: Server
    port: int
    stop: asyncio.Event
    done: asyncio.Task[None]

    async def gone(self) -> None:
        """Wait until the server has no connection."""
        await until(lambda: not self.server._shared.connections)

    async def ask(self, data: bytes, *, until: bytes | None = None) -> bytes:
        """Send bytes and return all that comes until `until`, or the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(DEADLINE_S):
                return await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()


Serve = Callable[..., "asynccontextmanager[Running]"]


@pytest.fixture
def serve() -> Serve:
    """Return `async with serve(limits, tls=..., app=...)`, a server on a free port of 127.0.0.1."""

    @asynccontextmanager
    async def run(
        limits: Limits | None = None, *, tls: ssl.SSLContext | None = None, app: object = None
    ) -> AsyncIterator[Running]:
        echo = app or Echo()
        (sock,) = bind_tcp("127.0.0.1", 0)
        port = sock.getsockname()[1]
        stop = asyncio.Event()
        server = Server(echo, limits or Limits(shutdown_s=0.2), now_ms=lambda: CLOCK_MS)
        async with asyncio.TaskGroup() as tasks:
            done = tasks.create_task(server.serve([Listener(sock, tls)], stop))
            try:
                yield Running(echo, server, port, stop, done)
            finally:
                stop.set()
                async with asyncio.timeout(DEADLINE_S):
                    await done

    return run


@dataclass
class Authority:
    """A private CA, its file, and a server context with a certificate of it."""

    ca: trustme.CA
    ca_file: Path
    server: ssl.SSLContext


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return a private CA with a certificate for localhost and 127.0.0.1."""
    ca = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return Authority(ca, ca_file, context)


@pytest.fixture
def issue(authority: Authority, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return `issue(*names)`, which writes a certificate chain and its key and returns their paths."""

    def write(*names: str) -> tuple[Path, Path]:
        leaf = authority.ca.issue_cert(*names)
        cert, key = tmp_path / f"{names[-1]}.pem", tmp_path / f"{names[-1]}.key"
        for index, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(cert, append=index > 0)
        leaf.private_key_pem.write_to_path(key)
        return cert, key

    return write


@contextmanager
def full_queue(address: str, port: int) -> Iterator[None]:
    """Listen at an address that never answers again: its queue of connections is full, so the kernel drops each SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((address, port))
        yield
