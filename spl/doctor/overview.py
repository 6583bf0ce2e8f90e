"""One pair at one moment: the value that every face of the daemon is made from, so that none lies alone."""

from collections.abc import Sequence
from typing import Final

from ..core.pair.pair import Pair
from ..core.pair.status import PairStatus
from ..core.value import dataclass
from ..sync.changes import OfferedStatus
from .catalogue import Finding
from .gather import PairContext

STALLED: Final = frozenset({"cursor-stalled", "peer-behind"})
"""Findings that records wait and none moves."""


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


def stall(found: Sequence[Finding]) -> str:
    """Return the code of the finding that explains why waiting records do not move, of all that hold; "" if they do."""
    return next((item.explained_by or item.code for item in found if item.code in STALLED), "")
