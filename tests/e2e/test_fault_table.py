"""Peers that stop answering: what list, status and doctor say of each, in every mode, and that it stays said.

All faults happen at once, between one daemon and a peer for each row.  The table that the test prints has the seconds;
what it asserts is that the truth is told by itself, while nothing is written, that it is not withdrawn while the fault
lasts, and that it goes with the fault.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.e2e.conftest import AUTO, Make
from tests.e2e.findings import attention, report
from tests.e2e.harness import Instance
from tests.waiting import eventually

DEADLINE_S: Final = 180.0


@dataclass
class Row:
    """A fault of one peer, and the seconds after which each of our pages told it."""

    fault: str
    mode: str
    asked_by_us: bool
    peer: Instance
    pair_id: str = ""
    code: str = ""
    since_s: float = 0.0
    told_s: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Let the fault happen."""
        assert self.peer.process is not None
        if self.fault == "killed":
            self.peer.kill()
        else:
            os.kill(self.peer.process.pid, signal.SIGSTOP)
        self.since_s = time.monotonic()

    def end(self) -> None:
        """Let it be over."""
        assert self.peer.process is not None
        if self.fault == "killed":
            self.peer.start()
        else:
            os.kill(self.peer.process.pid, signal.SIGCONT)

    def look(self, us: Instance) -> bool:
        """Note what is told now; return whether all is.  What was told once must still be."""
        for page, tells in (("list", self._listed), ("status", self._in_status)):
            if tells(us):
                self.told_s.setdefault(page, time.monotonic() - self.since_s)
            else:
                assert page not in self.told_s, f"{page} told of {self.fault} ({self.mode}) and withdrew it"
        return len(self.told_s) >= 2

    def is_over(self, us: Instance) -> bool:
        """Return whether neither page has anything to say of the peer."""
        return not self._listed(us) and not any(item.get("pair_id") == self.pair_id for item in attention(us))

    def _listed(self, us: Instance) -> bool:
        return any(pair["pair_id"] == self.pair_id and pair["offline_since"] for pair in us.pairs())

    def _in_status(self, us: Instance) -> bool:
        return any((item["code"], item.get("pair_id")) == (self.code, self.pair_id) for item in attention(us))


def test_a_peer_that_stopped_answering_is_said_to_be_gone_in_every_mode(make: Make) -> None:
    alice = make("alice", AUTO).start()
    rows = [
        Row(fault, mode, by_us, make(f"peer{number}", AUTO))
        for number, (fault, mode, by_us) in enumerate((
            ("killed", "continuous", True), ("killed", "polling", False), ("killed", "on-demand", True),
            ("stopped", "polling", True), ("stopped", "on-demand", False),
        ))
    ]  # fmt: skip
    for row in rows:
        row.code = "connect" if row.fault == "killed" else "timeout"
        row.peer.start()
        row.pair_id = alice.paired(row.peer.url) if row.asked_by_us else row.peer.paired(alice.url)
        if row.mode != "polling":
            for side in (alice, row.peer):
                side.run("federation", "set-mode", row.pair_id, row.mode)
    eventually(lambda: all(row.is_over(alice) for row in rows), "all is well before")
    try:
        for row in rows:
            row.begin()
        eventually(lambda: sum(row.look(alice) for row in rows) == len(rows), "list and status tell of all", DEADLINE_S)
        line = alice.run("federation", "list").out
        assert line.count(", offline ") == len(rows), line
        alice.run("status", "--check", code=3)
        for row in rows:
            assert row.code in {item["code"] for item in report(alice, row.pair_id)["problems"]}, row
            row.told_s["doctor"] = time.monotonic() - row.since_s
        for row in rows:
            row.look(alice)
    finally:
        for row in rows:
            row.end()
    eventually(lambda: all(row.is_over(alice) for row in rows), "it is gone with the fault", DEADLINE_S)
    _print(rows)


def _print(rows: list[Row]) -> None:
    tell: Callable[[Row, str], str] = lambda row, page: f"{row.told_s[page]:>6.0f} s"  # noqa: E731
    print(f"{'fault':<10}{'mode':<12}{'finding':<10}{'list':>8}{'status':>8}{'doctor':>8}")
    for row in rows:
        pages = "".join(tell(row, page) for page in ("list", "status", "doctor"))
        print(f"{row.fault:<10}{row.mode:<12}{row.code:<10}{pages}")
