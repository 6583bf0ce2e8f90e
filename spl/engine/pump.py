"""One sink: reads the log at the pace of where its records go, and knows how far it came.

    open -> resume (the position, read from what holds the records) -> read <= 256 records -> put -> all confirmed -> …

The pump is a reader like a pair: there is no queue, nothing is kept for a record, and no append waits for it.  Whatever
goes wrong, the connection is closed, a delay passes (1 s, doubled up to 5 min, full jitter), and the position is read
again: what was in flight may have arrived or not, and only the far side knows.  So records go out at least once, in
the order of the log, and a far side that lost its end gets it again.

Our own saved position, a line in the log at most every SAVE_S, is only used where the far side keeps none.

A record that comes alone goes out at once.  Those that come within COLLECT_S after it go together, because each put
wakes the pool, the server and us again, and all of that competes with the emits for the processor: with a put for each
of 800 emits a second their p50 grew from 0.8 to 1.2 ms.  At 100 emits a second their p99 is 1.06 to 1.19 times that
without a sink if 0.25 s are collected, and 1.02 to 1.05 times with 0.5 s: fewer of them meet a put.  The p99 of a
client that takes a whole core still grows, by up to half.

A long backlog goes in lots of 256, and of BUSY_RECORDS while others write: each lot holds the interpreter for its
length.  Beside 100 emits a second, on two cores, lots of 256 / 64 / 32 / 8 drain 20,200 / 16,100 / 13,500 / 8,100
records a second, with an emit p99 of 33 / 9 / 5.7 / 5.9 ms (2.6 without).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, Protocol

from ..core import consent
from ..core.backoff import Backoff
from ..core.errors import SplError
from ..core.event import event
from ..core.value import dataclass, field
from ..home.tables.lists import by_namespace, by_thread
from ..home.views import THREAD_NAMESPACES
from ..home.writes import SavedPosition
from ..sync.notify import Notifier
from ..sync.supervise import run_together, wait
from .protocol import EngineError
from .reader import BATCH_RECORDS, LogReader, StoredRecord
from .sinks import Sink

log = logging.getLogger("spl.federation")

SAVE_S: Final = 5.0
COLLECT_S: Final = 0.5
BUSY_RECORDS: Final = 32
BUSY_S: Final = 1.0
"""Others write if the log grew so lately; our own saved position, a line each SAVE_S, counts as well."""
BACKOFF_BASE_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0


class Session(Protocol):
    """An open way to where the records go."""

    async def listen(self) -> None:
        """Read what the far side sends for as long as the session lives."""

    async def resume(self) -> int:
        """Return the line of the log up to which the far side holds the records."""

    async def put(self, records: Sequence[StoredRecord]) -> None:
        """Send records and return when all of them are confirmed."""

    async def close(self) -> None:
        """End it."""


class Destination(Protocol):
    """Where the records of a sink go."""

    async def open(self) -> Session:
        """Return a new session.  Raises SplError."""


@dataclass(slots=True)
class SinkState:
    """What this process knows of one sink."""

    seq: int | None = None
    """The position; None before the first session."""
    count: int = 0
    """How many records of its namespaces stand up to there."""
    sent: int = 0
    """Records confirmed to this process."""
    confirmed_ms: int | None = None
    fault: SplError | None = None
    failing_since_s: float | None = None
    attempt: int = 0
    is_open: bool = False
    far: str = ""
    """What is known of the far side, for people."""
    again: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends the delay after a failure: the far side was seen to answer."""


class Pump:
    """Runs one sink until it is cancelled or withdrawn."""

    def __init__(
        self, sink: Sink, target: Destination, reader: LogReader, notifier: Notifier, pool: Executor,
        state: SinkState, *, now_ms: Callable[[], int], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.sink, self.target, self.reader, self.state = sink, target, reader, state
        self._notifier, self._pool, self._now_ms = notifier, pool, now_ms
        self._backoff = Backoff(random_bytes, BACKOFF_BASE_S, BACKOFF_MAX_S)
        self._saved: tuple[int, float] | None = None
        self._grew = 0, float("-inf")
        """The end of the log as last seen, and when it grew."""

    async def run(self) -> None:
        """Send until the sink is another one; failures back off."""
        loop, lists = asyncio.get_running_loop(), [by_namespace(each) for each in self.sink.namespaces]
        with self._notifier.listening([*lists, by_thread(consent.THREAD), by_thread(THREAD_NAMESPACES)]) as news:
            while self._is_wanted():
                try:
                    await self._session(news)
                except SplError as exc:
                    delay_s = self._failed(exc, loop.time())
                    if exc.code == "sink-foreign":
                        return  # nothing that passes by itself: the operator's word starts it again
                    await wait(self.state.again, delay_s)
                    self.state.again.clear()

    def _is_wanted(self) -> bool:
        return self.reader.sink(self.sink.name) == self.sink

    async def _session(self, news: asyncio.Event) -> None:
        session = await self.target.open()
        try:
            await run_together(self._send(session, news), session.listen())
        finally:
            self.state.is_open = False
            self._save()
            await session.close()

    async def _send(self, session: Session, news: asyncio.Event) -> None:
        loop, state = asyncio.get_running_loop(), self.state
        place = await session.resume()
        state.count = await loop.run_in_executor(self._pool, self._count, place)
        state.seq, state.is_open = place, True
        log.info(**event("sink.opened", sink=self.sink.name, seq=place, lag=self.lag()))
        while self._is_wanted():
            news.clear()
            lot = self._lot(loop.time())
            batch = await loop.run_in_executor(self._pool, self.reader.batch, self.sink, place, lot)
            if batch.records and self._is_wanted():
                await session.put(batch.records)
                self._sent(len(batch.records), batch.seq, loop.time())
                if self.lag() < lot:
                    await self._collect()
            place = state.seq = batch.seq
            if not batch.blocked and (batch.records or not self._is_wanted()):
                continue
            if batch.blocked:
                state.fault = EngineError(
                    "sink-refused",
                    f"namespace {batch.blocked} is not active",
                    hint=f"spl namespace create {batch.blocked}",
                )
            elif state.fault is not None:
                self._well()
            self._save(loop.time())
            await wait(news, None if self._saved is not None and self._saved[0] == place else SAVE_S)

    def _lot(self, now_s: float) -> int:
        """Return how many records go together now."""
        if (end := self.reader.last_seq) != self._grew[0]:
            self._grew = end, now_s if self._grew[0] else self._grew[1]
        return BUSY_RECORDS if now_s - self._grew[1] < BUSY_S else BATCH_RECORDS

    async def _collect(self) -> None:
        """Let some records come, so that they go together."""
        await asyncio.sleep(COLLECT_S)

    def lag(self) -> int:
        """Return how many records wait."""
        return max(0, self.reader.total(self.sink.namespaces) - self.state.count)

    def _count(self, place: int) -> int:
        """Return how many records of the namespaces stand up to a line, counted from the saved position on."""
        seq, count = self.reader.saved(self.sink) or (0, 0)
        if seq > place:
            seq = count = 0
        return count + self.reader.count(self.sink.namespaces, seq, place)

    def _sent(self, records: int, seq: int, now_s: float) -> None:
        state = self.state
        state.seq, state.count, state.sent = seq, state.count + records, state.sent + records
        state.confirmed_ms = self._now_ms()
        self._well()
        self._save(now_s)

    def _well(self) -> None:
        self._backoff.reset()
        self.state.attempt, self.state.fault, self.state.failing_since_s = 0, None, None

    def _failed(self, exc: SplError, now_s: float) -> float:
        delay_s, state = self._backoff.failed(), self.state
        state.fault, state.attempt = exc.bare(), self._backoff.attempt
        state.failing_since_s = now_s if state.failing_since_s is None else state.failing_since_s
        told = {"code": exc.code, "attempt": state.attempt, "msg": exc.message, **exc.facts}
        log.warning(**event("sink.failed", sink=self.sink.name, **told))
        return delay_s

    def _save(self, now_s: float | None = None) -> None:
        """Have the position written, if it moved and, with `now_s`, is due; nobody waits for it."""
        state, saved = self.state, self._saved
        if state.seq is None or (saved is not None and saved[0] == state.seq):
            return
        if saved is not None and now_s is not None and now_s < saved[1] + SAVE_S:
            return
        self._saved = state.seq, asyncio.get_running_loop().time()
        line = SavedPosition(self.sink.place_name, f"{self.reader.epoch}:{state.seq}", state.count, 0)
        with suppress(SplError):  # a store that takes nothing now; the next one says all that this one would have said
            self.reader.writer.submit([line])
