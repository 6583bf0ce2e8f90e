"""HTTP/1.1 without I/O: fed bytes, asked for events, in both roles.

One parser serves three shells: the asyncio server, the asyncio client and the
blocking control client.  A shell calls `feed(bytes)` and then `next()` until it
returns None; the events of one message are

    RequestHead | ResponseHead,  then any number of bytes (pieces of the body),  then END

and the head of the following message is not looked at before END was taken, so
pipelined requests wait in the buffer (`buffered` bytes; the shell stops reading
when that grows).  How the input was cut into pieces never changes the events.

Strict wherever a second reader could see other message borders (RFC 9112 §11.2):
lines end with CRLF, a bare CR or LF and other control characters are refused, so
are obs-fold, space before the colon, a repeated Host, Content-Length,
Transfer-Encoding or Authorization, Transfer-Encoding beside Content-Length, and
every coding but `chunked`.

A chunk costs some 1.4 us whatever its size, so chunks of one byte made a body of 64 KiB cost as much as one of 100 MiB,
on the event loop.  A body may hold _SMALL_CHUNKS_COUNT chunks below _SMALL_CHUNK_BYTES; that is some 2 ms, and an
honest sender that writes a line at a time stays above that size.  An endless stream (UNBOUNDED) is exempt, because its
events are small by nature; its reader shares out the loop instead, for which `next` joins at most _CHUNKS_JOINED
chunks.  Rejected: a cost in bytes for each chunk, which would refuse an honest body of many lines that is within its
limit.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, Generic, TypeVar

from ..core.limits import Limits
from ..core.value import dataclass, field
from .heads import (
    TOKEN_BYTES,
    Parts,
    check_host,
    closes,
    content_length,
    minor_of,
    parse_fields,
    split_lines,
    split_target,
)
from .heads import WireError as WireError

UNBOUNDED: Final = 1 << 62  # body limit of a response that is read as an endless stream

_LINE_SLACK_BYTES = 64  # method, version and spaces around the longest target
_CHUNK_LINE_BYTES = 256  # a size has 15 digits at most, the rest are extensions
_CHUNK_EXTENSIONS_BYTES = 16 * 1024  # a whole message's; RFC 9112 §7.1.1 asks for a bound
_SMALL_CHUNK_BYTES = 64
_SMALL_CHUNKS_COUNT = 1024
_CHUNKS_JOINED = 32
_INTERIM_COUNT = 8  # 100 or 103 comes once or twice; without a bound they would replace the answer

_FRAMING = frozenset({"content-length", "transfer-encoding"})
"""Neither an interim response nor a trailer has them: no other reader may look for a body there."""

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: .*)?")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")


class Mark(Enum):
    """The event that ends a message."""

    END = "end"


END: Final = Mark.END


@dataclass(slots=True)  # not frozen, for each request makes one: that would cost four times as much, 1 us
class RequestHead:
    """One request's head.  `headers` has lower-case names; `length` is None for a chunked body."""

    method: str
    target: str
    path: str
    """Still percent-encoded; "*" for `OPTIONS *`."""
    query: str
    """What follows the first `?`, still encoded, without the `?`."""
    headers: Mapping[str, str] = field(repr=False)
    length: int | None
    keep_alive: bool
    expects: bool
    """The client waits for 100 Continue before it sends the body."""
    minor: int
    """0 for HTTP/1.0, which knows neither chunks nor keep-alive here."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """One response's head.  `length` is None for a body that is chunked or ends with the connection."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    length: int | None
    keep_alive: bool
    """False as well when the body ends with the connection."""


Head = TypeVar("Head", RequestHead, ResponseHead)


class _Phase(Enum):
    HEAD = 0
    LENGTH = 1
    CHUNK_LINE = 2
    CHUNK_DATA = 3
    CHUNK_END = 4
    TRAILERS = 5
    UNTIL_CLOSE = 6
    COMPLETE = 7


class _Parser(ABC, Generic[Head]):
    """What both roles share: the buffer, the search for the head's end, the body."""

    __slots__ = (
        "_blank", "_buffer", "_ended", "_extensions", "_left", "_phase", "_room", "_scanned", "_small", "limits",
    )  # fmt: skip
    passes_blank = False
    """Whether one empty line before a message is passed over."""

    def __init__(self, limits: Limits, body_bytes: int) -> None:
        self.limits = limits
        self._buffer = bytearray()
        self._scanned = 0
        self._blank = False  # whether an empty line was passed over before the message
        self._phase = _Phase.HEAD
        self._left = 0  # bytes of the body, or of the chunk, still to come
        self._room = body_bytes  # bytes that a body without announced length may still bring
        self._extensions = 0
        self._small = 0  # small chunks of the message so far
        self._ended = False

    @property
    def buffered(self) -> int:
        """How many bytes were fed and not yet turned into events."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether no byte of a further message has arrived."""
        return self._phase is _Phase.HEAD and not self._buffer

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._buffer += data

    def feed_end(self) -> None:
        """Record that the peer will send no more: the end of a body that ends with the connection.

        If `next` returns None after this, the message was cut short.
        """
        self._ended = True

    def next(self) -> Head | bytes | Mark | None:
        """Return the next event, or None until more bytes are fed.  Raises WireError."""
        phase = self._phase
        if phase is _Phase.HEAD:
            return self._next_head()
        if phase is _Phase.COMPLETE:
            self._phase = _Phase.HEAD
            return END
        if phase is _Phase.LENGTH:
            return self._next_counted()
        if phase is _Phase.UNTIL_CLOSE:
            return self._next_until_close()
        return self._next_chunked()

    @abstractmethod
    def _parse_head(self, block: bytes) -> Head | None:
        """Return the head and set the body's framing, or None for a head to be skipped."""

    def _next_head(self) -> Head | None:
        buffer = self._buffer
        while True:
            if buffer[:2] == b"\r\n" and not self._blank and self.passes_blank:
                del buffer[:2]
                self._blank = True
            if not buffer or buffer == b"\r":
                return None
            self._check_first_line()
            end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), self.limits.head_bytes)
            if end < 0:
                if len(buffer) >= self.limits.head_bytes:
                    raise WireError("head-too-large", f"the head is over {self.limits.head_bytes} bytes")
                self._scanned = len(buffer)
                return None
            self._scanned, self._blank = 0, False
            block = bytes(buffer[:end])
            del buffer[: end + 4]
            head = self._parse_head(block)
            if head is not None:
                return head

    def _check_first_line(self) -> None:
        """Refuse, as early as it shows, what cannot become a first line."""
        buffer = self._buffer
        if buffer[0] not in TOKEN_BYTES:
            raise WireError("bad-request", "this is not HTTP")
        longest = self.limits.target_bytes + _LINE_SLACK_BYTES
        newline = buffer.find(b"\n", 0, longest)
        if newline < 0 and len(buffer) >= longest:
            raise WireError("uri-too-long", f"the first line is over {longest} bytes")
        if newline >= 0 and buffer[newline - 1] != 0x0D:
            raise WireError("bad-request", "a line ends without CR")

    def _frame(self, headers: Mapping[str, str], minor: int, otherwise: _Phase) -> int | None:
        """Set how the body is delimited and return its length; None without one.

        `otherwise` applies if neither header is there.  RFC 9112 §6.3; a
        Transfer-Encoding beside Content-Length or in HTTP/1.0 is refused, not repaired.
        """
        coding = headers.get("transfer-encoding")
        text = headers.get("content-length")
        self._extensions = self._small = 0
        if coding is not None:
            if text is not None or minor == 0 or coding.lower() != "chunked":
                raise WireError("bad-request", f"transfer-encoding {coding[:40]!r} is not taken here")
            self._phase = _Phase.CHUNK_LINE
            return None
        if text is None:
            self._phase = otherwise
            return None if otherwise is _Phase.UNTIL_CLOSE else 0
        self._left = content_length(text)
        self._phase = _Phase.LENGTH if self._left else _Phase.COMPLETE
        return self._left

    def _next_counted(self) -> bytes | None:
        if self._left > self._room:
            raise WireError("body-too-large", f"{self._left} bytes are announced, {self._room} are taken here")
        data = self._take(self._left)
        if data is None:
            return None
        self._left -= len(data)
        if not self._left:
            self._phase = _Phase.COMPLETE
        return data

    def _next_until_close(self) -> bytes | Mark | None:
        data = self._take(len(self._buffer))
        if data is None:
            if not self._ended:
                return None
            self._phase = _Phase.HEAD
            return END
        self._spend(len(data))
        return data

    def _next_chunked(self) -> bytes | Mark | None:
        """Return the data of the next chunks that are here, joined; END after the trailers."""
        pieces: list[bytes] = []
        while len(pieces) < _CHUNKS_JOINED and self._step_chunked(pieces):
            pass
        if pieces:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._phase is _Phase.COMPLETE:
            return self.next()  # type: ignore[return-value]  # END
        return None

    def _step_chunked(self, pieces: list[bytes]) -> bool:
        """Pass one border of the chunked coding; return whether to go on."""
        phase, buffer = self._phase, self._buffer
        if phase is _Phase.CHUNK_LINE:
            return self._chunk_line(pieces)
        if phase is _Phase.CHUNK_DATA:
            data = self._take(self._left)
            if data is None:
                return False
            pieces.append(data)
            self._left -= len(data)
            if not self._left:
                self._phase = _Phase.CHUNK_END
            return True
        if phase is _Phase.CHUNK_END:
            if len(buffer) < 2:
                return False
            if buffer[:2] != b"\r\n":
                raise WireError("bad-request", "a chunk does not end where its size says")
            del buffer[:2]
            self._phase = _Phase.CHUNK_LINE
            return True
        self._trailers()
        return False

    def _chunk_line(self, pieces: list[bytes]) -> bool:
        """Read a chunk's size, and its data too if all of it is here."""
        buffer = self._buffer
        end = buffer.find(b"\r\n", 0, _CHUNK_LINE_BYTES)
        if end < 0:
            if len(buffer) >= _CHUNK_LINE_BYTES:
                raise WireError("bad-request", "a chunk's first line is too long")
            return False
        found = _CHUNK_LINE.fullmatch(buffer, 0, end)
        if found is None:
            raise WireError("bad-request", "a chunk's size is not hexadecimal")
        digits = found[1]
        self._extensions += end - len(digits)
        if self._extensions > _CHUNK_EXTENSIONS_BYTES:
            raise WireError("bad-request", "the chunk extensions are too long")
        size, start = int(digits, 16), end + 2
        self._spend(size)
        if 0 < size < _SMALL_CHUNK_BYTES:
            self._count_small()
        if size and buffer.startswith(b"\r\n", start + size):
            pieces.append(bytes(buffer[start : start + size]))
            del buffer[: start + size + 2]
            return True
        self._left = size
        del buffer[:start]
        self._phase = _Phase.CHUNK_DATA if size else _Phase.TRAILERS
        return True

    def _count_small(self) -> None:
        self._small += 1
        if self._small > _SMALL_CHUNKS_COUNT and self._room < UNBOUNDED // 2:
            text = f"the body has over {_SMALL_CHUNKS_COUNT} chunks below {_SMALL_CHUNK_BYTES} bytes"
            raise WireError("bad-request", text)

    def _trailers(self) -> None:
        """Check and drop the trailer fields; no handler may take them for headers."""
        buffer = self._buffer
        if buffer[:2] == b"\r\n":
            del buffer[:2]
            self._phase = _Phase.COMPLETE
            return
        end = buffer.find(b"\r\n\r\n", 0, self.limits.head_bytes)
        if end < 0:
            if len(buffer) >= self.limits.head_bytes:
                raise WireError("head-too-large", "the trailers are too long")
            return
        block = bytes(buffer[:end])
        del buffer[: end + 4]
        if not parse_fields(split_lines(block), self.limits.headers_count).keys().isdisjoint(_FRAMING):
            raise WireError("bad-request", "a trailer says how long a body is")  # RFC 9110 §6.5.1
        self._phase = _Phase.COMPLETE

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise WireError("body-too-large", "the body is over the limit")

    def _take(self, size: int) -> bytes | None:
        """Cut up to `size` bytes off the buffer's front; None when it is empty."""
        buffer = self._buffer
        if not buffer:
            return None
        if size >= len(buffer):
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(buffer[:size])
            del buffer[:size]
        return data


@dataclass(frozen=True, slots=True)
class _Fields:
    """The header lines of a request in HTTP/1.1 and how they delimit its body."""

    headers: Mapping[str, str]
    phase: _Phase
    length: int | None
    keep_alive: bool
    expects: bool


class KnownHeads:
    """Request lines and header lines, which clients repeat; apart, for they often change the line alone."""

    __slots__ = ("fields", "lines")

    def __init__(self) -> None:
        self.lines: Parts[tuple[str, str, str, str]] = Parts()
        """Method, target, path and query, of lines of HTTP/1.1 whose target is a path."""
        self.fields: Parts[_Fields] = Parts()


class RequestParser(_Parser[RequestHead]):
    """The server's side.  After each head the shell calls `take_body` with the route's limit."""

    __slots__ = ("_known", "_length")
    passes_blank = True  # RFC 9112 §2.2 asks it of servers alone

    def __init__(self, limits: Limits, known: KnownHeads | None = None) -> None:
        super().__init__(limits, 0)
        self._length: int | None = 0
        self._known = KnownHeads() if known is None else known

    def take_body(self, limit_bytes: int) -> None:
        """Allow a body of this size.  Raises WireError "body-too-large" for what the head announces."""
        if self._length is not None and self._length > limit_bytes:
            raise WireError("body-too-large", f"{self._length} bytes are announced, {limit_bytes} are taken here")
        self._room = limit_bytes

    def _parse_head(self, block: bytes) -> RequestHead:
        self._room = 0
        first, _, rest = block.partition(b"\r\n")
        line, fields = self._known.lines.get(first), self._known.fields.get(rest)
        if line is None or fields is None:
            return self._parse_new(block, first, rest)
        self._phase, self._left, self._extensions, self._small = fields.phase, fields.length or 0, 0, 0
        self._length = length = fields.length
        method, target, path, query = line
        kept, expects = fields.keep_alive, fields.expects
        return RequestHead(method, target, path, query, fields.headers, length, kept, expects, 1)

    def _parse_new(self, block: bytes, first: bytes, rest: bytes) -> RequestHead:
        lines = split_lines(block)
        words = lines[0].split(" ")
        if len(words) != 3:
            raise WireError("bad-request", "the first line is not: method target version")
        method, target, version = words
        minor = minor_of(version)
        if method.encode("latin-1").translate(None, TOKEN_BYTES):
            raise WireError("bad-request", "the method is not a token")
        if len(target) > self.limits.target_bytes:
            raise WireError("uri-too-long", f"the target is over {self.limits.target_bytes} bytes")
        headers = parse_fields(lines[1:], self.limits.headers_count)
        check_host(headers, minor)
        path, query = split_target(method, target, headers)
        self._length = length = self._frame(headers, minor, _Phase.COMPLETE)
        expects = False
        if "expect" in headers and minor:
            if headers["expect"].lower() != "100-continue":
                raise WireError("expectation-failed")
            expects = length != 0
        keep_alive = minor == 1 and not closes(headers)
        if minor and target[0] == "/":  # an absolute target changes the headers
            self._known.lines.add(first, (method, target, path, query))
            self._known.fields.add(rest, _Fields(headers, self._phase, length, keep_alive, expects))
        return RequestHead(method, target, path, query, headers, length, keep_alive, expects, minor)


class ResponseParser(_Parser[ResponseHead]):
    """The client's side: the answer to one request with `method`, its body at most `body_bytes`."""

    __slots__ = ("_interim", "_method")

    def __init__(self, limits: Limits, method: str, body_bytes: int) -> None:
        super().__init__(limits, body_bytes)
        self._method = method
        self._interim = 0

    def _parse_head(self, block: bytes) -> ResponseHead | None:
        lines = split_lines(block)
        found = _STATUS_LINE.fullmatch(lines[0])
        if found is None:
            raise WireError("bad-request", "the first line is not: HTTP/1.1 status reason")
        minor, status = int(found[1]), int(found[2])
        headers = parse_fields(lines[1:], self.limits.headers_count)
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > _INTERIM_COUNT or not headers.keys().isdisjoint(_FRAMING):
                raise WireError("bad-request", f"an interim {status} was not asked for, or announces a body")
            return None
        length = self._frame(headers, minor, _Phase.UNTIL_CLOSE)
        keep_alive = minor == 1 and not closes(headers) and self._phase is not _Phase.UNTIL_CLOSE
        if self._method == "HEAD" or status in (204, 304):
            self._phase, self._left, length = _Phase.COMPLETE, 0, 0
            keep_alive = minor == 1 and not closes(headers)
        if length is not None and length > self._room:
            raise WireError("body-too-large", f"{length} bytes are announced, {self._room} are taken here")
        return ResponseHead(status, headers, length, keep_alive)


def read_answer(
    receive: Callable[[int], bytes], limits: Limits, method: str, body_bytes: int
) -> tuple[ResponseHead, bytes]:
    """Return one whole answer read by blocking calls of `receive` (socket.recv).

    Raises WireError; ConnectionError when the answer was cut short.
    """
    parser = ResponseParser(limits, method, body_bytes)
    head: ResponseHead | None = None
    pieces: list[bytes] = []
    ended = False
    while True:
        event = parser.next()
        if isinstance(event, bytes):
            pieces.append(event)
        elif isinstance(event, ResponseHead):
            head = event
        elif event is END:
            assert head is not None
            return head, b"".join(pieces)
        elif ended:
            raise ConnectionResetError("the answer was cut short")
        else:
            data = receive(65536)
            ended = not data
            if ended:
                parser.feed_end()
            parser.feed(data)
