"""The server: how many it serves, how it stops, and TLS."""

import asyncio
import contextlib
import os
import socket
import ssl
from math import inf

import pytest

from spl.core.limits import Limits
from spl.net.connection import Connection
from spl.net.heads import encode_request
from spl.net.http1 import read_answer
from spl.net.phases import Stage
from spl.net.server import Server
from spl.net.sockets import Listener, bind_unix
from tests.net.conftest import Authority, Running
from tests.waiting import DEADLINE_S, until


def connections(server: Running) -> set[Connection]:
    shared = getattr(server.server, "_shared", None)
    return shared.connections if shared else set()


GET = b"GET /here/a HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /here/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_connections_over_the_limit_are_told_503(serve) -> None:
    async with serve(Limits(connections_count=1, shutdown_s=0.2)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await server.app.started.wait()
        refused = await server.ask(GET)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b'"TOO_MANY_CONNECTIONS"' in refused
        server.app.release.set()
        assert (await reader.read()).endswith(b"released")
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(DEADLINE_S):
            while not (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200"):
                pass


BODY = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize("part", [b"", b"GET /here", GET, BODY], ids=["silent", "head", "idle", "body"])
async def test_a_quiet_connection_gives_way_to_a_newcomer(serve, part: bytes) -> None:
    """Silent, in the middle of a head or a body, or between two requests: all the same."""
    async with serve(Limits(connections_per_source=1, shutdown_s=0.2)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(part)
        if part == GET:
            await reader.readuntil(b"}")
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP/1.1" not in await reader.read()
        writer.close()


async def test_a_silent_tls_handshake_gives_way_too(serve, authority: Authority) -> None:
    async with serve(Limits(connections_count=2, shutdown_s=0.2), tls=authority.server) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        context = ssl.create_default_context(cafile=authority.ca_file)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        writer.write(CLOSE)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        for each, _ in silent[:3]:
            async with asyncio.timeout(DEADLINE_S):
                assert await each.read() == b""
        for _, each in (*silent, (reader, writer)):
            each.close()


async def test_only_a_trusted_proxy_says_who_asks(serve) -> None:
    ask = b"GET /here/x HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.1, 192.0.2.7\r\nConnection: close\r\n\r\n"
    async with serve() as server:
        await server.ask(ask)
        server.server._admission.proxies.trust(["127.0.0.0/8"])
        await server.ask(ask)
        assert [request.address for request in server.app.seen] == ["127.0.0.1", "192.0.2.7"]
        assert {request.peer for request in server.app.seen} == {"127.0.0.1"}


async def test_stop_lets_a_running_request_end_and_closes_idle_ones(serve) -> None:
    async with serve(Limits(shutdown_s=DEADLINE_S)) as server:
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", server.port)
        idle_writer.write(GET)
        await idle_reader.readuntil(b"}")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.app.started.wait()
        server.stop.set()
        assert b"HTTP/1.1" not in await idle_reader.read()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        server.app.release.set()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"connection: close\r\n\r\nreleased")
        await server.done
        for each in (writer, idle_writer):
            each.close()


@pytest.mark.parametrize("path", [b"/wait", b"/stream"])
async def test_stop_cuts_what_does_not_end(serve, path: bytes) -> None:
    async with serve(Limits(shutdown_s=0.05)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        await server.app.started.wait()
        server.stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await server.done
            with contextlib.suppress(ConnectionError):
                await reader.read()
        assert server.app.cancelled.is_set() or server.app.closed.is_set()
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /he", BODY], ids=["unread", "head", "body"]
)
async def test_stop_does_not_wait_for_a_peer_that_does_nothing(serve, sent: bytes) -> None:
    """An answer that is not read and a request that is half sent end long before `shutdown_s`."""
    far_s = 100 * DEADLINE_S
    limits = Limits(shutdown_s=far_s, write_stall_timeout_s=far_s, head_timeout_s=far_s, body_timeout_s=far_s)
    async with serve(limits) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(sent)
            await until(
                lambda: any(each.deadline < inf and each.phase is not Stage.IDLE for each in connections(server))
            )
            server.stop.set()
            async with asyncio.timeout(DEADLINE_S):
                await server.done
        assert not server.app.seen or server.app.closed.is_set()


async def test_tls_and_a_plain_client_at_its_port(serve, authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    async with serve(tls=authority.server) as server:
        reader, writer = await asyncio.open_connection("localhost", server.port, ssl=context)
        writer.write(GET + CLOSE)
        answer = await reader.read()
        writer.close()
        assert answer.count(b"HTTP/1.1 200") == 2
        assert [request.scheme for request in server.app.seen] == ["https", "https"]
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await server.ask(GET)


async def test_a_handshake_that_hangs_holds_up_nobody_and_ends(serve, authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    async with serve(Limits(head_timeout_s=1.0, shutdown_s=0.2), tls=authority.server) as server:
        silent_reader, silent = await asyncio.open_connection("127.0.0.1", server.port)
        reader, writer = await asyncio.open_connection("localhost", server.port, ssl=context)
        writer.write(CLOSE)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        with contextlib.suppress(ConnectionError):
            assert await silent_reader.read() == b""
        silent.close()


async def test_stop_waits_for_no_handshake(serve, authority) -> None:
    async with serve(Limits(shutdown_s=600.0), tls=authority.server) as server:
        silent_reader, silent = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: server.server._admission.taken)
            server.stop.set()
            await server.done
            with contextlib.suppress(ConnectionError):
                await silent_reader.read()
        silent.close()


async def test_a_unix_socket_for_a_blocking_client(serve, tmp_path) -> None:
    stop = asyncio.Event()

    def ask() -> tuple[int, bytes]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "spl.sock"))
            sock.sendall(encode_request("GET", "/here/a", [("host", "localhost")]))
            head, body = read_answer(sock.recv, Limits(), "GET", 1000)
            return head.status, body

    async with serve() as other:
        server = Server(other.app, Limits(shutdown_s=0.2), now_ms=lambda: 0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([Listener(bind_unix(tmp_path / "spl.sock"), local=True)], stop))
            assert await asyncio.to_thread(ask) == (200, b'["a", {}, "unix"]')
            [request] = other.app.seen
            assert request.local
            stop.set()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
async def test_no_descriptor_is_left(serve, authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca_file))

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with serve() as server, serve(tls=authority.server) as secure:
        before = 0
        for round_number in range(3):
            await server.ask(CLOSE)
            await server.ask(b"garbage\r\n\r\n")
            reader, writer = await asyncio.open_connection("localhost", secure.port, ssl=context)
            writer.write(CLOSE)
            await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            with contextlib.suppress(ConnectionError):
                await secure.ask(GET)
            async with asyncio.timeout(DEADLINE_S):
                await server.gone()
                await secure.gone()
                if round_number:
                    await until(lambda: count() <= before)  # noqa: B023 - awaited within the round
            before = before or count()
