"""Two paired instances in one process, with a doctor each, and faults to put on the way between them."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.limits import Limits
from spl.core.pair.status import PairStatus
from spl.doctor.examine import Doctor
from spl.doctor.health import HealthSampler
from spl.doctor.peer_check import PeerCheck
from spl.home.config import Settings
from spl.net.address import parse_url
from spl.net.client import HttpClient, Reply
from spl.net.dialer import DialPolicy
from spl.net.probe import Reached
from spl.sync.changes import Feed, OfferedStatus
from spl.sync.schedule import Sync
from tests.pair_world import Network, Node, World, paired

Change = Callable[[str, str, Reply], Reply]
ALL_CONFIRMED = OfferedStatus(42, 42, 0, interval_s=0.0)
CALM = PairStatus(clock=42, lag_records=0)


class PeerNetwork:
    """The network of one node: the world's, with the doctor's own questions answered by the other node's doctor."""

    def __init__(self, node: Node, clinic: "Clinic") -> None:
        self.world_net, self.node, self.clinic = Network(node.world, node), node, clinic

    async def fetch(self, method: str, url: str, *, headers: Iterable[tuple[str, str]] = (), body: bytes = b"",
                    dial: DialPolicy, **_: object) -> Reply:  # fmt: skip
        where = parse_url(url)
        other = self.clinic.of(where.origin)
        if where.target.endswith("/check"):
            reply = await self._check(other, where.target, dict(headers), body)
        elif where.target == "/v1/federation/pair" and method == "GET":
            reply = Reply(405, {}, b"{}", "127.0.0.1")
        else:
            reply = await self.world_net.fetch(method, url, headers=headers, body=body, dial=dial)
            reply = replace(reply, body=json.dumps(json.loads(reply.body), sort_keys=True, separators=(",", ":"),
                                                   ensure_ascii=False).encode())  # fmt: skip
        return self.clinic.change(method, where.target, reply) if self.node is self.clinic.a else reply

    async def _check(self, other: Node, target: str, headers: dict[str, str], body: bytes) -> Reply:
        token = headers["authorization"].removeprefix("Bearer ")
        pair_id = target.split("/")[-2]
        pair = other.home.views.pairs[pair_id]
        held = other.home.views.tokens_by_hash[bearer.hash_of(token)]
        try:
            if held.expired(self.node.world.now_ms()):
                raise SplError("auth-invalid", "the bearer token is expired", reason="token-expired")
            bearer.check_proof(
                headers[bearer.PROOF_HEADER], pair.chain.present, method="POST", target=target, audience=other.did,
                token=token, body=body, now_ms=self.node.world.now_ms(), limits=Limits(),
            )  # fmt: skip
            seen = await self.clinic.doctors[other.url].peer.look_back(pair)
        except SplError as exc:
            return Reply(exc.status, {}, json.dumps(exc.to_json()).encode(), "127.0.0.1")
        view = {"state": str(pair.phase), "reason": "", "head": 0, "queue": 0}
        return Reply(200, {}, json.dumps({"peer_view": view, **seen}).encode(), "127.0.0.1")


@dataclass
class Clinic:
    """Two paired nodes with a doctor each; `status` is what the sync of both tells, `came` the way to the other."""

    world: World
    a: Node
    b: Node
    pair_id: str
    status: PairStatus = CALM
    came: Reached = field(default_factory=lambda: Reached("127.0.0.1", ("127.0.0.1",), "127.0.0.1"))
    offered: OfferedStatus = ALL_CONFIRMED
    way: str = "both"
    change: Change = lambda method, target, reply: reply
    doctors: dict[str, Doctor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in (self.a, self.b):
            sync = cast(Sync, SimpleNamespace(status=self.told, running=frozenset()))
            reaches = SimpleNamespace(word=lambda pair_id: self.way)
            source = SimpleNamespace(reaches=reaches)
            feed = cast(Feed, SimpleNamespace(offered=lambda pair_id: self.offered, source=source))
            health = HealthSampler(node.home.writer, sync, feed, Limits(), steady_s=lambda: 0.0)
            client = node.pairing.peers.client = cast(HttpClient, PeerNetwork(node, self))
            peer = PeerCheck(
                client, self, node.pairing, node.home.vault, Limits(),
                now_ms=self.world.now_ms,
            )  # fmt: skip
            self.doctors[node.url] = Doctor(
                node.home, Settings(node.home.config), node.pairing, sync, feed, health, peer,
                now_ms=self.world.now_ms,
            )  # fmt: skip

    def of(self, origin: str) -> Node:
        return self.a if origin == self.a.url else self.b

    def told(self, pair_id: str) -> PairStatus:
        return replace(self.status, last_sync_ms=self.world.time_ms)

    async def reach(self, url: str, policy: DialPolicy) -> Reached:
        assert policy.allow_private
        return self.came

    async def report(self) -> dict[str, Any]:
        """Return what alice's doctor says of the pair."""
        return await self.doctors[self.a.url].examine(self.a.home.views.pairs[self.pair_id])

    async def problems(self) -> dict[str, str]:
        """Return code -> fix."""
        found = (await self.report())["problems"]
        return {item["code"]: item["fix"] for item in found}


@asynccontextmanager
async def clinic(folder: Path) -> AsyncIterator[Clinic]:
    async with paired(folder) as scene:
        yield Clinic(*scene)


def answers(target: str, **changed: Any) -> Change:
    """Return a change of every reply to this target."""
    return lambda method, path, reply: replace(reply, **changed) if path == target else reply


MANIFEST = "/.well-known/syncropel"
