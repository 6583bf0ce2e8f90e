"""A served API in one process: real home, hub, server and sockets; the writer's thread included."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spl.api.app import Api
from spl.api.services import Services
from spl.daemon import services_of
from spl.home.config import Config, Settings
from spl.home.disk import Disk
from spl.home.home import Home, init_home, now_ms, open_home
from spl.net.client import HttpClient, Reply
from spl.net.dialer import DialPolicy
from spl.net.server import Server
from spl.net.sockets import Listener, bind_tcp, client_trust

HERE = DialPolicy(allow_private=True)


PAGE_ORIGIN = "http://localhost:3000"


@dataclass
class Served:
    """One daemon's API under test, over TCP with the admin token unless told otherwise."""

    home: Home
    services: Services
    client: HttpClient
    url: str
    token: str

    async def fetch(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Reply:
        bearer = self.token if token is None else token
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = [*headers]
        if bearer:
            sent.append(("authorization", f"Bearer {bearer}"))
        if data and not any(name == "content-type" for name, _ in headers):
            sent.append(("content-type", "application/json"))
        return await self.client.fetch(method, self.url + path, headers=sent, body=data, dial=HERE)

    async def json(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        reply = await self.fetch(method, path, body, **more)
        assert reply.status == status, reply.body
        return json.loads(reply.body)

    async def refused(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        reply = await self.fetch(method, path, body, **more)
        value = json.loads(reply.body)
        assert value["object"] == "error"
        assert value["message"]
        assert value["hint"]
        return reply.status, value["code"]

    async def raw(self, text: str, end: bytes = b"}") -> str:
        """Send bytes as they are and return the first of what comes back, to its `end`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))
        writer.write(text.encode())
        answer = await reader.readuntil(end)
        writer.close()
        return answer.decode()

    async def mint(self, *scopes: str, **more: Any) -> str:
        return str((await self.json("POST", "/v1/tokens", {"scopes": list(scopes), **more}, 201))["token"])


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    path = tmp_path / "home"
    init_home(path, "alice")
    config = Config(http_allowed_origins=(PAGE_ORIGIN,))
    home = open_home(path, config, disk=Disk(), progress=lambda done, total: None)
    writer = threading.Thread(target=home.writer.run)
    writer.start()
    sockets = bind_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    client = HttpClient(config.limits, tls=None)

    services = services_of(home, client, client_trust(None), url, Settings(config))
    stop = asyncio.Event()
    server = Server(Api(services, local=False), config.limits, now_ms=now_ms)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([Listener(sock) for sock in sockets], stop))
        yield Served(home, services, client, url, (path / "token").read_text().strip())
        stop.set()
        await client.close()
    services.close()
    home.writer.close()
    writer.join()
    home.close()
