"""Snapshots and their restore, the check of the store, and the pair logs of peers."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial
from typing import Final

from ..core import canon, when
from ..core.errors import SplError
from ..core.pair.pair import Pair
from ..core.record import record
from ..core.record.snapshot import DAMAGED_HEADER, Read
from ..core.value import Json
from ..home.check import Step, StoreCheck, facts
from ..home.home import STORE
from ..home.restore import FOLDER, Plan, Uploader
from ..home.snapshot import Rights, take
from ..home.writes import Signer
from ..net.routes import Request, Response
from .answers import (
    NDJSON,
    check_admin,
    field_error,
    is_admin,
    json_response,
    list_response,
    members,
    number,
    positions,
)
from .auth import Principal
from .searches import following
from .services import Services

UPLOAD_CHARS: Final = 32
DAMAGED_SHOWN: Final = 100


async def of_thread(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/snapshot: NDJSON; an unknown thread and an unreadable one are empty snapshots.

    A reserved thread needs admin, and says so: its name is no secret.
    """
    thread = request.params["thread"]
    if record.is_reserved(thread):
        check_admin(principal, f"thread {thread}")
    return await _snapshot(services, principal, thread)


async def of_all(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/snapshot: every thread, reserved ones too, in order of arrival."""
    return await _snapshot(services, principal, "")


async def restore(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/threads/restore?dry_run=&skip_damaged=&accept_retired=&upload=&at=&more=: store a snapshot.

    All of it or nothing.  The body is the snapshot; one over the route's limit is sent in pieces: each names the
    `upload` (32 hex digits that the caller draws) and the offset `at` which it begins; `more=1` says: others follow.
    """
    upload = request.query.get("upload", "")
    dry_run, skip = _flag(request, "dry_run"), _flag(request, "skip_damaged")
    retired = _flag(request, "accept_retired")
    if retired:
        check_admin(principal, "accept_retired")
    read = _reader(request.body)
    owner = Uploader(principal.token_id, is_admin(principal), bool(principal.namespaces))
    if upload:
        if len(upload) != UPLOAD_CHARS or not set(upload) <= set("0123456789abcdef"):
            raise field_error("upload", f"must be {UPLOAD_CHARS} hex digits")
        at = number(request.query, "at", 0, 0, services.limits.restore_bytes)
        size = await asyncio.to_thread(services.restorer.add, owner, upload, at, request.body)
        if _flag(request, "more"):
            return json_response({"object": "upload", "upload": upload, "bytes": size})
        read = services.restorer.take(owner, upload)
    rights = Rights(is_admin(principal), principal.reaches, retired)
    loop = asyncio.get_running_loop()

    def prepare(pairs: Collection[Pair]) -> None:
        asyncio.run_coroutine_threadsafe(services.pairing.recall(pairs), loop).result()

    run = partial(services.restorer.run, read, rights, dry_run=dry_run, skip_damaged=skip, owner=owner, prepare=prepare)
    plan = await loop.run_in_executor(services.restorer.pool, run)
    return json_response(_planned(plan, dry_run))


async def history(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/history {pair_id?}: what the peers' signed pair logs say, or why one did not answer."""
    pair_id = members(request, {"pair_id": str}).get("pair_id", "")
    return list_response(await services.pairing.history.ask(pair_id))


async def _snapshot(services: Services, principal: Principal, thread: str) -> Response:
    identity = services.vault.identity
    steps = take(
        services.store, services.disk, services.home / FOLDER, views=services.views,
        instance=identity.did if identity else "", thread=thread, namespaces=set(principal.namespaces),
        signer=Signer(identity.chain, identity.key) if identity else None,
    )  # fmt: skip
    # What goes wrong in the first pass has an error form.
    snapshot = await services.searches.run(principal, steps)
    name = f'attachment; filename="spl-{when.text_of(services.now_ms())[:10]}.snap.jsonl"'
    headers = [("content-disposition", name)]
    if snapshot.damaged:
        seen = positions(principal, services)
        headers.append((DAMAGED_HEADER, " ".join(map(str, map(seen.shown, snapshot.damaged[:DAMAGED_SHOWN])))))
    body = _streamed(snapshot.header, snapshot.pieces, principal, services)
    return Response(body=body, content_type=NDJSON, headers=tuple(headers))


async def _streamed(
    header: bytes, pieces: Iterator[bytes], principal: Principal, services: Services
) -> AsyncIterator[bytes]:
    yield header
    # The list hands each piece over: a name bound to it would keep it while a slow reader lets this wait.
    while held := [
        piece for piece in (await services.searches.step(principal, following, pieces),) if piece is not None
    ]:
        yield held.pop()


def _reader(body: bytes) -> Read:
    return lambda size, offset: body[offset : offset + size]


def _planned(plan: Plan, dry_run: bool) -> Json:
    return {
        "object": "restore",
        "dry_run": dry_run,
        "instance": plan.header.instance or None,
        "thread": plan.header.thread or None,
        "records": plan.header.count,
        "new": plan.new,
        "known": plan.known,
        "damaged": plan.damaged,
        "damaged_lines": plan.damaged_lines,
        "left_out": plan.left_out.total() + plan.compromised.total(),
        "left_out_threads": dict(plan.left_out),
        "left_out_compromised": dict(plan.compromised),
        "refused": plan.refused.total(),
        "refused_codes": dict(plan.refused),
        "refusals": [{"line": item.number, "code": item.code, "message": item.text} for item in plan.refusals],
    }


def _flag(request: Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in ("0", "1"):
        raise field_error(name, "must be 0 or 1")
    return value == "1"


def check(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/store/check {repair?}: NDJSON, one object a step; reads the whole log beside the running daemon.

    With `repair` what damaged lines held is fetched again, by id, from one pair that may sync after the other, until
    nothing is lost; the steps are those of `StoreCheck.run` and `StoreMender.repair`.  The damaged bytes stay where
    they are.  A step "error" ends it early.
    """
    repair = members(request, {"repair": bool}).get("repair", False)
    return Response(body=_lines(services, repair=repair), content_type=NDJSON)


def stats(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/store/stats: sizes, counts, sync times, and what the last opening found."""
    return json_response({"object": "store", **facts(services.store)})


async def _lines(services: Services, *, repair: bool) -> AsyncIterator[bytes]:
    try:
        async for step in _steps(services, repair=repair):
            yield canon.told(step) + b"\n"
    except (SplError, OSError) as exc:
        error = exc if isinstance(exc, SplError) else SplError("store-damaged", f"the log cannot be read: {exc}")
        yield canon.told({"step": "error", "error": error.to_json()}) + b"\n"


async def _steps(services: Services, *, repair: bool) -> AsyncIterator[Step]:
    found = StoreCheck(services.store, services.home / STORE, services.disk)
    steps = found.run()
    while (step := await asyncio.to_thread(next, steps, None)) is not None:
        yield step
    if repair:
        async for step in services.mender.repair(found):
            yield step
