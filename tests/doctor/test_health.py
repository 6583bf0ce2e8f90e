"""What the daemon remembers of itself: rings of fixed size, and since when something lasts."""

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

from spl.core.limits import Limits
from spl.core.pair.status import PairStatus, StreamStatus
from spl.core.presence import PAUSE_S
from spl.doctor.health import LAGS_COUNT, HealthSampler
from spl.home.writer import Writer
from spl.sync.changes import Feed, OfferedStatus
from spl.sync.schedule import Sync
from tests.counting import calls_of
from tests.waiting import DEADLINE_S

BEAT_S = Limits().beat_s
PAIR = "pair_0f9e8d7c"


@dataclass
class APair:
    ended: bool = False
    sync_allowed: bool = True
    serve_allowed: bool = True


class Sampler(HealthSampler):
    """One that is told which tasks run."""

    tasks: list[str]

    def running(self) -> list[str]:
        return self.tasks


@dataclass
class World:
    """A sampler over one pair whose status the test sets, and a clock that the test moves."""

    now_s: float = 1000.0
    pairs: dict[str, Any] = field(default_factory=lambda: {PAIR: APair()})
    tasks: list[str] = field(default_factory=lambda: [f"sync {PAIR}"])
    status: PairStatus = field(default_factory=lambda: PairStatus(clock=5, lag_records=0))

    offered: OfferedStatus = field(default_factory=lambda: OfferedStatus(0, 0, 0))

    def __post_init__(self) -> None:
        self.health = Sampler(
            cast(Writer, SimpleNamespace(views=self)), cast(Sync, SimpleNamespace(status=lambda _: self.status)),
            cast(Feed, SimpleNamespace(offered=lambda _: self.offered)), Limits(), steady_s=lambda: self.now_s,
        )  # fmt: skip
        self.health.tasks = self.tasks

    def beats(self, count: int, late_ms: float = 0.0, **status: Any) -> None:
        self.status = replace(self.status, **status)
        for _ in range(count):
            self.now_s += BEAT_S
            self.health.beat(late_ms)


def test_a_beat_costs_as_much_more_as_there_are_more_pairs() -> None:
    def cost(count: int) -> int:
        ids = [f"pair_{n:08x}" for n in range(count)]
        world = World(pairs={pair_id: APair() for pair_id in ids}, tasks=[f"sync {pair_id}" for pair_id in ids])
        return calls_of(lambda: world.beats(1))

    assert cost(400) < 5 * cost(100)


def test_a_lag_each_minute_for_half_an_hour() -> None:
    """Unknown before the first minute and while attempts fail; the ring never grows."""
    world = World()
    assert world.health.lags(PAIR) == [None] * LAGS_COUNT
    world.beats(12, lag_records=7)
    assert world.health.lags(PAIR) == [None] * 29 + [7]
    world.beats(12, attempt=1)
    assert world.health.lags(PAIR)[-2:] == [7, None]
    world.beats(12 * 100, lag_records=1, attempt=0)
    assert world.health.lags(PAIR) == [1] * LAGS_COUNT
    world.pairs[PAIR].ended = True
    world.beats(1)
    assert world.health.lags(PAIR) == [None] * LAGS_COUNT


def test_since_when_attempts_fail() -> None:
    world = World()
    world.beats(3, attempt=1)
    assert world.health.failing_s(PAIR) == 2 * BEAT_S
    world.now_s += BEAT_S + PAUSE_S
    assert world.health.failing_s(PAIR) == 3 * BEAT_S + PAUSE_S
    world.now_s += 95 - BEAT_S
    assert world.health.failing_s(PAIR) == 2 * BEAT_S, "as of the last beat"
    world.beats(1, late_ms=100_000)
    assert world.health.failing_s(PAIR) == 3 * BEAT_S, "what passed while the daemon did not run does not count"
    world.beats(1, attempt=0)
    assert world.health.failing_s(PAIR) == 0
    assert world.health.failing_s("pair_ffffffff") == 0


def test_a_pair_stands_still_while_records_wait_and_the_position_does_not_move() -> None:
    world = World()
    world.beats(3, lag_records=9)
    assert world.health.stalled_s(PAIR) > 0
    world.beats(1, clock=6)
    assert world.health.stalled_s(PAIR) == 0
    assert world.health.still_s(PAIR) == 0
    world.beats(3, lag_records=0)
    assert (world.health.stalled_s(PAIR), world.health.still_s(PAIR)) == (0, 2 * BEAT_S)


def test_since_when_the_peer_acknowledges_nothing_while_records_wait_for_it() -> None:
    world = World()
    world.offered = OfferedStatus(12, 7, 5)
    world.beats(3)
    assert world.health.behind_s(PAIR) == BEAT_S
    world.offered = OfferedStatus(12, 8, 4)
    world.beats(1)
    assert world.health.behind_s(PAIR) == 0
    for unknown in (OfferedStatus(), OfferedStatus(8, 8, 0)):
        world.offered = unknown
        world.beats(3)
        assert world.health.behind_s(PAIR) == 0


def test_since_when_the_queue_is_long() -> None:
    world = World()
    world.beats(13, queue_records=60)
    assert world.health.full_s(PAIR) == 12 * BEAT_S
    world.beats(1, queue_records=50)
    assert world.health.full_s(PAIR) == 0


def test_one_late_beat_is_a_hiccup_and_two_are_a_finding() -> None:
    world = World()
    world.beats(1, late_ms=5000.0)
    assert world.health.loop_lag_ms == 0
    world.beats(1, late_ms=2000.0)
    assert world.health.loop_lag_ms == 2000
    world.beats(12)
    assert world.health.loop_lag_ms == 0


def test_a_pair_without_a_task_is_dead_on_the_second_look() -> None:
    world = World()
    world.health.tasks = ["sync pair_ffffffff"]
    world.beats(1)
    assert world.health.dead() == []
    world.beats(1)
    assert world.health.dead() == [PAIR]
    world.pairs[PAIR].sync_allowed = False
    world.beats(1)
    assert world.health.dead() == []


def test_a_task_that_crashes_again_and_again_is_dead_until_it_succeeds() -> None:
    """Between two crashes it is there by name, and reads nothing."""
    world = World()
    world.beats(1, crashes=1)
    assert world.health.dead() == [PAIR]
    world.beats(1, crashes=0)
    assert world.health.dead() == []


def test_streams_that_bring_nothing() -> None:
    """Opened, given up, opened again: counted from the first on; one that broke is another matter."""
    world = World()
    world.beats(3, stream=StreamStatus("down", None, None, 0))
    assert world.health.mute_s(PAIR) == 0
    world.beats(2, stream=StreamStatus("opening", None, None, 0))
    world.beats(2, stream=StreamStatus("down", None, None, 0))
    world.beats(1, stream=StreamStatus("opening", None, None, 0))
    assert world.health.mute_s(PAIR) == 4 * BEAT_S
    world.beats(1, stream=StreamStatus("open", None, None, 0))
    assert world.health.mute_s(PAIR) == 0


async def test_it_ends_with_the_daemon() -> None:
    """A stop ends the wait for the next beat at once."""
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(DEADLINE_S):
        await World().health.run(stop)
