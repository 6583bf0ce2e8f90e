"""Proof that two sides hold the same: what both should have is compared by range fingerprints, and repaired.

One side drives: it asks the other for fingerprints of ever smaller ranges until it knows every name that only one of
them has (core/fingerprint.py), then for the whole names of what it lacks itself, and last which of its own records the
other lacks.  So one comparison serves both directions, over connections of the side that drives.  The other side keeps
only the fingerprints of its sets, for a minute; later requests recompute them.  Lists of ids were rejected: two equal
sets of 100,000 records cost one question of 0.4 kB, and a difference costs in proportion to itself.

Each side answers one question of a peer at a time, in one thread for all, of which a peer has a quarter in the long
run.  Without that, 40 questions under 40 keys kept every other peer waiting for seconds, and local writes with them.

Repair fetches by id, through `ingest` like everything else, and pushes what the peer lacks.  Names that differ are
looked up once more at the end: what arrived meanwhile is no difference.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, ParamSpec, TypeVar

from ..core import consent
from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import Verdict, claimed_id
from ..core.record import fingerprint, page
from ..core.record.fingerprint import HELD, NAMES_MAX, OPPOSITE, SEEN, SHOWN, FingerprintAnswer, Question, Search
from ..core.record.levels import NAMES
from ..home.index import refusals_of
from ..home.writes import Refuse
from .changes import Feed
from .holdings import Holdings, PairTerms, terms_of
from .ingest import Ingest
from .peer import FINGERPRINTS, RECORDS, SyncError
from .push import Push
from .schedule import Sync

log = logging.getLogger("spl.federation")

KEPT_S: Final = 60.0
"""How long fingerprints are kept for the next question."""
QUESTIONS_MAX: Final = 4
"""Questions of one peer that are answered or wait."""
THREAD_SHARE: Final = 0.25
"""How much of the thread one peer may use in the long run, after BURST_S seconds of it at once."""
BURST_S: Final = 10.0
PAY_WAIT_S: Final = 10.0
"""A question waits at most so long for its share; the peer gives up after 30 s."""
ASK_AGAIN_MAX: Final = 20
"""Repetitions of a question that the peer puts off: some 90 s of waiting, in which our share of its thread recovers."""
VERIFY_S: Final = 900.0
"""Of one comparison; a peer that needs longer only keeps us asking."""
FOUND_MAX: Final = 10_000
"""Names found in one comparison, some megabytes here; whatever lies beyond is found by the next comparison."""
REPAIRS_MAX: Final = 1000
"""Comparisons in one repair: each finds at most FOUND_MAX names, and the next follows only if this one helped."""

_T = TypeVar("_T")
_P = ParamSpec("_P")


class ReconcileError(SplError):
    """The sets of a pair could not be compared."""


@dataclass(slots=True)
class Comparison:
    """What one comparison found: names with our namespace for them, "" if that is not known."""

    here: Mapping[str, int] = field(default_factory=dict)
    there: Mapping[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """What the peer offers and we lack."""
    lacking: dict[str, str] = field(default_factory=dict)
    """What we offer and the peer lacks."""
    nameless: int = 0
    """Of `missing`, projections that have no id to ask by."""
    beyond: int = 0
    """Held by one side only and not offered by it."""
    more: bool = False

    @property
    def names(self) -> int:
        """How many names there are to repair."""
        return len(self.missing) + len(self.lacking) + self.nameless

    def by_namespace(self) -> list[dict[str, object]]:
        """Return the counts of each namespace."""
        missing, lacking = Counter(self.missing.values()), Counter(self.lacking.values())
        return [
            {
                "namespace": ns,
                "here_records": self.here.get(ns, 0),
                "there_records": self.there.get(ns, 0),
                "missing_here": missing[ns],
                "missing_there": lacking[ns],
            }
            for ns in sorted({*self.here, *self.there, *missing, *lacking})
        ]


@dataclass(slots=True)
class Effort:
    """What a verification cost, in questions and the bytes of their bodies, and what its repairs brought."""

    questions: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    fetched: int = 0
    pushed: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """What both sides of a pair still differ in, and what finding that out, and repairing it, took."""

    pair_id: str
    found: Comparison
    effort: Effort
    refused: Mapping[str, str]
    """Id -> code of what was refused here."""
    repaired: bool
    ms: int

    def to_json(self) -> dict[str, object]:
        """Return the report for people and programs."""
        found, effort = self.found, self.effort
        missing = [
            {"id": id_, "namespace": ns, **({"refused": self.refused[id_]} if id_ in self.refused else {})}
            for id_, ns in sorted(found.missing.items())
        ]
        repaired = {"fetched_records": effort.fetched, "pushed_records": effort.pushed}
        return {
            "object": "verify",
            "pair_id": self.pair_id,
            "equal": not (found.names or found.more),
            "complete": not found.more,
            "namespaces": found.by_namespace(),
            "missing_here": missing[:FOUND_MAX],
            "missing_there": [{"id": id_, "namespace": ns} for id_, ns in sorted(found.lacking.items())][:FOUND_MAX],
            "nameless_here": found.nameless,
            "beyond_offer": found.beyond,
            "repaired": repaired if self.repaired else None,
            "questions": effort.questions,
            "sent_bytes": effort.sent_bytes,
            "received_bytes": effort.received_bytes,
            "ms": self.ms,
        }


@dataclass(slots=True)
class _Asker:
    """What the questions of one peer cost us."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    paid_s: float = 0.0
    """Loop time at which a steady share of the thread has paid for all answers so far."""


class Reconcile:
    """Comparisons of all pairs, asked for and answered."""

    def __init__(
        self, ingest: Ingest, feed: Feed, push: Push, sync: Sync, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.writer = ingest.writer
        self.limits = ingest.limits
        self._ingest, self._feed, self._push, self._sync = ingest, feed, push, sync
        self._now_ms, self._random_bytes = now_ms, random_bytes
        # One thread for all: whatever peers ask, their comparisons take no more than a share of one processor.
        self._pool = ThreadPoolExecutor(1, "spl-reconcile")
        self._kept: dict[str, tuple[Holdings, asyncio.TimerHandle]] = {}
        self._driving: dict[str, asyncio.Lock] = {}
        self._askers: dict[str, _Asker] = {}

    def close(self) -> None:
        """Forget all fingerprints and end the thread."""
        for _, timer in self._kept.values():
            timer.cancel()
        self._kept.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def terms(self, pair_id: str) -> PairTerms:
        """Return what a pair shares now; raise as `Source.pair` does for one that we do not serve."""
        return terms_of(self._feed.source, pair_id)

    # -- what a peer asks

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
            reply, took_s = await self._in_thread(timed, self._keep(pair_id, shared, question.key))
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

    async def _in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

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

    # -- what our operator asks

    async def verify(self, pair_id: str, *, repair: bool = False) -> Verification:
        """Compare both directions, with `repair` until it helps no more, and return what differs in the end.

        Raises SyncError, ReachError, FeedError, FingerprintError "answer-malformed", SplError "timeout".
        """
        started_ms, effort = self._now_ms(), Effort()
        async with self._driving.setdefault(pair_id, asyncio.Lock()):
            found = await self._compare(pair_id, effort)
            for _ in range(REPAIRS_MAX if repair else 0):
                if not found.names:
                    break
                before, helped = found.names, await self._repair(pair_id, found, effort)
                found = await self._compare(pair_id, effort)
                if not helped and found.names >= before:
                    break
        refused = await asyncio.to_thread(self._ledger, pair_id)
        fields = {"missing_here": len(found.missing), "missing_there": len(found.lacking), "fetched": effort.fetched}
        took_ms = self._now_ms() - started_ms
        log.info(**event("verify.done", pair=pair_id, **fields, pushed=effort.pushed, ms=took_ms))
        return Verification(pair_id, found, effort, refused, repair, took_ms)

    async def mend(self, pair_id: str) -> int:
        """Fetch what the peer offers and we lack, whatever our cursor says; return how many records were new."""
        effort = Effort()
        async with self._driving.setdefault(pair_id, asyncio.Lock()):
            for _ in range(REPAIRS_MAX):
                found = await self._compare(pair_id, effort)
                before = effort.fetched
                await self._fetch(pair_id, found, effort)
                if not found.more or effort.fetched == before:
                    break
        return effort.fetched

    # -- comparing

    async def _compare(self, pair_id: str, effort: Effort) -> Comparison:
        """Return what differs now; raise ReconcileError "timeout" after a quarter of an hour."""
        try:
            async with asyncio.timeout(VERIFY_S):
                return await self._compared(pair_id, effort)
        except TimeoutError as exc:
            raise ReconcileError("timeout", f"the comparison took over {VERIFY_S:.0f} s") from exc

    async def _compared(self, pair_id: str, effort: Effort) -> Comparison:
        key = self._random_bytes(fingerprint.START_BYTES).hex()
        held = Holdings(self.writer.store, self.terms(pair_id), key)
        # Both sides compute at the same time.
        ready = asyncio.get_running_loop().run_in_executor(self._pool, held.prepare)
        try:
            return await self._searched(pair_id, held, ready, effort)
        finally:
            # An error may come before the scan's end, and a scan without a reader would delay the answers to peers.
            ready.cancel()
            held.abandon()

    async def _searched(
        self, pair_id: str, held: Holdings, ready: "asyncio.Future[None]", effort: Effort
    ) -> Comparison:
        searches = {name: Search(FOUND_MAX) for name in OPPOSITE}
        counts: dict[str, Mapping[str, int]] = {}
        while ranges := {name: asked for name, search in searches.items() if (asked := search.next())}:
            answer = await self._ask(pair_id, Question(held.key, ranges=ranges), effort)
            counts = counts or dict(answer.counts)
            await ready
            for name, asked in ranges.items():
                theirs = answer.parts[name]
                ours = await self._in_thread(held.parts, OPPOSITE[name], asked, theirs)
                searches[name].take(asked, theirs, ours)
        found = Comparison(more=any(search.more for search in searches.values()))
        found.here = Counter(held.counts(HELD)) + Counter(held.counts(SEEN))
        found.there = Counter(counts[HELD]) + Counter(counts[SHOWN])
        await self._name_missing(pair_id, held, searches, effort, found)
        await self._name_lacking(pair_id, held, searches, effort, found)
        return found

    async def _name_missing(
        self, pair_id: str, held: Holdings, searches: Mapping[str, Search], effort: Effort, found: Comparison
    ) -> None:
        """Learn the ids of what only the peer has, and leave out what arrived here meanwhile."""
        found.beyond += len(searches[SEEN].theirs)
        named: dict[str, str] = {}
        for name in (HELD, SHOWN):
            starts = sorted(start.hex() for start in searches[name].theirs)
            for at in range(0, len(starts), NAMES_MAX):
                asked = tuple(starts[at : at + NAMES_MAX])
                answer = await self._ask(pair_id, Question(held.key, names={name: asked}), effort)
                named.update(answer.names[name].values())
                if name == SHOWN:
                    found.nameless += len(asked) - len(answer.names[name])
        found.missing = await asyncio.to_thread(self._absent, pair_id, named)

    def _absent(self, pair_id: str, named: Mapping[str, str]) -> dict[str, str]:
        """Return those names that we hold neither as a record nor as the pair's projection.

        The peer states the namespaces; whether one that it may not write into holds a record must not show.
        """
        index, views = self.writer.store.index, self.writer.views
        pair = views.pairs[pair_id]
        inbound = consent.inbound(pair, consent.book_of(views.consents, pair), views.namespaces)
        ours = {each.ns for each in inbound.values()}
        lost = {id_: ns for id_, ns in named.items() if ns not in ours or index.find(id_, ns) is None}
        return {
            id_: ns for id_, ns in lost.items() if not any(index.has_projection(pair_id, level, id_) for level in NAMES)
        }

    async def _name_lacking(
        self, pair_id: str, held: Holdings, searches: Mapping[str, Search], effort: Effort, found: Comparison
    ) -> None:
        """Ask the peer which of the names that only we seem to have it really lacks."""
        found.beyond += len(searches[SHOWN].ours)
        offered: dict[str, tuple[str, str]] = {}
        for name in (HELD, SHOWN):
            marked, unknown = await asyncio.to_thread(self._marked, held, name, searches[OPPOSITE[name]].ours)
            offered.update(marked)
            found.beyond += unknown
        ids = sorted(offered)
        for at in range(0, len(ids), NAMES_MAX):
            have = {id_: offered[id_][0] for id_ in ids[at : at + NAMES_MAX]}
            answer = await self._ask(pair_id, Question(held.key, have=have), effort)
            found.lacking.update((id_, offered[id_][1]) for id_ in answer.lacking)

    def _marked(self, held: Holdings, name: str, starts: Iterable[bytes]) -> tuple[dict[str, tuple[str, str]], int]:
        """Return (mark, namespace) of those records that we offer, by id, and how many we only hold."""
        marked, unknown = dict[str, tuple[str, str]](), 0
        for start in starts:
            item = held.find(name, start.hex())
            if item is None or (name == HELD and not held.terms.offers(self.writer.store, item[0])):
                unknown += 1
                continue
            row, id_ = item
            marked[id_] = fingerprint.mark_of(held.key, self.writer.store.payloads([row])[0]), row.ns
        return marked, unknown

    async def _ask(self, pair_id: str, question: Question, effort: Effort) -> FingerprintAnswer:
        body = question.encode()
        backoff = Backoff(self._random_bytes, 1.0, PAY_WAIT_S)
        while True:
            try:
                reply = await self._send(pair_id, FINGERPRINTS, body)
                break
            except SyncError as exc:
                if exc.code != "rate-limited" or backoff.attempt == ASK_AGAIN_MAX:
                    raise
                await asyncio.sleep(backoff.failed())
        effort.questions += 1
        effort.sent_bytes += len(body)
        effort.received_bytes += len(reply)
        return await asyncio.to_thread(fingerprint.answer_of, reply, question)

    async def _send(self, pair_id: str, target: str, body: bytes) -> bytes:
        """Return the peer's answer to a question; raise SyncError, ReachError."""
        try:
            return (await self._ingest.peers.ask(self._ingest.pair(pair_id), "POST", target, body)).body
        except SyncError as exc:
            self._ingest.reaches.refused(pair_id, exc)
            raise

    # -- repairing

    async def _repair(self, pair_id: str, found: Comparison, effort: Effort) -> bool:
        """Bring both sides what they lack; return whether records were new to one of them."""
        before = effort.fetched + effort.pushed
        await self._fetch(pair_id, found, effort)
        ids = list(found.lacking)
        for at in range(0, len(ids), self.limits.fetch_ids):
            effort.pushed += await self._push.give(pair_id, ids[at : at + self.limits.fetch_ids])
        return effort.fetched + effort.pushed > before

    async def _fetch(self, pair_id: str, found: Comparison, effort: Effort) -> None:
        """Ask for what we lack by id; what the gate refuses goes into the ledger, once."""
        ids, refused = list(found.missing), dict[str, Verdict]()
        while ids:
            asked, ids = ids[: self.limits.fetch_ids], ids[self.limits.fetch_ids :]
            reply = await self._send(pair_id, RECORDS, json.dumps({"ids": asked}).encode())
            item = await asyncio.to_thread(page.decode, reply, len(asked), fetched=True)
            taken = await self._ingest.take_again(self._ingest.pair(pair_id), item)
            effort.fetched += taken.fresh
            refused.update((verdict.id, verdict) for verdict in taken.refused)
            if item.has_more:
                got = {claimed_id(value) for value in item.values}
                ids = [id_ for id_ in asked if id_ not in got] + ids if got & set(asked) else ids
        if refused:
            held = await asyncio.to_thread(self._ledger, pair_id)
            lines = [Refuse(pair_id, id_, verdict.code) for id_, verdict in refused.items() if id_ not in held]
            await asyncio.wrap_future(self.writer.submit(lines))
        if found.nameless:
            # From L2 on a projection has a name that only its source can resolve: it cannot be asked for.
            effort.fetched += await self._sync.pull(pair_id, resync=True)

    def _ledger(self, pair_id: str) -> dict[str, str]:
        """Return id -> code of what was refused of a pair."""
        store = self.writer.store
        rows = store.index.after(refusals_of(pair_id), 0, self.limits.refused_per_pair)
        return {entry["id"]: entry["code"] for entry in map(json.loads, store.payloads(rows))}
