"""Source side of sync: pages of stored envelopes for a pair, as the log holds them.

A reading is lanes, one for each agreed namespace, each with its arrival position in the sealed cursor; a page asks the
index for the next rows of each lane, preads the envelopes and sends them as they are.  A lane that is behind shares a
page with the others, so that a backfill does not hold up what is new.

Left out is what the pair delivered or the peer signed (it has that), except in a `whole` reading: after a reset, or
when the peer asks with `resync`.  Head, clock and lag count the pair's scope only, whatever else the log holds, and
nothing out of scope wakes a waiting reader or changes its cursor.

What a peer confirmed (`ack`) is kept in memory only: it decides nothing here, and after a restart the peer's next ack
tells it again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain as chained
from typing import Final

from . import offer
from .core import cursor as cursors
from .core import page, when
from .core.cursor import Cursor, lane_key
from .core.did import Chain
from .core.errors import SplError
from .core.keys import AEAD_NONCE_BYTES
from .core.limits import Limits
from .core.pair import Pair, Phase
from .core.record import is_id
from .hub import Commit, Hub
from .line import LineError
from .offer import Reading, Scope
from .vault import Vault
from .views import THREAD_PAIRS

FEEDS: Final = ("normal", "longpoll")
WORKERS: Final = 2


class FeedError(SplError):
    """The feed does not answer this: state of the pair, cursor, or a parameter."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a peer asks for; `thread` and `namespace` narrow it to a reading of its own, with cursors of its own."""

    since: str = ""
    limit: int = 0
    feed: str = "normal"
    thread: str = ""
    namespace: str = ""
    resync: bool = False


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
    ) -> None:
        """`queue_records` tells how many records of a peer wait in our own intake; it goes into the peer's view."""
        self.hub = hub
        self.vault = vault
        self.limits = limits
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._queue_records = queue_records
        self._pool = ThreadPoolExecutor(WORKERS, "spl-feed")
        self._acked: dict[str, tuple[int, int]] = {}
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._silence = hub.listen(self._heard)

    def close(self) -> None:
        """Hear of commits no more and end the reading threads."""
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

        The way a stream waits, too.  Raises as `changes` does, at once when the pair is paused or revoked meanwhile.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        scope, cursor = self._open(pair_id, query)
        readings = self._readings(scope, query, cursor)
        async with self._listening(scope.namespaces) as news:
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        news.clear()
                        # What is skipped is not looked at again: the places move on while we wait.
                        found = await loop.run_in_executor(
                            self._pool, offer.has_news, self.hub.store.index, scope, readings
                        )
                        if found or self._scope(self._pair(pair_id), query.namespace) != replace(scope, whole=False):
                            return True
                        await news.wait()
            except TimeoutError:
                return False

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
        scope, cursor = self._open(pair_id, Query(since=text))
        lanes = cursor.by_key() if cursor is not None else {}
        if any(lane_key(ns) in lanes for ns in scope.namespaces):
            clock = sum(lanes[lane_key(ns)].count for ns in scope.namespaces if lane_key(ns) in lanes)
            self._acked[pair_id] = (clock, self._now_ms())
        return {"peer_view": self.peer_view(pair_id)}

    def chains(self, pair_id: str, did: str) -> dict[str, object]:
        """Return the key chain of a signer whose records are in the pair's scope; raise FeedError "not-found"."""
        scope = self._scope(self._pair(pair_id))
        found = self._chain(did)
        tally = self.hub.store.index.tally
        if found is None or (did != scope.own_did and not any(tally(f"v:{ns}:{did}") for ns in scope.namespaces)):
            raise FeedError("not-found", "no such signer in what this pair shares")
        return found.to_json()

    # -- what our own operator asks

    def offered(self, pair_id: str) -> dict[str, object]:
        """Return head, acked, clock, lag_records and last_read_at of a pair: how far the peer is with what we offer."""
        pair = self.hub.views.pairs.get(pair_id)
        head = self._head(self._scope(pair)) if pair is not None else 0
        acked, at_ms = self._acked.get(pair_id, (None, None))
        return {
            "head": head,
            "acked": acked,
            "clock": acked or 0,
            "lag_records": max(0, head - acked) if acked is not None else None,
            "last_read_at": when.text_of(at_ms) if at_ms is not None else None,
        }

    def peer_view(self, pair_id: str) -> dict[str, object]:
        """Return how we see the pair, for the peer: state, reason, head, acked, queue."""
        pair = self.hub.views.pairs.get(pair_id)
        if pair is None:
            return {"state": "unknown", "reason": "", "head": 0, "acked": None, "queue": 0}
        head = self._head(self._scope(pair)) if pair.serve_allowed else 0
        acked, _ = self._acked.get(pair_id, (None, None))
        return {
            "state": str(pair.phase),
            "reason": pair.reason,
            "head": head,
            "acked": acked,
            "queue": self._queue_records(pair_id),
        }

    # -- scope and cursor

    def _pair(self, pair_id: str) -> Pair:
        """Return the pair when we answer its pulls now."""
        pair = self.hub.views.pairs.get(pair_id)
        if pair is None:
            raise FeedError("pair-unknown")
        if not pair.serve_allowed:
            codes = {Phase.PAUSED: "pair-paused", Phase.REVOKED: "pair-revoked"}
            code = codes.get(pair.phase, "pair-state-conflict")
            raise FeedError(code, peer_view=self.peer_view(pair_id))
        return pair

    def _scope(self, pair: Pair, namespace: str = "") -> Scope:
        return offer.scope_of(pair, self.hub.views.pairs, self.hub.views.did, namespace)

    def _open(self, pair_id: str, query: Query) -> tuple[Scope, Cursor | None]:
        """Return scope and opened cursor, None at the very start; raise when the log behind it is another one."""
        pair = self._pair(pair_id)
        scope = self._scope(pair, query.namespace)
        if not query.since:
            return replace(scope, whole=query.resync), None
        cursor = self._unsealed(pair, query.since)
        if cursor.epoch != self.hub.store.epoch or not self._is_ours(cursor):
            raise FeedError("cursor-reset", peer_view=self.peer_view(pair_id))
        return replace(scope, whole=cursor.whole), cursor

    def _unsealed(self, pair: Pair, text: str) -> Cursor:
        key = self.vault.cursor_key()
        try:
            return cursors.open_(text, key, pair.pair_id)
        except cursors.CursorError:
            if not pair.inherits:
                raise
            # The first request of a pair that superseded another comes with that one's position.
            return cursors.open_(text, key, pair.inherits)

    def _is_sealed_for(self, pair_id: str, text: str) -> bool:
        try:
            cursors.open_(text, self.vault.cursor_key(), pair_id)
        except cursors.CursorError:
            return False
        return True

    def _is_ours(self, cursor: Cursor) -> bool:
        try:
            return self.hub.store.run_at(cursor.run_seq) == cursor.run
        except LineError as exc:
            # A damaged line says nothing about the log around it, and the epoch agrees.
            return exc.code == "store-damaged"

    def _check(self, query: Query) -> None:
        if query.feed not in FEEDS:
            raise FeedError("bad-field", f"feed is one of {' '.join(FEEDS)}")
        if not 0 <= query.limit <= self.limits.page_records:
            raise FeedError("bad-field", f"limit is 1 to {self.limits.page_records}")

    def _readings(self, scope: Scope, query: Query, cursor: Cursor | None) -> list[Reading]:
        known = cursor.by_key() if cursor is not None else {}
        return offer.lanes_through(self.hub.store.index, scope, known, query.thread, bool(query.namespace))

    def _head(self, scope: Scope) -> int:
        return offer.head(self.hub.store.index, scope)

    # -- pages, in a thread

    def _page(self, pair_id: str, query: Query) -> tuple[bytes, int]:
        """Return the bytes of the next page and how many records it holds."""
        scope, cursor = self._open(pair_id, query)
        readings = self._readings(scope, query, cursor)
        limit = query.limit or self.limits.page_records_default
        rows, has_more = offer.collect(self.hub.store.index, scope, readings, limit, self.limits.page_bytes)
        next_, clock = self._next(pair_id, query, scope, cursor, readings, has_more)
        view = {**self.peer_view(pair_id), "clock": clock}
        body = page.assemble(
            self.hub.store.payloads(rows),
            [row.ns for row in rows],
            next_cursor=next_,
            has_more=has_more,
            peer_view=view,
        )
        return body, len(rows)

    def _next(
        self, pair_id: str, query: Query, scope: Scope, before: Cursor | None, readings: Sequence[Reading], more: bool
    ) -> tuple[str, int]:
        """Return (sealed cursor after this page, records in scope up to it).

        A page that moved nothing gets the very text it was asked with, so the peer need not save it.
        """
        lanes = {reading.key: reading.lane() for reading in readings}
        clock = sum(lane.count for lane in lanes.values())
        # Lanes that consent took away keep their place, as long as there is room.
        kept = [lane for lane in (before.lanes if before is not None else ()) if lane.key not in lanes]
        held = (*lanes.values(), *kept)[: cursors.LANES_MAX]
        whole = scope.whole and more
        same = before is not None and set(held) == set(before.lanes) and whole == before.whole
        if same and self._is_sealed_for(pair_id, query.since):
            return query.since, clock
        # The newest line that this reading went past: only a log set back behind it can have lost what was read.
        seq = max((lane.position for lane in held), default=0)
        store = self.hub.store
        seq, run = self._run_at(seq, before)
        cursor = Cursor(store.epoch, seq, run, held, whole)
        key = self.vault.cursor_key()
        return cursors.seal(cursor, key, self._random_bytes(AEAD_NONCE_BYTES), pair_id), clock

    def _run_at(self, seq: int, before: Cursor | None) -> tuple[int, str]:
        """Return a line up to `seq` and the running hash there; the place before where that line is damaged."""
        try:
            return seq, self.hub.store.run_at(seq)
        except LineError:
            return (before.run_seq, before.run) if before is not None else (0, self.hub.store.run_at(0))

    def _fetch(self, pair_id: str, ids: Sequence[str]) -> bytes:
        scope = self._scope(self._pair(pair_id))
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

    # -- wakes

    def _heard(self, commit: Commit) -> None:
        """Pass a commit on to the loop; runs on the writer's thread."""
        loop = self._loop
        if loop is not None and (commit.namespaces or THREAD_PAIRS in commit.threads):
            loop.call_soon_threadsafe(self._rouse, commit)

    def _rouse(self, commit: Commit) -> None:
        names = self._waiters if THREAD_PAIRS in commit.threads else commit.namespaces
        for event in set(chained.from_iterable(self._waiters.get(name, ()) for name in names)):
            event.set()

    @asynccontextmanager
    async def _listening(self, namespaces: frozenset[str]) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set when one of the namespaces gets a record, or a pair changes."""
        event = asyncio.Event()
        for name in namespaces or {""}:
            self._waiters.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            for name in namespaces or {""}:
                self._waiters[name].discard(event)
                if not self._waiters[name]:
                    del self._waiters[name]
