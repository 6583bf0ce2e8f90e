"""A daemon and a server that are killed in turn under load: the stream is the log, each record once and in order."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spl.engine import jetstream, subjects
from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance
from tests.e2e.test_kill import EMITTERS, kill_in_a_burst
from tests.engine.servers import NatsServer, records_in, stored
from tests.waiting import eventually

KILLS = 2
"""Of each in the test of a reader; it was run with 20, too."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats").start()
    yield made
    made.end()


def in_stream(server: NatsServer, did: str) -> list[str]:
    async def read() -> list[str]:
        async with server.client() as nats:
            bodies = records_in(await stored(nats, subjects.stream_of(did)))
            return [json.loads(body)["id"] for body in bodies]

    return asyncio.run(read())


def messages(server: NatsServer, did: str) -> int:
    async def count() -> int:
        async with server.client() as nats:
            state = await jetstream.state_of(nats, subjects.stream_of(did))
            return state.messages if state is not None else 0

    return asyncio.run(count())


def in_log(hub: Instance) -> list[str]:
    records: list[dict[str, Any]] = []
    for number in range(EMITTERS):
        records += hub.records(f"th_burst_{number}")
    return [record["id"] for record in sorted(records, key=lambda record: record["sequence"])]


def test_the_stream_is_the_log_though_both_are_killed(make: Make, server: NatsServer) -> None:
    hub = make("hub").start()
    hub.run("sink", "add", server.url, "--namespace", "default", "--name", "fan")
    for turn in range(3):
        kill_in_a_burst(hub, 150)
        if turn < 2:
            server.end()
            server.start()
        hub.start()
        hub.run("sink", "resume", "fan")
    wanted = in_log(hub)
    assert len(wanted) >= 450
    eventually(lambda: messages(server, hub.did) > len(wanted), "the stream holds all records and the key chain")
    assert in_stream(server, hub.did) == wanted
    eventually(lambda: json.loads(hub.run("sink", "list", "-o", "json").out)["data"][0]["lag_records"] == 0, "no lag")
    listed = hub.run("consent", "list").out
    assert "sink fan" in listed
    assert hub.stop() == 0


def test_a_reader_of_the_engine_is_equal_though_all_three_are_killed(make: Make, server: NatsServer) -> None:
    hub, reader = make("hub", AUTO).start(), make("reader").start()
    pair_id = reader.paired(hub.url)
    reader.compared(pair_id)
    hub.run("sink", "add", server.url, "--namespace", "default", "--name", "fan")
    reader.run("federation", "set-carrier", pair_id, server.url)
    acknowledged: list[str] = []
    for turn in range(KILLS):
        acknowledged += kill_in_a_burst(hub, 100)
        reader.kill()
        if turn < KILLS - 1:
            server.end()
            server.start()
        hub.start()
        reader.start()
    eventually(lambda: reader.pair(pair_id)["carrier"]["open"], "the reader reads from the engine")
    last = hub.emit("th_last", 20)
    hub.run("sink", "resume", "fan")
    eventually(lambda: len(reader.records("th_last")) == len(last), "the reader has what came last")
    eventually(lambda: reader.holding() == hub.holding(), "both hold the same")
    reader.run("federation", "verify", pair_id)
    assert frozenset().union(*reader.holding().values()) >= {*acknowledged, *last}
    assert not reader.pair(pair_id)["refused_records"]
    ended = reader.run("federation", "set-carrier", pair_id, "none").out
    assert "deleted 1 consumer at the server" in ended
