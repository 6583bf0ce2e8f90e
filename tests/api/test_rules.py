"""Rules over HTTP: added, listed, tried, removed, and enforced on every route behind a scope."""

from typing import Any

import pytest

from spl.api.app import RESOURCES, resource_of
from spl.api.auth import ANYONE
from spl.api.table import ROUTES
from spl.core.rules import permission_rule
from tests.api.conftest import Served
from tests.store_kit import set_views

PERMISSION, AITL = "/v1/config/permission-rules", "/v1/config/aitl-rules"
FOLD = "/v1/config/fold-rules"
RECORD = {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {}}


def a_rule(name: str = "r", **changes: Any) -> dict[str, Any]:
    return {"name": name, "resource": "records:write", "action": "deny", **changes}


def test_every_route_behind_a_scope_has_one_resource() -> None:
    """Named after its path, so that a new route is guarded without a line of its own."""
    named = {(route.method, route.path): resource_of(route) for route in ROUTES}
    assert all(bool(named[route.method, route.path]) == (route.scope != ANYONE) for route in ROUTES)
    for method, path, resource in (
    ("POST", "/v1/records", "records:write"), ("GET", "/v1/records/{id}", "records:read"),
    ("GET", "/v1/threads/{thread}/records", "threads:read"), ("POST", "/v1/threads/restore", "threads:write"),
    ("POST", "/v1/aitl/{id}/decide", "aitl:write"), ("DELETE", "/v1/tokens/{id}", "tokens:write"),
    ("GET", "/v1/federation/pairs", "federation:read"), ("POST", "/v1/federation/pairs", "federation:write"),
    ("GET", "/v1/sync/changes", "sync:read"), ("POST", "/v1/sync/ack", "sync:write"),
    ("GET", "/v1/config", "config:read"),
    ):  # fmt: skip
        assert named[method, path] == resource
    assert "federation:pair" in RESOURCES


async def test_a_rule_is_added_listed_replaced_and_removed(served: Served) -> None:
    first = await served.json("POST", PERMISSION, a_rule("b", priority=2, expression="1 < 2"))
    assert not first["replaced"]
    assert (await served.json("POST", PERMISSION, a_rule("a")))["priority"] == 0
    assert (await served.json("POST", PERMISSION, a_rule("c", priority=9)))["locks_out_handshake"] is None
    assert [rule["name"] for rule in (await served.json("GET", PERMISSION))["data"]] == ["c", "b", "a"]
    assert (await served.json("POST", PERMISSION, a_rule("b", priority=-1)))["replaced"]
    listed = (await served.json("GET", PERMISSION))["data"]
    assert [rule["name"] for rule in listed] == ["c", "a", "b"]
    assert listed[2] == {"object": "permission_rule", **a_rule("b"), "priority": -1, "expression": "true"}
    assert (await served.json("DELETE", f"{PERMISSION}/b"))["name"] == "b"
    assert await served.refused("DELETE", f"{PERMISSION}/b") == (404, "NOT_FOUND")
    locked = await served.json("POST", PERMISSION, a_rule("lock", resource="federation:*"))
    assert locked["locks_out_handshake"] == "lock"


@pytest.mark.parametrize(("changes", "code"), [
    ({"name": "test"}, "BAD_FIELD"), ({"resource": "recods:write"}, "BAD_FIELD"),
    ({"action": "require:x"}, "BAD_FIELD"), ({"priority": "1"}, "BAD_FIELD"), ({"colour": 1}, "BAD_FIELD"),
    ({"expression": "a &&"}, "RULE_SYNTAX"), ({"expression": "(" * 100}, "RULE_SYNTAX"),
    ({"expression": "true " * 1000}, "RULE_SYNTAX"), ({"expression": "reqest.label == 'x'"}, "BAD_FIELD"),
    ({"expression": "peer.address.matches('a')"}, "RULE_SYNTAX"), ({"name": None}, "BAD_FIELD"),
])  # fmt: skip
async def test_a_bad_rule_is_refused_and_not_kept(served: Served, changes: dict[str, Any], code: str) -> None:
    assert await served.refused("POST", PERMISSION, a_rule(**changes)) == (400, code)
    assert (await served.json("GET", PERMISSION))["data"] == []


async def test_a_fault_of_syntax_tells_its_place(served: Served) -> None:
    answer = await served.json("POST", PERMISSION, a_rule(expression="true &&\n  = 1"), 400)
    assert (answer["at"], answer["source"], answer["caret"]) == ("2:3", "  = 1", "  ^")


async def test_rules_narrow_what_scopes_open_and_never_widen_it(served: Served) -> None:
    writer, reader = await served.mint("records:write", "records:read"), await served.mint("records:read")
    await served.json(
        "POST",
        PERMISSION,
        a_rule(
            "open",
            resource="*",
            action="allow",
            priority=9,
            expression='principal.kind == "token" && "records:read" in principal.scopes',
        ),
    )
    await served.json(
        "POST",
        PERMISSION,
        a_rule(
            "shut",
            resource="*",
            action="deny",
            expression='request.method == "POST" && !request.path.startsWith("/v1/config")',
        ),
    )
    assert await served.refused("POST", "/v1/records", RECORD, token=reader) == (403, "SCOPE_FORBIDDEN")
    assert (await served.fetch("POST", "/v1/records", RECORD, token=writer)).status == 200
    answer = await served.json("POST", "/v1/records", RECORD, 403)
    assert (answer["code"], answer["resource"]) == ("PERMISSION_DENIED", "records:write")
    assert "shut" in answer["message"]
    assert (await served.fetch("GET", "/v1/tokens")).status == 200
    assert (await served.fetch("GET", "/health", token="")).status == 200


async def test_a_capability_is_required_of_who_holds_none(served: Served) -> None:
    reader = await served.mint("records:read")
    await served.json("POST", PERMISSION, a_rule(resource="records:read", action="require:record_write"))
    assert await served.refused("GET", "/v1/records?thread=th", token=reader) == (403, "PERMISSION_DENIED")
    assert (await served.fetch("GET", "/v1/records?thread=th")).status == 200
    assert (await served.fetch("GET", "/v1/threads", token=reader)).status == 200
    await served.json("DELETE", f"{PERMISSION}/r")
    assert (await served.fetch("GET", "/v1/records?thread=th", token=reader)).status == 200


async def test_trying_a_rule_out(served: Served) -> None:
    await served.json(
        "POST", PERMISSION, a_rule("bob", resource="federation:pair", expression='request.label == "bob"')
    )
    await served.json("POST", PERMISSION, a_rule("need", action="require:record_write"))

    async def tried(resource: str, **more: Any) -> tuple[Any, ...]:
        answer = await served.json("POST", f"{PERMISSION}/test", {"resource": resource, **more})
        return answer["verdict"], answer["rule"], answer["fault"]

    assert await tried("federation:pair") == ("none", None, None)
    assert await tried("federation:pair", facts={"request": {"label": "bob"}}) == ("deny", "bob", None)
    assert await tried("records:write") == ("deny", "need", None)
    assert await tried("records:write", scopes=["records:write"]) == ("allow", "need", None)
    await served.json("POST", PERMISSION, a_rule("bad", resource="tokens:*", expression="request.label == 1"))
    assert (await tried("tokens:read"))[1] == "bad"
    assert "no field 'label'" in (await tried("tokens:read"))[2]
    for body in (
        {},
        {"resource": "records:*"},
        {"resource": "records:write", "facts": {"q": {}}},
        {"resource": "records:write", "facts": {"peer": 1}},
    ):
        assert await served.refused("POST", f"{PERMISSION}/test", body) == (400, "BAD_FIELD")


async def test_who_may_change_rules(served: Served) -> None:
    """Reading takes config:read, changing config:write; approving in the operator's place also aitl:approve."""
    reader, changer = await served.mint("config:read"), await served.mint("config:write")
    approver = await served.mint("config:write", "aitl:approve")
    approval = {"name": "x", "action": "auto_apply", "expression": "peer.address == '10.0.0.1'"}
    assert (await served.fetch("GET", PERMISSION, token=reader)).status == 200
    assert await served.refused("POST", PERMISSION, a_rule(), token=reader) == (403, "SCOPE_FORBIDDEN")
    assert (await served.fetch("POST", PERMISSION, a_rule(), token=changer)).status == 200
    assert await served.refused("POST", AITL, approval, token=changer) == (403, "SCOPE_FORBIDDEN")
    assert (await served.fetch("POST", AITL, approval, token=approver)).status == 200


async def test_rules_of_automatic_approval(served: Served) -> None:
    await served.json("POST", "/v1/namespaces", {"name": "music"})
    rule = {
        "name": "bob",
        "action": "auto_apply",
        "priority": 3,
        "expression": 'request.words == "a b c d e f" && request.label == "bob"',
        "namespaces": ["music"],
    }
    added = await served.json("POST", AITL, rule)
    assert added == {"object": "aitl_rule", **rule, "replaced": False}
    near = {"name": "all", "action": "auto_apply", "expression": 'request.peer.address.startsWith("10.0.")'}
    assert (await served.json("POST", AITL, near))["namespaces"] == ["default"]
    answer = await served.json("POST", AITL, {**rule, "expression": "request.words.matches('a')"}, 400)
    assert (answer["code"], "startsWith" in answer["hint"]) == ("RULE_SYNTAX", True)
    for claimed in ("true", "request.label == 'bob'", "request.host.endsWith('.home.example')"):
        assert await served.refused("POST", AITL, {**rule, "expression": claimed}) == (400, "RULE_UNPROVED")
    assert [item["name"] for item in (await served.json("GET", AITL))["data"]] == ["bob", "all"]
    assert await served.refused("POST", AITL, {**rule, "namespaces": ["nowhere"]}) == (403, "NAMESPACE_REJECTED")
    assert await served.refused("POST", AITL, {**rule, "action": "deny"}) == (400, "BAD_FIELD")
    assert await served.refused("POST", AITL, {**rule, "expression": "peers.address == ''"}) == (400, "BAD_FIELD")
    await served.json("DELETE", f"{AITL}/bob")
    assert await served.refused("DELETE", f"{AITL}/bob") == (404, "NOT_FOUND")


async def test_the_number_of_rules_is_bounded(served: Served) -> None:
    """At the limit a rule can still be replaced."""
    count = served.services.limits.rules_count
    set_views(served.home, rules={str(n): permission_rule(a_rule(str(n))) for n in range(count)})
    assert await served.refused("POST", PERMISSION, a_rule("one-more")) == (400, "BAD_FIELD")
    assert (await served.json("POST", PERMISSION, a_rule("7")))["replaced"]


async def test_fold_rules_are_added_listed_replaced_and_removed(served: Served) -> None:
    """What they do to states is in test_state.py."""
    spent = {"name": "spent", "thread": "th_*", "fold": "sum", "field": "order.total", "priority": 2}
    assert await served.json("POST", FOLD, spent) == {"object": "fold_rule", **spent, "replaced": False}
    assert (await served.json("POST", FOLD, {"name": "all", "thread": "*", "fold": "count"}))["field"] == ""
    assert [rule["name"] for rule in (await served.json("GET", FOLD))["data"]] == ["spent", "all"]
    assert (await served.json("POST", FOLD, {**spent, "priority": -1}))["replaced"]
    assert [rule["name"] for rule in (await served.json("GET", FOLD))["data"]] == ["all", "spent"]
    for changes in (
        {"fold": "median"},
        {"field": ""},
        {"thread": ""},
        {"colour": 1},
        {"priority": "1"},
        {"name": None},
    ):
        assert await served.refused("POST", FOLD, {**spent, **changes}) == (400, "BAD_FIELD")
    assert (await served.json("DELETE", f"{FOLD}/spent"))["name"] == "spent"
    assert await served.refused("DELETE", f"{FOLD}/spent") == (404, "NOT_FOUND")
    reader = await served.mint("config:read")
    assert (await served.fetch("GET", FOLD, token=reader)).status == 200
    assert await served.refused("POST", FOLD, spent, token=reader) == (403, "SCOPE_FORBIDDEN")
