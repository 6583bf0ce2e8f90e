"""The doctor over HTTP: for the operator of this daemon, and for a peer that asks whether we reach it."""

from ..auth import Kind, Principal
from ..core.errors import SplError
from ..net.routes import Request, Response
from .answers import json_response, members
from .services import Services


async def daemon(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/doctor: the checks of the daemon, and each pair with what is wrong by the facts at hand."""
    return json_response(await services.doctor.examine(None))


async def pair(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/doctor/{ref}: the checks of one pair, on the way to the peer and back."""
    return json_response(await services.doctor.examine(services.pairing.resolve(request.params["ref"])))


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
    seen = await services.doctor.look_back(services.views.pairs[pair_id])
    return json_response({"object": "check", "peer_view": services.feed.peer_view(pair_id), **seen})
