"""Pulls over links that are slow or spoil what they carry: smaller pages, and another try."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.net.address import ReachError
from spl.net.client import Reply
from tests.nodes import LIMITS, join, nodes

PAIR = "pair_00000001"


async def test_a_page_that_comes_too_late_is_asked_for_in_smaller_ones(tmp_path: Path) -> None:
    """A link that carries half a page within the deadline gets everything, half pages by half pages."""
    limits = replace(LIMITS, page_records_default=16)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(20):
            alice.emit(f"{n}")
        sizes = list[int]()

        def slow(path: str, reply: Reply) -> Reply:
            if path != "/v1/sync/changes":
                return reply
            sizes.append(len(json.loads(reply.body)["records"]))
            if sizes[-1] > 5:
                raise ReachError("timeout", "no whole page within the deadline")
            return reply

        alice.network.change = slow
        for _ in range(2):
            with pytest.raises(ReachError):
                await bob.sync.pull(PAIR)
        with pytest.raises(ReachError):  # 4 came in; it tries 8 again, and goes on with 4
            await bob.sync.pull(PAIR)
        alice.network.change = lambda path, reply: reply
        await bob.sync.pull(PAIR)
        assert sizes == [16, 8, 4, 8]
        assert bob.ids() == alice.ids()


async def test_a_record_whose_bytes_changed_on_the_way_comes_in_at_the_next_pull(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit("1")

        def spoil(path: str, reply: Reply) -> Reply:
            if path == "/v1/sync/records":
                return Reply(503, {}, b"{}", "x")
            value = json.loads(reply.body)
            for item in value.get("records", []):
                item["record"]["clock"] = 7
            return replace(reply, body=json.dumps(value).encode())

        alice.network.change = spoil
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)
        assert (bob.ids(), bob.home.views.refused) == ([], {PAIR: 1})
        alice.network.change = lambda path, reply: reply
        assert await bob.sync.pull(PAIR) == 1
        assert bob.ids() == [sent.id]
        before = len(alice.network.log)
        await bob.sync.pull(PAIR)
        assert ("POST", "/v1/sync/records") not in alice.network.log[before:]
