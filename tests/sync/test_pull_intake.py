"""What waits is bounded, in order, and taken together."""

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.sync.follow import Inbox
from spl.sync.ingest import Judged, Taken
from tests.nodes import LIMITS, join, nodes
from tests.waiting import DEADLINE_S

PAIR = "pair_00000001"


async def test_what_arrived_is_taken_together_up_to_the_next_heartbeat() -> None:
    inbox = Inbox(100, 10_000)
    for n in range(3):
        inbox.put(b"%d" % n, "c1" if n == 1 else "")
    inbox.put(b"beat", "", is_heartbeat=True)
    inbox.put(b"3", "")
    first, beat, last = [await inbox.take(10) for _ in range(3)]
    assert first is not None
    assert beat is not None
    assert last is not None
    assert (first.data, first.cursor) == ([b"0", b"1", b"2"], "c1")
    assert (beat.is_heartbeat, beat.data) == (True, [b"beat"])
    assert (last.data, last.cursor) == ([b"3"], "")
    assert (inbox.records, inbox.peak) == (4, 4)
    for item in (first, beat, last):
        inbox.done(item)
    assert (inbox.records, inbox.size) == (0, 0)


async def test_a_lot_has_at_most_so_many() -> None:
    inbox = Inbox(100, 10_000)
    for n in range(5):
        inbox.put(b"%d" % n, f"c{n}")
    found = [await inbox.take(2) for _ in range(3)]
    assert [(len(item.data), item.cursor) for item in found if item] == [(2, "c1"), (2, "c3"), (1, "c4")]


@pytest.mark.parametrize(("records", "size"), [(2, 1000), (100, 8)])
async def test_full_means_waiting_until_something_is_stored(records: int, size: int) -> None:
    inbox = Inbox(records, size)
    for _ in range(2):
        await inbox.room()
        inbox.put(b"four", "c")
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(inbox.room())
        item = await inbox.take(1)
        assert item is not None
        assert not waiting.done()
        inbox.done(item)


async def test_one_that_is_larger_than_the_inbox_goes_through_alone() -> None:
    inbox = Inbox(10, 3)
    await inbox.room()
    inbox.put(b"larger", "c")
    item = await inbox.take(10)
    assert item is not None
    inbox.done(item)
    await inbox.room()


async def test_the_end_comes_after_what_waits() -> None:
    inbox = Inbox(10, 100)
    inbox.put(b"1", "c")
    inbox.close(SplError("timeout"))
    assert await inbox.take(10) is not None
    assert await inbox.take(10) is None
    assert isinstance(inbox.end, SplError)


async def test_heartbeats_that_follow_one_another_are_one() -> None:
    """A peer sends them at no cost, so only the newest waits; between records each is kept, for it says up to where."""
    inbox = Inbox(100, 10_000)
    for n in range(1000):
        inbox.put(b"beat %03d" % n, "", is_heartbeat=True)
    assert inbox.size == len(b"beat 000")
    inbox.put(b"record", "c")
    inbox.put(b"last", "", is_heartbeat=True)
    found = [await inbox.take(10) for _ in range(3)]
    assert [item.data for item in found if item] == [[b"beat 999"], [b"record"], [b"last"]]
    for item in found:
        assert item is not None
        inbox.done(item)
    assert (inbox.records, inbox.size) == (0, 0)


async def test_large_heartbeats_between_records_fill_the_inbox() -> None:
    inbox = Inbox(100, 10)
    inbox.put(b"1", "c")
    inbox.put(b"large heartbeat", "", is_heartbeat=True)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(inbox.room())
        for _ in range(2):
            item = await inbox.take(1)
            assert item is not None
            assert not waiting.done()
            inbox.done(item)


async def test_a_page_is_judged_while_the_one_before_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(LIMITS, page_records_default=2)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(6):
            alice.emit(f"{n}")
        steps: list[str] = []
        second = asyncio.Event()
        judge, keep = bob.ingest.judge, bob.ingest.keep

        async def judging(*args: Any) -> Judged:
            steps.append("judge")
            if steps.count("judge") == 2:
                second.set()
            return await judge(*args)

        async def keeping(*args: Any, **options: Any) -> Taken:
            await asyncio.wait_for(second.wait(), DEADLINE_S)
            return await keep(*args, **options)

        monkeypatch.setattr(bob.ingest, "judge", judging)
        monkeypatch.setattr(bob.ingest, "keep", keeping)
        assert await bob.sync.pull(PAIR) == 6
        assert alice.ids() == bob.ids()


async def test_what_came_before_an_error_of_judging_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(LIMITS, page_records_default=2)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(6):
            alice.emit(f"{n}")
        judge, times = bob.ingest.judge, itertools.count(1)

        async def judging(*args: Any) -> Judged:
            if next(times) == 3:
                raise SplError("timeout")
            return await judge(*args)

        monkeypatch.setattr(bob.ingest, "judge", judging)
        with pytest.raises(SplError, match="in time"):
            await bob.sync.pull(PAIR)
        assert len(bob.ids()) == 4
        monkeypatch.setattr(bob.ingest, "judge", judge)
        assert await bob.sync.pull(PAIR) == 2
