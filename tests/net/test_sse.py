"""Event streams: the same events however the bytes are cut, and no event without a bound."""

import json
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.net.http1 import WireError
from spl.net.sse import IDLE_BYTES_MAX, Event, EventParser, encode_event, one_line

STREAM = (
    b"\xef\xbb\xbf: comment\n\nevent: a\r\ndata: one\rdata:two\r\nid: 7\r\n\r\n"
    b"data\n\nretry: 1500\nretry: x\nid\n\nevent: lost\n\ndata:  spaced: x\nunknown: y\nid: a\0b\n\ndata: unfinished\n"
)
EVENTS = [Event("a", b"one\ntwo", "7"), Event("message", b"", ""), Event("message", b" spaced: x", "")]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_the_same_events_in_pieces_of_any_size(size: int) -> None:
    parser = EventParser(1000)
    events = [event for i in range(0, len(STREAM), size) for event in parser.feed(STREAM[i : i + size])]
    assert events == EVENTS
    assert parser.retry_ms == 1500
    assert parser.last_id == ""  # an empty id forgets the last one


def test_cut_in_two_at_every_offset() -> None:
    for i in range(len(STREAM)):
        parser = EventParser(1000)
        assert parser.feed(STREAM[:i]) + parser.feed(b"") + parser.feed(STREAM[i:]) == EVENTS


def test_the_last_id_stays() -> None:
    parser = EventParser(1000)
    parser.feed(b"id: 1\ndata: x\n\ndata: y\n\n")
    assert parser.last_id == "1"


@pytest.mark.parametrize("data", [b"data: " + b"x" * 100, b"data: x\n" * 20, b"id: " + b"y" * 100 + b"\n"])
def test_an_event_is_bounded(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        EventParser(90).feed(data)
    assert caught.value.code == "answer-malformed"
    parser = EventParser(90)
    single = map(bytes, zip(data, strict=True))
    with pytest.raises(WireError):
        deque(map(parser.feed, single), maxlen=0)


def test_the_bound_is_for_each_event() -> None:
    assert len(EventParser(90).feed(b"data: " + b"x" * 50 + b"\n\n" + b"data: " + b"x" * 50 + b"\n\n")) == 2


@pytest.mark.parametrize("line", [b"\n", b": x\n", b"retry: 5\n\n", b"event: x\n\n", b"id: 5\n", b"\r"])
def test_what_holds_no_event_is_bounded(line: bytes) -> None:
    """Else a source keeps a processor busy with it for as long as it likes."""
    count = IDLE_BYTES_MAX // (2 * len(line))
    event = b"data: 1\n\n"
    parser = EventParser(10 * IDLE_BYTES_MAX)
    for _ in range(4):
        assert len(parser.feed(line * count + event)) == 1
    with pytest.raises(WireError) as caught:
        parser.feed(line * 4 * count)
    assert caught.value.code == "answer-malformed"


LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)


@given(name=LINE.filter(bool), data=LINE, id=LINE)
def test_what_is_encoded_is_parsed(name: str, data: str, id: str) -> None:
    assert EventParser(1000).feed(encode_event(name, data.encode(), id)) == [Event(name, data.encode(), id)]


@pytest.mark.parametrize(
    ("name", "data", "id"),
    [("a\nb", b"", ""), ("a\rb", b"", ""), ("a", b"x\ny", ""), ("a", b"x\ry", ""), ("a", b"", "1\n2")],
)
def test_no_value_becomes_a_field_of_its_own(name: str, data: bytes, id: str) -> None:
    with pytest.raises(WireError):
        encode_event(name, data, id)


def test_no_character_of_json_data_ends_a_line_in_any_reader() -> None:
    """`str.splitlines` ends lines at U+2028 and its like, and many clients read streams with it."""
    value = {"text": "a\u2028b\u2029c\u0085d\x1ce\x0bf", "\u2028": "\u20a8\u0105"}
    event = encode_event("x", one_line(json.dumps(value, ensure_ascii=False).encode()), "7")
    assert len(event.decode().splitlines()) == 4
    [found] = EventParser(1000).feed(event)
    assert json.loads(found.data) == value
