"""The registry of namespaces for its operator: make, list, show, share, archive, delete.

A bound token sees its own namespaces only; it cannot tell another one from one that does not exist.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ..core import consent
from ..core.errors import SplError, count
from ..core.pair.pair import Pair
from ..core.record import namespace
from ..core.record.levels import NAMES
from ..core.record.namespace import ACTIVE, ARCHIVED, DEFAULT, Namespace, NamespaceError
from ..core.value import Json
from ..home.tables.lists import by_namespace
from ..home.views import THREAD_NAMESPACES
from ..home.writes import Own
from ..net.routes import Request, Response
from .answers import is_admin, json_response, list_response, members
from .auth import Principal
from .services import Services


def listing(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/namespaces: the registry, with the number of records in each."""
    found = sorted(services.views.namespaces.values(), key=lambda item: item.name)
    return list_response([_facts(services, item) for item in found if principal.reaches(item.name)])


def show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/namespaces/{name}: one, and for an admin the pairs that share it and the tokens bound to it."""
    name = request.params["name"]
    if not principal.reaches(name):
        raise _unknown(name)
    found = _registered(services, name)
    return json_response(_detail(services, found) if is_admin(principal) else _facts(services, found))


async def create(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/namespaces {name, shared?}: register one below those there are, or bring an archived one back.

    `shared` also marks one that exists; without it nothing is unshared.
    """
    fields = members(request, {"name": str, "shared": bool})
    name, shared = namespace.check_name(fields.get("name")), fields.get("shared", False)
    before = services.views.namespaces.get(name)
    if "/" in name:
        namespace.usable(services.views.namespaces, name.rpartition("/")[0])
    if before is None:
        await _append(services, namespace.KIND_CREATE, name, shared=shared)
    elif not before.active:
        await _append(services, namespace.KIND_STATE, name, state=ACTIVE)
    if before is not None and shared and not before.shared:
        await _append(services, namespace.KIND_SHARE, name, shared=True)
    facts = _facts(services, services.views.namespaces[name])
    revived = before is not None and not before.active
    return json_response({**facts, "already": before is not None and not revived, "revived": revived})


async def act(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/namespaces/{name}/{action}: share, unshare or archive; `already` if nothing had to change."""
    members(request, {})
    action = ACTIONS.get(request.params["action"])
    if action is None:
        raise SplError("not-found", f"a namespace has no action {request.params['action'][:40]!r}")
    found = _registered(services, request.params["name"])
    if found.name == DEFAULT and request.params["action"] != "share":
        raise NamespaceError("bad-field", f"namespace {DEFAULT} is always there and shared")
    await action(services, found)
    after = services.views.namespaces[found.name]
    return json_response({**_detail(services, after), "already": after == found})


async def delete(request: Request, principal: Principal, services: Services) -> Response:
    """DELETE /v1/namespaces/{name}: forget an empty one that no pair shares, with nothing active below.

    It is archived first, so that nothing is written into it between the check and the deletion.
    """
    found = _registered(services, request.params["name"])
    _check_unused(services, found.name)
    await _archive(services, found)
    try:
        _check_unused(services, found.name)
    except SplError:
        if found.active:
            await _append(services, namespace.KIND_STATE, found.name, state=ACTIVE)
        raise
    await _append(services, namespace.KIND_DELETE, found.name)
    return json_response({**_facts(services, found), "state": "deleted"})


async def _share(services: Services, found: Namespace) -> None:
    """Mark it: new pairs may agree on it without naming it."""
    namespace.usable(services.views.namespaces, found.name)
    if not found.shared:
        await _append(services, namespace.KIND_SHARE, found.name, shared=True)


async def _unshare(services: Services, found: Namespace) -> None:
    """Remove the mark; what pairs agreed on before stays agreed."""
    if found.shared:
        await _append(services, namespace.KIND_SHARE, found.name, shared=False)


async def _archive(services: Services, found: Namespace) -> None:
    """End the writes into it and below; reads stay, and pairs stop sharing it."""
    if found.active:
        await _append(services, namespace.KIND_STATE, found.name, state=ARCHIVED)


ACTIONS: Final[Mapping[str, Callable[[Services, Namespace], Awaitable[None]]]] = {
    "share": _share,
    "unshare": _unshare,
    "archive": _archive,
}


async def _append(services: Services, kind: str, name: str, **facts: object) -> None:
    own = Own(THREAD_NAMESPACES, kind, {"name": name, **facts})
    await asyncio.wrap_future(services.writer.submit([own]))


def _check_unused(services: Services, name: str) -> None:
    """Raise NamespaceError "namespace-in-use" if something would be lost with the namespace."""
    if name == DEFAULT:
        raise NamespaceError("bad-field", f"namespace {DEFAULT} is always there and shared")
    hint = f"spl namespace archive {name}"
    records = services.store.index.count(by_namespace(name))
    below = [item.name for item in namespace.children(services.views.namespaces, name) if item.active]
    pairs = [pair.pair_id for pair in services.views.pairs.values() if _shares(services, pair, name)]
    if records:
        raise NamespaceError("namespace-in-use", f"namespace {name} holds {count(records, 'record')}", hint=hint)
    if below:
        raise NamespaceError("namespace-in-use", f"namespace {below[0]} lies below it", hint=hint)
    if pairs:
        hint = f"spl federation revoke-grant {pairs[0]} --namespace {name}; to archive it instead: {hint}"
        raise NamespaceError("namespace-in-use", f"{', '.join(pairs[:5])} shares namespace {name}", hint=hint)


def _shares(services: Services, pair: Pair, name: str) -> bool:
    """Return whether a live pair sends the namespace, or would if the namespace were active."""
    if pair.ended or pair.answer is None:
        return False
    grant = consent.grants_of(services.views.consents, pair).ours.get(name)
    return grant.level is not None if grant is not None else name in pair.namespaces


def _registered(services: Services, name: str) -> Namespace:
    found = services.views.namespaces.get(namespace.check_name(name))
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> SplError:
    return SplError("not-found", f"there is no namespace {name[:80]}", hint="spl namespace list")


def _facts(services: Services, found: Namespace) -> dict[str, Any]:
    """Return what `list` shows."""
    return {
        "object": "namespace",
        "name": found.name,
        "state": found.state,
        "shared": found.shared,
        "records": services.store.index.count(by_namespace(found.name)),
    }


def _detail(services: Services, found: Namespace) -> dict[str, Any]:
    """Return what `show` shows: also why it is not usable, which pairs share it, and which tokens are bound to it."""
    views, now_ms = services.views, services.now_ms()
    unusable: str | None = None
    try:
        namespace.usable(views.namespaces, found.name)
    except NamespaceError as exc:
        unusable = exc.message
    tokens = [
        {"token_id": token.token_id, "scopes": sorted(token.scopes), "label": token.label}
        for token in views.tokens.values()
        if found.name in token.namespaces and not (token.revoked or token.pair_id or token.expires_at_ms <= now_ms)
    ]
    sharing = [pair for pair in views.pairs.values() if _shares(services, pair, found.name)]
    pairs = [_sharing(services, pair, found.name) for pair in sharing]
    return {**_facts(services, found), "unusable": unusable, "pairs": pairs, "tokens": tokens}


def _sharing(services: Services, pair: Pair, name: str) -> Json:
    """Return how a pair shares the namespace; `level` None while nothing flows, such as from an archived one."""
    grants = consent.grants_of(services.views.consents, pair)
    shares = consent.outbound(pair, grants, services.views.namespaces)
    share = next((share for share in shares if share.ns == name), None)
    return {
        "pair_id": pair.pair_id,
        "peer_did": pair.peer_did,
        "peer_namespace": share.peer_ns if share else None,
        "level": NAMES[share.level] if share else None,
    }
