"""Following a peer's stream: its events handed to ingest, for as long as the stream lasts.

    stream -> inbox (bounded) -> judge -> store with the position -> ack

What has arrived is taken together and stored with one write; nothing waits for more to come.  The next lot is judged
while the last is being written, and written only after it, so a position never covers what failed to be stored.  A few
records that come alone are stored by the task that judged them: each task between costs a turn of the loop.  Acks
go out as events on the stream that we serve to the same peer, and by a request only if there is none.  An ack says all
that the ones before it said, so the newest goes out at once after a pause, and otherwise after a few milliseconds.

Everything between network and store is bounded: records and bytes by the inbox, heartbeats by keeping only the newest
of those that follow one another.  A full inbox stops the reading, and TCP stops the peer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from math import inf
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.limits import KIB
from ..core.pair.modes import ON_DEMAND
from ..core.pair.pair import Pair, Phase
from ..core.pair.status import READS_ONLY, LastError, StreamStatus
from ..core.presence import Presence, Turns
from ..core.recent import Peaks
from ..core.record import page
from ..core.record.cursor import TEXT_CHARS_MAX
from ..core.record.page import Page
from ..core.value import dataclass, field
from ..net.client import EventStream
from ..net.sse import Event
from .changes import Feed
from .ingest import ON_LOOP_RECORDS, Judged
from .ledger import AGAIN_MAX_S, AGAIN_S, InboundByName
from .peer import CHANGES, STATE_CODES, SyncError, cut_text
from .pull import Progress, Puller
from .supervise import Handoff, Kick, run_together

BATCH_RECORDS: Final = 256
"""Records judged and stored together: half of what the writer commits at once."""
GATHER_AT_ONCE_BYTES: Final = 16 * KIB
"""So little is decoded on the loop: 5 us for a record of 600 bytes, and a way through a thread is 60 us."""
ACK_EVERY_S: Final = 0.01
"""An ack costs both sides what half a record does."""
ACK_POST_EVERY_S: Final = 0.1
FREQUENT: Final = frozenset({"record.created", "ack"})
HOLD_MAX_S: Final = 30.0
"""A source that stops asks us to wait a second; whatever it says, we try again after half a minute."""
BREAKS_MS: Final = 600_000
BREAKS_MAX: Final = 64
"""Breaks remembered for the status; a link that breaks more often in ten minutes is in no better state."""
CONTROL_BYTES_MAX: Final = 64 * KIB
"""What an event other than a record holds at most: it is decoded on the loop, and 3 MiB of brackets take 150 ms."""
TURN_ACKS: Final = 8
"""So many are taken in one go, at 0.1 ms each: a turn of the loop for each is a system call more."""
USELESS_EVENTS_MAX: Final = 1000
"""Unknown events, refused acks and heartbeats of the same second, one after another.

A newer peer may send some, and only a hostile one that many.
"""


@dataclass(slots=True)
class Flow:
    """The stream of one pair over time."""

    is_open: bool = False
    since_ms: int | None = None
    heard_ms: int | None = None
    synced_ms: int | None = None
    hold_s: float = 0.0
    """Seconds after which the source said it would be back."""
    breaks_ms: tuple[int, ...] = ()

    def open(self, now_ms: int) -> None:
        """Record that a stream is being opened."""
        self.is_open, self.since_ms, self.heard_ms, self.hold_s = True, now_ms, None, 0.0

    def close(self, now_ms: int, *, broke: bool) -> None:
        """Record that it ended, and whether it broke: neither side ended it."""
        if broke and self.heard_ms is not None:
            self.breaks_ms = (*self.breaks_ms, now_ms)[-BREAKS_MAX:]
        self.is_open, self.since_ms = False, now_ms

    def status(self, now_ms: int) -> StreamStatus:
        """Return the state of the stream now."""
        state = "down" if not self.is_open else "opening" if self.heard_ms is None else "open"
        breaks = sum(at_ms > now_ms - BREAKS_MS for at_ms in self.breaks_ms)
        return StreamStatus(state, self.since_ms, self.heard_ms, breaks)


@dataclass(slots=True)
class PairSync(Turns):
    """What this process knows of reading from one peer; a restart knows the log, and KnownPeers."""

    kick: Kick = field(default_factory=Kick)
    last_sync_ms: int | None = None
    last_error: LastError | None = None
    crashes: int = 0
    question_failed: bool = False
    """The last failure was that of a sign of life asked for."""
    troubled: bool = False
    """Watchers know of the failure, not yet of the recovery."""
    running: "asyncio.Future[int] | None" = None
    asked: tuple[str, bool] = ("", False)
    progress: Progress = field(default_factory=Progress)
    flow: Flow = field(default_factory=Flow)
    mode: str = ""
    peaks: Peaks = field(default_factory=Peaks)

    @property
    def failing(self) -> str:
        """The code of the failure that lasts, "" if none does."""
        return self.last_error.code if self.errors.attempt and self.last_error is not None else ""

    def needs_read(self, pair: Pair, presence: Presence) -> bool:
        """Return whether reads of a pair on demand failed, maybe before this process, as only a read shows the end."""
        code = self.failing or (pair.reason if pair.phase is Phase.DEGRADED else "")
        return pair.mode == ON_DEMAND and pair.sync_allowed and (code in READS_ONLY or presence.is_unread)

    def note_peak(self, now_ms: int) -> None:
        """Keep the most that waited here since this was called last."""
        queue = self.progress.queue
        if queue is not None:
            self.peaks.add(queue.peak, now_ms)
            queue.peak = queue.records


@dataclass(frozen=True, slots=True)
class Arrived:
    """Events of a stream that came one after another: records with the last cursor among them, or one heartbeat."""

    data: list[bytes] = field(repr=False)
    cursor: str
    size: int
    is_heartbeat: bool = False


@dataclass(slots=True)
class Inbox:
    """Events between network and store; what has arrived is taken together."""

    records_max: int
    bytes_max: int
    records: int = 0
    size: int = 0
    peak: int = 0
    end: SplError | float | None = None
    """Why no more comes: an error, or the seconds after which the source is back."""
    _waiting: "deque[tuple[bytes, str, bool]]" = field(default_factory=deque)
    _arrived: Kick = field(default_factory=Kick)
    _freed: Kick = field(default_factory=Kick)

    async def room(self) -> None:
        """Wait until one more event fits."""
        while self.records >= self.records_max or self.size >= self.bytes_max:
            self._freed.clear()
            await self._freed.wait()

    def put(self, data: bytes, cursor: str, *, is_heartbeat: bool = False) -> None:
        """Add the data of a record's event, or of a heartbeat, which replaces a heartbeat that waits before it."""
        if is_heartbeat and self._waiting and self._waiting[-1][2]:
            self.size -= len(self._waiting.pop()[0])
        self._waiting.append((data, cursor, is_heartbeat))
        self.size += len(data)
        if not is_heartbeat:
            self.records += 1
            self.peak = max(self.peak, self.records)
        self._arrived.set()

    def close(self, end: SplError | float) -> None:
        """Say that no more comes; what waits is still taken."""
        self.end = end
        self._arrived.set()

    async def take(self, count_max: int) -> Arrived | None:
        """Return what waits, up to the first heartbeat or `count_max` records; None at the end."""
        while not self._waiting:
            if self.end is not None:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        first, cursor, is_heartbeat = self._waiting.popleft()
        data = [first]
        while not is_heartbeat and self._waiting and not self._waiting[0][2] and len(data) < count_max:
            more, id_, _ = self._waiting.popleft()
            data.append(more)
            cursor = id_ or cursor
        return Arrived(data, cursor, sum(map(len, data)), is_heartbeat)

    def done(self, item: Arrived) -> None:
        """Release the room of what was taken."""
        if not item.is_heartbeat:
            self.records -= len(item.data)
        self.size -= item.size
        self._freed.set()


@dataclass(slots=True)
class _StreamState:
    """One stream while it runs: what its tasks share."""

    pair_id: str
    progress: Progress
    flow: Flow
    inbox: Inbox
    judged: "Handoff[tuple[Arrived, Judged] | None]" = field(default_factory=Handoff)
    base: str = ""
    """The position at which what is stored of this stream stands."""
    storing: bool = False
    """Whether a lot is being stored."""
    unsent: str = ""
    """The newest cursor that the source was not told of."""
    telling: Kick = field(default_factory=Kick)
    told_s: float = -inf
    """When the source was last told."""
    again: AsyncGenerator[int] | None = None
    """What was refused, while it is asked for again page by page."""


@dataclass(slots=True)
class Again:
    """When heartbeats have what was refused of a pair asked for again: each time it is fetched whole, for nothing."""

    backoff: Backoff
    due_s: float = 0.0
    inbound: InboundByName | None = None
    """What the pair could bring in at the last try."""

    def is_due(self, now_s: float, inbound: InboundByName, *, owed: bool) -> bool:
        """Return whether to try now, which counts as a try: at once under other rules, else less and less often.

        After a success the next try is a minute away at most, but not at once: a peer can spoil record after record.
        """
        if not owed:
            self.backoff.reset()
            self.due_s = min(self.due_s, now_s + AGAIN_S)
            return False
        if inbound != self.inbound:
            self.backoff.reset()
        elif now_s < self.due_s:
            return False
        self.due_s, self.inbound = now_s + self.backoff.failed(), inbound
        return True


class StreamEnd(SyncError):
    """The peer ended the stream and said why: what the pair shares changed, or its state, or another stream began."""


class StreamWatcher(Protocol):
    """The service that decides when a stream is opened."""

    def on_event(self, pair_id: str) -> None:
        """The pair's stream brought an event; of records and acks within a second the first says so."""


class Follower:
    """Follows streams of any pair.  `feed` serves the stream that the same peer reads from us."""

    def __init__(
        self, puller: Puller, feed: Feed, watcher: StreamWatcher, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.puller = puller
        self._ingest = puller.ingest
        self._feed = feed
        self._watcher = watcher
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self.agains: dict[str, Again] = {}

    async def run(self, pair: Pair, progress: Progress, flow: Flow) -> None:
        """Return when the source ends the stream to come back after `flow.hold_s`.

        Raises SyncError, ReachError, PageError and the store's errors; what had arrived is stored all the same.
        """
        ingest = self._ingest
        since = ingest.since(pair)
        target = f"{CHANGES}?{urlencode({'feed': 'continuous', 'since': since})}"
        inbox = progress.queue = Inbox(ingest.limits.queue_records, ingest.limits.queue_bytes)
        state = _StreamState(pair.pair_id, progress, flow, inbox, base=since)
        async with ingest.peers.stream(pair, target) as stream:
            try:
                await run_together(self._keep(state), self._read(state, stream), self._judge(state), self._tell(state))
            finally:
                if state.again is not None:
                    await state.again.aclose()
        if isinstance(inbox.end, SplError):
            raise inbox.end
        flow.hold_s = inbox.end or 0.0

    async def _read(self, state: _StreamState, stream: EventStream) -> None:
        """Put events into the inbox until the stream ends, for whatever reason.

        Other tasks get a turn after a few acks, and after each useless event: reading one waits for nothing.
        """
        inbox, useless, acks = state.inbox, 0, 0
        try:
            async for event in stream:
                heard_ms, state.flow.heard_ms = state.flow.heard_ms, self._now_ms()
                is_quick = heard_ms is not None and heard_ms // 1000 == state.flow.heard_ms // 1000
                if not is_quick or event.name not in FREQUENT:
                    self._watcher.on_event(state.pair_id)  # once a second is enough: of a record it takes a tenth
                if event.name != "record.created" and len(event.data) > CONTROL_BYTES_MAX:
                    raise page.PageError(
                        "answer-malformed", f"the event {event.name[:40]} is {len(event.data):,} bytes"
                    )
                if event.name == "record.created":
                    await inbox.room()
                    inbox.put(event.data, _cursor_in(event.id))
                    useless = 0
                elif event.name == "heartbeat":
                    await inbox.room()
                    inbox.put(event.data, "", is_heartbeat=True)
                    useless = _useless(useless + 1 if is_quick else 0)
                elif event.name == "server_shutdown":
                    inbox.close(_hold_s(event))
                    return
                elif event.name == "error":
                    inbox.close(_end_of(event))
                    return
                else:
                    is_ack = event.name == "ack" and await self._take_ack(state.pair_id, event)
                    useless = _useless(0 if is_ack else useless + 1)
                    acks += 1
                    if useless or acks % TURN_ACKS == 0:
                        await asyncio.sleep(0)
            inbox.close(SyncError("disconnected", "the peer ended the stream"))
        except SplError as exc:
            inbox.close(exc)

    async def _judge(self, state: _StreamState) -> None:
        """Judge what arrived, one lot ahead of what is being stored; end with None."""
        loop, ingest = asyncio.get_running_loop(), self._ingest
        while (item := await state.inbox.take(BATCH_RECORDS)) is not None:
            pair = ingest.pair(state.pair_id)
            try:
                if item.is_heartbeat:
                    found = _heartbeat(item.data[0])
                elif item.size <= GATHER_AT_ONCE_BYTES:
                    found = page.gather(item.data, item.cursor, {})
                else:
                    found = await loop.run_in_executor(ingest.pool, page.gather, item.data, item.cursor, {})
            except SplError as exc:
                state.inbox.close(exc)
                break
            lot = item, await ingest.judge(pair, found)
            if len(item.data) <= ON_LOOP_RECORDS and not state.storing and state.judged.empty():
                await self._store(state, *lot)
            else:
                await state.judged.put(lot)
        await state.judged.put(None)

    async def _keep(self, state: _StreamState) -> None:
        """Store lot after lot of those that come faster than they are stored, and what is left to say at the end."""
        while (lot := await state.judged.get()) is not None:
            await self._store(state, *lot)
        if state.unsent:
            self._feed.confirm(state.pair_id, state.unsent)

    async def _store(self, state: _StreamState, item: Arrived, judged: Judged) -> None:
        """Store a lot with the position that it leads to, and tell the source.

        Raises IntakeError as soon as the pair's budget is used up, and not at the next record: nothing is sent in vain.
        """
        progress, ingest, page_ = state.progress, self._ingest, judged.page
        pair = ingest.pair(state.pair_id)
        state.storing = True
        taken = await ingest.keep(pair, judged, moves=True, base=state.base)
        state.base = page_.next_cursor or state.base
        state.inbox.done(item)
        state.flow.synced_ms = self._now_ms()
        # A view is whole: what one leaves out, such as `unreached`, no longer holds; but its head may be uncounted yet.
        head = int(page_.view.get("head", progress.view.get("head", 0)))
        known = page_.view if item.is_heartbeat else {**progress.view, **page_.view}
        progress.view = {**known, "head": max(head, taken.clock)}
        ingest.reaches.heard(state.pair_id, progress.view)
        if page_.next_cursor and (page_.count or page_.view.get("acked") != taken.clock):
            self._confirm(state, page_.next_cursor)
        if item.is_heartbeat:
            ingest.begin(state.pair_id)
        if taken.learnt or item.is_heartbeat:
            await self._ask_again(state, pair, learnt=taken.learnt)
        ingest.budget.check(state.pair_id)
        state.storing = False

    async def _ask_again(self, state: _StreamState, pair: Pair, *, learnt: bool) -> None:
        """Ask for one page of what was refused, if it is due: the stream's records wait for that, and not for all."""
        if state.again is None and self._asks_again(pair, learnt=learnt):
            state.again = self.puller.retry_refused(pair)
        if state.again is not None and await anext(state.again, None) is None:
            state.again = None

    def _asks_again(self, pair: Pair, *, learnt: bool) -> bool:
        """Return whether what was refused is asked for again now, after a chain was learnt or with a heartbeat."""
        inbound = self._ingest.inbound(pair)
        owed = self._ingest.refused.owes(pair.pair_id, inbound)
        if learnt:
            return owed
        again = self.agains.get(pair.pair_id)
        if again is None:
            again = Again(Backoff(self._random_bytes, AGAIN_S, AGAIN_MAX_S))
            self.agains[pair.pair_id] = again
        return again.is_due(asyncio.get_running_loop().time(), inbound, owed=owed)

    def _confirm(self, state: _StreamState, cursor: str) -> None:
        """Tell the source at once if the last time is long enough ago and we serve it a stream; else leave it."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= state.told_s + ACK_EVERY_S and not state.unsent and self._feed.confirm(state.pair_id, cursor):
            state.told_s = now_s
            return
        state.unsent = cursor
        state.telling.set()

    async def _take_ack(self, pair_id: str, event: Event) -> bool:
        """Hand the peer's ack to our own feed and return whether it was taken; one that is refused ends no stream."""
        value = _object_in(event)
        try:
            await self._feed.ack(pair_id, value.get("cursor"))
        except SplError:
            return False
        return True

    async def _tell(self, state: _StreamState) -> None:
        """Send the acks that were left, only the newest and not all the time; by request if we serve no stream."""
        loop = asyncio.get_running_loop()
        while True:
            await state.telling.wait()
            if (early_s := state.told_s + ACK_EVERY_S - loop.time()) > 0:
                await asyncio.sleep(early_s)
            state.telling.clear()
            cursor, state.unsent, state.told_s = state.unsent, "", loop.time()
            if self._feed.confirm(state.pair_id, cursor):
                continue
            if view := await self.puller.ack(self._ingest.pair(state.pair_id), cursor):
                state.progress.view = {"head": state.progress.view.get("head", 0), **view}
            await asyncio.sleep(ACK_POST_EVERY_S)


def _object_in(event: Event) -> dict[str, Any]:
    """Return the JSON object of an event; raise PageError "answer-malformed"."""
    value = page.decode_many(event.data)
    if not isinstance(value, dict):
        raise page.PageError("answer-malformed", f"the data of the event {event.name[:40]} is a JSON object")
    return value


def _cursor_in(text: object) -> str:
    """Return a cursor as a peer sends it, "" for none; raise PageError "answer-malformed"."""
    if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX or not text.isascii():
        raise page.PageError("answer-malformed", f"a cursor has at most {TEXT_CHARS_MAX} ASCII characters")
    return text


def _heartbeat(data: bytes) -> Page:
    """Return a heartbeat as a page without records."""
    value = page.decode_many(data)
    view = value.get("peer_view") if isinstance(value, dict) else None
    if not isinstance(view, dict):
        raise page.PageError("answer-malformed", "a heartbeat has peer_view")
    return Page([], [], _cursor_in(value.get("cursor", "")), False, page.read_view(view), 0)


def _useless(count: int) -> int:
    """Return how many events in a row were of no use; raise PageError beyond USELESS_EVENTS_MAX."""
    if count == USELESS_EVENTS_MAX:
        raise page.PageError("answer-malformed", f"{count:,} events in a row are of no use")
    return count


def _hold_s(event: Event) -> float:
    value = _object_in(event).get("retry_after_ms")
    return min(HOLD_MAX_S, max(0, value) / 1000) if type(value) is int else 0.0


def _end_of(event: Event) -> StreamEnd:
    """Return why the source ended the stream: the state of the pair, or that another stream is to be opened."""
    value = _object_in(event)
    word = str(value.get("code", ""))
    code = page.STREAM_ENDS.get(word, "disconnected")
    view = value.get("peer_view")
    known = page.read_view(view) if isinstance(view, dict) else None
    if known is None and code in STATE_CODES:
        known = {"state": cut_text(word, 40)}
    message = cut_text(value.get("message", "")) or cut_text(word, 40)
    return StreamEnd(code, f"the peer ended the stream: {message}", view=known)
