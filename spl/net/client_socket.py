"""One connection of the client, and the deadline of an exchange over it.

An exchange ends when nothing moves for `answer_timeout_s`, or when it moves at less than FLOOR_BYTES_S.  A deadline
for the whole was rejected: what a slow link does not carry within it would be begun again and again, and never arrive.
"""

import asyncio
import logging
from typing import Final

from ..core.event import event
from ..core.limits import Limits
from .address import ReachError
from .http1 import Mark, ResponseHead, ResponseParser, WireError
from .sockets import FLOOR_BYTES_S, hang_up, unsent_bytes

_READ_BYTES = 64 * 1024  # read from a socket at once
_BODY_TURN_BYTES: Final = 256 * 1024
"""Of a body, read in one turn; nothing but its framing is parsed."""
_SEND_BYTES: Final = 64 * 1024
"""Of a request, given to the socket at once."""
PIECE_COST_BYTES: Final = 1024
"""What a piece costs besides its bytes: it may hold 32 chunks of one byte (http1.py), which take 45 us."""

log = logging.getLogger("spl.net")


class MovingDeadline:
    """The deadline of one exchange, which moves on while bytes do."""

    __slots__ = ("_began_s", "_bytes", "_moved_s", "_silence_s", "_unsent", "_until", "_watching")

    def __init__(self, until: asyncio.Timeout, silence_s: float) -> None:
        """`until` is set to `silence_s` from now."""
        self._until, self._silence_s = until, silence_s
        self._began_s = self._moved_s = asyncio.get_running_loop().time()
        self._bytes = self._unsent = 0
        self._watching: asyncio.TimerHandle | None = None

    def moved(self, size: int) -> None:
        """Count bytes that were sent or came; the deadline is moved at most eight times within the silence allowed."""
        self._bytes += size
        now_s = asyncio.get_running_loop().time()
        if now_s < self._moved_s + self._silence_s / 8 or self._until.expired():
            return
        self._moved_s = now_s
        slowest_s = self._began_s + self._bytes / FLOOR_BYTES_S
        self._until.reschedule(self._silence_s + min(now_s, slowest_s))

    def watch(self, writer: asyncio.StreamWriter) -> None:
        """Count from now on what leaves the buffers of the connection and the system, which may take minutes."""
        unsent = unsent_bytes(writer.transport)
        if unsent < self._unsent:
            self.moved(self._unsent - unsent)
        self._unsent = unsent
        if unsent:
            self._watching = asyncio.get_running_loop().call_later(self._silence_s / 8, self.watch, writer)

    def end(self) -> None:
        """Watch no longer."""
        if self._watching is not None:
            self._watching.cancel()


class ClientSocket:
    """One connection: sends a request, reads what its parser makes of the answer."""

    __slots__ = ("address", "answered", "expiry", "limits", "origin", "parser", "progress", "reader", "writer")

    expiry: asyncio.TimerHandle

    def __init__(
        self, limits: Limits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, origin: str
    ) -> None:
        self.limits = limits
        self.reader = reader
        self.writer = writer
        self.address = address
        self.origin = origin
        self.answered = False  # a byte of the present answer has come
        self.progress: MovingDeadline | None = None
        self.parser = ResponseParser(limits, "GET", 0)

    async def is_quiet(self) -> bool:
        """Return whether an idle connection is open and sent nothing; otherwise it is ended.

        A server that says 408 before it closes an idle connection would else have
        that taken for the answer to the next request.
        """
        try:
            for _ in range(2):  # turns of the loop: what has arrived reaches the reader before it is asked
                await asyncio.sleep(0)
            async with asyncio.timeout(0):
                await self.reader.read(1)
        except TimeoutError:
            return True
        except OSError:
            log.debug(**event("http.idle_lost", origin=self.origin, msg="kept connection was lost"))
        except asyncio.CancelledError:
            self.abort()  # it belongs to no one else now
            raise
        self.abort()
        return False

    async def ask(self, data: bytes, method: str, body_bytes: int) -> ResponseHead:
        """Send a request and return its answer's head.  Raises ReachError."""
        self.parser = ResponseParser(self.limits, method, body_bytes)
        self.answered = False
        try:
            await self._send(data)
        except (OSError, RuntimeError):
            # The peer may have refused what it did not read to the end: its answer is looked for all the same.
            log.debug(**event("http.half_sent", origin=self.origin, msg="request not taken whole"))
        head = await self.next()
        assert isinstance(head, ResponseHead)
        return head

    async def _send(self, data: bytes) -> None:
        if len(data) <= _SEND_BYTES or self.progress is None:
            self.writer.write(data)
            await self.writer.drain()
            return
        view = memoryview(data)
        for start in range(0, len(view), _SEND_BYTES):
            piece = view[start : start + _SEND_BYTES]
            self.writer.write(piece)
            await self.writer.drain()
            self.progress.moved(len(piece))
        self.progress.watch(self.writer)

    async def read_body(self, body_bytes: int | None = None) -> bytes:
        """Return the rest of the answer, at most `body_bytes` if given.  Raises ReachError.

        Pieces are joined as they come, because one in a list takes 40 bytes besides its own.  Other tasks get a turn
        every _BODY_TURN_BYTES: `next` suspends only when nothing is there, and the peer chooses what it sends.
        """
        body = bytearray()
        turn_bytes = 0
        while isinstance(piece := await self.next(), bytes):
            body += piece
            if body_bytes is not None and len(body) > body_bytes:
                raise ReachError("answer-malformed", f"{self.origin}: the body is over the limit")
            turn_bytes += len(piece) + PIECE_COST_BYTES
            if turn_bytes >= _BODY_TURN_BYTES:
                turn_bytes = 0
                await asyncio.sleep(0)
        return bytes(body)

    async def next(self) -> ResponseHead | bytes | Mark:
        """Return the parser's next event, reading as needed; the caller sets the deadline.  Raises ReachError."""
        try:
            while (event := self.parser.next()) is None:
                data = await self.reader.read(_READ_BYTES)
                if data:
                    self.answered = True
                    if self.progress is not None:
                        self.progress.moved(len(data))
                    self.parser.feed(data)
                    continue
                self.parser.feed_end()
                event = self.parser.next()
                if event is None:
                    raise ReachError("disconnected", f"{self.origin} ended the connection before its answer was whole")
                break
        except WireError as exc:
            raise ReachError("answer-malformed", f"{self.origin}: {exc.message}") from exc
        except OSError as exc:
            raise ReachError("disconnected", f"{self.origin}: {exc.strerror or type(exc).__name__}") from exc
        return event

    def abort(self) -> None:
        """End the connection now."""
        self.writer.transport.abort()

    async def close(self, linger_s: float) -> None:
        """Send what is queued and end the connection."""
        self.expiry.cancel()
        await hang_up(self.writer, linger_s)
