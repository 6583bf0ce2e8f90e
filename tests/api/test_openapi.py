"""The description of the routes: valid, small, the same as the table both ways, and true of what the daemon answers."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV32SpecValidator

from spl.api import consent, lists, pairs, peers, records, sinks, snapshots, watch
from spl.api.auth import ANYONE
from spl.api.openapi import EVENTS, QUERY, document
from spl.api.table import ROUTES
from spl.net.sse import MEDIA_TYPE
from tests.api.conftest import Served

DOCUMENT = document(ROUTES, "http://127.0.0.1:9100")
OPERATIONS = {
    (method.upper(), path): operation for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
}
BODIES = (b"", b"[]", b'{"' + b"x" * 300 + b'":[[[]]]}', b"\xff\x00")


def content_of(operation: dict[str, Any]) -> dict[str, Any]:
    """Return what a route answers by media type; none if it only sends elsewhere."""
    responses = operation["responses"]
    assert ("2XX" in responses) != ("3XX" in responses)
    return dict(responses["2XX"]["content"]) if "2XX" in responses else {}


def test_it_is_valid() -> None:
    OpenAPIV32SpecValidator(DOCUMENT).validate()
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)


def test_it_says_what_the_table_says_and_nothing_else() -> None:
    assert OPERATIONS.keys() == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        found = OPERATIONS[route.method, route.path]
        scopes = [] if route.scope == ANYONE else [route.scope, *route.also]
        assert found["x-spl-scopes"] == scopes
        assert [next(iter(each.values())) for each in found["security"]] == [[scope] for scope in scopes]
        assert found.get("x-spl-body-bytes-max", 0) == route.body_bytes
        assert set(found.get("requestBody", {}).get("content", {})) == (set(route.media) if route.body_bytes else set())
        assert set(content_of(found)) == set(route.gives)


def test_streams_are_declared_by_their_items() -> None:
    streams = {path for (_, path), item in OPERATIONS.items() if MEDIA_TYPE in content_of(item)}
    assert streams == {*EVENTS, "/v1/sync/changes"}
    for item in OPERATIONS.values():
        for media, content in content_of(item).items():
            assert ("itemSchema" in content) == (media in (MEDIA_TYPE, "application/x-ndjson"))


@pytest.mark.parametrize("module", [consent, lists, pairs, peers, records, sinks, snapshots, watch])
def test_every_parameter_that_a_handler_reads_is_named(module: Any) -> None:
    source = inspect.getsource(module)
    forms = (r'query\.get\("([a-z_]+)"', r'number\(request\.query, "([a-z_]+)"', r'_flag\(request, "([a-z_]+)"')
    read = {name for form in forms for name in re.findall(form, source)}
    assert read <= {name for names in QUERY.values() for name in names}


def test_parameters_are_those_that_the_handlers_say_they_take() -> None:
    text = "".join(path.read_text() for path in Path(lists.__file__).parent.glob("*.py"))
    told = dict(re.findall(r"[A-Z]+ (/v1/[^ ?]+)\?([a-z_=&]+):", text))
    assert len(told) > 8
    for path, names in told.items():
        assert set(names.replace("=", "").split("&")) == set(QUERY[path]), path


async def test_anyone_reads_it_and_need_not_read_it_twice(served: Served) -> None:
    reply = await served.fetch("GET", "/v1/openapi.json", token="")
    assert reply.status == 200
    assert len(reply.body) < 150_000
    assert json.loads(reply.body)["paths"].keys() == DOCUMENT["paths"].keys()
    tag = reply.headers["etag"]
    again = await served.fetch("GET", "/v1/openapi.json", token="", headers=(("if-none-match", tag),))
    assert (again.status, again.body) == (304, b"")


async def test_no_request_is_answered_otherwise_than_declared(served: Served) -> None:
    """Each route but the endless streams, with bodies that fit and do not: no fault, and only what is declared."""
    codes = set(DOCUMENT["components"]["schemas"]["Error"]["properties"]["code"]["enum"])
    for (method, path), operation in OPERATIONS.items():
        if path in EVENTS or path in ("/v1/identity/rotate", "/v1/identity/generate") or not content_of(operation):
            continue
        target = re.sub(r"\{[a-z_]+\}", "x", path)
        for body in BODIES if "requestBody" in operation else (b"",):
            media = (
                next(iter(operation["requestBody"]["content"])) if "requestBody" in operation else "application/json"
            )
            reply = await served.fetch(method, target, body, headers=(("content-type", media),))
            kind = reply.headers["content-type"]
            assert reply.status != 500, (method, path, body, reply.body)
            if reply.status < 300:
                assert kind in content_of(operation), (method, path)
                continue
            value = json.loads(reply.body)
            assert (kind, value["object"]) == ("application/json", "error"), (method, path)
            assert value["code"] in codes
