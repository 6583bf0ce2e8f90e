"""A body in parts: handed over as it arrives, held back while nobody takes it, and ended with its client."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.net.http1 import RequestHead
from spl.net.parts import PARTS_BYTES, BodyParts
from spl.net.routes import Match, Request, Response, Route, RouteTable
from spl.net.server import Server
from spl.net.sockets import Listener, bind_tcp
from tests.waiting import DEADLINE_S, until

MEDIA = "application/x-lines"
BODY_MAX = 8 * 1024 * 1024


@dataclass
class Taking:
    """An app that takes bodies in parts, at the pace of `go`."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    taken: list[bytes] = field(default_factory=list)
    refusing: str = ""

    def __post_init__(self) -> None:
        route = Route("POST", "/take", self.take, "open", BODY_MAX, media=(MEDIA, "application/json"), in_parts=MEDIA)
        self.table = RouteTable([route, Route("GET", "/last", self.last, "open")])

    def match(self, head: RequestHead) -> Match:
        return Match(*self.table.match(head.method, head.path))

    def respond(self, request: Request, match: Match) -> "Response | asyncio.Future[Response]":
        if self.refusing == "at once":
            raise SplError("scope-forbidden")
        return match.route.handler(request)

    def refuse(self, error: SplError, head: RequestHead | None) -> Response:
        return Response(error.status, json.dumps(error.to_json()).encode())

    def last(self, request: Request) -> Response:
        return Response(body=b"last")

    async def take(self, request: Request) -> Response:
        if request.parts is None:
            return Response(body=b"whole %d" % len(request.body))
        self.begun.set()
        try:
            await self.go.wait()
            async for part in request.parts:
                self.taken.append(part)
                request.parts.let_go(len(part))
                if self.refusing:
                    raise SplError("scope-forbidden")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Response(body=b"%d" % sum(map(len, self.taken)))


@asynccontextmanager
async def serving(app: Taking, limits: Limits | None = None) -> AsyncIterator[tuple[Server, int]]:
    stop, sock = asyncio.Event(), bind_tcp("127.0.0.1", 0)[0]
    server = Server(app, limits or Limits(), now_ms=lambda: 0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([Listener(sock)], stop))
        yield server, sock.getsockname()[1]
        stop.set()


def head(size: int | None, kind: str = MEDIA, more: bytes = b"") -> bytes:
    framing = b"transfer-encoding: chunked" if size is None else b"content-length: %d" % size
    return b"POST /take HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\n%b\r\n%b\r\n" % (kind.encode(), framing, more)


LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.read()


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 1000, b"ab" * PARTS_BYTES * 3])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_arrives_whole_in_order_and_the_next_request_is_answered(body: bytes, chunked: bool) -> None:
    app = Taking()
    app.go.set()
    sent = body if not chunked else (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(None if chunked else len(body)) + sent + LAST)
        answer = await answer_of(reader)
        writer.close()
    assert b"".join(app.taken) == body
    said = b"whole 0" if not body and not chunked else b"%d" % len(body)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"\r\n\r\n" + said + b"HTTP/1.1" in answer
    assert answer.endswith(b"\r\n\r\nlast")


async def test_another_media_type_of_the_route_is_handed_over_whole() -> None:
    async with serving(Taking()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(3, "application/json") + b"abc" + LAST)
        assert b"\r\n\r\nwhole 3HTTP/1.1 200" in await answer_of(reader)
        writer.close()


async def test_a_body_that_nobody_takes_is_not_read_from_its_client() -> None:
    """The client can send what the sockets hold, and a bounded part more; taken, the rest comes."""
    app, size = Taking(), BODY_MAX
    async with serving(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(size) + b"x" * size + LAST)
        async with asyncio.timeout(DEADLINE_S):
            await app.begun.wait()
            (connection,) = await until(lambda: list(server._shared.connections))
            await until(lambda: connection.read_paused)
            held = server._shared.admission._held
            assert 0 < sum(held.values()) < PARTS_BYTES + 2**20
            app.go.set()
            assert b"\r\n\r\n%dHTTP/1.1 200" % size in await answer_of(reader)
        assert not held
        writer.close()


async def test_a_handler_that_does_not_take_costs_the_client_no_deadline() -> None:
    app = Taking()
    async with serving(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(4 * PARTS_BYTES) + b"x" * 4 * PARTS_BYTES + LAST)
        async with asyncio.timeout(DEADLINE_S):
            (connection,) = await until(lambda: list(server._shared.connections))
            await until(connection._is_held_back)
            assert not connection.is_late(asyncio.get_running_loop().time() + 1e6, 60.0)
            app.go.set()
        assert b"%dHTTP/1.1 200" % (4 * PARTS_BYTES) in await answer_of(reader)
        writer.close()


async def test_a_body_that_stops_is_answered_408_and_cancels_the_handler() -> None:
    app = Taking()
    app.go.set()
    async with serving(app, Limits(body_timeout_s=0.2, linger_s=0.1)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(10) + b"x")
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 408")
        async with asyncio.timeout(DEADLINE_S):
            await app.cancelled.wait()
        writer.close()
    assert app.taken == [b"x"]


@pytest.mark.parametrize("end", [asyncio.StreamWriter.close, asyncio.StreamWriter.write_eof])
async def test_a_client_that_ends_midway_cancels_the_handler(end: Callable[[asyncio.StreamWriter], None]) -> None:
    app = Taking()
    app.go.set()
    async with serving(app) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(10) + b"x")
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: app.taken)
            end(writer)
            await app.cancelled.wait()
        writer.close()


async def test_a_client_that_closes_its_side_behind_a_whole_body_is_answered() -> None:
    app, size = Taking(), 4 * PARTS_BYTES
    async with serving(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(size) + b"x" * size)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            (connection,) = await until(lambda: list(server._shared.connections))
            await until(connection._is_held_back)
        app.go.set()
        assert (await answer_of(reader)).endswith(b"\r\n\r\n%d" % size)
        writer.close()


@pytest.mark.parametrize("refusing", ["at once", "later"])
async def test_a_refusal_before_the_end_arrives_and_closes(refusing: str) -> None:
    app = Taking(refusing=refusing)
    app.go.set()
    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(1000) + b"x")
        answer = await answer_of(reader)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 403")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer


async def test_a_body_that_breaks_its_framing_is_refused_once() -> None:
    app = Taking()
    app.go.set()
    async with serving(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(None) + b"1\r\nx\r\n")
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: app.taken)
        writer.write(b"no\r\n")
        answer = await answer_of(reader)
        async with asyncio.timeout(DEADLINE_S):
            await app.cancelled.wait()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


async def test_parts_wait_and_end() -> None:
    taken: list[int] = []
    parts = BodyParts(taken.append)
    waiting = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0)
    parts.put(b"abc")
    assert await waiting == b"abc"
    parts.put(b"x" * PARTS_BYTES)
    assert parts.is_full
    parts.end()
    assert [len(part) async for part in parts] == [PARTS_BYTES]
    parts.let_go(3)
    assert taken == [0, 0, 3]
    assert not parts.is_full
