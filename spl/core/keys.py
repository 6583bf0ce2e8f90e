"""Cryptography of the product, and the only file that imports nacl.

Ed25519 signatures (RFC 8032), X25519 sealed boxes (libsodium's construction, with the ephemeral key passed in so
that equal inputs give equal outputs), XChaCha20-Poly1305 for cursors.  Keys and seeds are raw bytes; each holder
masks them in its repr.

The functions of libsodium are called by PyNaCl's own table of them.  `nacl.bindings` in front of it takes 0.6 MiB of
every daemon, most of it for functions that are never called.  The table checks no length, so each caller here does.
"""

import binascii
import hashlib
import hmac
from typing import Any, Final

from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # an extension module without types

from .errors import SplError

SEED_BYTES: Final = 32
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
AEAD_NONCE_BYTES: Final = 24
_AEAD_BYTES: Final = 16
"""By which a ciphertext of the AEAD is longer than its text."""
_SECRET_BYTES: Final = 64
"""A seed and its public key, as libsodium signs with them."""
_BOX_ZEROS: Final = bytes(32)
"""Before a text that is boxed; 16 of them are then before the box."""
_SEALED_ZEROS: Final = bytes(16)

if lib.sodium_init() < 0:  # 1 means that it was called before
    raise RuntimeError("libsodium cannot be used on this machine")


class KeyFault(SplError):
    """A key, signature or sealed text of the wrong form."""


class SecretKey:
    """An Ed25519 key pair; its repr shows the public half only."""

    __slots__ = ("_secret", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        public, secret = ffi.new("unsigned char[]", KEY_BYTES), ffi.new("unsigned char[]", _SECRET_BYTES)
        _must(len(seed) == SEED_BYTES and lib.crypto_sign_seed_keypair(public, secret, seed) == 0)
        self.public, self._secret = _bytes_of(public), _bytes_of(secret)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of the message; 21 µs."""
        signed, size = ffi.new("unsigned char[]", SIGNATURE_BYTES + len(message)), ffi.new("unsigned long long *")
        _must(lib.crypto_sign(signed, size, message, len(message), self._secret) == 0)
        return _bytes_of(signed)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SecretKey(public={self.public.hex()[:8]}…)"


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether the signature of the message is the key's; 55 µs, releases the GIL.  No bytes make it raise."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    signed, size = signature + message, ffi.new("unsigned long long *")
    opened = ffi.new("unsigned char[]", len(signed))
    return bool(lib.crypto_sign_open(opened, size, signed, len(signed), public) == 0)


def box_public(secret: bytes) -> bytes:
    """Return the X25519 public key of a 32-byte secret."""
    public = ffi.new("unsigned char[]", KEY_BYTES)
    _must(len(secret) == KEY_BYTES and lib.crypto_scalarmult_base(public, secret) == 0)
    return _bytes_of(public)


def seal(public: bytes, text: bytes, ephemeral: bytes) -> bytes:
    """Return the text sealed to an X25519 key; `ephemeral` is 32 fresh random bytes, used once.

    Layout of libsodium's crypto_box_seal: ephemeral public key, then the box under nonce BLAKE2b-192(epk, pk).
    """
    here, padded = box_public(ephemeral), _BOX_ZEROS + text
    sealed = ffi.new("unsigned char[]", len(padded))
    is_key = len(public) == KEY_BYTES
    if not is_key or lib.crypto_box(sealed, padded, len(padded), _seal_nonce(here, public), public, ephemeral):
        raise KeyFault("sealed-token", "the seal key is not an X25519 key")
    return here + _bytes_of(sealed)[len(_SEALED_ZEROS) :]


def unseal(secret: bytes, sealed: bytes) -> bytes:
    """Return the text of a sealed box; raise KeyFault "sealed-token" if it does not open under this secret."""
    there, padded = sealed[:KEY_BYTES], _SEALED_ZEROS + sealed[KEY_BYTES:]
    text, nonce = ffi.new("unsigned char[]", len(padded)), _seal_nonce(there, box_public(secret))
    if len(there) != KEY_BYTES or lib.crypto_box_open(text, padded, len(padded), nonce, there, secret):
        raise KeyFault("sealed-token", "the sealed text does not open under any of our seal keys")
    return _bytes_of(text)[len(_BOX_ZEROS) :]


def aead_seal(key: bytes, nonce: bytes, text: bytes, bound: bytes) -> bytes:
    """Return nonce and XChaCha20-Poly1305 ciphertext; `bound` is authenticated with it.  7 µs."""
    sealed, size = ffi.new("unsigned char[]", len(text) + _AEAD_BYTES), ffi.new("unsigned long long *")
    _must(len(key) == KEY_BYTES and len(nonce) == AEAD_NONCE_BYTES)
    encrypt = lib.crypto_aead_xchacha20poly1305_ietf_encrypt
    _must(encrypt(sealed, size, text, len(text), bound, len(bound), ffi.NULL, nonce, key) == 0)
    return nonce + _bytes_of(sealed)


def aead_open(key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """Return the text, or None when key, bound text or ciphertext differ."""
    nonce, body = sealed[:AEAD_NONCE_BYTES], sealed[AEAD_NONCE_BYTES:]
    if len(key) != KEY_BYTES or len(body) < _AEAD_BYTES:
        return None
    text, size = ffi.new("unsigned char[]", len(body) - _AEAD_BYTES), ffi.new("unsigned long long *")
    decrypt = lib.crypto_aead_xchacha20poly1305_ietf_decrypt
    failed = decrypt(text, size, ffi.NULL, body, len(body), bound, len(bound), nonce, key)
    return None if failed else _bytes_of(text)


def digest(text: bytes) -> str:
    """Return the lower-case hex SHA-256."""
    return hashlib.sha256(text).hexdigest()


def same(a: str, b: str) -> bool:
    """Compare two secrets' texts in constant time."""
    return hmac.compare_digest(a.encode(), b.encode())


def b64(data: bytes) -> str:
    """Return standard base64 with padding, as signatures and sealed texts travel."""
    return binascii.b2a_base64(data, newline=False).decode()


def unb64(text: object, bytes_max: int = 16_384) -> bytes:
    """Return the bytes of strict base64 text; raise KeyFault "message-malformed"."""
    if not isinstance(text, str) or len(text) > bytes_max * 2:
        raise KeyFault("message-malformed", "base64 text is missing or too long")
    try:
        raw = text.encode("ascii")
        data = binascii.a2b_base64(raw, strict_mode=True)
    except (binascii.Error, ValueError) as exc:
        raise KeyFault("message-malformed", "not base64") from exc
    # Seven of these stand in a batched record, so the plain functions: 0.3 µs instead of 1.5.
    if binascii.b2a_base64(data, newline=False) != raw:
        raise KeyFault("message-malformed", "not base64 in its one canonical form")
    return data


def _must(done: bool) -> None:
    """Raise if a key of our own has another length, or libsodium failed."""
    if not done:
        raise ValueError("a key or nonce has the wrong length")


def _bytes_of(made: Any) -> bytes:
    """Return a copy of what libsodium wrote."""
    copy: bytes = ffi.buffer(made)[:]
    return copy


def _seal_nonce(ephemeral: bytes, public: bytes) -> bytes:
    return hashlib.blake2b(ephemeral + public, digest_size=24).digest()
