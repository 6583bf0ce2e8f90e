"""An identity of the adversary: keys, a DID, a chain of rotations that it may also forge, sealed boxes."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.signing import SigningKey

from tests.attack.adversary.text import ALPHABET, at, b64, canonical, digest, multibase, now_ms, unb64

X25519: Final = b"\xec\x01"
LATER_MS: Final = 1000
"""Between two rotations made at once."""


def new_key() -> SigningKey:
    """Return a fresh Ed25519 key."""
    return SigningKey.generate()


def public_of(key: SigningKey) -> bytes:
    """Return the 32 bytes of the public half."""
    return bytes(key.verify_key)


def did_of(label: str, first: SigningKey) -> str:
    """Return the DID that certifies a label and a first key."""
    text = b"syncropel-did-v1\0" + label.encode() + b"\0" + public_of(first)
    return f"did:sync:instance:{label}-{digest(text)[:24]}"


def statement(
    did: str, index: int, old: SigningKey, new: SigningKey, reason: str, at_ms: int, signer: SigningKey | None = None
) -> dict[str, Any]:
    """Return one rotation as JSON, signed by the key that it retires unless another `signer` is named."""
    fields = {
        "index": index, "from": multibase(public_of(old)), "to": multibase(public_of(new)), "at": at(at_ms),
        "reason": reason,
    }  # fmt: skip
    text = b"syncropel-rotation-v1\0" + canonical({**fields, "did": did})
    return {**fields, "signature": b64((signer or old).sign(text).signature)}


@dataclass
class Identity:
    """A DID with its keys, oldest first, and the statements that lead from one to the next."""

    label: str
    keys: list[SigningKey]
    rotations: list[dict[str, Any]] = field(default_factory=list)
    seal: PrivateKey = field(default_factory=PrivateKey.generate, repr=False)

    @property
    def did(self) -> str:
        """The DID, made of label and first key alone."""
        return did_of(self.label, self.keys[0])

    @property
    def key(self) -> SigningKey:
        """The present key."""
        return self.keys[-1]

    @property
    def seal_public(self) -> str:
        """The X25519 key to which tokens are sealed, as text."""
        return multibase(bytes(self.seal.public_key), X25519)

    def chain(self) -> dict[str, Any]:
        """Return the chain as it travels."""
        first = multibase(public_of(self.keys[0]))
        return {"did": self.did, "first_key": first, "rotations": list(self.rotations)}

    def rotate(self, reason: str = "retired", at_ms: int | None = None, new: SigningKey | None = None) -> "Identity":
        """Add a rotation, to a fresh key unless one is named, and return the identity."""
        new, index = new or new_key(), len(self.rotations) + 1
        made_ms = at_ms if at_ms is not None else now_ms() - LATER_MS * 100 + index * LATER_MS
        self.rotations.append(statement(self.did, index, self.key, new, reason, made_ms))
        self.keys.append(new)
        return self

    def stolen(self, count: int = 1) -> "Identity":
        """Return what a thief of the first `count` keys can be: the same DID, knowing no later key."""
        return Identity(self.label, list(self.keys[:count]), list(self.rotations[: count - 1]))

    def retold(self, reasons: Sequence[str], at_ms: int | None = None) -> "Identity":
        """Return the same keys with statements that give other reasons; each is signed by the key that it retires."""
        told = Identity(self.label, [self.keys[0]], seal=self.seal)
        for reason, new in zip(reasons, self.keys[1:], strict=True):
            told.rotate(reason, at_ms, new)
        return told

    def open(self, sealed: str) -> bytes:
        """Return the text of a box that was sealed to this identity."""
        return SealedBox(self.seal).decrypt(unb64(sealed))


def born(label: str) -> Identity:
    """Return a new identity of one key."""
    return Identity(label, [new_key()])


def seal_to(public: str, value: dict[str, Any]) -> str:
    """Return base64 of a JSON value sealed to an X25519 key in its text form."""
    return b64(SealedBox(PublicKey(unbase58(public)[2:])).encrypt(canonical(value)))


def unbase58(text: str) -> bytes:
    """Return the bytes of multibase text: the codec and the key."""
    number = 0
    for char in text[1:]:
        number = number * 58 + ALPHABET.index(char)
    return number.to_bytes((number.bit_length() + 7) // 8)


def secret_hex(count: int) -> str:
    """Return fresh random bytes as hex."""
    return secrets.token_hex(count)
