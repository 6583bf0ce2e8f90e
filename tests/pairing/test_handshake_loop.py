"""Driving our requests: attempts back off, a kick tries at once, and whoever watches is told."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.pairing.handshake_loop import on_its_way
from tests.pair_world import FakeSync, both_active, code_of, names, two
from tests.waiting import until


async def test_failures_are_kept_for_who_watches_and_end_with_the_first_success(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        await a.pair(b, wait_ms=0)
        pair_id = await both_active(a, b)
        assert a.pairing.handshakes.trouble.get(pair_id) is None
        assert not on_its_way(a.alive[0])
        await a.pairing.revoke(pair_id)
        world.faults.append(lambda call: call.body if "well-known" in call.path else None)
        asking = asyncio.create_task(a.pair(b))
        await until(lambda: a.pairing.handshakes.trouble)
        asking.cancel()
        with pytest.raises(SplError) as caught:
            [step async for step in a.pairing.handshakes.watch(a.alive[0].pair_id, wait_s=0)]
        assert code_of(caught) == "disconnected"
        assert a.alive[0].phase is Phase.ESTABLISHING
        assert a.pairing.handshakes.trouble.get(a.alive[0].pair_id) is not None
        world.faults.clear()
        assert "active" in names(await a.pair(b))
        assert a.pairing.handshakes.trouble.get(a.alive[0].pair_id) is None


async def test_of_pairs_that_are_over_nothing_stays_in_memory(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        loop = a.pairing.handshakes
        for _ in range(3):
            await a.pair(b)
            pair_id = await both_active(a, b)
            await until(lambda: not loop._kicks)
            assert loop.trouble == {}
            assert list(loop._first_syncs) == [pair_id], "what ended pairs brought is still held"
            await a.pairing.revoke(pair_id)
            await until(lambda: not b.alive)


async def test_a_request_on_its_way_follows_an_address_that_the_peer_corrected(tmp_path: Path) -> None:
    """It was found at the URL that our operator typed, and published one where nobody answers."""
    async with two(tmp_path, approval="manual") as (_, a, b):
        b.pairing.published.url = "http://127.0.0.1:9"
        with suppress(SplError):
            await a.pair(b, wait_ms=0)
        await until(lambda: a.pairing.handshakes.trouble)
        assert not b.alive
        b.pairing.published.url = b.url
        b.pairing.published.renew()
        await until(lambda: b.alive)
        assert a.alive[0].url == b.url
        assert a.alive[0].pair_id == b.alive[0].pair_id


async def test_who_waits_no_longer_is_told_what_was_approved_and_goes_on(tmp_path: Path) -> None:
    """The first sync of a long history outlasts the wait; that is no undecided request."""
    async with two(tmp_path) as (_, a, b):
        loop = a.pairing.handshakes
        assert isinstance(loop._sync, FakeSync)
        held = loop._sync.held = asyncio.Event()
        asking = asyncio.create_task(a.pair(b))
        await until(lambda: a.first_syncs)
        pair_id = a.alive[0].pair_id
        *before, last = [step async for step in loop.watch(pair_id, wait_s=0)]
        assert [step.name for step in before] == ["posted", "token", "recorded"]
        assert last.to_json() == {"step": "completing", "pair_id": pair_id, "state": "active", "records": 7}
        held.set()
        assert names(await asking)[-1] == "active"
