"""All carriers of a daemon: which run, what may be set, and what they say of a server that cannot be used."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from spl.api import lifecycle
from spl.core.errors import SplError, http_code
from spl.core.pair.modes import ENGINE
from spl.core.pair.pair import Pair
from spl.core.pair.state import Revoked
from spl.engine import carriers, subjects
from spl.engine.carrier import Carrier, CarrierParts
from spl.engine.carriers import carrier_of
from spl.engine.nats import Nats
from spl.engine.protocol import EngineError
from tests.engine.nkeys import seed_text
from tests.engine.servers import NatsServer
from tests.engine.test_carrier import closed, equal, reading, two
from tests.engine.test_engines import engines_of
from tests.nodes import Node, join, nodes
from tests.waiting import turns, until

NOWHERE = {"url": "nats://127.0.0.1:1", "creds": "", "ca": ""}


@pytest.mark.parametrize(("carrier", "code"), [
    (Carrier("http://x"), "sink-invalid"), (Carrier("exec:cat"), "sink-invalid"),
    (Carrier("nats://user:word@x"), "sink-invalid"), (Carrier("nats://x", creds="a.creds"), "sink-invalid"),
    (Carrier("nats://x", creds="/nowhere/x"), "sink-auth"), (Carrier("nats://x", ca="/nowhere/x"), "config-invalid"),
])  # fmt: skip
async def test_what_cannot_work_is_refused(node: Node, carrier: Carrier, code: str) -> None:
    async with reading(node) as service:
        with pytest.raises(SplError) as caught:
            await service.check(carrier)
    assert caught.value.code == code
    assert "NAME" not in caught.value.hint  # there is no sink


async def test_a_server_out_of_reach_is_named_with_the_pair(tmp_path: Path) -> None:
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        spoke.change_pair(pair_id, mode=ENGINE, carrier=NOWHERE)
        async with reading(spoke) as service:
            fault = await until(lambda: next(iter(service.faults()), None))
            assert (fault.name, fault.code) == (pair_id, "sink-unreachable")
            shown = service.to_json(spoke.home.views.pairs[pair_id])
            assert (shown["open"], shown["url"], shown["finding"]) == (False, NOWHERE["url"], "sink-unreachable")
            assert shown["fix"]
            spoke.change_pair(pair_id, mode="polling")
            await service.arrange()
            assert not service.faults()


@pytest.mark.parametrize(("text", "option"), [
    ("", ""), ("SEED", "--nkey FILE "), ("-----BEGIN NATS USER JWT-----\neyJ0.eyJ1.c2ln\nSEED", "--creds FILE "),
])  # fmt: skip
@pytest.mark.parametrize("code", ["sink-unreachable", "sink-auth"])
async def test_what_stays_is_deleted_as_the_pairs_user_or_by_the_servers_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, option: str, code: str
) -> None:
    """The server refuses the user of an old list of permissions, so a command as that user would be refused, too."""

    async def refused(self: CarrierParts, pair_id: str, carrier: Carrier) -> Nats:
        raise EngineError(code, "no")

    monkeypatch.setattr(CarrierParts, "connect", refused)
    file = tmp_path / "user"
    file.write_text(text.replace("SEED", seed_text(b"\x07" * 32)))
    told = {"url": "tls://n.example", "creds": str(file) if text else "", "ca": "/etc/ca.pem"}
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        spoke.change_pair(pair_id, carrier=told)
        async with reading(spoke) as service:
            left: Any = (await service.leave(spoke.home.views.pairs[pair_id])).to_json()
        user = f"{option.replace('FILE', str(file))}--inbox-prefix _INBOX_{pair_id} " if code != "sink-auth" else ""
        words = f"nats --server tls://n.example --tlsca /etc/ca.pem {user}consumer rm {subjects.stream_of(hub.did)}"
        assert (left["deleted"], left["error"]["code"]) == (0, http_code(code))
        assert left["commands"] == [f"{words} {subjects.consumer_of(pair_id, 'default')} --force"]


@pytest.mark.parametrize("between", ["nothing", "mode", "end"])
async def test_a_carrier_is_changed_in_one_write_though_the_old_server_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    """So nothing that comes before the old server answers is lost, and nothing of this is if the daemon ends then."""
    called, answers = list[str](), asyncio.Event()

    async def hanging(self: CarrierParts, pair_id: str, carrier: Carrier) -> Nats:
        called.append(carrier.url)
        await answers.wait()
        raise EngineError("sink-unreachable", "it is stopped")

    async def configure(pair_id: str, changes: Callable[[Pair], dict[str, Any]]) -> None:
        await turns(3)
        spoke.change_pair(pair_id, **changes(spoke.home.views.pairs[pair_id]))
        service._tasks.kick()

    monkeypatch.setattr(CarrierParts, "connect", hanging)
    old, new = NOWHERE, {**NOWHERE, "url": "nats://127.0.0.1:2"}
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        spoke.change_pair(pair_id, mode=ENGINE, carrier=old)
        async with reading(spoke) as service:
            await until(lambda: called == [old["url"]])
            engines = engines_of(spoke)
            engines._carriers = service
            services: Any = Mock(engines=engines, pairing=Mock(configure=configure))
            request: Any = Mock(body=json.dumps(new).encode())
            setting = asyncio.create_task(lifecycle.carrier(request, services, spoke.home.views.pairs[pair_id]))
            await until(lambda: called == [old["url"]] * 2)
            pair = spoke.home.views.pairs[pair_id]
            assert (pair.mode, pair.carrier) == (ENGINE, new)
            if between == "mode":
                spoke.change_pair(pair_id, mode="on-demand")
            if between == "end":
                setting.cancel()
                await asyncio.wait([setting])
            else:
                answers.set()
                left: Any = await setting
                assert left["consumers"]["error"]["code"] == "SINK_UNREACHABLE"
            if between != "mode":
                await until(lambda: new["url"] in called)
            pair = spoke.home.views.pairs[pair_id]
            assert (pair.mode, pair.carrier) == ("on-demand" if between == "mode" else ENGINE, new)


async def test_a_pair_that_we_revoked_is_not_left_again() -> None:
    left = AsyncMock(return_value={"consumers": {}})
    services: Any = MagicMock(engines=Mock(left=left, configured=False), pairing=Mock(revoke=AsyncMock()))
    services.pairing.pairs.hubs = Mock(return_value=[])
    for ours in (False, True):
        pair: Any = Mock(ended_by_us=ours)
        request: Any = Mock(body=b"{}")
        assert ("consumers" in await lifecycle.revoke(request, services, pair)) is not ours
    assert left.await_count == 1


@pytest.mark.parametrize("before", ["", "paused", "stopped"])
async def test_what_a_pair_has_at_the_server_goes_when_the_peer_revokes_it(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    async with two(tmp_path, server) as (hub, spoke, pair_id, _):
        names = f"CONSUMER.NAMES.{subjects.stream_of(hub.did)}"
        async with reading(spoke) as service:
            await closed(service, spoke, pair_id)
            hub.emit("second")
            await equal(hub, spoke)
            if before == "paused":
                spoke.change_pair(pair_id, sync_allowed=False)
                await service.arrange()
                assert not service.faults()
            deleted = list[str]()
            monkeypatch.setattr(carriers, "log", Mock(info=lambda msg, extra: deleted.append(str(extra))))
            assert (await server.ask(names))["consumers"] == [subjects.consumer_of(pair_id, "default")]
            if before != "stopped":
                spoke.change_pair(pair_id, state=Revoked("revoked by peer"), sync_allowed=False)
                service._tasks.kick()
                await until(lambda: deleted)
        if before == "stopped":
            spoke.change_pair(pair_id, state=Revoked("revoked by peer"), sync_allowed=False)
            async with reading(spoke):
                await until(lambda: deleted)
        assert not (await server.ask(names))["consumers"]


async def test_a_carrier_that_no_version_knows_is_none(tmp_path: Path) -> None:
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        for told in ({}, {"url": "exec:cat", "creds": "", "ca": ""}, {**NOWHERE, "more": ""}):
            spoke.change_pair(pair_id, mode=ENGINE, carrier=told)
            assert carrier_of(spoke.home.views.pairs[pair_id]) is None
