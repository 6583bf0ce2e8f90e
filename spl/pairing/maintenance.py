"""What a live pair needs over the months: its peer's manifest, its tokens, and its way back from trouble.

Maintenance runs when the manifest of a pair is due (limits.manifest_refresh_s, jittered), when its token nears its end,
when the peer's key chain grew elsewhere, and while the pair is degraded for a reason that only this heals.  Failures
back off with full jitter, and each is logged; a pair that is paused stays paused.

Dates of records say what is due, the monotonic clock says when to retry: a wall clock that is set back by a day must
not delay the renewal of a token by a day.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from ..core import when
from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import bearer
from ..core.identity.did import label_of
from ..core.identity.pins import FORK, KIND_CHAIN, is_fork, pin_body
from ..core.pair.handshake import token_ref
from ..core.pair.modes import MODES
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import Active, Degraded
from ..core.pair.steps import ManifestChange, Recover
from ..core.value import Json, dataclass, field, replace
from ..home.views import THREAD_PAIRS
from ..home.writes import Own
from ..net.address import parse_url
from ..sync.peer import PAIR_NOTES
from ..sync.schedule import Sync
from .exchange import StolenKey, forked
from .handshake_loop import HandshakeLoop
from .initiator import Initiator
from .machine import MANIFEST_EVERY_MS
from .newer import NEWER_NAME
from .stepper import Stepper
from .tokens import Renewal, check_found, expiry_of, id_of

log = logging.getLogger("spl.federation")

BACKOFF_BASE_S: Final = 5.0
BACKOFF_MAX_S: Final = 3600.0
END_ACCEPTED: Final = "end-accepted."
"""With the pair's id: the secret that notes that our operator accepted the end of a pair."""
ACCEPTED_MS: Final = 2 * 86_400_000
"""Longer than `status` shows an end."""
TELL_EVERY_MS: Final = 60_000
PAUSE_MS: Final = 1000
"""Between two rounds of one pair, whatever the clocks and the answers are."""
UNVERIFIED: Final = frozenset(
    "manifest-malformed manifest-signature manifest-did-mismatch manifest-expired manifest-stale peer-version"
    " chain-broken chain-fork did-invalid".split()
)
"""Why a changed manifest does not hold: reasons of a degraded pair that no successful sync heals."""
STRANGERS: Final = frozenset({"manifest-did-mismatch", "identity-cloned"})
"""Why what answers is not the peer: another instance, or this one."""
CREDENTIALS: Final = frozenset(
    "auth-required auth-invalid scope-forbidden token-expired token-scope message-signature".split()
)
"""What the peer says of our token or key; a new token, or telling our new key, may heal it."""


@dataclass(slots=True)
class _MaintenanceState:
    """What this process remembers of one pair's maintenance."""

    backoff: Backoff
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    fetched_ms: int = 0
    error: SplError | None = None
    at_ms: int = 0
    links: int = 0
    tell_at_ms: int = 0
    """When the peer may be told next, if it does not reach us, where we are."""


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """When a pair's manifest was fetched last, and what failed since."""

    fetched_at_ms: int
    attempt: int
    next_attempt_at_ms: int | None
    last_error: SplError | None
    failed_at_ms: int
    newer_url: str = ""
    """Where the peer says it is by a manifest that waits until `newer_at_ms`, "" if none waits."""
    newer_at_ms: int = 0

    def to_json(self) -> Json:
        """Return {fetched_at, attempt, next_attempt_at, last_error, newer: {url, taken_at}}."""
        error, next_ms = self.last_error, self.next_attempt_at_ms
        failed_at = when.text_of(self.failed_at_ms)
        return {
            "fetched_at": when.text_of(self.fetched_at_ms),
            "attempt": self.attempt,
            "next_attempt_at": when.text_of(next_ms) if next_ms is not None else None,
            "last_error": {"code": error.code, "message": error.message, "at": failed_at} if error else None,
            "newer": {"url": self.newer_url, "taken_at": when.text_of(self.newer_at_ms)} if self.newer_url else None,
        }


class Maintenance:
    """The maintenance of all pairs."""

    def __init__(
        self, stepper: Stepper, renewal: Renewal, initiator: Initiator, handshakes: HandshakeLoop, sync: Sync
    ) -> None:
        self.pairs, self.limits = stepper.pairs, stepper.pairs.limits
        self._stepper, self._renewal, self._initiator, self._sync = stepper, renewal, initiator, sync
        self._handshakes, self._exchange = handshakes, handshakes.exchange
        self._states: dict[str, _MaintenanceState] = {}

    def seen(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Tell a peer that does not reach us where we are, by a manifest that is newer than any that it may have.

        It may have the address of a copy of this home, which ran for a while and is gone.
        """
        state, now_ms = self._state(pair_id), self.pairs.steady_ms()
        if view.get("unreached") and "unread_ms" not in view and now_ms >= state.tell_at_ms:
            state.tell_at_ms = now_ms + TELL_EVERY_MS
            self.pairs.published.renew()
            self._stepper.start(pair_id, partial(self._handshakes.ask, pair_id, poll=True))

    # -- what is due

    def due(self) -> list[str]:
        """Return the pairs that are due now."""
        return [pair.pair_id for pair in self.pairs.all() if self._is_kept(pair) and self._wait_ms(pair) <= 0]

    def next_s(self) -> float:
        """Return the seconds until a pair is due next, as things stand; infinite if there is none."""
        waits = [self._wait_ms(pair) for pair in self.pairs.all() if self._is_kept(pair)]
        return max(0.0, min(waits) / 1000) if waits else float("inf")

    def status(self, pair_id: str) -> MaintenanceStatus:
        """Return what people see of a pair's maintenance."""
        state, pair = self._state(pair_id), self.pairs.get(pair_id)
        attempt, retry_at_ms = state.backoff.attempt, self.pairs.now_ms() + self._retry_in_ms(state)
        fetched_ms = max(state.fetched_ms, pair.fetched_at_ms if pair is not None else 0)
        newer = self.pairs.newer.get(pair_id)
        waits = (newer.url, pair.fetched_at_ms + MANIFEST_EVERY_MS) if newer is not None and pair is not None else ()
        next_ms = retry_at_ms if attempt else None
        return MaintenanceStatus(fetched_ms, attempt, next_ms, state.error, state.at_ms, *waits)

    def stranger(self, pair_id: str) -> SplError | None:
        """Return the error that names who answers in the place of a pair's peer, if another daemon did last."""
        state = self._states.get(pair_id)
        error = state.error if state is not None else None
        return error if error is not None and error.code in STRANGERS else None

    def _is_kept(self, pair: Pair) -> bool:
        return type(pair.state) in ESTABLISHED and not self._state(pair.pair_id).lock.locked()

    def _wait_ms(self, pair: Pair) -> int:
        """Return the milliseconds until the pair is due, 0 or less if it is."""
        state, now_ms = self._state(pair.pair_id), self.pairs.now_ms()
        retry_ms = self._retry_in_ms(state)
        if state.backoff.attempt or _is_mendable(pair) or self._grew(pair):
            return max(0, retry_ms)
        interval_ms = int(state.backoff.spread_s(self.limits.manifest_refresh_s) * 1000)
        wait_ms = min(interval_ms, max(pair.fetched_at_ms, state.fetched_ms) + interval_ms - now_ms)
        if pair.issued_to_us is not None:
            wait_ms = min(wait_ms, pair.issued_to_us.renew_at_ms(self.limits.token_renew_s) - now_ms)
        return max(wait_ms, retry_ms)

    def _retry_in_ms(self, state: _MaintenanceState) -> int:
        return state.backoff.retry_ms - self.pairs.steady_ms()

    def _grew(self, pair: Pair) -> bool:
        """Return whether a longer key chain of the peer is pinned than the pair's, or a fork that degrades it."""
        pins = self.pairs.writer.views.pins
        if pins.is_forked(pair.peer_did) and not (isinstance(pair.state, Degraded) and pair.reason == FORK):
            return True
        seen = pins.chain(pair.peer_did)
        known = max(len(pair.chain.rotations), self._state(pair.pair_id).links)
        return seen is not None and len(seen.rotations) > known

    def expired(self) -> list[str]:
        """Return the active pairs whose token for us has ended."""
        now_ms = self.pairs.now_ms()
        return [
            pair.pair_id for pair in self.pairs.all()
            if isinstance(pair.state, Active) and pair.issued_to_us and pair.issued_to_us.expires_at_ms <= now_ms
        ]  # fmt: skip

    def sweep_notes(self) -> None:
        """Forget what was noted of pairs that have ended, and after some days that their end was accepted.

        Blocks on the disk.
        """
        vault, now_ms, notes = self.pairs.vault, self.pairs.now_ms(), (*PAIR_NOTES, NEWER_NAME)
        for name in vault.names():
            before, _, pair_id = name.rpartition(".")
            pair, note = self.pairs.get(pair_id), f"{before}."
            is_over = pair is None or (note in notes and pair.ended)
            is_old = pair is not None and pair.ended and now_ms - pair.since_ms > ACCEPTED_MS
            if note in (*notes, END_ACCEPTED) and (is_over or is_old):
                vault.delete(name)

    # -- doing it

    async def maintain(self, pair_id: str) -> None:
        """Refresh one pair in the background; what goes wrong is logged, and tried again later."""
        state = self._state(pair_id)
        if state.lock.locked():
            return
        try:
            await self.refresh(pair_id)
        except SplError as exc:
            self._failed(pair_id, state, exc)

    async def refresh(self, pair_id: str, expect_key: str = "", *, url: str = "", at_once: bool = False) -> Pair:
        """Fetch the peer's manifest again, learn where the pair stands there, renew a token that needs it, and recover.

        `expect_key` (multibase or six words) settles a fork of its key chain: the operator compared it.  `url` is where
        the operator says that the peer is now; the address that it publishes there is adopted.
        `at_once` takes the manifest even if another one was taken within the hour.
        Raises ReachError, ManifestError, MessageError, PairError.
        """
        state = self._state(pair_id)
        async with state.lock:
            pair = await self._refresh_manifest(self.pairs.known(pair_id), expect_key, url, at_once)
            state.fetched_ms = self.pairs.now_ms()
            if type(pair.state) in ESTABLISHED:
                fields = (await self._handshakes.ask(pair_id, poll=True)).answer
                if fields["state"] == "unknown":
                    hint = f"spl federation revoke {pair_id} && spl federation pair {pair.url}/"
                    raise PairError("pair-unknown", "the peer does not know this pair any more", hint=hint)
                pair, found = self.pairs.known(pair_id), fields.get("held")
                if type(pair.state) in ESTABLISHED and await self._stepper.do(self._renewal.due, pair, found):
                    pair = await self._renew(pair_id)
            if self.pairs.writer.views.pins.is_forked(pair.peer_did):
                await self.doubt(pair_id, FORK)
                raise forked(self.pairs, pair.peer_did, pair.url)
            if isinstance(pair.state, Degraded):
                pair = await self._recovered(pair_id)
            state.backoff.reset()
            state.backoff.redraw()
            state.backoff.retry_ms = self.pairs.steady_ms() + PAUSE_MS
            state.error = None
            seen = self.pairs.writer.views.pins.chain(pair.peer_did)
            state.links = len(seen.rotations) if seen is not None else 0
        if pair.sync_allowed:
            self._sync.retry(pair_id)
        return self.pairs.known(pair_id)

    async def renew(self, pair_id: str) -> Pair:
        """Replace the token that the peer issued to us by a new one, now; raises as `refresh`."""
        async with self._state(pair_id).lock:
            return await self._renew(pair_id)

    async def ask_mode(self, pair_id: str, mode: str) -> None:
        """Ask the peer, signed, to fetch from us in this mode.

        Raises PairError "mode-kept" unless it is in that mode then; ReachError, MessageError.
        """
        theirs = (await self._handshakes.ask(pair_id, poll=True, mode=mode)).answer.get("mode")
        if theirs == mode:
            return
        name, fix = label_of(self.pairs.known(pair_id).peer_did), f"spl federation set-mode {pair_id} {mode}"
        if theirs not in MODES:
            text = f"{name} runs a version that cannot be asked for a mode"
            raise PairError("mode-kept", text, hint=f"on {name}: {fix}")
        follow = f"on {name}, to let us choose from now on: spl config set federation.follow_mode true"
        raise PairError(
            "mode-kept", f"{name} stays in mode {theirs} when it fetches from here", hint=f"on {name}: {fix}; {follow}"
        )

    async def set_token(self, pair_id: str, text: str) -> Pair:
        """Present this token, which the peer minted for the pair, from now on: once the peer took it in one call.

        Raises BearerError or PairError "auth-invalid", PairError "token-scope".
        """
        pair = self.pairs.known(pair_id)
        if type(pair.state) not in ESTABLISHED:
            raise PairError("pair-state-conflict", f"the pair is {pair.phase}")
        bearer.parse(text)
        async with self._state(pair_id).lock:
            asked = await self._handshakes.ask(pair_id, poll=True, token_id=id_of(text))
            found = check_found(asked.answer.get("held"))
            token = token_ref(text, frozenset(map(str, found["scopes"])), expiry_of(found), issued=False)
            await self._exchange.prove(self.pairs.known(pair_id), text)
            pair = await self._stepper.do(lambda: self._renewal.install(self.pairs.known(pair_id), text, token))
            if isinstance(pair.state, Degraded) and pair.reason in CREDENTIALS:
                pair = await self._recovered(pair_id)
        self._sync.retry(pair_id)
        return pair

    async def _recovered(self, pair_id: str) -> Pair:
        """Return the pair, active again; a sync that went well may have been faster."""
        try:
            return await self._stepper.step(pair_id, Recover())
        except PairError:
            if not isinstance((pair := self.pairs.known(pair_id)).state, Active):
                raise
            return pair

    async def _refresh_manifest(self, pair: Pair, expect_key: str, url: str, at_once: bool) -> Pair:
        """Return the pair with the peer's present manifest; one that does not hold degrades it, except at a new `url`.

        Raises PairError "manifest-differs-outside" if the peer is at `url`, but publishes the address that we have.
        """
        if url:
            dial = replace(self._exchange.peers.dial(pair), allow_private=True)
            strict, did = pair.proposal.strict, pair.peer_did
            peer = await self._exchange.discover(url, strict, dial=dial, expect_did=did, expect_key=expect_key)
            origin = parse_url(url).origin
            if peer.url == pair.url != origin:
                name, fix = label_of(did), f"spl config set public_url {origin}; then restart the daemon"
                text = f"{name} answers at {origin} but publishes {peer.url} as its address"
                raise PairError("manifest-differs-outside", text, hint=f"on {name}: {fix}")
            await self._stepper.do(self._exchange.peers.remember_typed, pair.pair_id, url)
            return await self._stepper.do(lambda: self.pairs.adopt_manifest(pair, peer, at_once=True))
        try:
            peer = await self._exchange.rediscover(pair, expect_key)
            settles = bool(expect_key) and self.pairs.writer.views.pins.is_forked(pair.peer_did)
            forked = settles or is_fork(pair.chain, peer.chain)
        except SplError as exc:
            if exc.code in UNVERIFIED and not isinstance(exc, StolenKey):
                await self.doubt(pair.pair_id, exc.code)
            raise
        if not forked:
            adopt = self.pairs.adopt_manifest
            return await self._stepper.do(lambda: adopt(self.pairs.known(pair.pair_id), peer, at_once=at_once))
        changed = await self._stepper.step(pair.pair_id, ManifestChange(peer.raw, pinned=True))
        pin = Own(THREAD_PAIRS, KIND_CHAIN, pin_body(peer.chain, chosen=True))
        await self._stepper.do(self.pairs.submit, [pin])
        return changed

    async def doubt(self, pair_id: str, code: str) -> None:
        """Mark a pair as degraded for this reason; one in another state stays as it is."""
        await self._stepper.do(lambda: self.pairs.doubt(self.pairs.known(pair_id), code))
        self._stepper.notify()

    async def _renew(self, pair_id: str) -> Pair:
        pair = self.pairs.known(pair_id)
        request = await self._stepper.do(partial(self._initiator.request_for, pair, "renew"))
        fields = await self._exchange.send(pair, request)
        after = await self._stepper.do(self._renewal.take, pair_id, fields)
        assert after.issued_to_us is not None
        told = {"pair": pair_id, "token": after.issued_to_us.token_id}
        log.info(**event("token.renewed", **told))
        return after

    def _failed(self, pair_id: str, state: _MaintenanceState, exc: SplError) -> None:
        state.backoff.failed(self.pairs.steady_ms())
        state.error, state.at_ms = exc, self.pairs.now_ms()
        attempt = state.backoff.attempt
        fields: Json = {"pair": pair_id, "code": exc.code, "attempt": attempt, "msg": exc.message}
        pair = self.pairs.get(pair_id)
        if pair is not None and pair.issued_to_us is not None:
            fields["token_expires_at"] = when.text_of(pair.issued_to_us.expires_at_ms)
        log.warning(**event("pair.maintenance_failed", **fields))

    def _state(self, pair_id: str) -> _MaintenanceState:
        if pair_id not in self._states:
            # Its random number spreads the first refresh after a start, or all pairs would come at once.
            cap_s = min(BACKOFF_MAX_S, self.limits.manifest_refresh_s)
            self._states[pair_id] = _MaintenanceState(Backoff(self.pairs.random_bytes, BACKOFF_BASE_S, cap_s))
        return self._states[pair_id]


def token_trouble(pair: Pair, code: str, now_ms: int) -> str:
    """Return the reason for which a pair degrades: a refusal of a token that is past its end says so."""
    token = pair.issued_to_us
    return "token-expired" if code in CREDENTIALS and token is not None and token.expires_at_ms <= now_ms else code


def _is_mendable(pair: Pair) -> bool:
    return isinstance(pair.state, Degraded) and pair.reason in UNVERIFIED | CREDENTIALS
