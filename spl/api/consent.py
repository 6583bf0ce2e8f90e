"""Consent over the API: what is shared across each pair, and our operator's word on it."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..core import consent
from ..core.identity.did import label_of
from ..core.pair.pair import Pair
from ..core.record import levels, record
from ..core.record.levels import level_of
from ..core.value import Json
from ..home import projections
from ..net.routes import Request, Response
from ..pairing.names import pair_named
from .answers import field_error, json_response, list_response, members, number
from .auth import Principal
from .services import Services

if TYPE_CHECKING:
    from ..engine.sinks import Sink

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
"""Claims of one page: each is read from the disk before the answer begins."""


def listing(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/consent/grants?pair=: both sides' grants and what is agreed without one, of one pair or of all.

    With all pairs the sinks are listed, too: each shares its namespaces with the readers of what it fills.
    """
    ref = request.query.get("pair", "")
    return list_response(rows_of(services, pair_named(services.views.pairs, ref) if ref else None))


def rows_of(services: Services, only: Pair | None = None) -> list[Json]:
    """Return the grants of one pair, or of all and of the sinks."""
    rows = []
    for pair in [only] if only else [pair for pair in services.views.pairs.values() if not pair.ended]:
        head = {"object": "grant", "pair_id": pair.pair_id, "peer_did": pair.peer_did}
        grants, spaces = services.pairing.handover.grants.of(pair), services.views.namespaces
        lines = (*consent.lines(pair, grants, spaces, label_of(pair.peer_did)), *consent.agreed(pair, grants, spaces))
        rows += [{**head, **line.to_json()} for line in sorted(lines, key=lambda line: line.direction, reverse=True)]
    return rows if only else [*rows, *(row for sink in services.engines.all() for row in _shared(sink))]


def _shared(sink: "Sink") -> Iterator[Json]:
    """Yield what a sink shares, in the form of grants."""
    level = levels.NAMES[levels.EXACT] if sink.phase == "active" else consent.WITHDRAWN
    for name in sink.namespaces:
        row = consent.GrantRow(consent.OUT, name, name, level, level, 0)
        yield {"object": "grant", "pair_id": None, "peer_did": None, "sink": sink.name, **row.to_json()}


async def grant(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs/{ref}/grants {namespace, maps?, level?}: our word; `maps` is the peer's name for it.

    Without `maps` the same name; without `level` L1, but L0 for a namespace that joins those shared under their name.
    """
    found = pair_named(services.views.pairs, request.params["ref"])
    fields = members(request, {"namespace": str, "maps": str, "level": str})
    name = _name(fields.get("namespace"))
    maps = fields.get("maps") or name
    level = level_of(fields["level"]) if "level" in fields else consent.usual_level(found, name, maps)
    return await _said(services, found, name, maps, level)


async def revoke(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs/{ref}/revoke-grant {namespace}: nothing of it is sent any more, from now on."""
    found = pair_named(services.views.pairs, request.params["ref"])
    name = _name(members(request, {"namespace": str}).get("namespace"))
    held = services.pairing.handover.grants.of(found).ours.get(name)
    return await _said(services, found, name, held.maps if held is not None else name, None)


def lines_of(services: Services, found: Pair) -> list[Json]:
    """Return the grants of a pair as its detail form has them."""
    grants = services.pairing.handover.grants.of(found)
    return [
        line.to_json() for line in consent.lines(found, grants, services.views.namespaces, label_of(found.peer_did))
    ]


async def _said(services: Services, found: Pair, name: str, maps: str, level: int | None) -> Response:
    news, unheard = await services.pairing.handover.set_grant(found.pair_id, name, maps, level)
    pair = services.views.pairs[found.pair_id]
    mine = [line for line in lines_of(services, pair) if (line["direction"], line["namespace"]) == (consent.OUT, name)]
    return json_response({
        "object": "grant",
        "pair_id": pair.pair_id,
        "peer_did": pair.peer_did,
        **mine[0],
        "agreed": name in pair.namespaces,
        "already": not news,
        "unheard": unheard or None,
    })  # fmt: skip


def _name(value: str | None) -> str:
    if not value:
        raise field_error("namespace", "is missing")
    return value


async def claims(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs/{ref}/projections?namespace=&after=&limit=: a page of claims, oldest first.

    `next_after` is null at the end; before it a page may hold fewer than were asked for.
    """
    pair = pair_named(services.views.pairs, request.params["ref"])
    after = number(request.query, "after", 0, 0, record.CLOCK_MAX)
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)
    name = request.query.get("namespace", "")
    reading = (services.store, services.views, pair, name, after, limit, principal.reaches)
    found = await asyncio.to_thread(projections.read, *reading)
    data = [claim.to_json() for claim in found.found]
    return json_response({"object": "list", "data": data, "next_after": found.after})
