"""What a connection holds when it is cut is not carried out."""

import pytest

from spl.core.limits import Limits
from tests.net.test_connection import CLOSE, GET


@pytest.mark.parametrize("when", [0, 3, 7])
async def test_an_aborted_connection_carries_out_no_request_that_it_holds(serve, when: int) -> None:
    """Neither those of the same turn nor those that another turn was to take apart."""
    async with serve(Limits(shutdown_s=0.2, pipelined_count=8)) as server:
        real, seen = server.app.respond, server.app.seen

        def aborting(request, match):  # type: ignore[no-untyped-def]
            answer = real(request, match)
            if len(seen) == when + 1:
                (connection,) = server.server._shared.connections
                server.server._shared.loop.call_soon(connection.abort) if when == 7 else connection.abort()
            return answer

        server.app.respond = aborting
        assert b"200 OK" in await server.ask(GET * 30, until=None) or when < 7
        await server.gone()
        await server.ask(CLOSE)
        assert len(seen) == when + 2
