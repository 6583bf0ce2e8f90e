"""Text forms of the protocol, written from its description alone: canonical JSON, base58, points in time."""

import base64
import hashlib
import json
import time
from datetime import UTC, datetime
from typing import Any, Final

ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
DAY_MS: Final = 86_400_000


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value without floats: keys sorted, no whitespace, everything literal."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def digest(data: bytes) -> str:
    """Return the lower-case hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes:
    """Return the bytes of base64 text."""
    return base64.b64decode(text, validate=True)


def multibase(key: bytes, codec: bytes = b"\xed\x01") -> str:
    """Return a public key as a Multikey: "z" and base58btc of the codec (Ed25519 unless told otherwise) and the key."""
    number, found = int.from_bytes(codec + key), ""
    while number:
        number, digit = divmod(number, 58)
        found = ALPHABET[digit] + found
    return "z" + found


def now_ms() -> int:
    """Return the present in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def at(unix_ms: int) -> str:
    """Return a time as RFC 3339 UTC text with milliseconds."""
    moment = datetime.fromtimestamp(unix_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"


def ms_of(text: str) -> int:
    """Return the Unix milliseconds of such text."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)
