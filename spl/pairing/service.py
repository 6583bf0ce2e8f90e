"""The handshake and the life of a pair, both roles: what talks to peers about pairs.

Steps are taken on one thread of this service (pairs.py, responder.py: they block on the disk); here is what waits for
the network.  An initiator's pair has a driver task that asks, polls or confirms until the pair is made or over; it
reads what to do from the records alone, so a restart goes on where the crash was.  `pair` starts it and only watches:
the caller may leave.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from ..core.backoff import full_jitter_s, unit_of
from ..core.errors import SplError
from ..core.event import event
from ..core.identity.did import label_of
from ..core.limits import Limits
from ..core.pair import steps
from ..core.pair.pair import ESTABLISHED, POLL_INTERVAL_MS_MAX, Pair, PairError
from ..core.pair.state import MODES, Active, Degraded, Revoking
from ..core.pair.steps import Effect, FirstSync, PairEvent, Resync, TellPeer
from ..home.config import Settings
from ..home.manifest import ManifestSigner
from ..home.vault import Vault
from ..home.views import THREAD_PAIRS
from ..home.writer import Writer
from ..home.writes import Commit
from ..net.client import DialPolicy
from ..sync.peer import PeerClient
from .exchange import Exchange
from .grants import Grants, Handover
from .initiator import (
    BACKOFF_BASE_S,
    POLL_S,
    Changes,
    HandshakeLoop,
    Initiator,
    Learned,
    PairOptions,
    on_its_way,
    wait,
)
from .machine import Pairs, unconfirmed
from .maintenance import UNVERIFIED, Maintenance, token_trouble
from .responder import Answer, Granted, Permitted, Responder, everybody, nothing
from .tokens import Renewal

__all__ = ["PairOptions", "Pairing"]

log = logging.getLogger("spl.federation")

TELL_TIMEOUT_S: Final = 5.0
HOUSEKEEPING_S: Final = 60.0
HOUSEKEEPING_MIN_S: Final = 0.05
ASK_PAUSED_S: Final = 300.0
ASK_AGAIN_MS: Final = 5000
TELLERS_MAX: Final = 16
RESYNC_BACKOFF_MAX_S: Final = 300.0
JOBS_MAX: Final = 4096
_T = TypeVar("_T")


class Pairing:
    """The service.  `run` must be running for anything to be asked of a peer."""

    def __init__(
        self, writer: Writer, vault: Vault, settings: Settings, peers: PeerClient, limits: Limits, *, url: str,
        now_ms: Callable[[], int], random_bytes: Callable[[int], bytes], first_sync: Callable[[str], Awaitable[int]],
        adopt_identity: Callable[[str, bool], Awaitable[None]], resync: Callable[[str], Awaitable[int]],
        wake: Callable[[str], None], permitted: Permitted = everybody, granted: Granted = nothing,
        poll_s: float = POLL_S, housekeeping_s: float = HOUSEKEEPING_S,
    ) -> None:  # fmt: skip
        """`url` is our public base URL; `adopt_identity(label, force)` makes an identity and signs with it.

        Others': `first_sync` pulls, `resync` fetches what our cursor skipped, `wake` tries a pair that was backing off.
        """
        self.limits, self.peers, self._settings = limits, peers, settings
        self.published = ManifestSigner(writer, vault, limits, url=url, now_ms=now_ms)
        self.pairs = Pairs(writer, vault, self.published, limits, now_ms=now_ms, random_bytes=random_bytes)
        self._renewal, interval_ms = Renewal(self.pairs), settings.now.federation_poll_interval_ms
        self._responder = Responder(
            self.pairs, self._renewal, lambda: settings.now.federation_approval, interval_ms, permitted, granted
        )
        self._initiator = Initiator(self.pairs, self._renewal, self._responder, interval_ms)
        self._talk = Exchange(self.pairs, self._initiator, peers, limits, now_ms=now_ms, do=self._do)
        self.maintenance = Maintenance(
            self.pairs, self._renewal, self._initiator, self._talk, limits, step=self._step, do=self._do,
            exchange=self._exchange, wake=wake,
        )  # fmt: skip
        self._first_sync, self._resync, self._adopt_identity = first_sync, resync, adopt_identity
        self._changes, self._housekeeping_s = Changes(), housekeeping_s
        self._driver = HandshakeLoop(
            self.pairs, self._initiator, self._changes, poll_s=poll_s, say=self._say, random_bytes=random_bytes
        )
        self.handover = Handover(
            Grants(self.pairs), self._responder, self._initiator, self._talk, do=self._do, exchange=self._exchange,
            ring=self._changes.ring,
        )  # fmt: skip
        self._now_ms, self._random_bytes = now_ms, random_bytes
        self._thread = ThreadPoolExecutor(1, "spl-pairing")
        self._jobs: deque[tuple[Callable[..., Awaitable[object]], tuple[object, ...]]] = deque(maxlen=JOBS_MAX)
        self._telling: set[str] = set()
        self._asked_ms: dict[str, int] = {}
        self._tellers = asyncio.Semaphore(TELLERS_MAX)
        self._jobs_count = 0

    # -- documents and looking

    def resolve(self, ref: str) -> Pair:
        """Return the pair that people call so; raise PairError "pair-unknown" or "ambiguous"."""
        return self.pairs.resolve(ref)

    def trouble(self, pair_id: str) -> SplError | None:
        """Return why the last attempt of a handshake on its way failed, or None."""
        return self._driver.trouble.get(pair_id)

    def dial(self, pair: Pair) -> DialPolicy:
        """Return how the peer may be dialled: at a private address only when that was typed, or ours is one."""
        return self.peers.dial(pair)

    # -- what peers ask

    async def receive(self, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer's pair request."""
        return await self._do(self._responder.receive, body, address)

    async def poll(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that asks where the pair stands."""
        answer = await self._do(self._responder.poll, pair_id, body, address)
        self._later(pair_id, self._responder.effects(pair_id))
        if pair_id in self._responder.asked_to_renew:
            self._responder.asked_to_renew.discard(pair_id)
            self._spawn(self.maintenance.renew, pair_id)
        return answer

    async def renew(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that asks for a new token."""
        return await self._do(self._responder.renew, pair_id, body, address)

    async def confirm(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to the initiator's confirmation."""
        answer, effects = await self._do(self._responder.confirm, pair_id, body, address)
        self._later(pair_id, effects)
        return answer

    async def notify_revoke(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that revoked the pair."""
        return await self._do(self._responder.notify_revoke, pair_id, body, address)

    async def contact(self, pair_id: str, token_id: str = "") -> None:
        """Take note of a peer's authenticated call: its first confirms the pair, the first by a new token ends the old.

        A peer that paused does not call; one that does is asked for its word.
        """
        pair = self.pairs.get(pair_id)
        if pair is None:
            return
        if unconfirmed(pair):
            self._later(pair_id, await self._do(self._responder.contact, pair_id))
        elif self._renewal.watches(pair, token_id):
            await self._do(self._renewal.used, pair_id, token_id)
        elif pair.paused_by in ("peer", "both") and self._now_ms() >= self._asked_ms.get(pair_id, 0) + ASK_AGAIN_MS:
            self._asked_ms[pair_id] = self._now_ms()
            self._spawn(self._tell, pair_id)

    async def recall(self, pairs: Iterable[Pair]) -> None:
        """Put back the secrets of pairs that are about to be restored: secret, then record."""
        await self._do(self.pairs.recall, pairs)

    # -- what the operator asks

    async def decide_request(
        self, request_id: str, decision: str, reason: str = "", *, namespaces: Sequence[str] = (), maps: bool = True
    ) -> Pair:
        """Approve or reject exactly the request of this id, agreeing to these namespaces, or to all that both share.

        Raises PairError "pair-state-conflict" for a decided one, NamespaceError "namespace-rejected".
        """
        decide = self._responder.decide
        return await self._do(lambda: decide(request_id, decision, reason, namespaces=namespaces, maps=maps))

    async def pause(self, pair_id: str, reason: str = "") -> Pair:
        """Stop syncing until we resume; a pair that we paused stays as it is."""
        pair = self._pair(pair_id)
        return pair if pair.paused_by in ("us", "both") else await self._step(pair_id, steps.Pause(reason))

    async def resume(self, pair_id: str, reason: str = "") -> Pair:
        """Go on from the saved position; raise PairError "pair-paused" when only the peer can resume."""
        pair = self._pair(pair_id)
        if pair.paused_by == "peer":
            name = label_of(pair.peer_did)
            hint = f"on {name}: spl federation resume {pair_id}"
            raise PairError("pair-paused", f"{name} paused it, and only {name} can resume", hint=hint)
        return pair if isinstance(pair.state, Active | Degraded) else await self._step(pair_id, steps.Resume())

    async def revoke(self, pair_id: str, reason: str = "", *, block: bool = False) -> Pair:
        """End the pair: tokens first, then the peer is told for at most 5 s, then the record; terminal.

        `block` also refuses from now on what the peer signed, whoever brings it, and its requests.
        """
        pair = self._pair(pair_id)
        also = [self.pairs.blocking(pair.peer_did, True)] if block else []
        if not pair.ended:
            event = steps.Revoke(reason or "revoked")
            await self._do(lambda: self.pairs.take(self._pair(pair_id), event, also=also))
        elif block and pair.peer_did not in self.pairs.writer.views.blocked:
            await self._do(self.pairs.submit, also)
        await self._tell_revoked(pair_id)
        return self._pair(pair_id)

    async def set_mode(self, pair_id: str, mode: str) -> Pair:
        """Change how the pair syncs; raise PairError "bad-field" for an unknown mode."""
        if mode not in MODES:
            raise PairError("bad-field", f"mode {mode[:40]!r} is none of {', '.join(MODES)}")
        return await self.configure(pair_id, lambda pair: {} if pair.mode == mode else {"mode": mode})

    async def set_poll_interval(self, pair_id: str, interval_ms: int) -> Pair:
        """Change the time between polls, from limits.poll_interval_min_s to 30 days; raise PairError "bad-field"."""
        least_s, most_ms = self.limits.poll_interval_min_s, POLL_INTERVAL_MS_MAX
        if not least_s * 1000 <= interval_ms <= most_ms:
            raise PairError("bad-field", f"the poll interval is {least_s:g} s to {most_ms // 86_400_000} d")
        changed = {"poll_interval_ms": interval_ms}
        return await self.configure(pair_id, lambda pair: {} if pair.poll_interval_ms == interval_ms else changed)

    async def configure(self, pair_id: str, changes: Callable[[Pair], Mapping[str, Any]]) -> Pair:
        """Change the settings that `changes` returns for the pair as it stands when its turn comes; none, none.

        Raises what `changes` raises, PairError "pair-state-conflict" before the pair stands and after its end.
        """

        def take() -> tuple[Pair, tuple[Effect, ...]]:
            pair = self._pair(pair_id)
            found = changes(pair)
            return self.pairs.take(pair, steps.Configure(found)) if found else (pair, ())

        pair, effects = await self._do(take)
        self._later(pair_id, effects)
        return pair

    async def refresh(self, pair_id: str, expect_key: str = "") -> Pair:
        """Fetch the peer's manifest anew and learn where the pair stands with it; completes a pending pair.

        `expect_key` names the peer's key as its operator told it, which settles a fork.  Raises ReachError,
        ManifestError, MessageError.
        """
        pair = self._pair(pair_id)
        if pair.ended:
            raise PairError("pair-revoked", f"{pair_id} is revoked ({pair.reason})")
        pair = await self.maintenance.refresh(pair_id, expect_key)
        await self.handover.maintain(pair_id)
        if on_its_way(pair):
            await self._driver.advance(pair_id)
        return self._pair(pair_id)

    async def rotate_tokens(self, pair_id: str) -> Pair:
        """Replace both tokens of the pair: the one we hold now, the other as soon as the peer asks, as we tell it."""
        pair = await self.maintenance.renew(pair_id)
        await self._exchange(pair_id, renew=True)
        return pair

    async def rotate_identity(self, reason: str) -> None:
        """Sign with a new key from now on, publish it, and tell every peer; `reason` is of `did.REASONS`."""
        await self._do(self.pairs.vault.rotate, reason)
        await self.renounce()

    async def renounce(self) -> None:
        """Sign with the identity that the vault now holds, and tell every peer."""
        await self._adopt_identity("", False)
        self._tell_everybody()

    # -- what sync tells

    def on_trouble(self, pair_id: str, code: str) -> None:
        """Mark the pair as degraded: errors recur, or the peer refused our credentials."""
        pair = self.pairs.get(pair_id)
        if pair is not None and isinstance(pair.state, Active | Degraded) and pair.reason not in UNVERIFIED:
            self._spawn(self.maintenance.doubt, pair_id, token_trouble(pair, code, self._now_ms()))

    def on_success(self, pair_id: str) -> None:
        """Mark a degraded pair as active again, unless its peer's manifest is in doubt."""
        self._spawn(self._recover, pair_id)

    def on_peer_state(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Ask the peer for its signed word: a bare status said that it paused or revoked."""
        self._spawn(self._exchange, pair_id)

    def on_view(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Ask for the peer's grants if its view tells of some that we lack."""
        self.handover.seen(pair_id, view)

    async def _recover(self, pair_id: str) -> None:
        # Looked at when its turn comes: a degradation that was told before may have become durable only now.
        pair = self.pairs.get(pair_id)
        if pair is not None and isinstance(pair.state, Degraded) and pair.reason not in UNVERIFIED:
            await self._step(pair_id, steps.Recover())

    # -- the initiator

    async def pair(self, url: str, options: PairOptions) -> AsyncIterator[dict[str, object]]:
        """Yield the steps of pairing with the instance at a URL; the daemon goes on when the caller leaves.

        Raises SplError: what the documents, the peer, or the state of an earlier pair refuse.
        """
        if self.pairs.vault.identity is None:
            if not options.auto_generate_identity:
                raise PairError("identity-missing", hint="spl identity generate, or --auto-generate-identity")
            await self._adopt_identity("", False)
        terms = self._initiator.terms(options)
        dial = DialPolicy(allow_private=True, allow_http=self._settings.now.federation_allow_http)
        peer = await self._talk.discover(
            url, options.strict, dial=dial, expect_did=options.expect_did, expect_key=options.expect_key
        )
        yield {"step": "manifest", "did": peer.did, "url": url}
        pair_id = await self._do(self._initiator.begin, peer, url, terms, options)
        yield {"step": "verified"}
        self._driver.kick(pair_id)
        async for step in self._driver.watch(pair_id, options.wait_ms / 1000):
            yield step

    async def _exchange(self, pair_id: str, *, token_id: str = "", renew: bool = False) -> dict[str, Any]:
        """Tell the peer where the pair stands with us, take in where it stands with the peer, return its answer."""
        return (await self._say(pair_id, poll=True, token_id=token_id, renew=renew))[1]

    async def _say(self, pair_id: str, **how: Any) -> tuple[Learned, dict[str, Any]]:
        """Return what one message to the peer and its signed answer made of the pair, and the answer's fields.

        Raises ReachError, and for an answer without the peer's signature what its status says; that moves no pair.
        """
        pair = self._pair(pair_id)
        words = await self._do(lambda: self._initiator.next_request(pair, **how))
        fields = await self._talk.say(pair, words)
        learned = await self._do(self._initiator.learn, pair_id, fields)
        self._later(learned.pair.pair_id, (*learned.effects, *self._responder.effects(pair_id)))
        return learned, fields

    # -- steps and what follows them

    async def _step(self, pair_id: str, event: PairEvent) -> Pair:
        """Take one step of the pair as it stands then, and do what follows."""
        pair, effects = await self._do(lambda: self.pairs.take(self._pair(pair_id), event))
        self._later(pair_id, effects)
        return pair

    def _later(self, pair_id: str, effects: tuple[Effect, ...]) -> None:
        """Start what follows a step once it is durable."""
        for effect in effects:
            if isinstance(effect, FirstSync):
                self._driver.synced[pair_id] = None
                self._spawn(self._sync_first, pair_id)
            elif isinstance(effect, Resync):
                self._spawn(self._catch_up, pair_id)
            elif isinstance(effect, TellPeer) and not self._pair(pair_id).ended:
                self._spawn(self._tell, pair_id)
        self._changes.ring()

    async def _sync_first(self, pair_id: str) -> None:
        try:
            self._driver.synced[pair_id] = {"records": await self._first_sync(pair_id)}
        except SplError as exc:
            self._driver.synced[pair_id] = {"records": 0, "error": exc.to_json()}
        self._changes.ring()

    async def _catch_up(self, pair_id: str) -> None:
        """Fetch what our cursor skipped of what the peer shares, until that succeeded once or the pair stops."""
        attempt = 0
        while (pair := self.pairs.get(pair_id)) is not None and pair.sync_allowed:
            try:
                await self._resync(pair_id)
                return
            except SplError as exc:
                attempt += 1
                log.info(**event("pair.resync_failed", pair=pair_id, code=exc.code))
            unit = unit_of(self._random_bytes(4))
            await asyncio.sleep(full_jitter_s(attempt, BACKOFF_BASE_S, RESYNC_BACKOFF_MAX_S, unit))

    def _tell_everybody(self) -> None:
        """Say our state and manifest to every peer: who missed a rotation or a move learns of it by this."""
        for pair in self.pairs.all():
            if type(pair.state) in ESTABLISHED:
                self._spawn(self._tell_in_turn, pair.pair_id)

    async def _tell_in_turn(self, pair_id: str) -> None:
        async with self._tellers:
            await self._tell(pair_id)

    async def _tell(self, pair_id: str) -> None:
        """Say our state to the peer; it learns of it on the next contact otherwise."""
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self._exchange(pair_id)
        except (SplError, TimeoutError) as exc:
            fields = {"pair": pair_id, "code": getattr(exc, "code", "timeout")}
            log.info(**event("pair.peer_not_told", **fields))

    async def _tell_revoked(self, pair_id: str) -> None:
        """Tell the peer of a revocation for at most 5 s, then complete it."""
        if pair_id in self._telling or not isinstance(self._pair(pair_id).state, Revoking):
            return
        self._telling.add(pair_id)
        try:
            await self._tell(pair_id)
            await self._step(pair_id, steps.Told())
        finally:
            self._telling.discard(pair_id)

    # -- running

    async def run(self, stop: asyncio.Event) -> None:
        """Drive our requests, finish what a crash cut, expire what waited too long; return soon after `stop`."""
        loop = asyncio.get_running_loop()

        def heard(commit: Commit) -> None:
            if THREAD_PAIRS in commit.threads:
                loop.call_soon_threadsafe(self._changes.ring)

        async def end() -> None:
            await stop.wait()
            self._changes.ring()

        silence = self.pairs.writer.listen(heard)
        asked_s = loop.time()
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            if self.pairs.vault.identity is not None:
                await self._do(self.pairs.heal)
                self._tell_everybody()
            async with asyncio.TaskGroup() as group:
                group.create_task(end())
                while not stop.is_set():
                    changed = self._changes.next
                    await self._arrange(group, tasks)
                    wait_s = min(self._housekeeping_s, self.maintenance.next_s(), self.handover.next_s())
                    await wait(changed, max(HOUSEKEEPING_MIN_S, wait_s))
                    if loop.time() >= asked_s + ASK_PAUSED_S:
                        asked_s = loop.time()
                        self._ask_paused()
                for task in tasks.values():
                    task.cancel()
        finally:
            silence()

    async def _arrange(self, group: asyncio.TaskGroup, tasks: dict[str, asyncio.Task[None]]) -> None:
        """Start the jobs that wait, and a driver or a teller for each pair that needs one and has none."""
        if self.pairs.vault.identity is not None:
            await self._do(self.pairs.expire)
            await self._do(self._renewal.retire)
        for name in [name for name, task in tasks.items() if task.done()]:
            del tasks[name]
        for pair in self.pairs.all():
            if pair.pair_id not in tasks and on_its_way(pair):
                tasks[pair.pair_id] = group.create_task(self._bounded(self._driver.drive, pair.pair_id))
            elif pair.pair_id not in tasks and isinstance(pair.state, Revoking):
                tasks[pair.pair_id] = group.create_task(self._bounded(self._tell_revoked, pair.pair_id))
        for pair_id in self.maintenance.expired():
            self._jobs.append((self.maintenance.doubt, (pair_id, "token-expired")))
        self._jobs.extend((self.handover.maintain, (pair_id,)) for pair_id in self.handover.due())
        for pair_id in self.maintenance.due():
            if f"tend {pair_id}" not in tasks:
                tasks[f"tend {pair_id}"] = group.create_task(self._bounded(self._tend, pair_id))
        while self._jobs:
            self._jobs_count += 1
            job, arguments = self._jobs.popleft()
            tasks[f"job {self._jobs_count}"] = group.create_task(self._bounded(job, *arguments))

    async def _tend(self, pair_id: str) -> None:
        await self.maintenance.maintain(pair_id)
        self._changes.ring()

    def _ask_paused(self) -> None:
        """Ask the peers that paused whether they go on: their word may have been lost."""
        for pair in self.pairs.all():
            if pair.paused_by in ("peer", "both"):
                self._spawn(self._tell, pair.pair_id)

    async def _bounded(self, job: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run one job; the task boundary: its failure is logged and ends nothing else."""
        try:
            await job(*arguments)
        except SplError as exc:
            fields = {"pair": str(arguments[0]), "code": exc.code, "msg": exc.message}
            log.warning(**event("pair.step_refused", **fields))
        except Exception:
            log.exception(**event("pairing.task_died", pair=str(arguments[0])))

    def _spawn(self, job: Callable[..., Awaitable[object]], *arguments: object) -> None:
        self._jobs.append((job, arguments))
        self._changes.ring()

    async def _do(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Return what the function returns on the service's thread, where one step at a time is taken."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _pair(self, pair_id: str) -> Pair:
        pair = self.pairs.get(pair_id)
        if pair is None:
            raise PairError("pair-unknown", f"no pair {pair_id[:80]!r}")
        return pair
