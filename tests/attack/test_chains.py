"""One table of pins: a stolen or retired key is refused, by handshake, push, relay and restore."""

import json
from collections.abc import Callable

import pytest

from tests.attack.adversary import messages
from tests.attack.adversary.keys import Identity, born
from tests.attack.adversary.messages import PAIR
from tests.attack.adversary.puppet import NDJSON, Stranger
from tests.attack.adversary.text import DAY_MS, now_ms
from tests.attack.conftest import AUTO, Daemon, Puppets
from tests.attack.measure import Victim

HOUR_MS = 3_600_000
THREAD = "th_carol"


def betrayed(reason: str = "compromised", age_ms: int = HOUR_MS) -> Identity:
    """Return carol, who gave up her first key for this reason, so long ago."""
    return born("carol").rotate(reason, now_ms() - age_ms)


def short(carol: Identity) -> Identity:
    """Return what the thief was before the rotation."""
    return carol.stolen()


def forked(carol: Identity) -> Identity:
    """Return the thief with a successor of its own to the stolen key."""
    return carol.stolen().rotate("retired", now_ms() - HOUR_MS)


def longer(carol: Identity) -> Identity:
    """Return the thief with a chain that has more links than carol's."""
    return forked(carol).rotate().rotate()


def retold(carol: Identity) -> Identity:
    """Return carol's own keys, the stolen one said to be retired in peace."""
    return carol.retold(["retired"] * len(carol.rotations), now_ms() - HOUR_MS)


Forge = Callable[[Identity], Identity]
FORGERIES = [short, forked, longer, retold]
FORKS = [forked, longer]


def stolen_records(thief: Identity) -> list[dict[str, object]]:
    """Return a record under each key that the thief holds or made, in carol's name."""
    known = thief.keys[:1] if len(thief.keys) == 1 else [thief.keys[0], thief.keys[-1]]
    return [messages.record(thief, THREAD, f"stolen {number}", key=key) for number, key in enumerate(known)]


def is_taken(results: list[dict[str, object]]) -> list[bool]:
    """Return for each record of a push whether it was accepted."""
    return [result["status"] == 200 for result in results]


# -- relayed records against the chain of a direct pair


@pytest.mark.parametrize("forge", [short, forked, longer], ids=lambda each: each.__name__)
def test_a_relayed_chain_does_not_override_that_of_a_pair(alice: Victim, puppet: Puppets, forge: Forge) -> None:
    """Alice is paired with carol and knows that her first key is stolen; mallory, another peer, holds that key."""
    carol = betrayed()
    puppet(carol, alice).join()
    mallory, thief = puppet("mallory", alice).join(), forge(carol)
    results = mallory.push(*stolen_records(thief), chains=[thief])
    assert not any(is_taken(results)), f"records under a stolen key were taken: {results}"
    assert alice.records(THREAD) == []


def test_a_stolen_key_told_to_be_retired_stays_stolen(alice: Victim, puppet: Puppets) -> None:
    """The same keys, another reason: `compromised` beats `retired`."""
    carol = betrayed()
    puppet(carol, alice).join()
    mallory, thief = puppet("mallory", alice).join(), retold(carol)
    results = mallory.push(messages.record(thief, THREAD, "stolen", key=thief.keys[0]), chains=[thief])
    assert not any(is_taken(results)), f"records under a stolen key were taken: {results}"
    assert alice.records(THREAD) == []


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda each: each.__name__)
def test_a_forged_chain_does_not_shut_its_owner_out(alice: Victim, puppet: Puppets, forge: Forge) -> None:
    """Whatever chain mallory relays in carol's name, carol's own word over her own pair goes on to count."""
    carol = puppet(betrayed(), alice).join()
    mallory, thief = puppet("mallory", alice).join(), forge(carol.who)
    mallory.push(*stolen_records(thief), chains=[thief])
    own = messages.record(carol.who, "th_own", "carol herself")
    assert is_taken(carol.push(own)) == [True], "carol's own record is refused"
    assert [record["id"] for record in alice.records("th_own")] == [own["id"]]
    assert carol.fetch(own["id"]) == [own["id"]], "what she is served does not name her"


@pytest.mark.parametrize("forge", FORKS, ids=lambda each: each.__name__)
def test_a_forged_chain_does_not_shut_its_owner_out_at_hubs(alice: Victim, puppet: Puppets, forge: Forge) -> None:
    """Carol is known through bob alone: what the thief of her compromised key shows changes nothing there either."""
    carol, bob, mallory = betrayed(), puppet("bob", alice).join(), puppet("mallory", alice).join()
    first, second = (messages.record(carol, THREAD, text) for text in ("before", "after"))
    assert is_taken(bob.push(first, chains=[carol])) == [True]
    thief = forge(carol)
    assert not any(is_taken(mallory.push(*stolen_records(thief), chains=[thief])))
    assert is_taken(bob.push(second, chains=[carol])) == [True]
    puppet(carol, alice).join()


@pytest.mark.parametrize("forge", FORKS, ids=lambda each: each.__name__)
def test_a_fork_is_said(alice: Victim, puppet: Puppets, forge: Forge) -> None:
    """A second successor of a key is refused by name, so that an operator can compare words by voice."""
    carol = betrayed()
    puppet(carol, alice).join()
    mallory, thief = puppet("mallory", alice).join(), forge(carol)
    mallory.push(*stolen_records(thief), chains=[thief])
    assert "chain-fork" in alice.log_text(), "nothing tells of two chains of one DID"


# -- the handshake against chains pinned through a relay


def relayed(alice: Victim, puppet: Puppets, carol: Identity) -> None:
    """Let alice pin carol's chain through bob, a peer of hers."""
    bob = puppet("bob", alice).join()
    assert is_taken(bob.push(messages.record(carol, "th_news", "true"), chains=[carol])) == [True]


@pytest.mark.parametrize("forge", [short, forked, longer], ids=lambda each: each.__name__)
def test_a_request_with_another_chain_than_the_relayed_one_is_refused(
    alice: Victim, puppet: Puppets, forge: Forge
) -> None:
    """The thief asks for a pair in carol's name; alice knows carol only through bob, and better."""
    carol = betrayed()
    relayed(alice, puppet, carol)
    reply = Stranger(forge(carol), alice).request()
    assert 400 <= reply.status < 500, f"the thief is let in as carol: {reply}"
    assert [pair for pair in alice.pairs() if pair["peer_did"] == carol.did] == []


@pytest.mark.parametrize("forge", [short, forked, longer], ids=lambda each: each.__name__)
def test_pairing_with_the_thief_at_its_own_url_is_refused(alice: Victim, puppet: Puppets, forge: Forge) -> None:
    """The operator is led to the thief's address: its manifest is refused before anything is sent there."""
    carol = betrayed()
    relayed(alice, puppet, carol)
    thief = puppet(forge(carol), alice)
    *_, last = alice.steps(thief.url + "/")
    told = {"CHAIN_FORK", "MANIFEST_STALE"}
    assert last.get("error", {}).get("code") in told, f"{last}; the thief was asked {thief.server.asked}"
    assert [asked.target for asked in thief.server.asked if asked.method == "POST"] == []


def test_the_real_one_pairs_after_it_was_relayed(alice: Victim, puppet: Puppets) -> None:
    """The same table admits who shows the chain that was pinned, or one grown from it."""
    carol = betrayed()
    relayed(alice, puppet, carol)
    puppet(carol.rotate(), alice).join()


def test_a_pin_outlives_the_pair(alice: Victim, puppet: Puppets) -> None:
    """After carol's pair was revoked the thief's shorter chain is as stale as before."""
    carol = puppet(betrayed(), alice).join()
    assert alice.api("POST", f"/v1/federation/pairs/{carol.pair_id}/revoke", {}).status == 200
    alice.again()
    reply = Stranger(short(carol.who), alice).request()
    assert 400 <= reply.status < 500, reply
    mallory, thief = puppet("mallory", alice).join(), short(carol.who)
    assert not any(is_taken(mallory.push(*stolen_records(thief), chains=[thief])))


# -- whole statements


@pytest.mark.parametrize("first", ["retired", "compromised"])
def test_compromised_beats_retired_whichever_was_said_first(alice: Victim, puppet: Puppets, first: str) -> None:
    """A relay and carol's own manifest give two reasons for one rotation; from then on the old key counts no more."""
    second = "compromised" if first == "retired" else "retired"
    carol = betrayed(first)
    relayed(alice, puppet, carol)
    told = carol.retold([second], now_ms() - HOUR_MS)
    direct = puppet(told, alice)
    direct.request()
    mallory = puppet("mallory", alice).join()
    result = mallory.push(messages.record(told, THREAD, "stolen", key=carol.keys[0]), chains=[carol])
    assert not any(is_taken(result)), f"first {first}, then {second}, and the key counts"
    assert alice.records(THREAD) == []


@pytest.mark.parametrize("later", [["retired"], ["compromised"]], ids=["retired", "compromised"])
def test_a_pair_does_not_move_the_time_of_a_rotation(alice: Victim, puppet: Puppets, later: list[str]) -> None:
    """A manifest with the same keys and another statement does not make a long retired key young again."""
    carol = puppet(betrayed("retired", 300 * DAY_MS), alice).join()
    old = carol.who
    carol.who = old.retold(later, now_ms() - HOUR_MS)
    carol.poll(manifest=carol.manifest())
    mallory = puppet("mallory", alice).join()
    result = mallory.push(messages.record(old, THREAD, "late", key=old.keys[0]), chains=[carol.who])
    assert not any(is_taken(result)), "the time of a rotation was moved"


def test_a_restore_goes_by_the_same_pins(alice: Victim, puppet: Puppets) -> None:
    """Through a relay the key is retired, by carol's pair it is stolen: a snapshot with its records is refused."""
    carol = betrayed("retired")
    relayed(alice, puppet, carol)
    told = carol.retold(["compromised"], now_ms() - HOUR_MS)
    puppet(told, alice).request()
    taken = messages.snapshot([messages.record(carol, THREAD, "stolen", key=carol.keys[0])], carol.did)
    headers = {"authorization": f"Bearer {alice.token}", "content-type": NDJSON}
    alice.request("POST", "/v1/threads/restore", taken, headers)
    assert alice.records(THREAD) == [], "a restore took a record under a stolen key"


@pytest.mark.parametrize(("purpose", "action"), [("pair-poll", "poll"), ("renew", "renew"), ("consent", "consent")])
@pytest.mark.parametrize("forge", [short, forked], ids=lambda each: each.__name__)
def test_no_message_about_a_pair_is_taken_from_a_stolen_key(
    alice: Victim, puppet: Puppets, forge: Forge, purpose: str, action: str
) -> None:
    """Only the present key of the pinned chain speaks for carol, whatever manifest comes along."""
    carol = puppet(betrayed(), alice).join()
    thief = forge(carol.who)
    own = messages.manifest(thief, carol.url, signed_ms=now_ms() + 1000)
    reply = carol.word(purpose, action, who=thief, manifest=own, state="active", grants=[], held={})
    assert 400 <= reply.status < 500, reply
    assert b'"token"' not in reply.body


# -- retired keys


def test_a_retired_key_signs_nothing_new_through_others(alice: Victim, puppet: Puppets) -> None:
    """Rotated 300 days ago, a new record under the old key brought by another peer: not of its time."""
    carol, mallory = betrayed("retired", 300 * DAY_MS), puppet("mallory", alice).join()
    results = mallory.push(
        messages.record(carol, THREAD, "late", key=carol.keys[0]), messages.record(carol, THREAD, "true", clock=1),
        chains=[carol],
    )  # fmt: skip
    assert is_taken(results) == [False, True], results


def test_the_seed_of_a_retired_key_is_nowhere_in_the_home(alice: Victim) -> None:
    """A thief of the disk, or of a backup made later, signs with the present key only."""
    seed = json.loads((alice.home / "keys" / "identity.json").read_text())["seed"]
    answer = alice.api("POST", "/v1/identity/rotate", {"compromised": False})
    assert answer.status == 200, answer.body
    alice.again()
    files = [path for path in alice.home.rglob("*") if path.is_file()]
    assert [path for path in files if seed.encode() in path.read_bytes()] == []


def test_a_restore_takes_what_a_retired_key_signs_today_from_no_file(alice: Victim, puppet: Puppets) -> None:
    """Whatever instance the header names: the operator has to say that the file was in no other hands."""
    carol = puppet(betrayed("retired", 300 * DAY_MS), alice).join()
    line = messages.record(carol.who, THREAD, "written today", key=carol.who.keys[0])
    headers = {"authorization": f"Bearer {alice.token}", "content-type": NDJSON}
    for instance in (carol.who.did, alice.did):
        reply = alice.request("POST", "/v1/threads/restore", messages.snapshot([line], instance), headers)
        assert reply.status == 422, reply
        assert b"KEY_RETIRED" in reply.body
    assert alice.records(THREAD) == [], "a restore took what the thief of a retired key signed today"


def test_a_key_retired_within_the_day_still_counts(alice: Victim, puppet: Puppets) -> None:
    """What was signed just before the rotation may be on its way for a day."""
    carol, mallory = betrayed("retired"), puppet("mallory", alice).join()
    result = mallory.push(messages.record(carol, THREAD, "late", key=carol.keys[0]), chains=[carol])
    assert is_taken(result) == [True], result


def test_its_owner_brings_what_a_retired_key_signed_and_others_may_repeat_it(alice: Victim, puppet: Puppets) -> None:
    """Over carol's own live pair her old records count for ever; once held, they are known, also from other peers."""
    carol = puppet(betrayed("retired", 300 * DAY_MS), alice).join()
    mallory, old = puppet("mallory", alice).join(), messages.record(carol.who, THREAD, "old", key=carol.who.keys[0])
    assert is_taken(carol.push(old)) == [True]
    assert is_taken(mallory.push(old, chains=[carol.who])) == [True]
    assert [record["id"] for record in alice.records(THREAD)] == [old["id"]]


# -- a share a pair


def test_one_peer_does_not_end_the_learning_of_signers(daemon: Daemon, puppet: Puppets) -> None:
    """Mallory has alice pin a crowd of puppets; a new instance that bob relays is learnt all the same."""
    alice = daemon("alice", AUTO + "[limits]\nchains_count = 64\n")
    mallory, bob = puppet("mallory", alice).join(), puppet("bob", alice).join()
    for part in range(6):
        crowd = [born(f"ghost-{part}-{number}") for number in range(16)]
        records = [messages.record(ghost, "th_crowd", f"{number}") for number, ghost in enumerate(crowd)]
        mallory.push(*records, chains=crowd)
    dave = born("dave")
    assert is_taken(bob.push(messages.record(dave, "th_dave", "new here"), chains=[dave])) == [True]
    assert len(alice.reserved("th_federation_pairs", "chain_pin.v1")) <= 65, "more chains are pinned than fit"


def test_chains_of_signers_whose_records_are_refused_are_not_pinned(alice: Victim, puppet: Puppets) -> None:
    """Only who vouches for something that is held needs a pin."""
    mallory = puppet("mallory", alice).join()
    ghosts = [born(f"ghost-{number}") for number in range(8)]
    forged = [messages.record(ghost, "th_crowd", "x", key=born("other").key, by=ghost.did) for ghost in ghosts]
    assert not any(is_taken(mallory.push(*forged, chains=ghosts)))
    assert alice.reserved("th_federation_pairs", "chain_pin.v1") == []
    assert PAIR in alice.pair(mallory.pair_id)["manifest"]["pair_endpoint"]
