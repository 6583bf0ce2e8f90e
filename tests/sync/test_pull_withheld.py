"""A record that the way from the peer does not carry even alone waits in the ledger, while all behind it arrives."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.net.client import Reply
from spl.sync.compare import anti_entropy
from spl.sync.compare.anti_entropy import AntiEntropy
from tests.nodes import LIMITS, Node, join, nodes
from tests.sync.test_pull_links import too_much
from tests.waiting import until

PAIR = "pair_00000001"
LARGE = 20_000


def bound(source: Node, status: int, most: int = LARGE) -> list[str]:
    """Let the network carry answers of so many bytes; return the paths of those that it does not."""
    refused = list[str]()

    def change(path: str, reply: Reply) -> Reply:
        if len(reply.body) <= most:
            return reply
        refused.append(path)
        return too_much(status)

    source.network.change = change
    return refused


async def pulled(node: Node, **options: Any) -> None:
    """Pull as often as polls would until one ends well."""
    for _ in range(20):
        try:
            await node.sync.pull(PAIR, **options)
        except SplError:
            continue
        return
    raise AssertionError("it fails for ever")


def waits(node: Node) -> tuple[str, ...]:
    return node.sync.status(PAIR).withheld


@pytest.mark.parametrize("status", [413, 0, 502, 504])
async def test_a_record_that_does_not_arrive_holds_up_nothing(tmp_path: Path, status: int) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, page_records_default=8)) as (alice, bob):
        join(alice, bob)
        before, large, after = alice.emit("1"), alice.emit("x" * LARGE), [alice.emit(f"{n}") for n in range(9)]
        bound(alice, status)
        await pulled(bob)
        assert bob.ids() == sorted([before.id, *(each.id for each in after)])
        assert waits(bob) == (large.id,)
        assert bob.sync.status(PAIR).lag_records == 0
        await pulled(bob, resync=True)
        assert waits(bob) == (large.id,)
        assert bob.home.views.refused[PAIR] == 1, "it is in the ledger once"


@pytest.mark.parametrize("status", [413, 0, 504])
async def test_each_comparison_tries_it_and_fails_no_other_record(tmp_path: Path, status: int) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        large = alice.emit("x" * LARGE)
        refused = bound(alice, status)
        await pulled(bob)
        refused.clear()
        found, _ = await bob.reconcile.mend(PAIR)
        assert list(found.missing) == [large.id]
        assert refused == ["/v1/sync/records"]
        alice.network.change = lambda path, reply: reply
        await bob.reconcile.mend(PAIR)
        assert bob.ids() == [large.id]
        assert waits(bob) == ()


async def test_it_is_tried_by_itself_until_it_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anti_entropy, "AGAIN_S", 0.01)
    monkeypatch.setattr(anti_entropy, "APART_S", 0.0)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        large = alice.emit("x" * LARGE)
        watching = AntiEntropy(
            lambda: bob.reconcile, bob.sync, bob.reaches, interval_s=1e9, now_ms=bob.now_ms, random_bytes=bytes
        )  # fmt: skip
        refused, stop = bound(alice, 413), asyncio.Event()
        task = asyncio.create_task(watching.run(stop))
        await until(lambda: watching._states)
        await pulled(bob)
        await until(lambda: refused.count("/v1/sync/records") > 2)
        alice.network.change = lambda path, reply: reply
        await until(lambda: bob.ids() == [large.id])
        stop.set()
        await task


async def test_a_source_that_knows_no_names_is_read_as_before(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x" * LARGE)
        bound(alice, 413)
        fetch = alice.network.fetch

        async def older(method: str, url: str, **rest: Any) -> Reply:
            if "names=1" in url:
                return Reply(400, {}, json.dumps({"object": "error", "code": "BAD_FIELD", "message": ""}).encode(), "x")
            return await fetch(method, url, **rest)

        alice.network.fetch = older  # type: ignore[method-assign]
        for _ in range(5):
            with pytest.raises(SplError) as caught:
                await bob.sync.pull(PAIR)
            assert caught.value.code == "peer-4xx"
        assert waits(bob) == ()


async def test_a_way_that_is_shut_withholds_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        bound(alice, 0, 0)
        for _ in range(8):
            with pytest.raises(SplError):
                await bob.sync.pull(PAIR)
            with pytest.raises(SplError):
                await bob.reconcile.mend(PAIR)
        assert waits(bob) == ()


@pytest.mark.parametrize("most", [1000, 2])
async def test_what_was_refused_and_does_not_arrive_when_asked_for_again_is_not_forgotten(
    tmp_path: Path, most: int
) -> None:
    """The comparison fetches it, or the next reading if the ledger holds no line more."""
    limits = replace(LIMITS, refused_per_pair=most)
    async with nodes(tmp_path, "alice", "hub", "bob", limits=limits) as (alice, writer, bob):
        join(alice, writer, "pair_0000000a")
        join(writer, bob)
        small, large = alice.emit("1"), alice.emit("x" * LARGE)
        await writer.sync.pull("pair_0000000a")
        writer.network.change = lambda path, reply: replace(reply, status=404) if path == "/v1/sync/chains" else reply
        await pulled(bob)
        assert bob.home.views.refused == {PAIR: 2}
        last = alice.emit("2")
        await writer.sync.pull("pair_0000000a")
        bound(writer, 413)
        await pulled(bob)
        assert bob.ids() == sorted([small.id, last.id])
        writer.network.change = lambda path, reply: reply
        if most == 2:
            await pulled(bob)
        else:
            assert waits(bob) == (large.id,)
            await pulled(bob)
            assert waits(bob) == (large.id,), "readings ask for the others alone"
            await bob.reconcile.mend(PAIR)
        assert bob.ids() == alice.ids()
        assert waits(bob) == ()
