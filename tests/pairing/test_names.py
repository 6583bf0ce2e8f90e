"""The names of live pairs for shells: labels once, ids, and nothing of what has ended."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spl.core.pair.aitl import Status
from spl.core.pair.pair import PairError
from spl.core.version import PAIR_NAMES
from spl.pairing.names import PairNames, names_of, pair_named, request_named
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


def test_of_the_decided_requests_of_one_asker_the_last_is_meant() -> None:
    """Who approves twice hears that it is approved; two askers of one name stay apart."""
    dids = [f"did:sync:instance:alice-{number:024x}" for number in (1, 1, 2)]
    asked: dict[str, Any] = {
        f"pair_{number}": SimpleNamespace(peer_did=did, status=Status.REJECTED) for number, did in enumerate(dids)
    }
    with pytest.raises(PairError):
        request_named({key: asked[key] for key in ("pair_0", "pair_1")}, "pair_")
    assert request_named({key: asked[key] for key in ("pair_0", "pair_1")}, "alice") is asked["pair_1"]
    with pytest.raises(PairError) as caught:
        request_named(asked, "alice")
    assert caught.value.code == "ambiguous"


def test_of_the_ended_pairs_with_one_peer_the_last_is_meant() -> None:
    """Who revokes twice hears that it is revoked, whatever pairs there were before."""
    ended: dict[str, Any] = {
        f"pair_{number}": SimpleNamespace(
            pair_id=f"pair_{number}", peer_did=f"did:sync:instance:bob-{7:024x}", ended=True
        )
        for number in range(3)
    }
    for ref in ("bob", "did:sync:instance:bob", f"did:sync:instance:bob-{7:024x}"):
        assert pair_named(ended, ref) is ended["pair_2"]
    with pytest.raises(PairError):
        pair_named(ended, "pair_")
