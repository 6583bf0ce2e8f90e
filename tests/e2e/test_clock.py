"""The clock of a machine jumps under a running daemon, and is set right again: nothing of it stays."""

from typing import Final

import pytest

from tests.e2e.conftest import AUTO
from tests.e2e.findings import HASTY, Faulty, House, attention, named, report
from tests.waiting import eventually

MINUTE_S: Final = 60
HOUR_S: Final = 60 * MINUTE_S
DAY_S: Final = 24 * HOUR_S


@pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "behind"])
def test_a_clock_that_jumps_under_a_running_daemon_leaves_nothing_behind(house: House, sign: int) -> None:
    """Both say what is wrong while it is; then records flow each way, and neither has anything left to say."""
    alice = house("alice", f"[limits]{HASTY}").start()
    bob = house("bob", f"{AUTO}[limits]{HASTY}", Faulty, fault="wrong-clock")
    assert isinstance(bob, Faulty)
    bob.start()
    pair_id, sides = alice.paired(bob.url), (alice, bob)
    for side in sides:
        side.run("federation", "set-poll-interval", pair_id, "1s")

    def well() -> bool:
        same = alice.holding() == bob.holding()
        return same and all(side.pair(pair_id)["state"] == "active" and not attention(side) for side in sides)

    for jump_s in (10 * MINUTE_S, 8 * HOUR_S, 100 * DAY_S):
        bob.switch.write_text(str(sign * jump_s))
        for side in sides:
            side.emit("th_wrong", jump=jump_s)
            eventually(lambda side=side: named(report(side, pair_id)["problems"], "clock-skew"), f"{side.name} says so")
            side.run("status")
        bob.switch.unlink()
        for side in sides:
            side.emit("th_right", jump=jump_s)
        eventually(well, f"all is well after {sign * jump_s} s")
    eventually(lambda: not any(report(side, pair_id)["problems"] for side in sides), "no doctor has a finding")
    carol = house("carol", AUTO).start()
    carol.paired(bob.url)
