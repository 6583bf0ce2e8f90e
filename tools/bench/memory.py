#!/usr/bin/env python3
"""Print what a daemon holds in memory: idle, with pairs that follow it, and around bulk in and out.

    python tools/bench/memory.py [--pairs 20] [--records 10000] [--more 0]

Sizes are of the whole process, from smaps_rollup: `rss` with the pages of files that other processes share, `anon` its
own alone.  `peak` is the most while a step ran, `kept` what it left SETTLED_S later, both above what was before it.
`--more` records are emitted first, in requests of `--records`: `--more 1000000` shows what a long log takes, and runs
for some minutes; of so many no snapshot is taken.  The second post shows what the first one loaded once and for all.
Idle is a daemon whose config.toml is as `init` wrote it: one that says something has its reader loaded, 0.5 MiB.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fanout import follow, hosted
from two import THREAD, Secure, Side, record, report, self_signed, two_sides

SETTLED_S: Final = 6.0
KIB_PER_MIB: Final = 1024


def held(side: Side) -> tuple[float, float]:
    """Return the resident and the anonymous memory of a daemon, in MiB."""
    text = Path(f"/proc/{side.process.pid}/smaps_rollup").read_text()
    rss, anon = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("Rss", "Anonymous"))
    assert rss is not None
    assert anon is not None
    return int(rss[1]) / KIB_PER_MIB, int(anon[1]) / KIB_PER_MIB


def around(side: Side, do: Callable[[], object]) -> tuple[float, float, float, float]:
    """Return (rss, anon, peak, kept) of a step."""
    before = side.rss_mib()
    Path(f"/proc/{side.process.pid}/clear_refs").write_text("5")  # forgets the peak
    do()
    time.sleep(SETTLED_S)
    text = Path(f"/proc/{side.process.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", text)
    assert peak
    rss, anon = held(side)
    return rss, anon, int(peak[1]) / KIB_PER_MIB - before, rss - before


def read(side: Side, path: str, value: object = None) -> int:
    """Return the size of an answer, which is not kept."""
    body = None if value is None else json.dumps(value)
    side.connection.request("GET" if value is None else "POST", path, body, side.headers())
    answer, size = side.connection.getresponse(), 0
    while piece := answer.read(65536):
        size += len(piece)
    return size


def post(side: Side, count: int) -> None:
    """Emit so many records of some 900 bytes in one request."""
    lines = "\n".join(json.dumps(record(side.name, {"n": n, "more": "y" * 370})) for n in range(count))
    side.connection.request("POST", "/v1/records", lines, side.headers("application/x-ndjson"))
    answer = side.connection.getresponse()
    assert answer.read().count(b'"object":"record"') == count


def posts(side: Side, count: int, times: int) -> None:
    """Emit so many records in each of so many requests."""
    for _ in range(times):
        post(side, count)


def more_pairs(count: int, secure: Secure | None = None) -> tuple[float, float, float, float]:
    """Return (rss, anon, peak, kept) of all continuous pairs of a daemon but the first, which loads what all use."""
    with two_sides(paired=False, secure=secure) as (one, two, _), hosted(count, secure=secure) as host:
        two.stop()
        follow(one, host.urls[:1])
        time.sleep(2 * SETTLED_S)
        return around(one, lambda: follow(one, host.urls[1:]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="continuous pairs")
    parser.add_argument("--records", type=int, default=10_000, help="in one request")
    parser.add_argument("--more", type=int, default=0, help="records that are there before")
    options = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    with two_sides(paired=False) as (one, two, _):
        time.sleep(SETTLED_S)
        rows.append(("idle", *held(one), 0.0, 0.0))
        two.stop()
        if options.more:
            times = -(-options.more // options.records)
            rows.append((f"{options.more:,} records", *around(one, lambda: posts(one, options.records, times))))
        steps: dict[str, Callable[[], object]] = {
            f"post of {options.records:,}": lambda: post(one, options.records),
            f"again {options.records:,}": lambda: post(one, options.records),
            "list": lambda: read(one, f"/v1/threads/{THREAD}/records?limit=10000"),
            "snapshot": lambda: read(one, f"/v1/threads/{THREAD}/snapshot"),
            "status": lambda: read(one, "/v1/status"),
            "doctor": lambda: read(one, "/v1/doctor"),
        }
        if options.more:
            del steps["snapshot"]
        rows += [(name, *around(one, step)) for name, step in steps.items()]
    with tempfile.TemporaryDirectory(prefix="spl-bench-") as folder:
        pairs = {"pair": more_pairs(options.pairs), "tls_pair": more_pairs(options.pairs, self_signed(Path(folder)))}
    rows += [(f"{options.pairs - 1} more {name.replace('_', ' ')}s", *found) for name, found in pairs.items()]
    names = ("rss_mib", "anon_mib", "peak_mib", "kept_mib")
    figures: dict[str, object] = {
        str(row[0]): {name: round(float(str(cell)), 1) for name, cell in zip(names, row[1:], strict=True)}
        for row in rows
    }
    each = {f"{name}_kib": round(found[3] / (options.pairs - 1) * KIB_PER_MIB) for name, found in pairs.items()}
    figures |= each
    report("memory", ("MiB", "rss", "anon", "peak +", "kept +"), rows, figures)


if __name__ == "__main__":
    main()
