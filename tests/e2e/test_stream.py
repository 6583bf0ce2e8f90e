"""Continuous mode and watched threads with real daemons, real sockets and real kills."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from syncropel import Client, Identity

from tests.e2e.conftest import AUTO
from tests.e2e.harness import Instance, Wire
from tests.waiting import DEADLINE_S, eventually, until

THREAD = "th_live"


def stream(instance: Instance, pair_id: str) -> dict[str, Any]:
    return dict(instance.pair(pair_id).get("stream") or {})


def is_open(instance: Instance, pair_id: str) -> bool:
    return stream(instance, pair_id).get("state") == "open"


def opened(pair_id: str, *instances: Instance) -> None:
    eventually(lambda: all(is_open(each, pair_id) for each in instances), "the streams are open")


def held(instance: Instance, thread: str = THREAD) -> set[str]:
    return {item["id"] for item in instance.records(thread)}


def converged(alice: Instance, bob: Instance, ids: set[str]) -> None:
    eventually(lambda: held(alice) == held(bob) == ids, "both hold the same")


@pytest.fixture
def live(alice: Instance, bob: Instance, pair_id: str) -> str:
    """The id of a pair that is continuous in both directions, its streams open."""
    for instance in (alice, bob):
        instance.run("federation", "set-mode", pair_id, "continuous")
    opened(pair_id, alice, bob)
    return pair_id


class Events:
    """The lines of an event stream over a socket of its own, read as the test likes."""

    def __init__(self, instance: Instance, path: str, headers: dict[str, str]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", instance.port), timeout=DEADLINE_S)
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n".encode())
        self.lines = self.sock.makefile("rb")

    def next(self) -> tuple[str, str, Any]:
        """Return (event, id, data) of the next event; ("", "", None) at the end."""
        name, id_, data = "", "", None
        while line := self.lines.readline():
            key, _, value = line.decode().strip().partition(": ")
            if key == "event":
                name = value
            elif key == "id":
                id_ = value
            elif key == "data":
                data = json.loads(value)
            elif not line.strip() and name:
                return name, id_, data
        return "", "", None

    def records(self, count: int) -> list[tuple[str, Any]]:
        """Return (id, data) of the next records."""
        found: list[tuple[str, Any]] = []
        while len(found) < count:
            name, id_, data = self.next()
            assert name, "the stream ended"
            if name == "record.created":
                found.append((id_, data))
        return found


@contextmanager
def watching(instance: Instance, thread: str = THREAD, query: str = "", **headers: str) -> Iterator[Events]:
    """Watch a thread with the admin token; the first heartbeat has come."""
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    fields = {"authorization": f"Bearer {instance.token}", **sent}
    events = Events(instance, f"/v1/threads/{thread}/watch{query}", fields)
    try:
        assert events.next()[0] == "heartbeat"
        yield events
    finally:
        events.sock.close()


def test_records_flow_both_ways_within_the_streams(alice: Instance, bob: Instance, live: str) -> None:
    """Nothing is polled: each side's records come out of the other's watch, and neither comes back."""
    with watching(bob) as at_bob, watching(alice) as at_alice:
        sent = alice.emit(THREAD, 5, by="alice")
        assert [data["id"] for _, data in at_bob.records(5)] == sent
        back = bob.emit(THREAD, 5, by="bob")
        found = [data["id"] for _, data in at_alice.records(10)]
        assert found == sent + back
    converged(alice, bob, {*sent, *back})
    for instance in (alice, bob):
        eventually(lambda: instance.pair(live)["outbound"]["lag_records"] == 0, "the ack is there")  # noqa: B023
        read = {"clock": 5, "lag_records": 0}
        eventually(lambda: instance.pair(live)["last_sync_cursor"] == read, "and what it stands for")  # noqa: B023
    assert alice.api("GET", "/v1/status").json["lag"]["p50_ms"] is not None


@pytest.mark.parametrize("killed", ["alice", "bob"])
def test_a_killed_side_comes_back_without_loss(alice: Instance, bob: Instance, live: str, killed: str) -> None:
    """Killed in the middle of a flow, whoever it is; all that was acknowledged arrives once."""
    victim, other = (alice, bob) if killed == "alice" else (bob, alice)
    sent: set[str] = set()
    for round_ in range(3):
        sent |= {*alice.emit(THREAD, 50, round=round_), *bob.emit(THREAD, 50, round=round_)}
        victim.kill()
        sent |= {*other.emit(THREAD, 20, alone=round_)}
        victim.start()
    converged(alice, bob, sent)
    opened(live, alice, bob)
    for instance in (alice, bob):
        assert len(instance.records(THREAD)) == len(sent)
        assert instance.pair(live)["refused_records"] == 0


def test_a_stop_is_told_and_the_stream_comes_back(alice: Instance, bob: Instance, live: str) -> None:
    """SIGTERM ends streams with server_shutdown, in time; that is no error, and the pair heals by itself."""
    with watching(bob) as events:
        assert bob.stop() == 0
        while (told := events.next())[0] == "heartbeat":
            pass
        assert told[::2] == ("server_shutdown", {"retry_after_ms": 1000})
        assert events.next()[0] == ""
    eventually(lambda: f"event=sync.stream_ended pair={live}" in alice.output(), "alice takes it for an end in order")
    sent = alice.emit(THREAD, 3)
    bob.start()
    converged(alice, bob, set(sent))
    opened(live, alice, bob)


def test_a_pause_and_a_revoke_end_streams_at_once(alice: Instance, bob: Instance, live: str) -> None:
    """After a pause nothing passes in either direction; after the resume everything; a revoke is for good."""
    alice.run("federation", "pause", live)
    eventually(lambda: not is_open(alice, live) and not is_open(bob, live), "the streams are closed")
    sent = {*alice.emit(THREAD, 2), *bob.emit(THREAD, 2)}
    assert len(held(bob)) == len(held(alice)) == 2
    alice.run("federation", "resume", live)
    converged(alice, bob, sent)
    opened(live, alice, bob)
    bob.run("federation", "revoke", live)
    eventually(lambda: alice.pair(live)["state"] == "revoked", "the peer was told")
    assert stream(alice, live).get("state") != "open"
    bob.emit(THREAD, 1, after="the end")
    assert held(alice) == sent


def test_modes_change_at_once_and_survive_a_restart(alice: Instance, bob: Instance, pair_id: str) -> None:
    """continuous -> on-demand -> polling -> continuous on a running daemon, then through a restart."""
    alice.run("federation", "set-mode", pair_id, "continuous")
    opened(pair_id, alice)
    alice.run("federation", "set-mode", pair_id, "on-demand")
    eventually(lambda: not alice.pair(pair_id).get("stream"), "no stream in this mode")
    assert alice.pair(pair_id)["next_attempt_at"] is None
    sent = bob.emit(THREAD, 2)
    alice.run("sync", pair_id)
    assert held(alice) == set(sent)
    alice.run("federation", "set-mode", pair_id, "polling")
    eventually(lambda: alice.pair(pair_id)["next_attempt_at"], "the next poll is known")
    alice.run("federation", "set-mode", pair_id, "continuous")
    opened(pair_id, alice)
    alice.stop()
    alice.start()
    opened(pair_id, alice)
    assert "continuous" in alice.run("federation", "list").out
    alice.run("sync", pair_id)
    opened(pair_id, alice)


def test_a_lost_peer_shows_and_its_return_is_found(alice: Instance, bob: Instance, live: str) -> None:
    """While the stream is down, the next attempt, its number and the error are there to see."""
    bob.kill()
    row = eventually(lambda: (pair := alice.pair(live))["last_error"] and pair, "the loss is seen")
    assert row["stream"]["state"] == "down"
    assert row["next_attempt_at"]
    assert row["attempt"] >= 1
    assert "continuous, stream down since" in alice.run("federation", "show", live).out
    sent = alice.emit(THREAD, 1)
    bob.start()
    converged(alice, bob, set(sent))
    eventually(lambda: alice.pair(live)["last_error"] is None and is_open(alice, live), "it healed")


def test_a_reader_that_takes_nothing_costs_no_memory(alice: Instance) -> None:
    """A watcher that never reads is held at its place; the daemon stays small and goes on serving."""
    with watching(alice) as events:
        before = _resident_kib(alice)
        for round_ in range(40):
            alice.emit(THREAD, 100, round=round_, text="x" * 4000)
        grown = _resident_kib(alice) - before
        sent = alice.emit("th_other", 1)
        assert held(alice, "th_other") == set(sent)
        assert grown < 16 * 1024, f"{grown} KiB for 16 MB of records that nobody took"
        assert len(events.records(4000)) == 4000


def test_last_event_id_goes_on_where_it_was(alice: Instance) -> None:
    """A program that was away gets what it missed, and nothing twice."""
    with watching(alice) as events:
        alice.emit(THREAD, 3)
        [_, (second, _), _] = events.records(3)
    alice.emit(THREAD, 2, later=True)
    with watching(alice, last_event_id=second) as events:
        assert [data["record"]["body"]["n"] for _, data in events.records(3)] == [2, 0, 1]


def test_a_browser_may_watch_an_open_daemon(make: Callable[..., Instance]) -> None:
    """What EventSource sends is answered with what it needs; no CORS header lets a foreign page read it."""
    alice = make("alice").start("--insecure-localhost")
    with socket.create_connection(("127.0.0.1", alice.port), timeout=DEADLINE_S) as sock:
        sock.sendall(
            f"GET /v1/threads/{THREAD}/watch HTTP/1.1\r\nHost: localhost:{alice.port}\r\nAccept: text/event-stream\r\n"
            "Accept-Encoding: gzip, deflate, br\r\nCache-Control: no-cache\r\nOrigin: http://localhost:3000\r\n\r\n".encode()
        )
        lines = sock.makefile("rb")
        head = [line.strip().lower() for line in iter(lines.readline, b"\r\n")]
        assert head[0] == b"http/1.1 200 ok"
        assert b"content-type: text/event-stream" in head
        assert b"cache-control: no-cache" in head
        assert not [line for line in head if line.startswith(b"access-control")]
        while not lines.readline().startswith(b"retry: "):
            pass
        assert alice.emit(THREAD, 1)
        while not lines.readline().startswith(b"event: record.created"):
            pass


def test_a_slow_stream_is_compressed_and_bulk_is_not(make: Callable[..., Instance], alice: Instance) -> None:
    """What two daemons say to each other now and then takes a fraction; what comes in bulk costs no time."""
    bob = make("bob", AUTO).start()
    wire = Wire(bob.port)
    try:
        bob.stop()
        bob.start("--public-url", wire.url)
        pair_id = alice.paired(wire.url + "/")
        alice.run("federation", "set-mode", pair_id, "continuous")
        opened(pair_id, alice)
        bob.emit("th_slow", 1, text="slow " * 200)
        eventually(lambda: alice.holding() == bob.holding(), "the record arrives")
        [heard] = [each for each in wire.heard if b"text/event-stream" in each]
        head, _, body = heard.partition(b"\r\n\r\n")
        assert b"content-encoding: deflate" in head
        assert b"slow slow" not in body
        bob.emit("th_bulk", 200, text="bulk " * 1000)
        eventually(lambda: alice.holding() == bob.holding(), "all arrive")
        assert b"bulk bulk" in b"".join(wire.heard)
    finally:
        wire.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_shows_records_as_they_come(alice: Instance) -> None:
    """`curl -N` prints each event when it happens."""
    command = ["curl", "-sN", "-H", f"Authorization: Bearer {alice.token}", f"{alice.url}v1/threads/{THREAD}/watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        try:
            while not curl.stdout.readline().startswith(b"event: heartbeat"):
                pass
            [sent] = alice.emit(THREAD, 1)
            while not (line := curl.stdout.readline()).startswith(b'data: {"record"'):
                pass
            assert json.loads(line[6:])["id"] == sent
        finally:
            curl.kill()


async def test_the_sdk_subscribes_unchanged(alice: Instance) -> None:
    """subscribe: open, heartbeat, records with their ids, and its own reconnect over a restart of the daemon."""
    got: list[dict[str, Any]] = []
    beats, errors = asyncio.Event(), list[Any]()

    async with Client(endpoint=alice.url, identity=Identity.static("did:sync:user:alice"), api_key=alice.token) as sdk:
        subscription = sdk.subscribe(
            THREAD, got.append, on_error=errors.append, on_heartbeat=beats.set, reconnect_base_s=0.05
        )
        async with asyncio.timeout(DEADLINE_S):
            await beats.wait()
        made = await sdk.emit(act="KNOW", kind="core.note", body={"n": 1}, thread=THREAD)
        [first] = await until(lambda: got and [*got])
        assert (first["id"], first["body"]["n"]) == (made.record_id, 1)
        await asyncio.to_thread(alice.stop)
        await asyncio.to_thread(alice.start)
        sent = await asyncio.to_thread(alice.emit, THREAD, 2)
        await until(lambda: len(got) == 3)
        assert [record["id"] for record in got] == [made.record_id, *sent]
        assert "server_shutdown" in [error.reason for error in errors]
        subscription.close()
        await subscription.wait_closed()


def test_one_long_connection_a_side(make: Callable[..., Instance]) -> None:
    """The acks ride on the streams: between two syncing daemons no request but the stream's own is seen."""
    bob = make("bob", '[federation]\napproval = "auto"\n').start()
    wire = Wire(bob.port)
    alice = make("alice").start()
    bob.stop()
    bob.start("--public-url", wire.url)
    pair_id = alice.paired(wire.url)
    for instance in (alice, bob):
        instance.run("federation", "set-mode", pair_id, "continuous")
    opened(pair_id, alice, bob)
    for instance in (alice, bob):
        instance.compared(pair_id)
    posted = len(wire.requests(b"POST /v1/sync/ack"))
    asked = len(wire.requests(b"GET /v1/sync/changes"))
    for n in range(10):
        bob.emit(THREAD, 1, n=n)
        alice.emit(THREAD, 1, n=n)
    eventually(lambda: len(held(alice)) == len(held(bob)) == 20, "all arrived")
    eventually(lambda: bob.pair(pair_id)["outbound"]["lag_records"] == 0, "all confirmed")
    assert len(wire.requests(b"POST /v1/sync/ack")) == posted
    assert len(wire.requests(b"GET /v1/sync/changes")) == asked
    wire.close()


def _resident_kib(instance: Instance) -> int:
    assert instance.process is not None
    lines = Path(f"/proc/{instance.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
