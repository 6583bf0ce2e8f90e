"""`spl doctor`: the report of a pair, of a daemon, and of a home without one."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from spl.cli.command import Command, parser_of
from spl.cli.main import find
from spl.core.errors import CODES
from spl.doctor.catalogue import CATALOGUE
from tests.cli.conftest import Daemon, Run, error
from tests.doctor.test_catalogue import CASES, WELL, findings

HOSTED = "did:sync:instance:hosted-0123456789abcdef01234567"


def row(name: str, mark: str, text: str) -> dict[str, str]:
    return {"name": name, "mark": mark, "text": text, "code": ""}


REPORT: dict[str, Any] = {
    "object": "doctor",
    "pair_id": "pair_0f9e8d7c",
    "peer_did": HOSTED,
    "checks": [
        row("daemon", "ok", "pid 4121, loop lag 3 ms, 12 pair tasks alive"),
        row("tls", "warn", "the peer's TLS certificate ends in 3 days"),
        row("token", "fail", "the peer's token for us expired 2h ago, so each pull answers 401"),
        row("scopes", "skip", "explained by: token"),
        row("cursor", "skip", "explained by: token"),
        row("mode", "info", "the pair polls every 2h, so news may be that old"),
    ],
    "problems": [
        {
            "code": "token-expired",
            "severity": "fail",
            "title": "the peer's token for us expired 2h ago, so each pull answers 401",
            "meaning": "A token of the pair has expired; cursors are kept and nothing is lost.",
            "fix": "spl federation refresh pair_0f9e8d7c",
        }
    ],
    "explained": 2,
}

PAGE = """\
pair_0f9e8d7c  did:sync:instance:hosted
  ok    daemon            pid 4121, loop lag 3 ms, 12 pair tasks alive
  warn  tls               the peer's TLS certificate ends in 3 days
  FAIL  token             the peer's token for us expired 2h ago, so each pull answers 401
  skip  scopes            explained by: token
  skip  cursor            explained by: token
  info  mode              the pair polls every 2h, so news may be that old

1 problem, 2 checks explained by it
  token-expired  the peer's token for us expired 2h ago, so each pull answers 401
                 A token of the pair has expired; cursors are kept and nothing is lost.
  fix            spl federation refresh pair_0f9e8d7c
"""


def test_the_report_of_a_pair(spl: Run, daemon: Daemon) -> None:
    """Checks in order, then each problem with evidence, meaning and next step; exit 3."""
    daemon.answers["GET", "/v1/doctor/pair_0f"] = REPORT
    result = spl("doctor", "pair_0f")
    assert (result.code, result.out, result.err) == (3, PAGE, "")
    assert spl("doctor", "pair_0f", "-o", "json").data == REPORT


def test_nothing_is_wrong(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/doctor"] = {
        "object": "doctor",
        "pair_id": None,
        "checks": [row("daemon", "ok", "pid 4121")],
        "problems": [],
        "explained": 0,
        "pairs": [
            {"pair_id": "pair_a1b2c3d4", "peer_did": HOSTED, "state": "active", "confirmed": "12s ago", "problems": []}
        ],
    }
    result = spl("doctor")
    assert (result.code, result.out) == (
        0,
        "  ok    daemon            pid 4121\n"
        "  ok    pair_a1b2c3d4     did:sync:instance:hosted active, confirmed 12s ago\n"
        "\nno problems\n",
    )


def test_a_pairs_problem_shows_in_the_daemons_report_too(spl: Run, daemon: Daemon) -> None:
    wrong = {**REPORT["problems"][0], "pair_id": "pair_0f9e8d7c"}
    pair = {"pair_id": "pair_0f9e8d7c", "peer_did": HOSTED, "state": "degraded", "confirmed": "2h ago"}
    pairs = [{**pair, "problems": [wrong]}]
    daemon.answers["GET", "/v1/doctor"] = {**REPORT, "pair_id": None, "problems": [], "explained": 0, "pairs": pairs}
    result = spl("doctor")
    assert result.code == 3
    assert "  FAIL  pair_0f9e8d7c     did:sync:instance:hosted degraded, confirmed 2h ago\n" in result.out
    assert "\n1 problem\n  token-expired  pair_0f9e8d7c: the peer's token" in result.out


def test_an_unknown_pair_is_an_error_of_its_own(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/doctor/nope"] = (404, error("pair-unknown", "no pair 'nope'"))
    result = spl("doctor", "nope")
    assert (result.code, result.out) == (6, "")
    assert "[pair-unknown]" in result.err


def test_without_a_daemon_the_home_is_looked_at(spl: Run, home: Path) -> None:
    """The doctor ran and found a problem, so it exits 3; the daemon's absence is that problem."""
    result = spl("doctor", env={"HOME": "/"})
    assert result.code == 3
    assert "FAIL  daemon" in result.out
    its = f"SYNCROPEL_HOME={home} spl"
    assert f"\n  fix          {its} init && {its} serve\n" in result.out
    assert spl("doctor", "-o", "json").data["problems"][0]["code"] == "daemon-down"
    assert spl("doctor", env={"SPL_SERVE_URL": "http://127.0.0.1:1"}).code == 5


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.code)
def test_each_fix_is_a_command_that_exists(row: Any) -> None:
    """What follows `spl` in a fix is taken by the parser of its command as it stands."""
    variants = ({}, {"waits_for": "peer"}, {"locking_rule": "writers"}, {"token_taken": True})
    for more in variants:
        for item in findings({**WELL, **CASES[row.code], **more}):
            for words in re.findall(r"spl ([^;,&|(]+)", item.fix):
                command, rest = find(shlex.split(words))
                assert isinstance(command, Command), words
                parser_of(command).parse_args(rest)


@pytest.mark.parametrize("code", CODES)
def test_each_hint_names_commands_that_exist(code: str) -> None:
    """The next step of any code: its command at least is one of ours."""
    for words in re.findall(r"spl ([^;,&|(]+)", CODES[code].fix):
        find(words.split())


def test_a_daemon_that_says_nothing(spl: Run, daemon: Daemon) -> None:
    """Stopped or stuck: it takes the connection and never answers, so the home is looked at instead."""
    daemon.answers["GET", "/v1/doctor"] = (504, error("timeout", "no answer"))
    result = spl("doctor", env={"HOME": "/"})
    assert result.code == 3
    assert "FAIL  daemon" in result.out


def test_marks_are_coloured_on_a_terminal_and_texts_stay_harmless(spl: Run, daemon: Daemon) -> None:
    """The colour is added after the peer's text is escaped, so neither spoils the other."""
    hostile = row("tls", "fail", "named \x1b]0;owned\x07\u202e")
    daemon.answers["GET", "/v1/doctor"] = {**REPORT, "pair_id": None, "checks": [REPORT["checks"][0], hostile]}
    lines = spl("doctor", tty=True, env={"NO_COLOR": ""}).out.splitlines()
    assert lines[0].startswith("  \x1b[32mok  \x1b[0m  daemon  ")
    assert lines[1] == "  \x1b[31mFAIL\x1b[0m  tls               named \\x1b]0;owned\\x07\\u202e"
