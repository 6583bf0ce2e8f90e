"""Rotation, renewal and the ends of tokens over HTTP."""

from tests.api.conftest import Served


async def test_a_rotated_key_is_published_at_once(served: Served) -> None:
    before = await served.json("GET", "/v1/identity")
    for number, compromised in enumerate((False, True), 1):
        after = await served.json("POST", "/v1/identity/rotate", {"compromised": compromised})
        assert (after["did"], after["rotations"]) == (before["did"], number)
        manifest = await served.json("GET", "/.well-known/syncropel", token="")
        assert manifest["federation_manifest"]["public_key"] == after["public_key"]
    reasons = [step["reason"] for step in manifest["federation_manifest"]["rotations"]]
    assert reasons == ["retired", "compromised"]
    record = {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {}}
    assert (await served.json("POST", "/v1/records", record))["vouched_by"] == before["did"]


async def test_secret_keys_leave_only_over_the_socket(served: Served) -> None:
    assert await served.refused("POST", "/v1/identity/export", {}) == (403, "SCOPE_FORBIDDEN")
    assert (await served.refused("POST", "/v1/identity/import", {"identity": "{}"}))[1] == "IDENTITY_DAMAGED"
    assert (await served.refused("POST", "/v1/identity/import", {}))[1] == "BAD_FIELD"


async def test_all_of_it_needs_admin(served: Served) -> None:
    token = await served.mint("federation:manage")
    for path in ("/v1/identity/rotate", "/v1/identity/export", "/v1/identity/import", "/v1/tokens/rotate"):
        assert await served.refused("POST", path, {}, token=token) == (403, "SCOPE_FORBIDDEN")


async def test_a_token_is_shown_by_id_and_by_text_and_replaced(served: Served) -> None:
    minted = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"], "label": "dash"}, 201)
    by_id = await served.json("GET", f"/v1/tokens/{minted['token_id']}")
    assert (by_id["label"], by_id["state"]) == ("dash", "live")
    assert not {"token", "hash"} & by_id.keys()
    assert await served.json("POST", "/v1/tokens/inspect", {"token": minted["token"]}) == by_id
    unknown = minted["token"][:-2] + "zz"
    assert await served.refused("POST", "/v1/tokens/inspect", {"token": unknown}) == (404, "NOT_FOUND")
    assert (await served.refused("POST", "/v1/tokens/inspect", {"token": "x"}))[1] == "AUTH_INVALID"
    new = await served.json("POST", f"/v1/tokens/{minted['token_id']}/rotate", {}, 201)
    assert (new["scopes"], new["label"], new["replaced"]) == (["records:read"], "dash", minted["token_id"])
    assert (await served.fetch("GET", "/v1/threads", token=new["token"])).status == 200
    assert (await served.fetch("GET", "/v1/threads", token=minted["token"])).status == 401
    assert (await served.refused("POST", f"/v1/tokens/{minted['token_id']}/rotate", {}))[1] == "AUTH_INVALID"


async def test_renewal_is_signed_and_bad_messages_store_nothing(served: Served) -> None:
    seq = served.services.store.last_seq
    path = "/v1/federation/pair/pair_00000000/renew"
    for body in (b"", b"[]", b"{}", b'{"message": {}, "signature": ""}'):
        headers = (("content-type", "application/json"),)
        status, _ = await served.refused("POST", path, body, token="", headers=headers)
        assert status == 400
    assert (await served.json("POST", "/v1/tokens/rotate", {}))["data"] == []
    assert (await served.refused("POST", "/v1/federation/pairs/pair_00/set-token", {"token": "x"}))[1] == "PAIR_UNKNOWN"
    assert served.services.store.last_seq == seq
