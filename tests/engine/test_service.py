"""All sinks of a daemon: what may be added, and what a reader of the stream may do."""

import pytest

from spl.core.errors import SplError
from tests.engine.servers import NatsServer, caught_up, serving
from tests.nodes import Node

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
        await service.act("fan", "remove")
        await service.add(FAN, from_now=False)
        with pytest.raises(SplError) as caught:
            service.named("none")
        assert caught.value.code == "sink-unknown"


async def test_a_paused_sink_goes_on_where_it_was(node: Node, server: NatsServer) -> None:
    async with serving(node) as service:
        await service.add({**FAN, "url": server.url}, from_now=False)
        node.emit("one")
        await caught_up(service)
        await service.act("fan", "pause")
        node.emit("two")
        assert service.to_json(service.named("fan"))["state"] == "paused"
        await service.act("fan", "resume")
        assert (await caught_up(service))["sent_records"] == 1
        assert not service.faults()
        assert (await service.test("fan"))["state"]["messages"] == 3  # type: ignore[index]
