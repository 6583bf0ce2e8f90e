"""All carriers of a daemon: which run, what may be set, and what they say of a server that cannot be used."""

from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.pair.state import ENGINE
from spl.engine.carrier import Carrier
from spl.engine.carriers import carrier_of
from tests.engine.test_carrier import reading
from tests.nodes import Node, join, nodes
from tests.waiting import until

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


async def test_a_carrier_that_no_version_knows_is_none(tmp_path: Path) -> None:
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        for told in ({}, {"url": "exec:cat", "creds": "", "ca": ""}, {**NOWHERE, "more": ""}):
            spoke.change_pair(pair_id, mode=ENGINE, carrier=told)
            assert carrier_of(spoke.home.views.pairs[pair_id]) is None
