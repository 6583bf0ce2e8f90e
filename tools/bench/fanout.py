#!/usr/bin/env python3
"""Print what one emitter pays for each of many peers that follow it in continuous mode.

    python tools/bench/fanout.py [--peers 50] [--rate 50] [--seconds 5]

The emitter is a real daemon; its peers are instances in one other process (host.py), each of which verifies, stores and
syncs every record.  First nobody follows, then all do; the difference, divided by records and peers, is what a peer
costs.  At a given rate the lag is that of a machine whose second core works for all the peers.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from two import READY_S, Secure, Side, report, two_sides


class Host:
    """The process that hosts the peers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.urls: list[str] = self._answer()

    def arrived(self, count: int) -> dict[str, float]:
        """Return the lags and the processor time once every peer holds so many records."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        found: dict[str, float] = self._answer()
        return found

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def hosted(peers: int, mode: str = "continuous", secure: Secure | None = None) -> Iterator[Host]:
    """Give so many instances in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="spl-bench-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(Path(__file__).with_name("host.py")), folder, str(peers), mode]
        command += map(str, secure or ())
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield Host(process)
            finally:
                process.kill()


def follow(side: Side, urls: list[str], mode: str = "continuous") -> list[str]:
    """Pair a daemon with all peers, in a mode; return the pairs once both sides of each were reached by the other."""
    for url in urls:
        side.connection.request("POST", "/v1/federation/pairs", json.dumps({"url": url}), side.headers())
        steps = side.connection.getresponse().read()  # one a line
        assert b'"object":"error"' not in steps, steps
    pairs = [str(row["pair_id"]) for row in side.ask("GET", "/v1/federation/pairs?limit=1000")["data"]]
    for pair_id in pairs:
        side.ask("POST", f"/v1/federation/pairs/{pair_id}/mode", {"mode": mode})
    end = time.monotonic() + 3 * READY_S
    while any(side.ask("GET", f"/v1/federation/pairs/{pair_id}").get("reach") != "both" for pair_id in pairs):
        assert time.monotonic() < end, "not all streams are open"
        time.sleep(0.2)
    return pairs


async def emit(side: Side, rate: int, seconds: float) -> int:
    """Emit at a rate over one connection; return how many records."""
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
    count, start = int(rate * seconds), time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        writer.write(side.posted({"t": time.perf_counter()}))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r")[0]))
    writer.close()
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--rate", type=int, default=50, help="records a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measure")
    options = parser.parse_args()
    with two_sides(paired=False) as (one, two, _), hosted(options.peers) as host:
        two.stop()
        cpu = one.cpu_s()
        alone = asyncio.run(emit(one, options.rate, options.seconds))
        alone_us = (one.cpu_s() - cpu) / alone * 1e6
        follow(one, host.urls)
        backlog = host.arrived(alone)
        cpu = one.cpu_s()
        count = asyncio.run(emit(one, options.rate, options.seconds))
        found = host.arrived(alone + count)
        spent_us = (one.cpu_s() - cpu) / count * 1e6
    peer_us = (spent_us - alone_us) / options.peers
    there_us = (found["cpu_s"] - backlog["cpu_s"]) / count / options.peers * 1e6
    row = (options.peers, options.rate, alone_us, spent_us, peer_us, there_us, found["p50_ms"], found["p99_ms"])
    columns = ("peers", "rate/s", "cpu alone us", "with all us", "a peer us", "at a peer us", "lag p50 ms", "p99")
    names = ("peers", "rate_per_s", "alone_us", "with_all_us", "peer_us", "there_us", "p50_ms", "p99_ms")
    report("fanout", columns, [row], dict(zip(names, (round(cell, 1) for cell in row), strict=True)))


if __name__ == "__main__":
    main()
