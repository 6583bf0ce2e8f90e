"""The barrier: returns when it holds, says what is missing when it does not, and goes on over a restart."""

import pytest

from tests.cli.conftest import Daemon, Run, error
from tests.cli.live_daemon import PAIR, a_row, finding, snapshot, streams

SHOW = ("GET", f"/v1/federation/pairs/{PAIR}")
SYNC = ("POST", f"/v1/federation/pairs/{PAIR}/sync")
PAUSED = error("pair-paused", "The pair is paused.")


def test_the_daemon_is_ready(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/health/ready"] = {"status": "ready"}
    assert spl("wait", "daemon").code == 0
    daemon.answers["GET", "/health/ready"] = (503, error("store-full", "no room"))
    result = spl("wait", "daemon", "--timeout", "10ms")
    assert (result.code, "no room" in result.err) == (8, True)


def test_a_state_that_is_there_or_comes(spl: Run, daemon: Daemon) -> None:
    daemon.answers[SHOW] = a_row()
    assert spl("wait", "pair", PAIR, "--state", "active").code == 0
    streams(daemon, [snapshot(a_row())], [snapshot(a_row()), ("pair", a_row(state="paused"))])
    assert spl("wait", "pair", PAIR, "--state", "paused").code == 0


def test_a_state_that_never_comes(spl: Run, daemon: Daemon) -> None:
    daemon.answers[SHOW] = a_row()
    streams(daemon, [snapshot(a_row()), ("pair", a_row(state="revoked"))])
    assert spl("wait", "pair", PAIR, "--state", "paused").code == 7
    streams(daemon)
    assert spl("wait", "pair", PAIR, "--state", "paused", "--timeout", "50ms").code == 8


def test_an_unknown_pair(spl: Run, daemon: Daemon) -> None:
    daemon.answers[SHOW] = (404, error("pair-unknown", "no such pair"))
    assert spl("wait", "caught-up", PAIR).code == 6


def test_caught_up_needs_what_was_offered_at_the_begin_and_one_read(spl: Run, daemon: Daemon) -> None:
    daemon.answers[SHOW], daemon.answers[SYNC] = a_row(), {"records": 0, "pushed": 0}
    behind, still = ({"clock": 7 + n, "lag_records": 3} for n in (0, 2))
    later = {"clock": 10, "lag_records": 5}  # five more came meanwhile, and are not waited for
    events = [snapshot(a_row(outbound=behind)), ("pair", a_row(outbound=still)), ("pair", a_row(outbound=later))]
    streams(daemon, events, events)
    # After our own read, which the events are not.
    read = a_row(last_sync_cursor={"clock": 14, "lag_records": 0}, outbound=later)
    daemon.answers[SYNC] = lambda call: daemon.answers.update({SHOW: read}) or {"records": 10, "pushed": 0}
    result = spl("wait", "caught-up", PAIR)
    assert (result.code, result.out) == (0, f"{PAIR}  bob holds 10 records of ours, we hold 14 of bob's\n")


@pytest.mark.parametrize(
    ("row", "sync", "said"),
    [
        (a_row(state="paused", state_detail="paused"), (409, PAUSED), "the pair is paused"),
        (a_row(outbound={"clock": 0, "lag_records": 3}), {"records": 0}, "has not confirmed 3 records of ours"),
        (
            a_row(offline_since="2026-11-23T05:00:00.000Z", findings=[finding()]),
            (502, error("connect", "no way")),
            "bob is offline, no contact since 2026-11-23T05:00:00.000Z",
        ),
        (a_row(outbound={"clock": 0, "lag_records": 3}), {"records": 0}, f"on bob: spl sync {PAIR}"),
        (a_row(outbound={"clock": 0, "lag_records": 3}), (502, error("connect", "no way")), f"spl doctor {PAIR}"),
    ],
)
def test_what_is_missing_is_said(spl: Run, daemon: Daemon, row: dict[str, object], sync: object, said: str) -> None:
    daemon.answers[SHOW], daemon.answers[SYNC] = row, sync
    streams(daemon, *[[snapshot(row)]] * 9)
    result = spl("wait", "caught-up", PAIR, "--timeout", "2s")
    assert result.code == 8
    assert said in result.err


def test_a_pair_that_is_revoked_meanwhile(spl: Run, daemon: Daemon) -> None:
    daemon.answers[SHOW], daemon.answers[SYNC] = a_row(), (409, PAUSED)
    streams(daemon, [snapshot(a_row()), ("pair", a_row(state="revoked"))])
    assert spl("wait", "caught-up", PAIR).code == 7


def test_one_who_may_not_ask_for_a_read_waits_for_the_next(spl: Run, daemon: Daemon) -> None:
    daemon.answers[SHOW] = a_row(last_sync_cursor={"clock": 4, "lag_records": 0})
    daemon.answers[SYNC] = (403, error("scope-forbidden", "needs federation:manage"))
    after = ("pair", a_row(last_sync_at="2026-11-23T06:00:01.000Z"))
    streams(daemon, *[[snapshot(a_row()), after]] * 9)
    assert spl("wait", "caught-up", PAIR).code == 0
