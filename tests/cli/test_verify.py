"""`spl federation verify`: what people are told, the forms for programs, and the exit code."""

from typing import Any

import pytest

from tests.cli.conftest import BOB, Daemon, Run, error

ROUTE = ("POST", "/v1/federation/pairs/pair_1/verify")
ROW = {"namespace": "default", "here_records": 1200, "there_records": 1201, "missing_here": 1, "missing_there": 0}
EQUAL: dict[str, Any] = {
    "object": "verify", "pair_id": "pair_1", "peer_did": BOB, "as_of": "2027-01-15T08:00:00Z",
    "equal": True, "complete": True,
    "namespaces": [{**ROW, "here_records": 1201, "missing_here": 0}], "missing_here": [], "missing_there": [],
    "nameless_here": 0, "beyond_offer": 0, "repaired": None, "questions": 1, "sent_bytes": 100, "received_bytes": 924,
    "ms": 12,
}  # fmt: skip


def ids(count: int, **more: object) -> list[dict[str, object]]:
    return [{"id": f"{number:064x}", "namespace": "default", **more} for number in range(count)]


def test_equal_sides_exit_0(daemon: Daemon, spl: Run) -> None:
    daemon.answers[ROUTE] = EQUAL
    found = spl("federation", "verify", "pair_1")
    assert (found.code, daemon.sent(*ROUTE).json()) == (0, {})
    assert found.out.splitlines() == [
        "NAMESPACE  HERE   THERE  MISSING HERE  MISSING THERE",
        "default    1,201  1,201  0             0",
        "pair_1  equal: each side holds everything that the other offers",
    ]
    assert found.err == "1 question, 1.0 KiB, 0.0 s; compared as of 2027-01-15T08:00:00Z\n"


def test_a_difference_is_listed_and_exits_3(daemon: Daemon, spl: Run) -> None:
    missing = [*ids(1), {"id": "f" * 64, "namespace": "org", "refused": "scope-violation"}]
    daemon.answers[ROUTE] = {
        **EQUAL, "equal": False, "namespaces": [ROW], "missing_here": missing, "missing_there": ids(23),
        "beyond_offer": 4, "nameless_here": 2,
    }  # fmt: skip
    found = spl("federation", "verify", "pair_1", tty=True)
    assert found.code == 3
    lines = found.out.splitlines()
    assert lines[2:5] == [
        "missing here, offered by bob:", f"  {'0' * 64}  default", f"  {'f' * 64}  org  refused: scope-violation",
    ]  # fmt: skip
    assert "missing at bob, offered here:" in lines
    assert lines[-3:] == [
        "  and 3 more; -o json has them", "missing here: 2 projections without an id",
        "pair_1  the sides DIFFER",
    ]  # fmt: skip
    assert "4 records outside what this pair shares now" in found.err
    assert "spl federation verify pair_1 --repair" in found.err


def test_repair_says_what_it_brought(daemon: Daemon, spl: Run) -> None:
    daemon.answers[ROUTE] = {**EQUAL, "repaired": {"fetched_records": 3, "pushed_records": 1005}}
    found = spl("federation", "verify", "pair_1", "--repair")
    assert (found.code, daemon.sent(*ROUTE).json()) == (0, {"repair": True})
    assert "repaired: 3 records fetched, 1,005 sent to bob" in found.out
    assert "--repair" not in found.err


def test_more_than_is_listed_is_said(daemon: Daemon, spl: Run) -> None:
    daemon.answers[ROUTE] = {**EQUAL, "equal": False, "complete": False}
    assert "the sides DIFFER, in more records than listed" in spl("federation", "verify", "pair_1").out


def test_programs_get_all_of_it(daemon: Daemon, spl: Run) -> None:
    daemon.answers[ROUTE] = {**EQUAL, "equal": False, "missing_here": ids(30)}
    found = spl("federation", "verify", "pair_1", "-o", "json")
    assert found.code == 3
    assert len(found.data["missing_here"]) == 30
    assert '"spl.verify/1"' in found.out


@pytest.mark.parametrize(("code", "exit_"), [("pair-paused", 7), ("connect", 9), ("answer-malformed", 9)])
def test_a_comparison_that_fails_exits_by_its_code(daemon: Daemon, spl: Run, code: str, exit_: int) -> None:
    daemon.answers[ROUTE] = 409, error(code, "it is so")
    found = spl("federation", "verify", "pair_1")
    assert (found.code, found.out) == (exit_, "")
    assert f"[{code}]" in found.err
