#!/usr/bin/env python3
"""Print the lag from emit to durable and visible on the peer, in continuous mode, at several rates.

    python tools/bench/lag.py [--rates 10,100,1000] [--seconds 5]

Two real daemons on loopback.  The clock starts when the emit request is written and stops when the record comes out of
the peer's watch stream, which has durable records only; both ends are in this process, so there is one clock.  The
emit's answer time and the lag that the source itself measures (from its write to the peer's ack) are printed too.
"""

import argparse
import asyncio
import json
import time
from typing import Final

from two import THREAD, Side, record, two_sides

REFERENCE_MS: Final = 225
CONNECTIONS: Final = 16
SETTLE_S: Final = 20.0

Sent = dict[int, float]


async def watch(side: Side, sent: Sent, lags: list[float], ready: asyncio.Event, expected: list[int]) -> None:
    """Take the time of every record of the watch stream, until all expected records have arrived."""
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port, limit=2**22)
    token = side.headers()["authorization"]
    target = f"/v1/threads/{THREAD}/watch"
    writer.write(f"GET {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\n\r\n".encode())
    try:
        while not expected or len(lags) < expected[0]:
            line = await reader.readline()
            now = time.perf_counter()
            if line.startswith(b"event: heartbeat"):
                ready.set()
            elif line.startswith(b'data: {"record"'):
                lags.append(now - sent[json.loads(line[6:])["record"]["body"]["n"]])
    finally:
        writer.close()


async def emit(side: Side, numbers: "asyncio.Queue[tuple[float, int]]", sent: Sent, acks: list[float]) -> None:
    """Emit one record for each number at its time, over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
    fields = "".join(f"{name}: {value}\r\n" for name, value in side.headers().items())
    head = f"POST /v1/records HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: "
    try:
        while True:
            due, number = await numbers.get()
            body = json.dumps(record(side.name, {"n": number})).encode()
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent[number] = time.perf_counter()
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.lower().split(b"\r\n")
            await reader.readexactly(int(next(line for line in lines if line.startswith(b"content-length:"))[15:]))
            assert answer.startswith(b"HTTP/1.1 200"), answer
            acks.append(time.perf_counter() - sent[number])
            numbers.task_done()
    finally:
        writer.close()


async def measure(one: Side, two: Side, rate: int, seconds: float, first: int) -> tuple[list[float], list[float]]:
    """Return (lags, emit answer times) in seconds, at `rate` records per second."""
    sent: Sent = {}
    lags: list[float] = []
    acks: list[float] = []
    expected: list[int] = []
    ready, numbers = asyncio.Event(), asyncio.Queue[tuple[float, int]]()
    count = int(rate * seconds)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch(two, sent, lags, ready, expected))
        await ready.wait()
        start = time.perf_counter() + 0.1
        for n in range(count):
            numbers.put_nowait((start + n / rate, first + n))
        expected.append(count)
        emitting = [tasks.create_task(emit(one, numbers, sent, acks)) for _ in range(min(CONNECTIONS, rate))]
        async with asyncio.timeout(seconds * 3 + SETTLE_S):
            await numbers.join()
            await watching
        for task in emitting:
            task.cancel()
    return sorted(lags), sorted(acks)


def main() -> None:
    """Measure at every rate and print one line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", default="10,100,1000", help="records per second, comma-separated")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each rate")
    options = parser.parse_args()
    with two_sides() as (one, two, pair_id):
        first = 0
        for rate in map(int, options.rates.split(",")):
            cpu = one.cpu_s(), two.cpu_s()
            lags, acks = asyncio.run(measure(one, two, rate, options.seconds, first))
            first += len(lags)
            spent = [(side.cpu_s() - before) / len(lags) * 1e6 for side, before in zip((one, two), cpu, strict=True)]
            print(
                f"{rate:>5}/s  lag p50 {ms(lags, 50)} p99 {ms(lags, 99)} ms   emit ack p50 {ms(acks, 50)} p99 "
                f"{ms(acks, 99)} ms   cpu a record {spent[0]:.0f} us here, {spent[1]:.0f} us there   "
                f"reference p50 {REFERENCE_MS} ms",
                flush=True,
            )
        print("the source's own measure:", one.ask("GET", "/v1/status").get("lag"))
        print(f"resident {one.rss_mib():.1f} MiB here, {two.rss_mib():.1f} MiB there (pair {pair_id})")


def ms(times: list[float], percent: int) -> str:
    """Return a percentile of sorted seconds, in ms."""
    return f"{times[min(len(times) - 1, len(times) * percent // 100)] * 1000:6.2f}"


if __name__ == "__main__":
    main()
