"""When the silence of a peer ends what it left open."""

from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from spl.net.phases import BUSY, OVER, QUIET, STOPPING_S, Phased, Stage

LATER_S = 30.0


def a_phased() -> tuple[Phased, Any]:
    """Return one, and what stands for the clock of its loop."""
    clock: Any = SimpleNamespace(now_s=100.0)
    clock.time = lambda: clock.now_s
    shared: Any = SimpleNamespace(loop=clock, stopping=False)
    return Phased(shared), shared


def test_every_phase_is_quiet_busy_or_over() -> None:
    assert sorted([*QUIET, *BUSY, *OVER]) == sorted(Stage)


def test_a_phase_that_begins_has_its_deadline() -> None:
    phased, shared = a_phased()
    assert phased.deadline == inf, "none has begun"
    phased._wait(Stage.HEAD, 10.0)
    assert (phased.is_late(109.9, 0.0), phased.is_late(110.0, 0.0)) == (False, True)
    shared.stopping = True
    phased._wait(Stage.HEAD, 10.0)
    assert (phased.deadline, phased._in(0.5)) == (100.0 + STOPPING_S, 100.5)


def test_a_newcomer_may_end_what_is_idle_for_long_alone() -> None:
    phased, _ = a_phased()
    phased._wait(Stage.IDLE, 1000.0)
    assert (phased.is_late(129.9, LATER_S), phased.is_late(130.0, LATER_S)) == (False, True)
    phased._wait(Stage.HEAD, 1000.0)
    assert not phased.is_late(130.0, LATER_S)


@pytest.mark.parametrize("stage", Stage)
def test_the_peer_owes_bytes_until_its_request_is_whole(stage: Stage) -> None:
    phased, _ = a_phased()
    phased._wait(stage, 10.0)
    assert (phased.quiet_since() == 100.0) == (stage in QUIET)
