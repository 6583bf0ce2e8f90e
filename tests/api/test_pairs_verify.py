"""Verification over HTTP: who may ask, and what is refused before anything is compared."""

from tests.api.conftest import Served


async def test_a_pair_that_is_not_there_is_not_found(served: Served) -> None:
    assert await served.refused("POST", "/v1/federation/pairs/pair_00000000/verify", {}) == (404, "PAIR_UNKNOWN")


async def test_the_body_holds_repair_alone(served: Served) -> None:
    path = "/v1/federation/pairs/pair_00000000/verify"
    assert await served.refused("POST", path, {"more": 1}) == (400, "BAD_FIELD")
    assert await served.refused("POST", path, {"repair": "yes"}) == (400, "BAD_FIELD")


async def test_it_takes_the_right_to_manage_pairs(served: Served) -> None:
    token = await served.mint("federation:sync")
    path = "/v1/federation/pairs/pair_00000000/verify"
    assert await served.refused("POST", path, {}, token=token) == (403, "SCOPE_FORBIDDEN")


async def test_fingerprints_serve_a_pair_alone(served: Served) -> None:
    question = {"key": "5a" * 16, "ranges": {"held": [""]}}
    assert await served.refused("POST", "/v1/sync/fingerprints", question) == (403, "SCOPE_FORBIDDEN")
    assert await served.refused("POST", "/v1/sync/fingerprints", b"x" * 200_000) == (413, "BODY_TOO_LARGE")
