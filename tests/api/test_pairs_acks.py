"""The acks route refuses strangers; that it follows a peer is seen in tests/e2e/test_soak.py."""

from tests.api.conftest import Served


async def test_an_unknown_pair_has_no_acks(served: Served) -> None:
    assert await served.refused("GET", "/v1/federation/pairs/pair_x/acks") == (404, "PAIR_UNKNOWN")


async def test_it_takes_the_scope_of_pair_management(served: Served) -> None:
    token = await served.mint("records:read")
    assert await served.refused("GET", "/v1/federation/pairs/pair_x/acks", token=token) == (403, "SCOPE_FORBIDDEN")
