"""Measure the cost of sending a record: `python tools/bench/filter.py [--records N]`, over a store of its own.

Pages for a pair are collected and put into their outgoing form: in full, narrowed by each kind of filter, and as
projections of each level.  Prints the microseconds of processor time per scanned record, and their ratio to the plain
case of the same run; nothing is sent.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, TypeVar, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from spl.core.consent import Outbound
from spl.core.limits import MIB
from spl.core.record.filter import OPEN, PairFilter
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import Home, init_home, open_home
from spl.home.writes import Emit
from spl.sync.lanes import collect, lanes_through
from spl.sync.scope import LogView, Scope, Steps
from spl.sync.source import OutgoingForm

_T = TypeVar("_T")
PAIR = "pair_00000001"
NS = "default"
PAGE_RECORDS = 1000
THREADS = 10
CASES: tuple[tuple[str, int, PairFilter], ...] = (
    ("in full", 0, OPEN),
    ("relay off", 0, PairFilter(relay=False)),
    ("one thread of ten", 0, PairFilter(thread_allow=("th_3",))),
    ("rule, all pass", 0, PairFilter(thread_rule='record.thread.startsWith("th_")')),
    ("rule, none passes", 0, PairFilter(thread_rule='record.actor == "did:sync:user:nobody"')),
    ("L1", 1, OPEN),
    ("L2", 2, OPEN),
    ("L3", 3, OPEN),
)


def main() -> None:
    """Fill a store and print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "home"
        init_home(path, "bench")
        home = open_home(path, Config(), disk=Disk(), progress=lambda done, total: None)
        writer = threading.Thread(target=home.writer.run)
        writer.start()
        fill(home, args.records)
        plain = 0.0
        print(f"{'case':<20} {'sent':>8} {'us/record':>10} {'ratio':>6}")
        for name, level, chosen in CASES:
            sent, cost = read(home, level, chosen, args.records)
            plain = plain or cost
            print(f"{name:<20} {sent:>8} {cost * 1e6:>10.1f} {cost / plain:>6.1f}")
        home.writer.close()
        writer.join()
        home.close()


def fill(home: Home, count: int) -> None:
    """Store records of about 600 bytes on ten threads."""
    text = "x" * 300
    for start in range(0, count, 500):
        items = [
            Emit({
                "act": "KNOW", "actor": "did:sync:user:bench", "thread": f"th_{n % THREADS}",
                "body": {"n": n, "text": text},
            })
            for n in range(start, min(count, start + 500))
        ]  # fmt: skip
        home.writer.submit(items).result()


def read(home: Home, level: int, chosen: PairFilter, count: int) -> tuple[int, float]:
    """Read all pages; return the number of outgoing records and the seconds of processor time per scanned record."""
    did = home.views.did
    share = Outbound(NS, NS, level)
    scope = Scope({NS: share}, (chosen,), frozenset({PAIR}), "did:sync:instance:peer", did)
    look = LogView(home.store.index, home.store.read, scope, home.store.last_seq)
    shown = OutgoingForm(home.writer, home.vault)
    known: dict[str, Any] = {}
    sent, more, began = 0, True, time.process_time()
    while more:
        readings = lanes_through(look, known)
        rows, more = finish(collect(look, readings, PAGE_RECORDS, 4 * MIB))
        sent += len(shown.envelopes(PAIR, scope, rows))
        known = {reading.key: reading.lane() for reading in readings}
    return sent, (time.process_time() - began) / count


def finish(steps: Steps[_T]) -> _T:
    """Return the result of stepwise work."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(_T, end.value)


if __name__ == "__main__":
    main()
