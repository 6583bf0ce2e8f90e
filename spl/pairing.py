"""The handshake and the life of a pair, both roles: what talks to peers about pairs.

Steps are taken on one thread of this service (pairs.py, responder.py: they block on the disk); here is what waits for
the network.  An initiator's pair has a driver task that asks, polls or confirms until the pair is made or over; it
reads what to do from the records alone, so a restart goes on where the crash was.  `pair` starts it and only watches:
the caller may leave.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from .config import Config
from .core import canon, handshake, manifest, message, steps
from .core.aitl import Request
from .core.backoff import full_jitter_s
from .core.did import label_of
from .core.errors import SplError
from .core.limits import Limits
from .core.manifest import Manifest
from .core.pair import Pair, PairError
from .core.standing import Active, Answered, Asked, Degraded, Requested, Revoking, Waiting
from .core.steps import Effect, Event, FirstSync, TellPeer
from .hub import Commit, Hub
from .initiator import MODES, PASSING, Initiator, Learned, PairOptions, bare, dial_policy, signed_part
from .net.address import parse_url
from .net.client import Client, DialPolicy
from .pairs import Pairs, unconfirmed
from .published import Published
from .responder import Answer, Permitted, Responder, everybody
from .vault import Vault
from .views import THREAD_PAIRS

__all__ = ["PairOptions", "Pairing"]

log = logging.getLogger("spl.federation")

MANIFEST_PATH: Final = "/.well-known/syncropel"
DID_PATH: Final = "/.well-known/did.json"
TELL_TIMEOUT_S: Final = 5.0
POLL_S: Final = 2.0
POLL_SLOWER_AFTER: Final = 16
POLL_MAX_S: Final = 60.0
BACKOFF_BASE_S: Final = 1.0
HOUSEKEEPING_S: Final = 60.0
ASK_PAUSED_S: Final = 300.0
WAITING_EVERY_S: Final = 1.0
JOBS_MAX: Final = 4096
_T = TypeVar("_T")


class Pairing:
    """The service.  `run` must be running for anything to be asked of a peer."""

    def __init__(
        self, hub: Hub, vault: Vault, config: Config, client: Client, limits: Limits, *, url: str,
        now_ms: Callable[[], int], random_bytes: Callable[[int], bytes], first_sync: Callable[[str], Awaitable[int]],
        adopt_identity: Callable[[str, bool], Awaitable[None]], permitted: Permitted = everybody,
        poll_s: float = POLL_S,
    ) -> None:  # fmt: skip
        """`url` is our public base URL; `adopt_identity(label, force)` makes an identity and signs with it."""
        self.limits, self.client, self.config = limits, client, config
        self.published = Published(vault, hub.views, limits, url=url, now_ms=now_ms)
        self.pairs = Pairs(hub, vault, self.published, limits, now_ms=now_ms, random_bytes=random_bytes)
        self._responder = Responder(
            self.pairs, lambda: config.federation_approval, config.federation_poll_interval_ms, permitted
        )
        self._initiator = Initiator(self.pairs, self._responder, config.federation_poll_interval_ms)
        self._first_sync, self._adopt_identity, self._poll_s = first_sync, adopt_identity, poll_s
        self._now_ms, self._random_bytes = now_ms, random_bytes
        self._thread = ThreadPoolExecutor(1, "spl-pairing")
        self._changed = asyncio.Event()
        self._jobs: deque[tuple[Callable[..., Awaitable[object]], tuple[object, ...]]] = deque(maxlen=JOBS_MAX)
        self._kicks: dict[str, asyncio.Event] = {}
        self._trouble: dict[str, SplError] = {}
        self._synced: dict[str, dict[str, object] | None] = {}
        self._telling: set[str] = set()
        self._jobs_count = 0

    # -- documents and looking

    def manifest_document(self) -> dict[str, Any]:
        """Return what `/.well-known/syncropel` serves; raise PublishError "manifest-missing"."""
        return self.published.manifest()

    def did_document(self) -> dict[str, Any]:
        """Return what `/.well-known/did.json` serves; raise PublishError "manifest-missing"."""
        return self.published.did_document()

    def resolve(self, ref: str) -> Pair:
        """Return the pair that people call so; raise PairError "pair-unknown" or "ambiguous"."""
        return self.pairs.resolve(ref)

    def resolve_request(self, ref: str) -> Request:
        """Return the request that people call so; raise PairError "not-found" or "ambiguous"."""
        return self.pairs.resolve_request(ref)

    def dial(self, pair: Pair) -> DialPolicy:
        """Return how the peer may be dialled: at a private address only when that was typed, or ours is one."""
        return dial_policy(pair, self.published.url, self.config.federation_allow_http)

    # -- what peers ask

    async def receive(self, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer's pair request."""
        return await self._do(self._responder.receive, body, address)

    async def poll(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that asks where the pair stands."""
        return await self._do(self._responder.poll, pair_id, body, address)

    async def confirm(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to the initiator's confirmation."""
        answer, effects = await self._do(self._responder.confirm, pair_id, body, address)
        self._later(pair_id, effects)
        return answer

    async def notify_revoke(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that revoked the pair."""
        return await self._do(self._responder.notify_revoke, pair_id, body, address)

    async def contact(self, pair_id: str) -> None:
        """Take the first authenticated use of a pair's token as its confirmation."""
        pair = self.pairs.get(pair_id)
        if pair is not None and unconfirmed(pair):
            self._later(pair_id, await self._do(self._responder.contact, pair_id))

    # -- what the operator asks

    async def decide_request(self, request_id: str, decision: str, reason: str = "") -> Pair:
        """Approve or reject exactly the request of this id; raise PairError "pair-state-conflict" for a decided one."""
        return await self._do(self._responder.decide, request_id, decision, reason)

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

    async def revoke(self, pair_id: str, reason: str = "") -> Pair:
        """End the pair: tokens first, then the peer is told for at most 5 s, then the record; terminal."""
        pair = self._pair(pair_id)
        if not pair.ended:
            await self._do(lambda: self.pairs.take(self._pair(pair_id), steps.Revoke(reason or "revoked")))
        await self._tell_revoked(pair_id)
        return self._pair(pair_id)

    async def set_mode(self, pair_id: str, mode: str) -> Pair:
        """Change how the pair syncs; raise PairError "bad-field" for an unknown mode."""
        if mode not in MODES:
            raise PairError("bad-field", f"mode {mode[:40]!r} is none of {', '.join(MODES)}")
        return await self._configure(pair_id, "mode", mode)

    async def set_poll_interval(self, pair_id: str, interval_ms: int) -> Pair:
        """Change the time between polls; raise PairError "bad-field" below limits.poll_interval_min_s."""
        if interval_ms < self.limits.poll_interval_min_s * 1000:
            raise PairError("bad-field", f"the poll interval is at least {self.limits.poll_interval_min_s:g} s")
        return await self._configure(pair_id, "poll_interval_ms", interval_ms)

    async def refresh(self, pair_id: str) -> Pair:
        """Fetch the peer's manifest anew and learn where the pair stands with it; completes a pending pair.

        Raises ReachError, ManifestError, MessageError.
        """
        pair = self._pair(pair_id)
        if pair.ended:
            raise PairError("pair-revoked", f"{pair_id} is revoked ({pair.reason})")
        peer = await self._discover(pair.proposal.url or pair.url, pair.proposal.strict, dial=self.dial(pair))
        if peer.did != pair.peer_did:
            raise PairError("manifest-did-mismatch", f"{peer.url} is now {peer.did}, not {pair.peer_did}")
        if peer.raw != pair.manifest:
            await self._step(pair_id, steps.ManifestChange(peer.raw))
        if pair.initiator and isinstance(pair.state, Requested | Waiting | Answered):
            await self._advance(pair_id)
        elif not isinstance(pair.state, Asked):
            await self._exchange(pair_id)
        return self._pair(pair_id)

    # -- what sync tells

    def on_trouble(self, pair_id: str, code: str) -> None:
        """Mark the pair as degraded: errors recur, or the peer refused our credentials."""
        pair = self.pairs.get(pair_id)
        if pair is None or not isinstance(pair.state, Active | Degraded):
            return
        if isinstance(pair.state, Active) or pair.reason != code:
            self._spawn(self._step, pair_id, steps.Degrade(code))

    def on_success(self, pair_id: str) -> None:
        """Mark a degraded pair as active again."""
        pair = self.pairs.get(pair_id)
        if pair is not None and isinstance(pair.state, Degraded):
            self._spawn(self._step, pair_id, steps.Recover())

    def on_peer_state(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Ask the peer for its signed word: a bare status said that it paused or revoked."""
        self._spawn(self._exchange, pair_id)

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
        dial = DialPolicy(allow_private=True, allow_http=self.config.federation_allow_http)
        peer = await self._discover(
            url, options.strict, dial=dial, expect_did=options.expect_did, expect_key=options.expect_key
        )
        yield {"step": "manifest", "did": peer.did, "url": url}
        pair_id = await self._do(self._initiator.begin, peer, url, terms, options)
        yield {"step": "verified"}
        self._kick(pair_id)
        async for step in self._watch(pair_id, options.wait_ms / 1000):
            yield step

    async def _watch(self, pair_id: str, wait_s: float) -> AsyncIterator[dict[str, object]]:
        """Yield what the records of the pair, and this process's attempts, have to tell."""
        shown: set[str] = set()
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + wait_s
        while "active" not in shown:
            changed = self._changed
            pair = self._initiator.standing_for(self._pair(pair_id))
            pair_id = pair.pair_id
            for step in self._initiator.news(pair, shown, self._synced.get(pair_id)):
                shown.add(str(step["step"]))
                yield step
            left_s = end_s - now_s()
            trouble = self._trouble.get(pair_id)
            if trouble is not None and (left_s <= 0 or trouble.exit_code not in PASSING):
                raise trouble
            if left_s <= 0 and "active" not in shown:
                yield {"step": "pending", "pair_id": pair_id}
                return
            if isinstance(pair.state, Waiting | Asked):
                yield {"step": "waiting", "pair_id": pair_id, "left_ms": int(left_s * 1000)}
            if "active" not in shown:
                await _wait(changed, min(left_s, WAITING_EVERY_S))

    async def _discover(
        self, url: str, strict: bool, *, dial: DialPolicy, expect_did: str = "", expect_key: str = ""
    ) -> Manifest:
        """Return the verified manifest of the instance at a URL, newer than and grown from the last one accepted."""
        base = parse_url(url).origin
        document = await self._document(base + MANIFEST_PATH, dial)
        did_document = await self._document(base + DID_PATH, dial)
        peer = manifest.verify(
            document, did_document, now_ms=self._now_ms(), strict=strict, limits=self.limits, expect_did=expect_did,
            expect_key=expect_key,
        )  # fmt: skip
        return self._initiator.judge(peer, strict=strict, expect_key=expect_key)

    async def _document(self, url: str, dial: DialPolicy) -> bytes:
        reply = await self.client.fetch(
            "GET", url, headers=[("cache-control", "no-cache")], answer_bytes=self.limits.manifest_bytes, dial=dial
        )
        if reply.status == 404:
            raise PairError("manifest-missing", f"{url} answers 404: the peer publishes no identity")
        if reply.status != 200:
            raise bare(reply.status)
        return reply.body

    async def _drive(self, pair_id: str) -> None:
        """Ask until the request became a pair or is over; failures back off with full jitter, at most a minute."""
        attempt = polls = 0
        kick = self._kicks.setdefault(pair_id, asyncio.Event())
        while _on_its_way(self.pairs.get(pair_id)):
            kick.clear()
            delay_s = min(POLL_MAX_S, self._poll_s * 2.0 ** (polls // POLL_SLOWER_AFTER))
            try:
                before = self._pair(pair_id)
                after = await self._advance(pair_id)
                attempt, polls = 0, polls + 1
                self._trouble.pop(pair_id, None)
                if after.state != before.state:
                    continue
            except SplError as exc:
                attempt += 1
                unit = int.from_bytes(self._random_bytes(4)) / 2**32
                delay_s = full_jitter_s(attempt, min(BACKOFF_BASE_S, self._poll_s), POLL_MAX_S, unit)
                self._trouble[pair_id] = exc
                fields = {"pair": pair_id, "code": exc.code, "attempt": attempt, "msg": exc.message}
                log.warning("pair.attempt_failed", extra={"fields": fields})
                self._announce()
            await _wait(kick, delay_s)

    async def _advance(self, pair_id: str) -> Pair:
        """Say what the pair's state calls for, take in the answer, and return the pair; raise what went wrong."""
        learned = await self._talk(pair_id)
        if learned.poll:
            learned = await self._talk(pair_id, poll=True)
        if learned.fault is not None:
            raise learned.fault
        return learned.pair

    async def _exchange(self, pair_id: str) -> Pair:
        """Tell the peer where the pair stands with us, learn where it stands with the peer, and return it."""
        return (await self._talk(pair_id, poll=True)).pair

    async def _talk(self, pair_id: str, *, poll: bool = False) -> Learned:
        """Return what one message to the peer and its signed answer made of the pair.

        Raises ReachError, and for an answer without the peer's signature what its status says; that moves no pair.
        """
        pair = self._pair(pair_id)
        words = await self._do(lambda: self._initiator.next_words(pair, poll=poll))
        body = canon.encode(message.sign(words.purpose, words.fields, self.pairs.identity.key))
        reply = await self.client.fetch(
            "POST", words.url, headers=[("content-type", "application/json")], body=body,
            answer_bytes=self.limits.manifest_bytes, dial=self.dial(pair),
        )  # fmt: skip
        fields = handshake.read_answer(signed_part(reply.status, reply.body, words), words.fields, pair.chain.present)
        learned = await self._do(self._initiator.learn, pair_id, fields)
        self._later(learned.pair.pair_id, learned.effects)
        return learned

    # -- steps and what follows them

    async def _step(self, pair_id: str, event: Event) -> Pair:
        """Take one step of the pair as it stands then, and do what follows."""
        pair, effects = await self._do(lambda: self.pairs.take(self._pair(pair_id), event))
        self._later(pair_id, effects)
        return pair

    async def _configure(self, pair_id: str, name: str, value: object) -> Pair:
        pair = self._pair(pair_id)
        return pair if getattr(pair, name) == value else await self._step(pair_id, steps.Configure({name: value}))

    def _later(self, pair_id: str, effects: tuple[Effect, ...]) -> None:
        """Start what follows a step once it is durable."""
        for effect in effects:
            if isinstance(effect, FirstSync):
                self._synced[pair_id] = None
                self._spawn(self._sync_first, pair_id)
            elif isinstance(effect, TellPeer) and not self._pair(pair_id).ended:
                self._spawn(self._tell, pair_id)
        self._announce()

    async def _sync_first(self, pair_id: str) -> None:
        try:
            self._synced[pair_id] = {"records": await self._first_sync(pair_id)}
        except SplError as exc:
            self._synced[pair_id] = {"records": 0, "error": exc.to_json()}
        self._announce()

    async def _tell(self, pair_id: str) -> None:
        """Say our state to the peer; it learns of it on the next contact otherwise."""
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self._exchange(pair_id)
        except (SplError, TimeoutError) as exc:
            fields = {"pair": pair_id, "code": getattr(exc, "code", "timeout")}
            log.info("pair.peer_not_told", extra={"fields": fields})

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
                loop.call_soon_threadsafe(self._announce)

        async def end() -> None:
            await stop.wait()
            self._announce()

        silence = self.pairs.hub.listen(heard)
        asked_s = loop.time()
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            if self.pairs.vault.identity is not None:
                await self._do(self.pairs.heal)
            async with asyncio.TaskGroup() as group:
                group.create_task(end())
                while not stop.is_set():
                    changed = self._changed
                    await self._arrange(group, tasks)
                    await _wait(changed, HOUSEKEEPING_S)
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
        for name in [name for name, task in tasks.items() if task.done()]:
            del tasks[name]
        for pair in self.pairs.all():
            if pair.pair_id not in tasks and _on_its_way(pair):
                tasks[pair.pair_id] = group.create_task(self._bounded(self._drive, pair.pair_id))
            elif pair.pair_id not in tasks and isinstance(pair.state, Revoking):
                tasks[pair.pair_id] = group.create_task(self._bounded(self._tell_revoked, pair.pair_id))
        while self._jobs:
            self._jobs_count += 1
            job, arguments = self._jobs.popleft()
            tasks[f"job {self._jobs_count}"] = group.create_task(self._bounded(job, *arguments))

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
            log.warning("pair.step_refused", extra={"fields": fields})
        except Exception:
            log.exception("pairing.task_died", extra={"fields": {"pair": str(arguments[0])}})

    def _spawn(self, job: Callable[..., Awaitable[object]], *arguments: object) -> None:
        self._jobs.append((job, arguments))
        self._announce()

    def _kick(self, pair_id: str) -> None:
        """Let the pair's driver try now."""
        self._trouble.pop(pair_id, None)
        self._kicks.setdefault(pair_id, asyncio.Event()).set()
        self._announce()

    def _announce(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _do(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Return what the function returns on the service's thread, where one step at a time is taken."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _pair(self, pair_id: str) -> Pair:
        pair = self.pairs.get(pair_id)
        if pair is None:
            raise PairError("pair-unknown", f"no pair {pair_id[:80]!r}")
        return pair


def _on_its_way(pair: Pair | None) -> bool:
    return pair is not None and pair.initiator and isinstance(pair.state, Requested | Waiting | Answered)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set or after so many seconds, whichever is first."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return
