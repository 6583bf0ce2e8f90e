"""Identity, pairs and tokens over their life: rotation, export, settings of a pair and its end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..core.errors import SplError
from ..core.identity import bearer
from ..core.pair.modes import ENGINE, POLLING
from ..core.pair.pair import ESTABLISHED, Pair
from ..core.record import filter as filter_
from ..core.record.filter import PairFilter
from ..core.value import Json, replace
from ..home.views import THREAD_TOKENS
from ..home.writes import Own
from ..net.routes import Request, Response
from .admin import ENVIRONMENT, identity_of, token_facts, token_of
from .answers import field_error, json_response, list_response, members, texts
from .auth import Kind, Principal
from .services import Services

# -- identity


async def identity_rotate(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/identity/rotate {compromised?}: a new key under the same DID, published and sent to peers at once."""
    compromised = members(request, {"compromised": bool}).get("compromised", False)
    await services.pairing.rotate_identity("compromised" if compromised else "retired")
    return json_response(identity_of(services))


async def identity_export(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/identity/export: the identity with its secret keys, over the home's own socket only."""
    members(request, {})
    if principal.kind != Kind.LOCAL:
        raise SplError("scope-forbidden", "secret keys leave only over the socket in the home")
    text = await asyncio.to_thread(services.vault.export)
    return json_response({**identity_of(services), "identity": text})


async def identity_import(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/identity/import {identity, force?}: take over an exported identity, publish it and tell peers."""
    fields = members(request, {"identity": str, "force": bool})
    if not fields.get("identity"):
        raise field_error("identity", "is missing")
    await asyncio.to_thread(services.vault.install, fields["identity"], force=fields.get("force", False))
    await services.pairing.renounce()
    return json_response(identity_of(services))


# -- pairs


async def resume(request: Request, services: Services, found: Pair) -> Json:
    """Take {reason?, resync?}: with `resync` all is read from the start, now; return how many records were new.

    The pair may bring in another day's bytes, whether it was paused or not.
    """
    fields = members(request, {"reason": str, "resync": bool})
    await services.pairing.resume(found.pair_id, fields.get("reason", ""))
    changed = {"already": False} if services.sync.renew_intake(found.pair_id) else {}
    if not fields.get("resync"):
        return {**changed}
    return {**changed, "records": await services.sync.pull(found.pair_id, resync=True)}


async def refresh(request: Request, services: Services, found: Pair) -> Json:
    """Take {expect_key?, url?}: the peer's key as its operator told it, multibase or six words; where it is now."""
    fields = members(request, {"expect_key": str, "url": str})
    await services.pairing.refresh(found.pair_id, fields.get("expect_key", ""), fields.get("url", ""))
    return {}


async def mode(request: Request, services: Services, found: Pair) -> Json:
    """Take {mode, both?}: how we fetch; with `both` the peer is asked to fetch from us in the same mode.

    Ours is set in any case; `asked` says what came of the question: {mode, error}, error None if the peer does so.
    """
    fields = members(request, {"mode": str, "both": bool})
    await services.pairing.set_mode(found.pair_id, fields.get("mode", ""))
    left = await services.engines.left(found)
    if not fields.get("both"):
        return left
    try:
        await services.pairing.maintenance.ask_mode(found.pair_id, fields["mode"])
    except SplError as exc:
        return {**left, "asked": {"mode": fields["mode"], "error": exc.to_json()}}
    return {**left, "asked": {"mode": fields["mode"], "error": None}}


async def carrier(request: Request, services: Services, found: Pair) -> Json:
    """Take {url, creds?, ca?}: a stream engine that the records come from; with url "none" they are polled for.

    `consumers` says what became of those at the server that the pair was read from before.
    """
    fields = members(request, {"url": str, "creds": str, "ca": str})
    if not fields.get("url"):
        raise field_error("url", "is missing")
    wanted = {name: fields.get(name, "") for name in ("url", "creds", "ca")}
    if wanted["url"] != "none":
        await services.engines.check_carrier(wanted)

    def changes(pair: Pair) -> Json:
        if wanted["url"] != "none":
            return {"mode": ENGINE, "carrier": wanted}
        return {"mode": POLLING} if pair.mode == ENGINE else {}

    change = services.pairing.configure(found.pair_id, changes)
    if wanted["url"] != found.carrier.get("url"):
        return await services.engines.left(found, change)
    await change
    return {}


async def revoke(request: Request, services: Services, found: Pair) -> Json:
    """Take {reason?, block?}; return the pairs through which records of the peer may still arrive."""
    fields = members(request, {"reason": str, "block": bool})
    await services.pairing.revoke(found.pair_id, fields.get("reason", ""), block=fields.get("block", False))
    blocked = found.peer_did in services.views.blocked
    hubs = [] if blocked else services.pairing.pairs.hubs(found)
    left = {} if found.ended_by_us else await services.engines.left(found)
    if services.engines.configured:
        left["readers"] = services.engines.readers(found.pair_id)
    return {**left, "blocked": blocked, "hubs": [{"pair_id": hub.pair_id, "peer_did": hub.peer_did} for hub in hubs]}


async def set_token(request: Request, services: Services, found: Pair) -> Json:
    """Take {token}: one that the peer minted for this pair; it is used after a request with it succeeded."""
    text = members(request, {"token": str}).get("token", "")
    if not text:
        raise field_error("token", "is missing")
    await services.pairing.maintenance.set_token(found.pair_id, text.strip())
    return {}


async def rotate_tokens(request: Request, services: Services, found: Pair) -> Json:
    """Replace both tokens of the pair; the peer's one ends once it has asked for a successor."""
    members(request, {})
    await services.pairing.rotate_tokens(found.pair_id)
    return {}


async def relay(request: Request, services: Services, found: Pair) -> Json:
    """Take {relay}: whether we send what other instances signed; it holds at once, for what we send."""
    fields = members(request, {"relay": bool})
    if "relay" not in fields:
        raise field_error("relay", "is missing")
    return await _filter(services, found, lambda held: replace(held, relay=fields["relay"]))


async def thread_allow(request: Request, services: Services, found: Pair) -> Json:
    """Take {threads, remove?} or {clear}: threads that are sent, others only if the rule is true."""
    fields = members(request, {"threads": list, "remove": bool, "clear": bool})
    threads, remove = texts(fields.get("threads", []), "threads", filter_.THREADS_MAX), fields.get("remove", False)
    if bool(threads) is bool(fields.get("clear")):
        raise field_error("threads", "must name some, or clear be true")
    if fields.get("clear"):
        return await _filter(services, found, lambda held: replace(held, thread_allow=()))
    limits = services.limits
    return await _filter(services, found, lambda held: filter_.allowing(held, threads, limits, remove=remove))


async def thread_rule(request: Request, services: Services, found: Pair) -> Json:
    """Take {expression}: which records are sent besides those of the allowed threads; "" removes the rule."""
    fields = members(request, {"expression": str})
    if "expression" not in fields:
        raise field_error("expression", "is missing")
    text = fields["expression"].strip()
    rule = filter_.check_rule(text) if text else ""
    return await _filter(services, found, lambda held: replace(held, thread_rule=rule))


async def _filter(services: Services, found: Pair, change: Callable[[PairFilter], PairFilter]) -> Json:
    await services.pairing.configure(found.pair_id, lambda pair: filter_.changes(pair.filter, change(pair.filter)))
    return {}


ACTIONS: Final[dict[str, Callable[[Request, Services, Pair], Awaitable[Json]]]] = {
    "resume": resume,
    "refresh": refresh,
    "mode": mode,
    "carrier": carrier,
    "revoke": revoke,
    "set-token": set_token,
    "rotate-tokens": rotate_tokens,
    "relay": relay,
    "thread-allow": thread_allow,
    "thread-rule": thread_rule,
}
"""The other actions on a pair; each returns what it adds to the answer."""


# -- tokens


def token_show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/tokens/{id}: one token by id, ours or one that a peer issued to us; never its text or hash."""
    return json_response(_facts(services, request.params["id"]))


def token_inspect(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/tokens/inspect {token}: what the token with this text is."""
    text = members(request, {"token": str}).get("token", "").strip()
    bearer.parse(text)
    token = services.views.tokens_by_hash.get(bearer.hash_of(text))
    if token is not None:
        return json_response(token_facts(token, services.now_ms()))
    return json_response(_facts(services, f"tok_{bearer.hash_of(text)[:8]}", held=True))


async def token_rotate(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/tokens/{id}/rotate: a successor with the same rights, its text in this answer; the old one ends."""
    members(request, {})
    old = token_of(services, request.params["id"])
    if old.pair_id:
        raise SplError("bad-field", f"{old.token_id} is of {old.pair_id}", hint=f"spl token rotate {old.pair_id}")
    if old.revoked:
        hint = f"spl token mint --scopes {','.join(sorted(old.scopes))}"
        raise SplError("auth-invalid", f"{old.token_id} is revoked", hint=hint)
    now_ms = services.now_ms()
    life_ms = max(60_000, old.expires_at_ms - old.created_at_ms)
    text = bearer.mint_text(ENVIRONMENT, old.sa_id, services.random_bytes(bearer.SECRET_BYTES))
    hash_ = bearer.hash_of(text)
    token = replace(old, token_id=f"tok_{hash_[:8]}", hash=hash_, expires_at_ms=now_ms + life_ms, created_at_ms=now_ms)
    items = [
        Own(THREAD_TOKENS, bearer.KIND_MINT, bearer.mint_body(token)),
        Own(THREAD_TOKENS, bearer.KIND_REVOKE, {"token_id": old.token_id}),
    ]
    await asyncio.wrap_future(services.writer.submit(items))
    return json_response({**token_facts(token, services.now_ms()), "token": text, "replaced": old.token_id}, 201)


async def tokens_rotate(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/tokens/rotate: both tokens of every live pair, each pair with its own result."""
    members(request, {})
    rows: list[Json] = []
    for pair in [pair for pair in services.views.pairs.values() if type(pair.state) in ESTABLISHED]:
        try:
            after = await services.pairing.rotate_tokens(pair.pair_id)
            assert after.issued_to_us is not None
            rows.append({"pair_id": pair.pair_id, "token_id": after.issued_to_us.token_id})
        except SplError as exc:
            rows.append({"pair_id": pair.pair_id, "error": exc.to_json()})
    return list_response(rows)


def _facts(services: Services, ref: str, *, held: bool = False) -> dict[str, Any]:
    """Return what is known of a token by id; `held` looks only at those that peers issued to us."""
    for pair in services.views.pairs.values():
        token = pair.issued_to_us
        if token is not None and token.token_id == ref:
            now_ms = services.now_ms()
            state = "revoked" if not pair.live else "expired" if token.expires_at_ms <= now_ms else "live"
            facts = {name: value for name, value in token.to_json().items() if name != "hash"}
            return {
                "object": "token", **facts, "pair_id": pair.pair_id, "issuer_did": pair.peer_did,
                "direction": "issued to us", "state": state,
            }  # fmt: skip
    if held:
        raise SplError("not-found", "this token is neither ours nor one that a peer gave us for a pair")
    return token_facts(token_of(services, ref), services.now_ms())
