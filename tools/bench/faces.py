#!/usr/bin/env python3
"""Measure what each face of a daemon costs, and how soon `monitor` and `wait` answer.

    python tools/bench/faces.py [--seconds 3] [--rate 100] [--waiters 20]

A daemon with one continuous pair is watched through one face at a time: first idle, then while so many records a second
are emitted.  `daemon` is the processor time that it takes more than without the face, in ms a second, `rss` the memory
that it takes more; `face` and `face rss` are those of the command itself.  Metrics and description are asked for once a
second.  The first row is the daemon without a face.  All times grow with what else the machine does.
"""

import argparse
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from two import READY_S, Side, cpu_s, percentile_ms, record, report, two_sides

FIRST_LINES: Final = 5
SETTLED_S: Final = 1.0
MINUTE_S: Final = 60.0

Opened = Callable[[ExitStack, Side], "subprocess.Popen[bytes] | None"]


def asked(path: str) -> Opened:
    """Return what asks for a path once a second."""

    def opened(stack: ExitStack, side: Side) -> None:
        done, connection = threading.Event(), HTTPConnection("127.0.0.1", side.port, timeout=READY_S)

        def ask() -> None:
            while not done.wait(1.0):
                connection.request("GET", path, headers=side.headers())
                connection.getresponse().read()

        thread = threading.Thread(target=ask)
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)

    return opened


def page(stack: ExitStack, side: Side) -> None:
    """Open the page as a browser does: once as a whole, then its events."""
    connection = HTTPConnection("127.0.0.1", side.port, timeout=READY_S)
    connection.request("GET", "/ui/", headers=side.headers())
    body = connection.getresponse().read().decode()
    place = body.partition('data-from="')[2].partition('"')[0]
    connection.request("GET", f"/ui/events?from={place}", headers=side.headers())
    events = connection.getresponse()

    def read() -> None:
        with suppress(OSError, HTTPException):
            while events.read1(65536):
                pass

    thread = threading.Thread(target=read)
    thread.start()
    stack.callback(thread.join)
    assert connection.sock is not None
    stack.callback(connection.sock.shutdown, 2)


def command(*words: str) -> Opened:
    """Return what runs a command on a terminal, and reads what it draws."""

    def opened(stack: ExitStack, side: Side) -> "subprocess.Popen[bytes]":
        ours, theirs = pty.openpty()
        env = {**side.env, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        process = subprocess.Popen(
            [sys.executable, "-m", "spl", *words], env=env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)

        def read() -> None:
            with suppress(OSError):
                while os.read(ours, 65536):
                    pass

        thread = threading.Thread(target=read)
        thread.start()
        stack.callback(os.close, ours)
        stack.callback(thread.join)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        return process

    return opened


@contextmanager
def load(side: Side, rate: int) -> Iterator[None]:
    """Emit so many records a second, each in a request of its own."""
    done, connection = threading.Event(), HTTPConnection("127.0.0.1", side.port, timeout=READY_S)

    def emit() -> None:
        start, number = time.monotonic(), 0
        while not done.wait(max(0.0, start + number / rate - time.monotonic())):
            connection.request("POST", "/v1/records", json.dumps(record(side.name, {"n": number})), side.headers())
            connection.getresponse().read()
            number += 1

    thread = threading.Thread(target=emit)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def spent(side: Side, face: "subprocess.Popen[bytes] | None", seconds: float) -> tuple[float, float]:
    """Return the processor time of daemon and command within a window, in ms a second."""
    pids = [side.process.pid, *([face.pid] if face else [])]
    before = [cpu_s(pid) for pid in pids]
    time.sleep(seconds)
    took = [(cpu_s(pid) - was) * 1000 / seconds for pid, was in zip(pids, before, strict=True)]
    return took[0], took[1] if face else 0.0


def watched(side: Side, opened: Opened | None, seconds: float, rate: int) -> tuple[float, ...]:
    """Return daemon and command idle, both under load, and the memory of the command in MiB.

    What the same load takes of the daemon without the face is measured just before, as it changes with the machine.
    """
    with load(side, rate):
        time.sleep(SETTLED_S)
        alone, _ = spent(side, None, seconds)
    if opened is None:
        time.sleep(SETTLED_S)
        return *spent(side, None, seconds), alone, 0.0, 0.0
    with ExitStack() as stack:
        face = opened(stack, side)
        time.sleep(SETTLED_S)
        idle = spent(side, face, seconds)
        with load(side, rate):
            time.sleep(SETTLED_S)
            loaded, took = spent(side, face, seconds)
        return *idle, loaded - alone, took, rss_mib(face.pid) if face else 0.0


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def first_line_ms(side: Side) -> float:
    """Return the median time from the start of `spl monitor -o jsonl` to its first line."""
    times = []
    for _ in range(FIRST_LINES):
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "spl", "monitor", "-o", "jsonl"], env=side.env, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], READY_S)[0], "monitor prints nothing"
            times.append(time.perf_counter() - start)
            process.terminate()
            process.stdout.read()
    return percentile_ms(sorted(times), 50)


def caught_up_ms(one: Side, two: Side, pair_id: str) -> float:
    """Return how long `spl wait caught-up` runs on after the last ack, with records that waited for a halted peer."""
    two.process.send_signal(signal.SIGSTOP)
    one.connection.close()  # the daemon ended it, as nobody asked for long
    one.emit_many([{"n": number} for number in range(200)])
    with subprocess.Popen([sys.executable, "-m", "spl", "wait", "caught-up", pair_id], env=one.env) as process:
        time.sleep(3 * SETTLED_S)
        assert process.poll() is None, "it waits for nothing"
        two.process.send_signal(signal.SIGCONT)
        while one.ask("GET", f"/v1/federation/pairs/{pair_id}")["outbound"]["lag_records"]:
            time.sleep(0.002)
        start = time.perf_counter()
        assert process.wait(READY_S) == 0
        return round((time.perf_counter() - start) * 1000, 1)


def waiters_s(side: Side, pair_id: str, count: int, seconds: float) -> float:
    """Return the processor time that the daemon takes in a minute while so many wait, in seconds."""
    words = ("wait", "pair", pair_id, "--state", "revoked", "--timeout", "10m")
    with ExitStack() as stack:
        for _ in range(count):
            command(*words)(stack, side)
        end = time.monotonic() + 4 * READY_S
        while subscribers(side) < count:
            assert time.monotonic() < end, "the commands do not wait"
            time.sleep(0.1)
        time.sleep(SETTLED_S)
        return spent(side, None, seconds)[0] * MINUTE_S / 1000


def subscribers(side: Side) -> int:
    """Return how many event streams are open."""
    side.connection.request("GET", "/metrics", headers=side.headers())
    lines = side.connection.getresponse().read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("spl_sse_subscribers ")))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--rate", type=int, default=100, help="records a second")
    parser.add_argument("--waiters", type=int, default=20)
    options = parser.parse_args()
    with two_sides() as (one, two, pair_id):
        faces: dict[str, Opened | None] = {
            "without": None,
            "metrics": asked("/metrics"),
            "openapi": asked("/v1/openapi.json"),
            "page": page,
            "monitor": command("monitor"),
            "top": command("top"),
            "wait": command("wait", "pair", pair_id, "--state", "revoked", "--timeout", "10m"),
        }
        rows: list[tuple[object, ...]] = []
        figures: dict[str, object] = {}
        least = 0.0
        for name, opened in faces.items():
            before = one.rss_mib()
            idle, face_idle, loaded, face_loaded, face_rss = watched(one, opened, options.seconds, options.rate)
            rss = one.rss_mib() - before
            rows.append((name, idle - least, loaded, rss, face_idle, face_loaded, face_rss))
            least = least or idle
            names = ("idle", "loaded", "rss_mib", "face_idle", "face_loaded", "face_rss_mib")
            figures[name] = {key: round(float(str(cell)), 2) for key, cell in zip(names, rows[-1][1:], strict=True)}
        figures["monitor_first_line_ms"] = first_line_ms(one)
        figures["wait_after_last_ack_ms"] = caught_up_ms(one, two, pair_id)
        waiting_s = waiters_s(one, pair_id, options.waiters, 2 * options.seconds)
        figures["waiters_daemon_s_a_minute"] = round(waiting_s, 3)
        figures["without_daemon_s_a_minute"] = round(least * MINUTE_S / 1000, 3)
        columns = ("face", "daemon idle", "loaded", "rss MiB", "face idle", "loaded", "face rss MiB")
        report("faces", columns, rows, figures)


if __name__ == "__main__":
    main()
