"""Proof that two sides hold the same: what both should have is compared by range fingerprints, and repaired.

One side drives: it asks the other for fingerprints of ever smaller ranges until it knows every name that only one of
them has (core/record/fingerprint.py), then for the whole names of what it lacks, and last which of its own records the
other lacks.  So one comparison serves both directions, over connections of the side that drives; `fingerprints.py`
answers on the other side.  Lists of ids were rejected: two equal sets of 100,000 records cost one question of 0.4 kB,
and a difference costs in proportion to itself.

Repair fetches by id, through `ingest` like everything else, and pushes what the peer lacks.  Names that differ are
looked up once more at the end: what arrived meanwhile is no difference.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from ...core import consent, when
from ...core.backoff import Backoff
from ...core.errors import SplError
from ...core.event import event
from ...core.gate import Verdict
from ...core.record import fingerprint
from ...core.record.fingerprint import HELD, NAMES_MAX, OPPOSITE, SEEN, SHOWN, FingerprintAnswer, Question, Search
from ...core.record.levels import NAMES
from ...core.value import Json, dataclass, field, replace
from ...home.tables.lists import by_namespace, refusals_of
from ..ingest import Ingest
from ..peer import FINGERPRINTS, INTO, WITHHELD, SyncError, is_too_much
from ..push import Push
from ..schedule import Sync
from .fingerprints import PAY_WAIT_S, Fingerprints, ReconcileError
from .holdings import Holdings

log = logging.getLogger("spl.federation")

ASK_AGAIN_MAX: Final = 20
"""Repetitions of a question that the peer puts off: some 90 s of waiting, in which our share of its thread recovers."""
VERIFY_S: Final = 900.0
"""Of one comparison; a peer that needs longer only keeps us asking."""
FOUND_MAX: Final = 10_000
"""Names found in one comparison, some megabytes here; whatever lies beyond is found by the next comparison."""
READ_ROWS: Final = 500
ASKED_PER_RECORD: Final = 16
"""Ranges and names in a question for each record that the way carries at a time: one takes 0.7 kB at most."""
REPAIR_S: Final = 3600.0
"""Of one repair with all its comparisons, fetches and pushes: a peer may make each of them last."""
REPAIRS_MAX: Final = 1000
"""Comparisons in one repair: each finds at most FOUND_MAX names, and the next follows only if this one helped."""


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
    """Held by a side that does not offer it now; the other may hold it as well."""
    more: bool = False

    @property
    def names(self) -> int:
        """How many names there are to repair."""
        return len(self.missing) + len(self.lacking) + self.nameless

    def by_namespace(self) -> list[Json]:
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
    at_ms: int
    """The moment that the verdict is about, in Unix ms."""
    ms: int

    def to_json(self) -> Json:
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
            "as_of": when.text_of(self.at_ms),
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


@asynccontextmanager
async def _within(limit_s: float, what: str, hint: str = "") -> AsyncIterator[None]:
    """End the block after so many seconds with ReconcileError "timeout"; one that is raised inside passes."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as exc:
        raise ReconcileError("timeout", f"{what} took over {limit_s:.0f} s", hint=hint) from exc


def _in_time() -> AbstractAsyncContextManager[None]:
    return _within(REPAIR_S, "the repair", "what came is kept; the next repair goes on from there")


class Reconcile:
    """Comparisons of all pairs, driven from this side."""

    def __init__(
        self, ingest: Ingest, fingerprints: Fingerprints, push: Push, sync: Sync, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.writer, self.vault = ingest.writer, ingest.peers.vault
        self.limits = ingest.limits
        self._ingest, self._fingerprints, self._push, self._sync = ingest, fingerprints, push, sync
        self._now_ms, self._random_bytes = now_ms, random_bytes
        self._driving: dict[str, asyncio.Lock] = {}

    async def verify(self, pair_id: str, *, repair: bool = False, accept_retired: bool = False) -> Verification:
        """Compare both directions, with `repair` until it helps no more, and return what differs in the end.

        The verdict is about the moment at which the last comparison began.  What is written while a repair runs is no
        part of it, or the repair of a busy pair would not end.  With `accept_retired` the repair takes what our own
        retired keys signed, too.

        Raises SyncError, ReachError, FeedError, FingerprintError "answer-malformed", SplError "timeout".
        """
        started_ms, effort = self._now_ms(), Effort()
        await self._read_all(pair_id)
        at_ms = started_ms
        async with self._driving.setdefault(pair_id, asyncio.Lock()), _in_time():
            found = await self._compare(pair_id, effort)
            for _ in range(REPAIRS_MAX if repair else 0):
                if not found.names:
                    break
                if accept_retired:
                    self._ingest.regaining.add(pair_id)
                try:
                    helped = await self._repair(pair_id, found, effort)
                finally:
                    self._ingest.regaining.discard(pair_id)
                if not (found.more or found.nameless):
                    await self._look_again(pair_id, found, effort)
                    break
                was_whole, at_ms = not found.more, self._now_ms()
                found = await self._compare(pair_id, effort)
                if was_whole or not helped:
                    break
        if not (found.names or found.more):
            await self._fingerprints.feed.forget_set_back(pair_id)
        refused = await asyncio.to_thread(self._ledger, pair_id)
        fields = {"missing_here": len(found.missing), "missing_there": len(found.lacking), "fetched": effort.fetched}
        took_ms = self._now_ms() - started_ms
        log.info(**event("verify.done", pair=pair_id, **fields, pushed=effort.pushed, ms=took_ms))
        return Verification(pair_id, found, effort, refused, repair, at_ms, took_ms)

    async def _read_all(self, pair_id: str) -> None:
        """Read all records of the pair's namespaces: what is damaged is then in none of our sets."""
        store, terms = self.writer.store, self._fingerprints.terms(pair_id)
        for ns in {*terms.scope.shares, *terms.received}:
            seq = 0
            while rows := await asyncio.to_thread(store.index.after, by_namespace(ns), seq, READ_ROWS):
                await asyncio.to_thread(store.payloads, rows)
                seq = rows[-1].seq

    async def mend(self, pair_id: str, *, give: bool = False, nameless: int = 0) -> tuple[Comparison, Effort]:
        """Fetch what the peer offers and we can take in; return what still differs, and what it cost.

        With `give` the peer is pushed what it lacks.  What the gate refused before is left to the ledger, which knows
        no projections without an id.  All is read for these, but only if there are more of them than `nameless`, the
        number that did not come when all was read before.
        """
        effort = Effort()
        async with self._driving.setdefault(pair_id, asyncio.Lock()), _in_time():
            for _ in range(REPAIRS_MAX):
                found = await self._compare(pair_id, effort)
                self._push.withheld.settle(pair_id, found.lacking)
                await self._push.withheld.save(pair_id)
                before, reads_all = effort.fetched + effort.pushed, found.nameless > nameless
                takable = await asyncio.to_thread(self._takable, pair_id, found)
                await self._fetch(pair_id, takable if reads_all else replace(takable, nameless=0), effort)
                if give:
                    await self._give(pair_id, found, effort)
                nameless = max(nameless, found.nameless)
                if not reads_all and (not found.more or effort.fetched + effort.pushed == before):
                    break
            found.missing = await asyncio.to_thread(self._absent, pair_id, found.missing)
        return found, effort

    def _takable(self, pair_id: str, found: Comparison) -> Comparison:
        """Return the comparison with only those missing records that we take in and did not refuse."""
        ours, refused = self._inbound_names(pair_id), self._ledger(pair_id)
        missing = found.missing.items()
        return replace(
            found,
            missing={id_: ns for id_, ns in missing if ns in ours and refused.get(id_, WITHHELD) == WITHHELD},
        )

    def lacks(self, pair_id: str, found: Comparison) -> bool:
        """Return whether the peer offers something that we take in and do not hold, after `mend`; for a thread."""
        return bool(found.more or found.nameless or self._takable(pair_id, found).missing)

    # -- comparing

    async def _compare(self, pair_id: str, effort: Effort) -> Comparison:
        """Return what differs now; raise ReconcileError "timeout" after a quarter of an hour."""
        async with _within(VERIFY_S, "the comparison"):
            return await self._compared(pair_id, effort)

    async def _compared(self, pair_id: str, effort: Effort) -> Comparison:
        key = self._random_bytes(fingerprint.START_BYTES).hex()
        held = Holdings(self.writer.store, self._fingerprints.terms(pair_id), key)
        # Both sides compute at the same time.
        ready = self._fingerprints.in_thread(held.prepare)
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
                ours = await self._fingerprints.in_thread(held.parts, OPPOSITE[name], asked, theirs)
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
        index, ours = self.writer.store.index, self._inbound_names(pair_id)
        lost = {id_: ns for id_, ns in named.items() if ns not in ours or index.find(id_, ns) is None}
        return {
            id_: ns for id_, ns in lost.items() if not any(index.has_projection(pair_id, level, id_) for level in NAMES)
        }

    def _inbound_names(self, pair_id: str) -> set[str]:
        """Return our namespaces into which the pair may bring records now."""
        views = self.writer.views
        pair = views.pairs[pair_id]
        return {
            each.ns
            for each in consent.inbound(pair, consent.grants_of(views.consents, pair), views.namespaces).values()
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
            payload = None if item is None else self.writer.store.payload(item[0])
            if item is None or payload is None or (name == HELD and not held.terms.offers(self.writer.store, item[0])):
                unknown += 1
                continue
            row, id_ = item
            marked[id_] = fingerprint.mark_of(held.key, payload), row.ns
        return marked, unknown

    async def _look_again(self, pair_id: str, found: Comparison, effort: Effort) -> None:
        """Leave in a comparison only what one of the sides still lacks."""
        found.missing = await asyncio.to_thread(self._absent, pair_id, found.missing)
        key = self._random_bytes(fingerprint.START_BYTES).hex()
        marks = await asyncio.to_thread(self._marks, key, found.lacking)
        lacking = dict[str, str]()
        ids = sorted(marks)
        for at in range(0, len(ids), NAMES_MAX):
            have = {id_: marks[id_] for id_ in ids[at : at + NAMES_MAX]}
            answer = await self._ask(pair_id, Question(key, have=have), effort)
            lacking.update((id_, found.lacking[id_]) for id_ in answer.lacking)
        found.lacking = lacking

    def _marks(self, key: str, held: Mapping[str, str]) -> dict[str, str]:
        """Return the marks of records that we hold, by id; `held` is id -> our namespace."""
        store = self.writer.store
        rows = {id_: row for id_, ns in held.items() if (row := store.index.find(id_, ns)) is not None}
        names = {row.seq: id_ for id_, row in rows.items()}
        return {names[row.seq]: fingerprint.mark_of(key, raw) for row, raw in store.read(list(rows.values()))}

    async def _ask(self, pair_id: str, question: Question, effort: Effort) -> FingerprintAnswer:
        """Return the answer to a question, which is asked in smaller ones if the way does not carry it."""
        portion = self._ingest.peers.portion(pair_id, INTO)
        while (size := -(-question.size // ASKED_PER_RECORD)) <= portion.count(size):
            try:
                reply = await self._send(pair_id, question.encode(), size, effort)
            except SplError as exc:
                if size == 1 or not is_too_much(exc):
                    raise
            else:
                portion.carried(size, size, 0.0)
                return await asyncio.to_thread(fingerprint.answer_of, reply, question)
        one, two = question.halves()
        return fingerprint.joined(await self._ask(pair_id, one, effort), await self._ask(pair_id, two, effort))

    async def _send(self, pair_id: str, body: bytes, size: int, effort: Effort) -> bytes:
        """Return the peer's answer to a question that counts as `size` records; raise SyncError, ReachError."""
        backoff, peers = Backoff(self._random_bytes, 1.0, PAY_WAIT_S), self._ingest.peers
        while True:
            try:
                reply, _ = await peers.carry(self._ingest.pair(pair_id), INTO, size, "POST", FINGERPRINTS, body)
                break
            except SyncError as exc:
                self._ingest.reaches.refused(pair_id, exc)
                if exc.code != "rate-limited" or backoff.attempt == ASK_AGAIN_MAX:
                    raise
                await asyncio.sleep(backoff.failed())
        effort.questions += 1
        effort.sent_bytes += len(body)
        effort.received_bytes += len(reply.body)
        return reply.body

    # -- repairing

    async def _repair(self, pair_id: str, found: Comparison, effort: Effort) -> bool:
        """Bring both sides what they lack; return whether records were new to one of them."""
        before = effort.fetched + effort.pushed
        await self._fetch(pair_id, found, effort)
        await self._give(pair_id, found, effort)
        return effort.fetched + effort.pushed > before

    async def _give(self, pair_id: str, found: Comparison, effort: Effort) -> None:
        """Push what the peer lacks."""
        ids = list(found.lacking)
        for at in range(0, len(ids), self.limits.fetch_ids):
            effort.pushed += await self._push.give(pair_id, ids[at : at + self.limits.fetch_ids])

    async def _fetch(self, pair_id: str, found: Comparison, effort: Effort) -> None:
        """Ask for what we lack by id; what the gate refuses goes into the ledger, once."""
        refused, withheld = dict[str, Verdict](), list[str]()
        known = frozenset(self._ingest.withheld(pair_id))  # last, as they may fail once more
        ids = sorted(found.missing, key=lambda id_: (id_ in known, id_))
        async for item in self._sync.puller.fetch(self._ingest.pair(pair_id), ids, withheld):
            pair = self._ingest.pair(pair_id)
            taken = await self._ingest.keep_again(pair, await self._ingest.judge(pair, item))
            effort.fetched += taken.fresh
            refused.update((verdict.id, verdict) for verdict in taken.refused)
        if refused or withheld:
            held = await asyncio.to_thread(self._ledger, pair_id)
            codes = {id_: verdict.code for id_, verdict in refused.items()} | dict.fromkeys(withheld, WITHHELD)
            news = {id_: code for id_, code in codes.items() if held.get(id_) != code}
            await self._ingest.refuse(self._ingest.pair(pair_id), news)
        if found.nameless:
            # From L2 on a projection has a name that only its source can resolve: it cannot be asked for.
            effort.fetched += await self._sync.pull(pair_id, resync=True)

    def _ledger(self, pair_id: str) -> dict[str, str]:
        """Return id -> last code of what was refused of a pair."""
        store = self.writer.store
        rows = store.index.after(refusals_of(pair_id), 0, self.limits.refused_per_pair)
        return {entry["id"]: entry["code"] for entry in map(json.loads, store.payloads(rows)) if entry["id"]}
