"""All sinks of a daemon: what may be added, and what a reader of the stream may do."""

import asyncio
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.pair.state import Revoked
from spl.engine.protocol import EngineError
from spl.engine.pump import Pump
from tests.engine.servers import NatsServer, caught_up, failing, info, scripted, serving
from tests.nodes import Node, join, nodes
from tests.waiting import until

FAN = {"name": "fan", "url": "nats://127.0.0.1:1", "namespaces": ("default",)}


@pytest.mark.parametrize(("changes", "code"), [
    ({"name": "FAN"}, "sink-invalid"), ({"url": "http://x"}, "sink-invalid"),
    ({"namespaces": ("none",)}, "namespace-rejected"),
    ({"creds": "/nowhere/x"}, "sink-auth"), ({"ca": "/nowhere/x"}, "config-invalid"),
    ({"url": "exec:/nowhere/program"}, "sink-invalid"), ({"url": "exec:'"}, "sink-invalid"),
])  # fmt: skip
async def test_what_cannot_work_is_refused_and_leaves_nothing(
    node: Node, changes: dict[str, object], code: str
) -> None:
    async with serving(node) as service:
        with pytest.raises(SplError) as caught:
            await service.add({**FAN, **changes}, from_now=False)
    assert caught.value.code == code
    assert not node.home.views.sinks


async def test_one_sink_a_name_and_a_server(node: Node) -> None:
    async with serving(node) as service:
        await service.add(FAN, from_now=False)
        for changes in ({}, {"name": "other"}):
            with pytest.raises(SplError) as caught:
                await service.add({**FAN, **changes}, from_now=False)
            assert caught.value.code == "sink-exists"
            assert caught.value.hint.startswith(("spl sink show ", "spl sink list"))  # pasted, neither removes one
        await service.act("fan", "remove")
        await service.add(FAN, from_now=False)
        with pytest.raises(SplError) as caught:
            service.named("none")
        assert caught.value.code == "sink-unknown"


@pytest.mark.parametrize(("first", "fix"), [
    (b"", "start it, or correct the network path; then: spl sink resume fan"),
    (info(), "set tls in its configuration; without TLS only a server on this machine is used"),
])  # fmt: skip
async def test_a_server_that_cannot_be_used_is_shown_with_the_step_against_it(
    node: Node, first: bytes, fix: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)  # without a byte it ends the connection
        if first:
            await reader.read()

    async with scripted(talk) as port, serving(node) as service:
        await service.add({**FAN, "url": f"tls://127.0.0.1:{port}"}, from_now=False)
        assert (await failing(service, "sink-unreachable"))["fix"] == fix
        assert [fault.hint for fault in service.faults()] == [fix]
        with pytest.raises(SplError) as caught:
            await service.test("fan")
        assert (caught.value.code, caught.value.hint) == ("sink-unreachable", fix)


async def test_no_step_for_a_peer_is_shown_for_a_server(node: Node) -> None:
    async with serving(node) as service:
        await service.add(FAN, from_now=False)  # where nobody listens
        sink = await failing(service, "sink-unreachable")
        with pytest.raises(SplError) as caught:
            await service.test("fan")
        assert sink["fix"] == caught.value.hint == "start it, or correct the network path; then: spl sink resume fan"
        service._states[service.named("fan").place_name].fault = SplError("internal")
        assert service.faults()[0].hint == caught.value.hint
        service._states[service.named("fan").place_name].fault = EngineError("sink-auth")
        assert service.faults()[0].hint == (
            "name its user: spl sink remove fan; then: spl sink add nats://127.0.0.1:1 --namespace default --name fan"
            " --subjects shard --creds FILE; it goes on where its stream ends"
        )


async def test_a_program_that_fails_is_shown_with_a_step_and_by_a_test_that_runs_nothing(node: Node) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": "exec:false"}, from_now=False)
        node.emit("one")
        sink = await failing(service, "sink-refused")
        assert sink["fix"] == "see what it says: spl sink show fan; correct it; then: spl sink resume fan"
        asked = await service.test("fan")
        assert [asked[name] for name in ("finding", "error", "fix")] == [
            sink[name] for name in ("finding", "error", "fix")
        ]


async def test_a_sink_that_waits_after_a_failure_tries_again_once_a_test_passed(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Pump._failed

    def late(pump: Pump, exc: SplError, now_s: float) -> float:
        failed(pump, exc, now_s)
        return 3600.0

    monkeypatch.setattr(Pump, "_failed", late)
    server = NatsServer(tmp_path / "nats")
    try:
        async with serving(node) as service:
            await service.add({**FAN, "url": server.url}, from_now=False)
            await failing(service, "sink-unreachable")
            server.start()
            assert (await service.test("fan"))["finding"] == "sink-unreachable"
            await until(lambda: service.state(service.named("fan")).is_open and not service.faults())
            assert (await service.test("fan"))["finding"] is None
    finally:
        server.end()


async def test_a_paused_sink_goes_on_where_it_was(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("one")
        await caught_up(service)
        await service.act("fan", "pause")
        node.emit("two")
        shown = service.to_json(service.named("fan"))
        assert [shown[name] for name in ("state", "sent_records", "lag_records")] == ["paused", 1, 1]
        await service.act("fan", "resume")
        assert (await caught_up(service))["sent_records"] == 2
        assert not service.faults()
        assert (await service.test("fan"))["state"]["messages"] == 3  # type: ignore[index]


async def test_a_paused_sink_says_what_waits_also_in_a_new_process(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("one")
        await caught_up(service)
        await service.act("fan", "pause")
        await until(lambda: node.home.views.positions)
    node.emit("two")
    async with serving(node) as service:
        assert service.to_json(service.named("fan"))["lag_records"] == 1


async def test_a_removed_sink_names_the_pairs_that_may_read_it(tmp_path: Path, server: NatsServer) -> None:
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        async with serving(hub) as service:
            sink = await service.add({**FAN, "url": server.url}, from_now=False)
            assert service.readers(sink) == [pair_id]
            hub.change_pair(pair_id, state=Revoked("sold"))
            assert service.readers(sink) == []
