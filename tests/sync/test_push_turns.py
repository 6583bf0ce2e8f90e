"""What many pushes of one peer at once cost the receiver."""

import asyncio
import json
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.record import page
from spl.core.record.page import Page
from spl.sync.push import PUSHES_MAX
from tests.nodes import join, nodes
from tests.waiting import turns

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

        async with asyncio.TaskGroup() as tasks, server.push._line(PAIR).taking:
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
