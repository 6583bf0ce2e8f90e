"""The parser at the last byte that a bound allows, and at the moment at which an event is there."""

import pytest

from spl.core.limits import Limits
from spl.net import http1
from spl.net.heads import WireError
from spl.net.http1 import END, KnownHeads, RequestHead, RequestParser, ResponseHead, ResponseParser

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


def chunked(room: int = 100_000, known: KnownHeads | None = None) -> RequestParser:
    """Return a parser behind the head of a chunked request."""
    parser = RequestParser(LIMITS, known)
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
    known = KnownHeads()
    for _ in range(4):  # the head of the third and the fourth is known
        assert code_of(chunked(known=known), data) == ("bad-request" if more else "")


def test_the_end_of_a_body_is_no_small_chunk() -> None:
    known = KnownHeads()
    for _ in range(4):
        parser = chunked(known=known)
        parser.feed(b"1\r\nx\r\n" * 1024 + b"0\r\n\r\n")
        assert len(b"".join(iter(parser.next, END))) == 1024


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


def test_a_target_may_fill_its_bound() -> None:
    for more, code in ((0, ""), (1, "uri-too-long")):
        target = b"/" + b"a" * (LIMITS.target_bytes - 1 + more)
        assert code_of(RequestParser(LIMITS), b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target) == code


def test_only_what_has_a_body_is_waited_for_with_100() -> None:
    for framing, expects in ((b"Content-Length: 1", True), (b"Content-Length: 0", False), (b"A: b", False),
                             (b"Transfer-Encoding: chunked", True)):  # fmt: skip
        parser = RequestParser(LIMITS)
        parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + framing + b"\r\n\r\n")
        head = parser.next()
        assert isinstance(head, RequestHead)
        assert head.expects is expects


def test_the_parts_of_a_head_that_comes_again_are_parsed_no_more() -> None:
    known, heads = KnownHeads(), list[RequestHead]()
    for _ in range(4):
        parser = RequestParser(LIMITS, known)
        parser.feed(GET)
        head = parser.next()
        assert isinstance(head, RequestHead)
        heads.append(head)
    assert heads[2].headers is heads[3].headers
    assert heads[0] == heads[3]


def test_eight_interim_answers_are_passed_over_if_they_announce_no_body() -> None:
    answer, wait = b"HTTP/1.1 204 None\r\n\r\n", b"HTTP/1.1 103 Early\r\n\r\n"
    for count, code in ((8, ""), (9, "bad-request")):
        assert code_of(ResponseParser(LIMITS, "GET", 10), wait * count + answer) == code
    for field in (b"Content-Length: 0", b"Transfer-Encoding: chunked"):
        assert code_of(ResponseParser(LIMITS, "GET", 10), wait[:-2] + field + b"\r\n\r\n" + answer) == "bad-request"


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_connection_is_kept_if_both_the_version_and_the_answer_allow_it(method: str, status: int) -> None:
    has_body = method == "GET" and status == 200
    for version, fields, kept in (
        (1, b"Content-Length: 2\r\n", True), (0, b"Content-Length: 2\r\n", False), (1, b"", not has_body),
        (1, b"Content-Length: 2\r\nConnection: close\r\n", False), (1, b"Transfer-Encoding: chunked\r\n", True),
        (0, b"", False),
    ):  # fmt: skip
        parser = ResponseParser(LIMITS, method, 10)
        parser.feed(b"HTTP/1.%d %d x\r\n%b\r\n" % (version, status, fields))
        head = parser.next()
        assert isinstance(head, ResponseHead)
        assert (head.keep_alive, parser.next()) == (kept, None if has_body else END), (version, fields)
        assert has_body or head.length == 0


def test_an_answer_is_read_in_pieces_until_it_is_whole() -> None:
    asked: list[int] = []
    data = b"HTTP/1.1 200 OK\r\n\r\nto the end"
    pieces = [data[:5], data[5:], b""]

    def receive(size: int) -> bytes:
        asked.append(size)
        return pieces.pop(0)

    head, body = http1.read_answer(receive, LIMITS, "GET", 100)
    assert (head.status, body, asked) == (200, b"to the end", [65536] * 3)


def test_an_answer_that_announces_too_much_is_refused_before_its_body() -> None:
    assert (
        code_of(ResponseParser(LIMITS, "GET", 5), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n") == "body-too-large"
    )
