#!/usr/bin/env python3
"""Print how many records a second go from A to B if clients emit them one by one, 64 requests in flight.

    python tools/bench/singles.py [--records 20000] [--in-flight 64] [--beside redis]

Each record is signed and synced on A before its answer, and verified and synced on B; the time ends when B holds them
all.  The load is made of bare protocols on uvloop over bodies made before, and says what it cost itself: it competes
for the same cores.
"""

import argparse
import asyncio
import time

import beside
import uvloop
from throughput import arrived
from two import LOAD_FROM, Asker, Side, report, two_sides


async def emit(side: Side, count: int, in_flight: int) -> float:
    """Emit `count` records, one a request; return what the load cost a record, in us of processor time."""
    loop, answers = asyncio.get_running_loop(), [0]
    texts = [side.posted({"n": number}) for number in range(count)]
    left, cpu = iter(texts), time.process_time()
    made = [
        await loop.create_connection(
            lambda: Asker(lambda: next(left, None), answers), "127.0.0.1", side.port, local_addr=LOAD_FROM
        )
        for _ in range(in_flight)
    ]
    for transport, asker in made:
        await asker.done
        transport.close()
    assert answers[0] == count, "a connection was lost"
    return (time.process_time() - cpu) / count * 1e6


def measure(one: Side, two: Side, count: int, in_flight: int) -> dict[str, float]:
    """Return rates and costs of `count` records."""
    before, cpu, start = two.count(), (one.cpu_s(), two.cpu_s()), time.perf_counter()
    load_us = uvloop.run(emit(one, count, in_flight))
    emitted = time.perf_counter() - start
    arrived(two, before + count)
    took = time.perf_counter() - start
    here, there = ((side.cpu_s() - spent) / count * 1e6 for side, spent in zip((one, two), cpu, strict=True))
    return {
        "emit_per_s": round(count / emitted), "arrive_per_s": round(count / took), "cpu_here_us": round(here, 1),
        "cpu_there_us": round(there, 1), "load_us": round(load_us, 1),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=64, help="connections, each with one request under way")
    parser.add_argument("--beside", choices=("redis",), default="", help="measure another system in the same run")
    options = parser.parse_args()
    with two_sides() as (one, two, _):
        measure(one, two, max(1, options.records // 10), options.in_flight)  # warm
        found: dict[str, object] = {**measure(one, two, options.records, options.in_flight)}
    rows: list[tuple[object, ...]] = [("spl", *found.values())]
    if beside.wanted(options.beside):
        with beside.replicated() as (master, replica):
            cpu = master.cpu_s(), replica.cpu_s()
            rate = asyncio.run(beside.singles(master, replica, options.records, options.in_flight))
            spent = [
                round((side.cpu_s() - before) / options.records * 1e6, 1)
                for side, before in zip((master, replica), cpu, strict=True)
            ]
        rows.append(("redis", "", round(rate), *spent, ""))
        found["redis"] = {"arrive_per_s": round(rate), "cpu_here_us": spent[0], "cpu_there_us": spent[1]}
    report("singles", ("", "emitted/s", "arrived/s", "cpu here us", "cpu there us", "load us"), rows, found)


if __name__ == "__main__":
    main()
