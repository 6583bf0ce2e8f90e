"""Taking a snapshot: a thread, or everything, as it stands up to one sequence.

Two passes over the same lines: the first counts the ids and digests them in order, for the header; the second gives the
stored bytes.  Both stop at the sequence that was the last at the start, so what arrives meanwhile is in neither.  What
the disk damaged is in neither, too, and is named: a snapshot that says nothing is whole.  Damage that comes between the
passes ends the second one early, and the file is no snapshot then.

Nothing holds the file in memory: ids are sorted on disk (`IdDigest`), pieces are handed out as they are read.
"""

import json
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..core import consent
from ..core.record import record
from ..core.record.snapshot import SnapshotHeader, placement
from .disk import Disk, IdDigest
from .log import LineError, Log, Row
from .tables.lists import by_thread, by_thread_in
from .views import Views

ROWS: Final = 500
STEP_RECORDS: Final = 100
PIECE_BYTES: Final = 64 * 1024
"""Read and handed out at once: a client that does not take the next piece keeps no more than that in memory."""

_ID_CHARS: Final = 64
_ID_AT: Final = len('{"id":"')

_Ways = Mapping[tuple[str, str], str]
"""See `consent.crossings`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The header, and the pieces of whole lines of about 64 KiB, to be read once.

    `damaged` are the first seqs of all places in the log of which lines are lost, ascending: what they held may belong
    here, and is left out.
    """

    header: bytes
    damaged: tuple[int, ...]
    pieces: Iterator[bytes]


def take(
    store: Log, disk: Disk, folder: Path, *, views: Views, instance: str, thread: str,
    namespaces: Collection[str] = (),
) -> Generator[None, None, Snapshot]:  # fmt: skip
    """Return a snapshot once the first pass is done, of which each step takes STEP_RECORDS records.

    `thread` "" takes all, reserved ones too.  Of a thread only what stands in `namespaces` is read, if there are any: a
    thread that does not exist, or has nothing in them, gives an empty snapshot after the same work.  `folder` is where
    many ids are sorted; the pairs in `views` say which records find their namespace again by themselves.
    Raises LineError "overloaded", StoreError "shutting-down".
    """
    upto, ids = store.last_seq, IdDigest(disk, folder)
    for number, (payload, _, _) in enumerate(_held(store, thread, upto, namespaces), 1):
        ids.add(payload[_ID_AT : _ID_AT + _ID_CHARS].decode())
        if number % STEP_RECORDS == 0:
            yield
    digest, _ = ids.finish()
    damaged = {place.seq for place in store.lost} | {seq for seq in store.index.reader.left_out if seq <= upto}
    header = SnapshotHeader(instance, thread, ids.count, digest).encode()
    pieces = _pieces(_held(store, thread, upto, namespaces), ids.count, views)
    return Snapshot(header, tuple(sorted(damaged)), pieces)


def _pieces(records: Iterator[tuple[bytes, str, str]], count: int, views: Views) -> Iterator[bytes]:
    """Yield the lines of the second pass; raise LineError "store-damaged" if it has not as many as the first."""
    ways = consent.crossings(views.pairs.values(), views.consents)
    piece, found = bytearray(), 0
    for payload, ns, origin in records:
        found += 1
        if ns:
            pair = views.pairs.get(origin)
            piece += _placement(payload, ns, ways, pair.peer_did if pair else "")
        piece += payload
        piece += b"\n"
        # While this generator waits for its reader, its own names must hold nothing: neither the last payload nor the
        # piece, which the list hands over.  It costs up to 2 MiB a reader otherwise.
        del payload
        if len(piece) >= PIECE_BYTES:
            held = [bytes(piece)]
            piece.clear()
            yield held.pop()
    if piece:
        yield bytes(piece)
    if found != count:
        raise LineError("store-damaged", f"{count - found} records were damaged while the snapshot was taken")


def _placement(payload: bytes, ns: str, ways: _Ways, peer_did: str) -> bytes:
    """Return the line that says where a record is held; b"" if a restore finds that namespace without it.

    A way proves nothing about a record that did not come over it (`peer_did` brought it): its pair may be younger.
    """
    value = json.loads(payload)
    by, named = value["sig"]["by"], record.namespace_of(value["record"])
    found = ways.get((by, named), named) == ns and (named == ns or by == peer_did)
    return b"" if found else placement(ns)


def _held(store: Log, thread: str, upto: int, namespaces: Collection[str]) -> Iterator[tuple[bytes, str, str]]:
    """Yield (envelope, namespace, origin) of what is stored up to a sequence, in order of arrival.

    What several namespaces hold comes once, as the first holds it.  The namespace is "" where there is no doubt about
    it: our own records are in the one that they name, and those of reserved threads in none.
    """
    if not thread:
        expected = 1
        for line in store.scan(1):
            store.check_open()
            _leave_out(store, range(expected, min(line.seq, upto + 1)))
            if line.seq > upto:
                return
            expected = line.seq + 1
            if line.kind == "rec" and _is_first(store, line.payload, line.seq):
                yield line.payload, "" if line.own else line.ns, line.origin
        _leave_out(store, range(expected, upto + 1))
        return
    names = [by_thread_in(ns, thread) for ns in namespaces] or [by_thread(thread)]
    seq = 0
    while page := store.index.after_any(names, seq, ROWS):
        store.check_open()
        rows = [row for row in page if row.seq <= upto]
        for few in _small(rows):
            store.check_open()
            # Popping lets go of each payload as it is handed out: a generator that a slow reader leaves suspended
            # would otherwise keep all of them.
            held = list(store.read(few))[::-1]
            while held:
                row, _ = held[-1]
                if _is_first(store, held[-1][1], row.seq, namespaces):
                    yield held.pop()[1], "" if row.own else row.ns, row.origin
                else:
                    held.pop()
        seq = page[-1].seq
        if seq >= upto:
            return


def _small(rows: list[Row]) -> Iterator[list[Row]]:
    """Yield the rows by at most PIECE_BYTES, or one."""
    few: list[Row] = []
    size = 0
    for row in rows:
        if few and size + row.length > PIECE_BYTES:
            yield few
            few, size = [], 0
        few.append(row)
        size += row.length
    if few:
        yield few


def _is_first(store: Log, payload: bytes, seq: int, namespaces: Collection[str] = ()) -> bool:
    copies = store.index.copies(payload[_ID_AT : _ID_AT + _ID_CHARS].decode(errors="replace"), namespaces)
    return next((row.seq for row in copies), seq) == seq


def _leave_out(store: Log, seqs: range) -> None:
    """Leave lines that the log does not hold out of the index, if it is older than the damage."""
    for seq in seqs:
        if store.index.place(seq) is not None:
            store.index.reader.leave_out(seq)
