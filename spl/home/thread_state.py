"""Cached thread states: what the fold rules make of the records of a thread.

Nothing here runs when a record is written.  A question reads on from where the last one of its kind ended, in pieces,
so the caller can give others their turn between two of them, and what was read stays when the caller has gone.  Kinds
are (thread, fold, field, namespaces); the KINDS_MAX that were asked last are kept, each in some KiB at most, whatever
their records hold.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, Final

from ..core import fold
from ..core.fold import FoldRule, FoldState
from ..core.value import dataclass, replace
from .log import Log, Row
from .tables.lists import by_thread, by_thread_in

KINDS_MAX: Final = 256  # some KiB each; the oldest goes
PIECE_ROWS: Final = 250
PIECE_BYTES: Final = 256 * 1024
"""A piece takes one to three milliseconds, in which the event loop may wait for the interpreter."""

_Kind = tuple[str, str, str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A state, the number of its records, the sequence of the last of them, and that up to which the log was read."""

    state: FoldState
    records: int = 0
    sequence: int = 0
    read_seq: int = 0


class ThreadStates:
    """The cached states of one store.  Any thread may ask."""

    def __init__(self, store: Log) -> None:
        self._store = store
        self._kept: OrderedDict[_Kind, ThreadState] = OrderedDict()
        # Held while `_kept` changes, never while something is read: two that read the same piece do no harm.
        self._turn = Lock()

    def read_on(self, thread: str, rule: FoldRule, namespaces: frozenset[str], to_seq: int) -> ThreadState:
        """Read at most one more piece towards `to_seq`, and return where the state then stands.

        Only records of these namespaces count, and no others are read; an empty set stands for all.  The state is
        complete once `read_seq` is `to_seq` or more, and until then the call is to be repeated.
        Raises LineError "overloaded".
        """
        kind = (thread, rule.fold, rule.field, namespaces)
        found = self._kept.get(kind) or ThreadState(fold.begin(rule))
        if found.read_seq < to_seq:
            names = [by_thread_in(ns, thread) for ns in namespaces] or [by_thread(thread)]
            rows = self._store.index.after_any(names, found.read_seq, PIECE_ROWS)
            piece = _bounded(rows) if rule.reads_bodies else rows
            found = self._stepped(found, rule, piece)
            # A list that ended was read up to what the index covered when asked, and that is `to_seq` at least.  A page
            # that damaged rows were left out of is short before its list ends.
            at_end = piece is rows and (not rows or (len(rows) < PIECE_ROWS and not self._store.index.reader.doubted))
            read_seq = max(piece[-1].seq if piece else 0, to_seq if at_end else 0)
            found = replace(found, read_seq=read_seq)
        with self._turn:
            self._kept[kind] = found
            self._kept.move_to_end(kind)
            if len(self._kept) > KINDS_MAX:
                self._kept.popitem(last=False)
        return found

    def body_at(self, sequence: int) -> Mapping[str, Any]:
        """Return the body of the record at a place of the log.  Raises LineError "store-damaged"."""
        return _body(self._store.line(sequence).payload)

    def _stepped(self, found: ThreadState, rule: FoldRule, rows: list[Row]) -> ThreadState:
        if not rows:
            return found
        state = found.state
        for row, payload in self._store.read(rows) if rule.reads_bodies else ((row, b"") for row in rows):
            state = fold.step(rule, state, row.seq, _body(payload) if payload else {})
        return ThreadState(state, found.records + len(rows), rows[-1].seq, found.read_seq)


def _bounded(rows: list[Row]) -> list[Row]:
    """Return the first rows, at least one of them, that hold PIECE_BYTES together."""
    size = 0
    for count, row in enumerate(rows):
        size += row.length
        if size > PIECE_BYTES and count:
            return rows[:count]
    return rows


def _body(payload: bytes) -> Mapping[str, Any]:
    """Return the body in the payload of a record."""
    body: Mapping[str, Any] = json.loads(payload)["record"]["body"]
    return body
