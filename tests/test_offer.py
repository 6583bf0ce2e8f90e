"""What a pair is offered: counts agree with rows, lanes share pages, and places never run past what was given."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from spl import offer
from spl.core.cursor import Lane
from spl.index import Index, Row
from spl.offer import Scope

SCOPE = Scope(frozenset({"a", "b"}), frozenset({"pair_1"}), "did:peer", "did:us", True, 0)


@dataclass
class Rows:
    """An index over a list of rows: the queries that an offer asks, answered by looking at all."""

    rows: list[Row] = field(default_factory=list)

    def after(self, name: str, seq: int, limit: int) -> list[Row]:
        return [row for row in self.rows if name == f"n:{row.ns}" and row.seq > seq][:limit]

    def count(self, name: str) -> int:
        return len(self.after(name, 0, 10**9))

    def tally(self, name: str) -> int:
        kind, ns, *rest = name.split(":", 2)
        tests: dict[str, Callable[[Row], bool]] = {
            "v": lambda row: row.voucher == rest[0],
            "o": lambda row: row.origin == rest[0],
            "ov": lambda row: rest[0] == f"{row.origin}:{row.voucher}",
        }
        return sum(row.ns == ns and tests[kind](row) for row in self.rows)


def rows_of(facts: list[tuple[str, str, str, int]]) -> Index:
    rows = [Row(seq, "rec", 1, 0, size, ns, origin, voucher, False, 0)
            for seq, (ns, origin, voucher, size) in enumerate(facts, 1)]  # fmt: skip
    return cast(Index, Rows(rows))


FACTS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["local", "pair_1", "pair_2"]),
        st.sampled_from(["did:us", "did:peer", "did:other"]),
        st.integers(1, 100),
    ),
    max_size=60,
)


@given(FACTS, st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 400), st.integers(0, 30))
def test_pages_give_each_wanted_row_once_in_bounds(
    facts: list[tuple[str, str, str, int]], relay: bool, whole: bool, limit: int, size: int, floor: int
) -> None:
    index, scope = rows_of(facts), replace(SCOPE, relay=relay, whole=whole, floor=floor)
    wanted = [row.seq for row in cast(Rows, index).rows if scope.wants(row)]
    given_, known, more = [], dict[str, Lane](), True
    while more:
        readings = offer.lanes_through(index, scope, known)
        rows, more = offer.collect(index, scope, readings, limit, size)
        assert len(rows) <= limit
        assert len(rows) <= 1 or sum(row.length + 1 for row in rows) <= size
        assert [row.seq for row in rows] == sorted(row.seq for row in rows)
        given_ += [row.seq for row in rows]
        before, known = known, {reading.key: reading.lane() for reading in readings}
        assert all(lane.position >= before[key].position for key, lane in known.items() if key in before)
        assert not more or known != before
    assert sorted(given_) == wanted
    # Who has read all has a clock equal to the head, wherever the start was.
    assert sum(lane.count for lane in known.values()) == offer.head(index, scope)


@given(FACTS)
def test_news_is_there_exactly_when_a_page_would_hold_something(facts: list[tuple[str, str, str, int]]) -> None:
    index = rows_of(facts)
    page, _ = offer.collect(index, SCOPE, offer.lanes_through(index, SCOPE, {}), 1, 10**6)
    assert offer.has_news(index, SCOPE, offer.lanes_through(index, SCOPE, {})) == bool(page)


def test_a_lane_far_behind_shares_the_page() -> None:
    index = rows_of([("a", "local", "did:us", 1)] * 50 + [("b", "local", "did:us", 1)] * 2)
    rows, more = offer.collect(index, SCOPE, offer.lanes_through(index, SCOPE, {}), 10, 10**6)
    assert [row.ns for row in rows] == ["a"] * 8 + ["b"] * 2
    assert more


def test_a_long_stretch_of_what_is_left_out_takes_bounded_steps() -> None:
    index = rows_of([("a", "pair_1", "did:peer", 1)] * (offer.SCAN_ROWS_MAX * 2) + [("a", "local", "did:us", 1)])
    known, steps, rows, more = dict[str, Lane](), 0, list[Row](), True
    while more:
        readings = offer.lanes_through(index, SCOPE, known)
        rows, more = offer.collect(index, SCOPE, readings, 5, 10**6)
        known, steps = {reading.key: reading.lane() for reading in readings}, steps + 1
    assert len(rows) == 1
    assert steps == 2


def test_a_narrowed_reading_has_lanes_of_its_own() -> None:
    index = rows_of([])
    plain = {reading.key for reading in offer.lanes_through(index, SCOPE, {})}
    alone = {reading.key for reading in offer.lanes_through(index, SCOPE, {}, alone=True)}
    thread = {reading.key for reading in offer.lanes_through(index, SCOPE, {}, "th")}
    wider = {reading.key for reading in offer.lanes_through(index, replace(SCOPE, namespaces=frozenset("a")), {}, "th")}
    assert len(plain | alone | thread | wider) == 6
    assert offer.lanes_through(index, SCOPE, {}, "th_consent") == []
