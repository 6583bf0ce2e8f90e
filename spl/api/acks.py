"""How far a peer confirmed what it reads from us, as it confirms it; what the soak measures by."""

from ..auth import Principal
from ..core.errors import SplError
from ..net.routes import Request, Response
from .answers import json_response, number
from .services import Services

WAIT_MS_MAX = 2000


async def acks(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/federation/pairs/{ref}/acks?namespace=&beyond=&wait_ms=: the position that the peer confirmed.

    Answers as soon as that is past the sequence `beyond`, at the latest after `wait_ms` (at most 2,000).  With it:
    the records between network and store, ours (now and at most in the last hour) and, as the peer told, the peer's.
    """
    found = services.pairing.resolve(request.params["ref"])
    name = request.query.get("namespace", "default")
    if name not in found.namespaces:
        raise SplError("not-found", f"pair {found.pair_id} does not share namespace {name[:80]!r}")
    seq = number(request.query, "beyond", 0, 0, 2**63 - 1)
    wait_ms = number(request.query, "wait_ms", 0, 0, WAIT_MS_MAX)
    acked = services.feed.acks
    position = acked.position(found.pair_id, name)
    if wait_ms and (position or 0) <= seq:
        position = await acked.beyond(found.pair_id, name, seq, wait_ms / 1000)
    status = services.sync.status(found.pair_id)
    view = status["peer_view"]
    return json_response({
        "object": "acks",
        "pair_id": found.pair_id,
        "namespace": name,
        "position": position,
        "queue_records": status["queue_records"],
        "queue_records_max": status["queue_max"],
        "peer_queue_records": view.get("queue") if isinstance(view, dict) else None,
    })  # fmt: skip
