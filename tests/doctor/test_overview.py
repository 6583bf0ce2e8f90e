"""One pair at one moment: what waits and does not move is named, and a side that reads on demand is no stall."""

from dataclasses import replace

import pytest

from spl.core.pair.status import PairStatus
from spl.doctor.catalogue import Finding
from spl.doctor.gather import PairContext
from spl.doctor.overview import stall
from spl.sync.changes import OfferedStatus
from tests.doctor.test_gather import NOW_MS, a_pair, samples, status

BEAT_S = 15.0
NONE_OFFERED = OfferedStatus()
FOUND = (Finding("connect", "fail", "path", "", "", ""),)


def stalled(
    told: PairStatus, offered: OfferedStatus = NONE_OFFERED, found: tuple[Finding, ...] = (), mode: str = "polling",
    **health: float,
) -> str:  # fmt: skip
    context = PairContext(told, offered, None, "both", False, 1e6, NOW_MS)
    return stall(a_pair(mode=mode), context, samples(**health), found, BEAT_S)


def test_what_waits_on_the_peer_stalls_after_two_intervals() -> None:
    waits = status(lag_records=3)
    assert stalled(waits, stalled_s=599.0) == ""
    assert stalled(waits, stalled_s=600.0) == "cursor-stalled"
    assert stalled(waits, stalled_s=30.0, mode="continuous") == "cursor-stalled"
    assert stalled(waits, stalled_s=1e6, found=FOUND) == "connect"
    assert stalled(waits, stalled_s=1e6, mode="on-demand") == ""
    assert stalled(status(), stalled_s=1e6) == ""


@pytest.mark.parametrize(("mode", "code"), [("polling", "peer-behind"), ("on-demand", "")])
def test_what_waits_here_stalls_by_the_peers_interval(mode: str, code: str) -> None:
    offered = OfferedStatus(10, 4, 6, interval_s=60.0)
    told = replace(status(), peer_view={"mode": mode})
    assert stalled(told, offered, behind_s=119.0) == ""
    assert stalled(told, offered, behind_s=120.0) == code
