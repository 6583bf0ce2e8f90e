#!/usr/bin/env python3
"""Print what a record costs both daemons at low and at high rate: processor time, system calls, and futex among them.

    python tools/bench/cpu.py [--rates 10,100,1000] [--seconds 5]

System calls are counted by `perf stat` if the kernel lets it, else by `strace -c`, in a run of their own: to be counted
slows a daemon.  Processor time is user and system time of all threads.  At 10 records a second it shows what it costs
to wake a process that slept, at 1,000 what the work costs.

The budget of one record that comes alone, in system calls, source / consumer; `spl help speed` has what was measured:

    read     request, wake of the loop, ack / piece of the stream, wake          3 / 2
    write    log, wake, answer, record / log, wake, ack                          4 / 3
    futex    wake the writer, the writer sleeps                                  2 / 2
    epoll    each wake of the loop, and a turn for each task it wakes            4 / 4
    sync     statfs, fstat before and after, fdatasync                           4 / 4
    other    - / look-up of an id on disk                                        0 / 1

Python 3.11 adds a getpid for each look at the running loop.  More futex calls than two show that a thread was woken
while another one held the interpreter: the waker has to let go of it at once.
"""

import argparse
import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lag import measure
from two import Side, percentile_ms, report, two_sides

EVENTS: Final = ("raw_syscalls:sys_enter", "syscalls:sys_enter_futex")
ATTACHED_S: Final = 1.0


def main() -> None:
    """Measure at every rate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", default="10,100,1000", help="records per second, comma-separated")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each rate, which is run twice")
    options = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    figures: dict[str, dict[str, float]] = {}
    with two_sides() as (one, two, _):
        first = 0
        for rate in map(int, options.rates.split(",")):
            cpu = one.cpu_s(), two.cpu_s()
            lags, _acks = asyncio.run(measure(one, two, rate, options.seconds, first))
            spent = [(side.cpu_s() - before) / len(lags) * 1e6 for side, before in zip((one, two), cpu, strict=True)]
            with counted(one) as here, counted(two) as there:
                time.sleep(ATTACHED_S)
                again, _acks = asyncio.run(measure(one, two, rate, options.seconds, first + len(lags)))
            first += len(lags) + len(again)
            calls = [count / len(again) for count in (*here, *there)]
            cells = [percentile_ms(lags, 50), *(round(us) for us in spent), *(round(count, 1) for count in calls)]
            names = ("p50_ms", "cpu_here_us", "cpu_there_us", "calls_here", "futex_here", "calls_there", "futex_there")
            rows.append((rate, *cells))
            figures[f"{rate}/s"] = dict(zip(names, cells, strict=False))
    columns = ("rate/s", "lag p50 ms", "cpu here us", "there", "calls here", "futex", "calls there", "futex")
    report("cpu", columns, [row + ("-",) * (len(columns) - len(row)) for row in rows], figures)


@contextmanager
def counted(side: Side) -> Iterator[list[int]]:
    """Count a daemon's system calls, and the futex calls among them, until the end of the `with`."""
    found: list[int] = []
    with tempfile.NamedTemporaryFile("r") as out:
        process = _counter(side.process.pid, Path(out.name))
        yield found
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        process.wait()
        fields = [line.replace(",", " ").split() for line in out if line.strip() and not line.startswith("#")]
    if process.args[0] == "perf":  # type: ignore[index]
        found += [int(line[0]) for line in fields if line[0].isdigit()]
    else:
        calls = {line[-1]: int(line[3]) for line in fields if len(line) > 4 and line[0][0].isdigit()}
        found += [calls.get("total", 0), calls.get("futex", 0)]


def _counter(pid: int, out: Path) -> "subprocess.Popen[bytes] | None":
    """Start what counts; None if this machine has no way."""
    perf = ["perf", "stat", "-x", ",", "-o", str(out), "-e", ",".join(EVENTS)]
    if shutil.which("perf") and subprocess.run([*perf, "true"], capture_output=True).returncode == 0:
        return subprocess.Popen([*perf, "-p", str(pid)], stderr=subprocess.DEVNULL)
    if shutil.which("strace"):
        return subprocess.Popen(["strace", "-c", "-f", "-p", str(pid), "-o", str(out)], stderr=subprocess.DEVNULL)
    print("neither perf nor strace may count system calls here")
    return None


if __name__ == "__main__":
    main()
