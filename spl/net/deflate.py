"""The deflate coding for event streams (RFC 9110 §8.4.1.2, RFC 1950, RFC 1951): small window, each piece whole at once.

A piece is compressed and flushed, so that it can be read as soon as it arrives.  Compressing costs time, and pays if
little is sent: as long as the stream stays under RATE_BYTES_S.  Bulk goes as stored blocks, 5 bytes for 64 KiB, and the
compressor's memory is given back.  So it is when no piece came for REST_S, as on most streams at most times.  The next
compressor begins with the last piece in its window: the receiver has it there, too, however it was sent.

Memory: 18 KiB in a sender of pieces that come often, otherwise 2 KiB at most; 10 KiB in a receiver, whose window is
that of the sender.  A window of 2 KiB finds in small records what one of 32 KiB finds: the record before, which is most
like the next; one of 1 KiB does not.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Final

from .http1 import WireError

CODING: Final = "deflate"
RATE_BYTES_S: Final = 32 * 1024
BURST_BYTES: Final = 64 * 1024
REST_S: Final = 2.0
"""After so long without a piece a stream rests; less than the time between two heartbeats."""
INFLATED_BYTES_MAX: Final = 4 * 1024 * 1024
"""What one read may become: an honest stream stays far below, a bomb does not."""

_WINDOW_BITS: Final = 11
_WINDOW_BYTES: Final = 1 << _WINDOW_BITS
_MEMORY_LEVEL: Final = 3
_LEVEL: Final = 6
_HEAD: Final = b"\x38\x11"  # RFC 1950 §2.2: deflate with a window of 2 KiB, no dictionary; a multiple of 31
_STORED_MAX: Final = 65535  # RFC 1951 §3.2.4
_PIECE_BYTES: Final = 64 * 1024


class Deflater:
    """Encodes one stream; `now_s` is any steady clock in seconds."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._budget = float(BURST_BYTES)
        self._at_s = now_s()
        self._adler = 1
        self._head = _HEAD
        self._last = b""  # what the receiver's window ends with
        self._compressor: zlib._Compress | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the coded bytes from which the receiver gets this piece, and all before it."""
        now_s = self._now_s()
        passed_s, self._at_s = now_s - self._at_s, now_s
        self._budget = min(BURST_BYTES, self._budget + passed_s * RATE_BYTES_S)
        self._adler = zlib.adler32(piece, self._adler)
        head, self._head = self._head, b""
        last, self._last = self._last, piece[-_WINDOW_BYTES:]
        if self._budget < len(piece):
            self._compressor = None
            return head + _stored(piece)
        self._budget -= len(piece)
        compressor = self._compressor or zlib.compressobj(
            _LEVEL, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL, zdict=last
        )
        self._compressor = compressor if passed_s < REST_S else None
        return head + compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)

    def rest_s(self) -> float:
        """Return the seconds until the stream rests, if no piece comes; 0 if it does, and holds no compressor then."""
        left_s = self._at_s + REST_S - self._now_s() if self._compressor is not None else 0.0
        if left_s <= 0:
            self._compressor = None
        return max(0.0, left_s)

    def finish(self) -> bytes:
        """Return what ends the stream: an empty last block and the checksum."""
        return self._head + b"\x01\x00\x00\xff\xff" + self._adler.to_bytes(4)


class Inflater:
    """Decodes one stream."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(wbits=0)  # as large a window as the stream says, not 32 KiB

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes complete, in pieces of at most 64 KiB.

        Raises WireError "answer-malformed" for what is no deflate, goes on behind its end, or grows beyond
        INFLATED_BYTES_MAX.
        """
        left, is_full = INFLATED_BYTES_MAX, False
        while data or is_full:
            try:
                piece = self._decompressor.decompress(data, _PIECE_BYTES)
            except zlib.error as exc:
                raise WireError("answer-malformed", "the stream is not the deflate that it says") from exc
            data = self._decompressor.unconsumed_tail
            left, is_full = left - len(piece), len(piece) == _PIECE_BYTES
            if self._decompressor.unused_data or left < 0:
                raise WireError("answer-malformed", "the deflate goes on behind its end, or grows without bound")
            if piece:
                yield piece


def accepts(header: str) -> bool:
    """Return whether an Accept-Encoding value offers deflate, by name and not with a weight of zero."""
    for part in header.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == CODING:
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def deflated(pieces: AsyncIterator[bytes], now_s: Callable[[], float]) -> AsyncGenerator[bytes, None]:
    """Yield a stream's pieces coded, one for one, and its end; closing it closes the stream."""
    deflater, loop = Deflater(now_s), asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal timer
        left_s = deflater.rest_s()
        timer = loop.call_later(left_s, look) if left_s else None

    try:
        async for piece in pieces:
            coded = deflater.feed(piece)
            if timer is None:
                look()
            yield coded
        yield deflater.finish()
    finally:
        if timer is not None:
            timer.cancel()
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _stored(piece: bytes) -> bytes:
    """Return the piece as stored blocks (RFC 1951 §3.2.4); each begins and ends on a byte."""
    parts = []
    for start in range(0, len(piece), _STORED_MAX):
        part = piece[start : start + _STORED_MAX]
        size = len(part)
        parts.append(b"\x00" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + part)
    return b"".join(parts)
