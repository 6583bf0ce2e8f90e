"""What befalls a world: faults of machines, disks, networks and clocks, and operators who do what they like."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Final

from .disk import CAPACITY_BYTES
from .node import Answer, Node

if TYPE_CHECKING:
    from .promises import Promises
    from .world import World

DAY_MS: Final = 86_400_000
SKEWS_MS: Final = (2_000, 600_000, 8 * 3_600_000, 100 * DAY_MS)
TEAM, SECRET = "team", "secret"
THREADS: Final = ("th_one", "th_two")


class Faults:
    """Draws faults until the heal phase."""

    def __init__(self, world: "World", dice: Random) -> None:
        self.world, self.dice = world, dice
        self._power_lost: dict[str, bool] = {}

    async def run(self, until_s: float) -> None:
        """Do one thing after another."""
        loop = self.world.loop
        every_s = self.dice.choice((2.0, 8.0, 25.0))
        kinds = self.dice.sample(list(FAULTS), self.dice.randint(1, len(FAULTS)))
        while loop.time() < until_s:
            await asyncio.sleep(self.dice.random() * every_s)
            node = self.dice.choice(self.world.nodes)
            name = self.dice.choice(kinds)
            self.world.tell(f"fault: {name} {node.name}")
            await FAULTS[name](self, node)

    async def keep_up(self, node: Node, until_s: float) -> None:
        """Start a node again some time after each death."""
        while self.world.loop.time() < until_s:
            await asyncio.sleep(self.dice.random() * 20)
            if not node.up:
                power_lost = self._power_lost.pop(node.name, self.dice.random() < 0.3)
                self.world.start(node, power_lost=power_lost)

    async def heal(self) -> None:
        """End every fault: ways are free, clocks nearly right, disks sound, and all nodes run on sound disks."""
        world = self.world
        world.network.cut_share, world.network.delay_max_s = 0.0, 0.002
        world.network.free()
        for node in world.nodes:
            node.skew_ms = self.dice.randint(-2000, 2000)
            node.disk.capacity_bytes, node.disk.syncs_to_fail, node.disk.steps_left = CAPACITY_BYTES, 0, 0
            if node.up and node.disk.failed:
                await node.end()
            if not node.up:
                world.start(node, power_lost=self._power_lost.pop(node.name, False))

    # -- faults of one node

    async def kill(self, node: Node) -> None:
        self.world.kill(node, False)

    async def power(self, node: Node) -> None:
        self._power_lost[node.name] = True
        self.world.kill(node, True)

    async def die_writing(self, node: Node) -> None:
        """Die in the middle of one of the next steps on the disk, of the start too."""
        self._power_lost[node.name] = self.dice.random() < 0.5
        node.disk.steps_left = self.dice.randint(1, 60)

    async def restart(self, node: Node) -> None:
        if node.up:
            await node.end()
            self.world.start(node, power_lost=False)

    async def sync_fails(self, node: Node) -> None:
        node.disk.syncs_to_fail = 1

    async def fill(self, node: Node) -> None:
        node.disk.capacity_bytes = node.disk.used_bytes() + self.dice.choice((0, 100, 3_000, 30_000, 60_000))
        self.world.loop.after(self.dice.random() * 60, setattr, node.disk, "capacity_bytes", CAPACITY_BYTES)

    async def set_clock(self, node: Node) -> None:
        node.skew_ms = self.dice.choice(SKEWS_MS) * self.dice.choice((-1, 1))
        self.world.tell(f"{node.name} has {node.skew_ms} ms")

    # -- faults of the network

    async def cut_off(self, node: Node) -> None:
        """Part a node from another for a while, in one direction or both."""
        network = self.world.network
        other = self.dice.choice([each for each in self.world.nodes if each is not node])
        network.block(node.name, other.name)
        if self.dice.random() < 0.7:
            network.block(other.name, node.name)
        self.world.loop.after(self.dice.choice((3.0, 40.0, 130.0)), network.free)

    async def cut_connections(self, node: Node) -> None:
        network = self.world.network
        network.cut_share = self.dice.choice((0.01, 0.1, 0.4))
        self.world.loop.after(self.dice.random() * 60, setattr, network, "cut_share", 0.0)

    async def slow(self, node: Node) -> None:
        network = self.world.network
        network.delay_max_s = self.dice.choice((0.1, 1.0, 8.0))
        self.world.loop.after(self.dice.random() * 60, setattr, network, "delay_max_s", 0.002)


FAULTS: Final[Mapping[str, Callable[[Faults, Node], Awaitable[None]]]] = {
    "kill": Faults.kill, "power": Faults.power, "die_writing": Faults.die_writing, "restart": Faults.restart,
    "sync_fails": Faults.sync_fails, "fill": Faults.fill, "set_clock": Faults.set_clock, "cut_off": Faults.cut_off,
    "cut_connections": Faults.cut_connections, "slow": Faults.slow,
}  # fmt: skip


class Operator:
    """Who runs one node: writes, and changes what its pairs may do."""

    def __init__(self, world: "World", promises: "Promises", node: Node, dice: Random) -> None:
        self.world, self.promises, self.node, self.dice = world, promises, node, dice
        self.numbers = 0

    async def run(self, until_s: float) -> None:
        """Do one thing after another."""
        every_s = self.dice.choice((1.0, 5.0, 15.0))
        names = list(ACTS)
        weights = [20 if name == "emit" else 5 if name == "approve" else self.dice.choice((0, 1, 3)) for name in names]
        while self.world.loop.time() < until_s:
            await asyncio.sleep(self.dice.random() * every_s)
            if self.node.up:
                await ACTS[self.dice.choices(names, weights)[0]](self)

    async def emit(self) -> None:
        """Write some records, most of them for others."""
        await self.world.emit(self.node, *(self._value() for _ in range(self.dice.choice((1, 1, 2, 7)))))

    def _value(self) -> dict[str, Any]:
        self.numbers += 1
        ns = self.dice.choice(("", "", TEAM, SECRET))
        body = {"n": self.numbers, "of": self.node.name, "text": "x" * self.dice.choice((1, 80, 3000))}
        if ns:
            body["namespace"] = ns
        actor = f"did:sync:user:{self.dice.choice('ab')}"
        return {"act": "DO", "actor": actor, "thread": self.dice.choice(THREADS), "body": body}

    async def registers(self) -> None:
        """Make the namespaces of this world."""
        for name, shared in ((TEAM, True), (SECRET, False)):
            await self.world.act(self.node, "POST", "/v1/namespaces", {"name": name, "shared": shared})

    async def approves(self, *, always: bool = False) -> None:
        """Approve what waits, or reject it, seldom."""
        for request in list(self.node.home.views.requests.values()) if self.node.up else []:
            if request.status == "pending" and self.node.up:
                decision = "approve" if always or self.dice.random() < 0.9 else "reject"
                pair = self.node.home.views.pairs.get(request.request_id)
                if pair and decision == "approve":  # a pause of a pair before ended with that
                    self.promises.opened(self.node, pair.peer_did, "unpaused")
                path = f"/v1/aitl/{request.request_id}/decide"
                await self.world.act(self.node, "POST", path, {"decision": decision})

    async def pauses(self) -> None:
        if pair := self._pair():
            answer = await self._act(pair, "pause")
            if answer.status == 200:
                self.promises.closed(self.node, pair.peer_did, "unpaused")

    async def resumes(self) -> None:
        if pair := self._pair():
            self.promises.opened(self.node, pair.peer_did, "unpaused")
            await self._act(pair, "resume")

    async def sets_mode(self) -> None:
        if pair := self._pair():
            await self._act(pair, "mode", {"mode": self.dice.choice(("polling", "continuous", "on-demand"))})

    async def sets_interval(self) -> None:
        if pair := self._pair():
            await self._act(pair, "poll-interval", {"interval_ms": self.dice.choice((1_000, 10_000, 60_000))})

    async def syncs(self) -> None:
        if pair := self._pair():
            await self._act(pair, "sync")

    async def verifies(self) -> None:
        if pair := self._pair():
            await self._act(pair, "verify", {"repair": self.dice.random() < 0.5})

    async def grants(self) -> None:
        if pair := self._pair():
            self.promises.opened(self.node, pair.peer_did, TEAM)
            await self._act(pair, "grants", {"namespace": TEAM})

    async def withdraws(self) -> None:
        if pair := self._pair():
            answer = await self._act(pair, "revoke-grant", {"namespace": TEAM})
            if answer.status == 200:
                self.promises.closed(self.node, pair.peer_did, TEAM)

    async def rotates(self) -> None:
        await self.world.act(self.node, "POST", "/v1/identity/rotate", {})

    async def rotates_tokens(self) -> None:
        if pair := self._pair():
            await self._act(pair, "rotate-tokens")

    async def revokes(self) -> None:
        """End a pair, and mostly begin it again."""
        if pair := self._pair():
            answer = await self._act(pair, "revoke")
            if answer.status == 200:
                self.promises.closed(self.node, pair.peer_did, "pair")
            if self.dice.random() < 0.8:
                await asyncio.sleep(self.dice.random() * 5)
                await self.pairs(self.promises.node_of(pair.peer_did))

    async def pairs(self, peer: Node) -> None:
        """Ask a peer for a pair."""
        if self.node.up:
            for one, two in ((self.node, peer), (peer, self.node)):
                for gate in ("pair", "unpaused", TEAM):
                    self.promises.opened(one, two.did, gate)
            await self.world.pair(self.node, peer)

    async def archives(self) -> None:
        """End a namespace; seldom, for there is no way back."""
        if self.dice.random() < 0.2:
            answer = await self.world.act(self.node, "POST", f"/v1/namespaces/{TEAM}/archive", {})
            if answer.status == 200:
                self.promises.archived(self.node, TEAM)

    async def looks(self) -> None:
        """Read what the daemon says of itself."""
        for path in ("/v1/status", "/v1/doctor", "/v1/federation/pairs"):
            await self.world.act(self.node, "GET", path)
        if pair := self._pair():
            answer = await self.world.act(self.node, "GET", f"/v1/federation/pairs/{pair.pair_id}")
            self.promises.told(self.node, pair, answer)

    def _pair(self) -> Any:
        pairs = [pair for pair in self.node.home.views.pairs.values() if not pair.ended] if self.node.up else []
        return self.dice.choice(pairs) if pairs else None

    async def _act(self, pair: Any, action: str, body: Any = None) -> Answer:
        return await self.world.act(self.node, "POST", f"/v1/federation/pairs/{pair.pair_id}/{action}", body or {})


ACTS: Final[Mapping[str, Callable[[Operator], Awaitable[None]]]] = {
    "emit": Operator.emit, "approve": Operator.approves, "pause": Operator.pauses, "resume": Operator.resumes,
    "mode": Operator.sets_mode, "interval": Operator.sets_interval, "sync": Operator.syncs,
    "verify": Operator.verifies, "grant": Operator.grants, "withdraw": Operator.withdraws,
    "rotate": Operator.rotates, "tokens": Operator.rotates_tokens, "revoke": Operator.revokes,
    "archive": Operator.archives, "look": Operator.looks,
}  # fmt: skip
