"""The asking side: what we ask of a peer, what its signed answers mean, and the progress that callers see.

The state of the pair says which message is next, so a restart goes on where the crash was:

    Requested  step 1, POST …/pair            a repeated request is answered "seen", and then polled
    Waiting    step 2, POST …/<id>/poll       until granted (step 3), rejected or expired
    Answered   step 4, POST …/<id>/confirm    until taken

The numbers are the steps of core/pair/handshake.py.  `Initiator` blocks on the disk and runs on the thread of the
steps; handshake_loop.py sends them from the event loop.
"""

from collections.abc import Mapping
from typing import Any, Final

from ..core import when
from ..core.errors import CODES, SplError, cli_code
from ..core.identity import message
from ..core.identity.did import label_of, words
from ..core.identity.manifest import PAIR_PATH, Manifest
from ..core.pair import handshake
from ..core.pair.handshake import HandshakeError, Terms
from ..core.pair.modes import POLLING
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import STARTS, SUPERSEDED, Answered, Asked, Phase, Requested, Revoked, Waiting, maps_to_json
from ..core.pair.steps import Effect, End, ManifestChange, Park
from ..core.value import Json, dataclass, field, replace
from ..home.config import Settings
from ..sync.peer import REJECTED_401, WHY_401
from .exchange import SignedRequest, forked
from .machine import unconfirmed
from .responder import SERVER_FAULT
from .statements import PeerStatements
from .tokens import Renewal

BEGIN_AGAIN_MAX: Final = 3
"""New requests to a peer that forgot ours; without a bound, one that forgets each would be asked for ever."""
LOST: Final = "lost"
"""The reason of a pair that ended because the peer lost our request or its answer; a new pair replaces it."""
PASSING: Final = frozenset({8, 9})
"""Exit codes of errors that the next attempt may not meet."""
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


@dataclass(frozen=True, slots=True)
class PairStep:
    """One step of pairing, as its operator is told of it: its name, and the facts that belong to it."""

    name: str
    facts: Json = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return {step} and the facts."""
        return {"step": self.name, **self.facts}


@dataclass(frozen=True, slots=True)
class FirstSyncResult:
    """What the first sync of a pair brought, or why it failed."""

    records: int = 0
    error: SplError | None = None

    def to_json(self) -> Json:
        """Return {records}, and {error} if it failed."""
        return {"records": self.records, **({"error": self.error.to_json()} if self.error is not None else {})}


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
        said: Json = {"manifest": self.pairs.published.federation_manifest()}
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

    def news(self, pair: Pair, reported: set[str], synced: FirstSyncResult | None) -> list[PairStep]:
        """Return the progress that the pair's state shows beyond what is in `reported`.

        `synced` is what its first sync brought, None while that runs.
        """
        steps: list[PairStep] = []
        if isinstance(pair.state, Requested) or pair.ended:
            return steps
        waits = isinstance(pair.state, Waiting | Asked)
        if "posted" not in reported:
            names = list(pair.proposal.namespaces)
            steps.append(PairStep("posted", {"status": 202 if waits else 200, "namespaces": names}))
        if waits or pair.issued_to_us is None:
            return steps
        if "token" not in reported:
            steps.append(PairStep("token", {"scopes": list(pair.issued_to_us.scopes)}))
            steps.append(PairStep("recorded", {"pair_id": pair.pair_id}))
        if pair.phase is not Phase.ESTABLISHING and synced is not None:
            own = self.pairs.identity
            steps.append(PairStep("synced", synced.to_json()))
            steps.append(PairStep("active", {
                "pair_id": pair.pair_id, "our_words": words(own.key.public),
                "peer_words": words(pair.peer.public_key), "label": own.label, "peer_label": label_of(pair.peer_did),
                "namespaces": list(pair.namespaces),
                "left_out": [name for name in pair.proposal.namespaces if name not in pair.namespaces],
                "maps": maps_to_json(pair.maps),
            }))  # fmt: skip
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
