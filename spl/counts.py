"""How many records each pair is offered, where the index keeps no tally of them: from a start on, or under a rule.

Counted on from where it was left, some rows a step, in the feed's threads.  While a count is behind, our operator is
told no number: one that is too low would be wrong, and one of all rows would count what the peer may not see.  A peer
is told the last number that was right: none in its place would tell that rows came, and hidden ones must not.
"""

import threading
from typing import Final

from . import offer
from .core.cursor import lane_key
from .offer import Look

STEP_ROWS: Final = 4096


class Counts:
    """The counts of all pairs; in memory, so a restart counts again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, tuple[int, int]]] = {}
        """pair_id -> namespace and filter -> (looked up to, records found)."""
        self._told: dict[str, tuple[frozenset[str], int]] = {}
        """pair_id -> what was counted, and the last complete count of it."""

    def told(self, pair_id: str, look: Look) -> int | None:
        """Return how many records the pair is offered, as of when that was last known; None before the first count."""
        found = self.head(pair_id, look)
        if found is not None:
            return found
        counted, total = self._told.get(pair_id, (None, 0))
        return total if counted == _keys(look) else None

    def head(self, pair_id: str, look: Look) -> int | None:
        """Return how many records the pair is offered; None while that is still being counted."""
        if look.scope.tallied:
            return offer.head(look.index, look.scope)
        held, total = self._held.get(pair_id, {}), 0
        for ns in look.scope.shares:
            place, count = held.get(_key(look, ns), (look.scope.floor, 0))
            last = look.index.last(f"n:{ns}")
            if last is not None and last.seq > place:
                return None
            total += count
        return total

    def advance(self, pair_id: str, look: Look) -> bool:
        """Count on, at most STEP_ROWS rows; return whether the count is complete."""
        scope = look.scope
        if scope.tallied:
            return True
        with self._lock:
            before, left = self._held.get(pair_id, {}), STEP_ROWS
            held = {key: before.get(key, (scope.floor, 0)) for key in (_key(look, ns) for ns in scope.shares)}
            for ns in scope.shares:
                place, count = held[_key(look, ns)]
                while left > 0 and (rows := look.after(f"n:{ns}", place, min(left, offer.LOOK_ROWS))):
                    count += sum(visible and scope.counts(row) for row, visible, _ in look.judged(rows))
                    place, left = rows[-1].seq, left - len(rows)
                held[_key(look, ns)] = place, count
            self._held = {**self._held, pair_id: held}
            if left > 0:
                self._told = {**self._told, pair_id: (_keys(look), sum(count for _, count in held.values()))}
        return left > 0


def _keys(look: Look) -> frozenset[str]:
    return frozenset(_key(look, ns) for ns in look.scope.shares)


def _key(look: Look, ns: str) -> str:
    return lane_key(ns, rule=look.scope.filter.digest)
