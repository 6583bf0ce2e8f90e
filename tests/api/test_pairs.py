"""Pairs over the API: refusals that need no peer.  The happy ways run between real daemons in tests/e2e."""

import json

from tests.api.conftest import Served


async def test_a_pair_request_is_checked_before_anything_is_dialled(served: Served) -> None:
    for body in (
        {},
        {"url": 7},
        {"url": "http://x/", "extra": 1},
        {"url": "http://x/", "wait_ms": -1},
        {"url": "http://x/", "maps": [{"local": "a"}]},
        {"url": "http://x/", "namespaces": "a"},
    ):
        assert await served.refused("POST", "/v1/federation/pairs", body) == (400, "BAD_FIELD")


async def test_a_url_that_is_none_ends_the_stream_with_an_error(served: Served) -> None:
    reply = await served.fetch("POST", "/v1/federation/pairs", {"url": "ftp://x/"})
    *_, last = map(json.loads, reply.body.splitlines())
    assert (last["step"], last["error"]["code"]) == ("error", "URL_INVALID")


async def test_unknown_pairs_and_requests(served: Served) -> None:
    assert (await served.json("GET", "/v1/federation/pairs"))["data"] == []
    assert (await served.json("GET", "/v1/aitl"))["data"] == []
    for method, path in (("GET", "/v1/federation/pairs/pair_x"), ("POST", "/v1/federation/pairs/pair_x/pause")):
        assert await served.refused(method, path, {} if method == "POST" else None) == (404, "PAIR_UNKNOWN")
    assert await served.refused("GET", "/v1/aitl/pair_x") == (404, "NOT_FOUND")
    assert await served.refused("POST", "/v1/aitl/pair_x/decide", {"decision": "approve"}) == (404, "NOT_FOUND")


async def test_syncing_nothing_is_fine(served: Served) -> None:
    assert (await served.json("POST", "/v1/sync", {}))["data"] == []
    assert await served.refused("POST", "/v1/sync", [None]) == (400, "BAD_FIELD")
