"""GET /v1/events: the pairs as they change, as server-sent events; for pages, monitors and `spl wait`.

A client gets a `snapshot` of everything, then a `pair` for each pair that changed and a `daemon` when the daemon's own
findings did; so a client that comes back needs no position.  Rows are kept once for all clients, each with the number
of its last change, and a client is a number up to which it was told: nothing is queued for a slow one, which gets the
latest row of each pair instead of all that it missed.

Commits and acks wake the clients; the first of them to come looks at the pairs, for all.  What no event announces, as
a peer that falls silent, is found by looking now and then.  Both are bounded by the cost of a look, so that a thousand
pairs do not take a core.  Without a client nothing here runs.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Final, Protocol

from ..core import when
from ..core.pair.pair import Pair
from ..core.value import Json, dataclass
from ..home.tables.lists import by_namespace, by_thread
from ..home.views import THREAD_PAIRS, THREAD_TOKENS
from ..net.routes import Request, Response
from ..sync.notify import Heartbeat
from ..sync.supervise import wait
from .admin import service_findings
from .answers import Permit
from .auth import Principal
from .live import OPENING, last_event, sse_event, streamed
from .pairs import summary_of
from .services import Services

READING: Final = "events:read"
"""What permission rules call it."""
GAP_S: Final = 0.04
GAP_MAX_S: Final = 0.5
GAP_COSTS: Final = 20
"""Between two looks that something woke there are so many times the cost of one, within these bounds."""
EVERY_S: Final = 1.0
EVERY_COSTS: Final = 100
QUIET_S: Final = 10.0
"""How often a row is sent of which only times moved."""
_TIMES: Final = frozenset({"heard_at", "last_sync_at"})


async def events(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/events: snapshot, pair, daemon, heartbeat, error and server_shutdown events."""
    permit = Permit(services, READING, request, principal)
    return streamed(stream(services, permit, shared_rows(services)))


def shared_rows(services: Services) -> "Rows":
    """Return the rows of this daemon."""
    rows = services.held.setdefault("events", Rows(services))
    assert isinstance(rows, Rows)
    return rows


def row_of(services: Services, pair: Pair) -> Json:
    """Return the pair as in the list, with how far we are, its findings, and why what waits does not move."""
    view = services.doctor.overview(pair)
    return {
        **summary_of(services, pair, view),
        "inbound": {"clock": view.reading.clock, "lag_records": view.reading.lag_records},
        "received_at": None if view.moved_ms is None else when.text_of(view.moved_ms),
        "queue_records": view.reading.queue_records,
        "stalled": view.stalled or None,
        "findings": [item.to_json() for item in view.findings],
    }


NamedEvent = tuple[str, Json]
"""Name and value of an event."""


def _daemon_of(services: Services) -> Json:
    identity = services.vault.identity
    return {
        "object": "daemon",
        "did": identity.did if identity else None,
        "started_at": when.text_of(services.started_ms),
        "findings": [item.to_json() for item in (*services.doctor.own_problems(), *service_findings(services))],
    }


@dataclass(slots=True)
class _Row:
    """The last event of one pair, or of the daemon; `meaning` is it without what moves all the time."""

    value: Json
    meaning: Json
    number: int
    changed_s: float


class Face(Protocol):
    """What a stream shows; `number` is that of the last change."""

    number: int

    @property
    def every_s(self) -> float:
        """The time after which a look is due although nothing woke anyone."""

    def rest_s(self, now_s: float) -> float:
        """Return for how long a client that was woken waits, so that what follows at once is looked at with it."""

    def look(self, now_s: float, since_s: float) -> None:
        """Look at the daemon and its pairs, unless a client did so after `since_s`."""

    def begin(self) -> Iterator[NamedEvent]:
        """Yield the events that a new client begins with."""

    def since(self, number: int) -> Iterator[tuple[int, NamedEvent]]:
        """Yield number and event of each change after that one; of many only the first, by their numbers."""


class Rows:
    """The rows that all clients of a daemon share."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rows: dict[str, _Row] = {}
        self._looked_s = -EVERY_S
        self._cost_s = 0.0
        self.number = 0

    @property
    def every_s(self) -> float:
        """The time after which a look is due although nothing woke anyone."""
        return max(EVERY_S, EVERY_COSTS * self._cost_s)

    def rest_s(self, now_s: float) -> float:
        """Return for how long a client that was woken waits, so that what follows at once is looked at with it."""
        return self._looked_s + min(GAP_MAX_S, max(GAP_S, GAP_COSTS * self._cost_s)) - now_s

    def look(self, now_s: float, since_s: float) -> None:
        """Look at the daemon and its pairs, unless a client did so after `since_s`."""
        if self._looked_s >= since_s:
            return
        began_s = perf_counter()
        self._take("", _daemon_of(self._services), now_s)
        watched = {pair.pair_id for pair in self._services.doctor.watched()}
        for pair_id, pair in self._services.views.pairs.items():
            known = self._rows.get(pair_id)
            if not pair.ended or pair_id in watched:
                self._take(pair_id, row_of(self._services, pair), now_s)
            elif known and (known.value["state"] != pair.phase.value or known.value["findings"]):
                self._take(pair_id, {**row_of(self._services, pair), "findings": []}, now_s)
        self._looked_s, self._cost_s = now_s, perf_counter() - began_s

    def snapshot(self) -> Json:
        """Return everything but the pairs that have ended, unless `status` shows the end as a finding."""
        rows = (row.value for pair_id, row in self._rows.items() if pair_id)
        pairs = [value for value in rows if value["state"] != "revoked" or value["findings"]]
        return {"daemon": self._rows[""].value, "pairs": pairs}

    def by_pair(self) -> dict[str, Json]:
        """Return the rows of the pairs by their ids, those that have ended too."""
        return {pair_id: row.value for pair_id, row in self._rows.items() if pair_id}

    def begin(self) -> Iterator[NamedEvent]:
        """Yield the snapshot."""
        yield "snapshot", self.snapshot()

    def since(self, number: int) -> Iterator[tuple[int, NamedEvent]]:
        """Yield number and event of each change after that one."""
        for pair_id, row in self._rows.items():
            if row.number > number:
                yield row.number, ("pair" if pair_id else "daemon", row.value)

    def _take(self, key: str, value: Json, now_s: float) -> None:
        meaning = {name: item for name, item in value.items() if name not in _TIMES}
        before = self._rows.get(key)
        is_same = before is not None and before.meaning == meaning
        if is_same and before and (before.value == value or now_s - before.changed_s < QUIET_S):
            return
        self.number += 1
        self._rows[key] = _Row(value, meaning, self.number, now_s)


async def stream(services: Services, permit: Permit, face: Face, number: int | None = None) -> AsyncIterator[bytes]:
    """Yield events until the client goes, the daemon stops or the token ends; `number` is what the client has seen."""
    feed, loop = services.feed, asyncio.get_running_loop()
    shared = {ns for pair in services.views.pairs.values() if not pair.ended for ns in pair.namespaces}
    lists = [by_thread(THREAD_PAIRS), by_thread(THREAD_TOKENS), *map(by_namespace, shared)]
    with ExitStack() as stack:
        news = stack.enter_context(feed.notifier.listening(lists))
        stack.enter_context(feed.acks.waking(news))
        beat = stack.enter_context(Heartbeat(feed.notifier, news, services.limits.heartbeat_s))
        face.look(loop.time(), loop.time() - GAP_S)
        first = b"".join(sse_event(*told) for told in face.begin()) if number is None else b""
        number = face.number if number is None else number
        yield OPENING + first
        while True:
            came_s = loop.time()
            woken = news.is_set()
            news.clear()
            if woken and (rest_s := face.rest_s(came_s)) > 0:
                await asyncio.sleep(rest_s)
            if ending := last_event(feed.notifier, permit):
                yield ending
                return
            if beat.is_due:
                beat.sent()
                yield sse_event("heartbeat", {"at": when.text_of(services.now_ms())})
            face.look(loop.time(), came_s if woken else came_s - face.every_s)
            while changes := list(face.since(number)):
                number = max(changed for changed, _ in changes)
                yield b"".join(sse_event(*told) for _, told in changes)
                await asyncio.sleep(0)
            await wait(news, face.every_s)
