"""The answering side: what a peer's signed messages do here, and the signed answers they get.

A request passes, in this order: size, rate, form and signature, audience, age, nonce, permission rules, then the
approval policy.  Only a peer whose signature held learns a signed refusal, {error form, statement}; what failed
before gets the error form alone.  No answer before an approval depends on which namespaces exist here, but for those
that a rule of ours grants this peer unasked, and nobody is dialled.

Blocks on the disk; runs on the pairing service's thread.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..core import canon
from ..core.backoff import TokenBucket
from ..core.errors import SplError, http_code
from ..core.event import event
from ..core.identity import manifest, message
from ..core.identity.manifest import Manifest
from ..core.identity.pins import FORK
from ..core.pair import handshake
from ..core.pair.handshake import Asking, HandshakeError, Terms
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import SUPERSEDED, Active, Asked, Degraded, Proposal, Requested, Revoked, Waiting
from ..core.pair.steps import Ask, Degrade, Effect, End, ManifestChange, PeerPause, PeerResume
from ..core.record import namespace
from ..core.record.namespace import Namespace
from .machine import Pairs, unconfirmed
from .tokens import Renewal

log = logging.getLogger("spl.federation")

MINUTE_S: Final = 60.0
SERVER_FAULT: Final = 500
REVOKED: Final = "revoked"
ADDRESSES_MAX: Final = 4096
AUTO_NAMESPACES: Final = frozenset({"default"})
"""What automatic approval grants without being asked; a request for more goes to the operator whole."""
POLL_COST: Final = 0.1
"""What a message about a known pair takes of the rate that a request takes 1 of."""
NONCE_MEMORY_MS: Final = 600_000
"""A nonce is kept until issued_at and 10 minutes."""

Permitted = Callable[[Manifest, Mapping[str, Any], str], bool]
"""Tells whether the permission rules let this peer ask, by its manifest, the request's fields and its address."""
Granted = Callable[[Manifest, Mapping[str, Any], str], frozenset[str]]
"""Returns the namespaces that our rules grant this peer at most without asking the operator."""
Answer = tuple[int, dict[str, object]]


def everybody(peer: Manifest, fields: Mapping[str, Any], address: str) -> bool:
    """Permit every handshake: what holds while no permission rule names federation:pair."""
    return True


def nothing(peer: Manifest, fields: Mapping[str, Any], address: str) -> frozenset[str]:
    """Grant nothing unasked: what holds while there is no rule of automatic approval."""
    return frozenset()


class Responder:
    """Takes the messages of peers.  `policy` is the present value of federation.approval."""

    def __init__(
        self, pairs: Pairs, renewal: Renewal, policy: Callable[[], str], poll_interval_ms: int, permitted: Permitted,
        granted: Granted,
    ) -> None:  # fmt: skip
        self.pairs, self.limits, self._renewal = pairs, pairs.limits, renewal
        self._policy, self._poll_interval_ms = policy, poll_interval_ms
        self._permitted, self._granted = permitted, granted
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._addresses: dict[str, str] = {}
        self._said_ms: dict[str, int] = {}
        self._effects: dict[str, tuple[Effect, ...]] = {}
        self.asked_to_renew: set[str] = set()
        """Pairs whose peer asked, signed, that we take a new token; whoever does it takes them out."""

    def receive(self, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a pair request: 200 granted, 202 waiting for the operator.

        Raises the refusals that come before the signature held; later ones are answers with a signed `statement`.
        """
        value = self._opened(body, address, 1.0)
        asking = handshake.read_request(value, self.limits)
        message.check_audience(asking.fields, self.pairs.identity.did)
        try:
            return self._judge(asking, address)
        except SplError as exc:
            if exc.status >= SERVER_FAULT:
                raise  # a fault of ours is no word on the request: the peer asks again
            return self._refusal(asking.fields, exc)

    def poll(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, where the pair stands with us), and take in where it stands with the peer.

        A pair id that we do not know: a signed 404, whoever asks.
        """
        pair, fields = self._signed("pair-poll", pair_id, body, address)
        if pair is None:
            return self._answer(fields, 404, "unknown")
        pair = self._heard(pair, fields)
        if fields.get("renew") is True and pair.live:
            self.asked_to_renew.add(pair_id)
        if type(pair.state) not in ESTABLISHED or "token_id" not in fields:
            return self._stand(fields, pair)
        return self._stand(fields, pair, held=self._renewal.facts(pair, fields["token_id"]))

    def confirm(self, pair_id: str, body: bytes, address: str) -> tuple[Answer, tuple[Effect, ...]]:
        """Return (answer, effects left) to the initiator's word that its genesis is durable."""
        pair, fields = self._signed("pair-confirm", pair_id, body, address)
        if pair is None:
            return self._answer(fields, 404, "unknown"), ()
        effects: tuple[Effect, ...] = ()
        if unconfirmed(pair) and not pair.initiator:
            pair, effects = self.pairs.confirm(pair)
        return self._stand(fields, pair), effects

    def contact(self, pair_id: str) -> tuple[Effect, ...]:
        """Take the peer's first use of its token as the confirmation; return the effects left."""
        pair = self.pairs.get(pair_id)
        return self.pairs.confirm(pair)[1] if pair is not None and unconfirmed(pair) else ()

    def notify_revoke(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return the answer to the peer's word that it revoked the pair, which ends it here at once."""
        pair, fields = self._signed("notify-revoke", pair_id, body, address)
        if pair is None:
            return self._answer(fields, 404, "unknown")
        if not pair.ended:
            pair, _ = self.pairs.take(pair, End(_by_peer(handshake.reason_of(fields))))
        return self._stand(fields, pair)

    def renew(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return the answer to the peer's wish for a new token: sealed into it, also while paused or degraded."""
        pair, fields = self._signed("renew", pair_id, body, address, 1.0)
        if pair is None:
            return self._answer(fields, 404, "unknown")
        if type(pair.state) not in ESTABLISHED:
            return self._stand(fields, pair)
        nonce = self.pairs.nonce()
        pair, sealed = self._renewal.grant(pair, fields, nonce)
        return self._stand(fields, pair, nonce, token=sealed)

    def consent(
        self, pair_id: str, body: bytes, address: str, take: Callable[[Pair, Mapping[str, Any]], dict[str, Any]]
    ) -> Answer:
        """Return the answer to the peer's grants, with ours as `take` returns them; also while paused or degraded."""
        pair, fields = self._signed("consent", pair_id, body, address, 1.0)
        if pair is None:
            return self._answer(fields, 404, "unknown")
        if pair.ended:
            return self._answer(fields, 410, handshake.status_of(pair)[1], reason=pair.reason)
        if type(pair.state) not in ESTABLISHED:
            return self._stand(fields, pair)
        try:
            return self._stand(fields, pair, **take(pair, fields))
        except SplError as exc:
            if exc.status >= SERVER_FAULT:
                raise  # a fault of ours is no word on the grants: the peer hands them over again
            return self._refusal(fields, exc)

    def meet(self, did: str, ours: Terms) -> Pair | None:
        """Return the peer's own request that waits here, if any, approved when what we ask for covers it."""
        for other in self.pairs.of_peer(did):
            if isinstance(other.state, Asked):
                asked = handshake.terms_of(other.proposal)
                agreed = handshake.common(asked, _turned(ours), self._namespaces)
                return self.pairs.approve(other, other.proposal, other.peer, agreed) if agreed else other
        return None

    def decide(
        self, request_id: str, decision: str, reason: str, *, namespaces: Sequence[str] = (), maps: bool = True
    ) -> Pair:
        """Return the pair after our operator's word on exactly the request of this id.

        An approval agrees to exactly the `namespaces`, or to what both sides share; without `maps` to no crossing.
        Raises PairError "not-found", "pair-state-conflict" for a request that is decided, or over; NamespaceError
        "namespace-rejected", HandshakeError "bad-field", and then the request goes on waiting.
        """
        self.pairs.expire()
        request, pair = self.pairs.writer.views.requests.get(request_id), self.pairs.get(request_id)
        if request is None or pair is None:
            raise PairError("not-found", f"no request {request_id[:80]!r}")
        if not isinstance(pair.state, Asked) or request.digest != pair.proposal.digest:
            raise PairError("pair-state-conflict", f"the request is {request.status.value} already")
        if decision == "approve":
            asked = handshake.terms_of(pair.proposal)
            agreed = handshake.agree(asked, self._namespaces, named=namespaces, maps=maps)
            return self.pairs.approve(pair, pair.proposal, pair.peer, agreed)
        return self.pairs.take(pair, End("rejected", reason))[0]

    # -- a request

    @property
    def _namespaces(self) -> Mapping[str, Namespace]:
        return self.pairs.writer.views.namespaces

    def _judge(self, asking: Asking, address: str) -> Answer:
        fields, peer = asking.fields, asking.peer
        own, now_ms = self.pairs.identity, self.pairs.now_ms()
        message.check_times(fields, now_ms, self.limits)
        pins = self.pairs.writer.views.pins
        try:
            manifest.judge(peer, now_ms=now_ms, strict=True, pinned=pins.chain(peer.did))
            if pins.is_forked(peer.did):
                raise PairError(FORK, f"two key chains of {peer.did} contradict each other")
        except SplError as exc:
            if exc.code == FORK:
                for pair in self.pairs.of_peer(peer.did):
                    self.doubt(pair, exc.code)
            raise
        if peer.did == own.did:
            raise PairError("identity-cloned", "the request comes from our own DID")
        opened = handshake.open_sealed(fields, own.seal_secrets)
        token = handshake.token_ref(opened.token, opened.scopes, opened.expires_at_ms, issued=False)
        known = self.pairs.get(fields["pair_id"])
        if known is not None and known.nonce != fields["nonce"]:
            raise HandshakeError("pair-id-taken")
        if known is None:
            self._check_room(address)
        until_ms = message.issued_at_ms(fields) + NONCE_MEMORY_MS
        if known is not None or not self.pairs.vault.remember_nonce(peer.did, fields["nonce"], until_ms):
            raise HandshakeError("pair-request-seen")
        proposal = Proposal(
            fields["pair_id"], fields["nonce"], peer.raw, asking.terms.namespaces, asking.terms.maps, asking.terms.mode,
            asking.terms.start, peer.pair_endpoint, token, fields["token"], digest=message.digest(fields),
        )  # fmt: skip
        return self._stand(fields, self._admit(fields, peer, proposal, address))

    def _admit(self, fields: Mapping[str, Any], peer: Manifest, proposal: Proposal, address: str) -> Pair:
        """Return the pair that a sound request makes, by rules and policy."""
        if not self._permitted(peer, fields, address):
            raise HandshakeError("handshake-401", "a permission rule refuses federation:pair")
        asked = handshake.terms_of(proposal)
        ours = self._crossing(peer.did)
        if ours is not None:
            if not ours.ended and self.pairs.identity.did < peer.did:
                raise HandshakeError("pair-exists", "both asked at once; the request of the lower DID stands: ours")
            if not ours.ended:
                self.pairs.take(ours, End(SUPERSEDED))
            agreed = handshake.common(asked, _turned(handshake.terms_of(ours.proposal)), self._namespaces)
            if agreed is not None:
                return self.pairs.approve(None, proposal, peer, agreed, self._poll_interval_ms)
        policy = self._policy()
        if policy == "closed" or peer.did in self.pairs.writer.views.blocked:
            raise HandshakeError("handshake-closed")
        bounds = [self._granted(peer, fields, address), AUTO_NAMESPACES if policy == "auto" else frozenset[str]()]
        usable = all(namespace.is_usable(self._namespaces, name) for name in asked.namespaces)
        if usable and not asked.maps and any(bound.issuperset(asked.namespaces) for bound in bounds):
            return self.pairs.approve(None, proposal, peer, asked, self._poll_interval_ms)
        pair, _ = self.pairs.take(None, Ask(proposal, self._poll_interval_ms))
        self._addresses[pair.pair_id] = address
        return pair

    def _crossing(self, did: str) -> Pair | None:
        """Return our own request that meets the peer's: one on its way, or the last thing between us, superseded."""
        found = [pair for pair in self.pairs.all() if pair.peer_did == did]
        oldest_ms = self.pairs.now_ms() - int(self.limits.request_ttl_s * 1000)
        for pair in found:
            if isinstance(pair.state, Requested | Waiting):
                return pair
        last = found[-1] if found else None
        if last is None or not last.initiator or last.reason != SUPERSEDED or last.answer is not None:
            return None
        return last if last.created_at_ms > oldest_ms else None

    def _check_room(self, address: str) -> None:
        """Return when one more request may wait; all of them may, since the policy is not asked yet."""
        waiting = {pair.pair_id for pair in self.pairs.all() if isinstance(pair.state, Asked)}
        self._addresses = {pair_id: place for pair_id, place in self._addresses.items() if pair_id in waiting}
        here = sum(place == address for place in self._addresses.values())
        if len(waiting) >= self.limits.requests_pending or here >= self.limits.requests_per_address:
            raise HandshakeError("rate-limited", "too many requests wait for the operator", retry_after_s=60)
        if sum(not pair.ended for pair in self.pairs.all()) >= self.limits.pairs_count:
            raise HandshakeError("rate-limited", f"there are {self.limits.pairs_count} pairs", retry_after_s=3600)

    # -- every message

    def _opened(self, body: bytes, address: str, cost: float = POLL_COST) -> object:
        """Return the JSON of a message whose size and rate are within bounds."""
        if len(body) > self.limits.handshake_bytes:
            raise HandshakeError("body-too-large", f"a message has at most {self.limits.handshake_bytes} bytes")
        rate = float(self.limits.handshakes_per_minute)
        bucket = self._buckets.pop(address, TokenBucket(rate, rate / MINUTE_S))
        self._buckets[address], allowed, wait_s = bucket.take(self.pairs.now_ms() / 1000, cost)
        while len(self._buckets) > ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        if not allowed:
            raise HandshakeError("rate-limited", "too many handshake messages", retry_after_s=int(wait_s) + 1)
        return canon.decode(body)

    def _signed(
        self, purpose: str, pair_id: str, body: bytes, address: str, cost: float = POLL_COST
    ) -> tuple[Pair | None, dict[str, Any]]:
        """Return (pair, fields) of a peer's message about a pair; the pair is None when we do not know it.

        A manifest inside that is news, as after a rotation or a move, is taken in once the message is verified by it.

        Raises MessageError for a message that is not the peer's, not for us, not of now, or about another pair.
        """
        value = self._opened(body, address, cost)
        fields = message.unwrap(value)
        message.check_audience(fields, self.pairs.identity.did)
        if fields["pair_id"] != pair_id:
            raise HandshakeError("message-malformed", "the message is about another pair than the path names")
        pair = self.pairs.get(pair_id)
        if pair is None:
            return None, fields
        if fields["signer"] != pair.peer_did:
            raise HandshakeError("message-signature", "the message is not signed by the pair's peer")
        now_ms = self.pairs.now_ms()
        peer = self._introduced(fields, pair, now_ms) or pair.peer
        message.verify(purpose, value, peer.chain.present)
        message.check_times(fields, now_ms, self.limits)
        if not pair.ended and manifest.says_more(peer, pair.peer, now_ms):
            pair, _ = self.pairs.take(pair, ManifestChange(peer.raw))
        return pair, fields

    def _introduced(self, fields: Mapping[str, Any], pair: Pair, now_ms: int) -> Manifest | None:
        """Return the newer manifest in a message; a second successor of a key of the peer degrades the pair."""
        try:
            return handshake.introduced(fields, pair, now_ms, self.limits)
        except SplError as exc:
            self.doubt(pair, exc.code)
            raise

    def doubt(self, pair: Pair, code: str) -> None:
        """Mark a pair as degraded whose peer shows what does not verify."""
        if isinstance(pair.state, Active) or (isinstance(pair.state, Degraded) and pair.reason != code):
            self.pairs.take(pair, Degrade(code))

    def _heard(self, pair: Pair, fields: Mapping[str, Any]) -> Pair:
        """Return the pair after what the peer says of its own state; an older word than the last is passed over."""
        said_ms = message.issued_at_ms(fields)
        if said_ms <= max(self._said_ms.get(pair.pair_id, 0), pair.peer_said_ms):
            return pair
        self._said_ms[pair.pair_id] = said_ms
        return self.learn(pair, fields.get("state"), said_ms, handshake.reason_of(fields))

    def learn(self, pair: Pair, state: object, said_ms: int, reason: str) -> Pair:
        """Return the pair after the peer's signed word on where it stands: paused, active, or over."""
        if pair.ended:
            return pair
        if state in handshake.ENDED:
            note = reason if state == "rejected" and reason != state else ""
            return self.pairs.take(pair, End(str(state) if state != REVOKED else _by_peer(reason), note))[0]
        if state == "paused" and pair.paused_by in ("", "us") and pair.live and not unconfirmed(pair):
            return self.pairs.take(pair, PeerPause(said_ms))[0]
        if state == "active" and pair.paused_by in ("peer", "both"):
            after, effects = self.pairs.take(pair, PeerResume(said_ms))
            self._effects[pair.pair_id] = effects
            return after
        return pair

    def effects(self, pair_id: str) -> tuple[Effect, ...]:
        """Return what is to be done after the peer's last word on where it stands, once."""
        return self._effects.pop(pair_id, ())

    def _stand(self, fields: Mapping[str, Any], pair: Pair, nonce: str = "", **facts: object) -> Answer:
        status, state, more = handshake.status_of(pair)
        if state == "rejected" and isinstance(pair.state, Revoked) and pair.state.note:
            more = {**more, "reason": pair.state.note}
        return self._answer(fields, status, state, **{**more, **facts}, nonce=nonce)

    def _refusal(self, fields: Mapping[str, Any], error: SplError) -> Answer:
        log.warning(**event("pair.refused", peer=fields["signer"], code=error.code))
        state = SUPERSEDED if error.code == "pair-exists" else "refused"
        facts: dict[str, Any] = {**error.facts, "code": http_code(error.code)}
        _, signed = self._answer(fields, error.status, state, **facts)
        return error.status, {**error.to_json(), "statement": signed}

    def _answer(self, fields: Mapping[str, Any], status: int, state: str, *, nonce: str = "", **more: Any) -> Answer:
        own, now_ms = self.pairs.identity, self.pairs.now_ms()
        return status, handshake.answer(fields, own.key, status, state, now_ms, nonce or self.pairs.nonce(), **more)


def _by_peer(reason: str) -> str:
    """Return the reason of a pair that the peer revoked, with the peer's own where it gave one."""
    return f"revoked by peer: {reason}" if reason and reason != REVOKED else "revoked by peer"


def _turned(terms: Terms) -> Terms:
    """Return the terms with their maps as the other side writes them."""
    return Terms(terms.namespaces, tuple((peer, local) for local, peer in terms.maps), terms.mode, terms.start)
