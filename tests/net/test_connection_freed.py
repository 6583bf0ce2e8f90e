"""What is left of a connection once it has ended: nothing."""

import gc

import pytest

from spl.core.limits import Limits
from spl.net.connection import Connection
from tests.waiting import until

CLOSE = b"GET /here/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TINY = Limits(head_timeout_s=0.3, idle_timeout_s=0.3, linger_s=0.1)


def connections() -> list[Connection]:
    """Return all that are in memory."""
    return [each for each in gc.get_objects() if type(each) is Connection]


@pytest.mark.parametrize("data", [CLOSE, b"garbage\r\n\r\n", b"GET /late-flood HTTP/1.1\r\nHost: x\r\n", b""])
async def test_a_connection_that_ended_is_freed_without_the_collector(serve, data: bytes) -> None:
    """Strangers make hundreds a second, and the collector looks seldom."""
    async with serve(TINY) as server:
        gc.collect()
        gc.disable()
        kept = connections()
        try:
            for _ in range(3):
                await server.ask(data)
            await server.gone()
            await until(lambda: len(connections()) <= len(kept))
        finally:
            gc.enable()
