"""Anti-entropy: both sides of each pair are compared in the background, and what is missing here is fetched.

Pages and streams bring a record once; what they missed for a reason that is forgotten since would stay missing: a
refusal beyond the ledger's bound, a position saved before a crash whose records the disk lost, our own records after
the home was made again from its key.  Remembering each such reason on the disk was rejected: there are a dozen, and a
comparison of two equal sets costs one question of 0.4 kB and finds them all.

A pair is compared soon after the start, once an interval after that, and soon after each `request`.  Before that it is
read to the end, so what is on its way counts as missing neither here nor there.  What the gate refused stays refused,
and what a namespace of ours does not take in is not asked for.  A peer that cannot dial us, or may be unable to, is
given what it lacks by the same comparison.  While the way from a peer does not carry some records, comparisons are a
minute to an hour apart: each tries them again.  A pair on demand is compared on request alone: nothing of it is
unasked.  Its request is noted in the vault until it succeeded, since after a restart nothing else would bring it back.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from ...core import when
from ...core.backoff import Backoff
from ...core.errors import SplError
from ...core.event import event
from ...core.pair.modes import ON_DEMAND
from ...core.pair.pair import Pair
from ...core.presence import PEER_PUSHES
from ...core.value import Json, dataclass, field
from ...home.writes import Commit, Hop
from ..ledger import AGAIN_MAX_S, AGAIN_S
from ..peer import COMPARE_NOTE, WITHHELD, SyncError
from ..reach import Reaches
from ..schedule import Sync
from ..scope import SHARING_THREADS
from ..supervise import Kick, Rest, Supervisor, drop_ended

if TYPE_CHECKING:
    from .reconcile import Reconcile

log = logging.getLogger("spl.federation")

FIRST_S: Final = 90.0
"""The first comparison of a process starts about this long after it, because a restart is busy enough; sooner if the
log lost something."""
APART_S: Final = 10.0
"""The shortest time between two comparisons of a pair, whatever requests them."""
BACKOFF_BASE_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Compared:
    """The last comparison of a pair that succeeded: when (Unix ms), and how many records were missing after it."""

    at_ms: int
    missing_here: int
    missing_there: int

    def to_json(self) -> Json:
        """Return {at, missing_here_records, missing_there_records}."""
        return {
            "at": when.text_of(self.at_ms),
            "missing_here_records": self.missing_here,
            "missing_there_records": self.missing_there,
        }


@dataclass(slots=True)
class _State:
    """What this process knows of comparing one pair."""

    backoff: Backoff
    again: Backoff
    """Between comparisons that try what the way did not carry."""
    kick: Kick = field(default_factory=Kick)
    requested: bool = False
    noted: bool = False
    """The request is on the disk."""
    due_s: float = inf
    """Loop time of the next comparison; of a pair on demand only one that was requested is due."""
    last: Compared | None = None
    nameless: int = 0
    """Projections without an id that did not come though all was read: those that we refuse."""


class AntiEntropy:
    """Background comparisons of all pairs."""

    def __init__(
        self, reconcile: "Callable[[], Reconcile]", sync: Sync, reaches: Reaches, *, interval_s: float,
        now_ms: Callable[[], int], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self._ingest = ingest = sync.puller.ingest
        self.writer, self._vault = ingest.writer, ingest.peers.vault
        self._reconcile, self._sync, self._reaches = reconcile, sync, reaches
        self._interval_s, self._now_ms, self._random_bytes = interval_s, now_ms, random_bytes
        self._states: dict[str, _State] = {}
        self._seen: Mapping[str, Pair] = {}
        self._tasks = Supervisor("compare", self, random_bytes=random_bytes, backoff_max_s=BACKOFF_MAX_S)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep one task for each pair that may sync, until `stop`."""
        loop = asyncio.get_running_loop()

        views = self.writer.views

        def on_commit(commit: Commit) -> Hop | None:
            nonlocal views
            before, views = views, self.writer.views
            if not commit.threads.isdisjoint(SHARING_THREADS):
                return loop.call_soon_threadsafe, self._on_change
            same = views.refused is before.refused and views.beyond is before.beyond
            return None if same else (loop.call_soon_threadsafe, self._on_refused)

        unsubscribe = self.writer.listen(on_commit)
        try:
            await self._tasks.run(stop)
        finally:
            unsubscribe()

    def request(self, pair_id: str) -> None:
        """Have the pair compared soon; repeated until it succeeded once or the pair stops.  On the event loop."""
        state = self._state(pair_id)
        state.requested, state.due_s = True, 0.0
        state.kick.set()

    def hurry(self, pair_id: str) -> None:
        """Do not wait any longer for a comparison that was requested: the peer was reached just now."""
        if self._state(pair_id).requested:
            self.request(pair_id)

    def last(self, pair_id: str) -> Compared | None:
        """Return the last comparison of this process; None before the first."""
        return self._state(pair_id).last

    async def arrange(self) -> None:
        """Run a task for each pair that may sync, and for no other."""
        wanted = {pair_id for pair_id, pair in self.writer.views.pairs.items() if pair.sync_allowed}
        self._tasks.cancel_except(wanted)
        drop_ended(self._states, self.writer.views.pairs)
        for pair_id in wanted:
            self._tasks.start(pair_id, partial(self._watch, pair_id))

    def crashed(self, name: str, count: int) -> None:
        """Compare again when the supervisor restarts the task."""

    def _on_change(self) -> None:
        """A pair or what it shares changed, or a key was learnt: records refused beyond the ledger may be sound now."""
        self._tasks.kick()
        self._on_refused()
        before, self._seen = self._seen, self.writer.views.pairs
        for pair_id, state in self._states.items():
            if self._seen.get(pair_id) is not before.get(pair_id):
                state.kick.set()  # the pair's mode may be another
        most = self._ingest.limits.refused_per_pair
        for pair_id, count in self.writer.views.refused.items():
            if count >= most:
                self.request(pair_id)

    async def _watch(self, pair_id: str) -> Rest | None:
        state, now_s = self._state(pair_id), asyncio.get_running_loop().time
        state.due_s = min(state.due_s, now_s() + state.backoff.spread_s(APART_S if self.writer.store.lost else FIRST_S))
        if await asyncio.to_thread(self._vault.get, COMPARE_NOTE + pair_id) is not None:
            state.noted = True
            self.request(pair_id)
        return await self._watch_on(pair_id, state)

    async def _watch_on(self, pair_id: str, state: _State) -> Rest | None:
        now_s = asyncio.get_running_loop().time
        while (pair := self.writer.views.pairs.get(pair_id)) is not None and pair.sync_allowed:
            state.kick.clear()
            wanted, wait_s = pair.mode != ON_DEMAND or state.requested, state.due_s - now_s()
            if state.requested and not state.noted and pair.mode == ON_DEMAND:
                await asyncio.to_thread(self._vault.put, COMPARE_NOTE + pair_id, "")
                state.noted = True  # only now: a put that fails is tried again
            if wanted and wait_s <= 0:
                state.due_s = inf
                delay_s = await self._turn(pair_id, state)
                state.due_s = min(state.due_s, now_s() + delay_s)
            else:
                return Rest(state.kick, wait_s if wanted else None, partial(self._watch_on, pair_id, state))
        return None

    async def _turn(self, pair_id: str, state: _State) -> float:
        """Compare once; return the seconds until the next time."""
        state.requested, requested = False, state.requested
        try:
            state.last, requested = await self._compare(pair_id), False
        except SplError as exc:
            log.debug(**event("compare.failed", pair=pair_id, code=exc.code, attempt=state.backoff.attempt + 1))
            return state.backoff.failed()
        finally:
            state.requested = requested or state.requested
        state.backoff.reset()
        state.backoff.redraw()
        if state.noted and not state.requested:
            with suppress(SplError):  # then it is compared once more after the next start
                await asyncio.to_thread(self._vault.delete, COMPARE_NOTE + pair_id)
                state.noted = False
        await asyncio.sleep(APART_S)  # requests that come meanwhile are answered by one comparison
        return min(state.backoff.spread_s(self._interval_s), self._again_s(pair_id, state))

    def _again_s(self, pair_id: str, state: _State) -> float:
        """Return the seconds until what the way did not carry is tried again, infinite if there is nothing."""
        if not self._ingest.withheld(pair_id) and WITHHELD not in self.writer.views.beyond.get(pair_id, ()):
            state.again.reset()
            return inf
        return state.again.failed()

    def _on_refused(self) -> None:
        """Something was refused, or did not come through: the latter is tried again soon."""
        now_s = asyncio.get_running_loop().time()
        for pair_id, state in self._states.items():
            pair = self.writer.views.pairs.get(pair_id)
            if pair is not None and pair.sync_allowed and not state.again.attempt:
                state.due_s = min(state.due_s, now_s + self._again_s(pair_id, state))
                state.kick.set()

    async def _compare(self, pair_id: str) -> Compared:
        """Read the pair to its end, then compare and fetch; return what is missing then.

        While reading fails the peer is not dialled here as well: that would count as failures of reading.
        """
        status = self._sync.status(pair_id)
        if status.last_error is not None and self.writer.views.pairs[pair_id].mode != ON_DEMAND:
            raise SyncError(status.last_error.code, status.last_error.message)
        if self._reaches.word(pair_id) != PEER_PUSHES:
            await self._sync.pull(pair_id)
        at_ms, state = self._now_ms(), self._state(pair_id)
        give = self._reaches.may_push(pair_id)
        found, effort = await self._reconcile().mend(pair_id, give=give, nameless=state.nameless)
        state.nameless = found.nameless
        missing = len(found.missing) + found.nameless
        if effort.fetched or effort.pushed or missing:
            fields = {"fetched": effort.fetched, "pushed": effort.pushed, "missing_here": missing}
            log.info(**event("compare.done", pair=pair_id, **fields, missing_there=len(found.lacking)))
        return Compared(at_ms, missing, len(found.lacking))

    def _state(self, pair_id: str) -> _State:
        state = self._states.get(pair_id)
        if state is None:
            errors = Backoff(self._random_bytes, BACKOFF_BASE_S, BACKOFF_MAX_S)
            state = self._states[pair_id] = _State(errors, Backoff(self._random_bytes, AGAIN_S, AGAIN_MAX_S))
        return state
