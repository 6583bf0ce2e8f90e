"""A connection against servers that do as they like: every wait ends, and each end has a code."""

import asyncio
import gc
import socket
from contextlib import suppress

import pytest

from spl.core.errors import SplError
from spl.engine import nats
from spl.engine.credentials import read
from spl.engine.nats import Endpoint, Nats, connect, endpoint_of
from spl.net.dialer import Dialer
from spl.sync.supervise import run_together
from tests.engine.nkeys import seed_text
from tests.engine.servers import Talk, info, scripted


async def opened(port: int) -> Nats:
    return await connect(Endpoint("127.0.0.1", port, False), Dialer(None), "_INBOX.me")


def says(first: bytes, then: bytes = b"") -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        if then:
            await reader.readuntil(b"PING\r\n")
            writer.write(then)
        await reader.read()

    return talk


@pytest.mark.parametrize(("talk", "code"), [
    (says(b"SSH-2.0-OpenSSH\r\n"), "sink-refused"),
    (says(b"-ERR 'maximum connections exceeded'\r\n"), "sink-unreachable"),
    (says(info(headers=False)), "sink-refused"),
    (says(info() + b"PING\r\n"), "sink-refused"),
    (says(info(tls_required=True)), "sink-unreachable"),
    (says(info(), b"-ERR 'Authorization Violation'\r\n"), "sink-auth"),
    (says(info(), b"+OK\r\nMSG x 1 99999999\r\n"), "sink-refused"),
    (says(info(), b"HMSG x 1 12 12\r\nNATS/1.0\r\n\r\n\r\nPONG\r\n"), "sink-refused"),
])  # fmt: skip
async def test_what_a_server_may_begin_with(talk: Talk, code: str) -> None:
    async with scripted(talk) as port:
        with pytest.raises(SplError) as caught:
            await opened(port)
    assert caught.value.code == code


async def test_a_silent_server_is_gone_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats, "OPEN_S", 1.0)  # for the connection as well
    async with scripted(says(b"")) as port:
        with pytest.raises(SplError) as caught:
            await opened(port)
    assert caught.value.code == "sink-unreachable"


async def test_a_server_that_falls_silent_is_asked_and_then_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats, "ASK_S", 0.05)
    monkeypatch.setattr(nats, "SILENCE_S", 0.1)
    async with scripted(says(info(), b"PONG\r\n")) as port:
        client = await opened(port)
        with pytest.raises(SplError) as caught:
            await client.listen()
        assert caught.value.code == "sink-unreachable"
        with pytest.raises(SplError):
            await client.next(1)
        with pytest.raises(SplError):
            await client.send((b"PING\r\n",))
        await client.close()


@pytest.mark.parametrize("flood", [
    b"MSG _INBOX.me.a 1 1\r\nx\r\n" * (nats.WAITING_MAX + 1),
    b"HMSG _INBOX.me.a 1 60000 60000\r\n%b\r\n" % (b"x" * 60_000) * (nats.WAITING_BYTES_MAX // 60_000 + 1),
])  # fmt: skip
async def test_messages_that_nobody_asked_for_are_bounded(flood: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info())
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        await reader.readuntil(b"PING\r\n")
        writer.write(flood)
        await reader.read()

    async with scripted(talk) as port:
        client = await opened(port)
        await client.send((b"PING\r\n",))
        with pytest.raises(SplError) as caught:
            await client.listen()
        await client.close()
    assert caught.value.code == "sink-refused"


@pytest.mark.parametrize("line", [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", info()])
async def test_lines_that_give_nothing_are_bounded_and_hold_up_nobody(line: bytes) -> None:
    turned = 0

    async def others() -> None:
        nonlocal turned
        while True:
            await asyncio.sleep(0)
            turned += 1

    async with scripted(says(info(), b"PONG\r\n" + line * (2 * nats.IDLE_EVENTS_MAX))) as port:
        client = await opened(port)
        client._idle_since_s = asyncio.get_running_loop().time() + 3600.0  # one second, however slow the machine is
        with pytest.raises(SplError) as caught:
            await run_together(client.listen(), others())
        await client.close()
    assert caught.value.code == "sink-refused"
    assert turned >= nats.IDLE_EVENTS_MAX // nats.IDLE_EVENTS_A_TURN // 2


async def test_answers_that_the_server_does_not_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(info())
        await reader.readuntil(b"PING\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"PONG\r\n" + b"PING\r\n" * 100_000)
        await ended.wait()
        writer.transport.abort()

    ended = asyncio.Event()
    monkeypatch.setattr(nats, "IDLE_EVENTS_MAX", 1_000_000)
    async with scripted(talk) as port:
        client = await opened(port)
        monkeypatch.setattr(nats, "ANSWER_S", 0.2)
        client._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(SplError) as caught:
            await client.listen()
        unsent = client._writer.transport.get_write_buffer_size()
        ended.set()
        await client.close()
    assert (caught.value.code, unsent < 128 * 1024) == ("sink-unreachable", True)


async def test_no_request_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats, "ANSWER_S", 0.05)
    async with scripted(says(info(), b"PONG\r\n")) as port:
        client = await opened(port)
        with pytest.raises(SplError) as caught:
            await client.request("$JS.API.INFO")
        assert caught.value.code == "sink-unreachable"
        assert await client.next(0.01) is None
        await client.close()


def test_urls() -> None:
    assert endpoint_of("nats://HOST.example") == ("host.example", 4222, False)
    assert endpoint_of("tls://[::1]:5000/") == ("::1", 5000, True)
    for bad in ("http://a", "nats://u:p@host", "nats://", "nats://a:0", "nats://a:70000", "nats://a/b", "nats://a b"):
        with pytest.raises(SplError) as caught:
            endpoint_of(bad)
        assert caught.value.code == "sink-invalid"
        assert "u:p" not in caught.value.message


async def test_nothing_is_left_of_a_connection_that_failed() -> None:
    """A server that ends each one is dialled for ever, and the collector looks seldom."""
    gc.collect()
    gc.disable()
    try:
        async with scripted(says(info(), b"PONG\r\n-ERR 'bye'\r\n")) as port:
            for _ in range(3):
                client = await opened(port)
                with suppress(SplError):
                    await run_together(client.request("x"), client.listen())
                await client.close()
                del client
        assert not [each for each in gc.get_objects() if type(each) is Nats]
    finally:
        gc.enable()


async def test_what_a_server_says_of_itself_is_printable_or_refused() -> None:
    async with scripted(says(info(version="\ud800\x1b"), b"PONG\r\n")) as port:
        client = await opened(port)
        assert client.version == "\\ud800\\u001b"
        await client.close()
    user = read(seed_text(b"\x07" * 32))
    async with scripted(says(info(nonce="\ud800abc"))) as port:
        with pytest.raises(SplError) as caught:
            await connect(Endpoint("127.0.0.1", port, False, credentials=user), Dialer(None), "_INBOX.me")
    assert caught.value.code == "sink-refused"
