"""The parser: one meaning for each input, however it is cut; nothing that two readers could read differently."""

import itertools
import string

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.limits import Limits
from spl.net.heads import WireError, encode_chunk
from spl.net.http1 import (
    END,
    UNBOUNDED,
    KnownHeads,
    Mark,
    RequestHead,
    RequestParser,
    ResponseHead,
    ResponseParser,
    read_answer,
)

LIMITS = Limits(head_bytes=4096, target_bytes=1024, headers_count=20)
BODY_BYTES = 10_000


def events(parser, pieces, *, ended=False):
    """Return head, joined body and END of each message, or the error code that ended it."""
    out: list[object] = []
    try:
        for piece in [*pieces, None]:
            if piece is not None:
                parser.feed(piece)
            elif ended:
                parser.feed_end()
            while (event := parser.next()) is not None:
                if isinstance(event, RequestHead):
                    parser.take_body(BODY_BYTES)
                if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
                    out[-1] += event
                else:
                    out.append(event)
    except WireError as exc:
        while out and isinstance(out[-1], bytes):
            out.pop()
        out.append(exc.code)
    return out


def cuts(data):
    """Yield the input whole, byte by byte, and cut in two at every offset."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for i in range(1, len(data)):
        yield [data[:i], data[i:]]


def one_code(data: bytes) -> str:
    """Return the code that refuses `data`, the same for each way to cut it."""
    codes = {events(RequestParser(LIMITS), pieces)[-1] for pieces in cuts(data)}
    assert len(codes) == 1, codes
    (code,) = codes
    assert isinstance(code, str), code
    return code


GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n!\r\n0\r\nTrailer: gone\r\n\r\n"
)
REQUESTS = [
    GET,
    GET + GET,
    b"\r\n" + GET,
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" + GET,
    CHUNKED + GET,
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET http://other:80/p?q HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n1",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: caf\xe9 \t\r\nY:\r\nx:  two\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("data", REQUESTS)
def test_cutting_the_input_never_changes_the_events(data: bytes) -> None:
    whole = events(RequestParser(LIMITS), [data])
    assert whole[-1] is END
    for pieces in cuts(data):
        assert events(RequestParser(LIMITS), pieces) == whole


FIRST_LINES = [
    b"GET / HTTP/1.1", b"GET /a?b HTTP/1.1", b"POST /a HTTP/1.1", b"GET / HTTP/1.0", b"POST /a HTTP/1.0",
    b"GET http://other/a HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET * HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ",
    b"GET /\xe9 HTTP/1.1", b"GET /#a HTTP/1.1", b"G@T / HTTP/1.1", b"GET / HTTP/2.0", b"GET /\t HTTP/1.1",
    b"GET /\r HTTP/1.1", b"GET /%b HTTP/1.1" % (b"x" * 1024),
]  # fmt: skip
FIELD_LINES = [
    b"Host: x", b"host: x\r\nContent-Length: 2", b"Host: x\r\nContent-Length: 0", b"Host: y\r\nConnection: close",
    b"Host: x\r\nTransfer-Encoding: chunked", b"Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2",
    b"Host: x\r\nExpect: 100-continue\r\nContent-Length: 2", b"Host: x\r\nExpect: 100-continue", b"X: 1",
    b"Host: x\r\nExpect: else", b"Host: x\r\nHost: x", b"Host: x\r\n y", b"Host: x\nY: 1", b"Host: x\rY: 1",
    b"Host: x\r\nContent-Length: +2", b"Host: x\r\nContent-Length: 20000", b"Host: x\r\nA: \0", b"Host: a b",
    b"Host: x\r\n" + b"\r\n".join(b"x%d: 1" % n for n in range(20)), b"Host: x\r\nX: " + b"x" * 2000,
]  # fmt: skip


def test_a_head_means_the_same_when_its_parts_were_seen_before() -> None:
    """Every line with every block of fields, sound or not, on connections that share what they know."""
    known = KnownHeads()
    for _, line, fields in itertools.product(range(3), FIRST_LINES, FIELD_LINES):
        for data in (line + b"\r\n" + fields + b"\r\n\r\n2\r\n\r\n0\r\n\r\n" + GET, line + b"\r\n\r\n"):
            assert events(RequestParser(LIMITS, known), [data]) == events(RequestParser(LIMITS), [data]), data


@pytest.mark.parametrize("data", REQUESTS)
def test_cutting_a_request_seen_before_never_changes_the_events(data: bytes) -> None:
    known = KnownHeads()
    whole = events(RequestParser(LIMITS), [data])
    for pieces in cuts(data):
        assert events(RequestParser(LIMITS, known), pieces) == whole


def test_a_body_is_bounded_by_the_route_of_each_request() -> None:
    known, data = KnownHeads(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    for _ in range(3):
        parser = RequestParser(LIMITS, known)
        parser.feed(data)
        assert isinstance(parser.next(), RequestHead)
        with pytest.raises(WireError) as refusal:
            parser.take_body(4)
        assert refusal.value.code == "body-too-large"
        with pytest.raises(WireError):
            parser.next()  # no route allowed a body


def test_a_head_is_read_as_sent() -> None:
    (head, end) = events(RequestParser(LIMITS), [GET.replace(b"Host", b"X-Two: 1\r\nx-two:  2 \r\nHOST")])
    assert end is END
    assert (head.method, head.target, head.path, head.query) == ("GET", "/a?b=c", "/a", "b=c")
    assert head.headers == {"x-two": "1, 2", "host": "x"}
    assert (head.length, head.keep_alive, head.expects, head.minor) == (0, True, False, 1)


def test_an_expectation_of_http_1_0_is_ignored() -> None:
    """RFC 9110 §10.1.1: such a client waits for no 100, and would take it for the answer."""
    for expected in (b"100-continue", b"200-ok"):
        data = b"POST / HTTP/1.0\r\nHost: x\r\nExpect: %b\r\nContent-Length: 1\r\n\r\na" % expected
        head, *_ = events(RequestParser(LIMITS), [data])
        assert (head.expects, head.minor) == (False, 0)


def test_chunks_are_joined_and_trailers_dropped() -> None:
    head, body, end = events(RequestParser(LIMITS), [CHUNKED])
    assert head.length is None
    assert "trailer" not in head.headers
    assert (body, end) == (b"hello!", END)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: closed\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
def test_keep_alive(head: bytes, keep_alive: bool) -> None:
    assert events(RequestParser(LIMITS), [head])[0].keep_alive is keep_alive


def test_an_absolute_target_replaces_the_host() -> None:
    head = events(RequestParser(LIMITS), [b"GET HTTP://other:80?q HTTP/1.1\r\nHost: x\r\n\r\n"])[0]
    assert (head.path, head.query, head.headers["host"]) == ("/", "q", "other:80")


def field(line: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n"


def chunks(data: bytes) -> bytes:
    return field(b"Transfer-Encoding: chunked") + data


REFUSED = {
    # two readers, two borders
    field(b"Content-Length: 5\r\nTransfer-Encoding: chunked"): "bad-request",
    field(b"Transfer-Encoding: chunked\r\nContent-Length: 0"): "bad-request",
    field(b"Content-Length: 5\r\nContent-Length: 6"): "bad-length",
    field(b"Content-Length: 5\r\nContent-Length: 5"): "bad-length",
    field(b"Content-Length: 5, 5"): "bad-length",
    field(b"Content-Length: +5"): "bad-length",
    field(b"Content-Length: -5"): "bad-length",
    field(b"Content-Length: 1_0"): "bad-length",
    field(b"Content-Length: 0x5"): "bad-length",
    field(b"Content-Length: \xb2"): "bad-length",
    field(b"Content-Length: 5 5"): "bad-length",
    field(b"Content-Length:"): "bad-length",
    field(b"Content-Length: 9999999999999999"): "body-too-large",
    field(b"Content-Length: 10001"): "body-too-large",
    field(b"Transfer-Encoding: gzip, chunked"): "bad-request",
    field(b"Transfer-Encoding: chunked, chunked"): "bad-request",
    field(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"): "bad-request",
    field(b"Transfer-Encoding: xchunked"): "bad-request",
    field(b"Transfer-Encoding: \x0bchunked"): "bad-request",
    field(b"Transfer-Encoding:"): "bad-request",
    field(b"Transfer-Encoding : chunked"): "bad-request",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n": "bad-request",
    # lines
    field(b"A: b\r\n folded"): "bad-request",
    field(b"A: b\r\n\tfolded: x"): "bad-request",
    field(b"A : b"): "bad-request",
    field(b" A: b"): "bad-request",
    field(b": b"): "bad-request",
    field(b"no colon"): "bad-request",
    field(b"A: b\nB: c"): "bad-request",
    field(b"A: b\rB: c"): "bad-request",
    field(b"A: b\0"): "bad-request",
    field(b"A: \x7f"): "bad-request",
    field(b"A\xe9: b"): "bad-request",
    field(b"A(: b"): "bad-request",
    b"GET / HTTP/1.1\nHost: x\n\n": "bad-request",
    b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b" GET / HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"\x16\x03\x01\x02\x00\x01": "bad-request",
    b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n": "bad-request",
    b"GET /\r\nHost: x\r\n\r\n": "bad-request",
    b"G(T / HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET / http/1.1\r\nHost: x\r\n\r\n": "bad-request",
    # targets, hosts, versions
    b"GET a HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET * HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET http://u@h/ HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n": "bad-request",
    b"GET / HTTP/1.1\r\n\r\n": "bad-request",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n": "bad-request",
    b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n": "bad-request",
    b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n": "bad-request",
    b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n": "bad-request",
    b"GET / HTTP/2.0\r\nHost: x\r\n\r\n": "version-unsupported",
    b"GET / HTTP/1.2\r\nHost: x\r\n\r\n": "version-unsupported",
    field(b"Authorization: a\r\nAuthorization: b"): "bad-request",
    field(b"Expect: 200-ok"): "expectation-failed",
    # chunks
    chunks(b"5\r\nhelloXX"): "bad-request",
    chunks(b"-1\r\n"): "bad-request",
    chunks(b"+5\r\n"): "bad-request",
    chunks(b"0x5\r\n"): "bad-request",
    chunks(b" 5\r\n"): "bad-request",
    chunks(b"\r\n"): "bad-request",
    chunks(b"5\nhello\n0\n\n" + b" " * 256): "bad-request",
    chunks(b"2711\r\n"): "body-too-large",
    chunks(b"ffffffffffffffff\r\n"): "bad-request",
    chunks(b"1;" + b"x" * 300 + b"\r\n"): "bad-request",
    chunks(b"0\r\nTransfer-Encoding : x\r\n\r\n"): "bad-request",
    # sizes
    b"GET /" + b"a" * 1024 + b" HTTP/1.1\r\nHost: x\r\n\r\n": "uri-too-long",
    b"GET /" + b"a" * 2000: "uri-too-long",
    field(b"A: " + b"b" * 4096): "head-too-large",
    field(b"\r\n".join(b"A%d: b" % i for i in range(20))): "head-too-large",
}


@pytest.mark.parametrize("data", REFUSED)
def test_refused_with_one_code_however_it_is_cut(data: bytes) -> None:
    assert one_code(data) == REFUSED[data]


def test_the_extensions_of_all_chunks_together_are_bounded() -> None:
    data = chunks((b"1;" + b"x" * 200 + b"\r\na\r\n") * 100)
    assert events(RequestParser(LIMITS), [data])[-1] == "bad-request"


def in_chunks(size: int, count: int) -> bytes:
    """Return a body of so many chunks of one size, without its end."""
    return (b"%x\r\n" % size + b" " * size + b"\r\n") * count


def body_of(parser: RequestParser | ResponseParser, data: bytes) -> list[bytes]:
    """Return the pieces of a chunked body that are read from `data`."""
    response = isinstance(parser, ResponseParser)
    first = b"HTTP/1.1 200 OK\r\n" if response else b"POST / HTTP/1.1\r\nHost: x\r\n"
    parser.feed(first + b"Transfer-Encoding: chunked\r\n\r\n" + data)
    parser.next()
    if isinstance(parser, RequestParser):
        parser.take_body(1 << 20)
    return list(iter(parser.next, None))


@pytest.mark.parametrize("size", [1, 63])
def test_chunks_that_cost_more_than_they_bring_are_few(size: int) -> None:
    for parser in (RequestParser(LIMITS), ResponseParser(LIMITS, "GET", 1 << 20)):
        assert len(b"".join(body_of(parser, in_chunks(size, 1024)))) == 1024 * size
        parser.feed(in_chunks(size, 1))
        with pytest.raises(WireError) as caught:
            parser.next()
        assert caught.value.code == "bad-request"


def test_small_chunks_are_counted_for_each_message() -> None:
    parser = RequestParser(LIMITS)
    for _ in range(3):
        *pieces, end = body_of(parser, in_chunks(1, 1000) + b"0\r\n\r\n")
        assert (len(b"".join(pieces)), end) == (1000, END)


def test_lines_sent_one_by_one_and_endless_streams_may_have_any_number_of_chunks() -> None:
    assert len(b"".join(body_of(RequestParser(LIMITS), in_chunks(64, 10_000)))) == 640_000
    assert len(b"".join(body_of(ResponseParser(LIMITS, "GET", UNBOUNDED), in_chunks(1, 10_000)))) == 10_000


def test_a_call_reads_a_bounded_number_of_chunks() -> None:
    assert {len(piece) for piece in body_of(RequestParser(LIMITS), in_chunks(64, 320))} == {32 * 64}


def test_each_body_needs_leave_of_its_own() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(2 * b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    assert isinstance(parser.next(), RequestHead)
    parser.take_body(5 * 2)
    assert (parser.next(), parser.next()) == (b"hello", END)
    assert isinstance(parser.next(), RequestHead)
    with pytest.raises(WireError) as refusal:
        parser.next()
    assert refusal.value.code == "body-too-large"


def test_a_body_needs_leave() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(field(b"Content-Length: 1") + b"x")
    assert isinstance(parser.next(), RequestHead)
    with pytest.raises(WireError) as caught:
        parser.next()
    assert caught.value.code == "body-too-large"


@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_one_code(data: bytes) -> None:
    events(RequestParser(LIMITS), [GET[:-2] + data])
    events(RequestParser(LIMITS), [data])
    events(ResponseParser(LIMITS, "GET", 100), [b"HTTP/1.1 200 OK\r\n" + data], ended=True)


TOKEN = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
OWN = {"host", "content-length", "transfer-encoding", "connection", "expect", "authorization"}


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH"]),
    path=st.text(string.ascii_letters + "%/?=&-", max_size=30),
    fields=st.dictionaries(TOKEN.filter(lambda name: name.lower() not in OWN), VALUE, max_size=8),
    body=st.binary(max_size=300),
    chunk_bytes=st.integers(0, 50),
    cut_at=st.integers(0, 400),
)
def test_agrees_with_h11(method, path, fields, body, chunk_bytes, cut_at) -> None:
    """Each request that h11 writes is read here as h11 reads it."""
    names = {name.lower() for name in fields}
    if len(names) != len(fields):
        return
    sender = h11.Connection(h11.CLIENT)
    framing = [("Transfer-Encoding", "chunked")] if chunk_bytes else [("Content-Length", str(len(body)))]
    head = h11.Request(method=method, target="/" + path, headers=[("Host", "x"), *fields.items(), *framing])
    data = sender.send(head)
    for i in range(0, len(body), chunk_bytes or max(len(body), 1)):
        data += sender.send(h11.Data(data=body[i : i + (chunk_bytes or len(body))]))
    data += sender.send(h11.EndOfMessage())
    receiver = h11.Connection(h11.SERVER)
    receiver.receive_data(data)
    theirs = receiver.next_event()
    ours, *rest = events(RequestParser(LIMITS), [data[:cut_at], data[cut_at:]])
    assert ours.method.encode() == theirs.method
    assert ours.target.encode() == theirs.target
    assert {name.encode(): value.encode("latin-1") for name, value in ours.headers.items()} == dict(theirs.headers)
    assert rest == ([body, END] if body else [END])


@given(body=st.binary(max_size=300), how=st.sampled_from(["length", "chunked", "close"]), cut_at=st.integers(0, 400))
def test_a_response_that_h11_writes_is_read(body: bytes, how: str, cut_at: int) -> None:
    sender = h11.Connection(h11.SERVER)
    sender.receive_data(GET if how != "close" else b"GET / HTTP/1.0\r\n\r\n")
    sender.next_event()
    headers = [("Content-Length", str(len(body)))] if how == "length" else []
    data = sender.send(h11.Response(status_code=200, headers=headers, reason=b"OK"))
    data += sender.send(h11.Data(data=body)) + sender.send(h11.EndOfMessage())
    head, *rest = events(ResponseParser(LIMITS, "GET", 1000), [data[:cut_at], data[cut_at:]], ended=True)
    assert head.status == 200
    assert head.keep_alive is (how != "close")
    assert rest == ([body, END] if body else [END])


RESPONSES = [
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ("GET", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ("GET", b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", b""),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b""),
    ("GET", b"HTTP/1.1 304 Same\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    ("GET", b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
]


@pytest.mark.parametrize(("method", "data", "body"), RESPONSES)
def test_responses(method: str, data: bytes, body: bytes) -> None:
    for pieces in cuts(data):
        head, *rest = events(ResponseParser(LIMITS, method, 100), pieces, ended=True)
        assert isinstance(head, ResponseHead)
        assert rest == ([body, END] if body else [END])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"HTTP/1.1 101 Switching\r\n\r\n", "bad-request"),
        (b"HTTP/1.1 100 C\r\n\r\n" * 9, "bad-request"),
        (b"HTTP/2 200 OK\r\n\r\n", "bad-request"),
        (b"HTTP/1.1 99 Low\r\n\r\n", "bad-request"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "body-too-large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "body-too-large"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n", "body-too-large"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "bad-request"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "bad-length"),
    ],
)
def test_responses_refused(data: bytes, code: str) -> None:
    for pieces in cuts(data):
        assert events(ResponseParser(LIMITS, "GET", 100), pieces)[-1] == code


def test_a_cut_response_is_no_end() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    for i in range(len(data)):
        assert not any(isinstance(e, Mark) for e in events(ResponseParser(LIMITS, "GET", 100), [data[:i]], ended=True))


def test_an_endless_body_comes_as_it_arrives() -> None:
    parser = ResponseParser(LIMITS, "GET", UNBOUNDED)
    parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(parser.next(), ResponseHead)
    for _ in range(3):
        parser.feed(encode_chunk(b"data"))
        assert parser.next() == b"data"
        assert parser.next() is None


def test_blocking_reader() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    for size in (1, 7, 65536):
        pieces = iter([*(data[i : i + size] for i in range(0, len(data), size)), b""])
        head, body = read_answer(lambda _, pieces=pieces: next(pieces), LIMITS, "GET", 10)
        assert (head.status, body) == (200, b"ok")
    pieces = iter([data[:-4], b""])
    with pytest.raises(ConnectionError):
        read_answer(lambda _: next(pieces), LIMITS, "GET", 10)


def test_a_target_may_be_as_long_as_its_limit_while_its_line_still_arrives() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(b"GET /" + b"a" * (LIMITS.target_bytes - 1))
    assert parser.next() is None


def test_chunks_without_trailers_end_where_the_next_request_begins() -> None:
    """All of it is here at once, so each call returns what follows, and none waits for more bytes."""
    head, _, body = CHUNKED.partition(b"\r\n\r\n")
    parser = RequestParser(LIMITS)
    parser.feed(head + b"\r\n\r\n" + body.replace(b"Trailer: gone\r\n", b"") + GET)
    assert isinstance(parser.next(), RequestHead)
    parser.take_body(BODY_BYTES)
    assert [parser.next(), parser.next()] == [b"hello!", END]
    following = parser.next()
    assert isinstance(following, RequestHead)
    assert (following.method, following.target) == ("GET", "/a?b=c")


def test_the_last_interim_status_is_passed_over_as_the_first() -> None:
    answer = b"HTTP/1.1 199 Wait\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    [head, _] = events(ResponseParser(LIMITS, "GET", BODY_BYTES), [answer])
    assert (head.status, head.keep_alive) == (204, True)


def test_an_answer_without_a_body_may_close_the_connection() -> None:
    [head, _] = events(ResponseParser(LIMITS, "GET", BODY_BYTES), [b"HTTP/1.1 204 x\r\nconnection: close\r\n\r\n"])
    assert not head.keep_alive
