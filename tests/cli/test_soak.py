"""`spl federation soak`: arguments, forms of the rows, verdict, exit codes.  Its engine is a double here."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spl.cli import main as cli
from spl.cli.soak_plan import HEADER, WINDOWS, SoakRow, Tally, Window
from tests.cli.conftest import Daemon, Run, error

GOOD = [SoakRow(each.name, each.minutes, each.records, each.records, each.records, 3, 9, 1, 0) for each in WINDOWS]
BAD = [*GOOD[:3], SoakRow("spike", 5, 11060, 11060, 11060, 3, 1812, 1, 2), GOOD[4]]
CSV = [HEADER, "warmup,5,1240,1240,3,9,1,0", "ramp,15,8415,8415,3,9,1,0", "steady,60,33180,33180,3,9,1,0",
       "spike,5,11060,11060,3,9,1,0", "recovery,15,7245,7245,3,9,1,0"]  # fmt: skip
PAIR = {"pair_id": "pair_1", "state": "active", "mode": "polling", "poll_interval_ms": 60_000,
        "namespaces": ["default", "org"]}  # fmt: skip


class Engine:
    """Stands in for the driver and the daemons; `rows` are what its windows come to."""

    def __init__(self) -> None:
        self.rows = GOOD
        self.differences: list[str] = []
        self.stop_at = ""
        self.signal = signal.SIGINT
        self.target: Any = None
        self.windows_asked: tuple[Window, ...] = ()
        self.ended = False
        self.emitted = 61140

    def drive(self) -> SimpleNamespace:
        def soak(target: Any, report: Any, *rest: object) -> "Engine":
            self.target, self.report = target, report
            return self

        return SimpleNamespace(Soak=soak, Target=lambda *args: args)

    def rig(self) -> SimpleNamespace:
        @contextmanager
        def made(env: object, trace: object) -> Iterator[SimpleNamespace]:
            try:
                yield SimpleNamespace(
                    target=lambda: "own", differences=lambda threads: self.differences, log_lines=lambda: ["a: a line"]
                )
            finally:
                self.ended = True

        return SimpleNamespace(Daemons=made)

    def begin(self) -> None:
        pass

    def done(self, name: str) -> int:
        return {"approval": 100, "reload": 101}[name]

    @contextmanager
    def watched(self) -> Iterator[None]:
        yield

    def windows(self, windows: tuple[Window, ...]) -> Iterator[SoakRow]:
        self.windows_asked = windows
        for row in self.rows:
            if row.window == self.stop_at:
                os.kill(os.getpid(), self.signal)
            tally = Tally(next(each for each in WINDOWS if each.name == row.window))
            for elapsed_s in (1.0, 30.0, 61.0, 62.0):
                self.report.show(tally, elapsed_s)
            yield row


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    found, load = Engine(), cli.load
    doubles = {"cli.soak_driver": found.drive, "cli.soak_daemons": found.rig}
    monkeypatch.setattr(cli, "load", lambda name: doubles[name]() if name in doubles else load(name))
    return found


def test_csv_on_stdout_and_everything_else_on_stderr(spl: Run, engine: Engine) -> None:
    result = spl("federation", "soak", "--csv")
    assert (result.code, result.out.splitlines()) == (0, CSV)
    assert result.err.splitlines()[-1] == "soak passed"
    done = "61,140 records emitted, 101 fold rules reloaded, 100 requests approved; both hold the same records"
    assert done in result.err
    assert engine.ended


def test_a_table_for_people_and_rows_for_programs(spl: Run, engine: Engine) -> None:
    table = spl("federation", "soak").out.splitlines()
    assert [line.split() for line in table[1:]] == [line.split(",") for line in CSV[1:]]
    assert table[0].startswith("WINDOW")
    data = spl("federation", "soak", "-o", "json").data
    assert (data["scaled"], [row["window"] for row in data["rows"]]) == (False, [each.name for each in WINDOWS])
    assert data["rows"][0] == GOOD[0].to_json()
    assert len(spl("federation", "soak", "-o", "jsonl").out.splitlines()) == 5


def test_a_failed_run_exits_3_and_names_what_to_read(spl: Run, engine: Engine) -> None:
    engine.rows = BAD
    result = spl("federation", "soak", "--csv")
    assert result.code == 3
    assert "soak FAILED: errors 2 (must be 0); p99 1,812 ms (limit 1,500)\n" in result.err
    assert "target=syncropel_engine::federation" in result.err
    assert "a: a line\n" in result.err
    assert len(result.out.splitlines()) == 6


def test_sets_that_differ_fail_it(spl: Run, engine: Engine) -> None:
    engine.differences = ["thread th_x differs"]
    result = spl("federation", "soak", "--csv")
    assert (result.code, result.err.splitlines()[-1]) == (3, "soak FAILED: thread th_x differs")
    assert "both hold the same" not in result.err


def test_a_scaled_run_says_so_and_never_that_it_passed(spl: Run, engine: Engine) -> None:
    for flags in (("--scale", "0.1"), ("--window", "steady=1"), ("--window", "spike=0")):
        result = spl("federation", "soak", *flags)
        assert result.code == 0
        assert "soak passed" not in result.err
        assert result.err.splitlines()[-1].startswith("soak scaled")
    spl("federation", "soak", "--scale", "0.5", "--window", "steady=2", "--window", "ramp=0")
    assert [(each.name, each.minutes) for each in engine.windows_asked] == [
        ("warmup", 2.5), ("steady", 2), ("spike", 2.5), ("recovery", 7.5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [("--scale", "2"), ("--scale", "x"), ("--window", "lunch=1"), ("--window", "ramp"), ("--window", "ramp=x"),
     ("--window", "ramp=-1"), ("--window", "=")],
)  # fmt: skip
def test_wrong_arguments_are_usage(spl: Run, engine: Engine, flags: tuple[str, ...]) -> None:
    assert spl("federation", "soak", *flags).code == 2
    assert engine.target is None


def test_ctrl_c_keeps_the_finished_rows(spl: Run, engine: Engine) -> None:
    engine.stop_at = "steady"
    result = spl("federation", "soak", "--csv")
    assert (result.code, result.out.splitlines()) == (130, CSV[:3])
    assert "2 of 5 windows finished" in result.err
    assert engine.ended
    assert [row["window"] for row in spl("federation", "soak", "-o", "json").data["rows"]] == ["warmup", "ramp"]


def test_a_report_is_one_file_with_what_was_printed(spl: Run, engine: Engine, tmp_path: Path) -> None:
    page = tmp_path / "soak.html"
    engine.rows = BAD
    result = spl("federation", "soak", "--csv", "--report", str(page))
    assert result.code == 3
    assert f"report: {page}" in result.err
    text = page.read_text()
    assert "soak FAILED: errors 2 (must be 0); p99 1,812 ms (limit 1,500)" in text
    assert "1,812" in text
    engine.stop_at = "ramp"
    assert spl("federation", "soak", "--report", str(page)).code == 130
    assert "interrupted; 1 of 5 windows finished" in page.read_text()


def test_a_report_that_cannot_be_written_is_said_before_the_run(spl: Run, engine: Engine, tmp_path: Path) -> None:
    result = spl("federation", "soak", "--report", str(tmp_path / "none" / "soak.html"))
    assert (result.code, engine.target) == (2, None)
    assert "No such file or directory" in result.err


def test_a_termination_ends_its_daemons_too(spl: Run, engine: Engine) -> None:
    engine.stop_at, engine.signal = "steady", signal.SIGTERM
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        spl("federation", "soak", "--csv")
    assert caught.value.code == 143
    assert engine.ended
    assert signal.getsignal(signal.SIGTERM) == before


def test_progress_is_drawn_on_a_terminal_and_told_once_a_minute_elsewhere(spl: Run, engine: Engine) -> None:
    drawn = spl("federation", "soak", "--csv", tty=True).err
    assert "\rsteady [" not in drawn
    assert "\x1b[Ksteady [........................] 01:01/60:00 0/min p50 - p99 - ms queue 0/0 err 0" in drawn
    told = [line for line in spl("federation", "soak", "--csv").err.splitlines() if "event=soak.progress" in line]
    assert told == [
        f"ts=2026-11-23T06:00:00.000Z event=soak.progress window={each.name} elapsed_s=61 rate_per_min=0 "
        "p50_ms=- p99_ms=- queue_max=0 errors=0"
        for each in WINDOWS
    ]


def test_a_live_pair_is_driven_from_here(spl: Run, daemon: Daemon, engine: Engine) -> None:
    daemon.answers["GET", "/v1/federation/pairs/pair_1"] = PAIR
    result = spl("federation", "soak", "pair_1", "--csv")
    assert result.code == 0
    pair_id, namespace, sides, queue, drain_s = engine.target
    assert (pair_id, namespace, len(sides), queue, drain_s) == ("pair_1", "default", 1, "peer_queue_records", 90)
    assert "th_soak_" in result.err
    assert "the mode of this side is polling" in result.err
    assert "61,140 records emitted, 101 fold rules reloaded; the peer confirmed 61,140 of them" in result.err
    assert "the fold rule soak-" in result.err


def test_a_pair_that_is_unknown_or_not_active_is_refused(spl: Run, daemon: Daemon, engine: Engine) -> None:
    daemon.answers["GET", "/v1/federation/pairs/pair_9"] = (404, error("pair-unknown", "no such pair"))
    assert spl("federation", "soak", "pair_9").code == 6
    daemon.answers["GET", "/v1/federation/pairs/pair_1"] = {**PAIR, "state": "paused"}
    assert spl("federation", "soak", "pair_1").code == 7
    assert engine.target is None
