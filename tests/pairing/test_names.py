"""The names of live pairs for shells: labels once, ids, and nothing of what has ended."""

import asyncio
from pathlib import Path

from spl.core.version import PAIR_NAMES
from spl.pairing.names import PairNames, names_of
from spl.sync.notify import Notifier
from tests.pairing.test_grants_handover import scene
from tests.waiting import until


async def test_the_file_follows_the_pairs(tmp_path: Path) -> None:
    async with scene(tmp_path) as (_, a, b, pair_id):
        notifier, stop = Notifier(a.home.writer), asyncio.Event()
        path = a.home.path / PAIR_NAMES
        a.home.disk.mkdir(path.parent)
        work = asyncio.create_task(PairNames(a.home.writer, notifier, a.home.path, a.home.disk).run(stop))
        await until(path.exists)
        label = b.did.split(":")[-1].rpartition("-")[0]
        await until(lambda: path.read_text() == f"{label}\n{pair_id}\n")
        await a.pairing.revoke(pair_id, reason="over")
        await until(lambda: path.read_text() == "")
        assert names_of(a.home.views.pairs) == []
        stop.set()
        notifier.stop()
        await work
        notifier.close()
