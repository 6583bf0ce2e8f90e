"""No proof counts twice, whatever our clock does and however often we start; and no wrong clock shuts a peer out."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.api.proofs import USED_MIN
from spl.core import when
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.limits import Limits
from tests.api.test_auth import NOW_MS, PAIR_ID, TOKENS, World, refused, replace

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
LOOK_MS = 15 * MINUTE_MS
START_MS = 20
"""No process begins, nor does a machine, sooner after another one."""


class Peer:
    """A peer with the right time, which signs again as it is told if that is near; what was taken of it is captured."""

    def __init__(self, world: World) -> None:
        self.world, self.ahead_ms, self.era = world, 0, ""
        self.captured = list[dict[str, str]]()

    def ask(self) -> bool:
        """Ask as our own daemon does; say whether it was taken."""
        try:
            return self._ask()
        except SplError as exc:
            told_ms, era = when.ms_of(exc.facts["time"]), bearer.era_in(exc.facts)
        if abs(told_ms - self.world.true_ms()) > 5 * MINUTE_MS:
            return False
        self.ahead_ms, self.era = told_ms - self.world.true_ms(), era
        return self._ask()

    def ask_plainly(self) -> bool:
        """Ask by its own clock, in no era."""
        try:
            return self._ask(issued_at_ms=self.world.true_ms(), era="")
        except SplError:
            return False

    def replay(self) -> None:
        """Send all that was captured once more."""
        for proof in self.captured:
            refused("auth-invalid", self.world.ask, proof)

    def _ask(self, **changes: Any) -> bool:
        made = {"issued_at_ms": self.world.true_ms() + self.ahead_ms, "era": self.era, **changes}
        proof = self.world.proven(**made)
        taken = bool(self.world.ask(proof))
        self.captured.append(proof)
        return taken


def end(world: World) -> None:
    """End the process in good order."""

    async def stopping() -> None:
        stop = asyncio.Event()
        stop.set()
        await world.auth.proofs.run(stop)

    asyncio.run(stopping())


def start(world: World) -> None:
    """Begin the next process."""
    world.now_ms += START_MS
    world.start()


def end_and_start(world: World) -> None:
    """Begin the next process after one that ended in good order."""
    end(world)
    start(world)


def reboot(world: World) -> None:
    """Begin it in another boot of the machine."""
    world.now_ms += START_MS
    world.boot, world.booted_ms = world.boot + b"+", world.true_ms()
    world.start()


def run_on(world: World, ms: int) -> None:
    """Let time pass as the daemon sees it, which looks from time to time whether proofs of the present count."""
    for _ in range(ms // LOOK_MS):
        world.now_ms += LOOK_MS
        world.auth.proofs.extend()
    world.now_ms += ms % LOOK_MS
    world.auth.proofs.extend()


FAR = st.sampled_from(
    [-100 * DAY_MS, -8 * HOUR_MS, -2 * HOUR_MS - 7, -10 * MINUTE_MS, -1000, 3, 10 * MINUTE_MS, DAY_MS]
)
EVENTS: dict[str, Callable[[World, int], None]] = {
    "runs on": lambda world, by_ms: run_on(world, abs(by_ms) % (3 * HOUR_MS)),
    "is set": lambda world, by_ms: world.step(by_ms),
    "is right": lambda world, _: world.step(-world.stepped_ms),
    "is killed": lambda world, _: start(world),
    "ends": lambda world, _: end_and_start(world),
    "crashes with its machine": lambda world, _: reboot(world),
    "has a full disk": lambda world, by_ms: setattr(world, "disk_works", by_ms > 0),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), FAR), max_size=8))
@settings(max_examples=40, deadline=None)
def test_whatever_happens_no_proof_counts_twice_and_a_right_clock_is_enough(events: list[tuple[str, int]]) -> None:
    world = World()
    peer = Peer(world)
    for name, by_ms in events:
        peer.ask_plainly()
        EVENTS[name](world, by_ms)
        peer.replay()
        world.now_ms += 7
        assert peer.ask() or abs(world.stepped_ms) > 5 * MINUTE_MS - 100
        peer.ask_plainly()
        peer.replay()
    world.step(-world.stepped_ms)
    assert peer.ask(), "the clock is right again"


@pytest.mark.parametrize("back_ms", [MINUTE_MS, 2 * HOUR_MS + 1, 100 * DAY_MS])
@pytest.mark.parametrize("again", [lambda world: None, start, reboot], ids=["the same", "killed", "rebooted"])
def test_a_clock_that_was_set_back_runs_past_what_it_took_and_takes_none_of_it_again(
    back_ms: int, again: Callable[[World], None]
) -> None:
    """Those of the hour before the step, when their very dates come again."""
    world = World()
    peer = Peer(world)
    for _ in range(20):
        run_on(world, 3 * MINUTE_MS)
        assert peer.ask_plainly()
    top_ms = world.now_ms
    world.step(-back_ms)
    again(world)
    while world.now_ms < top_ms + 6 * MINUTE_MS:
        peer.replay()
        far = top_ms - HOUR_MS - 6 * MINUTE_MS - world.now_ms
        run_on(world, 4 * MINUTE_MS if far <= 0 else min(far, 8 * MINUTE_MS))
        if back_ms > 10 * HOUR_MS:
            world.now_ms = max(world.now_ms, top_ms - HOUR_MS - 6 * MINUTE_MS)
    peer.replay()


@pytest.mark.parametrize("again", [start, reboot, end_and_start])
def test_after_a_start_at_the_right_time_a_peer_is_taken_at_once(again: Callable[[World], None]) -> None:
    """Without a refusal, unless the machine crashed: then by the era."""
    world = World()
    peer = Peer(world)
    run_on(world, HOUR_MS)
    assert peer.ask_plainly()
    again(world)
    world.now_ms += 10
    assert peer.ask_plainly() is (again is not reboot)
    peer.replay()
    assert peer.ask()
    assert bool(peer.era) is (again is reboot)


def test_a_disk_that_takes_nothing_costs_a_peer_one_more_request() -> None:
    world = World()
    world.disk_works = False
    world.secrets.clear()
    world.start()
    world.now_ms += 100
    peer = Peer(world)
    assert not peer.ask_plainly()
    assert peer.ask()
    assert peer.era


@pytest.mark.parametrize(
    "text", ["", "x", "first-boot 1", "first-boot 1 2", "first-boot 1 -5 3", "first-boot x 5 4", "a b c d"]
)
def test_a_damaged_bound_is_none(text: str) -> None:
    world = World()
    world.secrets["proofs"] = text
    world.start()
    world.now_ms += 10
    assert Peer(world).ask_plainly()


def test_an_era_counts_in_itself_alone() -> None:
    world = World()
    era = refused("auth-invalid", world.ask, world.proven(issued_at_ms=world.now_ms - HOUR_MS)).facts["era"]
    proof = world.proven(era=era)
    assert world.ask(proof)
    assert refused("auth-invalid", world.ask, proof).facts["reason"] == "proof-replayed"
    later = world.proven(era=era)
    start(world)
    facts = refused("auth-invalid", world.ask, later).facts
    assert (facts["reason"], facts["era"] == era) == ("proof-time", False)
    assert world.ask(world.proven(era=facts["era"]))


def test_of_a_peer_that_asks_all_day_little_is_remembered() -> None:
    world = World()
    peer = Peer(world)
    for _ in range(500):
        run_on(world, 18_000)
        assert peer.ask_plainly()
        assert len(world.auth.proofs._used[PAIR_ID].nonces) <= 2 * USED_MIN


def test_no_proof_counts_twice_however_many_were_seen() -> None:
    """The memory is bounded; what fell out of it is refused with a time by which its peer can sign again."""
    world = World(limits=Limits(proofs_per_pair=8))
    proofs = []
    for _ in range(100):
        world.now_ms += 10
        proofs.append(world.proven())
        assert world.ask(proofs[-1])
        assert len(world.auth.proofs._used[PAIR_ID].nonces) <= 8
    found = [refused("auth-invalid", world.ask, proof).facts for proof in proofs]
    reasons = [facts["reason"] for facts in found]
    held = len(world.auth.proofs._used[PAIR_ID].nonces)
    assert reasons == ["proof-time"] * (100 - held) + ["proof-replayed"] * held
    assert world.ask(world.proven(issued_at_ms=when.ms_of(found[-held - 1]["time"])))


def test_at_a_frozen_clock_a_forgotten_date_is_answered_by_the_next_one_that_counts() -> None:
    world = World(limits=Limits(proofs_per_pair=8))
    for _ in range(9):
        assert world.ask(world.proven())
    facts = refused("auth-invalid", world.ask, world.proven()).facts
    assert facts["reason"] == "proof-time"
    assert world.ask(world.proven(issued_at_ms=when.ms_of(facts["time"])))


@pytest.mark.parametrize("early_ms", [1, bearer.PROOF_AHEAD_MS, 60_000, -60_000])
def test_a_proof_that_an_earlier_process_may_have_taken_is_refused_with_a_time_that_counts(early_ms: int) -> None:
    """Its nonce may have been used then; the peer signs again by the time that it is told, and need not wait."""
    world = World()
    early = world.proven(issued_at_ms=world.now_ms - early_ms)
    world.now_ms -= bearer.PROOF_AHEAD_MS
    facts = refused("auth-invalid", world.ask, early).facts
    assert facts["reason"] == "proof-time"
    assert world.ask(world.proven(issued_at_ms=when.ms_of(facts["time"])))


def test_the_proofs_of_an_idle_pair_are_forgotten_and_stay_refused() -> None:
    """At 1,024 pairs they are hundreds of megabytes; set back by an hour, our clock must not let one count again."""
    world = World()
    proof = world.proven()
    assert world.ask(proof)
    began_ms = world.now_ms
    run_on(world, 3_700_000)
    other = "pair_00000002"
    world.views.pairs = {**world.views.pairs, other: world.pair}
    world.set_tokens({"pair": replace(TOKENS["pair"], pair_id=other)})
    assert world.ask(world.proven())
    assert not world.auth.proofs._used[PAIR_ID].nonces
    world.step(began_ms - world.now_ms)
    world.set_tokens({"pair": TOKENS["pair"]})
    assert refused("auth-invalid", world.ask, proof)


def test_no_proof_that_was_taken_is_taken_by_the_next_process() -> None:
    """Not when the peer's clock is ahead of ours either: at no moment after the restart."""
    world = World()
    proof = world.proven(issued_at_ms=world.now_ms + bearer.PROOF_AHEAD_MS)
    assert world.ask(proof)
    world.now_ms += 1
    world.start()
    for later_ms in (0, 1, bearer.PROOF_AHEAD_MS, 200_000, 400_000):
        world.now_ms = NOW_MS + 1 + later_ms
        assert refused("auth-invalid", world.ask, proof).facts["reason"] == "proof-time"


@pytest.mark.parametrize("ahead_ms", [1, 600_000, 8 * HOUR_MS, 100 * DAY_MS])
def test_a_clock_that_was_ahead_at_the_start_shuts_nobody_out(ahead_ms: int) -> None:
    """Right again, it takes proofs by the right time, and none from before that moment."""
    world = World()
    peer = Peer(world)
    assert peer.ask_plainly()
    world.step(ahead_ms)
    start(world)
    world.step(-ahead_ms)
    peer.replay()
    world.now_ms += bearer.PROOF_AHEAD_MS
    assert peer.ask()
    peer.replay()


def test_a_clock_that_was_ahead_shuts_no_busy_peer_out_until_that_time_comes() -> None:
    """So many proofs were taken by the wrong time that some are forgotten: their dates are no floor for ever."""
    world = World(limits=Limits(proofs_per_pair=8))
    world.step(DAY_MS)
    world.auth.proofs.extend()
    for _ in range(20):
        world.now_ms += 100
        assert world.ask(world.proven())
    world.step(-DAY_MS)
    assert Peer(world).ask()


def test_a_proof_of_a_clock_that_is_ahead_is_refused_with_our_time() -> None:
    world = World()
    facts = refused("auth-invalid", world.ask, world.proven(issued_at_ms=NOW_MS + 200_000)).facts
    assert (facts["reason"], facts["time"]) == ("proof-time", when.text_of(NOW_MS))


def test_proofs_of_pairs_that_are_gone_are_forgotten() -> None:
    world = World(limits=Limits(pairs_count=1))
    for number in range(5):
        pair_id = f"pair_{number:08x}"
        world.views.pairs = {pair_id: world.pair}
        world.set_tokens({"pair": replace(TOKENS["pair"], pair_id=pair_id)})
        assert world.ask(world.proven())
    assert len(world.auth.proofs._used) <= 2


def test_an_era_that_a_clock_set_back_began_widens_no_bound_that_a_kill_forgets() -> None:
    """The clock is ahead twice; the second time a proof without an era is dated as only the memory would allow."""
    world = World()
    era = refused("auth-invalid", world.ask, world.proven(issued_at_ms=world.now_ms - HOUR_MS)).facts["era"]
    world.now_ms += 1000
    world.step(10 * MINUTE_MS)
    assert world.ask(world.proven(era=era))
    world.step(-10 * MINUTE_MS)
    world.now_ms += 100
    refused("auth-invalid", world.ask, world.proven(era=era))
    before_ms = world.auth.proofs._before_ms
    world.step(before_ms - 3 - world.now_ms)
    proof, taken = world.proven(issued_at_ms=before_ms + 2), 0

    def ask() -> None:
        nonlocal taken
        with suppress(SplError):
            taken += bool(world.ask(proof))

    ask()
    world.step(-world.stepped_ms)
    start(world)
    world.step(10 * MINUTE_MS)
    for _ in range(3):
        ask()
        world.now_ms += 50
    world.auth.proofs.extend()
    ask()
    assert taken <= 1
