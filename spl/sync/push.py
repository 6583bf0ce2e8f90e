"""Both ends of a push: records for a peer that cannot dial us, over connections that we open, and those that come so.

A pair pulls in both directions as long as both sides can open connections.  If one cannot (a laptop behind a NAT) it
says so in each answer, and the side that can dial sends its own records as well: after each pull of a polling pair, on
`spl sync`, and in continuous mode after each commit that the pair shares.  Form: `core/record/page.py`.

The receiver owns the position: a push names the cursor that it starts from, and one that the receiver did not save is
refused together with the right one.  So a lost answer, a crash on either side or two pushes at once cost a repetition
at most; a position kept by the sender was rejected, because it would have to be durable before each answer.  What is
pushed goes through the same `ingest` as what is pulled.  An answer also names refused records that the receiver would
see again; they are kept until they were sent.

A record that the way does not carry even alone, as a proxy bounds what it passes on, is passed over: an empty push with
the cursor behind it shows that the way is open, and the rest follows.  It is shown and tried again (ledger.py).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import CHAIN_UNKNOWN, claimed_id
from ..core.limits import KIB
from ..core.pair.modes import CONTINUOUS
from ..core.pair.pair import Pair
from ..core.pair.state import known, refusal_code
from ..core.pair.status import LastError, PushStatus
from ..core.presence import BOTH
from ..core.record import page
from ..core.record.page import Page, PushAnswer
from ..core.value import Json, dataclass, field, replace
from ..home.writes import Commit, Hop
from ..net.client import Reply
from .changes import Feed
from .ingest import Ingest, Taken
from .peer import OUT, RECORDS, RESET_CODES, SyncError, cut_text, is_refused_size, is_too_much
from .scope import SHARING_THREADS
from .source import Query
from .supervise import Kick, Supervisor, drop_ended, wait

log = logging.getLogger("spl.federation")

MEDIA: Final = "application/x-ndjson"
PAGES_MAX: Final = 10_000
"""Pages of one push, ten million records; the next push goes on from there."""
POSITIONS_MAX: Final = 8
"""Positions that the peer may name in one push: one after a lost answer, two after a reset of either side."""
PUSHES_MAX: Final = 2
"""Pushes of one peer that are taken or wait: the one that runs, and its repetition after a lost answer."""
AGAIN_MAX: Final = 8
"""Lists of records that the peer would see again, in one run; the peer names the rest at the next one."""
CHAINS_SENT_MAX: Final = 4096
"""Signers remembered for each peer whose chains it has; beyond that all are sent again, which costs bytes only."""
CHAINS_BYTES_MAX: Final = 256 * KIB
"""Chains beside the records of one push, within the room that `page.body_bytes` leaves; further ones follow once
the peer refused their records."""
CODES_LOGGED_MAX: Final = 8
"""What one log line shows of the codes in a peer's answer; ours are five."""
BACKOFF_BASE_S: Final = 1.0
QUIET_S: Final = 10.0
"""Less than the time between two heartbeats of the stream that we read, so that each of them is answered by a push."""


class PushError(SplError):
    """A push cannot be sent or taken: state of the pair, position, or the form of the answer."""


@dataclass(slots=True)
class _PairPush:
    """What this process knows of pushing to one peer; the peer keeps what a restart must know."""

    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    taking: asyncio.Lock = field(default_factory=asyncio.Lock)
    pushes: int = 0
    """Pushes of the peer that are taken or wait."""
    kick: Kick = field(default_factory=Kick)
    position: str | None = None
    """The peer's position in our log; None until it named it."""
    wanted: tuple[str, ...] = ()
    """Ids that the peer would see again, until they were sent."""
    chains_sent: set[str] = field(default_factory=set)
    sent_s: float | None = None
    heartbeat_due: bool = False
    """A push is due though there may be no record for it."""
    last_push_ms: int | None = None
    last_error: LastError | None = None


class Push:
    """Pushes of all pairs, and what peers push to us."""

    def __init__(
        self, ingest: Ingest, feed: Feed, *, now_ms: Callable[[], int], random_bytes: Callable[[int], bytes]
    ) -> None:
        self.writer = ingest.writer
        self.limits = ingest.limits
        self._ingest = ingest
        self._peers = ingest.peers
        self._reaches = ingest.reaches
        self._feed, self.withheld = feed, feed.withheld
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._pool = ThreadPoolExecutor(1, "spl-push")
        self._states: dict[str, _PairPush] = {}
        self._due: set[str] = set()
        self._live: tuple[object, tuple[str, ...]] = None, ()
        self._tasks = Supervisor("push", self, random_bytes=random_bytes, backoff_max_s=self.limits.poll_backoff_max_s)
        self._reaches.add_pusher(self)

    def close(self) -> None:
        """End the coding thread; call it after `run` and the last push."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def reach(self, pair_id: str) -> str:
        """Return which way the pair runs: "both", "we-push" or "peer-pushes"; "both" while that is not known."""
        return self._reaches.word(pair_id) or BOTH

    def status(self, pair_id: str) -> PushStatus:
        """Return when we last pushed to the peer and what failed last."""
        state = self._states.get(pair_id) or _PairPush()
        return PushStatus(state.last_push_ms, state.last_error)

    # -- what a peer pushes

    async def receive(self, pair_id: str, body: bytes) -> Json:
        """Store what is sound of a push and return the answer to it (core/record/page.py).

        One push of a pair is decoded and stored at a time: a body of 5 MiB takes up to 96 MiB once it is decoded.
        Raises IntakeError "intake-paused"; PushError "pair-paused", "pair-revoked", "pair-state-conflict" with
        `peer_view`, "push-position" with `cursor` too, "body-too-large", "rate-limited" over PUSHES_MAX; PushBodyError
        "bad-json", "bad-field" for what is no push.
        """
        self._check(pair_id)
        self._ingest.budget.check(pair_id)
        if len(body) > page.body_bytes(self.limits):
            raise PushError("body-too-large", f"a push has at most {page.body_bytes(self.limits)} bytes")
        state = self._state(pair_id)
        if state.pushes >= PUSHES_MAX:
            raise PushError("rate-limited", "pushes of this pair are waiting already", retry_after_s=1)
        state.pushes += 1
        try:
            async with state.taking:
                return await self._receive(pair_id, body)
        finally:
            state.pushes -= 1

    async def _receive(self, pair_id: str, body: bytes) -> Json:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, page.decode_push, body, self.limits.page_records)
        pair = self._check(pair_id)
        if not found.page.next_cursor:
            self._reaches.heard(pair_id, found.page.view)
            return self._answer(pair, found, Taken())
        saved = self._ingest.since(pair)
        if found.since != saved:
            view = self._feed.peer_view(pair_id)
            raise PushError("push-position", f"we stand elsewhere with {pair_id}", cursor=saved, peer_view=view)
        return self._answer(pair, found, await self._ingest.take_pushed(pair, found))

    def _answer(self, pair: Pair, found: page.PushBody, taken: Taken) -> Json:
        codes = {verdict.id: verdict.code for verdict in taken.refused}
        return {
            "cursor": self._ingest.since(pair),
            "records": taken.fresh,
            "results": page.results(found.page.values, codes),
            "wanted": list(taken.wanted),
            "peer_view": self._feed.peer_view(pair.pair_id),
        }

    def _check(self, pair_id: str) -> Pair:
        """Return the pair if it takes records in now."""
        pair = known(self.writer.views.pairs, pair_id)
        if not pair.sync_allowed:
            raise PushError(refusal_code(pair), peer_view=self._feed.peer_view(pair_id))
        return pair

    # -- what we push

    async def push(self, pair_id: str, *, news_only: bool = False) -> int:
        """Send what the peer lacks, if it needs our push; return how many records were new to it.

        One push runs for a pair; a later caller sends what came since.  With `news_only` nothing is sent if there is
        no record.  Raises PushError, FeedError, SyncError, ReachError.
        """
        state = self._state(pair_id)
        async with state.sending:
            if not self._may(pair_id):
                return 0
            try:
                fresh = await self._send_all(pair_id, state, news_only)
                if again := self.withheld.due(pair_id, asyncio.get_running_loop().time()):
                    fresh += await self._send_again(pair_id, state, again)
            except SplError as exc:
                state.last_error = LastError(exc.code, exc.message, self._now_ms())
                raise
            finally:
                await self.withheld.save(pair_id)
            state.last_error = None
            return fresh

    async def give(self, pair_id: str, ids: Sequence[str]) -> int:
        """Send these of the records that the pair shares, whichever way it runs; return how many were new to the peer.

        None to a peer that has not read from us yet: it will.  Raises as `push` does.
        """
        state = self._state(pair_id)
        async with state.sending:
            self._check(pair_id)
            for _ in range(POSITIONS_MAX):
                try:
                    if state.position is None:
                        await self._send(pair_id, state, page.asking(self._feed.peer_view(pair_id)))
                    return await self._send_again(pair_id, state, tuple(ids))
                except SplError as exc:
                    if exc.code != "push-position":
                        raise
                    state.position = page.answer_cursor(exc.facts.get("cursor"))
        return 0

    def _may(self, pair_id: str) -> bool:
        pair = self.writer.views.pairs.get(pair_id)
        return pair is not None and pair.sync_allowed and pair.serve_allowed and self._reaches.may_push(pair_id)

    async def _send_all(self, pair_id: str, state: _PairPush, news_only: bool) -> int:
        """Send page after page from the peer's position; it may name another position a few times, not for ever."""
        fresh, placed, came = 0, 0, False
        for _ in range(PAGES_MAX):
            asking = state.position is None
            again = not asking and self._feed.doubts(pair_id)
            item = await self._next_page(pair_id, state, again=again)
            if news_only and not asking and not item.count:
                break
            try:
                answer = await self._send_or_pass(pair_id, state, item)
            except SplError as exc:
                if (came or is_refused_size(exc)) and item.count > 1 and is_too_much(exc):
                    came = False  # the way is open, so a smaller page is sent at once
                    continue
                if exc.code != "push-position" or placed == POSITIONS_MAX:
                    raise
                placed, state.position = placed + 1, page.answer_cursor(exc.facts.get("cursor"))
                continue
            if again:
                await self._feed.believe(pair_id)
            fresh, came = fresh + answer.records, True
            if not self._reaches.may_push(pair_id) or (not asking and not item.has_more):
                break
        if state.wanted:
            # They are kept until they are sent: if this push is lost, the next one brings them.
            fresh += await self._send_again(pair_id, state, state.wanted)
        if fresh:
            log.info(**event("push.sent", pair=pair_id, records=fresh))
        return fresh

    async def _next_page(self, pair_id: str, state: _PairPush, *, again: bool) -> Page:
        """Return the page after the peer's position; if our log is another one, the first page of everything.

        The same with `again`: the peer's log was rolled back, and ours may hold what it lost, its own records included.
        """
        if state.position is None:
            return page.asking(self._feed.peer_view(pair_id))
        limit = self._peers.portion(pair_id, OUT).count(self.limits.page_records_default)
        try:
            body = await self._page(pair_id, "" if again else state.position, limit, again)
        except SplError as exc:
            if exc.code not in RESET_CODES:
                raise
            self._ingest.lines.warning("push.reset", pair_id, exc.code)
            body = await self._page(pair_id, "", limit, True)
        return await self._decoded(body, limit)

    async def _page(self, pair_id: str, since: str, limit: int, resync: bool) -> bytes:
        return await self._feed.changes(pair_id, Query(since=since, limit=limit, resync=resync, pushed=True))

    async def _send_again(self, pair_id: str, state: _PairPush, wanted: tuple[str, ...]) -> int:
        """Send what the peer had refused and would see again; return how many came in.

        Of these ids it may name more in its answer.  One that we cannot give is answered too, by its absence, so an
        empty push ends the list.
        """
        portion, left, fresh, lists, came = self._peers.portion(pair_id, OUT), list(wanted), 0, 0, False
        while left and state.position and lists < AGAIN_MAX:
            ids = left[: portion.count(self.limits.fetch_ids)]
            item = await self._decoded(await self._feed.fetch(pair_id, ids), len(ids), fetched=True)
            got = {claimed_id(value) for value in item.values}
            rest = [id_ for id_ in ids if id_ not in got] if item.has_more and got else []
            view = self._feed.peer_view(pair_id)
            placed = Page(item.values, item.ns, state.position, item.has_more, view, item.size)
            try:
                answer = await self._send_or_pass(pair_id, state, placed, again=True)
            except SplError as exc:
                if not ((came or is_refused_size(exc)) and item.count > 1 and is_too_much(exc)):
                    raise
                came = False
                continue
            if not item.has_more:
                self.withheld.end(pair_id, set(ids) - got)
            fresh, came, left = fresh + answer.records, True, rest + left[len(ids) :]
            if not left:
                left, lists = list(state.wanted), lists + 1
        return fresh

    async def _send_or_pass(self, pair_id: str, state: _PairPush, item: Page, *, again: bool = False) -> PushAnswer:
        """Send one push; a single record that the way does not carry is passed over."""
        try:
            answer = await self._send(pair_id, state, item, again=again)
        except SplError as exc:
            if item.count != 1 or not is_too_much(exc):
                raise
            id_ = claimed_id(item.values[0])
            if not self.withheld.failed(pair_id, id_, for_size=is_refused_size(exc)):
                raise
            # If this one fails as well, the way is shut, and nothing is passed over.
            answer = await self._send(pair_id, state, replace(item, values=[], ns=[], size=0), again=again)
            self.withheld.add(pair_id, id_)
            self._ingest.lines.warning("push.withheld", pair_id, exc.code, record=id_)
        else:
            self.withheld.end(pair_id, map(claimed_id, item.values))
        return answer

    async def _send(self, pair_id: str, state: _PairPush, item: Page, *, again: bool = False) -> PushAnswer:
        """Send one push, and record what its answer says of the peer."""
        loop = asyncio.get_running_loop()
        chains = self._chains(pair_id, state, item)
        body = await loop.run_in_executor(
            self._pool, lambda: page.assemble_push(state.position or "", item, again=again, chains=chains)
        )
        reply, took_s = await self._post(pair_id, body, item.count)
        answer = page.push_answer(reply.body, self.limits.fetch_ids)
        self._reaches.heard(pair_id, answer.view)
        if item.next_cursor:
            await self._feed.ack(pair_id, item.next_cursor)
            state.sent_s, state.last_push_ms = loop.time(), self._now_ms()
            self._peers.portion(pair_id, OUT).carried(item.count, item.count, took_s)
            state.chains_sent.update(chains)
            if answer.cursor != item.next_cursor:
                raise PushError("answer-malformed", "the peer took the records and names another place")
        state.position = answer.cursor
        state.wanted = answer.wanted if again else answer.wanted or state.wanted
        if answer.codes:
            codes = ",".join(sorted(map(cut_text, answer.codes))[:CODES_LOGGED_MAX])
            self._ingest.lines.warning("push.refused", pair_id, codes=codes)
        if CHAIN_UNKNOWN in answer.codes:
            state.chains_sent.clear()
        return answer

    async def _post(self, pair_id: str, body: bytes, count: int) -> tuple[Reply, float]:
        """Return the peer's answer to a push of so many records, and how long it took; raise SyncError, ReachError."""
        try:
            return await self._peers.carry(self._ingest.pair(pair_id), OUT, count, "POST", RECORDS, body, MEDIA)
        except SyncError as exc:
            self._reaches.refused(pair_id, exc)
            raise

    def _chains(self, pair_id: str, state: _PairPush, item: Page) -> dict[str, Any]:
        """Return the key chains of signers in a page that are not ours, as the peer cannot ask us for them.

        Projections have none: they are signed by us.
        """
        signers = dict.fromkeys(value["sig"]["by"] for value in item.values if "sig" in value)
        if len(state.chains_sent) > CHAINS_SENT_MAX:
            state.chains_sent.clear()
        found: dict[str, Any] = {}
        size = 0
        for did in signers:
            if did == self.writer.views.did or did in state.chains_sent or len(found) == page.CHAINS_MAX:
                continue
            try:
                chain = self._feed.chains(pair_id, did)
            except SplError as exc:
                # The peer refuses its records until it learns the chain from another pair.
                log.debug(**event("push.chain_missing", pair=pair_id, signer=did, code=exc.code))
                continue
            size += len(str(chain))
            if size > CHAINS_BYTES_MAX:
                break
            found[did] = chain
        return found

    async def _decoded(self, body: bytes, limit: int, *, fetched: bool = False) -> Page:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: page.decode(body, limit, fetched=fetched))

    # -- when

    async def run(self, stop: asyncio.Event) -> None:
        """Push whenever it is due, one task a pair, until `stop`."""
        loop = asyncio.get_running_loop()

        def on_commit(commit: Commit) -> Hop | None:
            turned = not commit.threads.isdisjoint(SHARING_THREADS)
            due = turned or (commit.namespaces and self._continuous())
            return (loop.call_soon_threadsafe, partial(self._committed, commit.namespaces, turned)) if due else None

        unsubscribe = self.writer.listen(on_commit)
        try:
            await self._tasks.run(stop)
        finally:
            unsubscribe()

    async def arrange(self) -> None:
        """Run a task for each pair that a push is due to."""
        drop_ended(self._states, self.writer.views.pairs)
        for pair_id in self._due - self._tasks.running:
            self._due.discard(pair_id)
            self._tasks.start(pair_id, partial(self._deliver, pair_id))

    def crashed(self, name: str, count: int) -> None:
        """Show a fault of our own as the push's last error."""
        self._state(name).last_error = LastError("internal", "the pair's task died", self._now_ms())

    def on_reached(self, pair_id: str) -> None:
        """Push to a peer that needs it, now that it can be dialled; an open stream says so at each event."""
        state = self._state(pair_id)
        if state.last_error is not None or not self._is_quiet(pair_id, state):
            state.heartbeat_due = True
            state.kick.set()
            self._call(pair_id)

    def _call(self, pair_id: str) -> None:
        """Have a push to the pair run as soon as no other one does."""
        self._due.add(pair_id)
        self._tasks.kick()

    def _committed(self, namespaces: frozenset[str], turned: bool) -> None:
        """Push what a commit brought; `turned`: it says what pairs share, so more may have come into their scope.

        A push that waits after a failure goes on waiting: a peer that refuses is not asked again for each commit.
        """
        for pair_id in self._continuous():
            if self._may(pair_id) and (turned or namespaces & self._feed.shares(pair_id)):
                self._call(pair_id)

    def _continuous(self) -> tuple[str, ...]:
        """Return the pairs in continuous mode, of which each commit must know; any thread may ask."""
        pairs = self.writer.views.pairs
        if self._live[0] is not pairs:
            self._live = pairs, tuple([pair_id for pair_id, pair in pairs.items() if pair.mode == CONTINUOUS])
        return self._live[1]

    async def _deliver(self, pair_id: str) -> None:
        """Push until it succeeds or the pair takes no pushes; failures back off with full jitter.

        Contact ends the wait once it has lasted a second, or what Retry-After says if that is more: a peer that sends
        events and refuses pushes would otherwise get one for each event.
        """
        state = self._state(pair_id)
        backoff = Backoff(self._random_bytes, BACKOFF_BASE_S, self.limits.poll_backoff_max_s)
        try:
            while self._may(pair_id):
                state.kick.clear()
                self._due.discard(pair_id)
                # A commit alone is no reason to be heard: the peer may not see what it brought.
                quiet = not state.heartbeat_due or self._is_quiet(pair_id, state)
                try:
                    await self.push(pair_id, news_only=quiet)
                except SplError as exc:
                    delay_s = backoff.failed()
                    self._ingest.lines.warning("push.failed", pair_id, exc.code, attempt=backoff.attempt)
                    said_s = exc.retry_after_s if isinstance(exc, SyncError) else 0.0
                    least_s = min(backoff.cap_s, said_s or min(delay_s, BACKOFF_BASE_S))
                    await asyncio.sleep(least_s)
                    await wait(state.kick, delay_s - least_s)
                else:
                    state.heartbeat_due = False
                    return
        finally:
            # What became due meanwhile needs a task of its own.
            self._tasks.kick()

    def _is_quiet(self, pair_id: str, state: _PairPush) -> bool:
        """Return whether a push without records may be left out: in continuous mode, soon after the last one.

        The peer, which cannot dial us, takes us for gone when it has heard nothing for 45 s.
        """
        pair = self.writer.views.pairs.get(pair_id)
        if pair is None or pair.mode != CONTINUOUS or state.sent_s is None:
            return False
        return asyncio.get_running_loop().time() < state.sent_s + min(QUIET_S, pair.poll_interval_ms / 1000)

    def _state(self, pair_id: str) -> _PairPush:
        return self._states.setdefault(pair_id, _PairPush())
