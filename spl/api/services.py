"""What handlers may use: the services of one daemon, in one value."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.limits import Limits
from ..doctor.examine import Doctor
from ..home.config import Settings
from ..home.disk import Disk
from ..home.log import Log
from ..home.policy import Policy
from ..home.snapshot import Restorer
from ..home.thread_state import ThreadStates
from ..home.vault import Vault
from ..home.views import Views
from ..home.writer import Writer
from ..pairing.pair_log import PairLog
from ..pairing.service import Pairing
from ..sync.changes import Feed
from ..sync.push import Push
from ..sync.reconcile import Reconcile
from ..sync.schedule import Sync
from .auth import Auth


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a handler may use."""

    home: Path
    url: str
    settings: Settings
    limits: Limits
    writer: Writer
    store: Log
    vault: Vault
    auth: Auth
    pairing: Pairing
    feed: Feed
    sync: Sync
    started_ms: int
    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    adopt_identity: Callable[[str, bool], Awaitable[None]]
    disk: Disk
    restorer: Restorer
    history: PairLog
    doctor: Doctor
    push: Push
    reconcile: Reconcile
    policy: Policy
    states: ThreadStates

    @property
    def views(self) -> Views:
        """The views behind the last commit."""
        return self.writer.views
