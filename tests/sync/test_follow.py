"""Continuous mode between whole instances: records flow at once, nothing is lost or echoed, and everything heals."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.home.writes import Own
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.net.sse import Event
from spl.sync.follow import CONTROL_BYTES_MAX, USELESS_EVENTS_MAX, Flow, Inbox, _StreamState
from spl.sync.pull import Progress
from tests.nodes import LIMITS, Node, Stream, join, nodes
from tests.waiting import DEADLINE_S, turns, until

PAIR = "pair_00000001"
ACK = ("POST", "/v1/sync/ack")


@asynccontextmanager
async def syncing(*running: Node) -> AsyncIterator[None]:
    """Run the syncs of these nodes during the `with`."""
    stop = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for node in running:
            tasks.create_task(node.sync.run(stop))
        yield
        stop.set()


def stream_of(node: Node) -> Stream | None:
    """Return the stream that reads from a node, once something came out of it."""
    return next((each for each in node.network.streams if each.source == node.name and each.seen), None)


def names(stream: Stream) -> list[str]:
    return [event.name for event in stream.seen]


def is_open(node: Node) -> bool:
    status: Any = node.sync.status(PAIR).stream
    return bool(status and status.state == "open")


async def opened(*running: Node) -> None:
    await until(lambda: all(is_open(node) for node in running))


async def test_records_flow_both_ways_and_acks_ride_on_the_streams(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(alice, bob):
        join(alice, bob, mode="continuous")
        for node in (alice, bob):
            node.sync._rouse()
        await opened(alice, bob)
        posted = alice.network.log.count(ACK)
        for n in range(5):
            alice.emit(f"a{n}")
            bob.emit(f"b{n}", actor="did:sync:user:b")
        await until(lambda: len(alice.ids()) == 10 and alice.ids() == bob.ids())
        await until(lambda: all(node.feed.offered(PAIR).lag_records == 0 for node in (alice, bob)))
        assert alice.network.log.count(ACK) == posted
        assert alice.network.log.count(("STREAM", "/v1/sync/changes")) == 2
        for node in (alice, bob):
            assert node.feed.lags.ms()["samples"] == node.feed.lags.ms(PAIR)["samples"]
            assert node.feed.lags.ms(PAIR)["samples"] == node.feed.lags.histogram(PAIR).at_most[-1] > 0
            stream = stream_of(node)
            assert stream is not None
            # What the other side sent is not sent back to it.
            assert names(stream).count("record.created") == 5
            assert "ack" in names(stream)


async def test_a_view_of_the_stream_replaces_the_one_before(tmp_path: Path) -> None:
    """A peer that found us gone and then opened its stream leaves out `unreached`, which no longer holds."""
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, heartbeat_s=0.05)) as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        ways = alice.sync._reaches
        ways.presence(PAIR).lost("connect", 0.0)
        bob.sync._rouse()
        await until(lambda: bob.sync.status(PAIR).peer_view.get("unreached") == "connect")
        ways.presence(PAIR).answered(1.0)
        await until(lambda: "unreached" not in bob.sync.status(PAIR).peer_view)
        await until(lambda: alice.feed.is_read(PAIR))


async def test_the_age_of_what_waited_for_a_poll_or_for_the_pair_is_no_lag(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.emit("before the pair")
        join(alice, bob)
        for text in ("1", "2"):
            await bob.sync.pull(PAIR)
            alice.emit(text)
        await bob.sync.pull(PAIR)
        assert alice.feed.offered(PAIR).lag_records == 0
        assert alice.feed.lags.ms(PAIR)["samples"] == 0


async def test_acks_that_come_close_together_are_one_and_the_last_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spl.sync.follow.ACK_EVERY_S", 3600.0)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(alice, bob):
        join(alice, bob, mode="continuous")
        for node in (alice, bob):
            node.sync._rouse()
        await opened(alice, bob)
        for n in range(3):
            alice.emit(f"{n}")
            await until(lambda: bob.ids() == alice.ids())
        told = stream_of(bob)
        assert told is not None
        await until(lambda: "ack" in names(told))
        assert (names(told).count("ack"), alice.feed.offered(PAIR).lag_records) == (1, 2)
        # As soon as the stream that they are acks of ends, the newest goes out.
        stream = stream_of(alice)
        assert stream is not None
        alice.network.down = "connect"
        stream.cut()
        await until(lambda: alice.feed.offered(PAIR).lag_records == 0)


async def test_where_the_peer_opens_no_stream_acks_are_posted(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        for n in range(20):
            alice.emit(f"{n}")
        await until(lambda: alice.feed.offered(PAIR).acked == 20)
        assert 1 <= alice.network.log.count(ACK) <= 20


async def test_a_cut_stream_is_opened_again_and_nothing_comes_twice(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        for round_ in range(3):
            await opened(bob)
            alice.emit(f"seen {round_}")
            await until(lambda: bob.ids() == alice.ids())
            stream = stream_of(alice)
            assert stream is not None
            alice.network.down = "connect"
            stream.cut()
            alice.emit(f"missed {round_}")
            await until(lambda: bob.sync.status(PAIR).last_error)
            status: Any = bob.sync.status(PAIR)
            assert (status.stream.state, status.next_attempt_at is not None) == ("down", True)
            alice.network.down = ""
            await until(lambda: bob.ids() == alice.ids())
        await opened(bob)
        status = bob.sync.status(PAIR)
        assert (status.attempt, status.last_error, status.next_attempt_at) == (0, None, None)
        assert status.stream.breaks == 3
        assert not bob.watched.heard


async def test_a_restarted_consumer_goes_on_from_its_position(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")
        async with syncing(bob):
            alice.emit("1")
            await opened(bob)
            alice.emit("2")
            await until(lambda: bob.ids() == alice.ids())
        bob.close()
        bob.close = lambda: None  # type: ignore[method-assign]
        again = Node("bob", tmp_path / "bob", alice.network)
        try:
            join(alice, again, mode="continuous")
            assert again.sync.status(PAIR).clock == 2
            async with syncing(again):
                await opened(again)
                alice.emit("3")
                await until(lambda: again.ids() == alice.ids())
                stream = stream_of(alice)
                assert stream is not None
                assert names(stream).count("record.created") == 1
        finally:
            again.close()


async def test_a_position_never_covers_what_could_not_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")
        real = bob.ingest._store
        fail = [False]

        async def store(pair: Any, items: Any) -> int:
            if fail[0] and items:
                fail[0] = False
                raise SplError("overloaded")
            return await real(pair, items)

        monkeypatch.setattr(bob.ingest, "_store", store)
        async with syncing(bob):
            await opened(bob)
            for n in range(30):
                fail[0] = n == 10
                alice.emit(f"{n}")
            await until(lambda: bob.ids() == alice.ids())
            await until(lambda: bob.sync.status(PAIR).clock == 30)


async def test_a_bad_record_goes_into_the_ledger_and_the_stream_goes_on(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        alice.network.change_piece = lambda piece: piece.replace(b'"text":"bad"', b'"text":"BAD"')
        bad, good = alice.emit("bad"), alice.emit("good")
        await until(lambda: good.id in bob.ids())
        assert bad.id not in bob.ids()
        assert bob.home.views.refused == {PAIR: 1}
        assert is_open(bob)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b"event: record.created\ndata: nonsense\n\n", "PARSE_ERROR"),
        (b"event: record.created\ndata: []\n\n", "PARSE_ERROR"),
        (b"event: record.created\ndata: {},{}\n\n", "PARSE_ERROR"),
        (b"event: record.created\nid: " + b"x" * 5000 + b"\ndata: {}\n\n", "PARSE_ERROR"),
        (b"event: heartbeat\ndata: {}\n\n", "PARSE_ERROR"),
        (b'event: heartbeat\ndata: {"peer_view":{},"cursor":7}\n\n', "PARSE_ERROR"),
        (b'event: heartbeat\ndata: {"peer_view":{},"x":"%b"}\n\n' % (b"x" * CONTROL_BYTES_MAX), "PARSE_ERROR"),
        (b'event: ack\ndata: {"cursor":"","x":"%b"}\n\n' % (b"x" * CONTROL_BYTES_MAX), "PARSE_ERROR"),
        (b"event: error\ndata: 7\n\n", "PARSE_ERROR"),
        (b"event: ack\ndata: 7\n\n", "PARSE_ERROR"),
        (b'event: error\ndata: {"code":"lagged"}\n\n', "CONNECT_REFUSED"),
        (b'event: error\ndata: {"code":["?"]}\n\n', "CONNECT_REFUSED"),
    ],
)
async def test_what_makes_no_sense_ends_the_stream_and_costs_nothing(tmp_path: Path, event: bytes, kind: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        left = [event]

        def slip(piece: bytes) -> bytes:
            return piece + left.pop() if b"record.created" in piece and left else piece

        alice.network.change_piece = slip
        sent = alice.emit("before it")
        status = await until(lambda: (found := bob.sync.status(PAIR)).last_error and found)
        assert status.last_error.kind == kind
        last = alice.emit("after it")
        await until(lambda: bob.ids() == sorted([sent.id, last.id]))
        assert not bob.home.views.refused


async def test_unknown_events_and_senseless_acks_are_passed_over(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        alice.network.change_piece = lambda piece: b'event: news\ndata: 1\n\nevent: ack\ndata: {"cursor":1}\n\n' + piece
        alice.emit("x")
        await until(lambda: bob.ids() == alice.ids())
        assert is_open(bob)


USELESS = [b"event: news\ndata: 1\n\n", b'event: ack\ndata: {"cursor":1}\n\n', b'event: ack\ndata: {"cursor":"x"}\n\n']


@pytest.mark.parametrize("event", USELESS, ids=["unknown", "ack", "cursor"])
async def test_a_flood_of_useless_events_ends_the_stream(tmp_path: Path, event: bytes) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        alice.network.change_piece = lambda piece: event * USELESS_EVENTS_MAX + piece
        alice.emit("x")
        status = await until(lambda: (found := bob.sync.status(PAIR)).last_error and found)
        assert status.last_error.kind == "PARSE_ERROR"


@pytest.mark.parametrize("event", [Event("news", b"1", ""), Event("ack", b'{"cursor":1}', "")], ids=["unknown", "ack"])
async def test_useless_events_leave_other_tasks_their_turns(tmp_path: Path, event: Event) -> None:
    """The source never suspends: all its events are there at once."""

    async def source() -> AsyncIterator[Event]:
        for _ in range(USELESS_EVENTS_MAX - 1):
            yield event

    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")
        inbox = Inbox(10, 1000)
        state = _StreamState(PAIR, Progress(), Flow(), inbox)
        other = asyncio.create_task(turns(USELESS_EVENTS_MAX - 2))
        stream: Any = source()
        await bob.sync._follower._read(state, stream)
        assert other.done()
        assert isinstance(inbox.end, SplError)
        assert inbox.end.code == "disconnected"


@pytest.mark.parametrize(("phase", "state"), [(Phase.PAUSED, "paused"), (Phase.REVOKED, "revoked")])
async def test_a_peer_that_stops_serving_is_heard_at_once(tmp_path: Path, phase: Phase, state: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        alice.change_pair(PAIR, phase=phase, serve_allowed=False)
        alice.write(Own("th_federation_pairs", "note", {"n": 1}))
        await until(lambda: ("peer-state", PAIR, state) in bob.watched.heard)
        assert bob.sync.status(PAIR).last_error is None


async def test_our_own_pause_ends_the_stream_and_a_resume_opens_one(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        bob.change_pair(PAIR, sync_allowed=False, phase=Phase.PAUSED)
        bob.sync._rouse()
        await until(lambda: not alice.network.streams)
        sent = alice.emit("meanwhile")
        assert bob.ids() == []
        bob.change_pair(PAIR, sync_allowed=True, phase=Phase.ACTIVE)
        bob.sync._rouse()
        await until(lambda: bob.ids() == [sent.id])


async def test_modes_change_at_once(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="on-demand")
        bob.sync._rouse()
        for _ in range(2):
            bob.change_pair(PAIR, mode="continuous")
            bob.sync._rouse()
            await opened(bob)
            alice.emit("x")
            await until(lambda: bob.ids() == alice.ids())
            bob.change_pair(PAIR, mode="on-demand")
            bob.sync._rouse()
            await until(lambda: not alice.network.streams)
            status = bob.sync.status(PAIR)
            assert (status.stream, status.next_attempt_at) == (None, None)
        bob.change_pair(PAIR, mode="polling")
        bob.sync._rouse()
        await until(lambda: bob.sync.status(PAIR).next_attempt_at)


async def test_what_is_shared_anew_arrives_without_a_restart(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        for node in (alice, bob):
            node.share("org")
        join(alice, bob, mode="continuous")
        old = alice.emit("old", ns="org")
        bob.sync._rouse()
        await opened(bob)
        for node in (alice, bob):
            node.change_pair(PAIR, namespaces=("default", "org"))
            node.write(Own("th_federation_pairs", "note", {"n": 1}))
        await until(lambda: old.id in bob.ids("org"))


async def test_a_source_that_stops_says_when_it_is_back_and_that_is_no_error(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        alice.feed.notifier.stop()
        status = await until(lambda: (found := bob.sync.status(PAIR)).next_attempt_at and found)
        assert (status.last_error, status.attempt) == (None, 0)
        assert when.ms_of(status.next_attempt_at) > bob.now_ms() + 100
        alice.feed.notifier.stopping = False
        sent = alice.emit("back")
        await until(lambda: bob.ids() == [sent.id])


async def test_a_pull_beside_an_open_stream_adds_records_and_leaves_the_position(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        bob.sync._rouse()
        await opened(bob)
        # The network loses what the stream carries, as if it were slow.
        alice.network.change_piece = lambda piece: b""
        sent = alice.emit("x")
        place = bob.home.views.positions.get(PAIR)
        assert await bob.sync.pull(PAIR) == 1
        assert bob.ids() == [sent.id]
        assert bob.home.views.positions.get(PAIR) == place
        assert await bob.sync.pull(PAIR, resync=True) == 0
        assert is_open(bob)
        stream = stream_of(alice)
        assert stream is not None
        alice.network.change_piece = lambda piece: piece
        stream.cut()
        await until(lambda: bob.sync.status(PAIR).clock == 1)


async def test_a_backlog_larger_than_the_queue_arrives_whole(tmp_path: Path) -> None:
    limits = replace(LIMITS, queue_records=7, queue_bytes=4000)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob), syncing(bob):
        join(alice, bob, mode="continuous")
        for n in range(20):
            alice.emit(f"{n}")
        bob.sync._rouse()
        await opened(bob)
        for n in range(200):
            alice.emit(f"more {n}")
        await until(lambda: bob.ids() == alice.ids())
        await until(lambda: bob.sync.status(PAIR).clock == 220)
        assert 1 <= int(str(bob.sync.status(PAIR).queue_max)) <= 10
        await until(lambda: bob.reaches.queue_records(PAIR) == 0)


async def test_a_stream_that_always_fails_backs_off_though_pages_arrive_and_degrades_no_pair(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous")

        def refuse(piece: bytes) -> bytes:
            raise SplError("timeout")

        alice.network.change_piece = refuse
        async with syncing(bob):
            for n in range(3):
                sent = alice.emit(f"{n}")
                await until(lambda: sent.id in bob.ids())  # noqa: B023 - awaited within the round
                await until(lambda: int(str(bob.sync.status(PAIR).attempt)) > n)  # noqa: B023
        assert not bob.watched.heard


async def test_the_chain_of_a_relayed_signer_is_learnt_while_the_stream_runs(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "hub", "bob") as (alice, writer, bob), syncing(writer, bob):
        join(alice, writer, "pair_0000000a", mode="continuous")
        join(writer, bob, PAIR, mode="continuous")
        for node in (writer, bob):
            node.sync._rouse()
        await opened(bob)
        sent = [alice.emit(f"{n}").id for n in range(5)]
        await until(lambda: bob.ids() == sorted(sent))
        assert bob.home.views.pins.chain(alice.did) is not None
        # It came from the hub and goes nowhere back.
        assert json.loads(json.dumps(writer.feed.offered(PAIR).head)) == 5


async def test_a_chain_that_is_cut_off_is_asked_for_with_a_later_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spl.sync.follow.AGAIN_S", 0.05)
    monkeypatch.setattr("spl.sync.follow.AGAIN_MAX_S", 0.1)
    limits = replace(LIMITS, heartbeat_s=0.05)

    def cut(path: str, reply: Reply) -> Reply:
        if path == "/v1/sync/chains":
            raise ReachError("disconnected", "cut off")
        return reply

    async with nodes(tmp_path, "alice", "hub", "bob", limits=limits) as (alice, writer, bob), syncing(writer, bob):
        join(alice, writer, "pair_0000000a", mode="continuous")
        join(writer, bob, PAIR, mode="continuous")
        writer.network.change = cut
        for node in (writer, bob):
            node.sync._rouse()
        await opened(bob)
        sent = alice.emit("1").id
        await until(lambda: bob.home.views.refused == {PAIR: 1})
        writer.network.change = lambda path, reply: reply
        await until(lambda: bob.ids() == [sent])
