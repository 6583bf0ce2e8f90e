"""The parser at the last byte that a bound allows, and at the moment at which an event is there."""

import pytest

from spl.core.limits import Limits
from spl.net import http1
from spl.net.heads import WireError
from spl.net.http1 import END, RequestHead, RequestParser, ResponseHead, ResponseParser

LIMITS = Limits(head_bytes=4096, target_bytes=1024, headers_count=20)
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST_LINE_BYTES = LIMITS.target_bytes + 64


def code_of(parser: RequestParser | ResponseParser, data: bytes, room: int = 100) -> str:
    """Return the code of the error that the data ends with, "" if there is none."""
    parser.feed(data)
    try:
        while (event := parser.next()) is not None:
            if isinstance(parser, RequestParser) and isinstance(event, RequestHead):
                parser.take_body(room)
    except WireError as exc:
        return exc.code
    return ""


def chunked(room: int = 100_000) -> RequestParser:
    """Return a parser behind the head of a chunked request."""
    parser = RequestParser(LIMITS)
    parser.feed(CHUNKED)
    assert isinstance(parser.next(), RequestHead)
    parser.take_body(room)
    return parser


def test_a_server_passes_over_one_empty_line_before_each_request_and_a_client_over_none() -> None:
    assert code_of(RequestParser(LIMITS), 2 * (b"\r\n" + GET)) == ""
    assert code_of(RequestParser(LIMITS), b"\r\n\r\n" + GET) == "bad-request"
    parser = RequestParser(LIMITS)
    assert (code_of(parser, b"\r\n"), code_of(parser, b"\r\n")) == ("", "bad-request")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert code_of(ResponseParser(LIMITS, "GET", 10), answer) == ""
    assert code_of(ResponseParser(LIMITS, "GET", 10), b"\r\n" + answer) == "bad-request"


def test_what_waits_is_counted_and_a_connection_between_messages_is_idle() -> None:
    parser = RequestParser(LIMITS)
    assert (parser.idle, parser.buffered) == (True, 0)
    parser.feed(b"POST / ")
    assert (parser.next(), parser.idle, parser.buffered) == (None, False, 7)
    parser.feed(b"HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
    assert isinstance(parser.next(), RequestHead)
    parser.take_body(3)
    assert (parser.idle, parser.buffered) == (False, 0)
    parser.feed(b"abcG")
    assert (parser.next(), parser.idle, parser.buffered) == (b"abc", False, 1)
    assert (parser.next(), parser.idle) == (END, False)
    parser = RequestParser(LIMITS)
    parser.feed(GET)
    assert isinstance(parser.next(), RequestHead)
    assert (parser.idle, parser.next(), parser.idle) == (False, END, True)


def test_a_head_may_fill_its_bound_and_one_that_cannot_end_in_it_is_refused_at_once() -> None:
    room = LIMITS.head_bytes - len(GET) - len(b"A: \r\n")
    for more, code in ((0, ""), (1, "head-too-large")):
        data = GET[:-2] + b"A: " + b"b" * (room + more) + b"\r\n\r\n"
        assert code_of(RequestParser(LIMITS), data) == code
    start = GET[:-2] + b"A: "
    for size, code in ((LIMITS.head_bytes - 1, ""), (LIMITS.head_bytes, "head-too-large")):
        assert code_of(RequestParser(LIMITS), start + b"b" * (size - len(start))) == code


def test_a_first_line_that_cannot_end_in_its_bound_is_refused_at_once() -> None:
    for size, code in ((FIRST_LINE_BYTES - 1, ""), (FIRST_LINE_BYTES, "uri-too-long")):
        assert code_of(RequestParser(LIMITS), b"GET /" + b"a" * (size - 5)) == code


@pytest.mark.parametrize("more", [0, 1])
def test_a_body_may_fill_its_bound_however_it_is_delimited(more: int) -> None:
    body, code = b"x" * (5 + more), "body-too-large" if more else ""
    counted = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    in_chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for framed in (counted, in_chunks):
        assert code_of(RequestParser(LIMITS), b"POST / HTTP/1.1\r\nHost: x\r\n" + framed, 5) == code
        assert code_of(ResponseParser(LIMITS, "GET", 5), b"HTTP/1.1 200 OK\r\n" + framed) == code
    assert code_of(ResponseParser(LIMITS, "GET", 5), b"HTTP/1.1 200 OK\r\n\r\n" + body) == code


def test_each_event_is_there_as_soon_as_its_bytes_are() -> None:
    """A shell that got None waits for more bytes, and none may come."""
    parser = chunked()
    parser.feed(b"5\r\nhel")
    assert (parser.next(), parser.next()) == (b"hel", None)
    parser.feed(b"lo")
    assert (parser.next(), parser.next()) == (b"lo", None)
    parser.feed(b"\r\n3\r\nabc\r\n")
    assert (parser.next(), parser.next()) == (b"abc", None)
    parser.feed(b"0\r\n\r\n")
    assert parser.next() is END
    parser = chunked()
    parser.feed(b"3\r\nabc\r\n0\r\nA: b\r\n\r\n")
    assert (parser.next(), parser.next()) == (b"abc", END)


def test_a_chunks_first_line_that_cannot_end_in_its_bound_is_refused_at_once() -> None:
    for size, code in ((255, ""), (256, "bad-request")):
        assert code_of(chunked(), b"1;" + b"x" * (size - 2)) == code


@pytest.mark.parametrize("more", [0, 1])
def test_the_extensions_of_a_message_may_fill_their_bound(more: int) -> None:
    each = http1._CHUNK_EXTENSIONS_BYTES // 128
    lines = [b"40;" + b"x" * (each - 1)] * 127 + [b"40;" + b"x" * (each - 1 + more)]
    data = b"".join(line + b"\r\n" + b"d" * 64 + b"\r\n" for line in lines)
    assert code_of(chunked(), data) == ("bad-request" if more else "")


def test_the_end_of_a_body_is_no_small_chunk() -> None:
    parser = chunked()
    parser.feed(b"1\r\nx\r\n" * 1024 + b"0\r\n\r\n")
    events = list(iter(parser.next, None))
    assert (len(b"".join(events[:-1])), events[-1]) == (1024, END)


def test_trailers_have_the_bound_of_a_head_and_say_nothing_of_a_body() -> None:
    for size, code in ((LIMITS.head_bytes - 1, ""), (LIMITS.head_bytes, "head-too-large")):
        assert code_of(chunked(), b"0\r\nA: " + b"b" * (size - 3)) == code
    for field in (
        b"Content-Length: 0",
        b"content-length: 5",
        b"Transfer-Encoding: chunked",
        b"A: b\r\nContent-Length: 5",
    ):
        assert code_of(chunked(), b"0\r\n" + field + b"\r\n\r\n") == "bad-request"
    parser = chunked()
    parser.feed(b"0\r\nA: b\r\nC: d\r\n\r\n" + GET)
    assert parser.next() is END
    following = parser.next()
    assert isinstance(following, RequestHead)
    assert following.method == "GET"


def test_an_answer_whose_length_is_the_bound_has_its_head() -> None:
    parser = ResponseParser(LIMITS, "GET", 2)
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert isinstance(parser.next(), ResponseHead)
    assert (parser.next(), parser.next()) == (b"ok", END)
