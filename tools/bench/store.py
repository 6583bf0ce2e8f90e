"""Measure the store: `python tools/bench/store.py [RECORDS]`, default 100000, in a temporary folder.

Prints appends of 1 and 64 records a commit, look-ups by id, listing, opening (clean, after a kill, index lost) with
the resident memory of a fresh process, and the bytes on disk.  Wall times; run it twice before believing it.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from spl.core import canon
from spl.core.limits import Limits
from spl.home.disk import Disk
from spl.home.index import Added, Index
from spl.home.log import Entry, Log
from spl.home.segments import Place
from spl.home.tables.lists import by_namespace

SINGLES = 500
LOOKUPS = 5000
INDEXED = 32_768
AT_MS = 1_763_877_600_000
NAMESPACES, THREADS, ACTORS, VOUCHERS = 4, 5000, 200, 8


def main() -> None:
    """Fill a store and measure; with --open only open one and report as one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="?", type=int, default=100_000)
    parser.add_argument("--open", type=Path, help="open this store and report time and memory")
    args = parser.parse_args()
    if args.open:
        reopen(args.open, args.records)
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        home = Path(folder) / "store"
        fill(home, args.records)
        fresh_open("open clean", home, args.records)
        os.unlink(home / "clean")
        fresh_open("open unclean", home, args.records)
        shutil.rmtree(home / "index")
        fresh_open("open, index lost", home, args.records)


def entry(n: int) -> Entry:
    """Return record n: about 600 bytes, two thirds of them from a peer."""
    own = n % 3 == 0
    thread, actor, clock = f"th_{n % THREADS}", f"did:sync:agent:{n % ACTORS}", n
    ns, voucher = f"team.{n % NAMESPACES}", f"did:sync:instance:v{0 if own else 1 + n % VOUCHERS}-{'0' * 24}"
    record = {
        "act": "KNOW",
        "actor": actor,
        "body": {"namespace": ns, "text": "x" * 180, "topic": "bench"},
        "clock": clock,
        "data_type": "SCALAR",
        "judged_by": None,
        "parents": [],
        "thread": thread,
    }
    name = record_id(n)
    sig = {"by": voucher, "key": "z6Mk" + "k" * 44, "value": "v" * 88}
    payload = canon.encode({"id": name, "record": record, "sig": sig})
    origin = "local" if own else f"pair_{n % VOUCHERS:08x}"
    return Entry("rec", payload, origin, ns, own, name, thread, actor, clock, voucher)


def record_id(n: int) -> str:
    """Return the id of record n."""
    return hashlib.sha256(n.to_bytes(8, "big")).hexdigest()


def open_store(home: Path) -> Log:
    """Open with real clock and disk."""
    return Log.open(
        home,
        Disk(),
        Limits(),
        now_ms=lambda: time.time_ns() // 1_000_000,
        random_bytes=os.urandom,
        progress=lambda done, total: None,
    )


def fill(home: Path, count: int) -> None:
    """Append in batches of 64, then one by one, and measure the result."""
    store = open_store(home)
    spent, slowest, bulk = 0.0, 0.0, max(0, count - SINGLES) // 64 * 64
    for first in range(0, bulk, 64):
        entries = [entry(n) for n in range(first, first + 64)]
        took = timed(partial(store.append, entries, AT_MS))
        spent, slowest = spent + took, max(slowest, took)
    if bulk:
        show("append, 64 a commit", spent / bulk * 1e6, f"us a record, slowest commit {slowest * 1e3:.1f} ms")
    singles = [entry(n) for n in range(bulk, count)]
    times = sorted(timed(partial(store.append, [one], AT_MS)) for one in singles)
    p50, p99 = times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6
    show("append, 1 a commit", p50, f"us p50, p99 {p99:.0f} us")
    show("sync", store.stats().sync_p50_ms * 1e3, "us p50 (within the two above)")
    show("index, add", index_cpu(home.with_name("index")), "us a record")
    index = store.index
    look = [record_id(n * 7919 % count) for n in range(LOOKUPS)]
    miss = [record_id(count + n) for n in range(LOOKUPS)]
    show("find, known id", timed(lambda: [next(index.copies(each), None) for each in look]) / LOOKUPS * 1e6, "us")
    show("find, unknown id", timed(lambda: [next(index.copies(each), None) for each in miss]) / LOOKUPS * 1e6, "us")
    rows = index.after(by_namespace("team.1"), 0, 10_000)
    show(
        "after + payloads",
        timed(lambda: store.payloads(index.after(by_namespace("team.1"), 0, 10_000))) / len(rows) * 1e6,
        f"us a record, {len(rows)} rows",
    )
    tail = store.last_seq - 100
    show("after, at the tail", repeat(lambda: index.after(by_namespace("team.1"), tail, 100)), "us")
    show("clock_next", repeat(lambda: index.clock_next("team.1", "did:sync:agent:3", "th_3")), "us")
    show("count", repeat(lambda: index.count(by_namespace("team.1"))), "us")
    print(f"{'index':<22} {index.stats()}")
    store.close()
    show("log", sum(path.stat().st_size for path in home.glob("*.jsonl")) / store.last_seq, "bytes a record")
    show("index", sum(path.stat().st_size for path in (home / "index").iterdir()) / store.last_seq, "bytes a record")


def index_cpu(folder: Path) -> float:
    """Return the microseconds per record for adding to a new index, with its tables and merges."""
    index = Index(folder, Disk(), "0" * 32, lambda segment, offset, size: b"", os.urandom)
    entries = [entry(n) for n in range(INDEXED)]
    rows: list[Added] = [(seq, Place(1, seq * 800, 200, 600), each) for seq, each in enumerate(entries, 1)]
    batches = [rows[at : at + 64] for at in range(0, INDEXED, 64)]
    start = time.perf_counter()
    for batch in batches:
        index.add(batch, "0" * 32)
    return (time.perf_counter() - start) / INDEXED * 1e6


def fresh_open(title: str, home: Path, count: int) -> None:
    """Open in a separate process and print its output."""
    command = [sys.executable, __file__, str(count), "--open", str(home)]
    print(f"{title:<22}", subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def reopen(home: Path, count: int) -> None:
    """Open, read records all over the log, and print times and memory."""
    before = rss_mib()
    start = time.perf_counter()
    store = open_store(home)
    took, opened = time.perf_counter() - start, rss_mib()
    for n in range(0, count, max(1, count // LOOKUPS)):
        assert any(store.index.copies(record_id(n)))
    print(
        f"{took:10.3f} s, {store.report.lines} lines read ({store.report.lines / took:.0f}/s); MiB resident: "
        f"{before:.1f} before, {opened:.1f} open, {rss_mib():.1f} after look-ups, "
        f"{rss_mib('VmHWM'):.1f} at most"
    )
    store.close()


def timed(call: Callable[[], object]) -> float:
    """Return the seconds a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeat(call: Callable[[], object]) -> float:
    """Return the microseconds of a call, averaged over 200."""
    return timed(lambda: [call() for _ in range(200)]) / 200 * 1e6


def rss_mib(field: str = "VmRSS") -> float:
    """Return the resident memory of this process, now or (VmHWM) at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def show(what: str, value: float, unit: str) -> None:
    """Print one line."""
    print(f"{what:<22} {value:10.1f} {unit}", flush=True)


if __name__ == "__main__":
    main()
