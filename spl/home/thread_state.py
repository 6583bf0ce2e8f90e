"""Cached thread states: what the fold rules make of the records of a thread.

Nothing here runs when a record is written.  A question reads on from where the last one of its kind ended, in pieces
that one thread takes one after the other, so neither a long thread nor many questions keep the event loop waiting, and
what was read stays when the caller has gone.  Kinds are (thread, fold, field, namespaces); the KINDS_MAX that were
asked last are kept, each in some KiB at most, whatever their records hold.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from ..core import fold
from ..core.fold import FoldRule, FoldState
from .index import by_thread
from .log import Log, Row

KINDS_MAX: Final = 256
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
    """The cached states of one store."""

    def __init__(self, store: Log) -> None:
        self._store = store
        self._kept: OrderedDict[_Kind, ThreadState] = OrderedDict()
        # One worker, begun with the first question; so nothing here needs a lock.
        self._worker = ThreadPoolExecutor(1, "spl-states")

    def read_on(self, thread: str, rule: FoldRule, namespaces: frozenset[str], to_seq: int) -> "Future[ThreadState]":
        """Read at most one more piece towards `to_seq`, and return where the state then stands.

        Only records of these namespaces count; an empty set stands for all.  It is complete once `read_seq` is `to_seq`
        or more, and until then the call is to be repeated.  Raises LineError "store-damaged".
        """
        return self._worker.submit(self._read_on, thread, rule, namespaces, to_seq)

    def body_at(self, sequence: int) -> Mapping[str, Any]:
        """Return the body of the record at a place of the log.  Raises LineError "store-damaged"."""
        return _body(self._store.line(sequence).payload)

    def _read_on(self, thread: str, rule: FoldRule, namespaces: frozenset[str], to_seq: int) -> ThreadState:
        kind = (thread, rule.fold, rule.field, namespaces)
        found = self._kept.pop(kind, None) or ThreadState(fold.begin(rule))
        if found.read_seq < to_seq:
            rows = self._store.index.after(by_thread(thread), found.read_seq, PIECE_ROWS)
            piece = _bounded(rows) if rule.reads_bodies else rows
            found = self._stepped(found, rule, [row for row in piece if _counts(row, namespaces)])
            # A list that ended was read up to what the index covered when asked, and that is `to_seq` at least.
            at_end = len(piece) < PIECE_ROWS and piece is rows
            read_seq = max(piece[-1].seq if piece else 0, to_seq if at_end else 0)
            found = replace(found, read_seq=read_seq)
        self._kept[kind] = found
        if len(self._kept) > KINDS_MAX:
            self._kept.popitem(last=False)
        return found

    def _stepped(self, found: ThreadState, rule: FoldRule, rows: list[Row]) -> ThreadState:
        if not rows:
            return found
        state = found.state
        for row, payload in self._store.read(rows) if rule.reads_bodies else ((row, b"") for row in rows):
            state = fold.step(rule, state, row.seq, _body(payload) if payload else {})
        return ThreadState(state, found.records + len(rows), rows[-1].seq, found.read_seq)


def _counts(row: Row, namespaces: frozenset[str]) -> bool:
    return row.kind == "rec" and (not namespaces or row.ns in namespaces)


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
