"""What peers claim of records that they do not share in full."""

import asyncio

from .. import claims
from ..auth import Principal
from ..core import record
from ..net.routes import Request, Response
from .answers import json_response, number
from .services import Services

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000


async def projections(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs/{ref}/projections?namespace=&after=&limit=: a page of claims, oldest first.

    `next_after` is null at the end; before it a page may hold fewer than were asked for.
    """
    pair = services.pairing.resolve(request.params["ref"])
    after = number(request.query, "after", 0, 0, record.CLOCK_MAX)
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)
    name = request.query.get("namespace", "")
    reading = (services.store, services.views, pair, name, after, limit, principal.reaches)
    found = await asyncio.to_thread(claims.read, *reading)
    data = [claim.to_json() for claim in found.found]
    return json_response({"object": "list", "data": data, "next_after": found.after})
