"""Folds: each value is what its table says, whatever the order, the pieces and the bodies; rules take any history."""

import json
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import canon, fold
from spl.core.fold import DEFAULT, FOLDS, KIND_FOLD, KIND_FOLD_REMOVED, SET_BYTES_MAX, SET_MEMBERS_MAX, FoldRule
from spl.core.rules import RuleError

Body = dict[str, Any]
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text("ab", max_size=2), st.lists(st.booleans()))
BODIES = st.lists(st.dictionaries(st.sampled_from(["x", "y"]), VALUES, max_size=2), max_size=12)
NUMBERS = st.one_of(st.integers(-(10**309), 10**309), st.floats(allow_nan=False, allow_infinity=False))


def a_rule(name: str, field: str = "") -> FoldRule:
    return fold.fold_rule({"name": "r", "thread": "th", "fold": name, "field": field})


def state_of(
    rule: FoldRule, bodies: Sequence[Body], state: fold.FoldState | None = None, first: int = 1
) -> fold.FoldState:
    state = fold.begin(rule) if state is None else state
    for sequence, body in enumerate(bodies, first):
        state = fold.step(rule, state, sequence, body if rule.reads_bodies else {})
    return state


def value(name: str, field: str, bodies: Sequence[Body]) -> Any:
    rule = a_rule(name, field)
    found = fold.value_of(rule, state_of(rule, bodies), lambda sequence: bodies[sequence - 1])
    return json.loads(json.dumps(found, allow_nan=False))


def test_each_fold_of_a_few_records() -> None:
    bodies: list[Body] = [{"n": 1}, {"m": 0}, {"n": 2.5}, {"n": "x"}, {"n": 1}, {"o": {"n": 7}}]
    found = {name: value(name, "n", bodies) for name in FOLDS}
    assert found == {"latest": 1, "first": 1, "count": 4, "sum": 4.5, "set": ["x", 1, 2.5]}
    assert [value(name, "", bodies) for name in ("latest", "first", "count")] == [{"o": {"n": 7}}, {"n": 1}, 6]
    assert value("latest", "o.n", bodies) == 7
    assert [value(name, "n.deeper", bodies) for name in FOLDS] == [None, None, 0, 0, []]
    assert [value(name, "n", []) for name in FOLDS] == [None, None, 0, 0, []]


@given(BODIES, st.sampled_from(list(FOLDS)), st.sampled_from(["", "x"]))
def test_a_fold_is_what_its_table_says(bodies: list[Body], name: str, field: str) -> None:
    drawn = [body.get(field) if field else body for body in bodies if not field or field in body]
    if FOLDS[name].needs_field and not field:
        return
    numbers = [item for item in drawn if isinstance(item, int) and not isinstance(item, bool)]
    wanted = {
        "latest": drawn[-1] if drawn else None, "first": drawn[0] if drawn else None, "count": len(drawn),
        "sum": sum(numbers), "set": [json.loads(text) for text in sorted({canon.encode(item) for item in drawn})],
    }  # fmt: skip
    assert value(name, field, bodies) == wanted[name]


@given(BODIES, st.sampled_from([("latest", ""), ("first", "x"), ("count", "x"), ("sum", "x"), ("set", "x")]), st.data())
def test_reading_on_equals_reading_anew(bodies: list[Body], asked: tuple[str, str], data: st.DataObject) -> None:
    rule = a_rule(*asked)
    cut = data.draw(st.integers(0, len(bodies)))
    assert state_of(rule, bodies[cut:], state_of(rule, bodies[:cut]), cut + 1) == state_of(rule, bodies)


@given(st.lists(NUMBERS, max_size=8), st.randoms(use_true_random=False))
def test_a_sum_is_exact_in_whatever_order(numbers: list[float], random: Any) -> None:
    bodies = [json.loads(canon.encode({"n": number})) for number in numbers]
    exact = sum((Fraction(Decimal(repr(body["n"]))) for body in bodies), Fraction(0))
    found = value("sum", "n", bodies)
    random.shuffle(bodies)
    assert value("sum", "n", bodies) == found
    try:
        assert found == (exact if exact.denominator == 1 else float(exact))
    except OverflowError:
        assert found == int(exact)


def test_a_sum_counts_decimals_as_they_are_written() -> None:
    assert value("sum", "n", [{"n": 0.1}] * 3) == 0.3
    assert value("sum", "n", [{"n": 1e308}, {"n": 1e308}, {"n": 0.5}]) == 2 * 10**308
    assert value("sum", "n", [{"n": True}, {"n": "2"}, {"n": [3]}]) == 0


def test_a_set_is_bounded_and_says_so() -> None:
    rule = a_rule("set", "n")
    full = state_of(rule, [{"n": n} for n in range(SET_MEMBERS_MAX)])
    assert fold.is_complete(full)
    assert fold.is_complete(fold.step(rule, full, 9999, {"n": 3}))
    over = fold.step(rule, full, 9999, {"n": -1})
    assert not fold.is_complete(over)
    assert fold.value_of(rule, over, lambda sequence: {}) == sorted(range(SET_MEMBERS_MAX), key=str)
    long = state_of(rule, [{"n": "x" * (SET_BYTES_MAX // 2)}, {"n": "y" * SET_BYTES_MAX}, {"n": 1}])
    assert not fold.is_complete(long)
    assert len(fold.value_of(rule, long, lambda sequence: {})) == 2


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_no_clock_holds_latest(clocks: list[int]) -> None:
    """Whatever a writer claims in it, the last record to arrive is the latest."""
    assert value("latest", "", [{"clock": clock} for clock in clocks]) == {"clock": clocks[-1]}


@pytest.mark.parametrize(("changes", "fault"), [
    ({"name": "a b"}, "name"), ({"name": None}, "name"), ({"priority": 1.5}, "priority"),
    ({"priority": True}, "priority"),
    ({"thread": ""}, "thread"), ({"thread": None}, "thread"), ({"thread": "a\n"}, "thread"),
    ({"thread": "x" * 257}, "thread"), ({"fold": "median"}, "fold"), ({"fold": ["sum"]}, "fold"),
    ({"field": 1}, "field"),
    ({"field": "a..b"}, "field"), ({"field": "."}, "field"), ({"field": "a."}, "field"),
    ({"field": ".".join("a" * 17)}, "field"), ({"field": "x" * 257}, "field"), ({"fold": "sum"}, "field"),
    ({"fold": "set"}, "field"),
])  # fmt: skip
def test_a_rule_of_the_wrong_form_is_refused(changes: dict[str, Any], fault: str) -> None:
    good = {"name": "r", "thread": "th_*", "fold": "count", "priority": 3}
    assert fold.fold_rule(good).to_body() == {**good, "field": ""}
    with pytest.raises(RuleError) as caught:
        fold.fold_rule({**good, **changes})
    assert (caught.value.code, caught.value.message.partition(":")[0]) == ("bad-field", fault)


def folded(*bodies: Body) -> fold.FoldRules:
    rules: fold.FoldRules = {}
    for body in bodies:
        rules = fold.fold_rules(rules, {"kind": KIND_FOLD, "thread": "th_*", "fold": "count", **body})
    return rules


def test_the_highest_priority_decides_and_then_the_name() -> None:
    rules = folded({"name": "b"}, {"name": "a", "thread": "th_a"}, {"name": "low", "thread": "*", "priority": -1})
    assert [fold.rule_for(rules, thread).name for thread in ("th_a", "th_b", "x")] == ["a", "b", "low"]
    rules = folded({"name": "b"}, {"name": "a", "priority": -1}, {"name": "b", "priority": -2, "fold": "first"})
    assert list(rules) == ["a", "b"]
    assert rules["b"].fold == "first"
    assert fold.rule_for(rules, "other") == DEFAULT
    assert list(fold.fold_rules(rules, {"kind": KIND_FOLD_REMOVED, "name": "a"})) == ["b"]


@given(st.lists(st.dictionaries(
    st.sampled_from(["kind", "name", "thread", "fold", "field", "priority"]),
    st.one_of(st.sampled_from([KIND_FOLD, KIND_FOLD_REMOVED, "a", "b", "count", "sum", "x.y"]), VALUES),
)))  # fmt: skip
def test_history_is_folded_whatever_it_holds(bodies: list[Body]) -> None:
    rules: fold.FoldRules = {}
    for body in bodies:
        rules = fold.fold_rules(rules, body)
    assert all(left.priority >= right.priority for left, right in pairwise(rules.values()))
    assert all(fold.fold_rule(rule.to_body()) == rule for rule in rules.values())


def test_texts_and_sets_may_fill_their_bounds() -> None:
    sound = {"name": "r", "thread": "t" * fold.THREAD_CHARS_MAX, "fold": "sum", "field": "f" * fold.FIELD_CHARS_MAX}
    assert fold.fold_rule(sound).field == sound["field"]
    for name in ("thread", "field"):
        with pytest.raises(RuleError):
            fold.fold_rule({**sound, name: sound[name] + "x"})
    full = fold._join(fold.Members(), 1, "x" * (fold.SET_BYTES_MAX - 2))
    assert (full.size_bytes, full.complete) == (fold.SET_BYTES_MAX, True)
    assert not fold._join(fold.Members(), 1, "x" * (fold.SET_BYTES_MAX - 1)).complete
    assert fold.is_complete(7)
    assert fold.is_complete(fold.Sum())


def test_a_body_of_another_kind_makes_no_rule() -> None:
    fields = {"name": "r", "thread": "*", "fold": "count"}
    assert folded({**fields, "kind": fold.KIND_FOLD}).keys() == {"r"}
    assert folded({**fields, "kind": "other"}) == {}
    assert folded({**fields, "kind": fold.KIND_FOLD, "name": 7}) == {}
