#!/usr/bin/env python3
"""Print how many HTTP requests per second one daemon answers on one core.

    python tools/bench/http_load.py [--seconds 4] [--connections 32]

The daemon has one core to itself, this process another.  Its clients are bare protocols that keep their connections
alive and send the next request when the last answer is whole, so the daemon is what is measured: GET /health, GET of
one record, POST of one record (durable when answered).  Processor time a request counts user and system time, and is
what to compare on a machine that does other work too.  The last line has the same figures as JSON.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import uvloop
from two import Side, record, two_sides

WARM_S: Final = 0.5
BLOCK_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length: "

Requests = Callable[[], bytes]


class Client(asyncio.Protocol):
    """One connection that asks without a pause."""

    def __init__(self, following: Requests, answers: list[int]) -> None:
        self.following, self.answers = following, answers
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.following())

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        end = data.find(BLOCK_END)
        if end < 0:
            return
        start = data.index(LENGTH) + len(LENGTH)
        if len(data) < end + len(BLOCK_END) + int(data[start : data.index(b"\r", start)]):
            return
        assert data.startswith(b"HTTP/1.1 200"), data
        self.buffer = b""
        self.answers[0] += 1
        self.transport.write(self.following())


async def load(side: Side, following: Requests, connections: int, seconds: float) -> tuple[float, float]:
    """Return (answers per second, processor time in us for each) under load."""
    answers, loop = [0], asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Client(following, answers), "127.0.0.1", side.port))[0]
        for _ in range(connections)
    ]
    await asyncio.sleep(WARM_S)
    count, cpu, start = answers[0], cpu_s(side), time.perf_counter()
    await asyncio.sleep(seconds)
    count, cpu, took = answers[0] - count, cpu_s(side) - cpu, time.perf_counter() - start
    for transport in made:
        transport.abort()
    return count / took, cpu / count * 1e6


def cpu_s(side: Side) -> float:
    """Return the processor time of all threads of the daemon, to the nanosecond."""
    threads = Path(f"/proc/{side.process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def pin(pid: int, core: int) -> None:
    """Give every thread of a process, and those that they start, one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def kinds(side: Side) -> dict[str, Requests]:
    """Return what makes the requests of each measure."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in side.headers().items())
    stored = side.ask("POST", "/v1/records", record(side.name, {"n": -1}))["id"]
    body = json.dumps(record(side.name, {"n": 0})).encode()

    def fixed(target: str, fields: str) -> Requests:
        text = f"GET {target} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n".encode()
        return lambda: text

    post = f"POST /v1/records HTTP/1.1\r\nhost: localhost\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body
    return {"GET health": fixed("/health", ""), "GET record": fixed(f"/v1/records/{stored}", lines),
            "POST record": lambda: post}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measure")
    parser.add_argument("--connections", type=int, default=32, help="clients at once")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, dict[str, float]] = {}
    with two_sides(paired=False) as (one, two, _):
        two.stop()
        pin(one.process.pid, cores[0])
        os.sched_setaffinity(0, {cores[-1]})
        for name, following in kinds(one).items():
            rate, cpu_us = uvloop.run(load(one, following, options.connections, options.seconds))
            found[name] = {"per_s": round(rate), "cpu_us": round(cpu_us, 1), "per_cpu_s": round(1e6 / cpu_us)}
            print(
                f"{name:<12} {rate:8.0f}/s   cpu a request {cpu_us:6.1f} us, {1e6 / cpu_us:7.0f} a second of it",
                flush=True,
            )
        print(f"resident {one.rss_mib():.1f} MiB")
    print(json.dumps({"http": found, "connections": options.connections}))


if __name__ == "__main__":
    main()
