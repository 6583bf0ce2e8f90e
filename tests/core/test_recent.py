"""Percentiles and peaks of lately, right within an eighth and forgotten in time."""

from hypothesis import given
from hypothesis import strategies as st

from spl.core.recent import (
    LAG_BOUNDS_MS,
    PEAK_SLOT_MS,
    PEAK_SLOTS,
    SLOT_MS,
    SLOTS,
    Ages,
    Costs,
    Lags,
    Peaks,
    Repeats,
    summary,
)


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=60))
def test_percentiles_are_right_within_an_eighth(values: list[int]) -> None:
    lags = Lags()
    for value in values:
        lags.add(value, 1000)
    found = summary([lags.counts(1000)])
    ordered = sorted(values)
    for percent in (50, 99):
        exact, shown = ordered[-(-len(values) * percent // 100) - 1], found[f"p{percent}_ms"]
        assert shown is not None
        assert abs(shown - exact) <= max(exact // 8, 0)
    assert found["samples"] == len(values)


def test_nothing_measured_is_nothing_claimed() -> None:
    assert summary([]) == summary([Lags().counts(0)]) == {"p50_ms": None, "p99_ms": None, "samples": 0}


def test_lags_are_forgotten_after_five_minutes_and_joined_over_pairs() -> None:
    one, two = Lags(), Lags()
    one.add(5, 0)
    two.add(7, SLOT_MS * SLOTS)
    now_ms = SLOT_MS * SLOTS
    assert summary([one.counts(now_ms - 1), two.counts(now_ms)])["samples"] == 2
    assert summary([one.counts(now_ms), two.counts(now_ms)]) == {"p50_ms": 7, "p99_ms": 7, "samples": 1}


def test_a_clock_that_steps_back_breaks_nothing() -> None:
    lags = Lags()
    lags.add(5, SLOT_MS * 50)
    lags.add(-3, 0)
    assert summary([lags.counts(0)]) == {"p50_ms": 0, "p99_ms": 0, "samples": 1}


@given(st.lists(st.integers(-5, 200_000), max_size=60))
def test_the_histogram_counts_every_lag_since_the_start(values: list[int]) -> None:
    lags = Lags()
    for number, value in enumerate(values):
        lags.add(value, number * SLOT_MS)
    found = lags.histogram
    assert found.at_most == (*(sum(value <= bound for value in values) for bound in LAG_BOUNDS_MS), len(values))
    assert found.sum_ms == sum(max(0, value) for value in values)
    form = found.to_json()
    assert (form["count"], form["sum_s"]) == (len(values), found.sum_ms / 1000)
    assert (form["le_s"], form["counts"]) == ([bound / 1000 for bound in LAG_BOUNDS_MS], list(found.at_most))
    assert len(lags._slots) <= SLOTS, "of those that nobody reads, too"


def test_a_time_is_shown_as_the_middle_of_its_step_and_the_last_step_has_no_end() -> None:
    for lag_ms, shown_ms in ((0, 0), (7, 7), (8, 8), (15, 15), (16, 17), (100, 100), (1000, 992), (10**9, 253_952)):
        lags = Lags()
        lags.add(lag_ms, 0)
        assert summary([lags.counts(0)])["p50_ms"] == shown_ms


def test_peaks_are_of_the_last_hour() -> None:
    peaks = Peaks()
    assert peaks.greatest(0) == 0
    peaks.add(1, 0)
    assert peaks.greatest(0) == 1
    peaks.add(9, 0)
    peaks.add(4, PEAK_SLOT_MS)
    assert peaks.greatest(PEAK_SLOT_MS * (PEAK_SLOTS - 1)) == 9
    assert peaks.greatest(PEAK_SLOT_MS * PEAK_SLOTS) == 4
    assert peaks.greatest(PEAK_SLOT_MS * (PEAK_SLOTS + 1)) == 0


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 512)), min_size=1, max_size=40))
def test_costs_are_right_within_an_eighth_and_count_records(values: list[tuple[int, int]]) -> None:
    costs = Costs()
    for cost_us, records in values:
        costs.add(cost_us, records, 1000)
    ordered = sorted(cost for cost, records in values for _ in range(records))
    assert costs.records(1000) == len(ordered)
    for percent in (50, 99):
        exact, shown = ordered[-(-len(ordered) * percent // 100) - 1], costs.percentile_us(percent, 1000)
        assert shown is not None
        assert abs(shown - exact) <= exact // 8


def test_costs_are_forgotten_after_five_minutes() -> None:
    costs = Costs()
    for n in range(3 * SLOTS):
        costs.add(n, 1, n * SLOT_MS)
        assert costs.records(n * SLOT_MS) == min(n + 1, SLOTS)
    assert costs.percentile_us(50, (4 * SLOTS) * SLOT_MS) is None
    assert Costs().percentile_us(99, 0) is None
    odd = Costs()
    odd.add(-5, 1, 0)
    assert odd.percentile_us(50, 0) == 0, "of a clock that was set back"


def test_one_of_a_kind_is_let_through_and_the_next_one_counts_the_others() -> None:
    repeats = Repeats(60.0, 10, 100)
    assert [repeats.due(("a",), float(now)) for now in (0, 1, 59, 60, 61)] == [0, None, None, 2, None]
    assert repeats.due(("b",), 61.0) == 0


def test_a_kind_that_comes_again_at_the_same_time_is_counted() -> None:
    repeats = Repeats(60.0, 10, 100)
    assert [repeats.due(("a",), 5.0) for _ in range(3)] == [0, None, None]


def test_the_bound_of_a_minute_is_spread_over_it() -> None:
    repeats = Repeats(0.0, 1000, 60)
    assert [repeats.due((f"{n}",), 0.0) for n in range(61)] == [0] * 60 + [None]
    assert [repeats.due((f"{now}",), now) for now in (0.99, 1.0, 1.99, 2.0)] == [None, 0, None, 0]


def test_a_kind_may_come_a_few_times_before_it_is_counted() -> None:
    repeats = Repeats(60.0, 10, 100, burst=3)
    found = [repeats.due(("a",), float(now)) for now in (0, 1, 2, 3, 59, 60, 61, 62, 63)]
    assert found == [0, 0, 0, None, None, 2, 0, 0, None]


def test_of_all_kinds_only_so_many_a_minute_and_so_many_remembered() -> None:
    repeats = Repeats(60.0, 10, 5)
    found = [repeats.due((str(kind),), 0.0) for kind in range(50)]
    assert found == [0] * 5 + [None] * 45
    assert len(repeats) == 10
    assert repeats.due(("49",), 60.0) == 1


def test_a_clock_that_steps_back_holds_nothing_up() -> None:
    repeats = Repeats(60.0, 10, 100)
    assert [repeats.due(("a",), now) for now in (1e9, 5.0)] == [0, 0]


LIMIT_MS = 24_000


def test_things_age_by_both_clocks() -> None:
    ages = Ages()
    ages.meet("a", 0)
    dates = {"a": 1_000_000}
    assert ages.older(dates, 1_000_000 + LIMIT_MS, LIMIT_MS - 1, LIMIT_MS) == []
    assert ages.older(dates, 1_000_000 + LIMIT_MS - 1, LIMIT_MS, LIMIT_MS) == []
    assert ages.older(dates, 1_000_000 + LIMIT_MS, LIMIT_MS, LIMIT_MS) == ["a"]
    assert ages.older(dates, 0, LIMIT_MS, LIMIT_MS) == ["a"], "a date ahead of the clock says nothing"


def test_a_thing_whose_date_lies_ahead_ages_by_the_clock_that_nobody_sets() -> None:
    ages = Ages()
    assert ages.older({"ahead": 10, "now": 0}, 0, 0, LIMIT_MS) == []
    assert ages.older({"ahead": 10, "now": 0}, 0, LIMIT_MS - 1, LIMIT_MS) == []
    assert ages.older({"ahead": 10, "now": 0}, 0, LIMIT_MS, LIMIT_MS) == ["ahead"]


def test_a_clock_that_is_ahead_for_a_moment_ends_nothing() -> None:
    ages, dates = Ages(), {"old": 0, "new": 1_000_000}
    ages.meet("new", 0)
    assert ages.older(dates, 10**12, 0, LIMIT_MS) == []
    assert ages.older(dates, 10**12, LIMIT_MS // 24 - 1, LIMIT_MS) == []
    assert ages.older(dates, 10**12, LIMIT_MS // 24, LIMIT_MS) == ["old"], "it was met with its age"


def test_what_has_no_date_any_more_is_forgotten() -> None:
    ages = Ages()
    for number in range(100):
        ages.older({f"{number}": 0}, 0, 0, LIMIT_MS)
    assert len(ages._met) == 1
