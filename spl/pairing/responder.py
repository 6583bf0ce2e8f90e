"""The answering side: what a peer's signed messages do here, and the signed answers they get.

A stranger can send anything at any rate, so each check costs less than the one after it, and nothing is stored or kept
in memory before the last one: steps 1a to 1g of core/pair/handshake.py, in that order.  In 1c a stranger shows at most
8 rotations of its key; 64 of them cost 8 ms, and eight clients saturated one CPU with messages that failed in 1b.
The policy comes before the nonce, because a nonce takes a disk sync and memory.

Only a peer with a valid signature gets a signed refusal, {error form, statement}; anything that fails earlier gets the
error form alone.  No answer before an approval depends on which namespaces exist here, except those that a rule grants
automatically.  Until then we dial no address of the asker and accept no manifest but the first: an
unapproved request costs one record, whatever its asker sends.

A request counts for 24 hours, also if it was withdrawn or refused: else asking and withdrawing in turn would cost
nothing and leave records without end.

Blocks on the disk; runs on the thread of the steps.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..core.consent import grants_of
from ..core.errors import SplError, http_code
from ..core.identity import manifest, message
from ..core.identity.bearer import is_barred
from ..core.identity.manifest import Manifest
from ..core.identity.pins import FORK
from ..core.limits import Limits
from ..core.pair import handshake
from ..core.pair.aitl import Status
from ..core.pair.handshake import HandshakeError, PairRequest, Terms
from ..core.pair.modes import CONTINUOUS, ON_DEMAND, POLLING
from ..core.pair.pair import ESTABLISHED, Pair, PairError, in_effect, is_by_hand
from ..core.pair.state import SUPERSEDED, Approved, Asked, Proposal, Requested, Revoked, Waiting
from ..core.pair.steps import Ask, Configure, Effect, End
from ..core.record import namespace
from ..core.record.levels import EXACT
from ..core.value import Json, dataclass, replace
from ..home.config import Settings
from ..home.logs import CountedLog
from ..home.policy import Policy
from ..net.address import ReachError, parse_url, source_of, stands_at
from .budgets import LEVELS_MAX, MessageBudgets
from .machine import by_peer, unconfirmed
from .statements import PeerStatements
from .tokens import Renewal

log = logging.getLogger("spl.federation")

SERVER_FAULT: Final = 500
AUTO_NAMESPACES: Final = frozenset({"default"})
"""What automatic approval grants; a request for more goes to the operator whole."""
POLL_COST: Final = 0.1
"""What a poll takes of the budget that a request or a renewal takes 1 of."""
ANSWERED_PER_DAY: Final = 24
"""Requests of one DID that may become pairs in 24 hours, unless they meet our own; each is records without end."""
STRANGER_LINKS: Final = 8
"""Rotations that an instance without an agreed pair may show: each costs a verification."""
EAGERNESS: Final = {ON_DEMAND: 0, POLLING: 1, CONTINUOUS: 2}
"""How much of us a mode takes."""

Answer = tuple[int, Json]
"""(HTTP status, body)."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """The answer to a peer's message, and what follows a step that it made, to be done once the answer is ready."""

    answer: Answer
    effects: tuple[Effect, ...] = ()
    renew: bool = False
    """The peer asks, signed, that we take a new token from it."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A verified message: the pair that it is about, None if we do not know it, its fields, and the whole as signed."""

    pair: Pair | None
    fields: dict[str, Any]
    value: object


class Responder:
    """Takes the messages of peers."""

    def __init__(self, statements: PeerStatements, renewal: Renewal, settings: Settings, policy: Policy) -> None:
        pairs = statements.pairs
        self.pairs, self.limits, self._statements = pairs, pairs.limits, statements
        self._renewal, self._settings, self._policy = renewal, settings, policy
        self._lines = CountedLog(log)
        self._budgets = MessageBudgets(pairs.limits, pairs.steady_ms)
        links = min(STRANGER_LINKS, pairs.limits.chain_links)
        self._stranger_limits = replace(pairs.limits, chain_links=links)

    def receive(self, body: bytes, address: str, *, direct: bool = False) -> Answer:
        """Return (HTTP status, answer) to a pair request, step 1: 200 granted (step 3), 202 waiting for the operator.

        Raises the refusals that come before the signature held; later ones are answers with a signed `statement`.
        """
        with self._budgets.unverified(address):  # 1a, 1b
            fields = handshake.open_request(self._budgets.decoded(body))
        self._budgets.count_stranger(address)  # 1c
        try:
            request = handshake.read_request(fields, self._limits_of(fields))
            message.check_audience(fields, self.pairs.identity.did)
            return self._judge(request, address, direct)
        except SplError as exc:
            if exc.status >= SERVER_FAULT or exc.code == "message-audience":
                raise  # our own fault or a misaddressed message: sign no refusal
            return self.refusal(fields, exc)

    def poll(self, pair_id: str, body: bytes, address: str) -> Reaction:
        """Return our state of the pair, and apply the peer's, step 2; the answer to a granted request is step 3.

        A pair id that we do not know gets a signed 404, also without a valid signature.
        """
        heard = self.hear("pair-poll", pair_id, body, address, POLL_COST)
        if heard.pair is None:
            return Reaction(self.unknown(heard.fields))
        fields = heard.fields
        pair, effects = self._statements.hear(heard.pair, fields)
        renew = fields.get("renew") is True and pair.live and self._renewal.is_asked(pair.peer_did)
        facts: dict[str, Any] = {}
        if "mode" in fields and self._settings.now.federation_follow_mode:
            pair = self._statements.follow(pair, fields, heard.pair.peer_said_ms)
        if type(pair.state) in ESTABLISHED:
            facts |= {"mode": pair.mode} if "mode" in fields else {}
            facts |= {"held": self._renewal.facts(pair, fields["token_id"])} if "token_id" in fields else {}
        return Reaction(self.status(fields, pair, **facts), effects, renew)

    def confirm(self, pair_id: str, body: bytes, address: str) -> Reaction:
        """Return the answer to the initiator's confirmation that its genesis is durable: steps 4 and 4a."""
        heard = self.hear("pair-confirm", pair_id, body, address, POLL_COST)
        if heard.pair is None:
            return Reaction(self.unknown(heard.fields))
        pair, effects = (heard.pair, ()) if heard.pair.initiator else self._confirmed(heard.pair)
        return Reaction(self.status(heard.fields, pair), effects)

    def contact(self, pair_id: str) -> tuple[Effect, ...]:
        """Take the peer's first use of its token as the confirmation, step 4; return the effects left."""
        pair = self.pairs.get(pair_id)
        return self._confirmed(pair)[1] if pair is not None else ()

    def notify_revoke(self, pair_id: str, body: bytes, address: str) -> Reaction:
        """Return the answer to the peer's notice that it revoked the pair, which ends it here at once."""
        heard = self.hear("notify-revoke", pair_id, body, address, POLL_COST)
        pair = heard.pair
        if pair is None:
            return Reaction(self.unknown(heard.fields))
        if not pair.ended:
            pair, _ = self.pairs.take(pair, End(by_peer(handshake.reason_of(heard.fields))), brought=True)
        return Reaction(self.status(heard.fields, pair))

    def renew(self, pair_id: str, body: bytes, address: str) -> Reaction:
        """Return the answer to a request for a new token, which it holds sealed; also while paused or degraded.

        Raises HandshakeError "rate-limited".
        """
        heard = self.hear("renew", pair_id, body, address)
        pair, nonce = heard.pair, self.pairs.nonce()
        if pair is None:
            return Reaction(self.unknown(heard.fields))
        if type(pair.state) not in ESTABLISHED:
            return Reaction(self.status(heard.fields, pair))
        try:
            pair, sealed = self._renewal.grant(pair, heard.fields, nonce)
        except SplError as exc:
            if exc.code != "auth-invalid":
                raise
            return Reaction(self.refusal(heard.fields, exc))
        return Reaction(self.status(heard.fields, pair, nonce, token=sealed))

    def decide(
        self, request_id: str, decision: str, reason: str, *, namespaces: Sequence[str] = (), maps: bool = True
    ) -> Pair:
        """Return the pair after our operator's decision on exactly the request of this id, as 1g left it.

        An approval agrees to exactly the `namespaces`, or to what both sides share; without `maps` to no crossing.
        Raises PairError "not-found", "pair-state-conflict" for a request that is decided, or over; NamespaceError
        "namespace-rejected", HandshakeError "bad-field", and then the request stays pending.
        """
        self.pairs.expire()
        request, pair = self.pairs.writer.views.requests.get(request_id), self.pairs.get(request_id)
        if request is None or pair is None:
            raise PairError("not-found", f"no request {request_id[:80]!r}", hint="spl aitl list --all")
        if not isinstance(pair.state, Asked) or request.digest != pair.proposal.digest:
            hint = f"spl federation show {pair.pair_id}"
            raise PairError("pair-state-conflict", f"the request is {request.status.value} already", hint=hint)
        if decision == "approve":
            asked = handshake.terms_of(pair.proposal)
            agreed = handshake.agree(asked, self.pairs.writer.views.namespaces, named=namespaces, maps=maps)
            return self.pairs.approve(pair, pair.proposal, pair.peer, agreed)
        return self.pairs.take(pair, End("rejected", reason))[0]

    # -- every message about a pair

    def hear(
        self, purpose: str, pair_id: str, body: bytes, address: str, cost: float = 1.0, levels_max: int = LEVELS_MAX
    ) -> Heard:
        """Return a peer's message about a pair, once everything about it holds.

        It is verified by the key that it claims, then its manifest must lead from the key that we know to that one.
        Only then does it count against the pair: a sender that merely knows the pair's id signs with another key.
        A newer manifest, as after a rotation or a move, is adopted, except for a pending request.

        Raises MessageError for a message that is not the peer's, not for us, not of now, or about another pair.
        """
        pair = self.pairs.get(pair_id)
        agreed = pair is not None and pair.answer is not None
        with self._budgets.unverified(address, agreed=agreed):
            value = self._budgets.decoded(body, levels_max)
            fields = message.unwrap(value)
            message.check_audience(fields, self.pairs.identity.did)
            if fields["pair_id"] != pair_id:
                raise HandshakeError("message-malformed", "the message is about another pair than the path names")
            if pair is not None:
                key = _sender_key(fields, pair)
                message.verify(purpose, value, key)
            if not agreed:
                self._budgets.count_stranger(address, cost)
            if pair is None:
                return Heard(None, fields, value)
            message.check_times(fields, self.pairs.now_ms(), self.limits)
            peer = self._sender(fields, pair, key)
        if agreed:
            self._budgets.count_peer(fields["signer"], fields["nonce"], address, cost)
        if peer is not pair.peer and not pair.ended and not isinstance(pair.state, Asked):
            pair = self.pairs.adopt_manifest(pair, peer)
        return Heard(pair, fields, value)

    def status(self, fields: Mapping[str, Any], pair: Pair, nonce: str = "", **facts: object) -> Answer:
        """Return the signed answer that says where the pair stands with us."""
        status, state, more = handshake.status_of(pair)
        if state == "rejected" and isinstance(pair.state, Revoked) and pair.state.note:
            more = {**more, "reason": pair.state.note}
        return self._answer(fields, status, state, **{**more, **facts}, nonce=nonce)

    def ended(self, fields: Mapping[str, Any], pair: Pair) -> Answer:
        """Return the signed 410 about a pair that is over."""
        return self._answer(fields, 410, handshake.status_of(pair)[1], reason=pair.reason)

    def unknown(self, fields: Mapping[str, Any]) -> Answer:
        """Return the signed 404 about a pair that we do not know."""
        return self._answer(fields, 404, "unknown")

    def refusal(self, fields: Mapping[str, Any], error: SplError) -> Answer:
        """Return the error form with our signed statement inside, which is final for the asker."""
        self._lines.warning("pair.refused", "", error.code, peer=fields["signer"])
        state = SUPERSEDED if error.code == "pair-exists" else "refused"
        facts: dict[str, Any] = {**error.facts, "code": http_code(error.code)}
        _, signed = self._answer(fields, error.status, state, **facts)
        return error.status, {**error.to_json(), "statement": signed}

    # -- a request

    def _limits_of(self, fields: Mapping[str, Any]) -> Limits:
        """Return the limits for the manifest of a request; refuse a long key chain of an instance we have no pair with.

        Its statements are not verified yet.
        """
        if self.pairs.has_agreed(fields["signer"]):
            return self.limits
        links = len(fields["manifest"]["rotations"])
        if links > self._stranger_limits.chain_links:
            text = f"a new peer shows at most {self._stranger_limits.chain_links} key rotations, not {links}"
            raise HandshakeError("message-malformed", text, hint="let the other side ask: spl federation pair URL")
        return self._stranger_limits

    def _judge(self, request: PairRequest, address: str, direct: bool) -> Answer:
        fields, peer = request.fields, request.peer
        own, now_ms = self.pairs.identity, self.pairs.now_ms()
        message.check_times(fields, now_ms, self.limits)  # 1d
        self._check_pinned(peer, now_ms)
        if peer.did == own.did:
            raise PairError("identity-cloned", "the request comes from our own DID")
        known = self.pairs.get(fields["pair_id"])
        if known is not None:
            raise HandshakeError("pair-request-seen" if known.nonce == fields["nonce"] else "pair-id-taken")
        ours = self._crossing(peer.did)  # 1e
        self._check_policy(fields, peer, address, ours)
        opened = handshake.open_sealed(fields, own.seal_secrets)  # 1f
        token = handshake.token_ref(opened.token, opened.scopes, opened.expires_at_ms, issued=False)
        self._check_room(source_of(address), peer.did, ours)
        until_ms = message.issued_at_ms(fields) + int(self.limits.nonce_memory_s * 1000)
        if not self.pairs.vault.remember_nonce(peer.did, fields["nonce"], until_ms, stranger=True):
            raise HandshakeError("pair-request-seen")
        proposal = Proposal(
            fields["pair_id"], fields["nonce"], peer.raw, request.terms.namespaces, request.terms.maps,
            request.terms.mode, request.terms.start, peer.pair_endpoint, token, fields["token"],
            digest=message.digest(fields), url=peer.url if direct and self._proves(peer.url, address) else "",
            source=source_of(address),
        )  # fmt: skip
        return self.status(fields, self._admit(fields, peer, proposal, ours, address))  # 1g

    def _proves(self, url: str, address: str) -> bool:
        """Return whether the request came from the address that its endpoint names.

        With a public_url of ours this proves nothing: there is a proxy before us, whose address the request comes from.
        """
        return not self._settings.now.public_url and _stands_at(url, address)

    def _check_pinned(self, peer: Manifest, now_ms: int) -> None:
        """Refuse a key chain that does not extend the one we know; a fork degrades the pair with this peer."""
        pins = self.pairs.writer.views.pins
        try:
            manifest.judge(peer, now_ms=now_ms, strict=True, pinned=pins.chain(peer.did))
            if pins.is_forked(peer.did):
                raise PairError(FORK, f"two key chains of {peer.did} contradict each other")
        except SplError as exc:
            if pins.proves_fork(peer.chain) or pins.is_forked(peer.did):
                for pair in self.pairs.of_peer(peer.did):
                    self._statements.doubt(pair, exc.code)
            raise

    def _check_policy(self, fields: Mapping[str, Any], peer: Manifest, address: str, ours: Pair | None) -> None:
        """Refuse what no operator is to see; a request that meets our own is no stranger's."""
        if not self._policy.permits(peer, fields, address):
            raise HandshakeError("handshake-401", "a permission rule refuses federation:pair")
        if ours is None and self._is_closed(peer):
            raise HandshakeError("handshake-closed")

    def _is_closed(self, peer: Manifest) -> bool:
        blocked = self.pairs.writer.views.blocked
        return self._settings.now.federation_approval == "closed" or peer.did in blocked

    def _admit(
        self, fields: Mapping[str, Any], peer: Manifest, proposal: Proposal, ours: Pair | None, address: str
    ) -> Pair:
        """Return the pair that a sound request makes, by our own request that it meets, by rules and by policy."""
        asked, registry = handshake.terms_of(proposal), self.pairs.writer.views.namespaces
        interval_ms = self._settings.now.federation_poll_interval_ms
        if ours is not None:
            if not ours.ended and self.pairs.identity.did < peer.did:
                raise HandshakeError("pair-exists", "both asked at once; the request of the lower DID stands: ours")
            if not ours.ended:
                self.pairs.take(ours, End(SUPERSEDED))
            agreed = handshake.common(asked, handshake.terms_of(ours.proposal).turned(), registry)
            if agreed is not None:
                return self.pairs.approve(None, proposal, peer, agreed, interval_ms)
            if self._is_closed(peer):
                raise HandshakeError("handshake-closed")
        usable = all(namespace.is_usable(registry, name) for name in asked.namespaces)
        if usable and not asked.maps and self._is_granted(fields, peer, asked, address):
            kept_ms = [pair.poll_interval_ms for pair in in_effect(self.pairs.all(), peer.did)]
            return self.pairs.approve(None, proposal, peer, asked, max([interval_ms, *kept_ms]))
        return self.pairs.take(None, Ask(proposal, interval_ms))[0]

    def _is_granted(self, fields: Mapping[str, Any], peer: Manifest, asked: Terms, address: str) -> bool:
        """Return whether a rule or the policy approves what is asked for, unasked.

        Never for a peer that our operator revoked, or whose pair has limits that a new one would not have.
        """
        if self._is_limited(self.pairs.all(), peer.did, asked.namespaces, asked.mode):
            return False
        auto = self._settings.now.federation_approval == "auto"
        if self._policy.grants(peer, fields, address, asked.namespaces):
            return True
        return auto and AUTO_NAMESPACES.issuperset(asked.namespaces)

    def _confirmed(self, pair: Pair) -> tuple[Pair, tuple[Effect, ...]]:
        """Return the pair and the effects left after the peer's confirmation, if the pair still waits for it.

        It ends instead if the peer is blocked since, and one that a rule approved also if our operator limited the
        peer since: a peer could keep it in reserve.  Longer pauses between polls that were set since it takes over.
        """
        if not unconfirmed(pair):
            return pair, ()
        others = [other for other in self.pairs.all() if other.pair_id != pair.pair_id]
        is_over, changes = pair.peer_did in self.pairs.writer.views.blocked, list[Configure]()
        if isinstance(pair.state, Approved) and self._is_unasked(pair):
            kept_ms = max((other.poll_interval_ms for other in in_effect(others, pair.peer_did)), default=0)
            changes = [Configure({"poll_interval_ms": kept_ms})] if kept_ms > pair.poll_interval_ms else []
            is_over = is_over or self._is_limited(others, pair.peer_did, pair.namespaces, pair.mode)
        if is_over:
            return self.pairs.take(pair, End("expired", "limits were set before it was confirmed"), brought=True)
        return self.pairs.confirm(pair, *changes)

    def _is_unasked(self, pair: Pair) -> bool:
        """Return whether a rule or the policy approved it: not our operator, by hand or by a request that it met."""
        every = [other for other in self.pairs.all() if other.peer_did == pair.peer_did]
        before = every[: every.index(pair)][-1:]
        met = any(other.initiator and other.answer is None and other.reason == SUPERSEDED for other in before)
        return not met and pair.pair_id not in self.pairs.writer.views.requests

    def _is_limited(self, pairs: Sequence[Pair], did: str, names: Sequence[str], mode: str) -> bool:
        """Return whether a new pair would be without a limit that our operator set on one of these with the peer."""
        views, follows = self.pairs.writer.views, self._settings.now.federation_follow_mode
        for pair in in_effect(pairs, did):
            agreed = pair.answered.get("mode", mode)
            is_lowered = any(each.level != EXACT for each in grants_of(views.consents, pair).ours.values())
            is_calmed = not follows and EAGERNESS.get(pair.mode, 2) < min(EAGERNESS[agreed], EAGERNESS[mode])
            left_out = set() if pair.initiator else {*pair.proposal.namespaces} - {*pair.namespaces}
            if is_by_hand(pair) or is_barred(views.tokens, pair.pair_id) or is_lowered or is_calmed:
                return True
            if left_out.intersection(names):
                return True
        return False

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

    def _check_room(self, source: str, did: str, ours: Pair | None) -> None:
        """Refuse a request beyond those that may come in 24 hours, from one source, of one DID and in all.

        However many pairs a DID has or had, it takes one place of `pairs_count`.

        All unapproved ones count, whatever became of them, but for those that our operator rejected: each of these took
        a person's word, and must not shut out the next try.
        """
        since_ms = self.pairs.now_ms() - int(self.limits.request_ttl_s * 1000)
        every, requests = self.pairs.all(), self.pairs.writer.views.requests
        recent = [
            pair.proposal.source for pair in every
            if not pair.initiator and pair.answer is None and pair.created_at_ms > since_ms
            and not ((request := requests.get(pair.pair_id)) and request.status is Status.REJECTED)
        ]  # fmt: skip
        if len(recent) >= self.limits.requests_pending or recent.count(source) >= self.limits.requests_per_address:
            raise HandshakeError("rate-limited", "too many requests in 24 hours", retry_after_s=60)
        if ours is None and self._agreed_since(did, since_ms) >= ANSWERED_PER_DAY:
            text = f"{ANSWERED_PER_DAY} requests of this instance became pairs in 24 hours"
            raise HandshakeError("rate-limited", text, retry_after_s=3600)
        placed = {pair.peer_did for pair in every if not pair.ended or pair.created_at_ms > since_ms}
        if len(placed - {did}) >= self.limits.pairs_count:
            raise HandshakeError("rate-limited", f"there are {self.limits.pairs_count} pairs", retry_after_s=3600)

    def _agreed_since(self, did: str, since_ms: int) -> int:
        """Return how many requests of a DID became pairs since then."""
        return sum(
            pair.peer_did == did and not pair.initiator and pair.answer is not None and pair.created_at_ms > since_ms
            for pair in self.pairs.all()
        )

    # -- inside

    def _sender(self, fields: Mapping[str, Any], pair: Pair, key: bytes) -> Manifest:
        """Return the peer's manifest after a message under this key; raise "message-signature" for another's key."""
        peer = self._introduced(fields, pair)
        if peer.chain.present != key:
            raise HandshakeError("message-signature", "the message is signed by a key that is not the peer's")
        if self.pairs.writer.views.pins.newest(peer.chain) is not peer.chain:
            raise HandshakeError("message-signature", "the message is signed by a key that the peer has rotated")
        return peer

    def _introduced(self, fields: Mapping[str, Any], pair: Pair) -> Manifest:
        """Return the peer's manifest after a message; a second successor of one of its keys degrades the pair."""
        limits = self.limits if pair.answer is not None or pair.initiator else self._stranger_limits
        try:
            return handshake.introduced(fields, pair, self.pairs.now_ms(), limits) or pair.peer
        except SplError as exc:
            offered = manifest.from_json(fields["manifest"], limits).chain
            if exc.code != FORK or self.pairs.writer.views.pins.proves_fork(offered):
                self._statements.doubt(pair, exc.code)
            raise

    def _answer(self, fields: Mapping[str, Any], status: int, state: str, *, nonce: str = "", **more: Any) -> Answer:
        own, now_ms = self.pairs.identity, self.pairs.now_ms()
        return status, handshake.answer(fields, own.key, status, state, now_ms, nonce or self.pairs.nonce(), **more)


def _sender_key(fields: Mapping[str, Any], pair: Pair) -> bytes:
    """Return the key that a message about this pair claims: its manifest's, or the one we know.

    Raises HandshakeError "message-signature" for a message of another instance.
    """
    if fields["signer"] != pair.peer_did:
        raise HandshakeError("message-signature", "the message is not signed by the pair's peer")
    try:
        return manifest.claimed_key(fields["manifest"], pair.peer_did) if fields.get("manifest") else pair.chain.present
    except SplError:
        return pair.chain.present


def _stands_at(url: str, address: str) -> bool:
    """Return whether the asker's endpoint is at the very address that its request came from."""
    try:
        return stands_at(parse_url(url), address)
    except ReachError:
        return False
