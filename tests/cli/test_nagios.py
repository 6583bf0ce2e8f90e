"""The line for a monitoring system: a word, what is wrong, values always, thresholds if wanted."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Daemon, Run, error
from tests.cli.test_status import STATUS

CHECK = ("doctor", "--format", "nagios")
PAIR = {
    "pair_id": "pair_0f9e8d7c", "state": "degraded", "last_sync_cursor": {"lag_records": None},
    "tokens": [{"expires_at": "2026-12-03T06:00:00.000Z"}, {"expires_at": "2026-11-25T06:00:00.000Z"}],
}  # fmt: skip


def status(**changed: Any) -> dict[str, Any]:
    return {**copy.deepcopy(STATUS), "attention": [], "token_ends_at": "2027-01-23T07:00:00.000Z", **changed}


def test_all_is_well(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = status()
    result = spl(*CHECK)
    assert (result.code, result.out) == (
        0,
        "OK - 12 pairs | lag_records=138 queue=0 pairs=12 problems=0 tokens_days=61\n",
    )


def test_findings_decide(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = status(attention=STATUS["attention"])
    result = spl(*CHECK)
    assert result.code == 2
    assert result.out.startswith(
        "CRITICAL - 12 pairs, token-expired: pair_0f9e8d7c: peer token expired (and 1 more) | "
    )
    daemon.answers["GET", "/v1/status"] = status(attention=[{**STATUS["attention"][1], "title": "a|b=1;2"}])
    result = spl(*CHECK)
    assert (result.code, result.out.partition(" | ")[0]) == (1, "WARNING - 12 pairs, disk-low: a/b=1;2")


@pytest.mark.parametrize(
    ("words", "code", "value"),
    [
        (("--warn-lag", "139"), 0, "lag_records=138;139; "),
        (("--warn-lag", "100", "--crit-lag", "1000"), 1, "lag_records=138;100;1000 "),
        (("--crit-lag", "138"), 2, "lag_records=138;;138 "),
        (("--warn-days", "60"), 0, "tokens_days=61;60:;"),
        (("--warn-days", "61", "--crit-days", "7"), 1, "tokens_days=61;61:;7:"),
        (("--crit-days", "90"), 2, "tokens_days=61;;90:"),
    ],
)
def test_thresholds_are_optional(spl: Run, daemon: Daemon, words: tuple[str, ...], code: int, value: str) -> None:
    daemon.answers["GET", "/v1/status"] = status()
    result = spl(*CHECK, *words)
    assert (result.code, value in result.out) == (code, True), result.out


def test_one_pair(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = status(attention=STATUS["attention"])
    daemon.answers["GET", "/v1/federation/pairs/bob"] = PAIR
    result = spl(*CHECK, "bob")
    said = "CRITICAL - pair_0f9e8d7c degraded, token-expired: peer token expired"
    assert (result.code, result.out) == (2, f"{said} | lag_records=0 problems=1 tokens_days=2\n")


def test_without_an_answer(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = (403, error("scope-forbidden", "needs status:read"))
    result = spl(*CHECK)
    assert (result.code, result.out) == (3, "UNKNOWN - needs status:read [scope-forbidden]\n")
    assert "scope-forbidden" in result.err


def test_without_a_daemon(spl: Run, home: Path) -> None:
    result = spl(*CHECK, env={"HOME": "/"})
    assert f"  fix       SYNCROPEL_HOME={home} spl init && SYNCROPEL_HOME={home} spl serve\n" in result.err
    assert (result.code, result.out.split(" - ")[0]) == (2, "CRITICAL")
