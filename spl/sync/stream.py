"""One event stream to a peer: the records of its reading as they become durable, and the control events.

    record.created   the stored envelope with its `ns`; the last of a write has the sealed cursor as `id:`, and `clock`
    heartbeat        {peer_view, cursor}, at once and then every limits.heartbeat_s: an idle peer saves the cursor too
    ack              {cursor}: how far our own reader of this peer has stored what the peer serves
    error            {code, message, peer_view}, then the end: paused, revoked, reset, or lagged (open another one)
    server_shutdown  {retry_after_ms}, then the end

A stream has no queue: it is a cursor that waits for a commit in its namespaces and reads at the peer's pace, so a slow
peer costs no memory and delays nobody.  A queue for each subscriber was rejected: it needs a bound, and a reader that
overflows it must go back to the log anyway.  At the tail a stream is served from the last commits, which all streams
share (`RecentCommits`); a stream that is behind reads the index in a thread, and so does one that sends projections or
whose filter reads records.

A stream ends as soon as what the pair shares changes, and the peer opens another one.  Each round takes the end of the
last commit first, then checks whether anything changed, and sends nothing newer than that end: a record that was
written after a withdrawal never goes out.
"""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from typing import Final

from ..core import canon, rules
from ..core.limits import KIB
from ..core.record import page
from ..core.record.cursor import Cursor
from ..core.record.record import is_reserved
from ..core.value import replace
from ..home.index import Row
from ..home.segments import Entry
from ..home.tables.lists import by_namespace, by_thread
from ..home.views import THREAD_TOKENS
from ..home.writes import Commit
from ..net.sse import encode_event
from .lanes import clock_of, collect, next_lanes
from .notify import Heartbeat, Notifier, RecentCommits
from .scope import SHARING_THREADS, Steps
from .source import Credential, FeedError, Query, Source
from .supervise import Kick

PIECE_BYTES: Final = 64 * KIB
PIECE_RECORDS: Final = 256
"""One piece: what a stream has in memory for a peer that does not read, and sends before it looks for changes again."""
RETRY_AFTER_MS: Final = 1000
SHARING: Final = tuple(by_thread(thread) for thread in sorted(SHARING_THREADS))
"""The lists of those threads."""
ALLOWING: Final = tuple(by_thread(thread) for thread in (THREAD_TOKENS, rules.THREAD))
"""Threads whose records decide whether a credential is valid."""


class Stream:
    """One open stream of a pair; used on the loop, except for `_step`, which runs in a thread."""

    def __init__(
        self, source: Source, recent: RecentCommits, notifier: Notifier, pool: Executor, pair_id: str, query: Query,
        credential: Credential,
    ) -> None:  # fmt: skip
        """Open the reading; it ends once the credential no longer holds.

        Raises as `Source.open` and `Source.check_rollback` do.
        """
        view, cursor = source.open(pair_id, query)
        source.check_rollback(pair_id, cursor, query.since)
        self.source, self.recent, self.notifier, self.pool = source, recent, notifier, pool
        self.pair_id = pair_id
        self._scope, self._whole = view.scope, view.whole
        self._text, self._cursor = query.since, cursor
        self._scans = source.scans(view, query, cursor)
        self._opened_at = cursor, query.since
        self._credential = credential
        self._chain = source.pair(pair_id).chain
        self._views: tuple[object, ...] = ()
        self._scanned_to = 0  # every line up to here was looked at
        self._run = (0, "")  # a line that was looked at, and the log's running hash there
        self._behind = True
        self._work: Steps[bytes] | None = None
        self._ack = ""
        self._replaced = False
        self._news: asyncio.Event = Kick()

    def confirm(self, cursor: str) -> None:
        """Acknowledge to the peer what we have stored of what it serves; only the newest cursor is sent."""
        self._ack = cursor
        self._news.set()

    def replace(self) -> None:
        """End this stream, because the peer opened another one or must begin again."""
        self._replaced = True
        self._news.set()

    def check_rollback(self) -> None:
        """End this stream if its peer's log was found to be rolled back while it was opened."""
        if not self.source.rollbacks.allows(self.pair_id, *self._opened_at):
            self.replace()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield pieces of the stream, each of whole events, until it ends."""
        loop = asyncio.get_running_loop()
        lists = [*(by_namespace(ns) for ns in self._scope.shares), *SHARING, *ALLOWING]
        news, every_s = self.notifier.listening(lists), self.source.limits.heartbeat_s
        with news as self._news, self.recent.wanted(), Heartbeat(self.notifier, self._news, every_s) as beat:
            while True:
                self._news.clear()
                commits, last_seq = self.recent.state  # before the check for changes
                if end := self._end_event():
                    yield end
                    return
                out = b""
                if self._ack:
                    out, self._ack = _event("ack", cursor=self._ack), ""
                if beat.is_due:
                    await loop.run_in_executor(self.pool, self.source.count, self.pair_id)
                    out += self._heartbeat()
                    beat.sent()
                out += self._from_memory(commits, last_seq)
                if self._behind:
                    found = await loop.run_in_executor(self.pool, self._step, last_seq)
                    if found and self._end_event():
                        self._behind = True  # something changed meanwhile, so this is not sent
                    else:
                        out += found
                if out:
                    yield out
                elif not self._behind:
                    await self._news.wait()

    def _end_event(self) -> bytes:
        """Return the event that ends the stream if it must end, else nothing."""
        if self.notifier.stopping:
            return _event("server_shutdown", retry_after_ms=RETRY_AFTER_MS)
        if self._replaced:
            return _event("error", code="lagged", message="another stream of this pair took over")
        if not self._credential.holds():
            return _event("error", code="revoked", message="the token that opened this stream is no longer valid")
        views = self.source.writer.views
        now = (views.pairs, views.consents, views.namespaces)
        if self._views and all(one is other for one, other in zip(now, self._views, strict=True)):
            return b""
        try:
            pair = self.source.pair(self.pair_id)
        except FeedError as exc:
            word = next((word for word, code in page.STREAM_ENDS.items() if code == exc.code), "revoked")
            return _event("error", code=word, message=exc.message, **exc.facts)
        if self.source.scope(pair) != self._scope or pair.chain.present != self._chain.present:
            return _event("error", code="lagged", message="what this pair shares, or its key, has changed")
        self._views = now
        return b""

    def _heartbeat(self) -> bytes:
        lanes = next_lanes(self._scans, self._cursor)
        if self._run[1] and (self._cursor is None or set(lanes) != set(self._cursor.lanes)):
            # Rows that the peer already has moved the lanes, and no record carried the cursor.
            self._seal()
        view = {**self.source.peer_view(self.pair_id), "clock": clock_of(self._scans)}
        return _event("heartbeat", peer_view=view, cursor=self._text)

    def _seal(self) -> None:
        """Seal where the lanes are, at a line that was looked at in memory."""
        lanes = next_lanes(self._scans, self._cursor)
        self._cursor = Cursor(self.source.writer.store.epoch, *self._run, lanes, False)
        self._text = self.source.seal(self.pair_id, self._cursor)

    # -- records

    def _from_memory(self, commits: tuple[Commit, ...], last_seq: int) -> bytes:
        """Return at most one piece of what the last commits hold for this reading.

        Marks the stream as behind if the commits kept begin too late.
        """
        if self._behind or last_seq <= self._scanned_to:
            return b""
        if not self._scope.plain:
            self._behind = True
            return b""
        found: list[tuple[bytes, str]] = []
        for commit in commits:
            if commit.last_seq <= self._scanned_to:
                continue
            if commit.first_seq > self._scanned_to + 1:
                break
            self._run = commit.last_seq, commit.run
            if not self._take(commit, found):
                break
        else:
            self._behind = self._scanned_to < last_seq
        if not found:
            self._behind = self._behind or self._scanned_to < last_seq
            return b""
        self._seal()
        return _records(found, self._text, clock_of(self._scans))

    def _take(self, commit: Commit, found: list[tuple[bytes, str]]) -> bool:
        """Add the records of a commit that this reading wants; return False if a piece is full before its end.

        The scope is plain, and no earlier lane reaches beyond what was scanned.
        """
        scope, by_name = self._scope, {name: scan for scan in self._scans for name in scan.lists}
        size, rows = sum(len(payload) for payload, _ in found), list[Row]()
        for seq, entry in commit.fresh:
            scan = by_name.get(by_namespace(entry.ns))
            if scan is None or seq <= max(self._scanned_to, scan.sent_to) or is_reserved(entry.thread):
                continue
            if size >= PIECE_BYTES:
                break
            self._scanned_to, row = seq, _row(seq, entry)
            if not scope.admits(row):
                continue
            scan.sent_to = seq
            if scope.counts(row):
                scan.count += 1
                found.append((entry.payload, entry.ns))
                rows.append(row)
                size += len(entry.payload)
        else:
            self._scanned_to = commit.last_seq
        self.source.outgoing.note_signers(self.pair_id, scope, rows)
        return self._scanned_to == commit.last_seq and size < PIECE_BYTES

    def _step(self, last_seq: int) -> bytes:
        """Read on in the log for some milliseconds, up to a line that the check for changes covers.

        Returns the next piece, or nothing if it is not found yet.  Runs in a thread.
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
        view = replace(source.view_at(self.pair_id, scope, last_seq), whole=self._whole)
        scans = [scan.restarted() for scan in self._scans]
        rows, more = yield from collect(view, scans, PIECE_RECORDS, 2 * PIECE_BYTES)
        self._scans = scans
        ends_whole = self._whole and not more
        if not more:
            # A whole reading continues as an ordinary one.
            self._whole, self._behind = False, False
            self._scanned_to = last_seq
        self._text, self._cursor = source.next_cursor(self.pair_id, self._text, self._cursor, scans, self._whole)
        if ends_whole:
            source.rollbacks.note_end(self.pair_id, self._text)
        found = [(raw, row.ns) for row, raw in source.outgoing.envelopes(self.pair_id, scope, rows)]
        return _records(found, self._text, clock_of(scans)) if found else b""


def _records(found: list[tuple[bytes, str]], cursor: str, clock: int) -> bytes:
    """Return the events of these envelopes; the last one carries the cursor."""
    *most, (payload, ns) = found
    events = [encode_event("record.created", page.with_ns(each, its_ns)) for each, its_ns in most]
    return b"".join((*events, encode_event("record.created", page.with_ns(payload, ns, clock), cursor)))


def _event(name: str, **data: object) -> bytes:
    return encode_event(name, canon.told(data))


def _row(seq: int, entry: Entry) -> Row:
    """Return a new record as the index will hold it, for the scope to judge."""
    return Row(seq, entry.kind, 0, 0, len(entry.payload), entry.ns, entry.origin, entry.voucher, entry.own, entry.clock)
