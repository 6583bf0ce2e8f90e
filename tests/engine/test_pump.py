"""The pump over a far side that is a list: at least once, in order, whatever breaks."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from spl.core.consent import KIND_SINK, THREAD
from spl.engine import pump
from spl.engine.protocol import EngineError
from spl.engine.pump import BUSY_RECORDS, Pump, SinkState
from spl.engine.reader import BATCH_RECORDS, LogReader, StoredRecord
from spl.engine.sinks import Sink
from spl.home.writes import Own
from tests.nodes import Node
from tests.waiting import until

FAN = Sink("fan", "nats://127.0.0.1", ("default",))


class Far:
    """A far side and its own sessions; `breaks` counts the puts that fail after they stored half."""

    def __init__(self) -> None:
        self.records: list[StoredRecord] = []
        self.breaks = 0
        self.opened = 0

    async def open(self) -> "Far":
        self.opened += 1
        return self

    async def listen(self) -> None:
        await asyncio.Event().wait()

    async def resume(self) -> int:
        return self.records[-1].seq if self.records else 0

    async def put(self, records: Sequence[StoredRecord]) -> None:
        if self.breaks:
            self.breaks -= 1
            self.records += records[: len(records) // 2]
            raise EngineError("sink-full")
        self.records += records

    async def close(self) -> None:
        pass


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def made(node: Node, far: Far, pool: ThreadPoolExecutor) -> Pump:
    reader = LogReader(node.feed.source)
    clocks = {"now_ms": node.now_ms, "random_bytes": os.urandom}
    return Pump(FAN, far, reader, node.feed.notifier, pool, SinkState(), **clocks)  # type: ignore[arg-type]


async def test_records_go_out_once_and_in_order_though_puts_break(
    node: Node, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "BACKOFF_BASE_S", 0.01)
    node.write(Own(THREAD, KIND_SINK, FAN.body()))
    wanted = [node.emit(str(number)).id for number in range(600)]
    far = Far()
    far.breaks = 4
    runs = made(node, far, pool)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(runs.run())
        await until(lambda: len(far.records) == 600)
        wanted.append(node.emit("later").id)
        await until(lambda: len(far.records) == 601 and runs.lag() == 0)
        assert [record.id for record in far.records] == wanted
        assert (runs.state.fault, far.opened) == (None, 5)
        node.write(Own(THREAD, KIND_SINK, FAN.in_phase("paused", "later").body()))
        await task  # a withdrawn sink ends by itself
    assert node.home.views.positions[FAN.place_name].count == 601 or await until(
        lambda: node.home.views.positions[FAN.place_name].count == 601
    )


async def test_records_that_come_soon_after_a_put_go_together(
    node: Node, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, collected = asyncio.Semaphore(0), list[int]()

    async def collect(self: Pump) -> None:
        collected.append(len(far.records))
        await go_on.acquire()

    monkeypatch.setattr(Pump, "_collect", collect)
    far = Far()
    node.write(Own(THREAD, KIND_SINK, FAN.body()))
    task = asyncio.create_task(made(node, far, pool).run())
    node.emit("alone")
    await until(lambda: collected == [1])
    for number in range(3):
        node.emit(str(number))
    go_on.release()
    await until(lambda: collected == [1, 4])
    for number in range(2 * BATCH_RECORDS + 2):
        node.emit(str(number))
    go_on.release()
    await until(lambda: collected == [1, 4, 2 * BATCH_RECORDS + 4])
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_foreign_stream_ends_it(node: Node, pool: ThreadPoolExecutor) -> None:
    class Foreign(Far):
        async def resume(self) -> int:
            raise EngineError("sink-foreign")

    node.write(Own(THREAD, KIND_SINK, FAN.body()))
    runs = made(node, Foreign(), pool)
    await runs.run()
    assert runs.state.fault is not None
    assert runs.target.opened == 1  # type: ignore[attr-defined]


async def test_a_far_side_that_ends_the_session_is_opened_again(
    node: Node, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "BACKOFF_BASE_S", 0.01)

    class Leaving(Far):
        async def listen(self) -> None:
            if self.opened < 3:
                raise EngineError("sink-unreachable")
            await super().listen()

    node.write(Own(THREAD, KIND_SINK, FAN.body()))
    node.emit("one")
    far = Leaving()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made(node, far, pool).run())
        await until(lambda: far.opened == 3 and far.records)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_backlog_goes_in_small_lots_while_others_write(
    node: Node, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lots = list[int]()

    async def put(self: Far, records: Sequence[StoredRecord]) -> None:
        if not lots:
            node.emit("beside")
        lots.append(len(records))
        self.records += records

    monkeypatch.setattr(Far, "put", put)
    monkeypatch.setattr(pump, "BUSY_S", 3600.0)
    node.write(Own(THREAD, KIND_SINK, FAN.body()))
    for number in range(BATCH_RECORDS + 2 * BUSY_RECORDS - 1):
        node.emit(str(number))
    task = asyncio.create_task(made(node, Far(), pool).run())
    await until(lambda: sum(lots) == BATCH_RECORDS + 2 * BUSY_RECORDS)
    assert lots == [BATCH_RECORDS, BUSY_RECORDS, BUSY_RECORDS]
    task.cancel()
