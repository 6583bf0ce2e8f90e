"""text/event-stream without I/O: a parser for what a source sends, and the encoder.

WHATWG HTML §9.2.6: lines end with LF, CR or CRLF, a leading BOM is dropped, a line
that begins with a colon is a comment, an event without data is not dispatched.
An event is bounded, and so is what comes between two, such as comments: a source could keep a processor busy with it
for as long as it likes.  How the input was cut never changes the events.
"""

from typing import Final

from ..core.value import dataclass
from .http1 import WireError

MEDIA_TYPE: Final = "text/event-stream"
IDLE_BYTES_MAX: Final = 65_536
"""Of comments and other lines without data before an event: those of hours, if nothing else comes."""

_LINE_ENDS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


@dataclass(frozen=True, slots=True)
class Event:
    """One event.  `data` has its lines joined by LF; `id` is "" if the event carries none."""

    name: str
    data: bytes
    id: str


class EventParser:
    """Fed bytes, returns whole events; `last_id` and `retry_ms` are what the source said last."""

    __slots__ = (
        "_after_cr",
        "_data",
        "_first",
        "_id",
        "_idle",
        "_name",
        "_size",
        "_tail",
        "event_bytes",
        "last_id",
        "retry_ms",
    )

    def __init__(self, event_bytes: int) -> None:
        self.event_bytes = event_bytes
        self.last_id = ""
        self.retry_ms: int | None = None
        self._tail = bytearray()  # of a line whose end has not come
        self._after_cr = False  # an LF would belong to the CR before it
        self._first = True
        self._name = ""
        self._id: str | None = None
        self._data: list[bytes] = []
        self._size = 0  # bytes of the lines of the event so far
        self._idle = 0  # bytes of the lines without data since the last event

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete.

        Raises WireError "answer-malformed" when one event passes `event_bytes`, or the lines before it IDLE_BYTES_MAX.
        """
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1] == 0x0D
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[Event] = []
        lines = data.split(b"\n")
        last = lines.pop()
        for line in lines:
            if self._tail:
                line = bytes(self._tail) + line
                self._tail.clear()
            self._line(line, events)
        self._tail += last
        self._check(len(self._tail))
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            self._dispatch(events)
            return
        self._check(len(line))
        self._size += len(line)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            return
        self._pass_over(len(line))
        if name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value and not value.strip(b"0123456789") and len(value) < 10:
            self.retry_ms = int(value)

    def _dispatch(self, events: list[Event]) -> None:
        if self._id is not None:
            self.last_id = self._id
        if self._data:
            events.append(Event(self._name or "message", b"\n".join(self._data), self._id or ""))
            self._idle = 0
        else:
            self._pass_over(0)
        self._name, self._id, self._data, self._size = "", None, [], 0

    def _pass_over(self, size: int) -> None:
        self._idle += size + 1
        if self._idle > IDLE_BYTES_MAX:
            raise WireError("answer-malformed", f"{self._idle} bytes hold no event")

    def _check(self, more: int) -> None:
        if self._size + more > self.event_bytes:
            raise WireError("answer-malformed", f"an event is over {self.event_bytes} bytes")


def encode_event(name: str, data: bytes, id: str = "") -> bytes:
    """Return one event; `data` is one line of JSON.

    Raises WireError "bad-request" for a line end inside, which would forge a further field.
    """
    head = f"event: {name}\nid: {id}" if id else f"event: {name}"
    if head.count("\n") != (1 if id else 0) or "\r" in head or b"\n" in data or b"\r" in data:
        raise WireError("bad-request", "an event's name, id and data are one line each")
    return b"%b\ndata: %b\n\n" % (head.encode(), data)


def one_line(data: bytes) -> bytes:
    """Return JSON text in which no reader of lines finds a line end; its value stays the same.

    U+2028, U+2029 and U+0085 end no line in an event stream, but they do in the line readers of many clients, such as
    those built on `str.splitlines`.  For programs; peers get the stored bytes.
    """
    for character, escape in _LINE_ENDS:
        if character in data:
            data = data.replace(character, escape)
    return data
