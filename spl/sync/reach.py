"""Which way each pair runs: whether both sides can open connections, or one serves the other by push.

Three words, the same in `show`, in the peer's view and on the wire: `both`, `we-push`, `peer-pushes`; "" as long as
this process does not know.  A side that fails to dial a peer (connection refused, timeout, name) while that peer
keeps in touch lies before a NAT: it says `peer-pushes` in each answer, and the peer that reads this says `we-push`.
Nothing here outlives the process: a new one finds out again, and meanwhile a push too many is told apart by its
position.  One value for all pairs, shared by the services; used on the event loop only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..core.record.page import BOTH, PEER_PUSHES, WE_PUSH

UNREACHED: Final = frozenset({"CONNECT_REFUSED", "TIMEOUT", "DNS_FAILURE"})
"""Classes of failure that say nothing of the peer but that no way led there."""

CONTACT_FRESH_S: Final = 900.0
CONTACT_FRESH_INTERVALS: Final = 3


@dataclass(slots=True)
class _Way:
    """What is known of one pair."""

    failures: int = 0
    contact_s: float | None = None
    served: bool = False
    reached: bool = False
    peer: str = ""


class Reaches:
    """What this process knows of the ways to its peers."""

    def __init__(self, failures_max: int) -> None:
        """`failures_max` failures in a row make a pair unreachable (limits.errors_until_degraded)."""
        self._failures_max = failures_max
        self._ways: dict[str, _Way] = {}
        self._wanted: tuple[Callable[[str], None], ...] = ()
        self._hearers: tuple[Callable[[str, Mapping[str, Any]], None], ...] = ()

    def listen(self, callback: Callable[[str], None]) -> None:
        """Call back with the pair whenever a peer that we reached needs our push, or may need it."""
        self._wanted = (*self._wanted, callback)

    def hear(self, callback: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Call back with every view of a pair that its peer tells, whichever way it comes."""
        self._hearers = (*self._hearers, callback)

    def contact(self, pair_id: str, now_s: float) -> None:
        """Take note that the peer opened an authenticated connection; `now_s` is any steady clock."""
        self._way(pair_id).contact_s = now_s

    def reached(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Take note that we dialled the peer and it answered; `view` is its view of the pair."""
        way = self._way(pair_id)
        way.failures, way.served, way.reached = 0, False, True
        self.heard(pair_id, view)
        if self.may_push(pair_id):
            for callback in self._wanted:
                callback(pair_id)

    def heard(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Take in the peer's own word on reach; a view without one changes nothing."""
        way = self._way(pair_id)
        way.peer = str(view.get("reach", "")) or way.peer
        for callback in self._hearers:
            callback(pair_id, view)

    def failed(self, pair_id: str, kind: str, now_s: float, interval_s: float) -> bool:
        """Take note of a failure of this class; return whether the peer serves us by push, so that it is no trouble.

        Its contact counts for a quarter of an hour, or three of our poll intervals: one that is silent for longer is
        gone, whoever dials.
        """
        way = self._way(pair_id)
        if kind not in UNREACHED:
            way.failures, way.served = 0, False
            return False
        way.failures += 1
        way.reached = False
        fresh_s = max(CONTACT_FRESH_S, CONTACT_FRESH_INTERVALS * interval_s)
        fresh = way.contact_s is not None and now_s <= way.contact_s + fresh_s
        way.served = fresh and way.failures >= self._failures_max
        return way.served

    def word(self, pair_id: str) -> str:
        """Return how the pair runs as far as we know: one of WORDS or ""; this is what the peer is told."""
        way = self._ways.get(pair_id) or _Way()
        if way.served:
            return PEER_PUSHES
        if way.peer == PEER_PUSHES:
            return WE_PUSH
        return BOTH if way.reached else ""

    def may_push(self, pair_id: str) -> bool:
        """Tell whether the peer needs our push, or has not said yet that it reaches us."""
        way = self._ways.get(pair_id) or _Way()
        return way.peer in ("", PEER_PUSHES) and not way.served

    def _way(self, pair_id: str) -> _Way:
        return self._ways.setdefault(pair_id, _Way())
