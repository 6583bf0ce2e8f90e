"""One accepted HTTP/1.1 connection: from its bytes to requests, and from the answers to bytes; phases.py ends it.

An app that answers at once is called inline, one that promises the answer (`Later`) calls back, and any other gets a
task for the request: a task costs half of what a small request does.

Every failure of one request ends in `__exit__`, inline or in its task, and the server serves on.  A connection is the
context manager itself: an object for each request would cost more than the rest of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from math import inf
from typing import Final, cast

from ..core.errors import SplError
from ..core.event import event
from .admission import Seat
from .heads import CONTINUE, LAST_CHUNK, encode_chunk
from .http1 import END, RequestHead, RequestParser
from .parts import BodyParts
from .phases import BUSY, OVER, STOPPING_S, Phased, Stage
from .routes import NOTHING, HttpError, Later, Match, Request, Response, check_media, parse_query
from .shared import Shared, error_of

READ_AHEAD_BYTES: Final = 64 * 1024  # of pipelined requests, while one is answered
WRITE_HIGH_BYTES: Final = 64 * 1024  # unsent bytes of one connection before its answer waits
_JOIN_BYTES = 64 * 1024  # a body up to this is copied behind its head: one send instead of two

log = logging.getLogger("spl.net")


class Connection(Phased):
    """The protocol object of one connection; slots, because thousands stand idle."""

    __slots__ = (
        "head", "is_due", "keep_alive", "local", "match", "parser", "parts", "peer", "pieces", "query", "read_paused",
        "room", "scheme", "seat", "task", "transport", "unsent", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, shared: "Shared[Connection]", seat: Seat | None, *, local: bool, scheme: str) -> None:
        """`seat` None: there is no free slot, and the connection only answers 503."""
        super().__init__(shared)
        self.seat = seat
        self.local = local
        self.scheme = scheme
        self.peer = "unix"
        self.parser = RequestParser(shared.limits, shared.known)
        self.head: RequestHead | None = None
        self.match: Match | None = None
        self.query: Mapping[str, str] = NOTHING
        self.pieces: list[bytes] = []
        self.parts: BodyParts | None = None  # of a body that the app takes as it arrives
        self.keep_alive = True
        self.task: asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.write_paused = self.read_paused = False
        self.is_due = False  # a call of _advance is scheduled
        self.unsent = 0

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's has another base class
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        if not self.local:
            name = transport.get_extra_info("peername")
            self.peer = str(name[0]) if name else ""
        shared = self.shared
        shared.connections[self] = None
        self._wait(Stage.IDLE, shared.limits.idle_timeout_s)
        if self.seat is None:
            shared.refused += 1
        else:
            self.seat.holder = self
        if shared.stopping:
            self.close()
        elif self.seat is None:
            self._refuse(SplError("too-many-connections"))

    def data_received(self, data: bytes) -> None:
        if self.phase in OVER:
            return  # read only so that the peer, still sending, gets to see the answer
        self.parser.feed(data)
        if self.phase not in BUSY and not self.is_due:
            self._advance()
        elif self.parser.buffered > READ_AHEAD_BYTES and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Let a request that is being answered end; the client of a stream counts as gone."""
        gone = self._is_streaming() and not self._is_held_back()  # what the app has not taken may hold the body's end
        if self.phase not in (Stage.ANSWER, Stage.FLUSH) or gone or self.scheme == "https":
            self._cancel_stream()
            self.close()
            return False
        self.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_stream()
        self.phase = Stage.CLOSED
        self.deadline = inf
        self.pieces, self.parts = [], None
        shared = self.shared
        if self.seat is None:
            shared.refused -= 1
        else:
            shared.admission.leave(self.seat)
        shared.connections.pop(self, None)
        if not shared.connections:
            shared.emptied.set()

    def pause_writing(self) -> None:
        self.write_paused = True
        self.unsent = self.transport.get_write_buffer_size()
        if self.phase in BUSY:
            self.deadline = self._in(self.shared.limits.write_stall_timeout_s)

    def resume_writing(self) -> None:
        self.write_paused = False
        self.shared.admission.taken_all(self.seat)
        if self.phase in BUSY:
            self.deadline = inf
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
        if self.phase is Stage.FLUSH:
            self._wait(Stage.IDLE, self.shared.limits.idle_timeout_s)
            # Not inline: uvloop calls this from inside its own write.
            self.shared.loop.call_soon(self._advance)

    # -- called by the server

    def expire(self, now: float) -> None:
        """End what the peer's silence left open; called when `deadline` has passed."""
        if self.phase in (Stage.HEAD, Stage.BODY):
            self._refuse(HttpError("request-timeout"))
        elif self.phase is Stage.IDLE or self.phase is Stage.LINGER:
            self.close()
        else:
            size = self.transport.get_write_buffer_size()
            if size >= self.unsent:
                log.info(**event("http.stalled", peer=self.peer, bytes=size, msg="peer stopped reading"))
                self.transport.abort()
            self.unsent = size
            self.deadline = self._in(self.shared.limits.write_stall_timeout_s)

    def stop(self) -> None:
        """Close when idle; otherwise after the request that is being read or answered, while the peer does its part."""
        self.keep_alive = False
        if self.phase is Stage.IDLE:
            self.close()
        elif self.deadline != inf:
            self.unsent = self.transport.get_write_buffer_size()
            self.deadline = min(self.deadline, self._in(STOPPING_S))

    def close(self) -> None:
        """Close once everything written is sent; a peer that takes nothing of it is cut."""
        limits = self.shared.limits
        self.unsent = self.transport.get_write_buffer_size()
        self._wait(Stage.CLOSING, limits.write_stall_timeout_s if self.unsent else limits.linger_s)
        self.transport.close()

    def abort(self) -> None:
        """Close now, whatever is unsent, at the stop or for a newcomer; the task of this connection is cancelled."""
        if self.task is not None:
            self.task.cancel()
        self.phase = Stage.CLOSED  # a request that is buffered, or was parsed halfway, is not carried out any more
        self.transport.abort()

    # -- reading

    def _advance(self) -> None:
        """Take what the parser has, up to `pipelined_count` requests and pieces of bodies in one go."""
        self.is_due = False
        with self:
            for _ in range(self.shared.limits.pipelined_count):
                if not self._step():
                    return
            self.is_due = True
            self.shared.loop.call_soon(self._advance)

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> bool:
        """Refuse the request that failed; cut an answer that has begun, so that no client can take it for whole.

        An SplError in a stream is no failure of ours: the app withdraws what it began to send.
        """
        if not isinstance(exc, Exception):
            return False
        error = error_of(exc)
        cut = self.phase in (Stage.STREAM, Stage.LINGER)
        if isinstance(exc, SplError) and self.phase is Stage.STREAM:
            log.info(**event("http.cut", peer=self.peer, code=exc.code, msg="answer cut short"))
        elif cut or error.code == "internal":
            log.exception(**event("http.failed", peer=self.peer, msg="request failed"))
        if cut:
            self.phase = Stage.CLOSED
            self.transport.abort()
        else:
            self._refuse(error)
        return True

    def _step(self) -> bool:
        """Read a head or a piece of a body, and start the answer of a whole request; return whether to go on."""
        phase = self.phase
        if phase is not Stage.BODY:
            if phase is not Stage.IDLE and phase is not Stage.HEAD:
                return False
            self.head = None
            head = self.parser.next()
            if head is None:
                self._wait_for_head()
                self._read_on()
                return False
            assert isinstance(head, RequestHead)
            if not self._begin(head):
                return True
        event = self.parser.next()
        if event is END:
            if self.parts is None:
                self._answer()
            else:
                self.phase, self.deadline = Stage.ANSWER, inf
                self.parts.end()
            return self.parser.buffered > 0 or self.read_paused
        if self.phase is not Stage.BODY:
            self._wait(Stage.BODY, self.shared.limits.body_timeout_s)
            if event is None and self.head is not None and self.head.expects:
                self._write(CONTINUE)
        if isinstance(event, bytes):
            self.shared.admission.hold(self.seat, len(event), self.peer)
            return self._keep(event)
        if self.seat is not None and not self.shared.stopping:
            self.deadline = self.seat.moved_s(self.shared.loop.time()) + self.shared.limits.body_timeout_s
        self._read_on()
        return False

    def _wait_for_head(self) -> None:
        limits = self.shared.limits
        if self.parser.idle and self.phase is not Stage.IDLE:
            self._wait(Stage.IDLE, limits.idle_timeout_s)
        elif not self.parser.idle and self.phase is Stage.IDLE:
            self._wait(Stage.HEAD, limits.head_timeout_s)

    def _read_on(self) -> None:
        """Take more from the peer, now that what it sent ahead is used up."""
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _begin(self, head: RequestHead) -> bool:
        """Ask the app for the route and allow the body; return False when the request is answered already.

        A request refused here whose body was not read ends the connection.
        """
        self.head = head
        self.match = self.parts = None
        self.pieces.clear()
        self.keep_alive = head.keep_alive and not self.shared.stopping
        try:
            self.query = parse_query(head.query)
            self.match = match = self.shared.app.match(head)
            if head.length != 0:
                self.parser.take_body(match.route.body_bytes)
                if check_media(head.headers, match.route) == match.route.in_parts:
                    self.parts = BodyParts(self._taken)
                    self._answer()
        except SplError as error:
            if head.length != 0:
                raise
            self.parser.next()  # END
            self._send(self.shared.refusal(error, self.head))
            return False
        return True

    def _keep(self, piece: bytes) -> bool:
        """Keep a piece of a body for the app; return False if the app must take some of it before there is more."""
        if self.parts is None:
            self.pieces.append(piece)
            return True
        self.parts.put(piece)
        if self.parts.is_full:
            self.phase, self.deadline = Stage.ANSWER, inf  # the peer owes nothing
        return not self.parts.is_full

    def _taken(self, size: int) -> None:
        """Go on with a body of which the app took a part, or let go of so much of it."""
        self.shared.admission.let_go(self.seat, size)
        if self._is_held_back() and not self.is_due and self.parts and not self.parts.is_full:
            self._wait(Stage.BODY, self.shared.limits.body_timeout_s)
            self.is_due = True
            self.shared.loop.call_soon(self._advance)

    def _is_held_back(self) -> bool:
        """Return whether a body waits for the app to take more of it."""
        return self.phase is Stage.ANSWER and self._is_unread()

    # -- answering

    def _answer(self) -> None:
        head, match = self.head, self.match
        assert head is not None
        assert match is not None
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces = []
        request = Request(
            head.method, head.path, self.query, head.headers, body, match.params,
            self.peer, self.local, head.target, self.scheme, self.shared.client_of(self.peer, head), self.parts,
        )  # fmt: skip
        try:
            answer = self.shared.app.respond(request, match)
        except SplError as error:
            if self._is_unread():
                raise
            answer = self.shared.refusal(error, self.head)
        if isinstance(answer, Response) and isinstance(answer.body, bytes):
            assert not self._is_unread(), "the handler of a body in parts reads it first"
            self._send(answer)
            return
        self.phase = Stage.ANSWER
        self.deadline = self._in(self.shared.limits.write_stall_timeout_s) if self.write_paused else inf
        if isinstance(answer, Later):
            answer.then(self._give, self.shared.loop)
            return
        tasks: asyncio.TaskGroup = self.shared.tasks
        self.task = tasks.create_task(self._work(answer))

    def _give(self, make: Callable[[], Response]) -> None:
        """Send the answer that was promised."""
        with self:
            try:
                response = make()
            except SplError as error:
                response = self.shared.refusal(error, self.head)
            self._send(response)
        if self.parser.buffered or self.read_paused:
            self._advance()

    async def _work(self, answer: Response | Awaitable[Response]) -> None:
        """Await the app's answer and send it."""
        with self:
            try:
                response = answer if isinstance(answer, Response) else await answer
            except SplError as error:
                if self._is_unread():
                    raise
                response = self.shared.refusal(error, self.head)
            if isinstance(response.body, bytes):
                self._send(response)
            else:
                await self._stream(response, response.body)
                self._finish()
        self.task = None
        self._advance()

    def _send(self, response: Response) -> None:
        """Write an answer whose body is bytes, and go on with the next request."""
        body = response.body
        assert isinstance(body, bytes)
        bare = (self.head is not None and self.head.method == "HEAD") or response.status in (204, 304)
        if self.keep_alive and not response.headers and not bare and len(body) <= _JOIN_BYTES:
            begun = self.shared.begun(response.status, response.content_type)
            self._write(b"%b%d\r\n\r\n%b" % (begun, len(body), body))
        else:
            head, body = self._encode(response, len(body)), b"" if bare else body
            if len(body) <= _JOIN_BYTES:
                self._write(head + body)
            else:
                self._write(head)
                self._write(body)
        self._finish()

    async def _stream(self, response: Response, body: AsyncIterator[bytes]) -> None:
        """Write what the iterator yields, at the peer's pace; the iterator is closed in any case."""
        head = self.head
        assert head is not None
        chunked = head.minor == 1
        self.keep_alive = self.keep_alive and chunked
        try:
            if self.phase in OVER:
                return  # the client went while the app prepared the stream
            self._write(self._encode(response, None))
            self.phase = Stage.STREAM
            if head.method != "HEAD":
                async for piece in body:
                    if piece:
                        self._write(encode_chunk(piece) if chunked else piece)
                    piece = b""  # what the peer does not take yet is held once, by the transport
                    if self.write_paused:
                        self.room = self.shared.loop.create_future()
                        await self.room  # under the stall deadline: expire() cancels this task
                if chunked:
                    self._write(LAST_CHUNK)
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def _encode(self, response: Response, length: int | None) -> bytes:
        """Return the answer's head; `length` None is a streamed body."""
        chunked = length is None and self.head is not None and self.head.minor == 1
        return response.head(length, self.shared.date(), chunked=chunked, last=not self.keep_alive)

    def _finish(self) -> None:
        """Go to the next request, or close; or first wait until the peer took this one."""
        if self.phase in OVER:
            return
        self.head = self.match = self.parts = None  # an idle connection keeps nothing of its requests
        self.shared.admission.release(self.seat)
        if not self.keep_alive or self.shared.stopping:
            self.close()
        elif self.write_paused:
            self._wait(Stage.FLUSH, self.shared.limits.write_stall_timeout_s)
        else:
            self._wait(Stage.IDLE, self.shared.limits.idle_timeout_s)
        if self.write_paused:
            self.unsent = self.transport.get_write_buffer_size()
            self.shared.admission.keep_unread(self.seat, self.unsent, self.peer)

    # -- refusing

    def _refuse(self, error: SplError) -> None:
        """Answer a request that cannot be read to its end, and close once that answer can have arrived.

        Closing at once would reset the connection under what the client still sends, and it would never see why.
        """
        if self.phase in OVER:
            return
        self._cancel_stream()
        self.keep_alive = False
        self.pieces, self.parts = [], None
        self.shared.admission.release(self.seat)
        self._wait(Stage.LINGER, self.shared.limits.linger_s)
        with self:
            response = self.shared.refusal(error, self.head)
            assert isinstance(response.body, bytes)
            head = self._encode(response, len(response.body))
            self._write(head if self.head is not None and self.head.method == "HEAD" else head + response.body)
            if self.transport.can_write_eof() and not self.transport.is_closing():
                self.transport.write_eof()
            self._read_on()

    # -- small parts

    def _write(self, data: bytes) -> None:
        try:
            if not self.transport.is_closing():
                self.transport.write(data)
        except RuntimeError:  # uvloop's, between the end of its handle and connection_lost
            return

    def _is_unread(self) -> bool:
        """Return whether the app has a body of which the end has not arrived."""
        return self.parts is not None and not self.parts.ended

    def _is_streaming(self) -> bool:
        streams = self.match is not None and self.match.route.streams
        return streams or self.phase is Stage.STREAM or self._is_unread()

    def _cancel_stream(self) -> None:
        """Stop an answer that may go on for long, or lacks its body; another ends by itself, its work is wanted."""
        if self.task is not None and self._is_streaming():
            self.task.cancel()
            self.task = None  # it keeps the frames that it ended in, and with them this
