"""What peers call: published documents, the signed messages of the handshake, and the source side of sync."""

from typing import Any, Final

from ..auth import Kind, Principal
from ..core import canon
from ..core.errors import SplError
from ..core.limits import Limits
from ..feed import FEEDS, Query
from ..net.routes import Request, Response
from .answers import field_error, json_response, members, number
from .services import Services

NO_CACHE: Final = (("cache-control", "no-cache"),)
MODES: Final = frozenset({"since", "limit", "feed", "thread", "target_namespace", "resync"})


def manifest(request: Request, principal: Principal, services: Services) -> Response:
    """GET /.well-known/syncropel: the signed manifest; the bytes depend on neither Host nor listener."""
    return _document(services.pairing.manifest_document())


def did_document(request: Request, principal: Principal, services: Services) -> Response:
    """GET /.well-known/did.json: the W3C DID document."""
    return _document(services.pairing.did_document())


async def ask(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair: a signed pair request; 200 when granted, 202 when our operator decides."""
    status, answer = await services.pairing.receive(request.body, request.peer)
    return json_response(answer, status)


async def poll(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair/{id}/poll: what became of a request; signed both ways."""
    status, answer = await services.pairing.poll(request.params["id"], request.body, request.peer)
    return json_response(answer, status)


async def confirm(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair/{id}/confirm: the initiator holds its token; the pair is active."""
    status, answer = await services.pairing.confirm(request.params["id"], request.body, request.peer)
    return json_response(answer, status)


async def notify_revoke(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair/{id}/notify-revoke: the peer revoked the pair; ours ends too."""
    status, answer = await services.pairing.notify_revoke(request.params["id"], request.body, request.peer)
    return json_response(answer, status)


async def changes(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sync/changes?since=&limit=&feed=&thread=&target_namespace=&resync=: a page of envelopes."""
    pair_id = await _pair_of(principal, services)
    unknown = request.query.keys() - MODES
    if unknown:
        raise field_error(min(unknown)[:40], "is not known here")
    feed = request.query.get("feed", "normal")
    if feed not in FEEDS:
        raise field_error("feed", f"must be one of {' '.join(FEEDS)}")
    limits: Limits = services.limits
    query = Query(
        since=request.query.get("since", ""),
        limit=number(request.query, "limit", limits.page_records_default, 1, limits.page_records),
        feed=feed,
        thread=request.query.get("thread", ""),
        namespace=request.query.get("target_namespace", ""),
        resync=request.query.get("resync") == "1",
    )
    return Response(body=await services.feed.changes(pair_id, query))


async def fetch(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync/records {ids}: those of the records that the pair shares."""
    pair_id = await _pair_of(principal, services)
    return Response(body=await services.feed.fetch(pair_id, members(request, {"ids": list}).get("ids")))


async def ack(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync/ack {cursor}: the peer holds everything up to there durably."""
    pair_id = await _pair_of(principal, services)
    return json_response(services.feed.ack(pair_id, members(request, {"cursor": str}).get("cursor")))


async def chains(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sync/chains?did=: the key chain of a signer whose records the pair shares."""
    return json_response(services.feed.chains(await _pair_of(principal, services), request.query.get("did", "")))


async def _pair_of(principal: Principal, services: Services) -> str:
    """Return the pair that asks.

    Its first authenticated use of the token counts as confirmation, and any contact ends our own backing off.
    """
    if principal.kind != Kind.PEER:
        raise SplError("scope-forbidden", "these routes serve a pair's own token, with its proof of possession")
    await services.pairing.contact(principal.pair_id)
    services.sync.wake(principal.pair_id)
    return principal.pair_id


def _document(value: dict[str, Any]) -> Response:
    return Response(200, canon.encode(value), headers=NO_CACHE)
