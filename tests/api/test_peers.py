"""What peers call: nothing is served to who cannot prove to be the pair's peer."""

from tests.api.conftest import Served


async def test_sync_routes_serve_no_ordinary_token(served: Served) -> None:
    for scopes in (["admin"], ["federation:sync"]):
        token = await served.mint(*scopes)
        assert await served.refused("GET", "/v1/sync/changes", token=token) == (403, "SCOPE_FORBIDDEN")
        assert await served.refused("POST", "/v1/sync/records", {"ids": []}, token=token) == (403, "SCOPE_FORBIDDEN")
        lines = (("content-type", "application/x-ndjson"),)
        pushed = await served.refused("POST", "/v1/sync/records", b"{}", token=token, headers=lines)
        assert pushed == (403, "SCOPE_FORBIDDEN")
        assert await served.refused("POST", "/v1/sync/ack", {"cursor": ""}, token=token) == (403, "SCOPE_FORBIDDEN")
        assert await served.refused("GET", "/v1/sync/chains?did=x", token=token) == (403, "SCOPE_FORBIDDEN")


async def test_unsigned_messages_of_the_handshake_are_refused(served: Served) -> None:
    before = served.home.store.last_seq
    for path in ("", "/pair_00000000/poll", "/pair_00000000/confirm", "/pair_00000000/notify-revoke"):
        status, code = await served.refused(
            "POST", f"/v1/federation/pair{path}", {"message": {}, "signature": ""}, token=""
        )
        assert status in (400, 401), code
    assert served.home.store.last_seq == before
