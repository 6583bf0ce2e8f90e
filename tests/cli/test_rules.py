"""Rules from the command line: one a line, what was added, and a refusal with a caret under its place."""

import pytest

from tests.cli.conftest import Daemon, Run, error, listed

PERMISSION, AITL = "/v1/config/permission-rules", "/v1/config/aitl-rules"
FOLD = "/v1/config/fold-rules"
LOCK = {
    "name": "lock",
    "resource": "federation:pair",
    "action": "require:record_write",
    "priority": 10,
    "expression": "true",
}
FAMILY = {
    "name": "family",
    "action": "auto_apply",
    "priority": 0,
    "expression": "true",
    "namespaces": ["default", "music"],
}


def test_adding_a_permission_rule(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", PERMISSION] = {**LOCK, "replaced": False, "locks_out_handshake": "lock"}
    flags = ("--resource", "federation:pair", "--action", "require:record_write", "--priority", "10")
    result = spl("config", "add-permission-rule", "lock", *flags, "--expression", "true")
    assert (result.code, result.out) == (0, "lock  added\n")
    assert result.err == "! no instance can pair with this one: lock refuses federation:pair\n"
    assert daemon.sent("POST", "/v1/config/permission-rules").json() == LOCK
    daemon.answers["POST", PERMISSION] = {**LOCK, "replaced": True, "locks_out_handshake": None}
    result = spl("config", "add-permission-rule", "lock", "--resource", "*", "--action", "deny")
    assert (result.out, result.err) == ("lock  replaced\n", "")
    assert daemon.sent("POST", "/v1/config/permission-rules").json() == {
        "name": "lock",
        "resource": "*",
        "action": "deny",
        "priority": 0,
        "expression": "true",
    }
    assert (
        spl("config", "add-permission-rule", "lock", "--resource", "*", "--action", "deny", "-o", "json").data["name"]
        == "lock"
    )


def test_a_fault_in_the_expression_is_shown_in_its_place(spl: Run, daemon: Daemon) -> None:
    fault = error("rule-syntax", "a value is missing, at 1:6", at="1:6", source="a && ", caret="     ^")
    daemon.answers["POST", PERMISSION] = (400, fault)
    result = spl("config", "add-permission-rule", "x", "--resource", "*", "--action", "deny", "--expression", "a && ")
    assert result.code == 2
    lines = result.err.splitlines()
    assert lines[0] == "error: a value is missing, at 1:6 [rule-syntax]"
    assert lines[2:4] == ["  source    a && ", "  caret          ^"]


def test_permission_rules_are_listed_one_a_line(spl: Run, daemon: Daemon) -> None:
    two = {**LOCK, "name": "b", "resource": "records:*", "action": "deny", "priority": -1, "expression": "a &&\nb"}
    daemon.answers["GET", PERMISSION] = listed(LOCK, two)
    assert spl("config", "list-permission-rules").out == (
        "NAME  RESOURCE         ACTION                PRIORITY  EXPRESSION\n"
        "lock  federation:pair  require:record_write  10        true\n"
        "b     records:*        deny                  -1        a && b\n"
    )
    assert spl("config", "list-permission-rules", "-o", "json").data == [LOCK, two]
    daemon.answers["GET", PERMISSION] = listed()
    result = spl("config", "list-permission-rules", tty=True)
    assert result.out == ""
    assert "scopes alone decide" in result.err


@pytest.mark.parametrize(
    ("command", "route"),
    [("remove-permission-rule", PERMISSION), ("remove-aitl-rule", AITL), ("remove-fold-rule", FOLD)],
)
def test_removing(spl: Run, daemon: Daemon, command: str, route: str) -> None:
    daemon.answers["DELETE", f"{route}/a%2Fb"] = (404, error("not-found", "no rule"))
    daemon.answers["DELETE", f"{route}/lock"] = LOCK
    assert spl("config", command, "lock").out == "lock  removed\n"
    assert spl("config", command, "a/b").code == 6


def test_trying_out(spl: Run, daemon: Daemon) -> None:
    denied = {"verdict": "deny", "rule": "lock", "action": "deny", "fault": "there is no field 'q', at 1:2"}
    daemon.answers["POST", f"{PERMISSION}/test"] = denied
    result = spl(
        "config", "test-permission", "records:write", "--facts", '{"peer": {"address": "x"}}', "--scopes", "a, b"
    )
    assert (result.code, result.out) == (4, "deny  lock (deny)\n")
    assert "fails: there is no field" in result.err
    assert daemon.sent("POST", "/v1/config/permission-rules/test").json() == {
        "resource": "records:write",
        "facts": {"peer": {"address": "x"}},
        "scopes": ["a", "b"],
    }
    daemon.answers["POST", f"{PERMISSION}/test"] = {"verdict": "none", "rule": None, "action": None, "fault": None}
    result = spl("config", "test-permission", "records:write")
    assert (result.code, result.out) == (0, "none  no rule matches, scopes decide\n")
    for facts in ("{", "[]", "1"):
        assert spl("config", "test-permission", "x", "--facts", facts).code == 2


def test_rules_of_automatic_approval(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", AITL] = {**FAMILY, "replaced": False}
    result = spl(
        "config", "add-aitl-rule", "family", "--action", "auto_apply", "--namespace", "default", "--namespace", "music"
    )
    assert result.out == "family  added (grants at most default, music)\n"
    assert daemon.sent("POST", "/v1/config/aitl-rules").json() == FAMILY
    spl("config", "add-aitl-rule", "family", "--action", "auto_apply")
    assert "namespaces" not in daemon.sent("POST", "/v1/config/aitl-rules").json()
    daemon.answers["GET", AITL] = listed(FAMILY)
    assert spl("config", "list-aitl-rules").out == (
        "NAME    ACTION      PRIORITY  NAMESPACES     EXPRESSION\n"
        "family  auto_apply  0         default,music  true\n"
    )  # fmt: skip


def test_the_language_is_explained_where_it_is_used(spl: Run) -> None:
    for command in ("add-permission-rule", "add-aitl-rule"):
        page = spl("config", command, "--help").out
        for word in ("startsWith", "exists", "has(a.b)", "request.initiator_did", "highest priority first"):
            assert word in page


def test_fold_rules(spl: Run, daemon: Daemon) -> None:
    spent = {"name": "spent", "thread": "th_*", "fold": "sum", "field": "order.total", "priority": 2}
    daemon.answers["POST", FOLD] = {**spent, "replaced": True}
    words = ("--thread", "th_*", "--fold", "sum", "--field", "order.total", "--priority", "2")
    assert spl("config", "add-fold-rule", "spent", *words).out == "spent  replaced\n"
    assert daemon.sent("POST", FOLD).json() == spent
    spl("config", "add-fold-rule", "spent", "--thread", "th", "--fold", "count")
    assert daemon.sent("POST", FOLD).json() == {
        **spent,
        "thread": "th",
        "fold": "count",
        "field": "",
        "priority": 0,
    }
    daemon.answers["GET", FOLD] = listed(spent, {**spent, "name": "n", "fold": "count", "field": ""})
    assert spl("config", "list-fold-rules").out == (
        "NAME   THREAD  FOLD   PRIORITY  FIELD\n"
        "spent  th_*    sum    2         order.total\n"
        "n      th_*    count  2         -\n"
    )
    daemon.answers["GET", FOLD] = listed()
    assert "its latest record" in spl("config", "list-fold-rules", tty=True).err
