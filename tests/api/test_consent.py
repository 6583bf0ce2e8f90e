"""Consent over the API: refusals that need no peer.  The happy ways run between real daemons in tests/e2e."""

from tests.api.conftest import Served


async def test_grants_are_refused_with_a_code_before_anything_happens(served: Served) -> None:
    pairs = "/v1/federation/pairs/pair_x"
    for path in ("/grants", "/revoke-grant"):
        assert await served.refused("POST", pairs + path, {"namespace": "a"}) == (404, "PAIR_UNKNOWN")
    assert await served.refused("GET", "/v1/consent/grants?pair=pair_x") == (404, "PAIR_UNKNOWN")
    assert (await served.json("GET", "/v1/consent/grants"))["data"] == []


async def test_only_who_manages_federation_may_grant(served: Served) -> None:
    token = await served.mint("records:write", "records:read")
    for method, path in (("POST", "/v1/federation/pairs/pair_x/grants"), ("GET", "/v1/consent/grants")):
        body = {} if method == "POST" else None
        assert await served.refused(method, path, body, token=token) == (403, "SCOPE_FORBIDDEN")


async def test_a_message_about_no_pair_of_ours_is_refused_without_a_bearer(served: Served) -> None:
    path = "/v1/federation/pair/pair_00000000/consent"
    for body in (b"{", b"[]", b'{"message":{},"signature":""}'):
        reply = await served.fetch("POST", path, body, token="", headers=(("content-type", "application/json"),))
        assert reply.status == 400
