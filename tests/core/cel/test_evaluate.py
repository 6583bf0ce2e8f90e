"""Expressions: CEL's meaning of every operation, errors that are named, and a bound on what they cost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.cel.evaluate import STEPS_MAX, Budget, ExprError, evaluate, parse

FACTS: dict[str, Any] = {
    "request": {
        "label": "bob",
        "namespaces": ["default", "music"],
        "maps": [],
        "n": 3,
        "x": 2.5,
        "no": None,
        "yes": True,
    },
    "peer": {"address": "10.0.0.1"},
}
TRUE = [
    "true", "!false", 'request.label == "bob"', "request[\"label\"] == 'bob'", "request.n == 3.0", "3 in [1, 3.0]",
    "request.n < 3.5", "2 <= 2 && 2 >= 2 && 3 > 2 && 1 != 2", '"a" < "b"', "false < true", "null == request.no",
    '"1" != 1', "true != 1", "null != false", '[1, "a", null] == [1.0, "a", null]', '{"a": [1]} == {"a": [1]}',
    '{"a": 1} != {"b": 1}', '"label" in request', '!("q" in request)', "size(request.namespaces) == 2",
    '"é\\u00e9".size() == 2', "request.maps.size() == 0", 'size({"a": 1}) == 1', 'request.label.startsWith("b")',
    'request.label.endsWith("ob")', 'request.label.contains("o")', '!request.label.contains("x")',
    r'r"\d" == "\\d"', "has(request.label)",
    "!has(request.q)", 'request.namespaces.exists(n, n == "music")',
    'request.namespaces.all(n, n.startsWith("d") || n == "music")', "[].all(x, false)", "![].exists(x, true)",
    'request.namespaces[1] == "music"', "request.yes ? true : request.q",
    "[1, 2].exists(x, [3, 2].exists(y, x == y))", "[[1], [2]].exists(x, x == [2])",
    'request.namespaces[0] == "default"', '{"a": 1} != {"a": 1, "b": 2}', '{"a": 1, "b": 2} != {"a": 1}',
    "0x10 == 16 && 1e3 == 1000 && -1 < 0", "request == request", "peer.address in [peer.address]",
]  # fmt: skip
FALSE = [
    "false",
    "!true",
    'request.label == "Bob"',
    '"bo" in ["bob"]',
    "1 == true",
    "[1] == [1, 2]",
    '"" == null',
    "[2] in [1, 2]",
]
WRONG = [
    "request.q", "q", "request.q == 1", "request.label.q", "request.label", "1", "null", "request.n && true",
    "!request.n", "1 ? true : false", 'request.n < "a"', "null < null", "[1] < [2]", "true < 1",
    "'b' in request.label", "1 in request", "1 in 2", "size(1) == 1", "null.size() == 0", "request.n.startsWith('a')",
    "request.label.contains(1)", "request.exists(x, true)", "'ab'.all(x, true)",
    "request.namespaces[2] == ''", "request.namespaces[-1] == ''", "request.namespaces['0'] == ''", "request[0] == 1",
    "request.label[0] == 'b'", "has(request.label.q)", "has(q.a)", "request.namespaces[1.0] == 'music'",
    'true < "a"', '"a" < true', "{} < {}", "'a' in 'ab'", "null in [1][0]",
    "request.namespaces.all(x, x)", "request.namespaces[true] == ''",
]  # fmt: skip


def cost(text: str, **facts: Any) -> int:
    """Return the steps that an evaluation took, `rule-cost` counting as all of them."""
    budget = Budget()
    try:
        evaluate(parse(text), facts, budget)
    except ExprError as exc:
        assert exc.code == "rule-cost"
    return budget.steps - max(budget.left, 0)


@pytest.mark.parametrize("text", TRUE)
def test_true(text: str) -> None:
    assert evaluate(parse(text), FACTS) is True


@pytest.mark.parametrize("text", FALSE)
def test_false(text: str) -> None:
    assert evaluate(parse(text), FACTS) is False


@pytest.mark.parametrize("text", WRONG)
def test_wrong_types_and_missing_fields_are_errors_with_a_place(text: str) -> None:
    with pytest.raises(ExprError) as caught:
        evaluate(parse(text), FACTS)
    assert caught.value.code == "rule-type"
    assert caught.value.facts["at"]
    assert "bob" not in caught.value.message, "an error names types and fields, never values"


@pytest.mark.parametrize(("text", "value"), [
    ("false && request.q", False), ("request.q && false", False), ("true || request.q", True),
    ("request.q || true", True), ("request.q || request.r || true", True), ("1 || true", True),
    ("[1, 2].exists(x, x == 2 || request.q)", True), ("[2, 1].all(x, request.q && x == 1)", False),
    ("[1].all(x, request.q && x == 1)", None), ("[1, 2].all(x, x == 1 ? request.q : false)", False),
    ("true && request.q", None), ("request.q && true", None), ("false || request.q", None),
    ("request.q || false", None), ("has(request.q) && request.q == 1", False),
    ("!has(request.q) || request.q == 1", True),
])  # fmt: skip
def test_errors_are_overlooked_where_the_rest_decides(text: str, value: bool | None) -> None:
    if value is not None:
        assert evaluate(parse(text), FACTS) is value
        return
    with pytest.raises(ExprError) as caught:
        evaluate(parse(text), FACTS)
    assert caught.value.code == "rule-type"


@pytest.mark.parametrize("text", [
    "x.all(a, x.all(b, x.all(c, x.all(d, true))))",
    "x.exists(a, x.exists(b, a == b && false))", "x.all(a, a in x)",
    " && ".join(["x == x"] * 12),
    "x.all(a, t.contains(t))",
    "x.all(a, [t, t] == [t, t])",
    " && ".join(["x.all(a, has(q.b) || true)"] * 4),
    "x.exists(a, t in m)", "x.all(a, t.startsWith(t))", "x.all(a, t >= t)",
])  # fmt: skip
def test_what_costs_too_much_is_ended_and_named(text: str) -> None:
    """No error inside is overlooked when the steps run out: `|| true` does not hide the cost."""
    budget = Budget()
    with pytest.raises(ExprError) as caught:
        evaluate(parse(text), {"x": list(range(1800)), "t": "a" * 20_000, "m": {}, "q": 1}, budget)
    assert caught.value.code == "rule-cost"
    assert caught.value.facts["at"]
    with pytest.raises(ExprError, match="costs more than"):
        evaluate(parse("true"), {}, budget)


def test_usual_rules_cost_little() -> None:
    assert cost('request.label == "bob" && request.namespaces.all(n, n in ["default", "music"])', **FACTS) < 50
    assert cost('peer.address.startsWith("10.") && !request.label.contains(".")', **FACTS) < 100
    assert cost("size(t) > 3", t="a" * 10**6) < 10
    assert cost("true") == 1
    assert cost("x.all(a, x.all(b, x.all(c, true)))", x=[1] * 100) == STEPS_MAX


@pytest.mark.parametrize(("text", "steps"), [
    ("true", 1), ("a.b", 2), ("a['b']", 3), ("n == 1", 4), ("t == t", 6), ("t < t", 5), ("l == l", 6), ("m == m", 5),
    ("1 in l", 4), ("t in m", 5), ("l.all(x, true)", 16), ("l.exists(x, true)", 9), ("t.contains(t)", 7),
    ("size(t) == 32", 5), ("!true", 2), ("true ? n == 1 : false", 6), ("true && true", 3), ("false && true", 2),
    ("[n, 1] == l", 8), ("has(a.b)", 2), ("a.%s || true" % ("k" * 32), 6),
])  # fmt: skip
def test_each_node_item_and_sixteen_characters_are_a_step(text: str, steps: int) -> None:
    facts = {"a": {"b": True}, "n": 1, "t": "t" * 32, "l": [1, 2], "m": {"x": 1}}
    for left, is_enough in ((steps, True), (steps - 1, False)):
        budget = Budget(left)
        try:
            evaluate(parse(text), facts, budget)
        except ExprError as exc:
            assert (exc.code, is_enough) == ("rule-cost", False)
        else:
            assert (budget.left, is_enough) == (0, True)


@pytest.mark.parametrize(("text", "said"), [
    ("1", "this is an int, and must be true or false"), ("null", "this is null, and"), ("'a'", "this is a string"),
    ("[]", "this is a list"), ("1 in 'a'", "for texts there is contains"), ("1 in 2", "asks an int, at 1:3"),
    ("request.q && request.r", "no field 'q'"), ("request.label < 1", "does not order a string and an int"),
    ("request.namespaces[2] == ''", "outside the list of 2"), ("{}['a']", "no field 'a'"),
    ("request.namespaces.all(x, request.q || x)", "no field 'q'"),
])  # fmt: skip
def test_an_error_names_what_is_wrong_first(text: str, said: str) -> None:
    with pytest.raises(ExprError) as caught:
        evaluate(parse(text), FACTS)
    assert said in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.5, 2.0]) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=1), inner, max_size=2)
    ),
    max_leaves=6,
)
ATOMS = st.sampled_from(
    ["a", "b", "a.a", "a.b", "b[0]", "1", "2.0", "'a'", "null", "true", "[1, a]", "{'a': b}", "size(a)", "has(a.a)"]
)
SIGNS = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "&&", "||"])
TEXTS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, SIGNS, inner).map(lambda x: f"({x[0]} {x[1]} {x[2]})"),
        inner.map(lambda x: f"!{x}"),
        st.tuples(inner, inner, inner).map(lambda x: f"({x[0]} ? {x[1]} : {x[2]})"),
        st.tuples(inner, st.sampled_from(["exists", "all"]), inner).map(lambda x: f"{x[0]}.{x[1]}(a, {x[2]})"),
    ),
    max_leaves=8,
)  # fmt: skip


def outcome(text: str, facts: dict[str, Any]) -> bool | str:
    try:
        return evaluate(parse(text), facts)
    except ExprError as exc:
        return exc.code


@given(TEXTS, JSON, JSON)
def test_every_evaluation_ends_in_true_false_or_a_code(text: str, a: Any, b: Any) -> None:
    """And twice in the same."""
    found = outcome(text, {"a": a, "b": b})
    assert found in (True, False, "rule-type", "rule-cost", "rule-syntax")
    assert found == outcome(text, {"a": a, "b": b})


@given(TEXTS, TEXTS, JSON, JSON)
def test_logic_does_not_depend_on_order(one: str, two: str, a: Any, b: Any) -> None:
    facts = {"a": a, "b": b}
    for sign in ("&&", "||"):
        assert outcome(f"({one}) {sign} ({two})", facts) == outcome(f"({two}) {sign} ({one})", facts)
    negated = {True: False, False: True}
    both = outcome(f"!(({one}) && ({two}))", facts)
    assert both == outcome(f"!({one}) || !({two})", facts)
    plain = outcome(one, facts)
    assert outcome(f"!({one})", facts) == negated.get(plain, plain)


@given(JSON, JSON)
def test_equality_is_that_of_typed_values(a: Any, b: Any) -> None:
    def typed(value: Any) -> Any:
        if isinstance(value, bool):
            return ("bool", value)
        if isinstance(value, list):
            return [typed(item) for item in value]
        return {key: typed(item) for key, item in value.items()} if isinstance(value, dict) else value

    facts = {"a": a, "b": b}
    assert outcome("a == b", facts) is (typed(a) == typed(b))
    assert outcome("a != b", facts) is (typed(a) != typed(b))
    assert outcome("a in [b]", facts) is (typed(a) == typed(b))
    assert outcome("a == a", facts) is True
