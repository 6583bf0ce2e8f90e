"""Lags: of each write once, and only of what reached the peer at once."""

from types import SimpleNamespace
from typing import cast

from spl.home.writes import LOCAL, Commit
from spl.sync.lags import MARKS_MAX, ServedLags

PAIR = "pair_00000001"
HERE = frozenset({"org/a"})


class World:
    """Lags by a clock that the test moves."""

    def __init__(self) -> None:
        self.now_ms, self.seq = 1_000_000, 0
        self.lags = ServedLags(lambda: self.now_ms)

    def write(self, ns: str = "org/a", origin: str = LOCAL) -> int:
        self.seq += 1
        entry = SimpleNamespace(origin=origin, ns=ns)
        commit = SimpleNamespace(fresh=[(self.seq, entry)], at_ms=self.now_ms, namespaces=frozenset({ns}))
        self.lags.mark(cast(Commit, commit))
        return self.seq

    def samples(self, position: int, *, is_live: bool = True) -> int | None:
        self.lags.measure(PAIR, HERE, position, is_live=is_live)
        return self.lags.ms(PAIR)["samples"]


def test_each_write_counts_once_by_the_first_ack_that_covers_it() -> None:
    world = World()
    world.lags.go_live(PAIR, 0)
    for ns, origin in (("org/a", LOCAL), ("org/b", LOCAL), ("org/a", PAIR), ("org/a", LOCAL)):
        world.write(ns, origin)
    world.now_ms += 7
    assert [world.samples(position) for position in (1, 4, 4)] == [1, 2, 2]
    assert world.lags.ms() == world.lags.ms(PAIR)
    assert world.lags.ms()["p99_ms"] == 7
    assert world.lags.histogram(PAIR).at_most[-1] == 2
    assert world.lags.ms("pair_ffffffff")["samples"] == world.lags.histogram("pair_ffffffff").at_most[-1] == 0


def test_what_waited_for_a_poll_or_for_the_stream_is_no_lag() -> None:
    world = World()
    waited = world.write()
    assert world.samples(waited, is_live=False) == 0
    before = world.write()
    world.lags.go_live(PAIR, before)
    assert world.samples(before) == 0
    assert world.samples(world.write()) == 1


def test_only_so_many_writes_are_remembered() -> None:
    world = World()
    world.lags.go_live(PAIR, 0)
    for _ in range(MARKS_MAX + 10):
        world.write()
    assert world.samples(world.seq) == MARKS_MAX
