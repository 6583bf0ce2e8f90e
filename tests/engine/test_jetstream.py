"""What JetStream answers, and what of it is believed."""

import asyncio
import json

import pytest

from spl.engine import jetstream
from spl.engine.jetstream import Ack
from spl.engine.protocol import Delivery, EngineError
from tests.engine.servers import NatsServer, info, scripted
from tests.engine.test_nats import opened


def answer(value: object, head: bytes = b"") -> Delivery:
    return Delivery("s", "", head, json.dumps(value).encode())


def test_acks() -> None:
    assert jetstream.ack_of(answer({"stream": "S", "seq": 7})) == Ack(7)
    assert jetstream.ack_of(answer({"stream": "S", "seq": 7, "duplicate": True})) == Ack(7, duplicate=True)
    refused = jetstream.ack_of(answer({"error": {"code": 400, "err_code": 10071, "description": "wrong\u202e"}}))
    assert (refused.error, refused.text) == (10071, "wrong\\u202e")
    assert jetstream.ack_of(answer({}, b"NATS/1.0 503\r\n\r\n")).error
    for bad in ({"seq": "7"}, {"seq": -1}, {"seq": 2**70}, {"seq": True}):
        with pytest.raises(EngineError):
            jetstream.ack_of(answer(bad))


async def test_a_stream_is_made_described_and_read(server: NatsServer) -> None:
    async with server.client() as nats:
        assert await jetstream.state_of(nats, "T") is None
        made = await jetstream.create(nats, "T", "t.>")
        assert (made.subjects, made.messages, made.last_seq) == (("t.>",), 0, 0)
        await nats.request("t.a", b"one")
        found = await jetstream.last_under(nats, "T", "t.>")
        assert found is not None
        assert (found.seq, found.body, found.subject) == (1, b"one", "t.a")
        assert await jetstream.message_at(nats, "T", 2) is None
        with pytest.raises(EngineError):
            await jetstream.ask(nats, "CONSUMER.INFO.T.none")


@pytest.mark.parametrize("said", [
    "[]", "{", '{"config":{}}', '{"config":[],"state":{}}', '{"config":{},"state":{"messages":-1}}',
    '{"config":{"subjects":7},"state":{}}', '{"error":{"err_code":"x"}}',
])  # fmt: skip
async def test_descriptions_of_another_form_are_refused(said: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info())
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        reply = (await reader.readuntil(b"\r\n")).split()[2]
        writer.write(b"MSG %b 1 %d\r\n%b\r\n" % (reply, len(said), said.encode()))
        await reader.read()

    async with scripted(talk) as port:
        nats = await opened(port)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(nats.listen())
            with pytest.raises(EngineError) as caught:
                await jetstream.state_of(nats, "S")
            listening.cancel()
        await nats.close()
    assert caught.value.code == "sink-refused"
