"""What is remembered of the proofs of a peer that asks for long, and what our clock may do meanwhile."""

from collections.abc import Mapping
from contextlib import suppress

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.core.limits import Limits
from tests.api.test_auth import PAIR_ID, World, refused

ASKS_MS = 18_000
MINUTE_MS = 60_000


def asked(world: World, count: int) -> list[Mapping[str, str]]:
    """Let a peer ask so often, and return its proofs."""
    proofs = list[Mapping[str, str]]()
    for _ in range(count):
        world.now_ms += ASKS_MS
        proofs.append(world.proven())
        assert world.ask(proofs[-1])
    return proofs


def ask(world: World) -> bool:
    """Ask as a peer does, which signs once more by the time that it is told if that is near; say if it was taken."""
    try:
        return bool(world.ask(world.proven()))
    except SplError as exc:
        told_ms = when.ms_of(exc.facts["time"])
    with suppress(SplError):
        return abs(told_ms - world.now_ms) <= 5 * MINUTE_MS and bool(world.ask(world.proven(issued_at_ms=told_ms)))
    return False


def test_of_a_peer_that_asks_all_day_an_hour_is_remembered() -> None:
    world, proofs = World(), list[Mapping[str, str]]()
    for _ in range(20):
        proofs += asked(world, 25)
        assert len(world.auth._proofs[PAIR_ID].nonces) <= 300
    world.now_ms -= 500 * ASKS_MS  # set back, our clock must not let one count again
    assert all(refused("auth-invalid", world.ask, proof) for proof in proofs)


def taken_after_a_step(world: World, proofs: list[Mapping[str, str]], back_minutes: int) -> list[bool]:
    """Set the clock back and let it run past that moment: no proof counts again; return whether the peer's ones did."""
    dated = [(when.ms_of(proof["spl-proof"].split(";")[1]), proof) for proof in proofs]
    top_ms = world.now_ms
    world.now_ms -= back_minutes * MINUTE_MS
    taken = list[bool]()
    while world.now_ms < top_ms + 6 * MINUTE_MS:
        taken.append(ask(world))
        if len(taken) % 4 == 1:
            for at_ms, proof in dated:
                if 0 <= world.now_ms - at_ms <= 5 * MINUTE_MS:
                    refused("auth-invalid", world.ask, proof)
        world.now_ms += ASKS_MS
    return taken


@pytest.mark.parametrize("back_minutes", [1, 10, 20, 55, 90])
def test_a_clock_that_stepped_back_lets_no_proof_count_again_as_it_runs_on(back_minutes: int) -> None:
    world = World()
    taken = taken_after_a_step(world, asked(world, 500), back_minutes)
    assert taken[-1]
    assert all(taken) or back_minutes > 60  # only a step longer than what is remembered shuts a peer out for a while


@pytest.mark.parametrize("back_minutes", [1, 4, 20])
def test_a_clock_that_stepped_back_lets_no_proof_of_a_busy_peer_count_again(back_minutes: int) -> None:
    """Of so many, recent ones were forgotten: it signs by the date after those, if that is near its clock."""
    world = World(limits=Limits(proofs_per_pair=8))
    taken = taken_after_a_step(world, asked(world, 80), back_minutes)
    assert taken[-1]
    assert all(taken) or back_minutes > 5
