"""The HTTP client: one request, or one event stream, to an address that was judged.

Nothing of it is trusted: answers are bounded in size and time, certificates are
always verified, and the address that was judged is the address that is dialled
(`dialer.py`).

An exchange ends when nothing moves for `answer_timeout_s`, or when it moves at
less than FLOOR_BYTES_S.  A deadline for the whole was rejected: what a slow link
does not carry within it would be begun again and again, and never arrive.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urljoin

from ..core.errors import SplError
from ..core.event import event
from ..core.limits import Limits
from ..core.value import dataclass, field
from .address import ReachError, Url, parse_url
from .deflate import CODING, Inflater
from .dialer import Dialer, DialPolicy, Resolve
from .heads import encode_request
from .http1 import UNBOUNDED, Mark, ResponseHead, ResponseParser, WireError
from .sockets import FLOOR_BYTES_S, Verifying, hang_up, unsent_bytes
from .sse import MEDIA_TYPE, Event, EventParser

_READ_BYTES = 64 * 1024  # read from a socket at once
_TURN_BYTES: Final = 16 * 1024
"""Of an event stream, parsed in one turn of the loop: 16 KiB of empty lines take some 10 ms."""
_BODY_TURN_BYTES: Final = 256 * 1024
"""Of a body, read in one turn; nothing but its framing is parsed."""
_SEND_BYTES: Final = 64 * 1024
"""Of a request, given to the socket at once."""
_PIECE_COST_BYTES: Final = 1024
"""What a piece costs besides its bytes: it may hold 32 chunks of one byte (http1.py), which take 45 us."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

log = logging.getLogger("spl.net")

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer; `address` is the IP address that gave it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    address: str


class HttpClient:
    """Requests over at most one idle connection per origin and policy."""

    def __init__(self, limits: Limits, *, tls: Verifying | None, resolve: Resolve | None = None) -> None:
        """`tls` None refuses https; `resolve(host, port)` returns addresses in text."""
        self._limits = limits
        self._dialer = Dialer(tls, resolve)
        self._idle: dict[tuple[str, DialPolicy], _Socket] = {}
        self._closed = False

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        timeout_s: float | None = None,
        answer_bytes: int | None = None,
        dial: DialPolicy,
        retry_safe: bool = False,
    ) -> Reply:
        """Return the answer, whatever its status; redirects of a GET are followed within the origin.

        A kept connection that ended before a byte of the answer is replaced once for
        GET, HEAD and `retry_safe` requests.  With `timeout_s` all of it ends by then,
        otherwise it goes on as long as bytes move.  Raises ReachError.
        """
        where = parse_url(url)
        limit = self._limits.answer_bytes if answer_bytes is None else answer_bytes
        fields, silence_s = tuple(headers), self._limits.answer_timeout_s
        try:
            async with asyncio.timeout(silence_s if timeout_s is None else timeout_s) as until:
                progress = _Progress(until, silence_s) if timeout_s is None else None
                for _ in range(self._limits.redirects_count + 1):
                    reply = await self._fetch_once(method, where, fields, body, limit, dial, retry_safe, progress)
                    if method != "GET" or reply.status not in _REDIRECTS:
                        return reply
                    where = _redirected(where, reply)
        except TimeoutError as exc:
            raise ReachError("timeout", f"{where.origin} did not answer in time") from exc
        raise ReachError("redirect", f"{where.origin} redirects more than {self._limits.redirects_count} times")

    @asynccontextmanager
    async def stream(self, url: str, *, headers: Headers = (), dial: DialPolicy) -> AsyncIterator["EventStream"]:
        """Open an event stream for the time of the `async with`; it has a connection of its own.

        Raises ReachError; for another status than 200 "peer-4xx", "peer-5xx" or "answer-malformed" with `peer_status`
        and `peer_body`; for another media type "answer-malformed".
        """
        where = parse_url(url)
        asked = (("accept", MEDIA_TYPE), ("accept-encoding", CODING), ("cache-control", "no-cache"), *headers)
        sock: _Socket | None = None
        try:
            try:
                async with asyncio.timeout(self._limits.answer_timeout_s):
                    sock = await self._connect(where, dial)
                    head = await sock.ask(encode(where, "GET", asked), "GET", UNBOUNDED)
                    await self._check_stream(where, sock, head)
            except TimeoutError as exc:
                raise ReachError("timeout", f"{where.origin} did not open the stream in time") from exc
            opened = EventStream(sock, head, self._limits)
            try:
                yield opened
            finally:
                opened.close()
        finally:
            if sock is not None:
                sock.abort()

    async def close(self) -> None:
        """Close the idle connections; requests that run end by themselves."""
        self._closed = True
        idle, self._idle = list(self._idle.values()), {}
        for sock in idle:
            await sock.close(self._limits.linger_s)

    async def _fetch_once(
        self, method: str, where: Url, headers: Headers, body: bytes, limit: int, policy: DialPolicy, retry_safe: bool,
        progress: "_Progress | None",
    ) -> Reply:  # fmt: skip
        data = encode(where, method, headers, body)
        kept = self._take_idle((where.origin, policy))
        if kept is not None and await kept.is_quiet():
            try:
                return await self._exchange(kept, data, method, where, limit, policy, progress)
            except ReachError as exc:
                if exc.code != "disconnected" or kept.answered or not (retry_safe or method in _REPEATABLE):
                    raise
        return await self._exchange(await self._connect(where, policy), data, method, where, limit, policy, progress)

    async def _exchange(
        self, sock: "_Socket", data: bytes, method: str, where: Url, limit: int, policy: DialPolicy,
        progress: "_Progress | None",
    ) -> Reply:  # fmt: skip
        """Send one request and read its answer; the connection is kept or ended here in any case."""
        kept, sock.progress = False, progress
        try:
            head = await sock.ask(data, method, limit)
            _check_coding(where, head)
            body = await sock.read_body()
            if head.keep_alive and not sock.parser.buffered:
                kept = self._keep((where.origin, policy), sock)
            return Reply(head.status, head.headers, body, sock.address)
        finally:
            if progress is not None:
                progress.end()
            sock.progress = None
            if not kept:
                sock.abort()

    async def _check_stream(self, where: Url, sock: "_Socket", head: ResponseHead) -> None:
        if head.status in _REDIRECTS:
            raise ReachError("redirect", f"{where.origin} redirects its event stream")
        if head.status != 200 or _coding(head) != CODING:
            _check_coding(where, head)
        if head.status != 200:
            body = await sock.read_body(self._limits.handshake_bytes)
            code = "peer-5xx" if head.status >= 500 else "peer-4xx" if head.status >= 400 else "answer-malformed"
            text = f"{where.origin} answered {head.status}"
            raise ReachError(code, text, peer_status=head.status, peer_headers=head.headers, peer_body=body)
        if head.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise ReachError("answer-malformed", f"{where.origin} sent no event stream")

    # -- connections

    def _take_idle(self, key: tuple[str, DialPolicy]) -> "_Socket | None":
        sock = self._idle.pop(key, None)
        if sock is None:
            return None
        sock.expiry.cancel()
        return sock

    def _keep(self, key: tuple[str, DialPolicy], sock: "_Socket") -> bool:
        if self._closed or key in self._idle:
            return False

        def expire() -> None:
            if self._idle.get(key) is sock:
                del self._idle[key]
            sock.abort()

        sock.expiry = asyncio.get_running_loop().call_later(self._limits.pool_idle_s, expire)
        self._idle[key] = sock
        return True

    async def _connect(self, where: Url, policy: DialPolicy) -> "_Socket":
        """Return a fresh connection."""
        try:
            made = await self._dialer.connect(where, policy, self._limits.connect_timeout_s)
        except ReachError as exc:
            exc.reached = False
            raise
        return _Socket(self._limits, made.reader, made.writer, made.address, where.origin)


class EventStream:
    """An open event stream: iterate over it; `status` is 200, `address` the IP address of the source.

    Ends by StopAsyncIteration when the source ends it properly.  Raises ReachError
    "timeout" after `stream_silence_s` without a byte, "disconnected", "answer-malformed".

    A read is inflated and parsed as its events are taken, and other tasks get a turn every _TURN_BYTES: one read may
    become megabytes, and a source chooses what it sends.

    One timer serves many reads, since a deadline for each costs more: it looks how long the present one has waited.
    """

    def __init__(self, sock: "_Socket", head: ResponseHead, limits: Limits) -> None:
        self.status = head.status
        self.headers = head.headers
        self.address = sock.address
        self._sock = sock
        self._silence_s = limits.stream_silence_s
        self._parser = EventParser(limits.event_bytes)
        self._inflater = Inflater() if _coding(head) == CODING else None
        self._plain: Iterator[bytes] = iter(())  # of the read that is being parsed
        self._ready: Iterator[Event] = iter(())  # of the piece that was parsed last
        self._turn_bytes = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._reads_since: float | None = None  # when the read that waits began to
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False

    def close(self) -> None:
        """Read no more."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def retry_ms(self) -> int | None:
        """The reconnection delay that the source asked for last."""
        return self._parser.retry_ms

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> Event:
        while (found := next(self._ready, None)) is None:
            if self._turn_bytes >= _TURN_BYTES:
                self._turn_bytes = 0
                await asyncio.sleep(0)
            try:
                plain = next(self._plain, None)
                if plain is not None:
                    self._turn_bytes += len(plain)
                    self._ready = iter(self._parser.feed(plain))
                    continue
            except WireError as exc:
                raise ReachError("answer-malformed", f"{self._sock.origin}: {exc.message}") from exc
            if self._ended:
                raise StopAsyncIteration
            await self._read()
        return found

    async def _read(self) -> None:
        """Wait for the next piece of the body."""
        self._reads_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_s, self._look)
        try:
            piece = await self._sock.next()
        except ReachError:
            self._check_late()
            raise
        finally:
            self._reads_since = None
        self._check_late()
        self._turn_bytes += _PIECE_COST_BYTES
        if isinstance(piece, bytes):
            self._plain = _cut(self._inflater.feed(piece) if self._inflater is not None else (piece,))
        else:
            self._ended = True

    def _look(self) -> None:
        """End the connection if the read that waits has waited too long."""
        self._timer = None
        if self._reads_since is None:
            return  # the next read sets a timer
        if (left_s := self._reads_since + self._silence_s - self._loop.time()) > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._is_late = True
            self._sock.abort()

    def _check_late(self) -> None:
        if self._is_late:
            raise ReachError("timeout", f"{self._sock.origin} was silent for {self._silence_s:g} s")


class _Progress:
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


class _Socket:
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
        self.progress: _Progress | None = None
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
            turn_bytes += len(piece) + _PIECE_COST_BYTES
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


def encode(where: Url, method: str, headers: Headers, body: bytes = b"") -> bytes:
    """Return the request's bytes with Host and Accept-Encoding.  Raises ReachError "url-invalid"."""
    fields = [("host", where.authority), *headers]
    if not any(name == "accept-encoding" for name, _ in fields):
        fields.append(("accept-encoding", "identity"))
    try:
        return encode_request(method, where.target, fields, body)
    except WireError as exc:
        raise ReachError("url-invalid", f"{where.origin}: {exc.message}") from exc


def _coding(head: ResponseHead) -> str:
    return head.headers.get("content-encoding", "identity").lower()


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces by at most _TURN_BYTES."""
    for piece in pieces:
        for start in range(0, len(piece), _TURN_BYTES):
            yield piece[start : start + _TURN_BYTES]


def _check_coding(where: Url, head: ResponseHead) -> None:
    if _coding(head) != "identity":
        raise ReachError("answer-malformed", f"{where.origin} encodes its answer though asked not to")


def _redirected(where: Url, reply: Reply) -> Url:
    """Return where a redirect leads.  Raises ReachError "redirect" for another origin."""
    target = reply.headers.get("location", "")
    try:
        found = parse_url(urljoin(where.origin + where.target, target.partition("#")[0]))
    except (ValueError, SplError) as exc:
        raise ReachError("redirect", f"{where.origin} redirects to no valid URL") from exc
    if not target or found.origin != where.origin:
        raise ReachError("redirect", f"{where.origin} redirects to {found.origin}")
    return found
