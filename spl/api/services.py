"""What handlers may use: the services of one daemon, in one value."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

from ..core import when
from ..core.errors import printable
from ..core.event import event
from ..core.limits import Limits
from ..core.value import Json, dataclass, field
from ..doctor.health import HealthSampler
from ..doctor.mend import StoreMender
from ..engine.engines import Engines
from ..home.config import Settings
from ..home.disk import Disk
from ..home.log import Log
from ..home.policy import Policy
from ..home.thread_state import ThreadStates
from ..home.vault import Vault
from ..home.views import Views
from ..home.writer import Writer
from ..host.program import Lazy
from ..pairing.service import Pairing
from ..sync.changes import Feed
from ..sync.compare.anti_entropy import AntiEntropy
from ..sync.ingest import Ingest
from ..sync.push import Push
from ..sync.schedule import Sync
from .auth import Auth
from .searches import Searches

if TYPE_CHECKING:
    from ..doctor.examine import Doctor
    from ..home.restore import Restorer
    from ..sync.compare.fingerprints import Fingerprints
    from ..sync.compare.reconcile import Reconcile

_Made = TypeVar("_Made")

log = logging.getLogger("spl.daemon")

FAULT_CHARS_MAX: Final = 200
"""Of an exception's text, which may hold anything."""
FAULT_SHOWN_MS: Final = 15 * 60_000
"""How long after a crash a service is listed among what needs attention."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The last crash of a service, the `crashes`th in a row."""

    service: str
    error: str
    crashes: int
    at_ms: int

    def to_json(self) -> Json:
        """Return {service, error, crashes, at}."""
        return {"service": self.service, "error": self.error, "crashes": self.crashes, "at": when.text_of(self.at_ms)}


class ServiceFaults:
    """Which services of the daemon crashed since its start, for `spl status`; the last crash of each."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._last: dict[str, Crash] = {}

    def died(self, name: str, error: Exception, crashes: int) -> None:
        """Log and record a crash, the `crashes`th in a row, while it is handled."""
        log.exception(**event("daemon.service_died", service=name, crashes=crashes))
        text = printable(f"{type(error).__name__}: {error}")[:FAULT_CHARS_MAX]
        self._last[name] = Crash(name, text, crashes, self._now_ms())

    def rows(self) -> list[Json]:
        """Return each as {service, error, crashes, at}."""
        return [crash.to_json() for crash in self._last.values()]

    def recent(self) -> list[Crash]:
        """Return the crashes of the last minutes, which need attention."""
        return [crash for crash in self._last.values() if crash.at_ms + FAULT_SHOWN_MS > self._now_ms()]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a handler may use, in the order of the folders; `url` is where peers reach this daemon."""

    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    started_ms: int
    url: str

    home: Path
    settings: Settings
    limits: Limits
    disk: Disk
    vault: Vault
    store: Log
    writer: Writer
    policy: Policy
    states: ThreadStates
    make_restorer: Callable[[], "Restorer"]

    ingest: Ingest
    feed: Feed
    sync: Sync
    push: Push
    late_reconcile: Lazy["Reconcile"]
    late_fingerprints: Lazy["Fingerprints"]
    anti_entropy: AntiEntropy

    engines: Engines
    pairing: Pairing
    health: HealthSampler
    make_doctor: Callable[[], "Doctor"]
    mender: StoreMender
    auth: Auth
    searches: Searches
    faults: ServiceFaults
    held: Json = field(default_factory=dict)
    """What a handler makes at its first request and later ones share, by name."""

    @property
    def reconcile(self) -> "Reconcile":
        """What compares pairs; a daemon without pairs has none."""
        return self.late_reconcile()

    @property
    def fingerprints(self) -> "Fingerprints":
        """What answers peers that compare; the same holds for it."""
        return self.late_fingerprints()

    @property
    def doctor(self) -> "Doctor":
        """The doctor; no daemon has one before it is asked for, as its files take a megabyte."""
        return self._held("doctor", self.make_doctor)

    @property
    def restorer(self) -> "Restorer":
        """What restores snapshots; the same holds for it."""
        return self._held("restorer", self.make_restorer)

    def _held(self, name: str, make: Callable[[], _Made]) -> _Made:
        """Return what was made under this name; in the event loop, so that two never make it."""
        if name not in self.held:
            self.held[name] = make()
        return cast(_Made, self.held[name])

    @property
    def views(self) -> Views:
        """The views behind the last commit."""
        return self.writer.views

    def close(self) -> None:
        """End the threads of all; the last call to them, once nothing of them runs."""
        self.feed.close()
        self.ingest.close()
        self.push.close()
        if (fingerprints := self.late_fingerprints.made) is not None:
            fingerprints.close()
        self.engines.close()
        self.pairing.close()
