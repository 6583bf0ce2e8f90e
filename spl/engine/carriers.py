"""The carriers of all pairs whose records come from a stream engine: one task for each while its pair syncs.

Imported with the first pair in mode engine (`engines.py`).
"""

import asyncio
import logging
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Final
from weakref import WeakValueDictionary

from ..core import consent, when
from ..core.errors import CODES, SplError
from ..core.event import event
from ..core.pair.modes import ENGINE
from ..core.pair.pair import Pair
from ..core.pair.state import Revoked
from ..core.value import Json, dataclass
from ..home.disk import Disk
from ..home.tables.lists import by_thread
from ..home.views import THREAD_NAMESPACES, THREAD_PAIRS
from ..net.dialer import Dialer
from ..net.sockets import Verifying
from ..sync.notify import Notifier
from ..sync.schedule import Sync
from ..sync.supervise import Supervisor, run_together, wait
from . import jetstream, subjects
from .carrier import NAMESPACES_MAX, PLACE, Carrier, CarrierParts, CarrierRun, CarrierState
from .jetstream_target import Files
from .nats import Nats, endpoint_of
from .protocol import EngineError
from .service import FINDINGS, SinkFault
from .sinks import PATH_CHARS_MAX

log = logging.getLogger("spl.federation")

RESTART_MAX_S: Final = 60.0
LEAVE_S: Final = 15.0
GAP: Final = "engine-gap"
_LEAVING: Final = "leave "
_STEPS: Final = {
    "sink-unreachable": "start it, or correct the network path; it goes on by itself",
    "sink-auth": "correct the file of --creds, or permit its user at the server what `spl sink acl` prints at the peer",
    "sink-refused": "spl federation set-carrier PAIR_ID none; then the pair is read from the peer itself",
}
_PASSED_BY: Final = "New records of the pair do not come by the engine; they are fetched from the peer, and come late."
_PASSED_BY_STEP: Final = (
    "on the peer: spl sink list; the sink may be paused, removed or without the namespace; "
    "or here, to read from the peer itself: spl federation set-carrier PAIR_ID none"
)


@dataclass(frozen=True, slots=True)
class LeftConsumers:
    """What became of the consumers of a pair: how many were deleted, why no more, and what deletes the others."""

    deleted: int = 0
    error: SplError | None = None
    commands: Sequence[str] = ()

    def to_json(self) -> Json:
        """Return {deleted, error, commands}."""
        error = self.error.to_json() if self.error is not None else None
        return {"deleted": self.deleted, "error": error, "commands": list(self.commands)}


class CarrierService:
    """The carriers of one daemon; `tls` verifies servers without an authority of their own."""

    def __init__(
        self, sync: Sync, notifier: Notifier, disk: Disk, tls: Verifying | None, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        ingest = sync.puller.ingest
        self._files = Files(disk, tls)
        self._parts = CarrierParts(ingest, sync, Dialer(None), self._files, now_ms, random_bytes)
        self._views, self._ingest, self._notifier = ingest.writer, ingest, notifier
        self._states: dict[str, CarrierState] = {}
        """By pair."""
        self._left: set[str] = set()
        """Pairs that the peer ended, whose consumers this process deleted or tried to."""
        self._turns = WeakValueDictionary[str, asyncio.Lock]()
        self._tasks = Supervisor("carrier", self, random_bytes=random_bytes, backoff_max_s=RESTART_MAX_S)

    async def run(self, stop: asyncio.Event) -> None:
        """Run the carriers until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(stop))
            await self._tasks.run(stop)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Look at the pairs again whenever one, or what it shares, changed."""
        threads = (THREAD_PAIRS, THREAD_NAMESPACES, consent.THREAD)
        with self._notifier.listening([by_thread(thread) for thread in threads]) as news:
            while not stop.is_set() and not self._notifier.stopping:
                await wait(news, None)
                news.clear()
                self._tasks.kick()

    async def arrange(self) -> None:
        """Run a task for each pair that is read from an engine, as it is now, and for no other."""
        wanted = dict[str, tuple[Pair, Carrier, tuple[str, ...]]]()
        for pair_id, pair in self._views.views.pairs.items():
            if pair.mode == ENGINE and pair.sync_allowed:
                carrier, names = carrier_of(pair), self._namespaces(pair)
                if carrier is not None and names:
                    mark = sha256(repr((carrier, names)).encode()).hexdigest()[:12]
                    wanted[f"{pair_id} {mark}"] = pair, carrier, names
        kept = {pair.pair_id for pair, _, _ in wanted.values()}
        ended = [pair for pair in self._views.views.pairs.values() if self._is_to_leave(pair)]
        self._left |= {pair.pair_id for pair in ended}
        leaving = {name for name in self._tasks.running if name.startswith(_LEAVING)}
        self._tasks.cancel_except(wanted.keys() | leaving)
        self._states = {pair_id: state for pair_id, state in self._states.items() if pair_id in kept}
        for name, (pair, carrier, names) in wanted.items():
            self._tasks.start(name, partial(self._run, pair.pair_id, carrier, names))
        for pair in ended:
            self._tasks.start(f"{_LEAVING}{pair.pair_id}", partial(self._ended, pair), restart=False)

    async def _run(self, pair_id: str, carrier: Carrier, names: tuple[str, ...]) -> None:
        async with self._turn(pair_id):
            state = self._states[pair_id] = CarrierState()
            await CarrierRun(pair_id, carrier, names, self._parts, state).run()

    def _turn(self, pair_id: str) -> asyncio.Lock:
        """Return what a pair's run holds to its end, which the next one waits for: both write the same places."""
        return self._turns.setdefault(pair_id, asyncio.Lock())

    def _namespaces(self, pair: Pair) -> tuple[str, ...]:
        """Return the peer's namespaces of which records may come in full, as many as one carrier reads."""
        if self._ingest.peers.vault.identity is None:
            return ()
        return tuple(sorted(ns for ns, each in self._ingest.inbound(pair).items() if each.full)[:NAMESPACES_MAX])

    def crashed(self, name: str, count: int) -> None:
        """Show a fault of our own as the carrier's."""
        state = self._states.get(name.partition(" ")[0])
        if state is not None:
            state.fault = SplError("internal", "the carrier's task died")
            state.failing_since_s = asyncio.get_running_loop().time()

    def _is_to_leave(self, pair: Pair) -> bool:
        """Whether a pair that the peer revoked may have consumers; of one that we revoke `leave` tells the operator.

        Once in each process: nothing says that an earlier one was done with it.
        """
        if pair.mode != ENGINE or not isinstance(pair.state, Revoked) or pair.state.by_us or pair.pair_id in self._left:
            return False
        return any(name.startswith(f"{PLACE}{pair.pair_id} ") for name in self._views.views.positions)

    async def _ended(self, pair: Pair) -> None:
        """Delete what a pair that the peer ended has at the server; what stays there stands in the log."""
        found = await self.leave(pair)
        log.info(**event("carrier.left", pair=pair.pair_id, deleted=found.deleted))
        for command in found.commands:
            log.warning(**event("carrier.consumer_kept", pair=pair.pair_id, fix=command))

    async def leave(self, pair: Pair, change: Awaitable[object] | None = None) -> LeftConsumers:
        """Delete the pair's consumers on the server that it was read from, once `change` is made and its run has ended.

        The next run begins after that, so it loses none of them by another name of the same server.
        What stays there if the server is out of reach or refuses is deleted by the commands: by the server's operator
        after "sink-auth".  The server deletes it itself after jetstream.UNUSED_NS.
        """
        changed, carrier = asyncio.Event(), carrier_of(pair)

        async def make() -> None:
            if change is not None:
                await change
            changed.set()

        if carrier is None:
            await make()
            return LeftConsumers()
        # Its first task waits for its turn before the second makes the change, which brings the next run.
        return await run_together(self._leave(pair, carrier, changed), make())

    async def _leave(self, pair: Pair, carrier: Carrier, changed: asyncio.Event) -> LeftConsumers:
        left, deleted, stream, error = list(self._consumers(pair)), list[str](), subjects.stream_of(pair.peer_did), None
        try:
            async with asyncio.timeout(LEAVE_S), self._turn(pair.pair_id):
                await changed.wait()
                nats = await self._parts.connect(pair.pair_id, carrier)
                try:
                    await run_together(_delete(nats, stream, left, deleted), nats.listen())
                finally:
                    await nats.close()
        except TimeoutError:
            error = SplError("sink-unreachable", f"the server did not answer within {LEAVE_S:g} s")
        except SplError as exc:
            error = exc
        await changed.wait()  # or the end of this would end it
        words = await self._command(pair, carrier, ours=error is None or error.code != "sink-auth") if left else []
        commands = [shlex.join([*words, "consumer", "rm", stream, name, "--force"]) for name in left]
        return LeftConsumers(len(deleted), error, commands)

    async def _command(self, pair: Pair, carrier: Carrier, *, ours: bool) -> list[str]:
        """Return what a command to the server begins with; with `ours` it is given as the pair's user there."""
        words = ["nats", "--server", carrier.url, *(["--tlsca", carrier.ca] if carrier.ca else [])]
        if not ours:
            return words
        with suppress(SplError):  # a file that was read a moment ago
            user = await asyncio.to_thread(self._files.user, carrier)
            words += ["--creds" if user.jwt else "--nkey", carrier.creds] if user is not None else []
        return [*words, "--inbox-prefix", subjects.inbox_of(pair.pair_id)]

    def _consumers(self, pair: Pair) -> set[str]:
        """Return the names of the consumers that the pair may have, those of namespaces that it had before too."""
        before, places = f"{PLACE}{pair.pair_id} ", self._views.views.positions
        names = {name.removeprefix(before) for name in places if name.startswith(before)}
        return {subjects.consumer_of(pair.pair_id, ns) for ns in names.union(self._namespaces(pair))}

    # -- what there is

    async def check(self, carrier: Carrier) -> None:
        """Raise unless a carrier is well formed and its files are there: EngineError "sink-invalid", "sink-auth"."""
        endpoint_of(carrier.url)
        for path in (carrier.creds, carrier.ca):
            if path and (not path.startswith("/") or len(path) > PATH_CHARS_MAX or not path.isprintable()):
                raise EngineError("sink-invalid", "files are named by their absolute path")
        await self._files.check(carrier)

    def state(self, pair_id: str) -> CarrierState:
        """Return what this process knows of the carrier of a pair."""
        return self._states.get(pair_id, CarrierState())

    def to_json(self, pair: Pair) -> Json:
        """Return the carrier of a pair in mode engine, with what it is doing."""
        state, faults = self.state(pair.pair_id), self._faults(pair.pair_id)
        carrier = carrier_of(pair) or Carrier("")
        return {
            "url": carrier.url, "creds": carrier.creds or None, "ca": carrier.ca or None, "open": state.is_open,
            "stream": subjects.stream_of(pair.peer_did), "server": state.far or None, "attempt": state.attempt,
            "received_records": state.received, "new_records": state.fresh,
            "last_received_at": when.text_of(state.confirmed_ms) if state.confirmed_ms is not None else None,
            "finding": faults[0].code if faults else None, "error": faults[0].message if faults else None,
            "fix": faults[0].hint if faults else None,
        }  # fmt: skip

    def faults(self) -> list[SinkFault]:
        """Return what is wrong with carriers now."""
        return [fault for pair_id in self._states for fault in self._faults(pair_id)]

    def _faults(self, pair_id: str) -> list[SinkFault]:
        state = self._states.get(pair_id)
        if state is None:
            return []
        now_s, found = asyncio.get_running_loop().time(), list[SinkFault]()
        if state.fault is not None:
            code = state.fault.code if state.fault.code in FINDINGS else "sink-unreachable"
            own = state.fault.hint != CODES[state.fault.code].fix
            hint = state.fault.hint if own else _STEPS.get(code, state.fault.hint)
            since_s = now_s - (state.failing_since_s or now_s)
            found.append(SinkFault(pair_id, code, state.fault.message, hint.replace("PAIR_ID", pair_id), since_s))
        if state.gap_since_s is not None:
            hint = CODES[GAP].fix.replace("PAIR_ID", pair_id)
            found.append(SinkFault(pair_id, GAP, CODES[GAP].meaning, hint, now_s - state.gap_since_s))
        elif state.passed_by_since_s is not None:
            hint = _PASSED_BY_STEP.replace("PAIR_ID", pair_id)
            found.append(SinkFault(pair_id, GAP, _PASSED_BY, hint, now_s - state.passed_by_since_s))
        return found


async def _delete(nats: Nats, stream: str, names: list[str], deleted: list[str]) -> None:
    """Delete consumers, and take each out of the list; those that were there go into the other."""
    while names:
        if await jetstream.delete_consumer(nats, stream, names[-1]):
            deleted.append(names[-1])
        names.pop()


def carrier_of(pair: Pair) -> Carrier | None:
    """Return the carrier of a pair, None if it has none that is usable."""
    try:
        carrier = Carrier(**pair.carrier)
        endpoint_of(carrier.url)
    except (TypeError, EngineError):
        return None
    return carrier
