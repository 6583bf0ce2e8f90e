"""Tokens of a live pair: asking for a new one, giving one, and ending the old one; at every moment at least one works.

The holder asks, signed by its present key, so no live bearer is needed.  The issuer mints once and gives the same new
token to a peer that asks again, until the peer has used it; the old one works until then, or until its own end.  A call
that the peer signed just before its first use of the new one may still be on its way, so the old one ends only after
the time that any answer may take.

A new token needs one renewal in months.  Each is three records and stays in the fold of the tokens, so a peer gets
TOKENS_MAX at once, and then one an hour or as many as TOKENS_MAX in the life of one, whichever is more.

Blocks on the disk, except where a method says otherwise; runs on the thread of the steps.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..core import when
from ..core.backoff import Buckets
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import bearer, message
from ..core.identity.bearer import Token
from ..core.pair import handshake
from ..core.pair.handshake import HandshakeError
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import Revoking, TokenRef
from ..core.pair.steps import TokenChange
from ..core.value import Json
from ..home.views import THREAD_TOKENS
from ..home.writes import Own
from ..sync.peer import TOKEN_NAME, cut_text
from .machine import RENEWED_NAME, Pairs

log = logging.getLogger("spl.federation")

LIVE: Final = "live"
TOKENS_MAX: Final = 8  # each is two records and a secret on disk
TOKEN_EVERY_S: Final = 3600.0
ANSWERS: Final = 2
"""So many times what an answer may take, the peer either has a new token or does not get it any more."""


class Renewal:
    """Both sides of a renewal, for all pairs."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        unused = {name.removeprefix(RENEWED_NAME) for name in pairs.vault.names(RENEWED_NAME)} | self._doubled()
        self._unused = dict.fromkeys(unused, pairs.steady_ms())
        """Pairs with a new token that the peer has not used yet, and since when this process knows, by the steady
        clock."""
        self._used_ms: dict[str, int] = {}
        """When the peer first used its new token, by the steady clock."""
        limits = pairs.limits
        per_s = 1 / min(TOKEN_EVERY_S, limits.token_ttl_s / TOKENS_MAX)
        self._minted = Buckets(TOKENS_MAX, per_s, limits.pairs_count)
        self._asked = Buckets(TOKENS_MAX, per_s, limits.pairs_count)

    def _doubled(self) -> set[str]:
        """Return the pairs with more than one live token: a new one may lose its file before the old one ended."""
        alive = Counter(token.pair_id for token in self.pairs.writer.views.tokens.values() if not token.revoked)
        return {pair_id for pair_id, count in alive.items() if pair_id and count > 1}

    def end_left_over(self) -> None:
        """End the tokens of pairs that have ended: a torn write may have kept a pair's end without theirs."""
        alive = {token.pair_id for token in self.pairs.writer.views.tokens.values() if not token.revoked}
        over = [pair.pair_id for pair in self.pairs.all() if pair.ended or isinstance(pair.state, Revoking)]
        bodies = [{"pair_id": pair_id, "at": self._now()} for pair_id in over if pair_id in alive]
        if bodies:
            self.pairs.submit([Own(THREAD_TOKENS, bearer.KIND_REVOKE, body) for body in bodies])

    # -- the holder

    def held(self, pair: Pair) -> str:
        """Return the id of the token that we present to the peer, "" when we have none."""
        text = self.pairs.vault.get(TOKEN_NAME + pair.pair_id)
        return id_of(text) if text else ""

    def due(self, pair: Pair, found: object) -> bool:
        """Return whether to ask for a new token.

        It is due near its end, and if it is short of a scope, lost, dead at the peer, or replaced there.

        `found` is what the peer's signed answer says of the token that our poll named.
        """
        token = pair.issued_to_us
        if token is None or _is_short(token.scopes) or self.held(pair) != token.token_id:
            return True
        if self.pairs.now_ms() >= token.renew_at_ms(self.pairs.limits.token_renew_s):
            return True
        return isinstance(found, Mapping) and (found.get("state") != LIVE or found.get("replaced") is True)

    def take(self, pair_id: str, fields: Mapping[str, Any]) -> Pair:
        """Return the pair with the new token of the peer's signed answer: in the vault, then in the records.

        Raises BearerError or HandshakeError "sealed-token", PairError "pair-state-conflict", "auth-invalid" for none.
        """
        pair = self.pairs.known(pair_id)
        if fields["state"] == "refused":
            hint = f"ask its operator for: spl token rotate {pair_id}"
            raise PairError("auth-invalid", "the peer's operator revoked our token of this pair", hint=hint)
        if "token" not in fields:
            raise PairError("pair-state-conflict", f"the peer gave no token: with it the pair is {fields['state']}")
        opened = handshake.open_sealed(fields, self.pairs.identity.seal_secrets)
        bearer.parse(opened.token)
        token = handshake.token_ref(opened.token, opened.scopes, opened.expires_at_ms, issued=False)
        return self.install(pair, opened.token, token)

    def is_asked(self, peer_did: str) -> bool:
        """Return whether to follow a peer that asks us to take a new token from it; counts the question."""
        return not self._asked.take(peer_did, self.pairs.steady_ms() / 1000)

    def install(self, pair: Pair, text: str, token: TokenRef) -> Pair:
        """Return the pair that presents this token from now on."""
        self.pairs.vault.put(TOKEN_NAME + pair.pair_id, text)
        return self.pairs.take(pair, TokenChange(False, token), brought=True)[0]

    # -- the issuer

    def facts(self, pair: Pair, token_id: object) -> Json:
        """Return what we answer about the token that the peer names: {token_id, state, scopes, expires_at, replaced}.

        `replaced`: a new one was made for it, and the answer that held it was lost.
        """
        token = self.pairs.writer.views.tokens.get(token_id) if isinstance(token_id, str) else None
        if token is None or token.pair_id != pair.pair_id:
            return {"token_id": str(token_id)[:40], "state": "unknown", "scopes": [], "expires_at": None}
        now_ms = self.pairs.now_ms()
        state = "revoked" if token.revoked else "expired" if token.expired(now_ms) else LIVE
        expires_at = when.text_of(token.expires_at_ms) if token.expires_at_ms else None
        present = pair.issued_by_us
        replaced = pair.pair_id in self._unused and present is not None and present.token_id != token.token_id
        return {
            "token_id": token.token_id, "state": state, "scopes": sorted(token.scopes), "expires_at": expires_at,
            "replaced": replaced,
        }  # fmt: skip

    def grant(self, pair: Pair, fields: Mapping[str, Any], nonce: str) -> tuple[Pair, str]:
        """Return (pair, our new token sealed for the answer of this nonce) to the peer's verified request.

        Raises HandshakeError "message-replayed", "auth-invalid" after our operator revoked a token of the pair,
        "rate-limited" for one new token too many.
        """
        if bearer.is_barred(self.pairs.writer.views.tokens, pair.pair_id):
            hint = f"ask the operator of the other side for: spl token rotate {pair.pair_id}"
            raise HandshakeError("auth-invalid", "the operator revoked this pair's token", hint=hint)
        until_ms = message.issued_at_ms(fields) + int(self.pairs.limits.nonce_memory_s * 1000)
        if not self.pairs.vault.remember_nonce(pair.peer_did, fields["nonce"], until_ms):
            raise HandshakeError("message-replayed")
        assert type(pair.state) in ESTABLISHED
        text, token = self._waiting(pair)
        if token is None:
            wait_s = self._minted.take(pair.peer_did, self.pairs.steady_ms() / 1000)
            if wait_s:
                raise HandshakeError("rate-limited", "too many new tokens", retry_after_s=int(wait_s) + 1)
            expires_at_ms = self.pairs.now_ms() + int(self.pairs.limits.token_ttl_s * 1000)
            text, ref = handshake.mint(pair.pair_id, self.pairs.random_bytes(bearer.SECRET_BYTES), expires_at_ms)
            self.pairs.vault.put(RENEWED_NAME + pair.pair_id, text)
            pair, _ = self.pairs.take(pair, TokenChange(True, ref), brought=True)
            for known in (self._used_ms, self._unused):  # of the token before, if the log had room for the new one
                known.pop(pair.pair_id, None)
        else:
            expires_at_ms = token.expires_at_ms
        self._unused.setdefault(pair.pair_id, self.pairs.steady_ms())
        return pair, self.pairs.seal(text, pair.peer, pair.pair_id, nonce, expires_at_ms)

    def readmit(self, pair_id: str) -> bool:
        """Let the peer renew its token again if our operator revoked one of the pair; return whether that was so."""
        if not bearer.is_barred(self.pairs.writer.views.tokens, pair_id):
            return False
        self.pairs.submit([Own(THREAD_TOKENS, bearer.KIND_READMIT, {"pair_id": pair_id})])
        return True

    def watches(self, pair: Pair, token_id: str) -> bool:
        """Return whether `used` must be called for this use of a token; touches no disk, for the event loop."""
        if pair.issued_by_us is None or not token_id:
            return False
        if token_id == pair.issued_by_us.token_id:
            return pair.pair_id in self._unused and pair.pair_id not in self._used_ms
        return self._is_newer(pair, self.pairs.writer.views.tokens.get(token_id)) or self._is_lost(pair)

    def used(self, pair_id: str, token_id: str) -> None:
        """Record that the peer used its new token, or one that our operator minted for it later by hand.

        One that still uses the old token, longer after the renewal than any answer may take, did not get the new one,
        which ends.
        """
        pair, token = self.pairs.known(pair_id), self.pairs.writer.views.tokens.get(token_id)
        if token is not None and self._is_older(pair, token):
            if self._is_lost(pair) and type(pair.state) in ESTABLISHED:
                self._withdraw(pair, token)
            return
        if token is not None and self._is_newer(pair, token) and type(pair.state) in ESTABLISHED:
            ref = TokenRef(token.token_id, tuple(sorted(token.scopes)), token.expires_at_ms, token.hash)
            self.pairs.take(pair, TokenChange(True, ref, minted=True))
            self._unused[pair_id] = self.pairs.steady_ms()
        self._used_ms[pair_id] = self.pairs.steady_ms()

    def _is_lost(self, pair: Pair) -> bool:
        """Return whether the answer that held the new token can reach the peer no more."""
        since_ms = self._unused.get(pair.pair_id)
        late_ms = ANSWERS * int(self.pairs.limits.answer_timeout_s * 1000)
        is_used = pair.pair_id in self._used_ms
        return since_ms is not None and not is_used and self.pairs.steady_ms() - since_ms >= late_ms

    def _withdraw(self, pair: Pair, old: Token) -> None:
        """End a new token that the peer did not get; it goes on with the old one, and asks again when that is due."""
        lost = pair.issued_by_us
        assert lost is not None
        ref = TokenRef(old.token_id, tuple(sorted(old.scopes)), old.expires_at_ms, old.hash)
        ends = Own(THREAD_TOKENS, bearer.KIND_REVOKE, {"token_id": lost.token_id, "at": self._now()})
        self.pairs.take(pair, TokenChange(True, ref, minted=True), also=[ends])
        self.pairs.vault.delete(RENEWED_NAME + pair.pair_id)
        self._used_ms[pair.pair_id] = self.pairs.steady_ms()  # so that those before the old one end as well
        log.info(**event("token.retired", pair=pair.pair_id, tokens=lost.token_id))

    def _now(self) -> str:
        return when.text_of(self.pairs.now_ms())

    def retire(self) -> None:
        """End the tokens whose successor the peer has used for as long as an answer may take."""
        limit_ms = self.pairs.steady_ms() - int(self.pairs.limits.answer_timeout_s * 1000)
        for pair_id in [pair_id for pair_id, used_ms in self._used_ms.items() if used_ms <= limit_ms]:
            pair = self.pairs.get(pair_id)
            if pair is not None and pair.issued_by_us is not None and not pair.ended:
                self._end_older(pair)
            self.pairs.vault.delete(RENEWED_NAME + pair_id)
            self._unused.pop(pair_id, None)
            del self._used_ms[pair_id]

    def _end_older(self, pair: Pair) -> None:
        tokens = self.pairs.writer.views.tokens.values()
        dead = [token for token in tokens if not token.revoked and self._is_older(pair, token)]
        bodies = [{"token_id": token.token_id, "at": self._now()} for token in dead]
        if bodies:
            items = [Own(THREAD_TOKENS, bearer.KIND_REVOKE, body) for body in bodies]
            self.pairs.submit(items, brought_by=pair.pair_id)
            fields = {"pair": pair.pair_id, "tokens": ",".join(token.token_id for token in dead)}
            log.info(**event("token.retired", **fields))

    def _waiting(self, pair: Pair) -> tuple[str, Token | None]:
        """Return (text, token) of the new token that the peer has not used yet, unless it is near its own end."""
        text = self.pairs.vault.get(RENEWED_NAME + pair.pair_id) or ""
        token = self.pairs.writer.views.tokens_by_hash.get(bearer.hash_of(text))
        ref = pair.issued_by_us
        if token is None or token.revoked or ref is None or ref.token_id != token.token_id:
            return "", None
        late = self.pairs.now_ms() >= ref.renew_at_ms(self.pairs.limits.token_renew_s)
        return ("", None) if late or pair.pair_id in self._used_ms else (text, token)

    def _is_newer(self, pair: Pair, token: Token | None) -> bool:
        return token is not None and self._age_of(pair, token) > 0

    def _is_older(self, pair: Pair, token: Token) -> bool:
        return self._age_of(pair, token) < 0

    def _age_of(self, pair: Pair, token: Token) -> int:
        """Return whether a token of the pair was minted after its present one (1), before it (-1), or is none (0).

        The fold holds the tokens in the order in which they were minted; their dates are those of a clock that may
        have been set in between.
        """
        present, tokens = pair.issued_by_us, self.pairs.writer.views.tokens
        if present is None or token.pair_id != pair.pair_id or token.token_id == present.token_id:
            return 0
        first = next((each for each in tokens if each in (token.token_id, present.token_id)), "")
        return 0 if present.token_id not in tokens else 1 if first == present.token_id else -1


def id_of(text: str) -> str:
    """Return the id by which both sides name a token of this text."""
    return f"tok_{bearer.hash_of(text)[:8]}"


def check_found(found: object) -> Mapping[str, Any]:
    """Return what the peer says of a token that works for a pair.

    Raises PairError "auth-invalid" for one that is not live there, "token-scope" for one short of a scope.
    """
    if not isinstance(found, Mapping) or found.get("state") != LIVE:
        state = found.get("state") if isinstance(found, Mapping) else "unknown"
        raise PairError("auth-invalid", f"the peer says of this token for the pair: {cut_text(state, 40)}")
    scopes = found.get("scopes")
    if not isinstance(scopes, list) or _is_short(scopes):
        raise PairError("token-scope")
    return found


def expiry_of(found: Mapping[str, Any]) -> int:
    """Return the time at which the token of the peer's answer ends; raise SplError for no time."""
    try:
        return when.ms_of(found.get("expires_at"))
    except when.WhenError as exc:
        raise SplError("answer-malformed", "the peer names no time at which the token ends") from exc


def _is_short(scopes: Iterable[object]) -> bool:
    """Return whether the scopes lack one that a pair's sync needs."""
    held = frozenset(map(str, scopes))
    return not all(bearer.holds(held, scope) for scope in handshake.SCOPES)
