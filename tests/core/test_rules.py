"""Rules: their order and verdicts, what fails refuses, and a fold that takes whatever history holds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import rules
from spl.core.cel.evaluate import ExprError
from spl.core.identity.did import words
from spl.core.rules import HANDSHAKE, Decision, RuleError, covers, decide, locks_out_handshake
from spl.core.value import replace
from tests.core.identity.test_manifest import a_document, check

FACTS = rules.sample_facts(HANDSHAKE)


def folded(*given: dict[str, Any]) -> rules.PermissionRules:
    """Return the rules of these members, each with what it leaves out."""
    found: rules.PermissionRules = {}
    for number, members in enumerate(given):
        defaults = {"name": f"r{number}", "resource": "*", "action": "deny", "priority": 0, "expression": "true"}
        found = rules.fold(
            found, {**rules.permission_rule({**defaults, **members}).to_body(), "kind": rules.KIND_PERMISSION}
        )
    return found


def verdict(*given: dict[str, Any], resource: str = "records:write", held: str = "", **facts: Any) -> tuple[str, str]:
    found = decide(folded(*given), resource, {**FACTS, **facts}, frozenset(held.split()))
    return found.outcome, found.rule


def test_no_rule_leaves_it_to_the_scopes() -> None:
    assert decide({}, "records:write", FACTS) == Decision("none")
    assert verdict({"expression": "false"}) == ("none", "")
    assert verdict({"resource": "records:read"}) == ("none", "")


def test_the_highest_priority_decides_and_then_the_name() -> None:
    low, high = {"name": "z", "priority": -1, "action": "allow"}, {"name": "y", "priority": 5}
    assert verdict(low, high) == verdict(high, low) == ("deny", "y")
    assert verdict(low, {**high, "expression": "false"}) == ("allow", "z")
    assert verdict({"name": "b"}, {"name": "a", "action": "allow"}) == ("allow", "a")
    assert verdict({"name": "a"}, {"name": "a", "action": "allow"}) == ("allow", "a"), "the same name replaces"


def test_a_required_capability_is_held_through_scopes_or_refused() -> None:
    rule = {"action": "require:record_write"}
    assert verdict(rule) == ("deny", "r0")
    assert verdict(rule, held="record_read") == ("deny", "r0")
    assert verdict(rule, held="record_write") == ("allow", "r0")
    assert verdict(rule, {"priority": -1}, held="record_write") == ("allow", "r0"), "the first match decides"
    assert rules.capabilities_of(frozenset({"records:read"})) == {"record_read", "thread_read"}
    assert rules.capabilities_of(frozenset({"admin"})) == set(rules.CAPABILITIES)
    assert rules.capabilities_of(frozenset({"federation:manage"})) == set()


@pytest.mark.parametrize(
    "expression",
    ["request.nothing == 1", "1", "peer.address < 3", "request.label.all(x, true)", "[1].all(x, " * 9 + "q" + ")" * 9],
)
def test_an_expression_that_fails_refuses_and_never_allows(expression: str) -> None:
    for action, outcome in (("deny", "deny"), ("require:record_read", "deny"), ("allow", "none")):
        found = decide(folded({"action": action, "expression": expression}), "x:read", FACTS)
        assert found.outcome == outcome
        assert bool(found.fault) == (outcome == "deny")
    assert verdict({"action": "require:record_read", "expression": expression}, held="record_read")[0] == "allow"


def test_a_costly_request_cannot_pass_a_rule_by_its_cost() -> None:
    rule = {"expression": "request.namespaces.all(a, request.namespaces.all(b, a == b))"}
    facts = {"request": {"namespaces": ["x"] * 1000}}
    found = decide(folded({"action": "allow", **rule, "priority": 1}, rule), "x:read", facts)
    assert (found.outcome, found.rule) == ("deny", "r1")
    assert "costs more" in found.fault


@pytest.mark.parametrize(("pattern", "resource", "yes"), [
    ("records:write", "records:write", True), ("records:write", "records:writes", False), ("*", "a:b", True),
    ("records:*", "records:read", True), ("records:*", "records", False), ("*:read", "records:read", True),
    ("*:read", "records:write", False), ("r*s:*d", "records:read", True), ("a*a", "a", False), ("a*a", "aa", True),
    ("*b*b*", "ab", False), ("*b*b*", "bb", True), ("**", "", True), ("a*b*c", "a-b-b-c", True),
    ("a*bc*c", "abc", False), ("federation:pair", "federation:read", False),
])  # fmt: skip
def test_a_star_stands_for_any_characters(pattern: str, resource: str, yes: bool) -> None:
    assert covers(pattern, resource) is yes


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_covering_is_matching(pattern: str, resource: str) -> None:
    """A table of prefixes, by the book, is the oracle."""
    reach = {0}
    for char in pattern:
        if char == "*":
            reach = set(range(min(reach), len(resource) + 1)) if reach else set()
        else:
            reach = {at + 1 for at in reach if resource[at : at + 1] == char}
    assert covers(pattern, resource) is (len(resource) in reach)


@pytest.mark.parametrize("changes", [
    {"name": ""}, {"name": "a b"}, {"name": "x" * 65}, {"name": 1}, {"name": "test"}, {"name": "-a"}, {"name": "a\n"},
    {"resource": ""}, {"resource": "A"}, {"resource": "a b"}, {"resource": "a:"}, {"resource": None},
    {"action": "refuse"}, {"action": "require:all"}, {"action": ["deny"]}, {"priority": "1"}, {"priority": True},
    {"priority": 1.5}, {"priority": 10**7}, {"expression": 1},
])  # fmt: skip
def test_a_rule_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    sound = {"name": "a", "resource": "records:*", "action": "deny", "priority": 1, "expression": "true"}
    assert rules.permission_rule(sound).to_body() == sound
    with pytest.raises(RuleError) as caught:
        rules.permission_rule({**sound, **changes})
    assert caught.value.code == "bad-field"
    assert caught.value.message.startswith(next(iter(changes)))


def test_an_expression_that_does_not_parse_is_refused_with_its_place() -> None:
    for make in (rules.permission_rule, rules.aitl_rule):
        action = "deny" if make is rules.permission_rule else "auto_apply"
        with pytest.raises(ExprError) as caught:
            make({"name": "a", "resource": "*", "action": action, "expression": "a &&"})
        assert caught.value.facts["at"] == "1:5"


@pytest.mark.parametrize("names", [[], "music", ["A"], [1], ["a//b"], None])
def test_an_approval_rule_names_namespaces(names: object) -> None:
    sound = {"name": "a", "action": "auto_apply", "priority": 2, "expression": "peer.address == '10.0.0.1'"}
    assert rules.aitl_rule(sound).namespaces == ("default",)
    assert rules.aitl_rule({**sound, "namespaces": ["b", "a", "b"]}).to_body() == {**sound, "namespaces": ["b", "a"]}
    for changes in ({"namespaces": names}, {"action": "deny"}):
        with pytest.raises(RuleError):
            rules.aitl_rule({**sound, **changes})


KINDS = [rules.KIND_PERMISSION, rules.KIND_PERMISSION_REMOVED, rules.KIND_AITL, rules.KIND_AITL_REMOVED, "x", None]
BODIES = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS), "name": st.sampled_from(["a", "b", "c", "", None, 7, ["a"]])},
    optional={
        "resource": st.sampled_from(["*", "records:*", "", None, {}]),
        "action": st.sampled_from(["deny", "allow", "auto_apply", 1, [1]]),
        "priority": st.integers(-2, 2) | st.none() | st.text(max_size=1),
        "expression": st.sampled_from(["true", "a &&", "1", None, 7]),
        "namespaces": st.sampled_from([["a"], [], "a", [1], None]),
        "expr": st.just("smuggled"),
    },
)


@given(st.lists(BODIES, max_size=8))
def test_the_fold_never_raises_and_keeps_the_order_of_asking(bodies: list[dict[str, Any]]) -> None:
    permissions: rules.PermissionRules = {}
    approvals: rules.AitlRules = {}
    for body in bodies:
        permissions, approvals = rules.fold(permissions, body), rules.fold_aitl(approvals, body)
        for found in (permissions, approvals):
            assert list(found.values()) == sorted(found.values(), key=lambda rule: (-rule.priority, rule.name))
            assert all(rule.name == name and rule.expr != "smuggled" for name, rule in found.items())
    decide(permissions, "records:read", FACTS)
    rules.applies(approvals, FACTS)
    locks_out_handshake(permissions)


def test_a_stored_expression_of_a_newer_language_refuses() -> None:
    body = {
        "kind": rules.KIND_PERMISSION,
        "name": "a",
        "resource": "*",
        "action": "deny",
        "priority": 0,
        "expression": "a + b",
    }
    found = rules.fold({}, body)
    assert decide(found, "x:read", FACTS).outcome == "deny"
    assert decide(rules.fold({}, {**body, "action": "allow"}), "x:read", FACTS).outcome == "none"
    assert rules.applies(rules.fold_aitl({}, {**body, "kind": rules.KIND_AITL, "action": "auto_apply"}), FACTS) == (
        None,
        ("a",),
    )
    assert rules.fold(found, {"kind": rules.KIND_PERMISSION_REMOVED, "name": "a"}) == {}


def test_the_first_approval_rule_that_is_true_applies() -> None:
    found: rules.AitlRules = {}
    for name, priority, expression in (
        ("low", 0, 'request.words in ["a", "b"]'),
        ("bad", 9, 'request.q && request.words == "a"'),
        ("bob", 5, 'request.initiator_did == "bob"'),
    ):
        rule = rules.aitl_rule(
            {"name": name, "action": "auto_apply", "priority": priority, "expression": expression, "namespaces": [name]}
        )
        found = rules.fold_aitl(found, {**rule.to_body(), "kind": rules.KIND_AITL})
    for did, wanted in (("bob", "bob"), ("eve", "low")):
        rule_, failed = rules.applies(found, {"request": {"initiator_did": did, "words": "a"}})
        assert rule_ is not None
        assert (rule_.name, rule_.namespaces, failed) == (wanted, (wanted,), ("bad",))


LOCK, SOME = {"name": "lock", "action": "require:record_write"}, 'request.label == "bob"'


@pytest.mark.parametrize(("given", "name"), [
    ([], ""), ([LOCK], "lock"), ([{**LOCK, "action": "deny", "resource": "federation:*"}], "lock"),
    ([{**LOCK, "resource": HANDSHAKE}], "lock"), ([{**LOCK, "resource": "records:*"}], ""),
    ([{**LOCK, "action": "allow"}], ""), ([{**LOCK, "expression": SOME}], ""),
    ([{**LOCK, "expression": "false"}], ""), ([{**LOCK, "expression": f"{SOME} || true"}], "lock"),
    ([{**LOCK, "expression": 'principal.kind == "anonymous"'}], "lock"),
    ([{**LOCK, "expression": 'principal.kind != "local"'}], "lock"),
    ([{**LOCK, "expression": 'request.resource == "records:write"'}], ""),
    ([{**LOCK, "expression": "request.q == 1"}], "lock"), ([{**LOCK, "expression": "has(request.label)"}], ""),
    ([{**LOCK, "expression": 'request.namespaces[0] == "x"'}], ""),
    ([{**LOCK, "expression": 'peer.address != "10.0.0.1"'}], ""),
    ([LOCK, {"action": "allow", "expression": SOME, "priority": 1}], ""),
    ([LOCK, {"action": "allow", "expression": "has(request.label)", "priority": 1}], ""),
    ([LOCK, {"action": "allow", "expression": "false", "priority": 1}], "lock"),
    ([LOCK, {"action": "allow", "priority": 1}], ""),
    ([LOCK, {"action": "allow", "expression": "request.q == 1", "priority": 1}], "lock"),
    ([LOCK, {"action": "allow", "priority": -1}], "lock"),
    ([LOCK, {"name": "some", "expression": SOME, "priority": 1}], "lock"),
])  # fmt: skip
def test_what_locks_out_every_peer_is_named(given: list[dict[str, Any]], name: str) -> None:
    """A rule that depends on the peer locks out some, which may be meant; an allow before it lets some in."""
    assert locks_out_handshake(folded(*given)) == name


def test_a_priority_may_be_as_high_or_low_as_allowed_and_is_none_by_default() -> None:
    assert rules.named({"name": "x" * 64}) == ("x" * 64, 0)
    for priority in (-rules.PRIORITY_MAX, 0, rules.PRIORITY_MAX):
        assert rules.named({"name": "a", "priority": priority}) == ("a", priority)
    for priority in (-rules.PRIORITY_MAX - 1, rules.PRIORITY_MAX + 1):
        with pytest.raises(RuleError):
            rules.named({"name": "a", "priority": priority})


def test_a_rule_that_can_be_evaluated_has_no_fault() -> None:
    sound = rules.permission_rule({"name": "a", "resource": "*", "action": "deny"})
    assert (sound.expression, rules.fault_of(sound)) == ("true", "")
    proved = rules.aitl_rule({"name": "a", "action": "auto_apply", "expression": 'request.words == "a"'})
    assert rules.fault_of(proved) == ""
    rules.check_proved(proved)


def test_the_names_that_an_expression_lacks_are_told() -> None:
    rule = rules.permission_rule(
        {"name": "a", "resource": "*", "action": "deny", "expression": "z.a == b && request.x"}
    )
    assert rules.unknown_names(rule.expr, FACTS) == ["b", "z"]
    assert rules.unknown_names(rule.expr, {**FACTS, "z": 1, "b": 2}) == rules.unknown_names(None, FACTS) == []


def test_the_facts_of_a_request_are_of_one_form() -> None:
    found = rules.request_facts("records:read", "GET", "/v1/x", {"a": "b"}, {"kind": "token"}, "10.0.0.1")
    assert found["request"] == {"resource": "records:read", "method": "GET", "path": "/v1/x", "params": {"a": "b"}}
    assert found["principal"] == {**rules.request_facts("x")["principal"], "kind": "token"}
    assert found["peer"] == {"address": "10.0.0.1"}
    assert rules.sample_facts("records:read") == rules.request_facts("records:read")


def test_the_facts_of_a_pair_request_are_those_of_its_signer_and_its_connection() -> None:
    peer = check(a_document())
    asked = {"namespaces": ["a"], "maps": [{"local": "theirs", "peer": "ours"}], "mode": "polling"}
    facts = rules.handshake_facts(peer, asked, "10.0.0.1")
    assert facts["request"] == {
        "resource": HANDSHAKE, "method": "POST", "path": "/v1/federation/pair", "params": {},
        "peer": {"address": "10.0.0.1"}, "initiator_did": peer.did, "label": "bob", "words": words(peer.public_key),
        "namespaces": ["a"], "maps": [{"local": "ours", "peer": "theirs"}], "mode": "polling",
        "endpoint": "https://bob.example/v1/federation/pair", "host": "bob.example",
    }  # fmt: skip
    assert (facts["peer"], facts["principal"]["kind"]) == ({"address": "10.0.0.1"}, "anonymous")
    assert facts["request"].keys() == FACTS["request"].keys(), "rules are tried out over facts of the same form"
    nameless = rules.handshake_facts(replace(peer, url=""), {**asked, "maps": []}, "")
    assert (nameless["request"]["endpoint"], nameless["request"]["host"]) == ("", "")
