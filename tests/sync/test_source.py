"""Where a reading stands: cursors that survive what they must, and terms that change while it goes on."""

import asyncio
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spl.core import consent
from spl.core.consent import Grant, PairGrants
from spl.core.errors import SplError
from spl.core.pair.pair import Pair
from spl.core.record import levels, namespace
from spl.core.record.cursor import Lane, lane_key
from spl.core.record.filter import OPEN, PairFilter, fields_of
from spl.core.record.record import Envelope
from spl.home.config import Config
from spl.home.home import open_home
from spl.home.writes import Arrive, Emit, Item, Own
from spl.sync.changes import Feed
from spl.sync.lanes import LaneScan, clock_of, next_lanes
from spl.sync.reach import Reaches
from spl.sync.source import SEALED_MAX, Query
from tests.nodes import LIMITS, START_MS, APair, Node, join, nodes
from tests.store_kit import LazyDisk, set_views
from tests.sync.test_changes import page, read_all
from tests.waiting import DEADLINE_S, until

PAIR = "pair_00000001"


async def test_a_cursor_that_moved_nothing_keeps_its_text(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        source = alice.feed.source
        view, cursor = source.open(PAIR, Query())
        assert cursor is None
        text, first = source.next_cursor(PAIR, "", None, source.scans(view, Query(), None), False)
        view, again = source.open(PAIR, Query(since=text))
        assert again == first
        assert source.next_cursor(PAIR, text, again, source.scans(view, Query(), again), False) == (text, again)


async def test_a_cursor_that_is_remembered_opens_as_the_sealed_one_does_and_for_its_pair_alone(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob)
        join(alice, carol, pair_id="pair_00000002")
        alice.emit("x")
        source = alice.feed.source
        view, _ = source.open(PAIR, Query())
        text, cursor = source.next_cursor(PAIR, "", None, source.scans(view, Query(), None), False)
        _, remembered = source.open(PAIR, Query(since=text))
        for _ in range(SEALED_MAX):
            source.seal(PAIR, cursor)
        _, opened = source.open(PAIR, Query(since=text))
        assert opened == remembered
        for known in (text, source.seal(PAIR, cursor)):
            with pytest.raises(SplError) as caught:
                source.open("pair_00000002", Query(since=known))
            assert caught.value.code == "cursor-invalid"
        assert len(source._sealed) <= SEALED_MAX


async def test_a_cursor_of_another_log_is_a_reset(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        source = alice.feed.source
        view, _ = source.open(PAIR, Query())
        _, cursor = source.next_cursor(PAIR, "", None, source.scans(view, Query(), None), False)
        for change in ({"epoch": "f" * 32}, {"run": "0" * 31 + "1"}, {"run_seq": 10**6}):
            text = source.seal(PAIR, replace(cursor, **change))
            with pytest.raises(SplError) as caught:
                source.open(PAIR, Query(since=text))
            assert caught.value.code == "cursor-reset"
            assert "peer_view" in caught.value.facts


def test_lanes_that_consent_took_away_keep_their_place_the_farthest_first() -> None:
    gone, here = lane_key("gone"), lane_key("here")
    before = type("Cursor", (), {"lanes": (Lane(gone, 7, 3), Lane(here, 1, 1))})()
    scans = [LaneScan(here, ("n:here",), 9, 4)]
    assert set(next_lanes(scans, before)) == {Lane(here, 9, 4), Lane(gone, 7, 3)}
    assert clock_of(scans) == 4
    many = type("Cursor", (), {"lanes": tuple(Lane(lane_key(str(n)), n, n) for n in range(100))})()
    kept = next_lanes(scans, many)
    assert (len(kept), kept[0].key, min(lane.position for lane in kept[1:])) == (64, here, 37)


async def test_the_scope_is_kept_until_its_terms_change(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        source = alice.feed.source
        first = source.scope(cast(Pair, alice.pair(PAIR)))
        assert source.scope(cast(Pair, alice.pair(PAIR))) is first
        set_views(alice.home, consents={PAIR: PairGrants(ours={"default": Grant("default", "default", 2, 1)})})
        assert source.scope(cast(Pair, alice.pair(PAIR))).shares["default"].level == 2
        alice.change_pair(PAIR, relay=False)
        assert not source.scope(cast(Pair, alice.pair(PAIR))).filter.relay
        set_views(alice.home, namespaces={"default": namespace.Namespace("default", active=False)})
        assert source.scope(cast(Pair, alice.pair(PAIR))).shares == {}


async def test_a_home_set_back_that_cannot_be_dialled_from_is_pushed_what_it_lost(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as made:
        laptop, server = made
        join(laptop, server)
        laptop.network.walled = {laptop.name}
        for text in ("kept", "lost"):
            server.emit(f"{text} by its own")
            laptop.emit(f"{text} by the laptop")
            await laptop.sync.pull(PAIR)
            await laptop.push.push(PAIR)
            assert server.ids() == laptop.ids()
            if text == "kept":
                shutil.copytree(tmp_path / "server", tmp_path / "copy")
        server.close()
        shutil.rmtree(tmp_path / "server")
        shutil.move(tmp_path / "copy", tmp_path / "server")
        made[1] = server = Node("server", tmp_path / "server", laptop.network)
        join(laptop, server)
        assert len(server.ids()) == 2
        server.emit("new")
        await laptop.sync.pull(PAIR)
        assert laptop.feed.doubts(PAIR)
        assert await laptop.push.push(PAIR) == 2
        assert not laptop.feed.doubts(PAIR)
        assert server.ids() == laptop.ids()
        assert len(server.ids()) == 5
        laptop.network.log.clear()
        laptop.emit("later")
        assert await laptop.push.push(PAIR) == 1


async def test_what_is_hidden_from_a_peer_that_we_push_to_causes_no_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        join(laptop, server, mode="continuous", filters=(PairFilter(thread_allow=("open",)),))
        laptop.network.walled = {laptop.name}
        await laptop.sync.pull(PAIR)
        await laptop.push.push(PAIR)
        stop, pages, real = asyncio.Event(), list[bytes](), laptop.feed.changes

        async def changes(*args: Any) -> bytes:
            pages.append(await real(*args))
            return pages[-1]

        monkeypatch.setattr(laptop.feed, "changes", changes)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(laptop.push.run(stop))
            await until(lambda: pages and not laptop.push._state(PAIR).sending.locked())
            pages.clear()
            laptop.push._state(PAIR).sent_s = -1e9  # the last one is long ago
            laptop.network.log.clear()
            laptop.emit("hidden", thread="closed")
            await until(lambda: pages and not laptop.push._state(PAIR).sending.locked())
            sent = laptop.emit("shown", thread="open")
            await until(lambda: server.ids() == [sent.id])
            stop.set()
        assert laptop.network.log == [("POST", "/v1/sync/records")]


async def test_reserved_records_that_were_restored_never_leave_either(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        theirs = bob.write(Own("th_consent", "note", {"n": 1}))[0].envelope
        assert theirs is not None
        alice.write(Arrive(theirs, "default", "restore"))
        assert await read_all(alice, thread="th_consent") == []
        assert json.loads(await alice.feed.fetch(PAIR, [theirs.id]))["records"] == []


async def test_unknown_unconsented_and_empty_answers_have_one_form(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("empty", "private")
        join(alice, bob, namespaces=("default", "empty"), filters=(PairFilter(thread_allow=("open",)),))
        alice.emit("1", thread="open")
        alice.emit("2", thread="closed")
        alice.emit("3", thread="secret", ns="private")
        alice.write(Own("th_audit_x", "note", {"n": 1}))
        asked = [{"thread": name} for name in ("nowhere", "closed", "secret", "th_audit_x")]
        asked += [{"namespace": name} for name in ("empty", "private", "nowhere", "no such name")]
        answers = [re.sub('"next_cursor":"[^"]*"', "", (await alice.feed.changes(PAIR, Query(**one))).decode())
                   for one in asked]  # fmt: skip
        assert len(set(answers)) == 1
        assert len({len((await page(alice, **one))["next_cursor"]) for one in [*asked, {}]}) == 1


# -- the model: one source under changing terms

SPACES = ("default", "org", "music", "film")
AGREED = ("default", "org")
FILTERS = (
    OPEN,
    PairFilter(relay=False),
    PairFilter(thread_allow=("one",)),
    PairFilter(thread_rule='record.thread == "two" || record.act == "KNOW"'),
    PairFilter(relay=False, thread_allow=("two",), thread_rule='record.namespace == "org"'),
    PairFilter(thread_rule="record.nonsense"),
)


@dataclass
class World:
    """One source with a log and the terms of one pair, all without sockets, threads of writing, or syncs."""

    folder: Path
    foreign: Mapping[str, Iterator[Envelope]]
    shares: dict[str, int] = field(default_factory=dict)
    held: dict[tuple[str, str], tuple[str, str, dict[str, str]]] = field(default_factory=dict)
    """(id, namespace) -> origin, voucher, facts."""
    given: dict[tuple[str, str], int] = field(default_factory=dict)
    since: str = ""

    def __post_init__(self) -> None:
        ticks, self.random = itertools.count(START_MS), Random(1)
        self.home = open_home(
            self.folder, Config(), disk=LazyDisk(), progress=lambda done, total: None,
            clock=lambda: next(ticks), random=self.random.randbytes,
        )  # fmt: skip
        self.home.adopt(self.home.vault.generate("alice"))
        assert self.home.vault.identity is not None
        self.did = self.home.vault.identity.did
        self.books = PairGrants()
        set_views(self.home, namespaces={ns: namespace.Namespace(ns) for ns in SPACES})
        peer = next(self.foreign["bob"])
        self.pair = APair(PAIR, peer.sig.by, "http://bob", self.home.vault.identity.chain, AGREED)
        self.feed = self.new_feed()
        self.arrange()

    def new_feed(self) -> Feed:
        return Feed(
            self.home.writer,
            self.home.vault,
            LIMITS,
            Reaches(5, int),
            now_ms=lambda: START_MS,
            random_bytes=self.random.randbytes,
        )

    def restart(self) -> None:
        self.feed.close()
        self.feed = self.new_feed()

    def close(self) -> None:
        self.feed.close()
        self.home.writer.close()
        self.home.close()

    def arrange(self, filter_: PairFilter | None = None) -> None:
        """Put the terms into the views."""
        views = self.home.views
        if filter_ is not None:
            rest = [each for each in self.pair.filters if each != filter_]
            self.pair = replace(self.pair, filters=(filter_, *rest))
        set_views(self.home, pairs={PAIR: cast(Pair, self.pair)}, consents={PAIR: self.books})
        self.shares = {
            share.ns: share.level for share in consent.outbound(cast(Pair, self.pair), self.books, views.namespaces)
        }

    def grant(self, ns: str, level: int | None, *, theirs: bool = False) -> None:
        held = self.books.theirs if theirs else self.books.ours
        version = held[ns].version + 1 if ns in held else 1
        after = MappingProxyType({**held, ns: Grant(ns, ns, level, version)})
        self.books = replace(self.books, **{"theirs" if theirs else "ours": after})
        self.arrange()

    def archive(self, ns: str) -> None:
        views = self.home.views
        state = namespace.Namespace(ns, active=not views.namespaces[ns].active)
        set_views(self.home, namespaces={**views.namespaces, ns: state})
        self.arrange()

    def write(self, item: Item) -> None:
        done = self.home.writer.submit([item])
        self.home.writer.commit_waiting()
        envelope = done.result()[0].envelope
        assert envelope is not None
        ns, origin = (item.ns, item.origin) if isinstance(item, Arrive) else (envelope.record["body"]["namespace"], "")
        facts = fields_of(envelope.record, ns, envelope.sig.by)
        self.held.setdefault((envelope.id, ns), (origin, envelope.sig.by, facts))

    def emit(self, ns: str, thread: str, actor: str = "did:sync:user:a", act: str = "DO") -> None:
        if self.home.views.namespaces[ns].active:
            self.write(Emit({"act": act, "actor": actor, "thread": thread, "body": {"namespace": ns}}))

    def arrive(self, who: str, ns: str, origin: str) -> None:
        self.write(Arrive(next(self.foreign[who]), ns, origin))

    def visible(self) -> dict[tuple[str, str], int]:
        """Return what the pair may see now and lacks by its own doing: (id, namespace) -> level."""
        return {
            (id_, ns): self.shares[ns]
            for (id_, ns), (origin, voucher, facts) in self.held.items()
            if ns in self.shares
            and self.pair.filters[0].admits(facts, voucher != self.did)
            and origin != PAIR
            and voucher != self.pair.peer_did
        }

    def page(self, limit: int) -> dict[str, Any]:
        """Read one page, check each item of it, and go on from its cursor."""
        value: dict[str, Any] = json.loads(asyncio.run(self.feed.changes(PAIR, Query(self.since, limit))))
        visible = self.visible()
        named = {self.feed.source.outgoing.pseudonym(PAIR, id_): id_ for id_, _ in self.held}
        for item, ns in zip(value["records"], value["ns"], strict=True):
            id_, level = item["id"], 0
            if levels.is_projection(item):
                shown = levels.parse(item, LIMITS)
                assert levels.verify(shown, PAIR, self.pair.chain.present)
                level, id_ = shown.level, named.get(shown.id, shown.id)
            assert visible.get((id_, ns)) == level
            assert level < self.given.get((id_, ns), 4)
            self.given[id_, ns] = level
        moved, self.since = value["next_cursor"] != self.since, value["next_cursor"]
        return {**value, "moved": moved}

    def read(self, limit: int) -> dict[str, Any]:
        while (value := self.page(limit))["has_more"]:
            pass
        return value


NS = st.sampled_from(SPACES)
STEP = st.one_of(
    st.tuples(st.just("emit"), NS, st.sampled_from(["one", "two", "three"])),
    st.tuples(st.just("arrive"), NS, st.sampled_from([("bob", PAIR), ("bob", "pair_x"), ("carol", "pair_x")])),
    st.tuples(st.just("grant"), NS, st.sampled_from([None, 0, 1, 2, 3])),
    st.tuples(st.just("their"), NS, st.sampled_from([None, 0, 1])),
    st.tuples(st.just("archive"), NS, st.none()),
    st.tuples(st.just("filter"), st.none(), st.sampled_from(FILTERS)),
    st.tuples(st.just("page"), st.none(), st.integers(1, 5)),
    st.tuples(st.just("read"), st.none(), st.integers(1, 5)),
    st.tuples(st.just("restart"), st.none(), st.none()),
)


class Foreign:
    """Records that two other instances signed."""

    def __init__(self, made: dict[str, list[Envelope]]) -> None:
        self.made = made


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Foreign:

    async def make() -> dict[str, list[Envelope]]:
        async with nodes(tmp_path_factory.mktemp("foreign"), "bob", "carol") as made:
            threads = itertools.cycle(("one", "two", "three"))
            return {node.name: [node.emit(str(n), thread=next(threads)) for n in range(60)] for node in made}

    return Foreign(asyncio.run(make()))


def world_in(folder: Path, foreign: Foreign) -> World:
    return World(folder, {who: itertools.cycle(made) for who, made in foreign.made.items()})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=40))
def test_under_any_change_of_terms_the_peer_gets_exactly_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, foreign: Foreign, steps: list[tuple[str, Any, Any]]
) -> None:
    """Each page holds what is visible then, at its level, not given so fully before; in the end nothing lacks."""
    world = world_in(tmp_path_factory.mktemp("world"), foreign)
    try:
        for what, ns, value in steps:
            match what:
                case "emit":
                    world.emit(ns, value, act="KNOW" if value == "three" else "DO")
                case "arrive":
                    world.arrive(value[0], ns, value[1])
                case "grant":
                    world.grant(ns, value)
                case "their":
                    world.grant(ns, value, theirs=True)
                case "archive":
                    world.archive(ns)
                case "filter":
                    world.arrange(value)
                case "page" | "read":
                    getattr(world, what)(value)
                case "restart":
                    world.restart()
        last, visible = world.read(3), world.visible()
        assert all(world.given.get(id_, 9) <= level for id_, level in visible.items())
        assert last["peer_view"]["head"] == last["peer_view"]["clock"] == len(visible)
        asyncio.run(world.feed.ack(PAIR, world.since))
        assert world.feed.offered(PAIR).lag_records == 0
    finally:
        world.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    filter_=st.sampled_from(FILTERS),
    level=st.sampled_from([0, 1, 2]),
    steps=st.lists(STEP.filter(lambda step: step[0] in ("emit", "arrive", "page", "read", "restart")), max_size=40),
)
def test_a_peer_cannot_tell_whether_there_is_anything_hidden(
    tmp_path_factory: pytest.TempPathFactory, foreign: Foreign, filter_: PairFilter, level: int,
    steps: list[tuple[str, Any, Any]],
) -> None:  # fmt: skip
    """All that it is told is the same with and without the hidden records: pages, lengths, moves of the cursor."""
    seen = []
    for hides in (False, True):
        world, views = world_in(tmp_path_factory.mktemp("twin"), foreign), []
        world.grant("music", level)
        world.arrange(filter_)
        try:
            for what, ns, value in steps:
                if what in ("page", "read"):
                    page = getattr(world, what)(value)
                    asyncio.run(world.feed.ack(PAIR, world.since))
                    shown = [item["id"] if "sig" in item else item["record"]["clock"] for item in page["records"]]
                    views.append((shown, page["ns"], page["has_more"], page["moved"], len(world.since),
                                  page["peer_view"], world.feed.peer_view(PAIR)))  # fmt: skip
                elif what == "restart":
                    world.restart()
                elif what == "emit":
                    # Hidden ones have actors of their own, so that they change no clock of others.
                    facts = {"thread": value, "act": "DO", "namespace": ns}
                    hidden = ns not in world.shares or not filter_.admits(
                        {**dict.fromkeys(("actor", "data_type", "kind", "voucher"), ""), **facts}, False
                    )
                    if not (hidden and hides):
                        world.emit(ns, value, "did:sync:user:hidden" if hidden else "did:sync:user:a")
                else:
                    envelope = next(world.foreign[value[0]])
                    facts = fields_of(envelope.record, ns, envelope.sig.by)
                    if not (hides and (ns not in world.shares or not filter_.admits(facts, True))):
                        world.write(Arrive(envelope, ns, value[1]))
        finally:
            world.close()
        seen.append(views)
    assert seen[0] == seen[1]
