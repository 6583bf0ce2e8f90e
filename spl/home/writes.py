"""What can be written: the items of a submission, and what one write made visible."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..core.identity.did import Chain
from ..core.keys import SecretKey
from ..core.record.levels import Projection
from ..core.record.record import Envelope
from .log import Entry

LOCAL: Final = "local"


@dataclass(frozen=True, slots=True)
class Signer:
    """Who vouches for local records: the instance's chain and present key."""

    chain: Chain
    key: SecretKey


@dataclass(frozen=True, slots=True)
class Emit:
    """A record from a client of this daemon; a clock that is missing or None is given here."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Own:
    """A record of the daemon's own on a reserved thread; `kind` becomes `body.kind`."""

    thread: str
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arrive:
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

    pair: str
    cursor: str
    count: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """A line of the ledger: this record of that pair was refused, and may be fetched again.

    `ns` is the peer's name of the namespace that it came from, "" where that is not known.
    """

    pair: str
    id: str
    code: str
    ns: str = ""


Item = Emit | Own | Arrive | Projected | SavedPosition | Refuse


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: its sequence, the envelope held, and whether it was new."""

    seq: int
    envelope: Envelope | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """What one write made visible; given to listeners on the writer's thread.

    `first_seq` and `last_seq` take in lines of every kind; `run` is the running hash after the last.  `fresh` are the
    new records with their seqs, so that who reads at the tail need not ask the index, and `fresh_bytes` their size.
    """

    first_seq: int
    last_seq: int
    run: str
    at_ms: int
    namespaces: frozenset[str]
    threads: frozenset[str]
    fresh: tuple[tuple[int, Entry], ...] = field(repr=False)
    fresh_bytes: int
