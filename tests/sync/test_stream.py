"""A stream gives every record of its reading once and in order, whatever it is read from, and ends when it must."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from spl.core import consent
from spl.core.consent import Grant, PairGrants
from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.core.record import namespace
from spl.core.record.filter import PairFilter
from spl.home.views import Views
from spl.home.writes import Arrive, Emit, Own
from spl.net.sse import Event, EventParser
from spl.sync import changes, lanes, notify, stream
from spl.sync.source import OUR_OWN, Credential, Query
from tests.nodes import LIMITS, Node, Token, join, nodes
from tests.store_kit import set_views
from tests.waiting import DEADLINE_S

PAIR = "pair_00000001"


class Reader:
    """The reading end of a stream, at the pace of the test."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.pieces, self.parser, self.ready = pieces, EventParser(LIMITS.event_bytes), list[Event]()

    async def next(self) -> Event:
        async with asyncio.timeout(DEADLINE_S):
            while not self.ready:
                self.ready += self.parser.feed(await anext(self.pieces))
        return self.ready.pop(0)

    async def records(self, count: int) -> list[Event]:
        """Return the next records' events, passing over what stands between."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next()
            if event.name == "record.created":
                found.append(event)
        return found

    async def end(self) -> Event:
        """Return the last event; the stream is over after it."""
        while (event := await self.next()).name not in ("error", "server_shutdown"):
            pass
        with pytest.raises(StopAsyncIteration):
            await anext(self.pieces)
        return event


@asynccontextmanager
async def reading(node: Node, since: str = "", credential: Credential = OUR_OWN, **query: Any) -> AsyncIterator[Reader]:
    pieces = await node.feed.stream(PAIR, Query(since=since, feed="continuous", **query), credential)
    try:
        yield Reader(pieces)
    finally:
        await cast(Any, pieces).aclose()


def ids(events: list[Event]) -> list[str]:
    return [json.loads(event.data)["id"] for event in events]


def many(node: Node, count: int) -> list[str]:
    """Emit records in one write and return their ids."""
    items = [
        Emit({"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {"n": n, "of": count}})
        for n in range(count)
    ]
    return [outcome.envelope.id for outcome in node.write(*items) if outcome.envelope]


async def test_the_first_event_is_a_heartbeat_and_a_record_is_its_stored_bytes(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        async with reading(alice) as reader:
            beat = await reader.next()
            view = json.loads(beat.data)["peer_view"]
            assert (beat.name, view["state"], view["head"], view["clock"]) == ("heartbeat", "active", 0, 0)
            sent = alice.emit('π \u2028 "')
            event = await reader.next()
            assert event.name == "record.created"
            assert event.data == sent.raw[:-1] + b',"ns":"default","clock":1}'
            assert event.id


async def test_only_the_last_of_a_write_carries_the_cursor(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        async with reading(alice) as reader:
            await reader.next()
            alice.emit("0")
            await reader.records(1)
            sent = many(alice, 5)
            events = await reader.records(5)
            assert ids(events) == sent
            *rest, last = events
            assert [event.id for event in rest] == [""] * 4
            assert last.id
            assert json.loads(last.data)["clock"] == 6


async def test_it_goes_on_from_any_cursor_it_gave(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}").id for n in range(3)]
        async with reading(alice) as reader:
            [*_, third] = await reader.records(3)
            sent.append(alice.emit("3").id)
            [fourth] = await reader.records(1)
        sent.append(alice.emit("4").id)
        for event, rest in ((third, sent[3:]), (fourth, sent[4:])):
            async with reading(alice, event.id) as reader:
                assert ids(await reader.records(len(rest))) == rest


@pytest.mark.parametrize("recent", [0, 1, 32])
@pytest.mark.parametrize("piece", [1, 2000, 64 * 1024])
async def test_memory_and_index_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recent: int, piece: int
) -> None:
    """However few commits are kept and however slowly it is read, each record comes once and in order."""
    monkeypatch.setattr(notify, "RECENT_BYTES", recent * 4000)
    monkeypatch.setattr(stream, "PIECE_BYTES", piece)
    monkeypatch.setattr(stream, "PIECE_RECORDS", 3)
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        alice.share("org", "private")
        join(alice, bob, namespaces=("default", "org"))
        sent: list[str] = []
        events: list[Event] = []
        async with reading(alice) as reader:
            for round_ in range(6):
                sent += many(alice, round_ * 3)
                alice.write(Arrive(bob.emit(f"theirs {round_}"), "default", PAIR))
                alice.emit(f"hidden {round_}", ns="private")
                relayed = carol.emit(f"{round_}")
                alice.write(Arrive(relayed, "default", "pair_0000000c"))
                sent += [relayed.id, alice.emit(f"{round_}", ns="org").id]
                if round_ % 2:
                    # Some are left for later, so that the stream is behind when the next ones come.
                    events += await reader.records(len(sent) - round_ - len(events))
            events += await reader.records(len(sent) - len(events))
        assert sorted(ids(events)) == sorted(sent)
        last = json.loads(events.pop().data)
        assert last["clock"] == alice.feed.offered(PAIR).head == len(sent)


async def test_what_is_kept_in_memory_is_bounded_and_goes_with_the_last_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "RECENT_BYTES", 5000)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        async with reading(alice) as reader:
            await reader.next()
            for n in range(100):
                alice.emit(f"{n}")
            commits, last_seq = alice.feed._recent.state
            assert sum(len(entry.payload) for commit in commits for _, entry in commit.fresh) <= 5000
            assert last_seq == alice.home.store.last_seq
            assert len(await reader.records(100)) == 100
        assert alice.feed._recent.state == ((), alice.home.store.last_seq)
        alice.emit("alone")
        commits, _ = alice.feed._recent.state
        assert commits == ()


async def test_what_the_peer_delivered_moves_the_heartbeats_cursor_and_sends_nothing(tmp_path: Path) -> None:
    limits = replace(LIMITS, heartbeat_s=0.0)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        async with reading(alice) as reader:
            await reader.records(1)
            before = json.loads((await reader.next()).data)["cursor"]
            alice.write(Arrive(bob.emit("by bob"), "default", PAIR))
            events = [await reader.next() for _ in range(6)]
            assert {event.name for event in events} == {"heartbeat"}
            *_, moved, after = [json.loads(event.data)["cursor"] for event in events]
            assert moved == after != before
        async with reading(alice, after) as reader:
            sent = alice.emit("2")
            assert ids(await reader.records(1)) == [sent.id]


async def test_a_whole_reading_goes_on_as_an_ordinary_one(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        theirs = [bob.emit("1"), bob.emit("2")]
        alice.write(Arrive(theirs[0], "default", PAIR))
        own = alice.emit("own")
        async with reading(alice, resync=True) as reader:
            assert ids(await reader.records(2)) == [theirs[0].id, own.id]
            alice.write(Arrive(theirs[1], "default", PAIR))
            last = alice.emit("last")
            assert ids(await reader.records(1)) == [last.id]


async def test_the_ack_of_the_other_direction_goes_out_at_once_and_only_the_newest(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        assert not alice.feed.confirm(PAIR, "nobody reads")
        async with reading(alice) as reader:
            await reader.next()
            alice.feed.confirm(PAIR, "one")
            alice.feed.confirm(PAIR, "two")
            event = await reader.next()
            assert (event.name, json.loads(event.data)) == ("ack", {"cursor": "two"})
        assert not alice.feed.confirm(PAIR, "gone")


@pytest.mark.parametrize(("phase", "code"), [(Phase.PAUSED, "paused"), (Phase.REVOKED, "revoked")])
async def test_a_pair_that_is_not_served_any_more_ends_it_at_once(tmp_path: Path, phase: Phase, code: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        async with reading(alice) as reader:
            await reader.next()
            alice.change_pair(PAIR, phase=phase, serve_allowed=False, reason="why")
            alice.write(Own("th_federation_pairs", "note", {"n": 1}))
            told = json.loads((await reader.end()).data)
            assert (told["code"], told["peer_view"]["reason"]) == (code, "why")
        with pytest.raises(SplError):
            await alice.feed.stream(PAIR, Query(feed="continuous"))


async def test_a_change_of_what_is_shared_asks_for_another_stream(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("org")
        join(alice, bob)
        async with reading(alice) as reader:
            await reader.next()
            alice.write(Own("th_federation_pairs", "note", {"n": 1}))
            alice.emit("still there")
            await reader.records(1)
            alice.change_pair(PAIR, namespaces=("default", "org"))
            alice.write(Own("th_federation_pairs", "note", {"n": 2}))
            assert json.loads((await reader.end()).data)["code"] == "lagged"


async def test_a_new_stream_replaces_the_one_before(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        async with reading(alice) as first, reading(alice) as second:
            await first.next()
            await second.next()
            assert json.loads((await first.end()).data)["code"] == "lagged"
            sent = alice.emit("x")
            assert ids(await second.records(1)) == [sent.id]


@pytest.mark.parametrize("thread", ["th_api_tokens", "th_engine_config"])
async def test_a_token_or_a_rule_that_ends_it_ends_the_stream(tmp_path: Path, thread: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        token = Token()
        async with reading(alice, credential=token) as reader:
            await reader.next()
            token.valid = False
            alice.write(Own(thread, "note", {"n": 1}))
            assert json.loads((await reader.end()).data)["code"] == "revoked"


async def test_the_stop_says_when_to_come_back(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        async with reading(alice) as reader:
            await reader.next()
            alice.feed.notifier.stop()
            last = await reader.end()
            assert (last.name, json.loads(last.data)) == ("server_shutdown", {"retry_after_ms": 1000})


async def test_a_stream_is_never_narrowed(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        for query in (Query(thread="th"), Query(namespace="default")):
            with pytest.raises(SplError) as caught:
                await alice.feed.stream(PAIR, query)
            assert caught.value.code == "bad-field"
        with pytest.raises(SplError) as caught:
            await alice.feed.stream(PAIR, Query(since="nonsense"))
        assert caught.value.code == "cursor-invalid"


def grant(node: Node, ns: str, level: int | None, version: int) -> None:
    """Grant our namespace at a level, or withdraw it, and let the listeners hear of it."""
    set_views(node.home, consents={PAIR: PairGrants(ours={ns: Grant(ns, ns, level, version)})})
    node.write(Own(consent.THREAD, "note", {"n": version}))


async def test_projections_go_out_live_and_a_new_level_takes_over_at_once(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("music")
        join(alice, bob)
        grant(alice, "music", 2, 1)
        async with reading(alice) as reader:
            await reader.next()
            full, shown = alice.emit("full"), alice.emit("shown", ns="music")
            events = await reader.records(2)
            values = {json.loads(event.data)["ns"]: json.loads(event.data) for event in events}
            assert values["default"]["id"] == full.id
            assert values["music"]["projection"]["level"] == "L2"
            assert values["music"]["id"] == alice.feed.source.outgoing.pseudonym(PAIR, shown.id)
            grant(alice, "music", 1, 2)
            assert json.loads((await reader.end()).data)["code"] == "lagged"
        at_shown = next(event.id for event in events if event.id)
        async with reading(alice, at_shown) as reader:
            [event] = await reader.records(1)
            again = json.loads(event.data)
            assert (again["id"], again["projection"]["level"]) == (shown.id, "L1")


async def test_what_a_rule_hides_wakes_nobody_and_moves_nothing(tmp_path: Path) -> None:
    limits = replace(LIMITS, heartbeat_s=0.0)
    async with nodes(tmp_path, "alice", "bob", "carol", limits=limits) as (alice, bob, carol):
        join(alice, bob)
        for filter_, hide in (
            (PairFilter(thread_rule='record.thread == "open"'), lambda: alice.emit("x", thread="closed")),
            (PairFilter(relay=False), lambda: alice.write(Arrive(carol.emit("x"), "default", "pair_0000000c"))),
        ):
            alice.change_pair(PAIR, filters=(filter_,))
            alice.emit("1", thread="open")
            async with reading(alice) as reader:
                [*_, first] = await reader.records(alice.feed.offered(PAIR).head or 1)
                beat = await reader.next()
                hide()
                for _ in range(5):
                    assert await reader.next() == beat
                sent = alice.emit("2", thread="open")
                assert ids(await reader.records(1)) == [sent.id]
            async with reading(alice, first.id) as reader:
                assert ids(await reader.records(1)) == [sent.id]


@pytest.mark.parametrize("how", ["withdrawn", "archived", "filtered"])
@pytest.mark.parametrize("level", [0, 1])
async def test_what_is_written_after_a_withdrawal_never_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, level: int
) -> None:
    """Also when both come in one write, and when the stream was reading in a thread meanwhile."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("music")
        join(alice, bob, namespaces=("default", "music"))
        if level:
            grant(alice, "music", level, 1)
        alice.emit("before", ns="music")
        async with reading(alice) as reader:
            await reader.records(1)
            real = Views.folded
            narrower = replace(alice.pair(PAIR), filters=(PairFilter(thread_allow=("other",)),))
            changes = {
                "withdrawn": {"consents": {PAIR: PairGrants(ours={"music": Grant("music", "music", None, 9)})}},
                "archived": {"namespaces": {"music": namespace.Namespace("music", active=False)}},
                "filtered": {"pairs": {PAIR: narrower}},
            }

            def folded(self: Views, *args: Any) -> Views:
                after = real(self, *args)
                return replace(after, **changes[how]) if args[0].thread == consent.THREAD else after

            monkeypatch.setattr(Views, "folded", folded)
            body = {"namespace": "music", "text": "after"}
            change = Own(consent.THREAD, "note", {"n": 1})
            emit = Emit({"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": body})
            alice.write(change, emit)
            while (event := await reader.next()).name != "error":
                assert event.name == "heartbeat"
            assert json.loads(event.data)["code"] == "lagged"


async def test_a_thread_that_reads_what_is_withdrawn_meanwhile_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("music")
        join(alice, bob, namespaces=("default", "music"))
        alice.emit("x", ns="music")
        real = lanes.collect

        def collect(*args: Any) -> Any:
            found = yield from real(*args)
            grant(alice, "music", None, 1)
            return found

        for module in (stream, changes):
            monkeypatch.setattr(module, "collect", collect)
        async with reading(alice) as reader:
            assert (await reader.next()).name == "heartbeat"
            assert json.loads((await reader.next()).data)["code"] == "lagged"
        set_views(alice.home, consents={})
        page = json.loads(await alice.feed.changes(PAIR, Query()))
        assert page["records"] == []


async def test_what_is_written_while_the_last_word_is_sought_does_not_overtake_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("music")
        join(alice, bob, namespaces=("default", "music"))
        async with reading(alice) as reader:
            await reader.next()
            real, armed = alice.feed.source.scope, [True]

            def scope(*args: Any) -> Any:
                found = real(*args)
                if armed:
                    armed.clear()
                    grant(alice, "music", None, 1)
                    alice.emit("after", ns="music")
                return found

            monkeypatch.setattr(alice.feed.source, "scope", scope)
            alice.write(Own("th_federation_pairs", "note", {"n": 1}))
            set_views(alice.home, pairs=dict(alice.home.views.pairs))
            while (event := await reader.next()).name != "error":
                assert event.name == "heartbeat"


async def test_a_long_look_under_a_rule_is_broken_by_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE_RECORDS", 1)
    monkeypatch.setattr(lanes, "SCAN_ROWS", 1)
    monkeypatch.setattr(lanes, "_CHUNK_ROWS", 1)
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, heartbeat_s=0.0)) as (alice, bob):
        join(alice, bob, filters=(PairFilter(thread_allow=("open",)),))
        for n in range(20):
            alice.emit(f"{n}")
        sent = alice.emit("x", thread="open")
        async with reading(alice) as reader:
            beats = 0
            while (event := await reader.next()).name == "heartbeat":
                beats += 1
            assert json.loads(event.data)["id"] == sent.id
            assert beats > 5
