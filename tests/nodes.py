"""Whole instances in one process for tests: real homes, hubs, feeds and syncs; only the network is a double."""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, cast

from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.identity.did import Chain
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.pair.pair import Pair, Phase
from spl.core.record import namespace, page
from spl.core.record.filter import OPEN, PairFilter
from spl.core.record.record import Envelope
from spl.engine.received import reached
from spl.home.config import Config, Settings
from spl.home.disk import Disk
from spl.home.home import Home, open_home
from spl.home.writes import Emit, Item, Outcome
from spl.net.address import ReachError, parse_url
from spl.net.client import HttpClient, Reply
from spl.net.dialer import DialPolicy
from spl.net.routes import parse_query
from spl.net.sse import Event, EventParser
from spl.sync.changes import Feed, whole
from spl.sync.compare.anti_entropy import AntiEntropy
from spl.sync.compare.fingerprints import Fingerprints
from spl.sync.compare.reconcile import Reconcile
from spl.sync.ingest import Ingest
from spl.sync.peer import PeerClient
from spl.sync.push import Push
from spl.sync.reach import Reaches
from spl.sync.schedule import Sync
from spl.sync.source import Query
from tests.counting import stepped
from tests.store_kit import set_views

LIMITS = Limits()
START_MS = 1_800_000_000_000
Change = Callable[[str, Reply], Reply]


@dataclass(frozen=True)
class State:
    detail: str = ""


@dataclass(frozen=True)
class Typed:
    """What our operator typed to make the pair."""

    url: str = ""
    strict: bool = True


@dataclass(frozen=True)
class APair:
    """What feed and sync read of a pair, with nothing of the handshake behind it."""

    pair_id: str
    peer_did: str
    url: str
    chain: Chain
    namespaces: tuple[str, ...] = ("default",)
    maps: tuple[tuple[str, str], ...] = ()
    mode: str = "polling"
    poll_interval_ms: int = 300_000
    start: str = "beginning"
    start_seq: int = 0
    actors: tuple[str, ...] = ()
    filters: tuple[PairFilter, ...] = (OPEN,)
    inherits: str = ""
    phase: Phase = Phase.ACTIVE
    reason: str = ""
    paused_by: str = ""
    sync_allowed: bool = True
    serve_allowed: bool = True
    ended: bool = False
    state: State = field(default_factory=State)
    proposal: Typed = field(default_factory=Typed)
    initiator: bool = True
    carrier: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Token:
    """The credential of a reading, which a test can end."""

    valid: bool = True

    def holds(self) -> bool:
        return self.valid


@dataclass
class Watched:
    """What the sync told its watcher."""

    heard: list[tuple[str, str, str]] = field(default_factory=list)
    views: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def on_trouble(self, pair_id: str, code: str) -> None:
        self.heard.append(("trouble", pair_id, code))

    def on_success(self, pair_id: str) -> None:
        self.heard.append(("success", pair_id, ""))

    def on_peer_state(self, pair_id: str, view: Mapping[str, Any]) -> None:
        self.heard.append(("peer-state", pair_id, str(view.get("state"))))

    def on_view(self, pair_id: str, view: Mapping[str, Any]) -> None:
        self.views.append((pair_id, view))


class Network:
    """Carries requests to the feeds of other nodes, proof checked, errors in their wire form."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.ticks = itertools.count(START_MS)
        """One clock for all nodes: a node whose clock is ahead would have each of its first requests refused."""
        self.log: list[tuple[str, str]] = []
        self.change: Change = lambda path, reply: reply
        self.down: str = ""
        self.cut: str = ""
        """The code with which reads fail, while a proxy lets questions pass."""
        self.walled: set[str] = set()
        """Hosts that nobody can dial; they dial others all the same."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.streams: list[Stream] = []
        self.change_piece: Callable[[bytes], bytes] = lambda piece: piece

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        dial: DialPolicy,
        **_: object,
    ) -> Reply:
        await self.gate.wait()
        if self.down:
            raise ReachError(self.down, "the test says so")
        where = parse_url(url)
        if where.host in self.walled:
            raise ReachError("connect", "a wall")
        node = self.nodes[where.host]
        path, _mark, query = where.target.partition("?")
        self.log.append((method, path))
        if self.cut and method == "GET":
            raise ReachError(self.cut, "a proxy")
        try:
            pair_id = node.check(method, where.target, dict(headers), body)
            if self.walled:
                node.sync.wake(pair_id)
            reply = Reply(200, {}, await node.answer(pair_id, path, parse_query(query), body), "127.0.0.1")
        except SplError as exc:
            reply = Reply(exc.status, {}, json.dumps(exc.to_json()).encode(), "127.0.0.1")
        return self.change(path, reply)

    @asynccontextmanager
    async def stream(
        self, url: str, *, headers: Iterable[tuple[str, str]] = (), dial: DialPolicy
    ) -> AsyncIterator["Stream"]:
        if self.down:
            raise ReachError(self.down, "the test says so")
        where = parse_url(url)
        if where.host in self.walled:
            raise ReachError("connect", "a wall")
        node, (path, _mark, query) = self.nodes[where.host], where.target.partition("?")
        self.log.append(("STREAM", path))
        fields = parse_query(query)
        try:
            pair_id = node.check("GET", where.target, dict(headers), b"")
            source = await node.feed.stream(pair_id, Query(since=fields.get("since", ""), feed=fields["feed"]))
        except SplError as exc:
            body = json.dumps(exc.to_json()).encode()
            raise ReachError("peer-4xx", "refused", peer_status=exc.status, peer_body=body) from exc
        opened = Stream(self, node.name, source)
        self.streams.append(opened)
        try:
            yield opened
        finally:
            self.streams.remove(opened)
            await opened.close()


class Stream:
    """An open stream of a node, which a test may cut; `seen` holds what came out of it."""

    def __init__(self, network: Network, source: str, pieces: AsyncIterator[bytes]) -> None:
        self.network, self.source = network, source
        self.seen: list[Event] = []
        self._pieces, self._parser, self._ready = pieces, EventParser(LIMITS.event_bytes), list[Event]()
        self._cut = asyncio.Event()

    def cut(self) -> None:
        """End the connection as a network does."""
        self._cut.set()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            piece = await self._next()
            self._ready += self._parser.feed(self.network.change_piece(piece))
        self.seen.append(self._ready.pop(0))
        return self.seen[-1]

    async def _next(self) -> bytes:
        async with asyncio.TaskGroup() as tasks:
            coming, cutting = tasks.create_task(self._piece()), tasks.create_task(self._cut.wait())
            await asyncio.wait([coming, cutting], return_when=asyncio.FIRST_COMPLETED)
            coming.cancel()
            cutting.cancel()
        if self._cut.is_set():
            raise ReachError("disconnected", "the test cut it")
        piece = coming.result()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def _piece(self) -> bytes | None:
        return await anext(self._pieces, None)

    async def close(self) -> None:
        await cast(Any, self._pieces).aclose()


class Node:
    """One instance named by its host."""

    def __init__(self, name: str, folder: Path, network: Network, limits: Limits = LIMITS) -> None:
        self.name, self.network, self.limits = name, network, limits
        self.random = Random(name)
        self.now_ms: Callable[[], int] = lambda: next(network.ticks)
        self.home: Home = open_home(
            folder,
            replace(Config(), limits=limits),
            disk=Disk(),
            progress=lambda done, total: None,
            clock=self.now_ms,
            random=self.random.randbytes,
        )
        self.home.adopt(self.home.vault.generate(name))
        self.watched = Watched()
        self.reaches = Reaches(limits.errors_until_degraded, int)
        self.reaches.watch(self.watched)
        self._serve()
        self.writer = threading.Thread(target=self.home.writer.run)
        self.writer.start()
        network.nodes[name] = self

    def _serve(self) -> None:
        """Make the services as the daemon does."""
        writer, dice = self.home.writer, self.random.randbytes
        settings, client = Settings(self.home.config), cast(HttpClient, self.network)
        self.peers = PeerClient(
            writer, self.home.vault, client, settings, url="", now_ms=self.now_ms, random_bytes=dice
        )
        self.ingest = Ingest(writer, self.peers, self.reaches, self.limits, now_ms=self.now_ms)
        self.feed = Feed(writer, self.home.vault, self.limits, self.reaches, now_ms=self.now_ms, random_bytes=dice)
        self.sync = Sync(self.ingest, self.feed, now_ms=self.now_ms, random_bytes=dice)
        self.push = Push(self.ingest, self.feed, now_ms=self.now_ms, random_bytes=dice)
        self.fingerprints = Fingerprints(writer, self.feed)
        self.reconcile = Reconcile(
            self.ingest, self.fingerprints, self.push, self.sync, now_ms=self.now_ms, random_bytes=dice
        )
        self.anti_entropy = AntiEntropy(
            lambda: self.reconcile, self.sync, self.reaches, interval_s=3600.0, now_ms=self.now_ms, random_bytes=dice
        )

    @property
    def did(self) -> str:
        assert self.home.vault.identity is not None
        return self.home.vault.identity.did

    @property
    def key(self) -> SecretKey:
        assert self.home.vault.identity is not None
        return self.home.vault.identity.key

    @property
    def chain(self) -> Chain:
        assert self.home.vault.identity is not None
        return self.home.vault.identity.chain

    def close(self) -> None:
        self.feed.close()
        self.ingest.close()
        self.push.close()
        self.fingerprints.close()
        self.home.writer.close()
        self.writer.join()
        self.home.close()

    def write(self, *items: Item) -> list[Outcome]:
        return self.home.writer.submit(items).result(30)

    def emit(self, text: str = "", *, thread: str = "th", ns: str = "", actor: str = "did:sync:user:a") -> Envelope:
        body: dict[str, object] = {"text": text, **({"namespace": ns} if ns else {})}
        made = self.write(Emit({"act": "DO", "actor": actor, "thread": thread, "body": body}))[0].envelope
        assert made is not None
        return made

    def share(self, *names: str) -> None:
        """Register namespaces."""
        made = {name: namespace.Namespace(name, shared=True) for name in names}
        set_views(self.home, namespaces={**self.home.views.namespaces, **made})

    def set_pair(self, pair: APair) -> None:
        views = self.home.views
        pairs = {**views.pairs, pair.pair_id: cast(Pair, pair)}
        set_views(self.home, pairs=pairs, pins=views.pins.seen(pair.chain))

    def pair(self, pair_id: str) -> APair:
        return cast(APair, self.home.views.pairs[pair_id])

    def change_pair(self, pair_id: str, **changes: Any) -> None:
        if "relay" in changes:
            changes["filters"] = (PairFilter(relay=changes.pop("relay")), *self.pair(pair_id).filters)
        self.set_pair(replace(self.pair(pair_id), **changes))

    def ids(self, ns: str = "default") -> list[str]:
        """Return the ids held in a namespace, ascending."""
        store = self.home.store
        rows = store.index.after(f"n:{ns}", 0, 100_000)
        return sorted(json.loads(raw)["id"] for raw in store.payloads(rows))

    def check(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> str:
        """Return the pair whose token and proof the request carries."""
        token = headers["authorization"].removeprefix("Bearer ")
        pair_id = token.removeprefix("token-")
        bearer.check_proof(
            headers[bearer.PROOF_HEADER],
            self.pair(pair_id).chain.present,
            method=method,
            target=target,
            audience=self.did,
            token=token,
            body=body,
            now_ms=self.now_ms(),
            limits=self.limits,
        )
        return pair_id

    async def answer(self, pair_id: str, path: str, query: Mapping[str, str], body: bytes) -> bytes:
        match path:
            case "/v1/sync/changes":
                asked = Query(
                    query.get("since", ""),
                    int(query.get("limit", "0")),
                    query.get("feed", "normal"),
                    query.get("thread", ""),
                    query.get("target_namespace", ""),
                    query.get("resync") == "1",
                    names=query.get("names") == "1",
                )
                return await whole(await self.feed.page(pair_id, asked))
            case "/v1/sync/ack":
                told = json.loads(body)
                if received := told.get("received"):
                    told["cursor"] = stepped(reached(self.feed.source, pair_id, told["cursor"], received))[0]
                if "peer_view" in told:
                    self.reaches.heard(pair_id, page.read_view(told["peer_view"]))
                await self.feed.ack(pair_id, told["cursor"])
                return json.dumps({"peer_view": self.feed.peer_view(pair_id), "cursor": told["cursor"]}).encode()
            case "/v1/sync/chains":
                return json.dumps(self.feed.chains(pair_id, query["did"])).encode()
            case "/v1/sync/fingerprints":
                return await self.fingerprints.answer(pair_id, body)
            case "/v1/sync/records" if body.startswith(b'{"since"'):
                return json.dumps(await self.push.receive(pair_id, body)).encode()
            case "/v1/sync/records":
                return await whole(await self.feed.records(pair_id, json.loads(body)["ids"]))
        raise AssertionError(path)


def join(one: Node, two: Node, pair_id: str = "pair_00000001", **options: Any) -> str:
    """Make an active pair of two nodes and return its id."""
    for node, peer in ((one, two), (two, one)):
        node.set_pair(APair(pair_id, peer.did, f"http://{peer.name}", peer.chain, **options))
        node.home.vault.put(f"peer-token.{pair_id}", f"token-{pair_id}")
    return pair_id


@asynccontextmanager
async def nodes(folder: Path, *names: str, limits: Limits = LIMITS) -> AsyncIterator[list[Node]]:
    """Give running nodes of these names on one network."""
    network = Network()
    made = [Node(name, folder / name, network, limits) for name in names]
    try:
        yield made
    finally:
        for node in made:
            node.close()
