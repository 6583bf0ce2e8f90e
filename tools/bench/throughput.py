#!/usr/bin/env python3
"""Print how many records per second go from one daemon to another, signed, verified and synced to disk on both.

    python tools/bench/throughput.py [--records 20000]

Live: records are emitted 250 at a time while the stream is open, until all are durable on the other side.  Catch-up:
the other side is stopped, the same number is emitted (in 64s, and then one by one, which costs a signature each), and
it is started again.  CPU is that of the daemons' processes; the emitting side competes for the same two cores.
"""

import argparse
import time

from two import Side, record, report, two_sides

LOT: int = 250
END_S: float = 300.0


Row = tuple[str, int, float, int, float]


def live(one: Side, two: Side, count: int) -> Row:
    """Emit while the stream is open and wait until every record has arrived."""
    before, cpu, start = two.count(), two.cpu_s(), time.perf_counter()
    for first in range(0, count, LOT):
        one.emit_many([{"live": n} for n in range(first, first + LOT)])
    arrived(two, before + count)
    return row("live", count, time.perf_counter() - start, two.cpu_s() - cpu)


def catch_up(one: Side, two: Side, count: int, lot: int) -> Row:
    """Emit while the other side is down, start it and wait until every record has arrived."""
    before = two.count()
    two.stop()
    for first in range(0, count, LOT):
        if lot > 1:
            one.emit_many([{"lot": lot, "n": n} for n in range(first, first + LOT)])
        else:
            for n in range(first, first + LOT):
                one.ask("POST", "/v1/records", record(one.name, {"lot": lot, "n": n}))
    two.start()
    cpu, start = two.cpu_s(), time.perf_counter()
    arrived(two, before + count)
    how = "in 64s" if lot > 1 else "singly"
    return row(f"catch-up, {how}", count, time.perf_counter() - start, two.cpu_s() - cpu)


def arrived(side: Side, count: int) -> None:
    """Wait until the side holds `count` records."""
    end = time.monotonic() + END_S
    while side.count() < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{side.count()} of {count} after {END_S:.0f} s")
        time.sleep(0.01)


def row(what: str, count: int, seconds: float, cpu_s: float) -> Row:
    """Return one line of the report."""
    return what, count, round(seconds, 2), round(count / seconds), round(cpu_s / count * 1e6, 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=20_000, help="for each measure; the single emits are a quarter")
    options = parser.parse_args()
    count = options.records // LOT * LOT
    with two_sides() as (one, two, _):
        rows = [live(one, two, count), catch_up(one, two, count, 64)]
        rows.append(catch_up(one, two, max(LOT, count // 4 // LOT * LOT), 1))
    figures = {name: {"per_s": rate, "cpu_there_us": us} for name, _, _, rate, us in rows}
    report("throughput", ("", "records", "seconds", "per s", "cpu there us"), rows, figures)


if __name__ == "__main__":
    main()
