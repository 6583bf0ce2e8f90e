"""Pairs for their operator: the handshake as a stream of steps, the list, one in full, and its actions."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

from ..core import canon, when
from ..core.errors import SplError
from ..core.identity.did import words
from ..core.pair import handshake
from ..core.pair import pair as pairs
from ..core.pair.modes import ENGINE
from ..core.pair.pair import Pair
from ..core.pair.state import IN_TOUCH, maps_to_json
from ..core.pair.status import PairStatus
from ..core.presence import OFFLINE_S
from ..core.value import Json
from ..doctor.overview import PairOverview
from ..net.routes import Request, Response
from ..pairing.names import pair_named, request_named
from ..pairing.service import PairOptions
from ..sync.reach import with_way
from .answers import (
    NDJSON,
    TEXTS_MAX,
    check_admin,
    field_error,
    is_admin,
    json_response,
    list_response,
    members,
    number,
    texts,
)
from .auth import Principal
from .consent import lines_of
from .lifecycle import ACTIONS
from .services import Services

WAIT_MS_DEFAULT: Final = 60_000
WAIT_MS_MAX: Final = 24 * 3_600_000
"""A request counts as rejected after a day."""
ACK_WAIT_MS_MAX: Final = 2000
"""A caller that follows the acks asks again; a longer wait would occupy its connection after it left."""
SETTING: Final = frozenset(
    {"pause", "resume", "revoke", "mode", "carrier", "poll-interval", "relay", "thread-allow", "thread-rule"}
)
"""Actions that may have nothing to change."""
_PATHS: Final[Mapping[str, Mapping[str, object]]] = {
    "carrier": {"creds": None, "ca": None, "error": None},
    "consumers": {"error": None, "commands": []},
}
"""Members that name files of this machine, and what others than admins see in place of those."""


def pair(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs {url, …}: NDJSON, one object per step; the daemon goes on after the caller has left."""
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
            yield canon.told(step.to_json()) + b"\n"
    except SplError as exc:
        yield canon.told({"step": "error", "error": exc.to_json()}) + b"\n"


def listing(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs: every pair, live ones first, then by age."""
    every = services.views.pairs.values()
    ordered = sorted(every, key=lambda item: (item.phase == pairs.Phase.REVOKED, item.created_at_ms))
    return list_response(summary_of(services, item) for item in ordered)


def show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs/{ref}: one pair in full; ref is an id, a unique prefix, or the peer's DID."""
    return json_response(_seen_by(principal, detail(services, pair_named(services.views.pairs, request.params["ref"]))))


def _seen_by(principal: Principal, value: Mapping[str, object]) -> Json:
    """Return a pair's page as the principal may see it: paths of this machine are for admins."""
    found = dict(value)
    for name, hidden in _PATHS.items() if not is_admin(principal) else ():
        if isinstance(shown := found.get(name), dict):
            found[name] = {**shown, **hidden}
    return found


async def act(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs/{ref}/{action}: one of ACTIONS, pause, mode, poll-interval or sync."""
    action = request.params["action"]
    found = pair_named(services.views.pairs, request.params["ref"])
    if action == "sync":
        thread = members(request, {"thread": str}).get("thread", "")
        done = await _synced(services, found, thread)
        return json_response({**summary_of(services, found), **done})
    if action == "carrier" and not is_admin(principal):
        raise SplError("scope-forbidden", "a carrier names files of this machine, and needs the scope admin")
    before = _settings(found)
    more = await _change(request, services, found, action)
    after = services.views.pairs[found.pair_id]
    already = before == _settings(after) and action in SETTING
    return json_response(_seen_by(principal, {**detail(services, after), "already": already, **more}))


async def sync_all(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/sync: sync every pair that is neither paused nor revoked; each with its own result."""
    members(request, {})
    rows: list[Json] = []
    for found in services.views.pairs.values():
        if found.sync_allowed:
            try:
                rows.append({"pair_id": found.pair_id, **await _synced(services, found)})
            except SplError as exc:
                rows.append({"pair_id": found.pair_id, "records": 0, "error": exc.to_json()})
    return list_response(rows)


async def _synced(services: Services, found: Pair, thread: str = "") -> Json:
    """Pull, and push if the peer cannot dial us; return {records, pushed}, what was new here and there.

    Raises the error of the pull or the push; if only the peer can dial, with what to do on its side.
    """
    try:
        records = await services.sync.pull(found.pair_id, thread)
    except SplError as exc:
        raise with_way(services.push.reach(found.pair_id), found, exc, f"spl sync {found.pair_id}") from None
    services.anti_entropy.hurry(found.pair_id)
    return {"records": records, "pushed": 0 if thread else await services.push.push(found.pair_id)}


def requests(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/aitl: requests that wait for a decision, and with ?all=1 the decided ones."""
    everything = request.query.get("all") == "1"
    found = [item for item in services.views.requests.values() if everything or item.status == "pending"]
    return list_response([pairs.request_summary(item) for item in found])


def request_show(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/aitl/{id}: one request, by id or unique prefix, with what an approval would share and leave out."""
    return json_response(_request(services, request_named(services.views.requests, request.params["id"])))


async def decide(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/aitl/{id}/decide {decision, reason?, digest?, namespaces?, without_maps?}: about exactly that request.

    An approval agrees to what both sides share, or to exactly the `namespaces`; `without_maps` drops the crossings.
    """
    fields = members(request, {"decision": str, "reason": str, "digest": str, "namespaces": list, "without_maps": bool})
    found = request_named(services.views.requests, request.params["id"])
    if fields.get("decision") not in ("approve", "reject"):
        raise field_error("decision", "must be approve or reject")
    if fields.get("digest") not in (None, found.digest):
        raise SplError("pair-state-conflict", "the request changed since it was shown")
    await services.pairing.decide_request(
        found.request_id, fields["decision"], fields.get("reason", ""),
        namespaces=texts(fields.get("namespaces", []), "namespaces"), maps=not fields.get("without_maps", False),
    )  # fmt: skip
    return json_response(_request(services, services.views.requests[found.request_id]))


def _request(services: Services, found: pairs.ApprovalRequest) -> Json:
    """Return a request with `agrees`: what is agreed, or would be if it were approved as it stands.

    `start` in it is "beginning" if the peer also gets the records that the namespaces hold already, else "present".
    """
    summary = pairs.request_summary(found)
    pair = services.views.pairs.get(found.request_id)
    if pair is None or pair.initiator:
        return summary
    asked, registry = handshake.terms_of(pair.proposal), services.views.namespaces
    if pair.answer is not None:
        names = pair.namespaces
        left_out = [{"namespace": name} for name in asked.namespaces if name not in names]
        agreed = {"namespaces": list(names), "maps": maps_to_json(pair.maps), "left_out": left_out}
        return {**summary, "agrees": {**agreed, "start": pair.start}}
    weighed = handshake.weigh(asked, registry)
    left_out = [
        {"namespace": name, "why": why, "fix": handshake.fix_of(registry, name)} for name, why in weighed.left_out
    ]
    agrees = {"namespaces": list(weighed.namespaces), "maps": summary["maps"], "left_out": left_out}
    start = asked.start or ("present" if services.pairing.pairs.parted(pair.peer_did) else "beginning")
    return {**summary, "agrees": {**agrees, "unmapped": list(weighed.unmapped), "start": start}}


def detail(services: Services, found: Pair) -> Json:
    """Return the pair in full, as `spl federation show` prints it."""
    view, identity = services.doctor.overview(found), services.vault.identity
    reading, offered, upkeep = view.reading, view.offered, services.pairing.maintenance.status(found.pair_id)
    return {
        **summary_of(services, found, view),
        "since": when.text_of(found.since_ms),
        "reason": found.reason,
        "last_sync_cursor": {"clock": reading.clock, "lag_records": reading.lag_records},
        "last_confirmed_at": reading.last_sync_at,
        "caught_up_ms": _caught_up_ms(found, reading.last_sync_at),
        "last_read_at": offered.acked_at,
        "compared": compared.to_json() if (compared := services.anti_entropy.last(found.pair_id)) is not None else None,
        **_lags(services, found.pair_id),
        "next_attempt_at": reading.next_attempt_at,
        "attempt": reading.attempt,
        "stream": reading.stream.to_json() if reading.stream is not None else None,
        "last_error": reading.last_error.to_json() if reading.last_error is not None else None,
        "intake": reading.intake.to_json(services.now_ms()),
        "push": services.push.status(found.pair_id).to_json(),
        "withheld": list(offered.withheld),
        "withheld_here": list(reading.withheld),
        "peer_view": _told(reading),
        "manifest": {
            "did": found.peer.did,
            "pair_endpoint": found.peer.pair_endpoint,
            "signed_at": when.text_of(found.peer.signed_at_ms),
            "fetched_at": when.text_of(upkeep.fetched_at_ms),
            "expires_at": when.text_of(found.peer.expires_at_ms),
        },
        "upkeep": upkeep.to_json(),
        "peer_words": words(found.chain.present),
        "our_words": words(identity.chain.present) if identity else None,
        "tokens": list(_tokens(services, found)),
        **_shared(services, found),
        "transitions": [
            {"at": when.text_of(at_ms), "from": before, "to": after, "reason": reason}
            for at_ms, before, after, reason in reversed(found.transitions)
        ],
        "fix": view.findings[0].fix if view.findings else _fix(found),
    }


def _told(reading: PairStatus) -> Json | None:
    """Return the peer's last view of the pair, and when it told it."""
    if not reading.peer_view or reading.told_ms is None:
        return dict(reading.peer_view) or None
    return {**reading.peer_view, "at": when.text_of(reading.told_ms)}


def _lags(services: Services, pair_id: str) -> Json:
    """Return lag and queue by the minute, and how long the peer took to confirm what was written here."""
    return {
        "lags": services.health.lags(pair_id),
        "queues": services.health.queues(pair_id),
        "lag_ms": services.feed.lags.ms(pair_id),
        "lag_histogram": services.feed.lags.histogram(pair_id).to_json(),
    }


def _shared(services: Services, found: Pair) -> Json:
    """Return what crosses the pair, what of it is left out, and the engine that it comes from, if it does."""
    return {
        **({"carrier": services.engines.carriers.to_json(found)} if found.mode == ENGINE else {}),
        "maps": maps_to_json(found.maps),
        "grants": lines_of(services, found),
        "actors": list(found.actors),
        "filter": found.filter.report(),
        "refused_records": services.views.refused.get(found.pair_id, 0),
        "refused_beyond": sorted(services.views.beyond.get(found.pair_id, ())),
    }


def _tokens(services: Services, found: Pair) -> Iterator[Json]:
    """Yield both tokens by name; the plaintext of neither is ever shown."""
    now_ms, tokens = services.now_ms(), services.views.tokens
    for direction, token in (("issued to us", found.issued_to_us), ("issued by us", found.issued_by_us)):
        if token is not None:
            ours = tokens.get(token.token_id) if token is found.issued_by_us else None
            dead = found.phase == pairs.Phase.REVOKED or (ours is not None and ours.revoked)
            state = "revoked" if dead else "expired" if token.expires_at_ms <= now_ms else "live"
            yield {
                "direction": direction,
                "token_id": token.token_id,
                "scopes": list(token.scopes),
                "expires_at": when.text_of(token.expires_at_ms),
                "state": state,
            }


def _caught_up_ms(found: Pair, confirmed_at: object) -> int | None:
    """Return for how long the pair was active until its last confirmation; None if that is not known.

    Each success in that time read the source to its end, and five failures in a row would have ended the time.
    """
    starts = [at_ms for at_ms, before, after, _ in found.transitions if before != after == pairs.Phase.ACTIVE]
    if not starts or not isinstance(confirmed_at, str):
        return None
    return max(0, when.ms_of(confirmed_at) - starts[-1])


def _fix(found: Pair) -> str | None:
    """Return the one next step for a pair that does not sync, or None."""
    match found.phase:
        case pairs.Phase.PAUSED if found.paused_by != "peer":
            return f"spl federation resume {found.pair_id}"
        case pairs.Phase.ESTABLISHING if not found.initiator and found.issued_by_us is None:
            return f"spl aitl approve {found.pair_id}"
        case pairs.Phase.REVOKED if found.url:
            return f"spl federation pair {found.url}/"
    return None


async def _change(request: Request, services: Services, found: Pair, action: str) -> Json:
    """Do it, and return what the action adds to the answer."""
    pairing = services.pairing
    if action in ACTIONS:
        return await ACTIONS[action](request, services, found)
    if action == "pause":
        await pairing.pause(found.pair_id, members(request, {"reason": str}).get("reason", ""))
    elif action == "poll-interval":
        await pairing.set_poll_interval(found.pair_id, members(request, {"interval_ms": int}).get("interval_ms", 0))
    else:
        raise SplError("not-found", f"a pair has no action {action[:40]!r}")
    return {}


def _settings(found: Pair) -> tuple[object, ...]:
    """Return what the actions of SETTING change."""
    return found.phase, found.mode, found.carrier, found.poll_interval_ms, found.paused_by, found.filter


def summary_of(services: Services, found: Pair, view: PairOverview | None = None) -> Json:
    """Return a pair as a row of the list; `view` is the pair at this moment, if that is known already."""
    reading = services.sync.status(found.pair_id) if view is None else view.reading
    offered = services.feed.offered(found.pair_id) if view is None else view.offered
    since_ms = reading.offline_since_ms if found.phase in IN_TOUCH else None
    return {
        "object": "pair",
        **pairs.summary(found),
        "last_sync_at": reading.last_sync_at,
        "heard_at": when.text_of(reading.heard_ms) if reading.heard_ms is not None else None,
        "offline_since": when.text_of(since_ms) if since_ms is not None else None,
        "outbound": {"clock": offered.acked or 0, "lag_records": offered.lag_records},
        "one_way": _one_way(services, reading) if found.phase in IN_TOUCH else None,
        "reach": services.push.reach(found.pair_id),
    }


def _one_way(services: Services, reading: PairStatus) -> Json | None:
    """Return {direction, code, since, reads} of a pair of which one direction of requests is broken, once that lasts.

    `reads`: only reads are, and questions are answered.
    """
    way = reading.one_way
    if way is None or way.for_s < OFFLINE_S or reading.offline_since_ms is not None:
        return None
    since = when.text_of(services.now_ms() - int(way.for_s * 1000))
    return {"direction": way.direction, "code": way.code or None, "since": since, "reads": way.reads}


def _maps(value: object) -> tuple[tuple[str, str], ...]:
    """Return [{local, peer}] as pairs; raise "bad-field"."""
    if not isinstance(value, list) or len(value) > TEXTS_MAX:
        raise field_error("maps", f"must be a list of at most {TEXTS_MAX}")
    found = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != {"local", "peer"}:
            raise field_error("maps", "holds objects with local and peer")
        found.append(texts([item["local"], item["peer"]], "maps"))
    return tuple((local, peer) for local, peer in found)


async def verify(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs/{ref}/verify {repair?, accept_retired?}: compare what both sides hold.

    With `repair` each side gets what it lacks, and with `accept_retired` also we what retired keys of ours signed,
    which an admin may ask for.  Raises the error of the comparison; if only the peer can
    dial, with what to do on its side.
    """
    wish = members(request, {"repair": bool, "accept_retired": bool})
    repair, retired = wish.get("repair", False), wish.get("accept_retired", False)
    if retired:
        check_admin(principal, "accept_retired")
    found = pair_named(services.views.pairs, request.params["ref"])
    try:
        report = await services.reconcile.verify(found.pair_id, repair=repair or retired, accept_retired=retired)
    except SplError as exc:
        raise with_way(
            services.push.reach(found.pair_id), found, exc, f"spl federation verify {found.pair_id}"
        ) from None
    return json_response({**report.to_json(), "peer_did": found.peer_did})


async def acks(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs/{ref}/acks?namespace=&beyond=&wait_ms=: the position that the peer confirmed.

    Answers as soon as that is past the sequence `beyond`, at the latest after `wait_ms` (at most 2,000).  With it:
    the records between network and store, ours (now and at most in the last hour) and, as the peer told, the peer's.
    """
    found = pair_named(services.views.pairs, request.params["ref"])
    name = request.query.get("namespace", "default")
    if name not in found.namespaces:
        raise SplError("not-found", f"pair {found.pair_id} does not share namespace {name[:80]!r}")
    seq = number(request.query, "beyond", 0, 0, 2**63 - 1)
    wait_ms = number(request.query, "wait_ms", 0, 0, ACK_WAIT_MS_MAX)
    acked = services.feed.acks
    position = acked.position(found.pair_id, name)
    if wait_ms and (position or 0) <= seq:
        position = await acked.beyond(found.pair_id, name, seq, wait_ms / 1000)
    status = services.sync.status(found.pair_id)
    return json_response({
        "object": "acks",
        "pair_id": found.pair_id,
        "namespace": name,
        "position": position,
        "queue_records": status.queue_records,
        "queue_records_max": status.queue_max,
        "peer_queue_records": status.peer_view.get("queue"),
    })  # fmt: skip
