"""The home's keys and secrets: identity, bearer tokens of peers, the cursor key.

`<home>/keys/identity.json` holds the present Ed25519 seed, the chain and the X25519 seal secrets; `<home>/secrets/`
one small file a secret, and the nonces seen (`nonces.py`).  Files are 0600, folders 0700.  What a method wrote is
durable, content and name, when it returns.  Nothing here ever shows a secret in a repr, an error or a log.

A seed that a rotation retired is not kept: a thief who finds it later could sign in our name.  Only the file of another
DID stays beside a new one, because with it that DID would be gone for good.

An identity that came without its log may take back for a week what its retired keys signed (`regains_ms`); after that
only the operator's word does it, or the thief of such a key could write in our name for ever.
"""

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..core import canon, when
from ..core.errors import SplError
from ..core.identity.did import Chain, DidError, chain_of, check_label, did_of, label_of, multibase, rotate
from ..core.identity.pins import grown
from ..core.keys import KEY_BYTES, SEED_BYTES, KeyFault, SecretKey, b64, box_public, digest, unb64
from ..core.limits import Limits
from ..core.value import dataclass, field
from .disk import TEMP_SUFFIX, Disk, unusable
from .nonces import NonceMemory

FORMAT: Final = 1
IDENTITY_BYTES_MAX: Final = 256 * 1024  # hundreds of rotations
SECRET_BYTES_MAX: Final = 64 * 1024  # the longest is a manifest that waits
NONCES_NAME: Final = "nonces.jsonl"
STRANGERS_NAME: Final = "nonces-strangers.jsonl"
OLD_IDENTITIES: Final = "identity-"
"""Begins the names of the files of DIDs that `generate` or `install` replaced."""
CURSOR_KEY_NAME: Final = "cursor-key"
EXPORTED_NAME: Final = "identity-exported"
REGAINS_NAME: Final = "identity-regains"
REGAIN_MS: Final = 7 * 86_400_000
"""How long after an import, or with a new log, peers give back what our retired keys signed."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z")
_MEMBERS: Final = frozenset({"format", "did", "label", "created_at", "seed", "rotations", "seal_secrets"})


class VaultError(SplError):
    """Keys or secrets that cannot be used.

    Codes: identity-damaged, identity-missing, identity-exists, store-newer, bad-field (a secret's name); DiskError
    "home-unusable" when the disk refuses.
    """


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this instance is.  `seal_secrets` are X25519, newest first, one a key: older ones open what came."""

    did: str
    label: str
    chain: Chain
    key: SecretKey
    seal_secrets: tuple[bytes, ...] = field(repr=False)
    created_at_ms: int

    @property
    def seal_key(self) -> bytes:
        """The public X25519 key that peers seal to now."""
        return box_public(self.seal_secrets[0])

    @property
    def key_text(self) -> str:
        """The present public key as multibase."""
        return multibase(self.key.public)


class Vault:
    """Keys and secrets of one home.  The process that writes holds its lock; any thread may call the methods."""

    def __init__(
        self,
        home: Path,
        disk: Disk,
        *,
        random_bytes: Callable[[int], bytes],
        now_ms: Callable[[], int],
        limits: Limits | None = None,
    ) -> None:
        self.identity: Identity | None = None
        self.regains_ms = 0
        """Until when peers may bring what our retired keys signed, because our log may lack it."""
        self._keys, self._secrets = home / "keys", home / "secrets"
        self._disk, self._random_bytes, self._now_ms = disk, random_bytes, now_ms
        self._limits = limits or Limits()
        self._lock = threading.RLock()
        self._cursor_key = b""
        self._nonces = {
            stranger: NonceMemory(self._secrets / name, disk, self._limits.nonces_count, now_ms)
            for stranger, name in ((False, NONCES_NAME), (True, STRANGERS_NAME))
        }

    def load(self) -> Identity | None:
        """Read identity and nonces from disk and return the identity, None if there is none yet.

        Creates nothing.  Raises VaultError "identity-damaged", "store-newer"; DiskError "home-unusable".
        """
        self.identity = self._read_identity()
        until = self.get(REGAINS_NAME) or ""
        self.regains_ms = int(until) if until.isdecimal() and len(until) < 20 else 0
        with self._lock:
            for memory in self._nonces.values():
                memory.load()
        return self.identity

    def generate(self, label: str, *, force: bool = False) -> Identity:
        """Return the identity, made now unless there is one; `force` makes a new DID beside it.

        The file that `force` replaces stays as `identity-<24 hex>.json`, so that no DID is lost by mistake.
        Raises DidError "bad-field" for a bad label, VaultError "identity-damaged" rather than overwrite a damaged file.
        """
        found = None if force else self._read_identity()
        if found is not None:
            self.identity = found
            return found
        key, sealing = SecretKey(self._random_bytes(SEED_BYTES)), self._random_bytes(KEY_BYTES)
        did = did_of(check_label(label), key.public)
        return self._adopted(Identity(did, label, Chain(did, key.public), key, (sealing,), self._now_ms()))

    def former(self) -> list[Chain]:
        """Return the key chains of the identities that this home had before, as far as their files can be read."""
        found = list[Chain]()
        for path in [self._keys / name for name in self._disk.list(self._keys) if name.startswith(OLD_IDENTITIES)]:
            with suppress(SplError, OSError):
                found.append(_identity_of(self._disk.read(path, IDENTITY_BYTES_MAX) or b"", path, self._limits).chain)
        return [chain for chain in found if self.identity and chain.did != self.identity.did]

    def rotate(self, reason: str) -> Identity:
        """Return the identity with a new signing key and a new seal key, durable; the DID stays.

        `reason` is "retired" or "compromised".  The seal secrets stay, because a grant that waits for us opens under
        the one of its request alone, and what was sealed to any of them is here anyway; the old seed is gone.
        Raises VaultError "identity-missing", DidError "chain-broken" at limits.chain_links rotations.
        """
        old = self._present()
        if len(old.chain.rotations) >= self._limits.chain_links:
            raise DidError("chain-broken", f"a key chain has at most {self._limits.chain_links} rotations")
        key, sealing = SecretKey(self._random_bytes(SEED_BYTES)), self._random_bytes(KEY_BYTES)
        last_ms = old.chain.rotations[-1].at_ms if old.chain.rotations else old.created_at_ms
        chain = rotate(old.chain, old.key, key.public, reason, max(self._now_ms(), last_ms))
        secrets = (sealing, *old.seal_secrets)
        return self._adopted(Identity(old.did, old.label, chain, key, secrets, old.created_at_ms))

    def export(self) -> str:
        """Return the identity as text, secret keys included, and record that this key was exported."""
        text = _identity_text(self._present()).decode()
        self.put(EXPORTED_NAME, self._present().key_text)
        return text

    def exported(self) -> bool:
        """Return whether the present key was ever exported."""
        return self.identity is not None and self.get(EXPORTED_NAME) == self.identity.key_text

    def install(self, text: str, *, force: bool = False) -> Identity:
        """Return the identity of an exported text, durable in the place of the one there is.

        Raises VaultError "identity-damaged" for text that is no identity, "identity-exists" for another DID without
        `force`, DidError "manifest-stale" or "chain-fork" when its chain lacks a rotation made here.
        """
        made = _identity_of(text.encode(), Path("the imported identity"), self._limits)
        if self.identity is not None and self.identity.did == made.did:
            grown(self.identity.chain, made.chain)
        elif self.identity is not None and not force:
            raise VaultError("identity-exists", f"this instance is {self.identity.did}; --force replaces it")
        found = self._adopted(made)
        self.put(EXPORTED_NAME, made.key_text)
        self.regain()
        return found

    def regain(self) -> None:
        """Begin the week in which peers give back what our retired keys signed: the log lacks it."""
        self.regains_ms = self._now_ms() + REGAIN_MS
        self.put(REGAINS_NAME, str(self.regains_ms))

    def _present(self) -> Identity:
        if self.identity is None:
            raise VaultError("identity-missing")
        return self.identity

    def _adopted(self, made: Identity) -> Identity:
        """Return the identity once it is durable; the file of another DID stays beside it."""
        path = self._keys / "identity.json"
        self._keep_other(path, made.did)
        self._replace(path, _identity_text(made))
        self.identity = made
        self._forget_old_seeds(made.did)
        return made

    def put(self, name: str, text: str) -> None:
        """Store a secret durably under a name of [a-z0-9._-], replacing what it held.

        Raises VaultError "bad-field" for the name, DiskError "home-unusable".
        """
        path = self._path(name)
        with self._lock:
            self._replace(path, text.encode())

    def get(self, name: str) -> str | None:
        """Return a secret, or None if no secret has this name."""
        path = self._path(name)
        try:
            data = self._disk.read(path, SECRET_BYTES_MAX)
        except OSError as exc:
            raise unusable(path, exc) from exc
        return None if data is None else data.decode(errors="replace")

    def delete(self, name: str) -> None:
        """Remove a secret durably; one that is not there is fine."""
        path = self._path(name)
        with self._lock:
            if name not in self._disk.list(self._secrets):
                return
            try:
                self._disk.unlink(path)
                self._disk.fsync_dir(self._secrets)
            except OSError as exc:
                raise unusable(path, exc) from exc

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all secrets that begin with the prefix, ascending."""
        return [name for name in self._disk.list(self._secrets) if name.startswith(prefix) and _is_name(name)]

    def cursor_key(self) -> bytes:
        """Return the 32-byte key that seals cursors, made at the first call.

        A damaged one is replaced: peers then find their place again, skipping what they have.
        """
        if self._cursor_key:
            return self._cursor_key  # without the lock, which others hold while the disk syncs
        with self._lock:
            if not self._cursor_key:
                kept = _key_in(self.get(CURSOR_KEY_NAME))
                made = kept or self._random_bytes(KEY_BYTES)
                if not kept:
                    self.put(CURSOR_KEY_NAME, b64(made))
                self._cursor_key = made
            return self._cursor_key

    def remember_nonce(self, signer: str, nonce: str, until_ms: int, *, stranger: bool = False) -> bool:
        """Return True when this signer's nonce is new, and then it is durable; False when it was seen before.

        Kept at least until `until_ms`.  Takes a disk sync.  Nonces of strangers have a memory of their own, which they
        cannot fill for the pairs.  Raises VaultError "rate-limited" when it is full, DiskError "home-unusable".
        """
        key = digest(canon.encode([signer, nonce]))[:32]
        with self._lock:
            if any(key in memory for memory in self._nonces.values()):
                return False
            self._nonces[stranger].remember(key, until_ms)
        return True

    def _read_identity(self) -> Identity | None:
        path = self._keys / "identity.json"
        try:
            data = self._disk.read(path, IDENTITY_BYTES_MAX)
        except OSError as exc:
            raise VaultError("identity-damaged", f"{path} cannot be read: {exc.strerror}") from exc
        return None if data is None else _identity_of(data, path, self._limits)

    def _keep_other(self, path: Path, did: str) -> None:
        try:
            old = self._disk.read(path, IDENTITY_BYTES_MAX)
        except OSError as exc:
            raise unusable(path, exc) from exc
        if old is not None and _did_in(old) != did:
            self._replace(path.with_name(f"{OLD_IDENTITIES}{digest(old)[:24]}.json"), old)

    def _forget_old_seeds(self, did: str) -> None:
        """Remove kept files of this very DID: an older version left one at each rotation."""
        try:
            for name in self._disk.list(self._keys):
                path = self._keys / name
                if name.startswith(OLD_IDENTITIES) and _did_in(self._disk.read(path, IDENTITY_BYTES_MAX) or b"") == did:
                    self._disk.unlink(path)
            self._disk.fsync_dir(self._keys)
        except OSError as exc:
            raise unusable(self._keys, exc) from exc

    def _path(self, name: str) -> Path:
        if not _is_name(name):
            raise VaultError("bad-field", f"{name[:40]!r} is no name for a secret")
        return self._secrets / name

    def _replace(self, path: Path, data: bytes) -> None:
        self._disk.mkdir(path.parent)
        try:
            self._disk.replace_atomic(path, data)
        except OSError as exc:
            raise unusable(path, exc) from exc


def _is_name(name: str) -> bool:
    return bool(_NAME.match(name)) and not name.endswith((".jsonl", TEMP_SUFFIX))


def _did_in(data: bytes) -> str:
    """Return the DID that an identity file names, "" if it cannot be read."""
    try:
        return str(canon.decode(data)["did"])
    except (canon.CanonError, KeyError, TypeError):
        return ""


def _key_in(text: str | None) -> bytes:
    """Return the 32 bytes in base64 text, empty when it holds something else."""
    try:
        key = unb64(text, KEY_BYTES)
    except KeyFault:
        return b""
    return key if len(key) == KEY_BYTES else b""


def _identity_text(identity: Identity) -> bytes:
    fields = {
        "format": FORMAT,
        "did": identity.did,
        "label": identity.label,
        "created_at": when.text_of(identity.created_at_ms),
        "seed": b64(identity.key.seed),
        "rotations": [step.to_json() for step in identity.chain.rotations],
        "seal_secrets": [b64(secret) for secret in identity.seal_secrets],
    }
    return canon.encode(fields) + b"\n"


def _identity_of(data: bytes, path: Path, limits: Limits) -> Identity:
    """Return the identity in the file's text, its key checked against its chain and its chain against its DID."""
    try:
        value = canon.decode(data)
        if isinstance(value, dict) and type(value.get("format")) is int and value["format"] > FORMAT:
            raise VaultError(
                "store-newer", f"{path} has format {str(value['format'])[:20]}, this version knows {FORMAT}"
            )
        if not isinstance(value, dict) or value.keys() != _MEMBERS or value["format"] != FORMAT:
            raise VaultError("identity-damaged", f"{path} has not the members of an identity file")
        return _checked_identity(value, path, limits)
    except VaultError:
        raise
    except SplError as exc:
        raise VaultError("identity-damaged", f"{path} is damaged: {exc.message}") from exc


def _checked_identity(value: dict[str, Any], path: Path, limits: Limits) -> Identity:
    seed, secrets = unb64(value["seed"], SEED_BYTES), value["seal_secrets"]
    if not isinstance(secrets, list) or not 1 <= len(secrets) <= limits.chain_links + 1 or len(seed) != SEED_BYTES:
        raise VaultError("identity-damaged", f"{path} lacks a key")
    sealing = tuple(unb64(secret, KEY_BYTES) for secret in secrets)
    if not isinstance(value["did"], str) or any(len(secret) != KEY_BYTES for secret in sealing):
        raise VaultError("identity-damaged", f"{path} lacks a DID or a key")
    key = SecretKey(seed)
    chain = chain_of(value["did"], key.public, value["rotations"], limits)
    if value["label"] != label_of(chain.did):
        raise VaultError("identity-damaged", f"{path} has a label that is not that of its DID")
    return Identity(chain.did, value["label"], chain, key, sealing, when.ms_of(value["created_at"]))
