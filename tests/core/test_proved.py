"""Rules of automatic approval: which expressions a stranger cannot satisfy by what it says of itself."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import rules
from spl.core.cel.evaluate import ExprError, evaluate, parse
from spl.core.proved import is_proved

DID = "did:sync:instance:bob-0123456789abcdef01234567"
PROVED = [
    f'request.initiator_did == "{DID}"', f'"{DID}" == request["initiator_did"]', f'request.initiator_did in ["{DID}"]',
    'request.words == "a b c d e f"', 'request.peer.address == "10.0.0.7"', 'peer.address.startsWith("10.0.")',
    'request.host.endsWith(".x") && request.words == "a b"', 'request.q && request.words == "a"',
    'request.words == "a" || peer.address in ["10.0.0.1"]', 'true ? request.words == "a" : false',
    'request.words == "a" ? true : false', '!(request.words != "a")', '!(request.words != "a" || request.label == "x")',
    '["a", "b"].exists(w, w == request.words)', 'request.namespaces.exists(n, request.words == "a")',
    '["a"].all(w, w == request.words)', '!request.maps.all(m, request.words != "a")', "false", "!true",
    'request.initiator_did in {"a": 1}', 'request.words == ["a"][0]',
]  # fmt: skip
CLAIMED = [
    "true", 'request.host.endsWith(".home.example")', 'request.label == "bob"', 'request.endpoint == "https://x"',
    'request.initiator_did != ""', "has(request.initiator_did)", "size(request.words) > 10",
    'request.initiator_did.startsWith("did:sync:instance:bob-")', 'request.words.contains("a")',
    "request.initiator_did == request.label", "request.words in request.namespaces", 'peer.address.startsWith("")',
    "peer.address.startsWith(request.label)", 'request.words == "a" || request.label == "bob"',
    '!(request.words == "a")', 'request.label == "x" ? true : request.words == "a"',
    "request.namespaces.exists(n, n == request.words)", 'request.maps.all(m, request.words == "a")',
    '[].all(m, request.words == "a")', 'request.words < "b"', '!(request.words != "a" && request.label == "x")',
    '[{"words": "x"}].exists(request, request.words == "x")', '[{"address": "x"}].exists(peer, peer.address == "x")',
    '["x"].all(request, request["words"] == "x")', 'peer.address.startsWith("1")', 'peer.address.startsWith("10.1")',
    'request.words in ["a", request.label]', 'request.words == ["a", "b"][request.n]', "request.words",
]  # fmt: skip


@pytest.mark.parametrize("text", PROVED)
def test_a_rule_that_compares_a_proved_fact_is_taken(text: str) -> None:
    rules.check_proved(rules.aitl_rule({"name": "a", "action": "auto_apply", "expression": text}))


@pytest.mark.parametrize("text", CLAIMED)
def test_a_rule_that_any_stranger_can_satisfy_is_refused(text: str) -> None:
    with pytest.raises(rules.RuleError) as caught:
        rules.check_proved(rules.aitl_rule({"name": "a", "action": "auto_apply", "expression": text}))
    assert caught.value.code == "rule-unproved"
    assert "request.initiator_did" in caught.value.message + caught.value.hint
    permission = {"name": "a", "resource": "federation:pair", "action": "deny", "expression": text}
    assert rules.permission_rule(permission), "a rule that refuses may go by claims"


ATOMS = st.sampled_from([
    "true", "false", 'r.label == "x"', 'request.words == "six words"', 'request.words != "six words"',
    "request.words == l", 'l in ["a"]', '["six words"].exists(w, w == request.words)', "has(request.words)",
    'n.all(i, request.words == "six words")', "n.exists(i, i == request.words)", 'l == request.words',
])  # fmt: skip
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda three: f"({' '.join(three)})"),
        inner.map(lambda one: f"!({one})"),
        st.tuples(inner, inner, inner).map(lambda three: f"({three[0]} ? {three[1]} : {three[2]})"),
        inner.map(lambda one: f"[1].all(x, {one})"), inner.map(lambda one: f"n.exists(x, {one})"),
    ),
    max_leaves=6,
)  # fmt: skip


@given(EXPRESSIONS, st.sampled_from(["x", "a", "other words"]), st.lists(st.sampled_from(["other words", ""])))
def test_no_claims_make_a_proved_rule_true_for_another_key(text: str, label: str, names: list[str]) -> None:
    """Whatever a stranger claims, its own words are not the ones in the rule."""
    expr = parse(text)
    if is_proved(expr):
        facts = {"request": {"words": "other words"}, "r": {"label": label}, "l": label, "n": names}
        with suppress(ExprError):
            assert not evaluate(expr, facts)
