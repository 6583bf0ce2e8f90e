"""Approval by hand, and the peers that cannot be paired with: each says what happened and what to do next."""

import http.server
import json
import re
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Make
from tests.e2e.harness import Instance, free_port
from tests.waiting import eventually


@pytest.fixture
def carol(make: Make) -> Instance:
    """A running daemon that approves by hand, as is the default."""
    return make("carol").start()


def asked(alice: Instance, carol: Instance) -> str:
    """Let alice ask carol, give up waiting, and return the pair id."""
    done = alice.run("federation", "pair", carol.url, "--wait", "1s", code=8)
    lines = done.out.splitlines()
    assert lines[0] == f"Pairing with {carol.did} ({carol.url}) ..."
    assert lines[1] == "  ✓ manifest fetched + signature verified"
    assert lines[2].startswith("  ! POST /v1/federation/pair → 202 Accepted")
    [pair] = alice.pairs("establishing")
    assert f"spl aitl approve {pair['pair_id']}" in done.out + done.err
    return str(pair["pair_id"])


def test_approved_by_hand_the_pair_becomes_active_on_both_sides(alice: Instance, carol: Instance) -> None:
    """The command gives up with 8, the daemon goes on asking, and approval ends it without another command."""
    alice.emit("th_work", 3)
    pair_id = asked(alice, carol)
    [request] = carol.data("aitl", "list")
    assert (request["id"], request["from"], request["status"]) == (pair_id, alice.did, "pending")
    assert request["words"] == alice.data("identity", "show")["words"]
    table = carol.run("aitl", "list").out
    assert pair_id in table
    assert f"key: {request['words']}" in table
    shown = carol.run("aitl", "show", pair_id[:9]).out
    for fact in (alice.did, request["words"], "default", f"{alice.url}v1/federation/pair"):
        assert fact.rstrip("/") in shown
    carol.run("aitl", "approve", pair_id)
    for instance in (alice, carol):
        eventually(lambda one=instance: one.pairs("active"), f"active at {instance.name}")
        assert instance.pairs()[0]["pair_id"] == pair_id
    eventually(lambda: len(carol.records("th_work")) == 3, "the first sync of the approving side")
    assert carol.data("aitl", "list") == []


def test_rejected_by_hand_the_pair_ends_on_both_sides(alice: Instance, carol: Instance) -> None:
    """The reason reaches the one who asked; asking again is allowed and is a new request."""
    pair_id = asked(alice, carol)
    carol.run("aitl", "reject", pair_id, "--reason", "unknown key")
    eventually(lambda: alice.pairs("revoked"), "alice hears of the rejection")
    assert "unknown key" in json.dumps(alice.pair(pair_id))
    assert alice.pairs("active", "establishing") == carol.pairs("active", "establishing") == []
    carol.run("aitl", "approve", pair_id, code=None)
    assert carol.pairs("active") == []
    assert asked(alice, carol) != pair_id


def test_a_pending_pair_shares_nothing(alice: Instance, carol: Instance) -> None:
    """Before approval no token of either side opens anything and no record moves."""
    carol.emit("th_secret", 2)
    pair_id = asked(alice, carol)
    alice.run("sync", pair_id, code=None)
    assert alice.records("th_secret") == []
    assert carol.records("th_work") == []


def test_a_wrong_url_says_what_is_wrong(alice: Instance) -> None:
    """Not a URL: usage. Nothing listens: connect, may be retried. Something else answers: no manifest."""
    for url in ("bob.example", "ftp://bob.example/", "http://", "https://user:pw@bob.example/"):
        assert "[url-invalid]" in alice.run("federation", "pair", url, code=2).err
    plain = alice.run("federation", "pair", "http://8.8.8.8/", code=10)
    assert "[http-plain]" in plain.err
    down = alice.run("federation", "pair", f"http://127.0.0.1:{free_port()}/", code=9)
    assert re.match(r"error: .*\[connect\]\n", down.err)
    assert "\n  fix " in down.err
    assert alice.pairs() == []


def test_a_peer_without_identity_is_named_with_the_fix(make: Make, alice: Instance) -> None:
    """Its manifest is missing, and the fix is on its side."""
    dave = make("dave", bare=True).start()
    refused = alice.run("federation", "pair", dave.url, code=10)
    assert "[manifest-missing]" in refused.err
    assert re.search(r"fix +on the peer: spl identity generate", refused.err)


def test_a_peer_that_goes_down_is_retried_and_shown(alice: Instance, bob: Instance, pair_id: str) -> None:
    """sync fails with 9, show names error and next attempt, and everything goes on when it is back."""
    bob.kill()
    down = alice.run("sync", pair_id, code=9)
    assert re.search(r"\[(connect|disconnected|timeout)\]", down.err)
    detail = alice.pair(pair_id)
    assert detail["last_error"]["class"] == "CONNECT_REFUSED"
    assert detail["next_attempt_at"]
    bob.start()
    bob.emit("th_work", 2)
    alice.run("sync", pair_id)
    assert alice.holding() == bob.holding()
    eventually(lambda: alice.pair(pair_id)["state"] == "active", "active, had the attempts degraded it")


class _Pages(http.server.BaseHTTPRequestHandler):
    """Serves fixed JSON texts by path."""

    pages: dict[str, bytes]

    def do_GET(self) -> None:
        """Answer with the page, or 404."""
        page = self.pages.get(self.path)
        self.send_response(200 if page is not None else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(page or b"")))
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def impostor(bob: Instance) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server that repeats bob's documents, and the pages in it to change."""
    paths = ("/.well-known/syncropel", "/.well-known/did.json")
    pages = {path: bob.get(path).body for path in paths}
    handler = type("Pages", (_Pages,), {"pages": pages})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", pages
        server.shutdown()


def test_a_tampered_manifest_is_refused_in_the_pages_words(
    alice: Instance, impostor: tuple[str, dict[str, bytes]]
) -> None:
    """One changed member and the signature no longer verifies; --no-strict does not help."""
    url, pages = impostor
    whole = json.loads(pages["/.well-known/syncropel"])
    whole["federation_manifest"]["daemon"]["version"] = "9.9.9"
    pages["/.well-known/syncropel"] = json.dumps(whole).encode()
    for flags in ((), ("--no-strict",)):
        refused = alice.run("federation", "pair", url, *flags, code=10)
        assert refused.err.startswith(
            "error: manifest signature does not verify against advertised DID [manifest-signature]\n"
        )
    assert alice.pairs() == []


def test_documents_that_disagree_are_refused(
    alice: Instance, bob: Instance, carol: Instance, impostor: tuple[str, dict[str, bytes]]
) -> None:
    """A DID document of another instance beside bob's manifest."""
    url, pages = impostor
    pages["/.well-known/did.json"] = carol.get("/.well-known/did.json").body
    refused = alice.run("federation", "pair", url, code=10)
    assert re.search(r"\[(manifest-did-mismatch|manifest-signature)\]", refused.err)


@pytest.mark.parametrize(
    "page", [b"", b"{", b"[]", b"<html>", b'{"did":1}', b'{"a":1,"a":2}', b'{"x":"' + b"y" * 400_000 + b'"}']
)
def test_documents_of_another_form_are_refused(
    alice: Instance, impostor: tuple[str, dict[str, bytes]], page: bytes
) -> None:
    """Whatever is served in the manifest's place is refused with a code, and the daemon serves on."""
    url, pages = impostor
    pages["/.well-known/syncropel"] = page
    refused = alice.run("federation", "pair", url, code=None)
    assert refused.code in (9, 10), refused
    assert re.match(
        r"error: .*\[(manifest-malformed|answer-malformed|foreign-answer|body-too-large|peer-[45]xx)\]", refused.err
    )
    assert alice.get("/health/ready").status == 200
