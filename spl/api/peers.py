"""What peers call: published documents, the signed messages of the handshake, and the source side of sync."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..core import canon
from ..core.errors import SplError
from ..core.limits import KIB, Limits
from ..core.record import page
from ..core.record.namespace import DEFAULT
from ..core.value import Json
from ..net import deflate
from ..net.routes import Request, Response
from ..net.sse import MEDIA_TYPE
from ..sync.changes import CONTINUOUS, FEEDS
from ..sync.pages import PageRead
from ..sync.source import Query
from .answers import NDJSON, Permit, field_error, json_response, members, number
from .auth import Kind, Principal, is_proxied
from .services import Services

READING: Final = "sync:read"
"""What permission rules call the reading of changes."""
SYNC: Final = "federation:sync"
SUBSCRIBE: Final = "federation:subscribe"
STREAM_HEADERS: Final = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""No cache may keep a stream, and nginx passes it on at once."""

FETCH_BYTES: Final = 128 * KIB
"""Of a request by id: 1,000 ids take 68 kB."""
NO_CACHE: Final = (("cache-control", "no-cache"),)
PARAMETERS: Final = frozenset({"since", "limit", "feed", "thread", "target_namespace", "resync", "names"})


def manifest(request: Request, principal: Principal, services: Services) -> Response:
    """GET /.well-known/syncropel: the signed manifest; the bytes depend on neither Host nor listener."""
    return _document(services.pairing.published.manifest())


def did_document(request: Request, principal: Principal, services: Services) -> Response:
    """GET /.well-known/did.json: the W3C DID document."""
    return _document(services.pairing.published.did_document())


async def ask(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair: a signed pair request; 200 when granted, 202 when our operator decides."""
    direct = request.address != request.peer or not is_proxied(request.headers)
    status, answer = await services.pairing.receive(request.body, request.address, direct=direct)
    return json_response(answer, status)


def signed(action: str) -> Callable[[Request, Principal, Services], Awaitable[Response]]:
    """Return the handler of a route for one kind of signed message, /v1/federation/pair/{id}/ and the action."""

    async def handle(request: Request, principal: Principal, services: Services) -> Response:
        status, answer = await services.pairing.answer(action, request.params["id"], request.body, request.address)
        return json_response(answer, status)

    return handle


poll = signed("poll")
confirm = signed("confirm")
notify_revoke = signed("notify-revoke")
renew = signed("renew")
hand_over = signed("consent")
pair_log = signed("log")


async def changes(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sync/changes?since=&limit=&feed=&thread=&target_namespace=&resync=&names=: envelopes, or a stream.

    A stream needs federation:subscribe as well.  It goes on from `since` and ignores Last-Event-ID: the proof signs the
    target and no header, so an attacker who holds a request back could otherwise read from another position.
    A token that our operator minted for no pair reads the pages of its own namespaces.
    """
    reads = _reads(principal)
    pair_id = principal.token_id if reads else await _pair_of(principal, services)
    unknown = request.query.keys() - PARAMETERS
    if unknown:
        raise field_error(min(unknown)[:40], "is not known here")
    feed = request.query.get("feed", "normal")
    if feed not in (*FEEDS, CONTINUOUS):
        raise field_error("feed", f"must be one of {' '.join((*FEEDS, CONTINUOUS))}")
    limits: Limits = services.limits
    query = Query(
        since=request.query.get("since", ""),
        limit=number(request.query, "limit", limits.page_records_default, 1, limits.page_records),
        feed=feed,
        thread=request.query.get("thread", ""),
        namespace=request.query.get("target_namespace", ""),
        resync=request.query.get("resync") == "1",
        reads=reads,
        names=request.query.get("names") == "1",
    )
    permit = Permit(services, READING, request, principal)
    if feed != CONTINUOUS:
        return await _page(services.feed.page(pair_id, query, permit), permit)
    if reads:
        raise SplError("scope-forbidden", "a stream serves a pair's own token, with its proof of possession")
    services.auth.require(principal, SUBSCRIBE)
    events = await services.feed.stream(pair_id, query, permit)
    if not deflate.accepts(request.headers.get("accept-encoding", "")):
        return Response(body=events, content_type=MEDIA_TYPE, headers=STREAM_HEADERS)
    coded = deflate.deflated(events, asyncio.get_running_loop().time)
    headers = (*STREAM_HEADERS, ("content-encoding", deflate.CODING), ("vary", "accept-encoding"))
    return Response(body=coded, content_type=MEDIA_TYPE, headers=headers)


async def records(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync/records: {ids} fetches those of the records that the pair shares; NDJSON takes in pushed ones."""
    pushed = request.headers.get("content-type", "").partition(";")[0].strip() == NDJSON
    reads = () if pushed else _reads(principal)
    pair_id = principal.token_id if reads else await _pair_of(principal, services)
    if pushed:
        return json_response(await services.push.receive(pair_id, request.body))
    if len(request.body) > FETCH_BYTES:
        raise SplError("body-too-large", f"ids are asked for in at most {FETCH_BYTES} bytes")
    permit, ids = Permit(services, READING, request, principal), members(request, {"ids": list}).get("ids")
    return await _page(services.feed.records(pair_id, ids, reads, permit), permit)


async def ack(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync/ack {cursor, peer_view?, received?}: the peer holds everything up to there durably, and sees us so.

    `received` names the last record of each namespace that came by an engine; the cursor behind them is in the answer.
    """
    pair_id = await _pair_of(principal, services)
    await services.feed.counted(pair_id)
    fields = members(request, {"cursor": str, "peer_view": dict, "received": dict})
    if "peer_view" in fields:
        services.feed.source.reaches.heard(pair_id, page.read_view(fields["peer_view"]))
    cursor, more = fields.get("cursor"), Json()
    if cursor and fields.get("received") and services.engines.configured:
        steps = services.engines.sinks.reached(pair_id, cursor, fields["received"])
        cursor = more["cursor"] = await services.searches.run(principal, steps)
    await services.feed.ack(pair_id, cursor)
    return json_response({"peer_view": services.feed.peer_view(pair_id), **more})


async def chains(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/sync/chains?did=: the key chain of a signer whose records the pair shares."""
    return json_response(services.feed.chains(await _pair_of(principal, services), request.query.get("did", "")))


async def fingerprints(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync/fingerprints: what the pair shares, by ranges, so that the peer finds what one side lacks."""
    return Response(body=await services.fingerprints.answer(await _pair_of(principal, services), request.body))


async def _page(found: Awaitable[bytes | PageRead], permit: Permit) -> Response:
    """Answer with a page, unless the credential ended while it was looked up."""
    body = await found
    try:
        permit.check()
    except SplError:
        if isinstance(body, PageRead):
            await body.aclose()
        raise
    return Response(body=body)


async def _pair_of(principal: Principal, services: Services) -> str:
    """Return the pair that asks.

    Its first authenticated use of the token counts as confirmation, and any contact ends our own backing off.
    """
    if principal.kind != Kind.PEER:
        raise SplError("scope-forbidden", "these routes serve a pair's own token, with its proof of possession")
    await services.pairing.contact(principal.pair_id, principal.token_id)
    services.sync.wake(principal.pair_id, principal.process)
    return principal.pair_id


def _reads(principal: Principal) -> tuple[str, ...]:
    """Return the namespaces that a token minted for no pair reads: its own, else `default`; none for any other.

    The scope must be the token's by name: neither admin nor federation:manage makes a reader of changes.
    """
    if principal.kind != Kind.TOKEN or SYNC not in principal.scopes:
        return ()
    return principal.namespaces or (DEFAULT,)


def _document(value: dict[str, Any]) -> Response:
    return Response(200, canon.encode(value), headers=NO_CACHE)
