"""One pull: a peer's pages fetched and handed to ingest.

    fetch page -> bounded queue -> judge -> store with the position -> ack

A page is fetched while the one before is judged, and judged while the one before that is stored, as long as the queue
has room.  `ingest.py` judges and stores; `schedule.py` decides when a pull runs.

A page that the way does not carry becomes smaller.  If a page of one record does not arrive, the source is asked for
its name alone: the position moves past it, the ledger keeps the name, and the record is fetched by it later.  A source
that knows no names refuses the question, and the pull fails as before.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from ..core.errors import SplError
from ..core.event import event
from ..core.gate import claimed_id
from ..core.pair.pair import Pair
from ..core.pair.status import WAY
from ..core.presence import ANSWER_S
from ..core.record import page
from ..core.record.page import Page
from ..core.value import Json, dataclass, field, replace
from ..home.tables.lists import projections_of, received, received_vouched, vouched
from .changes import Feed
from .ingest import Ingest, Judged
from .ledger import TRIES_MAX
from .peer import (
    ACK,
    CHANGES,
    ERROR_BYTES_MAX,
    INTO,
    RECORDS,
    RESET_CODES,
    WITHHELD,
    SyncError,
    is_refused_size,
    is_too_much,
)
from .reach import Backlog
from .supervise import Handoff, Kick, run_together

log = logging.getLogger("spl.federation")

RESETS_PER_HOUR_MAX: Final = 3  # each reads everything again; a peer that refuses every cursor is faulty
HOUR_S: Final = 3600.0
PAGES_MAX: Final = 10_000
"""Pages of one pull, ten million records; the next pull goes on from there."""
EMPTY_PAGES_MAX: Final = 1000
"""A page is empty if the peer passed over 10,000 rows that we gave it: ten million in a row are not believed."""
ACK_EVERY_S: Final = 1.0
_NOTHING: Final = b'{"ids":[]}'


@dataclass(frozen=True, slots=True)
class Reading:
    """One run of pages: from which cursor, of one thread or one of the peer's namespaces or all, and whether from the
    start regardless.

    `beside`: a stream of the pair is open and owns the saved position.
    """

    since: str
    thread: str = ""
    resync: bool = False
    beside: bool = False
    namespace: str = ""

    @property
    def moves(self) -> bool:
        """Whether the saved position follows it."""
        return not (self.thread or self.beside or self.namespace)


@dataclass(slots=True)
class Progress:
    """A pull or a stream while it runs: the peer's view of the pair, what waits here, when it acked last."""

    view: Mapping[str, Any] = field(default_factory=dict)
    queue: Backlog | None = None
    lost: tuple[str, int] = ("", 0)
    """The cursor at which a page did not arrive last, and how often in a row."""
    acked_s: float = 0.0
    read: int = 0
    """How many records came in pages."""
    fresh: int = 0
    """How many of them were new."""
    since: str = ""
    """The cursor of the page asked for last."""


@dataclass(slots=True)
class Queue:
    """Pages between network and store.  If it is full the reading stops; nothing is dropped."""

    records_max: int
    bytes_max: int
    records: int = 0
    bytes: int = 0
    peak: int = 0
    pages: "asyncio.Queue[Page | SplError | None]" = field(default_factory=asyncio.Queue)
    """At the end None, or the error that ended the reading."""
    judged: "Handoff[Judged | SplError | None]" = field(default_factory=Handoff)
    freed: Kick = field(default_factory=Kick)

    async def room(self, records: int, size: int) -> None:
        """Wait until a page of this size fits, or nothing waits at all."""
        while self.records and (self.records + records > self.records_max or self.bytes + size > self.bytes_max):
            self.freed.clear()
            await self.freed.wait()

    def put(self, item: Page | SplError | None) -> None:
        """Add a page, or the end."""
        if isinstance(item, Page):
            self.records += item.count
            self.bytes += item.size
            self.peak = max(self.peak, self.records)
        self.pages.put_nowait(item)

    def done(self, item: Page) -> None:
        """Release the page's reservation."""
        self.records -= item.count
        self.bytes -= item.size
        self.freed.set()


class Carried(Protocol):
    """The records of a pair that come by an engine."""

    proven: Mapping[str, str]
    """The peer's namespace -> the last record of it that came, all before it being held."""

    def doubt(self) -> None:
        """Record that what came is less than the peer counts up to there."""


class Puller:
    """Pulls of any pair."""

    def __init__(self, ingest: Ingest, feed: Feed) -> None:
        self.ingest, self._feed = ingest, feed
        self.carried: dict[str, Carried] = {}
        """By pair, of those that are read from an engine."""
        self.resets_s: dict[str, dict[str, float]] = {}
        """Pair -> when each of its cursors was refused first within the last hour."""
        self._peers, self._limits = ingest.peers, ingest.limits

    async def read(self, pair: Pair, progress: Progress, reading: Reading) -> int:
        """Read pages to the end, then what was refused and may be sound now; return how many records were new.

        If the source's log is another one, begin again, for three of these an hour; a cursor that is refused again, as
        an answer was lost, is no further one.  Raises SplError.
        """
        pair_id, refused = pair.pair_id, {""}
        while True:
            try:
                fresh = await self.run(pair, progress, reading)
                break
            except SyncError as exc:
                if exc.code not in RESET_CODES:
                    raise
                now_s, resets_s = asyncio.get_running_loop().time(), self.resets_s.setdefault(pair_id, {})
                for old in [at for at, at_s in resets_s.items() if at_s <= now_s - HOUR_S]:
                    del resets_s[old]
                resets_s.setdefault(progress.since, now_s)
                if len(resets_s) > RESETS_PER_HOUR_MAX or progress.since in refused:
                    raise SyncError("peer-rewound", f"{exc.message}, again and again") from exc
                refused.add(progress.since)  # a peer may give the same cursor in each new beginning
                log.warning(**event("sync.reset", pair=pair_id, code=exc.code, resets=len(resets_s)))
                if exc.code == "cursor-reset":
                    # The peer's log was rolled back: what it lost we may hold, so it must read ours from the start.
                    await self._feed.restart(pair_id)
            reading = replace(reading, since="", resync=True)
        if not reading.thread and self.ingest.refused.owes(pair_id, self.ingest.inbound(pair)):
            fresh += sum([count async for count in self.retry_refused(pair)])
        return fresh

    async def run(self, pair: Pair, progress: Progress, reading: Reading) -> int:
        """Read pages until the source has no more; return how many records were new.  Raises SplError."""
        self.ingest.begin(pair.pair_id)
        queue = progress.queue = Queue(self._limits.queue_records, self._limits.queue_bytes)
        judging = self._judge(pair, queue)
        return await run_together(
            self._drain(pair, progress, queue, reading), judging, self._fill(pair, progress, queue, reading)
        )

    async def _drain(self, pair: Pair, progress: Progress, queue: Queue, reading: Reading) -> int:
        """Store page after page; return how many records were new."""
        fresh, base = 0, self.ingest.since(pair)
        while isinstance(judged := await queue.judged.get(), Judged):
            fresh += await self._store(pair, progress, judged, reading, base)
            base = judged.page.next_cursor or base
            queue.done(judged.page)
        if judged is not None:
            raise judged
        return fresh

    async def _judge(self, pair: Pair, queue: Queue) -> None:
        """Judge page after page, at most one ahead of what is stored; what came before an error is still stored."""
        while isinstance(item := await queue.pages.get(), Page):
            try:
                await queue.judged.put(await self.ingest.judge(pair, item))
            except SplError as exc:
                item = exc
                break
        await queue.judged.put(item)

    async def _fill(self, pair: Pair, progress: Progress, queue: Queue, reading: Reading) -> None:
        """Read into the queue; what came before an error is still taken in."""
        try:
            await self._read(pair, progress, queue, reading)
        except SplError as exc:
            queue.put(exc.bare())
        else:
            queue.put(None)

    async def _read(self, pair: Pair, progress: Progress, queue: Queue, reading: Reading) -> None:
        """Fetch pages into the queue until the source has no more; endless emptiness and standing still are errors."""
        count_max = max(1, min(self._limits.page_records_default, self._limits.queue_records // 2))
        portion, came = self._peers.portion(pair.pair_id, INTO), False
        since, empty, first = reading.since, 0, True
        for _ in range(PAGES_MAX):
            self.ingest.budget.check(pair.pair_id)
            progress.since, count = since, portion.count(count_max)
            await queue.room(count, self._limits.page_bytes)
            options = {
                "since": since,
                "limit": str(min(count, self.ingest.budget.records(pair.pair_id))),
                "feed": "normal",
                "thread": reading.thread,
                "target_namespace": reading.namespace,
                "resync": "1" if reading.resync and first else "",
            }
            try:
                item, took_s = await self._page(pair, count, options)
            except SplError as exc:
                if not is_too_much(exc):
                    raise
                passes = self._is_lost(progress, since, came or is_refused_size(exc)) and count == 1
                if not passes and not ((came or is_refused_size(exc)) and count > 1):
                    raise
                came = False  # the way is open, so a smaller page is asked for at once
                if not passes:
                    continue
                item, took_s = await self._page(pair, 1, {**options, "limit": "1", "names": "1"})
            portion.carried(count, item.count, took_s)
            empty, came = 0 if item.count or item.withheld else empty + 1, True
            if item.has_more and (item.next_cursor == since or empty > EMPTY_PAGES_MAX):
                raise SyncError("answer-malformed", "the peer says that there is more and gives nothing")
            queue.put(item)
            if not item.has_more:
                return
            since, first = item.next_cursor, False

    async def _page(self, pair: Pair, count: int, options: Mapping[str, str]) -> tuple[Page, float]:
        """Return the page of these options, of at most `count` records, and the seconds that it took."""
        target = f"{CHANGES}?{urlencode({name: value for name, value in options.items() if value})}"
        loop, reaches = asyncio.get_running_loop(), self.ingest.reaches
        began_s = loop.time()
        try:
            reply, took_s = await self._peers.carry(pair, INTO, count, "GET", target)
        except SplError as exc:
            if exc.code in WAY:
                reaches.unread(pair.pair_id, exc.code, began_s, loop.time())
            elif isinstance(exc, SyncError) and exc.peer_status:
                reaches.presence(pair.pair_id).unread_s = None  # refused, so it arrived
            raise
        reaches.presence(pair.pair_id).read(loop.time())
        decode = partial(page.decode, reply.body, count, names="names" in options)
        return await loop.run_in_executor(self.ingest.pool, decode), took_s

    def _is_lost(self, progress: Progress, since: str, is_open: bool) -> bool:
        """Count a page at this cursor that did not arrive; return whether another try of it is in vain.

        It is if the way `is_open`, as it carried the page before, or refused this one for its size.
        """
        before, count = progress.lost
        progress.lost = since, (count if before == since else 0) + 1
        return is_open or progress.lost[1] >= TRIES_MAX

    async def fetch(self, pair: Pair, ids: Sequence[str], withheld: list[str]) -> AsyncGenerator[Page]:
        """Yield what the peer has of these ids, as many at a time as the way carries.

        One that does not come even alone, though the peer answers, is put into `withheld`.
        Raises SyncError, ReachError, PageError "answer-malformed".
        """
        portion, left, came = self._peers.portion(pair.pair_id, INTO), list(ids), False
        while left:
            self.ingest.budget.check(pair.pair_id)
            asked = left[: portion.count(self._limits.fetch_ids)]
            try:
                body = json.dumps({"ids": asked}).encode()
                reply, took_s = await self._peers.carry(pair, INTO, len(asked), "POST", RECORDS, body)
            except SplError as exc:
                is_one = len(asked) == 1
                if not is_too_much(exc) or not (is_one or came or is_refused_size(exc)):
                    raise
                if is_one:
                    if not came and not is_refused_size(exc):
                        await self._peers.ask(pair, "POST", RECORDS, _NOTHING)  # if this fails as well the way is shut
                    withheld += asked
                    left = left[1:]
                came = False
                continue
            decode = partial(page.decode, reply.body, len(asked), fetched=True)
            item = await asyncio.get_running_loop().run_in_executor(self.ingest.pool, decode)
            portion.carried(len(asked), item.count, took_s)
            came, left = True, left[len(asked) :]
            got = {claimed_id(value) for value in item.values}
            if item.has_more and got & set(asked):
                left = [id_ for id_ in asked if id_ not in got] + left
            yield item

    async def retry_refused(self, pair: Pair) -> AsyncGenerator[int]:
        """Ask again for what the ledger holds of this pair; yield after each page how many records were new.

        The peer may withhold what we would take (the namespace is archived there), or give in full what we take as a
        projection (it has not received the lowered grant), or the chain of a signer was cut off; then it is asked again
        at the next pull.  What the way does not carry is left to the comparisons.
        """
        ingest = self.ingest
        ingest.begin(pair.pair_id)
        inbound, owings = ingest.inbound(pair), ingest.refused.owings(pair.pair_id)
        ledger = await ingest.refused.read(pair.pair_id, inbound)
        awaited, withheld, later = set(ledger.awaited), list[str](), False
        async with aclosing(self.fetch(pair, ledger.ids, withheld)) as pages:
            async for item in pages:
                awaited -= {claimed_id(value) for value in item.values}
                taken = await ingest.keep_again(pair, await ingest.judge(pair, item))
                later = later or taken.later
                yield taken.fresh
        for ns in ledger.namespaces:
            beside = Progress()
            yield await self.run(pair, beside, Reading("", namespace=ns))
            later = later or not beside.read
        await ingest.refuse(pair, dict.fromkeys(withheld, WITHHELD))
        later = later or bool(awaited) or (bool(withheld) and ingest.refused.is_full(pair.pair_id))
        # A chain learnt meanwhile, by this or a stream beside it, may make sound what an earlier page brought.
        ingest.refused.settle(pair.pair_id, inbound, owed=later or ingest.refused.owings(pair.pair_id) != owings)

    async def _store(self, pair: Pair, progress: Progress, judged: Judged, reading: Reading, base: str) -> int:
        """Store what is new and sound of a page and acknowledge it; return how many records were new."""
        item = judged.page
        if reading.namespace:
            # It is read again because some of it was refused: what is refused again is in the ledger already.
            taken = await self.ingest.keep_again(pair, judged)
        else:
            taken = await self.ingest.keep(pair, judged, moves=reading.moves, base=base)
        progress.read += item.count
        progress.fresh += taken.fresh
        if reading.moves:
            progress.view = item.view
            self.ingest.reaches.heard(pair.pair_id, item.view)
            await self._ack(pair, progress, item, taken.clock)
        return taken.fresh

    async def _ack(self, pair: Pair, progress: Progress, item: Page, clock: int) -> None:
        """Acknowledge what is durable here: at the end, and about once a second before it, unless the source knows."""
        now_s = asyncio.get_running_loop().time()
        if item.view.get("acked") == clock or (item.has_more and now_s < progress.acked_s + ACK_EVERY_S):
            return
        progress.acked_s = now_s
        progress.view = {**item.view, **await self.ack(pair, item.next_cursor)}

    async def ack(self, pair: Pair, cursor: str) -> dict[str, Any]:
        """Acknowledge by a request what is durable here; return the source's view, {} if it was out of reach."""
        try:
            reply = await self._peers.ask(pair, "POST", ACK, json.dumps({"cursor": cursor}).encode())
        except SplError as exc:
            # The records are safe here; the next ack says all that this one would have said.
            log.debug(**event("sync.ack_failed", pair=pair.pair_id, code=exc.code))
            return {}
        return _view_in(reply.body)

    async def ask_life(self, pair: Pair, view: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a silent peer whether it is there, by an ack of what we hold; return its view of the pair.

        Raises SyncError or ReachError if it does not answer.
        """
        told: Json = {"cursor": (since := self.ingest.since(pair)), "peer_view": view}
        carried = self.carried.get(pair.pair_id)
        if carried is not None and carried.proven:
            told["received"] = carried.proven
        reply = await self._peers.ask(pair, "POST", ACK, json.dumps(told).encode(), timeout_s=ANSWER_S)
        found = _view_in(reply.body)
        if carried is not None and "received" in told and (cursor := page.cursor_in(reply.body)) not in ("", since):
            ledger = await self.ingest.refused.read(pair.pair_id, self.ingest.inbound(pair))
            held = _held(self.ingest, pair) + len(ledger.ids) + len(ledger.withheld)
            if found.get("acked", 0) > held:
                carried.doubt()  # the engine's word on what comes before a record is signed by nobody
                return found
            # The place in the peer's feed that what came by the engine leads to, so a pull goes on from there.
            reached = Page([], [], cursor, False, {**found, "clock": found.get("acked", 0)}, 0)
            await self.ingest.take(pair, reached, moves=True, base=since)
        return found


def _held(ingest: Ingest, pair: Pair) -> int:
    """Return how many records we have of what the peer offers; fewer if other pairs brought what it relays."""
    index, peer = ingest.writer.store.index, pair.peer_did
    total = index.count(projections_of(pair.pair_id))
    for ns in {each.ns for each in ingest.inbound(pair).values()}:
        total += index.tally(vouched(ns, peer))
        for each in filter(None, (pair.pair_id, pair.inherits)):
            total += index.tally(received(ns, each)) - index.tally(received_vouched(ns, each, peer))
    return total


def _view_in(body: bytes) -> dict[str, Any]:
    """Return the peer's view in the answer to an ack, or nothing."""
    value = page.decode_many(body[:ERROR_BYTES_MAX])
    view = value.get("peer_view") if isinstance(value, dict) else None
    return page.read_view(view) if isinstance(view, dict) else {}
