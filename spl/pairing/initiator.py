"""The asking side: what we ask of a peer, what its signed answers mean, and what there is to tell meanwhile.

The state of the pair says which message is next, so a restart goes on where the crash was:

    Requested  POST …/pair            a repeated one is answered "seen", and then polled
    Waiting    POST …/<id>/poll       until granted, rejected or expired
    Answered   POST …/<id>/confirm    until taken

Blocks on the disk; runs on the pairing service's thread.  Talking over the network is pairing.py's.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ..core import when
from ..core.backoff import full_jitter_s
from ..core.errors import CODES, SplError, cli_code
from ..core.event import event
from ..core.identity import manifest, message
from ..core.identity.did import label_of, words
from ..core.identity.manifest import PAIR_PATH, Manifest
from ..core.identity.pins import FORK
from ..core.pair import handshake
from ..core.pair.handshake import HandshakeError, Terms
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import MODES, STARTS, SUPERSEDED, Answered, Asked, Phase, Requested, Waiting, maps_to_json
from ..core.pair.steps import Effect, End, ManifestChange, Park
from ..sync.peer import REJECTED_401, WHY_401
from .machine import Pairs, unconfirmed
from .responder import SERVER_FAULT, Responder
from .tokens import Renewal

BEGIN_AGAIN_MAX: Final = 3
LOST: Final = "lost"
"""Why a pair ends whose request or answer the peer no longer has; another one begins in its place."""
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
    mode: str = "polling"
    wait_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """One message to a peer: where, under which purpose, and its fields."""

    url: str
    purpose: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Learned:
    """What a signed answer changed; `poll`: the peer holds the request already, so ask where it stands."""

    pair: Pair
    effects: tuple[Effect, ...] = ()
    poll: bool = False
    fault: SplError | None = None


class Initiator:
    """Our requests.  `poll_interval_ms` is what new pairs start with."""

    def __init__(self, pairs: Pairs, renewal: Renewal, responder: Responder, poll_interval_ms: int) -> None:
        self.pairs, self._renewal, self._responder = pairs, renewal, responder
        self._poll_interval_ms = poll_interval_ms
        self._begun: dict[str, int] = {}
        self.skew_ms: dict[str, int] = {}
        """How far the peer's clock is ahead of ours, where --no-strict goes by it; by pair."""

    def terms(self, options: PairOptions) -> Terms:
        """Return what the options ask for, but for the start that an earlier pair gives.

        Raises PairError "usage", NamespaceError "namespace-rejected" for a namespace that is not usable here,
        HandshakeError or NamespaceError "bad-field".
        """
        if options.backfill and options.from_now:
            raise PairError("usage", "--backfill and --from-now contradict each other")
        if options.mode not in MODES:
            raise PairError("bad-field", f"mode {options.mode[:40]!r} is none of {', '.join(MODES)}")
        return handshake.propose(
            self.pairs.writer.views.namespaces, options.namespaces, options.maps, mode=options.mode,
            start="beginning" if options.backfill else "present" if options.from_now else "", starts=("", *STARTS),
            limits=self.pairs.limits,
        )  # fmt: skip

    def judge(self, peer: Manifest, *, strict: bool, expect_key: str) -> Manifest:
        """Return a fetched manifest that is not our own and neither older than nor beside the last one accepted.

        An operator who names the key settles a fork; nothing settles an old manifest.  Raises PairError
        "identity-cloned", ManifestError "manifest-stale", "chain-fork".
        """
        if self.pairs.identity.did == peer.did:
            hint = "check the port, is it the peer's? if a copy of this home runs there, stop it"
            raise PairError(
                "identity-cloned", f"{peer.url} is this daemon itself: it answers with our own DID", hint=hint
            )
        known = next((pair for pair in reversed(self.pairs.all()) if pair.peer_did == peer.did), None)
        pinned = None if expect_key else self.pairs.writer.views.pins.chain(peer.did)
        newer_than_ms = known.peer.signed_at_ms if known is not None else 0
        return manifest.judge(
            peer, now_ms=self.pairs.now_ms(), strict=strict, pinned=pinned, newer_than_ms=newer_than_ms
        )

    def begin(self, peer: Manifest, url: str, terms: Terms, options: PairOptions) -> str:
        """Return the id of the pair to follow: begun now, on its way already, or the peer's request that ours approves.

        Raises PairError "pair-exists" for a peer with a live pair, "chain-fork" for one of two unsettled key chains.
        """
        if not options.expect_key and self.pairs.writer.views.pins.is_forked(peer.did):
            raise PairError(FORK, f"two key chains of {peer.did} contradict each other")
        standing = self.pairs.of_peer(peer.did)
        for pair in standing:
            if pair.phase is not Phase.ESTABLISHING:
                raise PairError("pair-exists", f"{pair.pair_id} with {peer.did} is {pair.phase}", pair_id=pair.pair_id)
        for pair in standing:
            if pair.initiator and peer.raw != pair.manifest:
                self.pairs.take(pair, ManifestChange(peer.raw, pinned=bool(options.expect_key)))
            if pair.initiator or unconfirmed(pair):
                return pair.pair_id
        met = self._responder.meet(peer.did, terms)
        if met is not None and unconfirmed(met):
            return met.pair_id
        if not terms.start and self.pairs.parted(peer.did):
            terms = replace(terms, start="present")
        self._begun.pop(peer.did, None)
        begun = self.pairs.begin(
            peer, url, terms, strict=options.strict, actors=options.actors, poll_interval_ms=self._poll_interval_ms
        )
        return begun.pair_id

    def next_request(self, pair: Pair, *, poll: bool = False, token_id: str = "", renew: bool = False) -> SignedRequest:
        """Return the message that the pair's state calls for; `poll` asks instead where the pair stands.

        A poll asks too about the token we hold, or the one of `token_id`; with `renew` the peer shall take a new one.
        """
        own, nonce = self.pairs.identity, self.pairs.nonce()
        now_ms = self.pairs.now_ms() + self.skew_ms.get(pair.pair_id, 0)
        base = f"{pair.url}{PAIR_PATH}"
        if isinstance(pair.state, Requested) and not poll:
            manifest_ = self.pairs.published.federation_manifest()
            fields = handshake.request_fields(manifest_, own.did, pair.proposal, pair.peer_did, now_ms)
            return SignedRequest(base, "pair-request", fields)
        said: dict[str, object] = {"manifest": self.pairs.published.federation_manifest()}
        if isinstance(pair.state, Answered) and not poll:
            fields = handshake.word_fields(pair, own.did, now_ms, nonce, **said)
            return SignedRequest(f"{base}/{pair.pair_id}/confirm", "pair-confirm", fields)
        if pair.ended:
            fields = handshake.word_fields(pair, own.did, now_ms, nonce, reason=pair.reason, **said)
            return SignedRequest(f"{base}/{pair.pair_id}/notify-revoke", "notify-revoke", fields)
        if type(pair.state) in ESTABLISHED:
            said["token_id"] = token_id or self._renewal.held(pair)
        if renew:
            said["renew"] = True
        fields = handshake.poll_fields(pair, own.did, now_ms, nonce, **said)
        return SignedRequest(f"{base}/{pair.pair_id}/poll", "pair-poll", fields)

    def renew_words(self, pair: Pair) -> SignedRequest:
        """Return the message that asks for a new token."""
        own, now_ms = self.pairs.identity, self.pairs.now_ms() + self.skew_ms.get(pair.pair_id, 0)
        said = {"manifest": self.pairs.published.federation_manifest()}
        fields = handshake.word_fields(pair, own.did, now_ms, self.pairs.nonce(), **said)
        return SignedRequest(f"{pair.url}{PAIR_PATH}/{pair.pair_id}/renew", "renew", fields)

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
            return Learned(self._responder.learn(pair, state, said_ms, reason))
        if state == "refused":
            return self._refused(pair, str(fields.get("code", "")), fields)
        if state in handshake.ENDED:
            return self._over(pair, state, handshake.reason_of(fields))
        if state == "unknown":
            return Learned(self._again(pair))
        if isinstance(pair.state, Answered):
            return Learned(*self.pairs.confirm(pair)) if state in ("active", "paused") else Learned(pair)
        if state == "approved":
            return Learned(self.pairs.grant(pair, fields.get("answer") or {}))
        if state == "pending" and isinstance(pair.state, Requested):
            return Learned(self.pairs.take(pair, Park())[0])
        # The peer confirmed what we know nothing of any more, as after a restored copy of our home.
        return Learned(self._again(pair) if state in ("active", "paused") else pair)

    def news(self, pair: Pair, shown: set[str], synced: Mapping[str, object] | None) -> list[dict[str, object]]:
        """Return the steps that the pair's state tells beyond those shown; `synced` is what its first sync brought."""
        steps: list[dict[str, object]] = []
        if isinstance(pair.state, Requested) or pair.ended:
            return steps
        waits = isinstance(pair.state, Waiting | Asked)
        if "posted" not in shown:
            names = list(pair.proposal.namespaces)
            steps.append({"step": "posted", "status": 202 if waits else 200, "namespaces": names})
        if waits or pair.issued_to_us is None:
            return steps
        if "token" not in shown:
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

    def standing_for(self, pair: Pair) -> Pair:
        """Return the pair, or the one that stands in its place; raise why there is none.

        One that crossed with the peer's own request comes back as it is, ended: that request is on its way here.
        """
        if not pair.ended:
            return pair
        standing = self.pairs.of_peer(pair.peer_did)
        if standing:
            return standing[-1]
        if pair.reason == SUPERSEDED:
            return pair
        raise why_ended(pair)

    def _refused(self, pair: Pair, wire: str, fields: Mapping[str, Any]) -> Learned:
        """Take a signed refusal of our request: final unless asking again, later or otherwise, can do."""
        code = cli_code(wire) if cli_code(wire) in CODES else "message-malformed"
        if code == _SEEN:
            return Learned(pair, poll=True)
        if code == _TAKEN:
            return Learned(self._again(pair))
        if CODES[code].status >= SERVER_FAULT or CODES[code].exit in PASSING:
            return Learned(pair, fault=HandshakeError(code, "the peer takes no request for now"))
        if code == "clock-skew" and not pair.proposal.strict and pair.pair_id not in self.skew_ms:
            self.skew_ms[pair.pair_id] = when.ms_of(fields.get("time")) - self.pairs.now_ms()
            return Learned(pair)
        ended, effects = self.pairs.take(pair, End(code))
        return Learned(ended, effects, fault=why_ended(ended))

    def _over(self, pair: Pair, state: str, reason: str) -> Learned:
        """Take the peer's signed word that our request is over; ours approves a request of its own that stands."""
        if state != SUPERSEDED:
            return Learned(self._responder.learn(pair, state, 0, reason))
        ended, effects = self.pairs.take(pair, End(SUPERSEDED))
        self._responder.meet(pair.peer_did, handshake.terms_of(pair.proposal))
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
    """Return the error that tells why a request of ours did not make a pair."""
    name = label_of(pair.peer_did)
    if pair.reason == "handshake-401":
        return HandshakeError("handshake-401", REJECTED_401, why=WHY_401)
    if pair.reason in CODES:
        return HandshakeError(pair.reason)
    if pair.reason == "rejected":
        return HandshakeError("handshake-rejected", f"the operator of {name} rejected the request")
    if pair.reason == "expired":
        return HandshakeError("handshake-expired")
    return PairError("pair-revoked", f"{pair.pair_id} is over: {pair.reason}")


log = logging.getLogger("spl.federation")


POLL_S: Final = 2.0


POLL_SLOWER_AFTER: Final = 16


POLL_MAX_S: Final = 60.0


BACKOFF_BASE_S: Final = 1.0


WAITING_EVERY_S: Final = 1.0


class Changes:
    """The event that the next change sets; who waits takes it before looking, so that no change is missed."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def ring(self) -> None:
        """Wake whoever waits."""
        self.next.set()
        self.next = asyncio.Event()


class HandshakeLoop:
    """Drives and watches.  `say(pair_id, poll=…)` sends one message and returns what its answer made of the pair."""

    def __init__(
        self, pairs: Pairs, initiator: Initiator, changes: Changes, *, poll_s: float,
        say: Callable[..., Awaitable[tuple[Learned, dict[str, Any]]]], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.pairs, self.trouble = pairs, dict[str, SplError]()
        self.synced: dict[str, dict[str, object] | None] = {}
        """What the first sync of a pair brought; None while it runs."""
        self._initiator, self._changes, self._say = initiator, changes, say
        self._poll_s, self._random_bytes = poll_s, random_bytes
        self._kicks: dict[str, asyncio.Event] = {}

    async def watch(self, pair_id: str, wait_s: float) -> AsyncIterator[dict[str, object]]:
        """Yield what the records of the pair, and this process's attempts, have to tell."""
        shown: set[str] = set()
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + wait_s
        while "active" not in shown:
            changed = self._changes.next
            pair = self._initiator.standing_for(self._known(pair_id))
            pair_id = pair.pair_id
            for step in self._initiator.news(pair, shown, self.synced.get(pair_id)):
                shown.add(str(step["step"]))
                yield step
            left_s = end_s - now_s()
            trouble = self.trouble.get(pair_id)
            if trouble is not None and (left_s <= 0 or trouble.exit_code not in PASSING):
                raise trouble
            if left_s <= 0 and "active" not in shown:
                yield {"step": "pending", "pair_id": pair_id}
                return
            if isinstance(pair.state, Waiting | Asked):
                yield {"step": "waiting", "pair_id": pair_id, "left_ms": int(left_s * 1000)}
            if "active" not in shown:
                await wait(changed, min(left_s, WAITING_EVERY_S))

    async def drive(self, pair_id: str) -> None:
        """Ask until the request became a pair or is over; failures back off with full jitter, at most a minute."""
        attempt = polls = 0
        kick = self._kicks.setdefault(pair_id, asyncio.Event())
        while on_its_way(self.pairs.get(pair_id)):
            kick.clear()
            delay_s = min(POLL_MAX_S, self._poll_s * 2.0 ** (polls // POLL_SLOWER_AFTER))
            try:
                before = self._known(pair_id)
                after = await self.advance(pair_id)
                attempt, polls = 0, polls + 1
                self.trouble.pop(pair_id, None)
                if after.state != before.state:
                    continue
            except SplError as exc:
                attempt += 1
                unit = int.from_bytes(self._random_bytes(4)) / 2**32
                delay_s = full_jitter_s(attempt, min(BACKOFF_BASE_S, self._poll_s), POLL_MAX_S, unit)
                self.trouble[pair_id] = exc
                fields = {"pair": pair_id, "code": exc.code, "attempt": attempt, "msg": exc.message}
                log.warning(**event("pair.attempt_failed", **fields))
                self._changes.ring()
            await wait(kick, delay_s)

    async def advance(self, pair_id: str) -> Pair:
        """Say what the pair's state calls for, take in the answer, and return the pair; raise what went wrong."""
        learned, _ = await self._say(pair_id)
        if learned.poll:
            learned, _ = await self._say(pair_id, poll=True)
        if learned.fault is not None:
            raise learned.fault
        return learned.pair

    def kick(self, pair_id: str) -> None:
        """Let the pair's driver try now."""
        self.trouble.pop(pair_id, None)
        self._kicks.setdefault(pair_id, asyncio.Event()).set()
        self._changes.ring()

    def _known(self, pair_id: str) -> Pair:
        pair = self.pairs.get(pair_id)
        if pair is None:
            raise PairError("pair-unknown", f"no pair {pair_id[:80]!r}")
        return pair


def on_its_way(pair: Pair | None) -> bool:
    """Tell whether a request of ours still has to be driven."""
    return pair is not None and pair.initiator and isinstance(pair.state, Requested | Waiting | Answered)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set or after so many seconds, whichever is first."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return
