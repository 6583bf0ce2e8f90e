"""Keys of NATS users as their tool writes them, so that no test needs it."""

import base64
import binascii

SEED_OF_USER = bytes([18 << 3 | 20 << 3 >> 5, (20 << 3 & 31) << 3])


def encoded(raw: bytes) -> str:
    """Return the text of a key behind its prefix."""
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()


def seed_text(seed: bytes) -> str:
    """Return a user's seed as NATS writes it: SU..."""
    return encoded(SEED_OF_USER + seed)
