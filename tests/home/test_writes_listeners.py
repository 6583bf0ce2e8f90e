"""Adapters are measured one by one, a record at a time, for five minutes; they hear of writes in their order."""

from dataclasses import dataclass, field

from spl.core.recent import SLOT_MS, SLOTS
from spl.doctor.gather import adapters_slow
from spl.home.writes import ALL, VIEWS, Hop, Listeners, ListenerSummary


@dataclass
class World:
    """Adapters on clocks that the test moves; a write is a text."""

    at_ms: int = 1000
    steady_ns: int = 0
    heard: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listeners: Listeners[str] = Listeners(now_ms=lambda: self.at_ms, steady_ns=lambda: self.steady_ns)

    def listener(self, name: str, takes_us: int) -> None:
        def called(write: str) -> None:
            self.heard.append((name, write))
            self.steady_ns += takes_us * 1000

        called.__module__ = f"spl.{name}"
        self.stop = self.listeners.listen(called)

    def write(self, text: str = "w", records: int = 1, views_us: int = 0) -> None:
        self.listeners.begin()
        self.steady_ns += views_us * 1000
        self.listeners.measure(VIEWS, records)
        self.listeners.notify(text, records, [])


def test_before_the_first_write_nothing_is_claimed() -> None:
    world = World()
    assert world.listeners.summary() == ListenerSummary(1, None, 0, "")
    assert adapters_slow(world.listeners.summary()) == ""


def test_the_cost_a_record_and_who_takes_most_of_it() -> None:
    world = World()
    world.listener("feed", takes_us=4)
    world.listener("sync", takes_us=2)
    world.listener("sync", takes_us=0)
    for _ in range(100):
        world.write(views_us=1)
    assert world.listeners.summary() == ListenerSummary(3, 0.007, 100, "feed")


def test_a_write_of_many_records_shares_its_cost_among_them() -> None:
    """Records count, not writes: one slow write of one record among thousands is no p99."""
    world = World()
    world.write(records=512, views_us=512 * 3)
    world.write(records=1, views_us=50_000)
    assert world.listeners.summary().p99_ms == 0.003
    world.write(records=10, views_us=500_000)
    assert world.listeners.summary().p99_ms > 40


def test_five_minutes_are_remembered() -> None:
    world = World()
    world.write(views_us=5)
    world.at_ms += SLOT_MS * (SLOTS - 1)
    assert world.listeners.summary().records == 1
    world.at_ms += SLOT_MS
    assert (world.listeners.summary().p99_ms, world.listeners.summary().slowest) == (None, "")
    world.write(views_us=7)
    assert world.listeners.summary().p99_ms == 0.007


def test_listeners_hear_in_their_order_until_they_stop() -> None:
    world = World()
    world.listener("a", 0)
    world.listener("b", 0)
    world.write("one")
    world.stop()
    world.write("two")
    assert world.heard == [("a", "one"), ("b", "one"), ("a", "two")]
    assert world.listeners.summary().count == 2


def test_slower_than_the_references_spike_is_a_finding() -> None:
    world = World()
    world.listener("feed", takes_us=26_000)
    for _ in range(199):
        world.write()
    assert adapters_slow(world.listeners.summary()) == ""
    world.write()
    assert adapters_slow(world.listeners.summary()).startswith("adapters take 2")
    assert "feed the most of it" in adapters_slow(world.listeners.summary())
    fast = World()
    fast.listener("feed", takes_us=20_000)
    for _ in range(300):
        fast.write()
    assert adapters_slow(fast.listeners.summary()) == ""


def test_a_cost_below_a_microsecond_a_record_is_none() -> None:
    """Of each listener, and of all together."""
    for took_ns, records, found_us in ((999, 1, 0), (1000, 1, 1), (1999, 2, 0), (2000, 2, 1), (3000, 3, 1)):
        at = iter([0, took_ns, took_ns, took_ns])
        listeners: Listeners[str] = Listeners(now_ms=lambda: 1000, steady_ns=lambda at=at: next(at))  # type: ignore[misc]
        listeners.begin()
        listeners.measure(VIEWS, records)
        listeners.notify("w", records, [])
        assert listeners.p99_us() == {VIEWS: found_us, ALL: found_us}


def test_one_and_a_half_in_a_hundred_is_more_than_the_hundredth() -> None:
    world = World()
    world.write(records=197, views_us=0)
    world.write(records=3, views_us=3 * 8)
    assert world.listeners.summary().p99_ms == 0.008


def test_a_listener_that_left_long_ago_is_not_the_slowest() -> None:
    world = World()
    world.listener("feed", takes_us=5)
    world.listeners.begin()
    world.listeners.notify("w", 1, [])
    world.stop()
    world.at_ms += SLOT_MS * SLOTS
    world.write(views_us=1)
    assert world.listeners.summary() == ListenerSummary(1, 0.001, 1, "views")


def test_what_listeners_have_to_tell_other_threads_is_handed_on() -> None:
    world, hops = World(), list[Hop]()
    hop: Hop = (lambda call: None, list)
    world.listeners.listen(lambda write: None)
    world.listeners.listen(lambda write: hop)
    world.listeners.begin()
    world.listeners.notify("w", 1, hops)
    assert hops == [hop]
