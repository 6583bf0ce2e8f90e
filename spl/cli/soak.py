"""`spl federation soak`: a long even load over a pair, measured window by window."""

import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ..client.calls import quote
from ..core import when
from ..core.errors import count
from . import soak_plan
from .client import CtlError
from .command import FOUND_PROBLEMS, INTERRUPTED, Command, Shell, UsageError, arg, write_file
from .out import OutputError
from .pair import PAIRS
from .soak_plan import SoakRow, Tally, Window

DRAIN_S: Final = 15.0

_DRAW_S: Final = 1.0
_LINE_S: Final = 60.0
_LINE_SHORT_S: Final = 10.0


def _soak(args: Namespace, shell: Shell) -> int:
    windows = soak_plan.windows(args.scale, _minutes(args.window))
    scaled = soak_plan.is_scaled(windows)
    report = Report(shell, args.csv, scaled, _made(args.report) if args.report else None)
    if scaled:
        shell.out.note("scaled: shorter than the reference's windows, so this run cannot pass")
    soak_driver = shell.load("cli.soak_driver")
    try:
        with shell.load("cli.temporary").ended_by_signals():
            run = _live if args.pair else _own
            differences, log_lines = run(args, shell, soak_driver, windows, report)
    except KeyboardInterrupt:
        report.finish()
        said = f"interrupted; {len(report.rows)} of {count(len(windows), 'window')} finished"
        shell.out.warn(said)
        report.draw(said)
        return INTERRUPTED
    return report.verdict(differences, log_lines)


class Report:
    """Shows the progress, prints each row when its window ends, and the verdict at the end."""

    def __init__(self, shell: Shell, csv: bool, scaled: bool, page: Path | None = None) -> None:
        self.rows: list[SoakRow] = []
        self._shell, self._csv, self._scaled, self._page = shell, csv, scaled, page
        self._shown_s = 0.0
        self._window = ""

    def head(self) -> None:
        """Print the titles."""
        if self._csv:
            self._shell.out.line(soak_plan.HEADER)
        elif self._shell.out.form in ("table", "wide"):
            self._shell.out.line(soak_plan.table_head())

    def row(self, row: SoakRow) -> None:
        """Print the row of a finished window."""
        self.rows.append(row)
        out = self._shell.out
        out.end()
        if self._csv:
            out.line(",".join(row.cells()))
        elif out.form == "jsonl":
            out.json_line(row.to_json())
        elif out.form != "json":
            out.line(soak_plan.table_row(row))

    def show(self, tally: Tally, elapsed_s: float) -> None:
        """Draw the state of the window on a terminal; elsewhere print it as a line, once a minute."""
        out, window = self._shell.out, tally.window
        every_s = _DRAW_S if out.interactive else _LINE_S if window.duration_s > _LINE_S else _LINE_SHORT_S
        if window.name != self._window:
            self._window, self._shown_s = window.name, 0.0
        if elapsed_s - self._shown_s < every_s:
            return
        self._shown_s = elapsed_s
        if out.interactive:
            out.progress(soak_plan.progress(tally, elapsed_s))
        else:
            out.note(soak_plan.progress_line(tally, elapsed_s, when.text_of(self._shell.now_ms())))

    def fault(self, text: str) -> None:
        """Print an error as it happens."""
        self._shell.out.warn(f"! {text}")

    def finish(self) -> None:
        """Print the one value of `-o json`: all rows."""
        out = self._shell.out
        if out.form == "json" and not self._csv:
            data = {"scaled": self._scaled, "rows": [row.to_json() for row in self.rows]}
            out.data("spl.soak/1", data, lambda: None)

    def draw(self, said: str, readings: tuple[str, ...] = (), *, passed: bool = False) -> None:
        """Write the report, if one is wanted."""
        if self._page is None:
            return
        rows, at = [row.to_json() for row in self.rows], when.text_of(self._shell.now_ms())
        page = self._shell.load("ui.soak").report(rows, said, at, passed=passed, readings=readings)
        try:
            write_file(self._page, page)
        except OSError as exc:
            raise OutputError("output-failed", f"{self._page} cannot be written: {exc.strerror}") from exc
        self._shell.out.note(f"report: {self._page}")

    def verdict(self, differences: list[str], log_lines: list[str]) -> int:
        """Print the verdict and where to look, and return the exit code."""
        self.finish()
        verdict = soak_plan.judge(self.rows, self._scaled, differences)
        for line in log_lines if not verdict.passed else ():
            self._shell.out.warn(line)
        self._shell.out.warn(verdict.text())
        for reading in verdict.readings:
            self._shell.out.warn(f"  {reading}")
        self.draw(verdict.text(), verdict.readings, passed=verdict.passed)
        return 0 if verdict.passed else FOUND_PROBLEMS


Windows = tuple[Window, ...]
Found = tuple[list[str], list[str]]
"""The differences between the sets of both sides at the end, and log lines of the temporary daemons."""


def _own(args: Namespace, shell: Shell, soak_driver: ModuleType, windows: Windows, report: Report) -> Found:
    """Soak two temporary daemons, and compare what both hold at the end."""
    out = shell.out
    with shell.load("cli.soak_daemons").Daemons(shell.env, out.detail) as daemons:
        out.note("two daemons, one pair in mode continuous; a third daemon makes approval requests")
        run = shell.random_bytes(4).hex()
        driver = _driven(soak_driver, daemons.target(), run, windows, shell, report)
        threads = [soak_plan.thread_of(run, number) for number in range(soak_plan.THREADS)]
        try:
            differences = daemons.differences(threads)
        except CtlError as exc:
            differences = [f"the record sets could not be compared: {exc.message}"]
        if not differences:
            out.note(
                f"{_done(driver)}, {count(driver.done('approval'), 'request')} approved; both hold the same records"
            )
        return differences, daemons.log_lines()


def _live(args: Namespace, shell: Shell, soak_driver: ModuleType, windows: Windows, report: Report) -> Found:
    """Soak a live pair from this side."""
    out, pair = shell.out, shell.ctl.get(f"{PAIRS}/{quote(args.pair)}")
    if pair["state"] != "active":
        raise CtlError("pair-state-conflict", f"{pair['pair_id']} is {pair['state']}; a soak needs an active pair")
    names = pair["namespaces"]
    run = shell.random_bytes(4).hex()
    poll_s = pair["poll_interval_ms"] / 1000 if pair["mode"] == "polling" else 0.0
    target = soak_driver.Target(
        pair["pair_id"], "default" if "default" in names else names[0], (("this side", shell.ctl.kept),),
        "peer_queue_records", max(DRAIN_S, 1.5 * poll_s),
    )  # fmt: skip
    out.note(f"records go to threads th_soak_{run}_* and stay on both sides; no approvals, which would stay too")
    out.note(f"the fold rule {soak_plan.rule_name(run)} covers these threads on this side until the end")
    if pair["mode"] != "continuous":
        out.note(f"the mode of this side is {pair['mode']}; the reference's lags are those of mode continuous")
    driver = _driven(soak_driver, target, run, windows, shell, report)
    confirmed = sum(row.records_synced for row in report.rows)
    out.note(f"{_done(driver)}; the peer confirmed {confirmed:,} of them as durable; its records were not read")
    return [], []


def _driven(
    soak_driver: ModuleType, target: Any, run: str, windows: tuple[Window, ...], shell: Shell, report: Report
) -> Any:
    """Run the windows and return the driver, which has the counts."""
    driver = soak_driver.Soak(target, report, run, time.monotonic, time.sleep)
    driver.begin()
    report.head()
    with driver.watched(), closing(driver.windows(windows)) as rows:
        for row in rows:
            report.row(row)
    return driver


def _made(name: str) -> Path:
    """Return the path of the report once it can be written: the run takes more than an hour.  Raises UsageError."""
    path = Path(name)
    try:
        write_file(path, None)
    except OSError as exc:
        raise UsageError("usage", f"--report {name}: {exc.strerror}") from exc
    return path


def _done(driver: Any) -> str:
    return f"{count(driver.emitted, 'record')} emitted, {count(driver.done('reload'), 'fold rule')} reloaded"


def _minutes(words: list[str]) -> dict[str, float]:
    """Return window -> minutes of NAME=MIN words; raise UsageError."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            raise UsageError("usage", f"a window is NAME=MIN, such as steady=10; not {word[:60]!r}") from None
        if not equals:
            raise UsageError("usage", f"a window is NAME=MIN, such as steady=10; not {word[:60]!r}")
    return found


COMMAND: Final = Command(
    "federation soak",
    "Loads a pair for 100 minutes in five windows and measures lag, queue and errors; exits 0 only within all limits.\n"
    "Without PAIR it starts temporary daemons and removes them; on a live pair the records stay, on both sides.",
    "spl federation soak --scale 0.05 --csv",
    _soak,
    (
        arg("pair", nargs="?", metavar="PAIR", help="a live pair (default: temporary daemons)"),
        arg("--csv", action="store_true", help="print the rows as CSV on stdout"),
        arg("--report", metavar="FILE.html", help="write rows, plots and verdict into one file for a browser"),
        arg("--scale", type=float, default=1.0, metavar="F", help="shorten all windows, 0.01 to 1 (default: 1)"),
        arg("--window", action="append", default=[], metavar="NAME=MIN",
            help="minutes of one window, such as steady=10; 0 leaves it out; `spl help soak` has the five; repeatable"),
    ),
)  # fmt: skip
