"""The store for its operator: a check of every line, and its sizes."""

import asyncio
import json
from collections.abc import AsyncIterator

from ..auth import Principal
from ..net.routes import Request, Response
from ..storecheck import STORE, Check, facts
from .answers import json_response
from .records import NDJSON
from .services import Services


def check(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/store/check: NDJSON, one object a step; reads the whole log beside the running daemon."""
    return Response(body=_steps(services), content_type=NDJSON)


def stats(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/store/stats: sizes, counts, sync times, and what the last opening found."""
    return json_response({"object": "store", **facts(services.store)})


async def _steps(services: Services) -> AsyncIterator[bytes]:
    steps = Check(services.store, services.home / STORE, services.disk).run()
    while (step := await asyncio.to_thread(next, steps, None)) is not None:
        yield json.dumps(step).encode() + b"\n"
