"""Consent end to end: whatever both sides grant, withdraw, narrow and archive, each gets exactly what is shared.

Two whole instances, and a model that knows three rules.  What is new after a sync is shared now, at the level that it
has now.  After a sync, all that is shared is there, at its level or more fully, with nobody doing anything about it.
And nothing is sent that the other side took in before at that level or more fully, but for a namespace of which it
refused something: pseudonyms are nothing to ask for, so that one is read anew as a whole.
"""

import asyncio
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spl.core import consent
from spl.core.consent import ConsentError
from spl.core.pair.pair import Pair
from spl.core.record import levels, namespace
from spl.core.record.filter import OPEN, PairFilter, fields_of
from spl.core.record.record import Envelope
from spl.home.views import THREAD_NAMESPACES
from spl.home.writes import Own
from spl.net.sse import EventParser
from tests.nodes import LIMITS, Node, join, nodes
from tests.waiting import DEADLINE_S, until

PAIR = "pair_00000001"
NAMES = ("default", "music", "projects")
THREADS = ("th_a", "th_b")
FILTERS = (
    OPEN,
    PairFilter(thread_allow=("th_a",)),
    PairFilter(thread_rule='record.thread == "th_b"'),
    PairFilter(relay=False),
)
Item = tuple[str, int]
"""A record's id, and the level at which it is held or sent."""
Word = tuple[str, int | None, int]
"""A grant of one namespace: the name there, level, version."""
Step = tuple[int, tuple[Any, ...], bool, tuple[str, str]]
"""Whose it is, a change, whether the peer hears of it, and how each side then syncs."""


@dataclass
class Side:
    """One instance: what it wrote, and what went out of it to the other."""

    node: Node
    wrote: list[Envelope] = field(default_factory=list)
    sent: Counter[Item] = field(default_factory=Counter)
    words: dict[str, Word] = field(default_factory=dict)
    told: dict[str, Word] = field(default_factory=dict)
    """Of what we said, what the other side holds."""
    archived: set[str] = field(default_factory=set)

    @property
    def pair(self) -> Pair:
        return cast(Pair, self.node.pair(PAIR))

    @property
    def book(self) -> consent.PairGrants:
        return consent.grants_of(self.node.home.views.consents, self.pair)

    def say(self, name: str, maps: str, level: int | None) -> None:
        """Grant as our operator does, or withdraw; the peer does not hold it yet."""
        try:
            grant = consent.draft(self.pair, self.book, name, maps, level, LIMITS)
        except ConsentError:
            return
        self.node.write(Own(consent.THREAD, consent.KIND_GRANT, consent.grant_body(PAIR, grant, "then", held=False)))
        self.words[name] = maps, level, grant.version

    def hand_over(self, other: "Side") -> None:
        """Let the other side hold our grants, and know that it does."""
        for grant in consent.news(other.book, consent.statements(self.book.ours.values()), LIMITS):
            body = {"pair_id": PAIR, "grant": grant.to_json(), "at": "then"}
            other.node.write(Own(consent.THREAD, consent.KIND_PEER_GRANT, body))
        for grant in consent.acknowledged(self.book, consent.versions(other.book.theirs)):
            self.node.write(Own(consent.THREAD, consent.KIND_GRANT, consent.grant_body(PAIR, grant, "then", held=True)))
        self.told = dict(self.words)

    def turn(self, name: str, state: str) -> None:
        self.node.write(Own(THREAD_NAMESPACES, namespace.KIND_STATE, {"name": name, "state": state}))
        (self.archived.add if state == "archived" else self.archived.discard)(name)

    def emit(self, name: str, thread: str) -> None:
        if self.active(name):
            actor = f"did:sync:user:{self.node.name}"  # else both could write the very same record
            self.wrote.append(self.node.emit(f"{len(self.wrote)}", ns=name, thread=thread, actor=actor))

    def held(self, by: Node) -> set[Item]:
        """Return what of ours the other instance holds, each at its level."""
        index, found = by.home.store.index, set[Item]()
        for each in self.wrote:
            found |= {(each.id, 0)} if any(index.copies(each.id)) else set()
            for level in (1, 2, 3):
                if index.has_projection(PAIR, levels.NAMES[level], self.alias(each.id, level)):
                    found.add((each.id, level))
        return found

    def refused(self) -> set[str]:
        """Return the peer's namespaces of which we refused something."""
        store = self.node.home.store
        return {json.loads(each).get("ns", "") for each in store.payloads(store.index.after(f"r:{PAIR}", 0, 10_000))}

    def alias(self, id_: str, level: int) -> str:
        return id_ if level < 2 else self.node.feed.source.outgoing.pseudonym(PAIR, id_)

    def shared(self, other: "Side") -> set[Item]:
        """Return what the other side is to have now: what we may send and it may take in."""
        found = set[Item]()
        for each in self.wrote:
            name = each.record["body"]["namespace"]
            level = self.level(other, name)
            if level is not None and self.pair.filters[0].admits(fields_of(each.record, name, self.node.did), False):
                found.add((each.id, level))
        return found

    def level(self, other: "Side", name: str) -> int | None:
        """Return the level at which a namespace reaches the other side, as the contract has it."""
        word, told = self.words.get(name), self.told.get(name)
        agreed = name == "default"
        if word is None:
            return 0 if agreed else None
        target, wanted, _ = word
        if wanted is None or not self.active(name) or not other.active(target):
            return None
        if agreed:
            return wanted if word == told or wanted == 0 else None
        if word != told:
            return None
        if wanted > 0:
            return wanted
        # In full by the word of both: we go by what the other told, and it by what it said.
        back, heard = other.words.get(target), other.told.get(target)
        sends, takes = (each is not None and each[:2] == (name, 0) for each in (heard, back))
        return 0 if sends and takes else None if sends else 1

    def active(self, name: str) -> bool:
        return name not in self.archived

    def listen(self) -> None:
        """Count what goes out from now on, by pages, by id and in streams."""
        answer, stream = self.node.answer, self.node.feed.stream

        async def answering(pair_id: str, path: str, query: Mapping[str, str], body: bytes) -> bytes:
            found = await answer(pair_id, path, query, body)
            if path in ("/v1/sync/changes", "/v1/sync/records"):
                self.note(json.loads(found).get("records", []))
            return found

        async def streaming(*asked: Any) -> AsyncIterator[bytes]:
            return self.noted(await stream(*asked))

        self.node.answer = answering  # type: ignore[method-assign]
        self.node.feed.stream = streaming  # type: ignore[method-assign,assignment]

    async def noted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        parser = EventParser(LIMITS.event_bytes)
        try:
            async for piece in pieces:
                self.note([json.loads(event.data) for event in parser.feed(piece) if event.name == "record.created"])
                yield piece
        finally:
            await cast(Any, pieces).aclose()

    def note(self, values: Sequence[Any]) -> None:
        names = {self.alias(each.id, level): each.id for each in self.wrote for level in (1, 2)}
        for value in values:
            level = levels.NAMES.index(value["projection"]["level"]) if "projection" in value else 0
            self.sent[names[value["id"]], level] += 1


def finest(items: set[Item]) -> dict[str, int]:
    found: dict[str, int] = {}
    for id_, level in items:
        found[id_] = min(level, found.get(id_, level))
    return found


class Model:
    """Both sides and the three rules."""

    def __init__(self, one: Side, two: Side) -> None:
        self.sides = one, two

    async def sync(self, to: Side, way: Callable[[], Any]) -> None:
        """Sync one direction and hold what came of it against the rules."""
        source = self.other(to)
        before, sent, shared = source.held(to.node), source.sent.copy(), source.shared(to)
        await way()
        after = source.held(to.node)
        assert after - before <= shared, "only what is shared, at exactly its level"
        best = finest(after)
        assert all(best.get(id_, 9) <= level for id_, level in shared), "all that is shared, or more of it"
        fine, read_anew = finest(before), to.refused()
        names = {each.id: each.record["body"]["namespace"] for each in source.wrote}
        for (id_, level), count in (source.sent - sent).items():
            assert names[id_] in read_anew or (fine.get(id_, 9) > level and count == 1), (
                "nothing held, and nothing twice"
            )

    def other(self, side: Side) -> Side:
        return self.sides[1] if side is self.sides[0] else self.sides[0]


async def stay(model: Model, to: Side) -> None:
    """Keep a stream open until all is there, while one more record comes."""
    source, stop = model.other(to), asyncio.Event()

    def is_there() -> bool:
        return all(finest(source.held(to.node)).get(id_, 9) <= level for id_, level in source.shared(to))

    to.node.change_pair(PAIR, mode="continuous")
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(to.node.sync.run(stop))
        await until(is_there)
        stop.set()
    to.node.change_pair(PAIR, mode="polling")


async def play(model: Model, steps: Sequence[Step]) -> None:
    """One change after another; after each the peer may hear of grants, and either side may sync."""
    for side in model.sides:
        for name, thread in itertools.product(NAMES, THREADS):
            side.emit(name, thread)
    for number, (name, *more), is_told, ways in steps:
        side = model.sides[number]
        for each in model.sides:
            each.emit("music", "th_b")
        if name == "grant":
            side.say(*more)
        elif name == "filter":
            filters = (FILTERS[more[0]], *side.node.pair(PAIR).filters)[:8]
            side.node.change_pair(PAIR, filters=filters)
        elif name == "turn":
            side.turn(*more)
        else:
            side.emit(*more)
        if is_told:
            side.hand_over(model.other(side))
        for reader, way in zip(model.sides, ways, strict=True):
            if way:
                await model.sync(reader, partial(WAYS[way], model, reader))
    for side in model.sides:
        side.hand_over(model.other(side))
    for side in model.sides:
        await model.sync(side, partial(pull, model, side))


async def pull(model: Model, to: Side) -> None:
    await to.node.sync.pull(PAIR)


WAYS = {"poll": pull, "stream": stay}
NAMED, LEVELS = st.sampled_from((*NAMES[1:], *NAMES)), st.sampled_from((0, 0, 1, 1, 2, 3, None))
CHANGES = st.one_of(
    st.builds(lambda name, level: ("grant", name, name, level), NAMED, LEVELS),
    st.builds(lambda name, maps, level: ("grant", name, maps, level), NAMED, NAMED, LEVELS),
    st.tuples(st.just("filter"), st.sampled_from(range(len(FILTERS)))),
    st.tuples(st.just("turn"), st.sampled_from(NAMES[1:]), st.sampled_from(("active", "archived"))),
    st.tuples(st.just("emit"), NAMED, st.sampled_from(THREADS)),
)
READS = st.sampled_from(("poll", "poll", "stream", ""))
STEPS = st.tuples(st.integers(0, 1), CHANGES, st.sampled_from((True, True, False)), st.tuples(READS, READS))


def told(side: int, change: tuple[Any, ...], *, hears: bool = True, way: str = "poll") -> Step:
    return side, change, hears, (way, way)


def grant(side: int, level: int | None, name: str = "music", maps: str = "music", **how: Any) -> Step:
    return told(side, ("grant", name, name if name == "default" else maps, level), **how)


STORIES: Sequence[list[Step]] = (
    [grant(0, 3), grant(0, 2), grant(0, 1, way="stream"), grant(0, 0), grant(1, 0), grant(0, 2), grant(0, None)],
    [grant(0, 0), grant(1, 0, hears=False), grant(1, 0), grant(1, None, hears=False), grant(1, None)],
    [grant(0, 1), grant(0, None, hears=False), grant(0, 1, way="stream"), grant(0, 1, "music", "projects")],
    [grant(0, 1, "default", "default"), grant(0, 0, "default", "default", hears=False), grant(0, None, "default")],
    [
        told(1, ("turn", "music", "archived")),
        grant(0, 2),
        grant(0, 1),
        told(1, ("turn", "music", "active"), hears=False),
    ],
    [told(0, ("filter", 1)), told(0, ("filter", 2)), told(0, ("filter", 0)), grant(0, 1), told(0, ("filter", 2))],
    [grant(0, 2), told(0, ("turn", "music", "archived")), grant(0, 0), told(0, ("turn", "music", "active"))],
    [
        grant(0, 0, way=""),
        grant(0, 1, hears=False, way="stream"),
        grant(1, 0, hears=False),
        told(1, ("emit", "music", "th_a")),
        told(1, ("filter", 0), hears=False),
        told(0, ("filter", 0), hears=False),
    ],
    *(
        [
            told(0, ("turn", "music", "archived")),
            grant(1, level),
            told(1, ("turn", "music", "archived")),
            told(0, ("turn", "music", "active")),
            told(1, ("turn", "music", "active"), way=way),
        ]
        for level, way in ((1, "poll"), (2, "poll"), (1, "stream"))
    ),
)


def stories(test: Callable[..., None]) -> Callable[..., None]:
    for steps in STORIES:
        test = example(steps, False)(test)
    return test


@stories
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, max_size=16), st.booleans())
def test_each_side_gets_exactly_what_is_shared_at_exactly_its_level(steps: list[Step], mapped: bool) -> None:
    async def scene(folder: Path) -> None:
        async with nodes(folder, "alice", "bob") as (alice, bob):
            for node in (alice, bob):
                for name in NAMES[1:]:
                    node.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": name, "shared": True}))
            join(alice, bob, PAIR)
            if mapped:
                alice.change_pair(PAIR, maps=(("music", "projects"),))
                bob.change_pair(PAIR, maps=(("projects", "music"),))
            one, two = Side(alice), Side(bob)
            if mapped:
                one.words["music"] = one.told["music"] = ("projects", 1, 1)
                two.words["projects"] = two.told["projects"] = ("music", 1, 1)
            one.listen()
            two.listen()
            await play(Model(one, two), steps)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scene(Path(folder)))
