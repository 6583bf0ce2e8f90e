"""Instance DIDs, keys as text and as words, and the chain of key rotations.

`did:sync:instance:<label>-<24 hex>`: the hex is the start of SHA-256 over `syncropel-did-v1` NUL label NUL first
public key, so the DID certifies its label and first key without a directory.  Rotations keep the DID: each statement
is signed by the key it retires, and the chain leads from the first key to the present one.

Keys in JSON are multibase Multikeys (W3C Controlled Identifiers 1.0): "z" + base58btc of a two-byte multicodec and
the 32 key bytes.
"""

import hashlib
import re
from functools import lru_cache
from typing import Final

from .. import canon, when
from ..errors import SplError
from ..keys import KEY_BYTES, KeyFault, SecretKey, b64, digest, unb64, verify
from ..limits import Limits
from ..value import Json, dataclass
from .words import WORDS

PREFIX: Final = "did:sync:instance:"
REASONS: Final = ("retired", "compromised")
WORDS_COUNT: Final = 6

_LABEL: Final = re.compile(r"[a-z0-9-]{1,32}\Z")
_DID: Final = re.compile(r"did:sync:instance:([a-z0-9-]{1,32})-([0-9a-f]{24})\Z")
_CODEC: Final = {"ed25519": b"\xed\x01", "x25519": b"\xec\x01"}
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGIT: Final = {char: value for value, char in enumerate(_ALPHABET)}
_WORD_BITS: Final = 11


class DidError(SplError):
    """A DID, key text or key chain that does not hold."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """One statement: `old`, which signs it, hands over to `new`; index counts from 1."""

    index: int
    old: bytes
    new: bytes
    at_ms: int
    reason: str
    signature: bytes

    def to_json(self) -> Json:
        """Return {index, from, to, at, reason, signature}."""
        return {
            "index": self.index,
            "from": multibase(self.old),
            "to": multibase(self.new),
            "at": when.text_of(self.at_ms),
            "reason": self.reason,
            "signature": b64(self.signature),
        }


@dataclass(frozen=True, slots=True)
class Chain:
    """A verified key chain: the DID, its first key, and the rotations since."""

    did: str
    first: bytes
    rotations: tuple[Rotation, ...] = ()

    @property
    def present(self) -> bytes:
        """The key that signs now."""
        return self.rotations[-1].new if self.rotations else self.first

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys, oldest first."""
        return (self.first, *(step.new for step in self.rotations))

    def to_json(self) -> Json:
        """Return {did, first_key, rotations}; `chain_from_json` reads and verifies it."""
        return {
            "did": self.did,
            "first_key": multibase(self.first),
            "rotations": [step.to_json() for step in self.rotations],
        }


def did_of(label: str, first_key: bytes) -> str:
    """Return the DID that certifies a label and a first public key."""
    return f"{PREFIX}{check_label(label)}-{_fingerprint(label, first_key)}"


def check_label(label: str) -> str:
    """Return the label, 1..32 of [a-z0-9-]; raise DidError "bad-field"."""
    if not _LABEL.match(label):
        raise DidError("bad-field", f"label {label[:40]!r} is not 1 to 32 of a-z, 0-9 and -")
    return label


def is_instance_did(text: object) -> bool:
    """Return whether the text has the form of an instance DID."""
    return isinstance(text, str) and _DID.match(text) is not None


def label_of(did: str) -> str:
    """Return the label in an instance DID; raise DidError "did-invalid"."""
    found = _DID.match(did)
    if found is None:
        raise DidError("did-invalid", f"{did[:80]!r} is not did:sync:instance:<label>-<24 hex>")
    return found[1]


def short_of(did: str) -> str:
    """Return the DID without its `-<24 hex>`, as people type it."""
    return f"{PREFIX}{label_of(did)}"


def certifies(did: str, first_key: bytes) -> bool:
    """Return whether the DID was made from this first key."""
    found = _DID.match(did)
    return found is not None and _fingerprint(found[1], first_key) == found[2]


@lru_cache(maxsize=256)
def multibase(key: bytes, kind: str = "ed25519") -> str:
    """Return the Multikey text of a 32-byte public key of kind "ed25519" or "x25519"."""
    data = _CODEC[kind] + key
    number, text = int.from_bytes(data), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "z" + text


def key_of(text: object, kind: str = "ed25519") -> bytes:
    """Return the 32 key bytes of Multikey text; raise DidError "did-invalid" for any other text."""
    if not isinstance(text, str) or not text.startswith("z") or len(text) > 64:
        raise DidError("did-invalid", "a public key is multibase text that begins with z")
    number = 0
    for char in text[1:]:
        if char not in _DIGIT:
            raise DidError("did-invalid", "a public key is base58btc text")
        number = number * 58 + _DIGIT[char]
    data = number.to_bytes((number.bit_length() + 7) // 8)
    if len(data) != KEY_BYTES + 2 or multibase(data[2:], kind) != text:
        raise DidError("did-invalid", f"not an {kind} public key")
    return data[2:]


def words(key: bytes) -> str:
    """Return six words that name 66 bits of the key's digest, for people to compare by voice."""
    number = int.from_bytes(hashlib.sha256(b"syncropel-words-v1\0" + key).digest()) >> (256 - WORDS_COUNT * _WORD_BITS)
    picks = ((number >> _WORD_BITS * place) & 2047 for place in reversed(range(WORDS_COUNT)))
    every = WORDS.split()
    return " ".join(every[pick] for pick in picks)


def rotate(chain: Chain, key: SecretKey, new_public: bytes, reason: str, at_ms: int) -> Chain:
    """Return the chain with one more statement, signed by its present key."""
    if key.public != chain.present or reason not in REASONS:
        raise DidError("chain-broken", "only the present key can hand over, as retired or compromised")
    index = len(chain.rotations) + 1
    bare = Rotation(index, chain.present, new_public, at_ms, reason, b"")
    signed = Rotation(index, chain.present, new_public, at_ms, reason, key.sign(_statement(chain.did, bare)))
    return Chain(chain.did, chain.first, (*chain.rotations, signed))


def chain_of(did: str, public_key: bytes, rotations: object, limits: Limits) -> Chain:
    """Return the verified chain that ends at `public_key`, from the JSON list of its rotations.

    Raises DidError "did-invalid" if the DID does not certify the first key, "chain-broken" if a statement does
    not hold, is out of order, or the chain ends elsewhere.
    """
    if not isinstance(rotations, list) or len(rotations) > limits.chain_links:
        raise DidError("chain-broken", f"rotations is a list of at most {limits.chain_links} statements")
    steps = tuple(_step(value) for value in rotations)
    first = steps[0].old if steps else public_key
    if not certifies(did, first):
        raise DidError("did-invalid", f"{did[:80]} does not certify this key")
    present, at_ms, seen = first, 0, {first}
    for index, step in enumerate(steps, 1):
        if step.index != index or step.old != present or step.at_ms < at_ms or step.new in seen:
            raise DidError("chain-broken", f"rotation {index} does not follow the one before")
        if not verify(step.old, _statement(did, step), step.signature):
            raise DidError("chain-broken", f"rotation {index} is not signed by the key it retires")
        present, at_ms = step.new, step.at_ms
        seen.add(present)
    if present != public_key:
        raise DidError("chain-broken", "the chain ends at another key than the present one")
    return Chain(did, first, steps)


def chain_from_json(value: object, limits: Limits) -> Chain:
    """Return the verified chain of what `Chain.to_json` returned; raise DidError."""
    if not isinstance(value, dict) or value.keys() != {"did", "first_key", "rotations"}:
        raise DidError("chain-broken", "a chain has the members did, first_key, rotations")
    rotations, did = value["rotations"], value["did"]
    if not isinstance(did, str) or not isinstance(rotations, list):
        raise DidError("chain-broken", "a chain has a DID and a list of rotations")
    last = rotations[-1] if rotations else {"to": value["first_key"]}
    if not isinstance(last, dict):
        raise DidError("chain-broken", "a rotation is a JSON object")
    chain = chain_of(did, key_of(last.get("to")), rotations, limits)
    if multibase(chain.first) != value["first_key"]:
        raise DidError("chain-broken", "first_key is not the first key of the chain")
    return chain


def _fingerprint(label: str, first_key: bytes) -> str:
    return digest(b"syncropel-did-v1\0" + label.encode() + b"\0" + first_key)[:24]


def _statement(did: str, step: Rotation) -> bytes:
    fields = {name: value for name, value in step.to_json().items() if name != "signature"}
    return b"syncropel-rotation-v1\0" + canon.encode({**fields, "did": did})


def _step(value: object) -> Rotation:
    names = {"index", "from", "to", "at", "reason", "signature"}
    if not isinstance(value, dict) or value.keys() != names:
        raise DidError("chain-broken", f"a rotation has the members {' '.join(sorted(names))}")
    if type(value["index"]) is not int or value["reason"] not in REASONS:
        raise DidError("chain-broken", "a rotation has a number and a known reason")
    try:
        signature = unb64(value["signature"], 64)
    except KeyFault as exc:
        raise DidError("chain-broken", "a rotation's signature is base64") from exc
    return Rotation(
        value["index"], key_of(value["from"]), key_of(value["to"]), when.ms_of(value["at"]), value["reason"], signature
    )
