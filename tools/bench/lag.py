#!/usr/bin/env python3
"""Print the lag from emit to durable and visible on the peer, in continuous mode, at several rates.

    python tools/bench/lag.py [--rates 10,100,1000] [--seconds 5] [--beside redis]

Two real daemons on loopback.  The clock starts when the emit request is written and stops when the record comes out of
the peer's watch stream, which has durable records only; both ends are in this process, so there is one clock.  The
emit's answer time, and the processor time of both daemons, are printed too.
"""

import argparse
import asyncio
import json
import time
from typing import Final

import beside
from two import LOAD_FROM, THREAD, Side, percentile_ms, report, two_sides

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
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port, local_addr=LOAD_FROM)
    try:
        while True:
            due, number = await numbers.get()
            text = side.posted({"n": number})
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent[number] = time.perf_counter()
            writer.write(text)
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
    """Measure at every rate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", default="10,100,1000", help="records per second, comma-separated")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each rate")
    parser.add_argument("--beside", choices=("redis",), default="", help="measure another system in the same run")
    options = parser.parse_args()
    rates = [int(rate) for rate in options.rates.split(",")]
    rows: list[tuple[object, ...]] = []
    figures: dict[str, dict[str, float]] = {}

    def note(name: str, rate: int, lags: list[float], acks: list[float], spent: list[float]) -> None:
        cells = [percentile_ms(times, percent) for times in (lags, acks) for percent in (50, 99)]
        cells += [round(cpu_s / len(lags) * 1e6) for cpu_s in spent]
        rows.append((name, rate, *(str(cell) for cell in cells)))
        names = ("p50_ms", "p99_ms", "ack_p50_ms", "ack_p99_ms", "cpu_here_us", "cpu_there_us")
        figures[f"{name} {rate}/s"] = dict(zip(names, cells, strict=True))

    with two_sides() as (one, two, _):
        first = 0
        for rate in rates:
            cpu = one.cpu_s(), two.cpu_s()
            lags, acks = asyncio.run(measure(one, two, rate, options.seconds, first))
            first += len(lags)
            note("spl", rate, lags, acks, [side.cpu_s() - before for side, before in zip((one, two), cpu, strict=True)])
    if beside.wanted(options.beside):
        with beside.replicated() as (master, replica):
            for rate in rates:
                cpu = master.cpu_s(), replica.cpu_s()
                lags, acks = asyncio.run(beside.lags(master, replica, rate, options.seconds))
                spent = [side.cpu_s() - before for side, before in zip((master, replica), cpu, strict=True)]
                note("redis", rate, lags, acks, spent)
    columns = ("", "rate/s", "lag p50 ms", "p99", "ack p50 ms", "p99", "cpu here us", "cpu there us")
    report("lag", columns, rows, figures)


if __name__ == "__main__":
    main()
