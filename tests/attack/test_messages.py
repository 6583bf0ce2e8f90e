"""Signed messages in every odd form, at once and again after a restart: refused by a code, and never taken twice."""

import threading
from collections.abc import Callable
from typing import Final

from tests.attack.adversary import messages
from tests.attack.adversary.messages import PAIR
from tests.attack.adversary.puppet import Puppet, request_of
from tests.attack.adversary.text import b64, canonical, now_ms
from tests.attack.adversary.wire import Reply
from tests.attack.conftest import AUTO, Daemon, Puppets
from tests.attack.measure import Victim

AT_ONCE: Final = 12
Odd = Callable[[bytes], bytes]


def with_member(member: bytes) -> Odd:
    return lambda text: text[:-1] + b"," + member + b"}"


ODD: Final[dict[str, Odd]] = {
    "a key twice": with_member(b'"state":"paused"'),
    "the signer twice": with_member(b'"signer":"x"'),
    "a lone surrogate": with_member(b'"x":"\\ud800"'),
    "a huge integer": with_member(b'"x":' + b"9" * 5000),
    "infinity": with_member(b'"x":1e400'),
    "no number": with_member(b'"x":NaN'),
    "a number with two forms": with_member(b'"x":1.0'),
    "deep lists": with_member(b'"x":' + b"[" * 2000 + b"]" * 2000),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "a manifest that is a number": with_member(b'"manifest":7'),
    "a manifest of numbers": with_member(b'"manifest":{"public_key":7,"rotations":7}'),
    "a time that no clock has": lambda text: text.replace(b'"issued_at":"2', b'"issued_at":"9'),
}


def word(
    peer: Puppet, purpose: str, action: str, odd: Odd = bytes, age_ms: int = 0, **more: object
) -> tuple[str, bytes]:
    """Return (path, body) of a message about the pair whose very bytes are signed, in whatever form they are."""
    head = messages.head(peer.who.did, peer.target["daemon"]["did"], peer.pair_id, issued_ms=now_ms() - age_ms)
    text = odd(canonical({**head, **more}))
    signature = b64(peer.who.key.sign(f"syncropel-{purpose}-v1\0".encode() + text).signature)
    return f"{PAIR}/{peer.pair_id}/{action}", b'{"message":' + text + b',"signature":"' + signature.encode() + b'"}'


def state_of(victim: Victim, peer: Puppet) -> str:
    return str(victim.api("GET", f"/v1/federation/pairs/{peer.pair_id}").json["state"])


def test_no_odd_form_of_a_signed_message_is_taken(alice: Victim, puppet: Puppets) -> None:
    """The signature is right each time: what is signed must have one meaning for everybody who reads it."""
    peer = puppet("peer", alice).join()
    for name, odd in ODD.items():
        reply = peer.post_bytes(*word(peer, "pair-poll", "poll", odd, state="active"))
        assert reply.status in (400, 401), (name, reply)
        assert reply.code, (name, reply)
    assert peer.poll().status == 200
    assert state_of(alice, peer) == "active"
    assert "Traceback" not in alice.log_text()


def test_requests_of_one_peer_at_once_end_in_one_pair(alice: Victim, puppet: Puppets) -> None:
    """And the confirmations of all of them: one pair lives, and no token of another one."""
    peer = puppet("peer", alice)
    asked = [request_of(peer.who, peer.url, peer.target, peer.manifest()) for _ in range(AT_ONCE)]
    assert together(lambda n: peer.post(PAIR, asked[n])) == {200}

    def confirm(number: int) -> Reply:
        head = messages.head(peer.who.did, peer.target["daemon"]["did"], asked[number]["message"]["pair_id"])
        path = f"{PAIR}/{head['pair_id']}/confirm"
        return peer.post(path, messages.signed("pair-confirm", head, peer.who.key))

    assert together(confirm) == {200}
    pairs = alice.api("GET", "/v1/federation/pairs").json["data"]
    assert [pair["state"] for pair in pairs].count("active") == 1
    assert {pair["state"] for pair in pairs} == {"active", "revoked"}
    [live] = [pair["pair_id"] for pair in pairs if pair["state"] == "active"]
    tokens = alice.api("GET", "/v1/tokens").json["data"]
    assert {token["pair_id"] for token in tokens if token["state"] == "live" and token["pair_id"]} == {live}


def test_no_message_from_before_a_restart_changes_anything_after_it(alice: Victim, puppet: Puppets) -> None:
    """An eavesdropper kept all of them; the peer paused, went on and renewed its token meanwhile."""
    peer = puppet("peer", alice).join()
    kept = [
        word(peer, "pair-poll", "poll", age_ms=1000, state="paused"),
        word(peer, "pair-poll", "poll", age_ms=500, state="active"),
        word(peer, "renew", "renew"),
    ]
    assert [peer.post_bytes(*each).status for each in kept] == [200, 200, 200]
    assert changes(alice.again()) == 2
    statuses = [peer.post_bytes(*each).status for each in kept]
    assert statuses == [200, 200, 409]
    assert state_of(alice, peer) == "active"
    assert changes(alice) == 2


def test_no_mode_that_a_peer_asked_for_before_comes_again(daemon: Daemon, puppet: Puppets) -> None:
    """An eavesdropper kept each question; our operator let the peer choose, and chose at the end."""
    victim = daemon("alice", f"{AUTO}follow_mode = true\n")
    peer = puppet("peer", victim).join()
    modes = ["polling", "continuous", "on-demand", "on-demand"]
    kept = [
        word(peer, "pair-poll", "poll", age_ms=1000 - 100 * n, state="active", mode=mode)
        for n, mode in enumerate(modes)
    ]
    assert [answered_mode(peer, each) for each in kept] == modes
    victim.run("federation", "set-mode", peer.pair_id, "polling")
    for again in (lambda: victim, victim.again):
        again()
        assert {answered_mode(peer, each) for each in kept} == {"polling"}
    assert answered_mode(peer, word(peer, "pair-poll", "poll", state="active", mode="continuous")) == "continuous"


def answered_mode(peer: Puppet, sent: tuple[str, bytes]) -> str:
    """Return the mode that the victim says it is in."""
    return str(peer.post_bytes(*sent).fields["mode"])


def changes(victim: Victim) -> int:
    return sum(len(victim.reserved("th_federation_pairs", f"pair_{what}.v1")) for what in ("pause", "resume"))


def together(ask: Callable[[int], Reply]) -> set[int]:
    """Return what status codes come when each number is asked by a thread of its own."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=number: found.append(ask(n).status)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == AT_ONCE
    return set(found)
