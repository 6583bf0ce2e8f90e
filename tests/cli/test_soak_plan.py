"""The soak's windows, counting, CSV and verdict are those of the operator's page."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.cli import soak_plan
from spl.cli.soak_plan import HEADER, WINDOWS, SoakError, SoakRow, Tally, Window, is_scaled, judge, percentile, windows
from spl.core import fold
from spl.core.record.record import record_id
from spl.core.rules import PRIORITY_MAX, covers

PAGE = """\
window,duration_min,records_emitted,records_synced,sync_lag_p50_ms,sync_lag_p99_ms,reconcile_queue_max,errors
warmup,5,1240,1240,180,420,3,0
ramp,15,8420,8420,210,512,7,0
steady,60,33180,33180,225,548,9,0
spike,5,4860,4860,610,1290,18,0
recovery,15,7240,7240,240,580,12,0
"""
ROWS = (
    SoakRow("warmup", 5, 1240, 1240, 1240, 180, 420, 3, 0),
    SoakRow("ramp", 15, 8420, 8420, 8420, 210, 512, 7, 0),
    SoakRow("steady", 60.0, 33180, 33180, 33180, 225, 548, 9, 0),
    SoakRow("spike", 5, 4860, 4860, 4860, 610, 1290, 18, 0),
    SoakRow("recovery", 15, 7240, 7240, 7240, 240, 580, 12, 0),
)
SECOND = Window("steady", 1 / 60, 600)


def with_(name: str, **change: object) -> list[SoakRow]:
    return [replace(row, **change) if row.window == name else row for row in ROWS]  # type: ignore[arg-type]


def test_the_csv_is_the_pages_to_the_byte() -> None:
    assert "\n".join([HEADER, *(",".join(row.cells()) for row in ROWS)]) + "\n" == PAGE


def test_a_lag_that_there_is_not_is_empty_and_minutes_are_short() -> None:
    assert Tally(Window("spike", 0.05, 100)).row().cells() == ["spike", "0.05", "0", "0", "", "", "0", "0"]


def test_the_windows_are_the_references() -> None:
    found = [(each.name, each.minutes, each.records_per_min, each.records) for each in windows(1, {})]
    assert found == [
        ("warmup", 5, 248, 1240), ("ramp", 15, 561, 8415), ("steady", 60, 553, 33180), ("spike", 5, 2212, 11060),
        ("recovery", 15, 483, 7245),
    ]  # fmt: skip
    assert not is_scaled(windows(1, {}))
    assert not is_scaled(windows(1, {"steady": 600}))


def test_scale_shortens_and_window_overrides() -> None:
    found = {each.name: each for each in windows(0.1, {"spike": 2, "ramp": 0})}
    assert {name: each.minutes for name, each in found.items()} == pytest.approx(
        {"warmup": 0.5, "steady": 6, "spike": 2, "recovery": 1.5}
    )
    assert found["steady"].records == 3318
    assert found["steady"].records_per_min == 553
    for scale, minutes in ((0.1, {}), (1.0, {"steady": 59.0}), (1.0, {"ramp": 0.0})):
        assert is_scaled(windows(scale, minutes))


@pytest.mark.parametrize(
    ("scale", "minutes"),
    [
        (0.001, {}), (1.1, {}), (0, {}), (float("nan"), {}), (1, {"lunch": 1}), (1, {"ramp": -1}), (1, {"ramp": 1e9}),
        (1, {"ramp": float("nan")}), (1, {each.name: 0.0 for each in WINDOWS}),
    ],
)  # fmt: skip
def test_what_makes_no_soak_is_refused(scale: float, minutes: dict[str, float]) -> None:
    with pytest.raises(SoakError) as caught:
        windows(scale, minutes)
    assert caught.value.code == "usage"


def test_the_last_record_of_an_hour_is_due_to_the_millisecond() -> None:
    steady = WINDOWS[2]
    assert steady.due_s(0) == 0
    assert steady.due_s(553 * 30) == pytest.approx(1800, abs=1e-6)
    assert steady.due_s(steady.records) == pytest.approx(steady.duration_s, abs=1e-6)
    assert [steady.chores, SECOND.chores] == [60, 1]
    assert 0 < SECOND.chore_due_s(0, 0.5) < SECOND.duration_s
    assert steady.chore_due_s(0, 0.25) == 15
    assert steady.chore_due_s(59, 0.5) < steady.duration_s


def test_records_differ_and_are_spread() -> None:
    made = [soak_plan.record_of("ab12", n, "default") for n in range(256)]
    assert len({record_id({**each, "parents": [], "clock": 0, "data_type": "SCALAR"}) for each in made}) == 256
    assert {str(each["thread"]) for each in made} == {soak_plan.thread_of("ab12", n) for n in range(soak_plan.THREADS)}
    assert {each["act"] for each in made} == {"INTEND", "DO", "KNOW", "LEARN"}
    assert len({each["actor"] for each in made}) == soak_plan.ACTORS
    assert "namespace" not in made[0]["body"]  # type: ignore[operator]
    assert soak_plan.record_of("x", 1, "org")["body"]["namespace"] == "org"  # type: ignore[index]


def test_each_reload_changes_the_fold_of_the_runs_threads() -> None:
    """Its rule is one that a daemon takes, and nobody's rule comes before it."""
    made = [soak_plan.fold_rule_of("ab12", n) for n in range(6)]
    assert all(one["fold"] != two["fold"] for one, two in pairwise(made))
    for rule in map(fold.fold_rule, made):
        assert (rule.name, rule.priority) == (soak_plan.rule_name("ab12"), PRIORITY_MAX)
        assert all(covers(rule.thread, soak_plan.thread_of("ab12", n)) for n in range(soak_plan.THREADS))
        assert not covers(rule.thread, soak_plan.thread_of("ab13", 0))


def test_a_reload_that_did_nothing_is_a_fault() -> None:
    rule = soak_plan.fold_rule_of("r", 0)
    state = {"rule": "soak-r", "fold": "count", "field": None, "records": 3, "value": 3}
    assert soak_plan.reload_fault(rule, state) == ""
    for changes in ({"rule": None}, {"fold": "latest"}, {"field": "number"}, {"value": 2}, {"value": None}):
        assert soak_plan.reload_fault(rule, {**state, **changes})
    assert "state's fold is 'count'" in soak_plan.reload_fault(soak_plan.fold_rule_of("r", 1), state)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_with_that_share_at_or_below(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    exact = next(each for n, each in enumerate(ordered, 1) if n * 100 >= percent * len(ordered))
    assert percentile(ordered, percent) == round(exact)


def test_percentiles_of_few() -> None:
    assert percentile([], 50) is None
    assert percentile([7.4], 99) == 7
    assert percentile(list(range(1, 101)), 99) == 99


def test_an_ack_confirms_all_up_to_it_at_its_time() -> None:
    tally = Tally(SECOND)
    for seq, at_ms in ((10, 0.0), (12, 100.0), (15, 200.0)):
        tally.emit(seq, at_ms)
    tally.confirm(11, 50)
    assert (tally.open, tally.row().records_synced, tally.row().sync_lag_p99_ms) == (2, 1, 50)
    tally.confirm(9, 60)
    tally.confirm(15, 230)
    assert (tally.open, tally.row().records_synced) == (0, 3)
    assert tally.lags_ms() == (50, 130)


def test_an_ack_before_the_daemons_answer_counts_too() -> None:
    tally = Tally(SECOND)
    tally.confirm(10, 104)
    tally.emit(10, 100)
    assert (tally.open, tally.lags_ms()) == (0, (4, 4))


def test_the_queue_is_the_greatest_seen() -> None:
    tally = Tally(SECOND)
    for queue in (0, 9, 4):
        tally.look(queue)
    assert (tally.queue, tally.row().reconcile_queue_max) == (4, 9)
    tally.look(0, 12)
    assert (tally.queue, tally.row().reconcile_queue_max) == (0, 12)


def test_the_pages_run_passes() -> None:
    verdict = judge(ROWS, scaled=False)
    assert (verdict.passed, verdict.text(), verdict.readings) == (True, "soak passed", ())


def test_a_scaled_run_never_says_passed() -> None:
    text = judge(ROWS, scaled=True).text()
    assert "scaled" in text
    assert "soak passed" not in text
    assert "scaled" in judge(with_("ramp", errors=1), scaled=True).text()


@pytest.mark.parametrize(
    ("rows", "problem", "reading"),
    [
        (with_("ramp", errors=2), "errors 2 (must be 0)", "target=syncropel_engine::federation"),
        (with_("warmup", records_synced=1239), "warmup synced 1,239 of 1,240", ""),
        (with_("spike", records_emitted=4859, records_synced=4859), "spike emitted 4,859 of 4,860", ""),
        (with_("steady", sync_lag_p50_ms=500), "p50 500 ms (limit 500)", "set-mode polling"),
        (with_("spike", sync_lag_p99_ms=1812), "p99 1,812 ms (limit 1,500)", ""),
        (with_("recovery", reconcile_queue_max=20), "queue 20 (limit 20)", ""),
        (with_("recovery", reconcile_queue_max=51), "queue 51 (limit 20)", "adapters"),
    ],
)
def test_each_limit_fails_the_run_and_names_the_cause(rows: list[SoakRow], problem: str, reading: str) -> None:
    verdict = judge(rows, scaled=False)
    assert (verdict.passed, verdict.text()) == (False, f"soak FAILED: {problem}")
    assert reading in "".join(verdict.readings)
    assert bool(reading) == bool(verdict.readings)


def test_only_steady_is_held_to_p50_and_only_the_spike_to_p99() -> None:
    rows = [*with_("spike", sync_lag_p50_ms=900)[3:], *with_("ramp", sync_lag_p50_ms=900, sync_lag_p99_ms=9000)[:3]]
    assert judge(rows, scaled=False).passed


def test_sets_that_differ_fail_the_run() -> None:
    verdict = judge(ROWS, scaled=False, differences=["thread th_x differs"])
    assert verdict.text() == "soak FAILED: thread th_x differs"


def test_progress_names_its_true_unit() -> None:
    tally = Tally(WINDOWS[2])
    tally.emitted = 553 * 31
    for n in range(100):
        tally.emit(n + 1, 0)
    tally.emitted = 553 * 31
    tally.confirm(100, 221)
    tally.look(9)
    tally.look(4)
    assert soak_plan.progress(tally, 31 * 60) == (
        "steady [############............] 31:00/60:00 553/min p50 221 p99 221 ms queue 4/9 err 0"
    )
    assert soak_plan.progress_line(tally, 1860, "2026-11-23T06:00:00.000Z") == (
        "ts=2026-11-23T06:00:00.000Z event=soak.progress window=steady elapsed_s=1860 rate_per_min=553 "
        "p50_ms=221 p99_ms=221 queue_max=9 errors=0"
    )
    assert "p50 - p99 -" in soak_plan.progress(Tally(SECOND), 0)


def test_the_table_is_as_wide_as_its_titles() -> None:
    assert {len(soak_plan.table_row(row)) for row in ROWS} == {len(soak_plan.table_head())}
