"""Whole daemons of one process over real HTTP, whose homes can be copied, and a peer that asks them by hand."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from spl.api.app import Api
from spl.api.services import Services
from spl.core.identity import bearer
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.daemon import services_of
from spl.home.config import Config, Settings
from spl.home.disk import Disk
from spl.home.home import Home, init_home, now_ms, open_home
from spl.home.writes import Item, Outcome
from spl.net.client import HttpClient, Reply
from spl.net.dialer import DialPolicy
from spl.net.server import Server
from spl.net.sockets import Listener, bind_tcp, client_trust
from spl.net.sse import Event

HERE = DialPolicy(allow_private=True)
LIMITS = Limits(heartbeat_s=0.03, longpoll_s=0.03)
CONFIG = replace(Config(), limits=LIMITS, federation_approval="auto", federation_allow_http=True)
Headers = tuple[tuple[str, str], ...]


@dataclass
class Daemon:
    """One daemon that serves; `ask` is for its operator's admin token unless told otherwise."""

    home: Home
    services: Services
    client: HttpClient
    url: str
    token: str

    @property
    def did(self) -> str:
        assert self.home.vault.identity is not None
        return self.home.vault.identity.did

    def write(self, *items: Item) -> list[Outcome]:
        return self.home.writer.submit(items).result(30)

    async def fetch(
        self, method: str, path: str, body: Any = None, *, headers: Headers = (), token: str | None = None
    ) -> Reply:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        bearer_text = self.token if token is None else token
        sent = [*headers, *([("authorization", f"Bearer {bearer_text}")] if bearer_text else [])]
        if data and not any(name == "content-type" for name, _ in headers):
            sent.append(("content-type", "application/json"))
        return await self.client.fetch(method, self.url + path, headers=sent, body=data, dial=HERE)

    async def json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        reply = await self.fetch(method, path, body, **more)
        assert reply.status < 300, reply.body
        return json.loads(reply.body)

    async def mint(self, *scopes: str, **more: Any) -> str:
        return str((await self.json("POST", "/v1/tokens", {"scopes": list(scopes), **more}))["token"])

    async def emit(self, values: Sequence[dict[str, Any]]) -> list[str]:
        """Write records, all in one request, and return the ids of those that were taken."""
        lines = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        reply = await self.fetch("POST", "/v1/records", lines, headers=(("content-type", "application/x-ndjson"),))
        return [value["id"] for value in map(json.loads, reply.body.splitlines()) if "id" in value]


@dataclass(frozen=True)
class Peer:
    """Who asks with a pair's token and a proof of possession."""

    key: SecretKey
    token: str
    pair_id: str
    did: str
    random: Random

    def headers(self, daemon: Daemon, method: str, target: str, body: bytes = b"") -> Headers:
        proof = bearer.proof_header(
            self.key, method=method, target=target, audience=daemon.did, token=self.token, body=body,
            issued_at_ms=now_ms(), nonce=self.random.randbytes(16).hex(), era=daemon.services.auth.proofs._era,
        )  # fmt: skip
        return (("authorization", f"Bearer {self.token}"), (bearer.PROOF_HEADER, proof))

    async def ask(self, daemon: Daemon, method: str, target: str, value: Any = None) -> Reply:
        body = b"" if value is None else json.dumps(value).encode()
        headers = self.headers(daemon, method, target, body)
        return await daemon.fetch(method, target, body, headers=headers, token="")

    @asynccontextmanager
    async def stream(self, daemon: Daemon, since: str = "") -> AsyncIterator[AsyncIterator[Event]]:
        target = f"/v1/sync/changes?feed=continuous{f'&since={since}' if since else ''}"
        headers = self.headers(daemon, "GET", target)
        async with daemon.client.stream(daemon.url + target, headers=headers, dial=HERE) as opened:
            yield opened


@asynccontextmanager
async def daemon(path: Path, label: str = "") -> AsyncIterator[Daemon]:
    """Serve a home, which is made if it is not there."""
    if not path.exists():
        init_home(path, label)
    home = open_home(path, CONFIG, disk=Disk(), progress=lambda done, total: None)
    writer = threading.Thread(target=home.writer.run)
    writer.start()
    sockets = bind_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    client = HttpClient(LIMITS, tls=None)
    services = services_of(home, client, client_trust(None), url, Settings(CONFIG))
    stop = asyncio.Event()
    server = Server(Api(services, local=False), LIMITS, now_ms=now_ms)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([Listener(sock) for sock in sockets], stop))
            try:
                yield Daemon(home, services, client, url, (path / "token").read_text().strip())
            finally:
                stop.set()
                services.feed.notifier.stop()
                await client.close()
    finally:
        services.close()
        home.writer.close()
        writer.join()
        home.close()


async def paired(folder: Path, **options: Any) -> Peer:
    """Pair two daemons, `source` being who answers; return the other as one that asks by hand, its home is closed."""
    async with daemon(folder / "source", "alice") as source, daemon(folder / "peer", "bob") as asker:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asker.services.pairing.run(stop))
            tasks.create_task(source.services.pairing.run(stop))
            reply = await asker.fetch("POST", "/v1/federation/pairs", {"url": source.url, "wait_ms": 60_000, **options})
            steps = [json.loads(line) for line in reply.body.splitlines()]
            stop.set()
        [pair] = [pair for pair in source.services.views.pairs.values() if pair.live]
        assert str(pair.phase) == "active", steps
        text = asker.home.vault.get(f"peer-token.{pair.pair_id}")
        identity = asker.home.vault.identity
        assert text is not None
        assert identity is not None
        return Peer(identity.key, text, pair.pair_id, asker.did, Random(1))


def copied(source: Path, target: Path) -> Path:
    """Copy a home whose daemon stands still, but for its lock and sockets."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("run", "*.sock", "lock"))
    return target
