"""Coded streams: whole at every piece, small where little is sent, bounded against whoever sends."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.net import deflate
from spl.net.deflate import BURST_BYTES, INFLATED_BYTES_MAX, RATE_BYTES_S, REST_S, Deflater, Inflater
from spl.net.http1 import WireError
from tests.waiting import until

EVENT = b'event: heartbeat\ndata: {"peer_view":{"state":"active","head":%d}}\n\n'


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def inflate(inflater: Inflater, data: bytes) -> bytes:
    return b"".join(inflater.feed(data))


@given(st.lists(st.tuples(st.binary(max_size=200_000), st.floats(0, 5)), max_size=12))
def test_every_piece_is_whole_as_soon_as_it_arrives(pieces: list[tuple[bytes, float]]) -> None:
    """Compressed or stored, in any order of the two."""
    clock, inflater = Clock(), Inflater()
    deflater = Deflater(clock)
    coded = b""
    for piece, wait in pieces:
        clock.now += wait
        part = deflater.feed(piece)
        assert inflate(inflater, part) == piece
        coded += part
    coded += deflater.finish()
    assert zlib.decompress(coded) == b"".join(piece for piece, _ in pieces)


@given(st.data())
def test_any_cut_gives_the_same(data: st.DataObject) -> None:
    deflater, inflater = Deflater(Clock()), Inflater()
    pieces = [EVENT % n for n in range(5)] + [random.Random(1).randbytes(70_000)]
    coded = b"".join(map(deflater.feed, pieces))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=20)))
    parts = [coded[a:b] for a, b in zip([0, *cuts], [*cuts, len(coded)], strict=True)]
    assert b"".join(inflate(inflater, part) for part in parts) == b"".join(pieces)


def test_little_is_compressed_and_bulk_is_stored() -> None:
    clock = Clock()
    deflater = Deflater(clock)
    first = deflater.feed(EVENT % 1)
    assert len(deflater.feed(EVENT % 2)) < len(first) / 2
    bulk = bytes(BURST_BYTES)
    assert len(deflater.feed(bulk)) > len(bulk)
    assert len(deflater.feed(bytes(BURST_BYTES))) > BURST_BYTES
    clock.now += BURST_BYTES / RATE_BYTES_S
    assert len(deflater.feed(EVENT % 3)) < len(EVENT) * 2


def test_a_stream_that_rests_holds_no_compressor_and_goes_on_from_what_it_sent_last() -> None:
    clock, inflater = Clock(), Inflater()
    deflater = Deflater(clock)
    first = deflater.feed(EVENT % 1)
    assert inflate(inflater, first) == EVENT % 1
    assert deflater.rest_s() == REST_S
    clock.now += REST_S
    assert deflater.rest_s() == 0
    assert deflater._compressor is None
    for number in range(2, 5):
        clock.now += 10 * REST_S
        coded = deflater.feed(EVENT % number)
        assert deflater._compressor is None
        assert inflate(inflater, coded) == EVENT % number
        assert len(coded) < len(first) / 2
    assert deflater.feed(EVENT % 5)
    assert deflater._compressor is not None


def test_what_follows_bulk_is_compressed_by_its_end() -> None:
    clock, inflater = Clock(), Inflater()
    deflater, bulk = Deflater(clock), random.Random(1).randbytes(2 * BURST_BYTES)
    assert inflate(inflater, deflater.feed(bulk)) == bulk
    coded = deflater.feed(bulk[-500:])
    assert len(coded) < 50
    assert inflate(inflater, coded) == bulk[-500:]


@pytest.mark.parametrize("data", [b"event: x\n\n", b"\x78\x9c\x07", zlib.compress(b"x") + b"more"])
def test_what_is_no_deflate_is_refused(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        inflate(Inflater(), data)
    assert caught.value.code == "answer-malformed"


def test_a_bomb_is_refused_before_it_grows() -> None:
    bomb = zlib.compress(bytes(50 * INFLATED_BYTES_MAX))
    pieces = Inflater().feed(bomb[:65536])
    for _ in range(INFLATED_BYTES_MAX // 65536):
        assert next(pieces)
    with pytest.raises(WireError):
        next(pieces)


@pytest.mark.parametrize(
    ("header", "offered"),
    [
        ("deflate", True),
        ("gzip, DEFLATE;q=0.5", True),
        ("deflate; q=0", False),
        ("deflate;q=0.000", False),
        ("gzip, br", False),
        ("*", False),
        ("", False),
        ("deflated", False),
    ],
)
def test_the_coding_is_used_where_it_is_offered(header: str, offered: bool) -> None:
    assert deflate.accepts(header) is offered


async def test_closing_the_coded_stream_closes_the_stream() -> None:
    closed = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    coded = deflate.deflated(pieces(), Clock())
    assert inflate(Inflater(), await anext(coded)) == b"one"
    await coded.aclose()
    assert closed
    assert zlib.decompress(b"".join([part async for part in deflate.deflated(pieces(), Clock())])) == b"onetwo"


async def test_a_coded_stream_gives_its_compressor_back_while_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Deflater]()

    class Watched(Deflater):
        def __init__(self, now_s: Callable[[], float]) -> None:
            super().__init__(now_s)
            made.append(self)

    more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield EVENT % 1
        await more.wait()
        yield EVENT % 2

    monkeypatch.setattr(deflate, "Deflater", Watched)
    monkeypatch.setattr(deflate, "REST_S", 0.05)
    inflater, coded = Inflater(), deflate.deflated(pieces(), asyncio.get_running_loop().time)
    assert inflate(inflater, await anext(coded)) == EVENT % 1
    rest = asyncio.ensure_future(anext(coded))
    await until(lambda: made[0]._compressor is None)
    more.set()
    assert inflate(inflater, await rest) == EVENT % 2
    await coded.aclose()
