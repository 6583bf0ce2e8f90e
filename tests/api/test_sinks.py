"""Sinks over the API: refused with a code before anything happens, shown among grants, and what is wrong in status."""

import re
from types import SimpleNamespace
from typing import cast

from spl.api.auth import Principal
from spl.api.sinks import shown
from spl.engine.protocol import EngineError
from spl.engine.pump import SinkState
from tests.api.conftest import Served

FAN = {"name": "fan", "url": "nats://127.0.0.1:1", "namespaces": ["default"]}


async def test_without_a_sink_there_is_nothing(served: Served) -> None:
    assert (await served.json("GET", "/v1/sinks"))["data"] == []
    for method, path in (("GET", "/v1/sinks/fan"), ("POST", "/v1/sinks/fan/test"), ("GET", "/v1/sinks/fan/acl?pair=x")):
        assert await served.refused(method, path, {} if method == "POST" else None) == (404, "SINK_UNKNOWN")


async def test_what_is_malformed_is_refused(served: Served) -> None:
    for changes in (
        {"name": ""},
        {"namespaces": []},
        {"url": ""},
        {"from": "yesterday"},
        {"namespaces": [7]},
        {"x": 1},
    ):
        assert await served.refused("POST", "/v1/sinks", {**FAN, **changes}) == (400, "BAD_FIELD")
    assert await served.refused("POST", "/v1/sinks", {**FAN, "url": "nats://u:p@h"}) == (400, "SINK_INVALID")
    assert await served.refused("POST", "/v1/sinks", {**FAN, "namespaces": ["none"]}) == (403, "NAMESPACE_REJECTED")


async def test_a_program_is_named_on_this_machine_only_and_a_sink_by_an_admin(served: Served) -> None:
    assert await served.refused("POST", "/v1/sinks", {**FAN, "url": "exec:cat"}) == (403, "SCOPE_FORBIDDEN")
    token = await served.mint("federation:manage")
    assert await served.refused("POST", "/v1/sinks", FAN, token=token) == (403, "SCOPE_FORBIDDEN")


async def test_a_sink_is_listed_as_a_grant_until_it_is_removed(served: Served) -> None:
    added = await served.json("POST", "/v1/sinks", FAN, 201)
    assert (added["state"], added["lag_records"], added["namespaces"]) == ("active", None, ["default"])
    (row,) = (await served.json("GET", "/v1/consent/grants"))["data"]
    assert (row["sink"], row["namespace"], row["level"], row["pair_id"]) == ("fan", "default", "L0", None)
    assert await served.refused("POST", "/v1/sinks", FAN) == (409, "SINK_EXISTS")
    assert (await served.json("POST", "/v1/sinks/fan/pause", {}))["state"] == "paused"
    assert await served.refused("POST", "/v1/sinks/fan/polish", {}) == (404, "NOT_FOUND")
    assert await served.refused("GET", "/v1/sinks/fan/acl?pair=none") == (404, "PAIR_UNKNOWN")
    assert (await served.refused("POST", "/v1/sinks/fan/test", {}))[1] == "SINK_UNREACHABLE"
    await served.json("POST", "/v1/sinks/fan/remove", {})
    assert (await served.json("GET", "/v1/consent/grants"))["data"] == []


async def test_status_and_doctor_show_what_is_wrong(served: Served) -> None:
    assert "sinks" not in await served.json("GET", "/v1/status")
    await served.json("POST", "/v1/sinks", FAN, 201)
    assert (await served.json("GET", "/v1/status"))["sinks"] == {"total": 1, "open": 0, "lag_records": 0}
    sinks = served.services.engines.sinks
    sinks._states[sinks.named("fan").place_name] = SinkState(fault=EngineError("sink-auth"), failing_since_s=0.0)
    text = (await served.fetch("GET", "/metrics")).body.decode()
    assert 'spl_sink_open{sink="fan"} 0\n' in text
    assert 'spl_sink_lag_records{sink="fan"} NaN\n' in text
    assert re.search(r'spl_findings\{[^}]*code="sink-auth"[^}]*\} 1\n', text)
    for path, member in (("/v1/status", "attention"), ("/v1/doctor", "problems")):
        found = [item for item in (await served.json("GET", path))[member] if item["code"] == "sink-auth"]
        assert found[0]["sink"] == "fan"
        assert "NAME" not in found[0]["fix"]


def test_who_may_only_watch_sees_no_arguments_and_no_paths() -> None:
    row: dict[str, object] = {
        "url": "exec:/opt/put --password=x",
        "creds": "/a",
        "ca": "/b",
        "error": "x",
        "said": "secret",
        "name": "fan",
    }
    watching = cast(Principal, SimpleNamespace(scopes=frozenset({"status:read"})))
    seen = shown(row, watching)
    assert seen == {"url": "exec:put", "creds": None, "ca": None, "error": "x", "said": None, "name": "fan"}
    assert shown(row, cast(Principal, SimpleNamespace(scopes=frozenset({"admin"})))) == row
