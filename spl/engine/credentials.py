"""What a NATS user is recognised by: an nkey (Ed25519), alone or with the JWT of a .creds file; pure.

The text of a file is read here and its secrets stay in the value, whose repr shows none.  No error quotes the file: the
operator may have named another one by mistake.
"""

import base64
import binascii
import re
from typing import Final

from ..core.errors import SplError
from ..core.keys import SEED_BYTES, SecretKey
from ..core.value import dataclass, field

FILE_BYTES_MAX: Final = 64 * 1024  # a user and its seed take 2 KiB

_SEED: Final = re.compile(r"^(SU[A-Z2-7]{56})\s*$", re.MULTILINE)
_JWT: Final = re.compile(r"^(eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)\s*$", re.MULTILINE)
_PREFIX_USER: Final = 20 << 3


class CredentialsError(SplError):
    """The file holds no credentials of a NATS user."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's key, and its JWT if the server goes by those."""

    key: SecretKey = field(repr=False)
    jwt: str = field(default="", repr=False)

    def answer(self, nonce: str) -> dict[str, str]:
        """Return the members of CONNECT that answer the server's nonce."""
        signed = base64.urlsafe_b64encode(self.key.sign(nonce.encode())).rstrip(b"=").decode()
        if self.jwt:
            return {"jwt": self.jwt, "sig": signed}
        return {"nkey": public_text(self.key.public), "sig": signed}


def read(text: str) -> Credentials:
    """Return the credentials in a .creds file, or in one that holds a user's seed alone.

    Raises CredentialsError "sink-auth".
    """
    seed, jwt = _SEED.search(text), _JWT.search(text)
    if seed is None:
        raise CredentialsError("sink-auth", "the credentials file holds no seed of a user (SU...)")
    return Credentials(SecretKey(_seed_of(seed[1])), jwt[1] if jwt else "")


def public_text(key: bytes) -> str:
    """Return a user's public key as NATS writes it: U..."""
    raw = bytes([_PREFIX_USER]) + key
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()


def _seed_of(text: str) -> bytes:
    raw = base64.b32decode(text + "=" * (-len(text) % 8))
    body, check = raw[:-2], raw[-2:]
    if len(body) != 2 + SEED_BYTES or binascii.crc_hqx(body, 0).to_bytes(2, "little") != check:
        raise CredentialsError("sink-auth", "the seed in the credentials file is damaged: its check sum differs")
    return body[2:]
