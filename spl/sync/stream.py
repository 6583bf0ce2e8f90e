"""What one stream sends to a peer: the records of its reading as they become durable, and the words between.

    record.created   the stored envelope with its `ns`; the last of a write has the sealed cursor as `id:`, and `clock`
    heartbeat        {peer_view, cursor}, at once and then every limits.heartbeat_s: an idle peer saves the cursor too
    ack              {cursor}: how far we, the peer's own reader, hold what it serves to us
    error            {code, message, peer_view}, then the end: paused, revoked, reset, or lagged (open another one)
    server_shutdown  {retry_after_ms}, then the end

A stream keeps no queue: it is a cursor that waits for a commit in its namespaces and reads at the peer's pace.  At the
tail it is served from the last commits, which all streams share; one that is behind asks the index, and so does one
whose records go out as projections or whose filter must read them: that is work for a thread.

It ends as soon as what the pair shares changes, and the peer opens another one.  Each time it first takes the end of
the last commit, then looks whether anything changed, and then sends nothing newer than that end: so no record that was
written after a withdrawal goes out.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ..core import consent, rules
from ..core.limits import KIB
from ..core.record import page
from ..core.record.cursor import Cursor
from ..core.record.record import is_reserved
from ..home.index import Row
from ..home.segments import Entry
from ..home.views import THREAD_NAMESPACES, THREAD_PAIRS, THREAD_TOKENS
from ..home.writes import Commit
from ..net.sse import encode_event
from . import lanes as offer
from .lanes import LaneScan, LogView, Steps
from .notify import Notifier
from .source import FeedError, Query, Source, clock_of, lanes_held

PIECE_BYTES: Final = 64 * KIB
PIECE_RECORDS: Final = 256
RECENT_COMMITS: Final = 32
RECENT_BYTES: Final = 512 * KIB
RETRY_AFTER_MS: Final = 1000
SHARING: Final = tuple(f"t:{thread}" for thread in (THREAD_PAIRS, consent.THREAD, THREAD_NAMESPACES))
"""Threads on which stands what a pair shares."""
ALLOWING: Final = tuple(f"t:{thread}" for thread in (THREAD_TOKENS, rules.THREAD))
"""Threads on which stands whether a credential holds."""

_WORDS: Final = {"pair-paused": "paused", "pair-revoked": "revoked", "cursor-reset": "reset"}


class Recent:
    """The last commits, as long as there are streams: what they share at the tail.  The writer's thread adds."""

    def __init__(self, last_seq: int) -> None:
        self.state: tuple[tuple[Commit, ...], int] = ((), last_seq)
        """Neighbouring commits, and the last line there is; replaced, never changed."""
        self._streams = 0

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Keep commits during the `with`."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams:
                self.state = ((), self.state[1])

    def add(self, commit: Commit) -> None:
        """Take one commit; the oldest go where there are too many or too large ones."""
        kept: tuple[Commit, ...] = ()
        if self._streams:
            kept = (*self.state[0], commit)[-RECENT_COMMITS:]
            while kept and sum(each.fresh_bytes for each in kept) > RECENT_BYTES:
                kept = kept[1:]
        self.state = kept, commit.last_seq


class Stream:
    """One open stream of a pair; used on the loop, but for `_from_index`."""

    def __init__(
        self, source: Source, recent: Recent, notifier: Notifier, pool: Executor, pair_id: str,
        query: Query, look: LogView, cursor: Cursor | None, is_valid: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`is_valid` tells whether the credential that opened it still holds."""
        self.source, self.recent, self.notifier, self.pool = source, recent, notifier, pool
        self.pair_id = pair_id
        self._scope, self._whole = look.scope, look.whole
        self._text, self._cursor = query.since, cursor
        self._readings = source.readings(look, query, cursor)
        self._is_valid = is_valid
        self._chain = source.pair(pair_id).chain
        self._views: tuple[object, ...] = ()
        self._seen = 0  # every line up to here was looked at
        self._run = (0, "")  # a line that was looked at, and the log's running hash there
        self._behind = True
        self._work: Steps[bytes] | None = None
        self._ack = ""
        self._replaced = False
        self._bell = asyncio.Event()

    def confirm(self, cursor: str) -> None:
        """Tell the peer how far we hold what it serves; only the newest cursor is told."""
        self._ack = cursor
        self._bell.set()

    def replace(self) -> None:
        """End this stream, because the peer opened another one."""
        self._replaced = True
        self._bell.set()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield pieces of the stream, each of whole events, until it ends."""
        loop = asyncio.get_running_loop()
        lists = [*(f"n:{ns}" for ns in self._scope.shares), *SHARING, *ALLOWING]
        with self.notifier.listening(lists) as self._bell, self.recent.wanted():
            due_s = loop.time()
            while True:
                self._bell.clear()
                commits, last_seq = self.recent.state  # before the last word
                if last := self._last_word():
                    yield last
                    return
                out = b""
                if self._ack:
                    out, self._ack = _event("ack", cursor=self._ack), ""
                if loop.time() >= due_s:
                    await loop.run_in_executor(self.pool, self.source.count, self.pair_id)
                    out += self._heartbeat()
                    due_s = loop.time() + self.source.limits.heartbeat_s
                out += self._from_memory(commits, last_seq)
                if self._behind:
                    found = await loop.run_in_executor(self.pool, self._step, last_seq)
                    if found and self._last_word():
                        self._behind = True  # something changed meanwhile, so this does not go out
                    else:
                        out += found
                if out:
                    yield out
                elif not self._behind:
                    await rung(self._bell, due_s)

    def _last_word(self) -> bytes:
        """Return the event that ends the stream when it must end, else nothing."""
        if self.notifier.stopping:
            return _event("server_shutdown", retry_after_ms=RETRY_AFTER_MS)
        if self._replaced:
            return _event("error", code="lagged", message="another stream of this pair took over")
        if not self._is_valid():
            return _event("error", code="revoked", message="the token that opened this stream is not valid any more")
        views = self.source.writer.views
        now = (views.pairs, views.consents, views.namespaces)
        if self._views and all(one is other for one, other in zip(now, self._views, strict=True)):
            return b""
        try:
            pair = self.source.pair(self.pair_id)
        except FeedError as exc:
            code = _WORDS.get(exc.code, "revoked")
            return _event("error", code=code, message=exc.message, **exc.facts)
        if self.source.scope(pair) != self._scope or pair.chain.present != self._chain.present:
            return _event("error", code="lagged", message="what this pair shares, or its key, has changed")
        self._views = now
        return b""

    def _heartbeat(self) -> bytes:
        lanes = lanes_held(self._readings, self._cursor)
        if self._run[1] and (self._cursor is None or set(lanes) != set(self._cursor.lanes)):
            # Rows that the peer has already moved the lanes, and nothing was sent.
            self._seal()
        view = {**self.source.peer_view(self.pair_id), "clock": clock_of(self._readings)}
        return _event("heartbeat", peer_view=view, cursor=self._text)

    def _seal(self) -> None:
        """Seal where the lanes are, at a line that was looked at in memory."""
        lanes = lanes_held(self._readings, self._cursor)
        self._cursor = Cursor(self.source.writer.store.epoch, *self._run, lanes, False)
        self._text = self.source.seal(self.pair_id, self._cursor)

    # -- records

    def _from_memory(self, commits: tuple[Commit, ...], last_seq: int) -> bytes:
        """Return what the last commits have for this reading, a piece at most; notices when they begin too late."""
        if self._behind or last_seq <= self._seen:
            return b""
        if not self._scope.plain:
            self._behind = True
            return b""
        found: list[tuple[bytes, str]] = []
        for commit in commits:
            if commit.last_seq <= self._seen:
                continue
            if commit.first_seq > self._seen + 1:
                break
            self._run = commit.last_seq, commit.run
            if not self._take(commit, found):
                break
        else:
            self._behind = self._seen < last_seq
        if not found:
            self._behind = self._behind or self._seen < last_seq
            return b""
        self._seal()
        return _records(found, self._text, clock_of(self._readings))

    def _take(self, commit: Commit, found: list[tuple[bytes, str]]) -> bool:
        """Add the records of a commit that this reading wants; False when a piece is full before its end.

        The scope is plain, and no earlier lane reaches beyond what was looked at.
        """
        scope, lanes = self._scope, {reading.name: reading for reading in self._readings}
        size, rows = sum(len(payload) for payload, _ in found), list[Row]()
        for seq, entry in commit.fresh:
            reading = lanes.get(f"n:{entry.ns}")
            if reading is None or seq <= max(self._seen, reading.position) or is_reserved(entry.thread):
                continue
            if size >= PIECE_BYTES:
                break
            self._seen, row = seq, _row(seq, entry)
            if not scope.admits(row):
                continue
            reading.position = seq
            if scope.counts(row):
                reading.count += 1
                found.append((entry.payload, entry.ns))
                rows.append(row)
                size += len(entry.payload)
        else:
            self._seen = commit.last_seq
        self.source.shown.note(self.pair_id, scope, rows)
        return self._seen == commit.last_seq and size < PIECE_BYTES

    def _step(self, last_seq: int) -> bytes:
        """Look on in the log for some ms, up to a line that the last word knew of; runs in a thread.

        Returns the next piece, or nothing where it is not found yet.
        """
        if self._work is None:
            self._work = self._from_index(last_seq)
        try:
            next(self._work)
        except StopIteration as done:
            self._work = None
            found: bytes = done.value
            return found
        return b""

    def _from_index(self, last_seq: int) -> Steps[bytes]:
        """Return the next piece as the log holds it up to a line."""
        source, scope = self.source, self._scope
        look = replace(source.at(self.pair_id, scope, last_seq), whole=self._whole)
        readings = [LaneScan(each.key, each.name, each.position, each.count, each.covers) for each in self._readings]
        rows, more = yield from offer.collect(look, readings, PIECE_RECORDS, 2 * PIECE_BYTES)
        self._readings = readings
        if not more:
            # A reading that left out nothing goes on as an ordinary one.
            self._whole, self._behind = False, False
            self._seen = last_seq
        self._text, self._cursor = source.next(self.pair_id, self._text, self._cursor, readings, self._whole)
        if not rows:
            return b""
        found = zip(source.shown.payloads(self.pair_id, scope, rows), (row.ns for row in rows), strict=True)
        return _records(list(found), self._text, clock_of(readings))


def _records(found: list[tuple[bytes, str]], cursor: str, clock: int) -> bytes:
    """Return the events of these envelopes; the last one carries the cursor."""
    *most, (payload, ns) = found
    events = [encode_event("record.created", page.with_ns(each, its_ns)) for each, its_ns in most]
    return b"".join((*events, encode_event("record.created", page.with_ns(payload, ns, clock), cursor)))


def _event(name: str, **data: object) -> bytes:
    return encode_event(name, json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())


def _row(seq: int, entry: Entry) -> Row:
    """Return a new record as the index will know it, for the scope to judge."""
    return Row(seq, entry.kind, 0, 0, len(entry.payload), entry.ns, entry.origin, entry.voucher, entry.own, entry.clock)


async def rung(bell: asyncio.Event, until_s: float) -> None:
    """Return when the bell rings, or at that time of the loop."""
    try:
        async with asyncio.timeout_at(until_s):
            await bell.wait()
    except TimeoutError:
        return
