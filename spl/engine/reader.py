"""The log as a sink reads it: the next records of its namespaces after a position, as they are stored.

A reading takes the end of the last announced commit first and looks at the sink after that, like a peer's reading, so
no record that was written after a withdrawal is ever read.  Records of reserved threads stand in no namespace's list.

The methods block on the disk and are called in a thread.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from ..core.limits import MIB
from ..core.record import namespace
from ..core.value import dataclass, field
from ..home.index import Row
from ..home.tables.lists import by_namespace
from ..home.writer import Writer
from ..sync.scope import within
from ..sync.source import Source
from .protocol import EngineError
from .sinks import Sink, read

BATCH_RECORDS: Final = 256
BATCH_BYTES: Final = MIB
COUNT_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it goes out; `body` is the stored envelope."""

    seq: int
    id: str
    namespace: str
    thread: str
    signer: str
    body: bytes = field(repr=False)
    previous: str = ""
    """The id of the record before in its namespace, which shows a reader that it misses none."""
    again: bool = False
    """Whether an earlier line of another namespace of the sink is the same record."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records up to the line `seq`; `blocked` is a namespace that is not usable and holds the next record."""

    records: tuple[StoredRecord, ...]
    seq: int
    blocked: str = ""


class LogReader:
    """Readings of one home's log."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.writer: Writer = source.writer
        self._sinks: dict[str, tuple[object, Sink | None]] = {}
        """Record bodies as they were read last; those of the view are replaced, never changed."""

    @property
    def epoch(self) -> str:
        """The name of this log."""
        return self.writer.store.epoch

    @property
    def last_seq(self) -> int:
        """The last line that was announced."""
        return self.source.last_seq()

    def sink(self, name: str) -> Sink | None:
        """Return a sink as it is now."""
        body, (seen, sink) = self.writer.views.sinks.get(name), self._sinks.get(name, (None, None))
        if body is not seen:
            sink = read(body) if body is not None else None
            self._sinks[name] = body, sink
        return sink

    def batch(self, sink: Sink, after: int, limit: int = BATCH_RECORDS) -> RecordBatch:
        """Return the next records after a line; none at the end, and none of a sink that is not this one any more."""
        last_seq = self.source.last_seq()
        if self.sink(sink.name) != sink:
            return RecordBatch((), after)
        index, registry = self.writer.store.index, self.writer.views.namespaces
        rows = index.after_any([by_namespace(each) for each in sink.namespaces], after, limit)
        fitting, blocked = list[Row](), ""
        for row in within([row for row in rows if row.seq <= last_seq], BATCH_BYTES):
            if not namespace.is_usable(registry, row.ns):
                blocked = row.ns
                break
            fitting.append(row)
        before, found = dict[str, str](), list[StoredRecord]()
        for row, raw in self.writer.store.read(fitting):
            record = self._record(row, raw, before.get(row.ns) or self._id_before(row), sink)
            before[row.ns] = record.id
            found.append(record)
        return RecordBatch(tuple(found), fitting[-1].seq if fitting else after, blocked)

    def _id_before(self, row: Row) -> str:
        """Return the id of the record before a row in its namespace, "" if there is none or it is damaged."""
        rows = self.writer.store.index.before_any([by_namespace(row.ns)], row.seq, 1)
        return next((str(json.loads(raw)["id"]) for _, raw in self.writer.store.read(rows)), "")

    def _record(self, row: Row, raw: bytes, previous: str, sink: Sink) -> StoredRecord:
        value: dict[str, Any] = json.loads(raw)
        others = [name for name in sink.namespaces if name != row.ns]
        copies = self.writer.store.index.copies(value["id"], others) if others else ()
        again, thread = any(copy.seq < row.seq for copy in copies), value["record"]["thread"]
        return StoredRecord(row.seq, value["id"], row.ns, thread, row.voucher, raw, previous, again)

    def count(self, namespaces: Sequence[str], low: int, high: int) -> int:
        """Return how many records of the namespaces stand after the line `low` up to `high`."""
        names, total = [by_namespace(each) for each in namespaces], 0
        while low < high and (rows := self.writer.store.index.after_any(names, low, COUNT_ROWS)):
            self.writer.store.check_open()
            total += sum(row.seq <= high for row in rows)
            low = rows[-1].seq
        return total

    def total(self, namespaces: Sequence[str]) -> int:
        """Return how many records the namespaces hold."""
        return sum(self.writer.store.index.count(by_namespace(each)) for each in namespaces)

    def last_up_to(self, name: str, seq: int) -> int:
        """Return the line of the last record of a namespace up to a line, 0 if there is none."""
        rows = self.writer.store.index.before_any([by_namespace(name)], seq + 1, 1)
        return rows[0].seq if rows else 0

    def find(self, record_id: str, name: str) -> tuple[Row, bytes] | None:
        """Return a record of a namespace with its stored bytes, None if it is not held."""
        row = self.writer.store.index.find(record_id, name)
        raw = self.writer.store.payload(row) if row is not None else None
        return (row, raw) if row is not None and raw is not None else None

    def saved(self, sink: Sink) -> tuple[int, int] | None:
        """Return the saved position of a sink in this log: its line, and how many of its records stand up to there."""
        saved = self.writer.views.positions.get(sink.place_name)
        seq = seq_in(saved.cursor, self.epoch) if saved is not None else None
        return (seq, saved.count) if saved is not None and seq is not None else None

    def did(self) -> str:
        """Return our DID; raise SplError "identity-missing"."""
        identity = self.source.vault.identity
        if identity is None:
            raise EngineError("identity-missing")
        return identity.did


def seq_in(text: str, epoch: str) -> int | None:
    """Return the line in a position "<epoch>:<seq>", None if it is of another log or has another form."""
    before, colon, digits = text.rpartition(":")
    if not colon or before != epoch or not digits or len(digits) > 18 or digits.strip("0123456789"):
        return None
    return int(digits)
