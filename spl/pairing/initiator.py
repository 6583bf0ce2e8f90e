"""The asking side: what we ask of a peer, what its signed answers mean, and the progress that callers see.

The state of the pair says which message is next, so a restart goes on where the crash was:

    Requested  step 1, POST …/pair            a repeated request is answered "seen", and then polled
    Waiting    step 2, POST …/<id>/poll       until granted (step 3), rejected or expired
    Answered   step 4, POST …/<id>/confirm    until taken

The numbers are the steps of core/pair/handshake.py.  `Initiator` blocks on the disk and runs on the thread of the
steps; `HandshakeLoop` runs on the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, Final

from ..core import when
from ..core.backoff import Backoff
from ..core.errors import CODES, SplError, cli_code
from ..core.event import event
from ..core.identity import message
from ..core.identity.did import label_of, words
from ..core.identity.manifest import PAIR_PATH, Manifest
from ..core.pair import handshake
from ..core.pair.handshake import HandshakeError, Terms
from ..core.pair.modes import POLLING
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import STARTS, SUPERSEDED, Answered, Asked, Phase, Requested, Revoked, Waiting, maps_to_json
from ..core.pair.steps import Effect, End, ManifestChange, Park
from ..core.value import dataclass, field, replace
from ..home.config import Settings
from ..net.address import ReachError
from ..sync.peer import REJECTED_401, WHY_401
from ..sync.schedule import Sync
from ..sync.supervise import wait
from .exchange import Exchange, SignedRequest, forked
from .machine import unconfirmed
from .responder import SERVER_FAULT
from .statements import PeerStatements
from .stepper import Stepper
from .tokens import Renewal

log = logging.getLogger("spl.federation")

BEGIN_AGAIN_MAX: Final = 3
"""New requests to a peer that forgot ours; without a bound, one that forgets each would be asked for ever."""
LOST: Final = "lost"
"""The reason of a pair that ended because the peer lost our request or its answer; a new pair replaces it."""
PASSING: Final = frozenset({8, 9})
"""Exit codes of errors that the next attempt may not meet."""
UNSIGNED: Final = frozenset({"message-signature", "answer-malformed", "peer-4xx", "peer-5xx", "foreign-answer"})
"""Codes of answers that say nothing in the name of the peer that we know."""
POLL_S: Final = 2.0
POLL_SLOWER_AFTER: Final = 16
"""After so many polls the pause between them doubles, and again after as many more."""
POLL_MAX_S: Final = 60.0
BACKOFF_BASE_S: Final = 1.0
WAITING_EVERY_S: Final = 1.0
_SEEN: Final = "pair-request-seen"
_TAKEN: Final = "pair-id-taken"


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What the operator said to `spl federation pair`; `maps` are (ours, theirs)."""

    namespaces: tuple[str, ...] = ()
    maps: tuple[tuple[str, str], ...] = ()
    strict: bool = True
    auto_generate_identity: bool = False
    expect_did: str = ""
    expect_key: str = ""
    backfill: bool = False
    from_now: bool = False
    actors: tuple[str, ...] = ()
    mode: str = POLLING
    wait_ms: int = 60_000

    @property
    def settles(self) -> bool:
        """Whether the options say what a pair shares, which a pair that is there has settled."""
        return bool(self.namespaces or self.maps or self.backfill or self.from_now or self.actors)


def exists_hint(pair_id: str) -> str:
    """Return what an operator may have meant who asks for a pair that is there."""
    settings = f"other namespaces: spl federation grant {pair_id} --namespace NAME"
    return f"spl sync {pair_id}; if that fails: spl federation refresh {pair_id}; {settings}"


@dataclass(frozen=True, slots=True)
class Learned:
    """What a signed answer changed; `poll`: the peer holds the request already, so ask where it stands."""

    pair: Pair
    effects: tuple[Effect, ...] = ()
    poll: bool = False
    fault: SplError | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the answer."""


class Initiator:
    """Our messages about pairs and what the answers mean."""

    def __init__(self, statements: PeerStatements, renewal: Renewal, settings: Settings) -> None:
        self.pairs, self._statements, self._renewal, self._settings = statements.pairs, statements, renewal, settings
        self._begun: dict[str, int] = {}
        self._skew_ms: dict[str, int] = {}
        """Pair -> how far the peer's clock is ahead of ours, if --no-strict uses it."""

    def terms(self, options: PairOptions) -> Terms:
        """Return what the options ask for, but for the start that an earlier pair gives.

        Raises PairError "usage", NamespaceError "namespace-rejected" for a namespace that is not usable here,
        HandshakeError or NamespaceError "bad-field".
        """
        if options.backfill and options.from_now:
            raise PairError("usage", "--backfill and --from-now contradict each other")
        return handshake.propose(
            self.pairs.writer.views.namespaces, options.namespaces, options.maps, mode=options.mode,
            start="beginning" if options.backfill else "present" if options.from_now else "", starts=("", *STARTS),
            limits=self.pairs.limits,
        )  # fmt: skip

    def begin(self, peer: Manifest, url: str, terms: Terms, options: PairOptions) -> str:
        """Return the id of the pair to follow: begun now, on its way already, or the peer's request that ours approves.

        Raises PairError "pair-exists" for a peer with a live pair, "chain-fork" for one of two unsettled key chains.
        """
        if not options.expect_key and self.pairs.writer.views.pins.is_forked(peer.did):
            raise forked(self.pairs, peer.did, url)
        open_pairs = self.pairs.of_peer(peer.did)
        for pair in open_pairs:
            if pair.phase is not Phase.ESTABLISHING:
                text = f"{pair.pair_id} with {label_of(peer.did)} is {pair.phase}"
                raise PairError("pair-exists", text, hint=exists_hint(pair.pair_id), pair_id=pair.pair_id)
        for pair in open_pairs:
            if pair.initiator and peer.raw != pair.manifest:
                self.pairs.take(pair, ManifestChange(peer.raw, pinned=bool(options.expect_key)))
            if pair.initiator or unconfirmed(pair):
                return pair.pair_id
        met = self.pairs.meet(peer.did, terms)
        if met is not None and unconfirmed(met):
            return met.pair_id
        if not terms.start and self.pairs.parted(peer.did):
            terms = replace(terms, start="present")
        self._begun.pop(peer.did, None)
        begun = self.pairs.begin(
            peer,
            url,
            terms,
            strict=options.strict,
            actors=options.actors,
            poll_interval_ms=self._settings.now.federation_poll_interval_ms,
        )
        return begun.pair_id

    def next_request(
        self, pair: Pair, *, poll: bool = False, token_id: str = "", renew: bool = False, mode: str = ""
    ) -> SignedRequest:
        """Return the message that the pair's state calls for; `poll` asks instead where the pair stands.

        A poll also asks about the token that we hold, or the one of `token_id`; with `renew` it asks the peer to take
        a new one from us, and with `mode` to fetch from us in that mode.
        """
        own, nonce, now_ms = self.pairs.identity, self.pairs.nonce(), self.now_ms(pair)
        base = f"{pair.url}{PAIR_PATH}"
        if isinstance(pair.state, Requested) and not poll:  # step 1
            manifest_ = self.pairs.published.federation_manifest()
            fields = handshake.request_fields(manifest_, own.did, pair.proposal, pair.peer_did, now_ms)
            return SignedRequest(base, "pair-request", fields)
        said: dict[str, object] = {"manifest": self.pairs.published.federation_manifest()}
        if isinstance(pair.state, Answered) and not poll:  # step 4
            fields = handshake.word_fields(pair, own.did, now_ms, nonce, **said)
            return SignedRequest(f"{base}/{pair.pair_id}/confirm", "pair-confirm", fields)
        if pair.ended:
            fields = handshake.word_fields(pair, own.did, now_ms, nonce, reason=pair.reason, **said)
            return SignedRequest(f"{base}/{pair.pair_id}/notify-revoke", "notify-revoke", fields)
        if type(pair.state) in ESTABLISHED:  # step 2, also later: where does the pair stand with the peer?
            said["token_id"] = token_id or self._renewal.held(pair)
        if renew:
            said["renew"] = True
        if mode:
            said["mode"] = mode
        fields = handshake.poll_fields(pair, own.did, now_ms, nonce, **said)
        return SignedRequest(f"{base}/{pair.pair_id}/poll", "pair-poll", fields)

    def request_for(self, pair: Pair, purpose: str, **said: object) -> SignedRequest:
        """Return the message of purpose "renew", "consent" or "log"; `said` are its members beside our manifest."""
        said["manifest"] = self.pairs.published.federation_manifest()
        fields = handshake.word_fields(pair, self.pairs.identity.did, self.now_ms(pair), self.pairs.nonce(), **said)
        return SignedRequest(f"{pair.url}{PAIR_PATH}/{pair.pair_id}/{purpose}", purpose, fields)

    def now_ms(self, pair: Pair) -> int:
        """Return our time, or the peer's if --no-strict uses it."""
        return self.pairs.now_ms() + self._skew_ms.get(pair.pair_id, 0)

    def learn(self, pair_id: str, fields: Mapping[str, Any]) -> Learned:
        """Return what the peer's signed answer makes of the pair.

        Raises PairError "pair-unknown" when it forgot the pair more than 3 times.
        """
        pair = self.pairs.get(pair_id)
        assert pair is not None
        state = fields["state"]
        if pair.ended:
            return Learned(pair)
        if pair.phase is not Phase.ESTABLISHING or not pair.initiator:
            said_ms, reason = message.issued_at_ms(fields), handshake.reason_of(fields)
            return Learned(*self._statements.learn(pair, state, said_ms, reason))
        if state == "refused":
            return self._refused(pair, str(fields.get("code", "")), fields)
        if state in handshake.ENDED:
            return self._over(pair, state, handshake.reason_of(fields))
        if state == "unknown":
            return Learned(self._again(pair))
        if isinstance(pair.state, Answered):  # step 4b
            return Learned(*self.pairs.confirm(pair)) if state in ("active", "paused") else Learned(pair)
        if state == "approved":  # step 3, in the answer to step 1 or 2: steps 3c and 3d
            return Learned(self.pairs.grant(pair, fields.get("answer") or {}))
        if state == "pending" and isinstance(pair.state, Requested):
            return Learned(self.pairs.take(pair, Park())[0])
        # The peer confirmed a pair that we lost, as after a restored copy of our home.
        return Learned(self._again(pair) if state in ("active", "paused") else pair)

    def news(self, pair: Pair, reported: set[str], synced: Mapping[str, object] | None) -> list[dict[str, object]]:
        """Return the progress that the pair's state shows beyond what is in `reported`.

        `synced` is what its first sync brought, None while that runs.
        """
        steps: list[dict[str, object]] = []
        if isinstance(pair.state, Requested) or pair.ended:
            return steps
        waits = isinstance(pair.state, Waiting | Asked)
        if "posted" not in reported:
            names = list(pair.proposal.namespaces)
            steps.append({"step": "posted", "status": 202 if waits else 200, "namespaces": names})
        if waits or pair.issued_to_us is None:
            return steps
        if "token" not in reported:
            steps.append({"step": "token", "scopes": list(pair.issued_to_us.scopes)})
            steps.append({"step": "recorded", "pair_id": pair.pair_id})
        if pair.phase is not Phase.ESTABLISHING and synced is not None:
            own = self.pairs.identity
            steps.append({"step": "synced", **synced})
            steps.append({
                "step": "active", "pair_id": pair.pair_id, "our_words": words(own.key.public),
                "peer_words": words(pair.peer.public_key), "label": own.label, "peer_label": label_of(pair.peer_did),
                "namespaces": list(pair.namespaces),
                "left_out": [name for name in pair.proposal.namespaces if name not in pair.namespaces],
                "maps": maps_to_json(pair.maps),
            })  # fmt: skip
        return steps

    def successor_of(self, pair: Pair) -> Pair:
        """Return the pair, or the one that stands in its place; raise why there is none.

        One that crossed with the peer's own request comes back as it is, ended: that request is on its way here.
        """
        if not pair.ended:
            return pair
        others = self.pairs.of_peer(pair.peer_did)
        if others:
            return others[-1]
        if pair.reason == SUPERSEDED:
            return pair
        raise why_ended(pair)

    def _refused(self, pair: Pair, wire: str, fields: Mapping[str, Any]) -> Learned:
        """Apply a signed refusal of our request; it is final unless another attempt may succeed."""
        code = cli_code(wire) if cli_code(wire) in CODES else "message-malformed"
        if code == _SEEN:
            return Learned(pair, poll=True)
        if code == _TAKEN:
            return Learned(self._again(pair))
        if CODES[code].status >= SERVER_FAULT or CODES[code].exit in PASSING:
            return Learned(pair, fault=HandshakeError(code, "the peer takes no request for now"))
        if code == "clock-skew" and not pair.proposal.strict and pair.pair_id not in self._skew_ms:
            self._skew_ms[pair.pair_id] = when.ms_of(fields.get("time")) - self.pairs.now_ms()
            return Learned(pair)
        ended, effects = self.pairs.take(pair, End(code))
        return Learned(ended, effects, fault=why_ended(ended))

    def _over(self, pair: Pair, state: str, reason: str) -> Learned:
        """Apply the peer's signed answer that our request ended; ours approves a request of its own that is open."""
        if state != SUPERSEDED:
            return Learned(*self._statements.learn(pair, state, 0, reason))
        ended, effects = self.pairs.take(pair, End(SUPERSEDED))
        self.pairs.meet(pair.peer_did, handshake.terms_of(pair.proposal))
        return Learned(ended, effects)

    def _again(self, pair: Pair) -> Pair:
        """Return a new pair in the place of one that the peer does not know, which ends once the new one stands."""
        count = self._begun.get(pair.peer_did, 0) + 1
        if count > BEGIN_AGAIN_MAX:
            self.pairs.take(pair, End(LOST))
            raise PairError("pair-unknown", "the peer forgot our request again and again")
        self._begun[pair.peer_did] = count
        others = [other for other in self.pairs.of_peer(pair.peer_did) if other.pair_id != pair.pair_id]
        begun = next((other for other in others if other.initiator), None) or self.pairs.begin(
            pair.peer, pair.proposal.url, handshake.terms_of(pair.proposal), strict=pair.proposal.strict,
            actors=pair.actors, poll_interval_ms=pair.poll_interval_ms,
        )  # fmt: skip
        self.pairs.take(pair, End(LOST))
        return begun


def why_ended(pair: Pair) -> SplError:
    """Return the error that says why a request of ours did not become a pair."""
    name = label_of(pair.peer_did)
    if pair.reason == "handshake-401":
        return HandshakeError("handshake-401", REJECTED_401, why=WHY_401)
    if pair.reason in CODES:
        return HandshakeError(pair.reason)
    if pair.reason == "rejected":
        said = f": {pair.state.note}" if isinstance(pair.state, Revoked) and pair.state.note else ""
        return HandshakeError("handshake-rejected", f"the operator of {name} rejected the request{said}")
    if pair.reason == "expired":
        return HandshakeError("handshake-expired")
    return PairError("pair-revoked", f"{pair.pair_id} is over: {pair.reason}")


class HandshakeLoop:
    """Sends our messages, drives our requests until they are pairs or over, and informs those who watch."""

    def __init__(
        self, stepper: Stepper, initiator: Initiator, exchange: Exchange, sync: Sync, poll_s: float = POLL_S
    ) -> None:
        self.pairs, self.trouble = stepper.pairs, dict[str, SplError]()
        """Pair -> why the last attempt of its handshake failed, while it is on its way."""
        self._since_ms: dict[str, int] = {}
        self._stepper, self._initiator, self.exchange, self._sync = stepper, initiator, exchange, sync
        self._poll_s = poll_s
        self._first_syncs: dict[str, dict[str, object]] = {}
        """Pair -> what its first sync brought, until a later first sync finds it ended."""
        self._kicks: dict[str, asyncio.Event] = {}

    async def ask(
        self, pair_id: str, *, poll: bool = False, token_id: str = "", renew: bool = False, mode: str = ""
    ) -> Learned:
        """Send the message that the pair's state calls for, and return what the peer's signed answer made of the pair.

        With `poll` it says where the pair stands with us and asks where it stands with the peer; the rest as
        `Initiator.next_request`.  Raises ReachError, and for an answer without the peer's signature what its status
        says; that moves no pair.
        """
        pair, make = self.pairs.known(pair_id), self._initiator.next_request
        request = await self._stepper.do(partial(make, pair, poll=poll, token_id=token_id, renew=renew, mode=mode))
        fields = await self.exchange.send(pair, request)
        learned = await self._stepper.do(self._initiator.learn, pair_id, fields)
        self._stepper.follow(learned.pair.pair_id, learned.effects)
        return replace(learned, answer=fields)

    async def sync_first(self, pair_id: str) -> None:
        """Pull what a new pair shares, for those who watch it."""
        live = (pair.pair_id for pair in self.pairs.all() if not pair.ended)
        self._first_syncs = {each: self._first_syncs[each] for each in live if each in self._first_syncs}
        try:
            self._first_syncs[pair_id] = {"records": await self._sync.pull(pair_id)}
        except SplError as exc:
            self._first_syncs[pair_id] = {"records": 0, "error": exc.to_json()}
        self._stepper.notify()

    async def watch(self, pair_id: str, wait_s: float) -> AsyncIterator[dict[str, object]]:
        """Yield the progress that the records of the pair and the attempts of this process show."""
        reported: set[str] = set()
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + wait_s
        while "active" not in reported:
            changed = self._stepper.changes.next
            pair = self._initiator.successor_of(self.pairs.known(pair_id))
            pair_id = pair.pair_id
            for step in self._initiator.news(pair, reported, self._first_syncs.get(pair_id)):
                reported.add(str(step["step"]))
                yield step
            left_s = end_s - now_s()
            trouble = self.trouble.get(pair_id)
            if trouble is not None and (left_s <= 0 or trouble.exit_code not in PASSING):
                raise trouble
            if left_s <= 0 and "active" not in reported:
                yield self._unfinished(pair)
                return
            if isinstance(pair.state, Waiting | Asked):
                yield {"step": "waiting", "pair_id": pair_id, "left_ms": int(left_s * 1000)}
            if "active" not in reported:
                await wait(changed, min(left_s, WAITING_EVERY_S))

    def _unfinished(self, pair: Pair) -> dict[str, object]:
        """Return the last step of who waits no longer: the peer has not decided, or what it approved goes on."""
        if isinstance(pair.state, Requested | Waiting | Asked):
            return {"step": "pending", "pair_id": pair.pair_id}
        established = pair.phase is not Phase.ESTABLISHING
        return {
            "step": "completing", "pair_id": pair.pair_id, "state": "active" if established else "establishing",
            "records": self._sync.status(pair.pair_id).clock,
        }  # fmt: skip

    async def drive(self, pair_id: str) -> None:
        """Ask until the request became a pair or is over; failures back off with full jitter, at most a minute."""
        kick = self._kicks[pair_id] = asyncio.Event()
        try:
            await self._drive(pair_id, kick)
        finally:
            del self._kicks[pair_id]
            self._note(pair_id)

    def troubled_s(self, pair_id: str) -> float:
        """Return for how long the attempts of the pair's handshake have failed, 0 if the last one did not."""
        since_ms = self._since_ms.get(pair_id)
        return (self.pairs.steady_ms() - since_ms) / 1000 if since_ms is not None else 0.0

    def _note(self, pair_id: str, trouble: SplError | None = None) -> None:
        """Keep why an attempt failed, and when the first one did; forget both if none did."""
        if trouble is None:
            self.trouble.pop(pair_id, None)
            self._since_ms.pop(pair_id, None)
        else:
            self.trouble[pair_id] = trouble
            self._since_ms.setdefault(pair_id, self.pairs.steady_ms())

    async def _drive(self, pair_id: str, kick: asyncio.Event) -> None:
        polls, backoff = 0, Backoff(self.pairs.random_bytes, min(BACKOFF_BASE_S, self._poll_s), POLL_MAX_S)
        while on_its_way(self.pairs.get(pair_id)):
            kick.clear()
            delay_s = min(POLL_MAX_S, self._poll_s * 2.0 ** (polls // POLL_SLOWER_AFTER))
            try:
                before = self.pairs.known(pair_id)
                after = await self.advance(pair_id)
                backoff.reset()
                polls += 1
                self._note(pair_id)
                if after.state != before.state:
                    continue
            except SplError as exc:
                delay_s = backoff.failed()
                self._note(pair_id, exc)
                fields = {"pair": pair_id, "code": exc.code, "attempt": backoff.attempt, "msg": exc.message}
                log.warning(**event("pair.attempt_failed", **fields))
                self._stepper.notify()
                if (exc.code in UNSIGNED or isinstance(exc, ReachError)) and await self._follow(pair_id):
                    backoff.reset()
                    delay_s = 0.0
            await wait(kick, delay_s)

    async def _follow(self, pair_id: str) -> bool:
        """Take over the peer's manifest if it rotated, and grants by a key unknown to us, or corrected its address.

        Return whether the next attempt goes another way.
        """
        pair = after = self.pairs.known(pair_id)
        try:
            peer = await self.exchange.rediscover(pair)
            grew = peer.chain.present != pair.chain.present
            if on_its_way(pair) and (grew or peer.url != pair.url):
                adopt = self.pairs.adopt_manifest
                after = await self._stepper.do(lambda: adopt(self.pairs.known(pair_id), peer, at_once=grew))
        except SplError as exc:
            log.info(**event("pair.manifest_not_learnt", pair=pair_id, code=exc.code))
        return after.url != pair.url

    async def advance(self, pair_id: str) -> Pair:
        """Send the message that the pair's state calls for, apply the answer, and return the pair; raise its error."""
        learned = await self.ask(pair_id)
        if learned.poll:
            learned = await self.ask(pair_id, poll=True)
        if learned.fault is not None:
            raise learned.fault
        return learned.pair

    def kick(self, pair_id: str) -> None:
        """Have the pair's request tried now; one that is not driven yet is tried once it is."""
        self._note(pair_id)
        if pair_id in self._kicks:
            self._kicks[pair_id].set()
        self._stepper.notify()


def on_its_way(pair: Pair | None) -> bool:
    """Return whether a request of ours still has to be driven."""
    return pair is not None and pair.initiator and isinstance(pair.state, Requested | Waiting | Answered)
