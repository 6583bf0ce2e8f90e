"""Answers to a peer's questions about what both sides hold, as range fingerprints (core/record/fingerprint.py).

A peer is answered one question at a time, in one thread for all, of which a peer has a quarter in the long run.
Without that, 40 questions under 40 keys kept every other peer waiting for seconds, and local writes with them.  The
fingerprints of the sets are kept for a minute, for the next question; later requests recompute them.

`reconcile.py` asks the questions, and computes its own side on the same thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from ...core.errors import SplError
from ...core.record import fingerprint
from ...core.record.fingerprint import FingerprintAnswer, Question
from ...core.record.levels import NAMES
from ...core.value import dataclass, field
from ...home.writer import Writer
from ..changes import Feed
from .holdings import Holdings, PairTerms, terms_of

KEPT_S: Final = 60.0
"""How long fingerprints are kept for the next question."""
QUESTIONS_MAX: Final = 4
"""Questions of one peer that are answered or wait."""
THREAD_SHARE: Final = 0.25
"""How much of the thread one peer may use in the long run, after BURST_S seconds of it at once."""
BURST_S: Final = 10.0
PAY_WAIT_S: Final = 10.0
"""How long a question waits at most for its share; the peer gives up after 30 s."""

_T = TypeVar("_T")
_P = ParamSpec("_P")


class ReconcileError(SplError):
    """The sets of a pair could not be compared."""


@dataclass(slots=True)
class _Asker:
    """What the questions of one peer cost us."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    paid_s: float = 0.0
    """Loop time at which a steady share of the thread has paid for all answers so far."""


class Fingerprints:
    """The answering side of comparisons, for all pairs."""

    def __init__(self, writer: Writer, feed: Feed) -> None:
        self.writer = writer
        self.feed = feed
        # One thread for all: whatever peers ask, their comparisons take no more than a share of one processor.
        self._pool = ThreadPoolExecutor(1, "spl-reconcile")
        self._kept: dict[str, tuple[Holdings, asyncio.TimerHandle]] = {}
        self._askers: dict[str, _Asker] = {}

    def close(self) -> None:
        """Forget all fingerprints and end the thread."""
        for _, timer in self._kept.values():
            timer.cancel()
        self._kept.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def terms(self, pair_id: str) -> PairTerms:
        """Return what a pair shares now; raise as `Source.pair` does for one that we do not serve."""
        return terms_of(self.feed.source, pair_id)

    async def answer(self, pair_id: str, body: bytes) -> bytes:
        """Return the answer to a peer's question (core/fingerprint.py), from what the pair shares and nothing else.

        A peer is answered one question at a time, at its share of the thread; what is beyond that waits, then is
        refused.  Raises FingerprintError "bad-field", CanonError "bad-json", FeedError for the pair's state,
        ReconcileError "rate-limited".
        """
        question = fingerprint.question_of(body)
        self.terms(pair_id)
        loop, asker = asyncio.get_running_loop(), self._askers.setdefault(pair_id, _Asker())
        if asker.waiting >= QUESTIONS_MAX:
            raise ReconcileError("rate-limited", "questions of this pair are waiting already", retry_after_s=1)
        asker.waiting += 1
        try:
            async with asker.lock:
                wait_s = asker.paid_s - BURST_S / THREAD_SHARE - loop.time()
                if wait_s > PAY_WAIT_S:
                    raise ReconcileError("rate-limited", "comparisons of this pair", retry_after_s=int(wait_s) + 1)
                await asyncio.sleep(max(0.0, wait_s))
                return await self._answer(pair_id, question, asker)
        finally:
            asker.waiting -= 1

    async def _answer(self, pair_id: str, question: Question, asker: _Asker) -> bytes:
        shared, now_s = self.terms(pair_id), asyncio.get_running_loop().time

        def timed(held: Holdings) -> tuple[bytes, float]:
            started_s = now_s()
            return self._reply(pair_id, held, question), now_s() - started_s

        while True:
            reply, took_s = await self.in_thread(timed, self._keep(pair_id, shared, question.key))
            asker.paid_s = max(asker.paid_s, now_s()) + took_s / THREAD_SHARE
            # The answer goes out only if the pair still shares the same.
            before, shared = shared, self.terms(pair_id)
            if before == shared:
                return reply

    def _keep(self, pair_id: str, shared: PairTerms, key: str) -> Holdings:
        """Return the fingerprints of this comparison, those that are kept or new ones, and keep them for a while."""
        kept, timer = self._kept.pop(pair_id, (None, None))
        if timer is not None:
            timer.cancel()
        if kept is None or kept.key != key or kept.terms != shared:
            kept = Holdings(self.writer.store, shared, key)
        self._kept[pair_id] = kept, asyncio.get_running_loop().call_later(KEPT_S, self._kept.pop, pair_id, None)
        return kept

    def in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> "asyncio.Future[_T]":
        """Return the coming result of a function on the thread of comparisons."""
        return asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    def _reply(self, pair_id: str, held: Holdings, question: Question) -> bytes:
        ranges = question.ranges
        names: dict[str, dict[str, tuple[str, str]]] = {}
        for name, starts in question.names.items():
            found = {start: item for start in starts if (item := held.find(name, start)) is not None}
            names[name] = {start: (id_, held.terms.label(row.ns)) for start, (row, id_) in found.items()}
        return FingerprintAnswer(
            parts={name: held.parts(name, asked) for name, asked in ranges.items()},
            counts={name: held.counts_for_peer(name) for name, asked in ranges.items() if "" in asked},
            names=names,
            lacking=tuple(id_ for id_, mark in question.have.items() if not self._has(pair_id, held, id_, mark)),
        ).encode()

    def _has(self, pair_id: str, held: Holdings, id_: str, mark: str) -> bool:
        """Return whether we hold what the peer asks about: an envelope that it proves to hold, or its own projection.

        Only namespaces into which it may bring records count: it must not learn what the others hold.
        """
        index = self.writer.store.index
        for row in [each for each in index.copies(id_) if each.ns in held.terms.received]:
            for payload in self.writer.store.payloads([row, *index.alternates(id_, row.ns)]):
                if fingerprint.mark_of(held.key, payload) == mark:
                    return True
        return any(index.has_projection(pair_id, level, id_) for level in NAMES)
