"""TLS handshakes are begun late and few at once: what strangers cost before they have said anything is a socket.

TLS takes 50 to 270 KiB a connection from its first moment, and anyone may connect.  Three rules bound that:

- A handshake begins with the first bytes that the peer has sent.  Until then nothing but its socket is held.
- At most `count` are under way, `share` of them from one source; a trusted proxy stands for many and has no share.
  Further ones wait with what they sent in the kernel's buffer, and the source with the fewest under way is next.
- While any waits, one that is under way has a fifth of its time.  So handshakes that stand half sent, from as many
  addresses as there are turns, hold up a newcomer for two seconds and not for ten.

Rejected: to leave those that wait in the listener's backlog, because it is one queue for all sources; and to end the
oldest for each newcomer, because a burst behind one address would then end its own.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .address import Proxies, source_of

COUNT: Final = 64
SHARE: Final = 8
HURRY: Final = 5


class Turn:
    """A handshake that is under way, or waits for that until `free` has a result."""

    __slots__ = ("began", "free", "share", "source", "task")

    def __init__(self, source: str, share: int, task: asyncio.Task[None]) -> None:
        self.source, self.share, self.task = source, share, task
        self.began = 0.0
        self.free: asyncio.Future[None] = task.get_loop().create_future()


class Handshakes:
    """The handshakes of one server."""

    def __init__(self, proxies: Proxies, count: int = COUNT, share: int = SHARE) -> None:
        self._proxies, self._count, self._share = proxies, count, share
        self._under_way: dict[Turn, None] = {}
        self._sources: Counter[str] = Counter()
        self._waiting: dict[str, dict[Turn, None]] = {}

    @property
    def are_waited_for(self) -> bool:
        """Whether any waits for its turn."""
        return bool(self._waiting)

    @contextmanager
    def turn(self, address: str) -> Iterator[Turn]:
        """Give this task a turn, or a place in the queue, until the end of the block."""
        task = asyncio.current_task()
        assert task is not None
        share = self._count if self._proxies.trusts(address) else self._share
        turn = Turn(source_of(address), share, task)
        self._waiting.setdefault(turn.source, {})[turn] = None
        self._admit()
        try:
            yield turn
        finally:
            self._leave(turn)

    def hurry(self, now: float, allowed_s: float) -> None:
        """While any waits, end those that have been under way for a fifth of `allowed_s`."""
        if self._waiting:
            for turn in self._under_way:
                if turn.began + allowed_s / HURRY <= now:
                    turn.task.cancel()

    def _admit(self) -> None:
        while len(self._under_way) < self._count:
            ready = [turn for turn in map(_first, self._waiting.values()) if self._sources[turn.source] < turn.share]
            if not ready:
                return
            turn = min(ready, key=lambda each: self._sources[each.source])
            self._end_wait(turn)
            self._under_way[turn] = None
            self._sources[turn.source] += 1
            turn.began = turn.task.get_loop().time()
            if not turn.free.done():  # cancelled, and about to leave
                turn.free.set_result(None)

    def _leave(self, turn: Turn) -> None:
        if turn not in self._under_way:
            self._end_wait(turn)
            return
        del self._under_way[turn]
        self._sources[turn.source] -= 1
        if not self._sources[turn.source]:
            del self._sources[turn.source]
        self._admit()

    def _end_wait(self, turn: Turn) -> None:
        del self._waiting[turn.source][turn]
        if not self._waiting[turn.source]:
            del self._waiting[turn.source]


def _first(turns: dict[Turn, None]) -> Turn:
    return next(iter(turns))


async def begun(sock: socket.socket) -> None:
    """Return once the peer has sent something, or has gone."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, arrived)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
