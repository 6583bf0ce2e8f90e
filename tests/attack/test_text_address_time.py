"""Hostile text, hostile addresses, hostile names and a clock that was wrong."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.attack.adversary import messages, wire
from tests.attack.adversary.keys import born, secret_hex
from tests.attack.adversary.puppet import Puppet, Stranger
from tests.attack.adversary.server import Given
from tests.attack.adversary.text import DAY_MS, canonical, ms_of, now_ms
from tests.attack.conftest import AUTO, Daemon, Puppets, Serve
from tests.attack.measure import Victim
from tests.e2e.harness import free_port

OWNED = "\x1b]0;owned\x07\nts=forged \x9b2J\x85\u202egnp.exe\u2066\u200b\u200f\u2028\ufeff\u3164\u034f\ufe0f"
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\u3164\u034f\ufe0f]"
)
MINUTE_MS = 60_000


def unprintable(text: str) -> list[str]:
    """Return the lines of a text that a terminal would not only show, each as Python writes it."""
    return [ascii(line)[:200] for line in text.split("\n") if UNPRINTABLE.search(line) or line.startswith("ts=forged")]


# -- text


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_nothing_unprintable_of_a_peer_reaches_log_or_terminal(daemon: Daemon, puppet: Puppets, form: str) -> None:
    """A signer's name, the code and text of an answer, a reason, a decoded path: escaped in both forms of the log."""
    victim = daemon("victim", f'{AUTO}[log]\nformat = "{form}"\nlevel = "debug"\n')
    mallory = puppet("mallory", victim).join()
    ghost = born("ghost")
    named = messages.record(ghost, "th_x", "x", by=f"did:{OWNED}")
    reordered = messages.record(ghost, "th_x", "x", by=f"{ghost.did}{OWNED}")
    mallory.push(named, reordered, messages.record(ghost, "th_x", "y", key=born("k").key), chains=[ghost])
    error = {"object": "error", "type": OWNED, "code": OWNED, "message": OWNED, "hint": OWNED}
    for status in (400, 409, 500):
        mallory.changes = Given(status, canonical(error))
        victim.api("POST", f"/v1/federation/pairs/{mallory.pair_id}/sync", {})
    shown = [
        victim.run(*words, code=None) for words in (("federation", "show", mallory.pair_id), ("status",), ("logs",))
    ]
    mallory.word("notify-revoke", "notify-revoke", reason=OWNED)
    shown.append(victim.run("federation", "show", mallory.pair_id, code=None))
    printed = "".join(done.out + done.err for done in shown)
    assert (unprintable(victim.log_text()), unprintable(printed)) == ([], [])
    for line in victim.log_lines() if form == "json" else []:
        assert not line or json.loads(line)["event"], "a line was cut in two"


def test_a_signer_that_is_no_did_is_not_asked_for(alice: Victim, puppet: Puppets) -> None:
    """A text that is no DID is refused, and no chain is looked up for it."""
    mallory, ghost = puppet("mallory", alice).join(), born("ghost")
    for by in ("did:\x1b]0;owned\x07", "x" * 200, "did:sync:instance:UPPER-" + "0" * 24):
        [result] = mallory.push(messages.record(ghost, "th_x", "x", by=by))
        assert result["status"] == 422, result
    assert "owned" not in alice.log_text()


def test_bodies_are_printed_escaped(alice: Victim) -> None:
    """A record may hold any text; a terminal gets nothing of it but what it shows."""
    alice.emit("th_x", 2, text=OWNED)
    for words in (("thread", "records", "th_x"), ("thread", "list"), ("thread", "show", "th_x")):
        done = alice.run(*words, code=None)
        assert unprintable(done.out + done.err) == [], words


def test_refusals_repeat_nothing_unprintable(alice: Victim) -> None:
    """An id, a name, an origin, a header of the caller's comes back escaped or not at all."""
    bad = quote(OWNED.replace("\n", ""))
    found = [
        alice.api("GET", f"/v1/federation/pairs/{bad}"),
        alice.api("GET", f"/v1/aitl/{bad}"),
        alice.api("POST", "/v1/namespaces", {"name": OWNED}),
        alice.api("POST", "/v1/federation/pairs", {"url": f"http://{OWNED}/"}),
        alice.api("POST", "/v1/config/fold-rules", {"name": OWNED, "thread": OWNED, "fold": OWNED}),
    ]
    for answer in found:
        assert answer.status >= 400 or b"error" in answer.body, answer
        for line in answer.body.splitlines():
            value = json.loads(line)
            told = value.get("error", value)
            assert unprintable(" ".join(str(told.get(name, "")) for name in ("message", "hint"))) == []


def test_answers_forbid_sniffing(alice: Victim) -> None:
    """A browser takes what it gets for what it is called, refusals too."""
    for path in ("/health", "/.well-known/syncropel", "/v1/threads", "/nowhere"):
        assert alice.get(path).headers.get("x-content-type-options") == "nosniff", path


# -- addresses


def looked(victim: Victim, peer: Puppet) -> dict[str, object]:
    """Let the peer ask whether it is reached, let the operator sync, and return what the peer was told."""
    reply = peer.call("POST", f"/v1/federation/pair/{peer.pair_id}/check", {})
    victim.api("POST", f"/v1/federation/pairs/{peer.pair_id}/sync", {})
    victim.api("POST", f"/v1/federation/pairs/{peer.pair_id}/refresh", {})
    return dict(reply.json["reverse"]) if reply.status == 200 else {}


@pytest.mark.parametrize(("source", "header"), [("127.0.3.7", ""), ("127.0.0.1", "x-forwarded-for")])
def test_without_a_public_url_nobody_at_a_private_address_is_dialled(
    daemon: Daemon, puppet: Puppets, serve: Serve, source: str, header: str
) -> None:
    """A laptop as it comes: what a peer says of its own address opens no way to what listens on this machine.

    Only who asks from the very address that it names has shown where it is; who asks through a proxy has not.
    """
    victim, inside = daemon("victim", AUTO, public_url=""), serve()
    peer = puppet("peer", victim, source)
    peer.headers_added = {header: "198.51.100.7"} if header else {}
    peer.url = inside.url
    peer.join()
    looked(victim, peer)
    assert inside.connections == 0, [asked.target for asked in inside.asked]


def test_a_peer_that_moves_to_a_private_address_is_not_followed(daemon: Daemon, puppet: Puppets, serve: Serve) -> None:
    """Nor by a newer manifest after the pair is live."""
    victim, inside = daemon("victim", AUTO, public_url=""), serve()
    peer = puppet("peer", victim).join()
    peer.url = inside.url
    peer.poll(manifest=peer.manifest(signed_ms=now_ms() + 1))
    looked(victim, peer)
    assert inside.connections == 0, [asked.target for asked in inside.asked]


def test_what_the_operator_typed_is_dialled(daemon: Daemon, puppet: Puppets) -> None:
    """His own word opens a private address, with a public URL or without: the thief's page is fetched."""
    victim = daemon("victim", public_url="")
    peer = puppet("peer", victim)
    list(victim.steps(peer.url + "/"))
    assert "/.well-known/syncropel" in [asked.target for asked in peer.server.asked]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1"])
def test_loopback_is_judged_by_the_address_that_a_name_resolves_to(
    daemon: Daemon, puppet: Puppets, serve: Serve, host: str
) -> None:
    """Our own URL is a private one, so private peers are near; this machine's own services are not."""
    config = '[federation]\napproval = "auto"\nallow_http = true\n'
    victim, inside = daemon("victim", config, public_url="http://10.0.0.5:9100"), serve()
    peer = puppet("peer", victim)
    peer.url = f"http://{host}:{inside.port}"
    peer.join()
    looked(victim, peer)
    assert inside.connections == 0, [asked.target for asked in inside.asked]


def test_a_check_tells_reached_or_not_and_nothing_else(alice: Victim, puppet: Puppets, serve: Serve) -> None:
    """A closed port, one that answers, one that answers with another DID: the peer cannot tell them apart."""
    other = puppet("other", alice)
    answering, leading_on = serve(418), serve(302, location=other.url + "/")
    places = [f"http://127.0.0.1:{free_port()}", answering.url, leading_on.url, other.url]
    told = []
    for number, place in enumerate(places):
        peer = puppet(f"peer-{number}", alice)
        peer.url = place
        seen = looked(alice, peer.join())
        seen.pop("url", None)
        told.append(seen)
    assert told == [{"reached": False}] * len(places)
    reached = looked(alice, puppet("honest", alice).join())
    assert reached["reached"] is True


# -- names


def named_alike(victim: Victim, prefix: str) -> Stranger:
    """Return a stranger of the same label whose pair id has this prefix."""
    stranger = Stranger(born("bob"), victim)
    while True:
        nonce = secret_hex(16)
        if messages.pair_id_of(stranger.who.did, victim.did, nonce).startswith(prefix):
            assert stranger.request(nonce=nonce).status == 202
            return stranger


def test_a_request_does_not_take_the_short_name_of_a_pair(wary: Victim, puppet: Puppets) -> None:
    """Label, DID without its digits, prefix of the id: all mean the pair that was agreed on."""
    bob = puppet("bob", wary).join()
    prefix = bob.pair_id[: len("pair_") + 1]
    stranger = named_alike(wary, prefix)
    for ref in ("did:sync:instance:bob", "bob", prefix, bob.pair_id, bob.who.did):
        answer = wary.api("GET", f"/v1/federation/pairs/{ref}")
        assert answer.status == 200, f"{ref}: {answer.body!r}"
        assert answer.json["pair_id"] == bob.pair_id, ref
    wary.run("federation", "pause", "did:sync:instance:bob")
    assert wary.pair(bob.pair_id)["state"] == "paused"
    assert wary.pair(stranger.pair_id)["state"] == "establishing", "the request is still named by its own id"


def test_a_request_does_not_shadow_a_pair_in_bulk(wary: Victim, puppet: Puppets) -> None:
    """Neither do those that were withdrawn, nor after a restart."""
    bob = puppet("bob", wary).join()
    for number in range(3):
        other = Stranger(born("bob"), wary, f"127.0.3.{number + 1}")
        assert other.request().status == 202
        if number:
            other.withdraw()
    for victim in (wary, wary.again()):
        assert victim.pair("did:sync:instance:bob")["pair_id"] == bob.pair_id


def test_a_request_shows_that_it_asks_for_the_whole_history(wary: Victim) -> None:
    """What is approved is named: from the beginning is another thing than from now on."""
    mallory = Stranger(born("mallory"), wary)
    assert mallory.request(start="beginning").status == 202
    shown = wary.run("aitl", "show", mallory.pair_id).out
    assert re.search(r"beginning|history", shown), shown


# -- time


@dataclass
class Ahead(Victim):
    """A daemon whose clock may run 85 days ahead."""

    fault: str = ""

    def command(self, *words: str) -> list[str]:
        """Return the command that starts it, with the wrong clock if one is set."""
        fault = ["-m", "tests.e2e.faults", self.fault] if self.fault else ["-m", "spl"]
        return [sys.executable, *fault, *words]


def signed_at(victim: Victim) -> int:
    """Return when the manifest that it publishes was signed, as it says."""
    reply = wire.ask(victim.port, "GET", "/.well-known/syncropel")
    return ms_of(reply.json["signature"]["signed_at"])


def test_a_start_with_a_wrong_clock_dates_no_manifest_far_ahead_for_ever(tmp_path: Path) -> None:
    """One start 85 days ahead, then the right time: what is published is at most a day away from it."""
    bob = Ahead("bob", tmp_path / "bob" / "home")
    bob.home.mkdir(parents=True, mode=0o700)
    bob.run("init", "--label", "bob")
    try:
        bob.start("--public-url", bob.url.rstrip("/"))
        first = signed_at(bob)
        assert bob.stop() == 0
        bob.fault = "85-days-later"
        bob.start()
        signed_at(bob)
        bob.kill()
        bob.fault = ""
        bob.start()
        now = signed_at(bob)
        assert now > first, "the manifest does not rise"
        days = (now - now_ms()) / DAY_MS
        assert now < now_ms() + DAY_MS + 5 * MINUTE_MS, f"the manifest is dated {days:.1f} days ahead"
    finally:
        bob.end()


def test_a_manifest_from_far_ahead_is_no_floor_for_later_ones(alice: Victim, puppet: Puppets) -> None:
    """A peer whose clock was wrong for a moment is believed again when it is right."""
    peer = puppet("peer", alice).join()
    peer.poll(manifest=peer.manifest(signed_ms=now_ms() + 365 * DAY_MS))
    peer.who.rotate("retired", now_ms())
    assert peer.poll(manifest=peer.manifest(signed_ms=now_ms() + 1)).status == 200
    assert alice.pair(peer.pair_id)["state"] == "active"
