"""The soak as values: its windows and workload, what is counted in each, the CSV, and the verdict.

The shape of the load, the columns and the limits are those of the reference page.  A lag runs from the emit call to the
peer's durable ack, both on the clock of the command.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..core.errors import SplError, count
from ..core.value import Json, dataclass, replace
from .rules import PRIORITY_MAX

HEADER: Final = (
    "window,duration_min,records_emitted,records_synced,sync_lag_p50_ms,sync_lag_p99_ms,reconcile_queue_max,errors"
)
SCALE_MIN: Final = 0.01
MINUTES_MAX: Final = 1440.0
P50_MS: Final = 500
P99_MS: Final = 1500
QUEUE_RECORDS: Final = 20
QUEUE_ADAPTER_RECORDS: Final = 50
THREADS: Final = 16
ACTORS: Final = 4
BAR_CHARS: Final = 24
RULE_PRIORITY: Final = PRIORITY_MAX
"""The highest priority that a rule can have, so that no rule of the operator takes precedence."""

_ACTS: Final = ("INTEND", "DO", "KNOW", "LEARN")
_TEXT: Final = "the soak wrote this; " * 18
_RELOADS: Final = (("count", ""), ("sum", "number"), ("latest", "number"))
_TITLES: Final = ("WINDOW", "MIN", "EMITTED", "SYNCED", "P50 MS", "P99 MS", "QUEUE MAX", "ERRORS")
_WIDTHS: Final = (-9, 6, 8, 8, 7, 7, 10, 7)


class SoakError(SplError):
    """The requested windows make no soak; code usage."""


@dataclass(frozen=True, slots=True)
class Window:
    """A period of even load."""

    name: str
    minutes: float
    records_per_min: float

    @property
    def duration_s(self) -> float:
        """The duration of its emissions."""
        return self.minutes * 60.0

    @property
    def records(self) -> int:
        """The number of records it emits."""
        return round(self.minutes * self.records_per_min)

    @property
    def chores(self) -> int:
        """The number of runs of each other part of the load: once a minute, at least once."""
        return max(1, int(self.minutes))

    def due_s(self, number: int) -> float:
        """Return when record `number` (from 0) is due, in seconds from the window's start; errors do not add up."""
        return number * 60.0 / self.records_per_min

    def chore_due_s(self, number: int, phase: float) -> float:
        """Return when chore `number` is due: spread evenly, the first one `phase` (0 to 1) of an interval in."""
        return (number + phase) * self.duration_s / self.chores


WINDOWS: Final = (
    Window("warmup", 5, 248),
    Window("ramp", 15, 561),
    Window("steady", 60, 553),
    Window("spike", 5, 4 * 553),
    Window("recovery", 15, 483),
)


@dataclass(frozen=True, slots=True)
class SoakRow:
    """The result of one window; lags in ms, None if nothing was synced.

    Nine members: the eight columns of the CSV, and the number of planned records.
    """

    window: str
    duration_min: float
    records_planned: int
    records_emitted: int
    records_synced: int
    sync_lag_p50_ms: int | None
    sync_lag_p99_ms: int | None
    reconcile_queue_max: int
    errors: int

    def cells(self) -> list[str]:
        """Return the columns of the CSV; an unknown lag is empty."""
        lags = ["" if lag is None else str(lag) for lag in (self.sync_lag_p50_ms, self.sync_lag_p99_ms)]
        counts = [str(self.records_emitted), str(self.records_synced)]
        return [
            self.window,
            f"{self.duration_min:.6g}",
            *counts,
            *lags,
            str(self.reconcile_queue_max),
            str(self.errors),
        ]

    def to_json(self) -> Json:
        """Return the columns by their names in the CSV, and the number of planned records."""
        return {
            **{name: getattr(self, name) for name in HEADER.split(",")},
            "records_planned": self.records_planned,
        }


class Tally:
    """The counts of one window.  It keeps 8 bytes per record, for exact percentiles; no locks."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.emitted = 0
        self.errors = 0
        self.queue = 0
        self.queue_max = 0
        self._lags_ms = array("d")
        self._open: deque[tuple[int, float]] = deque()
        self._position = 0
        self._position_ms = 0.0

    @property
    def open(self) -> int:
        """The number of emitted records that the peer has not confirmed yet."""
        return len(self._open)

    def emit(self, seq: int, at_ms: float) -> None:
        """Count a record at `seq` of the log whose emit call began at `at_ms`; seqs rise."""
        self.emitted += 1
        if seq <= self._position:
            # The peer's ack was faster than our daemon's answer.
            self._lags_ms.append(max(0.0, self._position_ms - at_ms))
        else:
            self._open.append((seq, at_ms))

    def confirm(self, position: int, at_ms: float) -> None:
        """Record that the peer holds everything up to `position`; a lower position is ignored."""
        if position <= self._position:
            return
        self._position, self._position_ms = position, at_ms
        while self._open and self._open[0][0] <= position:
            self._lags_ms.append(max(0.0, at_ms - self._open.popleft()[1]))

    def look(self, queue_records: int, peak_records: int = 0) -> None:
        """Record how many records wait between network and store on the consuming side, and their recent peak."""
        self.queue = queue_records
        self.queue_max = max(self.queue_max, queue_records, peak_records)

    def lags_ms(self) -> tuple[int | None, int | None]:
        """Return p50 and p99."""
        ordered = sorted(self._lags_ms)
        return percentile(ordered, 50), percentile(ordered, 99)

    def row(self) -> SoakRow:
        """Return the window's row as of now."""
        p50, p99 = self.lags_ms()
        window = self.window
        return SoakRow(
            window.name, window.minutes, window.records, self.emitted, len(self._lags_ms), p50, p99, self.queue_max,
            self.errors,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SoakVerdict:
    """The meaning of the rows: the exceeded limits, and where to look."""

    problems: tuple[str, ...]
    readings: tuple[str, ...]
    scaled: bool

    @property
    def passed(self) -> bool:
        """Whether every limit held; for a scaled run this does not mean `soak passed`."""
        return not self.problems

    def text(self) -> str:
        """Return the one line of the verdict."""
        if self.problems:
            return f"soak FAILED{' (scaled)' if self.scaled else ''}: {'; '.join(self.problems)}"
        return "soak scaled: within all limits; only a run of full length can pass" if self.scaled else "soak passed"


def windows(scale: float, minutes: Mapping[str, float]) -> tuple[Window, ...]:
    """Return the windows with scaled durations, or with those that `minutes` names; 0 leaves a window out.

    Raises SoakError "usage".
    """
    if not SCALE_MIN <= scale <= 1:
        raise SoakError("usage", f"--scale is from {SCALE_MIN} to 1, not {scale:g}")
    names = [window.name for window in WINDOWS]
    for name, value in minutes.items():
        if name not in names:
            raise SoakError("usage", f"no window is named {name[:40]!r}", hint=f"the windows are {' '.join(names)}")
        if not 0 <= value <= MINUTES_MAX:
            raise SoakError("usage", f"a window has 0 to {MINUTES_MAX:.0f} minutes, not {value:g}")
    chosen = [replace(each, minutes=minutes.get(each.name, each.minutes * scale)) for each in WINDOWS]
    found = tuple(each for each in chosen if each.records)
    if not found:
        raise SoakError("usage", "no window is left: each is too short for one record")
    return found


def is_scaled(chosen: Sequence[Window]) -> bool:
    """Return whether a window is missing, or shorter than the reference's."""
    length = {window.name: window.minutes for window in chosen}
    return any(length.get(window.name, 0.0) < window.minutes for window in WINDOWS)


def record_of(run: str, number: int, namespace: str) -> Json:
    """Return record `number` of a run: about 600 bytes, spread over threads, actors and acts."""
    body: Json = {"kind": "soak.note.v1", "number": number, "text": _TEXT}
    if namespace != "default":
        body["namespace"] = namespace
    return {
        "act": _ACTS[number % len(_ACTS)],
        "actor": f"did:sync:user:soak-{number // len(_ACTS) % ACTORS}",
        "thread": thread_of(run, number % THREADS),
        "body": body,
    }


def thread_of(run: str, number: int) -> str:
    """Return the name of one of a run's threads."""
    return f"th_soak_{run}_{number}"


def rule_name(run: str) -> str:
    """Return the name of a run's fold rule."""
    return f"soak-{run}"


def fold_rule_of(run: str, number: int) -> Json:
    """Return the fold rule of reload `number`, with a fold other than the last; it covers only the run's threads."""
    fold, field = _RELOADS[number % len(_RELOADS)]
    return {"name": rule_name(run), "thread": f"th_soak_{run}_*", "fold": fold, "field": field,
            "priority": RULE_PRIORITY}  # fmt: skip


def reload_fault(rule: Mapping[str, object], state: Mapping[str, Any]) -> str:
    """Return how the state of a covered thread differs from the rule's, "" if the rule is in force."""
    for name, wanted in (("rule", rule["name"]), ("fold", rule["fold"]), ("field", rule["field"] or None)):
        if state.get(name) != wanted:
            return f"the state's {name} is {state.get(name)!r} after the reload, not {wanted!r}"
    records = state.get("records")
    if rule["fold"] == "count" and state.get("value") != records:
        return f"the count of {count(int(records or 0), 'record')} is {state.get('value')!r}"
    return ""


def percentile(ordered: Sequence[float], percent: int) -> int | None:
    """Return the nearest-rank percentile of ascending values, in whole ms; None of nothing."""
    if not ordered:
        return None
    return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)])


def judge(rows: Sequence[SoakRow], scaled: bool, differences: Sequence[str] = ()) -> SoakVerdict:
    """Return the verdict on finished rows; `differences` are those between the two sides at the end."""
    errors = sum(row.errors for row in rows)
    queue = max((row.reconcile_queue_max for row in rows), default=0)
    p50 = max((row.sync_lag_p50_ms or 0 for row in rows if row.window == "steady"), default=0)
    p99 = max((row.sync_lag_p99_ms or 0 for row in rows if row.window == "spike"), default=0)
    problems, readings = [], []
    if errors:
        problems.append(f"errors {errors:,} (must be 0)")
        readings.append("errors: read them in the log: spl logs level=warning target=syncropel_engine::federation")
    for row in rows:
        if row.records_emitted < row.records_planned:
            problems.append(f"{row.window} emitted {row.records_emitted:,} of {row.records_planned:,}")
        if row.records_synced < row.records_emitted:
            problems.append(f"{row.window} synced {row.records_synced:,} of {row.records_emitted:,}")
    if p50 >= P50_MS:
        problems.append(f"p50 {p50:,} ms (limit {P50_MS:,})")
        readings.append(
            "p50: the network between the two is slow; at such a distance use set-mode polling and a longer interval"
        )
    if p99 >= P99_MS:
        problems.append(f"p99 {p99:,} ms (limit {P99_MS:,})")
    if queue >= QUEUE_RECORDS:
        problems.append(f"queue {queue:,} (limit {QUEUE_RECORDS})")
    if queue > QUEUE_ADAPTER_RECORDS:
        readings.append("queue: the consuming side's adapters are the bottleneck; profile their cost per record")
    return SoakVerdict((*problems, *differences), tuple(readings), scaled)


def table_head() -> str:
    """Return the titles of the table for people."""
    return _columns(_TITLES)


def table_row(row: SoakRow) -> str:
    """Return a row of the table for people."""
    return _columns([cell or "-" for cell in row.cells()])


def progress(tally: Tally, elapsed_s: float) -> str:
    """Return the state of a window for a terminal: `steady [####....] 31:12/60:00 553/min p50 221 p99 530 ms …`."""
    window = tally.window
    done = min(1.0, elapsed_s / window.duration_s)
    filled = int(done * BAR_CHARS)
    p50, p99 = (lag if lag is not None else "-" for lag in tally.lags_ms())
    return (
        f"{window.name} [{'#' * filled}{'.' * (BAR_CHARS - filled)}] {_clock(elapsed_s)}/{_clock(window.duration_s)} "
        f"{_rate(tally, elapsed_s)}/min p50 {p50} p99 {p99} ms queue {tally.queue}/{tally.queue_max} err {tally.errors}"
    )


def progress_line(tally: Tally, elapsed_s: float, at: str) -> str:
    """Return the state of a window as one line of logfmt."""
    p50, p99 = (lag if lag is not None else "-" for lag in tally.lags_ms())
    return (
        f"ts={at} event=soak.progress window={tally.window.name} elapsed_s={elapsed_s:.0f} "
        f"rate_per_min={_rate(tally, elapsed_s)} p50_ms={p50} p99_ms={p99} queue_max={tally.queue_max} "
        f"errors={tally.errors}"
    )


def _rate(tally: Tally, elapsed_s: float) -> int:
    """Return the records per minute so far; the wait after the last emission does not lower it."""
    return round(tally.emitted * 60 / max(1.0, min(elapsed_s, tally.window.duration_s)))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02}:{rest:02}"


def _columns(cells: Sequence[str]) -> str:
    return " ".join(
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)
    )
