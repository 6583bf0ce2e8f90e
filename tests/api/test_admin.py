"""The daemon for its operator: health, identity, tokens, settings, status."""

from tests.api.conftest import Served


async def test_health_is_open_and_tells_strangers_no_sizes(served: Served) -> None:
    stranger = await served.json("GET", "/health", token="")
    assert stranger["status"] == "ok"
    assert not {"pid", "records", "store_bytes"} & stranger.keys()
    assert (await served.json("GET", "/health"))["records"] == 1
    assert (await served.json("GET", "/health/ready", token=""))["status"] == "ready"


async def test_identity_is_kept_unless_forced(served: Served) -> None:
    before = await served.json("GET", "/v1/identity")
    assert (await served.json("POST", "/v1/identity", {"label": "other"}))["did"] == before["did"]
    forced = await served.json("POST", "/v1/identity", {"label": "other", "force": True})
    assert forced["did"].startswith("did:sync:instance:other-")
    manifest = await served.json("GET", "/.well-known/syncropel", token="")
    assert manifest["did"] == forced["did"]


async def test_documents_are_fresh_and_do_not_depend_on_who_asks(served: Served) -> None:
    first = await served.fetch("GET", "/.well-known/syncropel", token="")
    second = await served.raw("GET /.well-known/syncropel HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert second.partition("\r\n\r\n")[2] in first.body.decode()
    assert first.headers["cache-control"] == "no-cache"


async def test_a_token_is_shown_once_and_dies_at_once(served: Served) -> None:
    minted = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"], "label": "ci", "ttl_ms": 60_000}, 201)
    assert (await served.fetch("GET", "/v1/threads", token=minted["token"])).status == 200
    listed = await served.fetch("GET", "/v1/tokens")
    assert minted["token_id"].encode() in listed.body
    assert minted["token"].rpartition("_")[2].encode() not in listed.body
    assert b"hash" not in listed.body
    assert not (await served.json("DELETE", f"/v1/tokens/{minted['token_id']}"))["already"]
    assert await served.refused("GET", "/v1/threads", token=minted["token"]) == (401, "AUTH_INVALID")
    assert (await served.json("DELETE", f"/v1/tokens/{minted['token_id']}"))["already"]
    assert await served.refused("DELETE", "/v1/tokens/tok_none") == (404, "NOT_FOUND")


async def test_bad_token_requests_are_named(served: Served) -> None:
    for body in (
        {},
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": "admin"},
        {"scopes": ["admin"], "ttl_ms": 0},
        {"scopes": ["admin"], "ttl_ms": True},
        {"scopes": ["admin"], "extra": 1},
    ):
        assert await served.refused("POST", "/v1/tokens", body) == (400, "BAD_FIELD")
    body = {"scopes": ["records:read"], "namespaces": ["nowhere"]}
    assert await served.refused("POST", "/v1/tokens", body) == (403, "NAMESPACE_REJECTED")
    assert await served.refused("POST", "/v1/tokens", {"scopes": ["admin"], "pair": "pair_x"}) == (404, "PAIR_UNKNOWN")


async def test_a_hand_minted_federation_token_has_the_default_namespace(served: Served) -> None:
    body = {"scopes": ["federation:sync", "federation:subscribe"]}
    assert (await served.json("POST", "/v1/tokens", body, 201))["namespaces"] == ["default"]


async def test_settings_name_their_sources(served: Served) -> None:
    rows = {row["key"]: row for row in (await served.json("GET", "/v1/config"))["data"]}
    assert rows["port"] == {"key": "port", "value": 9100, "source": "default"}


async def test_status_fits_one_page(served: Served) -> None:
    found = await served.json("GET", "/v1/status")
    assert found["pairs"]["total"] == 0
    assert found["store"]["records"] == 1
