"""The way of one record from `POST /v1/records` to the peer's disk is the list of files in `spl/__init__.py`."""

import asyncio
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, cast

import pytest

import spl
from spl.api import emit
from spl.api.app import Api
from spl.core.limits import Limits
from spl.core.value import replace
from spl.daemon import start
from spl.home.commit_queue import CommitQueue
from spl.home.index import Index
from spl.home.log import Log
from spl.home.views import Views
from spl.home.writer import Writer
from spl.net.client import EventStream
from spl.net.connection import Connection
from spl.sync.changes import Feed
from spl.sync.follow import Inbox
from spl.sync.ingest import Ingest
from spl.sync.notify import Notifier
from spl.sync.stream import Stream
from tests.sim import daemons
from tests.sim.daemons import Daemon, daemon
from tests.waiting import until

_COMMIT: Final = (CommitQueue.put, Writer._commit, Log._write, Index.add, Views.folded)
PASSED: Final[tuple[Any, ...]] = (
    Connection._answer, Api.respond, emit.emit, *_COMMIT, Notifier.notify,
    Stream.events, EventStream._read, Inbox.put, Ingest.judge, *_COMMIT, Feed.confirm,
)  # fmt: skip
"""One function of each file that a record passes, in the order of its way."""


def listed() -> list[str]:
    """Return the files of the list, in its order."""
    assert spl.__doc__
    rows = re.findall(r"^ +([0-9]+) ([a-z]+/[a-z_]+) ", spl.__doc__, re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(1, len(rows) + 1)]
    return [name for _, name in rows]


def file_of(function: Any) -> str:
    return cast(FunctionType, function).__module__.removeprefix("spl.").replace(".", "/")


@contextmanager
def followed(functions: tuple[Any, ...]) -> Iterator[list[CodeType]]:
    """Collect the calls of these functions in this thread, and in those that start meanwhile."""
    wanted, calls = {function.__code__ for function in functions}, list[CodeType]()

    def hook(frame: FrameType, what: str, _: object) -> None:
        if what == "call" and frame.f_code in wanted:
            calls.append(frame.f_code)

    before = sys.getprofile()
    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]


@asynccontextmanager
async def running(*served: Daemon) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for each in served:
            start(each.services, tasks, stop)
        yield
        stop.set()
        for each in served:
            each.services.feed.notifier.stop()


def streams(daemon: Daemon, pair_id: str) -> bool:
    stream = daemon.services.sync.status(pair_id).stream
    return stream is not None and stream.state == "open"


def missing(calls: list[CodeType]) -> str:
    """Return the first function of the way that was not called after those before it; "" if each was."""
    left = iter(calls)
    return next((function.__qualname__ for function in PASSED if function.__code__ not in left), "")


def test_the_list_is_short_and_returns_to_the_queue_alone() -> None:
    files = listed()
    assert len(files) <= 15
    assert [name for name in {*files} if files.count(name) > 1] == ["home/commit_queue"]
    assert [*dict.fromkeys(map(file_of, PASSED))] == [*dict.fromkeys(files)]


async def test_a_record_passes_the_files_of_the_list_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "CONFIG", replace(daemons.CONFIG, limits=Limits()))  # heartbeats would pass some too
    with followed(PASSED) as calls:
        async with daemon(tmp_path / "a", "alice") as alice, daemon(tmp_path / "b", "bob") as bob, running(alice, bob):
            await alice.fetch("POST", "/v1/federation/pairs", {"url": bob.url, "wait_ms": 60_000})
            [pair_id] = alice.services.views.pairs
            for each in (alice, bob):
                await each.json("POST", f"/v1/federation/pairs/{pair_id}/mode", {"mode": "continuous"})
            await until(lambda: streams(alice, pair_id) and streams(bob, pair_id))
            calls.clear()
            [sent] = await alice.emit([{"act": "DO", "actor": "did:sync:user:a", "thread": "th_walk", "body": {}}])
            with suppress(TimeoutError):
                await until(lambda: not missing(calls))
            assert bob.home.store.index.find(sent, "default")
    assert not missing(calls), "was not called after those before it"
