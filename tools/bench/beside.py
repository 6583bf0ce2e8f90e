"""Redis beside the daemons, for the same measures in the same run: a master that syncs each write, and a replica.

A stream of entries of 600 bytes is written on the master, with `appendfsync always`, and read on the replica.  That is
the nearest thing to a pair in continuous mode that signs and verifies nothing.
"""

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from two import READY_S, cpu_s

SERVER: Final = "redis-server"
STREAM: Final = "bench"
PADDING: Final = b"x" * 560


@dataclass
class Redis:
    """One server."""

    port: int
    process: "subprocess.Popen[bytes]"

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        return cpu_s(self.process.pid)


@contextmanager
def replicated() -> Iterator[tuple[Redis, Redis]]:
    """Give a master and its replica."""
    folder = Path(tempfile.mkdtemp(prefix="spl-bench-"))
    servers: list[Redis] = []
    try:
        for role in ("master", "replica"):
            (folder / role).mkdir()
            follows = ("--replicaof", f"127.0.0.1 {servers[0].port}") if servers else ()
            servers.append(_start(folder / role, *follows))
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, *more: str) -> Redis:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    command = [
        SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes",
        "--appendfsync", "always", "--repl-diskless-sync-delay", "0", "--repl-diskless-load", "on-empty-db", *more,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + READY_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as found:
                found.sendall(b"INFO replication\r\n")
                text = found.recv(4096)
            if not more or b"master_link_status:up" in text:
                return Redis(port, process)
        except ConnectionError:
            pass
        assert time.monotonic() < end, "redis-server did not start"
        time.sleep(0.05)


def command(*words: bytes | str) -> bytes:
    """Return the bytes of a command."""
    texts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)


def entry(number: int) -> bytes:
    """Return the command that writes one entry."""
    return command("XADD", STREAM, "*", "n", str(number), "text", PADDING)


async def answer(reader: asyncio.StreamReader) -> Any:
    """Return one answer: bytes, a number, None, or a list of them."""
    line = (await reader.readline())[:-2]
    kind, rest = line[:1], line[1:]
    assert kind != b"-", line
    if kind == b"$":
        return None if rest == b"-1" else (await reader.readexactly(int(rest) + 2))[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [await answer(reader) for _ in range(int(rest))]
    return int(rest) if kind == b":" else rest


@asynccontextmanager
async def connection(server: Redis) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Give one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**22)
    try:
        yield reader, writer
    finally:
        writer.close()


async def length(server: Redis) -> int:
    """Return how many entries it has."""
    async with connection(server) as (reader, writer):
        writer.write(command("XLEN", STREAM))
        return int(await answer(reader))


async def lags(master: Redis, replica: Redis, rate: int, seconds: float) -> tuple[list[float], list[float]]:
    """Return (lags, answer times) in seconds, sorted, at `rate` entries a second."""
    count, base, sent = int(rate * seconds), await length(master), dict[int, float]()
    found: list[float] = []
    acks: list[float] = []

    async def read() -> None:
        last = "$" if base else "0-0"
        async with connection(replica) as (reader, writer):
            while len(found) < count:
                writer.write(command("XREAD", "BLOCK", "10000", "STREAMS", STREAM, last))
                entries = (await answer(reader))[0][1]
                now = time.perf_counter()
                found.extend(now - sent[int(fields[1])] for _, fields in entries)
                last = entries[-1][0].decode()

    async def write() -> None:
        async with connection(master) as (reader, writer):
            start = time.perf_counter() + 0.1
            for number in range(base, base + count):
                await asyncio.sleep(max(0.0, start + (number - base) / rate - time.perf_counter()))
                sent[number] = time.perf_counter()
                writer.write(entry(number))
                await answer(reader)
                acks.append(time.perf_counter() - sent[number])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        await asyncio.sleep(0.2)
        tasks.create_task(write())
    return sorted(found), sorted(acks)


async def singles(master: Redis, replica: Redis, count: int, in_flight: int) -> float:
    """Return how many entries a second reach the replica, written one by one over so many connections."""
    left, goal = iter(range(count)), await length(master) + count

    async def write() -> None:
        async with connection(master) as (reader, writer):
            for number in left:
                writer.write(entry(number))
                await answer(reader)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(write())
    async with connection(replica) as (reader, writer):
        arrived = 0
        while arrived < goal:
            writer.write(command("XLEN", STREAM))
            arrived = int(await answer(reader))
    return count / (time.perf_counter() - start)


def wanted(text: str) -> bool:
    """Return whether the other system that was asked for is there; say so if it is not."""
    if not text:
        return False
    if shutil.which(SERVER) is None:
        print(f"{SERVER} is not installed, so there is nothing beside: apt-get install redis-server")
        return False
    return True
