"""Streams that somebody else changes: emptied, bounded, shared."""

import asyncio
import json

from spl.engine import jetstream, subjects
from spl.engine.protocol import head_of, published
from tests.engine.servers import NatsServer, caught_up, failing, held, logged, records_in, serving, until_held
from tests.nodes import Node

FAN = {"name": "fan", "namespaces": ("default",)}


async def forge(server: NatsServer, node: Node, number: int, epoch: str) -> None:
    """Write a message of our form into a node's stream, of a record that its log does not hold."""
    made = f"{number:064x}"
    head = {"Nats-Msg-Id": made, "Spl-Position": f"{epoch}:1", "Spl-Namespace": "default", "Spl-Thread": "th"}
    subject = f"spl.{subjects.tail_of(node.did)}.default.3"
    async with server.client() as client:
        await client.send([published(subject, "", head_of(head), json.dumps({"id": made}).encode())])
        await jetstream.state_of(client, subjects.stream_of(node.did))  # what is answered after it came after it


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


async def test_another_writer_that_takes_our_form_stops_the_sink(node: Node, server: NatsServer) -> None:
    epoch = node.home.store.epoch
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        first = [node.emit(str(number)).raw for number in range(3)]
        await caught_up(service)
        await forge(server, node, 1, epoch)  # between two records of a process
        second = node.emit("next").raw
        await failing(service, "sink-foreign")
        await service.act("fan", "resume")
        await caught_up(service)
        await service.act("fan", "pause")
        await forge(server, node, 2, "of another log")  # before a process begins
        await service.act("fan", "resume")
        await failing(service, "sink-foreign")
        await service.act("fan", "resume")
        third = node.emit("last").raw
        await caught_up(service)
    ours = dict.fromkeys(body for body in records_in(await server.messages(node)) if len(body) > 100)
    assert list(ours) == [*first, second, third]


async def test_a_log_that_was_set_back_goes_on_in_its_stream(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("one")
        await caught_up(service)
    await forge(server, node, 1, node.home.store.epoch)  # as a record that the log has lost
    async with serving(node) as service:
        node.emit("two")
        await caught_up(service)
    assert set(logged(node)) <= set(records_in(await server.messages(node)))


async def test_a_namespace_that_the_stream_lacks_is_never_skipped_in_silence(node: Node, server: NatsServer) -> None:
    """Neither one that the sink before did not have, nor one that it had for a time."""
    both = {**FAN, "url": server.url, "namespaces": ("default", "music")}
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("old", ns="music")
        node.emit("here")
        await caught_up(service)
        await service.act("fan", "remove")
        await service.add(both, from_now=False)
        sink = await failing(service, "sink-refused")
        assert "music" in str(sink["error"])
        assert f"nats stream rm {sink['stream']}" in str(sink["fix"])
        await server.ask(f"STREAM.DELETE.{sink['stream']}")
        await service.act("fan", "resume")
        await held(server, node, "default", "music")

        await service.act("fan", "remove")
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("missed", ns="music")
        node.emit("sent")
        await caught_up(service)
        await service.act("fan", "remove")
        await service.add(both, from_now=False)
        await failing(service, "sink-refused")
        await service.act("fan", "remove")
        await service.add(both, from_now=True)
        await caught_up(service)
        node.emit("new", ns="music")
        await caught_up(service)
    log = logged(node, "default", "music")
    assert records_in(await server.messages(node)) == [*log[:2], *log[3:]]


async def test_a_namespace_whose_messages_expired_is_not_missed(node: Node, server: NatsServer) -> None:
    both = {**FAN, "url": server.url, "namespaces": ("default", "music")}
    async with serving(node) as service:
        await service.add(both, from_now=False)
        node.emit("old", ns="music")
        node.emit("here")
        await caught_up(service)
    stream = subjects.stream_of(node.did)
    await server.ask(f"STREAM.PURGE.{stream}", {"filter": subjects.namespace_of(node.did, "music")})
    async with serving(node) as service:
        await caught_up(service)
        last = node.emit("new", ns="music").raw
        await caught_up(service)
    assert records_in(await server.messages(node))[-1] == last
