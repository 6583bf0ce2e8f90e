"""How much one request carries over the way to a peer, in one direction.

A link may be too slow for a page, or a proxy may bound what it passes on: asked for again and again at the same size,
the same page would never arrive.  So what fails is tried at half the size, down to one record, and what goes through
grows again slowly: each failure doubles the number of requests that must go through before the next larger one is
tried, or every page taken would be followed by a doubled one that fails.  What takes longer than WORTH_S is made
smaller too, so that a slow link shows progress every few seconds and loses little when it breaks.

Counted are records, because a reader does not know the size of what it asks for.  All requests of one direction share
the value: a page, records by id, a push, the questions of a comparison.
"""

from typing import Final

WORTH_S: Final = 5.0
"""What one request is to take at most."""
PATIENCE_MAX: Final = 32  # good requests before the next attempt with more


class Portion:
    """What one direction carries at a time; `limit` is 0 before anything was too much."""

    __slots__ = ("_good", "_grew", "_patience", "limit")

    def __init__(self) -> None:
        self.limit = self._good = 0
        self._patience, self._grew = 1, False

    def count(self, most: int) -> int:
        """Return how many records the next request is for, one at least."""
        return max(1, min(most, self.limit or most))

    def failed(self, count: int) -> None:
        """Record that a request for so many records was too much."""
        self.limit = max(1, min(count, self.limit or count) // 2)
        self._patience, self._good, self._grew = min(PATIENCE_MAX, 2 * self._patience), 0, False

    def carried(self, count: int, records: int, took_s: float) -> None:
        """Record that a request for so many records brought `records` of them."""
        worth = int(records * WORTH_S / took_s) if took_s > 0 else 2 * count
        if took_s > WORTH_S and records:
            self.limit = max(1, worth)
        elif self.limit and records and count >= self.limit:
            self._good += 1
            if self._good >= self._patience:
                self._grow(worth)

    def _grow(self, worth: int) -> None:
        if self._grew:  # the last step up held
            self._patience = max(1, self._patience // 2)
        self._good, self._grew = 0, True
        self.limit = min(2 * self.limit, max(self.limit, worth))
