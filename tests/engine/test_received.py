"""The cursor that a reader of the engine gets for the last record that it holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.engine import received
from spl.engine.received import reached
from spl.sync.source import Query
from tests.counting import stepped
from tests.nodes import Node, join, nodes


def moved(hub: Node, pair_id: str, since: str, received: dict[str, Any]) -> str:
    """Return the cursor that the steps lead to."""
    return stepped(reached(hub.feed.source, pair_id, since, received))[0]


async def first_cursor(hub: Node, pair_id: str) -> str:
    return str(json.loads(await hub.feed.changes(pair_id, Query()))["next_cursor"])


async def left_after(hub: Node, pair_id: str, since: str) -> list[str]:
    found = json.loads(await hub.feed.changes(pair_id, Query(since=since)))
    return [value["id"] for value in found["records"]]


@pytest.mark.parametrize("relay", [True, False])
@pytest.mark.parametrize("behind", [received.BEHIND_ROWS, 1])
async def test_a_pull_goes_on_behind_what_was_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int, relay: bool
) -> None:
    monkeypatch.setattr(received, "BEHIND_ROWS", behind)
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        pair_id = join(hub, spoke)
        hub.change_pair(pair_id, relay=relay)
        hub.emit("before")
        since = await first_cursor(hub, pair_id)
        made = [hub.emit(str(number)).id for number in range(6)]
        now = moved(hub, pair_id, since, {"default": made[2]})
        assert await left_after(hub, pair_id, now) == made[3:]
        await hub.feed.ack(pair_id, now)
        assert hub.feed.offered(pair_id).acked == 4
        assert moved(hub, pair_id, now, {"default": made[0]}) == now, "it never moves back"


async def test_what_the_pair_may_not_see_changes_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, "hub", "spoke") as (hub, spoke):
        hub.share("secret")
        pair_id = join(hub, spoke)
        hub.emit("one")
        since = await first_cursor(hub, pair_id)
        hidden = hub.emit("two", ns="secret").id
        for said in ({"secret": hidden}, {"default": hidden}, {"default": "0" * 64}, {"default": 7}, {"none": "x"}):
            assert moved(hub, pair_id, since, said) == since
        with pytest.raises(SplError) as caught:
            moved(hub, pair_id, "forged", {"default": hidden})
        assert caught.value.code == "cursor-invalid"
