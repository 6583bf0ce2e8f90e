"""Snapshots for backup and forensics, their restoring, and the pair log that two sides compare."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Final

from ..auth import Principal
from ..core import record, when
from ..core.errors import SplError
from ..core.pair import Pair
from ..core.snapshot import Read
from ..index import Row
from ..net.routes import Request, Response
from ..restore import FOLDER, Plan, Rights
from ..snapshot import MayRead, take
from .answers import field_error, is_admin, json_response, list_response, members, number
from .records import NDJSON
from .services import Services

UPLOAD_CHARS: Final = 32
ADMIN: Final = "admin"


async def of_thread(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/snapshot: NDJSON; an unknown thread and an unreadable one are empty snapshots.

    A reserved thread needs admin, and says so: its name is no secret.
    """
    thread, admin = request.params["thread"], is_admin(principal)
    if record.is_reserved(thread) and not admin:
        raise SplError("scope-forbidden", f"thread {thread} needs the scope {ADMIN}", scope=ADMIN)

    def may_read(row: Row) -> bool:
        return admin or (bool(row.ns) and principal.reaches(row.ns))

    return await _snapshot(services, thread, may_read)


async def of_all(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/snapshot: every thread, reserved ones too, in order of arrival."""
    return await _snapshot(services, "", lambda row: True)


async def restore(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/threads/restore?dry_run=&upload=&at=&more=: store a snapshot, whole or not at all.

    The body is the snapshot.  One over the route's limit is sent in pieces: each names the `upload` (32 hex digits that
    the caller draws) and the offset `at` which it begins; `more=1` says that others follow.
    """
    upload = request.query.get("upload", "")
    dry_run = _flag(request, "dry_run")
    read = _reader(request.body)
    if upload:
        if len(upload) != UPLOAD_CHARS or not set(upload) <= set("0123456789abcdef"):
            raise field_error("upload", f"must be {UPLOAD_CHARS} hex digits")
        at = number(request.query, "at", 0, 0, services.limits.restore_bytes)
        size = await asyncio.to_thread(services.restorer.add, upload, at, request.body)
        if _flag(request, "more"):
            return json_response({"object": "upload", "upload": upload, "bytes": size})
        read = services.restorer.take(upload)
    rights = Rights(is_admin(principal), principal.reaches)
    loop = asyncio.get_running_loop()

    def prepare(pairs: Collection[Pair]) -> None:
        asyncio.run_coroutine_threadsafe(services.pairing.recall(pairs), loop).result()

    plan = await asyncio.to_thread(services.restorer.run, read, rights, dry_run=dry_run, prepare=prepare)
    return json_response(_planned(plan, dry_run))


async def history(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/history {pair_id?}: what the peers' signed pair logs say, or why one did not answer."""
    pair_id = members(request, {"pair_id": str}).get("pair_id", "")
    return list_response(await services.history.ask(pair_id))


async def pair_log(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/federation/pair/{id}/log: our transitions of the common pair, for its peer; signed both ways."""
    services.history.admit(request.peer)
    return json_response(await asyncio.to_thread(services.history.answer, request.params["id"], request.body))


async def _snapshot(services: Services, thread: str, may_read: MayRead) -> Response:
    identity = services.vault.identity
    pieces = take(
        services.store, services.disk, services.home / FOLDER, instance=identity.did if identity else "",
        thread=thread, may_read=may_read,
    )  # fmt: skip
    # The header takes the first pass; what goes wrong until then has an error form.
    header = await asyncio.to_thread(next, pieces)
    name = f'attachment; filename="spl-{when.text_of(services.now_ms())[:10]}.snap.jsonl"'
    return Response(body=_streamed(header, pieces), content_type=NDJSON, headers=(("content-disposition", name),))


async def _streamed(header: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield header
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _reader(body: bytes) -> Read:
    return lambda size, offset: body[offset : offset + size]


def _planned(plan: Plan, dry_run: bool) -> dict[str, object]:
    return {
        "object": "restore",
        "dry_run": dry_run,
        "instance": plan.header.instance or None,
        "thread": plan.header.thread or None,
        "records": plan.header.count,
        "new": plan.new,
        "known": plan.known,
        "refused": plan.refused.total(),
        "refused_codes": dict(plan.refused),
        "refusals": [{"line": item.number, "code": item.code, "message": item.text} for item in plan.refusals],
    }


def _flag(request: Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in ("0", "1"):
        raise field_error(name, "must be 0 or 1")
    return value == "1"
