"""The client for asyncio has what the other has, under the same names."""

import asyncio
import inspect
from contextlib import suppress

import pytest

from spl.client import AsyncClient, Client
from tests.client.conftest import whole


def public(kind: type) -> dict[str, inspect.Signature]:
    found = inspect.getmembers(kind, inspect.isroutine)
    return {name: inspect.signature(method) for name, method in found if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    ours, theirs = public(Client), public(AsyncClient)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"from_home"}:
        assert ours[name].parameters.keys() == theirs[name].parameters.keys(), name
    for name in ours.keys() - {"records", "tail", "from_home", "at"}:
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name)), name


@pytest.mark.loop
async def test_a_cancelled_request_leaves_no_half_answer_behind() -> None:
    asked, connections = asyncio.Event(), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        answer = whole(200, b'{"a":1}')
        if connections == 1:
            writer.write(answer[:-2])
            asked.set()
            await reader.read()  # until the client has gone
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        request = asyncio.create_task(client.get("/v1/x"))
        await asked.wait()
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
        assert (await client.get("/v1/x"))["a"] == 1
