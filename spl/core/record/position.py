"""Positions in the log as a token sees them: plain sequences, or opaque numbers for a token bound to namespaces.

A sequence numbers the whole log, so its gaps would tell a tenant how much the others write.  A bound token is shown
numbers under a permutation of its own: a Feistel network of four rounds over 52 bits, with keyed BLAKE2b (RFC 7693) as
the round function, which makes it a strong pseudorandom permutation (Luby and Rackoff 1988).  Such a number is still an
integer that JSON carries exactly.  It has no order: 0 is the begin, and the newest one that a client saw is its place.

Below each sequence stand 12 zero bits, by which a number that was never shown is told from one that was.

Rejected: sequences per namespace, which a token of two namespaces could not have one order of; sealed texts, which
clients that keep an integer could not hold.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from ..errors import SplError
from ..value import dataclass, field

KEY_BYTES: Final = 32
SHOWN_MAX: Final = 2**52 - 1  # JSON numbers are exact up to 2**53

_HALF_BITS: Final = 26
_HALF: Final = 2**_HALF_BITS - 1
_HALF_BYTES: Final = 4
_CHECK_BITS: Final = 12
_SEQ_MAX: Final = 2**40 - 1
"""A million million lines: three years of ten thousand a second."""
_ROUNDS: Final = range(4)
_PERSON: Final = b"spl-positions"


class PositionError(SplError):
    """The number is no position that tokens of these namespaces are shown; code position-unknown."""


@dataclass(frozen=True, slots=True)
class Positions:
    """How sequences are shown and read; with no key as they are."""

    key: bytes = field(default=b"", repr=False)

    def shown(self, seq: int) -> int:
        """Return the number that stands for a sequence; 0 stays 0."""
        if not self.key or not seq:
            return seq
        assert 0 < seq <= _SEQ_MAX
        # 0 means the begin, so the sequence that it would stand for takes the number that 0 itself leaves free.
        return self._mixed(seq << _CHECK_BITS) or self._mixed(0)

    def seq_of(self, number: int) -> int:
        """Return the sequence that a number stands for; raise PositionError for a number that was never shown."""
        if not self.key or not number:
            return number
        if 0 < number <= SHOWN_MAX:
            found = self._unmixed(number) or self._unmixed(0)
            if not found & (1 << _CHECK_BITS) - 1:
                return found >> _CHECK_BITS
        raise PositionError("position-unknown")

    def _mixed(self, value: int) -> int:
        left, right = value >> _HALF_BITS, value & _HALF
        for number in _ROUNDS:
            left, right = right, left ^ self._round(number, right)
        return left << _HALF_BITS | right

    def _unmixed(self, value: int) -> int:
        left, right = value >> _HALF_BITS, value & _HALF
        for number in reversed(_ROUNDS):
            left, right = right ^ self._round(number, left), left
        return left << _HALF_BITS | right

    def _round(self, number: int, half: int) -> int:
        text = bytes((number,)) + half.to_bytes(_HALF_BYTES, "big")
        return int.from_bytes(hashlib.blake2b(text, digest_size=_HALF_BYTES, key=self.key).digest(), "big") & _HALF


PLAIN: Final = Positions()
"""Those of a principal that may read the whole log."""


def positions_of(secret: bytes, namespaces: Iterable[str]) -> Positions:
    """Return those of all tokens bound to exactly these namespaces; `secret` are 32 bytes that no client knows."""
    assert len(secret) == KEY_BYTES
    text = "\0".join(sorted(set(namespaces))).encode()
    return Positions(hashlib.blake2b(text, digest_size=KEY_BYTES, key=secret, person=_PERSON).digest())
