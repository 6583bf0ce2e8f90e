"""Cursors: a pair's position in our log, sealed so that only we can read it.

A cursor names the store's epoch, the log's running hash at one place (so that a restored, cloned or re-created log is
noticed) and one lane per (namespace, level, rule), each with its own *arrival* position: a record that arrives late
with an old clock is never skipped.  To others it is opaque text, bound to the pair, of one of a few lengths, so that it
reveals neither the size of the log nor a changed rule.  The consumer stores and returns it unread, at most
`TEXT_CHARS_MAX` characters.

Layout before sealing: version, flags (1: whole), epoch (length, text), run sequence, run (length, text), lane count,
then per lane its 12-byte key, position and count; zeros up to the next size (`_SIZES`).  Integers are big-endian.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..errors import SplError
from ..keys import aead_open, aead_seal
from ..value import dataclass

LANES_MAX: Final = 64
"""One for each namespace that a pair may share (limits.namespaces_per_pair)."""
TEXT_CHARS_MAX: Final = 4096  # sealed and as text, the largest of _SIZES takes 2,800
LANE_KEY_HEX: Final = 24

_VERSION: Final = 1
_SIZES: Final = (192, 384, 768, 2048)
"""Bytes before sealing: room for 4, 10, 24 and 64 lanes, as names of 32 digits leave it; beyond, multiples of 64."""
_PAD_BYTES: Final = 64
_NAME_BYTES_MAX: Final = 128
"""Of the epoch and of the running hash, which are hex digits."""
_SEQ: Final = struct.Struct(">Q")
_LANE: Final = struct.Struct(">12sQQ")
_NUMBER_MAX: Final = 2**63 - 1  # eight bytes of a lane hold it


class CursorError(SplError):
    """The text is no cursor that we sealed for this pair, or its log is not ours any more."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Progress in one lane: arrival sequence reached, and how many records of the pair's scope lie up to it."""

    key: str
    position: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place of one pair in one log: running hash `run` after line `run_seq` of the store's `epoch`, and lanes.

    `whole`: a reading from the start that leaves out nothing, not even what the pair itself delivered.
    """

    epoch: str
    run_seq: int
    run: str
    lanes: tuple[Lane, ...] = ()
    whole: bool = False

    def by_key(self) -> Mapping[str, Lane]:
        """Return the lanes by their keys."""
        return MappingProxyType({lane.key: lane for lane in self.lanes})


def lane_key(namespace: str, level: int = 0, rule: str = "") -> str:
    """Return the key of a lane: 24 hex digits over namespace, hash level and rule (the digest of a pair's filter)."""
    return hashlib.sha256(f"{namespace}\0{level}\0{rule}".encode()).hexdigest()[:LANE_KEY_HEX]


def seal(cursor: Cursor, key: bytes, nonce: bytes, pair_id: str) -> str:
    """Return the cursor as opaque text for one pair; `nonce` is 24 fresh random bytes.  7 µs and a little."""
    sealed = aead_seal(key, nonce, _pack(cursor), pair_id.encode())
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def open_(text: str, key: bytes, pair_id: str) -> Cursor:
    """Return the cursor that `seal` made for this pair under this key; raise CursorError "cursor-invalid"."""
    if len(text) > TEXT_CHARS_MAX:
        raise CursorError("cursor-invalid", f"a cursor has at most {TEXT_CHARS_MAX} characters")
    try:
        sealed = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise CursorError("cursor-invalid", "the cursor is not URL-safe base64") from exc
    packed = aead_open(key, sealed, pair_id.encode())
    if packed is None:
        raise CursorError("cursor-invalid", "the cursor was not sealed by this instance for this pair")
    try:
        return _unpack(packed)
    except (struct.error, IndexError, UnicodeDecodeError) as exc:
        raise CursorError("cursor-invalid", "the cursor was sealed by another version") from exc


def _pack(cursor: Cursor) -> bytes:
    assert len(cursor.lanes) <= LANES_MAX
    parts = [
        bytes((_VERSION, cursor.whole)),
        _name(cursor.epoch),
        _SEQ.pack(cursor.run_seq),
        _name(cursor.run),
        bytes((len(cursor.lanes),)),
    ]
    parts += [
        _LANE.pack(bytes.fromhex(lane.key), lane.position, lane.count)
        for lane in sorted(cursor.lanes, key=lambda lane: lane.key)
    ]
    packed = b"".join(parts)
    size = next((size for size in _SIZES if size >= len(packed)), len(packed) + -len(packed) % _PAD_BYTES)
    return packed.ljust(size, b"\0")


def _unpack(packed: bytes) -> Cursor:
    if packed[0] != _VERSION:
        raise CursorError("cursor-invalid", f"the cursor has version {packed[0]}, we speak {_VERSION}")
    epoch, at = _named(packed, 2)
    (run_seq,) = _SEQ.unpack_from(packed, at)
    run, at = _named(packed, at + _SEQ.size)
    lanes = []
    for index in range(packed[at]):
        raw, position, count = _LANE.unpack_from(packed, at + 1 + index * _LANE.size)
        lanes.append(Lane(raw.hex(), min(position, _NUMBER_MAX), min(count, _NUMBER_MAX)))
    return Cursor(epoch, run_seq, run, tuple(lanes), packed[1] == 1)


def _name(text: str) -> bytes:
    data = text.encode()
    assert len(data) <= _NAME_BYTES_MAX
    return bytes((len(data),)) + data


def _named(packed: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + packed[at]
    return packed[at + 1 : end].decode(), end
