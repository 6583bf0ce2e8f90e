"""The one door for what a peer sends: pages and events are judged here, stored in one write, and nowhere else.

    page -> drop known ids -> gate (form, scope, signature) -> learn the chains of unknown signers -> writer -> Taken

Pull, follow, push and repair hand pages in and get one value back.  The gate goes by the folds of this moment: grants
of either side and archived namespaces count with the next record.  Records and the position that they lead to are one
submission, so the position never runs ahead; a crash at any point repeats at most pages whose ids are known.  A record
that the gate refuses goes into the ledger in the same write and holds up nothing.

Known ids are dropped before any signature is checked: a page that comes again costs an index lookup a record.  The
signatures of a larger page are shared by two threads, for libsodium releases the GIL; a batch has one, so one thread
judges it; a single record is judged on the loop, because the way through a thread costs five times its 55 us.
Judging and storing are two steps, so that a stream judges the next lot while the last is being written.

What the ledger holds is asked for again: `ledger.py`.  A pair brings in so many bytes a day and no more: `budget.py`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from ..core import consent
from ..core.consent import Inbound
from ..core.errors import SplError
from ..core.gate import ALWAYS_MS, CHAIN_UNKNOWN, SCOPE_VIOLATION, Gate, Roots, Trust, Verdict
from ..core.identity.did import Chain, chain_from_json, is_instance_did
from ..core.identity.pins import KIND_CHAIN, Pins, pin_body
from ..core.limits import KIB, Limits
from ..core.pair.pair import Pair
from ..core.pair.state import known, refusal_code, resuming
from ..core.presence import ANSWER_S
from ..core.record import namespace, page
from ..core.record.levels import NAMES, STRUCTURAL
from ..core.record.page import Page, PushBody
from ..core.value import dataclass, field, replace
from ..home.logs import CountedLog
from ..home.views import THREAD_PAIRS
from ..home.writer import Writer
from ..home.writes import Arrive, DayBytes, Item, Outcome, Own, Projected, Refuse, SavedPosition, size_of
from .budget import IntakeBudget, fitting, marked, saved_sums
from .ledger import RefusedLedger
from .peer import CHAINS, PeerClient, SyncError, is_unanswered
from .reach import Reaches

log = logging.getLogger("spl.federation")

_T = TypeVar("_T")
_Row = tuple[Any, Any]
"""What stands for a record, and for its namespace: a peer's word."""

WORKERS: Final = 2
ON_LOOP_RECORDS: Final = 8
ON_LOOP_BYTES: Final = 16 * KIB
GATE_AGE_MS: Final = 60_000
"""A gate is made again after a minute, because retired keys end with time."""
SPOILT_CODES: Final = frozenset({"record-id", "record-signature"})
"""Codes of records whose bytes may have changed on the way, so that they are asked for once more."""
CHAINS_S: Final = 60.0
"""All chain requests of a page end within this; the rest is asked for again later, as after a cut."""
UNSHOWN_MAX: Final = 64
"""Failed chain requests allowed per reading or heartbeat; a peer that invents signers cannot keep us asking."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A page with its verdicts, the pins of chains learnt for it and the marks of forks."""

    page: Page
    rules: Gate = field(repr=False)
    """By which it was judged; what was judged by others than those of the moment is judged again when it is stored."""
    verdicts: Sequence[Verdict]
    pins: Sequence[Own] = ()
    forks: Sequence[Own] = ()
    later: bool = False
    """What is refused may be sound soon: the peer has not received a grant that we lowered, or a chain was cut off."""
    unshown: bool = False
    """The peer could not show the chain of a signer."""
    chains: Mapping[str, Any] | None = None
    """The chains of signers that came with the page."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a page."""

    fresh: int = 0
    """How many records were new."""
    refused: tuple[Verdict, ...] = ()
    clock: int = 0
    """Records in scope up to the position, as the source counts them."""
    learnt: bool = False
    """A chain was pinned."""
    later: bool = False
    """As in Judged."""
    wanted: tuple[str, ...] = ()
    """Ids refused earlier that the peer may push again, for they may be sound now."""


@dataclass(slots=True)
class _Memory:
    """What judging one pair remembers from page to page."""

    unshown: set[str] = field(default_factory=set)
    """Signers whose chains the peer could not show since the last pull began."""
    received_ms: int | None = None
    placing: SavedPosition | None = None
    """The newest position that is on its way to the disk."""


@dataclass(slots=True)
class _Learnt:
    """Key chains that the peer showed: those to pin, and records of those that contradict a pinned one."""

    chains: dict[str, Chain] = field(default_factory=dict)
    forks: list[Own] = field(default_factory=list)
    unshown: bool = False
    cut: bool = False
    """At least one chain request failed; at least one of those on its way."""


class Ingest:
    """Judges and stores what the peers of all pairs send."""

    def __init__(
        self, writer: Writer, peers: PeerClient, reaches: Reaches, limits: Limits, *, now_ms: Callable[[], int],
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.writer = writer
        self.peers = peers
        self.reaches = reaches
        self.limits = limits
        self.pool = ThreadPoolExecutor(WORKERS, "spl-verify")
        self.lines = CountedLog(log)
        """What a peer can repeat is logged through this, by the other services too."""
        self.refused = RefusedLedger(writer, limits, self.pool)
        saved = saved_sums(writer, limits.intake_day_bytes, now_ms())
        self.budget = IntakeBudget(writer, limits.intake_day_bytes, saved, steady_s)
        self.regaining: set[str] = set()  # from these the operator just now takes what our own retired keys signed
        self._now_ms = now_ms
        self._roots = Roots(limits.verified_roots)
        self._crossings: tuple[tuple[object, object], Mapping[tuple[str, str], str]] = ((None, None), {})
        self.memories: dict[str, _Memory] = {}
        self._gates: tuple[tuple[object, ...], dict[str, tuple[Pair, Gate]]] = ((None,) * 6, {})
        """Those made of the present values, by pair; one that kept the values of its own day kept all pairs of it."""

    def close(self) -> None:
        """End the verifying threads."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    # -- the state of a pair

    def pair(self, pair_id: str) -> Pair:
        """Return the pair if it may sync now.

        Raises PairError "pair-unknown", SyncError "pair-paused", "pair-revoked", "pair-state-conflict".
        """
        pair = known(self.writer.views.pairs, pair_id)
        if not pair.sync_allowed:
            raise SyncError(refusal_code(pair), f"{pair_id} is {pair.state.detail or pair.phase}", hint=resuming(pair))
        return pair

    def since(self, pair: Pair) -> str:
        """Return the saved cursor, "" at the start; a pair that superseded another goes on from its position."""
        positions = self.writer.views.positions
        place = positions.get(pair.pair_id) or positions.get(pair.inherits)
        return place.cursor if place is not None else ""

    def inbound(self, pair: Pair) -> Mapping[str, Inbound]:
        """Return what the pair may bring in now, by the peer's namespace."""
        return self._gate(pair).inbound

    def withheld(self, pair_id: str) -> tuple[str, ...]:
        """Return the ids of what the way from the peer does not carry; none while the pair may not sync."""
        pair = self.writer.views.pairs.get(pair_id)
        if not self.refused.holds(pair_id) or pair is None or not pair.sync_allowed or not self.peers.vault.identity:
            return ()
        return self.refused.withheld(pair_id, self.inbound(pair))

    def received_ms(self, pair_id: str) -> int | None:
        """Return when the peer last pushed to us; None if it did not."""
        return (self.memories.get(pair_id) or _Memory()).received_ms

    # -- what peers send

    def begin(self, pair_id: str) -> None:
        """Start a reading: clear the signers whose chains the peer lacked, as it may know them now."""
        self._memory(pair_id).unshown.clear()
        self.refused.begin(pair_id)

    async def take(self, pair: Pair, item: Page, *, moves: bool, base: str | None = None) -> Taken:
        """Judge a page and store what is new and sound of it; `moves`, `base`: as in `keep`."""
        return await self.keep(pair, await self.judge(pair, item), moves=moves, base=base)

    async def keep_again(self, pair: Pair, judged: Judged) -> Taken:
        """Store what is sound now of records asked for again; a page with some that is refused again counts whole."""
        judged = await self._judged_now(pair, judged)
        fresh = await self._store(pair, [*judged.forks, *judged.pins, *_arrivals(pair, judged.verdicts)])
        if judged.later or judged.pins:
            self.refused.owe(pair.pair_id)
        if refused := tuple(verdict for verdict in judged.verdicts if verdict.code):  # the ledger has them already
            self.budget.charge(pair.pair_id, judged.page.size)
        return Taken(fresh, refused, learnt=bool(judged.pins), later=judged.later)

    async def refuse(self, pair: Pair, codes: Mapping[str, str]) -> None:
        """Keep id -> code of what was refused of a repair in the ledger; raises as `take`."""
        await self._store(pair, [Refuse(pair.pair_id, id_, code) for id_, code in codes.items()])

    async def take_pushed(self, pair: Pair, pushed: PushBody) -> Taken:
        """Store a page that the peer pushed; nothing is asked of the peer, which may be out of reach."""
        self.refused.begin(pair.pair_id)
        judged = await self.judge(pair, pushed.page, pushed.chains)
        if pushed.again:
            taken = await self.keep_again(pair, judged)
            self.refused.answered(pair.pair_id)
        else:
            taken = await self.keep(pair, judged, moves=True, base=pushed.since)
        self._memory(pair.pair_id).received_ms = self._now_ms()
        self.reaches.heard(pair.pair_id, pushed.page.view)
        wanted = await self.refused.wanted(pair.pair_id, self.inbound(pair))
        return replace(taken, wanted=wanted)

    async def judge(self, pair: Pair, item: Page, chains: Mapping[str, Any] | None = None) -> Judged:
        """Return the verdicts over what is new in a page.

        `chains` are key chains of relayed signers by DID, as decoded, that came with it; without, the peer is asked.
        """
        pair = self.writer.views.pairs.get(pair.pair_id, pair)
        rules, rows = self._gate(pair), list(zip(item.values, item.ns, strict=True))
        if item.count <= ON_LOOP_RECORDS and item.size <= ON_LOOP_BYTES:
            new = self._judge_new(pair.pair_id, rules, rows)
        else:
            new = await self._in_threads(partial(self._judge_new, pair.pair_id, rules), rows)
        verdicts = [verdict for _, verdict in new]
        ahead = any(_is_ahead(rules, verdict) for verdict in verdicts)
        named = (verdict.by for verdict in verdicts if verdict.code == CHAIN_UNKNOWN)
        signers = dict.fromkeys(filter(is_instance_did, named))
        found = await self._learn_all(pair, list(signers), chains) if signers else _Learnt()
        if not found.chains:
            return Judged(item, rules, verdicts, (), found.forks, ahead or found.cut, found.unshown, chains)
        places = [place for place, verdict in enumerate(verdicts) if verdict.code == CHAIN_UNKNOWN]
        wiser = self._gate(pair, found.chains)
        rows = [new[place][0] for place in places]
        again = await self._in_threads(lambda part: [wiser.judge(*row) for row in part], rows)
        for place, verdict in zip(places, again, strict=True):
            verdicts[place] = verdict
        vouching = {verdict.by for verdict in again if not verdict.code}
        pins = [_pin(pair, chain) for did, chain in found.chains.items() if did in vouching]
        return Judged(item, rules, verdicts, pins, found.forks, ahead or found.cut, found.unshown, chains)

    async def _judged_now(self, pair: Pair, judged: Judged) -> Judged:
        """Return a judged page as it stands by the rules of this moment: a signer may be blocked since, or a grant."""
        is_now = judged.rules is self._gate(self.pair(pair.pair_id))
        return judged if is_now else await self.judge(pair, judged.page, judged.chains)

    async def keep(
        self, pair: Pair, judged: Judged, *, moves: bool, base: str | None = None, beside: Sequence[SavedPosition] = ()
    ) -> Taken:
        """Store a judged page in one write; `moves`: with the position that it leads to, if to any.

        `base` is the position at which this reading stands.  If another one, such as a push, saved a position since,
        this page's is saved only if the source counts more records up to it: a cursor is sealed, and tells no order.
        `beside`: positions elsewhere that this page leads to.
        """
        judged = await self._judged_now(pair, judged)
        item, pair_id = judged.page, pair.pair_id
        refused = tuple(verdict for verdict in judged.verdicts if verdict.code)
        items: list[Item] = [*judged.forks, *judged.pins, *_arrivals(pair, judged.verdicts)]
        items += [Refuse(pair_id, verdict.id, verdict.code, _name_of(verdict.ns)) for verdict in refused]
        if item.withheld:
            items += await self.refused.passed(pair_id, self.inbound(pair), item.withheld)
            self.lines.warning("sync.withheld", pair_id, records=",".join(item.withheld))
        memory, place = self._memory(pair_id), self.writer.views.positions.get(pair_id)
        cursor, count = (place.cursor, place.count) if place is not None else (self.since(pair), 0)
        if memory.placing is not None:
            cursor, count = memory.placing.cursor, memory.placing.count
        clock = item.view.get("clock", count + item.count)
        # The same cursor with another count: the source counts what was repaired beside it, and we did not.
        new = item.next_cursor and (place is None or (cursor, count) != (item.next_cursor, clock))
        placing: SavedPosition | None = None
        if moves and new and (base is None or base == cursor or clock > count):
            placing = memory.placing = SavedPosition(pair_id, item.next_cursor, clock)
            items.append(placing)
        items += beside
        try:
            fresh = await self._store(pair, items)
        finally:
            if memory.placing is placing:  # not one that came later, or that another page still saves
                memory.placing = None
        if refused:
            codes = sorted({verdict.code for verdict in refused})
            self.lines.warning("sync.refused", pair_id, records=len(refused), codes=",".join(codes))
        learnt, spoilt = bool(judged.pins), any(verdict.code in SPOILT_CODES for verdict in refused)
        if judged.later or judged.unshown or spoilt or (learnt and self.refused.holds(pair_id)):
            self.refused.owe(pair_id)
        return Taken(fresh, refused, clock, learnt, judged.later)

    # -- judging

    def _judge_new(self, pair_id: str, rules: Gate, rows: Sequence[_Row]) -> list[tuple[_Row, Verdict]]:
        """Return each row that we hold neither from the same voucher nor as this very projection, with its verdict.

        Only the id is believed here, and only to store nothing.  A record is known only in the namespace that it would
        enter: whether another one holds it must not show.
        """
        return [(row, rules.judge(*row)) for row in rows if not self._is_held(pair_id, rules.inbound, *row)]

    def _is_held(self, pair_id: str, inbound: Mapping[str, Inbound], value: Any, ns: Any) -> bool:
        id_ = value.get("id") if isinstance(value, dict) else None
        allowed = inbound.get(ns) if isinstance(ns, str) else None
        if not isinstance(id_, str) or len(id_) != 64 or allowed is None:
            return False
        mark, sig = value.get("projection"), value.get("sig")
        if isinstance(mark, dict):
            return self._holds_projection(pair_id, id_, allowed.ns, mark.get("level"))
        row = self.writer.store.index.find(id_, allowed.ns)
        return row is not None and isinstance(sig, dict) and row.voucher == sig.get("by")

    def _holds_projection(self, pair_id: str, id_: str, ns: str, level: object) -> bool:
        """Return whether a projection adds nothing: it is held already, or its record is."""
        if not isinstance(level, str) or level not in NAMES:
            return False
        index = self.writer.store.index
        if index.has_projection(pair_id, level, id_):
            return True
        return level == NAMES[STRUCTURAL] and index.find(id_, ns) is not None

    async def _in_threads(self, judge: Callable[[Sequence[_Row]], list[_T]], rows: Sequence[_Row]) -> list[_T]:
        """Return what is found of the rows: from two threads if there are signatures to share, which need no lock."""
        loop, alone = asyncio.get_running_loop(), sum(map(_is_signed_alone, rows))
        size = max(1, -(-len(rows) // WORKERS) if alone > ON_LOOP_RECORDS else len(rows))
        parts = [loop.run_in_executor(self.pool, judge, rows[at : at + size]) for at in range(0, len(rows), size)]
        return [each for part in parts for each in await part]

    def _gate(self, pair: Pair, learnt: Mapping[str, Chain] = MappingProxyType({})) -> Gate:
        """Return the rules of a pair now.  They are kept until what they are made of is replaced."""
        own, views = self.peers.identity().chain, self.writer.views
        now_ms, store = self.writer.now_ms(), self.writer.store
        lacks = pair.pair_id in self.regaining or store.lost or store.index.reader.left_out
        regains_ms = ALWAYS_MS if lacks else self.peers.vault.regains_ms
        made_of = (views.pins, views.blocked, own, views.consents, views.namespaces, views.pairs)
        gates = self._gates
        if any(one is not other for one, other in zip(gates[0], made_of, strict=True)):
            gates = self._gates = made_of, {}
        kept_for, kept = gates[1].get(pair.pair_id, (None, None))
        is_known = kept is not None and kept_for is pair and kept.trust.regains_ms == regains_ms and not learnt
        if kept is not None and is_known and now_ms < kept.trust.now_ms + GATE_AGE_MS:
            return kept
        pins = views.pins
        for chain in learnt.values():
            pins = pins.seen(chain, pair.pair_id)
        rules = Gate(
            pair_id=pair.pair_id,
            inbound=consent.inbound(pair, consent.grants_of(views.consents, pair), views.namespaces),
            actors=frozenset(pair.actors),
            trust=Trust(own, pair.peer_did, pins, views.blocked, now_ms, regains_ms=regains_ms),
            crossings=self._crossed(),
            registry=views.namespaces,
            roots=self._roots,
            limits=self.limits,
        )
        if not learnt:
            gates[1][pair.pair_id] = pair, rules
        return rules

    def _crossed(self) -> Mapping[tuple[str, str], str]:
        """Return `consent.crossings` of all pairs, made once for as long as pairs and grants stay as they are."""
        views = self.writer.views
        made_of = (views.pairs, views.consents)
        if not all(one is other for one, other in zip(self._crossings[0], made_of, strict=True)):
            self._crossings = made_of, consent.crossings(views.pairs.values(), views.consents)
        return self._crossings[1]

    async def _learn_all(self, pair: Pair, signers: Sequence[str], chains: Mapping[str, Any] | None) -> _Learnt:
        """Return what can be learnt of these signers; all are asked for, as one left over stays refused for long."""
        memory, found, pins = self._memory(pair.pair_id), _Learnt(), self.writer.views.pins
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + CHAINS_S
        for did in signers:
            if chains is None and now_s() >= until_s:
                found.cut = True
                break
            if chains is None and (did in memory.unshown or len(memory.unshown) >= UNSHOWN_MAX):
                continue
            try:
                chain = await self._shown(pair, did, chains, pins)
            except SplError as exc:
                self.lines.warning("sync.chain_refused", pair.pair_id, exc.code, signer=did)
                chain, found.cut = None, found.cut or is_unanswered(exc)
            code = pins.code_of(chain) if chain is not None else CHAIN_UNKNOWN
            if chain is not None and not code:
                found.chains[did] = chain
                pins = pins.seen(chain, pair.pair_id)
                continue
            if chain is not None:
                self.lines.warning("sync.chain_refused", pair.pair_id, code, signer=did)
                if pins.proves_fork(chain):  # its record marks the DID from now on, after each start, too
                    found.forks.append(_pin(pair, chain))
            if chains is None:
                memory.unshown.add(did)
                found.unshown = True
        return found

    async def _shown(self, pair: Pair, did: str, chains: Mapping[str, Any] | None, pins: Pins) -> Chain | None:
        """Return the verified key chain of a signer as the peer knows it, None if it is of no use.  Raises SplError."""
        if pins.is_forked(did) or (pins.chain(did) is None and not pins.has_room(pair.pair_id, self.limits)):
            return None
        value = None if chains is None else chains.get(did)
        if chains is None:
            reply = await self.peers.ask(pair, "GET", f"{CHAINS}?{urlencode({'did': did})}", timeout_s=ANSWER_S)
            value = page.decode_many(reply.body[: self.limits.manifest_bytes])
        chain = chain_from_json(value, self.limits)
        return chain if chain.did == did else None

    # -- storing

    def renew_intake(self, pair_id: str) -> None:
        """Let the pair bring in a whole day's bytes again, by our operator's word, which a restart does not forget."""
        self.budget.renew(pair_id)
        with suppress(SplError):  # a full queue: then the word counts until the next start
            self.writer.submit([DayBytes(pair_id, 0)])

    async def _store(self, pair: Pair, items: Sequence[Item]) -> int:
        """Write it all at once; return how many records were new.

        Nothing of a pair that was paused or revoked meanwhile, or that brought in a day's bytes.  What the rest of the
        day does not hold is left out, with the position: IntakeError "intake-paused" once the others are stored.
        """
        pair_id = pair.pair_id
        self.pair(pair_id)
        if not items:
            return 0
        self.budget.check(pair_id)
        sent, size = items, sum(map(size_of, items))
        if size > (left := self.budget.left(pair_id)):
            sent = fitting(items, left)
            size = sum(map(size_of, sent))
        added = self.budget.charge(pair_id, size)
        try:
            outcomes = await self._submitted(marked(pair_id, sent, self.budget.brought(pair_id)))
        except SplError:
            self.budget.refund(pair_id, added)  # a full disk must not use up the day by being tried again
            raise
        if len(sent) < len(items):
            self.budget.use_up(pair_id)
            self.budget.check(pair_id)
        return sum(outcome.fresh for outcome, item in zip(outcomes, sent, strict=False) if isinstance(item, Arrive))

    async def _submitted(self, items: Sequence[Item]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Outcome]] = loop.create_future()
        self.writer.submit_posted([(items, answer)], loop.call_soon_threadsafe)
        return await answer

    def _memory(self, pair_id: str) -> _Memory:
        return self.memories.setdefault(pair_id, _Memory())


def _is_signed_alone(row: _Row) -> bool:
    """Return whether a record brings a signature of its own; of a batch one is checked for all."""
    sig = row[0].get("sig") if isinstance(row[0], dict) else None
    return not (isinstance(sig, dict) and "batch" in sig)


def _pin(pair: Pair, chain: Chain) -> Own:
    return Own(THREAD_PAIRS, KIND_CHAIN, pin_body(chain, via=pair.pair_id))


def _arrivals(pair: Pair, verdicts: Sequence[Verdict]) -> list[Item]:
    """Return what was accepted, for the writer: records as records, projections as projections."""
    found: list[Item] = []
    for verdict in verdicts:
        if verdict.envelope is not None and not verdict.code:
            found.append(Arrive(verdict.envelope, verdict.ns, pair.pair_id))
        elif verdict.projection is not None and not verdict.code:
            found.append(Projected(verdict.projection, verdict.ns, pair.pair_id))
    return found


def _name_of(ns: str) -> str:
    """Return a namespace as the peer named it, for the ledger; "" if no namespace can have that name."""
    with suppress(SplError):
        return namespace.check_name(ns)
    return ""


def _is_ahead(rules: Gate, verdict: Verdict) -> bool:
    """Return whether a record came in full that we take at L1, so that the peer gives it again once it knows."""
    allowed, is_whole = rules.inbound.get(verdict.ns), verdict.envelope is not None
    return allowed is not None and allowed.wants_us and is_whole and verdict.code == SCOPE_VIOLATION
