"""Strangers from 300 addresses, at once and for as long as they like: the daemon works on for its peer and operator.

Some seconds by default; SPL_FLOOD_S=600 makes it ten minutes.  The bounds are the same for both, since
nothing that a stranger does may add up.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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
    assert_syncs(served, peer, 0)
    pid, memory, log, store = pid_of(served), rss_bytes(served), log_bytes(served), store_bytes(served)
    end = time.monotonic() + FLOOD_S
    with Flood(served.port).running() as flood:
        for number in itertools.count(1):
            assert_syncs(served, peer, number)
            if time.monotonic() > end and sum(flood.sent) >= 2 * len(SOURCES):
                break
    assert pid_of(served) == pid
    assert served.pair(pair_id)["state"] == "active"
    bounds = (
        ("memory", peak_bytes(served) - memory, RSS_GROWTH_BYTES),
        ("log", log_bytes(served) - log, LOG_GROWTH_BYTES),
        ("store", store_bytes(served) - store, STORE_GROWTH_BYTES),
    )
    faults = [f"{grown / MIB:.2f} MiB of {name}" for name, grown, most in bounds if grown > most]
    faults += [f"an answer {status}" for status in flood.answers if status >= 500 and status != 503]
    faults += [crash] if (crash := crash_of(served)) else []
    assert not faults, f"{sum(flood.sent)} requests of strangers cost {', '.join(faults)}"
    assert_syncs(served, peer, -1)
