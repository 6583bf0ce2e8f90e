"""One pair's records from a real server: judged, stored with their place, and no gap that is not closed."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from spl.core.pair.modes import ENGINE, POLLING
from spl.core.pair.state import Phase
from spl.engine import carrier as carriers
from spl.engine import jetstream, nats, subjects
from spl.engine.carriers import CarrierService, LeftConsumers
from spl.engine.jetstream_target import PREVIOUS
from spl.engine.protocol import Delivery, head_of, published
from spl.engine.service import SinkService
from tests.engine.servers import NatsServer, caught_up, serving
from tests.nodes import Node, join, nodes
from tests.waiting import turns, until

NAMES = count()


@asynccontextmanager
async def two(folder: Path, server: NatsServer) -> AsyncIterator[tuple[Node, Node, str, SinkService]]:
    """Give a hub with a sink into the server, and a spoke that is to read from there."""
    number = next(NAMES)
    async with nodes(folder, f"carrying-{number}", f"reading-{number}") as (hub, spoke):
        pair_id = join(hub, spoke)
        async with serving(hub) as sinks:
            fields = {"name": "fan", "url": server.url, "namespaces": ("default",)}
            await sinks.add(fields, from_now=False)
            spoke.change_pair(pair_id, mode=ENGINE, carrier={"url": server.url, "creds": "", "ca": ""})
            hub.emit("first")
            await caught_up(sinks)
            yield hub, spoke, pair_id, sinks


@asynccontextmanager
async def reading(spoke: Node) -> AsyncIterator[CarrierService]:
    """Run the carriers of a node."""
    made = CarrierService(
        spoke.sync, spoke.feed.notifier, spoke.home.disk, None, now_ms=spoke.now_ms, random_bytes=os.urandom
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.run(stop))
        yield made
        stop.set()
        spoke.feed.notifier.stop()
    spoke.feed.notifier.stopping = False


async def closed(service: CarrierService, spoke: Node, pair_id: str) -> dict[str, Any]:
    """Wait until the carrier reads and nothing is missing, and return it."""

    def found() -> dict[str, Any] | None:
        shown = service.to_json(spoke.home.views.pairs[pair_id])
        return shown if shown["open"] and not shown["finding"] else None

    return await until(found)


async def equal(hub: Node, spoke: Node) -> None:
    await until(lambda: spoke.ids() == hub.ids())


def pulls(hub: Node) -> int:
    return sum(path == "/v1/sync/changes" for _, path in hub.network.log)


async def test_records_come_by_the_engine_and_the_pair_goes_on_behind_them(tmp_path: Path, server: NatsServer) -> None:
    async with two(tmp_path, server) as (hub, spoke, pair_id, _), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        before = pulls(hub)
        for number in range(300):
            hub.emit(str(number))
        await equal(hub, spoke)
        await until(lambda: service.to_json(spoke.home.views.pairs[pair_id])["received_records"] == 300)
        assert service.to_json(spoke.home.views.pairs[pair_id])["new_records"] == 300
        assert pulls(hub) == before, "all of it came by the engine"
        view = await spoke.sync.puller.ask_life(spoke.home.views.pairs[pair_id], {})
        assert view["head"] == 301
        assert hub.feed.offered(pair_id).acked == 301
        assert await spoke.sync.pull(pair_id) == 0
        assert spoke.home.views.positions[pair_id].count == 301


async def test_an_old_server_carries_the_same(tmp_path: Path, old_server: NatsServer) -> None:
    async with two(tmp_path, old_server) as (hub, spoke, pair_id, _), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        hub.emit("second")
        await equal(hub, spoke)
        await until(lambda: service.to_json(spoke.home.views.pairs[pair_id])["new_records"] == 1)


async def test_a_new_process_goes_on_where_the_last_one_was(tmp_path: Path, server: NatsServer) -> None:
    async with two(tmp_path, server) as (hub, spoke, pair_id, sinks):
        async with reading(spoke) as service:
            await closed(service, spoke, pair_id)
            hub.emit("second")
            await equal(hub, spoke)
        for number in range(20):
            hub.emit(str(number))
        await caught_up(sinks)
        before = pulls(hub)
        async with reading(spoke) as service:
            await equal(hub, spoke)
            await until(lambda: service.to_json(spoke.home.views.pairs[pair_id])["new_records"] == 20)
            assert pulls(hub) == before


@pytest.mark.parametrize("loss", ["stream", "consumer", "messages"])
async def test_what_the_engine_lost_is_pulled_from_the_peer(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.05)
    async with two(tmp_path, server) as (hub, spoke, pair_id, sinks):
        async with reading(spoke) as service:
            await closed(service, spoke, pair_id)
            hub.emit("second")
            await equal(hub, spoke)
        stream = subjects.stream_of(hub.did)
        if loss == "stream":
            await server.ask(f"STREAM.DELETE.{stream}")
            await sinks.act("fan", "remove")
            await sinks.add({"name": "fan", "url": server.url, "namespaces": ("default",)}, from_now=True)
        elif loss == "consumer":
            await server.ask(f"CONSUMER.DELETE.{stream}.{subjects.consumer_of(pair_id, 'default')}")
        for number in range(20):
            hub.emit(str(number))
        await caught_up(sinks)
        if loss == "messages":
            await server.ask(f"STREAM.PURGE.{stream}", {"keep": 3})
        async with reading(spoke) as service:
            await equal(hub, spoke)
            await closed(service, spoke, pair_id)
            hub.emit("last")
            await equal(hub, spoke)
            assert not spoke.home.views.refused


async def test_a_changed_carrier_begins_once_the_old_one_has_ended_and_is_told_to_the_peer(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, close = list[str](), nats.Nats.close

    async def late(self: nats.Nats) -> None:
        await turns(50)
        await close(self)
        order.append("closed")

    async def opened(self: carriers.CarrierParts, pair_id: str, carrier: Any) -> nats.Nats:
        order.append("opened")
        return await connect(self, pair_id, carrier)

    async with two(tmp_path, server) as (hub, spoke, pair_id, _), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        first, connect = spoke.sync.puller.carried[pair_id], carriers.CarrierParts.connect
        monkeypatch.setattr(carriers.CarrierParts, "connect", opened)
        monkeypatch.setattr(nats.Nats, "close", late)
        spoke.change_pair(pair_id, carrier={"url": f"nats://localhost:{server.port}", "creds": "", "ca": ""})
        service._tasks.kick()
        await until(lambda: spoke.sync.puller.carried.get(pair_id, first) is not first)
        last = hub.emit("second")
        await equal(hub, spoke)
        await until(lambda: spoke.sync.puller.carried[pair_id].proven.get("default") == last.id)
        monkeypatch.setattr(nats.Nats, "close", close)
    assert order[:2] == ["closed", "opened"]


async def test_a_carrier_that_ends_leaves_no_consumer_or_says_how_it_is_deleted(
    tmp_path: Path, server: NatsServer
) -> None:
    async with two(tmp_path, server) as (hub, spoke, pair_id, _), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        pair, stream = spoke.home.views.pairs[pair_id], subjects.stream_of(hub.did)
        name = subjects.consumer_of(pair_id, "default")
        assert (await server.ask(f"CONSUMER.NAMES.{stream}"))["consumers"] == [name]
        spoke.change_pair(pair_id, mode=POLLING)
        service._tasks.kick()
        lost = replace(pair, carrier={**pair.carrier, "url": "nats://127.0.0.1:1", "creds": ""})
        left: Any = (await service.leave(lost)).to_json()
        words = f"nats --server nats://127.0.0.1:1 --inbox-prefix _INBOX_{pair_id}"
        command = f"{words} consumer rm {stream} {name} --force"
        assert (left["deleted"], left["commands"]) == (0, [command])
        assert "127.0.0.1" in left["error"]["message"]
        assert await service.leave(pair) == LeftConsumers(1, None, [])
        assert not (await server.ask(f"CONSUMER.NAMES.{stream}"))["consumers"]
        assert await service.leave(pair) == LeftConsumers(0, None, []), "none is there"


async def test_pulls_that_fail_become_rare(tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.01)
    async with two(tmp_path, server) as (hub, spoke, pair_id, _):
        hub.network.down = "connect"
        async with reading(spoke):
            run: Any = await until(lambda: spoke.sync.puller.carried.get(pair_id))
            await until(lambda: run._healing.attempt >= 4)
            hub.network.down = ""
            await equal(hub, spoke)
            await until(lambda: not run._healing.attempt and not run._broken)


async def test_a_gap_is_a_finding_until_the_peer_closes_it(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.05)
    async with two(tmp_path, server) as (hub, spoke, pair_id, _):
        hub.network.down = "connect"
        async with reading(spoke) as service:
            fault = await until(lambda: next((each for each in service.faults() if each.code == "engine-gap"), None))
            assert fault.name == pair_id
            assert pair_id in fault.hint
            await until(lambda: service.to_json(spoke.home.views.pairs[pair_id])["open"])
            hub.emit("second")
            await until(lambda: len(spoke.ids()) == 1)  # the engine gives what it has
            hub.network.down = ""
            await equal(hub, spoke)
            await until(lambda: not service.faults())


async def test_what_others_write_is_refused_and_delays_nothing(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.05)
    async with two(tmp_path, server) as (hub, spoke, pair_id, sinks), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        await sinks.act("fan", "pause")
        async with server.client() as client:
            subject = subjects.subject_of(hub.did, "default", "th", "shard")
            forged = b'{"id":"%s","record":{},"sig":{}}' % (b"0" * 64)
            for body in (b"no JSON", b"[" * 10_000, b'{"id":7}', forged):
                answer = await client.request(subject, body)
                assert jetstream.ack_of(answer).seq
            reply = f"{client.inbox}.x"
            await client.send([published(subject, reply, head_of({"Spl-Pointer": "9"}), forged)])
        hub.emit("second")
        await until(lambda: service.to_json(spoke.home.views.pairs[pair_id])["received_records"] == 5)
        await spoke.sync.pull(pair_id)
        await equal(hub, spoke)
        await closed(service, spoke, pair_id)
        assert not spoke.home.views.refused, "nobody knows whether the peer offers it"


async def test_a_record_too_large_for_the_server_comes_from_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 3600.0)  # the test pulls by itself, once it has seen what is withheld
    small = NatsServer(tmp_path / "small", config="max_payload: 4096").start()
    try:
        async with two(tmp_path, small) as (hub, spoke, pair_id, _), reading(spoke) as service:
            await closed(service, spoke, pair_id)
            large = hub.emit("x" * 10_000)
            hub.emit("small")
            await until(lambda: service.to_json(spoke.home.views.pairs[pair_id])["received_records"] == 2)
            assert large.id not in spoke.ids()
            assert not spoke.home.views.refused.get(pair_id), "a name that nobody signed takes no room"
            await spoke.sync.pull(pair_id)
            await equal(hub, spoke)
    finally:
        small.end()


@pytest.mark.parametrize("head", [b"NATS/1.0\r\n" + b"A: 1\r\n" * 100 + b"\r\n", b"junk", b""])
def test_a_message_counts_with_its_head_and_any_head_is_passed_over(head: bytes) -> None:
    run: Any = object.__new__(carriers.CarrierRun)
    run._places, run._broken, gaps = {"default": "b" * 64}, {}, list[str]()
    run._break = gaps.append
    found = carriers._Arrived()
    body = b'{"id":"%s"}' % (b"a" * 64)
    run._add(found, Delivery("x", "y", head, body), "default")
    assert (found.count, found.size, gaps) == (1, len(head) + len(body), ["default"])


@pytest.mark.parametrize("forged", [0, 2])
async def test_records_that_the_engine_hides_are_pulled_once_the_peer_counts_them(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch, forged: int
) -> None:
    """What is forged in their place counts as held by nobody."""
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.05)
    async with two(tmp_path, server) as (hub, spoke, pair_id, sinks), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        last = hub.emit("second")
        await equal(hub, spoke)
        await sinks.act("fan", "pause")
        hub.emit("hidden")
        shown, store = hub.emit("shown"), hub.home.writer.store
        raw = store.payload(store.index.find(shown.id, "default"))
        subject = subjects.subject_of(hub.did, "default", "th", "shard")
        ids = [last.id, *(f"{number:064x}" for number in range(forged))]
        bodies = [*(b'{"id":"%s","record":{},"sig":{}}' % id_.encode() for id_ in ids[1:]), raw]
        async with server.client() as client:
            for id_, body in zip(ids, bodies, strict=True):
                await client.send([published(subject, f"{client.inbox}.x", head_of({PREVIOUS: id_}), body)])
        await until(lambda: spoke.sync.puller.carried[pair_id].proven.get("default") == shown.id)
        await spoke.sync.puller.ask_life(spoke.home.views.pairs[pair_id], {})
        await equal(hub, spoke)
        await closed(service, spoke, pair_id)


async def test_a_sink_that_gives_nothing_is_a_finding_until_it_gives_again(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.05)
    monkeypatch.setattr(carriers, "LOOK_EVERY_S", 0.05)
    async with two(tmp_path, server) as (hub, spoke, pair_id, sinks), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        pair = spoke.home.views.pairs[pair_id]
        await sinks.act("fan", "pause")
        hub.emit("by the peer")
        view = await spoke.sync.puller.ask_life(pair, {})
        assert not service.faults(), "one that comes late is no fault"
        spoke.sync.puller.ingest.reaches.answered(pair_id, view)
        await equal(hub, spoke)
        (fault,) = await until(service.faults)
        assert (fault.name, fault.code) == (pair_id, "engine-gap")
        assert "on the peer: spl sink list" in fault.hint
        await sinks.act("fan", "resume")
        hub.emit("by the engine")
        await equal(hub, spoke)
        await until(lambda: not service.faults())


async def test_what_a_server_that_is_gone_does_not_give_comes_from_the_peer(
    tmp_path: Path, own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "BACKOFF_BASE_S", 0.05)
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.05)
    monkeypatch.setattr(carriers, "LOOK_EVERY_S", 0.05)
    async with two(tmp_path, own_server) as (hub, spoke, pair_id, _), reading(spoke) as service:
        await closed(service, spoke, pair_id)
        own_server.end()
        await until(service.faults)
        hub.emit("by the peer")
        view = await spoke.sync.puller.ask_life(spoke.home.views.pairs[pair_id], {})
        spoke.sync.puller.ingest.reaches.answered(pair_id, view)
        await equal(hub, spoke)
        assert [fault.code for fault in service.faults()] == ["sink-unreachable"]
        own_server.start()
        await closed(service, spoke, pair_id)


async def test_a_pause_while_the_engine_is_read_is_no_fault_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "HEAL_BASE_S", 0.01)
    async with nodes(tmp_path, "paused-hub", "paused-spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        spoke.change_pair(pair_id, mode=ENGINE)
        made = CarrierService(
            spoke.sync, spoke.feed.notifier, spoke.home.disk, None, now_ms=spoke.now_ms, random_bytes=os.urandom
        )
        state, nowhere = carriers.CarrierState(), carriers.Carrier("nats://127.0.0.1:1")
        run: Any = carriers.CarrierRun(pair_id, nowhere, ("default",), made._parts, state)

        async def paused(_: object) -> None:
            spoke.change_pair(pair_id, phase=Phase.PAUSED, sync_allowed=False)
            run._break("default")
            await until(lambda: run._healing.attempt)
            spoke.sync.puller.ingest.pair(pair_id)

        monkeypatch.setattr(run, "_session", paused)
        await run.run()
        assert (state.fault, state.attempt) == (None, 0)
