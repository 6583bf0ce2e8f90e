"""The daemon for its operator: health, identity, tokens, settings, status."""

import json

from tests.api.conftest import Served


async def test_health_is_open_and_tells_strangers_no_sizes(served: Served) -> None:
    stranger = await served.json("GET", "/health", token="")
    assert stranger["status"] == "ok"
    assert not {"pid", "records", "store_bytes"} & stranger.keys()
    assert (await served.json("GET", "/health"))["records"] == 0
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
    assert found["store"]["records"] == 0, "the record of the token is bookkeeping"
    record = {"thread": "th_a", "actor": "did:sync:user:a", "act": "KNOW", "body": {}}
    await served.json("POST", "/v1/records", record)
    assert (await served.json("GET", "/v1/status"))["store"]["records"] == 1


async def test_an_account_is_revoked_with_all_its_tokens(served: Served) -> None:
    made = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"]}, 201)
    rotated = await served.json("POST", f"/v1/tokens/{made['token_id']}/rotate", {}, 201)
    assert rotated["sa_id"] == made["sa_id"]
    answer = await served.json("DELETE", f"/v1/tokens/{made['sa_id']}")
    assert (answer["already"], answer["revoked"]) == (False, [made["token_id"], rotated["token_id"]])
    for token in (made["token"], rotated["token"]):
        assert await served.refused("GET", "/v1/threads", token=token) == (401, "AUTH_INVALID")
    assert (await served.json("DELETE", f"/v1/tokens/{made['sa_id']}"))["already"]


async def test_a_live_token_is_found_by_its_label(served: Served) -> None:
    """One that was revoked leaves its label free; an id is never mistaken for a label, and two alike are refused."""
    made = [await served.json("POST", "/v1/tokens", {"scopes": ["records:read"], "label": "dash"}, 201) for _ in "ab"]
    assert await served.refused("GET", "/v1/tokens/dash") == (409, "AMBIGUOUS")
    assert (await served.json("DELETE", f"/v1/tokens/{made[0]['token_id']}"))["already"] is False
    assert (await served.json("GET", "/v1/tokens/dash"))["token_id"] == made[1]["token_id"]
    named = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"], "label": made[1]["token_id"]}, 201)
    assert (await served.json("GET", f"/v1/tokens/{made[1]['token_id']}"))["token_id"] != named["token_id"]
    assert (await served.json("DELETE", "/v1/tokens/dash"))["revoked"] == [made[1]["token_id"]]
    assert await served.refused("DELETE", "/v1/tokens/dash") == (404, "NOT_FOUND")


async def test_a_scope_about_the_whole_daemon_is_minted_unbound_or_not_at_all(served: Served) -> None:
    bound = {"scopes": ["records:read", "config:read"], "namespaces": ["default"]}
    assert await served.refused("POST", "/v1/tokens", bound) == (400, "TOKEN_SCOPE_BOUND")
    made = await served.json("POST", "/v1/tokens", {"scopes": ["federation:manage"]}, 201)
    assert made["namespaces"] == []


async def test_a_viewer_sees_pairs_and_findings_and_changes_nothing(served: Served) -> None:
    token = await served.mint("status:read")
    for path in ("/v1/status", "/v1/doctor", "/v1/federation/pairs", "/v1/consent/grants"):
        assert (await served.fetch("GET", path, token=token)).status == 200, path
    for path in ("/v1/config", "/v1/tokens", "/v1/aitl", "/v1/threads"):
        assert await served.refused("GET", path, token=token) == (403, "SCOPE_FORBIDDEN")
    for path in ("/v1/sync", "/v1/federation/pairs/pair_9/revoke"):
        assert await served.refused("POST", path, {}, token=token) == (403, "SCOPE_FORBIDDEN")


async def test_an_ambiguous_beginning_of_a_token_names_those_that_it_fits(served: Served) -> None:
    await served.mint("records:read")
    await served.mint("records:read")
    ids = [item["token_id"] for item in (await served.json("GET", "/v1/tokens"))["data"]]
    refused = json.loads((await served.fetch("DELETE", "/v1/tokens/tok_")).body)
    assert refused["code"] == "AMBIGUOUS"
    assert all(token_id in refused["message"] for token_id in ids)
