"""A pair has one long poll of a reading that waits, as it has one stream."""

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.nodes import LIMITS, join, nodes
from tests.sync.test_changes import ids, page
from tests.waiting import DEADLINE_S, until, waiters

LONG = replace(LIMITS, longpoll_s=3600.0)


async def test_a_newer_longpoll_ends_the_older_ones_empty(tmp_path: Path) -> None:
    """One peer keeps one connection waiting, however many it opens; what it holds is where it was."""
    async with nodes(tmp_path, "alice", "bob", limits=LONG) as (alice, bob):
        join(alice, bob)
        since = (await page(alice))["next_cursor"]
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            polls = [tasks.create_task(page(alice, since=since, feed="longpoll")) for _ in range(8)]
            await until(lambda: sum(poll.done() for poll in polls) == 7)
            ended = [poll.result() for poll in polls if poll.done()]
            assert [(found["records"], found["next_cursor"]) for found in ended] == [([], since)] * 7
            await until(lambda: waiters(alice.feed.notifier) == 1)
            sent = alice.emit("now")
        assert [ids(poll.result()) for poll in polls if poll.result() not in ended] == [[sent.id]]
        assert not alice.feed._polls


async def test_other_readings_and_other_pairs_wait_on(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol", limits=LONG) as (alice, bob, carol):
        join(alice, bob)
        join(alice, carol, "pair_0000000c")
        cursors = [
            (await page(alice))["next_cursor"],
            (await page(alice, thread="th"))["next_cursor"],
            (await page(alice, pair_id="pair_0000000c"))["next_cursor"],
        ]
        readings: list[dict[str, str]] = [{}, {"thread": "th"}, {"pair_id": "pair_0000000c"}]
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            polls = [
                tasks.create_task(page(alice, since=since, feed="longpoll", **reading))
                for since, reading in zip(cursors, readings, strict=True)
            ]
            await until(lambda: waiters(alice.feed.notifier) == 3)
            sent = alice.emit("now", thread="th")
        assert [ids(poll.result()) for poll in polls] == [[sent.id]] * 3
