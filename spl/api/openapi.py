"""GET /v1/openapi.json: OpenAPI 3.2, made from the route table, so that it cannot be out of date.

What the table knows is exact: paths, methods, scopes, body limits, media types, streams as streams of items.  Query
parameters stand in QUERY below, which a test holds against what handlers read.  Bodies and answers are objects without
a closer form: the manual describes them, and new members may appear.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from ..core.errors import CODES, http_code
from ..core.version import VERSION
from ..net.routes import JSON, Request, Response, Route
from ..net.sse import MEDIA_TYPE as EVENT_STREAM
from .answers import NDJSON
from .auth import ANYONE, Principal
from .services import Services

QUERY: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/records": ("thread", "actor", "kind", "since", "limit"),
    "/v1/threads": ("after", "limit", "reserved"),
    "/v1/threads/{thread}/records": ("kind", "since", "limit"),
    "/v1/threads/{thread}/watch": ("since_clock",),
    "/v1/threads/restore": ("dry_run", "skip_damaged", "accept_retired", "upload", "at", "more"),
    "/v1/aitl": ("all",),
    "/v1/consent/grants": ("pair",),
    "/v1/federation/pairs/{ref}/acks": ("namespace", "beyond", "wait_ms"),
    "/v1/federation/pairs/{ref}/projections": ("namespace", "after", "limit"),
    "/v1/sync/changes": ("since", "limit", "feed", "thread", "target_namespace", "resync", "names"),
    "/v1/sinks/{name}/acl": ("pair",),
    "/v1/sync/chains": ("did",),
    "/ui/events": ("from",),
    "/ui/open": ("code",),
}
"""Path -> parameters of its GET, or of its POST where there is no GET; all optional."""
NUMBERS: Final = frozenset({"limit", "since_clock", "beyond", "wait_ms", "at"})
EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/events": ("snapshot", "pair", "daemon", "heartbeat", "server_shutdown", "error"),
    "/ui/events": ("stale", "part", "heartbeat", "server_shutdown", "error"),
    "/v1/threads/{thread}/watch": ("record.created", "heartbeat", "server_shutdown", "error"),
}
"""Path -> names of its events; the stream of a peer has those of the protocol."""
_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
_WORD: Final = re.compile(r"[a-z0-9]+")
_ERROR: Final = {"$ref": "#/components/responses/Error"}


def document(routes: tuple[Route, ...], url: str) -> dict[str, Any]:
    """Return the description of the routes; `url` is where this daemon is reached."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.2.0",
        "info": {"title": "spl", "version": VERSION, "description": "A federation daemon; `spl help http`."},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "spl token mint"}},
            "responses": {"Error": {"description": "Refused", "content": {JSON: {"schema": _of("Error")}}}},
            "schemas": _schemas(),
        },
    }


def serve(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/openapi.json: the description, with an ETag; open to anyone, as the source is."""
    held = services.held.get("openapi")
    if not isinstance(held, bytes):
        routes = import_module(".table", __package__).ROUTES  # at the top it would be a circle: the table names us
        held = services.held["openapi"] = json.dumps(document(routes, services.url), separators=(",", ":")).encode()
    tag = f'"{hashlib.sha256(held).hexdigest()[:32]}"'
    headers = (("etag", tag), ("cache-control", "no-cache"))
    if tag in request.headers.get("if-none-match", ""):
        return Response(304, headers=headers)
    return Response(200, held, headers=headers)


def _operation(route: Route) -> dict[str, Any]:
    open_to_all = route.scope == ANYONE
    scopes = [] if open_to_all else [route.scope, *route.also]
    parameters = [_parameter(name, "path") for name in _PARAMETER.findall(route.path)]
    if route.method != "DELETE":
        parameters += [_parameter(name, "query") for name in QUERY.get(route.path, ())]
    content = {media: _content(route, media) for media in route.gives}
    answer = {"2XX": {"description": "Done", "content": content}} if content else {"3XX": {"description": "Elsewhere"}}
    return {
        "operationId": "_".join(
            [route.method.lower(), *_WORD.findall(route.path), *(() if content else ("elsewhere",))]
        ),
        "summary": route.summary,
        "security": [] if open_to_all else [{"bearer": [scope]} for scope in scopes],
        "x-spl-scopes": scopes,
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _body(route), "x-spl-body-bytes-max": route.body_bytes} if route.body_bytes else {}),
        "responses": {**answer, "4XX": _ERROR, "5XX": _ERROR},
    }


def _body(route: Route) -> dict[str, Any]:
    kinds = ["object", "array"] if len(route.media) > 1 else ["object"]
    whole, items = {"schema": {"type": kinds}}, {"itemSchema": {"type": ["object"]}}
    return {"required": False, "content": {media: items if media == NDJSON else whole for media in route.media}}


def _content(route: Route, media: str) -> dict[str, Any]:
    """Return what an answer of this media type holds; a stream is declared by its items."""
    if media == EVENT_STREAM:
        names = EVENTS.get(route.path)
        event = {"event": {"type": "string", **({"enum": list(names)} if names else {})}}
        return {"itemSchema": {"allOf": [_of("Event"), {"type": "object", "properties": event}]}}
    if media == NDJSON:
        return {"itemSchema": {"type": "object"}}
    return {"schema": {"type": "object" if media == JSON else "string"}}


def _parameter(name: str, where: str) -> dict[str, Any]:
    kind = {"type": "integer", "minimum": -1 if name == "since_clock" else 0} if name in NUMBERS else {"type": "string"}
    return {"name": name, "in": where, "required": where == "path", "schema": kind}


def _schemas() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "Error": {
            "type": "object",
            "required": ["object", "type", "code", "message", "hint"],
            "properties": {
                "object": {"const": "error"},
                "type": {"enum": ["invalid_request", "api_error"]},
                "code": {"enum": sorted(map(http_code, CODES))},
                "message": text,
                "hint": text,
            },
        },
        "Event": {
            "type": "object",
            "required": ["event", "data"],
            "properties": {"event": text, "id": text, "data": {**text, "contentMediaType": JSON}},
        },
    }


def _of(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
