"""Who waits is woken by what it named, by the stop, and by nothing else."""

import asyncio
from pathlib import Path

from spl.sync.notify import Heartbeat
from tests.nodes import nodes
from tests.waiting import DEADLINE_S, waiters


async def test_only_named_lists_ring(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as (alice,):
        alice.share("org")
        notifier = alice.feed.notifier
        with notifier.listening(["n:org"]) as org, notifier.listening(["t:th", "n:default"]) as both:
            alice.emit("x", thread="th")
            await asyncio.wait_for(both.wait(), DEADLINE_S)
            assert not org.is_set()
            both.clear()
            alice.emit("y", ns="org", thread="other")
            await asyncio.wait_for(org.wait(), DEADLINE_S)
            assert not both.is_set()
            assert waiters(notifier) == 2
        assert waiters(notifier) == 0


async def test_the_stop_rings_for_everybody(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as (alice,):
        stop = asyncio.Event()
        with alice.feed.notifier.listening(["n:default"]) as bell:
            stop.set()
            await alice.feed.run(stop)
            assert bell.is_set()
        assert alice.feed.notifier.stopping


async def test_a_heartbeat_is_due_at_once_and_again_each_time_after_it_was_sent(tmp_path: Path) -> None:
    news = asyncio.Event()
    async with nodes(tmp_path, "alice") as (alice,):
        with Heartbeat(alice.feed.notifier, news, 0.01) as beat:
            for _ in range(3):
                assert beat.is_due
                beat.sent()
                assert not beat.is_due
                await asyncio.wait_for(news.wait(), DEADLINE_S)
                news.clear()


async def test_news_makes_no_heartbeat_due(tmp_path: Path) -> None:
    news = asyncio.Event()
    async with nodes(tmp_path, "alice") as (alice,):
        with Heartbeat(alice.feed.notifier, news, 3600.0) as beat:
            beat.sent()
            news.set()
            await asyncio.wait_for(news.wait(), DEADLINE_S)
            assert not beat.is_due
            timer = beat._timer
    assert timer is not None
    assert timer.cancelled()


async def test_event_streams_count_and_other_waiters_do_not(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as (alice,):
        notifier = alice.feed.notifier
        with notifier.listening(["n:default"]) as news:
            assert notifier.streams == 0
            with Heartbeat(notifier, news, 3600.0), Heartbeat(notifier, news, 3600.0):
                assert notifier.streams == 2
            assert notifier.streams == 0
