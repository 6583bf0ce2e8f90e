"""One signature for a whole commit: Merkle trees of RFC 9162 §2.1.

Leaves and nodes hash under distinct prefixes.  The signature covers `syncropel-batch-v1` NUL size (decimal) NUL root;
each record carries its inclusion path (§2.1.3), whose length is exactly the RFC's.  Batches hold 2..64 messages; one
record alone is signed plainly.
"""

import hashlib
from binascii import b2a_base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ..errors import SplError
from ..keys import KeyFault, unb64
from ..value import dataclass

SIZE_MIN: Final = 2
SIZE_MAX: Final = 64
"""Part of the form: a path has at most 6 hashes, and a larger tree saves little more per record."""
_HASH_BYTES: Final = 32
_NODES_KEPT: Final = 512
"""Hashes whose text is remembered: of the 384 in the paths of a full batch, 126 are different."""


class BatchError(SplError):
    """The batch member of a signature is not of the contract's form."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Place of one message in its tree: index < size, and the sibling hashes from leaf to root."""

    index: int
    size: int
    path: tuple[bytes, ...]

    def encoded(self) -> bytes:
        """Return the canonical JSON of {index, size, path: [base64]}."""
        return b'{"index":%d,"path":["%b"],"size":%d}' % (self.index, b'","'.join(map(_text_of, self.path)), self.size)

    @staticmethod
    def from_json(value: object) -> "Batch":
        """Return the batch of decoded JSON; raise BatchError "bad-field" unless its path has the RFC's length."""
        if not isinstance(value, dict) or value.keys() != {"index", "size", "path"}:
            raise BatchError("bad-field", "sig.batch has the members index, size, path")
        index, size, path = value["index"], value["size"], value["path"]
        if type(size) is not int or not SIZE_MIN <= size <= SIZE_MAX or type(index) is not int or not 0 <= index < size:
            raise BatchError("bad-field", f"sig.batch: size is {SIZE_MIN}..{SIZE_MAX}, index below it")
        if not isinstance(path, list) or len(path) != _path_length(index, size):
            raise BatchError("bad-field", "sig.batch.path has not the length that index and size give")
        if not {str}.issuperset(map(type, path)):
            raise BatchError("bad-field", "sig.batch.path holds base64 hashes")
        return Batch(index, size, tuple(map(_node_of, path)))


def tree(messages: Sequence[bytes]) -> tuple[bytes, list[Batch]]:
    """Return the root over 2..64 messages and each one's place in the tree."""
    size = len(messages)
    paths: list[list[bytes]] = [[] for _ in messages]
    level, depth = [_leaf(message) for message in messages], 0
    while len(level) > 1:
        # A node without a sibling moves up as it is: that gives the tree of the RFC's splits, from the leaves on.
        for index, path in enumerate(paths):
            beside = (index >> depth) ^ 1
            if beside < len(level):
                path.append(level[beside])
        nodes = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level, depth = nodes + level[2 * len(nodes) :], depth + 1
    return level[0], [Batch(index, size, tuple(path)) for index, path in enumerate(paths)]


def root_of(message: bytes, place: Batch) -> bytes:
    """Return the root that the message and its path lead to (RFC 9162 §2.1.3.2)."""
    node, index, last = _leaf(message), place.index, place.size - 1
    for sibling in place.path:
        if index & 1 or index == last:
            node = _node(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = _node(node, sibling)
        index, last = index >> 1, last >> 1
    return node


def signed_text(size: int, root: bytes) -> bytes:
    """Return the bytes that a batch signature signs."""
    return b"syncropel-batch-v1\0" + str(size).encode() + b"\0" + root


@lru_cache(_NODES_KEPT)
def _text_of(node: bytes) -> bytes:
    return b2a_base64(node, newline=False)


@lru_cache(_NODES_KEPT)
def _node_of(text: str) -> bytes:
    try:
        node = unb64(text, _HASH_BYTES)
    except KeyFault as exc:
        raise BatchError("bad-field", "sig.batch.path holds base64 hashes") from exc
    if len(node) != _HASH_BYTES:
        raise BatchError("bad-field", f"sig.batch.path holds hashes of {_HASH_BYTES} bytes")
    return node


@lru_cache(SIZE_MAX * SIZE_MAX)
def _path_length(index: int, size: int) -> int:
    """Return how many siblings lie between a leaf and the root of a tree of `size` leaves."""
    length, last = 0, size - 1
    while last:
        if index & 1 or index < last:
            length += 1
        index, last = index >> 1, last >> 1
    return length


def _leaf(message: bytes) -> bytes:
    return hashlib.sha256(b"\0" + message).digest()


@lru_cache(_NODES_KEPT)
def _node(left: bytes, right: bytes) -> bytes:
    """Return the hash of two nodes: of the 384 that the paths of a full batch lead through, 63 are different."""
    return hashlib.sha256(b"\1" + left + right).digest()
