"""Many watch one daemon at once, one of them without ever reading, and the daemon ends or dies under them."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def test_what_watches_a_daemon_outlives_it(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The daemon is killed: a page's stream ends, a monitor tells it, a barrier holds; all go on with the next one."""
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
        eventually(lambda: "snapshot" in seen and streams(alice) >= 3, "all three watch")
        alice.kill()
        assert b"event: server_shutdown" not in rest(page)
        eventually(lambda: "daemon-down" in seen, "the monitor tells of it")
        assert barrier.poll() is None
        alice.start()
        eventually(lambda: "daemon-up" in seen, "the monitor is back")
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
