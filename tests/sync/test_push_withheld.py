"""A record that the way to the peer does not carry even alone waits, named, while everything behind it arrives."""

from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.sync import ledger
from tests.nodes import Node, join, nodes

PAIR = "pair_00000001"
LARGE = 20_000


def walled(laptop: Node, server: Node) -> None:
    """Pair the two; the server cannot dial the laptop."""
    join(laptop, server, PAIR)
    laptop.network.walled = {laptop.name}


def bound(node: Node, most: int, status: int) -> list[int]:
    """Let the network carry requests of so many bytes; 0: a larger one times out.  Returns the sizes refused."""
    fetch, refused = node.network.fetch, list[int]()

    async def bounded(method: str, url: str, **rest: Any) -> Reply:
        if len(rest.get("body", b"")) > most:
            refused.append(len(rest["body"]))
            if not status:
                raise ReachError("timeout", "nothing moves")
            return Reply(status, {}, b"<h1>a proxy</h1>", "x")
        return await fetch(method, url, **rest)

    node.network.fetch = bounded  # type: ignore[method-assign]
    return refused


async def pushed(laptop: Node) -> None:
    """Pull and push as often as a poll would until nothing fails."""
    for _ in range(16):
        try:
            await laptop.sync.pull(PAIR)
            await laptop.push.push(PAIR)
        except SplError:
            continue
        return
    raise AssertionError("it fails for ever")


@pytest.mark.parametrize("status", [413, 0, 502, 504])
async def test_a_record_that_is_too_large_holds_up_nothing(tmp_path: Path, status: int) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        before, large, after = laptop.emit("1"), laptop.emit("x" * LARGE), [laptop.emit(f"{n}") for n in range(5)]
        refused = bound(laptop, LARGE, status)
        await pushed(laptop)
        assert server.ids() == sorted([before.id, *(each.id for each in after)])
        assert laptop.feed.offered(PAIR).withheld == (large.id,)
        assert laptop.feed.offered(PAIR).lag_records == 1
        assert refused
        later = laptop.emit("later")
        await pushed(laptop)
        assert later.id in server.ids()


async def test_it_arrives_once_the_bound_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "AGAIN_S", 0.0)
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        large, fetch = laptop.emit("x" * LARGE), laptop.network.fetch
        bound(laptop, LARGE, 413)
        await pushed(laptop)
        assert laptop.feed.offered(PAIR).withheld == (large.id,)
        await pushed(laptop)
        assert laptop.feed.offered(PAIR).withheld == (large.id,), "a try that fails leaves it where it was"
        laptop.network.fetch = fetch  # type: ignore[method-assign]
        await pushed(laptop)
        assert server.ids() == [large.id]
        assert laptop.feed.offered(PAIR).withheld == ()


async def test_a_comparison_gives_it_and_finds_it_anew_after_a_restart(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        large, fetch = laptop.emit("x" * LARGE), laptop.network.fetch
        bound(laptop, LARGE, 413)
        await pushed(laptop)
        laptop.feed.withheld.settle(PAIR, ())  # what a restart forgets
        assert laptop.feed.offered(PAIR).withheld == ()
        await laptop.reconcile.mend(PAIR, give=True)
        assert laptop.feed.offered(PAIR).withheld == (large.id,)
        laptop.network.fetch = fetch  # type: ignore[method-assign]
        await laptop.reconcile.mend(PAIR, give=True)
        assert server.ids() == [large.id]
        assert laptop.feed.offered(PAIR).withheld == ()


async def test_nothing_is_passed_over_while_the_way_is_shut(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        await pushed(laptop)
        sent = laptop.emit("1")
        laptop.network.down = "timeout"
        for _ in range(6):
            with pytest.raises(SplError):
                await laptop.push.push(PAIR)
        assert laptop.feed.offered(PAIR).withheld == ()
        laptop.network.down = ""
        await pushed(laptop)
        assert server.ids() == [sent.id]


async def test_a_record_that_no_answer_carries_is_named_by_the_repair(tmp_path: Path) -> None:
    """A pair that fetches by id notes in its ledger what does not come, and asks for it at each comparison."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        await bob.sync.pull(PAIR)
        alice.emit("1")
        large = alice.emit("x" * LARGE)

        def change(path: str, reply: Reply) -> Reply:
            too_large = path in ("/v1/sync/records", "/v1/sync/changes") and len(reply.body) > LARGE
            return Reply(413, {}, b"", "x") if too_large else reply

        alice.network.change = change
        found, _ = await bob.reconcile.mend(PAIR)
        assert list(found.missing) == [large.id]
        assert bob.home.views.refused == {PAIR: 1}
        alice.network.change = lambda path, reply: reply
        found, _ = await bob.reconcile.mend(PAIR)
        assert (bob.ids(), found.missing) == (alice.ids(), {})
