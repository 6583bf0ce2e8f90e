"""Lanes share pages, give each row once under any change of terms, and hidden rows move nothing that shows."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from spl.core.consent import Outbound
from spl.core.record.cursor import Lane
from spl.core.record.filter import OPEN, PairFilter
from spl.home.index import Row
from spl.sync import lanes
from spl.sync.scope import SCAN_ROWS, LogView, Steps, tally
from tests.sync.test_scope import FACTS, FILTERS, RULE, SCOPE, SHARES, Fact, rows_of, view_of, wanted

_T = TypeVar("_T")


def done(steps: Steps[_T]) -> _T:
    """Do all the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(_T, end.value)


def read(
    view: LogView, limit: int, size: int, known: dict[str, Lane] | None = None
) -> tuple[list[int], dict[str, Lane]]:
    """Return the rows of all pages from these lanes on, and the lanes at the end."""
    found, held, more = [], dict(known or {}), True
    while more:
        scans = lanes.lanes_through(view, held)
        rows, more = done(lanes.collect(view, scans, limit, size))
        assert len(rows) <= limit
        assert len(rows) <= 1 or sum(row.length + 1 for row in rows) <= size
        assert [row.seq for row in rows] == sorted(row.seq for row in rows)
        found += [row.seq for row in rows]
        before = dict(held)
        held.update({scan.key: scan.lane() for scan in scans})
        assert all(lane.position >= before[key].position for key, lane in held.items() if key in before)
        assert not more or held != before
    return found, held


@given(
    FACTS, st.sampled_from(FILTERS), st.booleans(), st.integers(1, 9), st.integers(1, 400), st.integers(0, 30),
)  # fmt: skip
def test_pages_give_each_wanted_row_once_in_bounds(
    facts: list[Fact], filter_: PairFilter, whole: bool, limit: int, size: int, floor: int
) -> None:
    index = rows_of(facts)
    view = view_of(index, replace(SCOPE, filters=(filter_,), floor=floor), whole=whole)
    found, held = read(view, limit, size)
    assert sorted(found) == wanted(view, index)
    counted = wanted(replace(view, whole=False), index)
    assert sum(lane.count for lane in held.values()) == len(counted)
    if view.scope.tallied:
        # Who has read all has a clock equal to the head.
        assert tally(view.index, view.scope) == len(counted)


@given(FACTS, st.sampled_from(FILTERS))
def test_news_is_there_exactly_when_a_page_would_hold_something(facts: list[Fact], filter_: PairFilter) -> None:
    view = view_of(rows_of(facts), replace(SCOPE, filters=(filter_,)))
    page, _ = done(lanes.collect(view, lanes.lanes_through(view, {}), 1, 10**6))
    assert done(lanes.has_news(view, lanes.lanes_through(view, {}))) == bool(page)


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
        view = view_of(index, scope)
        shown = [row for row, visible, _ in view.judged(index.rows) if visible]
        numbers = {row.seq: number for number, row in enumerate(shown, 1)}
        while more:
            scans = lanes.lanes_through(view, held)
            rows, more = done(lanes.collect(view, scans, limit, 500))
            held = {scan.key: scan.lane() for scan in scans}
            # A place in terms of what the pair may know of.
            places = {key: (numbers.get(lane.position, 0), lane.count) for key, lane in held.items()}
            views.append(([numbers[row.seq] for row in rows], more, places))
        seen.append(views)
    assert seen[0] == seen[1]


def test_a_lane_far_behind_shares_the_page() -> None:
    index = rows_of([("a", "local", "did:us", 1, "")] * 50 + [("b", "local", "did:us", 1, "")] * 2)
    view = view_of(index)
    rows, more = done(lanes.collect(view, lanes.lanes_through(view, {}), 10, 10**6))
    assert [row.ns for row in rows] == ["a"] * 8 + ["b"] * 2
    assert more


def test_a_long_stretch_of_what_the_peer_has_takes_bounded_pages() -> None:
    facts: list[Fact] = [("a", "pair_1", "did:peer", 1, "")] * (lanes.PASSED_ROWS_MAX * 2 + 10)
    view = view_of(rows_of([*facts, ("a", "local", "did:us", 1, "")]))
    known, steps, rows, more = dict[str, Lane](), 0, list[Row](), True
    while more:
        scans = lanes.lanes_through(view, known)
        rows, more = done(lanes.collect(view, scans, 5, 10**6))
        known, steps = {scan.key: scan.lane() for scan in scans}, steps + 1
    assert len(rows) == 1
    assert steps == 3


def test_a_long_stretch_of_what_is_hidden_is_one_page_of_many_steps_and_looked_at_once() -> None:
    facts: list[Fact] = [("a", "local", "did:us", 1, "hidden")] * (SCAN_ROWS * 3)
    index = rows_of([*facts, ("a", "local", "did:us", 1, "shown"), *facts])
    view = view_of(index, replace(SCOPE, filters=(RULE,)))
    scans = lanes.lanes_through(view, {})
    steps, turns = lanes.collect(view, scans, 5, 10**6), 0
    try:
        while True:
            next(steps)
            turns += 1
    except StopIteration as end:
        rows, more = end.value
    assert ([row.seq for row in rows], more) == ([len(facts) + 1], False)
    assert turns >= 5
    assert [scan.sent_to for scan in scans] == [len(facts) + 1, 0]
    index.looked = 0
    for known in ({}, {scan.key: scan.lane() for scan in scans}):
        again, more = done(lanes.collect(view, lanes.lanes_through(view, known), 5, 10**6))
        assert (len(again), more) == (0 if known else 1, False)
    assert index.looked < 300


def test_nothing_newer_than_the_last_commit_told_of_is_taken() -> None:
    index = rows_of([("a", "local", "did:us", 1, "")] * 9)
    view = view_of(index, last_seq=5)
    scans = lanes.lanes_through(view, {})
    rows, more = done(lanes.collect(view, scans, 100, 10**6))
    assert ([row.seq for row in rows], more) == ([1, 2, 3, 4, 5], False)
    known = {scan.key: scan.lane() for scan in scans}
    waiting = lanes.lanes_through(view, known)
    assert not done(lanes.has_news(view, waiting))
    assert done(lanes.has_news(replace(view, last_seq=9), waiting))


def test_a_narrowed_reading_has_lanes_of_its_own() -> None:
    view = view_of(rows_of([]))
    narrow = view_of(rows_of([]), replace(SCOPE, shares={"a": SHARES["a"]}))
    plain = {scan.key for scan in lanes.lanes_through(view, {})}
    alone = {scan.key for scan in lanes.lanes_through(view, {}, alone=True)}
    thread = {scan.key for scan in lanes.lanes_through(view, {}, "th")}
    wider = {scan.key for scan in lanes.lanes_through(narrow, {}, "th")}
    assert len(plain | alone | thread | wider) == 6


def test_what_is_not_there_has_as_many_lanes_as_what_is_empty() -> None:
    view = view_of(rows_of([("a", "local", "did:us", 1, "th_consent")]))
    hidden = view_of(rows_of([]), replace(SCOPE, shares={}))
    for reading in (
        *lanes.lanes_through(view, {}, "th_consent"),
        *lanes.lanes_through(view, {}, "nowhere"),
        *lanes.lanes_through(hidden, {}, alone=True),
    ):
        assert done(lanes.collect(view, [reading], 5, 100)) == ([], False)
    assert len(lanes.lanes_through(hidden, {}, alone=True)) == len(lanes.lanes_through(view, {}, "th_consent")) == 1


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
    view = view_of(index, scope)
    for what, ns, value in [*steps, ("read", "", 5)]:
        if what == "level":
            scope = replace(scope, shares={**scope.shares, ns: Outbound(ns, ns, value)})
        elif what == "withdraw":
            scope = replace(scope, shares={each: share for each, share in scope.shares.items() if each != ns})
        elif what == "filter":
            filters = [FILTERS[value], *(each for each in filters if each != FILTERS[value])]
            scope = replace(scope, filters=tuple(filters))
        view = replace(view, scope=scope)
        more = what in ("read", "page")
        while more:
            scans = lanes.lanes_through(view, held)
            rows, more = done(lanes.collect(view, scans, value, 10**6))
            held.update({scan.key: scan.lane() for scan in scans})
            for row in rows:
                level = scope.shares[row.ns].level
                assert row.seq not in given_ or level < given_[row.seq]
                assert row.seq in wanted(view, index)
                given_[row.seq] = level
            more = more and what == "read"
    for seq in wanted(view, index):
        assert given_[seq] <= scope.shares[index.rows[seq - 1].ns].level
    now = lanes.lanes_through(view, held)
    assert sum(scan.count for scan in now) == len(wanted(view, index))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 9000))
def test_where_a_page_of_projections_ends_does_not_tell_how_long_the_hidden_part_is(
    sizes: list[int], level: int, bytes_max: int
) -> None:
    """Rows of any stored length are cut as rows of none, for they show the same."""
    kept = {"thread": "th", "actor": "did:x", "act": "DO", "clock": 1, "data_type": "SCALAR", "parents": []}
    scope, cuts = replace(SCOPE, shares={"a": Outbound("a", "a", level)}), []
    for lengths in (sizes, [0] * len(sizes)):
        full = [json.dumps({"record": {**kept, "body": {"x": "y" * length}}}).encode() for length in lengths]
        view = view_of(rows_of([("a", "local", "did:us", len(payload), "") for payload in full]), scope)
        view = replace(view, read=partial(_chosen, full))
        rows, more = done(lanes.collect(view, lanes.lanes_through(view, {}), 100, bytes_max))
        cuts.append(([row.seq for row in rows], more))
    assert cuts[0] == cuts[1]


def _chosen(payloads: Sequence[bytes], rows: Sequence[Row]) -> list[tuple[Row, bytes]]:
    return [(row, payloads[row.seq - 1]) for row in rows]


@given(FACTS, st.sampled_from(FILTERS))
def test_a_reading_of_a_thread_reads_no_row_of_what_is_not_shared(facts: list[Fact], filter_: PairFilter) -> None:
    """Time does not show whether other namespaces have records in it; the page is as by the definition."""
    index = rows_of(facts)
    view = view_of(index, replace(SCOPE, filters=(filter_,)))
    rows, _ = done(lanes.collect(view, lanes.lanes_through(view, {}, "hidden"), 100, 10**6))
    assert [row.seq for row in rows] == [seq for seq in wanted(view, index) if index.threads[seq - 1] == "hidden"]
    assert index.looked <= sum(ns in SCOPE.shares and thread == "hidden" for ns, _, _, _, thread in facts)
