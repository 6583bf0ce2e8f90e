"""One home, opened in floor order under its lock: store, views, keys, and the hub over them.

The daemon and the commands that work without one open a home the same way, so a second process is refused the same
way too.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config import FILE_NAME, Config, ConfigError, load
from .core.limits import Limits
from .disk import Disk, Lock, lock_home, unusable
from .hub import Hub, Signer
from .store import Store
from .vault import Identity, Vault
from .views import Views

CONFIG_BYTES_MAX: Final = 1024 * 1024
SOCKET: Final = "run/spl.sock"
TOKEN: Final = "token"  # noqa: S105 - the name of a file


def now_ms() -> int:
    """Return Unix milliseconds of the real clock."""
    return time.time_ns() // 1_000_000


def random_bytes(count: int) -> bytes:
    """Return bytes of the system's random source."""
    return secrets.token_bytes(count)


@dataclass(slots=True)
class Home:
    """The open ground floor; `close` writes what waits and gives the lock free."""

    path: Path
    config: Config
    lock: Lock
    disk: Disk
    store: Store
    views: Views
    vault: Vault
    hub: Hub

    def adopt(self, identity: Identity) -> None:
        """Sign with this identity from now on, and fold the reserved threads for its DID."""
        if self.views.did != identity.did:
            self.views.load(self.store, identity.did)
        self.hub.signer = Signer(identity.chain, identity.key)

    def close(self) -> None:
        """Close the store cleanly and release the lock; the hub must be closed and its thread ended before."""
        self.store.close()
        self.lock.release()


def read_config(path: Path, disk: Disk, flags: Mapping[str, object]) -> Config:
    """Return the home's configuration; flags win over environment, file and defaults.

    Raises ConfigError "config-invalid", DiskError "home-unusable".
    """
    try:
        data = disk.read(path / FILE_NAME, CONFIG_BYTES_MAX) or b""
        return load(data.decode(), os.environ, flags)
    except UnicodeDecodeError as exc:
        raise ConfigError("config-invalid", f"{FILE_NAME} is not UTF-8") from exc
    except OSError as exc:
        raise unusable(path / FILE_NAME, exc) from exc


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

    Raises DiskError "store-locked", "home-unusable"; StoreError "store-damaged", "store-newer"; VaultError.
    """
    limits: Limits = config.limits
    disk.mkdir(path)
    lock = lock_home(path)
    try:
        vault = Vault(path, disk, random_bytes=random, now_ms=clock, limits=limits)
        vault.load()
        store = Store.open(path / "store", disk, limits, now_ms=clock, random_bytes=random, progress=progress)
        views = Views(limits)
        hub = Hub(store, views, limits, signer=None, now_ms=clock)
        home = Home(path, config, lock, disk, store, views, vault, hub)
        if vault.identity is not None:
            home.adopt(vault.identity)
    except BaseException:
        lock.release()
        raise
    return home
