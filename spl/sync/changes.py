"""The changes feed: what a peer reads from us, as pages, long polls, streams and by id.

A reading is one lane per namespace that consent shares (`lanes.py`), with the positions in a sealed cursor
(`source.py`).  A page asks the index for the next rows of each lane, preads the envelopes and sends the stored bytes,
or projections of the granted level.  A stream (`stream.py`) sends the same rows.  Nothing is kept for a reader between
two pages; the cursor is all the state there is.

Records that the pair delivered or the peer signed are left out, since the peer has them, except in a `whole` reading:
after a reset, or if the peer asks with `resync`.  Head, clock and lag count the pair's scope only, and nothing out of
scope answers a waiting reader or changes its cursor.

Disk reads run in two threads of the feed's own, so that they hold up neither the loop nor the writer.  What was read
there is sent only if the pair's scope is still the same afterwards; otherwise it is read again.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from ..core import when
from ..core.errors import SplError
from ..core.event import event
from ..core.limits import Limits
from ..core.pair.modes import POLLING
from ..core.presence import WE_PUSH
from ..core.record.levels import EXACT
from ..core.record.record import is_id
from ..core.value import Json, dataclass
from ..home.tables.lists import by_namespace
from ..home.vault import Vault
from ..home.writer import Writer
from ..home.writes import Commit
from .lags import ServedLags
from .lanes import clock_of, collect, has_news
from .ledger import Withheld
from .notify import Acks, Notifier, RecentCommits
from .pages import FoundPage, PageRead, PageReads, ReadPace
from .reach import Reaches
from .scope import Steps, advance, find
from .source import OUR_OWN, Credential, FeedError, Query, Source
from .stream import ALLOWING, SHARING, Stream

log = logging.getLogger("spl.federation")

FEEDS: Final = ("normal", "longpoll")
CONTINUOUS: Final = "continuous"
WORKERS: Final = 2

_T = TypeVar("_T")
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class OfferedStatus:
    """How much of what a pair is offered the peer has; None for what is not known, or not counted yet."""

    head: int | None = None
    acked: int | None = None
    lag_records: int | None = None
    acked_ms: int | None = None
    """When the peer last acknowledged, in Unix ms."""
    interval_s: float | None = None
    """How often records reach the peer; 0 if a stream or our pushes bring them at once, None if that is not known."""
    withheld: tuple[str, ...] = ()
    """Ids that the way to the peer does not carry; the peer's position is behind them."""
    set_back: str = ""
    """Whose log lacks what the other side has read: "us", "peer" or ""."""

    @property
    def acked_at(self) -> str | None:
        """`acked_ms` in RFC 3339."""
        return when.text_of(self.acked_ms) if self.acked_ms is not None else None


class Feed:
    """Answers to peers.  Methods that read the log do so in the feed's own threads."""

    def __init__(
        self, writer: Writer, vault: Vault, limits: Limits, reaches: Reaches, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.writer, self.vault, self.limits = writer, vault, limits
        self._recent = RecentCommits(writer.store.last_seq)
        self.source = Source(writer, vault, limits, reaches, self._recent, random_bytes=random_bytes)
        self._now_ms = now_ms
        self._pool = ThreadPoolExecutor(WORKERS, "spl-feed")
        self._reads, self._pace = PageReads(self.source, self._pool), ReadPace()
        self._streams: dict[str, Stream] = {}
        self._polls: dict[tuple[str, tuple[str, ...], str, str], asyncio.Timeout] = {}
        """The long poll that waits, by pair and reading."""
        self.withheld = Withheld(vault, random_bytes)
        self._counting: set[str] = set()
        self.lags = ServedLags(now_ms)
        self.acks = Acks()
        self._unsubscribe = writer.listen(self._on_commit)
        # After the line above: a stream that the notifier wakes must find the commit among the recent ones.
        self.notifier = Notifier(writer)

    async def run(self, stop: asyncio.Event) -> None:
        """End all streams and waits for commits when the daemon stops."""
        await stop.wait()
        self.notifier.stop()

    def close(self) -> None:
        """Stop listening to commits and end the reading threads."""
        self.notifier.close()
        self._unsubscribe()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- what peers ask

    async def page(self, pair_id: str, query: Query, credential: Credential = OUR_OWN) -> bytes | PageRead:
        """Return a page {records, ns, next_cursor, has_more, peer_view}: bytes, or an iterator over a long one.

        With feed "longpoll" it waits up to limits.longpoll_s for the first record in scope, as long as the request's
        credential holds and the pair sends no newer long poll of the same reading.
        Raises FeedError "pair-paused", "pair-revoked", "pair-state-conflict" (each with `peer_view`), "cursor-reset",
        "bad-field", "rate-limited", CursorError "cursor-invalid".
        """
        self._check(query)
        loop, is_pairs = asyncio.get_running_loop(), not (query.reads or query.thread or query.namespace)
        if is_pairs:
            self._pace.begin(pair_id, loop.time())
        answer, found = await self._read(pair_id, partial(self._find_page, pair_id, query), credential)
        waits = query.feed == "longpoll" and not found.rows
        if waits and await self._poll(pair_id, query, credential):
            answer, found = await self._read(pair_id, partial(self._find_page, pair_id, query), credential)
        if is_pairs and not found.members["has_more"]:
            self._pace.end(pair_id, loop.time())
        return answer

    async def changes(self, pair_id: str, query: Query) -> bytes:
        """Return the bytes of a whole page, for our own pushes: it does not count among the pair's reads."""
        self._check(query)
        answer, _ = await self._read(pair_id, partial(self._find_page, pair_id, query), counted=False)
        return await whole(answer)

    async def wait(self, pair_id: str, query: Query, timeout_s: float, credential: Credential = OUR_OWN) -> bool:
        """Return True as soon as there is a record for this reading, False after `timeout_s`.

        A change of what is shared shows only by the records that follow from it.  Raises as `changes` does, and at
        once if the pair is paused or revoked meanwhile.
        """
        source = self.source
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    view, cursor = source.open(pair_id, query)
                    scans, scope = source.scans(view, query, cursor), view.scope
                    lists = [*(by_namespace(ns) for ns in scope.shares), *SHARING, *ALLOWING]
                    with self.notifier.listening(lists) as news:
                        view = source.view(pair_id, query)  # again, now that no commit is missed
                        while view.scope == scope:
                            # The scans keep their positions, so rows that were passed over are not scanned again.
                            if await self._run_steps(has_news(view, scans)):
                                return True
                            if self.notifier.stopping or not credential.holds():
                                return True
                            await news.wait()
                            news.clear()
                            view = source.view(pair_id, query)
        except TimeoutError:
            return False

    async def _poll(self, pair_id: str, query: Query, credential: Credential) -> bool:
        """Wait as `wait` does, as the pair's only long poll of this reading: it ends an older one, which finds nothing.

        A peer has one long poll, as it has one stream; without this each of its connections could hold one.
        """
        reading = pair_id, query.reads, query.thread, query.namespace
        try:
            async with asyncio.timeout(None) as until:
                if (older := self._polls.get(reading)) is not None:
                    older.reschedule(0)  # a time that is past
                self._polls[reading] = until
                return await self.wait(pair_id, query, self.limits.longpoll_s, credential)
        except TimeoutError:
            return False
        finally:
            if self._polls.get(reading) is until:
                del self._polls[reading]

    async def stream(self, pair_id: str, query: Query, credential: Credential = OUR_OWN) -> AsyncIterator[bytes]:
        """Return the pieces of an event stream for the pair (events: `stream.py`); it replaces an earlier stream.

        The stream ends once the credential no longer holds.  Raises as `changes` does, and
        FeedError "bad-field" for a narrowed reading: a pair has one stream.
        """
        if query.thread or query.namespace:
            raise FeedError("bad-field", "a stream carries all that the pair shares: no thread, no target_namespace")
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(
            self._pool, Stream, self.source, self._recent, self.notifier, self._pool, pair_id, query, credential
        )
        return self._only_stream(opened)

    async def records(
        self, pair_id: str, ids: object, reads: tuple[str, ...] = (), credential: Credential = OUR_OWN
    ) -> bytes | PageRead:
        """Return {records, ns, has_more} of the requested records, in the log's order, as many as fit in a page.

        Unknown, hidden and malformed ids are left out alike; `reads` as in Query.  Raises FeedError "bad-field" over
        limits.fetch_ids, and otherwise as `page` does.
        """
        if not isinstance(ids, list) or len(ids) > self.limits.fetch_ids:
            raise FeedError("bad-field", f"ids is a list of at most {self.limits.fetch_ids} record ids")
        wanted, query = list(dict.fromkeys(filter(is_id, ids))), Query(reads=reads)
        answer, _ = await self._read(pair_id, partial(self._find_ids, pair_id, query, wanted), credential)
        return answer

    async def fetch(self, pair_id: str, ids: Sequence[str]) -> bytes:
        """Return the bytes of the requested records as `records` does, for our own pushes."""
        answer, _ = await self._read(pair_id, partial(self._find_ids, pair_id, Query(), ids), counted=False)
        return await whole(answer)

    async def ack(self, pair_id: str, text: object) -> None:
        """Record what the peer holds durably.  Raises as `changes` does."""
        if not isinstance(text, str):
            raise FeedError("bad-field", "cursor is a text")
        view, cursor = self.source.open(pair_id, Query(since=text))
        lanes, scope = cursor.by_key() if cursor is not None else {}, view.scope
        found = {ns: lanes[key] for ns in scope.shares if (key := scope.key(ns)) in lanes}
        if found or not scope.shares:
            self.source.acked[pair_id] = (sum(lane.count for lane in found.values()), self._now_ms())
        if found:
            position = max(lane.position for lane in found.values())
            self.lags.measure(pair_id, frozenset(found), position, is_live=self._is_live(pair_id))
            self.acks.note(pair_id, {ns: lane.position for ns, lane in found.items()})
        if self.doubts(pair_id):
            # The peer holds what a whole reading gave it; the end of the doubt waits for the disk.
            await self._in_thread(self.source.rollbacks.allows, pair_id, cursor, text)

    def chains(self, pair_id: str, did: str) -> Json:
        """Return the key chain of a signer whose records the pair sees in full; raise FeedError "not-found"."""
        scope = self.source.scope(self.source.pair(pair_id))
        found = self.source.chain(did)
        if found is None or not self.source.outgoing.may_see_signer(pair_id, scope, did):
            raise FeedError("not-found", "no such signer in what this pair shares")
        return found.to_json()

    # -- the peer's stream, and a peer whose log was rolled back

    def confirm(self, pair_id: str, cursor: str) -> bool:
        """Acknowledge, on the stream that the peer reads from us, what we have stored; False without a stream."""
        stream = self._streams.get(pair_id)
        if stream is None:
            return False
        stream.confirm(cursor)
        return True

    async def restart(self, pair_id: str) -> None:
        """Make the peer read from the start, its own records too: its log was rolled back, ours may hold the rest."""
        await self._in_thread(self.source.rollbacks.begin, pair_id)
        stream = self._streams.get(pair_id)
        if stream is not None:
            stream.replace()

    def shares(self, pair_id: str) -> frozenset[str]:
        """Return the namespaces of which the pair is sent records now."""
        pair = self.writer.views.pairs.get(pair_id)
        return frozenset(self.source.scope(pair).shares) if pair is not None and pair.serve_allowed else frozenset()

    def doubts(self, pair_id: str) -> bool:
        """Return whether the peer's log was rolled back, so that it must be given everything again."""
        return pair_id in self.source.rollbacks

    async def forget_set_back(self, pair_id: str) -> None:
        """Record that our operator compared the pair, and both sides are equal."""
        await self._in_thread(self.source.rollbacks.forget_set_back, pair_id)

    async def believe(self, pair_id: str) -> None:
        """Record that the peer holds the beginning of such a reading, and its cursor."""
        await self._in_thread(self.source.rollbacks.end, pair_id)

    def peer_view(self, pair_id: str) -> Json:
        """Return how we see the pair, for the peer (`Source.peer_view`); have a thread complete the count if needed."""
        if self.source.head(pair_id) is None:
            self._count_soon(pair_id)
        return self.source.peer_view(pair_id)

    async def counted(self, pair_id: str) -> None:
        """Count for some milliseconds what the peer's view shows, unless the count is complete."""
        if self.source.head(pair_id) is None:
            await asyncio.get_running_loop().run_in_executor(self._pool, self.source.count, pair_id)

    # -- for our own operator

    def offered(self, pair_id: str) -> OfferedStatus:
        """Return how much of what we offer the peer has."""
        head = self.source.head(pair_id)
        if head is None:
            self._count_soon(pair_id)
        acked, at_ms = self.source.acked.get(pair_id, (None, None))
        withheld = self.withheld.ids(pair_id)
        lag = max(0, head - acked) + len(withheld) if acked is not None and head is not None else None
        pair, reaches = self.writer.views.pairs.get(pair_id), self.source.reaches
        interval_s = self._pace.interval_s(pair_id, reaches.view(pair_id))
        if pair is not None and reaches.word(pair_id) == WE_PUSH:  # when we read, on demand when our operator likes
            interval_s = {CONTINUOUS: 0.0, POLLING: pair.poll_interval_ms / 1000}.get(pair.mode)
        interval_s = 0.0 if pair_id in self._streams else interval_s
        return OfferedStatus(head, acked, lag, at_ms, interval_s, withheld, self.source.rollbacks.set_back(pair_id))

    def is_read(self, pair_id: str) -> bool:
        """Return whether the peer reads from us now, by a stream or a page: the kernel ends one that it does not.

        A stream is read if the peer, in its views of the pair, does not say that its requests to us fail.
        """
        lost = "unreached" in self.source.reaches.view(pair_id)
        return (pair_id in self._streams and not lost) or self._reads.is_running(pair_id)

    def _is_live(self, pair_id: str) -> bool:
        """Return whether our records reach the peer at once, by its stream or our push."""
        return pair_id in self._streams or self.source.reaches.word(pair_id) == WE_PUSH

    # -- in a thread

    async def _in_thread(self, function: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    async def _read(
        self, pair_id: str, find: Callable[[], Steps[FoundPage]], credential: Credential = OUR_OWN, *,
        counted: bool = True,
    ) -> tuple[bytes | PageRead, FoundPage]:  # fmt: skip
        """Return the bytes of what was found, of a scope that is still in force, and what it was."""
        read = await self._reads.begin(pair_id) if counted else self._reads.uncounted()
        answer: bytes | PageRead | None = None
        try:
            while answer is None:
                found = await self._run_steps(find())
                answer = await read.fill(found, credential)
        finally:
            if answer is None:
                await read.aclose()
        return answer, found

    async def _run_steps(self, work: Steps[_T]) -> _T:
        """Return the result of work done in the reading threads a step at a time, so that others get their turn."""
        loop, result = asyncio.get_running_loop(), list[_T]()
        while not await loop.run_in_executor(self._pool, advance, work, result):
            pass
        return result[0]

    def _find_page(self, pair_id: str, query: Query) -> Steps[FoundPage]:
        """Return the next page of a reading."""
        source = self.source
        view, cursor = source.open(pair_id, query)
        if not query.pushed:
            source.check_rollback(pair_id, cursor, query.since)
        scans = source.scans(view, query, cursor)
        limit = query.limit or self.limits.page_records_default
        rows, has_more = yield from collect(view, scans, limit, self.limits.page_bytes)
        next_, _ = source.next_cursor(pair_id, query.since, cursor, scans, view.whole and has_more)
        if view.whole and not has_more and not query.pushed:
            source.rollbacks.note_end(pair_id, next_)
        if not source.count(pair_id):
            self._count_soon(pair_id)
        seen = {**source.peer_view(pair_id, query), "clock": clock_of(scans)}
        members: Json = {"next_cursor": next_, "has_more": has_more, "peer_view": seen}
        if query.names:
            full = [row for row in rows if view.scope.shares[row.ns].level == EXACT]
            named = {json.loads(raw)["id"]: row.ns for row, raw in source.writer.store.read(full)}
            members, rows = {**members, "withheld": named}, [row for row in rows if row not in full]
        return FoundPage(pair_id, query, view.scope, rows, members)

    def _find_ids(self, pair_id: str, query: Query, ids: Sequence[str]) -> Steps[FoundPage]:
        """Return as many of the records as fit in a page."""
        view = self.source.view(pair_id, query)
        rows = find(view, ids)
        kept = view.fitting(rows, self.limits.page_bytes)
        yield
        return FoundPage(pair_id, query, view.scope, kept, {"has_more": len(kept) < len(rows)})

    def _count_soon(self, pair_id: str) -> None:
        """Have the reading threads complete a count, a step at a time between other work."""
        if pair_id not in self._counting:
            self._counting.add(pair_id)
            self._count_on(pair_id)

    def _count_on(self, pair_id: str) -> None:
        try:
            self._pool.submit(self._count, pair_id)
        except RuntimeError:  # the feed was closed
            self._counting.discard(pair_id)

    def _count(self, pair_id: str) -> None:
        try:
            done = self.source.count(pair_id)
        except SplError as exc:
            log.warning(**event("feed.count_failed", pair=pair_id, code=exc.code))
            done = True
        if done:
            self._counting.discard(pair_id)
        else:
            self._count_on(pair_id)

    def _check(self, query: Query) -> None:
        if query.feed not in FEEDS:
            raise FeedError("bad-field", f"feed is one of {' '.join(FEEDS)}")
        if not 0 <= query.limit <= self.limits.page_records:
            raise FeedError("bad-field", f"limit is 1 to {self.limits.page_records}")
        if query.names and query.limit != 1:
            raise FeedError("bad-field", "names are given one at a time: with limit=1")

    # -- streams

    async def _only_stream(self, stream: Stream) -> AsyncIterator[bytes]:
        """Yield what the stream sends, as the pair's only one."""
        before = self._streams.get(stream.pair_id)
        if before is not None:
            before.replace()
        self._streams[stream.pair_id] = stream
        self.lags.go_live(stream.pair_id, self.source.last_seq())
        stream.check_rollback()
        events = stream.events()
        try:
            async for piece in events:
                yield piece
        finally:
            await events.aclose()
            if self._streams.get(stream.pair_id) is stream:
                del self._streams[stream.pair_id]
                self.source.reaches.presence(stream.pair_id).contact_s = asyncio.get_running_loop().time()

    def _on_commit(self, commit: Commit) -> None:
        """Keep a commit for streams, and the time of its local records; runs on the writer's thread."""
        self._recent.add(commit)
        self.lags.mark(commit)


async def whole(answer: bytes | PageRead) -> bytes:
    """Return all bytes of an answer."""
    if isinstance(answer, bytes):
        return answer
    try:
        return b"".join([piece async for piece in answer])
    finally:
        await answer.aclose()
