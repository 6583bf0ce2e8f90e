"""A seeded world of daemons: what it is made of, its two phases, and the trace that a seed replays exactly."""

import asyncio
import gc
import hashlib
import logging
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from spl.core.errors import CODES
from spl.home.writes import Commit

from .loop import OWNER, VirtualLoop
from .network import Network
from .node import Answer, Node, code_of

if TYPE_CHECKING:
    from .promises import Promises

HEAL_S: Final = 3600.0
LOOK_S: Final = 5.0


class Broken(AssertionError):
    """A promise did not hold; the text says which, and how the seed is run again."""


class Late(Broken):
    """The promises held so far, and the pairs have not become equal in time."""


class World:
    """The nodes of one seed, and everything around them."""

    def __init__(self, seed: int, options: str = "") -> None:
        """`options` of `tools/sim` give the seed the same life again."""
        self.seed, self.options = seed, options
        self.dice = Random(f"world {seed}")
        self.loop = VirtualLoop(Random(f"loop {seed}"))
        self.network = Network(self.loop, Random(f"network {seed}"))
        self.loop.sockets = self.network
        self.nodes: list[Node] = []
        self.told: list[str] = []
        """What happened, for the eyes of who looks into a seed."""
        self.acked: dict[str, dict[str, str]] = {}
        """By node: record id -> namespace, of what its clients were told is stored."""
        self.log = hashlib.sha256()
        self.promises: Promises | None = None
        self.fault: Broken | None = None
        """The first promise that was broken in the middle of the product's own work."""

    def run(self, life: "Callable[[World], Awaitable[None]]") -> str:
        """Live through a seed; return the hash of its trace.  Raises Broken."""
        gc.collect()
        gc.disable()
        watch, log = Watch(self), logging.getLogger("spl")
        log.addHandler(watch)
        try:
            with patch.object(ThreadPoolExecutor, "submit", self._submit()):
                self.loop.run_until_complete(life(self))
            return self.trace()
        except Broken:
            raise
        except Exception as exc:
            if found := _broken_in(exc):
                raise found from exc
            self.tell("the world ended: " + "".join(traceback.format_exception(exc)))
            raise Broken(self.report(repr(exc))) from exc
        finally:
            self._end()
            log.removeHandler(watch)
            gc.enable()

    def _submit(self) -> "Callable[..., Future[Any]]":
        """Return the method that puts the work of thread pools on the loop."""
        loop = self.loop
        return lambda pool, func, /, *args, **named: loop.submit(pool, func, *args, **named)

    def _end(self) -> None:
        """Take everything down and let its tasks end."""
        for node in self.nodes:
            self.take_down(node)
        for task in self.loop.tasks:
            task.cancel()
        for _ in range(10):
            left = [task for task in self.loop.tasks if not task.done()]
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=60.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def trace(self) -> str:
        """Return the hash of all that was sent, written and answered, and when."""
        return hashlib.sha256(self.network.trace.digest() + self.log.digest()).hexdigest()

    def report(self, fault: str) -> str:
        """Return the text for a promise that was broken."""
        return f"seed {self.seed}: {fault}\n  again: tools/sim --seed {self.seed}{self.options} --tell\n"

    def tell(self, text: str) -> None:
        """Note an event."""
        line = f"{self.loop.time():12.6f} {text}"
        self.told.append(line)
        self.log.update(line.encode())

    def check(self, holds: object, fault: str) -> None:
        """Raise Broken unless it holds, and nothing was broken before."""
        if self.fault is not None:
            raise self.fault
        if not holds:
            self.tell(fault)
            raise Broken(self.report(fault))

    # -- nodes

    def named(self, owner: str) -> Node | None:
        """Return the node that an owner is, or nothing."""
        return next((node for node in self.nodes if node.name == owner), None)

    def add(self, name: str) -> Node:
        """Make a node and start it."""
        address = f"11.0.0.{len(self.nodes) + 1}"
        self.network.addresses[name] = address
        node = Node(self, name, address)
        node.listeners.append(self._wrote)
        self.nodes.append(node)
        self.acked[name] = {}
        node.boot()
        return node

    def _wrote(self, node: Node, commit: Commit) -> None:
        self.log.update(f"{self.loop.time():.6f} {node.name} {commit.last_seq} {commit.run}".encode())
        if self.promises is not None and self.fault is None:
            try:
                self.promises.committed(node, commit)
            except Broken as exc:
                self.fault = exc  # what runs here must not end the product's task

    def died(self, node: Node) -> None:
        """Take in that a node died in the middle of a step on its disk."""
        self.loop.after(0.0, self.kill, node, False)

    def kill(self, node: Node, power_lost: bool) -> None:
        """End a node's process now: nothing that its tasks still do has an effect."""
        if not node.up:
            return
        self.tell(f"{node.name} dies{' of power loss' if power_lost else ''}")
        self.take_down(node)
        self.network.died(node.name, power_lost=power_lost)

    def take_down(self, node: Node) -> None:
        """Cancel a node's tasks, with its disk gone."""
        node.up, node.disk.dead, node.ended_s = False, True, self.loop.time()
        for task in self.loop.tasks:
            if not task.done() and task.owner == node.name:
                task.cancel()

    def start(self, node: Node, *, power_lost: bool) -> None:
        """Start a node again from what its disk holds."""
        if node.up:
            return
        node.disk.revive(power_lost=power_lost)
        self.tell(f"{node.name} starts")
        if node.boot() and self.promises is not None:
            self.promises.started(node)

    def broke(self, node: Node, what: str, exc: BaseException) -> None:
        """Take in a fault inside a node."""
        text = "".join(traceback.format_exception(exc))
        self.tell(f"{node.name} {what} broke: {text}")
        node.faults.append(f"{node.name} {what}: {exc!r}\n{text}")

    # -- what operators do

    async def emit(self, node: Node, *values: dict[str, Any]) -> Answer:
        """Emit records and remember those that were acknowledged."""
        answer = await node.ask("POST", "/v1/records", list(values))
        told = []
        if answer.status == 200:
            for value, result in zip(values, answer.values, strict=True):
                if "id" in result:
                    self.acked[node.name][result["id"]] = value["body"].get("namespace", "default")
                told.append(result["id"][:12] if "id" in result else code_of(result))
        self.tell(f"{node.name} emits {len(values)}: {answer.status} {answer.code} {told}")
        for code in [answer.code, *(code for code in told if not code[:12].isalnum())]:
            self.check(not code or code in CODES, f"a refusal without a code: {answer}")
        return answer

    async def act(self, node: Node, method: str, path: str, body: Any = None) -> Answer:
        """Do something, and see that a refusal has a code."""
        answer = await node.ask(method, path, body)
        self.tell(f"{node.name} {method} {path} {body}: {answer.status} {answer.code}")
        if answer.code:
            self.check(answer.code in CODES, f"a refusal without a code: {path} {answer}")
            self.check(answer.code != "internal", f"a fault inside: {path} {answer}")
        return answer

    async def pair(self, one: Node, two: Node, **options: Any) -> Answer:
        """Have one pair with two."""
        answer = await self.act(
            one, "POST", "/v1/federation/pairs", {"url": two.url + "/", "wait_ms": 20_000, **options}
        )
        self.tell(f"{one.name} pairs with {two.name}: {[step.get('step') for step in answer.values]}")
        return answer

    async def until(self, holds: Callable[[], str], within_s: float) -> None:
        """Return when `holds` has no complaint left; fail with its last one after so many virtual seconds."""
        end_s = self.loop.time() + within_s
        while complaint := holds():
            self.tell(complaint)
            self.check(self.loop.time() < end_s, f"not within {within_s:.0f} s: {complaint}")
            await asyncio.sleep(LOOK_S)


def _broken_in(exc: BaseException) -> Broken | None:
    """Return the broken promise in a group of exceptions."""
    if isinstance(exc, Broken):
        return exc
    inner = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
    return next((found for each in inner if (found := _broken_in(each))), None)


class Watch(logging.Handler):
    """Takes in exceptions that the product caught at a boundary: no fault of a machine should come that far."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        node = self.world.named(OWNER.get())
        if node is not None and record.exc_info and record.exc_info[1] is not None:
            self.world.broke(node, record.getMessage(), record.exc_info[1])
