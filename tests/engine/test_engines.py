"""A daemon without a sink loads nothing of the engine; with the first one everything runs."""

import asyncio
import os
import subprocess
import sys

from spl.engine.engines import Engines
from tests.engine.servers import NatsServer, caught_up
from tests.nodes import Node

LOADED = "import sys, spl.daemon; print(*(name for name in sys.modules if name.startswith('spl.engine')))"


def engines_of(node: Node) -> Engines:
    return Engines(node.feed, node.sync, node.home.disk, None, now_ms=node.now_ms, random_bytes=os.urandom)


def test_a_daemon_imports_none_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["spl.engine", "spl.engine.engines"]


async def test_the_first_sink_starts_the_service(node: Node, server: NatsServer) -> None:
    engines, stop = engines_of(node), asyncio.Event()
    assert not engines.configured
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engines.run(stop))
        node.emit("one")
        fields = {"name": "fan", "url": server.url, "namespaces": ("default",)}
        await engines.sinks.add(fields, from_now=False)
        assert engines.configured
        await caught_up(engines.sinks)
        stop.set()
        node.feed.notifier.stop()
    engines.close()


async def test_it_ends_without_a_sink_too(node: Node) -> None:
    engines, stop = engines_of(node), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(engines.run(stop))
        await asyncio.sleep(0)
        stop.set()
        node.feed.notifier.stop()
        await running
    engines.close()
