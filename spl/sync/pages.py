"""Pages as they are sent: read from the log a slice at a time, as fast as the reader takes them.

A page holds up to 4 MiB of envelopes.  It is found as rows of the index, about 200 bytes each, and its envelopes are
read in slices of 128 KiB, the next one only after the connection took the last.  A reader that does not read costs its
rows and a slice.  Building the whole page in memory was rejected: sixty readers that asked and did not read cost
255 MiB, and every connection may hold one.

A page of one slice, as almost all are once a peer caught up, is plain bytes with a length.  A longer one has no length,
and is cut off if the pair's scope or the reader's credential ends meanwhile: nothing is sent after it was withdrawn,
and no reader takes a page that was cut for a whole one.

A pair reads at most READS_MAX pages at once; a further request waits for `limits.check_s` and is then refused.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final

from ..core.limits import KIB
from ..core.pair.modes import POLLING
from ..core.record import page
from ..core.value import dataclass, field
from ..home.index import Row
from .scope import Scope, within
from .source import Credential, FeedError, Query, Source
from .supervise import Kick, wait

SLICE_BYTES: Final = 128 * KIB
READS_MAX: Final = 2  # one, and one whose peer gave up and asked again
PACE_GAPS: Final = 3
"""Enough for one regular gap among two readings by hand."""


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page before its envelopes are read: for whom, its scope, its rows, and the members after `records`."""

    pair_id: str
    query: Query
    scope: Scope
    rows: Sequence[Row]
    members: Mapping[str, object] = field(repr=False)


@dataclass(slots=True)
class _PairReads:
    """The reads of one pair."""

    running: int = 0
    waiting: int = 0
    ended: Kick = field(default_factory=Kick)


class PageReads:
    """The running reads of all pairs; used on the loop."""

    def __init__(self, source: Source, pool: Executor) -> None:
        self._source, self._pool = source, pool
        self._reads: dict[str, _PairReads] = {}

    @property
    def running(self) -> int:
        """The number of reads of all pairs."""
        return sum(reads.running for reads in self._reads.values())

    def is_running(self, pair_id: str) -> bool:
        """Return whether a page of the pair is read now."""
        return pair_id in self._reads

    async def begin(self, pair_id: str) -> "PageRead":
        """Return a read, which counts for the pair until it is closed.  Raises FeedError "rate-limited"."""
        reads, loop = self._reads.setdefault(pair_id, _PairReads()), asyncio.get_running_loop()
        reads.waiting += 1
        due_s = loop.time() + self._source.limits.check_s
        try:
            while reads.running >= READS_MAX:
                if loop.time() >= due_s:
                    message = f"{READS_MAX} pages of this pair are being read already"
                    raise FeedError("rate-limited", message, retry_after_s=1)
                reads.ended.clear()
                await wait(reads.ended, due_s - loop.time())
            reads.running += 1
        finally:
            reads.waiting -= 1
            self._forget(pair_id)
        return PageRead(self._source, self._pool, self, pair_id)

    def uncounted(self) -> "PageRead":
        """Return a read of our own, which counts for no pair."""
        return PageRead(self._source, self._pool)

    def end(self, pair_id: str) -> None:
        """Record that a read of the pair was closed."""
        reads = self._reads[pair_id]
        reads.running -= 1
        reads.ended.set()
        self._forget(pair_id)

    def _forget(self, pair_id: str) -> None:
        reads = self._reads[pair_id]
        if not reads.running and not reads.waiting:
            del self._reads[pair_id]


class ReadPace:
    """How often each peer reads from us: the time between the end of one reading and the begin of the next."""

    def __init__(self) -> None:
        self._ended_s: dict[str, float] = {}
        self._gaps_s: dict[str, tuple[float, ...]] = {}

    def begin(self, pair_id: str, now_s: float) -> None:
        """Record that the peer asked for a page; `now_s` is any steady clock."""
        ended_s = self._ended_s.pop(pair_id, None)
        if ended_s is not None:
            self._gaps_s[pair_id] = (*self._gaps_s.get(pair_id, ()), now_s - ended_s)[-PACE_GAPS:]

    def end(self, pair_id: str, now_s: float) -> None:
        """Record that the peer was given the last page of a reading."""
        self._ended_s[pair_id] = now_s

    def interval_s(self, pair_id: str, view: Mapping[str, Any]) -> float | None:
        """Return how often the peer reads; None if that is not known.

        That is what its view says, or the longest of the last gaps if that is more: a reading by hand may be between.
        """
        told = [view["poll_ms"] / 1000] if view.get("mode") == POLLING and "poll_ms" in view else []
        return max((*told, *self._gaps_s.get(pair_id, ())), default=None)


class PageRead:
    """One page while it is read: an iterator over its bytes.  `aclose` ends it in any case."""

    def __init__(self, source: Source, pool: Executor, counted: PageReads | None = None, pair_id: str = "") -> None:
        """`counted` counts this read for the pair until it is closed; without, it counts for none."""
        self._source, self._pool, self._counted, self._pair_id = source, pool, counted, pair_id
        self._is_open = True
        self._found: FoundPage
        self._credential: Credential
        self._left: list[Row] = []
        self._ns: list[str] = []
        self._ready = b""

    async def fill(self, found: FoundPage, credential: Credential) -> "bytes | PageRead | None":
        """Read the first slice; return the page as bytes if that is all of it, otherwise this iterator.

        Returns None, and may be called again, if the scope is no longer in force.  The iterator goes on only as long
        as the request's credential holds.
        """
        self._found, self._credential, self._left, self._ns = found, credential, list(found.rows), []
        self._ready = page.HEAD + await self._slice()
        if not self._in_force():
            return None
        if self._left:
            return self
        await self.aclose()
        return self._ready + self._end()

    def __aiter__(self) -> "PageRead":
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece.  Raises FeedError "pair-state-conflict" once the page may not be sent any more."""
        if not self._is_open:
            raise StopAsyncIteration
        if not self._ready:
            self._ready = await self._slice()
        if not self._credential.holds() or not self._in_force():
            raise FeedError("pair-state-conflict", "what the pair shares, or its credential, changed within a page")
        piece, self._ready = self._ready, b""
        if not self._left:
            piece += self._end()
            await self.aclose()
        return piece

    async def aclose(self) -> None:
        """End the read; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            if self._counted is not None:
                self._counted.end(self._pair_id)

    async def _slice(self) -> bytes:
        """Return the next envelopes, with the comma before them."""
        rows = within(self._left, SLICE_BYTES)
        del self._left[: len(rows)]
        found, first = self._found, not self._ns
        envelopes = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._source.outgoing.envelopes, found.pair_id, found.scope, rows
        )
        self._ns += [row.ns for row, _ in envelopes]
        joined = b",".join(raw for _, raw in envelopes)
        return joined if first or not envelopes else b"," + joined

    def _end(self) -> bytes:
        return page.end(self._ns, **self._found.members)

    def _in_force(self) -> bool:
        return self._found.scope == self._source.scope_now(self._found.pair_id, self._found.query)
