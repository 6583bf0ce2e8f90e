"""Sinks for their operator: where records of which namespaces go, what each is doing, and its findings."""

from typing import Final

from ..core.errors import SplError
from ..core.identity import bearer
from ..core.value import Json
from ..doctor.catalogue import Finding, sink_problems
from ..doctor.facts import Fault
from ..net.routes import Request, Response
from ..pairing.names import pair_named
from .answers import field_error, json_response, list_response, members, texts
from .auth import Kind, Principal
from .services import Services

ACTIONS = frozenset({"pause", "resume", "remove"})
MANAGE: Final = "federation:manage"
EXEC: Final = "exec:"
"""How the URL of a program begins."""


def listing(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sinks: every sink with what it is doing."""
    return list_response([shown(services.engines.sinks.to_json(sink), principal) for sink in services.engines.all()])


def shown(row: Json, principal: Principal) -> Json:
    """Return a sink as the principal may see it: who may only watch sees of a program only its name, and no paths."""
    if bearer.holds(principal.scopes, MANAGE):
        return row
    url = str(row["url"])
    if url.startswith(EXEC):
        url = EXEC + url.removeprefix(EXEC).split()[0].rpartition("/")[2]
    return {**row, "url": url, "creds": None, "ca": None, "said": None}


def show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sinks/{name}: one sink."""
    _check_any(services)
    found = services.engines.sinks.to_json(services.engines.sinks.named(request.params["name"]))
    return json_response(shown(found, principal))


async def add(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sinks {name, url, namespaces, subjects?, from?, creds?, ca?}: begin to send; `from` is "0" or "now"."""
    fields = members(request, {
        "name": str, "url": str, "namespaces": list, "subjects": str, "from": str, "creds": str, "ca": str,
    })  # fmt: skip
    for name in ("name", "url", "namespaces"):
        if not fields.get(name):
            raise field_error(name, "is missing")
    start = fields.pop("from", "0")
    if start not in ("0", "now"):
        raise field_error("from", 'is "0" or "now"')
    if fields["url"].startswith(EXEC) and principal.kind != Kind.LOCAL:
        raise SplError("scope-forbidden", "a program is named on this machine only, by the home's own socket")
    fields["namespaces"] = texts(fields["namespaces"], "namespaces")
    sinks = services.engines.sinks
    return json_response(sinks.to_json(await sinks.add(fields, from_now=start == "now")), 201)


async def act(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sinks/{name}/{action}: pause, resume, remove, or test: ask its server now."""
    members(request, {})
    _check_any(services)
    sinks, name, action = services.engines.sinks, request.params["name"], request.params["action"]
    if action == "test":
        return json_response(await sinks.test(name))
    if action not in ACTIONS:
        raise SplError("not-found", f"there is no action {action[:40]!r}; there are pause, resume, remove and test")
    found = await sinks.act(name, action)
    readers = {"readers": sinks.readers(found)} if action == "remove" else {}
    return json_response({**sinks.to_json(found), **readers})


def acl(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sinks/{name}/acl?pair=: what a user of the server needs to read what a pair shares, and no more."""
    _check_any(services)
    pair = pair_named(services.views.pairs, request.query.get("pair", ""))
    return json_response(services.engines.sinks.acl(request.params["name"], pair))


def findings(services: Services) -> list[Finding]:
    """Return what is wrong with the sinks and with the engines of pairs."""
    engines, limits, found = services.engines, services.limits, list[Finding]()
    for fault in engines.sinks.faults() if engines.configured else ():
        seen = Fault(fault.code, fault.message, fault.hint)
        found += sink_problems(limits, f"sink {fault.name}", seen, fault.since_s, sink=fault.name)
    for fault in engines.carriers.faults() if engines.carrying else ():
        seen = Fault(fault.code, fault.message, fault.hint)
        found += sink_problems(limits, f"engine of {fault.name}", seen, fault.since_s, pair_id=fault.name)
    return found


def _check_any(services: Services) -> None:
    if not services.engines.configured:
        raise SplError("sink-unknown", "there are no sinks here", hint="spl sink add nats://HOST --namespace NAME")
