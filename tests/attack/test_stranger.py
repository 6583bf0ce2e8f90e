"""Before its approval a stranger costs almost nothing, for ever, and gets nowhere by what it only claims."""

import json
import re

import pytest

from tests import pages
from tests.attack.adversary import messages, wire
from tests.attack.adversary.keys import born
from tests.attack.adversary.messages import PAIR
from tests.attack.adversary.puppet import Stranger, target_of
from tests.attack.adversary.text import canonical, now_ms
from tests.attack.conftest import AUTO, Daemon, Puppets
from tests.attack.measure import MIB, Victim

KIB = 1024
PENDING_MAX = 64
PER_ADDRESS = 4
PADDING = 6 * KIB
"""With it a manifest stays within what an honest one may have."""
RECORDS_BYTES = 24 * KIB
"""What the records of one request may take in the log."""
AITL_RULES = "/v1/config/aitl-rules"


def address(number: int) -> str:
    """Return the address of a stranger of its own."""
    return f"127.0.{1 + number // 200}.{1 + number % 200}"


def nested(levels: int) -> object:
    """Return an empty list inside so many others."""
    value: list[object] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# -- what a request may carry


@pytest.mark.parametrize(
    ("name", "value"),
    [("padding", "x" * 50 * KIB), ("lists", [[] for _ in range(18_000)]), ("deep", nested(20))],
    ids=["fat", "many lists", "deep"],
)
def test_a_request_with_an_overgrown_manifest_is_refused_and_leaves_nothing(
    wary: Victim, name: str, value: object
) -> None:
    """A manifest is capped and messages nest 8 deep; what is beyond is no request."""
    mallory, before = Stranger(born("mallory"), wary), wary.log_bytes
    reply = mallory.request(mallory.manifest(**{name: value}))
    assert 400 <= reply.status < 500, reply
    assert wary.waiting() == []
    assert wary.pairs() == []
    assert wary.log_bytes - before < KIB, "a refused request was written to the log"


def test_a_poll_nested_beyond_eight_levels_is_refused(wary: Victim) -> None:
    """The bound holds for every message, not only for the first."""
    mallory = Stranger(born("mallory"), wary)
    assert mallory.request().status == 202
    reply = mallory.poll(more=nested(20))
    assert 400 <= reply.status < 500, reply


def test_an_ordinary_request_with_unknown_members_waits(wary: Victim) -> None:
    """The caps leave room for what a later version may add."""
    mallory = Stranger(born("mallory"), wary)
    assert mallory.request(mallory.manifest(later={"more": [{"of": "it"}]})).status == 202
    assert len(wary.waiting()) == 1


# -- polls


def test_polls_before_approval_bring_no_manifest_into_the_log(wary: Victim) -> None:
    """A hundred polls, each with a newer manifest: neither log nor start grows with them."""
    mallory = Stranger(born("mallory"), wary)
    assert mallory.request().status == 202
    before = wary.log_bytes
    for number in range(100):
        newer = mallory.manifest(padding=f"{number:04}" + "x" * PADDING, signed_ms=now_ms() + number)
        mallory.poll(manifest=newer)
    assert wary.log_bytes - before < 16 * KIB, "polls of a stranger were written to the log"
    assert wary.reserved("th_federation_pairs", "peer_manifest_changed.v1") == []


def test_a_start_costs_the_same_whatever_strangers_sent(wary: Victim) -> None:
    """Forty requests of the largest kind, polled with ever other manifests: memory after a start is as before."""
    before = wary.again().peak_bytes
    target = target_of(wary.port)
    for number in range(40):
        mallory = Stranger(born("mallory"), wary, address(number), target=target)
        mallory.request(mallory.manifest(lists=[[] for _ in range(1500)]))
        for later in range(5):
            manifest = mallory.manifest(lists=[[later]] * 1000, signed_ms=now_ms() + later)
            mallory.poll(manifest=manifest)
    assert wary.again().peak_bytes - before < 8 * MIB, "the memory of a start depends on what strangers sent"
    assert wary.is_ready()


def test_nobody_is_dialled_before_approval(wary: Victim, puppet: Puppets) -> None:
    """Neither for the request, nor for polls, nor when it is withdrawn."""
    mallory = puppet("mallory", wary)
    assert mallory.request().status == 202
    for number in range(3):
        assert mallory.poll(manifest=mallory.manifest(signed_ms=now_ms() + number)).status == 202
    wary.api("GET", f"/v1/aitl/{mallory.pair_id}")
    mallory.withdraw()
    assert mallory.server.connections == 0, [asked.target for asked in mallory.server.asked]


# -- requests and withdrawals


def test_withdrawn_requests_count_against_their_address(wary: Victim) -> None:
    """Four requests an address in 24 hours, whether they were taken back or not."""
    target, found = target_of(wary.port), []
    for _ in range(PER_ADDRESS + 2):
        mallory = Stranger(born("mallory"), wary, address(0), target=target)
        found.append(mallory.request().status)
        mallory.withdraw()
    assert found == [202] * PER_ADDRESS + [429] * 2
    assert Stranger(born("other"), wary, address(1), target=target).request().status == 202


def test_withdrawn_requests_count_in_all_and_after_a_restart(wary: Victim) -> None:
    """Sixty-four requests of whatever addresses in 24 hours; the one beyond is refused, after a restart too."""
    target, before = target_of(wary.port), wary.log_bytes
    for number in range(PENDING_MAX):
        mallory = Stranger(born("mallory"), wary, address(number // PER_ADDRESS), target=target)
        assert mallory.request().status == 202, f"request {number} of {PENDING_MAX}"
        mallory.withdraw()
    assert Stranger(born("late"), wary, address(100), target=target).request().status == 429
    grown = wary.log_bytes - before
    assert grown < PENDING_MAX * RECORDS_BYTES, f"{grown // PENDING_MAX} bytes of log for a withdrawn request"
    wary.again()
    assert Stranger(born("later"), wary, address(101), target=target).request().status == 429
    assert wary.waiting() == []


def test_asking_and_withdrawing_leaves_no_memory_behind(wary: Victim) -> None:
    """Forty requests of one address, each with as heavy a manifest as it gets through and withdrawn at once."""
    target, before, logged = target_of(wary.port), wary.forget_peak(), wary.log_bytes
    for _ in range(40):
        mallory = Stranger(born("mallory"), wary, address(0), target=target)
        mallory.request(mallory.manifest(lists=[[] for _ in range(17_000)]))
        mallory.withdraw()
    assert wary.rss_bytes - before < 8 * MIB, "withdrawn requests stay in memory"
    assert wary.log_bytes - logged < 256 * KIB, "withdrawn requests of one address fill the log"


def test_of_an_ended_request_only_ids_did_and_reason_stay(wary: Victim) -> None:
    """What the stranger claimed goes with the request, also over a restart."""
    mallory = Stranger(born("mallory"), wary, url="http://claimed.example:4711")
    assert mallory.request(mallory.manifest(claim="worded-claim")).status == 202
    mallory.withdraw()
    for victim in (wary, wary.again()):
        shown = victim.pair(mallory.pair_id)
        assert (shown["pair_id"], shown["peer_did"], shown["state"]) == (mallory.pair_id, mallory.who.did, "revoked")
        assert shown["reason"], shown
        assert "claimed.example" not in json.dumps(shown), "the manifest of an ended request is kept"


# -- what is verified first


def test_the_signature_of_a_message_is_verified_before_the_chain_inside(wary: Victim) -> None:
    """A forged message with a chain that does not hold is refused for its signature: no statement was verified."""
    mallory = born("mallory").rotate().rotate().rotate()
    for step in mallory.rotations:
        step["signature"] = mallory.rotations[0]["signature"]
    target = target_of(wary.port)
    own = messages.manifest(mallory, "http://127.0.0.1:9")
    value = messages.signed("pair-request", messages.pair_request(mallory, own, target), born("forger").key)
    reply = wire.ask(wary.port, "POST", PAIR, canonical(value))
    assert (reply.status, reply.code) == (401, "MESSAGE_SIGNATURE"), reply


@pytest.mark.parametrize(("links", "waits"), [(8, True), (9, False)])
def test_a_stranger_shows_a_chain_of_at_most_eight_links(wary: Victim, links: int, waits: bool) -> None:
    """Each link costs a verification, and this DID is not known yet."""
    mallory = Stranger(born("mallory"), wary)
    for _ in range(links):
        mallory.who.rotate()
    reply = mallory.request()
    assert (reply.status == 202) is waits, reply
    assert reply.status < 500, reply
    assert len(wary.waiting()) == waits


# -- budgets


def test_garbage_from_the_address_of_a_peer_takes_nothing_from_it(alice: Victim, puppet: Puppets) -> None:
    """Behind a proxy all come from one address: the peer renews and revokes while a stranger sends garbage."""
    peer = puppet("peer", alice).join()
    garbage = wire.statuses(alice.port, 200, PAIR, b'{"no":"message"}')
    assert 429 in garbage, "garbage has no bound of its own"
    assert peer.renew().status == 200
    assert peer.poll().status == 200
    assert peer.withdraw().status == 200


def test_forged_messages_about_a_pair_take_nothing_from_it(alice: Victim, puppet: Puppets) -> None:
    """A message counts against a pair after its signature held, and only then."""
    peer = puppet("peer", alice).join()
    fields = {**messages.head(peer.who.did, alice.did, peer.pair_id), "state": "active"}
    forged = canonical(messages.signed("pair-poll", fields, born("forger").key))
    found = wire.statuses(alice.port, 700, f"{PAIR}/{peer.pair_id}/poll", forged)
    assert found <= {401, 429}, found
    assert peer.renew().status == 200


CLOSED = '[federation]\napproval = "closed"\n'
DENY = {"name": "nobody", "resource": "federation:pair", "action": "deny", "expression": "true"}


@pytest.mark.parametrize("how", ["closed", "rule"])
def test_refused_strangers_do_not_fill_the_memory_of_nonces(daemon: Daemon, puppet: Puppets, how: str) -> None:
    """Policy and rules are asked before a nonce is kept; those of live pairs have room of their own."""
    limits = "[limits]\nnonces_count = 20\n"
    victim = daemon("victim", AUTO + limits)
    peer = puppet("peer", victim).join()
    if how == "closed":
        victim.configure(CLOSED + limits).again()
    else:
        assert victim.api("POST", "/v1/config/permission-rules", DENY).status == 200
    refused = []
    for number in range(60):
        stranger = Stranger(born("mallory"), victim, address(number), target=peer.target)
        refused.append(stranger.request().status)
    assert set(refused) <= {401, 403, 429}, refused
    assert {401, 403} & set(refused), refused
    assert peer.renew().status == 200, "strangers filled the memory of nonces"


def test_a_trusted_proxy_says_who_asks_and_nobody_else_does(daemon: Daemon) -> None:
    """`http.trusted_proxies` names who is believed; the last address that it adds counts, an IPv6 one by its /64."""
    victim = daemon("victim", '[http]\ntrusted_proxies = ["127.0.9.0/24"]\n')
    target = target_of(victim.port)

    def ask(said: str, source: str) -> int:
        stranger = Stranger(born("mallory"), victim, source, target=target)
        stranger.headers_added = {"x-forwarded-for": said}
        return stranger.request().status

    one_net = [ask(f"2001:db8:1:2::{number:x}", "127.0.9.1") for number in range(1, PER_ADDRESS + 2)]
    assert one_net == [202] * PER_ADDRESS + [429], "the addresses of one /64 have one budget"
    assert ask("2001:db8:1:3::1", "127.0.9.2") == 202, "another /64 has its own"
    assert ask("198.51.100.7, 2001:db8:1:2::77", "127.0.9.1") == 429, "the address that the proxy added counts"
    own = [ask(f"198.51.100.{number}", "127.0.3.1") for number in range(PER_ADDRESS + 1)]
    assert own == [202] * PER_ADDRESS + [429], "an address that is no trusted proxy cannot name another"


# -- rules of approval


def rule(expression: str) -> dict[str, str]:
    """Return a rule of automatic approval."""
    return {"name": "family", "action": "auto_apply", "expression": expression}


@pytest.mark.parametrize(
    "expression",
    [
        'request.host.endsWith(".home.example")',
        'request.label == "bob"',
        'request.endpoint.startsWith("http://bob.home.example")',
        'request.mode == "polling" && request.label == "bob"',
    ],
)
def test_a_rule_of_approval_that_names_only_claims_is_refused(wary: Victim, expression: str) -> None:
    """Who adds it is told why, and a stranger that claims all of it waits for the operator."""
    added = wary.api("POST", AITL_RULES, rule(expression))
    assert (added.status, added.code) == (400, "RULE_UNPROVED"), added.body
    told = added.json["message"] + added.json.get("hint", "")
    assert "initiator_did" in told, f"the refusal does not say which facts a rule may use: {told}"
    mallory = Stranger(born("bob"), wary, url="http://bob.home.example")
    assert mallory.request().status == 202


def test_a_claim_beside_what_is_proved_lets_nobody_in(wary: Victim) -> None:
    """A rule with both, refused or not, admits no stranger by the claim alone."""
    wary.api("POST", AITL_RULES, rule('request.label == "bob" || request.initiator_did == "did:of:a:friend"'))
    assert Stranger(born("bob"), wary).request().status == 202


@pytest.mark.parametrize("proved", ['request.initiator_did == "{did}"', 'peer.address == "127.0.3.7"'])
def test_a_rule_of_approval_that_names_what_is_proved_admits_it(wary: Victim, proved: str) -> None:
    """That is enough, and the same rule does not admit another instance."""
    friend = Stranger(born("friend"), wary, "127.0.3.7")
    assert wary.api("POST", AITL_RULES, rule(proved.replace("{did}", friend.who.did))).status == 200
    assert friend.request().status == 200
    assert Stranger(born("friend"), wary, "127.0.3.8").request().status == 202


def test_every_example_of_a_rule_of_approval_leans_on_what_is_proved(wary: Victim) -> None:
    """Those of the pages and of --help: people copy them."""
    text = pages.text() + wary.run("config", "add-aitl-rule", "--help").out
    examples = re.findall(r"add-aitl-rule [^\n]*(?:\n[^\n]*)?--expression +'([^']+)'", text)
    assert examples, "there is no example"
    proved = ("request.initiator_did", "request.words", "peer.address")
    assert [shown for shown in examples if not any(name in shown for name in proved)] == []


@pytest.mark.parametrize("step", ["revoke", "pause"])
def test_no_second_pair_is_a_reserve_against_the_operator(daemon: Daemon, puppet: Puppets, step: str) -> None:
    """A peer asks for two pairs, which a policy approves, and confirms the second when it loses the first."""
    victim = daemon("victim", AUTO)
    victim.emit("th_x")
    peer = puppet("peer", victim).join()
    first = peer.pair_id
    reply = peer.request()
    assert reply.status == 200, reply
    assert peer.pair_id != first
    peer.token = peer.opened(reply.fields["answer"]["message"]["token"])
    assert victim.api("POST", f"/v1/federation/pairs/{first}/{step}", {}).status == 200
    assert peer.call("GET", "/v1/sync/changes?limit=10").status in (401, 403, 404, 409, 410)
    assert peer.word("pair-confirm", "confirm").fields["state"] == "expired"
    assert peer.request().status == 202


@pytest.mark.parametrize("how", ["auto", "rule"])
def test_a_revoked_did_comes_back_only_by_the_operator(daemon: Daemon, puppet: Puppets, how: str) -> None:
    """Revoked without --block it may ask, and waits, whatever approves others by itself."""
    victim = daemon("victim", AUTO if how == "auto" else "")
    peer = puppet("peer", victim)
    if how == "rule":
        assert victim.api("POST", AITL_RULES, rule(f'request.initiator_did == "{peer.who.did}"')).status == 200
    peer.join()
    assert victim.api("POST", f"/v1/federation/pairs/{peer.pair_id}/revoke", {}).status == 200
    reply = peer.request()
    assert reply.status == 202, f"it was let in again: {reply}"
    assert len(victim.waiting()) == 1
