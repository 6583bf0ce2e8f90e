"""What a pair is offered: counts agree with rows, lanes share pages, and what is hidden moves nothing that shows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from spl.core.consent import Outbound
from spl.core.record.cursor import Lane, lane_key
from spl.core.record.filter import OPEN, PairFilter
from spl.home.index import Index, Row
from spl.sync import lanes as offer
from spl.sync.lanes import EmptyRanges, LogView, Scope, Steps

SHARES = {ns: Outbound(ns, ns, 0) for ns in "ab"}
SCOPE = Scope(SHARES, (OPEN,), frozenset({"pair_1"}), "did:peer", "did:us")
RULE = PairFilter(thread_rule='record.thread == "shown"')
OWN_ONLY = PairFilter(relay=False)
FILTERS = (OPEN, OWN_ONLY, RULE, PairFilter(thread_allow=("shown",), relay=False))
Fact = tuple[str, str, str, int, str]  # namespace, origin, voucher, size, thread
_T = TypeVar("_T")


@dataclass
class Rows:
    """An index over a list of rows: the queries that an offer asks, answered by looking at all."""

    rows: list[Row] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    looked: int = 0

    def after(self, name: str, seq: int, limit: int) -> list[Row]:
        rows = self.rows
        if name.startswith("t:"):
            rows = [row for row, thread in zip(rows, self.threads, strict=True) if name == f"t:{thread}"]
        else:
            rows = [row for row in rows if name == f"n:{row.ns}"]
        found = [row for row in rows if row.seq > seq][:limit]
        self.looked += len(found)
        return found

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

    def payloads(self, rows: Sequence[Row]) -> list[bytes]:
        return [json.dumps({"record": {"thread": self.threads[row.seq - 1]}}).encode() for row in rows]


def rows_of(facts: Sequence[Fact]) -> Rows:
    rows = [Row(seq, "rec", 1, 0, size, ns, origin, voucher, False, 0)
            for seq, (ns, origin, voucher, size, _) in enumerate(facts, 1)]  # fmt: skip
    return Rows(rows, [fact[4] for fact in facts])


def look_at(index: Rows, scope: Scope = SCOPE, last_seq: int = 10**9, *, whole: bool = False) -> LogView:
    return LogView(cast(Index, index), index.payloads, scope, last_seq, EmptyRanges(), whole)


def done(steps: Steps[_T]) -> _T:
    """Do all the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(_T, end.value)


def wanted(look: LogView, index: Rows) -> list[int]:
    """Return what a reading must give, by the definition."""
    scope = look.scope
    return [
        row.seq
        for row, thread in zip(index.rows, index.threads, strict=True)
        if row.ns in scope.shares
        and row.seq > scope.floor
        and scope.filter.admits({"thread": thread}, row.voucher != scope.own_did)
        and (look.whole or (row.origin not in scope.origins and row.voucher != scope.peer_did))
    ]


def read(
    look: LogView, limit: int, size: int, known: dict[str, Lane] | None = None
) -> tuple[list[int], dict[str, Lane]]:
    """Return the rows of all pages from these lanes on, and the lanes at the end."""
    found, held, more = [], dict(known or {}), True
    while more:
        readings = offer.lanes_through(look, held)
        rows, more = done(offer.collect(look, readings, limit, size))
        assert len(rows) <= limit
        assert len(rows) <= 1 or sum(row.length + 1 for row in rows) <= size
        assert [row.seq for row in rows] == sorted(row.seq for row in rows)
        found += [row.seq for row in rows]
        before = dict(held)
        held.update({reading.key: reading.lane() for reading in readings})
        assert all(lane.position >= before[key].position for key, lane in held.items() if key in before)
        assert not more or held != before
    return found, held


ORIGINS = ["local", "pair_1", "pair_2"]
VOUCHERS = ["did:us", "did:peer", "did:other"]
FACTS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(ORIGINS), st.sampled_from(VOUCHERS), st.integers(1, 100),
        st.sampled_from(["shown", "hidden"]),
    ),
    max_size=60,
)  # fmt: skip


@given(
    FACTS, st.sampled_from(FILTERS), st.booleans(), st.integers(1, 9), st.integers(1, 400), st.integers(0, 30),
)  # fmt: skip
def test_pages_give_each_wanted_row_once_in_bounds(
    facts: list[Fact], filter_: PairFilter, whole: bool, limit: int, size: int, floor: int
) -> None:
    index = rows_of(facts)
    look = look_at(index, replace(SCOPE, filters=(filter_,), floor=floor), whole=whole)
    found, lanes = read(look, limit, size)
    assert sorted(found) == wanted(look, index)
    counted = wanted(replace(look, whole=False), index)
    assert sum(lane.count for lane in lanes.values()) == len(counted)
    if look.scope.tallied:
        # Who has read all has a clock equal to the head.
        assert offer.head(look.index, look.scope) == len(counted)


@given(FACTS, st.sampled_from(FILTERS))
def test_news_is_there_exactly_when_a_page_would_hold_something(facts: list[Fact], filter_: PairFilter) -> None:
    look = look_at(rows_of(facts), replace(SCOPE, filters=(filter_,)))
    page, _ = done(offer.collect(look, offer.lanes_through(look, {}), 1, 10**6))
    assert done(offer.has_news(look, offer.lanes_through(look, {}))) == bool(page)


@given(FACTS, st.sampled_from(FILTERS), st.integers(1, 5), st.integers(0, 2**32))
def test_what_is_hidden_moves_nothing_that_shows(
    facts: list[Fact], filter_: PairFilter, limit: int, seed: int
) -> None:  # fmt: skip
    """A peer sees the same pages, and the same moves of its lanes, whether the hidden rows are in the log or not."""
    scope = replace(SCOPE, filters=(filter_,))
    known = [f for f in facts if f[0] in SHARES and filter_.admits({"thread": f[4]}, f[2] != "did:us")]
    seen = []
    for log in (facts, known):
        index, held, more, views = rows_of(log), dict[str, Lane](), True, []
        look = look_at(index, scope)
        shown = [row for row, visible, _ in look.judged(index.rows) if visible]
        numbers = {row.seq: number for number, row in enumerate(shown, 1)}
        while more:
            readings = offer.lanes_through(look, held)
            rows, more = done(offer.collect(look, readings, limit, 500))
            held = {reading.key: reading.lane() for reading in readings}
            # A place in terms of what the pair may know of.
            places = {key: (numbers.get(lane.position, 0), lane.count) for key, lane in held.items()}
            views.append(([numbers[row.seq] for row in rows], more, places))
        seen.append(views)
    assert seen[0] == seen[1]


def test_a_lane_far_behind_shares_the_page() -> None:
    index = rows_of([("a", "local", "did:us", 1, "")] * 50 + [("b", "local", "did:us", 1, "")] * 2)
    look = look_at(index)
    rows, more = done(offer.collect(look, offer.lanes_through(look, {}), 10, 10**6))
    assert [row.ns for row in rows] == ["a"] * 8 + ["b"] * 2
    assert more


def test_a_long_stretch_of_what_the_peer_has_takes_bounded_pages() -> None:
    facts: list[Fact] = [("a", "pair_1", "did:peer", 1, "")] * (offer.PASSED_ROWS_MAX * 2 + 10)
    look = look_at(rows_of([*facts, ("a", "local", "did:us", 1, "")]))
    known, steps, rows, more = dict[str, Lane](), 0, list[Row](), True
    while more:
        readings = offer.lanes_through(look, known)
        rows, more = done(offer.collect(look, readings, 5, 10**6))
        known, steps = {reading.key: reading.lane() for reading in readings}, steps + 1
    assert len(rows) == 1
    assert steps == 3


def test_a_long_stretch_of_what_is_hidden_is_one_page_of_many_steps_and_looked_at_once() -> None:
    facts: list[Fact] = [("a", "local", "did:us", 1, "hidden")] * (offer.LOOK_ROWS * 3)
    index = rows_of([*facts, ("a", "local", "did:us", 1, "shown"), *facts])
    look = look_at(index, replace(SCOPE, filters=(RULE,)))
    readings = offer.lanes_through(look, {})
    steps, turns = offer.collect(look, readings, 5, 10**6), 0
    try:
        while True:
            next(steps)
            turns += 1
    except StopIteration as end:
        rows, more = end.value
    assert ([row.seq for row in rows], more) == ([len(facts) + 1], False)
    assert turns >= 5
    assert [reading.position for reading in readings] == [len(facts) + 1, 0]
    index.looked = 0
    for known in ({}, {reading.key: reading.lane() for reading in readings}):
        again, more = done(offer.collect(look, offer.lanes_through(look, known), 5, 10**6))
        assert (len(again), more) == (0 if known else 1, False)
    assert index.looked < 300


def test_nothing_newer_than_the_last_commit_told_of_is_taken() -> None:
    index = rows_of([("a", "local", "did:us", 1, "")] * 9)
    look = look_at(index, last_seq=5)
    readings = offer.lanes_through(look, {})
    rows, more = done(offer.collect(look, readings, 100, 10**6))
    assert ([row.seq for row in rows], more) == ([1, 2, 3, 4, 5], False)
    known = {reading.key: reading.lane() for reading in readings}
    waiting = offer.lanes_through(look, known)
    assert not done(offer.has_news(look, waiting))
    assert done(offer.has_news(replace(look, last_seq=9), waiting))


def test_a_narrowed_reading_has_lanes_of_its_own() -> None:
    look = look_at(rows_of([]))
    narrow = look_at(rows_of([]), replace(SCOPE, shares={"a": SHARES["a"]}))
    plain = {reading.key for reading in offer.lanes_through(look, {})}
    alone = {reading.key for reading in offer.lanes_through(look, {}, alone=True)}
    thread = {reading.key for reading in offer.lanes_through(look, {}, "th")}
    wider = {reading.key for reading in offer.lanes_through(narrow, {}, "th")}
    assert len(plain | alone | thread | wider) == 6


def test_what_is_not_there_has_as_many_lanes_as_what_is_empty() -> None:
    look = look_at(rows_of([("a", "local", "did:us", 1, "th_consent")]))
    hidden = look_at(rows_of([]), replace(SCOPE, shares={}))
    for reading in (
        *offer.lanes_through(look, {}, "th_consent"),
        *offer.lanes_through(look, {}, "nowhere"),
        *offer.lanes_through(hidden, {}, alone=True),
    ):
        assert done(offer.collect(look, [reading], 5, 100)) == ([], False)
    assert len(offer.lanes_through(hidden, {}, alone=True)) == len(offer.lanes_through(look, {}, "th_consent")) == 1


def test_the_key_of_a_full_lane_is_that_of_older_cursors() -> None:
    assert SCOPE.key("a") == lane_key("a")


LEVELS = st.integers(0, 3)
STEP = st.one_of(
    st.tuples(st.just("level"), st.sampled_from("ab"), LEVELS),
    st.tuples(st.just("withdraw"), st.sampled_from("ab"), st.just(0)),
    st.tuples(st.just("filter"), st.just(""), st.integers(0, len(FILTERS) - 1)),
    st.tuples(st.just("read"), st.just(""), st.integers(1, 7)),
    st.tuples(st.just("page"), st.just(""), st.integers(1, 7)),
)


@settings(max_examples=200)
@given(FACTS, st.lists(STEP, max_size=25), st.integers(0, 10))
def test_any_change_of_terms_gives_what_is_lacking_and_nothing_twice(
    facts: list[Fact], steps: list[tuple[str, str, int]], floor: int
) -> None:
    """A row goes out when the terms let it, at their level, and again only for a fuller one."""
    index = rows_of(facts)
    scope, held, given_ = replace(SCOPE, floor=floor), dict[str, Lane](), dict[int, int]()
    filters: list[PairFilter] = [OPEN]
    look = look_at(index, scope)
    for what, ns, value in [*steps, ("read", "", 5)]:
        if what == "level":
            scope = replace(scope, shares={**scope.shares, ns: Outbound(ns, ns, value)})
        elif what == "withdraw":
            scope = replace(scope, shares={each: share for each, share in scope.shares.items() if each != ns})
        elif what == "filter":
            filters = [FILTERS[value], *(each for each in filters if each != FILTERS[value])]
            scope = replace(scope, filters=tuple(filters))
        look = replace(look, scope=scope)
        more = what in ("read", "page")
        while more:
            readings = offer.lanes_through(look, held)
            rows, more = done(offer.collect(look, readings, value, 10**6))
            held.update({reading.key: reading.lane() for reading in readings})
            for row in rows:
                level = scope.shares[row.ns].level
                assert row.seq not in given_ or level < given_[row.seq]
                assert row.seq in wanted(look, index)
                given_[row.seq] = level
            more = more and what == "read"
    for seq in wanted(look, index):
        assert given_[seq] <= scope.shares[index.rows[seq - 1].ns].level
    now = offer.lanes_through(look, held)
    assert sum(reading.count for reading in now) == len(wanted(look, index))


def test_ids_below_l1_are_not_found() -> None:
    class Named(Rows):
        def find(self, id_: str) -> Row | None:
            return next((row for row in self.rows if str(row.seq) == id_), None)

    facts: list[Fact] = [(ns, "local", "did:us", 1, thread) for ns in "abc" for thread in ("shown", "hidden")]
    made = rows_of(facts)
    index = Named(made.rows, made.threads)
    for level, expected in ((0, ["1", "3"]), (1, ["1", "3"]), (2, ["3"]), (3, ["3"])):
        shares = {"a": Outbound("a", "a", level), "b": Outbound("b", "b", 0)}
        look = look_at(index, replace(SCOPE, shares=shares, filters=(RULE,)))
        assert [str(row.seq) for row in offer.find(look, [str(n) for n in range(9)])] == expected


@given(FACTS, st.sampled_from(FILTERS), st.integers(0, 20))
def test_what_is_offered_includes_what_the_peer_has_itself(facts: list[Fact], filter_: PairFilter, floor: int) -> None:
    index = rows_of(facts)
    look = look_at(index, replace(SCOPE, filters=(filter_,), floor=floor), whole=True)
    found = [row.seq for ns in SHARES for part in offer.offered(look, ns) for row in part]
    assert sorted(found) == wanted(look, index)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), st.integers(0, 9))
def test_blanks_join_and_never_reach_beyond_what_was_noted(notes: list[tuple[int, int]], place: int) -> None:
    blanks, empty = EmptyRanges(), set[int]()
    for low, high in notes:
        blanks.note("k", low, high)
        empty |= set(range(low + 1, high + 1))
    beyond = blanks.beyond("k", place)
    assert beyond >= place
    assert set(range(place + 1, beyond + 1)) <= empty
    assert blanks.beyond("other", place) == place


def test_blanks_are_bounded() -> None:
    blanks = EmptyRanges()
    for number in range(2000):
        blanks.note(f"k{number}", 1, 2)
        blanks.note("one", number * 3, number * 3 + 1)
    assert blanks.beyond("k0", 1) == 1
    assert blanks.beyond("k1999", 1) == 2
    assert blanks.beyond("one", 1999 * 3) == 1999 * 3 + 1


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 9000))
def test_where_a_page_of_projections_ends_does_not_tell_how_long_the_hidden_part_is(
    sizes: list[int], level: int, bytes_max: int
) -> None:
    """Rows of any stored length are cut as rows of none, for they show the same."""
    kept = {"thread": "th", "actor": "did:x", "act": "DO", "clock": 1, "data_type": "SCALAR", "parents": []}
    scope, cuts = replace(SCOPE, shares={"a": Outbound("a", "a", level)}), []
    for lengths in (sizes, [0] * len(sizes)):
        full = [json.dumps({"record": {**kept, "body": {"x": "y" * length}}}).encode() for length in lengths]
        look = look_at(rows_of([("a", "local", "did:us", len(payload), "") for payload in full]), scope)
        look = replace(look, payloads=partial(_chosen, full))
        rows, more = done(offer.collect(look, offer.lanes_through(look, {}), 100, bytes_max))
        cuts.append(([row.seq for row in rows], more))
    assert cuts[0] == cuts[1]


def _chosen(payloads: Sequence[bytes], rows: Sequence[Row]) -> list[bytes]:
    return [payloads[row.seq - 1] for row in rows]
