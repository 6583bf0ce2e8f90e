"""Counts of what no tally counts: right when complete, silent before, a bounded step at a time."""

from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.record.filter import OPEN, PairFilter
from spl.home.index import Index, Row
from spl.sync import scope as scopes
from spl.sync.scope import Counts, LogView
from tests.sync.test_scope import FACTS, FILTERS, RULE, SCOPE, SHARES, Fact, Rows, rows_of, view_of, wanted


class Lasting(Rows):
    """Rows that tell the last one of a list."""

    def last(self, name: str) -> Row | None:
        return next(iter(self.after(name, 0, 10**9)[::-1]), None)


def lasting(facts: list[Fact]) -> Lasting:
    made = rows_of(facts)
    return Lasting(made.rows, made.threads)


@given(FACTS, FACTS, st.sampled_from(FILTERS), st.integers(0, 30), st.integers(1, 7))
def test_a_complete_count_is_the_number_of_rows_to_give(
    facts: list[Fact], later: list[Fact], filter_: PairFilter, floor: int, step: int
) -> None:
    held, patch = Counts(), pytest.MonkeyPatch()
    with patch.context() as small:
        small.setattr(scopes, "COUNT_ROWS", step)
        for log in (facts, [*facts, *later]):
            index = lasting(log)
            view = view_of(index, replace(SCOPE, filters=(filter_, OPEN), floor=floor))
            number = len(wanted(view, index))
            assert held.present("pair_1", view) in (None, number)
            for _ in range(200):
                if held.advance("pair_1", view):
                    break
            assert held.present("pair_1", view) == number


@given(FACTS, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=60))
def test_a_tally_is_never_that_of_another_moment_scope_or_index(
    facts: list[Fact], turns: list[tuple[int, int]]
) -> None:
    """Rows arrive, terms change to and fro, and the index is made again, between asks that repeat each other."""
    held, index, arrived = Counts(), rows_of([]), 0
    kept = [SCOPE, replace(SCOPE, shares={"a": SHARES["a"]}), replace(SCOPE, origins=frozenset({"pair_1", "pair_2"}))]
    assert all(scope.tallied for scope in kept)
    for which, count in turns:
        arrived += count
        made = rows_of(facts[:arrived])
        if count == 1:
            index = made
        index.rows[:], index.threads[:] = made.rows, made.threads
        view = view_of(index, kept[which])
        assert held.present("pair_1", view) == held.present("pair_1", view) == len(wanted(view, index))


def test_a_step_is_bounded_and_until_the_end_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "COUNT_ROWS", 10)
    index = lasting([("a", "local", "did:us", 1, "shown")] * 25)
    view, held = view_of(index, replace(SCOPE, filters=(RULE,))), Counts()
    seen = []
    for _ in range(4):
        index.looked = 0
        seen.append(held.advance("pair_1", view))
        assert index.looked <= 10
        seen.append(held.present("pair_1", view))
    assert seen == [False, None, False, None, True, 25, True, 25]


def test_a_peer_is_told_the_last_number_that_was_right_so_that_no_hidden_row_shows() -> None:
    facts: list[Fact] = [("a", "local", "did:us", 1, "shown")]
    index, held = lasting(facts), Counts()
    view = view_of(index, replace(SCOPE, filters=(RULE,)))
    assert held.last_known("pair_1", view) is None
    assert held.advance("pair_1", view)
    for thread, number in (("hidden", 1), ("shown", 2)):
        facts.append(("a", "local", "did:us", 1, thread))
        later = replace(view, index=cast(Index, lasting(facts)), read=lasting(facts).read)
        assert (held.present("pair_1", later), held.last_known("pair_1", later)) == (None, 1)
        assert held.advance("pair_1", later)
        assert (held.present("pair_1", later), held.last_known("pair_1", later)) == (number, number)
    other = replace(view, scope=replace(SCOPE, filters=(PairFilter(thread_allow=("shown",)),)))
    assert held.last_known("pair_1", other) is None, "that is another question"


def test_another_filter_or_namespace_is_counted_anew() -> None:
    index = lasting([("a", "local", "did:us", 1, "shown"), ("b", "local", "did:us", 1, "hidden")])
    held, view = Counts(), view_of(index, replace(SCOPE, filters=(RULE,)))
    assert held.advance("pair_1", view)
    for scope in (
        replace(SCOPE, filters=(PairFilter(thread_allow=("hidden",)),)),
        replace(SCOPE, filters=(RULE,), shares={"b": SHARES["b"]}, floor=1),
    ):
        other: LogView = replace(view, scope=scope, index=cast(Index, index))
        assert held.present("pair_1", other) in (None, 0)
        assert held.advance("pair_1", other)
        assert held.present("pair_1", other) == len(wanted(other, index))
