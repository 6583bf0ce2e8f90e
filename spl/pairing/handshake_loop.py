"""Sends what the asking side says until a request of ours is a pair or over; callers may watch its progress.

On the event loop; what is asked and what an answer means is that of `Initiator`, on the thread of the steps.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.pair.pair import Pair
from ..core.pair.state import Answered, Asked, Phase, Requested, Waiting
from ..core.value import replace
from ..net.address import ReachError
from ..sync.schedule import Sync
from ..sync.supervise import wait
from .exchange import Exchange
from .initiator import PASSING, FirstSyncResult, Initiator, Learned, PairStep
from .stepper import Stepper

log = logging.getLogger("spl.federation")

UNSIGNED: Final = frozenset({"message-signature", "answer-malformed", "peer-4xx", "peer-5xx", "foreign-answer"})
"""Codes of answers that say nothing in the name of the peer that we know."""
POLL_S: Final = 2.0
POLL_SLOWER_AFTER: Final = 16
"""After so many polls the pause between them doubles, and again after as many more."""
POLL_MAX_S: Final = 60.0
BACKOFF_BASE_S: Final = 1.0
WAITING_EVERY_S: Final = 1.0


class HandshakeLoop:
    """Sends our messages, drives our requests until they are pairs or over, and informs those who watch."""

    def __init__(
        self, stepper: Stepper, initiator: Initiator, exchange: Exchange, sync: Sync, poll_s: float = POLL_S
    ) -> None:
        self.pairs, self.trouble = stepper.pairs, dict[str, SplError]()
        """Pair -> why the last attempt of its handshake failed, while it is on its way."""
        self._since_ms: dict[str, int] = {}
        self._stepper, self._initiator, self.exchange, self._sync = stepper, initiator, exchange, sync
        self._poll_s = poll_s
        self._first_syncs: dict[str, FirstSyncResult] = {}
        """Pair -> what its first sync brought, until a later first sync finds it ended."""
        self._kicks: dict[str, asyncio.Event] = {}

    async def ask(
        self, pair_id: str, *, poll: bool = False, token_id: str = "", renew: bool = False, mode: str = ""
    ) -> Learned:
        """Send the message that the pair's state calls for, and return what the peer's signed answer made of the pair.

        With `poll` it says where the pair stands with us and asks where it stands with the peer; the rest as
        `Initiator.next_request`.  Raises ReachError, and for an answer without the peer's signature what its status
        says; that moves no pair.
        """
        pair, make = self.pairs.known(pair_id), self._initiator.next_request
        request = await self._stepper.do(partial(make, pair, poll=poll, token_id=token_id, renew=renew, mode=mode))
        fields = await self.exchange.send(pair, request)
        learned = await self._stepper.do(self._initiator.learn, pair_id, fields)
        self._stepper.follow(learned.pair.pair_id, learned.effects)
        return replace(learned, answer=fields)

    async def sync_first(self, pair_id: str) -> None:
        """Pull what a new pair shares, for those who watch it."""
        live = (pair.pair_id for pair in self.pairs.all() if not pair.ended)
        self._first_syncs = {each: self._first_syncs[each] for each in live if each in self._first_syncs}
        try:
            self._first_syncs[pair_id] = FirstSyncResult(await self._sync.pull(pair_id))
        except SplError as exc:
            self._first_syncs[pair_id] = FirstSyncResult(error=exc)
        self._stepper.notify()

    async def watch(self, pair_id: str, wait_s: float) -> AsyncIterator[PairStep]:
        """Yield the progress that the records of the pair and the attempts of this process show."""
        reported: set[str] = set()
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + wait_s
        while "active" not in reported:
            changed = self._stepper.changes.next
            pair = self._initiator.successor_of(self.pairs.known(pair_id))
            pair_id = pair.pair_id
            for step in self._initiator.news(pair, reported, self._first_syncs.get(pair_id)):
                reported.add(step.name)
                yield step
            left_s = end_s - now_s()
            trouble = self.trouble.get(pair_id)
            if trouble is not None and (left_s <= 0 or trouble.exit_code not in PASSING):
                raise trouble
            if left_s <= 0 and "active" not in reported:
                yield self._unfinished(pair)
                return
            if isinstance(pair.state, Waiting | Asked):
                yield PairStep("waiting", {"pair_id": pair_id, "left_ms": int(left_s * 1000)})
            if "active" not in reported:
                await wait(changed, min(left_s, WAITING_EVERY_S))

    def _unfinished(self, pair: Pair) -> PairStep:
        """Return the last step of who waits no longer: the peer has not decided, or what it approved goes on."""
        if isinstance(pair.state, Requested | Waiting | Asked):
            return PairStep("pending", {"pair_id": pair.pair_id})
        established = pair.phase is not Phase.ESTABLISHING
        state, records = "active" if established else "establishing", self._sync.status(pair.pair_id).clock
        return PairStep("completing", {"pair_id": pair.pair_id, "state": state, "records": records})

    async def drive(self, pair_id: str) -> None:
        """Ask until the request became a pair or is over; failures back off with full jitter, at most a minute."""
        kick = self._kicks[pair_id] = asyncio.Event()
        try:
            await self._drive(pair_id, kick)
        finally:
            del self._kicks[pair_id]
            self._note(pair_id)

    def troubled_s(self, pair_id: str) -> float:
        """Return for how long the attempts of the pair's handshake have failed, 0 if the last one did not."""
        since_ms = self._since_ms.get(pair_id)
        return (self.pairs.steady_ms() - since_ms) / 1000 if since_ms is not None else 0.0

    def _note(self, pair_id: str, trouble: SplError | None = None) -> None:
        """Keep why an attempt failed, and when the first one did; forget both if none did."""
        if trouble is None:
            self.trouble.pop(pair_id, None)
            self._since_ms.pop(pair_id, None)
        else:
            self.trouble[pair_id] = trouble
            self._since_ms.setdefault(pair_id, self.pairs.steady_ms())

    async def _drive(self, pair_id: str, kick: asyncio.Event) -> None:
        polls, backoff = 0, Backoff(self.pairs.random_bytes, min(BACKOFF_BASE_S, self._poll_s), POLL_MAX_S)
        while on_its_way(self.pairs.get(pair_id)):
            kick.clear()
            delay_s = min(POLL_MAX_S, self._poll_s * 2.0 ** (polls // POLL_SLOWER_AFTER))
            try:
                before = self.pairs.known(pair_id)
                after = await self.advance(pair_id)
                backoff.reset()
                polls += 1
                self._note(pair_id)
                if after.state != before.state:
                    continue
            except SplError as exc:
                delay_s = backoff.failed()
                self._note(pair_id, exc)
                fields = {"pair": pair_id, "code": exc.code, "attempt": backoff.attempt, "msg": exc.message}
                log.warning(**event("pair.attempt_failed", **fields))
                self._stepper.notify()
                if (exc.code in UNSIGNED or isinstance(exc, ReachError)) and await self._follow(pair_id):
                    backoff.reset()
                    delay_s = 0.0
            await wait(kick, delay_s)

    async def _follow(self, pair_id: str) -> bool:
        """Take over the peer's manifest if it rotated, and grants by a key unknown to us, or corrected its address.

        Return whether the next attempt goes another way.
        """
        pair = after = self.pairs.known(pair_id)
        try:
            peer = await self.exchange.rediscover(pair)
            grew = peer.chain.present != pair.chain.present
            if on_its_way(pair) and (grew or peer.url != pair.url):
                adopt = self.pairs.adopt_manifest
                after = await self._stepper.do(lambda: adopt(self.pairs.known(pair_id), peer, at_once=grew))
        except SplError as exc:
            log.info(**event("pair.manifest_not_learnt", pair=pair_id, code=exc.code))
        return after.url != pair.url

    async def advance(self, pair_id: str) -> Pair:
        """Send the message that the pair's state calls for, apply the answer, and return the pair; raise its error."""
        learned = await self.ask(pair_id)
        if learned.poll:
            learned = await self.ask(pair_id, poll=True)
        if learned.fault is not None:
            raise learned.fault
        return learned.pair

    def kick(self, pair_id: str) -> None:
        """Have the pair's request tried now; one that is not driven yet is tried once it is."""
        self._note(pair_id)
        if pair_id in self._kicks:
            self._kicks[pair_id].set()
        self._stepper.notify()


def on_its_way(pair: Pair | None) -> bool:
    """Return whether a request of ours still has to be driven."""
    return pair is not None and pair.initiator and isinstance(pair.state, Requested | Waiting | Answered)
