"""One home, opened under its lock, lowest part first: keys, store, views, and the writer over them.

The daemon and the commands that work without one open a home in the same way, so a second process is refused in the
same way.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from ..core import when
from ..core.errors import SplError
from ..core.identity import bearer
from ..core.identity.did import certifies, chain_of, multibase, words
from ..core.identity.pins import KIND_CHAIN, pin_body
from ..core.limits import Limits
from ..core.value import Json, dataclass
from .config import FILE_NAME, Config, ConfigError, load
from .disk import Disk, DiskError, Lock, for_shell, unusable
from .log import Log
from .recovery import CLEAN_NAME
from .segments import LineError, Segments, parse
from .vault import Identity, Vault
from .views import THREAD_PAIRS, THREAD_TOKENS, Views
from .views import load as load_views
from .writer import Writer
from .writes import Own, Signer

CONFIG_BYTES_MAX: Final = 1024 * 1024  # all keys with their longest values take less
STORE: Final = "store"
KEYS: Final = "keys"
SECRETS: Final = "secrets"
EPOCH: Final = "log-epoch"
"""The secret that says which log is this home's."""
IDENTITY: Final = "identity.json"
BACK: Final = "move it back or mount it again, or restart the daemon on the home's new place"
"""What helps a daemon whose home went from under it."""
TOKEN: Final = "token"  # noqa: S105 - the name of a file
TOKEN_TTL_MS: Final = 10 * 365 * 86_400_000
ADMIN_LABEL: Final = "init"
CONFIG_TEXT: Final = """\
# Settings of this daemon; every key is optional. `spl config show` prints each value and its origin.

# host = "127.0.0.1"
# port = 9100
# public_url = "https://alice.example"

# [auth]
# required = true

# [federation]
# approval = "manual"        # manual | auto | closed
# allow_http = false         # plain http to other machines: true, or "private" for those of a local network
# poll_interval = "5m"
# follow_mode = false        # fetch from a peer in the mode that it asks for: spl federation set-mode --both

# [tls]
# listen = "0.0.0.0:9443"
# certificate = "/etc/spl/fullchain.pem"
# key = "/etc/spl/key.pem"
# ca_file = ""               # a private CA that signs your peers' certificates

# [http]
# allowed_hosts = []
# trusted_proxies = []       # addresses of reverse proxies whose X-Forwarded-For says who asks

# [log]
# format = "logfmt"          # logfmt | json
# level = "info"
"""


def now_ms() -> int:
    """Return Unix milliseconds of the real clock."""
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    """Return milliseconds of a clock that is never set; its zero is arbitrary."""
    return time.monotonic_ns() // 1_000_000


def random_bytes(count: int) -> bytes:
    """Return bytes of the system's random source."""
    return os.urandom(count)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a daemon takes from the machine beside files and sockets; a simulation hands in its own."""

    now_ms: Callable[[], int] = now_ms
    steady_ms: Callable[[], int] = steady_ms
    random_bytes: Callable[[int], bytes] = random_bytes

    def steady_s(self) -> float:
        """Return `steady_ms` in seconds."""
        return self.steady_ms() / 1000


MACHINE: Final = Machine()
"""The machine itself."""


@dataclass(slots=True)
class Home:
    """The open home; `close` releases the lock."""

    path: Path
    config: Config
    lock: Lock
    disk: Disk
    store: Log
    vault: Vault
    writer: Writer

    @property
    def views(self) -> Views:
        """The views behind the last commit."""
        return self.writer.views

    def adopt(self, identity: Identity) -> None:
        """Sign with this identity from now on, and fold the reserved threads for its DID."""
        if self.views.did != identity.did:
            self.writer.views = load_views(self.store, identity.did, self.config.limits)
        self.writer.signer = Signer(identity.chain, identity.key)

    def former_pins(self) -> list[Own]:
        """Return what pins the chains of this home's former identities: what they signed is verified by them."""
        pins = self.views.pins
        unknown = [chain for chain in self.vault.former() if pins.chain(chain.did) != chain and not pins.code_of(chain)]
        return [Own(THREAD_PAIRS, KIND_CHAIN, pin_body(chain)) for chain in unknown]

    def close(self) -> None:
        """Close the store cleanly and release the lock; the writer must be closed and its thread ended before."""
        self.store.close()
        self.lock.release()


def read_config(path: Path, disk: Disk, flags: Mapping[str, object]) -> Config:
    """Return the home's configuration; flags win over environment, file and defaults.

    Raises ConfigError "config-invalid", DiskError "home-unusable".
    """
    try:
        data = disk.read(path / FILE_NAME, CONFIG_BYTES_MAX, follow=True) or b""
        return load(data.decode(), os.environ, flags)
    except UnicodeDecodeError as exc:
        raise ConfigError("config-invalid", f"{FILE_NAME} is not UTF-8") from exc
    except OSError as exc:
        raise unusable(path / FILE_NAME, exc) from exc


def log_lacking(path: Path, disk: Disk) -> SplError | None:
    """Return the "store-missing" of a home that has keys or secrets and no log; None for any other.

    The log is made before the first key, so one without the other is an empty folder in the place of a volume, or a
    loss.  Taken for a new home, it would acknowledge records that vanish when the volume is back.
    """
    if unmounted := _volume_lacking(path, disk):
        return unmounted
    known = epoch_of(path, disk)
    try:
        segments = Segments(path / STORE, disk)
        epochs = {header.epoch for header in segments.headers()} if known else set()
    except OSError as exc:
        raise unusable(path / STORE, exc) from exc
    if segments.firsts:
        if not epochs or known in epochs:
            return None
        note = for_shell(path / SECRETS / EPOCH)
        return SplError(
            "store-missing",
            f"the log in {path / STORE} is that of another home",
            hint=f"put this home's log there, then: spl serve; to go on with the other: rm {note}",
        )
    if not (disk.list(path / KEYS) or disk.list(path / SECRETS)):
        return None
    return SplError("store-missing", f"{path} has keys, and there is no log in {path / STORE}")


def _volume_lacking(path: Path, disk: Disk) -> SplError | None:
    """Return the "store-missing" of a folder where a volume with a home was mounted that is not mounted now."""
    note = _volume_note(path)
    try:
        did = (disk.read(note, 4096) or b"").decode(errors="replace").strip() if note else ""
        if not note or not did or path.is_mount() or IDENTITY in disk.list(path / KEYS):
            return None
    except (OSError, DiskError):
        return None
    text = f"the volume with the home of {did[:200]} is not mounted at {path}"
    again = f"to make a new home there: rm {for_shell(note)}"
    return SplError("store-missing", text, hint=f"mount it, then: spl serve; {again}")


def _note_volume(path: Path, disk: Disk, did: str) -> None:
    """Remember, outside of a home that is a volume of its own, whose home it is; as far as there is a place for it."""
    note = _volume_note(path)
    if note and path.is_mount():
        with suppress(OSError, DiskError):
            disk.mkdir(note.parent)
            if disk.read(note, 4096) != did.encode():
                disk.replace_atomic(note, did.encode())


def _volume_note(path: Path) -> Path | None:
    """Return the file that would remember a volume, None without a folder for the state of programs."""
    home = os.environ.get("HOME", "")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path(home, ".local/state"))
    if not state.is_absolute():
        return None
    return state / "spl" / f"volume-{sha256(bytes(path.resolve())).hexdigest()[:16]}"


def epoch_of(path: Path, disk: Disk) -> str:
    """Return which log is this home's; "" if that is not noted."""
    note = path / SECRETS / EPOCH
    try:
        return (disk.read(note, 4096) or b"").decode(errors="replace").strip()
    except OSError as exc:
        raise unusable(note, exc) from exc


def keys_lacking(path: Path, disk: Disk) -> SplError | None:
    """Return the "identity-missing" of a home whose log was begun under an identity that is gone; None otherwise.

    Another identity is not made in its place unless the operator says so (`spl identity generate`).
    """
    segments = Segments(path / STORE, disk)
    if not segments.firsts or IDENTITY in disk.list(path / KEYS):
        return None
    lines = (raw for _, at, raw, whole in segments.lines(segments.firsts[0], 0) if at and whole)
    try:
        begun = parse(next(lines, b"")).own
    except LineError:
        begun = False
    if not begun:
        return None
    return SplError(
        "identity-missing",
        f"the log in {path / STORE} is that of an identity, and there is none in {path / KEYS}",
        hint=f"mount the volume that holds {path / KEYS}; if it is lost: spl identity import FILE; "
        "to go on with these records under a new identity: spl identity generate",
    )


def open_home(
    path: Path,
    config: Config,
    *,
    disk: Disk,
    progress: Callable[[int, int], None],
    clock: Callable[[], int] = now_ms,
    random: Callable[[int], bytes] = random_bytes,
) -> Home:
    """Return the home, locked and recovered; `progress(done, total)` is called while an index is rebuilt.

    Raises DiskError "store-locked", "home-unusable"; "store-missing"; StoreError "store-damaged", "store-newer";
    VaultError.
    """
    limits: Limits = config.limits
    lock = disk.lock(path)
    try:
        vault = Vault(path, disk, random_bytes=random, now_ms=clock, limits=limits)
        vault.load()
        if lacking := log_lacking(path, disk):
            raise lacking
        known = epoch_of(path, disk)
        store = Log.open(path / STORE, disk, limits, now_ms=clock, random_bytes=random, progress=progress, epoch=known)
        if not known:
            with suppress(DiskError):  # a full disk: the next start notes it
                vault.put(EPOCH, store.epoch)
        writer = Writer(store, Views(limits), limits, signer=None, now_ms=clock)
        home = Home(path, config, lock, disk, store, vault, writer)
        if vault.identity is not None:
            home.adopt(vault.identity)
            _note_volume(path, disk, vault.identity.did)
            if pins := home.former_pins():
                future = writer.submit(pins)
                writer.commit_waiting()
                with suppress(SplError):  # a full disk: the next start pins them
                    future.result()
    except BaseException:
        lock.release()
        raise
    return home


def init_home(path: Path, label: str = "", *, new_log: bool = False) -> Json:
    """Make what is missing of folder, config, identity and admin token; return what there is and what is new.

    `new_log` begins an empty log where there is none beside the keys; the tokens of the lost one are worth nothing.
    Raises as `open_home` does, "identity-missing" for a log whose keys are gone.
    """
    disk = Disk()
    if unmounted := _volume_lacking(path, disk):
        raise unmounted
    disk.own(path)
    created = []
    if lacking := keys_lacking(path, disk):
        raise lacking
    if new_log and log_lacking(path, disk) and not Segments(path / STORE, disk).firsts:
        _begin_log(path, disk)
        created.append("log")
    if FILE_NAME not in disk.list(path):
        disk.replace_atomic(path / FILE_NAME, CONFIG_TEXT.encode())
        created.append("config")
    with _opened(path) as home:
        if "log" in created:
            home.vault.regain()
        if home.vault.identity is None:
            created.append("identity")
        identity = home.vault.generate(label or default_label())
        home.adopt(identity)
        _note_volume(path, disk, identity.did)
        if "log" in created or disk.read(path / TOKEN, 4096) is None:
            _mint_admin(home)
            created.append("token")
    return {"home": str(path), **identity_facts(identity), "created": created}


def generate_identity(path: Path, label: str = "", force: bool = False) -> Json:
    """Make an identity, or keep the one there is unless forced; the manifest is signed again at the next start."""
    with _opened(path) as home:
        kept = home.vault.identity is not None and not force
        return {**identity_facts(home.vault.generate(label or default_label(), force=force)), "kept": kept}


def show_identity(path: Path) -> Json | None:
    """Return the identity's public facts, or None when there is none."""
    with _opened(path) as home:
        return identity_facts(home.vault.identity) if home.vault.identity else None


def verify_identity(path: Path) -> Json:
    """Prove that the stored keys are intact: the DID certifies the first key and the chain ends at the one held.

    Raises "identity-missing", "identity-damaged", DidError.
    """
    with _opened(path) as home:
        identity = home.vault.identity
        if identity is None:
            raise SplError("identity-missing")
        rotations = [step.to_json() for step in identity.chain.rotations]
        chain = chain_of(identity.did, identity.key.public, rotations, home.config.limits)
        return {**identity_facts(identity), "verified": certifies(identity.did, chain.first)}


def rotate_identity(path: Path, compromised: bool) -> Json:
    """Give the identity a new key under its DID; peers learn it after the next start.  Raises "identity-missing"."""
    with _opened(path) as home:
        return identity_facts(home.vault.rotate("compromised" if compromised else "retired"))


def export_identity(path: Path) -> str:
    """Return the identity as text, secret keys included.  Raises "identity-missing"."""
    with _opened(path) as home:
        return home.vault.export()


def import_identity(path: Path, text: str, force: bool = False) -> Json:
    """Take over an exported identity; raise "identity-damaged", "identity-exists", "manifest-stale", "chain-fork"."""
    with _opened(path) as home:
        return identity_facts(home.vault.install(text, force=force))


def identity_facts(identity: Identity) -> Json:
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
    text = re.sub(r"[^a-z0-9-]+", "-", os.uname().nodename.lower().partition(".")[0]).strip("-")
    return text[:32] or "spl"


@contextmanager
def _opened(path: Path) -> Iterator[Home]:
    disk = Disk()
    home = open_home(path, read_config(path, disk, {}), disk=disk, progress=lambda done, total: None)
    try:
        yield home
    finally:
        home.close()


def _begin_log(path: Path, disk: Disk) -> None:
    """Make an empty log, under the home's lock."""
    lock = disk.lock(path)
    try:
        disk.mkdir(path / STORE)
        disk.unlink(path / STORE / CLEAN_NAME)
        disk.unlink(path / SECRETS / EPOCH)
        Log.open(
            path / STORE, disk, Limits(), now_ms=now_ms, random_bytes=random_bytes, progress=lambda done, total: None
        ).close()
    finally:
        lock.release()


def _mint_admin(home: Home) -> None:
    """Mint the admin token: record, then file; after a crash between the two, `init` mints another."""
    sa_id = "sa_" + random_bytes(4).hex()
    text = bearer.mint_text("home", sa_id, random_bytes(bearer.SECRET_BYTES))
    at_ms = now_ms()
    token = bearer.Token(
        "tok_" + random_bytes(4).hex(), sa_id, bearer.hash_of(text), frozenset({bearer.ADMIN}),
        expires_at_ms=at_ms + TOKEN_TTL_MS, created_at_ms=at_ms, label=ADMIN_LABEL,
    )  # fmt: skip
    future = home.writer.submit([Own(THREAD_TOKENS, bearer.KIND_MINT, bearer.mint_body(token))])
    home.writer.commit_waiting()
    future.result()
    home.disk.replace_atomic(home.path / TOKEN, text.encode() + b"\n")
