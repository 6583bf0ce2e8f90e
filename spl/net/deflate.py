"""The deflate coding for event streams (RFC 9110 §8.4.1.2, RFC 1950, RFC 1951): small window, each piece whole at once.

A piece is compressed and flushed, so that it can be read as soon as it arrives.  Compressing costs time, and pays if
little is sent: as long as the stream stays under RATE_BYTES_S.  Bulk goes as stored blocks, 5 bytes for 64 KiB, and the
compressor's memory is given back; the next compressor begins with an empty window, so it never refers to those blocks.

Memory: 18 KiB in a sender that compresses, nothing in one that stores; 10 KiB in a receiver, whose window is that of
the sender.  A window of 2 KiB finds in small records what one of 32 KiB finds: the record before, which is most like
the next; one of 1 KiB does not.
"""

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Final

from .http1 import WireError

CODING: Final = "deflate"
RATE_BYTES_S: Final = 32 * 1024
BURST_BYTES: Final = 64 * 1024
INFLATED_BYTES_MAX: Final = 4 * 1024 * 1024
"""What one read may become: an honest stream stays far below, a bomb does not."""

_WINDOW_BITS: Final = 11
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
        self._compressor: zlib._Compress | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the coded bytes from which the receiver gets this piece, and all before it."""
        now_s = self._now_s()
        self._budget = min(BURST_BYTES, self._budget + (now_s - self._at_s) * RATE_BYTES_S)
        self._at_s = now_s
        self._adler = zlib.adler32(piece, self._adler)
        head, self._head = self._head, b""
        if self._budget < len(piece):
            self._compressor = None
            return head + _stored(piece)
        self._budget -= len(piece)
        if self._compressor is None:
            self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL)
        return head + self._compressor.compress(piece) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

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
    deflater = Deflater(now_s)
    try:
        async for piece in pieces:
            yield deflater.feed(piece)
        yield deflater.finish()
    finally:
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
