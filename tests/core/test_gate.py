"""What passes the gate is in scope and signed by a key of its signer's chain; everything else has a code."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import batch, did, keys, record
from spl.core.did import Chain, rotate
from spl.core.gate import Gate, Roots, claimed_id
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.record import Sig

LIMITS = Limits()
OLD, NEW, OWN = (SecretKey(bytes((n,)) * 32) for n in (1, 2, 3))
PEER = did.did_of("peer", OLD.public)
US = did.did_of("us", OWN.public)
CHAIN = Chain(PEER, OLD.public)


def a_gate(chain: Chain = CHAIN, peer: str = PEER, **changes: Any) -> Gate:
    settings: dict[str, Any] = {
        "namespaces": frozenset({"default", "org"}),
        "actors": frozenset(),
        "own_did": US,
        "peer_did": peer,
        "chains": {chain.did: chain, US: Chain(US, OWN.public)},
        "roots": Roots(8),
        "limits": LIMITS,
    }
    return Gate(**{**settings, **changes})


def envelopes(count: int = 1, key: SecretKey = OLD, by: str = PEER, **fields: Any) -> list[dict[str, Any]]:
    """Return signed envelopes as decoded values; more than one share a batch signature."""
    value = {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {}, **fields}
    checked = [record.check({**value, "clock": n}, LIMITS) for n in range(count)]
    named = [record.identify(each, LIMITS) for each in checked]
    texts = [record.signed_text(id_, each["judged_by"]) for each, (id_, _) in zip(checked, named, strict=True)]
    name = did.multibase(key.public)
    if count == 1:
        sigs = [Sig(by, name, key.sign(texts[0]))]
    else:
        root, places = batch.tree(texts)
        value_ = key.sign(batch.signed_text(count, root))
        sigs = [Sig(by, name, value_, place) for place in places]
    return [
        json.loads(record.seal(each, id_, text, sig).raw)
        for each, (id_, text), sig in zip(checked, named, sigs, strict=True)
    ]


def test_sound_envelopes_pass_alone_and_in_batches() -> None:
    gate = a_gate()
    for count in (1, 2, 3, 64):
        for value in envelopes(count):
            verdict = gate.judge(value, "default")
            assert (verdict.code, verdict.id, verdict.ns) == ("", value["id"], "default")
            assert verdict.envelope is not None
            assert json.loads(verdict.envelope.raw) == value


def test_a_batch_costs_one_signature_check(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    real = keys.verify

    def verify(*args: bytes) -> bool:
        checks.append(1)
        return real(*args)

    monkeypatch.setattr(keys, "verify", verify)
    gate = a_gate()
    for value in envelopes(64):
        assert not gate.judge(value, "default").code
    assert len(checks) == 1


@pytest.mark.parametrize("count", [1, 5])
@given(data=st.data())
def test_every_changed_field_is_noticed(count: int, data: st.DataObject) -> None:
    value = envelopes(count)[0]
    where = data.draw(st.sampled_from(["id", "clock", "thread", "judged_by", "value", "by", "key", "index", "path"]))
    if where in ("clock", "thread", "judged_by"):
        value["record"][where] = {"clock": 9, "thread": "other", "judged_by": "b" * 64}[where]
    elif where == "id":
        value["id"] = "a" * 64
    elif where in ("value", "by", "key"):
        value["sig"][where] = {"value": keys.b64(bytes(64)), "by": US, "key": did.multibase(NEW.public)}[where]
    elif count > 1 and where == "index":
        value["sig"]["batch"]["index"] = 1
    elif count > 1:
        value["sig"]["batch"]["path"][0] = keys.b64(bytes(32))
    else:
        return
    assert a_gate().judge(value, "default").code in ("record-id", "record-signature", "chain-unknown")


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | (st.dictionaries(st.sampled_from(["id", "record", "sig", "by", "x"]), inner, max_size=3))
        ),
        max_leaves=8,
    )
)
def test_any_value_gets_a_verdict(value: Any) -> None:
    verdict = a_gate().judge(value, "default")
    assert verdict.code
    assert record.is_id(verdict.id)


@pytest.mark.parametrize(("ns", "fields"), [
    ("other", {"body": {"namespace": "other"}}),
    ("org", {}),
    ("default", {"body": {"namespace": "org"}}),
    ("default", {"thread": "th_consent"}),
    ("default", {"thread": "th_audit_federation_pairs"}),
    ("default", {"actor": US}),
    (None, {}),
])  # fmt: skip
def test_out_of_scope_is_a_violation_however_well_signed(ns: Any, fields: dict[str, Any]) -> None:
    assert a_gate().judge(envelopes(**fields)[0], ns).code == "scope-violation"


def test_an_instance_speaks_for_itself_and_actors_may_be_narrowed() -> None:
    itself = envelopes(actor=PEER)[0]
    assert not a_gate().judge(itself, "default").code
    assert a_gate(actors=frozenset({"did:sync:user:y"})).judge(itself, "default").code == "scope-violation"
    assert not a_gate(actors=frozenset({"did:sync:user:x"})).judge(envelopes()[0], "default").code


def test_signers_are_known_by_chain_and_never_by_their_word() -> None:
    assert a_gate(chains={}).judge(envelopes()[0], "default").code == "chain-unknown"
    assert a_gate().judge(envelopes(key=NEW)[0], "default").code == "chain-unknown"
    # Our own chain is known whole: a strange key under our name is a forgery, nothing to ask the peer about.
    assert a_gate().judge(envelopes(key=NEW, by=US)[0], "default").code == "record-signature"
    assert not a_gate().judge(envelopes(key=OWN, by=US)[0], "default").code


@pytest.mark.parametrize(("reason", "peer", "code"), [
    ("retired", PEER, ""), ("retired", US, ""), ("compromised", PEER, ""), ("compromised", US, "record-signature"),
])  # fmt: skip
def test_a_compromised_key_counts_only_from_its_holder(reason: str, peer: str, code: str) -> None:
    chain = rotate(CHAIN, OLD, NEW.public, reason, 1)
    assert a_gate(chain, peer).judge(envelopes(key=OLD)[0], "default").code == code
    assert not a_gate(chain, peer).judge(envelopes(key=NEW)[0], "default").code


def test_a_blocked_signer_is_refused_whoever_brings_it() -> None:
    [found] = envelopes()
    assert a_gate().judge(found, "default").code == ""
    assert a_gate(blocked=frozenset({PEER})).judge(found, "default").code == "signer-blocked"
    assert a_gate(blocked=frozenset({US})).judge(found, "default").code == ""


def test_depth_is_judged_strictly() -> None:
    deep: Any = 1
    for _ in range(LIMITS.nesting_levels + 5):
        deep = [deep]
    wide: Any = {"a": [[]] * 200}
    assert a_gate().judge(envelopes(body={"deep": deep})[0], "default").code == "bad-json"
    assert not a_gate().judge(envelopes(body=wide)[0], "default").code


def test_the_memory_of_roots_is_bounded_and_remembers_only_the_true() -> None:
    roots = Roots(8)
    for n in range(100):
        root = bytes((n,)) * 32
        assert roots.verify(OLD.public, 2, root, OLD.sign(batch.signed_text(2, root)))
        assert not roots.verify(OLD.public, 3, root, OLD.sign(batch.signed_text(2, root)))
    assert len(roots._young) + len(roots._old) <= 8


def test_limits_of_records_hold_at_the_gate() -> None:
    tight = a_gate(limits=replace(LIMITS, record_bytes=50))
    assert tight.judge(envelopes()[0], "default").code == "record-too-large"


def test_refused_things_have_names_for_the_ledger() -> None:
    assert claimed_id({"id": "a" * 64}) == "a" * 64
    assert all(record.is_id(claimed_id(value)) for value in (None, {}, {"id": "x"}, {"id": 7}, [1], "\ud800"))
