"""One pair's records from a stream engine: read by durable consumers, judged and stored as any record of the pair.

    connect -> consumers, one a namespace -> pull <= 512 -> judge -> store with the place of each -> ack -> pull …

The pair stays what it is: keys, consent, tokens and revocation go between the two daemons.  Nothing of the engine is
believed.  Each message names the record before it in its namespace, so whatever is missing shows: what expired or was
deleted, and a stream or a consumer that was created again.  A consumer is made for what comes from now on, and what is
missing is pulled from the peer, which begins after that: so both together hold all.

    proven    all of the namespace up to its last record is held; its id is told to the peer with each sign of life, and
              the peer's answer moves the pair's own position, so a later pull gives nothing twice
    broken    a message does not follow the last one, or is refused: finding engine-gap, until a pull that began later
              has ended

The place of a namespace is saved in the write that holds its records, and the engine gets its ack after that: a crash
repeats records, which are known, and passes over none.  One ack counts for all before it, as all before it is stored.

What the engine does not carry (projections, namespaces beyond NAMESPACES_MAX or that the sink does not have) is pulled
when the peer's own count shows that it is missing; if that brought records of what the engine should carry, and it
carried none meanwhile, the finding engine-gap says so until it carries one.  A forged message can at worst delay
records: its word on what comes before it may be false, and then the peer counts more up to there than is held, or the
comparison of both sides finds what is missing.  What is too large for the engine is only named there: that is a gap as
well.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.limits import MIB
from ..core.pair.modes import ENGINE
from ..core.pair.pair import Pair
from ..core.record import page
from ..core.record.page import Page, PageError
from ..core.record.record import is_id
from ..core.value import dataclass, field, replace
from ..home.tables.lists import received
from ..home.writes import SavedPosition
from ..net.dialer import Dialer
from ..sync.ingest import Ingest
from ..sync.schedule import Sync
from ..sync.supervise import run_together, wait
from . import jetstream, subjects
from .jetstream_target import POINTER, PREVIOUS, Files
from .nats import ANSWER_S, Nats, connect
from .protocol import Delivery, EngineError, headers_of, published

log = logging.getLogger("spl.federation")

NAMESPACES_MAX: Final = 16  # each is a consumer on the server, with a window of its own
IN_FLIGHT: Final = 512
BATCH_RECORDS: Final = 256
BATCH_BYTES: Final = 4 * MIB
PULLED_BYTES: Final = 24 * MIB
"""Of all consumers of a pair: what may wait here before it is stored."""
SILENCE_S: Final = 45.0
"""Each request for messages is answered within 30 s."""
BACKOFF_BASE_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
HEAL_BASE_S: Final = 5.0
HEAL_MAX_S: Final = 60.0
"""The longest time between two pulls of what is missing, each of which failed."""
LOOK_EVERY_S: Final = 30.0
PLACE: Final = "carrier "
"""What the names of saved places begin with."""
ANY: Final = "*"
"""The place of a consumer that was just made: the first message follows."""
_ENDED: Final = frozenset({404, 408, 409})
_GONE: Final = ("deleted", "no responders", "not found", "does not exist")


@dataclass(frozen=True, slots=True)
class Carrier:
    """Where the records of a pair come from."""

    url: str
    creds: str = ""
    ca: str = ""


@dataclass(slots=True)
class CarrierState:
    """What this process knows of the carrier of a pair."""

    is_open: bool = False
    received: int = 0
    fresh: int = 0
    confirmed_ms: int | None = None
    fault: SplError | None = None
    failing_since_s: float | None = None
    gap_since_s: float | None = None
    passed_by_since_s: float | None = None
    """Since when the peer has records for us that the engine does not carry, if it carries none."""
    attempt: int = 0
    far: str = ""


@dataclass(frozen=True, slots=True)
class CarrierParts:
    """What all carriers of a daemon use."""

    ingest: Ingest
    sync: Sync
    dialer: Dialer
    files: Files
    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]

    async def connect(self, pair_id: str, carrier: Carrier) -> Nats:
        """Return a connection to the server, with the inbox that its permissions name.  Raises SplError."""
        endpoint = await asyncio.to_thread(self.files.endpoint, carrier)
        return await connect(endpoint, self.dialer, f"{subjects.inbox_of(pair_id)}.{self.random_bytes(12).hex()}")


@dataclass(slots=True)
class _Arrived:
    """What came and is not stored yet; `ends` is the last message of each namespace."""

    values: list[object] = field(default_factory=list)
    ns: list[str] = field(default_factory=list)
    ends: dict[str, Delivery] = field(default_factory=dict)
    count: int = 0
    size: int = 0


class CarrierRun:
    """Reads the records of one pair until it is cancelled; `names` are the peer's namespaces."""

    def __init__(
        self, pair_id: str, carrier: Carrier, names: Sequence[str], parts: CarrierParts, state: CarrierState
    ) -> None:
        self.pair_id, self.carrier, self.parts, self.state = pair_id, carrier, parts, state
        self.names = {subjects.consumer_of(pair_id, ns): ns for ns in names}
        """Consumer -> namespace."""
        self._places = {ns: self._saved(ns) for ns in names}
        self._broken: dict[str, int] = {}
        """Namespace -> the number of the gap that is not closed."""
        self.proven: Mapping[str, str] = {}
        """Namespace -> id of its last record, up to which all is held: what the peer is told of (`pull.Carried`)."""
        self._gaps, self._replies = count(1), count(1)
        self._news = asyncio.Event()
        self._healing = Backoff(parts.random_bytes, HEAL_BASE_S, HEAL_MAX_S)
        self._pulls: dict[str, tuple[str, int, float]] = {}
        """Subject of the answer -> (consumer, messages still to come, when it was asked)."""

    async def run(self) -> None:
        """Read; what is missing is pulled beside it, whether the engine is there or not."""
        self.parts.sync.puller.carried[self.pair_id] = self
        try:
            await run_together(self._read(), self._heal())
        finally:
            del self.parts.sync.puller.carried[self.pair_id]

    async def _read(self) -> None:
        """Read as long as the pair does; failures back off."""
        backoff = Backoff(self.parts.random_bytes, BACKOFF_BASE_S, BACKOFF_MAX_S)
        while self._pair() is not None:
            try:
                await self._session(backoff)
            except SplError as exc:
                if self._pair() is not None:  # or it is no fault, but the pair was paused meanwhile
                    await asyncio.sleep(self._failed(exc, backoff))

    def _pair(self) -> Pair | None:
        pair = self.parts.ingest.writer.views.pairs.get(self.pair_id)
        return pair if pair is not None and pair.mode == ENGINE and pair.sync_allowed else None

    def _failed(self, exc: SplError, backoff: Backoff) -> float:
        paused_s = self.parts.ingest.budget.status(self.pair_id).wait_s
        if paused_s:
            return paused_s  # no fault of the engine
        now_s, state, delay_s = asyncio.get_running_loop().time(), self.state, backoff.failed()
        state.fault, state.attempt = exc.bare(), backoff.attempt
        state.failing_since_s = now_s if state.failing_since_s is None else state.failing_since_s
        self.parts.ingest.lines.warning("carrier.failed", self.pair_id, exc.code, attempt=state.attempt)
        return delay_s

    async def _session(self, backoff: Backoff) -> None:
        parts, state = self.parts, self.state
        nats = await parts.connect(self.pair_id, self.carrier)
        state.far = f"nats-server {nats.version}"
        try:
            await run_together(self._receive(nats, backoff), nats.listen())
        finally:
            state.is_open = False
            await nats.close()

    # -- what comes

    async def _receive(self, nats: Nats, backoff: Backoff) -> None:
        pair = self.parts.ingest.pair(self.pair_id)
        stream = subjects.stream_of(pair.peer_did)
        for name, ns in self.names.items():
            if not await jetstream.has_consumer(nats, stream, name):
                await jetstream.create_consumer(nats, stream, name, subjects.namespace_of(pair.peer_did, ns))
                self._places[ns] = ANY
                self._break(ns)
            elif not self._places[ns]:
                self._break(ns)
        self._pulls = {}
        await self._ask(nats, stream, self.names)
        state = self.state
        state.is_open, state.fault, state.failing_since_s, state.attempt = True, None, None, 0
        log.info(**event("carrier.opened", pair=self.pair_id, namespaces=len(self.names)))
        while True:
            found, again = await self._arrived(nats)
            if found.count:
                await self._store(found)
                acks = [published(end.reply, "", b"", b"+ACK") for end in found.ends.values()]
                await nats.send(acks)
                backoff.reset()
            await self._ask(nats, stream, again)

    async def _ask(self, nats: Nats, stream: str, names: Sequence[str] | Mapping[str, str]) -> None:
        """Ask consumers for their next messages."""
        share, frames = max(1, IN_FLIGHT // len(self.names)), list[bytes]()
        for name in names:
            reply = f"{nats.inbox}.p{next(self._replies)}"
            self._pulls[reply] = name, share, asyncio.get_running_loop().time()
            frames.append(jetstream.pull_of(stream, name, reply, share, PULLED_BYTES // len(self.names)))
        if frames:
            await nats.send(frames)

    async def _arrived(self, nats: Nats) -> tuple[_Arrived, list[str]]:
        """Return what has come, once something has, and the consumers that are to be asked again."""
        found, again, wait_s = _Arrived(), list[str](), SILENCE_S
        while found.count < BATCH_RECORDS and found.size < BATCH_BYTES:
            message = await nats.next(wait_s)
            if message is None:
                raise EngineError("sink-unreachable", f"the server gives no word for {SILENCE_S:g} s")
            pull = self._pulls.get(message.subject)
            if pull is not None:
                again += await self._ended(message, pull)
            elif ns := self.names.get(name := jetstream.consumer_in(message.reply), ""):
                self._add(found, message, ns)
                again += self._counted(name)
            if not nats.waiting:
                break
            wait_s = ANSWER_S
        return found, again

    def _counted(self, name: str) -> list[str]:
        """Count a message of a consumer; return it if it has given all that it was asked for."""
        for reply, (each, left, asked_s) in self._pulls.items():
            if each == name:
                if left > 1:
                    self._pulls[reply] = each, left - 1, asked_s
                    return []
                del self._pulls[reply]
                return [name]
        return []

    async def _ended(self, message: Delivery, pull: tuple[str, int, float]) -> list[str]:
        """Return the consumer of a request that the server ended, not more often than once a second."""
        status = headers_of(message.head)[0] if message.head else 0
        text = message.head[:200].decode("utf-8", "replace").lower()
        if status == 503 or (status in _ENDED and any(word in text for word in _GONE)):
            raise EngineError("sink-unreachable", "the consumer is gone; it is made again")
        if status not in _ENDED:
            return []
        del self._pulls[message.subject]
        if pull[1] == max(1, IN_FLIGHT // len(self.names)):
            await asyncio.sleep(max(0.0, pull[2] + 1.0 - asyncio.get_running_loop().time()))
        return [pull[0]]

    def _add(self, found: _Arrived, message: Delivery, ns: str) -> None:
        """Take a message: a record, or the name of one that is too large for the server; note whether it follows."""
        found.count, found.size, found.ends[ns] = found.count + 1, found.size + message.size, message
        headers, value = _headers_in(message.head), _decoded(message.body)
        id_ = value.get("id") if isinstance(value, dict) else None
        if not is_id(id_):
            self._break(ns)  # somebody else wrote it
            return
        if self._places[ns] != ANY and headers.get(PREVIOUS) != self._places[ns]:
            self._break(ns)
        self._places[ns] = str(id_)
        if POINTER in headers:
            self._break(ns)  # the peer's pages have it, if there is one: nobody signed that name
            return
        found.values.append(value)
        found.ns.append(ns)

    async def _store(self, found: _Arrived) -> None:
        """Store what came with the places that it leads to, in one write."""
        ingest, pair, state = self.parts.ingest, self.parts.ingest.pair(self.pair_id), self.state
        judged = await ingest.judge(pair, Page(found.values, list(found.ns), "", False, {}, found.size))
        if refused := [verdict for verdict in judged.verdicts if verdict.code]:
            # Anybody may have written it; the ledger says what the peer offers, and takes it from the peer's own pages.
            judged = replace(judged, verdicts=[verdict for verdict in judged.verdicts if not verdict.code])
            codes = ",".join(sorted({verdict.code for verdict in refused}))
            ingest.lines.warning("carrier.refused", self.pair_id, codes=codes)
            for ns in {verdict.ns for verdict in refused}:
                self._break(ns)
        places = [
            SavedPosition(self._place_name(ns), "" if ns in self._broken else self._places[ns], state.received)
            for ns in found.ends
        ]
        taken = await ingest.keep(pair, judged, moves=False, beside=places)
        state.received, state.fresh = state.received + found.count, state.fresh + taken.fresh
        state.passed_by_since_s = None
        state.confirmed_ms = self.parts.now_ms()
        self._tell()
        if ingest.refused.owes(self.pair_id, ingest.inbound(pair)):
            self._news.set()

    # -- what is missing

    def _break(self, ns: str) -> None:
        """Record that records of a namespace may be missing before the next one."""
        self._broken[ns] = next(self._gaps)
        if self.state.gap_since_s is None:
            self.state.gap_since_s = asyncio.get_running_loop().time()
        self._news.set()

    def doubt(self) -> None:
        """Record that the peer counts more records up to what we told it than we have of them."""
        for ns in self._places:
            self._break(ns)
        self._tell()

    def _tell(self) -> None:
        """Have the peer told, with the next sign of life, of the last record of each namespace that is proven."""
        self.proven = {ns: id_ for ns, id_ in self._places.items() if ns not in self._broken and is_id(id_)}

    async def _heal(self) -> None:
        """Pull what is missing: after a gap, and if the peer's count is not reached though the engine gave all.

        While the engine is gone the newest count is the one to reach, and nothing is said of what it does not carry.
        """
        ingest, head = self.parts.ingest, 0
        while True:
            await wait(self._news, LOOK_EVERY_S)
            place, before = ingest.writer.views.positions.get(self.pair_id), head
            head = int(ingest.reaches.view(self.pair_id).get("head") or 0)
            behind = (place.count if place is not None else 0) < (head if self._is_gone() else before)
            if not (self._news.is_set() or behind):
                continue
            self._news.clear()
            broken, carried = dict(self._broken), self.state.received
            try:
                held = self._held()
                await self.parts.sync.pull(self.pair_id)
                brought = self._held() - held
            except SplError as exc:
                log.debug(**event("carrier.gap_open", pair=self.pair_id, code=exc.code))
                self._news.set()
                await asyncio.sleep(self._healing.failed())
            else:
                self._healing.reset()
                self._broken = {ns: gap for ns, gap in self._broken.items() if broken.get(ns) != gap}
                self.state.gap_since_s = self.state.gap_since_s if self._broken else None
                if behind and brought > 0 and self.state.is_open and carried == self.state.received:
                    self.state.passed_by_since_s = self.state.passed_by_since_s or asyncio.get_running_loop().time()
                self._tell()
                await asyncio.sleep(HEAL_BASE_S)

    def _is_gone(self) -> bool:
        """Whether the engine has failed for so long that nothing is to be expected of it."""
        since_s = self.state.failing_since_s
        return since_s is not None and asyncio.get_running_loop().time() - since_s > LOOK_EVERY_S

    def _held(self) -> int:
        """Return how many records came over the pair of the namespaces that are read here, whichever way they came."""
        ingest = self.parts.ingest
        inbound = ingest.inbound(ingest.pair(self.pair_id))
        ours = {inbound[ns].ns for ns in self._places if ns in inbound}
        return sum(ingest.writer.store.index.tally(received(ns, self.pair_id)) for ns in ours)

    # -- where it was

    def _place_name(self, ns: str) -> str:
        """Return the name under which a place stands in the log; no pair has such an id."""
        return f"{PLACE}{self.pair_id} {ns}"

    def _saved(self, ns: str) -> str:
        place = self.parts.ingest.writer.views.positions.get(self._place_name(ns))
        return place.cursor if place is not None else ""


def _headers_in(head: bytes) -> dict[str, str]:
    """Return the headers of a message, none if they are malformed: any writer to the server sets them."""
    try:
        return headers_of(head)[1] if head else {}
    except EngineError:
        return {}


def _decoded(body: bytes) -> object:
    """Return the value of a message, None if it is no JSON."""
    try:
        return page.decode_many(body)
    except PageError:
        return None
