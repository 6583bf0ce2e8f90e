"""The check and the sizes of the store beside a running daemon."""

import json

from tests.api.conftest import Served


async def test_the_check_ends_with_what_it_read(served: Served) -> None:
    record = {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {}}
    await served.json("POST", "/v1/records", record)
    reply = await served.fetch("POST", "/v1/store/check")
    *_, last = [json.loads(line) for line in reply.body.splitlines()]
    assert last["step"] == "done"
    assert (last["damaged"], last["lines"]) == (0, served.home.store.last_seq)
    token = await served.mint("records:read")
    assert await served.refused("POST", "/v1/store/check", token=token) == (403, "SCOPE_FORBIDDEN")


async def test_stats_tell_sizes_and_the_last_opening(served: Served) -> None:
    found = await served.json("GET", "/v1/store/stats")
    assert found["records_count"] == served.home.store.stats()["records_count"]
    assert found["opened"]["damaged"] == []
