"""The monitor says what changed and nothing else, also over a restart of the daemon; top draws no more than it must."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spl.cli.command import Shell
from spl.cli.monitor import KnownRows, frame
from spl.cli.out import GREEN, RED
from spl.cli.pair_page import standing
from spl.core.when import ms_of
from tests.cli.conftest import NOW, Daemon, Run, error
from tests.cli.live_daemon import EVENTS, PAIR, a_row, finding, snapshot, streams


def told(known: KnownRows, name: str, value: Any) -> list[str]:
    return [event["event"] for event in known.take(name, value)]


def test_each_change_is_one_event() -> None:
    known = KnownRows()
    assert told(known, *snapshot(a_row())) == ["snapshot"]
    assert told(known, "pair", a_row()) == []
    assert told(known, "pair", a_row(state="degraded", findings=[finding()])) == ["changed", "finding"]
    assert told(known, "pair", a_row(offline_since="2026-11-23T05:59:00.000Z")) == ["changed", "offline", "cleared"]
    assert told(known, "pair", a_row(stalled="cursor-stalled")) == ["online", "stalled"]
    way = {"direction": "to-us", "code": "connect", "since": "2026-11-23T05:59:00.000Z"}
    assert told(known, "pair", a_row(stalled="cursor-stalled", one_way=way)) == ["one-way"]
    assert told(known, "pair", a_row(stalled="cursor-stalled", one_way={**way, "code": ""})) == []
    gone = a_row(stalled="cursor-stalled", offline_since="2026-11-23T05:59:00.000Z")
    assert told(known, "pair", gone) == ["offline"], "a peer that is gone altogether works in no direction"
    assert told(known, "pair", a_row(stalled="cursor-stalled", one_way=way)) == ["online", "one-way"]
    assert told(known, "pair", a_row(stalled="cursor-stalled")) == ["both-ways"]
    assert told(known, "pair", a_row(stalled="cursor-stalled")) == []
    assert told(known, "pair", a_row()) == ["moving"]
    assert told(known, "pair", a_row(inbound={"clock": 5, "lag_records": 0})) == ["position"]
    assert told(known, "pair", a_row("pair_2")) == ["new"]
    assert told(known, "daemon", snapshot(findings=(finding("disk-low"),))[1]["daemon"]) == ["finding"]


def test_a_pair_that_the_peer_ended_stays_until_its_finding_is_settled() -> None:
    known = KnownRows()
    list(known.take(*snapshot(a_row(state="revoked", findings=[finding("peer-revoked")]))))
    assert "1 revoked" in frame(known, terminal(100))[0][0]
    assert told(known, "pair", a_row(state="revoked")) == ["cleared"]
    assert known.rows == {}


def test_a_restart_is_told_with_what_changed_meanwhile() -> None:
    known = KnownRows()
    list(known.take(*snapshot(a_row(), a_row("pair_2"))))
    assert told(known, "down", {"code": "daemon-down", "message": "m", "hint": ""}) == ["daemon-down"]
    assert told(known, *snapshot(a_row(state="paused"))) == ["daemon-up", "gone", "changed"]
    assert not known.is_down


def test_lines_for_people_and_for_programs(spl: Run, daemon: Daemon) -> None:
    events = [snapshot(a_row()), ("pair", a_row(state="degraded", findings=[finding()]))]
    streams(daemon, events)
    result = spl("monitor", "--once-down")
    assert result.code == 5
    assert [line.partition("  ")[2] for line in result.out.splitlines()] == [
        f"{PAIR}  bob  active  polling  in 0, out 0",
        f"{PAIR}  bob  state active -> degraded",
        f"{PAIR}  bob  connect: no way; spl serve",
        "daemon-down: The daemon is stopping; trying again",
    ]
    streams(daemon, events)
    lines = [json.loads(line) for line in spl("monitor", "--once-down", "-o", "jsonl").out.splitlines()]
    assert [line["event"] for line in lines] == ["snapshot", "changed", "finding", "daemon-down"]
    assert all(line["at"] for line in lines)


def test_a_refusal_ends_it_at_once(spl: Run, daemon: Daemon) -> None:
    daemon.answers[EVENTS] = (403, error("scope-forbidden", "this needs the scope status:read"))
    assert spl("monitor").code == 4


def test_without_a_daemon(spl: Run) -> None:
    assert spl("monitor", "--once-down").code == 5


def test_top_wants_a_terminal(spl: Run, daemon: Daemon) -> None:
    streams(daemon)
    for result in (spl("top"), spl("top", tty=True, env={"TERM": "dumb"})):
        assert result.code == 2
        assert "spl monitor" in result.err


def terminal(columns: int) -> Shell:
    ways = SimpleNamespace(ago=lambda at: "2s ago", now_ms=lambda: ms_of(NOW), frame_columns=lambda: columns)
    return cast(Shell, SimpleNamespace(out=ways))


def test_a_frame_has_those_in_trouble_first() -> None:
    known, shell = KnownRows(), terminal(100)
    assert "asking" in frame(known, shell)[0][0]
    list(known.take(*snapshot(a_row("pair_1"), a_row("pair_2", state="degraded", findings=[finding()]))))
    head, titles, first, second = [text for text, _ in frame(known, shell)]
    assert head == "2 pairs: 1 active, 1 degraded"
    assert titles.split() == ["PAIR", "ID", "PEER", "STATE", "MODE", "LAST", "SYNC", "IN", "OUT", "FINDINGS"]
    assert first.split() == ["pair_2", "bob", "degraded", "polling", "2s", "ago", "0", "0", "connect"]
    assert second.split()[:3] == ["pair_1", "bob", "active"]
    list(known.take("down", {"code": "daemon-down", "message": "m", "hint": ""}))
    assert "daemon-down" in frame(known, shell)[0][0]
    assert len(frame(KnownRows(), shell)) == 1


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_a_frame_says_which_peer_does_not_answer_on_any_terminal(columns: int) -> None:
    """As the list does: the state is never cut, and such a pair stands before those that are well."""
    known, shell = KnownRows(), terminal(columns)
    one_way = {"direction": "to-us", "code": "connect", "since": "2026-11-23T05:00:00.000Z"}
    rows = (
        a_row("pair_1"),
        a_row("pair_2", offline_since="2026-11-23T05:00:00.000Z", findings=[finding("manifest-malformed")] * 3),
        a_row("pair_3", one_way=one_way, mode="on-demand"),
    )
    list(known.take(*snapshot(*rows)))
    _, titles, *shown = frame(known, shell)
    assert [text.partition(" ")[0] for text, _ in shown] == ["pair_2", "pair_3", "pair_1"]
    for (text, color), row in zip(shown, (*rows[1:], rows[0]), strict=True):
        assert standing(row, shell.out) in text
        assert color == (GREEN if row is rows[0] else RED)
    assert max(len(text) for text, _ in (titles, *shown)) <= columns
