"""The handshake and the life of a pair, both roles: the service that ties the parts together and starts what follows.

    machine, tokens, grants   what a pair, its tokens and its grants become; on the thread of the steps
    statements                what a peer's signed statements change, and how often
    responder, initiator      what a peer's message does here; which message we send, and what its answer means
    exchange                  one message to a peer and its answer
    maintenance               manifests, tokens and the way back from trouble, for months

What must happen is read from the records alone, so a restart goes on where the crash was: a request of ours is driven
until it is a pair or over, the peer is told of a revocation, positions are compared after a resume.  Each is a
supervised task of its own, named by the pair.  `pair` starts a request and then only watches: its caller may leave.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ..core.errors import SplError
from ..core.event import event
from ..core.identity.did import label_of
from ..core.identity.manifest import Manifest
from ..core.pair import steps
from ..core.pair.modes import POLL_INTERVAL_MS_MAX, check_mode
from ..core.pair.pair import ESTABLISHED, Pair, PairError
from ..core.pair.state import Active, Degraded, Revoked, Revoking
from ..core.pair.steps import Effect, FirstSync, Resync, TellPeer
from ..core.value import dataclass
from ..home.config import Settings
from ..home.logs import CountedLog
from ..home.policy import Policy
from ..home.views import THREAD_PAIRS
from ..home.writes import Commit, Hop
from ..net.dialer import DialPolicy
from ..sync.compare.anti_entropy import AntiEntropy
from ..sync.peer import PeerClient
from ..sync.schedule import Sync
from ..sync.supervise import Job, Supervisor, drop_ended
from .exchange import Exchange
from .grants import TELL_TIMEOUT_S, Grants, Handover
from .handshake_loop import POLL_S, HandshakeLoop, on_its_way
from .initiator import FirstSyncResult, Initiator, PairOptions, PairStep, exists_hint
from .machine import Pairs, unconfirmed
from .maintenance import END_ACCEPTED, STRANGERS, UNVERIFIED, Maintenance, token_trouble
from .pair_log import PairLog
from .responder import Answer, Responder
from .statements import PeerStatements
from .stepper import Stepper
from .tokens import Renewal

__all__ = ["Pace", "PairOptions", "Pairing"]
log = logging.getLogger("spl.federation")

HOUSEKEEPING_MIN_S: Final = 0.05
ASK_AGAIN_MS: Final = 5000
TELLERS_MAX: Final = 16
"""Peers informed at the same time after a start or a rotation: each takes a connection and a signature."""
BACKOFF_MAX_S: Final = 300.0
REFRESH_WAIT_S: Final = 10.0
"""What `refresh` waits for a request that the peer approved to become a pair: one round of messages, mostly."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the service looks: at a request on its way, and at what is due by time alone."""

    poll_s: float = POLL_S
    housekeeping_s: float = 60.0


class Pairing:
    """The service.  It sends peers something only while `run` is running."""

    def __init__(
        self, pairs: Pairs, settings: Settings, peers: PeerClient, policy: Policy, sync: Sync,
        anti_entropy: AntiEntropy, pace: Pace = Pace(),  # noqa: B008 - a value
    ) -> None:  # fmt: skip
        self.pairs, self.published, self.peers, self.limits = pairs, pairs.published, peers, pairs.limits
        self._settings, self._sync, self._anti_entropy, self._pace = settings, sync, anti_entropy, pace
        self._supervisor = Supervisor("pairing", self, random_bytes=pairs.random_bytes, backoff_max_s=BACKOFF_MAX_S)
        self.stepper = Stepper(pairs, self._supervisor)
        self._renewal = Renewal(pairs)
        self._statements = PeerStatements(pairs)
        self._responder = Responder(self._statements, self._renewal, settings, policy)
        self._initiator = Initiator(self._statements, self._renewal, settings)
        self.exchange = Exchange(pairs, peers)
        self.handshakes = HandshakeLoop(self.stepper, self._initiator, self.exchange, sync, pace.poll_s)
        self.maintenance = Maintenance(self.stepper, self._renewal, self._initiator, self.handshakes, sync)
        grants, taking = Grants(pairs, self._responder), self._responder
        self.handover = Handover(grants, self._initiator, self.handshakes, self.stepper)
        self._actions = {
            "poll": taking.poll, "confirm": taking.confirm, "renew": taking.renew,
            "notify-revoke": taking.notify_revoke, "consent": grants.receive,
        }  # fmt: skip
        self.history = PairLog(self.stepper, self._responder, self._initiator, self.exchange)
        self._telling: set[str] = set()
        self._asked_ms: dict[str, int] = {}
        self._tellers = asyncio.Semaphore(TELLERS_MAX)
        self._jobs_count = 0
        self._healed = False
        self._lines = CountedLog(log)

    # -- what peers ask

    async def receive(self, body: bytes, address: str, *, direct: bool = False) -> Answer:
        """Return (HTTP status, answer) to a pair request; `direct`: no proxy that we do not know passed it on."""
        return await self.stepper.do(self._responder.receive, body, address, direct=direct)

    async def answer(self, action: str, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer's signed message about a pair; `action` ends its path."""
        if action == "log":
            return await self.history.answer(pair_id, body, address)
        reaction = await self.stepper.do(self._actions[action], pair_id, body, address)
        self.stepper.follow(pair_id, reaction.effects)
        if reaction.renew:
            self.stepper.start(pair_id, partial(self.maintenance.renew, pair_id))
        return reaction.answer

    async def contact(self, pair_id: str, token_id: str = "") -> None:
        """Process a peer's authenticated call: its first confirms a pair, the first by a new token ends the old one."""
        pair = self.pairs.get(pair_id)
        if pair is None:
            return
        if unconfirmed(pair):
            self.stepper.follow(pair_id, await self.stepper.do(self._responder.contact, pair_id))
        elif self._renewal.watches(pair, token_id):
            await self.stepper.do(self._renewal.used, pair_id, token_id)

    async def recall(self, pairs: Iterable[Pair]) -> None:
        """Put back the secrets of pairs that are about to be restored: secret, then record."""
        await self.stepper.do(self.pairs.recall, pairs)

    # -- what the operator asks

    async def decide_request(
        self, request_id: str, decision: str, reason: str = "", *, namespaces: Sequence[str] = (), maps: bool = True
    ) -> Pair:
        """Approve or reject exactly the request of this id, agreeing to these namespaces, or to all that both share.

        Raises PairError "pair-state-conflict" for a decided one, NamespaceError "namespace-rejected".
        """
        decide = self._responder.decide
        return await self.stepper.do(decide, request_id, decision, reason, namespaces=namespaces, maps=maps)

    async def pause(self, pair_id: str, reason: str = "") -> Pair:
        """Stop syncing until we resume; a pair that we paused stays as it is."""
        pair = self._not_ended(pair_id)
        return pair if pair.paused_by in ("us", "both") else await self.stepper.step(pair_id, steps.Pause(reason))

    async def resume(self, pair_id: str, reason: str = "") -> Pair:
        """Resume from the saved position, and let the peer renew a token that our operator revoked.

        Raises PairError "pair-paused" if only the peer can resume.
        """
        pair = self._not_ended(pair_id)
        if pair.paused_by == "peer":
            name = label_of(pair.peer_did)
            hint = f"on {name}: spl federation resume {pair_id}"
            raise PairError("pair-paused", f"{name} paused it, and only {name} can resume", hint=hint)
        if await self.stepper.do(self._renewal.readmit, pair_id):
            self.stepper.start(pair_id, partial(self.handshakes.ask, pair_id, poll=True, renew=True))
        return pair if isinstance(pair.state, Active | Degraded) else await self.stepper.step(pair_id, steps.Resume())

    async def revoke(self, pair_id: str, reason: str = "", *, block: bool = False) -> Pair:
        """End the pair for good: its tokens die, then the peer is told for at most 5 s, then the record is complete.

        `block` also refuses from now on the peer's requests, and what it signed, through any peer.
        """
        pair = self.pairs.known(pair_id)
        also = [self.pairs.blocking(pair.peer_did, True)] if block else []
        if not pair.ended:
            event = steps.Revoke(reason or "revoked")
            await self.stepper.do(lambda: self.pairs.take(self.pairs.known(pair_id), event, also=also))
        elif block and pair.peer_did not in self.pairs.writer.views.blocked:
            await self.stepper.do(self.pairs.submit, also)
        if isinstance(pair.state, Revoked):
            # The operator knows of the end and accepts it: it needs no attention any more.
            await self.stepper.do(self.pairs.vault.put, END_ACCEPTED + pair_id, "1")
        await self._tell_revoked(pair_id)
        return self.pairs.known(pair_id)

    async def set_mode(self, pair_id: str, mode: str) -> Pair:
        """Change how the pair syncs; raise PairError "bad-field" for an unknown mode."""
        check_mode(mode)
        return await self.configure(pair_id, lambda pair: {} if pair.mode == mode else {"mode": mode})

    async def set_poll_interval(self, pair_id: str, interval_ms: int) -> Pair:
        """Change the time between polls, from limits.poll_interval_min_s to 30 days; raise PairError "bad-field"."""
        least_s, most_ms = self.limits.poll_interval_min_s, POLL_INTERVAL_MS_MAX
        if not least_s * 1000 <= interval_ms <= most_ms:
            raise PairError("bad-field", f"the poll interval is {least_s:g} s to {most_ms // 86_400_000} d")
        changed = {"poll_interval_ms": interval_ms}
        return await self.configure(pair_id, lambda pair: {} if pair.poll_interval_ms == interval_ms else changed)

    async def configure(self, pair_id: str, changes: Callable[[Pair], Mapping[str, Any]]) -> Pair:
        """Change the settings that `changes` returns for the pair as it stands when its turn comes.

        Raises what `changes` raises, PairError "pair-state-conflict" before the pair is agreed on and after its end.
        """

        def take() -> tuple[Pair, tuple[Effect, ...]]:
            pair = self._not_ended(pair_id)
            found = changes(pair)
            return self.pairs.take(pair, steps.Configure(found)) if found else (pair, ())

        pair, effects = await self.stepper.do(take)
        self.stepper.follow(pair_id, effects)
        return pair

    async def refresh(self, pair_id: str, expect_key: str = "", url: str = "") -> Pair:
        """Fetch the peer's manifest again and learn where the pair stands with it; completes a pending pair.

        `expect_key` names the peer's key as its operator said it, which settles a fork; `url` is where the peer is now.
        Raises ReachError, ManifestError, MessageError.
        """
        pair = self._not_ended(pair_id)
        pair = await self.maintenance.refresh(pair_id, expect_key, url=url, at_once=True)
        await self.handover.maintain(pair_id)
        if on_its_way(pair):
            await self._complete(pair_id)
        return self.pairs.known(pair_id)

    def _not_ended(self, pair_id: str) -> Pair:
        """Return the pair; raise PairError "pair-revoked" for one that has ended, with the way to a new one."""
        pair = self.pairs.known(pair_id)
        if pair.ended:
            hint = f"a new pair: spl federation pair {pair.url}/" if pair.url else ""
            raise PairError("pair-revoked", f"{pair_id} is revoked ({pair.reason}); that is final", hint=hint)
        return pair

    async def _complete(self, pair_id: str) -> None:
        """Drive a request as far as the peer's decision allows, message after message, for REFRESH_WAIT_S at most."""
        try:
            async with asyncio.timeout(REFRESH_WAIT_S):
                while on_its_way(before := self.pairs.known(pair_id)):
                    if (await self.handshakes.advance(pair_id)).state == before.state:
                        return  # the peer has not decided
        except TimeoutError:
            log.info(**event("pair.refresh_waits_no_longer", pair=pair_id))

    async def rotate_tokens(self, pair_id: str) -> Pair:
        """Replace both tokens of the pair: the one we hold now, the other as soon as the peer asks, as we tell it."""
        await self.stepper.do(self._renewal.readmit, pair_id)
        pair = await self.maintenance.renew(pair_id)
        await self.handshakes.ask(pair_id, poll=True, renew=True)
        return pair

    async def rotate_identity(self, reason: str) -> None:
        """Sign with a new key from now on, publish it, and tell every peer; `reason` is of `did.REASONS`."""
        await self.stepper.do(self.pairs.vault.rotate, reason)
        await self.renounce()

    async def renounce(self) -> None:
        """Sign with the identity that the vault now holds, and tell every peer."""
        await self.adopt_identity()
        self._tell_everybody()

    async def adopt_identity(self, label: str = "", *, force: bool = False) -> None:
        """Sign with the identity that the vault holds from now on; make one if there is none, or with `force`."""
        await self.stepper.do(self.pairs.adopt_identity, label, force=force)

    # -- what sync reports

    def on_trouble(self, pair_id: str, code: str) -> None:
        """Mark the pair as degraded: errors recur, or the peer refused our credentials; of a paused one, ask why."""
        pair = self.pairs.get(pair_id)
        if pair is not None and pair.paused_by:
            self.stepper.start(pair_id, partial(self._tell, pair_id))
        if pair is None or not isinstance(pair.state, Active | Degraded):
            return
        if pair.reason not in UNVERIFIED:
            code = token_trouble(pair, code, self.pairs.now_ms())
            self.stepper.start(pair_id, partial(self._doubt, pair_id, code))

    def on_success(self, pair_id: str) -> None:
        """Mark a degraded pair as active again, unless its peer's manifest is in doubt: that takes a refresh."""
        self.stepper.start(pair_id, partial(self._recover, pair_id))

    def on_peer_state(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Ask the peer for its signed state: an unsigned status said that it paused or revoked."""
        self.stepper.start(pair_id, partial(self.handshakes.ask, pair_id, poll=True))

    def on_view(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Process the peer's view of a pair, which may count grants that we lack, or say that we are out of reach.

        One that says of a pause what we do not know is asked for its signed word: it may be unable to tell us.
        """
        self.handover.seen(pair_id, view)
        self.maintenance.seen(pair_id, view)
        pair, now_ms = self.pairs.get(pair_id), self.pairs.steady_ms()
        if pair is None or "state" not in view or type(pair.state) not in ESTABLISHED:
            return
        if (pair.paused_by in ("peer", "both")) != ("pauses" in view) and now_ms >= self._asked_ms.get(pair_id, now_ms):
            self._asked_ms[pair_id] = now_ms + ASK_AGAIN_MS
            self.stepper.start(pair_id, partial(self._tell, pair_id))

    async def _doubt(self, pair_id: str, code: str) -> None:
        await self.stepper.do(lambda: self._statements.doubt(self.pairs.known(pair_id), code))
        self.stepper.notify()

    async def _recover(self, pair_id: str) -> None:
        # Read when its turn comes: a degradation that was reported earlier may have become durable only now.
        pair = self.pairs.get(pair_id)
        if pair is None or not isinstance(pair.state, Degraded):
            return
        if pair.reason in STRANGERS:
            await self.maintenance.maintain(pair_id)  # the peer itself took our token
        elif pair.reason not in UNVERIFIED:
            await self.stepper.step(pair_id, steps.Recover())

    # -- the initiator

    async def pair(self, url: str, options: PairOptions) -> AsyncIterator[PairStep]:
        """Yield the steps of pairing with the instance at a URL; the daemon goes on when the caller leaves.

        Raises SplError: what the documents, the peer, or the state of an earlier pair refuse.
        """
        if self.pairs.vault.identity is None:
            if not options.auto_generate_identity:
                raise PairError("identity-missing", hint="spl identity generate; or pair with --auto-generate-identity")
            await self.adopt_identity()
        terms = self._initiator.terms(options)
        dial = DialPolicy(allow_private=True, allow_http=self._settings.now.federation_allow_http)
        peer = await self.exchange.discover(
            url, options.strict, dial=dial, expect_did=options.expect_did, expect_key=options.expect_key
        )
        yield PairStep("manifest", {"did": peer.did, "url": url})
        if (moved := self._moved(peer)) is not None:
            if options.settles:
                text = f"{label_of(peer.did)} has moved, and its pair {moved.pair_id} goes on with what it shares"
                hint = f"without options: spl federation pair {url}; {exists_hint(moved.pair_id)}"
                raise PairError("pair-exists", text, hint=hint, pair_id=moved.pair_id)
            async for step in self._follow_move(moved.pair_id, peer):
                yield step
            return
        pair_id = await self.stepper.do(self._initiator.begin, peer, url, terms, options)
        yield PairStep("verified")
        if not terms.start and self.pairs.known(pair_id).proposal.start == "present":
            yield PairStep("present", {"pair_id": pair_id})
        self.handshakes.kick(pair_id)
        async for step in self.handshakes.watch(pair_id, options.wait_ms / 1000):
            yield step

    def _moved(self, peer: Manifest) -> Pair | None:
        """Return the live pair with this peer, if that now publishes another address than the pair has."""
        found = self.pairs.of_peer(peer.did)
        return next((pair for pair in found if type(pair.state) in ESTABLISHED and pair.url != peer.url), None)

    async def _follow_move(self, pair_id: str, peer: Manifest) -> AsyncIterator[PairStep]:
        """Yield the steps of adopting the address that the operator found: no new pair, and nothing is lost."""
        adopt = self.pairs.adopt_manifest
        pair = await self.stepper.do(lambda: adopt(self.pairs.known(pair_id), peer, at_once=True))
        yield PairStep("verified")
        yield PairStep("moved", {"did": peer.did, "pair_id": pair_id, "url": pair.url})
        pair = await self.refresh(pair_id)
        for step in self._initiator.news(pair, set(), FirstSyncResult()):
            if step.name == "active":
                yield step

    # -- what follows a step

    def _start_effect(self, pair_id: str, effect: Effect) -> None:
        pair = self.pairs.known(pair_id)
        if isinstance(effect, FirstSync):
            self._start(f"first-sync {pair_id}", partial(self.handshakes.sync_first, pair_id))
            # A home that was made again from its key lacks its own records, which no reading brings.
            self._anti_entropy.request(pair_id)
        elif isinstance(effect, Resync):
            self._anti_entropy.request(pair_id)  # our cursor may have skipped what the peer shares
        elif isinstance(effect, TellPeer) and not pair.ended:
            self._start_job(pair_id, partial(self._tell, pair_id))

    def _tell_everybody(self) -> None:
        """Send our state and manifest to every peer, so that peers learn of rotations and moves they missed."""
        for pair in self.pairs.all():
            if type(pair.state) in ESTABLISHED:
                self.stepper.start(pair.pair_id, partial(self._tell_in_turn, pair.pair_id))

    async def _tell_in_turn(self, pair_id: str) -> None:
        async with self._tellers:
            await self._tell(pair_id)

    async def _tell(self, pair_id: str) -> None:
        """Send our state to the peer, which otherwise learns it on the next contact."""
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self.handshakes.ask(pair_id, poll=True)
        except (SplError, TimeoutError) as exc:
            self._lines.info("pair.peer_not_told", pair_id, getattr(exc, "code", "timeout"))

    async def _tell_revoked(self, pair_id: str) -> None:
        """Tell the peer of a revocation for at most 5 s, then complete it.

        The asker of an unapproved request is not dialled; it learns of the end by its next poll.
        """
        pair = self.pairs.known(pair_id)
        if pair_id in self._telling or not isinstance(pair.state, Revoking):
            return
        self._telling.add(pair_id)
        try:
            if pair.initiator or pair.answer is not None:
                await self._tell(pair_id)
            await self.stepper.step(pair_id, steps.Told())
        finally:
            self._telling.discard(pair_id)

    # -- running

    def close(self) -> None:
        """End the thread of the steps; call it after `run` and the last request."""
        self.stepper.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Drive our requests, finish what a crash cut, expire what waited too long; return soon after `stop`."""
        loop = asyncio.get_running_loop()

        def on_commit(commit: Commit) -> Hop | None:
            return (loop.call_soon_threadsafe, self.stepper.notify) if THREAD_PAIRS in commit.threads else None

        unsubscribe = self.pairs.writer.listen(on_commit)
        try:
            await self._supervisor.run(stop)
        finally:
            unsubscribe()

    async def arrange(self) -> float:
        """Start what waits, and a task for each pair that lacks one; return the seconds until the next call."""
        if not await self._housekeep():
            return self._pace.housekeeping_s
        drop_ended(self._asked_ms, self.pairs.writer.views.pairs)
        for pair in self.pairs.all():
            if on_its_way(pair):
                self._start(f"handshake {pair.pair_id}", partial(self.handshakes.drive, pair.pair_id))
            elif isinstance(pair.state, Revoking):
                self._start(f"revocation {pair.pair_id}", partial(self._tell_revoked, pair.pair_id))
        for pair_id in self.maintenance.expired():
            self._start(f"expiry {pair_id}", partial(self.maintenance.doubt, pair_id, "token-expired"))
        for pair_id in self.handover.due():
            self._start(f"grants {pair_id}", partial(self.handover.maintain, pair_id))
        for pair_id in self.maintenance.due():
            self._start(f"maintenance {pair_id}", partial(self._maintain, pair_id))
        for pair_id, effect in self.stepper.take_effects():
            self._start_effect(pair_id, effect)
        for pair_id, job in self.stepper.take_jobs():
            self._start_job(pair_id, job)
        next_s = min(
            self._pace.housekeeping_s, self.maintenance.next_s(), self.handover.next_s(), self._statements.next_s()
        )
        return max(HOUSEKEEPING_MIN_S, next_s)

    def crashed(self, name: str, count: int) -> None:
        """Do nothing: a task that is still wanted is started again by `arrange`, and the crash is in the log."""

    async def _housekeep(self) -> bool:
        """Run what is due by time, if the store and the vault accept it; return False before the first `heal`.

        A refusal is tried again at the next call: it must not end reads, or renewals that need no write here.
        """
        if self.pairs.vault.identity is None:
            return True
        try:
            if not self._healed:
                await self.stepper.do(self.pairs.heal)
                await self.stepper.do(self._renewal.end_left_over)
                self._healed = True
                self._tell_everybody()
            for pair_id, effects in await self.stepper.do(self._take_due):
                self.stepper.follow(pair_id, effects)
        except (SplError, OSError) as exc:
            self._lines.warning("pairing.housekeeping_failed", "", getattr(exc, "code", "overloaded"), msg=str(exc))
        return self._healed

    def _take_due(self) -> list[tuple[str, tuple[Effect, ...]]]:
        """Take what is due by time; return (pair id, effects) of the peers' statements among it."""
        self.pairs.expire()
        self._renewal.retire()
        self.pairs.adopt_waiting(self._sync.unreached)
        self.maintenance.sweep_notes()
        return self._statements.take_waiting()

    async def _maintain(self, pair_id: str) -> None:
        await self.maintenance.maintain(pair_id)
        self.stepper.notify()

    def _start_job(self, pair_id: str, job: Job) -> None:
        """Start one more job about a pair, beside those that run."""
        self._jobs_count += 1
        self._start(f"job-{self._jobs_count} {pair_id}", job)

    def _start(self, name: str, job: Job) -> None:
        self._supervisor.start(name, partial(self._refusable, name, job), restart=False)

    async def _refusable(self, name: str, job: Job) -> None:
        """Run a job whose refusal is logged and ends nothing else; a peer can cause one with each message."""
        try:
            await job()
        except SplError as exc:
            self._lines.warning("pair.step_refused", name.rpartition(" ")[2], exc.code, msg=exc.message)
