"""A live peer that floods: bounded in memory, in the log, in lines, and at no cost of other peers."""

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.attack.adversary import messages, wire
from tests.attack.adversary.keys import born, secret_hex
from tests.attack.adversary.messages import PAIR
from tests.attack.adversary.puppet import Puppet, Stranger, target_of
from tests.attack.adversary.server import Given
from tests.attack.adversary.text import canonical, now_ms
from tests.attack.conftest import Daemon, Puppets
from tests.attack.measure import MIB, Victim
from tests.e2e.harness import eventually

KIB = 1024
BEATS = 400_000
BEATS_AT_ONCE = 4000
BEATS_MEMORY = 24 * MIB
LOOKS = 1000
"""How often the daemon is looked at while the flood lasts; one that holds the sender up never ends it."""


# -- manifests


def test_a_peer_writes_one_manifest_record_an_hour(alice: Victim, puppet: Puppets) -> None:
    """Thirty polls, each with another manifest: one record for the log, however the peer goes on."""
    peer = puppet("peer", alice).join()
    before = alice.log_bytes
    for number in range(30):
        newer = peer.manifest(padding=f"{number:04}" + "x" * 5 * KIB, signed_ms=now_ms() + number)
        assert peer.poll(manifest=newer).status == 200
    changed = alice.reserved("th_federation_pairs", "peer_manifest_changed.v1")
    assert len(changed) <= 1, f"{len(changed)} manifests of one peer within a moment"
    assert alice.log_bytes - before < 32 * KIB


def test_a_peer_that_rotates_is_believed_at_once_within_the_hour(alice: Victim, puppet: Puppets) -> None:
    """The bound on manifests costs no rotation: the new key works at once, the one that was given up no more."""
    peer = puppet("peer", alice).join()
    assert peer.poll(manifest=peer.manifest(later=True, signed_ms=now_ms() + 1)).status == 200
    for step in (2, 3):
        peer.who.rotate("compromised", now_ms())
        reply = peer.poll(manifest=peer.manifest(signed_ms=now_ms() + step))
        assert reply.status == 200, reply
        assert peer.call("GET", "/v1/sync/changes?limit=1").status == 200, f"rotation {step - 1} is not known"


def test_a_manifest_of_a_peer_is_capped(alice: Victim, puppet: Puppets) -> None:
    """What a stranger may not send a peer may not either, by poll or served at its own address."""
    peer = puppet("peer", alice).join()
    before = alice.log_bytes
    peer.poll(manifest=peer.manifest(padding="x" * 50 * KIB, signed_ms=now_ms() + 1))
    peer.more["padding"] = "y" * 50 * KIB
    alice.api("POST", f"/v1/federation/pairs/{peer.pair_id}/refresh", {})
    assert alice.log_bytes - before < 8 * KIB, "an overgrown manifest was written to the log"


# -- heartbeats and pages


def followed(victim: Victim, peer: Puppet, events: Iterator[bytes]) -> None:
    """Have the victim follow the peer's stream, which is these events."""
    peer.events = events
    answer = victim.api("POST", f"/v1/federation/pairs/{peer.pair_id}/mode", {"mode": "continuous"})
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("moves", [0, 1], ids=["same cursor", "another cursor each"])
def test_heartbeats_are_not_buffered(alice: Victim, puppet: Puppets, moves: int) -> None:
    """Four hundred thousand heartbeats as fast as they go: they are taken or held up, and nothing of them piles up."""
    peer, ended = puppet("peer", alice).join(), threading.Event()
    before, sent = alice.forget_peak(), [0]
    beats = [canonical({"cursor": f"b{moves * number}", "peer_view": {}}) for number in range(BEATS_AT_ONCE)]
    piece = b"".join(b"event: heartbeat\ndata: %b\n\n" % beat for beat in beats)

    def flood() -> Iterator[bytes]:
        for _ in range(BEATS // BEATS_AT_ONCE):
            yield piece
            sent[0] += 1
            if alice.peak_bytes - before > 2 * BEATS_MEMORY:
                break  # it is lost already; the machine need not suffer
        ended.set()
        peer.closing.wait()

    followed(alice, peer, flood())
    eventually(lambda: sent[0], "the stream is followed")
    for _ in range(LOOKS):
        assert alice.get("/health").status == 200
        if ended.is_set():
            break
    grown = alice.peak_bytes - before
    assert grown < BEATS_MEMORY, f"{sent[0] * BEATS_AT_ONCE} heartbeats take {grown // MIB} MiB"
    assert alice.is_ready()


EMPTY = {
    "comments": b": x\n\n", "delays": b"retry: 5\n\n", "nothing": b"\n",
    "heartbeats": b'event: heartbeat\ndata: {"peer_view":{}}\n\n',
}  # fmt: skip


def test_a_stream_of_nothing_ends(alice: Victim, puppet: Puppets) -> None:
    """What brings no record keeps a processor busy for ever, and no deadline ends it, so the daemon does."""
    for number, piece in enumerate(EMPTY.values()):
        peer, ended = puppet(f"peer-{number}", alice).join(), threading.Event()

        def flood(piece: bytes = piece, ended: threading.Event = ended) -> Iterator[bytes]:
            try:
                while True:
                    yield piece * (16 * KIB // len(piece))
            finally:
                ended.set()  # nobody reads it any more

        followed(alice, peer, flood())
        eventually(ended.is_set, "the daemon ends it")


def test_readers_that_do_not_read_cost_little(alice: Victim, puppet: Puppets) -> None:
    """Sixty questions for four-megabyte pages whose answers are not read: no page waits whole in memory."""
    peer = puppet("peer", alice).join()
    for part in range(5):
        alice.emit(f"th_{part}", 9, text="x" * 100_000)
    target, lines = "/v1/sync/changes?limit=1000", list[wire.Line]()
    assert len(peer.call("GET", target).body) > 4 * MIB - 200_000
    before = alice.forget_peak()
    for number in range(60):
        line = wire.Line(alice.port, f"127.0.7.{1 + number % 8}", read_bytes=4 * KIB)
        line.send("GET", target, headers=peer.headers("GET", target))
        lines.append(line)
    heard = [head for line in lines if (head := line.peek(200))]
    eventually(lambda: alice.get("/health").status == 200, "the daemon answers beside them")
    grown = alice.peak_bytes - before
    for line in lines:
        line.close()
    assert heard, "nothing was answered at all"
    assert grown < 48 * MIB, f"unread answers take {grown // MIB} MiB"


# -- fingerprints


def asked(peer: Puppet, line: wire.Line) -> None:
    """Send a question for fingerprints under a key of its own, and do not wait for the answer."""
    body = canonical({"key": secret_hex(16), "ranges": {"held": [""], "shown": [""], "seen": [""]}})
    target = "/v1/sync/fingerprints"
    line.send("POST", target, body, peer.headers("POST", target, body))


def test_one_peers_fingerprint_questions_do_not_hold_up_another(alice: Victim, puppet: Puppets) -> None:
    """Thirty questions under thirty keys at once, then one of another peer: it does not wait for all of them.

    The daemon is halted while they are sent, so that it finds all of them, however slowly this test runs.
    """
    mallory, bob = puppet("mallory", alice).join(), puppet("bob", alice).join()
    alice.emit("th_many", 8000)
    order: list[str] = []
    lines = [wire.Line(alice.port) for _ in range(30)]
    bobs = wire.Line(alice.port)

    def wait(name: str, line: wire.Line) -> None:
        reply = line.read()
        if reply.status == 200:
            order.append(name)

    alice.process.send_signal(signal.SIGSTOP)
    try:
        for line in lines:
            asked(mallory, line)
        asked(bob, bobs)
    finally:
        alice.process.send_signal(signal.SIGCONT)
    threads = [threading.Thread(target=wait, args=("mallory", line)) for line in lines]
    threads.append(threading.Thread(target=wait, args=("bob", bobs)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for line in (*lines, bobs):
        line.close()
    assert "bob" in order, "the other peer got no answer"
    before = order.index("bob")
    assert before <= 10, f"{before} of mallory's questions were answered before bob's one"


def test_fingerprints_of_one_comparison_are_served_in_full(alice: Victim, puppet: Puppets) -> None:
    """The bound is on questions at once and on new keys: one comparison of many questions goes through."""
    bob = puppet("bob", alice).join()
    alice.emit("th_many", 300)
    key, target = secret_hex(16), "/v1/sync/fingerprints"
    for digit in "0123456789abcdef" * 3:
        body = canonical({"key": key, "ranges": {"shown": [digit]}})
        assert bob.call("POST", target, body=body).status == 200


# -- log lines


def test_refused_records_do_not_fill_the_log_file(alice: Victim, puppet: Puppets) -> None:
    """Forty pushes of records that are refused, each by other signers: a few lines, which count."""
    mallory = puppet("mallory", alice).join()
    before = len(alice.log_lines())
    for part in range(40):
        ghosts = [born(f"ghost-{part}-{number}") for number in range(10)]
        mallory.push(*(messages.record(ghost, "th_crowd", f"{part}") for ghost in ghosts))
    grown = len(alice.log_lines()) - before
    assert grown <= 40, f"{grown} lines for 40 pushes of one peer"
    assert alice.pair(mallory.pair_id)["refused_records"] == 400


def test_refused_strangers_do_not_fill_the_log_file(daemon: Daemon) -> None:
    """Sixty requests that are refused, from as many addresses, and some garbage."""
    victim = daemon("victim", '[federation]\napproval = "closed"\n')
    target, before = target_of(victim.port), len(victim.log_lines())
    for number in range(60):
        stranger = Stranger(born("mallory"), victim, f"127.0.5.{number + 1}", target=target)
        assert stranger.request().status in (403, 429)
        stranger.post_bytes(PAIR, b"garbage")
        wire.ask(victim.port, "GET", "/v1/threads", headers={"authorization": "Bearer spl_x_sa_0000_guess"})
        wire.ask(victim.port, "POST", PAIR, b"{}", headers={"origin": "http://["})
    grown = len(victim.log_lines()) - before
    assert grown <= 30, "\n".join(victim.log_lines()[before:])


@pytest.mark.parametrize("action", ["consent", "log", "poll"])
def test_messages_of_a_peer_do_not_fill_the_log_file(alice: Victim, puppet: Puppets, action: str) -> None:
    """Sixty well-signed messages of each kind that would write a line each: outdated grants, garbage, pauses."""
    peer, statuses = puppet("peer", alice).join(), set[int]()
    new = {"namespace": "default", "maps": ["default"] * 2, "level": "L1", "version": 1000}
    assert peer.word("consent", "consent", grants=[new], held={}).status == 200
    before = len(alice.log_lines())
    for number in range(60):
        if action == "consent":
            old = {**new, "version": 1 + number, "level": f"L{number % 2}"}
            statuses.add(peer.word("consent", "consent", grants=[old], held={}).status)
        elif action == "log":
            statuses.add(peer.word("pair-log", "log", padding=str(number)).status)
        else:
            statuses.add(peer.poll(state=("paused", "active")[number % 2]).status)
    assert statuses, "nothing was answered"
    grown = len(alice.log_lines()) - before
    assert grown <= 40, "\n".join(alice.log_lines()[before:])


def test_a_failing_peer_writes_few_lines(alice: Victim, puppet: Puppets) -> None:
    """Forty syncs that a peer answers with as many other errors."""
    peer = puppet("peer", alice).join()
    before = len(alice.log_lines())
    for number in range(40):
        error = {"object": "error", "code": f"ODD_{number}", "message": f"number {number}"}
        peer.changes = Given(500 + number % 4, canonical(error))
        alice.api("POST", f"/v1/federation/pairs/{peer.pair_id}/sync", {})
    grown = len(alice.log_lines()) - before
    assert grown <= 30, f"{grown} lines for 40 failing syncs"


# -- what is no flood


def test_many_sound_records_of_a_peer_are_taken(alice: Victim, puppet: Puppets) -> None:
    """The bounds above are on noise: two thousand sound records of a peer are all there."""
    peer = puppet("peer", alice).join()
    for part in range(4):
        results = peer.push(*(messages.record(peer.who, f"th_{part}", f"{n}", clock=n) for n in range(500)))
        assert {item["status"] for item in results} == {200}
    assert sum(len(alice.records(f"th_{part}")) for part in range(4)) == 2000


def test_half_sent_pushes_hold_nothing_up(alice: Victim, puppet: Puppets) -> None:
    """Twenty pushes that stop in the middle of their body, while another is taken."""
    mallory, bob = puppet("mallory", alice).join(), puppet("bob", alice).join()
    body = messages.push_body([messages.record(mallory.who, "th_x", "y")], since="", cursor="c")
    before, socks = alice.forget_peak(), list[socket.socket]()
    for _ in range(20):
        line = wire.Line(alice.port)
        headers = {**mallory.headers("POST", "/v1/sync/records", body), "content-type": "application/x-ndjson"}
        line.send("POST", "/v1/sync/records", body[:100], {**headers, "content-length": str(4 * MIB)})
        socks.append(line.sock)
    assert [item["status"] for item in bob.push(messages.record(bob.who, "th_bob", "through"))] == [200]
    assert alice.peak_bytes - before < 16 * MIB
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.close()
    assert json.loads(alice.get("/health").body)["status"] == "ok"
