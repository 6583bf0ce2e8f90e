"""Lists of records for programs: by thread, actor and kind, read and sent in pieces as the client takes them.

Without `since` a list holds the newest records, which is what the public SDK means by its hundred; in each list they
stand in order of arrival.  `since` is a position on `/v1/records`, and a clock on `/v1/threads/{thread}/records`: there
the SDK knows nothing but the clocks of what it wrote.
"""

import json
from array import array
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

from ..core import canon
from ..core.limits import KIB, MIB
from ..core.record import record
from ..core.record.position import PositionError, Positions
from ..core.value import dataclass
from ..home.index import Row
from ..home.log import Log
from ..home.tables.lists import NAMESPACES, by_actor, by_namespace, by_thread, by_thread_in, name_in
from ..home.tables.rows import in_pieces
from ..net.routes import Request, Response
from .answers import is_admin, number, positions
from .auth import Principal
from .services import Services

LIMIT_DEFAULT: Final = 100
SCAN_ROWS: Final = 500
"""Rows of the index read at once: some 100 kB."""
HELD_ROWS: Final = 64
"""Rows that a list which its client does not read keeps in memory."""
ANSWER_BYTES: Final = 8 * MIB
"""A list ends early beyond this; the next one goes on after its last sequence."""
PIECE_BYTES: Final = 64 * KIB
WHOLE_BYTES: Final = 64 * KIB
"""A list up to this is sent whole, with its length; a longer one in pieces of PIECE_BYTES, or of one record."""
LIST_BEGIN: Final = b'{"object":"list","data":['
LIST_END: Final = b"]}"
NEWEST: Final = 2**63 - 1
"""A sequence that no log reaches."""
MILLISECONDS: Final = range(2**40, 2**42)
"""Clocks that are times, as those of the public SDK are, lie here from 2004 to 2109."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records a list holds, of those that the principal may read, and how their positions are shown."""

    store: Log
    principal: Principal
    seen: Positions
    kind: str | None = None
    actor: str | None = None
    clock: int = -1
    """Only records of a higher one."""

    def rows(self, batch: Iterable[Row]) -> list[Row]:
        """Return the rows that may be wanted, as far as rows tell."""
        return [row for row in batch if row.kind == "rec" and row.clock > self.clock and may_read(row, self.principal)]

    def forms(self, batch: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield the rows of wanted records with their answer forms."""
        reserved = is_admin(self.principal)
        for row, item in answer_forms(self.store, self.rows(batch), self.seen, reserved=reserved):
            body = item["body"]
            if self.kind and not (isinstance(body, dict) and body.get("kind") == self.kind):
                continue
            if not self.actor or item["actor"] == self.actor:
                yield row, item

    def texts(self, batch: Iterable[Row], count_max: int) -> list[bytes]:
        """Return the JSON of the wanted records among the rows, at most `count_max`."""
        found: list[bytes] = []
        for _, item in self.forms(batch):
            found.append(canon.told(item))
            if len(found) == count_max:
                break
        return found


async def query(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/records?thread=&actor=&kind=&since=&limit=: `since` is the `sequence` of a record.

    A time in milliseconds that is no position here is a clock, as the SDK means it.
    """
    since, clock = number(request.query, "since", 0, 0, 2**63 - 1), -1
    try:
        seq = positions(principal, services).seq_of(since)
    except PositionError:
        if since not in MILLISECONDS:
            raise
        seq = since
    if seq > services.store.last_seq and since in MILLISECONDS:
        seq, clock = 0, since
    thread, actor = request.query.get("thread"), request.query.get("actor")
    if thread is None:
        return await _page(all_lists(actor, principal, services), request, principal, services, seq=seq, clock=clock)
    names = thread_lists(thread, principal)
    return await _page(names, request, principal, services, seq=seq, clock=clock, actor=actor)


async def of_thread(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/records?kind=&since=&limit=: `since` is a clock.

    0 is the begin, also for a record of clock 0.  An unknown thread is an empty list.
    """
    since = number(request.query, "since", 0, 0, record.CLOCK_MAX)
    names = thread_lists(request.params["thread"], principal)
    return await _page(names, request, principal, services, clock=since or -1)


def thread_lists(thread: str, principal: Principal) -> list[str]:
    """Return the index's lists of what the principal may read of a thread, and of nothing else if it is bound."""
    return [by_thread_in(ns, thread) for ns in set(principal.namespaces)] or [by_thread(thread)]


def all_lists(actor: str | None, principal: Principal, services: Services) -> Iterator[str]:
    """Yield the index's lists of what the principal may read of an actor, or of all."""
    if actor is not None:
        return (by_actor(ns, actor) for ns in _namespaces(principal, services, reserved=True))
    return (by_namespace(ns) for ns in _namespaces(principal, services))


def last_readable(store: Log, thread: str, principal: Principal) -> int:
    """Return the sequence of the newest record of a thread that the principal may read; 0 without one."""
    return max((row.seq for row in map(store.index.last, thread_lists(thread, principal)) if row), default=0)


def _namespaces(principal: Principal, services: Services, *, reserved: bool = False) -> Iterator[str]:
    """Yield the namespaces that the principal may read, with `reserved` also "", that of the daemon's own threads."""
    if principal.namespaces:
        yield from set(principal.namespaces)
        return
    if reserved and is_admin(principal):
        yield ""
    yield from map(name_in, services.store.index.names(NAMESPACES, "", services.limits.page_records))


def may_read(row: Row, principal: Principal) -> bool:
    """Return whether the principal may read a record; those of the daemon's own threads have no namespace."""
    return principal.reaches(row.ns) or (not row.ns and is_admin(principal))


def answer_forms(
    store: Log, rows: list[Row], seen: Positions, *, reserved: bool
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield rows with the answer form of their records, without damaged ones; with `reserved` of all threads."""
    for row, payload in store.read(rows):
        envelope = json.loads(payload)
        fields = envelope["record"]
        if reserved or not record.is_reserved(fields["thread"]):
            ends = {"sequence": seen.shown(row.seq), "vouched_by": envelope["sig"]["by"]}
            yield row, {"object": "record", "id": envelope["id"], **fields, **ends}


async def _page(
    names: Iterable[str], request: Request, principal: Principal, services: Services, *,
    seq: int = 0, clock: int = -1, actor: str | None = None,
) -> Response:  # fmt: skip
    """Return the records of those lists: the newest, or with `since` in the request those behind `seq` above `clock`.

    Each step of the search reads at most SCAN_ROWS rows, whether a wanted record is among them or not.
    """
    limit = number(request.query, "limit", LIMIT_DEFAULT, 1, services.limits.query_records)
    seen = positions(principal, services)
    wanted = Wanted(services.store, principal, seen, request.query.get("kind"), actor, clock)
    if "since" in request.query:
        pieces = pieces_of(wanted, _rows(services.store, names, seq), limit)
    else:
        pieces = _newest(wanted, names, limit)
    return await answered(pieces, principal, services)


async def answered(
    pieces: Iterator[bytes], principal: Principal, services: Services, end: bytes = LIST_END
) -> Response:
    """Return a list of what the pieces yield; a long one is read and sent in pieces, as the client takes them.

    A page of megabytes that its client does not read then costs a connection and no memory.  A short one has a length.
    """
    begun, more = b"", True
    while more and len(begun) < WHOLE_BYTES:
        found, more = await services.searches.step(principal, _next, pieces)
        begun += found
    if more:
        return Response(body=_streamed(begun, pieces, principal, services, end))
    return Response(body=LIST_BEGIN + begun + end)


async def _streamed(
    begun: bytes, pieces: Iterator[bytes], principal: Principal, services: Services, end: bytes
) -> AsyncIterator[bytes]:
    """Yield the list; while the client takes a piece, nothing here keeps it."""
    held, more = [LIST_BEGIN + begun], True
    del begun
    while more:
        yield held.pop()
        found, more = await services.searches.step(principal, _next, pieces)
        held.append(found)
        del found
    yield held.pop() + end


def _next(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Return what comes next, b"" for rows of which none is wanted, and whether more may follow."""
    found = next(pieces, None)
    return found or b"", found is not None


def pieces_of(wanted: Wanted, rows: Iterable[Row], limit: int) -> Iterator[bytes]:
    """Yield the JSON of the wanted records, with commas between; b"" for rows of which none is wanted."""
    count = size = 0
    for batch in batches(rows, limit):
        found = wanted.texts(batch, limit - count)
        comma = b"," if count and found else b""
        count, size = count + len(found), size + sum(map(len, found))
        held = [comma + b",".join(found)]
        del found, batch
        yield held.pop()
        if count == limit or size >= ANSWER_BYTES:
            return


def _newest(wanted: Wanted, names: Iterable[str], limit: int) -> Iterator[bytes]:
    """Yield as `pieces_of` does, of the newest wanted records; b"" while they are looked for, from the end.

    Only sequences are kept of those that were found, and the records are read again as they are sent.
    """
    found, room = array("Q"), ANSWER_BYTES
    for rows in _backwards(wanted, list(names), limit):
        for row in rows:
            room -= row.length
            if len(found) == limit or (found and room < 0):
                break
            found.append(row.seq)
        if len(found) == limit or room < 0:
            break
        yield b""
    found.reverse()
    starts = range(0, len(found), HELD_ROWS)
    again = (row for at in starts for row in wanted.store.index.rows(found[at : at + HELD_ROWS]))
    yield from pieces_of(wanted, again, limit)


def _backwards(wanted: Wanted, names: list[str], limit: int) -> Iterator[list[Row]]:
    """Yield the rows of wanted records, the newest first, by as many as are looked at in one step."""
    by_row, seq = not wanted.kind and not wanted.actor, NEWEST
    while page := wanted.store.index.before_any(names, seq, min(SCAN_ROWS, limit) if by_row else SCAN_ROWS):
        seq = page[0].seq
        if by_row:
            yield wanted.rows(page)[::-1]
            continue
        for batch in [*batches(page)][::-1]:
            yield [row for row, _ in wanted.forms(batch)][::-1]


def batches(rows: Iterable[Row], limit: int = SCAN_ROWS) -> Iterator[list[Row]]:
    """Yield the rows by as many as are read at once."""
    return in_pieces(rows, PIECE_BYTES, min(SCAN_ROWS, limit))


def _rows(store: Log, names: Iterable[str], seq: int) -> Iterator[Row]:
    lists = list(names)
    while page := store.index.after_any(lists, seq, SCAN_ROWS):
        yield from page
        seq = page[-1].seq
