"""Status and health: one page, and exit codes for scripts."""

from typing import Any

import pytest

from tests.cli.conftest import ALICE, Daemon, Run, error

STATUS: dict[str, Any] = {
    "object": "status",
    "identity": {"label": "alice", "did": ALICE},
    "version": "1.0.0",
    "url": "http://127.0.0.1:9100",
    "uptime_s": 273_600,
    "store": {"records": 33_180, "bytes": 41_200_000, "fsync_ms": 3.2, "free_bytes": 18_200_000_000},
    "pairs": {"total": 12, "active": 10, "paused": 1, "degraded": 1, "revoked": 0},
    "lag": {"p50_ms": 212, "p99_ms": 548, "worst_pair_id": "pair_0f9e8d7c", "lag_records": 138},
    "queue": {"now": 0, "max": 9},
    "adapters": {"count": 3, "p99_ms": 0.104, "records": 4000, "slowest": "feed"},
    "attention": [
        {
            "code": "token-expired",
            "pair_id": "pair_0f9e8d7c",
            "title": "peer token expired",
            "severity": "fail",
            "fix": "spl federation refresh pair_0f9e8d7c",
        },
        {"code": "disk-low", "pair_id": None, "title": "1 GB left", "severity": "warn", "fix": ""},
    ],
}


def test_the_page(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = STATUS
    result = spl("status")
    assert (result.code, result.out) == (
        0,
        f"""\
alice   {ALICE}   spl 1.0.0, up 3d 4h, http://127.0.0.1:9100
store   33,180 records, 41.2 MB, last fsync 3 ms, 18.2 GB free
pairs   12: 10 active, 1 paused, 1 degraded
lag     p50 212 ms, p99 548 ms (last 5 min); worst pair_0f9e8d7c, 138 records
queue   0 now, max 9 in the last hour
adapters 3, p99 0.1 ms per record

needs attention (2)
  ✗ token-expired  pair_0f9e8d7c: peer token expired
                   spl federation refresh pair_0f9e8d7c
  ! disk-low       1 GB left
""",
    )


def test_check_turns_findings_into_3(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = STATUS
    assert spl("status", "--check").code == 3
    assert spl("status", "--check", "-o", "json").code == 3
    daemon.answers["GET", "/v1/status"] = {**STATUS, "attention": []}
    assert spl("status", "--check").code == 0


def test_without_identity_and_measurements(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = {
        **STATUS,
        "identity": None,
        "lag": {},
        "queue": {},
        "adapters": {"count": 3, "p99_ms": None},
        "attention": [],
        "store": {"records": 0, "bytes": 0},
        "pairs": {"total": 0},
    }
    assert spl("status").out == (
        "-       no identity   spl 1.0.0, up 3d 4h, http://127.0.0.1:9100\nstore   0 records, 0 B\npairs   0\n"
    )


def test_sinks_have_a_line_if_there_are_any(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = {**STATUS, "sinks": {"total": 2, "open": 1, "lag_records": 1200}}
    assert "\nsinks   2: 1 open, 1,200 wait\n" in spl("status").out


def test_health(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/health/ready"] = {"status": "ready"}
    result = spl("health")
    assert (result.code, result.out) == (0, "ok  spl 1.0.0, up 9s, pid 7\n")
    assert spl("health", "-o", "json").data["ready"] is True


@pytest.mark.parametrize("code", ["store-readonly", "shutting-down", "warming-up"])
def test_alive_but_not_ready_exits_3(spl: Run, daemon: Daemon, code: str) -> None:
    daemon.answers["GET", "/health/ready"] = (503, error(code, "not now"))
    result = spl("health")
    assert result.code == 3
    assert result.out.startswith("not ready: not now")


def test_no_daemon_exits_5(spl: Run) -> None:
    assert (spl("status").code, spl("health").code) == (5, 5)


def test_an_old_confirmation_is_named_with_its_age(spl: Run, daemon: Daemon) -> None:
    """What a peer said less than 45 s ago counts as now; of an older word the age is shown."""
    lag = {"worst_pair_id": "", "lag_records": 0, "oldest_pair_id": "pair_0f9e8d7c"}
    for at, text in (
        ("2026-11-23T05:59:20.000Z", ""),
        ("2026-11-23T05:56:00.000Z", "pair_0f9e8d7c was confirmed last 4m ago"),
    ):
        daemon.answers["GET", "/v1/status"] = {**STATUS, "lag": {**lag, "oldest_confirmed_at": at}}
        shown = [line for line in spl("status", tty=True).out.splitlines() if line.startswith("lag")]
        assert shown == ([f"lag     {text}"] if text else [])
