"""Signs of life: a silent peer is asked for one, whatever the state of the pair, and its end and return are known."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from spl.core import presence
from spl.core.errors import SplError
from spl.core.pair.pair import Pair, Phase
from spl.core.pair.status import LastError
from spl.sync.follow import PairSync
from spl.sync.schedule import Sync
from tests.nodes import Node, join, nodes
from tests.waiting import DEADLINE_S, until

PAIR = "pair_00000001"


async def run_beside(node: Node, story: Coroutine[Any, Any, None]) -> None:
    """Run a node's sync for as long as a story takes."""
    stop = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(node.sync.run(stop))
        await story
        stop.set()


@pytest.mark.parametrize("fault", ["connect", "auth-invalid"])
@pytest.mark.parametrize("mode", ["polling", "on-demand"])
async def test_a_silent_peer_is_asked_and_its_end_and_return_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, fault: str
) -> None:
    """Nothing is written and no read is due for an hour; both sides learn each other's view all the same.

    A peer that refused our token and takes it again is read at once, whatever the failures before would wait.
    """
    monkeypatch.setattr(presence, "ASK_S", 0.01)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        bob.sync._random_bytes = lambda size: b"\0" * size  # the shortest delays
        join(alice, bob, mode=mode, poll_interval_ms=3_600_000)
        alice.emit("before")
        await bob.sync.pull(PAIR)
        sent, network = alice.emit("after"), alice.network

        async def story() -> None:
            await until(lambda: bob.sync.status(PAIR).peer_view.get("head") == 2)
            network.down = fault
            await until(lambda: bob.sync.status(PAIR).attempt and bob.watched.heard)
            assert bob.sync.status(PAIR).unreached is (fault == "connect")
            assert bob.watched.heard[0] == ("trouble", PAIR, fault)
            bob.change_pair(PAIR, phase=Phase.DEGRADED)
            network.down = ""
            await until(lambda: ("success", PAIR, "") in bob.watched.heard)
            assert bob.sync.status(PAIR).attempt == 0
            if mode == "polling":
                await until(lambda: sent.id in bob.ids())

        await run_beside(bob, story())
        assert ("POST", "/v1/sync/ack") in network.log
        assert (sent.id in bob.ids()) is (mode == "polling")


@pytest.mark.parametrize("mode", ["polling", "on-demand", "continuous"])
async def test_reads_that_fail_are_told_on_both_sides_while_questions_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """No answered question ends them, and contact of the peer makes it no NAT; a read that arrives does."""
    monkeypatch.setattr(presence, "ASK_S", 0.01)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        bob.sync._random_bytes = lambda size: b"\x80" * size  # a question comes before the next read
        join(alice, bob, mode=mode, poll_interval_ms=3_600_000)
        network, asked = alice.network, ("POST", "/v1/sync/ack")
        network.cut = "disconnected"
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)

        async def story() -> None:
            for _ in range(3):
                posted = network.log.count(asked)
                await until(lambda: network.log.count(asked) > posted)  # noqa: B023
                bob.sync.wake(PAIR)
            await until(lambda: bob.sync.status(PAIR).one_way)
            told = bob.sync.status(PAIR)
            assert (told.one_way.reads, told.last_error.code) == (True, "disconnected")
            assert bob.reaches.word(PAIR) != "peer-pushes"
            alice.sync.wake(PAIR)
            await until(lambda: alice.sync.status(PAIR).one_way)
            theirs = alice.sync.status(PAIR).one_way
            assert (theirs.direction, theirs.code, theirs.reads) == ("to-us", "disconnected", True)
            network.cut = ""
            await until(lambda: not bob.sync.status(PAIR).attempt and not bob.sync.status(PAIR).one_way)
            await until(lambda: not alice.sync.status(PAIR).one_way)

        await run_beside(bob, story())


async def test_a_sync_on_demand_that_failed_leaves_no_alarm_once_the_peer_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for a read since, so one that brings nothing shows that reads arrive again."""
    monkeypatch.setattr(presence, "ASK_S", 0.01)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="on-demand")
        alice.emit("waits")
        alice.network.down = "connect"
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)
        assert bob.reaches.seen(PAIR).unread_s is not None

        async def story() -> None:
            alice.network.down = ""
            await until(lambda: bob.reaches.seen(PAIR).unread_s is None)
            await until(lambda: not bob.sync.status(PAIR).one_way)

        await run_beside(bob, story())
        assert not bob.ids()


async def test_a_question_that_hangs_keeps_no_stream_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def hang(self: Sync, pair: Pair, state: PairSync, **more: bool) -> bool:
        if state.flow.is_open:
            asked.set()
            await asyncio.Event().wait()
        return True

    monkeypatch.setattr(Sync, "_ask_life", hang)
    monkeypatch.setattr(Sync, "_quiet_s", lambda self, pair, state: 0.0 if state.flow.is_open else 60.0)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")

        async def story() -> None:
            await asked.wait()
            bob.change_pair(PAIR, mode="on-demand")
            bob.sync._rouse()
            await until(lambda: not bob.sync._states[PAIR].flow.is_open)

        await run_beside(bob, story())


async def test_a_change_while_the_pages_come_leaves_no_stream_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = Sync.pull

    async def changing(self: Sync, pair_id: str, thread: str = "", **more: bool) -> int:
        fresh = await pull(self, pair_id, thread, **more)
        bob.change_pair(PAIR, mode="on-demand")
        return fresh

    monkeypatch.setattr(Sync, "pull", changing)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")

        async def story() -> None:
            await until(lambda: PAIR in bob.sync._states and bob.sync._states[PAIR].mode == "on-demand")
            assert not bob.sync._states[PAIR].flow.is_open

        await run_beside(bob, story())


async def test_an_event_is_a_sign_of_life_whatever_the_time_of_day(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")
        assert not bob.reaches.presence(PAIR).is_known
        bob.sync.on_event(PAIR)
        assert bob.reaches.presence(PAIR).is_known


@pytest.mark.parametrize("pauser", ["us", "peer"])
async def test_a_paused_pair_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauser: str) -> None:
    """Whether the peer is there is a fact of its own; that it refuses to sync is an answer, and no failure."""
    monkeypatch.setattr(presence, "ASK_S", 0.01)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.change_pair(PAIR, phase=Phase.PAUSED, sync_allowed=False, serve_allowed=pauser == "us")
        bob.change_pair(PAIR, phase=Phase.PAUSED, sync_allowed=False, paused_by=pauser)

        async def story() -> None:
            await until(lambda: bob.sync.status(PAIR).peer_view.get("state") == "paused")
            assert bob.sync.status(PAIR).attempt == 0
            assert not bob.watched.heard
            alice.network.down = "connect"
            await until(lambda: bob.sync.status(PAIR).unreached)
            alice.network.down = ""
            await until(lambda: not bob.sync.status(PAIR).unreached)
            assert ("GET", "/v1/sync/changes") not in alice.network.log

        await run_beside(bob, story())


async def test_a_refusal_for_another_reason_hides_no_peer_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next read is minutes away; the question for a sign of life tells."""
    monkeypatch.setattr(presence, "ASK_S", 0.01)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        state = bob.sync._state(PAIR)
        state.errors.attempt, state.mode, state.last_s = 8, "polling", asyncio.get_running_loop().time() + 3600
        state.last_error = LastError("auth-invalid", "refused", 0, "AUTH")
        alice.network.down = "connect"

        async def story() -> None:
            await until(lambda: bob.sync.status(PAIR).unreached)

        await run_beside(bob, story())


async def test_a_peer_that_pushes_and_is_silent_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be dialled, so silence is all that shows its end."""
    monkeypatch.setattr(presence, "CONTACT_FRESH_S", 0.02)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, poll_interval_ms=3_600_000)
        bob.reaches._way(PAIR).served = True
        alice.network.down = "connect"
        bob.sync._state(PAIR).last_s = asyncio.get_running_loop().time()
        bob.sync._state(PAIR).mode = "polling"

        async def story() -> None:
            await until(lambda: bob.sync.status(PAIR).unreached)

        await run_beside(bob, story())
        assert bob.reaches.word(PAIR) == ""


async def test_of_pairs_that_ended_or_are_only_listed_nothing_is_kept(tmp_path: Path) -> None:
    """Strangers may make and end any number of them."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        other = "pair_00000002"
        for pair_id in (PAIR, other):
            join(alice, bob, pair_id)
        alice.emit("x")
        source, counts = bob.feed.source, bob.feed.source.counts

        def known() -> list[set[str]]:
            kept = bob.sync._states, bob.reaches.ways, bob.ingest.memories, source.empty, counts.tallied
            return [set(each) for each in kept]

        for pair_id in (PAIR, other):
            await bob.sync.pull(pair_id)
            assert bob.feed.offered(pair_id) is not None
        assert known() == [{PAIR, other}] * 5
        bob.sync.puller.resets_s[other], counts.counted[other], counts.complete[other] = {}, {}, (frozenset(), 0)
        bob.change_pair(other, phase=Phase.REVOKED, sync_allowed=False, serve_allowed=False, ended=True)

        async def story() -> None:
            await until(lambda: known() == [{PAIR}] * 5)

        await run_beside(bob, story())
        for pair_id in (other, "pair_00000003"):
            assert bob.sync.status(pair_id).attempt == 0
        assert known() == [{PAIR}] * 5
        assert other not in {*bob.sync.puller.resets_s, *counts.counted, *counts.complete}
