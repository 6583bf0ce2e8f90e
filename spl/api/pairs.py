"""Pairs for their operator: the handshake as a stream of steps, the list, one in full, and its actions."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Final

from ..auth import Principal
from ..core import pair as pairs
from ..core import when
from ..core.did import words
from ..core.errors import SplError
from ..core.pair import Pair
from ..net.routes import Request, Response
from ..pairing import PairOptions
from .answers import field_error, json_response, list_response, members, texts
from .records import NDJSON
from .services import Services

WAIT_MS_DEFAULT: Final = 60_000
WAIT_MS_MAX: Final = 24 * 3_600_000


def pair(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs {url, …}: NDJSON, one object a step; the daemon goes on when the caller is gone."""
    fields = members(request, {
        "url": str, "namespaces": list, "maps": list, "strict": bool, "auto_generate_identity": bool,
        "expect_did": str, "expect_key": str, "backfill": bool, "from_now": bool, "actors": list, "wait_ms": int,
    })  # fmt: skip
    if not fields.get("url"):
        raise field_error("url", "is missing")
    wait_ms = fields.get("wait_ms", WAIT_MS_DEFAULT)
    if not 0 <= wait_ms <= WAIT_MS_MAX:
        raise field_error("wait_ms", f"must be from 0 to {WAIT_MS_MAX}")
    options = PairOptions(
        namespaces=texts(fields.get("namespaces", []), "namespaces"),
        maps=_maps(fields.get("maps", [])),
        strict=fields.get("strict", True),
        auto_generate_identity=fields.get("auto_generate_identity", False),
        expect_did=fields.get("expect_did", ""),
        expect_key=fields.get("expect_key", ""),
        backfill=fields.get("backfill", False),
        from_now=fields.get("from_now", False),
        actors=texts(fields.get("actors", []), "actors"),
        wait_ms=wait_ms,
    )
    return Response(body=_steps(services, fields["url"], options), content_type=NDJSON)


async def _steps(services: Services, url: str, options: PairOptions) -> AsyncIterator[bytes]:
    try:
        async for step in services.pairing.pair(url, options):
            yield json.dumps(step, ensure_ascii=False).encode() + b"\n"
    except SplError as exc:
        yield json.dumps({"step": "error", "error": exc.to_json()}, ensure_ascii=False).encode() + b"\n"


def listing(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs: every pair, live ones first, then by age."""
    every = services.views.pairs.values()
    ordered = sorted(every, key=lambda item: (item.phase == pairs.Phase.REVOKED, item.created_at_ms))
    return list_response([_summary(services, item) for item in ordered])


def show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs/{ref}: one pair in full; ref is an id, a unique prefix, or the peer's DID."""
    return json_response(detail(services, services.pairing.resolve(request.params["ref"])))


async def act(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs/{ref}/{action}: pause, resume, revoke, refresh, mode, poll-interval or sync."""
    action = request.params["action"]
    found = services.pairing.resolve(request.params["ref"])
    if action == "sync":
        thread = members(request, {"thread": str}).get("thread", "")
        records = await services.sync.pull(found.pair_id, thread)
        return json_response({**_summary(services, found), "records": records})
    before = found.phase, found.mode, found.poll_interval_ms, found.paused_by
    await _change(request, services, found, action)
    after = services.views.pairs[found.pair_id]
    same = before == (after.phase, after.mode, after.poll_interval_ms, after.paused_by)
    return json_response({**detail(services, after), "already": same and action != "refresh"})


async def sync_all(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync: sync every pair that is neither paused nor revoked; each with its own result."""
    rows: list[dict[str, object]] = []
    for found in services.views.pairs.values():
        if found.sync_allowed:
            try:
                rows.append({"pair_id": found.pair_id, "records": await services.sync.pull(found.pair_id)})
            except SplError as exc:
                rows.append({"pair_id": found.pair_id, "records": 0, "error": exc.to_json()})
    return list_response(rows)


def requests(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/aitl: requests that wait for a decision, and with ?all=1 the decided ones."""
    everything = request.query.get("all") == "1"
    found = [item for item in services.views.requests.values() if everything or item.status == "pending"]
    return list_response([pairs.request_summary(item) for item in found])


def request_show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/aitl/{id}: one request, by id or unique prefix."""
    return json_response(pairs.request_summary(services.pairing.resolve_request(request.params["id"])))


async def decide(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/aitl/{id}/decide {decision, reason?, digest?}: approve or reject exactly that request."""
    fields = members(request, {"decision": str, "reason": str, "digest": str})
    found = services.pairing.resolve_request(request.params["id"])
    if fields.get("decision") not in ("approve", "reject"):
        raise field_error("decision", "must be approve or reject")
    if fields.get("digest") not in (None, found.digest):
        raise SplError("pair-state-conflict", "the request changed since it was shown")
    await services.pairing.decide_request(found.request_id, fields["decision"], fields.get("reason", ""))
    return json_response(pairs.request_summary(services.views.requests[found.request_id]))


def detail(services: Services, found: Pair) -> dict[str, object]:
    """Return the pair in full, as `spl federation show` prints it."""
    reading, offered = services.sync.status(found.pair_id), services.feed.offered(found.pair_id)
    identity = services.vault.identity
    return {
        **_summary(services, found),
        "since": when.text_of(found.since_ms),
        "reason": found.reason,
        "last_sync_cursor": {"clock": reading["clock"], "lag_records": reading["lag_records"]},
        "outbound": {"clock": offered["clock"], "lag_records": offered["lag_records"]},
        "last_confirmed_at": offered["last_read_at"],
        "next_attempt_at": reading["next_attempt_at"],
        "attempt": reading["attempt"],
        "last_error": reading["last_error"],
        "peer_view": reading["peer_view"],
        "manifest": {
            "did": found.peer.did,
            "pair_endpoint": found.peer.pair_endpoint,
            "signed_at": when.text_of(found.peer.signed_at_ms),
            "fetched_at": when.text_of(found.fetched_at_ms),
            "expires_at": when.text_of(found.peer.expires_at_ms),
        },
        "peer_words": words(found.chain.present),
        "our_words": words(identity.chain.present) if identity else None,
        "tokens": list(_tokens(found, services.now_ms())),
        "maps": [{"local": local, "peer": peer} for local, peer in found.maps],
        "refused_records": services.views.refused.get(found.pair_id, 0),
        "transitions": [
            {"at": when.text_of(at_ms), "from": before, "to": after, "reason": reason}
            for at_ms, before, after, reason in reversed(found.transitions)
        ],
        "fix": _fix(found),
    }


def _tokens(found: Pair, now_ms: int) -> Iterator[dict[str, object]]:
    """Yield both tokens by name; the plaintext of neither is ever shown."""
    for direction, token in (("issued to us", found.issued_to_us), ("issued by us", found.issued_by_us)):
        if token is not None:
            dead = found.phase == pairs.Phase.REVOKED
            state = "revoked" if dead else "expired" if token.expires_at_ms <= now_ms else "live"
            yield {
                "direction": direction,
                "token_id": token.token_id,
                "scopes": list(token.scopes),
                "expires_at": when.text_of(token.expires_at_ms),
                "state": state,
            }


def _fix(found: Pair) -> str | None:
    """Return the one next step for a pair that does not sync, or None."""
    match found.phase:
        case pairs.Phase.DEGRADED:
            return f"spl federation refresh {found.pair_id}"
        case pairs.Phase.PAUSED if found.paused_by != "peer":
            return f"spl federation resume {found.pair_id}"
        case pairs.Phase.ESTABLISHING if not found.initiator and found.issued_by_us is None:
            return f"spl aitl approve {found.pair_id}"
        case pairs.Phase.REVOKED:
            return f"spl federation pair {found.url}/"
    return None


async def _change(request: Request, services: Services, found: Pair, action: str) -> None:
    pairing = services.pairing
    if action in ("pause", "resume", "revoke"):
        reason = members(request, {"reason": str}).get("reason", "")
        step = {"pause": pairing.pause, "resume": pairing.resume, "revoke": pairing.revoke}[action]
        await step(found.pair_id, reason)
    elif action == "refresh":
        members(request, {})
        await pairing.refresh(found.pair_id)
    elif action == "mode":
        await pairing.set_mode(found.pair_id, members(request, {"mode": str}).get("mode", ""))
    elif action == "poll-interval":
        await pairing.set_poll_interval(found.pair_id, members(request, {"interval_ms": int}).get("interval_ms", 0))
    else:
        raise SplError("not-found", f"a pair has no action {action[:40]!r}")


def _summary(services: Services, found: Pair) -> dict[str, object]:
    status = services.sync.status(found.pair_id)
    return {"object": "pair", **pairs.summary(found), "last_sync_at": status["last_sync_at"]}


def _maps(value: object) -> tuple[tuple[str, str], ...]:
    """Return [{local, peer}] as pairs; raise "bad-field"."""
    if not isinstance(value, list) or len(value) > 64:
        raise field_error("maps", "must be a list of at most 64")
    found = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != {"local", "peer"}:
            raise field_error("maps", "holds objects with local and peer")
        found.append(texts([item["local"], item["peer"]], "maps"))
    return tuple((local, peer) for local, peer in found)
