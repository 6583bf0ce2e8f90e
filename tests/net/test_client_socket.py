"""When an exchange of the client ends: as long as bytes move it goes on, and what only drips is given up."""

import asyncio

import pytest

from spl.core.limits import Limits
from spl.net.client_socket import MovingDeadline
from tests.net.test_client import LOCAL, OK, client, code_of, script
from tests.waiting import DEADLINE_S, turns, until


async def test_the_deadline_of_an_exchange_moves_on_with_its_bytes() -> None:
    now_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(30) as until:
        progress = MovingDeadline(until, 30)
        progress._began_s = progress._moved_s = now_s - 100
        progress.moved(1_000_000)
        moved_s = until.when()
        assert moved_s is not None
        assert moved_s >= now_s + 30
        progress._moved_s = now_s - 100
        progress.moved(1)
        assert (until.when() or 0) >= moved_s


async def test_an_exchange_that_only_drips_ends() -> None:
    now_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(30) as until:
        progress = MovingDeadline(until, 30)
        progress._began_s = progress._moved_s = now_s - 20
        progress.moved(1024)
        assert until.when() == pytest.approx(now_s - 20 + 1 + 30, abs=0.01)


@pytest.mark.parametrize("size", [1_000, 300_000])
async def test_a_body_that_waits_to_be_sent_is_watched(size: int) -> None:
    """What the system holds of a request counts as progress when it leaves."""
    taken, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await taken.wait()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(OK)
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with client() as made, asyncio.timeout(DEADLINE_S):
        asked = asyncio.create_task(made.fetch("POST", url, body=bytes(size), dial=LOCAL))
        await turns(20)
        taken.set()
        assert (await asked).body == b"ok"
        await made.close()
        await ended.wait()
    server.close()
    await server.wait_closed()


async def test_only_an_exchange_that_began_counts_as_reached() -> None:
    async with script(None) as server, client() as made:
        assert (await code_of(made, f"http://127.0.0.1:{server.port}/")).reached
    async with client() as made:
        assert not (await code_of(made, f"http://127.0.0.1:{server.port}/")).reached


async def test_the_server_waits_for_a_body_as_long_as_it_arrives(serve) -> None:
    async with serve(Limits(body_timeout_s=30.0)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
            + b"x" * 400
        )
        await until(lambda: any(each.seat.body_bytes for each in server.server._shared.connections))
        (connection,) = server.server._shared.connections
        connection.since -= 5
        writer.write(b"x" * 400)
        await until(lambda: connection.seat.body_bytes > 800)
        assert connection.deadline == pytest.approx(connection.since + 30 + connection.seat.body_bytes / 1024)
        writer.write(b"x" * 100)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
