"""One table of pinned key chains: equal words in log order give an equal table, and no thief of an old key moves it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import canon
from spl.core.identity import pins
from spl.core.identity.did import Chain, DidError, did_of, rotate
from spl.core.identity.pins import FORK, Pins, code_of, grown, is_fork, pin_body
from spl.core.keys import SecretKey
from spl.core.limits import Limits

LIMITS = Limits(chains_count=16)
FIRST, SECOND, THIEF, THIRD = (SecretKey(bytes((n,)) * 32) for n in (1, 2, 3, 4))
CAROL = Chain(did_of("carol", FIRST.public), FIRST.public)
RETIRED = rotate(CAROL, FIRST, SECOND.public, "retired", 1000)
COMPROMISED = rotate(CAROL, FIRST, SECOND.public, "compromised", 2000)
LATER = rotate(CAROL, FIRST, SECOND.public, "retired", 9000)
FORKED = rotate(CAROL, FIRST, THIEF.public, "retired", 1000)
LONGER = rotate(FORKED, THIEF, THIRD.public, "retired", 1001)
NEXT = rotate(COMPROMISED, SECOND, THIRD.public, "retired", 3000)
EXTENDED = rotate(RETIRED, SECOND, THIRD.public, "retired", 3000)
ALL = (CAROL, RETIRED, COMPROMISED, LATER, FORKED, LONGER, NEXT, EXTENDED)


def a_chain(number: int) -> Chain:
    """Return the chain of some other instance."""
    key = SecretKey(number.to_bytes(32))
    return Chain(did_of(f"ghost-{number}", key.public), key.public)


def told(*bodies: dict[str, Any]) -> Pins:
    """Return the table after these pin records, as they come back from the disk."""
    found = Pins()
    for body in bodies:
        found = pins.fold(found, canon.decode(canon.encode(body)), LIMITS)
    return found


@pytest.mark.parametrize(("pinned", "offered", "code"), [
    (CAROL, CAROL, ""), (CAROL, RETIRED, ""), (CAROL, LONGER, ""), (RETIRED, EXTENDED, ""),
    (RETIRED, COMPROMISED, ""), (RETIRED, NEXT, ""), (RETIRED, CAROL, "manifest-stale"),
    (NEXT, COMPROMISED, "manifest-stale"), (COMPROMISED, RETIRED, FORK), (COMPROMISED, EXTENDED, FORK),
    (RETIRED, LATER, FORK), (RETIRED, FORKED, FORK), (RETIRED, LONGER, FORK), (CAROL, a_chain(9), FORK),
    (NEXT, RETIRED, FORK), (CAROL, Chain(did_of("mallory", FIRST.public), FIRST.public), FORK),
    (CAROL, Chain(CAROL.did, THIEF.public), FORK),
    (COMPROMISED, rotate(CAROL, FIRST, SECOND.public, "compromised", 5000), FORK),
])  # fmt: skip
def test_a_chain_grows_by_whole_statements(pinned: Chain, offered: Chain, code: str) -> None:
    """Key, reason and time are compared; only `compromised` replaces `retired`.  Every form of the question agrees."""
    assert code_of(pinned, offered) == code
    if pinned.did == offered.did:
        assert Pins().seen(pinned).code_of(offered) == code
    if not code:
        assert grown(pinned, offered) is offered
        assert not is_fork(pinned, offered)
        return
    with pytest.raises(DidError) as caught:
        grown(pinned, offered)
    assert caught.value.code == code
    if code == FORK:
        assert is_fork(pinned, offered)
        return
    with pytest.raises(DidError) as caught:
        is_fork(pinned, offered)
    assert caught.value.code == code


def test_a_shorter_chain_changes_nothing_and_a_fork_marks_the_did() -> None:
    held = Pins().seen(RETIRED)
    assert held.seen(CAROL) is held
    assert held.seen(RETIRED) is held
    forked = held.seen(LONGER, "pair_0000000b")
    assert forked.chain(CAROL.did) == RETIRED, "the first one seen stays"
    assert (held.is_forked(CAROL.did), forked.is_forked(CAROL.did)) == (False, True)
    grown_on = forked.seen(EXTENDED)
    assert (grown_on.chain(CAROL.did), grown_on.is_forked(CAROL.did)) == (EXTENDED, True), "growing settles no fork"
    settled = grown_on.chosen(LONGER)
    assert (settled.chain(CAROL.did), settled.is_forked(CAROL.did)) == (LONGER, False)
    assert Pins().chain(CAROL.did) is None
    assert not Pins().is_forked(CAROL.did)


@pytest.mark.parametrize(("pinned", "offered", "proved"), [
    (RETIRED, FORKED, True), (RETIRED, LONGER, True), (RETIRED, LATER, True), (CAROL, LONGER, False),
    (COMPROMISED, FORKED, False), (COMPROMISED, LONGER, False), (COMPROMISED, EXTENDED, False), (NEXT, FORKED, False),
    (NEXT, rotate(COMPROMISED, SECOND, THIEF.public, "retired", 3000), True),
])  # fmt: skip
def test_the_thief_of_a_compromised_key_proves_no_fork(pinned: Chain, offered: Chain, proved: bool) -> None:
    """Its chain is refused, and the DID is not marked: the owner's own records go on to count, whoever relays them."""
    found = Pins().seen(pinned)
    assert found.proves_fork(offered) is proved
    assert found.seen(offered).is_forked(pinned.did) is proved
    assert proved or found.code_of(offered) in ("", FORK)


def test_nothing_contradicts_a_did_that_is_not_pinned_and_another_first_key_always_does() -> None:
    assert Pins().proves_fork(CAROL) is False
    assert Pins().seen(RETIRED).proves_fork(Chain(CAROL.did, THIEF.public)) is True


def test_the_newest_chain_speaks_for_a_did() -> None:
    held = Pins().seen(NEXT)
    assert held.newest(COMPROMISED) is NEXT
    assert held.newest(CAROL) is NEXT
    assert held.newest(NEXT) is NEXT
    for chain in (FORKED, a_chain(7)):
        assert held.newest(chain) is chain, "of a fork or a stranger the table says nothing"


def test_compromised_beats_retired_whichever_was_said_first() -> None:
    one, other = Pins().seen(RETIRED).seen(COMPROMISED), Pins().seen(COMPROMISED).seen(RETIRED)
    assert one.chain(CAROL.did) == other.chain(CAROL.did) == COMPROMISED


def test_a_pin_record_of_any_version_is_read_as_it_was_written() -> None:
    assert told(pin_body(RETIRED, via="pair_1")).by_did[CAROL.did].via == "pair_1"
    assert told({"chain": RETIRED.to_json()}).chain(CAROL.did) == RETIRED, "0.1.0 named no pair"
    assert told(pin_body(RETIRED), pin_body(FORKED, chosen=True)).chain(CAROL.did) == FORKED
    forged = {**RETIRED.to_json(), "first_key": FORKED.to_json()["first_key"], "did": a_chain(1).did}
    for bad in ({}, {"chain": None}, {"chain": forged}, {"chain": {**RETIRED.to_json(), "rotations": [1]}}):
        assert told(bad) == Pins()


@given(st.lists(st.sampled_from(ALL), max_size=8))
def test_no_order_of_chains_brings_back_what_was_taken(chains: list[Chain]) -> None:
    """A pinned key is never replaced by another one, and a compromised one never counts again."""
    held = Pins()
    for chain in chains:
        before, held = held.chain(CAROL.did), held.seen(chain)
        after = held.chain(CAROL.did)
        assert after is not None
        if before is not None:
            assert after.keys[: len(before.keys)] == before.keys
            lost = [step.old for step in before.rotations if step.reason == "compromised"]
            assert all(step.reason == "compromised" for step in after.rotations if step.old in lost)
    bodies = [pin_body(chain) for chain in chains]
    assert told(*bodies) == held, "a start reads the same table"


def test_one_pair_never_takes_all_places() -> None:
    """Each pair that invents signers takes half of what is left, so another pair always finds a place."""
    held, number = Pins(), 0
    taught = []
    for pair_id in ("pair_a", "pair_b", "pair_c"):
        before = number
        while held.has_room(pair_id, LIMITS):
            number += 1
            held = held.seen(a_chain(number), pair_id)
        taught.append(number - before)
    assert taught == [8, 4, 2]
    assert held.has_room("pair_d", LIMITS)
    assert len(held.by_did) <= LIMITS.chains_count
