"""Filters of queries: what holds of a record, what is refused by its name, and what it costs."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spl.core.query import LEVELS_MAX, RECORD_STEPS, TESTS_MAX, Cost, QueryError, parse

RECORD: dict[str, Any] = {
    "id": "a" * 64,
    "thread": "th_garden",
    "actor": "did:sync:user:alice",
    "act": "KNOW",
    "clock": 7,
    "namespace": "default",
    "data_type": "SCALAR",
    "parents": ["b" * 64],
    "vouched_by": "did:sync:instance:alice",
    "body": {
        "kind": "garden.note", "n": 3, "x": 2.5, "one": 1.0, "yes": True, "none": None, "tags": ["dry", "cold"],
        "at": {"bed": 4, "row": {"no": 1}}, "_refs": [{"kind": "@a", "id": "a:1"}, {"kind": "@b", "id": "b:2"}],
        "text": "the Fence is up", "empty": [], "list": [[1, 2], {"a": True}],
    },
}  # fmt: skip


def holds(value: object, steps: int = 100_000) -> bool:
    return parse(value).holds(RECORD, Cost(steps))


TRUE: list[Any] = [
    {},
    {"thread": "th_garden"},
    {"thread": "th_garden", "clock": 7, "act": {"$ne": "PUT"}},
    {"body.kind": "garden.note"},
    {"body.kind": {"$eq": "garden.note"}},
    {"body.n": {"$gt": 2, "$lt": 4}},
    {"body.n": {"$gte": 3, "$lte": 3}},
    {"body.x": {"$gt": 2}},
    {"body.n": 3.0},
    {"body.one": 1},
    {"body.n": {"$in": [1, 3]}},
    {"body.n": {"$nin": [1, "3", True]}},
    {"body.nothing": {"$exists": False}},
    {"body.none": {"$exists": True}},
    {"body.empty": {"$exists": True}},
    {"body.nothing": None},
    {"body.none": None},
    {"body.nothing": {"$ne": 1}},
    {"body.nothing": {"$nin": [1]}},
    {"body.tags": "dry"},
    {"body.tags": ["dry", "cold"]},
    {"body.tags": {"$in": ["wet", "cold"]}},
    {"body.tags": {"$like": "c%"}},
    {"body.at.bed": 4},
    {"body.at": {"row": {"no": 1}, "bed": 4}},
    {"body.at.row.no": {"$lt": 2}},
    {"body._refs.id": "b:2"},
    {"body.list": [1, 2]},
    {"body.list.a": True},
    {"body.text": {"$like": "the%is _p"}},
    {"body.text": {"$ilike": "%fence%"}},
    {"$or": [{"act": "PUT"}, {"clock": {"$gt": 6}}]},
    {"$and": [{"act": "KNOW"}, {"clock": {"$lt": 8}}]},
    {"$not": {"act": "PUT"}},
    {"body.n": {"$not": {"$gt": 3}}},
    {"parents": "b" * 64},
    {"id": "a" * 64, "vouched_by": {"$like": "did:sync:instance:%"}, "namespace": "default", "data_type": "SCALAR"},
]

FALSE: list[Any] = [
    {"thread": "th_gardens"},
    {"thread": "th_garden", "clock": 8},
    {"body.yes": 1},
    {"body.one": True},
    {"body.n": "3"},
    {"body.n": {"$gt": "2"}},
    {"body.yes": {"$gte": 0}},
    {"body.kind": {"$gt": 1}},
    {"body.n": {"$gt": 2, "$ne": 3}},
    {"body.nothing": {"$gt": 0}},
    {"body.nothing": {"$exists": True}},
    {"body.n": {"$in": []}},
    {"body.n": {"$not": {"$gt": 2, "$lt": 4}}},
    {"body.at.bed.deeper": {"$exists": True}},
    {"body.tags": {"$ne": "dry"}},
    {"body.tags": ["cold", "dry"]},
    {"body.text": {"$like": "%fence%"}},
    {"body.n": {"$like": "%"}},
    {"$or": [{"act": "PUT"}, {"clock": 6}]},
    {"$and": [{"act": "KNOW"}, {"clock": 6}]},
    {"$not": {"$or": [{"act": "KNOW"}]}},
    {"body.list": [True, 2]},
]


@pytest.mark.parametrize("value", TRUE, ids=str)
def test_what_holds(value: object) -> None:
    assert holds(value)
    assert not holds({"$not": value})


@pytest.mark.parametrize("value", FALSE, ids=str)
def test_what_does_not_hold(value: object) -> None:
    assert not holds(value)
    assert holds({"$not": value})


REFUSED: dict[str, Any] = {
    "'$regex'": {"body.n": {"$regex": "x"}},
    "'$where'": {"$where": "1"},
    "'$nor'": {"$nor": [{}]},
    "'sequence'": {"sequence": 1},
    "'kind'": {"kind": "garden.note"},
    "'thread.x'": {"thread.x": 1},
    "'plain'": {"body.n": {"$gt": 1, "plain": 2}},
    "$or takes": {"$or": {}},
    "$and takes": {"$and": []},
    "$in and": {"body.n": {"$in": 1}},
    "$exists takes": {"body.n": {"$exists": 1}},
    "$gt takes": {"body.n": {"$gt": None}},
    "$lte takes": {"body.n": {"$lte": True}},
    "$like takes": {"body.n": {"$like": 1}},
    "$not takes": {"body.n": {"$not": 1}},
    "is an object": {"$or": [1]},
    f"more than {TESTS_MAX}": {"$or": [{"clock": n} for n in range(TESTS_MAX + 1)]},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_known_is_refused_by_its_name(named: str) -> None:
    with pytest.raises(QueryError, match=re.escape(named)) as found:
        parse(REFUSED[named])
    assert found.value.code == "bad-field"


@pytest.mark.parametrize("key", ["$not", "$and"])
def test_depth_is_bounded(key: str) -> None:
    value: Any = {"clock": 7}
    for _ in range(LEVELS_MAX - 1):
        value = {key: value if key == "$not" else [value]}
    parse(value)
    value = {key: value if key == "$not" else [value]}
    with pytest.raises(QueryError, match="deeper"):
        parse(value)
    operators: Any = {"$gt": 1}
    for _ in range(LEVELS_MAX - 1):
        operators = {"$not": operators}
    parse({"clock": operators})
    with pytest.raises(QueryError):
        parse({"clock": {"$not": operators}})


@pytest.mark.parametrize("value", [
    {"body.n": 3}, {"body.text": {"$like": "%a_c%"}}, {"body.tags": {"$in": ["x"]}}, {"body.at": {}},
])  # fmt: skip
def test_a_budget_that_is_spent_ends_the_query(value: object) -> None:
    with pytest.raises(QueryError) as found:
        holds(value, steps=1)
    assert found.value.code == "query-cost"


def test_cost_grows_with_what_is_read() -> None:
    def cost(text: str, value: object) -> int:
        spent = Cost(10**9)
        parse(value).holds({"body": {"text": text}}, spent)
        return spent.spent

    for value in ({"body.text": "a"}, {"body.text": {"$like": "%_b%"}}, {"body": {}}):
        assert cost("a" * 160_000, value) >= 10_000 + cost("a", value)


COUNTED: dict[str, Any] = {
    "thread": "t" * 40, "clock": 7,
    "body": {
        "n": 1, "tags": ["a", "b"], "refs": [{"id": "x" * 32}, {"id": 2}, 7], "text": "x" * 100,
        "deep": {"a": ["y" * 16, {"k": 1}], "b": None},
    },
}  # fmt: skip


@pytest.mark.parametrize(("value", "steps"), [
    ({}, 0), ({"clock": 7}, 2), ({"thread": "a"}, 4), ({"body.n": 1}, 3), ({"body.n": {"$gt": 0}}, 3),
    ({"body.tags": "a"}, 12), ({"body.refs.id": 2}, 15), ({"body.no": {"$exists": False}}, 3), ({"body.deep": {}}, 21),
    ({"body.text": {"$like": "%x%"}}, 13), ({"body.text": {"$like": "x_"}}, 36),
    ({"body.text": {"$like": "%" + "x" * 300 + "_%"}}, 63), ({"$or": [{"clock": 1}, {"clock": 7}]}, 7),
    ({"$not": {"clock": 7}}, 3),
])  # fmt: skip
def test_each_step_is_counted_before_it_is_done(value: object, steps: int) -> None:
    cost = Cost(steps)
    parse(value).holds(COUNTED, cost)
    assert (cost.spent, cost.left) == (steps, 0)
    if steps:
        with pytest.raises(QueryError) as found:
            parse(value).holds(COUNTED, Cost(steps - 1))
        assert found.value.code == "query-cost"


def test_a_record_may_take_as_many_steps_as_allowed() -> None:
    cost = Cost(10 * RECORD_STEPS)
    cost.begin_record()
    cost.spend(RECORD_STEPS)
    with pytest.raises(QueryError, match="for one record"):
        cost.spend(1)
    cost.end_record()
    cost.spend(1)


def test_as_many_tests_as_allowed_are_read() -> None:
    assert len(parse({"$or": [{"clock": n} for n in range(TESTS_MAX - 1)]}).fields()) == 1
    with pytest.raises(QueryError, match="more than"):
        parse({"$or": [{"clock": n} for n in range(TESTS_MAX)]})
    assert parse({f"body.f{n}": 1 for n in range(TESTS_MAX)}).fields() == [f"body.f{n}" for n in range(TESTS_MAX)]


@pytest.mark.parametrize(("value", "clocks"), [
    ({"clock": 7}, (7, 7)), ({"clock": {"$in": [7]}}, (7, 7)), ({"clock": {"$gte": 3, "$lt": 9}}, (3, 8)),
    ({"clock": {"$gt": 3}}, (4, 2**63 - 1)), ({"clock": {"$lte": 9}}, (0, 9)), ({"clock": {"$ne": 7}}, (0, 2**63 - 1)),
    ({"$and": [{"clock": {"$gt": 3}}, {"clock": {"$gt": 5}}, {"clock": {"$lt": 9}}, {"clock": 7}]}, (7, 7)),
    ({"$or": [{"clock": 7}]}, (7, 7)), ({"clock": "7"}, (0, 2**63 - 1)), ({"clock": 7.5}, (0, 2**63 - 1)),
    ({"body.clock": 7}, (0, 2**63 - 1)), ({"$not": {"clock": 7}}, (0, 2**63 - 1)),
])  # fmt: skip
def test_the_clocks_of_which_a_filter_can_hold(value: object, clocks: tuple[int, int]) -> None:
    assert parse(value).clocks() == clocks


@pytest.mark.parametrize(("value", "thread"), [
    ({"thread": {"$gte": "th"}}, None), ({"thread": {"$like": "th"}}, None), ({"$or": [{"thread": "th"}]}, "th"),
    ({"thread": {"$in": ["th"]}}, "th"), ({"thread": 7}, None), ({"body.thread": "th"}, None), ({"actor": "th"}, None),
    ({"$and": [{"$or": [{"thread": "th"}]}, {"clock": 7}]}, "th"), ({"$not": {"$not": {"thread": "th"}}}, None),
])  # fmt: skip
def test_the_thread_that_a_filter_cannot_hold_without(value: object, thread: str | None) -> None:
    assert parse(value).fixed("thread") == thread


ALPHABET = st.text(alphabet="ab_%é\n", max_size=8)


@given(text=st.text(alphabet="ab_", max_size=20), pattern=st.text(alphabet="ab_%", max_size=12))
@example(text="aab" * 30 + "c", pattern="%a_c%")
@example(text="ab" * 300, pattern="%" + "a_" * 300 + "%")
@example(text="ab" * 299 + "a", pattern="%" + "a_" * 300 + "%")
def test_like_is_that_of_sql(text: str, pattern: str) -> None:
    """A regular expression, which may try again and again, says the same."""
    as_regex = "".join({"%": ".*", "_": "."}.get(char, re.escape(char)) for char in pattern)
    wanted = re.fullmatch(as_regex, text, re.DOTALL) is not None
    assert parse({"body.t": {"$like": pattern}}).holds({"body": {"t": text}}, Cost(10_000)) is wanted


@pytest.mark.parametrize("value", [
    {"$or": [{"body.t": {"$like": f"%_b{n}%"}} for n in range(100)]},
    {"$or": [{"body.list": n} for n in range(100)]},
    {"$or": [{"body.deep": {"a": n}} for n in range(100)]},
])  # fmt: skip
def test_one_record_may_take_so_many_steps(value: object) -> None:
    """Its tests are one turn, so what holds others up is refused before it is done, whatever is left."""
    body = {"t": "a" * 900_000, "list": [1] * 300_000, "deep": {"a": [1] * 300_000}}
    cost = Cost(10**12)
    with pytest.raises(QueryError, match="for one record") as found:
        parse(value).holds({"body": body}, cost)
    assert found.value.code == "query-cost"
    assert cost.spent <= 2 * RECORD_STEPS
    assert not parse({"body.t": {"$like": "%_b%"}}).holds({"body": {"t": "a" * 900_000}}, cost)
    cost.spend(2 * RECORD_STEPS)


@pytest.mark.parametrize("value", [
    {"$and": [{}] * (TESTS_MAX + 1)}, {"$or": [{"$and": [{}]}] * (TESTS_MAX // 2)},
    {"$and": [{"$not": {"$not": {"clock": 1}}}] * (TESTS_MAX // 3 + 1)},
])  # fmt: skip
def test_groups_and_empty_filters_count_as_tests(value: object) -> None:
    with pytest.raises(QueryError, match="tests and groups"):
        parse(value)


def test_many_groups_cost_steps() -> None:
    cost = Cost(1000)
    assert parse({"$and": [{}] * 100}).holds(RECORD, cost)
    assert cost.spent >= 100


def test_what_an_index_may_use() -> None:
    """Only what the filter cannot hold without."""
    query = parse({"thread": "th", "clock": {"$gt": 3, "$lte": 9}, "$and": [{"actor": {"$in": ["a"]}}], "body.n": 1})
    assert (query.fixed("thread"), query.fixed("actor"), query.fixed("namespace")) == ("th", "a", None)
    assert query.clocks() == (4, 9)
    assert query.fields() == ["thread", "clock", "actor", "body.n"]
    for value in (
        {"$or": [{"thread": "th"}, {"clock": 7}]}, {"$not": {"thread": "th", "clock": 7}}, {"thread": {"$ne": "th"}},
        {"thread": {"$in": ["th", "other"]}, "clock": {"$in": [1, 2]}}, {"thread": {"$not": {"$eq": "th"}}},
    ):  # fmt: skip
        open_ = parse(value)
        assert open_.fixed("thread") is None
        assert open_.clocks() == (0, 2**63 - 1)
