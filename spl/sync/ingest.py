"""Judging what a peer sent: what is new goes through the gate, and the chains of signers not yet known are learnt.

The gate goes by the folds of this moment: grants of either side and archived namespaces count with the next record.

Signatures are checked in threads; libsodium lets go of the interpreter meanwhile.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode

from ..core import consent
from ..core.consent import Inbound
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import CHAIN_UNKNOWN, SCOPE_VIOLATION, Gate, Roots, Trust, Verdict
from ..core.identity.did import Chain, chain_from_json
from ..core.identity.pins import FORK, KIND_CHAIN, pin_body
from ..core.limits import KIB, Limits
from ..core.pair.pair import Pair
from ..core.record import page
from ..core.record.levels import NAMES, STRUCTURAL
from ..core.record.page import Page
from ..home.views import THREAD_PAIRS
from ..home.writer import Writer
from ..home.writes import Own
from .peer import CHAINS, PeerClient

log = logging.getLogger("spl.federation")


WORKERS: Final = 2
CHAINS_PER_PAGE_MAX: Final = 16
GATE_AGE_MS: Final = 60_000
"""A gate is made anew after a minute, because retired keys end with time."""
AT_ONCE_RECORDS: Final = 8
AT_ONCE_BYTES: Final = 16 * KIB
"""So few are judged on the loop: a check is 55 us, and the way through a thread under load five times that."""


@dataclass(slots=True)
class VerifyState:
    """What judging remembers from page to page."""

    strangers: set[str] = field(default_factory=set)
    """Signers whose chains the peer could not show in this pull."""
    learnt: bool = False
    """A chain was pinned in this pull."""
    lacking: bool = False
    """Records stand in the ledger that the peer may give so that they are taken: a chain it did not show, a level."""
    ahead: bool = False
    """Records came in full by a grant of ours that we lowered: the peer does not hold our word yet."""
    shown: Mapping[str, Any] | None = None
    """Chains, as decoded, that came with a push; nothing is asked of who pushes, as it may be out of reach."""


class Verifier:
    """Judges for all pairs."""

    def __init__(self, writer: Writer, peers: PeerClient, limits: Limits) -> None:
        self.writer = writer
        self.limits = limits
        self._peers = peers
        self._roots = Roots(limits.verified_roots)
        self._gates: dict[str, tuple[tuple[object, ...], Gate]] = {}
        self._crossings: tuple[tuple[object, object], Mapping[tuple[str, str], str]] = ((None, None), {})
        self.pool = ThreadPoolExecutor(WORKERS, "spl-verify")

    def close(self) -> None:
        """End the verifying threads."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def inlets(self, pair: Pair) -> Mapping[str, Inbound]:
        """Return what the pair may bring in now, by the peer's namespace."""
        return self._gate(pair).inlets

    async def judge(self, pair: Pair, state: VerifyState, item: Page) -> tuple[list[Verdict], list[Own]]:
        """Return verdicts over what is new in a page, and the pins of chains learnt for it."""
        loop = asyncio.get_running_loop()
        rules = self._gate(pair)
        if item.count <= AT_ONCE_RECORDS and item.size <= AT_ONCE_BYTES:
            rows = self._unknown(pair.pair_id, rules.inlets, item)
            verdicts = [rules.judge(value, ns) for value, ns in rows]
        else:
            rows = await loop.run_in_executor(self.pool, self._unknown, pair.pair_id, rules.inlets, item)
            verdicts = await self._judge_rows(rules, rows)
        strangers = dict.fromkeys(verdict.by for verdict in verdicts if verdict.code == CHAIN_UNKNOWN)
        learnt: dict[str, Chain] = {}
        forks: list[Own] = []
        for did in [did for did in strangers if did not in state.strangers][:CHAINS_PER_PAGE_MAX]:
            chain = await self._shown(pair, did, state.shown)
            code = self.writer.views.pins.code_of(chain) if chain is not None else CHAIN_UNKNOWN
            if chain is not None and not code:
                learnt[did] = chain
                continue
            if chain is not None:
                log.warning(**event("sync.chain_refused", pair=pair.pair_id, code=code, signer=did))
            if chain is not None and code == FORK:
                # The record of the fork marks the DID from now on, after each start, too.
                forks.append(Own(THREAD_PAIRS, KIND_CHAIN, pin_body(chain, via=pair.pair_id)))
            if len(state.strangers) < self.limits.chains_count:
                state.strangers.add(did)
                state.lacking = True
        if any(_is_ahead(rules, verdict) for verdict in verdicts):
            state.lacking = state.ahead = True
        if not learnt:
            return verdicts, forks
        places = [place for place, verdict in enumerate(verdicts) if verdict.code == CHAIN_UNKNOWN]
        again = await self._judge_rows(self._gate(pair, learnt), [rows[place] for place in places])
        for place, verdict in zip(places, again, strict=True):
            verdicts[place] = verdict
        vouching = {verdict.by for verdict in again if not verdict.code}
        bodies = [pin_body(chain, via=pair.pair_id) for did, chain in learnt.items() if did in vouching]
        state.learnt = state.learnt or bool(bodies)
        return verdicts, forks + [Own(THREAD_PAIRS, KIND_CHAIN, body) for body in bodies]

    def _unknown(self, pair_id: str, inlets: Mapping[str, Inbound], item: Page) -> list[tuple[Any, Any]]:
        """Return (value, ns) of what we hold neither from the same voucher nor as this very projection.

        Nothing but the id is believed here, and only to store nothing.  A record is known only in the namespace that
        it would enter: whether another one holds it must not show.
        """
        found = []
        for value, ns in zip(item.values, item.ns, strict=True):
            id_ = value.get("id") if isinstance(value, dict) else None
            inlet = inlets.get(ns) if isinstance(ns, str) else None
            if not isinstance(id_, str) or len(id_) != 64 or inlet is None:
                found.append((value, ns))
                continue
            mark = value.get("projection")
            sig = value.get("sig")
            if isinstance(mark, dict):
                held = self._is_shown(pair_id, id_, inlet.ns, mark.get("level"))
            else:
                row = self.writer.store.index.find(id_, inlet.ns)
                held = row is not None and isinstance(sig, dict) and row.voucher == sig.get("by")
            if not held:
                found.append((value, ns))
        return found

    def _is_shown(self, pair_id: str, id_: str, ns: str, level: object) -> bool:
        """Tell whether a projection adds nothing: it is held already, or its record is."""
        if not isinstance(level, str) or level not in NAMES:
            return False
        index = self.writer.store.index
        if index.has_projection(pair_id, level, id_):
            return True
        return level == NAMES[STRUCTURAL] and index.find(id_, ns) is not None

    async def _judge_rows(self, rules: Gate, rows: Sequence[tuple[Any, Any]]) -> list[Verdict]:
        """Return a verdict for each row; the signature checks let go of the interpreter, so two threads share them."""
        loop = asyncio.get_running_loop()

        def judge(part: Sequence[tuple[Any, Any]]) -> list[Verdict]:
            return [rules.judge(value, ns) for value, ns in part]

        size = max(1, -(-len(rows) // WORKERS))
        parts = [
            loop.run_in_executor(self.pool, judge, rows[start : start + size]) for start in range(0, len(rows), size)
        ]
        return [verdict for part in parts for verdict in await part]

    def _gate(self, pair: Pair, learnt: Mapping[str, Chain] = MappingProxyType({})) -> Gate:
        """Return the rules of a pair now.  They are kept until what they are made of is replaced."""
        own, views = self._peers.identity().chain, self.writer.views
        now_ms = self.writer.now_ms()
        made_of = (pair, views.pins, views.blocked, own, views.consents, views.namespaces, views.pairs)
        kept = self._gates.get(pair.pair_id)
        if kept is not None and not learnt and now_ms < kept[1].trust.now_ms + GATE_AGE_MS:
            made_before, rules = kept
            if all(one is other for one, other in zip(made_before, made_of, strict=True)):
                return rules
        pins = views.pins
        for chain in learnt.values():
            pins = pins.seen(chain, pair.pair_id)
        rules = Gate(
            pair_id=pair.pair_id,
            inlets=consent.inbound(pair, consent.book_of(views.consents, pair), views.namespaces),
            actors=frozenset(pair.actors),
            trust=Trust(own, pair.peer_did, pins, views.blocked, now_ms),
            crossings=self._crossed(),
            roots=self._roots,
            limits=self.limits,
        )
        if not learnt:
            self._gates[pair.pair_id] = made_of, rules
        return rules

    def _crossed(self) -> Mapping[tuple[str, str], str]:
        """Return `consent.crossings` of all pairs, made once for as long as pairs and grants stay as they are."""
        views = self.writer.views
        made_of = (views.pairs, views.consents)
        if not all(one is other for one, other in zip(self._crossings[0], made_of, strict=True)):
            self._crossings = made_of, consent.crossings(views.pairs.values(), views.consents)
        return self._crossings[1]

    async def _shown(self, pair: Pair, did: str, shown: Mapping[str, Any] | None) -> Chain | None:
        """Return the verified key chain of a signer as the peer knows it, None if it shows none that holds.

        The peer is asked for it, unless `shown` holds what it pushed.
        """
        pins = self.writer.views.pins
        if pins.is_forked(did) or (pins.chain(did) is None and not pins.has_room(pair.pair_id, self.limits)):
            return None
        try:
            if shown is None:
                reply = await self._peers.ask(pair, "GET", f"{CHAINS}?{urlencode({'did': did})}")
                value = page.decode_many(reply.body[: self.limits.manifest_bytes])
            else:
                value = shown.get(did)
            chain = chain_from_json(value, self.limits)
        except SplError as exc:
            log.warning(**event("sync.chain_refused", pair=pair.pair_id, code=exc.code, signer=did))
            return None
        return chain if chain.did == did else None


def _is_ahead(rules: Gate, verdict: Verdict) -> bool:
    """Tell whether a record came in full that we take at L1, so that the peer gives it anew when it holds our word."""
    if verdict.code != SCOPE_VIOLATION or verdict.envelope is None:
        return False
    inlet = rules.inlets.get(verdict.ns)
    return inlet is not None and inlet.wants_us
