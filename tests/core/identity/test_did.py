"""DIDs certify their keys; chains only grow; words and multibase are one-to-one texts of a key."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.identity import did
from spl.core.identity.did import Chain, DidError
from spl.core.keys import SecretKey
from spl.core.limits import Limits

LIMITS = Limits()
KEYS = [SecretKey(bytes([n]) * 32) for n in range(1, 6)]
BOB = did.did_of("bob", KEYS[0].public)
FIRST = Chain(BOB, KEYS[0].public)


def grown_chain(count: int) -> Chain:
    chain = FIRST
    for n in range(count):
        chain = did.rotate(chain, KEYS[n], KEYS[n + 1].public, "retired", 1_700_000_000_000 + n)
    return chain


def statements(chain: Chain) -> list[dict[str, object]]:
    return [step.to_json() for step in chain.rotations]


def test_did_certifies_only_its_label_and_first_key() -> None:
    assert did.certifies(BOB, KEYS[0].public)
    assert not did.certifies(BOB, KEYS[1].public)
    assert not did.certifies(BOB.replace("bob", "rob"), KEYS[0].public)
    assert did.short_of(BOB) == "did:sync:instance:bob"


@pytest.mark.parametrize("label", ["", "Bob", "a" * 33, "a_b", "a.b", "bob\n"])
def test_labels_outside_the_alphabet_are_refused(label: str) -> None:
    with pytest.raises(DidError) as caught:
        did.did_of(label, KEYS[0].public)
    assert caught.value.code == "bad-field"


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["ed25519", "x25519"]))
def test_multibase_is_one_to_one(key: bytes, kind: str) -> None:
    assert did.key_of(did.multibase(key, kind), kind) == key


def test_multibase_equals_the_published_form() -> None:
    """An Ed25519 Multikey starts with z6Mk, an X25519 one with z6LS (W3C Controlled Identifiers 1.0, 2.2.2)."""
    assert did.multibase(KEYS[0].public).startswith("z6Mk")
    assert did.multibase(KEYS[0].public, "x25519").startswith("z6LS")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z",
        "f00",
        "z0",
        "z" + "1" * 63,
        "z" + "1" * 100,
        None,
        7,
        did.multibase(b"1" * 32) + "1",
        did.multibase(b"1" * 31),
        did.multibase(b"1" * 33),
    ],
)
def test_other_texts_are_no_keys(text: object) -> None:
    with pytest.raises(DidError) as caught:
        did.key_of(text)
    assert caught.value.code == "did-invalid"


def test_a_key_of_one_kind_is_not_taken_for_the_other() -> None:
    with pytest.raises(DidError):
        did.key_of(did.multibase(KEYS[0].public), "x25519")


def test_words_are_six_and_differ_by_key() -> None:
    texts = {did.words(key.public) for key in KEYS}
    assert len(texts) == len(KEYS)
    assert all(len(text.split()) == 6 for text in texts)
    assert did.words(KEYS[0].public) == "stage gloom strong finger maid raw"


@pytest.mark.parametrize("count", range(5))
def test_a_chain_verifies_after_its_way_through_json(count: int) -> None:
    chain = grown_chain(count)
    assert did.chain_of(BOB, chain.present, statements(chain), LIMITS) == chain
    assert did.chain_from_json(chain.to_json(), LIMITS) == chain
    assert chain.present == KEYS[count].public


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", 3),
        ("index", True),
        ("from", did.multibase(KEYS[3].public)),
        ("to", did.multibase(KEYS[3].public)),
        ("at", "2020-01-01T00:00:00Z"),
        ("reason", "compromised"),
        ("reason", "bored"),
        ("signature", "AAAA"),
        ("at", 7),
        ("signature", None),
    ],
)
def test_a_chain_with_one_changed_field_never_verifies(name: str, value: object) -> None:
    steps = statements(grown_chain(3))
    steps[1] = {**steps[1], name: value}
    with pytest.raises((DidError, did.when.WhenError)):
        did.chain_of(BOB, KEYS[3].public, steps, LIMITS)


def test_a_chain_must_end_at_the_present_key_and_start_at_the_certified_one() -> None:
    steps = statements(grown_chain(3))
    for bad in (steps[:2], steps[1:], list(reversed(steps)), [*steps, steps[0]], "no list", [7]):
        with pytest.raises(DidError):
            did.chain_of(BOB, KEYS[3].public, bad, LIMITS)
    with pytest.raises(DidError):
        did.chain_of(BOB, KEYS[3].public, steps, dataclasses.replace(LIMITS, chain_links=2))


def test_only_the_present_key_can_hand_over_and_for_a_known_reason() -> None:
    with pytest.raises(DidError):
        did.rotate(grown_chain(1), KEYS[0], KEYS[2].public, "retired", 1)
    with pytest.raises(DidError):
        did.rotate(FIRST, KEYS[0], KEYS[1].public, "bored", 1)


@pytest.mark.parametrize(
    "changes", [{"index": 3}, {"old": KEYS[0].public}, {"at_ms": 1_699_999_999_999}, {"new": KEYS[0].public}]
)
def test_statements_follow_each_other_however_well_they_are_signed(changes: dict[str, Any]) -> None:
    """The holder of each key signs another place, another key before it, an earlier time, a key that was there."""
    chain = grown_chain(2)
    bare = dataclasses.replace(chain.rotations[1], **changes)
    signer = next(key for key in KEYS if key.public == bare.old)
    forged = dataclasses.replace(bare, signature=signer.sign(did._statement(BOB, bare)))
    with pytest.raises(DidError, match="rotation 2 does not follow") as caught:
        did.chain_of(BOB, forged.new, [chain.rotations[0].to_json(), forged.to_json()], LIMITS)
    assert caught.value.code == "chain-broken"


def test_a_chain_takes_equal_times_and_as_many_statements_as_allowed() -> None:
    chain = did.rotate(FIRST, KEYS[0], KEYS[1].public, "retired", 7)
    chain = did.rotate(chain, KEYS[1], KEYS[2].public, "retired", 7)
    assert did.chain_of(BOB, chain.present, statements(chain), dataclasses.replace(LIMITS, chain_links=2)) == chain
    assert chain.keys == tuple(key.public for key in KEYS[:3])
    with pytest.raises(DidError):
        did.chain_of(BOB, chain.present, tuple(statements(chain)), LIMITS)
    with pytest.raises(DidError) as caught:
        did.chain_of(BOB.replace("bob", "rob"), chain.present, statements(chain), LIMITS)
    assert caught.value.code == "did-invalid"


STORED = grown_chain(1).to_json()


@pytest.mark.parametrize("value", [
    None, [], {}, {**STORED, "more": 1}, {**STORED, "did": 7}, {**STORED, "rotations": {}},
    {**STORED, "rotations": None}, {**STORED, "rotations": ["x"]},
    {**STORED, "first_key": did.multibase(KEYS[3].public)},
])  # fmt: skip
def test_other_stored_forms_are_no_chain(value: object) -> None:
    with pytest.raises(DidError) as caught:
        did.chain_from_json(value, LIMITS)
    assert caught.value.code == "chain-broken"


def test_a_did_is_told_by_its_form() -> None:
    assert did.is_instance_did(BOB) is True
    for text in (None, 7, "", "did:sync:user:bob", BOB[:-1], BOB + "0"):
        assert did.is_instance_did(text) is False
    assert did.label_of(BOB) == "bob"
    assert not did.certifies("did:sync:user:bob", KEYS[0].public)
    with pytest.raises(DidError) as caught:
        did.label_of("did:sync:user:bob")
    assert caught.value.code == "did-invalid"
