"""What passes the gate is in scope and signed by a key of its signer's chain; everything else has a code."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import keys
from spl.core.consent import Inbound
from spl.core.gate import RETIRED_GRACE_MS, Gate, Roots, Trust, claimed_id
from spl.core.identity import did
from spl.core.identity.did import Chain, rotate
from spl.core.identity.pins import Pins
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.record import batch, levels, record
from spl.core.record.namespace import Namespace
from spl.core.record.record import Sig

LIMITS = Limits()
OLD, NEW, OWN = (SecretKey(bytes((n,)) * 32) for n in (1, 2, 3))
PEER = did.did_of("peer", OLD.public)
US = did.did_of("us", OWN.public)
CHAIN = Chain(PEER, OLD.public)
PAIR = "pair_00000001"
HUB = "did:sync:instance:hub-000000000000000000000000"
INBOUND = {
    "default": Inbound("default", full=True),
    "org": Inbound("org", full=True),
    "work": Inbound("org/work", full=True),
    "one": Inbound("org/one", full=False, level=1),
    "two": Inbound("org/two", full=False, level=2),
    "three": Inbound("org/three", full=False, level=3),
    "lowered": Inbound("lowered", full=True, level=2),
}
LEVEL_OF = {"one": 1, "two": 2, "three": 3, "lowered": 2}


def a_gate(*chains: Chain, peer: str = PEER, own: Chain | None = None, pins: Pins | None = None,
           blocked: frozenset[str] = frozenset(), now_ms: int = 2, **changes: Any) -> Gate:  # fmt: skip
    if pins is None:
        pins = Pins()
        for chain in chains or (CHAIN,):
            pins = pins.seen(chain)
    settings: dict[str, Any] = {
        "pair_id": PAIR,
        "inbound": INBOUND,
        "actors": frozenset(),
        "trust": Trust(own or Chain(US, OWN.public), peer, pins, blocked, now_ms),
        "crossings": {},
        "registry": {"default": Namespace("default")},
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


def projection(level: int = 1, ns: str = "one", pair: str = PAIR, by: str = PEER, key: SecretKey = OLD,
               **fields: Any) -> dict[str, Any]:  # fmt: skip
    """Return a projection as a decoded value."""
    value = record.check(
        {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {}, "clock": 1, **fields}, LIMITS
    )
    shown = levels.content(value, record.identify(value, LIMITS)[0], level, pair, b"s" * 32)
    found: dict[str, Any] = json.loads(levels.project(shown, level, ns, pair, by, did.multibase(key.public), key))
    return found


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


def test_signatures_of_batches_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    monkeypatch.setattr(keys, "verify", lambda *args: checks.append(args[1]) or True)

    def costs(roots: Roots, numbers: list[int]) -> list[int]:
        """Return how many signature checks each of these batches costs."""
        found = []
        for number in numbers:
            before = len(checks)
            assert roots.verify(b"k", 2, bytes([number]) * 32, b"v")
            found.append(len(checks) - before)
        return found

    roots = Roots(8)
    assert costs(roots, [1, 2, 3, 4, 5, 1, 5]) == [1, 1, 1, 1, 1, 0, 0], "of eight the last four are there at least"
    assert costs(roots, [6, 7, 8, 9, 10, 2]) == [1, 1, 1, 1, 1, 1]
    assert len(roots._young) + len(roots._old) <= 8
    assert costs(Roots(1), [1, 1, 2, 1]) == [1, 0, 1, 0]


def test_a_refused_projection_is_named_by_the_namespace_that_it_claims() -> None:
    """The ledger asks the peer again by that name; ours would be asked for in vain."""
    gate = a_gate(actors=frozenset({"did:sync:user:y"}))
    refused, passed = gate.judge(projection(), "one"), a_gate().judge(projection(), "one")
    assert (refused.code, refused.ns) == ("scope-violation", "one")
    assert (passed.code, passed.ns) == ("", "org/one")


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
    ("work", {"body": {"namespace": "org/work"}}),
    ("one", {"body": {"namespace": "one"}}),
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
    assert a_gate(pins=Pins()).judge(envelopes()[0], "default").code == "chain-unknown"
    assert a_gate().judge(envelopes(key=NEW)[0], "default").code == "chain-unknown"
    # Our own chain is known whole: a strange key under our name is a forgery, nothing to ask the peer about.
    assert a_gate().judge(envelopes(key=NEW, by=US)[0], "default").code == "record-signature"
    assert not a_gate().judge(envelopes(key=OWN, by=US)[0], "default").code


@pytest.mark.parametrize(("reason", "peer", "after_ms", "code"), [
    ("retired", PEER, 0, ""), ("retired", HUB, RETIRED_GRACE_MS, ""),
    ("retired", HUB, RETIRED_GRACE_MS + 1, "key-retired"), ("retired", PEER, 10**12, ""),
    ("compromised", PEER, 10**12, ""), ("compromised", HUB, 0, "record-signature"),
])  # fmt: skip
def test_an_old_key_counts_from_its_holder_and_a_retired_one_a_day_through_others(
    reason: str, peer: str, after_ms: int, code: str
) -> None:
    chain = rotate(CHAIN, OLD, NEW.public, reason, 1)
    gate = a_gate(chain, peer=peer, now_ms=1 + after_ms)
    assert gate.judge(envelopes(key=OLD)[0], "default").code == code
    assert not gate.judge(envelopes(key=NEW)[0], "default").code


@pytest.mark.parametrize(("whole_by", "code"), [
    (PEER, ""), (US, ""), (HUB, "record-signature"), ("", "record-signature"),
])  # fmt: skip
def test_a_compromised_key_counts_in_a_whole_of_its_own_holder_or_of_ours(whole_by: str, code: str) -> None:
    chain = rotate(CHAIN, OLD, NEW.public, "compromised", 1)
    trust = Trust(Chain(US, OWN.public), "", Pins().seen(chain), now_ms=10**12, whole_by=whole_by)
    [old], [new] = envelopes(key=OLD), envelopes(key=NEW)
    gate = a_gate(trust=trust)
    assert gate.judge(old, "default").code == code
    assert gate.is_compromised(record.from_json(old, LIMITS)) == bool(code)
    assert not gate.judge(new, "default").code
    assert not gate.is_compromised(record.from_json(new, LIMITS))


def test_our_own_records_come_back_under_our_retired_keys_only_where_our_log_lacks_them() -> None:
    own = rotate(Chain(US, OWN.public), OWN, NEW.public, "retired", 1)
    lost = rotate(Chain(US, OWN.public), OWN, NEW.public, "compromised", 1)
    [mine] = envelopes(key=OWN, by=US)
    for until_ms, now_ms, code in ((0, 1, "key-retired"), (9, 9, ""), (9, 10, "key-retired"), (0, 0, "")):
        trust = Trust(own, PEER, Pins(), now_ms=now_ms, regains_ms=until_ms)
        assert a_gate(trust=trust).judge(mine, "default").code == code, (until_ms, now_ms)
    assert a_gate(own=lost).judge(mine, "default").code == "record-signature"


def test_of_a_forked_signer_only_its_own_pair_is_believed() -> None:
    """Relays may bring either branch; the owner's pair goes on under the pinned chain."""
    one, other = (rotate(CHAIN, OLD, key.public, "retired", 1) for key in (NEW, OWN))
    pins = Pins().seen(one).seen(other)
    [found] = envelopes(key=NEW)
    assert a_gate(pins=pins).judge(found, "default").code == ""
    assert a_gate(pins=pins, peer=HUB).judge(found, "default").code == "chain-fork"
    assert a_gate(pins=pins.chosen(one), peer=HUB).judge(found, "default").code == ""


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


def test_a_crossing_record_comes_into_our_own_namespace() -> None:
    verdict = a_gate().judge(envelopes(body={"namespace": "work"})[0], "work")
    assert (verdict.code, verdict.ns) == ("", "org/work")


def test_a_record_names_a_namespace_that_leads_to_where_it_comes_in() -> None:
    """Else a peer could bring guesses at what a private namespace of ours holds.  A name that is not ours may have
    crossed on its way, through a hub.

    Ours go back only to where they were made, or a peer could carry them from one of our tenants to another.
    """
    third = did.did_of("third", NEW.public)
    gate = a_gate(
        CHAIN, Chain(third, NEW.public), crossings={(third, "theirs"): "org/work", (PEER, "x"): "org/work"},
        registry={name: Namespace(name) for name in ("default", "org", "org/work", "theirs", "x", "vault")},
    )  # fmt: skip
    elsewhere = {"body": {"namespace": "elsewhere"}}
    assert gate.judge(envelopes(**elsewhere)[0], "work").code == "scope-violation"
    for named, ns, code in (
        ("work", "work", ""), ("org/work", "work", ""), ("theirs", "work", ""),
        ("theirs", "default", "scope-violation"),
        ("x", "work", "scope-violation"), ("vault", "work", "scope-violation"), ("org", "work", "scope-violation"),
        ("elsewhere", "work", ""),
    ):  # fmt: skip
        verdict = gate.judge(envelopes(key=NEW, by=third, body={"namespace": named})[0], ns)
        assert (verdict.code, verdict.ns) == (code, ns if code else "org/work")
    assert gate.judge(envelopes(key=OWN, by=US, **elsewhere)[0], "work").code == "scope-violation"
    assert gate.judge(envelopes(key=OWN, by=US, body={"namespace": "work"})[0], "work").code == "scope-violation"
    assert gate.judge(envelopes(key=OWN, by=US, body={"namespace": "org/work"})[0], "work").ns == "org/work"


@pytest.mark.parametrize("ns", LEVEL_OF)
def test_projections_pass_at_their_level_or_a_finer_one(ns: str) -> None:
    for level in (1, 2, 3):
        value = projection(level, ns)
        verdict = a_gate().judge(value, ns)
        if level <= LEVEL_OF[ns]:
            assert (verdict.code, verdict.ns, verdict.id) == ("", INBOUND[ns].ns, value["id"])
            assert verdict.envelope is None
            assert verdict.projection is not None
            assert json.loads(verdict.projection.raw) == value
        else:
            assert verdict.code == "scope-violation"


@pytest.mark.parametrize(("ns", "changes"), [
    ("default", {"ns": "default"}),
    ("none", {"ns": "none"}),
    ("one", {"ns": "two"}),
    ("one", {"thread": "th_consent"}),
    (None, {}),
    (7, {}),
])  # fmt: skip
def test_projections_out_of_scope_are_a_violation(ns: Any, changes: dict[str, Any]) -> None:
    assert a_gate().judge(projection(**changes), ns).code == "scope-violation"


@pytest.mark.parametrize(
    "changes", [{"key": NEW, "by": US}, {"pair": "pair_00000002"}, {"by": US}, {"key": OWN, "by": US}]
)
def test_forged_projections_are_refused(changes: dict[str, Any]) -> None:
    """Of another signer, for another pair, or in our own name."""
    assert a_gate().judge(projection(**changes), "one").code == "record-signature"


def test_a_third_party_claims_nothing_through_a_peer() -> None:
    third = did.did_of("third", NEW.public)
    gate = a_gate(CHAIN, Chain(third, NEW.public))
    assert gate.judge(projection(key=NEW, by=third), "one").code == "record-signature"
    assert gate.judge(projection(key=NEW), "one").code == "chain-unknown"


@pytest.mark.parametrize("where", [
    ("id",), ("record", "thread"), ("record", "clock"), ("record", "actor"), ("record", "parents"),
    ("record", "body", "hashes", "L2"), ("projection", "value"),
])  # fmt: skip
def test_a_changed_projection_does_not_verify(where: tuple[str, ...]) -> None:
    value = projection()
    holder = value
    for name in where[:-1]:
        holder = holder[name]
    others: dict[str, Any] = {
        "clock": 9, "parents": ["a" * 64], "value": keys.b64(bytes(64)), "actor": "did:sync:user:y",
    }  # fmt: skip
    holder[where[-1]] = others.get(where[-1], "b" * 64)
    assert a_gate().judge(value, "one").code == "record-signature"


def test_a_projection_says_no_more_than_its_level() -> None:
    for extra in ({"judged_by": "a" * 64}, {"body": {"text": "all of it"}}):
        value = projection()
        value["record"].update(extra)
        assert a_gate().judge(value, "one").code == "bad-field"
    both = {**envelopes()[0], "projection": projection()["projection"]}
    assert a_gate().judge(both, "default").code == a_gate().judge(both, "one").code == "bad-field"


def test_where_actors_are_narrowed_a_hidden_one_does_not_pass() -> None:
    narrow = a_gate(actors=frozenset({"did:sync:user:x"}))
    assert narrow.judge(projection(), "one").code == ""
    assert narrow.judge(projection(actor="did:sync:user:y"), "one").code == "scope-violation"
    assert narrow.judge(projection(2, "two"), "two").code == "scope-violation"
    assert a_gate(blocked=frozenset({PEER})).judge(projection(), "one").code == "signer-blocked"


def test_a_retired_key_of_the_peer_still_claims_and_a_chain_is_asked_for_when_the_key_is_new() -> None:
    chain = rotate(CHAIN, OLD, NEW.public, "retired", 1)
    assert a_gate(chain).judge(projection(key=OLD), "one").code == ""
    assert a_gate(chain).judge(projection(key=NEW), "one").code == ""
    assert a_gate().judge(projection(key=NEW), "one").code == "chain-unknown"
