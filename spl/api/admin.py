"""The daemon itself: health, status, identity, tokens and settings, for its operator."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ..core import when
from ..core.errors import SplError
from ..core.identity import bearer
from ..core.pair.modes import ON_DEMAND, POLLING
from ..core.pair.pair import Pair
from ..core.record import namespace
from ..core.value import Json, asdict, replace
from ..core.version import VERSION
from ..home.home import identity_facts
from ..home.views import THREAD_TOKENS
from ..home.writes import Own
from ..host import program
from ..net.routes import Request, Response
from ..pairing.exchange import MANIFEST_PATH
from ..pairing.names import pair_named
from .answers import field_error, is_admin, json_response, list_response, members, records_kept, texts
from .auth import Kind, Principal
from .services import Services

if TYPE_CHECKING:
    from ..doctor.catalogue import Finding

ENVIRONMENT: Final = "home"
TTL_MS_MAX: Final = 10 * 365 * 86_400_000
"""A token without an end would outlive its purpose unnoticed."""
TOKENS_NAMED: Final = 5
"""Of those that a beginning fits."""


def health(request: Request, principal: Principal, services: Services) -> Response:
    """GET /health: that the daemon answers, and who it is; open to anyone."""
    identity = services.vault.identity
    value: Json = {
        "status": "readonly" if services.store.readonly or services.store.full else "ok",
        "version": VERSION,
        "did": identity.did if identity else None,
        "label": identity.label if identity else None,
        "started_at": when.text_of(services.started_ms),
        "uptime_s": (services.now_ms() - services.started_ms) // 1000,
        "url": services.url,
    }
    if is_admin(principal):
        stats = services.store.stats()
        value |= {"pid": os.getpid(), "records": records_kept(services), "store_bytes": stats.log_bytes}
    return json_response(value)


def ready(request: Request, principal: Principal, services: Services) -> Response:
    """GET /health/ready: 200 while writes are taken, 503 otherwise."""
    if services.store.readonly:
        raise SplError("store-readonly")
    if services.store.full:
        raise SplError("store-full", services.store.full)
    program.check("api.emit")
    return json_response({"status": "ready"})


def status(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/status: identity, store, pairs, lag, queue, and what needs attention with its next step."""
    found = (*services.doctor.attention(), *service_findings(services))
    return json_response(status_of(services, [item.to_json() for item in found]))


def status_of(services: Services, attention: list[Json]) -> Json:
    """Return the daemon on one page, with what needs attention."""
    identity, stats, pairs = services.vault.identity, services.store.stats(), services.views.pairs
    reading = {pair_id: services.sync.status(pair_id) for pair_id, item in pairs.items() if item.live}
    lags = [(found.lag_records or 0, pair_id) for pair_id, found in reading.items()]
    worst = max(lags, default=(0, ""))
    synced = {pair_id: found.last_sync_at or "" for pair_id, found in reading.items()}
    oldest = min(((at, pair_id) for pair_id, at in synced.items() if _listens(pairs[pair_id])), default=("", ""))
    return {
        "object": "status",
        "identity": {"did": identity.did, "label": identity.label} if identity else None,
        "version": VERSION,
        "url": services.url,
        "uptime_s": (services.now_ms() - services.started_ms) // 1000,
        "store": {
            "records": records_kept(services), "bytes": stats.log_bytes, "fsync_ms": stats.sync_last_ms,
            "free_bytes": stats.free_bytes, "readonly": bool(stats.readonly),
        },
        "pairs": {"total": len(pairs), **Counter(str(item.phase) for item in pairs.values())},
        "lag": {
            "worst_pair_id": worst[1], "lag_records": worst[0], "oldest_pair_id": oldest[1],
            "oldest_confirmed_at": oldest[0] or None, **services.feed.lags.ms(),
            "polls_ms": sorted({item.poll_interval_ms for item in pairs.values() if _polls(item)}),
        },
        "queue": {
            "now": sum(found.queue_records for found in reading.values()),
            "max": max((found.queue_max for found in reading.values()), default=0),
        },
        **({"sinks": services.engines.sinks.summary()} if services.engines.configured else {}),
        "adapters": asdict(services.writer.listeners.summary()),
        "token_ends_at": _token_ends_at(pairs.values()),
        "attention": attention,
        "services": services.faults.rows(),
    }  # fmt: skip


def _polls(pair: Pair) -> bool:
    """Return whether the pair is read at an interval."""
    return pair.sync_allowed and pair.mode == POLLING


def service_findings(services: Services) -> "list[Finding]":
    """Return what is wrong with the daemon beside what the doctor sees: services that crashed, and sinks."""
    catalogue: Any = program.load("doctor.catalogue")
    crashed = [catalogue.died(crash.service, crash.error) for crash in services.faults.recent()]
    return [*crashed, *_sink_findings(services)]


def _sink_findings(services: Services) -> "list[Finding]":
    """Return what is wrong with the sinks; their file is imported once there is one."""
    if not services.engines.configured and not services.engines.carrying:
        return []
    sinks: Any = program.load("api.sinks")
    return list(sinks.findings(services))


def _token_ends_at(pairs: Iterable[Pair]) -> str | None:
    """Return when the first token of a live pair ends."""
    held = (token for pair in pairs if pair.live for token in (pair.issued_by_us, pair.issued_to_us))
    ends_ms = min((token.expires_at_ms for token in held if token is not None), default=None)
    return None if ends_ms is None else when.text_of(ends_ms)


def _listens(pair: Pair) -> bool:
    """Return whether the pair syncs by itself, so that the age of its last confirmation says something."""
    return pair.sync_allowed and pair.mode != ON_DEMAND


def identity_show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/identity: DID, present key with its words, and the published manifest's times."""
    return json_response(identity_of(services))


async def identity_generate(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/identity {label?, force?}: make an identity or keep the one there is, and publish at once."""
    fields = members(request, {"label": str, "force": bool})
    await services.pairing.adopt_identity(fields.get("label", ""), force=fields.get("force", False))
    services.pairing.published.renew()
    return json_response(identity_of(services))


def identity_of(services: Services) -> Json:
    """Return the identity's public facts; raise "identity-missing"."""
    identity = services.vault.identity
    if identity is None:
        raise SplError("identity-missing")
    manifest = services.pairing.published.manifest()["federation_manifest"]
    return {
        "object": "identity",
        **identity_facts(identity),
        "manifest": {
            "signed_at": manifest["signature"]["signed_at"],
            "expires_at": manifest["signature"]["expires_at"],
            "url": f"{services.url}{MANIFEST_PATH}",
        },
    }


def tokens_list(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/tokens: every token's facts, never its text or hash."""
    return list_response([token_facts(token, services.now_ms()) for token in services.views.tokens.values()])


async def tokens_mint(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/tokens {scopes, ttl_ms?, namespaces?, label?}: the plaintext is in this answer and nowhere else."""
    fields = members(request, {"scopes": list, "ttl_ms": int, "namespaces": list, "label": str, "pair": str})
    token, text = _new_token(services, fields)
    items = [Own(THREAD_TOKENS, bearer.KIND_MINT, bearer.mint_body(token))]
    if token.pair_id:
        # A token that the operator mints for a pair is the word that its peer may renew again.
        items.append(Own(THREAD_TOKENS, bearer.KIND_READMIT, {"pair_id": token.pair_id}))
    await asyncio.wrap_future(services.writer.submit(items))
    return json_response({**token_facts(token, services.now_ms()), "token": text}, 201)


async def tokens_revoke(request: Request, principal: Principal, services: Services) -> Response:
    """DELETE /v1/tokens/{id}: revoke a token, or all of a service account `sa_…`; a unique prefix of a token will do.

    They stop working before the answer is sent, which shows the newest and lists all.  The peer of a pair gets no other
    token by asking until our operator rotates the pair's tokens, resumes it, or mints it one.
    """
    ref = request.params["id"]
    tokens = [token for token in services.views.tokens.values() if token.sa_id == ref] or [token_of(services, ref)]
    already = all(token.revoked and (token.barred or not token.pair_id) for token in tokens)
    if not already:
        name = {"sa_id": ref} if tokens[0].sa_id == ref else {"token_id": tokens[0].token_id}
        own = Own(THREAD_TOKENS, bearer.KIND_REVOKE, {**name, "barred": True})
        await asyncio.wrap_future(services.writer.submit([own]))
    facts = token_facts(replace(tokens[-1], revoked=True), services.now_ms())
    return json_response({**facts, "already": already, "revoked": [token.token_id for token in tokens]})


def _new_token(services: Services, fields: Json) -> tuple[bearer.Token, str]:
    """Return a token and its plaintext from the request's fields; raise "bad-field"."""
    scopes = bearer.check_scopes(texts(fields.get("scopes"), "scopes"))
    names = texts(fields.get("namespaces", []), "namespaces")
    for name in names:
        namespace.usable(services.views.namespaces, name)
    pair_id, peer_did = "", ""
    if fields.get("pair"):
        pair = pair_named(services.views.pairs, str(fields["pair"]))
        pair_id, peer_did, names = pair.pair_id, pair.peer_did, pair.namespaces
    elif not names and scopes <= bearer.FEDERATION:
        names = (namespace.DEFAULT,)
    else:
        bearer.check_bound(scopes, names)
    ttl_ms = fields.get("ttl_ms", int(services.limits.token_ttl_s * 1000))
    if not isinstance(ttl_ms, int) or not 0 < ttl_ms <= TTL_MS_MAX:
        raise field_error("ttl_ms", "must be from 1 ms to 10 years")
    now_ms = services.now_ms()
    sa_id = "sa_" + services.random_bytes(4).hex()
    text = bearer.mint_text(ENVIRONMENT, sa_id, services.random_bytes(bearer.SECRET_BYTES))
    token = bearer.Token(
        f"tok_{bearer.hash_of(text)[:8]}",
        sa_id,
        bearer.hash_of(text),
        scopes,
        names,
        pair_id,
        peer_did,
        now_ms + ttl_ms,
        now_ms,
        str(fields.get("label", ""))[:64],
    )
    return token, text


def token_facts(token: bearer.Token, now_ms: int) -> Json:
    """Return what people may see of a token."""
    state = "revoked" if token.revoked else "expired" if token.expires_at_ms <= now_ms else "live"
    facts = {name: value for name, value in bearer.mint_body(token).items() if name != "hash"}
    return {"object": "token", **facts, "state": state}


def settings(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/config: every key with its value and where that came from; how the last of the reloads went."""
    settings = services.settings
    return json_response(
        {"object": "list", "data": settings.now.rows(), "reads": settings.reads, "fault": settings.fault}
    )


def token_of(services: Services, ref: str) -> bearer.Token:
    """Return the token by id, unique prefix of one, or service account with one, else the live one with that label.

    Raises "not-found", "ambiguous".
    """
    tokens = services.views.tokens.values()
    found = [token for token in tokens if token.token_id.startswith(ref) or token.sa_id == ref]
    found = found or [token for token in tokens if token.label == ref and not token.revoked]
    if not found:
        raise SplError("not-found", f"no token {ref[:40]!r}", hint="spl token list")
    if len(found) > 1:
        ids = ", ".join(token.token_id for token in found[:TOKENS_NAMED])
        raise SplError("ambiguous", f"{ref[:40]!r} fits {ids}")
    return found[0]


async def daemon(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/doctor: the checks of the daemon, and each pair with what is wrong by the facts at hand."""
    return json_response(await services.doctor.examine(None, _sink_findings(services)))


async def pair(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/doctor/{ref}: the checks of one pair, on the way to the peer and back."""
    pair = pair_named(services.views.pairs, request.params["ref"])
    beside = [item for item in _sink_findings(services) if ("pair_id", pair.pair_id) in item.about]
    return json_response(await services.doctor.examine(pair, beside))


async def check(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair/{id}/check: whether we reach the peer that asks, and how we see the pair.

    What is dialled is the endpoint of the peer's pinned manifest, never an address in the request.
    """
    members(request, {})
    pair_id = request.params["id"]
    if principal.kind != Kind.PEER or principal.pair_id != pair_id:
        raise SplError("scope-forbidden", "this serves the pair's own token, with its proof of possession")
    await services.pairing.contact(pair_id)
    services.sync.wake(pair_id)
    seen = await services.doctor.peer.look_back(services.views.pairs[pair_id])
    return json_response({"object": "check", "peer_view": services.feed.peer_view(pair_id), **seen})
