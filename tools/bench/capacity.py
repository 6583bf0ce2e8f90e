#!/usr/bin/env python3
"""Print what each pair takes of one daemon with one core and 2 GB: memory, descriptors, connections, bandwidth.

    python tools/bench/capacity.py [--peers 20]

The two tables of a capacity plan: pairs in continuous mode, at rest, at a steady 9 records a second in all and at four
times that, and pairs that poll.  The daemon is pinned to one core and its address space limited; its peers are
instances in another process (host.py).  Bytes are those of the daemon's TCP connections, both ways, heads and acks
included, without what IP and TCP add.  A polling pair's bandwidth is that of one poll each five minutes.  What the
first pairs load into the daemon is left out: it is paid once.
"""

import argparse
import asyncio
import os
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import Final

from fanout import emit, follow, hosted
from two import Side, pin, report, two_sides

STEADY: Final = 9
SPIKE: Final = 36
MEMORY_BYTES: Final = 2 * 2**30
POLL_S: Final = 300
IDLE_S: Final = 40.0
"""After this long the connections of a poll have been closed: kept ones are closed when idle."""
FIRST: Final = 8
"""Pairs that are made before the measure begins."""
SETTLED_S: Final = 11.0
"""After so long without more a daemon has given back what making pairs took."""
MOVED: Final = re.compile(r"bytes_(?:acked|received):(\d+)")


def descriptors(side: Side) -> int:
    """Return how many descriptors the daemon has open."""
    return len(list(Path(f"/proc/{side.process.pid}/fd").iterdir()))


def connections(side: Side) -> list[int]:
    """Return the bytes that each TCP connection of the daemon has moved, both ways."""
    out = subprocess.run(["ss", "-tinpHO", "state", "established"], check=True, capture_output=True, text=True).stdout
    mine = [line for line in out.splitlines() if f"pid={side.process.pid}," in line]
    return [sum(map(int, MOVED.findall(line))) for line in mine]


def continuous(peers: int, seconds: float) -> list[tuple[object, ...]]:
    """Return the row of a steady window and of a spike."""
    rows: list[tuple[object, ...]] = []
    with two_sides(paired=False) as (one, two, _), hosted(peers) as host:
        two.stop()
        before, count = first(one, host.urls, "continuous"), SPIKE
        follow(one, host.urls[FIRST:])
        host.arrived(SPIKE)
        time.sleep(SETTLED_S)
        rows.append(("continuous, at rest", peers, *each(one, before, peers), "", "", ""))
        for name, rate in (("steady", STEADY), ("spike", SPIKE)):
            moved, cpu = sum(connections(one)), one.cpu_s()
            count += asyncio.run(emit(one, rate, seconds))
            lag = host.arrived(count)["p99_ms"]
            found = connections(one)
            bytes_s = round((sum(found) - moved) / seconds / peers)
            core = round((one.cpu_s() - cpu) / seconds * 100, 1)
            rows.append((f"continuous, {name}", peers, *each(one, before, peers), bytes_s, core, lag))
    return rows


def polling(peers: int) -> tuple[object, ...]:
    """Return the row of pairs that poll: what stays between polls, and the bytes of one poll."""
    with two_sides(paired=False) as (one, two, _), hosted(peers, "polling") as host:
        two.stop()
        before = first(one, host.urls, "polling")
        pairs = follow(one, host.urls[FIRST:], "polling")
        host.arrived(SPIKE)
        moved = sum(connections(one))
        for pair_id in pairs:
            one.ask("POST", f"/v1/federation/pairs/{pair_id}/sync", {})
        poll_bytes = (sum(connections(one)) - moved) / peers
        end = time.monotonic() + IDLE_S
        while len(connections(one)) > before[2] + 1 and time.monotonic() < end:
            time.sleep(1)
        time.sleep(SETTLED_S)
        return ("polling", peers, *each(one, before, peers), round(poll_bytes / POLL_S, 1), "", "")


def first(side: Side, urls: list[str], mode: str) -> tuple[float, int, int]:
    """Limit a daemon, make the first pairs; return its memory in MiB then, its descriptors and sockets before."""
    limit(side)
    asyncio.run(emit(side, SPIKE, 1.0))
    _, files, opened = taken(side)
    follow(side, urls[:FIRST], mode)
    time.sleep(SETTLED_S)
    return side.rss_mib(), files, opened


def taken(side: Side) -> tuple[float, int, int]:
    """Return a daemon's memory in MiB, its descriptors and its connections."""
    return side.rss_mib(), descriptors(side), len(connections(side))


def each(side: Side, before: tuple[float, int, int], peers: int) -> tuple[int, float, float]:
    """Return what a pair added since: KiB of memory, descriptors, connections."""
    memory, files, opened = (now - then for now, then in zip(taken(side), before, strict=True))
    return round(memory * 1024 / (peers - FIRST)), round(files / peers, 1), round(opened / peers, 1)


def limit(side: Side) -> None:
    """Give a daemon one core and 2 GB of address space."""
    pin(side.process.pid, min(os.sched_getaffinity(0)))
    resource.prlimit(side.process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the steady window, and of the spike")
    options = parser.parse_args()
    rows = [*continuous(options.peers, options.seconds), polling(options.peers)]
    columns = ("pairs", "count", "memory KiB", "descriptors", "connections", "bytes/s", "core %", "lag p99 ms")
    names = ("peers", "memory_kib", "descriptors", "connections", "bytes_per_s", "core_percent", "lag_p99_ms")
    report("capacity", columns, rows, {str(row[0]): dict(zip(names, row[1:], strict=True)) for row in rows})


if __name__ == "__main__":
    main()
