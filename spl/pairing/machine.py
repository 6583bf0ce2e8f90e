"""The shell of the pair machine: decide, append and fsync, fold, then what is left to do.

Secret, then record, then message: a token of a peer is in the vault before the record that names it, and no peer
learns of a step before its record is durable.  A crash between any two leaves what `heal` repairs; the other order
would leave a record whose secret is lost, or a peer that holds a token we never minted.  Everything here blocks on the
disk and runs on one thread, so that no step meets a pair that another step is changing.

Numbers such as 3a are the steps of core/pair/handshake.py.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Final

from ..core import when
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import bearer, manifest, message
from ..core.identity.did import short_of, words
from ..core.identity.manifest import Manifest
from ..core.identity.pins import KIND_CHAIN, pin_body
from ..core.pair import aitl, handshake, steps
from ..core.pair.aitl import ApprovalRequest, Status
from ..core.pair.handshake import Terms
from ..core.pair.pair import PREFIX, Pair, PairError
from ..core.pair.state import (
    SUPERSEDED,
    Active,
    Answered,
    Approved,
    Asked,
    Degraded,
    Phase,
    Proposal,
    TokenRef,
    known,
)
from ..core.pair.steps import Effect, PairEvent
from ..core.recent import Ages
from ..core.value import Json, replace
from ..home.home import Home, default_label
from ..home.logs import CountedLog
from ..home.manifest import ManifestSigner
from ..home.vault import Identity
from ..home.views import KIND_BLOCK, THREAD_AITL, THREAD_PAIRS, THREAD_TOKENS
from ..home.writes import DayBytes, Item, Own, SavedPosition, size_of
from ..sync.budget import IntakeBudget
from ..sync.peer import TOKEN_NAME
from .newer import NewerManifests

log = logging.getLogger("spl.federation")

REVOKED: Final = "revoked"
MANIFEST_EVERY_MS, MANIFEST_LOST_MS = 3_600_000, 300_000
THREAD_AUDIT: Final = "th_audit_federation_pairs"
KIND_AUDIT: Final = "syncropel.federation.audit.v1"
RENEWED_NAME: Final = "own-token."
"""Our new token for a peer, in plaintext until the peer used it, so that asking again gets the same one."""
COMMIT_TIMEOUT_S: Final = 30.0
EPHEMERAL_BYTES: Final = 32
NONCE_BYTES: Final = 16
EVENTS: Final = {
    "pair_init.v1": "pair.requested",
    "pair_pending.v1": "pair.pending",
    "pair.genesis.v1": "pair.agreed",
    "pair_active.v1": "pair.activated",
    "pair_config.v1": "pair.configured",
    "pair_pause.v1": "pair.paused",
    "pair_resume.v1": "pair.resumed",
    "pair_degraded.v1": "pair.degraded",
    "pair_recovered.v1": "pair.recovered",
    "peer_manifest_changed.v1": "pair.manifest_changed",
    "pair_token.v1": "pair.token_changed",
    "pair.revoke.v1": "pair.revoked",
    "pair_rejected.v1": "pair.rejected",
}
"""Kind of record -> event name in the log."""
_ENDINGS: Final = {
    "rejected": Status.REJECTED,
    "expired": Status.EXPIRED,
    SUPERSEDED: Status.SUPERSEDED,
}


class Pairs:
    """All pairs of this instance, as the views hold them, and the only way to change one."""

    def __init__(
        self, home: Home, published: ManifestSigner, budget: IntakeBudget, *, now_ms: Callable[[], int],
        steady_ms: Callable[[], int], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        """`steady_ms` reads the monotonic clock, for retries and rates; `now_ms` dates records."""
        self._home, self.published, self.limits = home, published, home.config.limits
        self.writer, self.vault = home.writer, home.vault
        self.now_ms, self.steady_ms, self.random_bytes = now_ms, steady_ms, random_bytes
        self.budget = budget
        """Bytes that each pair brings in, which sync charges too."""
        self.newer = NewerManifests(self.vault, self.writer.views.pairs, self.limits)
        self._requests = Ages()
        self._lines = CountedLog(log)

    # -- looking

    @property
    def identity(self) -> Identity:
        """Who we are; raises PairError "identity-missing"."""
        if self.vault.identity is None:
            raise PairError("identity-missing")
        return self.vault.identity

    def all(self) -> Sequence[Pair]:
        """Return every pair, revoked ones too, in the order of their first record."""
        return list(self.writer.views.pairs.values())

    def get(self, pair_id: str) -> Pair | None:
        """Return the pair of this id, or None."""
        return self.writer.views.pairs.get(pair_id)

    def known(self, pair_id: str) -> Pair:
        """Return the pair of this id; raise PairError "pair-unknown"."""
        return known(self.writer.views.pairs, pair_id)

    def of_peer(self, did: str) -> list[Pair]:
        """Return the pairs with this peer that have not ended, oldest first."""
        return [pair for pair in self.all() if pair.peer_did == did and not pair.ended]

    def nonce(self) -> str:
        """Return a fresh nonce: 32 hex digits."""
        return self.random_bytes(NONCE_BYTES).hex()

    def has_agreed(self, did: str) -> bool:
        """Return whether a pair with this peer was ever agreed on."""
        return any(pair.peer_did == did and pair.answer is not None for pair in self.all())

    def parted(self, did: str) -> bool:
        """Return whether an agreed pair with this peer was revoked before."""
        return any(
            pair.peer_did == did and pair.ended and pair.answer is not None and pair.reason != SUPERSEDED
            for pair in self.all()
        )

    # -- changing

    def adopt_identity(self, label: str = "", *, force: bool = False) -> None:
        """Sign with the identity that the vault holds from now on; make one if there is none, or with `force`."""
        self._home.adopt(self.vault.generate(label or default_label(), force=force))
        if pins := self._home.former_pins():
            self._home.writer.submit(pins)

    def take(
        self, pair: Pair | None, *events: PairEvent, also: Sequence[Item] = (), brought: bool = False
    ) -> tuple[Pair, tuple[Effect, ...]]:
        """Decide the events one after another, make them durable in one submission, and return pair and effects left.

        `also` is written with them.  What the peer's word `brought` counts as its intake, and its lines are counted.
        Raises PairError "pair-state-conflict" and then nothing is stored; WriteError.
        """
        before, items, effects = pair, list[Item](), list[Effect]()
        for each in events:
            pair, found = steps.decide(pair, each, self.now_ms())
            effects += found
            items += [item for effect in found for item in self._items(pair, effect)]
        assert pair is not None
        items += self._aitl(pair, next((event.note for event in events if isinstance(event, steps.End)), ""))
        others = self._others(pair) if any(isinstance(effect, steps.EndOthers) for effect in effects) else []
        for other in others:
            ended, found = steps.decide(other, steps.End(SUPERSEDED), self.now_ms())
            items += [item for effect in found for item in self._items(ended, effect)] + self._aitl(ended)
        if before is None:
            self._requests.meet(pair.pair_id, self.steady_ms())
        self.submit([*items, *also], brought_by=pair.pair_id if brought else "")
        for dropped in (*others, *([pair] if any(isinstance(effect, steps.DropSecrets) for effect in effects) else [])):
            self.vault.delete(TOKEN_NAME + dropped.pair_id)
            self.vault.delete(RENEWED_NAME + dropped.pair_id)
        self._tell_log(pair, effects, brought)
        return self.writer.views.pairs[pair.pair_id], tuple(effects)

    def submit(self, items: Sequence[Item], *, brought_by: str = "") -> None:
        """Make the items durable and fold them; raise what refused them, "overloaded" if not begun after 30 s.

        A write that has begun is waited for: a refused step must not take effect afterwards.  `brought_by`: see `take`.
        """
        if not brought_by:
            self._write(items)
            return
        added = self.budget.charge(brought_by, sum(map(size_of, items)))
        try:
            self._write([*items, DayBytes(brought_by, self.budget.brought(brought_by))])
        except SplError:
            self.budget.refund(brought_by, added)
            raise

    def _write(self, items: Sequence[Item]) -> None:
        written = self.writer.submit(items)
        try:
            written.result(COMMIT_TIMEOUT_S)
        except FutureTimeout as exc:
            if written.cancel():
                raise PairError("overloaded", "the store did not take the write in time") from exc
            written.result()

    def begin(
        self, peer: Manifest, url: str, terms: Terms, *, strict: bool, actors: tuple[str, ...], poll_interval_ms: int
    ) -> Pair:
        """Return a new pair that we ask for; our token for the peer is sealed into its record."""
        own, nonce, now_ms = self.identity, self.nonce(), self.now_ms()
        pair_id = handshake.pair_id_of(own.did, peer.did, nonce)
        expires_at_ms = now_ms + int(self.limits.token_ttl_s * 1000)
        text, token = handshake.mint(pair_id, self.random_bytes(bearer.SECRET_BYTES), expires_at_ms)
        sealed = self.seal(text, peer, pair_id, nonce, expires_at_ms)
        proposal = Proposal(
            pair_id, nonce, peer.raw, terms.namespaces, terms.maps, terms.mode, terms.start, self.published.endpoint,
            token, sealed, url=url, strict=strict, actors=actors,
        )  # fmt: skip
        lifted = [self.blocking(peer.did, False)] if peer.did in self.writer.views.blocked else []
        pins = self.writer.views.pins
        if pins.is_forked(peer.did) or pins.code_of(peer.chain):
            # Only an operator who named the key gets here with such a chain.
            lifted.append(Own(THREAD_PAIRS, KIND_CHAIN, pin_body(peer.chain, chosen=True)))
        return self.take(None, steps.Begin(proposal, poll_interval_ms), also=lifted)[0]

    def blocking(self, did: str, blocked: bool) -> Own:
        """Return the record that refuses what a DID signed from now on, or lifts that."""
        return Own(THREAD_PAIRS, KIND_BLOCK, {"did": did, "blocked": blocked, "at": when.text_of(self.now_ms())})

    def hubs(self, pair: Pair) -> list[Pair]:
        """Return the live pairs that share a namespace with this one: records its peer signed may come through them."""
        return [
            other for other in self.all()
            if other.live and other.peer_did != pair.peer_did and set(other.namespaces) & set(pair.namespaces)
        ]  # fmt: skip

    def grant(self, pair: Pair, answer: Json) -> Pair:
        """Return our pair after the peer's grant: its token in the vault, then the genesis, which mints ours (3c, 3d).

        Raises MessageError, HandshakeError, BearerError "sealed-token".
        """
        own = self.identity
        fields = handshake.read_grant(answer, pair, own.did, self.limits)
        opened = handshake.open_sealed(fields, own.seal_secrets)
        self.vault.put(TOKEN_NAME + pair.pair_id, opened.token)
        token = handshake.token_ref(opened.token, opened.scopes, opened.expires_at_ms, issued=False)
        return self.take(pair, steps.Agree(answer, token, self.writer.store.last_seq))[0]

    def approve(
        self, pair: Pair | None, proposal: Proposal, peer: Manifest, agreed: Terms, poll_interval_ms: int = 0
    ) -> Pair:
        """Return the pair approved as agreed: the peer's token in the vault, then genesis and our answer (3a, 3b).

        `agreed` is what was asked for, or less.  `pair` None records the request in the same write.
        """
        own, nonce, now_ms = self.identity, self.nonce(), self.now_ms()
        expires_at_ms = now_ms + int(self.limits.token_ttl_s * 1000)
        text, token = handshake.mint(proposal.pair_id, self.random_bytes(bearer.SECRET_BYTES), expires_at_ms)
        sealed = self.seal(text, peer, proposal.pair_id, nonce, expires_at_ms)
        terms = replace(agreed, start=agreed.start or ("present" if self.parted(peer.did) else "beginning"))
        fields = handshake.grant_fields(own.did, proposal, peer.did, terms, sealed, nonce, now_ms)
        answer = message.sign("pair-answer", fields, own.key)
        self.vault.put(TOKEN_NAME + proposal.pair_id, self._opened(proposal, peer).token)
        approved = steps.Approve(answer, token, self.writer.store.last_seq)
        if pair is None:
            return self.take(None, steps.Ask(proposal, poll_interval_ms), approved)[0]
        return self.take(pair, approved)[0]

    # -- what the peer shows

    def doubt(self, pair: Pair, code: str) -> bool:
        """Mark an active pair, or one that is degraded for another reason, as degraded; return whether it was."""
        if isinstance(pair.state, Active) or (isinstance(pair.state, Degraded) and pair.reason != code):
            self.take(pair, steps.Degrade(code))
            return True
        return False

    def meet(self, did: str, ours: Terms) -> Pair | None:
        """Return the peer's own request that waits here, if any, approved if what we ask for covers it."""
        for other in self.of_peer(did):
            if isinstance(other.state, Asked):
                asked = handshake.terms_of(other.proposal)
                agreed = handshake.common(asked, ours.turned(), self.writer.views.namespaces)
                return self.approve(other, other.proposal, other.peer, agreed) if agreed else other
        return None

    def adopt_manifest(self, pair: Pair, peer: Manifest, *, at_once: bool = False) -> Pair:
        """Return the pair with a newer manifest of its peer, if that says more than the one we have.

        Each is a record, so there is one an hour; a further one waits for `adopt_waiting`.  A grown key
        chain never waits, since what the new key signs is refused until then, and chains end at limits.chain_links;
        nor does what our operator asked for (`at_once`).
        """
        if not manifest.says_more(peer, pair.peer, self.now_ms()):
            return pair
        if not (at_once or self._is_manifest_due(pair)) and len(peer.chain.rotations) == len(pair.chain.rotations):
            self.newer.put(pair.pair_id, peer, self.steady_ms() / 1000)
            return pair
        self.newer.drop(pair.pair_id)
        return self.take(pair, steps.ManifestChange(peer.raw), brought=True)[0]

    def _is_manifest_due(self, pair: Pair, every_ms: int = MANIFEST_EVERY_MS) -> bool:
        is_first = pair.fetched_at_ms == pair.created_at_ms
        return is_first or not 0 <= self.now_ms() - pair.fetched_at_ms < every_ms

    def adopt_waiting(self, unreached: Callable[[str], str]) -> None:
        """Take the manifests that waited for their hour, or whose pair is `unreached` at the address that we have."""
        for pair_id, peer in self.newer.take():
            pair = self.get(pair_id)
            if pair is None or pair.ended or peer.signed_at_ms <= pair.peer.signed_at_ms:
                self.newer.drop(pair_id)
            elif self._is_manifest_due(pair, MANIFEST_LOST_MS if unreached(pair_id) else MANIFEST_EVERY_MS):
                self.adopt_manifest(pair, peer, at_once=True)
        self.newer.save(self.steady_ms() / 1000)

    # -- steps that write more than one record

    def confirm(self, pair: Pair, *changes: steps.Configure) -> tuple[Pair, tuple[Effect, ...]]:
        """Return the pair active, with the changes, and the effects left (4a, 4b); an older live pair ends."""
        older = [other for other in self._others(pair) if other.answer is not None]
        return self.take(pair, steps.Confirm(older[-1].pair_id if older else ""), *changes)

    def expire(self) -> list[Pair]:
        """End what has been establishing for limits.request_ttl_s, by both clocks; return what ended."""
        dates = {pair.pair_id: pair.created_at_ms for pair in self.all() if pair.phase is Phase.ESTABLISHING}
        old = self._requests.older(dates, self.now_ms(), self.steady_ms(), int(self.limits.request_ttl_s * 1000))
        return [self.take(self.known(pair_id), steps.End("expired"))[0] for pair_id in old]

    def heal(self) -> None:
        """Make the vault agree with the records after a crash or a restored copy.

        A secret without its record goes; a record without its secret gets it back from the sealed token inside.  What
        a torn write kept of a pair gets its request, or the decision on it.
        """
        waits = {each.request_id for each in self.writer.views.requests.values() if each.status is Status.PENDING}
        torn = [pair for pair in self.all() if isinstance(pair.state, Asked) != (pair.pair_id in waits)]
        if torn:
            self.submit([item for pair in torn for item in self._aitl(pair)])
        live = {pair.pair_id: pair for pair in self.all() if pair.live}
        for name in self.vault.names(TOKEN_NAME):
            if name.removeprefix(TOKEN_NAME) not in live:
                self.vault.delete(name)
        for name in self.vault.names(RENEWED_NAME):
            if bearer.hash_of(self.vault.get(name) or "") not in self.writer.views.tokens_by_hash:
                self.vault.delete(name)
        self.recall(live.values())

    def recall(self, pairs: Iterable[Pair]) -> None:
        """Give each live pair that lacks its secret the one from the sealed token in its records."""
        for pair in pairs:
            if pair.live and self.vault.get(TOKEN_NAME + pair.pair_id) is None:
                self._restore_secret(pair)

    def _restore_secret(self, pair: Pair) -> None:
        try:
            if pair.initiator and pair.answer is not None:
                token = handshake.open_sealed(pair.answered, self.identity.seal_secrets).token
            else:
                token = self._opened(pair.proposal, pair.peer).token
        except SplError as exc:
            log.warning(**event("pair.token_lost", pair=pair.pair_id, code=exc.code))
            return
        self.vault.put(TOKEN_NAME + pair.pair_id, token)

    def _opened(self, proposal: Proposal, peer: Manifest) -> bearer.OpenedToken:
        """Return the token that a peer's request held."""
        own = self.identity
        fields = {
            "token": proposal.sealed,
            "pair_id": proposal.pair_id,
            "nonce": proposal.nonce,
            "signer": peer.did,
            "audience": own.did,
        }
        return handshake.open_sealed(fields, own.seal_secrets)

    def seal(self, text: str, peer: Manifest, pair_id: str, nonce: str, expires_at_ms: int) -> str:
        """Return our token sealed to the peer, for exactly the message of this nonce."""
        return bearer.seal_token(
            text, public=peer.seal_key, ephemeral=self.random_bytes(EPHEMERAL_BYTES), pair_id=pair_id, nonce=nonce,
            issuer=self.identity.did, audience=peer.did, scopes=handshake.SCOPES, expires_at_ms=expires_at_ms,
        )  # fmt: skip

    def _others(self, pair: Pair) -> list[Pair]:
        return [other for other in self.of_peer(pair.peer_did) if other.pair_id != pair.pair_id]

    def _items(self, pair: Pair, effect: Effect) -> list[Item]:
        """Return what the effect writes."""
        match effect:
            case steps.Append(kind, body):
                return [Own(THREAD_PAIRS, kind, body)]
            case steps.Audit(transition, reason):
                body = {
                    "timestamp": when.text_of(self.now_ms()),
                    "pair_id": pair.pair_id,
                    "peer_did": pair.peer_did,
                    "transition": transition,
                    "reason": reason,
                }
                return [Own(THREAD_AUDIT, KIND_AUDIT, body)]
            case steps.Mint(token, namespaces):
                return [Own(THREAD_TOKENS, bearer.KIND_MINT, self._minted(pair, token, namespaces))]
            case steps.KillTokens():
                body = {"pair_id": pair.pair_id, "at": when.text_of(self.now_ms())}
                return [Own(THREAD_TOKENS, bearer.KIND_REVOKE, body)]
            case steps.EndOthers(inherits) if inherits in self.writer.views.positions:
                place = self.writer.views.positions[inherits]
                return [SavedPosition(pair.pair_id, place.cursor, place.count)]
        return []

    def _minted(self, pair: Pair, token: TokenRef, namespaces: tuple[str, ...]) -> Json:
        account, label = handshake.account_of(pair.pair_id), f"pair with {short_of(pair.peer_did)}"
        return bearer.mint_body(bearer.Token(
            token.token_id, account, token.hash, frozenset(token.scopes), namespaces, pair.pair_id, pair.peer_did,
            token.expires_at_ms, self.now_ms(), label,
        ))  # fmt: skip

    def _aitl(self, after: Pair, note: str = "") -> list[Item]:
        """Return the request or the decision for people that goes with a step."""
        if isinstance(after.state, Asked):
            return [Own(THREAD_AITL, aitl.KIND_REQUEST, self._request(after).to_body())]
        request = self.writer.views.requests.get(after.pair_id)
        if request is None or request.status is not Status.PENDING:
            return []
        status = Status.APPROVED if after.answer is not None else _ENDINGS.get(after.reason, Status.WITHDRAWN)
        body = aitl.decision_body(request, status, note or after.reason, self.now_ms())
        return [Own(THREAD_AITL, aitl.KIND_DECISION, body)]

    def _tell_log(self, pair: Pair, effects: Sequence[Effect], brought: bool) -> None:
        for effect in effects:
            if isinstance(effect, steps.Append):
                name, reason = EVENTS[effect.kind.removeprefix(PREFIX)], {"reason": pair.reason} if pair.reason else {}
                fields = {"peer": pair.peer_did, "state": pair.phase.value, **reason}
                if brought:
                    self._lines.info(name, pair.pair_id, **fields)
                else:
                    log.info(**event(name, pair=pair.pair_id, **fields))

    def _request(self, pair: Pair) -> ApprovalRequest:
        return ApprovalRequest(
            pair.pair_id, aitl.TYPE_PAIR, pair.peer_did, words(pair.peer.public_key), pair.proposal.digest,
            pair.namespaces, pair.maps, pair.mode, pair.proposal.endpoint, pair.created_at_ms,
            pair.created_at_ms + int(self.limits.request_ttl_s * 1000),
        )  # fmt: skip


def by_peer(reason: str) -> str:
    """Return the reason of a pair that the peer revoked, with the peer's own if it gave one."""
    return f"revoked by peer: {reason}" if reason and reason != REVOKED else "revoked by peer"


def unconfirmed(pair: Pair) -> bool:
    """Return whether the pair is agreed on but not confirmed yet."""
    return isinstance(pair.state, Answered | Approved)
