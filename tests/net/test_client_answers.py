"""The client reads an answer: what its chunks may cost, the turns of other tasks, and how long it waits."""

import asyncio
from unittest.mock import AsyncMock, Mock

import pytest

from spl.core.limits import MIB, Limits
from spl.net.address import ReachError
from spl.net.client import EventStream
from spl.net.client_socket import ClientSocket
from tests.waiting import turns, until

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def arrived(size: int, count: int) -> ClientSocket:
    """Return a connection on which an answer of so many chunks of one size is here."""
    reader = asyncio.StreamReader()
    reader.feed_data(HEAD + b"%x\r\n%b\r\n" % (size, b" " * size) * count + b"0\r\n\r\n")
    return ClientSocket(Limits(), reader, Mock(drain=AsyncMock()), "127.0.0.1", "http://127.0.0.1")


async def test_an_answer_in_tiny_chunks_is_refused() -> None:
    sock = arrived(1, 1025)
    await sock.ask(b"", "GET", MIB)
    with pytest.raises(ReachError) as caught:
        await sock.read_body()
    assert caught.value.code == "answer-malformed"


@pytest.mark.parametrize("size", [64, MIB], ids=["chunks", "whole"])
async def test_an_answer_that_is_here_leaves_other_tasks_their_turns(size: int) -> None:
    """A read of what has arrived does not suspend, so a peer that sends on could keep the loop."""
    sock = arrived(size, 4 * MIB // size)
    await sock.ask(b"", "GET", 4 * MIB)
    other = asyncio.create_task(turns(12))
    assert len(await sock.read_body()) == 4 * MIB
    assert other.done()


async def test_a_timer_of_an_earlier_read_does_not_end_the_one_that_waits() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(HEAD)
    sock = ClientSocket(Limits(), reader, Mock(drain=AsyncMock()), "127.0.0.1", "http://127.0.0.1")
    head = await sock.ask(b"", "GET", MIB)
    stream = EventStream(sock, head, Limits(stream_silence_s=3600.0))
    reading = asyncio.create_task(anext(stream))
    await until(lambda: stream._timer is not None)
    first = stream._timer
    stream._look()
    assert stream._timer is not None
    assert stream._timer is not first
    await turns()
    assert not reading.done()
    reading.cancel()
    stream.close()
    assert stream._timer.cancelled()
