"""What can be written: the items of a submission; what one write made visible, and who hears of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from ..core import canon
from ..core.identity.did import Chain
from ..core.keys import SecretKey
from ..core.recent import Costs
from ..core.record.levels import Projection
from ..core.record.record import Envelope
from ..core.value import Json, dataclass, field
from .commit_queue import Post, Submission, Waiter
from .log import Entry

Hop = tuple[Post, Callable[[], object]]
"""A call to make on another thread, and what makes it there."""
LOCAL: Final = "local"
LINE_BYTES: Final = 512
"""About what a line takes besides the texts in it, and about what an envelope takes beside its body."""

VIEWS: Final = "views"
ALL: Final = "all"

_C = TypeVar("_C")
OnWrite = Callable[[_C], Hop | None]
"""Hears of a write; returns what it has to tell another thread: one wake serves all listeners and the answers."""


@dataclass(frozen=True, slots=True)
class Signer:
    """What signs local records: the instance's chain and present key."""

    chain: Chain
    key: SecretKey


class Emit(NamedTuple):
    """A record from a client of this daemon; a clock that is missing or None is given here.

    `bytes` is the size of the text that it came as, 0 if that is small; `principal` is the client.
    """

    record: Mapping[str, Any]
    bytes: int = 0
    principal: str = ""


@dataclass(frozen=True, slots=True)
class Own:
    """A record of the daemon's own on a reserved thread; `kind` becomes `body.kind`."""

    thread: str
    kind: str
    body: Mapping[str, Any]


class Arrive(NamedTuple):
    """A verified envelope from elsewhere: its local namespace, and the pair (or "restore") it came from."""

    envelope: Envelope
    ns: str
    origin: str


@dataclass(frozen=True, slots=True)
class Projected:
    """A verified projection, which is a claim of the pair's peer and no record: its local namespace, and the pair."""

    projection: Projection
    ns: str
    pair: str


@dataclass(frozen=True, slots=True)
class SavedPosition:
    """The position up to which everything from a pair is in this submission or was stored before."""

    KIND: ClassVar[str] = "pos"
    pair: str
    cursor: str
    count: int
    day_bytes: int | None = None
    """As in DayBytes; None if nothing was counted."""

    def body(self) -> Json:
        """Return {pair, cursor, count, day_bytes?}."""
        day = {} if self.day_bytes is None else {"day_bytes": self.day_bytes}
        return {"pair": self.pair, "cursor": self.cursor, "count": self.count, **day}


@dataclass(frozen=True, slots=True)
class DayBytes:
    """What a pair brought in within a day, this submission included; for one that saves no position."""

    KIND: ClassVar[str] = "day"
    pair: str
    bytes: int

    def body(self) -> Json:
        """Return {pair, day_bytes}."""
        return {"pair": self.pair, "day_bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Refuse:
    """A line of the ledger: this record of that pair was refused, and may be fetched again.

    `ns` is the peer's name of the namespace that it came from, "" if that is not known.
    """

    pair: str
    id: str
    code: str
    ns: str = ""


Item = Emit | Own | Arrive | Projected | SavedPosition | Refuse | DayBytes


class Outcome(NamedTuple):
    """What became of one item: its sequence, the envelope stored, and whether it was new."""

    seq: int
    envelope: Envelope | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """What one write made visible; given to listeners on the writer's thread.

    `first_seq` and `last_seq` include lines of every kind; `run` is the running hash after the last.  `fresh` are the
    new records with their seqs, so that readers at the tail need not query the index, and `fresh_bytes` their size.
    """

    first_seq: int
    last_seq: int
    run: str
    at_ms: int
    namespaces: frozenset[str]
    threads: frozenset[str]
    fresh: tuple[tuple[int, Entry], ...] = field(repr=False)
    fresh_bytes: int


def queued(items: Sequence[Item], answer: Waiter[Outcome], post: Post | None) -> Submission[Item, Outcome]:
    """Return a submission of these items, with its size and its principal."""
    return Submission(tuple(items), answer, post, sum(map(size_of, items)), principal_of(items))


def size_of(item: Item) -> int:
    """Return the approximate number of bytes that an item takes in the log; never less than LINE_BYTES."""
    match item:
        case Arrive():
            return LINE_BYTES + len(item.envelope.raw)
        case Projected():
            return LINE_BYTES + len(item.projection.raw)
        case Emit():
            return LINE_BYTES + item.bytes
        case Own():
            return 2 * LINE_BYTES + len(canon.encode({**item.body}))
        case SavedPosition():
            return LINE_BYTES + len(item.cursor)
    return LINE_BYTES


def principal_of(items: Sequence[Item]) -> str:
    """Return whose submission this is: a client, a pair, "restore", or "" for the daemon's own records.

    What the daemon adds to the records of a pair, such as a key chain, belongs to the pair.
    """
    for item in items:
        match item:
            case Emit():
                return item.principal
            case Arrive():
                return item.origin
            case Projected() | SavedPosition() | Refuse():
                return item.pair
    return ""


@dataclass(frozen=True, slots=True)
class ListenerSummary:
    """How many listeners there are, and what they took of each record: p99 of all together, and the slowest one.

    Without records p99 is None and the slowest "".
    """

    count: int
    p99_ms: float | None
    records: int
    slowest: str


class Listeners(Generic[_C]):
    """The listeners of one writer, run and measured on its thread; any thread may read the summary.

    `steady_ns` is a clock that never jumps.  A listener is named after the module of its callback; operators know
    listeners as adapters.
    """

    def __init__(self, *, now_ms: Callable[[], int], steady_ns: Callable[[], int]) -> None:
        self._now_ms, self._steady_ns = now_ms, steady_ns
        self._listeners: tuple[tuple[str, OnWrite[_C]], ...] = ()
        self._costs: dict[str, Costs] = {}
        self._mark_ns = self._sum_ns = 0

    def listen(self, callback: OnWrite[_C]) -> Callable[[], None]:
        """Run `callback` for each write from now on; return what unsubscribes it."""
        listener = (str(callback.__module__).rpartition(".")[2], callback)
        self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            self._listeners = tuple(item for item in self._listeners if item is not listener)

        return unsubscribe

    def begin(self) -> None:
        """Measure from here; a write begins."""
        self._mark_ns, self._sum_ns = self._steady_ns(), 0

    def measure(self, name: str, records: int) -> None:
        """Count the time since the last call as what this listener took for `records` records."""
        self._measure(name, records, self._now_ms())

    def notify(self, write: _C, records: int, hops: list[Hop]) -> None:
        """Run every listener for a write of `records` records; add the hops that they return."""
        self._mark_ns, now_ms = self._steady_ns(), self._now_ms()
        for name, callback in self._listeners:
            if (hop := callback(write)) is not None:
                hops.append(hop)
            self._measure(name, records, now_ms)
        self._costs_of(ALL).add(self._sum_ns // (1000 * records), records, now_ms)

    def p99_us(self) -> dict[str, int | None]:
        """Return what each listener, and ALL together, took of a record at p99 in the last five minutes."""
        return {name: costs.percentile_us(99, self._now_ms()) for name, costs in self._costs.copy().items()}

    def summary(self) -> ListenerSummary:
        """Return what the listeners took in the last five minutes."""
        found = self.p99_us()
        p99_us = found.pop(ALL, None)
        return ListenerSummary(
            count=len({VIEWS, *(name for name, _ in self._listeners)}),
            p99_ms=None if p99_us is None else p99_us / 1000,
            records=self._costs[ALL].records(self._now_ms()) if ALL in self._costs else 0,
            slowest=max(found, key=lambda name: found[name] or 0, default="") if p99_us is not None else "",
        )

    def _measure(self, name: str, records: int, now_ms: int) -> None:
        now_ns = self._steady_ns()
        took_ns, self._mark_ns = now_ns - self._mark_ns, now_ns
        self._sum_ns += took_ns
        self._costs_of(name).add(took_ns // (1000 * records), records, now_ms)

    def _costs_of(self, name: str) -> Costs:
        found = self._costs.get(name)
        if found is None:
            found = self._costs[name] = Costs()
        return found
