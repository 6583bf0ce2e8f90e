"""A body that its handler takes as it arrives, so that it is never held whole.

The connection puts pieces in and stops reading while PARTS_BYTES wait; each piece that the handler takes lets it go on.
What the handler keeps of a piece, such as half a line, counts as held until it calls `let_go`: `Admission` bounds that.
There is no error of its own: a body that ends early cancels the handler, as the end of its client does with a stream.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

PARTS_BYTES: Final = 128 * 1024
"""Of a body: so much waits for the handler before the connection stops reading, and one piece of the socket more."""


class BodyParts:
    """The pieces of one body between the connection and one handler; both work on the loop."""

    __slots__ = ("_pieces", "_size", "_taken", "_wake", "ended")

    def __init__(self, taken: Callable[[int], None]) -> None:
        """`taken` is called with how much the handler let go of, and with 0 as it takes a piece."""
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._taken = taken
        self._wake: asyncio.Future[None] | None = None
        self.ended = False
        """Whether the body is here to its end, taken or not."""

    @property
    def is_full(self) -> bool:
        """Whether the handler must take a piece before there is room for another one."""
        return self._size >= PARTS_BYTES

    def put(self, piece: bytes) -> None:
        """Add what arrived."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._notify()

    def end(self) -> None:
        """Record that nothing follows."""
        self.ended = True
        self._notify()

    def __aiter__(self) -> "BodyParts":
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece once it is here; the connection goes on with the body."""
        while not self._pieces:
            if self.ended:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        piece = self._pieces.popleft()
        self._size -= len(piece)
        self._taken(0)
        return piece

    def let_go(self, size: int) -> None:
        """Record that so many bytes of what was taken are not held any more as they came."""
        self._taken(size)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
