"""The doctor: gathers facts about the daemon and its pairs, and reports what is wrong and what to do.

`attention` uses the facts at hand and asks no peer, so `status` may call it often.  `examine` goes the way to the peer
step by step and asks the peer for its own view, which takes up to `limits.check_s` a question.  Both judge by the same
catalogue; only the facts differ.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.identity.did import short_of, words
from ..core.pair.pair import Pair
from ..core.rules import locks_out_handshake
from ..core.value import Json
from ..core.version import PROTOCOL
from ..home.config import Settings
from ..home.home import Home
from ..pairing.maintenance import END_ACCEPTED
from ..pairing.service import Pairing
from ..sync.changes import Feed
from ..sync.schedule import Sync
from . import catalogue, checks, gather
from .catalogue import Finding
from .facts import Facts, nothing, replace
from .gather import PairContext
from .health import HealthSampler
from .overview import PairOverview, stall
from .peer_check import PeerCheck


class Doctor:
    """The doctor of one daemon."""

    def __init__(
        self, home: Home, settings: Settings, pairing: Pairing, sync: Sync, feed: Feed, health: HealthSampler,
        peer: PeerCheck, *, now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self.home, self.settings, self.pairing, self.sync, self.feed = home, settings, pairing, sync, feed
        self.health, self.peer = health, peer
        self._now_ms = now_ms
        self.started_ms = now_ms()
        """When the daemon started."""

    # -- from facts at hand

    def attention(self) -> list[Finding]:
        """Return what an operator should act on, from facts at hand."""
        found = self.own_problems()
        for pair in self.watched():
            found += self._of_pair(pair, self.overview(pair))
        return found

    def _of_pair(self, pair: Pair, view: PairOverview) -> list[Finding]:
        return [item.of(pair_id=pair.pair_id) for item in view.findings]

    def watched(self) -> list[Pair]:
        """Return the pairs that `status` looks at, without those whose end the operator accepted."""
        pairs, now_ms = self.home.views.pairs, self._now_ms()
        watched = [pair for pair in pairs.values() if gather.is_watched(pair, pairs, now_ms)]
        accepted = self.home.vault.names(END_ACCEPTED) if any(pair.ended for pair in watched) else []
        return [pair for pair in watched if END_ACCEPTED + pair.pair_id not in accepted]

    def own_problems(self) -> list[Finding]:
        """Return what needs an action of the daemon itself, from facts at hand."""
        return catalogue.problems(catalogue.findings(self._daemon_facts()))

    def overview(self, pair: Pair) -> PairOverview:
        """Return one pair at this moment, from facts at hand."""
        context, place = self._context(pair), self.home.views.positions.get(pair.pair_id)
        known = self._with_pair(nothing(self.home.config.limits), pair, context)
        found = catalogue.findings(known)
        moved_ms = place.at_ms if place is not None else None
        return PairOverview(pair, context, tuple(catalogue.problems(found)), stall(found), moved_ms)

    def _daemon_facts(self) -> Facts:
        home = self.home
        known = gather.daemon_facts(home.store, home.vault, self.health, home.config.limits, self._now_ms())
        slow = gather.adapters_slow(home.writer.listeners.summary())
        return replace(
            known, locking_rule=locks_out_handshake(home.views.rules), adapters_slow=slow,
            auth_off=not self.settings.now.auth_required, config_error=self.settings.fault,
        )  # fmt: skip

    def _context(self, pair: Pair) -> PairContext:
        status, place = self.sync.status(pair.pair_id), self.home.views.positions.get(pair.pair_id)
        at_ms, now_ms, newer = status.last_sync_ms, self._now_ms(), self.pairing.pairs.newer.get(pair.pair_id)
        return PairContext(
            status,
            self.feed.offered(pair.pair_id),
            trouble=self.pairing.handshakes.trouble.get(pair.pair_id),
            troubled_s=self.pairing.handshakes.troubled_s(pair.pair_id),
            reach=self.feed.source.reaches.word(pair.pair_id),
            unmoved=place is not None and at_ms is not None and place.at_ms < self.started_ms < at_ms,
            uptime_s=(now_ms - self.started_ms) / 1000,
            now_ms=now_ms,
            own_url=self.pairing.published.url,
            newer_url=newer.url if newer is not None else "",
            stranger=self.pairing.maintenance.stranger(pair.pair_id),
            revoked=self._revoked_token(pair),
        )

    def _with_pair(self, known: Facts, pair: Pair, context: PairContext) -> Facts:
        known = gather.with_pair(known, pair, self.health, context)
        return gather.with_consent(known, pair, self.pairing.handover.grants.of(pair), self.home.views.namespaces)

    def _revoked_token(self, pair: Pair) -> str:
        """Return the id of our token for the peer of a live pair, if our operator revoked it; else ""."""
        ours = pair.issued_by_us if pair.live else None
        token = self.home.views.tokens.get(ours.token_id) if ours is not None else None
        return token.token_id if token is not None and token.revoked else ""

    # -- by asking

    async def examine(self, pair: Pair | None, beside: Sequence[Finding] = ()) -> Json:
        """Return the report on one pair, or on the daemon: checks, problems, and how many checks they explain.

        Without a pair, `pairs` lists those that `status` looks at, each with its problems from the facts at hand.
        What was found `beside` them, as of sinks and engines, is among the problems.
        """
        known = await asyncio.to_thread(gather.with_config, self._daemon_facts(), self.home.path)
        known = self._with_ourselves(known)
        if pair is None:
            known = await self.peer.ask_ourselves(known)
            report = report_of(checks.OURSELVES, known, beside)
            return {**report, "pairs": [self._line(item) for item in self.watched()]}
        # A rule that refuses pair requests keeps strangers out, and no pair from syncing.
        known = self._with_pair(replace(known, locking_rule=None), pair, self._context(pair))
        if not pair.ended:
            known = await self.peer.ask(pair, known)
        return {**report_of(checks.PAIR, known, beside), "pair_id": pair.pair_id, "peer_did": pair.peer_did}

    def _line(self, pair: Pair) -> Json:
        view = self.overview(pair)
        at_ms = view.reading.last_sync_ms
        wrong = [item.to_json() for item in self._of_pair(pair, view)]
        return {
            "pair_id": pair.pair_id, "peer_did": pair.peer_did, "state": str(pair.phase),
            "confirmed": checks.ago(None if at_ms is None else (view.context.now_ms - at_ms) / 1000), "problems": wrong,
        }  # fmt: skip

    def _with_ourselves(self, known: Facts) -> Facts:
        count, identity = len(self.sync.running), self.home.vault.identity
        known = replace(known, tasks_count=count, protocol_ours=f"{PROTOCOL}..{PROTOCOL}")
        if identity is None:
            return known
        return replace(known, did=short_of(identity.did), words=words(identity.chain.present))


def report_of(rows: tuple[checks.Check, ...], known: Facts, beside: Sequence[Finding] = ()) -> Json:
    """Return {object, pair_id, checks, problems, explained} of a set of checks over facts."""
    found = catalogue.findings(known)
    lines = checks.lines(rows, known, found)
    return {
        "object": "doctor",
        "pair_id": None,
        "checks": lines,
        "problems": [item.to_json() for item in (*catalogue.problems(found), *beside)],
        "explained": sum(line["mark"] == checks.SKIP for line in lines),
    }


def examine_home(path: Path) -> Json:
    """Return the report on a home whose daemon does not answer."""
    return report_of(checks.DAEMON, gather.home_facts(path))
