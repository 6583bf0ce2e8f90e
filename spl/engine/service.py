"""All sinks of a daemon: one task for each that is active, what each is doing, and the operator's word on them.

Imported with the first sink (`engines.py`).
"""

import asyncio
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from ..core import consent, when
from ..core.errors import CODES, SplError
from ..core.limits import MIB
from ..core.pair.pair import Pair
from ..core.pair.state import Revoked
from ..core.record import namespace
from ..core.value import Json, dataclass
from ..home.disk import Disk
from ..home.tables.lists import by_thread
from ..home.writes import Own
from ..net.dialer import Dialer
from ..net.sockets import Verifying
from ..sync.changes import Feed
from ..sync.scope import Steps
from ..sync.supervise import Supervisor, run_together, wait
from . import jetstream, sinks, subjects
from .jetstream_target import Files, JetStreamTarget, state_json
from .nats import Nats
from .program_target import ProgramTarget
from .protocol import EngineError
from .pump import Pump, SinkState
from .reader import LogReader
from .received import reached
from .sinks import ACTIVE, EXEC, PAUSED, REMOVED, Sink

SINKS_MAX: Final = 16  # each holds a connection or a program, and reads the log by itself
PHASE_OF: Final[dict[str, str]] = {"pause": PAUSED, "resume": ACTIVE, "remove": REMOVED}
"""What the operator says -> the phase that it leads to."""
RESTART_MAX_S: Final = 60.0
FINDINGS: Final = frozenset({"sink-unreachable", "sink-full", "sink-foreign", "sink-auth", "sink-refused"})
"""What a sink shows; whatever else ends a connection means that the server is not reached."""
INBOX_BYTES: Final = 12
RECORD_ROOM: Final = MIB + 64 * 1024
"""What a server must take so that no record goes as a pointer: the largest record, its envelope and headers."""


@dataclass(frozen=True, slots=True)
class SinkFault:
    """What is wrong with a sink, since how many seconds."""

    name: str
    code: str
    message: str
    hint: str
    since_s: float


class SinkService:
    """The sinks of one daemon; `tls` verifies servers, those with an authority of their own get another context."""

    def __init__(
        self, feed: Feed, disk: Disk, tls: Verifying | None, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.reader = LogReader(feed.source)
        self.writer = feed.writer
        self._feed, self._disk, self._tls = feed, disk, tls
        self._now_ms, self._random_bytes = now_ms, random_bytes
        self._dialer = Dialer(None)
        self._pool = ThreadPoolExecutor(1, "spl-sink")
        self._adding = asyncio.Lock()
        self._states: dict[str, SinkState] = {}
        """By the name of the place in the log: the operator's word on a sink changes it, and not what it did."""
        self._tasks = Supervisor("sink", self, random_bytes=random_bytes, backoff_max_s=RESTART_MAX_S)

    def close(self) -> None:
        """End the reading thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, stop: asyncio.Event) -> None:
        """Run the sinks until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(stop))
            await self._tasks.run(stop)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Look at the sinks again whenever consent changed."""
        with self._feed.notifier.listening([by_thread(consent.THREAD)]) as news:
            while not stop.is_set() and not self._feed.notifier.stopping:
                await wait(news, None)
                news.clear()
                self._tasks.kick()

    async def arrange(self) -> None:
        """Run a task for each active sink as it is now, and for no other."""
        active = {_task_name(sink): sink for sink in self.all() if sink.phase == ACTIVE}
        self._tasks.cancel_except(active.keys())
        for place in self._states.keys() - {sink.place_name for sink in self.all()}:
            del self._states[place]
        for name, sink in active.items():
            self._tasks.start(name, partial(self._pump, sink))

    def crashed(self, name: str, count: int) -> None:
        """Show a fault of our own as the sink's."""
        for sink in self.all():
            state = self._states.get(sink.place_name)
            if state is not None and _task_name(sink) == name:
                state.fault = SplError("internal", "the sink's task died")
                state.failing_since_s = asyncio.get_running_loop().time()

    async def _pump(self, sink: Sink) -> None:
        state = self._states.setdefault(sink.place_name, SinkState())
        target = self._target(sink, state)
        pump = Pump(
            sink, target, self.reader, self._feed.notifier, self._pool, state, now_ms=self._now_ms,
            random_bytes=self._random_bytes,
        )  # fmt: skip
        await pump.run()

    def _target(self, sink: Sink, state: SinkState) -> JetStreamTarget | ProgramTarget:
        if sink.is_program:
            return ProgramTarget(sink, self.reader, state)
        inbox = f"_INBOX.{self._random_bytes(INBOX_BYTES).hex()}"
        return JetStreamTarget(sink, self.reader, state, self._dialer, Files(self._disk, self._tls), inbox)

    # -- what there is

    def all(self) -> list[Sink]:
        """Return the sinks, by name."""
        return [sink for name in sorted(self.writer.views.sinks) if (sink := self.reader.sink(name)) is not None]

    def named(self, name: str) -> Sink:
        """Return a sink; raise EngineError "sink-unknown"."""
        sink = self.reader.sink(name)
        if sink is None:
            raise EngineError("sink-unknown", f"there is no sink {name[:40]!r}")
        return sink

    def to_json(self, sink: Sink) -> Json:
        """Return a sink with what it is doing."""
        state = self.state(sink)
        return {
            "object": "sink", "name": sink.name, "url": sink.url, "namespaces": list(sink.namespaces),
            "subjects": sink.subjects, "state": sink.phase, "open": state.is_open, "from_seq": sink.after,
            "creds": sink.creds or None, "ca": sink.ca or None, "since": sink.at,
            "position_seq": state.seq, "sent_records": state.sent,
            "lag_records": self.lag_records(sink),
            "last_acked_at": when.text_of(state.confirmed_ms) if state.confirmed_ms is not None else None,
            "server": state.far or None, "attempt": state.attempt,
            **self._problem(sink), **self._names(sink),
        }  # fmt: skip

    def _problem(self, sink: Sink) -> Json:
        """Return {finding, error, said, fix} of a sink, each None if nothing is wrong with it."""
        fault, seen = self._fault(sink), self.state(sink).fault
        return {
            "finding": fault.code if fault is not None else None,
            "error": fault.message if fault is not None else None,
            "said": seen.facts.get("said") if fault is not None and seen is not None else None,
            "fix": fault.hint if fault is not None else None,
        }

    def state(self, sink: Sink) -> SinkState:
        """Return what this process knows of a sink; of one that it did not run, what the log says."""
        return self._states.get(sink.place_name) or SinkState(*(self.reader.saved(sink) or (None, 0)))

    def lag_records(self, sink: Sink) -> int | None:
        """Return how many records wait for a sink; None before its first session."""
        state = self.state(sink)
        return max(0, self.reader.total(sink.namespaces) - state.count) if state.seq is not None else None

    def summary(self) -> Json:
        """Return {total, open, lag_records} of all sinks; one that had no session yet adds no lag."""
        sinks = self.all()
        return {
            "total": len(sinks), "open": sum(self.state(sink).is_open for sink in sinks),
            "lag_records": sum(self.lag_records(sink) or 0 for sink in sinks),
        }  # fmt: skip

    def _names(self, sink: Sink) -> Json:
        """Return what the sink fills, in the words of its server."""
        if sink.is_program:
            return {"stream": None, "filters": []}
        did = self.reader.did()
        filters = [subjects.namespace_of(did, each) for each in sink.namespaces]
        return {"stream": subjects.stream_of(did), "filters": filters}

    def faults(self) -> list[SinkFault]:
        """Return what is wrong with active sinks now."""
        return [fault for sink in self.all() if (fault := self._fault(sink)) is not None]

    def _fault(self, sink: Sink) -> SinkFault | None:
        state = self._states.get(sink.place_name)
        if sink.phase != ACTIVE or state is None or state.fault is None:
            return None
        since_s = asyncio.get_running_loop().time() - (state.failing_since_s or 0.0)
        code = state.fault.code if state.fault.code in FINDINGS else "sink-unreachable"
        return SinkFault(sink.name, code, state.fault.message, _step(state.fault, code, sink), since_s)

    # -- the operator's word

    async def add(self, fields: Mapping[str, Any], *, from_now: bool) -> Sink:
        """Add a sink of these members.

        Raises EngineError "sink-invalid", "sink-exists", NamespaceError "namespace-rejected".
        """
        async with self._adding:  # or two at once would pass the checks together
            self.reader.did()
            end = self.writer.store.last_seq
            at = when.text_of(self._now_ms())
            sink = sinks.checked(Sink(**fields, born=end, after=end if from_now else 0, at=at))
            for each in sink.namespaces:
                namespace.usable(self.writer.views.namespaces, each)
            if sink.name in self.writer.views.sinks:
                hint = f"spl sink show {sink.name}; to put another in its place, first: spl sink remove {sink.name}"
                raise EngineError("sink-exists", f"there is a sink {sink.name}", hint=hint)
            if len(self.writer.views.sinks) >= SINKS_MAX:
                raise EngineError("sink-exists", f"there are {SINKS_MAX} sinks, and no more are possible")
            if not sink.is_program and any(not each.is_program and each.url == sink.url for each in self.all()):
                raise EngineError("sink-exists", "another sink fills the stream of this server", hint="spl sink list")
            if sink.is_program:
                check_program(sink)
            else:
                await Files(self._disk, self._tls).check(sink)
            return await self._write(sink)

    async def act(self, name: str, action: str) -> Sink:
        """Pause, resume or remove a sink; resuming passes over a message that is not ours and stopped it."""
        sink, phase = self.named(name), PHASE_OF[action]
        state = self._states.get(sink.place_name)
        fault = state.fault if state is not None else None
        passed = fault.facts.get("stream_seq") if fault is not None and phase == ACTIVE else None
        changed = await self._write(
            sink.in_phase(phase, when.text_of(self._now_ms()), passed if isinstance(passed, int) else None)
        )
        if state is not None:
            state.fault = state.failing_since_s = None
        return changed

    async def _write(self, sink: Sink) -> Sink:
        await asyncio.wrap_future(self.writer.submit([Own(consent.THREAD, consent.KIND_SINK, sink.body())]))
        self._tasks.kick()
        return sink

    def reached(self, pair_id: str, since: str, received: Mapping[str, Any]) -> Steps[str]:
        """Return the cursor of a reader of the engine after what it received.  Raises as a pull does."""
        return reached(self._feed.source, pair_id, since, received)

    async def test(self, name: str) -> Json:
        """Return what the server of a sink says, asked now over a connection of its own, and the sink's fault.

        A sink that waits after a failure tries again, since its server answers.  Raises SplError.
        """
        sink = self.named(name)
        if sink.is_program:
            return {"object": "sink_test", "name": name, "program": check_program(sink), **self._problem(sink)}
        target = self._target(sink, SinkState())
        assert isinstance(target, JetStreamTarget)
        try:
            session = await target.open()
            try:
                found = await run_together(self._asked(session.nats, sink), session.listen())
            finally:
                await session.close()
        except SplError as exc:
            exc.hint = _step(exc, exc.code, sink)
            raise
        state = self.state(sink)
        found |= self._problem(sink)
        if state.fault is not None:
            state.again.set()
        return found

    async def _asked(self, nats: Nats, sink: Sink) -> Json:
        found = await jetstream.state_of(nats, subjects.stream_of(self.reader.did()))
        largest = min(nats.payload_max, (found and found.message_bytes_max) or nats.payload_max)
        return {
            "object": "sink_test", "name": sink.name, "server": f"nats-server {nats.version}",
            "max_payload_bytes": largest, "takes_every_record": largest >= RECORD_ROOM,
            "stream": subjects.stream_of(self.reader.did()), "state": state_json(found),
        }  # fmt: skip

    def acl(self, name: str, pair: Pair) -> Json:
        """Return the permissions of a server's user that may read what a pair shares of a sink, and no more."""
        sink = self.named(name)
        if sink.is_program:
            raise EngineError("sink-invalid", f"sink {name} fills no server")
        names = self._shared(sink, pair)
        if not names:
            raise EngineError("sink-invalid", f"the pair shares no namespace of sink {name} in full")
        rules = subjects.permissions(self.reader.did(), names, pair.pair_id)
        return {"object": "sink_acl", "name": name, "pair_id": pair.pair_id, "namespaces": list(names), **rules}

    def _shared(self, sink: Sink, pair: Pair) -> tuple[str, ...]:
        """Return the namespaces of a sink that a pair's peer may read in full."""
        grants = consent.grants_of(self.writer.views.consents, pair)
        shares = consent.outbound(pair, grants, self.writer.views.namespaces)
        return tuple(share.ns for share in shares if share.level == 0 and share.ns in sink.namespaces)

    def readers(self, sink: Sink) -> list[str]:
        """Return the ids of the pairs for which the server of a sink may have a user; its operator removes them."""
        pairs = () if sink.is_program else self.writer.views.pairs.values()
        return [each.pair_id for each in pairs if not isinstance(each.state, Revoked) and self._shared(sink, each)]


def check_program(sink: Sink) -> str:
    """Return the path of a sink's program; raise EngineError "sink-invalid"."""
    try:
        words = shlex.split(sink.url.removeprefix(EXEC))
    except ValueError as exc:
        raise EngineError("sink-invalid", f"exec: {exc}") from exc
    path = shutil.which(words[0]) if words else None
    if path is None:
        raise EngineError("sink-invalid", f"exec: there is no program {words[0] if words else ''!r}")
    return path


def _step(fault: SplError, code: str, sink: Sink) -> str:
    """Return what to do about a fault that is shown with this code: its own step, or the usual one of the code."""
    usual = fault.hint == CODES[fault.code].fix
    step = CODES["sink-refused" if sink.is_program else code].fix if usual else fault.hint
    if usual and code == "sink-auth" and not sink.creds:
        words = ["spl", "sink", "add", sink.url, *(each for name in sink.namespaces for each in ("--namespace", name))]
        words += ["--name", sink.name, "--subjects", sink.subjects]
        again = f"{shlex.join(words)} {'--ca FILE ' if sink.ca else ''}--creds FILE"  # every viewer reads it: no paths
        return f"name its user: spl sink remove {sink.name}; then: {again}; it goes on where its stream ends"
    return re.sub(r"\bNAME\b", sink.name, step)


def _task_name(sink: Sink) -> str:
    return f"{sink.name} {sink.at} {sink.passed}"
