"""Namespaces: made, shared, put away and deleted, each with what that means; the page on tenants."""

from typing import Any

import pytest

from tests.cli.conftest import BOB, Daemon, Run, error, listed

MUSIC: dict[str, Any] = {"object": "namespace", "name": "music", "state": "active", "shared": True, "records": 1200}
MADE = {**MUSIC, "already": False, "revived": False}
PAIR = {"pair_id": "pair_a1b2c3d4", "peer_did": BOB, "peer_namespace": "projects/music", "level": "L1"}
TOKEN = {"token_id": "tok_1", "scopes": ["records:read"], "label": "acme"}


@pytest.mark.parametrize(("changes", "line"), [
    ({}, "music  created (shared: new pairs include it)\n"),
    ({"shared": False, "already": True}, "music  already_exists (private: pairs include it by name only)\n"),
    ({"revived": True}, "music  active again (shared: new pairs include it)\n"),
])  # fmt: skip
def test_create_says_whether_it_is_new(spl: Run, daemon: Daemon, changes: dict[str, Any], line: str) -> None:
    daemon.answers["POST", "/v1/namespaces"] = {**MADE, **changes}
    result = spl("namespace", "create", "music", "--shared", tty=True)
    assert result.out == line
    assert daemon.sent("POST", "/v1/namespaces").json() == {"name": "music", "shared": True}
    assert ("spl namespace share music" in result.err) is (changes.get("shared") is False)


def test_list(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/namespaces"] = listed({**MUSIC, "name": "default"})
    assert spl("namespace", "list").out == ("NAMESPACE  STATE   SHARED  RECORDS\ndefault    active  yes     1,200\n")


def test_show_tells_who_shares_it_and_whose_tokens_reach_it(spl: Run, daemon: Daemon) -> None:
    detail = {**MUSIC, "unusable": None, "pairs": [PAIR, {**PAIR, "level": None}], "tokens": [TOKEN]}
    daemon.answers["GET", "/v1/namespaces/org%2Fmusic"] = detail
    out = spl("namespace", "show", "org/music").out
    assert "pair_a1b2c3d4  bob  L1, as projects/music at the peer\n" in out
    assert "pair_a1b2c3d4  bob  not sent at present\n" in out
    assert "tok_1  records:read  acme\n" in out
    daemon.answers["GET", "/v1/namespaces/org%2Fmusic"] = {
        **detail,
        "unusable": "org is gone",
        "pairs": [],
        "tokens": [],
    }
    out = spl("namespace", "show", "org/music").out
    assert "active, not usable: org is gone\n" in out
    assert "none bound to it" in out
    daemon.answers["GET", "/v1/namespaces/org%2Fmusic"] = MUSIC
    assert "tokens" not in spl("namespace", "show", "org/music").out, "what a tenant gets"


@pytest.mark.parametrize(("action", "done"), [("share", "shared"), ("unshare", "private"), ("archive", "archived")])
@pytest.mark.parametrize("already", [False, True])
def test_actions_say_what_they_mean(spl: Run, daemon: Daemon, action: str, done: str, already: bool) -> None:
    answer = {**MUSIC, "pairs": [PAIR], "tokens": [], "already": already}
    daemon.answers["POST", f"/v1/namespaces/music/{action}"] = answer
    result = spl("namespace", action, "music", tty=True)
    assert result.out == f"music  {'already_' if already else ''}{done}\n"
    assert ("revoke-grant pair_a1b2c3d4 --namespace music" in result.err) is (action == "unshare")


def test_delete_tells_why_it_cannot(spl: Run, daemon: Daemon) -> None:
    daemon.answers["DELETE", "/v1/namespaces/music"] = {**MUSIC, "state": "deleted"}
    assert spl("namespace", "delete", "music").out == "music  deleted\n"
    daemon.answers["DELETE", "/v1/namespaces/music"] = (
        409,
        error("namespace-in-use", "namespace music holds 3 records"),
    )
    result = spl("namespace", "delete", "music")
    assert (result.code, result.out) == (7, "")
    assert "holds 3 records [namespace-in-use]" in result.err


def test_help_explains_tenants_with_an_example(spl: Run) -> None:
    out = spl("namespace", "--help").out
    for part in (
        "Several tenants need no second instance",
        "--namespace acme",
        "learns nothing about other tenants",
        "share ",
    ):
        assert part in out, part
