"""The store for its operator: a check of every line, the repair of what is damaged, and the store's sizes."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from ..auth import Principal
from ..core.did import label_of
from ..core.errors import SplError
from ..core.pair import Pair
from ..core.reach import PEER_PUSHES
from ..net.routes import Request, Response
from ..storecheck import STORE, Check, Step, facts
from .answers import json_response, members
from .records import NDJSON
from .services import Services

log = logging.getLogger("spl.store")

PROGRESS_PIECES: Final = 64
"""So many pieces of the log, of 512 lines, are read into a new index from one word of it to the next."""


def check(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/store/check {repair?}: NDJSON, one object a step; reads the whole log beside the running daemon.

    With `repair` what damaged lines held is fetched again, by id, from one pair that may sync after the other, until
    nothing is lost: a step "repair" {pair_id, peer_did, fetched | error} for each and at the end "repaired" {lost,
    fetched, still_lost}; fetched are records, the others lines.  The damaged bytes stay where they are.  A step "error"
    ends it early.
    """
    repair = members(request, {"repair": bool}).get("repair", False)
    return Response(body=_lines(services, repair=repair), content_type=NDJSON)


def stats(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/store/stats: sizes, counts, sync times, and what the last opening found."""
    return json_response({"object": "store", **facts(services.store)})


async def _lines(services: Services, *, repair: bool) -> AsyncIterator[bytes]:
    try:
        async for step in _steps(services, repair=repair):
            yield json.dumps(step, ensure_ascii=False).encode() + b"\n"
    except SplError as exc:
        yield json.dumps({"step": "error", "error": exc.to_json()}, ensure_ascii=False).encode() + b"\n"


async def _steps(services: Services, *, repair: bool) -> AsyncIterator[Step]:
    found = Check(services.store, services.home / STORE, services.disk)
    steps = found.run()
    while (step := await asyncio.to_thread(next, steps, None)) is not None:
        yield step
    if repair:
        async for step in _repair(services, found):
            yield step


async def _repair(services: Services, found: Check) -> AsyncIterator[Step]:
    """Have the index pass over what is damaged, so that it is missing, and fetch what is missing from each pair."""
    lost, fetched = found.lost - found.held, 0
    if lost:
        if await asyncio.to_thread(found.is_indexed):
            async for step in _reindex(services):
                yield step
        for pair in [pair for pair in services.views.pairs.values() if pair.sync_allowed]:
            step = {"step": "repair", "pair_id": pair.pair_id, "peer_did": pair.peer_did}
            try:
                count = await services.reconcile.mend(pair.pair_id)
            except SplError as exc:
                yield {**step, "error": _told(services, pair, exc).to_json()}
            else:
                fetched += count
                yield {**step, "fetched": count}
            if not await asyncio.to_thread(found.still_lost):
                break
        await asyncio.to_thread(services.store.look_again)
    still_lost = await asyncio.to_thread(found.still_lost)
    fields = {"lost": lost, "fetched": fetched, "still_lost": still_lost}
    log.info("store.repaired", extra={"fields": fields})
    yield {"step": "repaired", **fields}


async def _reindex(services: Services) -> AsyncIterator[Step]:
    pieces = services.store.reindex(services.random_bytes)
    try:
        count = 0
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            count += 1
            if count % PROGRESS_PIECES == 0:
                yield {"step": "index", "bytes": piece[0], "of_bytes": piece[1]}
    finally:
        # Where a thread still reads a piece it cannot be closed yet; it is with its last reference, which that has.
        with suppress(ValueError):
            pieces.close()


def _told(services: Services, pair: Pair, exc: SplError) -> SplError:
    """Return why nothing came from a pair, with the next step where only the peer opens its connections."""
    if services.push.reach(pair.pair_id) != PEER_PUSHES:
        return exc
    hint = f"on {label_of(pair.peer_did)}: spl federation verify {pair.pair_id} --repair"
    return SplError(exc.code, f"{exc.message}; the peer opens the connections of this pair", hint=hint)
