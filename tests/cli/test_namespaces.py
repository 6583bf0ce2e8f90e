"""Namespaces: created once, listed with what they hold."""

from tests.cli.conftest import Daemon, Run, listed


def test_create_says_whether_it_is_new(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/namespaces"] = {"name": "music", "state": "active", "shared": True, "already": False}
    assert spl("namespace", "create", "music", "--shared").out == "music created (shared)\n"
    daemon.answers["POST", "/v1/namespaces"] = {"name": "music", "state": "active", "shared": False, "already": True}
    assert spl("namespace", "create", "music").out == "music already_exists (private)\n"


def test_list(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/namespaces"] = listed(
        {"name": "default", "state": "active", "shared": True, "records": 1200}
    )
    assert spl("namespace", "list").out == ("NAMESPACE  STATE   SHARED  RECORDS\ndefault    active  yes     1,200\n")
