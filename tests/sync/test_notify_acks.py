"""Who waits for a peer's confirmation is woken by it, and by nobody else's."""

import asyncio

from spl.sync.notify import Acks
from tests.waiting import DEADLINE_S, turns


async def test_positions_are_those_of_the_last_ack() -> None:
    acks = Acks()
    assert acks.position("p", "default") is None
    acks.note("p", {"default": 5})
    acks.note("q", {"org": 9})
    acks.note("p", {"default": 3, "org": 7})
    assert [acks.position("p", "default"), acks.position("p", "org"), acks.position("q", "default")] == [3, 7, None]


async def test_waiting_ends_with_the_ack_that_is_past_it() -> None:
    acks = Acks()
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.ensure_future(acks.beyond("p", "default", 5, 60))
        await turns()
        for pair_id, positions in (("q", {"default": 9}), ("p", {"org": 9}), ("p", {"default": 5})):
            acks.note(pair_id, positions)
            await turns(2)
            assert not waiting.done()
        acks.note("p", {"default": 6})
        assert await waiting == 6
        assert await acks.beyond("p", "default", 5, 60) == 6


async def test_waiting_in_vain_tells_where_it_stands() -> None:
    acks = Acks()
    assert await acks.beyond("p", "default", 5, 0) is None
    acks.note("p", {"default": 5})
    assert await acks.beyond("p", "default", 5, 0) == 5
    assert not acks._waiting
