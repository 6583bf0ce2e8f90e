"""Source side of sync: pages and streams of stored envelopes for a pair, as the log holds them.

A reading is lanes, one for each agreed namespace, each with its arrival position in the sealed cursor; a page asks the
index for the next rows of each lane, preads the envelopes and sends them as they are.  A lane that is behind shares a
page with the others, so that a backfill does not hold up what is new.  A stream (`tail.py`) sends the same rows.

Left out is what the pair delivered or the peer signed (it has that), except in a `whole` reading: after a reset, or
when the peer asks with `resync`.  Head, clock and lag count the pair's scope only, whatever else the log holds, and
nothing out of scope wakes a waiting reader or changes its cursor.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from . import offer
from .acks import Acks
from .bells import Bells
from .core import page, when
from .core.cursor import lane_key
from .core.did import Chain
from .core.limits import Limits
from .core.recent import Lags, summary
from .core.record import is_id
from .hub import LOCAL, Commit, Hub
from .source import FeedError, Query, Source, clock_of
from .tail import Recent, Stream
from .vault import Vault
from .views import THREAD_PAIRS

__all__ = ["CONTINUOUS", "FEEDS", "Feed", "FeedError", "Query"]

FEEDS: Final = ("normal", "longpoll")
CONTINUOUS: Final = "continuous"
WORKERS: Final = 2
MARKS_MAX: Final = 1024

_Mark = tuple[int, int, frozenset[str]]  # last local record of a write, its time, the write's namespaces


class Feed:
    """Answers to peers.  Methods that read the log run in threads of the feed's own."""

    def __init__(
        self,
        hub: Hub,
        vault: Vault,
        limits: Limits,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        queue_records: Callable[[str], int] = lambda pair_id: 0,
        reach: Callable[[str], str] = lambda pair_id: "",
    ) -> None:
        """`queue_records` tells how many records of a peer wait in our own intake, `reach` which way a pair runs.

        Both go into the peer's view.
        """
        self.hub = hub
        self.vault = vault
        self.limits = limits
        self.source = Source(hub, vault, limits, random_bytes=random_bytes, queue_records=queue_records, reach=reach)
        self._now_ms = now_ms
        self._pool = ThreadPoolExecutor(WORKERS, "spl-feed")
        self._streams: dict[str, Stream] = {}
        self._recent = Recent()
        self._marks: list[_Mark | None] = [None] * MARKS_MAX
        self._marked = 0
        self._lags: dict[str, tuple[Lags, int]] = {}
        self.acks = Acks()
        self._silence = hub.listen(self._heard)
        # After the line above: who is woken finds the commit among the recent ones.
        self.bells = Bells(hub)

    async def run(self, stop: asyncio.Event) -> None:
        """End all streams, and whatever else waits for commits, when the daemon stops."""
        await stop.wait()
        self.bells.stop()

    def close(self) -> None:
        """Hear of commits no more and end the reading threads."""
        self.bells.close()
        self._silence()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- what peers ask

    async def changes(self, pair_id: str, query: Query) -> bytes:
        """Return a page: {records, ns, next_cursor, has_more, peer_view}.

        With feed "longpoll" it waits up to limits.longpoll_s for the first record in scope.
        Raises FeedError "pair-paused", "pair-revoked", "pair-state-conflict" (each with `peer_view`), "cursor-reset",
        "bad-field", CursorError "cursor-invalid".
        """
        self._check(query)
        loop = asyncio.get_running_loop()
        body, count = await loop.run_in_executor(self._pool, self._page, pair_id, query)
        if query.feed == "longpoll" and not count and await self.wait(pair_id, query, self.limits.longpoll_s):
            body, _ = await loop.run_in_executor(self._pool, self._page, pair_id, query)
        return body

    async def wait(self, pair_id: str, query: Query, timeout_s: float) -> bool:
        """Return True as soon as there is a record for this reading, False after `timeout_s`.

        Raises as `changes` does, at once when the pair is paused or revoked meanwhile.
        """
        loop = asyncio.get_running_loop()
        source = self.source
        scope, cursor = source.open(pair_id, query)
        readings = source.readings(scope, query, cursor)
        with self.bells.listening([*(f"n:{ns}" for ns in scope.namespaces), f"t:{THREAD_PAIRS}"]) as news:
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        news.clear()
                        # What is skipped is not looked at again: the places move on while we wait.
                        found = await loop.run_in_executor(
                            self._pool, offer.has_news, self.hub.store.index, scope, readings
                        )
                        now = source.scope(source.pair(pair_id), query.namespace)
                        if found or self.bells.stopping or now != replace(scope, whole=False):
                            return True
                        await news.wait()
            except TimeoutError:
                return False

    async def stream(
        self, pair_id: str, query: Query, is_valid: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[bytes]:
        """Return the pieces of an event stream for the pair (`tail.py` has the events); it replaces the one before.

        `is_valid` tells, while it runs, whether the credential that opened it still holds.  Raises as `changes` does,
        and FeedError "bad-field" for a narrowed reading: a pair has one stream.
        """
        if query.thread or query.namespace:
            raise FeedError("bad-field", "a stream carries all that the pair shares: no thread, no target_namespace")
        loop = asyncio.get_running_loop()
        return self._flow(await loop.run_in_executor(self._pool, self._open_stream, pair_id, query, is_valid))

    async def fetch(self, pair_id: str, ids: object) -> bytes:
        """Return {records, ns, has_more} of the records asked for, in the log's order, as far as a page holds them.

        What is unknown, out of scope or malformed is left out alike.  Raises FeedError "bad-field" over
        limits.fetch_ids, and what `changes` raises for the pair's state.
        """
        if not isinstance(ids, list) or len(ids) > self.limits.fetch_ids:
            raise FeedError("bad-field", f"ids is a list of at most {self.limits.fetch_ids} record ids")
        wanted = list(dict.fromkeys(filter(is_id, ids)))
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._fetch, pair_id, wanted)

    def ack(self, pair_id: str, text: object) -> dict[str, object]:
        """Take note of what the peer holds durably; return {peer_view}."""
        if not isinstance(text, str):
            raise FeedError("bad-field", "cursor is a text")
        scope, cursor = self.source.open(pair_id, Query(since=text))
        lanes = cursor.by_key() if cursor is not None else {}
        found = [lanes[key] for ns in scope.namespaces if (key := lane_key(ns)) in lanes]
        if found:
            self.source.acked[pair_id] = (sum(lane.count for lane in found), self._now_ms())
            self._measure(pair_id, scope.namespaces, max(lane.position for lane in found))
            keys = {ns: lane_key(ns) for ns in scope.namespaces}
            self.acks.note(pair_id, {ns: lanes[key].position for ns, key in keys.items() if key in lanes})
        return {"peer_view": self.peer_view(pair_id)}

    def chains(self, pair_id: str, did: str) -> dict[str, object]:
        """Return the key chain of a signer whose records are in the pair's scope; raise FeedError "not-found"."""
        scope = self.source.scope(self.source.pair(pair_id))
        found = self._chain(did)
        tally = self.hub.store.index.tally
        if found is None or (did != scope.own_did and not any(tally(f"v:{ns}:{did}") for ns in scope.namespaces)):
            raise FeedError("not-found", "no such signer in what this pair shares")
        return found.to_json()

    # -- what we tell the peer

    def confirm(self, pair_id: str, cursor: str) -> bool:
        """Tell the peer, on the stream that it reads from us, how far we hold what it serves; False without one."""
        stream = self._streams.get(pair_id)
        if stream is None:
            return False
        stream.confirm(cursor)
        return True

    def restart(self, pair_id: str) -> None:
        """Have the peer read from the start, with its own records too: its log was set back, ours may hold the rest."""
        self.source.doubted.add(pair_id)
        stream = self._streams.get(pair_id)
        if stream is not None:
            stream.replace()

    def peer_view(self, pair_id: str) -> dict[str, object]:
        """Return how we see the pair, for the peer: state, reason, head, acked, queue."""
        return self.source.peer_view(pair_id)

    # -- what our own operator asks

    def offered(self, pair_id: str) -> dict[str, object]:
        """Return head, acked, clock, lag_records and last_read_at of a pair: how far the peer is with what we offer."""
        pair = self.hub.views.pairs.get(pair_id)
        head = offer.head(self.hub.store.index, self.source.scope(pair)) if pair is not None else 0
        acked, at_ms = self.source.acked.get(pair_id, (None, None))
        return {
            "head": head,
            "acked": acked,
            "clock": acked or 0,
            "lag_records": max(0, head - acked) if acked is not None else None,
            "last_read_at": when.text_of(at_ms) if at_ms is not None else None,
        }

    def lag_ms(self, pair_id: str = "") -> dict[str, int | None]:
        """Return p50_ms, p99_ms and samples of the last five minutes, of one pair or all.

        A lag is the time from the write of a local record here to the peer's ack of it, both by our clock.
        """
        chosen = self._lags if not pair_id else self._lags.keys() & {pair_id}
        return summary([self._lags[each][0].counts(self._now_ms()) for each in chosen])

    # -- in a thread

    def _page(self, pair_id: str, query: Query) -> tuple[bytes, int]:
        """Return the bytes of the next page and how many records it holds."""
        source, store = self.source, self.hub.store
        scope, cursor = source.open(pair_id, query)
        if not query.pushed:
            source.trust(pair_id, cursor, query.resync)
        readings = source.readings(scope, query, cursor)
        limit = query.limit or self.limits.page_records_default
        rows, has_more = offer.collect(store.index, scope, readings, limit, self.limits.page_bytes)
        next_, _ = source.next(pair_id, query.since, cursor, readings, scope.whole and has_more)
        view = {**self.peer_view(pair_id), "clock": clock_of(readings)}
        body = page.assemble(
            store.payloads(rows), [row.ns for row in rows], next_cursor=next_, has_more=has_more, peer_view=view
        )
        return body, len(rows)

    def _open_stream(self, pair_id: str, query: Query, is_valid: Callable[[], bool]) -> Stream:
        scope, cursor = self.source.open(pair_id, query)
        self.source.trust(pair_id, cursor, query.resync)
        return Stream(self.source, self._recent, self.bells, self._pool, pair_id, query, scope, cursor, is_valid)

    def _fetch(self, pair_id: str, ids: Sequence[str]) -> bytes:
        scope = self.source.scope(self.source.pair(pair_id))
        rows = offer.find(self.hub.store.index, scope, ids)
        kept = offer.within(rows, self.limits.page_bytes)
        return page.assemble(self.hub.store.payloads(kept), [row.ns for row in kept], has_more=len(kept) < len(rows))

    def _chain(self, did: str) -> Chain | None:
        identity = self.vault.identity
        if identity is not None and did == identity.did:
            return identity.chain
        views = self.hub.views
        peers = [pair.chain for pair in views.pairs.values() if pair.peer_did == did]
        return max([*peers, *filter(None, [views.chains.get(did)])], key=lambda each: len(each.rotations), default=None)

    def _check(self, query: Query) -> None:
        if query.feed not in FEEDS:
            raise FeedError("bad-field", f"feed is one of {' '.join(FEEDS)}")
        if not 0 <= query.limit <= self.limits.page_records:
            raise FeedError("bad-field", f"limit is 1 to {self.limits.page_records}")

    # -- streams and lag

    async def _flow(self, stream: Stream) -> AsyncIterator[bytes]:
        """Yield what the stream sends, as the pair's only one."""
        before = self._streams.get(stream.pair_id)
        if before is not None:
            before.replace()
        self._streams[stream.pair_id] = stream
        if stream.pair_id in self.source.doubted:
            stream.replace()  # it was opened just before its peer's log was found to be set back
        events = stream.events()
        try:
            async for piece in events:
                yield piece
        finally:
            await events.aclose()
            if self._streams.get(stream.pair_id) is stream:
                del self._streams[stream.pair_id]

    def _heard(self, commit: Commit) -> None:
        """Keep a commit for streams, and the time of what is our own in it; runs on the writer's thread."""
        self._recent.add(commit)
        local = [seq for seq, entry in commit.fresh if entry.origin == LOCAL and entry.ns]
        if local:
            self._marks[self._marked % MARKS_MAX] = (local[-1], commit.at_ms, commit.namespaces)
            self._marked += 1

    def _measure(self, pair_id: str, namespaces: frozenset[str], position: int) -> None:
        """Take the lags of the writes that this ack is the first to cover."""
        lags, before = self._lags.get(pair_id) or (Lags(), 0)
        self._lags[pair_id] = lags, max(before, position)
        now_ms = self._now_ms()
        for number in range(self._marked - 1, max(-1, self._marked - MARKS_MAX - 1), -1):
            mark = self._marks[number % MARKS_MAX]
            if mark is None or mark[0] <= before:
                return
            if mark[0] <= position and namespaces & mark[2]:
                lags.add(now_ms - mark[1], now_ms)
