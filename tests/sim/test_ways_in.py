"""Every way in, and what may come in by none of them: each is refused and counted, and the pair goes on.

The peer here is a liar of its own: what it sends is made up by the test, sealed and signed as well as a peer can.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spl.core import consent
from spl.core.consent import Grant
from spl.core.errors import SplError
from spl.core.identity.did import did_of, multibase
from spl.core.identity.pins import KIND_CHAIN
from spl.core.keys import SecretKey
from spl.core.record import levels, namespace, page, record
from spl.core.record.namespace import Namespace
from spl.core.record.page import Page
from spl.core.record.record import Sig
from spl.core.record.snapshot import SnapshotHeader
from spl.home.disk import Disk
from spl.home.restore import Restorer
from spl.home.snapshot import Rights
from spl.home.views import THREAD_NAMESPACES, THREAD_PAIRS
from spl.home.writes import Arrive, Own, Refuse
from spl.net.sse import encode_event
from tests.nodes import LIMITS, Node, join, nodes
from tests.store_kit import set_views
from tests.waiting import DEADLINE_S, until

PAIR = "pair_00000001"
STRANGER = SecretKey(b"s" * 32)
STRANGER_DID = did_of("stranger", STRANGER.public)
Item = tuple[dict[str, Any], Any]


def signed(key: SecretKey, by: str, n: int = 1, **fields: Any) -> dict[str, Any]:
    """Return the envelope of a record under any key and name."""
    value = {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {"n": n}, "clock": n, **fields}
    checked = record.check(value, LIMITS)
    id_, text = record.identify(checked, LIMITS)
    sig = Sig(by, multibase(key.public), key.sign(record.signed_text(id_, None)))
    found: dict[str, Any] = json.loads(record.seal(checked, id_, text, sig).raw)
    return found


def projected(key: SecretKey, by: str, level: int, ns: str, pair: str = PAIR, **fields: Any) -> dict[str, Any]:
    """Return a projection under any key and name, for any pair."""
    value = record.check(
        {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {}, "clock": 5, **fields}, LIMITS
    )
    shown = levels.content(value, record.identify(value, LIMITS)[0], level, pair, b"s" * 32)
    found: dict[str, Any] = json.loads(levels.project(shown, level, ns, pair, by, multibase(key.public), key))
    return found


@dataclass(frozen=True)
class Case:
    """Something that may not come in: what it is, and the code that refuses it; `restored` in a restore, "" where that
    is no offence: our own record is put back where it was made.
    """

    make: Callable[[Node, Node], Item]
    code: str
    restored: str = ""


def in_ns(name: str) -> dict[str, Any]:
    return {"body": {"namespace": name}}


CASES = {
    "reserved thread": Case(
        lambda a, b: (signed(a.key, a.did, thread="th_consent"), "default"), "scope-violation", "reserved-thread"
    ),
    "audit thread": Case(
        lambda a, b: (signed(a.key, a.did, thread="th_audit_x"), "default"), "scope-violation", "reserved-thread"
    ),
    "foreign namespace": Case(
        lambda a, b: (signed(a.key, a.did, **in_ns("tenant")), "tenant"), "scope-violation", "namespace-rejected"
    ),
    "foreign namespace under an agreed name": Case(
        lambda a, b: (signed(a.key, a.did, **in_ns("tenant")), "default"), "scope-violation", "namespace-rejected"
    ),
    "record where only projections are granted": Case(
        lambda a, b: (signed(a.key, a.did, **in_ns("music")), "music"), "scope-violation", "namespace-rejected"
    ),
    "archived namespace": Case(
        lambda a, b: (signed(a.key, a.did, **in_ns("old")), "old"), "scope-violation", "namespace-rejected"
    ),
    "below an archived namespace": Case(
        lambda a, b: (signed(a.key, a.did, **in_ns("old/er")), "old/er"), "scope-violation", "namespace-rejected"
    ),
    "own DID as signer": Case(lambda a, b: (signed(a.key, b.did), "default"), "record-signature", "record-signature"),
    "own DID as actor": Case(
        lambda a, b: (signed(a.key, a.did, actor=b.did), "default"), "scope-violation", "actor-refused"
    ),
    "own record carried into another namespace": Case(
        lambda a, b: (signed(b.key, b.did, **in_ns("secret")), "default"), "scope-violation"
    ),
    "projection by another signer": Case(
        lambda a, b: (projected(STRANGER, STRANGER_DID, 1, "music"), "music"), "record-signature", "bad-field"
    ),
    "projection in the peer's name": Case(
        lambda a, b: (projected(STRANGER, a.did, 1, "music"), "music"), "chain-unknown", "bad-field"
    ),
    "projection in our name": Case(
        lambda a, b: (projected(b.key, b.did, 1, "music"), "music"), "record-signature", "bad-field"
    ),
    "projection for another pair": Case(
        lambda a, b: (projected(a.key, a.did, 1, "music", "pair_00000002"), "music"), "record-signature", "bad-field"
    ),
    "projection of another level": Case(
        lambda a, b: (projected(a.key, a.did, 2, "music"), "music"), "scope-violation", "bad-field"
    ),
    "projection of another namespace": Case(
        lambda a, b: (projected(a.key, a.did, 1, "tenant"), "music"), "scope-violation", "bad-field"
    ),
    "projection of a namespace in full": Case(
        lambda a, b: (projected(a.key, a.did, 1, "default"), "default"), "scope-violation", "bad-field"
    ),
    "projection of a reserved thread": Case(
        lambda a, b: (projected(a.key, a.did, 1, "music", thread="th_aitl"), "music"), "scope-violation", "bad-field"
    ),
    "projection into an archived namespace": Case(
        lambda a, b: (projected(a.key, a.did, 1, "shelf"), "shelf"), "scope-violation", "bad-field"
    ),
    "projection under a grant that was withdrawn": Case(
        lambda a, b: (projected(a.key, a.did, 1, "gone"), "gone"), "scope-violation", "bad-field"
    ),
}


def told(node: Node, *grants: Grant) -> None:
    """Let the node hold statements of its peer, in this order."""
    for grant in grants:
        body = {"pair_id": PAIR, "grant": grant.to_json()}
        node.write(Own(consent.THREAD, consent.KIND_PEER_GRANT, body))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    """A liar and the one it lies to."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, PAIR, namespaces=("default", "old", "old/er"))
        bob.share("projects", "projects/music", "old/er", "secret")
        old = Namespace("old", active=False, shared=True)
        set_views(bob.home, namespaces={**bob.home.views.namespaces, "old": old})
        told(
            bob, Grant("music", "projects/music", 1, 1), Grant("shelf", "old", 1, 1), Grant("gone", "projects", 1, 1),
            Grant("gone", "projects", None, 2), Grant("gone", "projects", 1, 1),
        )  # fmt: skip
        bob.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": alice.chain.to_json()}))
        yield alice, bob


Answer = Callable[[str], bytes]


def lie(alice: Node, answer: Answer) -> None:
    """Let the source answer what the test says; it knows no chains but its own."""

    async def answers(pair_id: str, path: str, query: Any, body: bytes) -> bytes:
        if path == "/v1/sync/chains":
            raise SplError("not-found")
        return answer(path)

    alice.answer = answers  # type: ignore[method-assign]


async def by_page(alice: Node, bob: Node, items: Sequence[Item]) -> None:
    made = page.assemble(
        [json.dumps(value).encode() for value, _ in items], [ns for _, ns in items],
        next_cursor=f"at {len(items)}", has_more=False, peer_view={"state": "active"},
    )  # fmt: skip
    nothing = page.assemble([], [], has_more=False, peer_view={})
    answers = {"/v1/sync/changes": made, "/v1/sync/records": nothing}
    lie(alice, lambda path: answers.get(path, b'{"peer_view":{}}'))
    await bob.sync.pull(PAIR)


async def by_stream(alice: Node, bob: Node, items: Sequence[Item]) -> None:
    """The first page is empty; then a stream brings it all, and a heartbeat ends the wait."""
    empty = page.assemble([], [], next_cursor="at 0", has_more=False, peer_view={"state": "active"})
    lie(alice, lambda path: empty if path.endswith("changes") else b'{"peer_view":{}}')
    over = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        for n, (value, ns) in enumerate(items):
            yield encode_event("record.created", json.dumps({**value, "ns": ns}).encode(), f"at {n + 1}")
        await over.wait()

    async def stream(*_: object) -> AsyncIterator[bytes]:
        return pieces()

    alice.feed.stream = stream  # type: ignore[method-assign,assignment]
    bob.change_pair(PAIR, mode="continuous")
    stop, last = asyncio.Event(), f"at {len(items)}"

    def is_at_last() -> bool:
        place = bob.home.views.positions.get(PAIR)
        return place is not None and place.cursor == last

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(bob.sync.run(stop))
        await until(is_at_last)
        over.set()
        stop.set()


async def by_push(alice: Node, bob: Node, items: Sequence[Item]) -> None:
    values, names = [value for value, _ in items], [ns for _, ns in items]
    sent = Page(values, names, f"at {len(items)}", False, {"state": "active"}, 0)
    answer: Any = await bob.push.receive(PAIR, page.assemble_push(bob.ingest.since(bob.home.views.pairs[PAIR]), sent))
    assert len(answer["results"]) == len(items)


async def by_fetch(alice: Node, bob: Node, items: Sequence[Item]) -> None:
    """What stands in the ledger is asked for again, by id; the answer brings these."""
    for value, ns in items:
        bob.write(Refuse(PAIR, value["id"], "chain-unknown", ns if isinstance(ns, str) else ""))
    nothing = page.assemble([], [], next_cursor="at 1", has_more=False, peer_view={"state": "active"})
    made = page.assemble(
        [json.dumps(value).encode() for value, _ in items], [ns for _, ns in items],
        next_cursor="none", has_more=False, peer_view={},
    )  # fmt: skip
    answers = {"/v1/sync/changes": nothing, "/v1/sync/records": made}
    lie(alice, lambda path: answers.get(path, b'{"peer_view":{}}'))
    await bob.sync.pull(PAIR)


WAYS = {"page": by_page, "stream": by_stream, "push": by_push, "fetch": by_fetch}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
async def test_nothing_of_it_comes_in_and_the_pair_goes_on(world: tuple[Node, Node], way: str, name: str) -> None:
    """A good record and a good projection stand behind the bad one, and come in."""
    alice, bob = world
    bad = CASES[name].make(alice, bob)
    good = signed(alice.key, alice.did, 2)
    claim = projected(alice.key, alice.did, 1, "music", clock=9)
    await WAYS[way](alice, bob, [bad, (good, "default"), (claim, "music")])
    index, id_ = bob.home.store.index, bad[0]["id"]
    assert not list(index.copies(id_))
    assert not any(index.has_projection(PAIR, level, id_) for level in levels.NAMES)
    assert bob.ids() == [good["id"]]
    assert index.tally("proj") == 1
    assert index.has_projection(PAIR, "L1", claim["id"])
    if way == "fetch":
        assert bob.home.views.refused[PAIR] == 3
    else:
        [row] = index.after(f"r:{PAIR}", 0, 9)
        entry = json.loads(bob.home.store.payloads([row])[0])
        assert (entry["id"], entry["code"]) == (id_, CASES[name].code)
        assert bob.home.views.refused[PAIR] == 1
    assert bob.sync.status(PAIR).last_error is None
    assert not bob.watched.heard


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.restored])
async def test_a_restore_refuses_the_whole_file(world: tuple[Node, Node], name: str) -> None:
    alice, bob = world
    case = CASES[name]
    value, good = case.make(alice, bob)[0], signed(alice.key, alice.did, 2)
    lines = [json.dumps(each, separators=(",", ":"), sort_keys=True).encode() for each in (good, value)]
    ids = sorted((good["id"], value["id"]))
    digest = hashlib.sha256(b"".join(f"{id_}\n".encode() for id_ in ids)).hexdigest()
    # Of a peer's full backup the peer's own threads are left out; in ours nothing foreign stands in such a thread.
    instance = bob.did if case.restored == "reserved-thread" else alice.did
    data = SnapshotHeader(instance, "", 2, digest).encode() + b"".join(line + b"\n" for line in lines)
    before = bob.home.store.last_seq
    restorer = Restorer(bob.home.writer, bob.home.path, Disk(), LIMITS, now_ms=bob.now_ms)
    with pytest.raises(SplError) as caught:
        restorer.run(lambda size, offset: data[offset : offset + size], Rights(True, lambda ns: True), dry_run=False)
    assert (caught.value.code, bob.home.store.last_seq) == (case.restored, before)


@pytest.mark.parametrize("way", WAYS)
async def test_projections_are_no_records_anywhere(world: tuple[Node, Node], way: str) -> None:
    """Neither in a list, nor by id, thread or actor; neither counted nor waking anybody; and once each."""
    alice, bob = world
    woken: list[frozenset[str]] = []
    bob.home.writer.listen(lambda commit: woken.append(commit.namespaces | commit.threads))
    claim = projected(alice.key, alice.did, 1, "music", actor="did:sync:user:z", thread="th_z")
    await WAYS[way](alice, bob, [(claim, "music")] * (1 if way == "fetch" else 2))
    index = bob.home.store.index
    assert not list(index.copies(claim["id"]))
    assert index.alternates(claim["id"], "projects/music") == []
    assert [
        index.count(name)
        for name in ("t:th_z", "u:projects/music\0th_z", "a:projects/music\0did:sync:user:z", "n:projects/music")
    ] == [0] * 4
    assert index.clock_next("projects/music", "did:sync:user:z", "th_z") == 0
    assert (index.count(f"x:{PAIR}"), index.tally("proj")) == (1, 1)
    assert not any(names & {"projects/music", "th_z"} for names in woken)
    row = index.last(f"x:{PAIR}")
    assert row is not None
    assert (row.kind, row.ns, row.origin) == ("proj", "projects/music", PAIR)
    assert json.loads(bob.home.store.payloads([row])[0]) == claim


async def test_the_record_comes_in_full_beside_its_claim_and_a_claim_of_what_is_held_is_dropped(
    world: tuple[Node, Node],
) -> None:
    alice, bob = world
    body = {"body": {"namespace": "music"}}
    full = signed(alice.key, alice.did, 5, **body)
    claim = projected(alice.key, alice.did, 1, "music", **body)
    assert claim["id"] == full["id"]
    await by_page(alice, bob, [(claim, "music")])
    told(bob, Grant("music", "projects/music", 0, 2))
    bob.write(
        Own(consent.THREAD, consent.KIND_GRANT,
            {"pair_id": PAIR, "grant": Grant("projects/music", "music", 0, 1).to_json()})
    )  # fmt: skip
    await by_page(alice, bob, [(full, "music")])
    row = bob.home.store.index.find(full["id"], "projects/music")
    assert row is not None
    assert (row.kind, row.ns) == ("rec", "projects/music")
    assert bob.home.views.refused == {}
    told(bob, Grant("music", "projects/music", 1, 3))
    late = projected(alice.key, alice.did, 1, "music", body={"n": 6, "namespace": "music"}, clock=6)
    late_full = signed(alice.key, alice.did, 6, body={"n": 6, "namespace": "music"})
    bob.write(Arrive(record.from_json(late_full, LIMITS), "projects/music", PAIR))
    assert late["id"] == late_full["id"]
    await by_page(alice, bob, [(late, "music"), (late, "music"), (late, "music")])
    assert (bob.home.store.index.tally("proj"), bob.home.views.refused) == (1, {})


async def test_what_an_archived_namespace_refused_comes_once_it_is_active_again(world: tuple[Node, Node]) -> None:
    """Records by id, and projections that have no id to ask by through their namespace, read anew.

    What is refused on that way stands in the ledger already, or will be met again on the ordinary one.
    """
    alice, bob = world
    told(bob, Grant("shelf", "old", 2, 2))
    refused = signed(alice.key, alice.did, **in_ns("old"))
    hidden = projected(alice.key, alice.did, 2, "shelf")
    await by_page(alice, bob, [(refused, "old"), (hidden, "shelf")])
    assert bob.home.views.refused == {PAIR: 2}
    asked: list[tuple[str, dict[str, str]]] = []

    async def answers(pair_id: str, path: str, query: Any, body: bytes) -> bytes:
        asked.append((path, dict(query) or (json.loads(body) if body else {})))
        items: list[Item] = []
        if path == "/v1/sync/records":
            items = [(refused, "old")]
        elif query.get("target_namespace") == "shelf":
            items = [(hidden, "shelf"), (projected(alice.key, alice.did, 3, "shelf"), "shelf")]
        return page.assemble(
            [json.dumps(value).encode() for value, _ in items], [ns for _, ns in items],
            next_cursor="at 2", has_more=False, peer_view={"state": "active"},
        )  # fmt: skip

    alice.answer = answers  # type: ignore[method-assign]
    await bob.sync.pull(PAIR)
    assert bob.ids("old") == []
    bob.share("old")
    asked.clear()
    assert await bob.sync.pull(PAIR) == 1
    assert bob.ids("old") == [refused["id"]]
    assert bob.home.store.index.has_projection(PAIR, "L2", hidden["id"])
    assert ("/v1/sync/records", {"ids": [refused["id"]]}) in asked
    assert any(query.get("target_namespace") == "shelf" and "since" not in query for _, query in asked)
    assert bob.home.views.positions[PAIR].cursor == "at 2"
    asked.clear()
    await bob.sync.pull(PAIR)
    assert [path for path, _ in asked if path == "/v1/sync/records"] == []
    assert bob.home.views.refused == {PAIR: 2}


async def test_an_open_stream_is_judged_by_what_is_agreed_now(world: tuple[Node, Node]) -> None:
    """Each lot goes by the folds of its moment, not by those at the start of the stream."""
    _, bob = world
    ingest, pair = bob.ingest, bob.home.views.pairs[PAIR]
    assert ingest.inbound(pair)["music"].level == 1
    told(bob, Grant("music", "projects/music", 3, 2))
    assert ingest.inbound(pair)["music"].level == 3
    bob.share("old")
    assert set(ingest.inbound(pair)) == {"default", "old", "old/er", "music", "shelf"}


async def test_a_push_that_was_refused_is_wanted_once_its_namespace_is_active_again(world: tuple[Node, Node]) -> None:
    """Who cannot dial the peer names the ids in its answer, once."""
    alice, bob = world
    refused = signed(alice.key, alice.did, **in_ns("old"))

    async def push(n: int, *items: Item, again: bool = False) -> Any:
        sent = Page([value for value, _ in items], [ns for _, ns in items], f"at {n}", False, {"state": "active"}, 0)
        return await bob.push.receive(
            PAIR, page.assemble_push(bob.ingest.since(bob.home.views.pairs[PAIR]), sent, again=again)
        )

    assert (await push(1, (refused, "old")))["results"][0]["code"] == "scope-violation"
    assert (await push(2))["wanted"] == [refused["id"]], "once a process"
    assert (await push(3, (refused, "old"), again=True))["records"] == 0
    assert (await push(4))["wanted"] == []
    bob.share("old")
    assert (await push(5))["wanted"] == [refused["id"]]
    assert (await push(6, (refused, "old"), again=True))["records"] == 1
    assert bob.ids("old") == [refused["id"]]
    assert bob.home.views.refused == {PAIR: 1}


async def test_an_open_stream_fetches_what_was_refused_as_soon_as_the_namespace_is_active_again(tmp_path: Path) -> None:
    """The operator brings it back, and nobody has to sync."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        for node in (alice, bob):
            node.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "org", "shared": True}))
        join(alice, bob, PAIR, namespaces=("default", "org"), mode="continuous")
        stop = asyncio.Event()

        def turn(state: str) -> None:
            bob.write(Own(THREAD_NAMESPACES, namespace.KIND_STATE, {"name": "org", "state": state}))

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(bob.sync.run(stop))
            first = alice.emit("1", ns="org")
            await until(lambda: bob.ids("org") == [first.id])
            await asyncio.to_thread(turn, "archived")
            refused = [alice.emit(f"{n}", ns="org") for n in range(3)]
            seen = alice.emit("seen")
            await until(lambda: bob.ids() == [seen.id])
            assert bob.ids("org") == [first.id]
            assert bob.home.views.refused == {PAIR: 3}
            await asyncio.to_thread(turn, "active")
            await until(lambda: bob.ids("org") == sorted(each.id for each in (first, *refused)))
            stop.set()
        assert not bob.watched.heard
