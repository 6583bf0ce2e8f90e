"""How far each peer confirmed what it reads from us, by namespace, and who waits for the next confirmation.

In memory only: it decides nothing, and after a restart the peer's next ack tells it again.  All on one loop.
"""

import asyncio
from collections.abc import Mapping


class Acks:
    """Positions in our log up to which peers hold durably what we serve them."""

    def __init__(self) -> None:
        self._positions: dict[str, Mapping[str, int]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def note(self, pair_id: str, positions: Mapping[str, int]) -> None:
        """Take in an ack: namespace -> the last sequence that it covers there."""
        self._positions[pair_id] = positions
        for event in self._waiting.get(pair_id, ()):
            event.set()

    def position(self, pair_id: str, namespace: str) -> int | None:
        """Return the last sequence confirmed; None before the first ack of this process."""
        return self._positions.get(pair_id, {}).get(namespace)

    async def beyond(self, pair_id: str, namespace: str, seq: int, timeout_s: float) -> int | None:
        """Return the position as soon as it is past `seq`, and at the latest after `timeout_s`."""
        event = asyncio.Event()
        self._waiting.setdefault(pair_id, set()).add(event)
        try:
            async with asyncio.timeout(timeout_s):
                while (self.position(pair_id, namespace) or 0) <= seq:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass  # nothing new is an answer too
        finally:
            self._waiting[pair_id].discard(event)
            if not self._waiting[pair_id]:
                del self._waiting[pair_id]
        return self.position(pair_id, namespace)
