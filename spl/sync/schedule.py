"""Consumer side of sync: when we read from each peer, and how far we are.

One task per pair runs its mode: `polling` at its interval with jitter, `on-demand` only when asked, `continuous` by
catching up with pages and then following the peer's stream.  Failures back off with full jitter to at most five
minutes, a stream's to half a minute.  One pull runs at a time for a pair; later callers join it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ..core import consent, when
from ..core.backoff import full_jitter_s, spread_s, unit_of
from ..core.consent import Inbound
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import Verdict
from ..core.limits import Limits
from ..core.pair.pair import Pair, Phase
from ..core.pair.state import CONTINUOUS
from ..core.recent import Peaks
from ..core.record.page import PEER_PUSHES, Page
from ..home.views import THREAD_NAMESPACES, THREAD_PAIRS
from ..home.writer import Writer
from ..home.writes import Commit
from .follow import Flow, Follower, ReverseStream
from .peer import AUTH_CODES, RECORDS, RESET_CODES, STATE_CODES, PeerClient, SyncError
from .pull import Ask, Progress, Puller
from .reach import Reaches, contact_fresh_s
from .supervise import Supervisor, wait

log = logging.getLogger("spl.federation")

RESETS_PER_HOUR_MAX: Final = 3
BACKOFF_BASE_S: Final = 1.0
STREAM_BACKOFF_BASE_S: Final = 0.5
STREAM_BACKOFF_MAX_S: Final = 30.0

_HOUR_S: Final = 3600.0
_TURNS: Final = frozenset({THREAD_PAIRS, THREAD_NAMESPACES, consent.THREAD})
"""Threads on which stands who syncs, and what."""
_LOCAL: Final = "LOCAL"
_CLASSES: Final = {
    "connect": "CONNECT_REFUSED",
    "disconnected": "CONNECT_REFUSED",
    "address-refused": "CONNECT_REFUSED",
    "http-plain": "CONNECT_REFUSED",
    "url-invalid": "CONNECT_REFUSED",
    "redirect": "CONNECT_REFUSED",
    "timeout": "TIMEOUT",
    "dns": "DNS_FAILURE",
    "tls-chain": "TLS",
    "peer-5xx": "HTTP_5XX",
    "answer-malformed": "PARSE_ERROR",
    "peer-rewound": "PARSE_ERROR",
    **dict.fromkeys(AUTH_CODES, "AUTH"),
    "chain-broken": "SIGNATURE",
    "chain-fork": "SIGNATURE",
    "did-invalid": "SIGNATURE",
    "manifest-stale": "SIGNATURE",
    "overloaded": _LOCAL,
    "shutting-down": _LOCAL,
    "store-readonly": _LOCAL,
    "store-damaged": _LOCAL,
    "identity-missing": _LOCAL,
    "internal": _LOCAL,
}
"""Code -> class of `last_error`; what is not named here is HTTP_4XX.  LOCAL is our own fault and degrades no pair."""


@dataclass(slots=True)
class _Line:
    """What this process knows of reading from one peer; what a restart must know stands in the log."""

    kick: asyncio.Event = field(default_factory=asyncio.Event)
    attempt: int = 0
    unit: float = 0.5
    last_s: float | None = None
    last_sync_ms: int | None = None
    last_error: dict[str, object] | None = None
    crashes: int = 0
    inlets: Mapping[str, Inbound] | None = None
    """What the pair could bring in when the ledger was last asked for again; None before the first time."""
    troubled: bool = False
    """The watcher was told of trouble, and not yet that it is over."""
    running: "asyncio.Future[int] | None" = None
    asked: tuple[str, bool] = ("", False)
    progress: Progress = field(default_factory=Progress)
    resets_s: "deque[float]" = field(default_factory=deque)
    flow: Flow = field(default_factory=Flow)
    mode: str = ""
    peaks: Peaks = field(default_factory=Peaks)


class Sync:
    """Pulls of all pairs."""

    def __init__(
        self, writer: Writer, peers: PeerClient, limits: Limits, reaches: Reaches, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes], opposite: ReverseStream | None = None,
    ) -> None:  # fmt: skip
        """`opposite` is the stream that we serve to the same peer, if there is one: it carries our acks."""
        self.writer = writer
        self.limits = limits
        self._reaches = reaches
        self._puller = Puller(writer, peers, limits)
        self._opposite = opposite or ReverseStream()
        self._follower = Follower(self._puller, self._opposite, now_ms=now_ms)
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._lines: dict[str, _Line] = {}
        self._tasks = Supervisor("sync", self, random_bytes=random_bytes, backoff_max_s=limits.poll_backoff_max_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep one task for each pair that may sync, until `stop`; pauses and revocations end theirs at once."""
        loop = asyncio.get_running_loop()

        def heard(commit: Commit) -> None:
            if not commit.threads.isdisjoint(_TURNS):
                loop.call_soon_threadsafe(self._rouse)

        silence = self.writer.listen(heard)
        try:
            await self._tasks.run(stop)
        finally:
            silence()

    def close(self) -> None:
        """End the verifying threads, after `run` and the last pull."""
        self._puller.close()

    async def pull(self, pair_id: str, thread: str = "", *, resync: bool = False) -> int:
        """Return how many records were new; joins a pull of the same kind that runs.

        With `thread` only that thread's records are fetched, from their beginning, and the saved position stays; it
        stays too while a stream is open, which owns it.
        `resync` reads from the start again.  Raises SyncError, ReachError, PageError, HubError and the store's errors.
        """
        line = self._line(pair_id)
        while line.running is not None:
            running, same = line.running, line.asked == (thread, resync)
            await asyncio.wait([running])
            if same and not running.cancelled():
                return running.result()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        line.running, line.asked = done, (thread, resync)
        try:
            done.set_result(await self._attempt(pair_id, line, thread, resync))
        except SplError as exc:
            done.set_exception(exc)
        finally:
            line.running = None
            if not done.done():
                done.cancel()
        return done.result()

    def wake(self, pair_id: str) -> None:
        """Take note that the peer was in touch, authenticated: a pull that was backing off is tried at once.

        A healthy pair is not woken, or two peers that poll each other would do so without pause.  Nor is one that
        is served by push: it is dialled again once an interval.
        """
        self._reaches.contact(pair_id, asyncio.get_running_loop().time())
        line = self._lines.get(pair_id)
        if line is not None and line.attempt:
            line.attempt, line.last_s = 0, None
            line.kick.set()

    def since(self, pair_id: str) -> str:
        """Return the cursor that we saved for this peer, "" at the start; raise SyncError for a pair that rests."""
        return self._puller.since(self._puller.pair(pair_id))

    async def take(
        self, pair_id: str, item: Page, chains: Mapping[str, Any] | None, again: bool
    ) -> tuple[int, list[Verdict], list[str]]:
        """Store a page that the peer pushed, judged and placed like one that we pulled.

        `chains` are key chains of relayed signers by DID, as decoded, None: ask the peer; `again`: we had asked for it.
        Returns (how many were new, what was refused, ids that were refused earlier and may be sound now).
        """
        pair, line, taken = self._puller.pair(pair_id), self._line(pair_id), Progress(shown=chains)
        had, wanted, inlets = self.writer.views.refused.get(pair_id, 0), list[str](), self._puller.verifier.inlets(pair)
        if again:
            fresh, refused = await self._puller.take_again(pair, taken, item)
        else:
            fresh, refused, _ = await self._puller.take(pair, taken, item, Ask(""))
        if had and (taken.learnt or line.inlets != inlets):
            line.inlets = inlets
            wanted = (await self._puller.lacking(pair)).ids[: self.limits.fetch_ids]
        line.progress.view, line.last_sync_ms = {**line.progress.view, **item.view}, self._now_ms()
        self._reaches.heard(pair_id, item.view)
        return fresh, refused, wanted

    async def send(self, pair_id: str, body: bytes, media: str, target: str = RECORDS) -> bytes:
        """Return the peer's answer to a POST, such as records that we push; raise SyncError, ReachError."""
        try:
            reply = await self._puller.send(self._puller.pair(pair_id), body, media, target)
        except SyncError as exc:
            if exc.view is not None:
                tell = self._reaches.stopped if exc.code in STATE_CODES else self._reaches.heard
                tell(pair_id, exc.view)
            raise
        return reply.body

    def queue_records(self, pair_id: str) -> int:
        """Return how many records of this peer wait between network and store."""
        line = self._lines.get(pair_id)
        queue = line.progress.queue if line is not None else None
        return queue.records if queue is not None else 0

    def status(self, pair_id: str) -> dict[str, object]:
        """Return last_sync_at, last_error, next_attempt_at, attempt, crashes, clock, lag_records, queue_records,
        queue_max (of the last hour), peer_view and, in continuous mode, stream {state, since, last_event_at, breaks}.

        Times are RFC 3339 or None; `clock` and `lag_records` count as the source does, lag None before first contact.
        """
        line, place = self._lines.get(pair_id) or _Line(), self.writer.views.positions.get(pair_id)
        pair = self.writer.views.pairs.get(pair_id)
        wait_s = self._wait_s(pair, line) if pair is not None and pair.sync_allowed else None
        clock = place.count if place is not None else 0
        head = line.progress.view.get("head")
        synced_ms = max(filter(None, (line.last_sync_ms, line.flow.synced_ms)), default=place.at_ms if place else None)
        now_ms = self._now_ms()
        self._note_peak(line, now_ms)
        continuous = pair is not None and pair.mode == CONTINUOUS
        return {
            "last_sync_at": when.text_of(synced_ms) if synced_ms is not None else None,
            "last_error": line.last_error,
            "next_attempt_at": when.text_of(now_ms + int(wait_s * 1000)) if wait_s is not None else None,
            "attempt": line.attempt,
            "crashes": line.crashes,
            "clock": clock,
            "lag_records": max(0, head - clock) if head is not None else None,
            "queue_records": self.queue_records(pair_id),
            "queue_max": line.peaks.greatest(now_ms),
            "peer_view": dict(line.progress.view) or None,
            "stream": line.flow.status(now_ms) if continuous else None,
        }

    # -- one task a pair

    def _rouse(self) -> None:
        self._tasks.kick()
        for line in self._lines.values():
            line.kick.set()

    async def arrange(self) -> None:
        """Run a task for each pair that may sync, and for no other."""
        wanted = {pair_id for pair_id, pair in self.writer.views.pairs.items() if pair.sync_allowed}
        self._tasks.cancel_except(wanted)
        for pair_id in wanted:
            self._tasks.start(pair_id, partial(self._follow, pair_id))

    def crashed(self, name: str, count: int) -> None:
        """Show a fault of our own as the pair's last error."""
        line, at = self._line(name), when.text_of(self._now_ms())
        line.crashes, line.attempt = count, line.attempt + 1
        line.last_error = {"class": _LOCAL, "code": "internal", "message": "the pair's task died", "at": at}

    async def _follow(self, pair_id: str) -> None:
        line = self._line(pair_id)
        while (pair := self.writer.views.pairs.get(pair_id)) is not None and pair.sync_allowed:
            line.kick.clear()
            if pair.mode != line.mode:
                # A new mode counts at once; where the one before has just synced, polling may wait.
                line.last_s = None if pair.mode == CONTINUOUS else line.last_s
                line.mode = pair.mode
            wait_s = self._wait_s(pair, line)
            if wait_s is None or wait_s > 0:
                await wait(line.kick, wait_s)
                continue
            try:
                await (self._stay(pair, line) if pair.mode == CONTINUOUS else self.pull(pair_id))
            except SplError as exc:
                # Recorded by the pull itself; the next attempt's time follows from it.
                log.debug(**event("sync.retry_later", pair=pair_id, code=exc.code, attempt=line.attempt))

    def _wait_s(self, pair: Pair, line: _Line) -> float | None:
        """Return the seconds to the next attempt by mode, interval and failures; None for never by itself."""
        if pair.mode == "on-demand" or line.flow.is_open:
            return None
        if line.last_s is None:
            return 0.0
        pushed = self._reaches.word(pair.pair_id) == PEER_PUSHES
        if pair.mode == CONTINUOUS and not pushed:
            retry_s = full_jitter_s(line.attempt, STREAM_BACKOFF_BASE_S, STREAM_BACKOFF_MAX_S, line.unit)
            delay_s = max(retry_s, line.flow.hold_s)
        elif line.attempt:
            delay_s = full_jitter_s(line.attempt, BACKOFF_BASE_S, self.limits.poll_backoff_max_s, line.unit)
        else:
            delay_s = spread_s(pair.poll_interval_ms / 1000, line.unit)
            if pair.mode == CONTINUOUS:
                # The peer serves us by push; should that be over, we notice it as soon as a broken stream.
                delay_s = min(delay_s, STREAM_BACKOFF_MAX_S)
        return max(0.0, line.last_s + delay_s - asyncio.get_running_loop().time())

    def _line(self, pair_id: str) -> _Line:
        return self._lines.setdefault(pair_id, _Line())

    def _unit(self) -> float:
        return unit_of(self._random_bytes(4))

    def _note_peak(self, line: _Line, now_ms: int) -> None:
        queue = line.progress.queue
        if queue is not None:
            line.peaks.add(queue.peak, now_ms)
            queue.peak = queue.records

    # -- the stream

    async def _stay(self, pair: Pair, line: _Line) -> None:
        """Catch up with pages, then follow the stream until it ends, or until the pair is another one."""
        # Before the pull: what changes during it counts as a change, too.
        failures, course = line.attempt, self._course(pair)
        await self.pull(pair.pair_id)
        while line.running is not None:
            await asyncio.wait([line.running])
        # A page proves nothing of streams, which a proxy may hold up: only an event ends the backing off.
        line.attempt = failures
        line.flow.open(self._now_ms())
        async with asyncio.TaskGroup() as tasks:
            flowing = tasks.create_task(self._stream(pair, line))
            watching = tasks.create_task(self._until_changed(pair, line, flowing, course))
            flowing.add_done_callback(lambda _: watching.cancel())

    async def _until_changed(
        self, pair: Pair, line: _Line, flowing: "asyncio.Task[None]", course: tuple[object, ...]
    ) -> None:
        """End the stream when it is not what the pair asks for any more; another one follows at once."""
        while (now := self.writer.views.pairs.get(pair.pair_id)) is not None and self._course(now) == course:
            line.kick.clear()
            await line.kick.wait()
        line.mode = ""
        flowing.cancel()

    def _course(self, pair: Pair) -> tuple[object, ...]:
        """Return what a stream depends on: who, where, what and how."""
        return pair.mode, pair.url, self._puller.verifier.inlets(pair), pair.sync_allowed

    async def _stream(self, pair: Pair, line: _Line) -> None:
        """Follow the stream to its end and take note of how it ended."""

        def heard() -> None:
            line.attempt, line.crashes, line.last_error = 0, 0, None
            self._reaches.reached(pair.pair_id, line.progress.view)

        try:
            await self._follower.run(pair, line.progress, line.flow, heard)
            log.info(**event("sync.stream_ended", pair=pair.pair_id, retry_ms=int(line.flow.hold_s * 1000)))
        except SplError as exc:
            self._failed(pair.pair_id, line, exc, is_stream=True)
        finally:
            self._note_peak(line, self._now_ms())
            line.flow.close(self._now_ms())
            line.progress.queue = None
            line.last_s, line.unit = asyncio.get_running_loop().time(), self._unit()

    # -- one pull

    async def _attempt(self, pair_id: str, line: _Line, thread: str, resync: bool) -> int:
        """Pull once and take note of how it went."""
        started_ms = self._now_ms()
        # An open stream keeps the place and the view of the pair; this pull then only adds records.
        progress = Progress() if line.flow.is_open else line.progress
        try:
            pair = self._puller.pair(pair_id)
            fresh = await self._pull(pair, line, progress, thread, resync)
        except SplError as exc:
            self._failed(pair_id, line, exc)
            raise
        finally:
            if progress is line.progress:
                self._note_peak(line, self._now_ms())
                progress.queue = None
            line.last_s, line.unit = asyncio.get_running_loop().time(), self._unit()
        line.attempt, line.crashes, line.last_error = 0, 0, None
        # Of one thread read to its end nothing follows for the others.
        line.last_sync_ms = line.last_sync_ms if thread else self._now_ms()
        self._reaches.reached(pair_id, progress.view)
        level = logging.INFO if fresh else logging.DEBUG
        log.log(level, **event("sync.pulled", pair=pair_id, records=fresh, ms=self._now_ms() - started_ms))
        if pair.phase is Phase.DEGRADED or line.troubled:
            # Told of trouble in this very attempt's past, the watcher may still be writing it down.
            line.troubled = False
            self._reaches.recovered(pair_id)
        return fresh

    def _failed(self, pair_id: str, line: _Line, exc: SplError, *, is_stream: bool = False) -> None:
        """Take note of a failure.  Of a stream that fails while pages arrive it is shown, but degrades no pair."""
        if isinstance(exc, SyncError) and exc.code in STATE_CODES and exc.view is not None:
            line.progress.view, line.attempt = exc.view, 0
            self._reaches.stopped(pair_id, exc.view)
            return
        pair = self.writer.views.pairs.get(pair_id)
        if pair is None or not pair.sync_allowed:
            return
        kind = _CLASSES.get(exc.code, "HTTP_4XX")
        fresh_s = contact_fresh_s(pair.mode, pair.poll_interval_ms / 1000)
        if self._reaches.failed(pair_id, kind, asyncio.get_running_loop().time(), fresh_s):
            line.attempt, line.last_error = 0, None
            log.info(**event("sync.served_by_push", pair=pair_id, code=exc.code))
            if pair.phase is Phase.DEGRADED:
                self._reaches.recovered(pair_id)
            return
        line.attempt += 1
        line.last_error = {"class": kind, "code": exc.code, "message": exc.message, "at": when.text_of(self._now_ms())}
        log.warning(**event("sync.failed", pair=pair_id, code=exc.code, error_class=kind, attempt=line.attempt))
        recurs = kind == "AUTH" or (kind != _LOCAL and line.attempt >= self.limits.errors_until_degraded)
        if recurs and not is_stream and pair.phase is not Phase.DEGRADED:
            line.troubled = True
            self._reaches.troubled(pair_id, exc.code)

    async def _pull(self, pair: Pair, line: _Line, progress: Progress, thread: str, resync: bool) -> int:
        """Read pages to the end; where the source's log is another one, begin again, at most thrice an hour."""
        beside = progress is not line.progress
        ask = Ask("" if thread or resync else self._puller.since(pair), thread, resync, beside)
        while True:
            try:
                return await self._run(pair, line, progress, ask)
            except SyncError as exc:
                now_s = asyncio.get_running_loop().time()
                while line.resets_s and line.resets_s[0] < now_s - _HOUR_S:
                    line.resets_s.popleft()
                if exc.code not in RESET_CODES:
                    raise
                if len(line.resets_s) >= RESETS_PER_HOUR_MAX:
                    raise SyncError("peer-rewound", f"{exc.message}, again and again") from exc
                line.resets_s.append(now_s)
                log.warning(**event("sync.reset", pair=pair.pair_id, code=exc.code, resets=len(line.resets_s)))
                if exc.code == "cursor-reset":
                    # The peer's log was set back: what it lost we may hold, so it has to read ours from the start.
                    self._opposite.restart(pair.pair_id)
            ask = Ask("", thread, True, beside)

    async def _run(self, pair: Pair, line: _Line, progress: Progress, ask: Ask) -> int:
        """Read to the end; then ask again for what was refused.

        Once a process, when a chain was learnt or the pair may bring in something else than before; until all is given.
        """
        had, inlets = self.writer.views.refused.get(pair.pair_id, 0), self._puller.verifier.inlets(pair)
        fresh = await self._puller.run(pair, progress, ask)
        if not ask.thread and (progress.lacking or (had and (progress.learnt or line.inlets != inlets))):
            fresh += await self._puller.retry_refused(pair, progress)
            line.inlets = inlets
        return fresh
