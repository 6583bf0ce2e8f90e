"""Configuration, one line a setting."""

from tests.cli.conftest import Daemon, Run, listed


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
