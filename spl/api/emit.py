"""Records in: one as JSON, or many as NDJSON, whose lines flow to the disk as they arrive.

Many records are held nowhere as a whole.  Lines are decoded in groups, and the body is read on only while what is
decoded and not durable yet leaves room: the objects of a page take up to twenty times the memory of its text, and a
page has more lines than the writer queues.  Of a result its sequence is kept, and the answer, which begins once the
last line is durable or refused, is read back from the log as the client takes it.  Rejected: to answer while the body
arrives, because most clients read nothing before they have sent all, and both sides would wait for each other.

Few bytes draw no large answer: lines behind the last one of a page share one result, and most of many refusals say
their code alone.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import lru_cache
from typing import Any, Final, ParamSpec, TypeVar

from ..core import canon
from ..core.errors import SplError, count
from ..core.limits import KIB
from ..core.record import record
from ..core.record.position import Positions
from ..home.writes import Emit, Outcome
from ..net.routes import Later, Request, Response
from ..net.sse import one_line
from .answers import NDJSON, Permit, positions
from .auth import Principal
from .lists import PIECE_BYTES
from .searches import following
from .services import Services

_P = ParamSpec("_P")
_T = TypeVar("_T")

RESOURCE: Final = "records:write"
GROUP_BYTES: Final = 64 * KIB
UNDER_WAY_BYTES: Final = 256 * KIB
"""Of one request: lines that are decoded together, and those that are decoded and not durable yet."""
AT_ONCE_BYTES: Final = 16 * KIB
"""So little is decoded on the loop; more in a thread, for megabytes of JSON would hold up every other client."""
QUEUE_SHARE: Final = 8
GROUPS_UNDER_WAY: Final = 4
"""A group has at most an eighth of the lines that the writer queues, so one request takes half of the queue."""
ESCAPED_SHARE: Final = 3
"""A client that escapes every character outside ASCII sends three bytes for one, at most."""
PAUSE_S: Final = 1.0
"""A body of which so long nothing arrives gives up its place among the principal's."""
HELD_BYTES: Final = 128 * KIB
"""Of results that are kept as text; a short answer is sent from it, with its length."""
PIECE_LINES: Final = 256
"""Of an answer, made in one step."""
REFUSALS_IN_FULL: Final = 100
"""Of one request; later ones have the text of their code alone: a line of two bytes draws three hundred."""

ID_AT: Final = len('{"id":"')
ID_END: Final = len('{"id":""') + 64
_FIELDS_AT: Final = ID_END + len(',"record":')
"""Where the record's fields begin in the text of an envelope."""


def emit(request: Request, principal: Principal, services: Services) -> Awaitable[Response]:
    """POST /v1/records: one JSON record, or one a line as NDJSON; answered once durable."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == NDJSON:
        return _Many(request, principal, services)
    if len(request.body) > AT_ONCE_BYTES:
        return _emit_long(request, principal, services)
    item = Emit(_decoded(request.body, principal, services), len(request.body), principal.who)
    seen = positions(principal, services)
    answer: Later[list[Outcome]] = Later(lambda outcomes: Response(body=_emitted(outcomes[0], seen)))
    loop = asyncio.get_running_loop()
    services.writer.submit_posted([([item], answer)], loop.call_soon_threadsafe, loop.call_soon)
    return answer


async def _emit_long(request: Request, principal: Principal, services: Services) -> Response:
    size, seen = len(request.body), positions(principal, services)
    item = Emit(await _aside(size, _decoded, request.body, principal, services), size, principal.who)
    answer: Later[list[Outcome]] = Later(lambda outcomes: Response(body=_emitted(outcomes[0], seen)))
    services.writer.submit_posted([([item], answer)], asyncio.get_running_loop().call_soon_threadsafe)
    return await answer


class _Many(Awaitable[Response]):
    """One request of many records: each line has its own result, in the same order.

    No coroutine, for the client may be gone before anything awaits it.
    """

    def __init__(self, request: Request, principal: Principal, services: Services) -> None:
        self._parts, self._principal, self._services = request.parts, principal, services
        self._seen = positions(principal, services)
        self._permit = Permit(services, RESOURCE, request, principal)
        self._place = AsyncExitStack()
        self._under_way: deque[_Group] = deque()
        self._results: list[bytes | int] = []
        """Of each line: its text, or the sequence of a record that is read again for its answer."""
        self._held = self._count = self._refused = 0
        """Bytes of the results that are text, lines that were taken from the body, and refusals."""

    def __await__(self) -> Generator[Any, Any, Response]:
        return self._response().__await__()

    async def _response(self) -> Response:
        async with self._place:
            async for group in self._groups():
                await self._emit(group)
            await self._settle()
        results, over = self._results, self._count - len(self._results)
        texts = [each for each in results if isinstance(each, bytes)]
        if len(texts) < len(results) or over:
            return Response(body=self._streamed(over), content_type=NDJSON)
        return Response(body=one_line(b"\n".join([*texts, b""])), content_type=NDJSON)

    async def _groups(self) -> AsyncIterator[list[bytes]]:
        """Yield the lines that are not blank, as they arrive, by as many as are decoded together.

        Lines behind the last one of a page are counted, and dropped.
        """
        limits = self._services.limits
        lines_max = max(1, limits.waiting_writes // QUEUE_SHARE)
        lines, group, size = Lines(ESCAPED_SHARE * limits.record_bytes), list[bytes](), 0
        while found := await self._next(lines):
            for line in found:
                self._count += 1
                if self._count > limits.page_records:
                    continue
                if group and (size + len(line) > GROUP_BYTES or len(group) == lines_max):
                    yield group
                    group, size = [], 0
                group.append(line)
                size += len(line)
        if group:
            yield group

    async def _next(self, lines: "Lines") -> list[bytes]:
        """Return the next lines that are not blank; none at the end of the body."""
        while self._parts is not None:
            try:
                async with asyncio.timeout(PAUSE_S):
                    part = await anext(self._parts, None)
            except TimeoutError:
                await self._settle()
                await self._place.aclose()
                part = await anext(self._parts, None)
            if part is None:
                self._parts = None
                return lines.end()
            held = lines.held
            found = lines.feed(part)
            self._parts.let_go(held + len(part) - lines.held)
            if found:
                return found
        return []

    async def _emit(self, group: list[bytes]) -> None:
        """Queue the lines of a group for the writer, once what is under way leaves it room.

        A writer that takes no more refuses the request as a whole if nothing of it was queued before, else line by
        line.
        """
        if not self._under_way:
            await self._place.aclose()  # others of the principal have their turn
            await self._place.enter_async_context(self._services.searches.bulk(self._principal))
        size, waiting = sum(map(len, group)), self._under_way
        while waiting and (
            len(waiting) >= GROUPS_UNDER_WAY or sum(each.size for each in waiting) + size > UNDER_WAY_BYTES
        ):
            self._keep(await waiting.popleft().settled())
        self._permit.check()
        decoded = await _aside(size, _decoded_each, group, self._principal, self._services)
        begun = _Group(size, decoded)
        items = [([it], _Line(begun, place)) for place, it in enumerate(decoded) if isinstance(it, Emit)]
        try:
            self._services.writer.submit_posted(items, asyncio.get_running_loop().call_soon_threadsafe)
        except SplError as exc:
            if not self._results and not waiting:
                raise
            for _, line in items:
                line.set_exception(exc)
        waiting.append(begun)

    async def _settle(self) -> None:
        while self._under_way:
            self._keep(await self._under_way.popleft().settled())

    def _keep(self, results: "Sequence[SplError | Outcome]") -> None:
        """Add results: as text while that is little, and then without what the log, or the code, has."""
        for result in results:
            kept: bytes | int
            if isinstance(result, SplError):
                self._refused += 1
                kept = _text(result.to_json()) if self._refused <= REFUSALS_IN_FULL else _refusal(result.code)
            else:
                kept = _emitted(result, self._seen) if self._held < HELD_BYTES else result.seq
            self._held += len(kept) if isinstance(kept, bytes) else 0
            self._results.append(kept)

    async def _streamed(self, over: int) -> AsyncIterator[bytes]:
        """Yield the answer; while the client takes a piece, nothing here keeps it."""
        pieces = self._pieces(over)
        while (piece := await self._services.searches.step(self._principal, following, pieces)) is not None:
            held = [one_line(piece)]
            del piece
            yield held.pop()

    def _pieces(self, over: int) -> Iterator[bytes]:
        for at in range(0, len(self._results), PIECE_LINES):
            yield from self._texts(self._results[at : at + PIECE_LINES])
        if over:
            most = self._services.limits.page_records
            text = f"body: holds over {most:,} lines; not taken: {count(over, 'line')}"
            hint = f"send the lines that were not taken again, at most {most:,} in one request"
            yield _text(SplError("bad-field", text, hint=hint, not_taken_lines=over).to_json()) + b"\n"

    def _texts(self, results: list[bytes | int]) -> Iterator[bytes]:
        """Yield the lines of some results by at most PIECE_BYTES, or one; those of records are read again."""
        store = self._services.store
        rows = {row.seq: row for row in store.index.rows(sorted({each for each in results if isinstance(each, int)}))}
        piece, size = list[bytes](), 0
        for result in results:
            row = None if isinstance(result, bytes) else rows.get(result)
            raw = None if row is None else store.payload(row)
            if isinstance(result, bytes):
                text = result
            elif row is None or raw is None:
                text = _text(SplError("store-damaged").to_json())
            else:
                text = answered(raw, row.seq, row.voucher, self._seen)
            if piece and size + len(text) > PIECE_BYTES:
                yield b"\n".join([*piece, b""])
                piece, size = [], 0
            piece.append(text)
            size += len(text)
        yield b"\n".join([*piece, b""])


class _Group:
    """Lines that are on their way to the disk: why each is refused, or what became of the record."""

    def __init__(self, size: int, decoded: "Sequence[Emit | SplError]") -> None:
        self.size = size
        self.results: list[SplError | Outcome | None] = [None if isinstance(it, Emit) else it for it in decoded]
        self.left = self.results.count(None)
        self._durable: asyncio.Future[None] | None = None

    async def settled(self) -> "list[SplError | Outcome]":
        """Return the result of each line, once all are durable or refused."""
        if self.left:
            self._durable = asyncio.get_running_loop().create_future()
            await self._durable
        return [result for result in self.results if result is not None]

    def set(self, place: int, result: "SplError | Outcome") -> None:
        """Record what became of a line."""
        self.results[place] = result
        self.left -= 1
        if not self.left and self._durable is not None and not self._durable.done():
            self._durable.set_result(None)


class _Line:
    """Where the writer's answer to one line goes; a client that went does not cancel it."""

    __slots__ = ("_group", "_place")

    def __init__(self, group: _Group, place: int) -> None:
        self._group, self._place = group, place

    def cancelled(self) -> bool:
        """Return False."""
        return False

    def done(self) -> bool:
        """Return whether it was answered."""
        return self._group.results[self._place] is not None

    def set_result(self, result: list[Outcome], /) -> None:
        """Record that the line is durable."""
        self._group.set(self._place, result[0])

    def set_exception(self, exception: SplError, /) -> None:
        """Record why the line is refused."""
        self._group.set(self._place, exception)


class Lines:
    """Cuts a body that arrives in parts into lines; of a line over `bytes_max` as much is kept as shows that it is."""

    def __init__(self, bytes_max: int) -> None:
        self._most = bytes_max + 1
        self._rest = bytearray()

    @property
    def held(self) -> int:
        """Bytes of the line that has begun."""
        return len(self._rest)

    def feed(self, part: bytes) -> list[bytes]:
        """Return the lines that end in this part, without blank ones."""
        first, *others = part.split(b"\n")
        self._rest += first[: self._most - len(self._rest)]
        if not others:
            return []
        *whole, rest = others
        found = [bytes(self._rest), *(line[: self._most] for line in whole)]
        self._rest = bytearray(rest[: self._most])
        return [line for line in found if line.strip()]

    def end(self) -> list[bytes]:
        """Return the last line, which needs no line end, if it is not blank."""
        rest, self._rest = bytes(self._rest), bytearray()
        return [rest] if rest.strip() else []


async def _aside(size: int, do: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what a function makes of a text of that size; of a long one in a thread, while the loop goes on."""
    if size <= AT_ONCE_BYTES:
        return do(*args, **kwargs)
    return await asyncio.to_thread(do, *args, **kwargs)


def _decoded_each(group: Sequence[bytes], principal: Principal, services: Services) -> list[Emit | SplError]:
    """Return what is to be written of each line, or why it is refused."""
    found: list[Emit | SplError] = []
    for line in group:
        try:
            found.append(Emit(_decoded(line, principal, services), len(line), principal.who))
        except SplError as exc:
            found.append(exc.with_traceback(None))
    return found


def _decoded(text: bytes, principal: Principal, services: Services) -> dict[str, Any]:
    """Return the record's object; refused if its namespace lies outside the token's.

    A text that no record can be so long as, whatever its client escapes, is refused before it is built: objects take
    up to twenty times the memory of their text.
    """
    limit = services.limits.record_bytes
    if len(text) > ESCAPED_SHARE * limit:
        raise SplError("record-too-large", f"at least {len(text):,} bytes, and a record has at most {limit:,}")
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
    return answered(outcome.envelope.raw, outcome.seq, outcome.envelope.sig.by, seen)


def answered(raw: bytes, seq: int, vouched_by: str, seen: Positions) -> bytes:
    """Return the answer form of an envelope, as `answer_forms` has it; its text is reused."""
    fields = raw[_FIELDS_AT + 1 : raw.rindex(b',"sig":{') - 1]  # no string in JSON holds bare quotes
    ends = raw[1:ID_END], fields, seen.shown(seq), _quoted(vouched_by)
    return b'{"object":"record",%b,%b,"sequence":%d,"vouched_by":%b}' % ends


@lru_cache(maxsize=64)
def _refusal(code: str) -> bytes:
    hint = "send this line in a request of its own: the answer names the field" if code == "bad-field" else ""
    return _text(SplError(code, hint=hint).to_json())


@lru_cache(maxsize=64)
def _quoted(did: str) -> bytes:
    return _text(did)


def _text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
