"""One pull: a peer's pages into our log, behind the gate.

    fetch page -> bounded queue -> drop known ids -> verify in threads, gate -> hub (records + position) -> ack

The next page is fetched while the last is verified, as long as the queue has room.  Records and the position they
lead to are one submission, so the position never runs ahead; a crash at any point repeats at most pages whose ids are
known.  A record that the gate refuses goes into the ledger in the same write and stalls nothing.  `schedule.py` decides
when a pull runs, and this file is its only helper.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from ..core.consent import Inbound
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import SCOPE_VIOLATION, Verdict, claimed_id
from ..core.limits import Limits
from ..core.pair.pair import Pair, Phase
from ..core.record import namespace, page
from ..core.record.levels import NAMES, STRUCTURAL
from ..core.record.page import Page
from ..home.index import refusals_of
from ..home.writer import Writer
from ..home.writes import Arrive, Item, Outcome, Own, Projected, Refuse, SavedPosition
from ..net.client import Reply
from .ingest import Verifier, VerifyState
from .peer import ACK, CHANGES, ERROR_BYTES_MAX, RECORDS, PeerClient, SyncError

log = logging.getLogger("spl.federation")

PAGES_MAX: Final = 10_000
EMPTY_PAGES_MAX: Final = 1000
ACK_EVERY_S: Final = 1.0


class Waiting(Protocol):
    """What waits here of one peer, and the most that did since it was last looked at."""

    records: int
    peak: int


@dataclass(frozen=True, slots=True)
class Ask:
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


@dataclass(frozen=True, slots=True)
class Lacking:
    """What was refused and is still lacking: ids to ask for, and namespaces of the peer to read anew.

    From L2 on a projection has a pseudonym, by which nothing can be asked for.  `awaited` are those of the ids that are
    out of scope here no longer.
    """

    ids: list[str]
    namespaces: list[str]
    awaited: set[str]


@dataclass(slots=True)
class Progress(VerifyState):
    """What a pull or a stream tells while it runs: the peer's view of the pair, what waits here, when it acked last."""

    view: Mapping[str, Any] = field(default_factory=dict)
    queue: Waiting | None = None
    acked_s: float = 0.0
    read: int = 0
    """How many records came in pages."""


@dataclass(slots=True)
class Queue:
    """Pages between network and store.  Full means that reading stops; nothing is dropped."""

    records_max: int
    bytes_max: int
    records: int = 0
    bytes: int = 0
    peak: int = 0
    pages: "asyncio.Queue[Page | SplError | None]" = field(default_factory=asyncio.Queue)
    """At the end stands None, or the error that ended the reading."""
    freed: asyncio.Event = field(default_factory=asyncio.Event)

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
        """Give a page's room free."""
        self.records -= item.count
        self.bytes -= item.size
        self.freed.set()


class Puller:
    """Pulls of any pair."""

    def __init__(self, writer: Writer, peers: PeerClient, limits: Limits) -> None:
        self.writer = writer
        self.peers = peers
        self.limits = limits
        self.verifier = Verifier(writer, peers, limits)

    def close(self) -> None:
        """End the verifying threads."""
        self.verifier.close()

    def pair(self, pair_id: str) -> Pair:
        """Return the pair when it may sync now; raise SyncError by what forbids it."""
        pair = self.writer.views.pairs.get(pair_id)
        if pair is None:
            raise SyncError("pair-unknown", f"no pair {pair_id[:40]}")
        if pair.sync_allowed:
            return pair
        code = {Phase.PAUSED: "pair-paused", Phase.REVOKED: "pair-revoked"}.get(pair.phase, "pair-state-conflict")
        raise SyncError(code, f"{pair_id} is {pair.state.detail or pair.phase}")

    def since(self, pair: Pair) -> str:
        """Return the saved cursor; a pair that superseded another goes on from where that one stood."""
        positions = self.writer.views.positions
        place = positions.get(pair.pair_id) or positions.get(pair.inherits)
        return place.cursor if place is not None else ""

    async def run(self, pair: Pair, progress: Progress, ask: Ask) -> int:
        """Read pages until the source has no more; return how many records were new.  Raises SplError."""
        progress.strangers.clear()
        progress.learnt = False
        queue = progress.queue = Queue(self.limits.queue_records, self.limits.queue_bytes)
        fresh = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fill(pair, queue, ask))
                while isinstance(item := await queue.pages.get(), Page):
                    fresh += await self._take_in(pair, progress, item, ask)
                    queue.done(item)
                if item is not None:
                    raise item
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        return fresh

    async def _fill(self, pair: Pair, queue: Queue, ask: Ask) -> None:
        """Read into the queue; what came before an error is still taken in."""
        try:
            await self._read(pair, queue, ask)
        except SplError as exc:
            queue.put(exc)
        else:
            queue.put(None)

    async def _read(self, pair: Pair, queue: Queue, ask: Ask) -> None:
        """Fetch pages into the queue until the source has no more; endless emptiness and standing still are errors."""
        count = max(1, min(self.limits.page_records_default, self.limits.queue_records // 2))
        since, empty, first = ask.since, 0, True
        for _ in range(PAGES_MAX):
            await queue.room(count, self.limits.page_bytes)
            options = {
                "since": since,
                "limit": str(count),
                "feed": "normal",
                "thread": ask.thread,
                "target_namespace": ask.namespace,
                "resync": "1" if ask.resync and first else "",
            }
            target = f"{CHANGES}?{urlencode({name: value for name, value in options.items() if value})}"
            reply = await self.peers.ask(pair, "GET", target)
            item = await asyncio.get_running_loop().run_in_executor(self.verifier.pool, page.decode, reply.body, count)
            empty = 0 if item.count else empty + 1
            if item.has_more and (item.next_cursor == since or empty > EMPTY_PAGES_MAX):
                raise SyncError("answer-malformed", "the peer says that there is more and gives nothing")
            queue.put(item)
            if not item.has_more:
                return
            since, first = item.next_cursor, False

    async def retry_refused(self, pair: Pair, progress: Progress) -> int:
        """Ask again for what the ledger holds of this pair, as the cause may be gone; return how many came in.

        What is refused again stands in the ledger already, and is not written a second time.  Whose chain the peer
        could not show, it may know by the records that it gives now.  What it does not give although we would take it,
        as its namespace is archived, or gives in full by a grant that we lowered, may come later: `progress.lacking`.
        """
        progress.strangers.clear()
        progress.ahead = False
        lacking = await self.lacking(pair)
        ids, awaited, fresh = lacking.ids, lacking.awaited, 0
        while ids:
            asked, ids = ids[: self.limits.fetch_ids], ids[self.limits.fetch_ids :]
            reply = await self.peers.ask(pair, "POST", RECORDS, json.dumps({"ids": asked}).encode())
            item = page.decode(reply.body, len(asked), fetched=True)
            got = {claimed_id(value) for value in item.values}
            awaited -= got
            if item.has_more and item.count:
                ids = [id_ for id_ in asked if id_ not in got] + ids if got & set(asked) else ids
            fresh += (await self.take_again(pair, progress, item))[0]
        silent = False
        for ns in lacking.namespaces:
            reading = Progress()
            fresh += await self.run(pair, reading, Ask("", namespace=ns))
            silent = silent or not reading.read
        progress.lacking = progress.ahead or silent or bool(awaited)
        return fresh

    async def take_again(self, pair: Pair, progress: Progress, item: Page) -> tuple[int, list[Verdict]]:
        """Store what of records asked for again is sound now; return how many were new, and what was refused again."""
        verdicts, pins = await self.verifier.judge(pair, progress, item)
        fresh = await self._store(pair, [*pins, *_arrivals(pair, verdicts)])
        return fresh, [verdict for verdict in verdicts if verdict.code]

    async def lacking(self, pair: Pair) -> Lacking:
        """Return what the ledger of a pair holds and we still lack, oldest first."""
        inlets = self.verifier.inlets(pair)
        return await asyncio.get_running_loop().run_in_executor(self.verifier.pool, self._lacking, pair.pair_id, inlets)

    def _lacking(self, pair_id: str, inlets: Mapping[str, Inbound]) -> Lacking:
        store = self.writer.store
        rows = store.index.after(refusals_of(pair_id), 0, self.limits.refused_per_pair)
        ids, namespaces, awaited = dict[str, None](), dict[str, None](), set[str]()
        for entry in map(json.loads, store.payloads(rows)):
            id_, ns = entry["id"], entry.get("ns", "")
            shown = any(store.index.has_projection(pair_id, level, id_) for level in NAMES[STRUCTURAL:])
            entered = [inlets[ns]] if ns in inlets else inlets.values()
            if shown or any(store.index.find(id_, inlet.ns) is not None for inlet in entered):
                continue
            enters = entry["code"] == SCOPE_VIOLATION and ns in inlets
            if enters and inlets[ns].level > STRUCTURAL:
                namespaces[ns] = None
                continue
            ids[id_] = None
            if enters:
                awaited.add(id_)
        return Lacking(list(ids), list(namespaces), awaited)

    async def _take_in(self, pair: Pair, progress: Progress, item: Page, ask: Ask) -> int:
        """Store what of a page is new and sound, tell the source; return how many were new."""
        fresh, _refused, clock = await self.take(pair, progress, item, ask)
        progress.read += item.count
        if ask.moves:
            progress.view = item.view
            await self._ack(pair, progress, item, clock)
        return fresh

    async def take(self, pair: Pair, progress: Progress, item: Page, ask: Ask) -> tuple[int, list[Verdict], int]:
        """Store what of a page is new and sound, with its position, in one write.

        Returns (how many were new, what was refused, records in scope up to the position).
        """
        verdicts, pins = await self.verifier.judge(pair, progress, item)
        if ask.namespace:
            # Read again because some of it was refused: what still is stands in the ledger already.
            return await self._store(pair, [*pins, *_arrivals(pair, verdicts)]), [], 0
        return await self.keep(pair, item, verdicts, pins, moves=ask.moves)

    async def keep(
        self, pair: Pair, item: Page, verdicts: Sequence[Verdict], pins: Sequence[Own], *, moves: bool
    ) -> tuple[int, list[Verdict], int]:
        """Store a page that was judged, as `take` does; `moves`: with the position that it leads to, if to any."""
        items: list[Item] = [*pins, *_arrivals(pair, verdicts)]
        refused = [verdict for verdict in verdicts if verdict.code]
        items += [Refuse(pair.pair_id, verdict.id, verdict.code, _named(verdict.ns)) for verdict in refused]
        place = self.writer.views.positions.get(pair.pair_id)
        clock = item.view.get("clock", (place.count if place else 0) + item.count)
        # The same cursor with another count: what was repaired beside it, the source counts and we did not.
        if moves and item.next_cursor and (place is None or (place.cursor, place.count) != (item.next_cursor, clock)):
            items.append(SavedPosition(pair.pair_id, item.next_cursor, clock))
        fresh = await self._store(pair, items)
        if refused:
            codes = ",".join(sorted({verdict.code for verdict in refused}))
            log.warning(**event("sync.refused", pair=pair.pair_id, records=len(refused), codes=codes))
        return fresh, refused, clock

    async def _store(self, pair: Pair, items: Sequence[Item]) -> int:
        """Write it all at once; return how many records were new.  Nothing of a pair paused or revoked meanwhile."""
        self.pair(pair.pair_id)
        outcomes: list[Outcome] = []
        if items:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[list[Outcome]] = loop.create_future()
            self.writer.submit_posted([(items, answer)], loop.call_soon_threadsafe)
            outcomes = await answer
        return sum(outcome.fresh for outcome, sent in zip(outcomes, items, strict=True) if isinstance(sent, Arrive))

    async def _ack(self, pair: Pair, progress: Progress, item: Page, clock: int) -> None:
        """Tell the source what is durable here: at the end, and now and then on the way, unless it knows."""
        now_s = asyncio.get_running_loop().time()
        if item.view.get("acked") == clock or (item.has_more and now_s < progress.acked_s + ACK_EVERY_S):
            return
        progress.acked_s = now_s
        progress.view = {**item.view, **await self.ack(pair, item.next_cursor)}

    async def ack(self, pair: Pair, cursor: str) -> dict[str, Any]:
        """Tell the source by a request what is durable here; return its view, {} where it was out of reach."""
        try:
            reply = await self.peers.ask(pair, "POST", ACK, json.dumps({"cursor": cursor}).encode())
        except SplError as exc:
            # The records are safe here; the next ack says all that this one would have said.
            log.debug(**event("sync.ack_failed", pair=pair.pair_id, code=exc.code))
            return {}
        return _view_in(reply.body)

    async def send(self, pair: Pair, body: bytes, media: str, target: str) -> Reply:
        """Return the peer's answer to a POST; raise SyncError or ReachError."""
        return await self.peers.ask(pair, "POST", target, body, media)


def _arrivals(pair: Pair, verdicts: Sequence[Verdict]) -> list[Item]:
    """Return what was accepted, for the hub: records as records, projections as what they are."""
    found: list[Item] = []
    for verdict in verdicts:
        if verdict.code:
            continue
        if verdict.envelope is not None:
            found.append(Arrive(verdict.envelope, verdict.ns, pair.pair_id))
        elif verdict.projection is not None:
            found.append(Projected(verdict.projection, verdict.ns, pair.pair_id))
    return found


def _named(ns: str) -> str:
    """Return a namespace as the peer named it, for the ledger; "" for what no namespace is called."""
    try:
        return namespace.check_name(ns)
    except SplError:
        return ""


def _view_in(body: bytes) -> dict[str, Any]:
    """Return the peer's view in the answer to an ack, or nothing."""
    value = page.decode_many(body[:ERROR_BYTES_MAX])
    view = value.get("peer_view") if isinstance(value, dict) else None
    return page.read_view(view) if isinstance(view, dict) else {}
