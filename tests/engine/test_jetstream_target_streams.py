"""Streams that somebody else changes: emptied, bounded, shared."""

import asyncio
import json

from spl.engine import subjects
from tests.engine.servers import NatsServer, caught_up, failing, records_in, serving, until_held
from tests.nodes import Node

FAN = {"name": "fan", "namespaces": ("default",)}


async def test_what_an_emptied_stream_refused_goes_out_later(node: Node, server: NatsServer) -> None:
    stream = subjects.stream_of(node.did)
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("before")
        await caught_up(service)
        await server.ask(f"STREAM.PURGE.{stream}")
        config = (await server.ask(f"STREAM.INFO.{stream}"))["config"]
        await server.ask(f"STREAM.UPDATE.{stream}", {**config, "discard": "new", "max_bytes": 100})
        after = [node.emit(str(number)).raw for number in range(3)]
        await failing(service, "sink-full")
        await server.ask(f"STREAM.UPDATE.{stream}", config)
        await until_held(server, node, after)


async def test_a_record_over_the_bound_of_its_stream_goes_as_a_pointer(node: Node, server: NatsServer) -> None:
    stream = subjects.stream_of(node.did)
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("first")
        await caught_up(service)
        config = (await server.ask(f"STREAM.INFO.{stream}"))["config"]
        await server.ask(f"STREAM.UPDATE.{stream}", {**config, "max_msg_size": 2000})
        large, small = node.emit("x" * 5000), node.emit("small")  # the open session does not know the bound yet
        async with asyncio.timeout(60):
            while (bodies := records_in(await server.messages(node)))[-1] != small.raw:
                await asyncio.sleep(0.05)
        assert (await service.test("fan"))["max_payload_bytes"] == 2000
    assert json.loads(bodies[-2])["id"] == large.id
    assert json.loads(bodies[-2])["bytes"] == len(large.raw)
