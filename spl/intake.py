"""What waits between network and store, bounded: pages of a pull, events of a stream.

Full means that reading stops, and with it, through TCP, the source; nothing is dropped.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from .core.errors import SplError
from .core.page import Page


@dataclass(slots=True)
class Queue:
    """Pages between network and store.  Full means that reading stops; nothing is dropped."""

    records_max: int
    bytes_max: int
    records: int = 0
    bytes: int = 0
    peak: int = 0
    pages: "asyncio.Queue[Page | SplError | None]" = field(default_factory=asyncio.Queue)
    """At the end stands None, or the error that ended the reading."""
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def room(self, records: int, size: int) -> None:
        """Wait until a page of this size fits, or nothing waits at all."""
        while self.records and (self.records + records > self.records_max or self.bytes + size > self.bytes_max):
            self.freed.clear()
            await self.freed.wait()

    def put(self, item: Page | SplError | None) -> None:
        """Add a page, or the end."""
        if isinstance(item, Page):
            self.records += item.count
            self.bytes += item.size
            self.peak = max(self.peak, self.records)
        self.pages.put_nowait(item)

    def done(self, item: Page) -> None:
        """Give a page's room free."""
        self.records -= item.count
        self.bytes -= item.size
        self.freed.set()


@dataclass(frozen=True, slots=True)
class Arrived:
    """Events of a stream that came one after another: records with the last cursor among them, or one heartbeat."""

    data: list[bytes] = field(repr=False)
    cursor: str
    size: int
    is_beat: bool = False


@dataclass(slots=True)
class Inbox:
    """Events between network and store.  What has arrived is taken together, as soon as somebody takes."""

    records_max: int
    bytes_max: int
    records: int = 0
    size: int = 0
    peak: int = 0
    end: SplError | float | None = None
    """Why no more comes: an error, or the seconds after which the source is back."""
    _waiting: "deque[tuple[bytes, str, bool]]" = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def room(self) -> None:
        """Wait until one more fits."""
        while self.records >= self.records_max or (self.records and self.size >= self.bytes_max):
            self._freed.clear()
            await self._freed.wait()

    def put(self, data: bytes, cursor: str, *, is_beat: bool = False) -> None:
        """Add the data of a record's event, or of a heartbeat."""
        self._waiting.append((data, cursor, is_beat))
        if not is_beat:
            self.records += 1
            self.size += len(data)
            self.peak = max(self.peak, self.records)
        self._arrived.set()

    def close(self, end: SplError | float) -> None:
        """Say that no more comes; what waits is still taken."""
        self.end = end
        self._arrived.set()

    async def take(self, count_max: int) -> Arrived | None:
        """Return what waits, up to the first heartbeat or `count_max` records; None at the end."""
        while not self._waiting:
            if self.end is not None:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        first, cursor, is_beat = self._waiting.popleft()
        data = [first]
        while not is_beat and self._waiting and not self._waiting[0][2] and len(data) < count_max:
            more, id_, _ = self._waiting.popleft()
            data.append(more)
            cursor = id_ or cursor
        return Arrived(data, cursor, sum(map(len, data)), is_beat)

    def done(self, item: Arrived) -> None:
        """Give the room of what was taken free."""
        if not item.is_beat:
            self.records -= len(item.data)
            self.size -= item.size
            self._freed.set()
