"""The NATS client protocol without I/O: bytes in, events out; bytes of what we say.

A server is as hostile as a peer.  A line is bounded (CONTROL_BYTES, and INFO_BYTES for INFO), a message by what the
connection allows, a number is digits and nothing else, and whatever has another form ends the connection.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from ..core.errors import SplError, printable

CONTROL_BYTES: Final = 4096
INFO_BYTES: Final = 64 * 1024
HEADERS_MAX: Final = 64  # lines of a header block; ours has a few
HEAD: Final = b"NATS/1.0"
HEAD_BYTES_MAX: Final = 64 * 1024
"""A message with a longer header block is nothing of ours; it counts as an empty one, so that it can be passed over."""
_DIGITS_MAX: Final = 9  # of a size, so that int() stays cheap
SAID_BYTES_MAX: Final = 64 * 1024
"""Of what a server says of itself and of streams."""
VALUES_MAX: Final = 4096
"""In one object of a server; a message in it is one text."""
_ERROR_CHARS: Final = 200


class EngineError(SplError):
    """A sink or a source cannot go on: the server or program is gone, full, foreign, or refuses us."""


class Delivery(NamedTuple):
    """One message to a subscription of ours."""

    subject: str
    reply: str
    head: bytes
    """The header block, b"" without one."""
    body: bytes

    @property
    def size(self) -> int:
        """How many bytes it holds, the header block included."""
        return len(self.head) + len(self.body)


class ServerInfo(NamedTuple):
    """What the server says of itself."""

    fields: Mapping[str, Any]


class ServerError(NamedTuple):
    """A line -ERR."""

    text: str


Beat = Literal["PING", "PONG", "OK"]
Received = Delivery | ServerInfo | ServerError | Beat


class NatsParser:
    """Takes bytes and gives events; raises EngineError "sink-refused" for what is not of the protocol."""

    def __init__(self, message_bytes_max: int) -> None:
        self._max = message_bytes_max
        self._data = bytearray()
        self._at = 0
        self._awaited: tuple[str, str, int, int] | None = None
        """Subject, reply, bytes of the head and in all of the message whose bytes come next."""

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    @property
    def pending(self) -> int:
        """How many bytes were fed and not used."""
        return len(self._data) - self._at

    def next(self) -> Received | None:
        """Return the next event, None if more bytes are needed."""
        while self._awaited is None:
            end = self._data.find(b"\r\n", self._at, self._at + INFO_BYTES + 2)
            if end < 0:
                if self.pending > INFO_BYTES:
                    raise _malformed("a line without an end")
                return None
            line = bytes(self._data[self._at : end])
            self._at = end + 2
            event = self._line(line)
            if event is not None:
                return event
        subject, reply, head, size = self._awaited
        end = self._at + size
        if len(self._data) < end + 2:
            return None
        if self._data[end : end + 2] != b"\r\n":
            raise _malformed("a message longer than it said")
        raw = bytes(self._data[self._at : end])
        self._at, self._awaited = end + 2, None
        if head > HEAD_BYTES_MAX:
            return Delivery(subject, reply, b"", b"")
        return Delivery(subject, reply, raw[:head], raw[head:])

    def _line(self, line: bytes) -> Received | None:
        """Return the event of a line, None for the first line of a message."""
        word, _, rest = line.partition(b" ")
        word = word.upper()
        if word == b"INFO":
            return ServerInfo(decoded(rest))
        if len(line) > CONTROL_BYTES:
            raise _malformed("a line that is too long")
        if word in (b"MSG", b"HMSG"):
            self._awaited = self._announced(rest.split(), with_head=word == b"HMSG")
            return None
        if word == b"PING":
            return "PING"
        if word == b"PONG":
            return "PONG"
        if word == b"+OK":
            return "OK"
        if word == b"-ERR":
            return ServerError(said(rest.decode("utf-8", "replace").strip().strip("'")))
        raise _malformed(f"the line {said(line.decode('utf-8', 'replace'))[:40]!r}")

    def _announced(self, words: list[bytes], *, with_head: bool) -> tuple[str, str, int, int]:
        numbers = 2 if with_head else 1
        if len(words) not in (2 + numbers, 3 + numbers):
            raise _malformed("the first line of a message")
        sizes = [_number(word) for word in words[-numbers:]]
        head, size = (sizes[0], sizes[1]) if with_head else (0, sizes[0])
        if head > size or size > self._max:
            raise _malformed(f"a message of {size} bytes")
        reply = words[2] if len(words) == 3 + numbers else b""
        return words[0].decode("utf-8", "replace"), reply.decode("utf-8", "replace"), head, size


def headers_of(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status (0 without one) and the headers of a block; of a repeated one the first counts."""
    lines = head.split(b"\r\n")
    if not lines[0].startswith(HEAD) or len(lines) > HEADERS_MAX:
        raise _malformed("a header block")
    word = lines[0][len(HEAD) :].split()[:1]
    status = _number(word[0]) if word else 0
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found.setdefault(name.decode("utf-8", "replace"), value.strip(b" ").decode("utf-8", "replace"))
    return status, found


def head_of(fields: Mapping[str, str]) -> bytes:
    """Return the header block of these fields, whose texts hold no control characters."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return HEAD + b"\r\n" + lines.encode("utf-8", "replace") + b"\r\n"


def published(subject: str, reply: str, head: bytes, body: bytes) -> bytes:
    """Return a message to the server."""
    to = f"{subject} {reply}" if reply else subject
    if head:
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (to.encode(), len(head), len(head) + len(body), head, body)
    return b"PUB %b %d\r\n%b\r\n" % (to.encode(), len(body), body)


def decoded(data: bytes, bytes_max: int = SAID_BYTES_MAX) -> dict[str, Any]:
    """Return a JSON object of the server; raise EngineError "sink-refused".

    Values take far more memory than their text, so both the text and the number of its values are bounded.
    """
    if len(data) > bytes_max or sum(map(data.count, (b"[", b"{", b","))) > VALUES_MAX:
        raise _malformed("JSON that is too long")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise _malformed("no JSON") from exc
    if not isinstance(value, dict):
        raise _malformed("JSON that is no object")
    return value


def said(text: str) -> str:
    """Return a text of the server or program, cut and fit for a terminal."""
    return printable(text)[:_ERROR_CHARS]


def _number(word: bytes) -> int:
    if not word or len(word) > _DIGITS_MAX or word.strip(b"0123456789"):
        raise _malformed("a number that is none")
    return int(word)


def _malformed(what: str) -> EngineError:
    return EngineError("sink-refused", f"the server sends {what}, which is not NATS")
