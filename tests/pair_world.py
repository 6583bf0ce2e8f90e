"""A world of two instances for the tests of the handshake: real homes, real disks, a network that is a function call.

A node dies after its n-th durable operation (`dies_after`): that one still reaches the disk, everything later fails,
on its disk and on its network, as after SIGKILL.  `restart` builds every object again from what is on the disk.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from spl.api.auth import Auth
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.identity.manifest import Manifest
from spl.core.limits import Limits
from spl.core.pair.pair import Pair, Phase
from spl.core.pair.status import PairStatus
from spl.core.record import namespace
from spl.home.config import Config, Settings
from spl.home.disk import Disk, File
from spl.home.home import Home, Machine, open_home, random_bytes
from spl.home.manifest import ManifestSigner
from spl.home.policy import Policy
from spl.home.views import THREAD_NAMESPACES
from spl.home.writes import Own
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.net.dialer import DialPolicy
from spl.net.routes import Request
from spl.pairing.machine import Pairs
from spl.pairing.service import Pace, Pairing, PairOptions
from spl.sync.budget import IntakeBudget
from spl.sync.compare.anti_entropy import AntiEntropy
from spl.sync.peer import PeerClient
from spl.sync.reach import Reaches
from spl.sync.schedule import Sync
from tests.waiting import DEADLINE_S, until

START_MS = 1_764_000_000_000


class DyingFile(File):
    """A file whose syncs count against the node's life."""

    __slots__ = ("disk",)
    disk: "DyingDisk"

    def sync(self) -> float:
        self.disk.check()
        took = super().sync()
        self.disk.count()
        return took


class DyingDisk(Disk):
    """The real disk until `dies_after` durable operations were done."""

    def __init__(self) -> None:
        self.done = 0
        self.dies_after = 0
        self.dead = False

    def check(self) -> None:
        if self.dead:
            raise OSError(5, "the node died")

    def count(self) -> None:
        self.done += 1
        if self.dies_after and self.done >= self.dies_after:
            self.dead = True

    def open_append(self, path: Path) -> File:
        self.check()
        return self._watched(super().open_append(path))

    def create(self, path: Path) -> File:
        self.check()
        return self._watched(super().create(path))

    def rename(self, old: Path, new: Path) -> None:
        self.check()
        super().rename(old, new)
        self.count()

    def unlink(self, path: Path) -> None:
        self.check()
        super().unlink(path)
        self.count()

    def _watched(self, file: File) -> File:
        watched = DyingFile(file._fd)
        file._fd = -1
        watched.disk = self
        return watched


@dataclass
class Node:
    """One instance; `url` is where the world's network finds it."""

    world: "World"
    label: str
    path: Path
    config: Config
    url: str
    disk: DyingDisk = field(default_factory=DyingDisk)
    first_syncs: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.disk = DyingDisk()
        self.home: Home = open_home(
            self.path, self.config, disk=self.disk, progress=lambda done, total: None, clock=self.world.now_ms
        )
        if self.label:
            self.home.adopt(self.home.vault.generate(self.label))
        self.disk.done = 0
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()
        settings = Settings(self.config)
        peers = PeerClient(
            self.home.writer, self.home.vault, self.world.network(self), settings, url=self.url,
            now_ms=self.world.now_ms, random_bytes=random_bytes,
        )  # fmt: skip
        published = ManifestSigner(
            self.home.writer, self.home.vault, self.config.limits, url=self.url, now_ms=self.world.now_ms,
            steady_ms=self.world.steady_ms,
        )  # fmt: skip
        pairs = Pairs(
            self.home,
            published,
            IntakeBudget(self.home.writer, self.world.limits.intake_day_bytes, {}),
            now_ms=self.world.now_ms,
            steady_ms=self.world.steady_ms,
            random_bytes=random_bytes,
        )
        self.pairing = Pairing(
            pairs, settings, peers, WorldPolicy(self.world), FakeSync(self), FakeAntiEntropy(self),
            Pace(poll_s=0.005, housekeeping_s=0.02),
        )  # fmt: skip
        machine = Machine(self.world.now_ms, self.world.steady_ms)
        self.auth = Auth(self.home, Settings(self.config), Reaches(5, self.world.now_ms), machine)
        self.stop = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self.pairing.run(self.stop))

    async def end(self) -> None:
        """Take the node down; what it had not made durable is gone with it."""
        self.disk.dead = True
        self.stop.set()
        await asyncio.wait([self.task], timeout=DEADLINE_S)
        assert self.task.done()
        self.pairing.close()
        self.home.writer.close()
        await asyncio.to_thread(self.writer.join)
        self.home.lock.release()

    async def restart(self) -> None:
        await self.end()
        self.start()

    @property
    def pairs(self) -> list[Pair]:
        return list(self.home.views.pairs.values())

    @property
    def alive(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.ended]

    @property
    def did(self) -> str:
        return self.pairing.pairs.identity.did

    async def jobs_done(self, pair_id: str) -> None:
        """Return once the jobs that were started before this call took their steps: they take turns."""
        done = asyncio.Event()

        async def last() -> None:
            await self.pairing.stepper.do(lambda: None)
            done.set()

        self.pairing.stepper.start(pair_id, last)
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()

    async def serve(
        self, method: str, target: str, headers: dict[str, str], address: str
    ) -> tuple[int, dict[str, object]]:
        """Answer an authenticated call as the API does: credential, scope, then the contact that it is."""
        path = urlsplit(target).path
        request = Request(
            method, path, {}, headers, b"", {}, address, local=False, target=target, scheme="http", address=address
        )
        principal = self.auth.principal(request, b"")
        self.auth.require(principal, "federation:sync")
        await self.pairing.contact(principal.pair_id, principal.token_id)
        return 200, {"did": self.did}

    async def call(self, other: "Node") -> int:
        """Use the token that the other gave us for one call, and return the HTTP status of the answer."""
        return (await self.pairing.peers.fetch(self.alive[0], "GET", f"/v1/sync/chains?did={other.did}")).status

    def move(self, url: str) -> None:
        """Let the world find this node at another URL from now on; the node itself publishes it from its next start."""
        del self.world.nodes[self.url]
        self.url = url
        self.world.nodes[url] = self

    def register(self, *names: str, shared: bool = False, archived: bool = False) -> None:
        """Make namespaces, those above first; `archived` also puts them away again."""
        for name in names:
            items = [Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": name, "shared": shared})]
            if archived:
                items.append(Own(THREAD_NAMESPACES, namespace.KIND_STATE, {"name": name, "state": "archived"}))
            self.home.writer.submit(items).result(DEADLINE_S)

    async def pair(self, other: "Node", **options: object) -> list[dict[str, object]]:
        return [step.to_json() async for step in self.pairing.pair(other.url + "/", PairOptions(**options))]  # type: ignore[arg-type]

    def _write(self) -> None:
        try:
            self.home.writer.run()
        except OSError:
            assert self.disk.dead


class FakeSync(Sync):
    """Counts what pairing asks of sync."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.held: asyncio.Event | None = None
        """What a pull waits for before it ends."""

    def unreached(self, pair_id: str) -> str:
        return ""

    async def pull(self, pair_id: str, thread: str = "", *, resync: bool = False) -> int:
        self.node.first_syncs.append(pair_id)
        if self.held is not None:
            await self.held.wait()
        return 12

    def status(self, pair_id: str) -> PairStatus:
        return PairStatus(clock=7)

    def retry(self, pair_id: str) -> None:
        self.node.woken.append(pair_id)


class FakeAntiEntropy(AntiEntropy):
    """Counts the comparisons that pairing asks for."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def request(self, pair_id: str) -> None:
        self.node.compared.append(pair_id)


class WorldPolicy(Policy):
    """Permits and grants what the world says."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def permits(self, peer: Manifest, asked: Mapping[str, Any], address: str) -> bool:
        return self.world.permitted

    def grants(self, peer: Manifest, asked: Mapping[str, Any], address: str, names: Collection[str]) -> bool:
        return self.world.granted.issuperset(names)


@dataclass
class Call:
    """One request on its way, for the faults to look at and change."""

    method: str
    origin: str
    path: str
    body: bytes
    answer: bool = False
    """False before the request is taken, True before its answer is given back."""


Fault = Callable[[Call], bytes | None]
"""Return the bytes to go on with; None loses them."""


class World:
    """Nodes, one clock, and a network with faults."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.folder = folder
        self.limits = limits or Limits(handshakes_per_minute=100_000)
        self.time_ms = START_MS
        self.set_ms = 0
        """By how much somebody set the wall clock."""
        self.nodes: dict[str, Node] = {}
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.lost: list[str] = []
        """What the faults took of the calls: the last word of each path."""
        self.permitted = True
        self.granted: frozenset[str] = frozenset()
        self.skew_ms: dict[str, int] = {}

    def now_ms(self) -> int:
        return self.steady_ms() + self.set_ms

    def steady_ms(self) -> int:
        self.time_ms += 1
        return self.time_ms

    def node(self, name: str, *, approval: str = "auto", label: str | None = None, **config: object) -> Node:
        url = f"http://127.0.0.1:{9100 + len(self.nodes)}"
        settings = replace(Config(), federation_approval=approval, limits=self.limits, **config)  # type: ignore[arg-type]
        node = Node(self, name if label is None else label, self.folder / name, settings, url)
        self.nodes[url] = node
        node.start()
        return node

    def network(self, caller: Node) -> "Network":
        return Network(self, caller)

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.end()


class Network:
    """Stands in for net.client.HttpClient: hands a request to the handlers of the node at its origin."""

    def __init__(self, world: World, caller: Node) -> None:
        self.world, self.caller = world, caller

    async def fetch(self, method: str, url: str, *, headers: object = (), body: bytes = b"",
                    timeout_s: float | None = None, answer_bytes: int | None = None, dial: DialPolicy,
                    retry_safe: bool = False) -> Reply:  # fmt: skip
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = self.world.nodes.get(origin)
        if not dial.allow_private and not dial.near:
            raise ReachError("address-refused")
        if target is None or target.disk.dead or self.caller.disk.dead:
            raise ReachError("connect")
        call = Call(method, origin, parts.path, body)
        taken = self._through(call)
        status, value = await self._handle(target, method, url.removeprefix(origin), taken, headers)
        call.answer, call.body = True, json.dumps(value).encode()
        answer = self._through(call)
        if target.disk.dead or self.caller.disk.dead:
            raise ReachError("disconnected")
        return Reply(status, {}, answer, "127.0.0.1")

    def _through(self, call: Call) -> bytes:
        self.world.calls.append(replace(call))
        for fault in self.world.faults:
            found = fault(call)
            if found is None:
                self.world.lost.append(call.path.rpartition("/")[2])
                raise ReachError("disconnected")
            call.body = found
        return call.body

    async def _handle(
        self, node: Node, method: str, path: str, body: bytes, headers: object
    ) -> tuple[int, dict[str, object]]:
        try:
            if path.startswith("/v1/sync/chains"):
                return await node.serve(method, path, dict(headers), self.caller.url)  # type: ignore[call-overload]
            if path == "/.well-known/syncropel":
                return 200, node.pairing.published.manifest()
            if path == "/.well-known/did.json":
                return 200, node.pairing.published.did_document()
            if path == "/v1/federation/pair":
                return await node.pairing.receive(body, self.caller.url)
            *_, pair_id, action = path.split("/")
            return await node.pairing.answer(action, pair_id, body, self.caller.url)
        except SplError as exc:
            return exc.status, exc.to_json()


@asynccontextmanager
async def two(
    folder: Path, approval: str = "auto", limits: Limits | None = None
) -> AsyncIterator[tuple[World, Node, Node]]:
    """Yield (world, a, b), a the initiator by custom, b with the approval policy."""
    world = World(folder, limits)
    a, b = world.node("alice"), world.node("bob", approval=approval)
    try:
        yield world, a, b
    finally:
        await world.close()


@asynccontextmanager
async def paired(
    folder: Path, approval: str = "auto", limits: Limits | None = None
) -> AsyncIterator[tuple[World, Node, Node, str]]:
    """Yield (world, a, b, id of their pair), once the pair that a asked for is active on both sides."""
    async with two(folder, approval, limits) as (world, a, b):
        await a.pair(b)
        yield world, a, b, await both_active(a, b)


async def both_active(a: Node, b: Node) -> str:
    """Return the pair id once both sides are active with the same pair and nothing else alive."""

    def same() -> bool:
        sides = [[(pair.pair_id, pair.phase) for pair in node.alive] for node in (a, b)]
        return sides[0] == sides[1] and [phase for _, phase in sides[0]] == [Phase.ACTIVE]

    await until(same)
    for node in (a, b):
        pair = node.alive[0]
        assert node.home.vault.names("peer-token.") == [f"peer-token.{pair.pair_id}"]
    _tokens_meet(a, b)
    _tokens_meet(b, a)
    return a.alive[0].pair_id


def _tokens_meet(holder: Node, issuer: Node) -> None:
    """What the holder presents is a token that its issuer minted for this pair and has not revoked."""
    pair = holder.alive[0]
    text = holder.home.vault.get(f"peer-token.{pair.pair_id}")
    assert text is not None
    token = issuer.home.views.tokens_by_hash[bearer.hash_of(text)]
    assert (token.pair_id, token.peer_did, token.revoked) == (pair.pair_id, holder.did, False)
    assert issuer.alive[0].issued_by_us is not None
    assert issuer.alive[0].issued_by_us.token_id == token.token_id
    assert pair.issued_to_us is not None
    assert pair.issued_to_us.token_id == token.token_id


def names(steps: list[dict[str, object]]) -> list[object]:
    """Return the names of the steps of `pair`, without those that only say that it waits."""
    return [step["step"] for step in steps if step["step"] != "waiting"]


def code_of(caught: pytest.ExceptionInfo[SplError]) -> str:
    return caught.value.code
