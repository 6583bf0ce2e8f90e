"""Records and threads for programs: emit one or many, one by its id, the threads, the state of one."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, ParamSpec, TypeVar

from ..core import canon, fold, when
from ..core.errors import SplError
from ..core.fold import FoldRule
from ..core.limits import KIB, MIB
from ..core.record import record
from ..core.record.position import Positions
from ..home.index import Row
from ..home.log import Log
from ..home.tables.lists import THREADS, by_thread, name_in
from ..home.thread_state import ThreadState
from ..home.writes import Emit, Outcome
from ..net.routes import Later, Request, Response
from ..net.sse import one_line
from .answers import field_error, is_admin, json_response, list_response, number, positions
from .auth import Principal
from .lists import LIMIT_DEFAULT, last_readable, may_read, thread_lists
from .services import Services

_P = ParamSpec("_P")
_T = TypeVar("_T")

NDJSON: Final = "application/x-ndjson"
NAMES_ROWS: Final = 64
"""Threads of a listing that are looked at in one step."""
GROUP_BYTES: Final = 256 * KIB
UNDER_WAY_BYTES: Final = MIB
"""Of one request: lines that are decoded together, and those that are decoded and not durable yet."""
AT_ONCE_BYTES: Final = 16 * KIB
"""So little is decoded on the loop; more in a thread, for megabytes of JSON would hold up every other client."""
QUEUE_SHARE: Final = 8
GROUPS_UNDER_WAY: Final = 4
"""A group has at most an eighth of the lines that the writer queues, so one request takes half of the queue."""
ESCAPED_SHARE: Final = 3
"""A client that escapes every character outside ASCII sends three bytes for one, at most."""
PIECES_MAX: Final = 8000
"""Read for one request: two million records, some fifteen seconds; the next request goes on from there."""

_NAMED: Final = 5
"""Of the records that a short id fits."""
_UNKNOWN: Final = "there is no such record"
_ID_AT: Final = len('{"id":"')
_ID_END: Final = len('{"id":""') + 64
_FIELDS_AT: Final = _ID_END + len(',"record":')
"""Where the record's fields begin in the text of an envelope."""


def emit(request: Request, principal: Principal, services: Services) -> Awaitable[Response]:
    """POST /v1/records: one JSON record, or one a line as NDJSON; answered once durable."""
    if request.headers.get("content-type", "").partition(";")[0].strip() == NDJSON:
        return _emit_in_turn(request, principal, services)
    if len(request.body) > AT_ONCE_BYTES:
        return _emit_long(request, principal, services)
    item = Emit(_decoded(request.body, principal, services), len(request.body), principal.who)
    seen = positions(principal, services)
    answer = Later[list[Outcome]](lambda outcomes: Response(body=_emitted(outcomes[0], seen)))
    loop = asyncio.get_running_loop()
    services.writer.submit_posted([([item], answer)], loop.call_soon_threadsafe, loop.call_soon)
    return answer


async def _emit_long(request: Request, principal: Principal, services: Services) -> Response:
    size = len(request.body)
    item = Emit(await _aside(size, _decoded, request.body, principal, services), size, principal.who)
    outcomes = await _submit([[item]], services)[0]
    return Response(body=_emitted(outcomes[0], positions(principal, services)))


async def _emit_in_turn(request: Request, principal: Principal, services: Services) -> Response:
    """Emit many records once the principal has a place for it: see searches.py."""
    async with services.searches.bulk(principal):
        return await _emit_many(request, principal, services)


async def _emit_many(request: Request, principal: Principal, services: Services) -> Response:
    """Emit many records: each line has its own result, in the same order.

    Lines are decoded in groups, and the next group waits until what is decoded and not durable yet leaves it room: the
    objects of a page take up to twenty times the memory of its text, and a page has more lines than the writer queues.
    """
    size, seen = len(request.body), positions(principal, services)
    count = await _aside(size, _count, request.body)
    if count > services.limits.page_records:
        raise field_error("body", f"holds {count} lines, the limit is {services.limits.page_records}")
    answers: list[bytes] = []
    waiting: deque[_Group] = deque()
    groups = _groups(_lines(request.body), max(1, services.limits.waiting_writes // QUEUE_SHARE))
    while (group := await _aside(size, following, groups)) is not None:
        while waiting and (
            len(waiting) >= GROUPS_UNDER_WAY
            or sum(each.size for each in waiting) + sum(map(len, group)) > UNDER_WAY_BYTES
        ):
            answers += await waiting.popleft().settled(seen)
        begun = _begun(
            await _aside(sum(map(len, group)), _decoded_each, group, principal, services),  # kept by the writer alone
            group, services, first=not answers and not waiting,
        )  # fmt: skip
        waiting.append(begun)
    while waiting:
        answers += await waiting.popleft().settled(seen)
    return Response(body=one_line(b"\n".join([*answers, b""])), content_type=NDJSON)


async def _aside(size: int, do: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what a function makes of a text of that size; of a long one in a thread, while the loop goes on."""
    if size <= AT_ONCE_BYTES:
        return do(*args, **kwargs)
    return await asyncio.to_thread(do, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Group:
    """Lines of one request that are on their way to the disk: the text of each refusal, or the future of the result."""

    size: int
    results: "list[bytes | asyncio.Future[list[Outcome]]]"

    async def settled(self, seen: Positions) -> list[bytes]:
        """Return the result of each line, once all are durable or refused."""
        futures = [result for result in self.results if not isinstance(result, bytes)]
        if futures:
            await asyncio.wait(futures)
        return [result if isinstance(result, bytes) else _result(result, seen) for result in self.results]


def _lines(body: bytes) -> Iterator[bytes]:
    """Yield the lines that are not blank, one at a time, for a list of them would be a second copy of the body."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end]
        if line.strip():
            yield line
        start = end + 1


def _groups(lines: Iterable[bytes], lines_max: int) -> Iterator[list[bytes]]:
    """Yield groups of at most `lines_max` lines and GROUP_BYTES, or of one line."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        if group and (size + len(line) > GROUP_BYTES or len(group) == lines_max):
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line)
    if group:
        yield group


def _count(body: bytes) -> int:
    return sum(1 for _ in _lines(body))


def following(items: Iterator[_T]) -> _T | None:
    """Return the next one, None at the end: what a step of a search may return."""
    return next(items, None)


def _decoded_each(group: Sequence[bytes], principal: Principal, services: Services) -> list[Emit | bytes]:
    """Return what is to be written of each line, or the text of its refusal."""
    found: list[Emit | bytes] = []
    for line in group:
        try:
            found.append(Emit(_decoded(line, principal, services), len(line), principal.who))
        except SplError as exc:
            found.append(_text(exc.to_json()))
    return found


def _begun(decoded: Sequence[Emit | bytes], group: Sequence[bytes], services: Services, *, first: bool) -> _Group:
    """Queue the lines of a group for the writer.

    A writer that takes no more refuses the request as a whole if nothing of it was queued before, else line by line.
    """
    results: list[bytes | asyncio.Future[list[Outcome]]] = [b"" if isinstance(it, Emit) else it for it in decoded]
    places = [place for place, it in enumerate(decoded) if isinstance(it, Emit)]
    items = [[it] for it in decoded if isinstance(it, Emit)]
    try:
        futures = _submit(items, services)
    except SplError as exc:
        if first:
            raise
        for place in places:
            results[place] = _text(exc.to_json())
    else:
        for place, future in zip(places, futures, strict=True):
            results[place] = future
    return _Group(sum(map(len, group)), results)


def _result(future: "asyncio.Future[list[Outcome]]", seen: Positions) -> bytes:
    fault = future.exception()
    if fault is None:
        return _emitted(future.result()[0], seen)
    if not isinstance(fault, SplError):
        raise fault
    return _text(fault.to_json())


def _submit(submissions: Sequence[Sequence[Emit]], services: Services) -> "list[asyncio.Future[list[Outcome]]]":
    """Queue each for the writer; the futures are done once it is durable."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[list[Outcome]]] = [loop.create_future() for _ in submissions]
    services.writer.submit_posted(list(zip(submissions, futures, strict=True)), loop.call_soon_threadsafe)
    return futures


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
    return payload[_ID_AT : _ID_END - 1].decode()


async def threads(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads?after=&limit=&reserved=: the oldest first, with the number of records and the last arrival.

    A token that is bound to namespaces sees the threads, and the counts, of what it may read.
    """
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, services.limits.page_records)
    reserved = request.query.get("reserved") == "1" and is_admin(principal)
    found = _threads(services.store, principal, request.query.get("after", ""), reserved=reserved)
    data: list[dict[str, object]] = []
    while len(data) < limit and (more := await services.searches.step(principal, following, found)) is not None:
        data += more
    return list_response(data[:limit])


def _one(row: Row, payload: bytes, principal: Principal, services: Services) -> Response:
    if not is_admin(principal) and record.is_reserved(json.loads(payload)["record"]["thread"]):
        raise SplError("not-found", _UNKNOWN)
    return Response(body=_answered(payload, row.seq, row.voucher, positions(principal, services)))


def _threads(store: Log, principal: Principal, after: str, *, reserved: bool) -> Iterator[list[dict[str, object]]]:
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


def _thread(store: Log, name: str, principal: Principal) -> dict[str, object]:
    count = sum(map(store.index.count, thread_lists(name, principal)))
    last_seq = last_readable(store, name, principal)
    at = when.text_of(store.line(last_seq).at_ms) if last_seq else None
    return {"object": "thread", "thread": name, "records": count, "last_at": at}


def _decoded(text: bytes, principal: Principal, services: Services) -> dict[str, Any]:
    """Return the record's object; refused if its namespace lies outside the token's.

    A text that no record can be so long as, whatever its client escapes, is refused before it is built: objects take
    up to twenty times the memory of their text.
    """
    limit = services.limits.record_bytes
    if len(text) > ESCAPED_SHARE * limit:
        raise SplError("record-too-large", f"{len(text):,} bytes, and a record has at most {limit:,}")
    value = canon.decode(text, services.limits.nesting_levels + 1)
    if not isinstance(value, dict):
        raise SplError("bad-field", "a record is a JSON object")
    body = value.get("body")
    if isinstance(body, dict):
        name = record.namespace_of({"body": body})
        if not principal.reaches(name):
            raise SplError("scope-forbidden", f"the token does not reach namespace {name}")
    return value


def _emitted(outcome: Outcome, seen: Positions) -> bytes:
    """Return the answer form of a record that was written."""
    if outcome.envelope is None:
        raise SplError("internal")
    return _answered(outcome.envelope.raw, outcome.seq, outcome.envelope.sig.by, seen)


def _answered(raw: bytes, seq: int, vouched_by: str, seen: Positions) -> bytes:
    """Return the answer form of an envelope, as `answer_forms` has it; its text is reused."""
    fields = raw[_FIELDS_AT + 1 : raw.rindex(b',"sig":{') - 1]  # no string in JSON holds bare quotes
    ends = raw[1:_ID_END], fields, seen.shown(seq), _quoted(vouched_by)
    return b'{"object":"record",%b,%b,"sequence":%d,"vouched_by":%b}' % ends


@lru_cache(maxsize=64)
def _quoted(did: str) -> bytes:
    return _text(did)


def _text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


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
