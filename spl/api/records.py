"""Records and threads for programs: one record by its id, the threads, the state of one."""

import json
from collections.abc import Awaitable, Iterator
from typing import Final

from ..core import fold, when
from ..core.errors import SplError
from ..core.fold import FoldRule
from ..core.record import record
from ..core.record.position import Positions
from ..core.value import Json
from ..home.index import Row
from ..home.log import Log
from ..home.tables.lists import THREADS, by_thread, name_in
from ..home.thread_state import ThreadState
from ..net.routes import Request, Response
from .answers import is_admin, json_response, list_response, number, positions
from .auth import Principal
from .emit import AT_ONCE_BYTES, ID_AT, ID_END, answered
from .lists import LIMIT_DEFAULT, last_readable, may_read, thread_lists
from .searches import following
from .services import Services

NAMES_ROWS: Final = 64
"""Threads of a listing that are looked at in one step."""
PIECES_MAX: Final = 8000
"""Read for one request: two million records, some fifteen seconds; the next request goes on from there."""

_NAMED: Final = 5
"""Of the records that a short id fits."""
_UNKNOWN: Final = "there is no such record"


def one(request: Request, principal: Principal, services: Services) -> Response | Awaitable[Response]:
    """GET /v1/records/{id}: the record, or 404 when it is unknown or outside the token's namespaces.

    The first 16 characters of an id do: that is how the index knows it, and what terminals show.
    """
    id_ = request.params["id"]
    stored = services.store.index.stored(id_, principal.namespaces)
    readable = ((row, payload) for row, payload in stored if may_read(row, principal))
    first = next(readable, None)
    if first is None:
        raise SplError("not-found", _UNKNOWN)
    row, payload = first
    if not record.is_id(id_) and (others := {_id_in(other) for _, other in readable} - {_id_in(payload)}):
        raise SplError("ambiguous", f"{id_} begins {', '.join([_id_in(payload), *sorted(others)][:_NAMED])}")
    if row.length <= AT_ONCE_BYTES:
        return _one(row, payload, principal, services)
    return services.searches.step(principal, _one, row, payload, principal, services)


def _id_in(payload: bytes) -> str:
    """Return the id of a stored record."""
    return payload[ID_AT : ID_END - 1].decode()


async def threads(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads?after=&limit=&reserved=: the oldest first, with the number of records and the last arrival.

    A token that is bound to namespaces sees the threads, and the counts, of what it may read.
    """
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, services.limits.page_records)
    reserved = request.query.get("reserved") == "1" and is_admin(principal)
    found = _threads(services.store, principal, request.query.get("after", ""), reserved=reserved)
    data: list[Json] = []
    while len(data) < limit and (more := await services.searches.step(principal, following, found)) is not None:
        data += more
    return list_response(data[:limit])


def _one(row: Row, payload: bytes, principal: Principal, services: Services) -> Response:
    if not is_admin(principal) and record.is_reserved(json.loads(payload)["record"]["thread"]):
        raise SplError("not-found", _UNKNOWN)
    return Response(body=answered(payload, row.seq, row.voucher, positions(principal, services)))


def _threads(store: Log, principal: Principal, after: str, *, reserved: bool) -> Iterator[list[Json]]:
    """Yield the answer forms of the threads behind `after`, NAMES_ROWS or fewer at a time."""
    name, index = after, store.index
    while True:
        if principal.namespaces:
            page = index.threads_in(set(principal.namespaces), name, NAMES_ROWS)
        else:
            page = list(map(name_in, index.names(THREADS, by_thread(name) if name else "", NAMES_ROWS)))
        if not page:
            return
        yield [_thread(store, each, principal) for each in page if reserved or not record.is_reserved(each)]
        name = page[-1]


def _thread(store: Log, name: str, principal: Principal) -> Json:
    count = sum(map(store.index.count, thread_lists(name, principal)))
    last_seq = last_readable(store, name, principal)
    at = when.text_of(store.line(last_seq).at_ms) if last_seq else None
    return {"object": "thread", "thread": name, "records": count, "last_at": at}


async def thread_state(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/state: {fold, field, rule, value, complete, records, sequence}.

    Of the records that the token may read, up to the newest one when asked.  An unknown thread, an empty one, and one
    whose records lie outside the token's namespaces answer the same.  The daemon's own threads are for admin.
    """
    thread = request.params["thread"]
    rule = fold.rule_for(services.views.fold_rules, thread)
    reserved = record.is_reserved(thread)
    found = ThreadState(fold.begin(rule))
    if not reserved or is_admin(principal):
        namespaces = frozenset[str]() if reserved else frozenset(principal.namespaces)
        found = await _read(services, principal, thread, rule, namespaces)
    seen = positions(principal, services)
    return await services.searches.step(principal, _state, services, thread, rule, found, seen)


def _state(services: Services, thread: str, rule: FoldRule, found: ThreadState, seen: Positions) -> Response:
    value = fold.value_of(rule, found.state, services.states.body_at)
    return json_response({
        "object": "state", "thread": thread, "fold": rule.fold, "field": rule.field or None, "rule": rule.name or None,
        "value": value, "complete": fold.is_complete(found.state), "records": found.records,
        "sequence": seen.shown(found.sequence),
    })  # fmt: skip


async def _read(
    services: Services, principal: Principal, thread: str, rule: FoldRule, namespaces: frozenset[str]
) -> ThreadState:
    """Return the state of now; raise "overloaded" if that takes longer than one request may."""
    to_seq = services.store.last_seq
    for _ in range(PIECES_MAX):
        found = await services.searches.step(principal, services.states.read_on, thread, rule, namespaces, to_seq)
        if found.read_seq >= to_seq:
            return found
    raise SplError("overloaded", "the thread is not yet read to its end", hint="ask again: what was read is kept")
