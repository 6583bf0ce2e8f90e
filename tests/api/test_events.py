"""Changes of pairs as they happen: a snapshot first, then what changed, found once for all who watch."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from spl.api.events import QUIET_S, Rows, row_of
from spl.api.pairs import summary_of
from spl.core.pair.state import Degraded, Revoked
from spl.core.when import ms_of
from spl.net.client import EventStream
from tests.api.conftest import HERE, Served
from tests.api.pairs_many import a_pair, copy, show
from tests.waiting import DEADLINE_S


@asynccontextmanager
async def watching(served: Served, token: str) -> AsyncIterator[EventStream]:
    headers = [("authorization", f"Bearer {token}")]
    async with (
        asyncio.timeout(DEADLINE_S),
        served.client.stream(f"{served.url}/v1/events", headers=headers, dial=HERE) as stream,
    ):
        yield stream


async def the_next(stream: EventStream, name: str) -> Any:
    while (event := await anext(stream)).name != name:
        pass
    return json.loads(event.data)


async def test_a_client_gets_a_snapshot_and_then_what_changes(served: Served, tmp_path: Path) -> None:
    token = await served.mint("status:read")
    assert (await served.fetch("GET", "/v1/events", token=await served.mint("metrics:read"))).status == 403
    async with a_pair(tmp_path / "world") as pair:
        show(served, copy(pair, 1), copy(pair, 2), copy(pair, 3, state=Revoked("gone")))
        async with watching(served, token) as stream, watching(served, token) as other:
            first = await the_next(stream, "snapshot")
            assert [row["pair_id"] for row in first["pairs"]] == ["pair_00000001", "pair_00000002"]
            assert first["daemon"]["did"].startswith("did:sync:instance:alice-")
            show(served, copy(pair, 1), copy(pair, 2, state=Degraded("connect")))
            for each in (stream, other):
                row = await the_next(each, "pair")
                assert (row["pair_id"], row["state"]) == ("pair_00000002", "degraded")
                assert "connect" in {item["code"] for item in row["findings"]}
            assert served.services.feed.notifier.streams == 2
            show(served, copy(pair, 1), copy(pair, 2, state=Revoked("gone")))
            assert (await the_next(stream, "pair"))["state"] == "revoked"


async def test_a_pair_that_the_peer_ended_is_shown_with_its_finding_until_that_is_settled(
    served: Served, tmp_path: Path
) -> None:
    """As `status` does: a client that came later sees it too."""
    async with a_pair(tmp_path / "world") as pair:
        now_ms = served.services.now_ms()
        gone = copy(pair, 1, state=Revoked("revoked by peer: sold"), since_ms=now_ms)
        rows, now_s = Rows(served.services), 1000.0
        show(served, gone, copy(pair, 2, state=Revoked("revoked"), since_ms=now_ms))
        rows.look(now_s, now_s)
        [row] = cast(Any, rows.snapshot())["pairs"]
        assert (row["pair_id"], row["state"]) == ("pair_00000001", "revoked")
        assert "peer-revoked" in {item["code"] for item in row["findings"]}
        number = rows.number
        show(served, gone, copy(pair, 3))
        rows.look(now_s + 1, now_s + 1)
        told = {cast(Any, value)["pair_id"]: value["findings"] for _, (_, value) in rows.since(number)}
        assert told["pair_00000001"] == []
        assert [each["pair_id"] for each in cast(Any, rows.snapshot())["pairs"]] == ["pair_00000003"]


async def test_a_stream_ends_with_its_token_and_with_the_daemon(served: Served) -> None:
    made = await served.json("POST", "/v1/tokens", {"scopes": ["status:read"]}, 201)
    async with watching(served, made["token"]) as stream, watching(served, served.token) as other:
        await the_next(stream, "snapshot")
        await the_next(other, "snapshot")
        await served.json("DELETE", f"/v1/tokens/{made['token_id']}")
        assert (await the_next(stream, "error"))["code"] == "revoked"
        served.services.feed.notifier.stop()
        assert await the_next(other, "server_shutdown") == {"retry_after_ms": 1000}


async def test_a_slow_client_gets_the_latest_row_alone(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        rows, now_s = Rows(served.services), 1000.0
        show(served, copy(pair, 1))
        rows.look(now_s, now_s)
        number = rows.number
        for reason in ("connect", "dns", "timeout"):
            now_s += 1
            show(served, copy(pair, 1, state=Degraded(reason)))
            rows.look(now_s, now_s)
        [(_, (name, value))] = rows.since(number)
        assert (name, value["state_detail"]) == ("pair", "timeout")
        assert value == row_of(served.services, copy(pair, 1, state=Degraded("timeout")))
        rows.look(now_s, now_s - 1)  # another client looked a moment ago
        assert list(rows.since(rows.number)) == []


async def test_times_alone_are_told_now_and_then(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        rows, sync = Rows(served.services), served.services.sync
        found = copy(pair, 1)
        show(served, found)
        rows.look(1000.0, 1000.0)
        number = rows.number
        sync._state(found.pair_id).last_sync_ms = 1_800_000_000_000
        rows.look(1001.0, 1001.0)
        assert list(rows.since(number)) == []
        rows.look(1000.0 + QUIET_S, 1000.0 + QUIET_S)
        [(_, (_, value))] = rows.since(number)
        assert value["last_sync_at"] == "2027-01-15T08:00:00.000Z"


async def test_a_row_is_made_from_one_look_at_the_pair(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, asked = served.services, list[str]()
    async with a_pair(tmp_path / "world") as pair:
        show(served, copy(pair, 1))
        one = services.views.pairs["pair_00000001"]
        status = services.sync.status
        monkeypatch.setattr(services.sync, "status", lambda pair_id: asked.append(pair_id) or status(pair_id))
        row = row_of(services, one)
        assert asked == [one.pair_id]
        assert row.items() >= summary_of(services, one).items()
        services.ingest.reaches.heard(one.pair_id, {"state": "paused"})
        told = await served.json("GET", f"/v1/federation/pairs/{one.pair_id}")
        assert told["peer_view"] == {"state": "paused", "at": told["peer_view"]["at"]}
        assert abs(ms_of(told["peer_view"]["at"]) - services.now_ms()) < 600_000
