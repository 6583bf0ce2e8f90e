"""Strangers from 300 addresses, at once and for as long as they like: the daemon works on for its peer and operator.

Some seconds by default, with bounds of memory, log and store, which are the same for any length, since nothing that a
stranger does may add up.  `tools/bench/flood.py` (SPL_FLOOD_S=600) makes it ten minutes and asks for times as well: of
the start, of a paired peer's lag, of `spl status`.  They are ratios to the minutes before and after, in which the same
clients flood a listener that only answers, because clients and daemon share the processors of one machine.  Only the
long run has the time for them, and wants a machine that does nothing else.
"""

import contextlib
import itertools
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.attack.probes import (
    MIB,
    allow_descriptors,
    crash_of,
    dial,
    drop,
    head,
    instances,
    log_bytes,
    paired,
    peak_bytes,
    pid_of,
    received,
    rss_bytes,
    status_of,
    store_bytes,
)
from tests.e2e.conftest import AUTO
from tests.e2e.harness import Instance, eventually

FLOOD_S: Final = float(os.environ.get("SPL_FLOOD_S", "4"))
SOURCES: Final = tuple(f"127.0.{10 + number // 100}.{number % 100 + 1}" for number in range(300))
THREADS: Final = 3
RSS_GROWTH_BYTES: Final = 16 * MIB
LOG_GROWTH_BYTES: Final = 1 * MIB
STORE_GROWTH_BYTES: Final = 1 * MIB
LONG_S: Final = 60.0
"""From here on times are measured too."""
BEFORE_S: Final = 60.0
LAG_GROWTH: Final = 2.0
START_GROWTH: Final = 1.5
GRAIN_S: Final = 0.05
"""What a ratio of times may differ besides: the machine's own noise."""
START_GRAIN_S: Final = 1.0
"""The same of a start, which is a second of work for a processor that others share."""
STATUS_S: Final = 1.0
EMITS: Final = 20
OWN_BYTES: Final = 1024
"""The most that a record written by the test takes in log and index, and in memory: 9,600 alone took 9.3 MiB."""
IDLE_MAX: Final = 600
"""Connections that the strangers hold open and say nothing on, at a time."""


def post(path: str, body: bytes, **headers: str) -> bytes:
    """Return a whole request."""
    headers = {"content_type": "application/json", "content_length": str(len(body)), "connection": "close", **headers}
    return head("POST", path, **headers) + body


PAIR: Final = "/v1/federation/pair"
TOKEN: Final = "spl_home_sa_00000000_" + "0" * 64
REQUESTS: Final = (
    post(PAIR, b"{}"),
    post(PAIR, b"[" * 60_000),
    post(PAIR, b'{"request":{"message":{"signer":"x"},"signature":"AAAA"},"manifest":' + b"[" * 40 + b"]" * 40 + b"}"),
    post(PAIR, b'{"x":"' + b"y" * 60_000 + b'"}'),
    post(f"{PAIR}/pair_00000000/poll", b'{"message":{"signer":"x"},"signature":"AAAA"}'),
    post(f"{PAIR}/pair_00000000/log", b'{"message":{},"signature":""}'),
    post(f"{PAIR}/pair_00000000/renew", b"nonsense"),
    post(f"{PAIR}/pair_00000000/consent", b"{}", origin="http://["),
    post("/v1/records", b"{}", authorization=f"Bearer {TOKEN}"),
    post("/v1/sync/fingerprints", b"{}", authorization=f"Bearer {TOKEN}", spl_proof="v1;x;y;z"),
    head("GET", "/.well-known/syncropel", connection="close"),
    head("GET", "/.well-known/did.json", connection="close"),
    head("GET", "/health", connection="close"),
    head("GET", "/v1/sync/changes?feed=continuous", authorization=f"Bearer {TOKEN}", connection="close"),
    head("GET", "/" + "x" * 8000, connection="close"),
    head("GET", "/health", connection="close").replace(b"127.0.0.1", b"evil.example"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
"""What the strangers send, in turn; after each of them they open a connection that stays silent."""


class Flood:
    """Threads that send every request from every address in turn, until they are told to end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sent = [0] * THREADS
        self.answers: set[int] = set()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(THREADS)]

    @contextlib.contextmanager
    def running(self) -> Iterator["Flood"]:
        """Flood for as long as the block lasts."""
        allow_descriptors(IDLE_MAX + 512)
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(60)

    def _run(self, number: int) -> None:
        idle = []
        turns = zip(itertools.cycle(SOURCES[number::THREADS]), itertools.cycle(REQUESTS), strict=False)
        for source, data in turns:
            if self._over.is_set():
                break
            with contextlib.suppress(OSError), dial(self.port, source, timeout_s=5) as sock:
                sock.sendall(data)
                self.answers.add(status_of(received(sock, 256)))
                self.sent[number] += 1
            with contextlib.suppress(OSError):
                idle.append(dial(self.port, source, timeout_s=5))
            if len(idle) > IDLE_MAX // THREADS:
                drop(idle.pop(0))
        for sock in idle:
            drop(sock)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Instance, Instance, str]]:
    """Two daemons that stream to each other, and the pair's id; the first is flooded."""
    with instances(tmp_path) as make:
        served, peer = make("served").start(), make("peer", AUTO).start()
        pair_id = paired(served, peer)
        for side in (served, peer):
            side.run("federation", "set-mode", pair_id, "continuous")
        yield served, peer, pair_id


@dataclass
class Times:
    """What the operator and the peer feel while the block lasts."""

    starts_s: list[float] = field(default_factory=list)
    status_s: list[float] = field(default_factory=list)
    lag_p99_s: float = 0.0

    def restart(self, served: Instance) -> None:
        """Start the daemon again, which forgets the lags so far."""
        assert served.stop() == 0, served.output()
        begun = time.monotonic()
        served.start()
        self.starts_s.append(time.monotonic() - begun)

    def sample(self, served: Instance, peer: Instance, number: int) -> None:
        """Write at twenty records a second for a second, and read status as the operator does."""
        for _ in range(EMITS):
            served.emit(f"th_times_{number}")
            time.sleep(1 / EMITS)
        begun = time.monotonic()
        assert served.api("GET", "/v1/status").status == 200
        self.status_s.append(time.monotonic() - begun)
        lag = served.api("GET", "/v1/status").json["lag"]
        self.lag_p99_s = (lag["p99_ms"] or 0) / 1000

    def __str__(self) -> str:
        status = (
            f"{statistics.median(self.status_s):.3f} s (worst {max(self.status_s):.3f} s)" if self.status_s else "-"
        )
        starts = ", ".join(f"{each:.2f}" for each in self.starts_s)
        return f"starts {starts} s; status {status}; lag p99 {self.lag_p99_s:.3f} s"


@contextlib.contextmanager
def answering() -> Iterator[int]:
    """Give the port of a listener that answers whatever comes with 404 and closes."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        listener.settimeout(0.1)

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    sock, _ = listener.accept()
                    with sock:
                        sock.settimeout(0.1)
                        sock.recv(65536)
                        sock.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()


def times_beside(served: Instance, peer: Instance) -> Times:
    """Return three starts, and the times while the clients flood another listener."""
    found = Times()
    for _ in range(3):
        found.restart(served)
    end = time.monotonic() + BEFORE_S
    with answering() as port, Flood(port).running():
        for number in itertools.count():
            found.sample(served, peer, number)
            if time.monotonic() > end:
                break
    print(f"flood: another listener beside it: {found}")
    return found


class Figure(NamedTuple):
    """One measure of the flood: how much it is, how much it may be, and both as text."""

    name: str
    value: float
    most: float
    text: str

    @property
    def is_over(self) -> bool:
        """Whether the bound does not hold."""
        return self.value > self.most

    def __str__(self) -> str:
        return f"flood: {self.name:6}  {self.text}  {'OVER' if self.is_over else 'ok'}"


def grown(name: str, size: int, most: int) -> Figure:
    """Return the figure of something that may grow by so many bytes."""
    return Figure(name, size, most, f"+{size / MIB:.2f} MiB, at most {most / MIB:.2f}")


def figures_of_time(before: Times, during: Times, after: Times) -> list[Figure]:
    """Return the times of the flood; lags are judged by the slower of the times beside it."""
    start, again = min(before.starts_s), min(after.starts_s)
    lag_s = max(before.lag_p99_s, after.lag_p99_s)
    worst = sorted(during.status_s)[-1 - len(during.status_s) // 100]
    return [
        Figure("start", again, START_GROWTH * start + START_GRAIN_S, f"{again:.2f} s, before {start:.2f} s"),
        Figure("lag", during.lag_p99_s, LAG_GROWTH * lag_s + GRAIN_S,
               f"p99 {during.lag_p99_s:.3f} s, beside it {lag_s:.3f} s"),
        Figure("status", worst, STATUS_S, f"p99 {worst:.3f} s, at most {STATUS_S:.0f} s"),
    ]  # fmt: skip


def assert_syncs(served: Instance, peer: Instance, number: int) -> None:
    """Fail unless a record of each side soon stands on the other, and the operator's commands work."""
    for source, target in ((served, peer), (peer, served)):
        [wanted] = source.emit(f"th_{source.name}_{number}")
        thread = f"th_{source.name}_{number}"
        eventually(
            lambda target=target, thread=thread, wanted=wanted: (
                wanted in [item["id"] for item in target.records(thread)]
            ),
            f"a record of {source.name} reaches {target.name} during the flood",
        )
    served.run("status")
    served.run("federation", "list")


def test_a_flood_of_strangers_changes_nothing(pair: tuple[Instance, Instance, str]) -> None:
    """Memory, log and store stay within their bounds, the pair syncs both ways, and no request is a fault of ours."""
    served, peer, pair_id = pair
    before = times_beside(served, peer) if FLOOD_S >= LONG_S else None
    during = Times()
    if before is not None:
        during.restart(served)
    assert_syncs(served, peer, 0)
    pid, memory, log, store = pid_of(served), rss_bytes(served), log_bytes(served), store_bytes(served)
    end = time.monotonic() + FLOOD_S
    with Flood(served.port).running() as flood:
        for number in itertools.count(1):
            assert_syncs(served, peer, number)
            if before is not None:
                during.sample(served, peer, number)
            if time.monotonic() > end and sum(flood.sent) >= 2 * len(SOURCES):
                break
    assert pid_of(served) == pid
    assert served.pair(pair_id)["state"] == "active"
    own = OWN_BYTES * EMITS * len(during.status_s)
    figures = [
        grown("memory", peak_bytes(served) - memory, RSS_GROWTH_BYTES + own),
        grown("log", log_bytes(served) - log, LOG_GROWTH_BYTES),
        grown("store", store_bytes(served) - store, STORE_GROWTH_BYTES + own),
    ]
    faults = [f"an answer {status}" for status in flood.answers if status >= 500 and status != 503]
    faults += [crash] if (crash := crash_of(served)) else []
    if before is not None:
        figures += figures_of_time(before, during, times_beside(served, peer))
    print(f"flood: {sum(flood.sent):,} requests of strangers", *figures, sep="\n")
    faults += [str(each) for each in figures if each.is_over]
    assert not faults, f"{sum(flood.sent)} requests of strangers cost {', '.join(faults)}"
    assert_syncs(served, peer, -1)
