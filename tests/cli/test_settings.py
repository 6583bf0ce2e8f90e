"""Configuration, one line a setting; and setting a key of the file."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from spl.cli import settings
from tests.cli.conftest import Daemon, Run, listed


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the signals that the command sent: the daemon of these tests is this process."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


def test_show(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/config"] = listed(
        {"key": "port", "value": 9100, "source": "default"},
        {"key": "auth.required", "value": True, "source": "config.toml:4"},
        {"key": "http.allowed_hosts", "value": ["a", "b"], "source": "flag"},
        {"key": "federation.poll_interval", "value": 300_000, "source": "default"},
        {"key": "public_url", "value": None, "source": "default"},
    )
    assert spl("config", "show").out == (
        "KEY                       VALUE  SOURCE\n"
        "port                      9100   default\n"
        "auth.required             true   config.toml:4\n"
        "http.allowed_hosts        a, b   flag\n"
        "federation.poll_interval  5m     default\n"
        "public_url                       default\n"
    )


def test_set_writes_the_file_and_has_the_daemon_read_it(
    spl: Run, home: Path, daemon: Daemon, signalled: list[tuple[int, int]]
) -> None:
    """The process is the one behind the socket, whatever id the daemon has of itself in a container."""
    (home / "config.toml").write_text("# mine\n")
    row = {"key": "federation.approval", "value": "closed", "source": "config.toml:4"}
    answers_reads(daemon, signalled, row)
    result = spl("config", "set", "federation.approval", "closed")
    assert (result.code, result.out) == (0, "federation.approval is set in ~/.syncro/config.toml\n")
    assert (home / "config.toml").read_text() == '# mine\n\n[federation]\napproval = "closed"\n'
    assert signalled == [(os.getpid(), signal.SIGHUP)]
    assert "the daemon has read it" in result.err


def answers_reads(daemon: Daemon, signalled: list[tuple[int, int]], row: dict[str, Any], fault: str = "") -> None:
    """Let the daemon answer that it read the file as often as it got a signal."""
    daemon.answers["GET", "/v1/config"] = lambda call: {
        **listed(row), "reads": len(signalled), "fault": fault if signalled else "",
    }  # fmt: skip


def test_what_the_daemon_makes_of_it_is_said(
    spl: Run, home: Path, daemon: Daemon, signalled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses it, has the value from elsewhere, has not read it yet, or is older and does not tell."""
    row = {"key": "auth.required", "value": True, "source": "flag"}
    answers_reads(daemon, signalled, row, "everybody is an administrator")
    refused = spl("config", "set", "auth.required", "false")
    assert refused.code == 78
    assert "everybody is an administrator" in refused.err
    assert "[config-invalid]" in refused.err
    assert "the next start of the daemon fails" in refused.err
    signalled.clear()
    answers_reads(daemon, signalled, row)
    assert "the daemon keeps true: it comes from flag" in spl("config", "set", "auth.required", "false").err
    monkeypatch.setattr(settings, "READ_S", 0.1)
    for answer in ({**listed(row), "reads": 0, "fault": ""}, listed(row)):
        daemon.answers["GET", "/v1/config"] = answer
        result = spl("config", "set", "auth.required", "false")
        assert result.code == 0
        assert "whether it took it: spl status" in result.err


@pytest.mark.parametrize("key", ["port", "limits.body_bytes"])
def test_what_needs_a_start_is_said(
    spl: Run, home: Path, daemon: Daemon, signalled: list[tuple[int, int]], key: str
) -> None:
    result = spl("config", "set", key, "9300")
    assert "applies at the next start" in result.err
    assert "9300" in (home / "config.toml").read_text()
    assert signalled == []


def test_set_without_a_daemon_or_a_home(spl: Run, home: Path) -> None:
    assert "applies at the next start" in spl("config", "set", "port", "9300").err
    lost = spl("config", "set", "port", "9300", "--home", str(home / "none"))
    assert "[home-unusable]" in lost.err
    assert "spl init" in lost.err


def test_set_follows_a_link_and_leaves_it(spl: Run, home: Path, tmp_path: Path) -> None:
    """Some operators keep the file elsewhere."""
    kept = tmp_path / "spl.toml"
    kept.write_text("port = 1\n")
    (home / "config.toml").symlink_to(kept)
    assert spl("config", "set", "port", "9300").code == 0
    assert kept.read_text() == "port = 9300\n"
    assert (home / "config.toml").is_symlink()


def test_set_writes_nothing_that_is_refused_and_nothing_of_another_machine(spl: Run, home: Path) -> None:
    assert spl("config", "set", "port", "x").code == 78
    assert not (home / "config.toml").exists()
    assert spl("config", "set", "port", "9300", env={"SPL_SERVE_URL": "http://127.0.0.1:9"}).code == 2
