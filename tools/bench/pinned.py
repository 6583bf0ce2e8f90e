#!/usr/bin/env python3
"""Print how many HTTP requests per second one daemon answers on one core.

    python tools/bench/pinned.py [--seconds 4] [--connections 32]

The daemon has one core to itself, this process another.  Its clients are bare protocols that keep their connections
alive and send the next request when the last answer is whole, so the daemon is what is measured: GET /health, GET of
one record, POST of one record (durable when answered).  Processor time a request counts user and system time, and is
what to compare on a machine that does other work too.

Not called http.py: the other benches would import it in place of the standard library's package.
"""

import argparse
import asyncio
import os
import time
from typing import Final

import uvloop
from two import Asker, Side, pin, record, report, two_sides

WARM_S: Final = 0.5


async def load(side: Side, text: bytes, connections: int, seconds: float) -> tuple[float, float]:
    """Return (answers per second, processor time in us for each) while a request is repeated over connections."""
    answers, loop = [0], asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Asker(lambda: text, answers), "127.0.0.1", side.port))[0]
        for _ in range(connections)
    ]
    await asyncio.sleep(WARM_S)
    count, cpu, start = answers[0], side.cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    count, cpu, took = answers[0] - count, side.cpu_s() - cpu, time.perf_counter() - start
    for transport in made:
        transport.abort()
    return count / took, cpu / count * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measure")
    parser.add_argument("--connections", type=int, default=32, help="clients at once")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rows: list[tuple[str, int, float, int]] = []
    with two_sides(paired=False) as (one, two, _):
        two.stop()
        stored = one.ask("POST", "/v1/records", record(one.name, {"n": -1}))["id"]
        kinds = {
            "GET health": one.request("GET", "/health", bare=True),
            "GET record": one.request("GET", f"/v1/records/{stored}"),
            "POST record": one.posted({"n": 0}),
        }
        pin(one.process.pid, cores[0])
        os.sched_setaffinity(0, {cores[-1]})
        for name, text in kinds.items():
            rate, cpu_us = uvloop.run(load(one, text, options.connections, options.seconds))
            rows.append((name, round(rate), cpu_us, round(1e6 / cpu_us)))
    figures = {name: {"per_s": rate, "cpu_us": round(us, 1), "per_cpu_s": full} for name, rate, us, full in rows}
    report("pinned", ("request", "per s", "cpu us", "per s of cpu"), rows, figures)


if __name__ == "__main__":
    main()
