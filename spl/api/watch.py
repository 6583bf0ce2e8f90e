"""One thread as it grows, for programs: server-sent events, each with its position in the log as its id."""

from collections.abc import AsyncIterator
from typing import Final

from ..core import rules
from ..core.limits import KIB
from ..core.record import record
from ..core.record.position import Positions
from ..core.value import dataclass
from ..home.index import Row
from ..home.log import Log
from ..home.tables.lists import by_thread
from ..home.views import THREAD_TOKENS
from ..net.routes import Request, Response
from ..sync.notify import Heartbeat
from .answers import Permit, field_error, is_admin, number, positions
from .auth import Principal
from .lists import answer_forms, batches, last_readable, may_read, thread_lists
from .live import OPENING, last_event, sse_event, streamed
from .services import Services

READING: Final = "threads:read"
"""What permission rules call it."""
PAGE_ROWS: Final = 64
"""Rows looked at in one step of the search, and before the checks that may end the stream."""
AT_ONCE_BYTES: Final = 16 * KIB
"""So much is read and written on the loop: as of a record that is asked for."""


async def watch(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/watch?since_clock=: record.created, heartbeat, error and server_shutdown events.

    Begins with what comes from now on; with `since_clock`, with what the thread holds of a higher clock; with
    Last-Event-ID, after that arrival.  The daemon's own threads are for admin.
    """
    thread = request.params["thread"]
    if record.is_reserved(thread):
        services.auth.require(principal, "admin")
    since_clock = number(request.query, "since_clock", -1, 0, record.CLOCK_MAX)
    last_seq, last_id = services.store.last_seq, request.headers.get("last-event-id", "")
    if principal.namespaces:
        # For a bound token the log ends with the last record that it may read, so that event ids reveal no others.
        last_seq = await services.searches.step(principal, last_readable, services.store, thread, principal)
    if last_id and (not last_id.isascii() or not last_id.isdigit() or len(last_id) > 19):
        raise field_error("last-event-id", "must be the id of an event of this stream")
    # An id that this log has not reached is another log's: everything is sent again, and nothing is missed.
    known = positions(principal, services).seq_of(int(last_id)) if last_id else 0
    after = (known if known <= last_seq else 0) if last_id else 0 if since_clock >= 0 else last_seq
    permit = Permit(services, READING, request, principal)
    return streamed(_events(services, principal, permit, thread, after, last_seq, -1 if last_id else since_clock))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a step found of a thread: how far it looked, the last readable record up to there, and what to send."""

    seq: int
    visible_seq: int
    batches: list[list[Row]]


async def _events(
    services: Services, principal: Principal, permit: Permit, thread: str, seq: int, present: int, since_clock: int
) -> AsyncIterator[bytes]:
    """Yield events until the client goes, the daemon stops or the token ends; nothing waits here for a slow reader.

    Up to `present` they are history.  A heartbeat's id is that of the last record that the principal may read.
    Rows are read and events written in the threads of searches, for a history that holds nothing wanted may be long,
    and the loop goes on between two pages of it.  Once all of it was sent, what follows is at most PAGE_ROWS lines of
    the log at a time, which take less time than the way through a thread.
    """
    notifier, searches = services.feed.notifier, services.searches
    store, seen = services.store, positions(principal, services)
    visible_seq, admin, is_live = seq, is_admin(principal), False
    listening = notifier.listening([by_thread(name) for name in (thread, THREAD_TOKENS, rules.THREAD)])
    with listening as news, Heartbeat(notifier, news, services.limits.heartbeat_s) as beat:
        yield OPENING
        while True:
            news.clear()
            if ending := last_event(notifier, permit):
                yield ending
                return
            if beat.is_due:
                beat.sent()
                position = seen.shown(visible_seq)
                yield sse_event("heartbeat", {"sequence": position}, position)
            end = store.index.covered  # before the search, which finds everything up to there
            if is_live and end - seq <= PAGE_ROWS:
                found = _search(store, principal, thread, seq, present, since_clock)
            else:
                found = await searches.step(principal, _search, store, principal, thread, seq, present, since_clock)
            if found is None:
                seq, is_live = max(seq, end), True
                await news.wait()
                continue
            seq, visible_seq = found.seq, found.visible_seq or visible_seq
            for batch in found.batches:
                if is_live and sum(row.length for row in batch) <= AT_ONCE_BYTES:
                    yield _records(store, batch, seen, reserved=admin)
                else:
                    yield await searches.step(principal, _records, store, batch, seen, reserved=admin)


def _search(store: Log, principal: Principal, thread: str, seq: int, present: int, since_clock: int) -> _Found | None:
    """Return what follows `seq` in a thread; None at its end."""
    rows = store.index.after_any(thread_lists(thread, principal), seq, PAGE_ROWS)
    if not rows:
        return None
    readable = [row for row in rows if may_read(row, principal)]
    wanted = [row for row in readable if row.seq > present or row.clock > since_clock]
    return _Found(rows[-1].seq, readable[-1].seq if readable else 0, list(batches(wanted)))


def _records(store: Log, rows: list[Row], seen: Positions, *, reserved: bool) -> bytes:
    """Return the events of those rows."""
    events = []
    for _, item in answer_forms(store, rows, seen, reserved=reserved):
        fields = {name: value for name, value in item.items() if name in record.FIELDS}
        value = {"record": fields, "id": item["id"], "sequence": item["sequence"], "vouched_by": item["vouched_by"]}
        events.append(sse_event("record.created", value, int(str(item["sequence"]))))
    return b"".join(events)
