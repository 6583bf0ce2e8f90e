"""SIGTERM ends the daemon, whatever peers and clients do at that moment: exit 0, before the hard kill.

The peer that misbehaves is a proxy in front of a real daemon; the clients are sockets that do not read or do not send.
"""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.attack.probes import LOCAL, Make, crash_of, dial, head, instances, log_text, stopped, until
from tests.e2e.conftest import AUTO
from tests.e2e.harness import Instance, eventually
from tests.e2e.proxy import Change, Proxy, Reply, answer, hang_up

ROUNDS: Final = 3
"""A signal that meets a failing pull is lost by chance; so many tries in each of the cases find it."""
HASTY: Final = (
    "[limits]\nheartbeat_s = 1\npoll_interval_min_s = 0.05\npoll_backoff_max_s = 0.05\nanswer_timeout_s = 5\n"
)
CLIENTS: Final = 20


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of instances."""
    with instances(tmp_path) as maker:
        yield maker


@pytest.fixture
def served(make: Make) -> Instance:
    """A running daemon."""
    return make("served", HASTY).start()


def assert_stops(instance: Instance) -> None:
    """Fail unless the daemon ends with 0 on SIGTERM, and says so in its log."""
    code = stopped(instance)
    assert code is not None, f"SIGTERM was lost: the daemon runs on\n{instance.output()}"
    assert code == 0, instance.output()
    assert "event=daemon.stopped" in log_text(instance)
    assert not crash_of(instance)


@contextlib.contextmanager
def repeating(act: Callable[[], object]) -> Iterator[None]:
    """Do something again and again in a thread, until the end of the block."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, ValueError, AssertionError, http.client.HTTPException):
                act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def behind_proxy(make: Make, mode: str) -> tuple[Instance, Instance, Proxy, str]:
    """Return a pair whose second side is reached through a proxy, and the pair's id."""
    first, second = make("alice", HASTY).start(), make("bob", AUTO + HASTY)
    proxy = Proxy(second.port)
    second.start("--public-url", proxy.url)
    *_, last = first.steps(proxy.url)
    assert last["step"] == "active", last
    first.run("federation", "set-mode", last["pair_id"], mode)
    return first, second, proxy, str(last["pair_id"])


class Failing:
    """What a peer makes of each answer to a pull, with a count of the pulls."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.count = 0

    def __call__(self, reply: Reply) -> Reply | None:
        self.count += 1
        return self.change(reply)


FAULTS: Final[dict[str, Change]] = {
    "500": answer(500),
    "nonsense": answer(200, b"nonsense"),
    "hang-up": hang_up,
}


@pytest.mark.parametrize("mode", ["polling", "continuous"])
@pytest.mark.parametrize("fault", FAULTS)
def test_while_each_pull_fails_at_once_and_a_contact_wakes_it(make: Make, mode: str, fault: str) -> None:
    """The peer refuses every pull and comes by itself, which has the daemon pull again as the signal arrives."""
    first, second, proxy, pair_id = behind_proxy(make, mode)
    tried = 0

    def contact() -> None:
        second.api("POST", f"/v1/federation/pairs/{pair_id}/sync", {})

    try:
        for number in range(ROUNDS):
            pulls = Failing(FAULTS[fault])
            proxy.changes = {"/v1/sync/changes": pulls}
            with repeating(contact) if number % 2 else contextlib.nullcontext():
                first.api("POST", f"/v1/federation/pairs/{pair_id}/sync", {})
                contact()
                assert_stops(first)
            tried += pulls.count
            proxy.heal()
            first.start()
        assert tried, "the daemon never pulled, so nothing was tried here"
    finally:
        proxy.end()


def test_during_a_catch_up(make: Make) -> None:
    """Thousands of records are on their way in; what was stored is kept, and the rest comes after the next start."""
    bob = make("bob", AUTO).start()
    for _ in range(8):
        bob.emit("th_long", 1000, text="x" * 400)
    alice = make("alice", HASTY + "page_records_default = 100\n").start()
    steps = alice.steps(bob.url, backfill=True)
    assert next(steps)["step"] == "manifest"

    def held(instance: Instance) -> int:
        found = instance.api("GET", "/v1/threads").json["data"]
        return sum(item["records"] for item in found)

    eventually(lambda: held(alice), "the first records of the peer are here")
    assert_stops(alice)
    steps.close()  # type: ignore[attr-defined]
    alice.start()
    eventually(lambda: held(alice) == 8000, "all records of the peer are here")


def test_while_a_pairing_waits_for_its_approval(make: Make) -> None:
    """Both the command that waits and the request of another instance are left where they stand."""
    bob, alice = make("bob").start(), make("alice", HASTY).start()
    steps = alice.steps(bob.url, wait_ms=600_000)
    seen = [next(steps)["step"]]
    while seen[-1] != "waiting":
        seen.append(next(steps)["step"])
    assert_stops(alice)
    assert_stops(bob)
    assert {step["step"] for step in steps} <= {"waiting", "pending", "error"}, "the pairing went on without approval"
    alice.start()
    bob.start()
    [waiting] = bob.api("GET", "/v1/aitl").json["data"]
    assert alice.did in waiting.values()


def test_while_a_pairing_waits_for_an_answer(make: Make) -> None:
    """The peer accepts the connection and is silent."""
    alice = make("alice").start()
    with socket.create_server((LOCAL, 0)) as listener:
        listener.settimeout(30)
        with repeating(lambda: list(alice.steps(f"http://{LOCAL}:{listener.getsockname()[1]}/"))):
            caller, _ = listener.accept()
            assert_stops(alice)
        caller.close()


def test_while_watchers_do_not_read(served: Instance) -> None:
    """Streams whose clients take nothing, full to the brim."""
    for _ in range(10):
        served.emit("th_long", 20, text="x" * 50_000)
    ask = head("GET", "/v1/threads/th_long/watch?since_clock=0", authorization=f"Bearer {served.token}")
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            sock = stack.enter_context(dial(served.port, receive_bytes=4096))
            sock.sendall(ask)
            until(sock, b"event: ")
        assert_stops(served)


def test_while_readers_do_not_read(served: Instance) -> None:
    """Unread pages and snapshots."""
    for _ in range(10):
        served.emit("th_long", 20, text="x" * 50_000)
    with contextlib.ExitStack() as stack:
        for path in ("/v1/threads/th_long/snapshot", "/v1/threads/th_long/records?limit=10000", "/v1/snapshot"):
            for _ in range(CLIENTS // 2):
                sock = stack.enter_context(dial(served.port, receive_bytes=4096))
                sock.sendall(head("GET", path, authorization=f"Bearer {served.token}"))
                until(sock, b"HTTP/1.1 200")
        assert_stops(served)


@pytest.mark.parametrize("part", [b"GET /hea", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n", b""], ids=repr)
def test_while_requests_stand_half_sent(served: Instance, part: bytes) -> None:
    """Heads that do not end, and connections that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(dial(served.port)).sendall(part)
        assert served.is_ready()
        assert_stops(served)


@pytest.mark.parametrize("expects", [True, False])
def test_during_a_slow_body(served: Instance, expects: bool) -> None:
    """A body that comes byte by byte, for as long as the daemon takes it."""
    ask = head(
        "POST", "/v1/records", authorization=f"Bearer {served.token}", content_type="application/json",
        content_length="8000000", **({"expect": "100-continue"} if expects else {}),
    )  # fmt: skip
    with dial(served.port) as sock:
        sock.sendall(ask + (b"" if expects else b"{"))
        if expects:
            until(sock, b"100 Continue")
        with repeating(lambda: sock.send(b" ")):
            assert served.is_ready()
            assert_stops(served)


def test_during_writes_under_load(served: Instance) -> None:
    """Whatever was acknowledged is there after the next start."""
    taken: list[str] = []
    with contextlib.ExitStack() as stack:
        for number in range(4):
            thread = f"th_load_{number}"
            stack.enter_context(repeating(lambda thread=thread: taken.extend(served.emit(thread, 50))))
        eventually(lambda: len(taken) > 500, "hundreds of records were taken")
        assert_stops(served)
    served.start()
    held = frozenset().union(*served.holding().values())
    assert set(taken) <= held
