"""A soak is paced without drift, bounded whatever the daemons do, and counts each fault once; on a clock of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from spl.cli.client import CtlError
from spl.cli.soak_driver import LATE_S, Soak, Target
from spl.cli.soak_plan import SoakRow, Tally, Window
from tests.waiting import eventually

PAIR = "/v1/federation/pairs/pair_1"


@dataclass
class World:
    """One daemon and its pair, as kept connections see them; time passes in `sleep` and where a test says so."""

    now_s: float = 100.0
    answer_s: float = 0.0
    lag_s: float = 0.05
    queue: int = 0
    peak: int = 0
    state: str = "active"
    error: dict[str, str] | None = None
    down: bool = False
    down_for_emits: bool = False
    rule: dict[str, object] = field(default_factory=dict)
    reloads: list[object] = field(default_factory=list)
    takes_rules: bool = True
    emitted_s: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    shown: int = 0
    each_sleep: Callable[[], object] = lambda: None

    def get(self, path: str) -> dict[str, Any]:
        return self.ask("GET", path)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        return self.ask("POST", path, dict(body))

    def delete(self, path: str) -> dict[str, Any]:
        return self.ask("DELETE", path)

    def ask(self, method: str, target: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        if self.down or (self.down_for_emits and target == "/v1/records"):
            raise CtlError("daemon-down", "it is down")
        if "fold-rules" in target or target.endswith("/state"):
            return self.ask_fold(method, target, body or {})
        if method == "POST":
            self.emitted_s.append(self.now_s)
            self.now_s += self.answer_s
            return {"sequence": len(self.emitted_s)}
        if "/acks" in target:
            position = sum(at_s + self.lag_s <= self.now_s for at_s in self.emitted_s)
            return {"position": position or None, "queue_records": self.queue, "queue_records_max": self.peak}
        assert target == PAIR
        return {"state": self.state, "last_error": self.error}

    def ask_fold(self, method: str, target: str, body: dict[str, object]) -> dict[str, Any]:
        if method == "POST":
            self.reloads.append(body["fold"])
            self.rule = body if self.takes_rules or not self.rule else self.rule
        elif method == "DELETE":
            if not self.rule:
                raise CtlError("not-found", "no such rule")
            assert target == f"/v1/config/fold-rules/{self.rule['name']}"
            self.rule = {}
        assert method != "GET" or target == "/v1/threads/th_soak_r_0/state"
        told = {"fold": self.rule.get("fold"), "field": self.rule.get("field") or None, "rule": self.rule.get("name")}
        return {**told, "records": 5, "value": 5}

    def close(self) -> None:
        pass

    def show(self, tally: Tally, elapsed_s: float) -> None:
        self.shown += 1

    def fault(self, text: str) -> None:
        self.said.append(text)

    def soak(self, **target: Any) -> Soak:
        made = {"drain_s": 5.0, "sides": (("a", lambda: self),), **target}
        self.driver = Soak(
            Target("pair_1", "default", queue="queue_records", **made), self, "r", self.clock, self.sleep
        )
        self.driver.begin()
        return self.driver

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += min(seconds, 0.01)
        self.each_sleep()
        self.driver.hear(self, 0)
        self.driver.look(states=True)


def rows(soak: Soak, *windows: Window) -> list[SoakRow]:
    return list(soak.windows(windows))


STEADY = Window("steady", 0.1, 600)


def test_emission_is_even_and_does_not_drift() -> None:
    world = World(answer_s=0.004)
    found = rows(world.soak(), STEADY, Window("spike", 0.05, 1200))
    assert [(row.records_emitted, row.records_synced, row.errors) for row in found] == [(60, 60, 0), (60, 60, 0)]
    first, second = world.emitted_s[:60], world.emitted_s[60:]
    assert [at_s - first[0] for at_s in first] == pytest.approx([n * 0.1 for n in range(60)], abs=0.02)
    assert [at_s - second[0] for at_s in second] == pytest.approx([n * 0.05 for n in range(60)], abs=0.02)
    assert second[0] - first[0] >= 6
    assert all(50 <= (row.sync_lag_p50_ms or 0) <= 80 for row in found)
    assert world.driver.emitted == 120


def test_a_slow_daemon_ends_the_window_late_but_ends_it() -> None:
    world = World(answer_s=1.0)
    (row,) = rows(world.soak(), STEADY)
    assert row.records_emitted < row.records_planned == 60
    assert world.emitted_s[-1] - world.emitted_s[0] <= STEADY.duration_s + LATE_S


def test_acks_that_never_come_are_not_waited_for_without_end() -> None:
    world = World(lag_s=1e9)
    start_s = world.now_s
    (row,) = rows(world.soak(), STEADY)
    assert (row.records_emitted, row.records_synced, row.sync_lag_p50_ms) == (60, 0, None)
    assert world.now_s - start_s == pytest.approx(STEADY.duration_s + 5, abs=0.1)


def test_late_acks_of_one_window_do_not_count_in_the_next() -> None:
    world = World(lag_s=7.0)
    first, second = rows(world.soak(), Window("warmup", 0.05, 1200), STEADY)
    assert first.records_synced < 60
    assert second.records_synced <= 60


def test_the_queue_is_seen() -> None:
    world = World(queue=7)
    assert rows(world.soak(), STEADY)[0].reconcile_queue_max == 7


def test_a_peak_between_two_looks_belongs_to_the_window_in_which_it_rose() -> None:
    world = World(queue=1)
    changes = iter([lambda: None, lambda: setattr(world, "peak", 9)])
    world.each_sleep = lambda: next(changes, lambda: None)()
    found = rows(world.soak(), STEADY, Window("spike", 0.05, 1200))
    assert [row.reconcile_queue_max for row in found] == [9, 1]


def test_what_was_wrong_before_counts_for_nothing() -> None:
    world = World(error={"at": "t1", "message": "old", "code": "timeout"})
    assert rows(world.soak(), STEADY)[0].errors == 0


def test_each_error_of_the_pair_counts_once() -> None:
    world = World()
    changes = iter([
        lambda: setattr(world, "error", {"at": "t1", "message": "no answer", "code": "timeout"}),
        lambda: setattr(world, "error", {"at": "t2", "message": "no answer", "code": "timeout"}),
        lambda: setattr(world, "state", "degraded"),
        lambda: setattr(world, "state", "active"),
        lambda: setattr(world, "down", True),
        lambda: setattr(world, "down", False),
    ])  # fmt: skip
    world.each_sleep = lambda: next(changes, lambda: None)()
    (row,) = rows(world.soak(), Window("steady", 0.05, 20))
    assert world.said == ["a: no answer [timeout]", "a: no answer [timeout]", "a: the pair is degraded",
                          "a: it is down [daemon-down]"]  # fmt: skip
    assert row.errors == 4


def test_an_emission_that_fails_counts_and_the_next_is_tried() -> None:
    world = World()
    soak = world.soak()
    world.down_for_emits = True
    (row,) = rows(soak, Window("steady", 0.05, 100))
    assert (row.records_planned, row.records_emitted, row.errors) == (5, 0, 5)
    assert world.said == ["emit: it is down [daemon-down]"] * 5


def test_a_daemon_that_ended_counts_once() -> None:
    world = World()
    (row,) = rows(world.soak(dead=lambda: ["b"]), STEADY)
    assert (row.errors, world.said) == (1, ["the daemon b ended"])


def test_approvals_are_part_of_the_load_and_their_failure_an_error() -> None:
    calls: list[int] = []

    def approve() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise CtlError("timeout", "nobody approved")

    world = World()
    soak = world.soak(approve=approve, drain_s=1e9)
    (row,) = rows(soak, Window("steady", 3, 60))
    assert (len(calls), soak.done("approval"), row.errors) == (3, 2, 1)
    assert world.said == ["approval: nobody approved [timeout]"]


def test_reloads_are_part_of_the_load_and_leave_nothing() -> None:
    world = World()
    soak = world.soak(drain_s=1e9)
    (row,) = rows(soak, Window("steady", 4, 60))
    assert (world.reloads, soak.done("reload"), row.errors) == (["count", "sum", "latest", "count"], 4, 0)
    assert world.rule == {}
    assert soak.done("approval") == 0


def test_a_reload_that_does_nothing_is_an_error() -> None:
    world = World(takes_rules=False)
    soak = world.soak(drain_s=1e9)
    (row,) = rows(soak, Window("steady", 2, 60))
    assert (soak.done("reload"), row.errors) == (1, 1)
    assert world.said == ["reload: the state's fold is 'count' after the reload, not 'sum' [answer-malformed]"]


def test_an_interrupt_takes_the_fold_rule_away_and_a_dead_daemon_is_named() -> None:
    world = World()
    soak = world.soak(drain_s=1e9)
    running = soak.windows([Window("steady", 1, 60), STEADY])
    next(running)
    assert world.rule
    running.close()
    assert world.rule == {}
    world = World()
    soak = world.soak(drain_s=1e9)
    running = soak.windows([Window("steady", 1, 60), STEADY])
    next(running)
    world.down = True
    running.close()
    assert "spl config remove-fold-rule soak-r" in world.said[-1]


def test_a_soak_that_reloaded_nothing_removes_nothing() -> None:
    world = World()
    running = world.soak().windows([STEADY])
    running.close()
    assert (world.reloads, world.said) == ([], [])


def test_threads_follow_a_real_clock_and_end() -> None:
    """Watched by its threads, a soak hears of acks without being asked."""
    world = World(lag_s=0)
    soak = world.soak()
    with soak.watched():
        soak._tally = tally = Tally(STEADY)
        soak.emit(0)
        eventually(lambda: not tally.open, "the ack")
    assert tally.row().records_synced == 1
