"""What works without a daemon: make a home, make or show an identity.  Each takes the home's lock meanwhile."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .config import FILE_NAME
from .core import bearer, when
from .core.did import certifies, chain_of, multibase, words
from .core.errors import SplError
from .disk import Disk
from .home import TOKEN, Home, now_ms, open_home, random_bytes, read_config
from .hub import Own
from .vault import Identity
from .views import THREAD_TOKENS

TOKEN_TTL_MS: Final = 10 * 365 * 86_400_000
ADMIN_LABEL: Final = "init"
CONFIG_TEXT: Final = """\
# Settings of this daemon; every key is optional. `spl config show` tells each value and where it came from.

# host = "127.0.0.1"
# port = 9100
# public_url = "https://alice.example"

# [auth]
# required = true

# [federation]
# approval = "manual"        # manual | auto | closed
# allow_http = false         # plain http to hosts other than loopback
# poll_interval = "5m"

# [tls]
# listen = "0.0.0.0:9443"
# certificate = "/etc/spl/fullchain.pem"
# key = "/etc/spl/key.pem"
# ca_file = ""               # a private CA that signs your peers' certificates

# [http]
# allowed_hosts = []

# [log]
# format = "logfmt"          # logfmt | json
# level = "info"
"""


def init_home(path: Path, label: str = "") -> dict[str, object]:
    """Make whatever is missing of folder, config, identity and admin token; return what there is and what is new."""
    disk = Disk()
    disk.mkdir(path)
    created = []
    if disk.read(path / FILE_NAME, 1 << 20) is None:
        disk.replace_atomic(path / FILE_NAME, CONFIG_TEXT.encode(), 0o600)
        created.append("config")
    with _opened(path) as home:
        if home.vault.identity is None:
            created.append("identity")
        identity = home.vault.generate(label or default_label())
        home.adopt(identity)
        if disk.read(path / TOKEN, 4096) is None:
            _mint_admin(home)
            created.append("token")
    return {"home": str(path), **facts(identity), "created": created}


def generate_identity(path: Path, label: str = "", force: bool = False) -> dict[str, object]:
    """Make an identity, or keep the one there is unless forced; the manifest is signed anew at the next start."""
    with _opened(path) as home:
        kept = home.vault.identity is not None and not force
        return {**facts(home.vault.generate(label or default_label(), force=force)), "kept": kept}


def show_identity(path: Path) -> dict[str, object] | None:
    """Return the identity's public facts, or None when there is none."""
    with _opened(path) as home:
        return facts(home.vault.identity) if home.vault.identity else None


def verify_identity(path: Path) -> dict[str, object]:
    """Prove that the keys at rest are whole: the DID certifies the first key and the chain ends at the one held.

    Raises "identity-missing", "identity-damaged", DidError.
    """
    with _opened(path) as home:
        identity = home.vault.identity
        if identity is None:
            raise SplError("identity-missing")
        rotations = [step.to_json() for step in identity.chain.rotations]
        chain = chain_of(identity.did, identity.key.public, rotations, home.config.limits)
        return {**facts(identity), "verified": certifies(identity.did, chain.first)}


def rotate_identity(path: Path, compromised: bool) -> dict[str, object]:
    """Give the identity a new key, the DID staying; peers are told at the next start.  Raises "identity-missing"."""
    with _opened(path) as home:
        return facts(home.vault.rotate("compromised" if compromised else "retired"))


def export_identity(path: Path) -> str:
    """Return the identity as text, secret keys included.  Raises "identity-missing"."""
    with _opened(path) as home:
        return home.vault.export()


def import_identity(path: Path, text: str, force: bool = False) -> dict[str, object]:
    """Take over an exported identity; raise "identity-damaged", "identity-exists", "manifest-stale", "chain-fork"."""
    with _opened(path) as home:
        return facts(home.vault.install(text, force=force))


def facts(identity: Identity) -> dict[str, object]:
    """Return an identity's public facts."""
    return {
        "did": identity.did,
        "label": identity.label,
        "public_key": multibase(identity.chain.present),
        "words": words(identity.chain.present),
        "created_at": when.text_of(identity.created_at_ms),
        "rotations": len(identity.chain.rotations),
    }


def default_label() -> str:
    """Return the host's name as a label."""
    text = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower().partition(".")[0]).strip("-")
    return text[:32] or "spl"


@contextmanager
def _opened(path: Path) -> Iterator[Home]:
    disk = Disk()
    home = open_home(path, read_config(path, disk, {}), disk=disk, progress=lambda done, total: None)
    try:
        yield home
    finally:
        home.close()


def _mint_admin(home: Home) -> None:
    """Mint the admin token: record, then file; a crash between leaves one that nobody knows, and `init` redoes it."""
    sa_id = "sa_" + random_bytes(4).hex()
    text = bearer.mint_text("home", sa_id, random_bytes(bearer.SECRET_BYTES))
    at_ms = now_ms()
    token = bearer.Token(
        "tok_" + random_bytes(4).hex(), sa_id, bearer.hash_of(text), frozenset({bearer.ADMIN}),
        expires_at_ms=at_ms + TOKEN_TTL_MS, created_at_ms=at_ms, label=ADMIN_LABEL,
    )  # fmt: skip
    future = home.hub.submit([Own(THREAD_TOKENS, bearer.KIND_MINT, bearer.mint_body(token))])
    home.hub.commit_waiting()
    future.result()
    home.disk.replace_atomic(home.path / TOKEN, text.encode() + b"\n", 0o600)
