"""Records and threads for programs: emit one or many, read by id, thread or actor."""

import asyncio
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from ..core import canon, fold, when
from ..core.errors import SplError
from ..core.fold import FoldRule
from ..core.record import record
from ..home.index import NAMESPACES, THREADS, Row, by_actor, by_namespace, by_thread
from ..home.log import Log
from ..home.thread_state import ThreadState
from ..home.writes import Emit, Outcome
from ..net.routes import Request, Response
from .answers import field_error, is_admin, json_response, list_response, number
from .auth import Principal
from .services import Services

NDJSON: Final = "application/x-ndjson"
LIMIT_DEFAULT: Final = 100
SCAN_ROWS: Final = 500
ANSWER_BYTES: Final = 8 * 1024 * 1024

_FIELDS_AT: Final = len('{"id":"","record":') + 64
"""Where the record's fields begin in the text of an envelope."""


async def emit(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/records: one JSON record, or one a line as NDJSON; answered once durable."""
    if request.headers.get("content-type", "").partition(";")[0].strip() == NDJSON:
        return await _emit_many(request, principal, services)
    value = canon.decode(request.body, services.limits.nesting_levels + 1)
    item = Emit(_own_namespace(value, principal), len(request.body))
    outcomes = await _submit([[item]], services)[0]
    return Response(body=_emitted(outcomes[0]))


async def _emit_many(request: Request, principal: Principal, services: Services) -> Response:
    """Take many records at once: each line has its own result in the same order, and they share a sync."""
    lines = [line for line in request.body.split(b"\n") if line.strip()]
    if len(lines) > services.limits.page_records:
        raise field_error("body", f"holds {len(lines)} lines, the limit is {services.limits.page_records}")
    answers = [b""] * len(lines)
    items, places = [], []
    for place, line in enumerate(lines):
        try:
            value = canon.decode(line, services.limits.nesting_levels + 1)
            items.append([Emit(_own_namespace(value, principal), len(line))])
            places.append(place)
        except SplError as exc:
            answers[place] = _text(exc.to_json())
    futures = _submit(items, services)
    if futures:
        await asyncio.wait(futures)
    for place, future in zip(places, futures, strict=True):
        fault = future.exception()
        if fault is not None and not isinstance(fault, SplError):
            raise fault
        answers[place] = _text(fault.to_json()) if isinstance(fault, SplError) else _emitted(future.result()[0])
    return Response(body=b"".join(answer + b"\n" for answer in answers), content_type=NDJSON)


def _submit(submissions: Sequence[Sequence[Emit]], services: Services) -> "list[asyncio.Future[list[Outcome]]]":
    """Queue each for the hub; the futures answer once durable."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[list[Outcome]]] = [loop.create_future() for _ in submissions]
    services.writer.submit_posted(list(zip(submissions, futures, strict=True)), loop.call_soon_threadsafe)
    return futures


def one(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/records/{id}: the record, or 404 when it is unknown or outside the token's namespaces."""
    copies = services.store.index.copies(request.params["id"])
    rows = [row for row in copies if may_read(row, principal)][:1]
    found = next(shown(services.store, rows, reserved=is_admin(principal)), None)
    if found is None:
        raise SplError("not-found", "there is no such record")
    return json_response(found)


async def query(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/records?thread=&actor=&kind=&since=&limit=: in order of arrival; `since` is a sequence."""
    thread, actor = request.query.get("thread"), request.query.get("actor")
    if thread is not None:
        rows = _rows(services.store, by_thread(thread), request)
    elif actor is not None:
        rows = _rows(services.store, by_actor(actor), request)
    else:
        every = services.store.index.names(NAMESPACES, "", services.limits.page_records)
        names = [by_namespace(name) for name in principal.namespaces] or every
        rows = heapq.merge(*(_rows(services.store, name, request) for name in names), key=lambda row: row.seq)
    return await asyncio.to_thread(_answer, rows, request, principal, services, actor)


async def of_thread(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/records: like a query by thread; an unknown thread is an empty list."""
    rows = _rows(services.store, by_thread(request.params["thread"]), request)
    return await asyncio.to_thread(_answer, rows, request, principal, services)


async def threads(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads?after=&limit=&reserved=: the oldest first, with the number of records and the last arrival.

    A token that is bound to namespaces sees the threads, and the counts, of what it may read.
    """
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, services.limits.page_records)
    reserved = request.query.get("reserved") == "1" and is_admin(principal)
    data: list[dict[str, object]] = []
    name = request.query.get("after", "")
    if name and principal.namespaces and not (await standing(services, name, principal)).records:
        return list_response([])  # as after a thread that does not exist
    while len(data) < limit and (
        page := services.store.index.names(THREADS, by_thread(name) if name else "", SCAN_ROWS)
    ):
        for found in page:
            name = found[2:]
            if record.is_reserved(name) and not reserved:
                continue
            item = await _thread(services, name, principal)
            if item["records"]:
                data.append(item)
            if len(data) == limit:
                break
    return list_response(data)


def shown(store: Log, rows: list[Row], *, reserved: bool) -> Iterator[dict[str, object]]:
    """Yield the answer form of stored records; those on reserved threads only where `reserved` allows.

    A record that the disk changed since it was indexed is left out: its id tells.
    """
    for row, payload in zip(rows, store.payloads(rows), strict=True):
        try:
            envelope = json.loads(payload)
            id_, value, by = envelope["id"], envelope["record"], envelope["sig"]["by"]
            if record.record_id(value) != id_ or (record.is_reserved(value["thread"]) and not reserved):
                continue
        except (ValueError, KeyError, TypeError, SplError):
            continue
        yield _record(id_, value, row.seq, by)


def _answer(
    rows: Iterable[Row], request: Request, principal: Principal, services: Services, actor: str | None = None
) -> Response:
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, services.limits.query_records)
    kind = request.query.get("kind")
    data: list[dict[str, object]] = []
    size = 0
    source = iter(rows)
    while len(data) < limit and size < ANSWER_BYTES:
        batch = list(itertools.islice(source, min(SCAN_ROWS, limit)))
        if not batch:
            break
        readable = [row for row in batch if row.kind == "rec" and may_read(row, principal)]
        lengths = {row.seq: row.length for row in readable}
        for item in shown(services.store, readable, reserved=True):
            body = item["body"]
            if record.is_reserved(str(item["thread"])) and not is_admin(principal):
                continue
            if kind and not (isinstance(body, dict) and body.get("kind") == kind):
                continue
            if actor and item["actor"] != actor:
                continue
            data.append(item)
            size += lengths[int(str(item["sequence"]))]
            if len(data) == limit or size >= ANSWER_BYTES:
                break
    return list_response(data)


def _rows(store: Log, name: str, request: Request) -> Iterator[Row]:
    seq = number(request.query, "since", 0, 0, 2**63 - 1)
    while page := store.index.after(name, seq, SCAN_ROWS):
        yield from page
        seq = page[-1].seq


async def _thread(services: Services, name: str, principal: Principal) -> dict[str, object]:
    store = services.store
    if principal.namespaces and not record.is_reserved(name):
        found = await standing(services, name, principal)
        count, last_seq = found.records, found.sequence
    else:
        last = store.index.last(by_thread(name))
        count, last_seq = store.index.count(by_thread(name)), last.seq if last else 0
    at = when.text_of(store.line(last_seq).at_ms) if last_seq else None
    return {"object": "thread", "thread": name, "records": count, "last_at": at}


def _own_namespace(value: Any, principal: Principal) -> dict[str, Any]:
    """Return the record's object, refused when its namespace lies outside the token's."""
    if not isinstance(value, dict):
        raise SplError("bad-field", "a record is a JSON object")
    body = value.get("body")
    if isinstance(body, dict):
        name = record.namespace_of({"body": body})
        if not principal.reaches(name):
            raise SplError("scope-forbidden", f"the token does not reach namespace {name}")
    return value


def _emitted(outcome: Outcome) -> bytes:
    """Return the answer form of a record that was written, as `_record` has it; its stored text is not made anew."""
    envelope = outcome.envelope
    if envelope is None:
        raise SplError("internal")
    fields = envelope.raw[_FIELDS_AT : envelope.raw.rindex(b',"sig":{')]  # no string in JSON holds bare quotes
    ends = _text(envelope.id), fields[1:-1], outcome.seq, _text(envelope.sig.by)
    return b'{"object":"record","id":%b,%b,"sequence":%d,"vouched_by":%b}' % ends


def _text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _record(id_: str, fields: dict[str, Any], seq: int, vouched_by: str) -> dict[str, object]:
    return {"object": "record", "id": id_, **fields, "sequence": seq, "vouched_by": vouched_by}


def may_read(row: Row, principal: Principal) -> bool:
    """Tell whether the principal may read a record; those of the daemon's own threads have no namespace."""
    return principal.reaches(row.ns) or (not row.ns and is_admin(principal))


async def standing(services: Services, thread: str, principal: Principal) -> ThreadState:
    """Return how many records of a thread the token may read, and the sequence of the newest of them.

    For a token that is bound to namespaces; read off the loop, and from where the last such question ended.
    """
    to_seq, found = services.store.last_seq, ThreadState(fold.begin(fold.DEFAULT), read_seq=-1)
    names = frozenset(principal.namespaces)
    while found.read_seq < to_seq:
        found = await asyncio.wrap_future(services.states.read_on(thread, fold.DEFAULT, names, to_seq))
    return found


PIECES_MAX: Final = 8000
"""Read for one request: two million records, some fifteen seconds; whoever asks again goes on from there."""


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
        found = await _read(services, thread, rule, namespaces)
    value = fold.value_of(rule, found.state, services.states.body_at)
    return json_response({
        "object": "state", "thread": thread, "fold": rule.fold, "field": rule.field or None, "rule": rule.name or None,
        "value": value, "complete": fold.is_complete(found.state), "records": found.records,
        "sequence": found.sequence,
    })  # fmt: skip


async def _read(services: Services, thread: str, rule: FoldRule, namespaces: frozenset[str]) -> ThreadState:
    """Return the state of now; raise "overloaded" where that takes more than one request may have."""
    to_seq = services.store.last_seq
    for _ in range(PIECES_MAX):
        found = await asyncio.wrap_future(services.states.read_on(thread, rule, namespaces, to_seq))
        if found.read_seq >= to_seq:
            return found
    raise SplError("overloaded", "the thread is not yet read to its end", hint="ask again: what was read is kept")
