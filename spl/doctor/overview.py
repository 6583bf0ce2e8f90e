"""One pair at one moment: the value that every face of the daemon is made from, so that none lies alone."""

from collections.abc import Mapping
from typing import Final

from ..core.pair.modes import ON_DEMAND, POLLING
from ..core.pair.pair import Pair
from ..core.pair.status import PairStatus
from ..core.value import dataclass
from ..sync.changes import OfferedStatus
from .catalogue import Finding
from .gather import PairContext
from .health import HealthSampler

STALL_INTERVALS: Final = 2


@dataclass(frozen=True, slots=True)
class PairOverview:
    """A pair, what the services know of it, and what is wrong; nothing in it waits for the peer."""

    pair: Pair
    context: PairContext
    findings: tuple[Finding, ...]
    """What needs an action, the first one first."""
    stalled: str = ""
    """The code of the finding that explains why waiting records do not move; "" while they move or none wait."""
    moved_ms: int | None = None
    """When our position moved last, in Unix ms: the last time that records of the peer were stored."""

    @property
    def reading(self) -> PairStatus:
        """How far we are with reading from the peer."""
        return self.context.status

    @property
    def offered(self) -> OfferedStatus:
        """How far the peer is with reading from us."""
        return self.context.offered


def stall(pair: Pair, context: PairContext, health: HealthSampler, found: tuple[Finding, ...], beat_s: float) -> str:
    """Return why waiting records have not moved for two intervals of the side that reads them; "" if they have.

    A side that reads on demand has no interval, and neither has a pair that must not sync: nothing is said of either.
    """
    fallback = ""
    if pair.sync_allowed and pair.mode != ON_DEMAND and context.status.lag_records:
        every_s = pair.poll_interval_ms / 1000 if pair.mode == POLLING else beat_s
        fallback = "cursor-stalled" if health.stalled_s(pair.pair_id) >= STALL_INTERVALS * every_s else ""
    if not fallback and pair.serve_allowed and context.offered.lag_records and _reads(context.status.peer_view):
        every_s = max(beat_s, context.offered.interval_s or 0.0)
        fallback = "peer-behind" if health.behind_s(pair.pair_id) >= STALL_INTERVALS * every_s else ""
    return (found[0].code if found else fallback) if fallback else ""


def _reads(view: Mapping[str, object]) -> bool:
    """Return whether the peer, by its own view of the pair, reads from us without being told to."""
    return view.get("mode") != ON_DEMAND
