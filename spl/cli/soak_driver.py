"""Drives a soak from outside: paced emission, the peer's acks, queues and faults, window by window.

These jobs run at the same time: the caller's thread emits and draws, one thread follows the acks, one reads queues and
pair states, one approves, one reloads the fold rule.  They share the window's tally, under one lock.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Protocol

from ..client.calls import quote
from ..core.errors import SplError
from ..core.value import dataclass
from . import soak_plan
from .client import CtlError
from .pair import PAIRS
from .soak_plan import SoakRow, Tally, Window

ACK_WAIT_MS: Final = 1000
LOOK_S: Final = 0.1
STATES_EVERY_LOOKS: Final = 10
"""The queue is read ten times a second, the pair's state once."""
NAP_S: Final = 0.1
DRAIN_NAP_S: Final = 0.01
LATE_S: Final = 10.0
"""How long after its end a window may still emit records that were due before."""
RETRY_S: Final = 0.2
FAULTS_KEPT: Final = 100
JOIN_S: Final = 5.0
FOLD_RULES: Final = "/v1/config/fold-rules"
APPROVAL_PHASE: Final = 0.5
RELOAD_PHASE: Final = 0.25
"""When approvals and reloads run, as a fraction of their interval, so that they do not wait for each other."""


class SoakConnection(Protocol):
    """A kept connection to a daemon."""

    def get(self, path: str, /) -> dict[str, Any]:
        """Return the object that a GET answers; raise CtlError."""

    def post(self, path: str, body: Mapping[str, object], /) -> dict[str, Any]:
        """Return the object that a POST answers; raise CtlError."""

    def delete(self, path: str, /) -> dict[str, Any]:
        """Return the object that a DELETE answers; raise CtlError."""

    def close(self) -> None:
        """Close it."""


class SoakProgress(Protocol):
    """Receives the progress of the soak; always called on the caller's thread."""

    def show(self, tally: Tally, elapsed_s: float) -> None:
        """Show the state of the window."""

    def fault(self, text: str) -> None:
        """Report an error."""


@dataclass(frozen=True, slots=True)
class Target:
    """The driven pair: its sides, and how to ask them."""

    pair_id: str
    namespace: str
    sides: tuple[tuple[str, Callable[[], SoakConnection]], ...]
    """(name, function that opens a connection), ours first; the queue that is read is the intake of the last one."""
    queue: str
    """The member of the last side's acks that holds the consumer's queue; `<queue>_max`, if present, its peak."""
    drain_s: float
    """How long a window may wait for the last acks."""
    approve: Callable[[], object] | None = None
    """Runs one approval from the request to the end; None if the workload has no approvals."""
    dead: Callable[[], Sequence[str]] = tuple
    """Returns the names of daemons that ended."""


class _Chore:
    """A part of the load that runs at even intervals, in a thread of its own, one at a time."""

    def __init__(self, name: str, phase: float, run: Callable[[], object], failed: Callable[[str], None]) -> None:
        self.name, self.phase = name, phase
        self.done = 0
        self._run, self._failed = run, failed
        self._pool = ThreadPoolExecutor(1, f"soak-{name}")
        self._runs: list[Future[None]] = []

    def begin(self) -> None:
        """Begin a window."""
        self._runs = []

    def start_due(self, window: Window, elapsed_s: float) -> None:
        """Start the runs of this window that are due by now."""
        while len(self._runs) < window.chores and window.chore_due_s(len(self._runs), self.phase) <= elapsed_s:
            self._runs.append(self._pool.submit(self._once))

    def is_running(self) -> bool:
        """Return whether a started run has not ended."""
        return not all(each.done() for each in self._runs)

    def end(self, *, wait: bool) -> None:
        """Start no more runs, and wait for the present one if `wait` is set."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _once(self) -> None:
        try:
            self._run()
            self.done += 1
        except SplError as exc:
            self._failed(f"{self.name}: {exc.message} [{exc.code}]")


@dataclass(slots=True)
class _Side:
    """The last known state of the pair on one side."""

    name: str
    connection: SoakConnection
    state: str = "active"
    error_at: object = None
    reached: bool = True


class Soak:
    """One run of the soak.  `clock` returns steady seconds; `sleep` waits."""

    def __init__(
        self,
        target: Target,
        progress: SoakProgress,
        run: str,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.target = target
        self.progress = progress
        self.run = run
        self.clock = clock
        self.sleep = sleep
        self.emitted = 0
        self._tally: Tally | None = None
        self._faults: deque[str] = deque(maxlen=FAULTS_KEPT)
        self._lock = threading.Lock()
        self._position = 0
        self._peak = 0
        self._dead: frozenset[str] = frozenset()
        self._emitter: SoakConnection | None = None
        self._config: SoakConnection | None = None
        self._sides: list[_Side] = []
        self._chores: dict[str, _Chore] = {}
        self._reloads = 0

    def begin(self) -> None:
        """Record the present state of the pair, so that earlier errors do not count."""
        self._emitter, self._config = (self.target.sides[0][1]() for _ in range(2))
        chores = [_Chore("reload", RELOAD_PHASE, self.reload, self._count_fault)]
        if self.target.approve is not None:
            chores.append(_Chore("approval", APPROVAL_PHASE, self.target.approve, self._count_fault))
        self._chores = {chore.name: chore for chore in chores}
        self._sides = [_Side(name, opener()) for name, opener in self.target.sides]
        for side in self._sides:
            detail = side.connection.get(self._pair())
            side.state, side.error_at = str(detail["state"]), _error_at(detail)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Follow acks, queues and states in threads during the `with`."""
        stop = threading.Event()
        acks = self.target.sides[0][1]()

        def follow() -> None:
            while not stop.is_set():
                if not self.hear(acks, ACK_WAIT_MS):
                    stop.wait(RETRY_S)

        def watch() -> None:
            looks = 0
            while not stop.wait(LOOK_S):
                self.look(states=looks % STATES_EVERY_LOOKS == 0)
                looks += 1

        threads = [threading.Thread(target=job, daemon=True) for job in (follow, watch)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(JOIN_S)

    def windows(self, windows: Sequence[Window]) -> Generator[SoakRow, None, None]:
        """Yield each window's row as it ends; the fold rule is removed at the end."""
        try:
            for window in windows:
                yield self._window(window)
        finally:
            self._end()

    def done(self, name: str) -> int:
        """Return the number of approvals ("approval") or reloads ("reload")."""
        return self._chores[name].done if name in self._chores else 0

    # -- one step of each job

    def emit(self, number: int) -> None:
        """Emit one record and count it."""
        assert self._emitter is not None
        tally = self._tally
        assert tally is not None
        record = soak_plan.record_of(self.run, number, self.target.namespace)
        at_ms = self.clock() * 1000
        try:
            seq = int(self._emitter.post("/v1/records", record)["sequence"])
        except CtlError as exc:
            self._count_fault(f"emit: {exc.message} [{exc.code}]")
            return
        self.emitted += 1
        with self._lock:
            tally.emit(seq, at_ms)

    def reload(self) -> None:
        """Replace the run's fold rule and read a state computed by it; raise CtlError if the state is wrong."""
        assert self._config is not None
        rule = soak_plan.fold_rule_of(self.run, self._reloads)
        self._reloads += 1
        self._config.post(FOLD_RULES, rule)
        state = self._config.get(f"/v1/threads/{quote(soak_plan.thread_of(self.run, 0))}/state")
        fault = soak_plan.reload_fault(rule, state)
        if fault:
            raise CtlError("answer-malformed", fault)

    def hear(self, connection: SoakConnection, wait_ms: int) -> bool:
        """Ask how far the peer confirmed, waiting up to `wait_ms` for progress; return whether the daemon answered."""
        name = quote(self.target.namespace)
        path = f"{self._pair()}/acks?namespace={name}&beyond={self._position}&wait_ms={wait_ms}"
        try:
            position = connection.get(path)["position"] or 0
        except CtlError:
            return False  # the other thread counts it
        at_ms = self.clock() * 1000
        with self._lock:
            self._position = position
            if self._tally is not None:
                self._tally.confirm(position, at_ms)
        return True

    def look(self, *, states: bool) -> None:
        """Read the consumer's queue and, with `states`, the state of the pair on each side."""
        last = self._sides[-1]
        path = f"{self._pair()}/acks?namespace={quote(self.target.namespace)}"
        answer = self._asked(last, path)
        queue, peak = int(answer.get(self.target.queue) or 0), int(answer.get(f"{self.target.queue}_max") or 0)
        # The daemon's own peak covers an hour: it belongs to this window if it rose since the last look.
        risen, self._peak = peak if peak > self._peak else 0, peak
        with self._lock:
            if self._tally is not None:
                self._tally.look(queue, risen)
        if not states:
            return
        for side in self._sides:
            self._compare(side, self._asked(side, self._pair()))
        for name in set(self.target.dead()) - self._dead:
            self._dead |= {name}
            self._count_fault(f"the daemon {name} ended")

    # -- inside

    def _window(self, window: Window) -> SoakRow:
        tally = Tally(window)
        with self._lock:
            self._tally = tally
            tally.confirm(self._position, self.clock() * 1000)
        start_s = self.clock()
        base = self.emitted
        for chore in self._chores.values():
            chore.begin()
        for number in range(window.records):
            while (left_s := start_s + window.due_s(number) - self.clock()) > 0:
                self._start_due(window, self.clock() - start_s)
                self._show(tally, start_s)
                self.sleep(min(left_s, NAP_S))
            if self.clock() - start_s > window.duration_s + LATE_S:
                break  # the daemon does not keep up; the row shows by how much
            self.emit(base + number)
        self._drain(tally, start_s)
        self._show(tally, start_s)
        with self._lock:
            return tally.row()

    def _drain(self, tally: Tally, start_s: float) -> None:
        """Wait for the end of the window, then for outstanding acks, approvals and reloads."""
        window = tally.window
        end_s = start_s + window.duration_s
        while (left_s := end_s - self.clock()) > 0:
            self._start_due(window, self.clock() - start_s)
            self._show(tally, start_s)
            self.sleep(min(left_s, NAP_S))
        self._start_due(window, window.duration_s)
        while self._is_waiting(tally) and self.clock() < end_s + self.target.drain_s:
            self._show(tally, start_s)
            self.sleep(DRAIN_NAP_S)

    def _start_due(self, window: Window, elapsed_s: float) -> None:
        for chore in self._chores.values():
            chore.start_due(window, elapsed_s)

    def _is_waiting(self, tally: Tally) -> bool:
        return bool(tally.open) or any(chore.is_running() for chore in self._chores.values())

    def _end(self) -> None:
        """End the chores and remove the fold rule, after the last reload, which would set it again."""
        assert self._config is not None
        for name, chore in self._chores.items():
            chore.end(wait=name == "reload")
        if not self._reloads:
            return
        rule = soak_plan.rule_name(self.run)
        try:
            self._config.delete(f"{FOLD_RULES}/{quote(rule)}")
        except CtlError as exc:
            if exc.code != "not-found":
                self.progress.fault(
                    f"the fold rule {rule} may remain: {exc.message}; spl config remove-fold-rule {rule}"
                )

    def _show(self, tally: Tally, start_s: float) -> None:
        while self._faults:
            self.progress.fault(self._faults.popleft())
        with self._lock:
            self.progress.show(tally, self.clock() - start_s)

    def _compare(self, side: _Side, detail: dict[str, Any]) -> None:
        """Count the errors of the pair since the last look."""
        if not detail:
            return
        error, state = _error_at(detail), str(detail["state"])
        if error is not None and error != side.error_at:
            found = detail["last_error"]
            self._count_fault(f"{side.name}: {found['message']} [{found['code']}]")
        if state not in (side.state, "active"):
            self._count_fault(f"{side.name}: the pair is {state}")
        side.error_at, side.state = error, state

    def _asked(self, side: _Side, path: str) -> dict[str, Any]:
        """Return a side's answer, or {} without one; a missing answer counts once until the next answer."""
        try:
            answer = side.connection.get(path)
        except CtlError as exc:
            if side.reached:
                self._count_fault(f"{side.name}: {exc.message} [{exc.code}]")
            side.reached = False
            return {}
        side.reached = True
        return answer

    def _count_fault(self, text: str) -> None:
        self._faults.append(text)
        with self._lock:
            if self._tally is not None:
                self._tally.errors += 1

    def _pair(self) -> str:
        return f"{PAIRS}/{quote(self.target.pair_id)}"


def _error_at(detail: dict[str, Any]) -> object:
    return (detail.get("last_error") or {}).get("at")
