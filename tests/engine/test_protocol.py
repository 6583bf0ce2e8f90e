"""The protocol of NATS: each input whole, byte by byte and cut anywhere, and nothing unbounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.engine import protocol
from spl.engine.protocol import (
    SAID_BYTES_MAX,
    Delivery,
    EngineError,
    NatsParser,
    Received,
    ServerError,
    ServerInfo,
    decoded,
)

SAID = (
    b"INFO {\"headers\":true}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'Unknown'\r\n"
    b"MSG a.b 1 5\r\nhe\r\no\r\nMSG a 1 r.1 0\r\n\r\nHMSG x 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
)
HEARD: list[Received] = [
    ServerInfo({"headers": True}), "PING", "PONG", "OK", ServerError("Unknown"),
    Delivery("a.b", "", b"", b"he\r\no"), Delivery("a", "r.1", b"", b""),
    Delivery("x", "r", b"NATS/1.0\r\n\r\n", b"hi"),
]  # fmt: skip


def heard(*pieces: bytes, bytes_max: int = 100) -> list[Received]:
    parser, found = NatsParser(bytes_max), list[Received]()
    for piece in pieces:
        parser.feed(piece)
        while (event := parser.next()) is not None:
            found.append(event)
    return found


def test_events_are_the_same_however_the_bytes_come() -> None:
    assert heard(SAID) == HEARD
    assert heard(*(SAID[at : at + 1] for at in range(len(SAID)))) == HEARD
    for cut in range(len(SAID)):
        assert heard(SAID[:cut], SAID[cut:]) == HEARD


@pytest.mark.parametrize("bad", [
    b"MSG a 1\r\n", b"MSG a 1 +5\r\n", b"MSG a 1 1_0\r\n", b"MSG a 1 101\r\n", b"MSG a 1 9999999999\r\n",
    b"HMSG a 1 9 5\r\n", b"MSG a 1 1\r\nxyz", b"HELLO\r\n", b"INFO []\r\n", b"INFO {\r\n",
    b"INFO " + b"[" * 60_000 + b"\r\n",
    b"x" * (protocol.INFO_BYTES + 1), b"MSG " + b"a" * protocol.CONTROL_BYTES + b" 1 1\r\n",
])  # fmt: skip
def test_what_is_not_of_the_protocol_ends_the_connection(bad: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        heard(bad)
    assert caught.value.code == "sink-refused"


def test_a_message_with_a_long_head_counts_as_an_empty_one() -> None:
    for size in (protocol.HEAD_BYTES_MAX, protocol.HEAD_BYTES_MAX + 1):
        (found,) = heard(b"HMSG a 1 %d %d\r\n%bb\r\n" % (size, size + 1, b"h" * size), bytes_max=size + 1)
        assert isinstance(found, protocol.Delivery)
        assert found.size == (size + 1 if size <= protocol.HEAD_BYTES_MAX else 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_a_refusal(data: bytes) -> None:
    try:
        heard(data)
    except EngineError as exc:
        assert exc.code == "sink-refused"


def test_headers() -> None:
    head = protocol.head_of({"A": "1", "Spl-Thread": "ä b"})
    assert protocol.headers_of(head) == (0, {"A": "1", "Spl-Thread": "ä b"})
    assert protocol.headers_of(b"NATS/1.0 503 No Responders\r\n\r\n") == (503, {})
    for bad in (b"HTTP/1.1\r\n\r\n", b"NATS/1.0 5x3\r\n\r\n", b"NATS/1.0\r\n" + b"A: 1\r\n" * 100):
        with pytest.raises(EngineError):
            protocol.headers_of(bad)


def test_what_we_say_is_what_a_server_reads() -> None:
    head = protocol.head_of({"A": "1"})
    assert protocol.published("s", "r", head, b"body") == b"HPUB s r 18 22\r\nNATS/1.0\r\nA: 1\r\n\r\nbody\r\n"
    assert protocol.published("s", "", b"", b"body") == b"PUB s 4\r\nbody\r\n"


def test_json_that_takes_far_more_memory_than_its_text_is_refused() -> None:
    for data, bytes_max in (
        (b'{"x":[' + b"[]," * 5000 + b"0]}", 10**7),
        (b'{"x":"' + b"a" * SAID_BYTES_MAX + b'"}', SAID_BYTES_MAX),
    ):
        with pytest.raises(EngineError) as caught:
            decoded(data, bytes_max)
        assert caught.value.code == "sink-refused"
    assert decoded(b'{"data":"' + b"a" * SAID_BYTES_MAX + b'"}', 10**7)["data"]
