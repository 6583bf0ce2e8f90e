"""What can be written: the items of a submission, and what one write made visible."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from ..core import canon
from ..core.identity.did import Chain
from ..core.keys import SecretKey
from ..core.record.levels import Projection
from ..core.record.record import Envelope
from ..core.value import dataclass, field
from .commit_queue import Post, Submission, Waiter
from .log import Entry

Hop = tuple[Post, Callable[[], object]]
"""A call to make on another thread, and what makes it there."""
LOCAL: Final = "local"
LINE_BYTES: Final = 512
"""About what a line takes besides the texts in it, and about what an envelope takes beside its body."""


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

    def body(self) -> dict[str, object]:
        """Return {pair, cursor, count, day_bytes?}."""
        day = {} if self.day_bytes is None else {"day_bytes": self.day_bytes}
        return {"pair": self.pair, "cursor": self.cursor, "count": self.count, **day}


@dataclass(frozen=True, slots=True)
class DayBytes:
    """What a pair brought in within a day, this submission included; for one that saves no position."""

    KIND: ClassVar[str] = "day"
    pair: str
    bytes: int

    def body(self) -> dict[str, object]:
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
            case Own() | DayBytes():
                continue
    return ""
