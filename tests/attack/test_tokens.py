"""What is revoked stays dead, and what was captured works nowhere and never again."""

import json
import re

import pytest

from tests.attack.adversary import wire
from tests.attack.adversary.puppet import Puppet
from tests.attack.adversary.text import ms_of, now_ms
from tests.attack.conftest import Puppets
from tests.attack.measure import Victim
from tests.attack.probes import dial, drop, head, received, status_of, until
from tests.e2e.harness import ROOT, eventually

CHANGES = "/v1/sync/changes?limit=10"
MINUTE_MS = 60_000
DAY_MS = 86_400_000

ODD_HEADERS = {
    "last-event-id": ("0", "999999", "x"),
    "accept-encoding": ("deflate", "gzip", "identity;q=0"),
    "content-type": ("application/x-ndjson", "text/plain", ""),
    "content-encoding": ("deflate", "identity"),
    "x-forwarded-for": ("127.0.0.9", "1.2.3.4, 5.6.7.8", "x"),
    "cookie": ("spl-page=x", "a=b; spl-page-00000000=y"),
    "x-api-key": ("x", ""),
    "origin": ("http://evil.example", "null"),
    "host": ("evil.example", ""),
    "accept": ("text/html", "text/event-stream"),
    "if-none-match": ("*", '"x"'),
    "connection": ("upgrade", "close, spl-proof"),
    "expect": ("100-continue", "x"),
    "transfer-encoding": ("identity", "chunked, chunked"),
    "content-length": ("0", "x"),
    "range": ("bytes=0-1",),
    "x-http-method-override": ("DELETE",),
    "x-original-url": ("/v1/tokens",),
    "prefer": ("return=minimal",),
}
"""Header -> what a thief might put there; none of them is signed."""
UNDER_THE_PROOF = {"authorization", "spl-proof"}
OF_ANSWERS = {"location", "server", "date", "retry-after", "age"}
"""Read of what others answer to us."""


def works(peer: Puppet) -> bool:
    """Return whether the peer reads with the token that it holds."""
    return peer.call("GET", CHANGES).status == 200


def taken(peer: Puppet) -> bool:
    """Let the peer ask for a new token, take it if it gets one, and return whether it did."""
    reply = peer.renew()
    sealed = reply.fields.get("token") if reply.status == 200 else None
    if sealed is None:
        return False
    peer.token = peer.opened(sealed)
    return True


def issued(victim: Victim, peer: Puppet) -> list[dict[str, str]]:
    """Return the tokens that the victim minted for the pair."""
    tokens = victim.api("GET", "/v1/tokens").json["data"]
    return [token for token in tokens if token["pair_id"] == peer.pair_id]


# -- revoked by hand


def test_a_token_revoked_by_hand_is_not_renewed_by_the_peer(alice: Victim, puppet: Puppets) -> None:
    """Neither by a signed renewal nor by a poll, nor after a restart."""
    peer = puppet("peer", alice).join()
    assert works(peer)
    [token] = issued(alice, peer)
    assert alice.api("DELETE", f"/v1/tokens/{token['token_id']}").status == 200
    assert not works(peer)
    for victim in (alice, alice.again()):
        assert not taken(peer), "the peer got a new token for the one that was revoked"
        peer.poll(token_id=token["token_id"], renew=True)
        assert not works(peer)
        assert [item["token_id"] for item in issued(victim, peer) if item["state"] == "live"] == []


@pytest.mark.parametrize("how", ["resume", "rotate"])
def test_the_owner_gives_a_revoked_pair_a_token_again(alice: Victim, puppet: Puppets, how: str) -> None:
    """Resuming the pair, or rotating its tokens, is the owner's word; then the peer renews as ever."""
    peer = puppet("peer", alice).join()
    [token] = issued(alice, peer)
    assert alice.api("DELETE", f"/v1/tokens/{token['token_id']}").status == 200
    assert not taken(peer)
    if how == "resume":
        alice.api("POST", f"/v1/federation/pairs/{peer.pair_id}/pause", {})
    action = "resume" if how == "resume" else "rotate-tokens"
    answer = alice.api("POST", f"/v1/federation/pairs/{peer.pair_id}/{action}", {})
    assert answer.status == 200, answer.body
    assert taken(peer), f"{how} does not lift the revocation"
    assert works(peer)


def test_a_token_that_a_renewal_retired_can_be_renewed_again(alice: Victim, puppet: Puppets) -> None:
    """Only the operator's hand blocks: a token that ended because its successor was used does not."""
    peer = puppet("peer", alice).join()
    for _ in range(3):
        assert taken(peer)
        assert works(peer)


@pytest.mark.parametrize("path", ["/v1/snapshot", "/v1/threads/th_long/snapshot", "/v1/records?limit=10000"])
def test_nothing_is_read_on_with_a_revoked_token(alice: Victim, path: str) -> None:
    """The thief reads slowly: what it asked for before the revocation ends too, and not as if it were whole."""
    value = {"act": "DO", "actor": "did:sync:user:a", "thread": "th_long"}
    headers = {"authorization": f"Bearer {alice.token}", "content-type": "application/x-ndjson"}
    for part in range(2):
        lines = [json.dumps({**value, "body": {"n": part * 100 + n, "text": "x" * 60_000}}) for n in range(100)]
        assert alice.request("POST", "/v1/records", "\n".join(lines).encode(), headers).status == 200
    minted = alice.api("POST", "/v1/tokens", {"scopes": ["admin"]}).json
    sock = dial(alice.port, receive_bytes=8192)
    try:
        sock.sendall(head("GET", path, authorization=f"Bearer {minted['token']}", connection="close"))
        assert status_of(until(sock, b"\r\n\r\n")) == 200
        assert alice.api("DELETE", f"/v1/tokens/{minted['token_id']}").status == 200
        rest = received(sock)
    finally:
        drop(sock)
    assert b"0\r\n\r\n" not in rest[-16:]


def test_revoking_an_account_kills_all_its_tokens(alice: Victim, puppet: Puppets) -> None:
    """After a renewal the account of a pair has two: one command ends both, and the peer gets no third."""
    peer = puppet("peer", alice).join()
    first = peer.token
    assert taken(peer)
    second = peer.token
    account = "sa_" + peer.pair_id.removeprefix("pair_")
    answer = alice.api("DELETE", f"/v1/tokens/{account}")
    assert answer.status == 200, answer.body
    for token in (first, second):
        peer.token = token
        assert not works(peer)
    assert {item["state"] for item in issued(alice, peer)} == {"revoked"}
    assert not taken(peer)


def test_revoking_an_account_kills_the_successors_of_a_rotated_token(alice: Victim) -> None:
    """An ordinary token keeps its account when it is rotated."""
    made = alice.api("POST", "/v1/tokens", {"scopes": ["records:read"]}).json
    rotated = alice.api("POST", f"/v1/tokens/{made['token_id']}/rotate", {}).json
    assert rotated["sa_id"] == made["sa_id"]
    answer = alice.api("DELETE", f"/v1/tokens/{made['sa_id']}")
    assert answer.status == 200, answer.body
    found = [alice.api("GET", "/v1/threads", token=item["token"]).status for item in (made, rotated)]
    assert found == [401, 401]


def test_no_session_of_the_page_outlives_the_token_that_made_its_link(alice: Victim) -> None:
    """The thief of an admin token keeps a link and a session for later: both end with the token, for good."""
    made = alice.api("POST", "/v1/tokens", {"scopes": ["admin"]}).json
    urls = [alice.api("POST", "/v1/ui/links", {}, token=made["token"]).json["url"] for _ in range(2)]
    first, second = (url.split(f":{alice.port}")[1] for url in urls)
    opened = wire.ask(alice.port, "GET", first)
    assert opened.status == 200, opened
    cookie = opened.headers["set-cookie"].split(";")[0]
    sock = dial(alice.port)
    try:
        sock.sendall(head("GET", "/ui/events", cookie=cookie, connection="close"))
        assert status_of(until(sock, b"event: stale")) == 200
        assert alice.api("DELETE", f"/v1/tokens/{made['token_id']}").status == 200
        received(sock)  # its end
    finally:
        drop(sock)
    assert wire.ask(alice.port, "GET", second).status == 401
    for victim in (alice, alice.again()):
        for path in ("/ui/", "/ui/events"):
            assert wire.ask(victim.port, "GET", path, headers={"cookie": cookie}).status == 401


# -- captured


def test_a_captured_request_is_worth_nothing_after_a_restart(alice: Victim, puppet: Puppets) -> None:
    """Used once it is refused at once; it is refused by the next process too."""
    peer = puppet("peer", alice).join()
    captured = peer.headers("GET", CHANGES)
    replies = [wire.ask(alice.port, "GET", CHANGES, headers=captured) for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 401]
    alice.again()
    reply = wire.ask(alice.port, "GET", CHANGES, headers=captured)
    assert reply.status == 401, f"a restart made the captured request good again: {reply}"


def test_a_request_held_back_over_a_restart_is_refused(alice: Victim, puppet: Puppets) -> None:
    """A proof that was never used, taken off the wire before the restart, works as little."""
    peer = puppet("peer", alice).join()
    captured = peer.headers("GET", CHANGES)
    alice.again()
    assert wire.ask(alice.port, "GET", CHANGES, headers=captured).status == 401
    assert works(peer)


def started_at(victim: Victim, ahead_ms: int) -> None:
    """Let the daemon's clock be so far ahead from its next start on."""
    assert victim.stop() == 0
    victim.env["PYTHONPATH"] = f"{ROOT / 'tests/homes/clock'}:{ROOT}"
    victim.env["SPL_TEST_CLOCK_AHEAD_MS"] = str(ahead_ms)
    victim.start()


def test_a_captured_request_is_worth_nothing_when_its_time_comes_again(alice: Victim, puppet: Puppets) -> None:
    """The daemon's clock is a day ahead, then right, then once more at what was that day: the peer is served each time,
    the thief never."""
    peer = puppet("peer", alice).join()
    started_at(alice, DAY_MS)
    captured_ms = now_ms() + DAY_MS
    captured = peer.headers("GET", CHANGES, issued_ms=captured_ms)
    replies = [wire.ask(alice.port, "GET", CHANGES, headers=captured) for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 401], replies
    started_at(alice, 0)
    reply = wire.ask(alice.port, "GET", CHANGES, headers=captured)
    assert (reply.status, reply.json["reason"]) == (401, "proof-time")
    served = peer.headers("GET", CHANGES, era=reply.json["era"])
    assert [wire.ask(alice.port, "GET", CHANGES, headers=served).status for _ in range(2)] == [200, 401]
    ahead_ms = captured_ms - now_ms() - 2000  # it comes two seconds after the start, or just before it
    started_at(alice, ahead_ms)

    def has_passed() -> bool:
        reply = wire.ask(alice.port, "GET", CHANGES, headers=captured)
        assert reply.status == 401, "the captured request counts again"
        return now_ms() + ahead_ms > captured_ms + 100

    eventually(has_passed, "the date of the captured request is over")
    era = wire.ask(alice.port, "GET", CHANGES, headers=served).json["era"]
    served = peer.headers("GET", CHANGES, issued_ms=now_ms() + ahead_ms, era=era)
    assert wire.ask(alice.port, "GET", CHANGES, headers=served).status == 200


@pytest.mark.parametrize("name", sorted(ODD_HEADERS))
def test_no_other_header_changes_what_a_signed_request_brings(alice: Victim, puppet: Puppets, name: str) -> None:
    """Whoever holds a request back may add what it likes: the peer's page is what comes, or a refusal."""
    peer = puppet("peer", alice).join()
    alice.emit("th_a", 3)
    plain = peer.call("GET", CHANGES).json
    for value in ODD_HEADERS[name]:
        reply = wire.ask(alice.port, "GET", CHANGES, headers={**peer.headers("GET", CHANGES), name: value})
        if reply.status == 200 and name != "accept-encoding":
            assert reply.json["records"] == plain["records"], value
        assert reply.status in (200, 400, 401, 403, 413, 415, 417, 421, 501), reply
        assert set(reply.headers) <= {
            "content-type", "content-length", "date", "connection", "x-content-type-options", "content-encoding",
            "vary", "www-authenticate", "cache-control", "transfer-encoding", "allow",
        }, reply.headers  # fmt: skip


def test_the_headers_that_the_product_reads_are_these() -> None:
    """A new one belongs under the proof, or into the table above with what it may change."""
    found = set()
    for file in (file for folder in ("api", "net", "pairing") for file in (ROOT / "spl" / folder).glob("*.py")):
        found |= set(re.findall(r"""headers(?:\.get\(|\[)"([a-z-]+)\"""", file.read_text()))
        found |= set(re.findall(r"""\"([a-z-]+)\" (?:not )?in (?:\w+\.)?headers""", file.read_text()))
    assert found <= {*ODD_HEADERS, *UNDER_THE_PROOF, *OF_ANSWERS}, found - {*ODD_HEADERS, *UNDER_THE_PROOF, *OF_ANSWERS}


def test_a_peer_whose_clock_is_behind_signs_again_after_a_restart(alice: Victim, puppet: Puppets) -> None:
    """The refusal tells our time, by which the peer signs again; its pair does not degrade."""
    peer = puppet("peer", alice).join()
    alice.again()
    late = peer.headers("GET", CHANGES, issued_ms=now_ms() - MINUTE_MS)
    reply = wire.ask(alice.port, "GET", CHANGES, headers=late)
    assert (reply.status, reply.json.get("reason")) == (401, "proof-time"), reply
    again = peer.headers("GET", CHANGES, issued_ms=ms_of(reply.json["time"]) + 1)
    assert wire.ask(alice.port, "GET", CHANGES, headers=again).status == 200


def test_our_own_daemon_signs_again_when_a_peer_tells_its_time(alice: Victim, puppet: Puppets) -> None:
    """The peer's clock is a minute ahead and it has just started: one refusal, then a proof by its time."""
    peer = puppet("peer", alice).join()
    ahead_ms = now_ms() + MINUTE_MS
    peer.refuse_proofs_before(ahead_ms)
    answer = alice.api("POST", f"/v1/federation/pairs/{peer.pair_id}/sync", {})
    assert answer.status == 200, answer.body
    assert alice.pair(peer.pair_id)["state"] == "active"


def test_another_last_event_id_shows_nothing_else(alice: Victim, puppet: Puppets) -> None:
    """Who holds a request back and puts in another header gets no other records than the signed target asks for."""
    peer = puppet("peer", alice).join()
    start = peer.call("GET", CHANGES).json["next_cursor"]
    old = alice.emit("th_a", 5)
    now = peer.call("GET", CHANGES).json["next_cursor"]
    target = f"/v1/sync/changes?feed=continuous&since={now}"
    with wire.Line(alice.port) as line:
        line.send("GET", target, headers={**peer.headers("GET", target), "last-event-id": start})
        status, _ = line.read_head()
        if status != 200:
            assert status in (400, 401), status
            return
        fresh = alice.emit("th_a", 1, fresh=True)
        seen = next(json.loads(data)["id"] for event, _, data in line.events() if event == "record.created")
    assert seen not in old, "the header brought what the signed target does not ask for"
    assert [seen] == fresh


# -- what a refusal tells


def test_an_unknown_and_a_malformed_bearer_are_told_apart_by_nobody(alice: Victim) -> None:
    """Status, code and text are the same, so a guess at the form of tokens learns nothing."""
    bearers = ["x", "spl_home_sa_00000000_" + "a" * 64, "spl_fed_sa_ffffffff_" + "0" * 64, "spl__"]
    found = [alice.api("GET", "/v1/threads", token=text) for text in bearers]
    assert {answer.status for answer in found} == {401}
    assert len({answer.body for answer in found}) == 1, {answer.body for answer in found}


def test_no_refusal_and_no_log_line_holds_a_token(alice: Victim, puppet: Puppets) -> None:
    """Whatever is sent with it, the secret of a bearer stands nowhere."""
    peer = puppet("peer", alice).join()
    secret = peer.token.rpartition("_")[2]
    replies = [
        wire.ask(alice.port, "GET", CHANGES, headers={"authorization": f"Bearer {peer.token}"}),
        wire.ask(alice.port, "GET", f"/v1/threads?token={peer.token}"),
        wire.ask(alice.port, "GET", CHANGES, headers={**peer.headers("GET", CHANGES), "spl-proof": peer.token}),
        wire.ask(alice.port, "GET", f"/v1/{peer.token}", headers={"authorization": f"Basic {peer.token}"}),
    ]
    assert all(reply.status >= 400 for reply in replies), replies
    assert [reply for reply in replies if secret.encode() in reply.body] == []
    eventually(lambda: alice.is_ready(), "the daemon serves on")
    assert secret not in alice.log_text()
