"""One simulated daemon: real home, writer, services and HTTP, over a disk, network and clock of the world's."""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from spl.api.app import Api
from spl.api.services import Services
from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.daemon import services_of, start
from spl.home.config import Config, Settings
from spl.home.home import Home, Machine, open_home
from spl.home.writer import Writer
from spl.home.writes import Commit, Item, Outcome
from spl.net.address import ReachError
from spl.net.client import HttpClient
from spl.net.dialer import DialPolicy
from spl.net.server import Server
from spl.net.sockets import Listener, client_trust

from .disk import Died, MemoryDisk
from .loop import OWNER

if TYPE_CHECKING:
    from .world import World

PORT: Final = 9100
OWN_PORT: Final = 1
"""Stands for the socket in the home, which only the operator opens."""
DIAL: Final = DialPolicy(allow_private=True, allow_http=True)
LIMITS: Final = Limits(segment_bytes=256 * 1024, disk_floor_bytes=32 * 1024)
START_MS: Final = 1_800_000_000_000
_COMMITS_S: Final = (0.0, 0.001, 0.02)
TRUST: Final = client_trust(None)


class InlineFuture(Future):  # type: ignore[type-arg]
    """A future of the writer whose waiting thread is the only one: who waits for it has the writer write."""

    writer: "InlineWriter"

    def result(self, timeout: float | None = None) -> Any:
        while not self.done():
            self.writer.commit_waiting()
        return super().result(0)


class InlineWriter(Writer):
    """The writer without its thread: it writes a little after something was queued."""

    def __init__(self, node: "Node", home: Home) -> None:
        super().__init__(home.store, home.views, node.limits, signer=home.writer.signer, now_ms=node.now_ms)
        self.node = node
        self._due = False

    def submit_all(self, submissions: "Sequence[Sequence[Item]]") -> "list[Future[list[Outcome]]]":
        futures = [InlineFuture() for _ in submissions]
        for future in futures:
            future.writer = self
        self.submit_posted(list(zip(submissions, futures, strict=True)), None)  # type: ignore[arg-type]
        return list(futures)

    def submit_posted(self, submissions: Any, post: Any, soon: Any = None) -> None:
        super().submit_posted(submissions, post)
        if not self._due:
            self._due = True
            loop = self.node.world.loop
            loop.call_later(loop.dice.choice(_COMMITS_S), self._write)

    def _write(self) -> None:
        self._due = False
        try:
            while self.commit_waiting():
                pass
        except Died:
            return
        except Exception as exc:  # noqa: BLE001 - the thread's boundary: the daemon would end
            self.node.broke("writer", exc)


@dataclass(frozen=True)
class Answer:
    """What an operator's request brought: the status and the values of the body; status 0: it was cut off."""

    status: int
    values: list[dict[str, Any]]

    @property
    def value(self) -> dict[str, Any]:
        return self.values[-1] if self.values else {}

    @property
    def code(self) -> str:
        if self.status == 0 or self.status >= 400:
            return code_of(self.value)
        fault = self.value.get("error")
        return code_of(fault) if isinstance(fault, dict) else ""


def code_of(fault: dict[str, Any]) -> str:
    """Return the code in the form of a refusal."""
    return str(fault.get("code", "?")).lower().replace("_", "-")


class Node:
    """One machine with its disk, and the process that runs on it now, if any."""

    def __init__(self, world: "World", name: str, address: str) -> None:
        self.world, self.name, self.folder = world, name, Path("/sim") / name
        self.url = f"http://{address}:{PORT}"
        self.own_url = f"http://{address}:{OWN_PORT}"
        self.dice = Random(f"{world.seed} {name}")
        self.disk = MemoryDisk(self.dice)
        self.limits = LIMITS
        self.config = replace(
            Config(), limits=LIMITS, federation_approval="auto", federation_allow_http=True, public_url=self.url,
            federation_poll_interval_ms=30_000,
        )  # fmt: skip
        self.skew_ms = 0
        self.booted_s = self.ended_s = 0.0
        self.up = False
        self.lives = 0
        self.faults: list[str] = []
        self.listeners: list[Callable[[Node, Commit], None]] = []

    # -- what the product asks of the machine

    def now_ms(self) -> int:
        return START_MS + self.skew_ms + int(self.world.loop.time() * 1000)

    def steady_ms(self) -> int:
        return int((self.world.loop.time() - self.booted_s) * 1000) + 5_000

    def random_bytes(self, count: int) -> bytes:
        return self.dice.randbytes(count)

    # -- lives

    @property
    def did(self) -> str:
        assert self.home.vault.identity is not None
        return self.home.vault.identity.did

    def boot(self) -> bool:
        """Start a process; return whether it got as far as serving."""
        assert not self.up
        world, token = self.world, OWNER.set(self.name)
        self.lives += 1
        self.booted_s = world.loop.time()
        self.disk.on_death = lambda: world.died(self)
        self.up = True
        world.network.alive.add(self.name)
        try:
            self._open()
            self.task = world.loop.create_task(self._serve())
        except Died:
            return False
        except SplError as exc:
            self.broke("start", exc)
            self.up = False
            return False
        finally:
            OWNER.reset(token)
        return True

    def _open(self) -> None:
        self.home: Home = open_home(
            self.folder, self.config, disk=self.disk, progress=lambda done, total: None, clock=self.now_ms,
            random=self.random_bytes,
        )  # fmt: skip
        if self.home.vault.identity is None:
            self.home.adopt(self.home.vault.generate(self.name))
        self.home.writer = InlineWriter(self, self.home)
        self.client = HttpClient(self.limits, tls=None)
        settings = Settings(self.config)
        machine = Machine(self.now_ms, self.steady_ms, self.random_bytes)
        self.services: Services = services_of(self.home, self.client, TRUST, self.url, settings, machine=machine)
        for listener in self.listeners:
            self.home.writer.listen(lambda commit, heard=listener: heard(self, commit))  # type: ignore[misc]
        self.stop = asyncio.Event()

    async def _serve(self) -> None:
        """Run the services as the daemon does, until `stop`."""
        services, network = self.services, self.world.network
        peers = [Listener(network.listen(self.name, PORT))]  # type: ignore[arg-type]
        own = [Listener(network.listen(self.name, OWN_PORT), local=True)]  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            for listeners, local in ((peers, False), (own, True)):
                server = Server(Api(services, local=local), self.limits, now_ms=self.now_ms)
                tasks.create_task(server.serve(listeners, self.stop))
            start(services, tasks, self.stop)

    async def end(self) -> None:
        """Stop in order."""
        self.stop.set()
        self.home.store.stop()
        await asyncio.wait([self.task])
        if not self.up:
            return
        self.services.close()
        await self.client.close()
        self.home.writer.close()
        try:
            while self.home.writer.commit_waiting():
                pass
            self.home.close()
        except Died:
            return
        self.up = False
        self.world.network.died(self.name, power_lost=False)

    def broke(self, what: str, exc: BaseException) -> None:
        """Note a fault that no operator should meet."""
        self.world.broke(self, what, exc)

    # -- what the operator does

    async def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = 40.0) -> Answer:
        """Ask over the home's own socket; the answer of a daemon that is gone has status 0."""
        token = OWNER.set(f"operator@{self.name}")
        client = HttpClient(self.limits, tls=None)
        lines = isinstance(body, list)
        data = b"\n".join(json.dumps(each).encode() for each in (body if lines else [body] if body is not None else []))
        media = "application/x-ndjson" if lines else "application/json"
        headers = [("content-type", media)] if data else []
        try:
            reply = await client.fetch(
                method, self.own_url + path, headers=headers, body=data, dial=DIAL, timeout_s=timeout_s
            )
        except ReachError as exc:
            return Answer(0, [{"code": exc.code}])
        finally:
            OWNER.reset(token)
            await client.close()
        return Answer(reply.status, [json.loads(line) for line in reply.body.splitlines() if line.strip()])
