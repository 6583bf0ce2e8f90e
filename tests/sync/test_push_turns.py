"""What many pushes of one peer at once cost the receiver, and what a peer that refuses them costs us."""

import asyncio
import json
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.record import page
from spl.core.record.page import Page
from spl.net.client import Reply
from spl.sync.push import PUSHES_MAX
from tests.nodes import LIMITS, join, nodes
from tests.waiting import turns, until

PAIR = "pair_00000001"


async def test_pushes_of_a_peer_are_decoded_one_at_a_time_and_few_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that waits is bytes; decoded it would take twenty times as much."""
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        join(laptop, server)
        decoded, decode = list[bytes](), page.decode_push
        monkeypatch.setattr(page, "decode_push", lambda body, most: decoded.append(body) or decode(body, most))
        item = Page([json.loads(laptop.emit("1").raw)], ["default"], "place", False, {"clock": 1}, 0)
        body = page.assemble_push("", item)
        loop, refused = asyncio.get_running_loop(), list[str]()

        async def send() -> None:
            try:
                await server.push.receive(PAIR, body)
            except SplError as exc:
                refused.append(exc.code)

        async with asyncio.TaskGroup() as tasks, server.push._state(PAIR).taking:
            for _ in range(PUSHES_MAX + 3):
                tasks.create_task(send())
            await turns()
            await loop.run_in_executor(server.push._pool, int)
            assert not decoded
            assert refused == ["rate-limited"] * 3
        assert refused[3:] == ["push-position"] * (PUSHES_MAX - 1)
        refused.clear()
        await send()
        assert refused == ["push-position"]


@pytest.mark.parametrize("code", ["PAIR_PAUSED", "PAIR_REVOKED", "AUTH_REQUIRED", "INTAKE_PAUSED", "RATE_LIMITED"])
async def test_a_peer_that_refuses_is_not_asked_again_for_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A push that failed waits, whatever is written meanwhile; the next contact with the peer ends the wait."""
    monkeypatch.setattr("spl.core.backoff.Backoff.delay_s", lambda *_: 3600.0)
    monkeypatch.setattr("spl.sync.push.BACKOFF_BASE_S", 0.0)
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        join(laptop, server, mode="continuous")
        laptop.network.walled = {"laptop"}
        for _ in range(LIMITS.errors_until_degraded):
            await laptop.sync.pull(PAIR)
            with pytest.raises(SplError):
                await server.sync.pull(PAIR)
        await laptop.sync.pull(PAIR)  # which tells the laptop that the server cannot dial it
        asked, stop = list[str](), asyncio.Event()

        def refuse(path: str, reply: Reply) -> Reply:
            if path != "/v1/sync/records":
                return reply
            asked.append(path)
            return Reply(429, {}, json.dumps({"code": code, "peer_view": {}}).encode(), "")

        laptop.network.change = refuse
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(laptop.push.run(stop))
            laptop.emit("first")
            laptop.push._call(PAIR)
            await until(lambda: asked)
            for n in range(20):
                laptop.emit(f"{n}")
                await until(lambda: PAIR in laptop.push._due)
                await turns(5)  # what the commit started takes its first step, if it started anything
                laptop.push._due.clear()
            assert len(asked) == 1
            laptop.network.change = lambda path, reply: reply
            await laptop.sync.pull(PAIR)
            await until(lambda: server.ids() == laptop.ids())
            stop.set()
