"""What handlers may use: the services of one daemon, in one value."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ..auth import Auth
from ..config import Settings
from ..core.limits import Limits
from ..disk import Disk
from ..doctor import Doctor
from ..feed import Feed
from ..history import History
from ..hub import Hub
from ..pairing import Pairing
from ..policy import Policy
from ..push import Push
from ..reconcile import Reconcile
from ..restore import Restorer
from ..states import States
from ..store import Store
from ..sync import Sync
from ..vault import Vault
from ..views import Views


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a handler may use."""

    home: Path
    url: str
    settings: Settings
    limits: Limits
    hub: Hub
    store: Store
    views: Views
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
    history: History
    doctor: Doctor
    push: Push
    reconcile: Reconcile
    policy: Policy
    states: States
