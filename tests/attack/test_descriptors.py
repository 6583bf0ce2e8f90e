"""Open files are a resource that strangers draw from, too: they lock no operator out and never end the store's writing.

Each daemon runs under limits of open files of its own; its segments are small, so that some megabytes of writes need
new ones while the strangers hold theirs.
"""

import contextlib
import json
import resource
import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import trustme

from tests.attack.probes import (
    LOCAL,
    MIB,
    Bounded,
    assert_serving,
    crash_of,
    dial,
    forget_peak,
    head,
    instances,
    is_open,
    peak_bytes,
    pid_of,
    received,
    serves,
    silent,
    soft_descriptors,
    status_of,
    until,
)
from tests.e2e.harness import DEADLINE_S, Instance, eventually, free_port

SHARE: Final = 64
"""Connections that one address may hold."""
SEGMENT_BYTES: Final = 256 * 1024
CONFIG: Final = f"[limits]\nsegment_bytes = {SEGMENT_BYTES}\nheartbeat_s = 1\n"
STRANGER: Final = "127.0.0.2"
NEIGHBOUR: Final = "127.0.0.3"
ANSWERED: Final = head("GET", "/health/ready", connection="close")


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Instance]:
    """A daemon under the limits (soft, hard) that the test names; 1,024 and 4,096 without."""
    soft, hard = getattr(request, "param", (1024, 4096))
    with instances(tmp_path) as make:
        yield make("served", CONFIG, Bounded, soft=soft, hard=hard).start()


def segments(instance: Instance) -> int:
    """Return how many segments the log of the store has."""
    return int(instance.api("GET", "/v1/store/stats").json["segments_count"])


def assert_writes_across_a_segment(instance: Instance) -> None:
    """Write more than two segments hold, each write acknowledged, and find the log in new ones."""
    before = segments(instance)
    for _ in range(12):
        assert len(instance.emit("th_flood", 10, text="x" * 6000)) == 10
    assert segments(instance) >= before + 2, "the log took no new segment"
    assert instance.api("GET", "/v1/store/stats").json["readonly"] == ""


def assert_unharmed(instance: Instance) -> None:
    """Fail unless all but the strangers are served as before, without a restart."""
    for source in (NEIGHBOUR, LOCAL):
        assert_serving(instance, source)
    assert_writes_across_a_segment(instance)
    assert not crash_of(instance)


def opened(socks: Sequence[socket.socket]) -> int:
    """Return how many of these connections are open."""
    return sum(map(is_open, socks))


def test_the_soft_limit_is_raised_to_the_hard_one(daemon: Instance) -> None:
    """What shells give by default is no bound for a daemon that may have more."""
    assert soft_descriptors(daemon) == 4096


@pytest.mark.parametrize("daemon", [(1024, 4096), (1024, 1024), (256, 256)], indirect=True, ids=str)
def test_silent_connections_of_one_address(daemon: Instance) -> None:
    """More of them than there are descriptors: the operator, the others and the log go on, during and after."""
    with silent(daemon.port, [STRANGER] * 1100):
        assert_unharmed(daemon)
    assert_unharmed(daemon)


@pytest.mark.parametrize("daemon", [(1024, 1024), (256, 256)], indirect=True, ids=str)
def test_silent_connections_of_many_addresses(daemon: Instance) -> None:
    """Each within its share and all together more than there are descriptors: the oldest idle ones give way."""
    sources = [f"127.0.1.{number % 22 + 1}" for number in range(1100)]
    with silent(daemon.port, sources):
        assert_unharmed(daemon)
    assert_unharmed(daemon)


@pytest.mark.parametrize("daemon", [(256, 256)], indirect=True, ids=str)
def test_half_a_request_is_not_worth_more_than_none(daemon: Instance) -> None:
    """Connections that sent a part of a head count as idle ones."""
    sources = [f"127.0.1.{number % 22 + 1}" for number in range(400)]
    with silent(daemon.port, sources, b"GET /health HTTP/1.1\r\nhost: loc"):
        assert_unharmed(daemon)
    assert_unharmed(daemon)


def test_a_lack_of_descriptors_is_no_disk_fault(daemon: Instance) -> None:
    """While no file can be opened a write is taken or refused for now; afterwards all goes on, and nothing is lost."""
    connection = daemon.connection()
    connection.request("GET", "/health")
    connection.getresponse().read()
    taken, pid = [], pid_of(daemon)
    used = {int(name.name) for name in Path(f"/proc/{pid}/fd").iterdir()}
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), limits[1]))
    try:
        for number in range(120):
            record = {"act": "KNOW", "actor": "did:sync:user:a", "thread": "th_full", "body": {"text": "x" * 6000}}
            headers = {"authorization": f"Bearer {daemon.token}", "content-type": "application/json"}
            connection.request("POST", "/v1/records", json.dumps({**record, "clock": number + 1}), headers)
            answer = connection.getresponse()
            value = json.loads(answer.read())
            assert answer.status in (200, 503), value
            taken += [value["id"]] if answer.status == 200 else []
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        connection.close()
    assert_unharmed(daemon)
    assert set(taken) <= {record["id"] for record in daemon.records("th_full")}


def test_one_address_holds_no_more_than_its_share(daemon: Instance) -> None:
    """Beyond the share the oldest idle connection of the same address is closed, and the newest is served."""
    with silent(daemon.port, [NEIGHBOUR] * 10) as others, silent(daemon.port, [STRANGER] * 200) as socks:
        eventually(lambda: opened(socks) <= SHARE, f"{STRANGER} holds at most {SHARE} of 200 connections")
        assert opened(socks) == SHARE
        assert opened(socks[:-SHARE]) == 0, "newer connections were closed, older ones kept"
        assert opened(others) == 10, "connections of another address were closed"
        socks[-1].settimeout(DEADLINE_S)
        socks[-1].sendall(ANSWERED)
        assert status_of(received(socks[-1])) == 200


def test_a_connection_at_work_is_not_closed_for_new_ones(daemon: Instance) -> None:
    """A stream of the same address lives on: idle connections give way, working ones do not."""
    with dial(daemon.port, STRANGER) as stream:
        stream.sendall(head("GET", "/v1/threads/th_a/watch", authorization=f"Bearer {daemon.token}"))
        until(stream, b"event: heartbeat")
        with silent(daemon.port, [STRANGER] * 200) as socks:
            eventually(lambda: opened(socks) < SHARE, f"the stream counts into the share of {SHARE}")
            until(stream, b"event: heartbeat", 2)


def test_an_address_full_of_working_connections_is_told(daemon: Instance) -> None:
    """With a whole share at work the next connection is refused and no stream is cut; other addresses are served."""
    ask = head("GET", "/v1/threads/th_a/watch", authorization=f"Bearer {daemon.token}")
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(dial(daemon.port, STRANGER)) for _ in range(SHARE)]
        for sock in streams:
            sock.sendall(ask)
            until(sock, b"event: heartbeat")
        late = stack.enter_context(dial(daemon.port, STRANGER))
        with contextlib.suppress(OSError):
            late.sendall(ANSWERED)
        assert status_of(received(late)) in (0, 503)
        assert serves(daemon, NEIGHBOUR)
        for sock in streams:
            until(sock, b"event: heartbeat")


@pytest.mark.parametrize("daemon", [(256, 256)], indirect=True, ids=str)
def test_the_streams_of_programs_leave_descriptors_to_peers_and_to_the_operator(
    daemon: Instance, tmp_path: Path
) -> None:
    """Pages, monitors and watches from many addresses, as many as are taken, and a sink with a child of its own."""
    minted = daemon.api("POST", "/v1/tokens", {"scopes": ["status:read", "records:read"]}).json["token"]
    daemon.run("sink", "add", "exec:cat >/dev/null", "--namespace", "default", "--name", "child")
    asks = [
        head("GET", path, authorization=f"Bearer {minted}")
        for path in ("/v1/events", "/ui/events?part=status", "/v1/threads/th_a/watch")
    ]
    with instances(tmp_path / "bob") as make, contextlib.ExitStack() as stack:
        for number in range(90):
            sock = stack.enter_context(dial(daemon.port, f"127.0.1.{number % 9 + 1}"))
            with contextlib.suppress(OSError):
                sock.sendall(asks[number % 3])
                assert status_of(sock.recv(65536)) in (0, 200, 429)
        bob = make("bob", '[federation]\napproval = "auto"\n').start("--public-url", "")
        daemon.run("federation", "pair", bob.url)
        [sent] = bob.emit("th_default", 1)
        daemon.run("sync")
        assert sent in {record["id"] for record in daemon.data("thread", "records", "th_default")}
        assert serves(daemon, NEIGHBOUR), "the streams of programs took every connection"
        assert_writes_across_a_segment(daemon)
        daemon.run("status")
    assert_unharmed(daemon)


def test_tls_handshakes_that_stop_half_way_cost_little_and_lock_nobody_out(tmp_path: Path) -> None:
    """Five hundred from ten addresses; another one is served by the same listener."""
    port, ca = free_port(), trustme.CA()
    leaf = ca.issue_cert(LOCAL)
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    config = f'[tls]\nlisten = "{LOCAL}:{port}"\ncertificate = "{tmp_path}/cert.pem"\nkey = "{tmp_path}/key.pem"\n'
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with instances(tmp_path) as make, contextlib.ExitStack() as stack:
        served = make("served", config).start()
        before = forget_peak(served)
        for number in range(500):
            sock = stack.enter_context(dial(port, f"127.0.6.{number % 10 + 1}"))
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        raw = socket.create_connection((LOCAL, port), timeout=DEADLINE_S, source_address=(NEIGHBOUR, 0))
        with context.wrap_socket(raw, server_hostname=LOCAL) as newcomer:
            newcomer.sendall(ANSWERED)
            assert status_of(received(newcomer)) == 200
        assert peak_bytes(served) - before <= 20 * MIB
        assert not crash_of(served)
