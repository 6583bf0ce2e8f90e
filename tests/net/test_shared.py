"""What connections share: the head of a plain answer is what the answer itself would write, at every moment."""

import asyncio
from dataclasses import dataclass

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.net.address import Proxies
from spl.net.admission import Admission
from spl.net.http1 import RequestHead
from spl.net.routes import Match, Request, Response
from spl.net.shared import Shared


class NoApp:
    """Is asked for nothing."""

    def match(self, head: RequestHead) -> Match:
        raise AssertionError

    def respond(self, request: Request, match: Match) -> Response:
        raise AssertionError

    def refuse(self, error: SplError, head: RequestHead | None) -> Response:
        raise AssertionError


@dataclass
class Clock:
    """Unix time that the test sets."""

    ms: int = 1_764_000_000_000

    def now_ms(self) -> int:
        return self.ms


async def shared(clock: Clock) -> Shared[object]:
    return Shared(NoApp(), Limits(), clock.now_ms, asyncio.TaskGroup(), Admission(1, 1, Proxies()))


@pytest.mark.parametrize("length", [0, 7, 123_456])
async def test_a_head_that_was_begun_ends_as_one_made_whole(length: int) -> None:
    clock = Clock()
    made = await shared(clock)
    for later_ms in (0, 999, 1, -1000):
        clock.ms += later_ms
        for status, kind in ((200, "application/json"), (404, "application/json"), (200, "application/x-ndjson")):
            whole = Response(status, b"", kind).head(length, made.date(), chunked=False, last=False)
            assert b"%b%d\r\n\r\n" % (made.begun(status, kind), length) == whole


def test_no_answer_may_be_kept_by_a_cache_unless_it_says_so_itself() -> None:
    def kept(*headers: tuple[str, str]) -> list[bytes]:
        lines = Response(headers=headers).head(0, "", chunked=False, last=False).split(b"\r\n")
        return [line for line in lines if line.startswith(b"cache-control")]

    assert kept() == kept(("vary", "cache-control")) == [b"cache-control: no-store"]
    assert kept(("etag", "x"), ("cache-control", "no-cache")) == [b"cache-control: no-cache"]


async def test_the_date_is_that_of_the_second() -> None:
    clock = Clock()
    made = await shared(clock)
    first = made.date()
    clock.ms += 1000
    assert (first, made.date()) == ("Mon, 24 Nov 2025 16:00:00 GMT", "Mon, 24 Nov 2025 16:00:01 GMT")
