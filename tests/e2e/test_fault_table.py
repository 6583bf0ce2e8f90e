"""What goes wrong between two daemons, and when each side's pages say so: a table, printed.

All faults happen at once, between one daemon and a peer for each row.  Nothing is written meanwhile, so what is told is
told by itself.  What is asserted: both sides tell the truth in `list` and `status`, do not withdraw it while the fault
lasts, and the doctor, asked from the start on, agrees.  Then each fault is mended as its finding says, and the table
has the seconds after which nobody told of it any more.

What takes more than one home, or a life of its own, has a test beside the table: `BESIDE` names them.
"""

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pytest

from spl.core.errors import steps
from tests.e2e import (
    test_ailing,
    test_approval,
    test_clock,
    test_doctor,
    test_findings,
    test_lan,
    test_lifecycle,
    test_recovery,
)
from tests.e2e.conftest import AUTO
from tests.e2e.findings import Faulty, House, attention, report
from tests.e2e.harness import Instance, free_port
from tests.e2e.proxy import Proxy
from tests.waiting import eventually

DEADLINE_S: Final = 180.0
HEALED_S: Final = 20.0
"""For so long the table watches findings go; that each does go is asserted by the test of its own."""
LOST: Final = {"act": "KNOW", "actor": "did:sync:user:bob", "thread": "th_lost", "body": {}}
OFFLINE, ONE_WAY = "offline", "one-way"
BESIDE: Final[Mapping[str, Callable[..., None]]] = {
    "the peer moves": test_lifecycle.test_a_peer_that_moved_to_another_port_is_found,
    "both move": test_lan.test_two_laptops_pair_by_the_lines_of_the_page,
    "a token expires out of reach": test_doctor.test_a_token_that_expired,
    "an old copy of a home": test_recovery.test_an_old_copy_of_a_home_gets_back_what_it_lost,
    "two homes of one identity": test_doctor.test_a_home_and_its_copy_run_at_once,
    "a disk that fills up": test_ailing.test_a_disk_that_fills_up,
    "a proxy with its own error": test_findings.test_what_stands_between_answers_in_the_peers_place,
    "a proxy with its own page": test_findings.test_pages_that_are_none,
    "a clock behind or ahead": test_findings.test_clocks_apart,
    "a clock that is right again": test_clock.test_a_clock_that_jumps_under_a_running_daemon_leaves_nothing_behind,
    "a rejected request": test_approval.test_rejected_by_hand_the_pair_ends_on_both_sides,
}
"""Fault -> the test that tells what both sides say of it."""


@dataclass(frozen=True)
class Truth:
    """What a side has to say: the finding, and the word beside the pair's state, "" for nothing in the list."""

    code: str
    word: str = ""
    later: str = ""
    """What the finding becomes once the peer proves that it only pushes."""


@dataclass
class Side:
    """One side of a row, and the seconds after which each of its pages told the truth."""

    who: Instance
    truth: Truth
    told_s: dict[str, float] = field(default_factory=dict)
    fix: str = ""

    def pages(self, pair_id: str) -> Iterator[tuple[str, bool]]:
        """Yield (page, whether it tells the truth now) of the pages that have something to tell."""
        if self.truth.word:
            [pair] = [item for item in self.who.pairs() if item["pair_id"] == pair_id]
            words = [pair["state"], OFFLINE if pair["offline_since"] else "", ONE_WAY if pair["one_way"] else ""]
            yield "list", self.truth.word in words
        mine = [item for item in attention(self.who) if item.get("pair_id") in (None, pair_id)]
        found = [item for item in mine if item["code"] in (self.truth.code, self.truth.later)]
        self.fix = found[0]["fix"] if found else self.fix
        yield "status", bool(found)


@dataclass
class Row:
    """A fault between us and one peer; `begin` and `end` do what happens and what the finding says to do."""

    fault: str
    mode: str
    peer: Instance
    ours: Truth
    theirs: Truth | None = None
    proxy: Proxy | None = None
    begin: Callable[["Row"], None] = lambda row: None
    end: Callable[["Row"], None] = lambda row: None
    pair_id: str = ""
    since_s: float = 0.0
    mended_s: float = 0.0
    gone_s: float = 0.0
    """How long after the fault was mended nobody had anything to say of it any more."""
    sides: dict[str, Side] = field(default_factory=dict)

    def arrange(self, us: Instance) -> None:
        """Start the peer and pair with it."""
        url = self.proxy.url if self.proxy else self.peer.url
        self.peer.start("--public-url", url)
        self.pair_id = us.paired(url)
        if self.mode != "polling":
            for side in (us, self.peer):
                side.run("federation", "set-mode", self.pair_id, self.mode)
        self.sides["ours"] = Side(us, self.ours)
        if self.theirs is not None:
            self.sides["theirs"] = Side(self.peer, self.theirs)

    def look(self) -> bool:
        """Note what is told now; return whether all is.  What was told once must still be."""
        told = True
        for name, side in self.sides.items():
            for page, tells in side.pages(self.pair_id):
                assert tells or page not in side.told_s, (name, page, self.fault, side.who.pair(self.pair_id))
                told = told and tells
                if tells:
                    side.told_s.setdefault(page, time.monotonic() - self.since_s)
        return told

    def diagnose(self) -> None:
        """Have the doctor of each side say it, too: asked from the start of the fault until it does."""
        for side in self.sides.values():
            eventually(partial(self._is_diagnosed, side), f"{self.fault}: the doctor finds {side.truth}", DEADLINE_S)
            side.told_s["doctor"] = time.monotonic() - self.since_s

    def _is_diagnosed(self, side: Side) -> bool:
        # What is wrong with a daemon itself is in the report without a pair.
        found = {item["code"] for ref in ((self.pair_id,), ()) for item in report(side.who, *ref)["problems"]}
        return bool(found & {side.truth.code, side.truth.later})

    def mend(self) -> None:
        """Do what ends the fault, as the finding says where that is a command."""
        self.mended_s = time.monotonic()
        self.end(self)

    def heal(self, us: Instance) -> bool:
        """Return whether the row is over; note when it was first."""
        if not self.gone_s and self.is_over(us):
            self.gone_s = time.monotonic() - self.mended_s
        return bool(self.gone_s)

    def is_over(self, us: Instance) -> bool:
        """Return whether nobody has anything to say of the pair any more."""
        for side in (us, self.peer):
            for pair in side.pairs():
                if pair["pair_id"] == self.pair_id and (pair["offline_since"] or pair["one_way"]):
                    return False
            if any(item.get("pair_id", self.pair_id) == self.pair_id for item in attention(side)):
                return False
        return True

    def print(self) -> None:
        for name, side in self.sides.items():
            seconds = "".join(
                f"{side.told_s[page]:>6.0f} s" if page in side.told_s else f"{'-':>8}"
                for page in ("list", "status", "doctor")
            )
            gone = f"{self.gone_s:>6.0f} s" if self.gone_s else f"{'-':>8}"
            print(f"{self.fault:<13}{self.mode:<12}{name:<8}{side.truth.code:<20}{seconds}{gone}  {side.fix}")


def process(row: Row) -> int:
    assert row.peer.process is not None
    return row.peer.process.pid


def switch(row: Row, *, on: bool) -> None:
    assert isinstance(row.peer, Faulty)
    row.peer.switch.touch() if on else row.peer.switch.unlink()


def broken_disk(row: Row) -> None:
    switch(row, on=True)
    assert row.peer.api("POST", "/v1/records", LOST).status == 503
    switch(row, on=False)


def paused_and_gone(row: Row) -> None:
    row.peer.run("federation", "pause", row.pair_id)
    row.peer.kill()


def back_and_resumed(row: Row) -> None:
    row.peer.start()
    row.peer.run("federation", "resume", row.pair_id)


def accepted(row: Row) -> None:
    """Do what our finding says for those who accept that the peer ended the pair."""
    ours = row.sides["ours"]
    ours.who.run(*shlex.split(steps(ours.fix)[-1].partition(": spl ")[2]))


def restarted(row: Row) -> None:
    row.peer.stop()
    row.peer.start()


def pasted(row: Row) -> None:
    """Do what our finding says to do on the peer."""
    fix = row.sides["ours"].fix
    assert fix.startswith(f"on {row.peer.name}: spl "), fix
    row.peer.run(*shlex.split(fix.partition(": spl ")[2]))


KILLED: Final[dict[str, Any]] = {"begin": lambda row: row.peer.kill(), "end": lambda row: row.peer.start()}
STOPPED: Final[dict[str, Any]] = {
    "begin": lambda row: os.kill(process(row), signal.SIGSTOP),
    "end": lambda row: os.kill(process(row), signal.SIGCONT),
}
SWITCHED: Final[dict[str, Any]] = {
    "begin": lambda row: switch(row, on=True),
    "end": lambda row: switch(row, on=False),
}
GONE, HANGS = Truth("connect", OFFLINE), Truth("timeout", OFFLINE)
UNREACHED: Final = Truth("reverse-unreachable", ONE_WAY)
SKEWED: Final = Truth("clock-skew", "degraded")


def _rows(house: House, proxies: list[Proxy]) -> list[Row]:
    def peer(name: str, kind: str = "", **more: Any) -> Any:
        return house(name, AUTO, Faulty, fault=kind, **more)

    behind = [peer(f"behind{number}", port=proxy.target_port) for number, proxy in enumerate(proxies)]
    return [
        Row("killed", "continuous", peer("bob1"), GONE, **KILLED),
        Row("killed", "polling", peer("bob2"), GONE, **KILLED),
        Row("killed", "on-demand", peer("bob3"), GONE, **KILLED),
        Row("stopped", "polling", peer("bob4"), HANGS, **STOPPED),
        Row("stopped", "on-demand", peer("bob5"), HANGS, **STOPPED),
        Row("proxy 502", "polling", behind[0], Truth("foreign-answer", ONE_WAY), UNREACHED, proxies[0],
            lambda row: proxies[0].statuses.update({"": 502}), lambda row: proxies[0].heal()),
        Row("black hole", "on-demand", behind[1], Truth("timeout", ONE_WAY, "one-way"), UNREACHED, proxies[1],
            lambda row: proxies[1].swallow(), lambda row: proxies[1].heal()),
        Row("clock +10m", "polling", peer("bob8", "wrong-clock"), SKEWED, SKEWED, **SWITCHED),
        Row("paused, gone", "polling", peer("bob13"), Truth("connect", OFFLINE),
            begin=paused_and_gone, end=back_and_resumed),
        Row("disk fails", "polling", peer("bob9", "broken-disk"), Truth("peer-behind"), Truth("store-readonly"),
            begin=broken_disk, end=restarted),
        Row("paused", "polling", peer("bob10"), Truth("peer-paused", "paused"),
            begin=lambda row: row.peer.run("federation", "pause", row.pair_id), end=pasted),
        Row("token ended", "polling", peer("bob11"), Truth("auth-invalid", "degraded"), Truth("token-withdrawn"),
            begin=lambda row: row.peer.run("token", "revoke", _token(row)), end=pasted),
        Row("revoked", "polling", peer("bob12"), Truth("peer-revoked", "revoked"),
            begin=lambda row: row.peer.run("federation", "revoke", row.pair_id), end=accepted),
    ]  # fmt: skip


@pytest.fixture
def made(house: House) -> Iterator[tuple[Instance, list[Row]]]:
    """A daemon, and the rows with a running peer for each."""
    us, proxies = house("alice", AUTO), [Proxy(free_port()) for _ in range(2)]
    rows = _rows(house, proxies)
    us.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda row: row.arrange(us), rows))
    yield us, rows
    for row in rows:
        row.peer.end()
    for proxy in proxies:
        proxy.end()


def _token(row: Row) -> str:
    return next(str(item["token_id"]) for item in row.peer.pair(row.pair_id)["tokens"] if "by us" in item["direction"])


def test_every_fault_is_told_on_both_sides(made: tuple[Instance, list[Row]]) -> None:
    us, rows = made
    eventually(lambda: all(row.is_over(us) for row in rows), "all is well before", DEADLINE_S)
    asked: list[Future[None]] = []
    try:
        with ThreadPoolExecutor(len(rows)) as pool:
            for row in rows:
                row.since_s = time.monotonic()
                row.begin(row)
                asked.append(pool.submit(row.diagnose))
            eventually(lambda: sum(row.look() for row in rows) == len(rows), "list and status tell of all", DEADLINE_S)
        for each in asked:
            each.result()
        lines = us.run("federation", "list").out
        assert (lines.count(", offline "), lines.count(", one-way ")) == (6, 2), lines
        us.run("status", "--check", code=3)
        for row in rows:
            row.look()
    finally:
        for row in rows:
            row.mend()
        with suppress(AssertionError):
            eventually(lambda: sum(row.heal(us) for row in rows) == len(rows), "nobody tells of any", HEALED_S)
        for row in rows:
            row.print()
