"""Consumer side of sync: when we read from each peer, and how far we are.

One job per pair runs its mode: `polling` at its interval with jitter, `on-demand` only when asked, `continuous` by
pages and then the peer's stream.  Failures back off with full jitter to at most five minutes, a stream's to half a
minute.  One pull runs at a time for a pair; later callers join it.  Between two reads, and while the pair is paused, a
peer that is silent is asked for a sign of life (reach.py); no answer is a failure, too.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import partial
from typing import Any, Final

from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.pair.modes import CONTINUOUS, ENGINE, ON_DEMAND
from ..core.pair.pair import Pair, Phase
from ..core.pair.state import IN_TOUCH
from ..core.pair.status import ANSWERED, LOCAL, READS_ONLY, WAY, LastError, PairStatus, class_of
from ..core.presence import PEER_PUSHES, STREAM_BACKOFF_MAX_S
from ..home.views import THREAD_PAIRS
from ..home.writes import Commit, Hop
from .budget import INTAKE_PAUSED
from .changes import Feed
from .follow import Follower, PairSync, StreamEnd
from .ingest import Ingest
from .peer import RESET_CODES, STATE_CODES, SyncError
from .pull import Progress, Puller, Reading
from .reach import KnownPeers, error_of
from .scope import SHARING_THREADS
from .supervise import Rest, Supervisor, drop_ended, wait

log = logging.getLogger("spl.federation")

BACKOFF_BASE_S: Final = 1.0
_RESTS: Final = "at rest "  # before the id of a paused pair, in the name of its job, which asks for signs of life
TICK_S: Final = 0.001  # what is due within it is due now: a remainder of rounding would be waited for again and again


class Sync:
    """Pulls of all pairs.  `feed` serves the stream that the same peer reads from us: it carries our acks."""

    def __init__(
        self, ingest: Ingest, feed: Feed, *, now_ms: Callable[[], int], random_bytes: Callable[[int], bytes]
    ) -> None:
        self._ingest, self.writer, self.limits, self.budget = ingest, ingest.writer, ingest.limits, ingest.budget
        self._reaches, self._now_ms, self._random_bytes = ingest.reaches, now_ms, random_bytes
        self.puller, self._feed = Puller(ingest, feed), feed
        self._follower = Follower(self.puller, feed, self, now_ms=now_ms, random_bytes=random_bytes)
        self._states: dict[str, PairSync] = {}
        self._seen: Mapping[str, Pair] = {}
        self._known = KnownPeers(feed.vault, feed.source.rollbacks, now_ms)
        self._tasks = Supervisor("sync", self, random_bytes=random_bytes, backoff_max_s=self.limits.poll_backoff_max_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep one task for each pair that may sync, until `stop`; pauses and revocations end theirs at once."""
        loop = asyncio.get_running_loop()

        def on_commit(commit: Commit) -> Hop | None:
            turned = not commit.threads.isdisjoint(SHARING_THREADS)
            return (loop.call_soon_threadsafe, self._rouse) if turned else None

        unsubscribe = self.writer.listen(on_commit)
        try:
            await self._tasks.run(stop)
        finally:
            unsubscribe()
            await asyncio.to_thread(self._known.save, self._statuses())

    async def pull(self, pair_id: str, thread: str = "", *, resync: bool = False) -> int:
        """Return how many records were new since the call; joins a pull of the same kind that waits to start.

        Everything that the peer held at the call is read.  A pull that ran before may have passed the place of the
        newest by then, so another one follows it.

        With `thread` only that thread's records are fetched, from their beginning, and the saved position stays; it
        stays too while a stream is open, which owns it.
        `resync` reads from the start again.  Raises SyncError, ReachError, PageError, WriteError, the store's errors.
        """
        state = self._state(pair_id)
        before, fresh = state.running, 0
        while state.running is not None:
            running, same = state.running, state.asked == (thread, resync)
            await asyncio.wait([running])
            if same and not running.cancelled():
                fresh += running.result()
                if running is not before:
                    return fresh
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        state.running, state.asked = done, (thread, resync)
        try:
            done.set_result(await self._attempt(pair_id, state, thread, resync))
        except SplError as exc:
            done.set_exception(exc)
        finally:
            state.running = None
            if not done.done():
                done.cancel()
        return fresh + done.result()

    def wake(self, pair_id: str, process: str = "") -> None:
        """Record that the peer was in touch, authenticated: a pull that was backing off is tried at once."""
        self._reaches.contact(pair_id, asyncio.get_running_loop().time(), process)
        self.retry(pair_id)

    def retry(self, pair_id: str) -> None:
        """Try a pull that was backing off at once, as the peer is there or what stopped it was mended.

        A healthy pair is not woken, or two peers that poll each other would do so without pause.  Nor is one that
        is served by push: it is dialled again once an interval.  Failures of another kind than that nobody was reached
        go on counting, and so do failures to reach it until it answers: the way to it may be the only one that is cut.
        Contact mends no fault of our own: two daemons with full disks would wake each other without pause.
        """
        state = self._states.get(pair_id)
        own = state is not None and state.last_error is not None and state.last_error.kind == LOCAL
        if state is not None and (state.refusals.attempt or (state.errors.attempt and not own)):
            state.refusals.reset()
            state.at_once()
            state.kick.set()

    def _there_again(self, pair: Pair, state: PairSync) -> None:
        """End the failures to reach a peer that answers again, and read from it at once, but not a pair on demand."""
        code = state.last_error.code if state.last_error is not None else ""
        if code not in ANSWERED:
            return
        ends = state.question_failed or code not in READS_ONLY or not pair.sync_allowed
        if self._only_asks(pair) and ends:
            self._recover(pair, state)
        if state.errors.attempt:
            if ends:
                state.errors.reset()
            state.last_s = None
            state.kick.set()

    def _recover(self, pair: Pair, state: PairSync) -> None:
        """Tell the watchers that a degraded pair is well; they may still be recording trouble learnt before."""
        if pair.phase is Phase.DEGRADED or state.troubled:
            state.troubled = False
            self._reaches.recovered(pair.pair_id)

    def unreached(self, pair_id: str) -> str:
        """Return why our requests to the peer fail, "" if they do not."""
        return self._reaches.unreached(pair_id)

    def renew_intake(self, pair_id: str) -> bool:
        """Let the pair bring in another day's bytes; return whether its intake was paused, and then read at once."""
        state, paused = self._state(pair_id), self.budget.status(pair_id).wait_s > 0
        self._ingest.renew_intake(pair_id)
        if paused:
            state.last_s = None
            state.kick.set()
        return paused

    def status(self, pair_id: str) -> PairStatus:
        """Return how far we are with reading from the peer."""
        state, place = self._state(pair_id), self.writer.views.positions.get(pair_id)
        pair, intake = self.writer.views.pairs.get(pair_id), self.budget.status(pair_id)
        wait_s = self._wait_s(pair, state, intake.wait_s) if pair is not None else None
        clock, view = place.count if place is not None else 0, self._reaches.view(pair_id)
        times_ms = (state.last_sync_ms, state.flow.synced_ms, self._ingest.received_ms(pair_id))
        state.note_peak(now_ms := self._now_ms())
        last_ms = max((ms for ms in times_ms if ms is not None), default=place.at_ms if place else None)
        presence, now_s = self._reaches.seen(pair_id), asyncio.get_running_loop().time()
        known, unanswered_s = self._known.get(pair_id), presence.unanswered_s(now_s)
        return PairStatus(
            last_sync_ms=last_ms,
            last_error=state.last_error,
            next_attempt_ms=now_ms + int(wait_s * 1000) if wait_s is not None else None,
            attempt=state.errors.attempt,
            crashes=state.crashes,
            clock=clock,
            lag_records=max(0, head - clock) if (head := view.get("head")) is not None else None,
            queue_records=self._reaches.queue_records(pair_id),
            queue_max=state.peaks.greatest(now_ms),
            peer_view=view,
            told_ms=self._reaches.told_ms(pair_id),
            stream=state.flow.status(now_ms) if pair is not None and pair.mode == CONTINUOUS else None,
            intake=intake,
            cloned=self._reaches.cloned(pair_id),
            silent_s=presence.silent_s(now_s),
            withheld=self._ingest.withheld(pair_id),
            unanswered_s=unanswered_s,
            unread_s=presence.unread_for_s(now_s),
            lost_code=self._reaches.lost_code(pair_id, now_s),
            answered_ms=known.answered_ms if presence.answered_s is None else now_ms - int(unanswered_s * 1000),
            skew_ms=self._ingest.peers.skew_ms(pair_id),
            one_way=self._reaches.one_way(pair_id, now_s, reads=self._feed.is_read(pair_id)),
            heard_ms=presence.heard_ms(now_s, now_ms, max(known.heard_ms or 0, last_ms or 0) or None),
        )

    # -- one job a pair

    @property
    def running(self) -> Set[str]:
        """The jobs that run or rest, one for each pair that may sync or is paused; each name ends with the pair's."""
        return self._tasks.running

    def _rouse(self, *, everyone: bool = False) -> None:
        """Look again at the pairs that changed, and at all streams: what they share may be another."""
        self._tasks.kick()
        before, self._seen = self._seen, self.writer.views.pairs
        for pair_id, state in self._states.items():
            if everyone or state.flow.is_open or self._seen.get(pair_id) is not before.get(pair_id):
                state.kick.set()

    async def arrange(self) -> None:
        """Run a task for each pair that may sync, one for each that is paused, and no other."""
        wanted = {
            ("" if pair.sync_allowed else _RESTS) + pair_id: partial(self._follow, pair_id, pair.sync_allowed)
            for pair_id, pair in self.writer.views.pairs.items()
            if pair.phase in IN_TOUCH
        }
        self._tasks.cancel_except(wanted.keys())
        source, counts, pairs = self._feed.source, self._feed.source.counts, self.writer.views.pairs
        kept: tuple[dict[str, Any], ...] = (self._states, self._reaches.ways, self.puller.resets_s, counts.tallied)
        kept += (self._follower.agains, self._ingest.memories, source.empty, counts.counted, counts.complete)
        for each in kept:
            drop_ended(each, pairs)
        for name, job in wanted.items():
            self._tasks.start(name, job)

    def crashed(self, name: str, count: int) -> None:
        """Show a fault of our own as the pair's last error."""
        state = self._state(name.removeprefix(_RESTS))
        state.crashes = count
        state.errors.failed()
        state.last_error = LastError("internal", "the pair's task died", self._now_ms(), LOCAL)

    async def _follow(self, pair_id: str, syncs: bool, begins: bool = True) -> Rest | None:
        state = self._state(pair_id)
        if begins:
            state.refusals.reset()
            self._reaches.waits(pair_id, asyncio.get_running_loop().time(), self._known.get(pair_id))
        while (pair := self.writer.views.pairs.get(pair_id)) is not None and pair.sync_allowed == syncs:
            if pair.phase not in IN_TOUCH:
                return None
            state.kick.clear()
            if pair.mode != state.mode:
                # A new mode counts at once; if the one before has just synced, polling may wait.
                state.last_s = None if pair.mode == CONTINUOUS else state.last_s
                state.mode = pair.mode
            wait_s = self._wait_s(pair, state, self.budget.status(pair_id).wait_s)
            if wait_s is None or wait_s > TICK_S:
                quiet_s = self._quiet_s(pair, state)
                if quiet_s > TICK_S:
                    least_s = quiet_s if wait_s is None else min(wait_s, quiet_s)
                    return Rest(state.kick, least_s, partial(self._follow, pair_id, syncs, begins=False))
                if await self._ask_life(pair, state) and state.needs_read(pair, self._reaches.seen(pair_id)):
                    with suppress(SplError):
                        await self.pull(pair_id, THREAD_PAIRS)  # of which no peer gets records: do reads arrive again?
                continue
            try:
                await (self._stay(pair, state) if pair.mode == CONTINUOUS else self.pull(pair_id))
            except SplError as exc:
                # Recorded by the pull itself; the next attempt's time follows from it.
                log.debug(**event("sync.retry_later", pair=pair_id, code=exc.code, attempt=state.errors.attempt))
                if self._reaches.was_stopped(asyncio.get_running_loop().time()):
                    await wait(state.kick, BACKOFF_BASE_S)
                    state.last_s = None
        return None

    def _wait_s(self, pair: Pair, state: PairSync, paused_s: float) -> float | None:
        """Return the seconds to the next attempt by mode, interval and failures; None for never by itself.

        `paused_s` is for how long the budget of a day lets nothing in.
        """
        if self._only_asks(pair) or state.flow.is_open or (pair.mode == ENGINE and state.is_well):
            return None
        if state.last_s is None or paused_s:
            return paused_s
        follows = pair.mode == CONTINUOUS and self._reaches.word(pair.pair_id) != PEER_PUSHES
        interval_s = pair.poll_interval_ms / 1000
        if pair.mode == CONTINUOUS:
            # If the peer serves us by push, its end must be noticed as soon as that of a stream.
            interval_s = min(interval_s, 0.9 * STREAM_BACKOFF_MAX_S)
        return state.read_s(asyncio.get_running_loop().time(), interval_s, follows=follows, hold_s=state.flow.hold_s)

    # -- signs of life

    def beat(self, next_s: float) -> None:
        """Record that this daemon runs, and says so again in `next_s`."""
        now_s, reaches = asyncio.get_running_loop().time(), self._reaches
        booted_s = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        if reaches.beat(now_s, next_s, booted_s - now_s):
            self._rouse(everyone=True)
        if self._known.is_due(now_s, {pair_id for pair_id in self._states if reaches.lost_code(pair_id, now_s)}):
            self._known.start_save(now_s, self._statuses())

    def _statuses(self) -> dict[str, PairStatus]:
        pairs = self.writer.views.pairs.items()
        return {pair_id: self.status(pair_id) for pair_id, pair in pairs if not pair.ended}

    def _quiet_s(self, pair: Pair, state: PairSync) -> float:
        """Return the seconds until the peer is to be asked whether it is there."""
        presence, pushes = self._reaches.presence(pair.pair_id), self._reaches.word(pair.pair_id) == PEER_PUSHES
        now_s, called = asyncio.get_running_loop().time(), "unreached" in self._reaches.view(pair.pair_id)
        return state.quiet_s(now_s, presence, pushes=pushes, only_asked=self._only_asks(pair), called=called)

    def _only_asks(self, pair: Pair) -> bool:
        """Return whether nothing but signs of life is asked for by itself."""
        return pair.mode == ON_DEMAND or not pair.sync_allowed

    async def _ask_life(self, pair: Pair, state: PairSync, *, beside: bool = False) -> bool:
        """Ask a silent peer for a sign of life and return whether it gave one; one that we cannot dial was to give it.

        While reads do not arrive, or `beside` one, the question only finds out whether the way is open, as it does of a
        peer that pushes since lately; where nothing else is tried, each counts.  A refusal because the pair is paused
        is an answer to a side that does not read.
        """
        pair_id, loop = pair.pair_id, asyncio.get_running_loop()
        presence, pushes = self._reaches.presence(pair_id), self._reaches.word(pair_id) == PEER_PUSHES
        state.asked_s = began_s = loop.time()
        counts = not beside and (state.failing not in WAY or self._only_asks(pair))
        try:
            if pushes and not presence.is_fresh(began_s):
                raise SyncError("timeout", "the peer, which opens the connections of this pair, is silent")
            view = await self.puller.ask_life(pair, self._feed.peer_view(pair_id))
        except SplError as exc:
            if isinstance(exc, SyncError) and exc.code == "pair-paused" and exc.view and not pair.sync_allowed:
                self._came(pair, state, exc.view)
                return True
            state.last_s = None if exc.code in RESET_CODES and not state.errors.attempt else state.last_s
            unanswered_s = presence.unanswered_s(loop.time())
            if self._reaches.was_stopped(loop.time()):
                presence.waited_s = loop.time()  # the network may wake later
            if counts and exc.code not in RESET_CODES and unanswered_s >= loop.time() - began_s:
                self._failed(pair_id, state, exc, asked=True)
                state.question_failed = True
                if state.errors.attempt:
                    state.attempted(loop.time())
            return exc.code not in WAY
        if pair.mode == ENGINE and view.get("acked") == view.get("head"):
            state.last_sync_ms = self._now_ms()
        self._came(pair, state, view)
        return True

    def _came(self, pair: Pair, state: PairSync, view: Mapping[str, Any]) -> None:
        """Record a sign of life: the peer answered with its view of the pair."""
        self._reaches.presence(pair.pair_id).answered(asyncio.get_running_loop().time())
        self._reaches.answered(pair.pair_id, view)
        self._there_again(pair, state)

    # -- one pair's state

    def _state(self, pair_id: str) -> PairSync:
        state = self._states.get(pair_id)
        if state is None:
            bounds = self._random_bytes, BACKOFF_BASE_S, self.limits.poll_backoff_max_s
            state = PairSync(Backoff(*bounds), Backoff(*bounds))
            state.last_sync_ms, state.last_error = self._known.get(pair_id).sync_ms, self._known.error(pair_id)
            state.question_failed = state.last_error is not None  # an answer ends it, to a read or to a question
            state.errors.attempt = int(state.question_failed)
            if (pair := self.writer.views.pairs.get(pair_id)) is not None and not pair.ended:
                self._states[pair_id] = state
                self._reaches.track(pair_id, state.progress)
        return state

    # -- the stream

    async def _stay(self, pair: Pair, state: PairSync) -> None:
        """Catch up with pages, then follow the stream until it ends or is no longer what the pair asks for."""
        # Before the pull: what changes during it counts as a change, too.
        failures, key = (state.errors.attempt, state.refusals.attempt), self._stream_key(pair)
        await self.pull(pair.pair_id)
        while state.running is not None:
            await asyncio.wait([state.running])
        # A page proves nothing of streams, which a proxy may hold up: only an event ends the backing off.
        state.errors.attempt, state.refusals.attempt = failures
        state.flow.open(self._now_ms())
        async with asyncio.TaskGroup() as tasks:
            flowing = tasks.create_task(self._stream(pair, state))
            flowing.add_done_callback(lambda _: state.kick.set())
            await asyncio.sleep(0)  # it begins: cancelled before that, it would leave the flow open for ever
            asking: asyncio.Task[bool] | None = None
            while not flowing.done():
                now = self.writer.views.pairs.get(pair.pair_id)
                if now is None or self._stream_key(now) != key:
                    state.mode = ""  # another stream follows at once
                    flowing.cancel()
                    break
                state.kick.clear()
                if (quiet_s := self._quiet_s(pair, state)) <= TICK_S and (asking is None or asking.done()):
                    asking = tasks.create_task(self._ask_life(pair, state))
                    asking.add_done_callback(lambda _: state.kick.set())
                await wait(state.kick, quiet_s if quiet_s > TICK_S else None)
            if asking is not None:
                asking.cancel()

    def _stream_key(self, pair: Pair) -> tuple[object, ...]:
        """Return what a stream depends on: a change of it calls for another stream."""
        return pair.mode, pair.url, self._ingest.inbound(pair), pair.sync_allowed

    async def _stream(self, pair: Pair, state: PairSync) -> None:
        """Follow the stream to its end and record how it ended; it broke if neither side asked for the end."""
        broke = False
        try:
            await self._follower.run(pair, state.progress, state.flow)
            retry_ms = int(state.flow.hold_s * 1000)
            self._ingest.lines.info("sync.stream_ended", pair.pair_id, retry_ms=retry_ms)
        except SplError as exc:
            broke = not isinstance(exc, StreamEnd)
            self._failed(pair.pair_id, state, exc, live=True)
        finally:
            state.note_peak(self._now_ms())
            state.flow.close(self._now_ms(), broke=broke)
            state.progress.queue = None
            state.attempted(asyncio.get_running_loop().time())

    # -- one pull

    async def _attempt(self, pair_id: str, state: PairSync, thread: str, resync: bool) -> int:
        """Pull once and record how it went."""
        started_ms = self._now_ms()
        # An open stream keeps the place and the view of the pair; this pull then only adds records.
        progress = Progress() if state.flow.is_open else state.progress
        before = progress.fresh
        try:
            pair = self._ingest.pair(pair_id)
            since = "" if thread or resync else self._ingest.since(pair)
            reading = Reading(since, thread, resync, beside=progress is not state.progress)
            fresh = await self.puller.read(pair, progress, reading)
        except SplError as exc:
            if progress.fresh > before:  # the way is open, and carries something
                state.errors.reset()
                self._reaches.reached(pair_id, progress.view)
            asked = exc.code in WAY and self._reaches.may_serve(pair_id, asyncio.get_running_loop().time())
            asked = asked and not await self._ask_life(pair, state, beside=True)
            self._failed(pair_id, state, exc, asked=asked)
            raise
        finally:
            if progress is state.progress:
                state.note_peak(self._now_ms())
                progress.queue = None
            state.attempted(asyncio.get_running_loop().time())
        # One thread read to its end says nothing of the others.
        state.last_sync_ms = state.last_sync_ms if thread else self._now_ms()
        self._succeeded(pair_id, state, progress.view)
        level, took_ms = logging.INFO if fresh else logging.DEBUG, self._now_ms() - started_ms
        log.log(level, **event("sync.pulled", pair=pair_id, records=fresh, ms=took_ms))
        self._recover(pair, state)
        return fresh

    def on_event(self, pair_id: str) -> None:
        """Record that the pair's stream works: it ends the backing off."""
        self._succeeded(pair_id, state := self._state(pair_id), state.progress.view)

    def _succeeded(self, pair_id: str, state: PairSync, view: Mapping[str, Any]) -> None:
        self._reaches.presence(pair_id).read(asyncio.get_running_loop().time())
        state.errors.reset()
        state.refusals.reset()
        state.crashes, state.last_error = 0, None
        self._reaches.reached(pair_id, view)

    def _failed(self, pair_id: str, state: PairSync, exc: SplError, *, live: bool = False, asked: bool = False) -> None:
        """Record a failure, or two if one of a question (`asked`) is; `live`, of a stream, it degrades no pair."""
        now_s = asyncio.get_running_loop().time()
        if isinstance(exc, SyncError) and exc.peer_status and exc.code not in WAY:
            self._reaches.presence(pair_id).answered(now_s)  # it refuses, and so is there
        if isinstance(exc, SyncError) and exc.code in STATE_CODES and exc.view is not None:
            state.errors.reset()
            state.refusals.failed()
            self._reaches.stopped(pair_id, exc.view)
            return
        if exc.code == INTAKE_PAUSED:
            # No failure of either side: the next attempt waits for the budget.
            state.errors.reset()
            state.refusals.reset()
            state.last_error = None
            self._ingest.lines.info("sync.intake_paused", pair_id)
            return
        pair, status = self.writer.views.pairs.get(pair_id), getattr(exc, "peer_status", 0)
        if pair is None or pair.phase not in IN_TOUCH:
            return
        if exc.code in STATE_CODES and not (status and pair.sync_allowed):
            return  # we refused it ourselves, or do not read
        kind = class_of(exc.code, status)
        if exc.code in WAY:
            if self._reaches.was_stopped(now_s):
                return  # this daemon did not run, so it missed the answer
            self._reaches.presence(pair_id).lost(exc.code, now_s)
        reaches, forbidden = self._reaches, exc.code == "address-refused"
        if reaches.forbidden(pair_id, now_s) if forbidden else reaches.failed(pair_id, kind, now_s, asked=asked):
            state.errors.reset()
            state.last_error = None
            self._ingest.lines.info("sync.served_by_push", pair_id, exc.code)
            self._recover(pair, state)
            return
        state.errors.failed()
        state.question_failed = False
        state.last_error = error_of(exc, kind, self._now_ms())
        self._ingest.lines.warning("sync.failed", pair_id, exc.code, error_class=kind, attempt=state.errors.attempt)
        recurs = state.errors.attempt >= self.limits.errors_until_degraded and pair.phase is not Phase.DEGRADED
        # Of refused credentials the latest reason counts: what heals them depends on it.
        if not live and exc.code != pair.reason and (kind == "AUTH" or (recurs and kind != LOCAL)):
            state.troubled = True
            self._reaches.troubled(pair_id, exc.code)
