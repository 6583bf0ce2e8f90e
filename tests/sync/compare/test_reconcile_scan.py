"""What a comparison that fails leaves behind."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.sync.compare import holdings
from tests.nodes import Node, join, nodes
from tests.waiting import until

PAIR = "pair_00000001"


async def failure_of(node: Node) -> str:
    """Return the code with which a comparison fails."""
    with pytest.raises(SplError) as caught:
        await node.reconcile.verify(PAIR)
    return caught.value.code


async def test_a_comparison_that_fails_leaves_no_scan_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is that of the answers to all peers."""
    monkeypatch.setattr(holdings, "PIECE_LINES", 1)
    scan, go, scanned = holdings.SetScan.pieces, threading.Event(), list[int]()

    def slow(*arguments: Any) -> Any:
        for piece in scan(*arguments):
            scanned.append(len(piece))
            go.wait(30)
            yield piece

    monkeypatch.setattr(holdings.SetScan, "pieces", slow)
    async with nodes(tmp_path, "ann", "ben") as (ann, ben):
        join(ann, ben)
        for n in range(50):
            ann.emit(f"{n}")
        ann.network.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            comparing = tasks.create_task(failure_of(ann))
            await until(lambda: scanned)
            ann.network.down = "connect"
            ann.network.gate.set()
        assert comparing.result() == "connect"
        go.set()
        await ann.reconcile._fingerprints.in_thread(int)
        assert len(scanned) == 1
