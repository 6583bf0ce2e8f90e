"""What a table holds of each line, and the one way from there to the bytes of a payload.

A row has the CRC-32 of its payload, and `PayloadReader` compares it with the bytes whenever they are read: 0.3 us for
550 bytes.  Bytes that do not fit, or cannot be read, are never served.  The row is left out of every answer instead,
what is behind it goes on, and `doubted` asks for a new index, which has an empty row for each damaged line (and right
ones, if not the log but the index was hit).

Rejected: to parse what goes out (2.4 us, and a changed letter passes), to hash it again (12 us), a checksum for each
page of the log (a read of one record then reads 4 KiB).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from ...core.event import event
from ..segments import LineError

log = logging.getLogger("spl.store")

ROW: Final = Struct(">QIIIQQ16sI")
"""Segment, offset in it, bytes before the payload, bytes of it, seq of the facts, clock, start of the id, CRC-32."""
MARK: Final = Struct(">20xQ8x16s4x")
"""The part of a row that sets are compared by."""
HOLE: Final = bytes(ROW.size)
"""The row of a damaged line."""
NO_START: Final = bytes(16)
"""The start of an id, of a line that no comparison shows."""
LEFT_OUT_MAX: Final = 1024
"""Rows that are remembered as left out; more of them are compared with their bytes each time, and say nothing new."""

_GAP_BYTES: Final = 4096  # neighbouring payloads closer than this are read with one pread
_SPAN_BYTES: Final = 1024 * 1024


class Row(NamedTuple):
    """One line as the index knows it; `offset` and `length` are the payload's, `segment` is the segment's first seq.

    `crc` is the CRC-32 of the payload.
    """

    seq: int
    kind: str
    segment: int
    offset: int
    length: int
    ns: str
    origin: str
    voucher: str
    own: bool
    clock: int
    crc: int = 0


class PayloadReader:
    """Reads the payloads of one index's rows.  Any thread may ask."""

    def __init__(self, read: Callable[[int, int, int], bytes]) -> None:
        """`read(segment, offset, size)` gives bytes of the log; raises LineError."""
        self._read = read
        self.left_out: set[int] = set()
        """Seqs of lines that the index has a row for, and that were found damaged when they were read."""
        self.doubted = False
        """Whether the index did not agree with the log, so that it should be built again."""

    def each(self, rows: Sequence[Row]) -> Iterator[tuple[Row, bytes]]:
        """Yield the rows, in their order, with their payloads; without those that are damaged.

        Neighbours share a read of at most 1 MiB.  Raises LineError "overloaded" if there is no descriptor for now.
        """
        start = 0
        while start < len(rows):
            first, end = rows[start], start + 1
            reach = first.offset + first.length
            while end < len(rows) and _joins(first, reach, rows[end]):
                reach = rows[end].offset + rows[end].length
                end += 1
            data = self._bytes(first.segment, first.offset, reach - first.offset)
            for row in rows[start:end]:
                at = row.offset - first.offset
                payload = self.one(row) if data is None else data[at : at + row.length]
                if payload is None:
                    continue
                if _fits(row, payload):
                    yield row, payload
                else:
                    self.leave_out(row.seq)
            start = end

    def one(self, row: Row) -> bytes | None:
        """Return the payload of a row, None if it is damaged; raises as `each` does."""
        payload = self._bytes(row.segment, row.offset, row.length)
        if payload is not None and _fits(row, payload):
            return payload
        self.leave_out(row.seq)
        return None

    def leave_out(self, seq: int) -> None:
        """Leave a line out of every answer from now on, because its bytes are not those that were indexed."""
        self.doubted = True
        if seq not in self.left_out and len(self.left_out) < LEFT_OUT_MAX:
            self.left_out.add(seq)
            log.error(**event("store.damage_found", seq=seq))

    def begin(self) -> None:
        """Forget what was left out, because the rows are other ones now."""
        self.left_out, self.doubted = set(), False

    def _bytes(self, segment: int, offset: int, size: int) -> bytes | None:
        try:
            return self._read(segment, offset, size)
        except LineError as exc:
            if exc.code != "store-damaged":
                raise
            return None


def in_pieces(rows: Iterable[Row], bytes_max: int, rows_max: int) -> Iterator[list[Row]]:
    """Yield the rows by at most so many, and so many bytes of payload, or one."""
    piece: list[Row] = []
    size = 0
    for row in rows:
        if piece and (size + row.length > bytes_max or len(piece) == rows_max):
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += row.length
    if piece:
        yield piece


def _fits(row: Row, payload: bytes) -> bool:
    return crc32(payload) == row.crc and len(payload) == row.length


def _joins(first: Row, reach: int, row: Row) -> bool:
    """Return whether a row is read with the ones before it, which reach from `first` to the offset `reach`."""
    return (
        row.segment == first.segment
        and 0 <= row.offset - reach <= _GAP_BYTES
        and row.offset + row.length - first.offset <= _SPAN_BYTES
    )
