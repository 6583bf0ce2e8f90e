"""Proof of convergence over HTTP, for the operator of this daemon."""

from ..auth import Principal
from ..core.did import label_of
from ..core.errors import SplError
from ..core.reach import PEER_PUSHES
from ..net.routes import Request, Response
from .answers import json_response, members
from .services import Services


async def verify(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pairs/{ref}/verify {repair?}: compare what both sides hold of what the pair shares.

    With `repair` each side gets what it lacks.  Raises what the comparison met, for a peer out of our reach with what
    to do instead.
    """
    repair = members(request, {"repair": bool}).get("repair", False)
    found = services.pairing.resolve(request.params["ref"])
    try:
        report = await services.reconcile.verify(found.pair_id, repair=repair)
    except SplError as exc:
        if services.push.reach(found.pair_id) != PEER_PUSHES:
            raise
        hint = f"on {label_of(found.peer_did)}: spl federation verify {found.pair_id}"
        raise SplError(exc.code, f"{exc.message}; the peer opens the connections of this pair", hint=hint) from exc
    return json_response({**report, "peer_did": found.peer_did})
