"""Namespaces are walls: what one holds confirms, swallows and blocks nothing in another, and a token stays inside."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attack.adversary import messages
from tests.attack.adversary.keys import born
from tests.attack.adversary.puppet import Stranger
from tests.attack.conftest import Daemon, Puppets
from tests.attack.measure import Victim
from tests.e2e.harness import Answer

ACTOR = "did:sync:user:clerk"
CLOCK_MAX = 2**63 - 1
READ_WRITE = ["records:read", "records:write"]


@dataclass
class Tenant:
    """One who holds a token of a namespace and nothing else."""

    victim: Victim
    name: str
    token: str

    def write(self, text: str, thread: str = "th_salaries", **fields: object) -> Answer:
        """Write a record into the namespace and return the answer."""
        body = {"namespace": self.name, "text": text}
        value = {"act": "KNOW", "actor": ACTOR, "thread": thread, "body": body, **fields}
        return self.victim.api("POST", "/v1/records", value, self.token)

    def records(self, thread: str = "th_salaries") -> list[dict[str, Any]]:
        """Return what the tenant sees of a thread."""
        answer = self.victim.api("GET", f"/v1/threads/{thread}/records?limit=100", token=self.token)
        assert answer.status == 200, answer.body
        return list(answer.json["data"])


def minted(victim: Victim, scopes: list[str], *names: str) -> str:
    """Return a token of these scopes bound to these namespaces, "" where it is refused."""
    answer = victim.api("POST", "/v1/tokens", {"scopes": scopes, "namespaces": list(names)})
    if answer.status == 201:
        return str(answer.json["token"])
    assert 400 <= answer.status < 500, answer.body
    assert answer.json["message"], "a token is refused without a reason"
    return ""


def tenant(victim: Victim, name: str) -> Tenant:
    """Register a private namespace and return its tenant."""
    assert victim.api("POST", "/v1/namespaces", {"name": name}).status in (200, 201)
    return Tenant(victim, name, minted(victim, READ_WRITE, name))


@pytest.fixture
def vault(alice: Victim) -> Tenant:
    """The tenant of alice's private namespace `vault`."""
    return tenant(alice, "vault")


@pytest.fixture
def acme(alice: Victim) -> Tenant:
    """The tenant of another private namespace."""
    return tenant(alice, "acme")


def guess(ghost: Any, text: str) -> dict[str, Any]:
    """Return a record as the vault's tenant would write it, vouched for by a puppet of the adversary's."""
    return messages.record(ghost, "th_salaries", text, actor=ACTOR, body={"namespace": "vault"}, clock=0)


# -- ids


def test_a_pushed_guess_is_not_confirmed(alice: Victim, vault: Tenant, puppet: Puppets) -> None:
    """Three guesses at a private record, brought into `default`: the right one fares as the wrong ones do."""
    held = vault.write("91000").json["id"]
    mallory, ghost = puppet("mallory", alice).join(), born("ghost")
    guesses = [guess(ghost, text) for text in ("90000", "91000", "92000")]
    assert held == guesses[1]["id"], "the guess is not the record"
    told = [mallory.pushed(each, chains=[ghost]) for each in guesses]
    seen = [(answer["records"], [{**item, "id": ""} for item in answer["results"]]) for answer in told]
    assert seen[0] == seen[1] == seen[2], "the answer to the right guess differs"
    came = mallory.fetch(*(each["id"] for each in guesses))
    assert len(came) in (0, 3), f"of three guesses {len(came)} come back, so the rest is known"
    [record] = vault.records()
    assert record["vouched_by"] == alice.did


def test_what_a_peer_pushes_first_swallows_no_write_of_a_tenant(alice: Victim, vault: Tenant, puppet: Puppets) -> None:
    """The tenant writes what a peer's puppet has guessed before: it is the tenant's, and in the vault."""
    mallory, ghost = puppet("mallory", alice).join(), born("ghost")
    early = guess(ghost, "91000")
    mallory.push(early, chains=[ghost])
    answer = vault.write("91000", clock=0)
    assert (answer.status, answer.json["id"]) == (200, early["id"]), answer.body
    assert [record["vouched_by"] for record in vault.records()] == [alice.did], "the write went elsewhere"
    inside = tenant_of_default(alice).records()
    assert [record["id"] for record in inside] == [], "the tenant's record stands in `default`"
    assert early["id"] not in mallory.fetch(early["id"]), "the peer reads it back"


def tenant_of_default(victim: Victim) -> Tenant:
    """Return one who reads `default` and nothing else."""
    return Tenant(victim, "default", minted(victim, READ_WRITE, "default"))


def test_a_peer_cannot_tell_whether_a_record_outside_its_share_exists(
    alice: Victim, vault: Tenant, puppet: Puppets
) -> None:
    """Fetched by id, found by cursor or counted in a view: nothing of the vault shows."""
    mallory = puppet("mallory", alice).join()

    def view() -> object:
        reply = mallory.call("GET", "/v1/sync/changes?limit=10")
        return reply.json["records"], reply.json["peer_view"]["head"], len(reply.json["next_cursor"])

    before = view()
    held = [vault.write(str(number)).json["id"] for number in range(5)]
    assert mallory.fetch(*held) == []
    assert view() == before


# -- clocks


def test_a_tenant_cannot_end_the_clock_of_another(vault: Tenant, acme: Tenant) -> None:
    """The last clock of an actor in a thread, taken in `acme`, is not taken in `vault`."""
    assert acme.write("the end", clock=CLOCK_MAX).status == 200
    answer = vault.write("goes on")
    assert answer.status == 200, answer.body
    assert answer.json["clock"] == 0


def test_a_tenant_cannot_count_the_writes_of_another(vault: Tenant, acme: Tenant) -> None:
    """The next clock tells of one's own records only."""
    for number in range(7):
        assert acme.write(str(number)).status == 200
    clocks = [vault.write(str(number)).json["clock"] for number in range(3)]
    assert clocks == [0, 1, 2], f"seven writes of another tenant show in {clocks}"


def test_a_clock_taken_by_a_tenant_is_free_for_another(vault: Tenant, acme: Tenant) -> None:
    """DuplicateClock speaks of the namespace that is written to, also after a restart."""
    assert acme.write("first", clock=5).status == 200
    assert acme.write("another", clock=5).status == 400
    answer = vault.write("mine", clock=5)
    assert answer.status == 200, answer.body
    vault.victim.again()
    assert vault.write("next").json["clock"] == 6
    assert acme.write("next").json["clock"] == 6


def test_a_tenant_reads_nothing_of_another(vault: Tenant, acme: Tenant) -> None:
    """One thread of both: each sees its own, and an id of the other is as unknown as one that nobody wrote."""
    held = vault.write("secret").json["id"]
    acme.write("own")
    assert [record["body"]["text"] for record in acme.records()] == ["own"]
    found = [acme.victim.api("GET", f"/v1/records/{id_}", token=acme.token) for id_ in (held, "0" * 64)]
    assert [answer.status for answer in found] == [404, 404]
    assert found[0].body == found[1].body


# -- tokens bound to a namespace

PAIR_PATH = "/v1/federation/pairs/{pair}"
EXPLOITS: dict[str, list[tuple[str, str, object]]] = {
    "federation:manage": [
        ("POST", f"{PAIR_PATH}/grants", {"namespace": "vault"}),
        ("POST", f"{PAIR_PATH}/pause", {}),
        ("POST", f"{PAIR_PATH}/relay", {"relay": False}),
        ("POST", f"{PAIR_PATH}/revoke", {}),
    ],
    "admin": [
        ("POST", f"{PAIR_PATH}/grants", {"namespace": "vault"}),
        ("GET", "/v1/snapshot", None),
        ("GET", "/v1/threads/th_api_tokens/snapshot", None),
        ("POST", "/v1/tokens", {"scopes": ["admin"]}),
        ("POST", "/v1/tokens", {"scopes": ["records:read"], "namespaces": ["vault"]}),
        ("POST", "/v1/namespaces", {"name": "other"}),
        ("POST", "/v1/namespaces/vault/share", {}),
        ("POST", "/v1/identity/rotate", {}),
        ("POST", "/v1/store/check", {}),
    ],
    "config:write": [("POST", "/v1/config/fold-rules", {"name": "mine", "thread": "*", "fold": "count"})],
}
"""Scope -> requests that would reach beyond the namespace of its token."""


@pytest.mark.parametrize("scope", EXPLOITS)
def test_a_bound_token_does_nothing_outside_its_namespace(
    alice: Victim, vault: Tenant, acme: Tenant, puppet: Puppets, scope: str
) -> None:
    """Either no such token is minted, or the route refuses it."""
    vault.write("91000")
    mallory = puppet("mallory", alice).join()
    token = minted(alice, [scope, "records:read"], "acme")
    for method, path, value in EXPLOITS[scope] if token else ():
        answer = alice.api(method, path.replace("{pair}", mallory.pair_id), value, token)
        assert answer.status == 403, f"a token of `acme` got {answer.status} at {path}: {answer.body[:300]!r}"


def test_a_bound_token_approves_no_request_for_other_namespaces(daemon: Daemon) -> None:
    """A stranger asks for the vault and `acme`'s approver says yes: to the vault, to both, to what was asked."""
    victim = daemon("victim")
    tenant(victim, "vault")
    tenant(victim, "acme")
    mallory = Stranger(born("mallory"), victim)
    assert mallory.request(namespaces=["default", "vault"]).status == 202
    token = minted(victim, ["aitl:approve"], "acme")
    for names in (["vault"], ["default", "vault"], []) if token else ():
        decision = {"decision": "approve", **({"namespaces": names} if names else {})}
        answer = victim.api("POST", f"/v1/aitl/{mallory.pair_id}/decide", decision, token)
        assert answer.status == 403, f"a token of `acme` got {answer.status}: {answer.body[:300]!r}"
    assert len(victim.waiting()) == 1


def test_a_bound_reader_of_settings_counts_nothing_of_others(alice: Victim, vault: Tenant, acme: Tenant) -> None:
    """Whatever it is answered does not move with what another tenant writes."""
    token = minted(alice, ["config:read"], "acme")

    def shown() -> list[object]:
        found: list[object] = []
        for path in ("/v1/status", "/v1/doctor", "/v1/config", "/v1/config/permission-rules"):
            answer = alice.api("GET", path, token=token)
            value = {} if answer.status == 403 else answer.json
            store = value.get("store", {})
            found.append((store.get("records"), store.get("bytes"), value.get("data")))
        return found

    if not token:
        return
    before = shown()
    for number in range(20):
        vault.write(str(number))
    assert shown() == before, "the answer counts the records of others"


def test_a_bound_manager_is_shown_no_pair_of_others(
    alice: Victim, vault: Tenant, acme: Tenant, puppet: Puppets
) -> None:
    """What a pair shares outside the namespace of a token is no business of its holder."""
    mallory = puppet("mallory", alice).join()
    alice.api("POST", f"/v1/federation/pairs/{mallory.pair_id}/grants", {"namespace": "vault"})
    token = minted(alice, ["federation:manage", "aitl:approve"], "acme")
    for path in ("/v1/federation/pairs", "/v1/consent/grants", "/v1/aitl?all=1") if token else ():
        answer = alice.api("GET", path, token=token)
        assert answer.status == 403 or "vault" not in json.dumps(answer.json), answer.body[:300]


def test_an_unbound_token_of_these_scopes_is_minted_and_works(alice: Victim, puppet: Puppets) -> None:
    """The wall stands around bound tokens only."""
    mallory = puppet("mallory", alice).join()
    for scope, path in (("admin", "/v1/snapshot"), ("config:read", "/v1/status"), ("aitl:approve", "/v1/aitl")):
        assert alice.api("GET", path, token=minted(alice, [scope])).status == 200, scope
    assert alice.pair(mallory.pair_id)["state"] == "active"


def test_a_tenant_that_writes_in_bulk_shuts_no_other_one_out(daemon: Daemon) -> None:
    """Its pages fill the queue of writes over and over; another tenant's single writes are all taken meanwhile."""
    victim = daemon("alice", "[limits]\nwaiting_writes = 64\n")
    bulk, small = tenant(victim, "acme"), tenant(victim, "vault")
    value = {"act": "KNOW", "actor": ACTOR, "thread": "th_bulk", "body": {"namespace": "acme"}}
    headers = {"authorization": f"Bearer {bulk.token}", "content-type": "application/x-ndjson"}
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            victim.request("POST", "/v1/records", b"\n".join([json.dumps(value).encode()] * 500), headers)

    with ThreadPoolExecutor(6) as pool:
        floods = [pool.submit(flood) for _ in range(6)]
        try:
            statuses = [small.write(f"n{n}").status for n in range(30)]
        finally:
            stop.set()
    for each in floods:
        each.result()
    assert statuses == [200] * 30


def test_the_history_of_a_pair_that_is_handed_over_names_no_other_pair(alice: Victim, puppet: Puppets) -> None:
    """Two operators compare what they recorded of their pair; neither learns with whom else the other is paired."""
    mallory, bob = puppet("mallory", alice).join(), puppet("bob", alice).join()
    handed = alice.run("thread", "snapshot", "th_federation_pairs", "--pair", mallory.pair_id).out
    assert mallory.pair_id in handed
    assert bob.pair_id not in handed
    assert bob.who.did not in handed
