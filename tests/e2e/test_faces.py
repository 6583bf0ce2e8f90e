"""Many watch one daemon at once, one of them without ever reading, and the daemon ends or dies under them."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import Instance
from tests.waiting import DEADLINE_S, eventually

PAGES = 20
SCRAPERS = 50
UNREAD = 4000
GROWTH_KIB_MAX = 16 * 1024


def asked(daemon: Instance, path: str, number: int = 0) -> socket.socket:
    """Return a connection, from one of several addresses, on which a path was asked for."""
    sock = socket.create_connection(("127.0.0.1", daemon.port), DEADLINE_S, (f"127.0.0.{2 + number % 9}", 0))
    sock.sendall(request(daemon, path))
    return sock


def request(daemon: Instance, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {daemon.token}\r\n\r\n".encode()


def rest(sock: socket.socket) -> bytes:
    """Return what comes until the daemon ends the connection."""
    found = b""
    with sock, contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            found += piece
    return found


def rss_kib(daemon: Instance) -> int:
    assert daemon.process is not None
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{daemon.process.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_many_pages_and_scrapers_and_one_that_never_reads_hold_up_nothing(alice: Instance) -> None:
    """Each scraper is answered, records are taken, memory stays, and the daemon stops when it is told to."""
    pages = [asked(alice, "/ui/events", number) for number in range(PAGES)]
    assert {page.recv(12) for page in pages} == {b"HTTP/1.1 200"}
    before = rss_kib(alice)
    mute = asked(alice, "/metrics")
    mute.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(UNREAD):
            mute.send(request(alice, "/metrics"))
    with ThreadPoolExecutor(SCRAPERS) as pool:
        scrapes = pool.map(lambda _: alice.api("GET", "/metrics"), range(SCRAPERS))
        assert len(alice.emit("th_garden", 5)) == 5
        assert {(answer.status, answer.body.count(b"\nspl_store_records ")) for answer in scrapes} == {(200, 1)}
    assert rss_kib(alice) - before < GROWTH_KIB_MAX
    assert alice.stop() == 0
    assert {b"event: server_shutdown" in rest(page) for page in pages} == {True}
    mute.close()


@contextlib.contextmanager
def drawn(daemon: Instance) -> Iterator[Callable[[], bytes]]:
    """Run `spl top` on a terminal; give what it has drawn since that was asked last."""
    ours, theirs = pty.openpty()
    env = {**daemon.environment(), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(daemon.command("top"), env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)

    def read() -> bytes:
        found = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(ours, 65536):
                found += piece
        return found

    try:
        yield read
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        os.close(ours)


def test_what_watches_a_daemon_outlives_it(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The daemon is killed: a page's stream ends, a monitor and `top` tell it, a barrier holds; then all go on.

    Who asks meanwhile is told at once that no daemon answers, and a shell still completes.
    """
    page = asked(alice, "/ui/events")
    monitor = subprocess.Popen(
        alice.command("monitor", "-o", "jsonl"), env=alice.environment(), stdout=subprocess.PIPE, text=True
    )
    barrier = subprocess.Popen(
        alice.command("wait", "pair", pair_id, "--state", "paused", "--timeout", "5m"), env=alice.environment()
    )
    seen: list[str] = []
    assert monitor.stdout is not None
    reader = threading.Thread(target=lambda lines: seen.extend(json.loads(line)["event"] for line in lines),
                              args=(monitor.stdout,))  # fmt: skip
    reader.start()
    try:
        with drawn(alice) as top:
            eventually(lambda: "snapshot" in seen and streams(alice) >= 4, "all four watch")
            eventually(lambda: pair_id.encode() in top(), "the pair is drawn")
            alice.kill()
            assert b"event: server_shutdown" not in rest(page)
            eventually(lambda: "daemon-down" in seen, "the monitor tells of it")
            eventually(lambda: b"daemon-down" in top(), "top shows it")
            assert barrier.poll() is None
            for words in (("api", "GET", "/v1/status"), ("status",), ("health",)):
                assert "daemon-down" in alice.run(*words, code=5).err
            with pytest.raises(ConnectionRefusedError):
                alice.api("GET", "/metrics")
            assert pair_id in (alice.home / "run/pairs.list").read_text()
            alice.start()
            eventually(lambda: "daemon-up" in seen, "the monitor is back")
            eventually(lambda: pair_id.encode() in (text := top()) and b"daemon-down" not in text, "so is top")
        alice.run("federation", "pause", pair_id)
        assert barrier.wait(DEADLINE_S) == 0
        eventually(lambda: "changed" in seen[seen.index("daemon-up") :], "the monitor tells of the pause")
    finally:
        monitor.send_signal(signal.SIGINT)
        barrier.kill()
        assert monitor.wait(DEADLINE_S) == 130
        barrier.wait(DEADLINE_S)
        reader.join(DEADLINE_S)
        monitor.stdout.close()


def streams(daemon: Instance) -> int:
    """Return how many event streams the daemon serves to others than its peers."""
    found = re.search(rb"^spl_sse_subscribers (\d+)", daemon.api("GET", "/metrics").body, re.MULTILINE)
    assert found is not None
    return int(found[1])
