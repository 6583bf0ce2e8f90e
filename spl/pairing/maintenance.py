"""What a live pair needs over the months: its peer's manifest, its tokens, and its way back from trouble.

A pair is looked after when its manifest is due (limits.manifest_refresh_s, jittered), when its token nears its end,
when the peer's key chain grew elsewhere, and while it is degraded for a reason that only this heals.  Failures back
off with full jitter, and each is told; a pair that is paused stays paused.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ..core import when
from ..core.backoff import full_jitter_s, spread_s
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import bearer, manifest
from ..core.identity.did import DidError, grown
from ..core.identity.manifest import Manifest
from ..core.identity.pins import FORK, KIND_CHAIN, pin_body
from ..core.limits import Limits
from ..core.pair.handshake import token_ref
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import Active, Degraded
from ..core.pair.steps import Degrade, ManifestChange, PairEvent, Recover
from ..home.views import THREAD_PAIRS
from ..home.writes import Own
from .exchange import Do, Exchange
from .initiator import Initiator
from .machine import Pairs
from .tokens import Renewal, check_found, expiry_of, id_of

log = logging.getLogger("spl.federation")

BACKOFF_BASE_S: Final = 5.0
BACKOFF_MAX_S: Final = 3600.0
PAUSE_MS: Final = 1000
"""Between two rounds over one pair, however the clocks and the answers may be."""
UNVERIFIED: Final = frozenset(
    "manifest-malformed manifest-signature manifest-did-mismatch manifest-expired manifest-stale peer-version"
    " chain-broken chain-fork did-invalid".split()
)
"""Why a changed manifest does not hold: reasons of a degraded pair that no successful sync heals."""
CREDENTIALS: Final = frozenset(
    "auth-required auth-invalid scope-forbidden token-expired token-scope message-signature".split()
)
"""What the peer says of our token or key; a new token, or telling our new key, may heal it."""

Step = Callable[[str, PairEvent], Awaitable[Pair]]


@dataclass(slots=True)
class _PairState:
    """What this process remembers of looking after one pair."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    unit: float = 0.5
    attempt: int = 0
    retry_ms: int = 0
    fetched_ms: int = 0
    error: SplError | None = None
    at_ms: int = 0
    links: int = 0


class Maintenance:
    """Looks after all pairs.  `step` takes a step of a pair; `wake` makes sync try a pair now."""

    def __init__(
        self,
        pairs: Pairs,
        renewal: Renewal,
        initiator: Initiator,
        talk: Exchange,
        limits: Limits,
        *,
        step: Step,
        do: Do,
        exchange: Callable[..., Awaitable[dict[str, Any]]],
        wake: Callable[[str], None],
    ) -> None:
        self.pairs, self.limits = pairs, limits
        self._renewal, self._initiator, self._talk = renewal, initiator, talk
        self._step, self._do, self._exchange, self._wake = step, do, exchange, wake
        self._cares: dict[str, _PairState] = {}

    # -- what is due

    def due(self) -> list[str]:
        """Return the pairs to look after now."""
        now_ms = self.pairs.now_ms()
        return [pair.pair_id for pair in self.pairs.all() if self._is_kept(pair) and self._due_ms(pair) <= now_ms]

    def next_s(self) -> float:
        """Return the seconds until a pair is due next, as things stand; infinite where there is none."""
        now_ms = self.pairs.now_ms()
        times = [self._due_ms(pair) for pair in self.pairs.all() if self._is_kept(pair)]
        return max(0.0, (min(times) - now_ms) / 1000) if times else float("inf")

    def status(self, pair_id: str) -> dict[str, object]:
        """Return {fetched_at, attempt, next_attempt_at, last_error} of looking after a pair, for people."""
        care, pair = self._cares.get(pair_id) or _PairState(), self.pairs.get(pair_id)
        error = care.error
        fetched_ms = max(care.fetched_ms, pair.fetched_at_ms if pair is not None else 0)
        told = error and {"code": error.code, "message": error.message, "at": when.text_of(care.at_ms)}
        return {
            "fetched_at": when.text_of(fetched_ms),
            "attempt": care.attempt,
            "next_attempt_at": when.text_of(care.retry_ms) if care.attempt else None,
            "last_error": told,
        }

    def _is_kept(self, pair: Pair) -> bool:
        return type(pair.state) in ESTABLISHED and not self._care(pair.pair_id).lock.locked()

    def _due_ms(self, pair: Pair) -> int:
        care = self._care(pair.pair_id)
        interval_ms = spread_s(self.limits.manifest_refresh_s, care.unit) * 1000
        due_ms = max(pair.fetched_at_ms, care.fetched_ms) + int(interval_ms)
        if pair.issued_to_us is not None:
            due_ms = min(due_ms, pair.issued_to_us.renew_at_ms(self.limits.token_renew_s))
        if care.attempt or _is_mendable(pair) or self._grew(pair):
            due_ms = 0
        return max(due_ms, care.retry_ms)

    def _grew(self, pair: Pair) -> bool:
        """Return whether a longer key chain of the peer is pinned than the pair's, or a fork that degrades it."""
        pins = self.pairs.writer.views.pins
        if pins.is_forked(pair.peer_did) and not (isinstance(pair.state, Degraded) and pair.reason == FORK):
            return True
        seen = pins.chain(pair.peer_did)
        known = max(len(pair.chain.rotations), self._care(pair.pair_id).links)
        return seen is not None and len(seen.rotations) > known

    def expired(self) -> list[str]:
        """Return the active pairs whose token for us has ended."""
        now_ms = self.pairs.now_ms()
        return [
            pair.pair_id for pair in self.pairs.all()
            if isinstance(pair.state, Active) and pair.issued_to_us and pair.issued_to_us.expires_at_ms <= now_ms
        ]  # fmt: skip

    # -- doing it

    async def maintain(self, pair_id: str) -> None:
        """Refresh one pair in the background; what goes wrong is told, and tried again later."""
        care = self._care(pair_id)
        if care.lock.locked():
            return
        try:
            await self.refresh(pair_id)
        except SplError as exc:
            self._failed(pair_id, care, exc)

    async def refresh(self, pair_id: str, expect_key: str = "") -> Pair:
        """Fetch the peer's manifest anew, learn where the pair stands there, renew a token that needs it, and recover.

        `expect_key` (multibase or six words) settles a fork of its key chain: the operator compared it.
        Raises ReachError, ManifestError, MessageError, PairError.
        """
        care = self._care(pair_id)
        async with care.lock:
            pair = await self._refresh_manifest(self._pair(pair_id), expect_key)
            care.fetched_ms = self.pairs.now_ms()
            if type(pair.state) in ESTABLISHED:
                fields = await self._exchange(pair_id)
                if fields["state"] == "unknown":
                    hint = f"spl federation revoke {pair_id}, then pair again"
                    raise PairError("pair-unknown", "the peer does not know this pair any more", hint=hint)
                pair, found = self._pair(pair_id), fields.get("held")
                if type(pair.state) in ESTABLISHED and await self._do(self._renewal.due, pair, found):
                    pair = await self._renew(pair_id)
            if self.pairs.writer.views.pins.is_forked(pair.peer_did):
                await self.doubt(pair_id, FORK)
                raise PairError(FORK, f"two key chains of {pair.peer_did} contradict each other")
            if isinstance(pair.state, Degraded):
                pair = await self._step(pair_id, Recover())
            care.unit = int.from_bytes(self.pairs.random_bytes(4)) / 2**32
            care.attempt, care.error = 0, None
            care.retry_ms = self.pairs.now_ms() + PAUSE_MS
            seen = self.pairs.writer.views.pins.chain(pair.peer_did)
            care.links = len(seen.rotations) if seen is not None else 0
        if pair.sync_allowed:
            self._wake(pair_id)
        return self._pair(pair_id)

    async def renew(self, pair_id: str) -> Pair:
        """Replace the token that the peer issued to us by a new one, now; raises as `refresh`."""
        async with self._care(pair_id).lock:
            return await self._renew(pair_id)

    async def set_token(self, pair_id: str, text: str) -> Pair:
        """Present this token, which the peer minted for the pair, from now on: once the peer took it in one call.

        Raises BearerError or PairError "auth-invalid", PairError "token-scope".
        """
        pair = self._pair(pair_id)
        if type(pair.state) not in ESTABLISHED:
            raise PairError("pair-state-conflict", f"the pair is {pair.phase}")
        bearer.parse(text)
        async with self._care(pair_id).lock:
            found = check_found((await self._exchange(pair_id, token_id=id_of(text))).get("held"))
            token = token_ref(text, frozenset(map(str, found["scopes"])), expiry_of(found), issued=False)
            await self._talk.prove(self._pair(pair_id), text)
            pair = await self._do(lambda: self._renewal.install(self._pair(pair_id), text, token))
            if isinstance(pair.state, Degraded) and pair.reason in CREDENTIALS:
                pair = await self._step(pair_id, Recover())
        self._wake(pair_id)
        return pair

    async def _refresh_manifest(self, pair: Pair, expect_key: str) -> Pair:
        """Return the pair with the peer's present manifest; one that does not hold degrades it."""
        try:
            peer = await self._talk.rediscover(pair, expect_key)
            forked = _is_fork(pair, peer) or (
                bool(expect_key) and self.pairs.writer.views.pins.is_forked(pair.peer_did)
            )
        except SplError as exc:
            if exc.code in UNVERIFIED:
                await self.doubt(pair.pair_id, exc.code)
            raise
        now_ms = self.pairs.now_ms()
        if not (forked or manifest.says_more(peer, pair.peer, now_ms)):
            return self._pair(pair.pair_id)
        changed = await self._step(pair.pair_id, ManifestChange(peer.raw, pinned=forked))
        if forked:
            pin = Own(THREAD_PAIRS, KIND_CHAIN, pin_body(peer.chain, chosen=True))
            await self._do(self.pairs.submit, [pin])
        return changed

    async def doubt(self, pair_id: str, code: str) -> None:
        """Mark a pair as degraded for this reason; one in another state stays as it is."""
        pair = self._pair(pair_id)
        if isinstance(pair.state, Active) or (isinstance(pair.state, Degraded) and pair.reason != code):
            await self._step(pair_id, Degrade(code))

    async def _renew(self, pair_id: str) -> Pair:
        pair = self._pair(pair_id)
        words = await self._do(self._initiator.renew_words, pair)
        fields = await self._talk.say(pair, words)
        after: Pair = await self._do(self._renewal.take, pair_id, fields)
        assert after.issued_to_us is not None
        told = {"pair": pair_id, "token": after.issued_to_us.token_id}
        log.info(**event("token.renewed", **told))
        return after

    def _failed(self, pair_id: str, care: _PairState, exc: SplError) -> None:
        now_ms = self.pairs.now_ms()
        care.attempt += 1
        unit = int.from_bytes(self.pairs.random_bytes(4)) / 2**32
        cap_s = min(BACKOFF_MAX_S, self.limits.manifest_refresh_s)
        delay_s = full_jitter_s(care.attempt, BACKOFF_BASE_S, cap_s, unit)
        care.retry_ms, care.error, care.at_ms = now_ms + int(delay_s * 1000), exc, now_ms
        fields: dict[str, object] = {"pair": pair_id, "code": exc.code, "attempt": care.attempt, "msg": exc.message}
        pair = self.pairs.get(pair_id)
        if pair is not None and pair.issued_to_us is not None:
            fields["token_expires_at"] = when.text_of(pair.issued_to_us.expires_at_ms)
        log.warning(**event("pair.upkeep_failed", **fields))

    def _care(self, pair_id: str) -> _PairState:
        if pair_id not in self._cares:
            # The first refresh after a start is spread over the interval, or all pairs would come at once.
            self._cares[pair_id] = _PairState(unit=int.from_bytes(self.pairs.random_bytes(4)) / 2**32)
        return self._cares[pair_id]

    def _pair(self, pair_id: str) -> Pair:
        pair = self.pairs.get(pair_id)
        if pair is None:
            raise PairError("pair-unknown", f"no pair {pair_id[:80]!r}")
        return pair


def token_trouble(pair: Pair, code: str, now_ms: int) -> str:
    """Return the reason for which a pair degrades: a refusal of a token that is past its end says so."""
    token = pair.issued_to_us
    return "token-expired" if code in CREDENTIALS and token is not None and token.expires_at_ms <= now_ms else code


def _is_mendable(pair: Pair) -> bool:
    return isinstance(pair.state, Degraded) and pair.reason in UNVERIFIED | CREDENTIALS


def _is_fork(pair: Pair, peer: Manifest) -> bool:
    """Return whether the manifest's chain contradicts the pinned one, as only `expect_key` lets pass."""
    try:
        grown(pair.chain, peer.chain)
    except DidError as exc:
        if exc.code != "chain-fork":
            raise
        return True
    return False
