"""Fuzzing what arrives on sockets: requests, responses, chunked bodies, event streams.

h11 reads the same bytes.  What we accept it accepts with the same method, target, body and end of the message, so that
no proxy in front sees other message borders; we may refuse more.
"""

import re
from contextlib import suppress
from random import Random

import h11

from spl.core.limits import Limits
from spl.net.http1 import END, Mark, RequestHead, RequestParser, ResponseHead, ResponseParser, WireError
from spl.net.sse import Event, EventParser, encode_event, one_line

from .dice import pieces_of
from .target import Target

LIMITS = Limits(head_bytes=4096, target_bytes=1024, headers_count=20)
BODY_BYTES = 10_000
CODES = {
    "bad-request",
    "bad-length",
    "body-too-large",
    "head-too-large",
    "uri-too-long",
    "version-unsupported",
    "expectation-failed",
}
FIELDS = (
    b"Host: x",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Authorization: Bearer x",
)
WORDS = (
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b":",
    b"\t",
    b";",
    b",",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET",
    b"HEAD",
    b"CONNECT",
    b"OPTIONS",
    b"*",
    b"http://h/",
    b"?",
    b"#",
    b"%00",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"100 Continue",
    b"204",
    b"304",
    b"101",
    *(b"\r\n" + field for field in FIELDS),
    *FIELDS,
)
_BLANK_BEFORE_EXTENSION = re.compile(rb"[0-9A-Fa-f][ \t]+;")
"""RFC 9112 §7.1.1 has readers parse blanks there; h11 does not."""

Message = tuple[object, bytes, str, bytes]
"""(head, body, "end", "more" or the code of a refusal, the bytes behind the message)."""


def ours(parser: "RequestParser | ResponseParser", pieces: list[bytes], *, ended: bool = False) -> Message:
    """Return what our parser makes of the first message."""
    head: object = None
    body, rest = b"", list(pieces)
    try:
        while True:
            event = parser.next()
            if isinstance(event, bytes):
                assert event, "a piece of a body is never empty"
                body += event
            elif isinstance(event, Mark):
                return head, body, "end", b"".join([bytes(parser._buffer), *rest])
            elif event is not None:
                head = event
                if isinstance(parser, RequestParser):
                    parser.take_body(BODY_BYTES)
            elif rest:
                parser.feed(rest.pop(0))
            elif ended:
                parser.feed_end()
                ended = False
            else:
                return head, body, "more", b""
    except WireError as exc:
        assert exc.code in CODES, exc.code
        return head, b"", exc.code, b""  # pieces of a chunked body are joined, so a refusal may swallow some before it


def theirs(connection: h11.Connection, data: bytes, *, ended: bool = False) -> Message:
    """Return what h11 makes of it."""
    head, body = None, b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return head, body, "end", connection.trailing_data[0]
            elif event is h11.NEED_DATA and ended:
                connection.receive_data(b"")
                ended = False
            elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return head, body, "more", b""
    except h11.RemoteProtocolError as exc:
        return head, body, f"refused: {exc}", b""


class Requests(Target):
    """Heads and bodies of requests."""

    name = "request"
    words = WORDS

    def parse(self, data: bytes) -> None:
        ours(RequestParser(LIMITS), [data])

    def check(self, data: bytes, dice: Random) -> None:
        head, body, end, rest = found = ours(RequestParser(LIMITS), [data])
        assert ours(RequestParser(LIMITS), pieces_of(data, dice)) == found, "how the input was cut changed the events"
        assert len(body) <= BODY_BYTES
        if end != "end" or _BLANK_BEFORE_EXTENSION.search(data):
            return
        assert isinstance(head, RequestHead)
        data = data.removeprefix(b"\r\n")  # RFC 9112 §2.2 has a server pass over an empty line; h11 does not
        other = theirs(h11.Connection(h11.SERVER), data)
        assert isinstance(other[0], h11.Request), f"h11 takes no such request: {other}"
        assert (head.method.encode(), head.target.encode("latin-1")) == (other[0].method, other[0].target)
        assert (body, end, rest) == other[1:]


class Chunks(Requests):
    """Chunked bodies alone: the head before them is always good."""

    name = "chunked"
    words = (
        b"\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"a;x=1\r\n",
        b"ffff\r\n",
        b";",
        b" ",
        b"0\r\nX: y\r\n\r\n",
        b"\n",
        b"000000005\r\n",
    )
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    def parse(self, data: bytes) -> None:
        super().parse(self.head + data)

    def check(self, data: bytes, dice: Random) -> None:
        super().check(self.head + data, dice)


class Responses(Target):
    """Heads and bodies of responses, to a GET or a HEAD, whole or cut short by the end of the connection."""

    name = "response"
    words = WORDS

    def parse(self, data: bytes) -> None:
        ours(ResponseParser(LIMITS, "GET", BODY_BYTES), [data], ended=True)

    def check(self, data: bytes, dice: Random) -> None:
        method = dice.choice(["GET", "GET", "GET", "HEAD"])
        ended = dice.random() < 0.5
        found = ours(ResponseParser(LIMITS, method, BODY_BYTES), [data], ended=ended)
        again = ours(ResponseParser(LIMITS, method, BODY_BYTES), pieces_of(data, dice), ended=ended)
        assert again == found, "how the input was cut changed the events"
        head, body, end, rest = found
        assert len(body) <= BODY_BYTES
        if end != "end" or _BLANK_BEFORE_EXTENSION.search(data):
            return
        assert isinstance(head, ResponseHead)
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        other = theirs(client, data, ended=ended)
        assert isinstance(other[0], h11.Response), f"h11 takes no such response: {other}"
        assert head.status == other[0].status_code
        assert (body, end, rest) == other[1:]


class Events(Target):
    """Event streams, compared with a reading of WHATWG HTML §9.2.6 that has the whole text before it."""

    name = "sse"
    words = (
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"data: ",
        b"data",
        b"event: x\n",
        b"id: 5\n",
        b"id\n",
        b"retry: 10\n",
        b":\n",
        b"\xef\xbb\xbf",
        b"id: \0\n",
        b"\xe2\x80\xa8",
    )
    event_bytes = 4000

    def parse(self, data: bytes) -> None:
        with suppress(WireError):
            EventParser(self.event_bytes).feed(data)

    def check(self, data: bytes, dice: Random) -> None:
        found = self.fed([data])
        cut = self.fed(pieces_of(data, dice))
        if found is None or cut is None:
            assert found is cut, "how the input was cut changed the refusal"
            assert len(data) > self.event_bytes
            return
        events, _ = found
        assert cut == found, "how the input was cut changed the events"
        assert found == _by_the_book(data)
        for event in events:
            line = one_line(event.data)
            if b"\n" not in line and not {"\n", "\r"} & {*event.name, *event.id} and b"\r" not in line:
                again = EventParser(1 << 20).feed(encode_event(event.name, line, event.id))
                assert [(each.name, each.data, each.id) for each in again] == [(event.name, line, event.id)]

    def fed(self, pieces: list[bytes]) -> tuple[list[Event], str] | None:
        """Return all events and the last id, None for a refusal."""
        parser, events = EventParser(self.event_bytes), []
        try:
            for piece in pieces:
                events += parser.feed(piece)
        except WireError as exc:
            assert exc.code == "answer-malformed"
            return None
        return events, parser.last_id


def _by_the_book(data: bytes) -> tuple[list[Event], str]:
    lines = re.split(rb"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf"))[:-1]
    events, name, last, texts, id_ = [], "", "", [], None
    for line in lines:
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if not line:
            last = last if id_ is None else id_
            if texts:
                events.append(Event(name or "message", b"\n".join(texts), id_ or ""))
            name, texts, id_ = "", [], None
        elif field == b"data":
            texts.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"id" and b"\0" not in value:
            id_ = value.decode("utf-8", "replace")
    return events, last


assert END is Mark.END
