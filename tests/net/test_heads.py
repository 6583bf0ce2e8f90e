"""Heads as lines: nothing from outside becomes a header of its own, and h11 reads what is written."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.limits import Limits
from spl.net.heads import (
    Parts,
    WireError,
    content_length,
    date_ms,
    encode_chunk,
    encode_head,
    encode_request,
    http_date,
    status_line,
)
from spl.net.http1 import END, RequestHead, RequestParser


def only_head(data: bytes) -> RequestHead:
    parser = RequestParser(Limits())
    parser.feed(data)
    head = parser.next()
    assert isinstance(head, RequestHead)
    assert parser.next() is END
    assert parser.idle
    return head


@given(st.text(max_size=20))
def test_no_value_becomes_a_header_of_its_own(value: str) -> None:
    try:
        data = encode_request("GET", "/", [("host", "x"), ("x-value", value)])
    except WireError as exc:
        assert exc.code == "bad-request"
    else:
        head = only_head(data)
        assert head.headers == {"host": "x", "x-value": value.strip(" \t")}


def test_a_request_has_a_length_where_one_is_expected() -> None:
    assert b"content-length" not in encode_request("GET", "/", [("host", "x")])
    assert encode_request("POST", "/", [("host", "x")]).endswith(b"content-length: 0\r\n\r\n")
    assert encode_request("POST", "/", [("host", "x")], b"ab").endswith(b"content-length: 2\r\n\r\nab")


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "a\x7fb", "\u0100"])
def test_a_response_header_cannot_forge_another(value: str) -> None:
    with pytest.raises(WireError) as caught:
        encode_head([status_line(200), f"x: {value}"])
    assert caught.value.code == "bad-request"


def test_h11_reads_a_response() -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    data = encode_head([status_line(200), "x: caf\xe9", "transfer-encoding: chunked"])
    connection.receive_data(data + encode_chunk(b"hello") + b"0\r\n\r\n")
    head = connection.next_event()
    assert (head.status_code, head.reason) == (200, b"OK")
    assert (b"x", b"caf\xe9") in list(head.headers)
    assert bytes(connection.next_event().data) == b"hello"
    assert isinstance(connection.next_event(), h11.EndOfMessage)


def test_a_date() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110 §5.6.7
    assert http_date(951782400) == "Tue, 29 Feb 2000 00:00:00 GMT"


@given(st.text(max_size=20))
def test_a_length_is_digits_alone(text: str) -> None:
    try:
        size = content_length(text)
    except WireError as exc:
        assert exc.code in ("bad-length", "body-too-large")
    else:
        assert text.isascii()
        assert text.isdigit()
        assert size == int(text)


def test_parts_are_kept_in_bounded_number_and_size() -> None:
    parts: Parts[int] = Parts()
    for n in range(1000):
        parts.add(b"%d" % n, n)
        assert parts.get(b"%d" % n) is None
        parts.add(b"%d" % n, n)
        assert parts.get(b"%d" % n) == n
    assert 100 <= sum(parts.get(b"%d" % n) is not None for n in range(1000)) <= 256
    for _ in range(2):
        parts.add(b"x" * 2000, 1)
    assert parts.get(b"x" * 2000) is None


def test_parts_that_come_once_take_a_number_each() -> None:
    parts: Parts[int] = Parts()
    for n in range(1000):
        parts.add(b"%d" % n, n)
    assert not parts._young
    assert len(parts._once) <= 128


def test_a_part_that_is_asked_for_stays() -> None:
    parts: Parts[int] = Parts()
    for _ in range(2):
        parts.add(b"kept", -1)
    for n in range(1000):
        parts.add(b"%d" % n, n)
        parts.add(b"%d" % n, n)
        assert parts.get(b"kept") == -1


@given(st.integers(0, 4_102_444_799))
def test_a_date_that_is_written_is_read_as_the_same_second(unix_s: int) -> None:
    assert date_ms(http_date(unix_s)) == unix_s * 1000


@pytest.mark.parametrize(
    "text", ["", "Mon, 31 Feb 2025 00:00:00 GMT", "Mon, 01 Xyz 2025 00:00:00 GMT", "1764000000", "x" * 99]
)
def test_what_is_no_date_is_none(text: str) -> None:
    assert date_ms(text) is None
