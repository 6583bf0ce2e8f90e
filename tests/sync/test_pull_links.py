"""What a slow link or a proxy's bound does not carry becomes smaller, whatever asks for it, and is tried again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.home.writes import SavedPosition
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.sync.changes import whole
from spl.sync.peer import INTO, OUT
from spl.sync.source import Query
from tests.nodes import LIMITS, Node, join, nodes

PAIR = "pair_00000001"


def too_much(status: int) -> Reply:
    """Return a proxy's refusal; 0 for one that says nothing at all."""
    if not status:
        raise ReachError("timeout", "nothing moves")
    return Reply(status, {}, b"<h1>a proxy</h1>", "x")


def bounded(sizes: list[int], most: int, path: str, status: int) -> Callable[[str, Reply], Reply]:
    """Return a network that carries so many records in an answer to `path`."""

    def change(asked: str, reply: Reply) -> Reply:
        if asked != path or reply.status != 200:
            return reply
        value = json.loads(reply.body)
        sizes.append(len(value.get("records", [])))
        return too_much(status) if sizes[-1] > most else reply

    return change


async def tried(what: Callable[[], Any], done: Callable[[], bool]) -> int:
    """Do it until it is done, at most twelve times; return how often it failed."""
    failures = 0
    for _ in range(12):
        if done():
            break
        try:
            await what()
        except SplError:
            failures += 1
    assert done()
    return failures


async def skip(node: Node, source: Node) -> None:
    """Move a node's saved position to the end of what the source offers, without the records."""
    page = json.loads(await whole(await source.feed.page(PAIR, Query(limit=100))))
    node.write(SavedPosition(PAIR, page["next_cursor"], len(page["records"])))


@pytest.mark.parametrize("status", [0, 413, 502, 504])
async def test_a_page_that_is_too_much_is_asked_for_in_smaller_ones(tmp_path: Path, status: int) -> None:
    limits, sizes = replace(LIMITS, page_records_default=16), list[int]()
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(60):
            alice.emit(f"{n}")
        alice.network.change = bounded(sizes, 5, "/v1/sync/changes", status)
        failures = await tried(lambda: bob.sync.pull(PAIR), lambda: bob.ids() == alice.ids())
        assert failures == (0 if status == 413 else 2), "a size that is refused is halved at once"
        assert sizes[:4] == [16, 8, 4, 4]
        assert sum(size > 5 for size in sizes) <= 4, "most pages are of a size that goes"


async def test_what_came_before_a_failure_ends_the_backing_off(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, page_records_default=8)) as (alice, bob):
        join(alice, bob)
        for n in range(100):
            alice.emit(f"{n}")
        passed = 0

        def breaks(path: str, reply: Reply) -> Reply:
            nonlocal passed
            passed += path == "/v1/sync/changes"
            if path == "/v1/sync/changes" and passed % 2 == 0:
                raise ReachError("connect", "the link is gone again")
            return reply

        alice.network.change = breaks
        for _ in range(9):
            with pytest.raises(SplError):
                await bob.sync.pull(PAIR)
            assert bob.sync.status(PAIR).attempt == 1
        assert bob.watched.heard == [], "no trouble, as records arrive"


@pytest.mark.parametrize("status", [0, 413])
async def test_a_repair_asks_for_fewer_records_at_a_time(tmp_path: Path, status: int) -> None:
    limits, sizes = replace(LIMITS, fetch_ids=16), list[int]()
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(20):
            alice.emit(f"{n}")
        await skip(bob, alice)
        alice.network.change = bounded(sizes, 5, "/v1/sync/records", status)
        assert await tried(lambda: bob.reconcile.mend(PAIR), lambda: bob.ids() == alice.ids()) < 3
        assert max(sizes[2:]) <= 5


@pytest.mark.parametrize("status", [0, 413])
async def test_what_is_given_or_sent_again_shrinks(tmp_path: Path, status: int) -> None:
    limits, sizes = replace(LIMITS, fetch_ids=16), list[int]()
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        alice.network.walled = {"alice"}
        for n in range(20):
            alice.emit(f"{n}")
        await skip(bob, alice)

        def change(path: str, reply: Reply) -> Reply:
            value = json.loads(reply.body)
            if path == "/v1/sync/records" and "results" in value:
                sizes.append(len(value["results"]))
                return too_much(status) if sizes[-1] > 5 else reply
            return reply

        alice.network.change = change
        await tried(lambda: alice.reconcile.mend(PAIR, give=True), lambda: bob.ids() == alice.ids())
        assert alice.peers.portion(PAIR, OUT).limit


async def test_a_comparison_asks_smaller_questions(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        for n in range(200):
            alice.emit(f"{n}")
        await skip(bob, alice)
        sizes = list[int]()

        def change(path: str, reply: Reply) -> Reply:
            if path == "/v1/sync/fingerprints":
                sizes.append(len(reply.body))
                return too_much(413) if sizes[-1] > 6000 else reply
            return reply

        alice.network.change = change
        report: Any = (await bob.reconcile.verify(PAIR)).to_json()
        assert len(report["missing_here"]) == 200
        assert max(sizes) > 6000
        assert bob.peers.portion(PAIR, INTO).limit


async def test_one_portion_serves_all_requests_of_a_direction(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        for n in range(8):
            alice.emit(f"{n}")
        await skip(bob, alice)
        bob.peers.portion(PAIR, INTO).limit = 2
        sizes = list[int]()
        alice.network.change = bounded(sizes, 2, "/v1/sync/records", 413)
        await bob.reconcile.mend(PAIR)
        assert bob.ids() == alice.ids()
        assert (sizes[0], max(sizes)) == (2, 4), "one step up is tried"


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


async def test_a_reset_whose_answers_are_lost_counts_once(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit("1")
        await bob.sync.pull(PAIR)
        object.__setattr__(alice.home.store, "epoch", "a" * 32)

        def lose(path: str, reply: Reply) -> Reply:
            if path == "/v1/sync/changes" and reply.status == 200:
                raise ReachError("disconnected", "the answer is lost")
            return reply

        alice.network.change = lose
        for _ in range(5):
            with pytest.raises(ReachError):
                await bob.sync.pull(PAIR)
        alice.network.change = lambda path, reply: reply
        await bob.sync.pull(PAIR)
        assert bob.ids() == [sent.id]


@pytest.mark.parametrize("status", [0, 429, 502])
async def test_a_chain_that_is_cut_off_is_asked_for_until_it_comes(tmp_path: Path, status: int) -> None:
    """Nothing else brings the records back: their signer writes no more, and what is refused is not compared."""

    def change(path: str, reply: Reply) -> Reply:
        return too_much(status) if path == "/v1/sync/chains" else reply

    async with nodes(tmp_path, "alice", "hub", "bob") as (alice, writer, bob):
        join(alice, writer, "pair_0000000a")
        join(writer, bob)
        sent = alice.emit("1")
        await writer.sync.pull("pair_0000000a")
        writer.network.change = change
        for _ in range(3):
            assert await bob.sync.pull(PAIR) == 0
        assert bob.home.views.refused == {PAIR: 1}
        writer.network.change = lambda path, reply: reply
        assert await bob.sync.pull(PAIR) == 1
        assert bob.ids() == [sent.id]


async def test_a_chain_that_is_cut_off_in_a_comparison_is_asked_for_at_the_next_reading(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "hub", "bob") as (alice, writer, bob):
        join(alice, writer, "pair_0000000a")
        join(writer, bob)
        sent = alice.emit("1")
        await writer.sync.pull("pair_0000000a")
        await skip(bob, writer)
        bob.ingest.refused.settle(PAIR, bob.ingest.inbound(bob.home.views.pairs[PAIR]))
        writer.network.change = lambda path, reply: too_much(0) if path == "/v1/sync/chains" else reply
        await bob.reconcile.mend(PAIR)
        assert bob.home.views.refused == {PAIR: 1}
        writer.network.change = lambda path, reply: reply
        await bob.sync.pull(PAIR)
        assert bob.ids() == [sent.id]
