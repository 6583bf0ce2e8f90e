"""Rotation, renewal and the ends of tokens over HTTP."""

from typing import Any

import pytest

from spl.core.record.filter import OPEN
from tests.api.conftest import Served
from tests.api.test_namespaces import give_pair
from tests.core.pair_kit import PROPOSAL

PAIR = f"/v1/federation/pairs/{PROPOSAL.pair_id}"


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


async def test_filters_narrow_what_is_sent_and_say_so(served: Served) -> None:
    give_pair(served)
    steps: tuple[tuple[str, dict[str, Any], dict[str, Any], bool], ...] = (
        ("relay", {"relay": False}, {"relay": False}, False),
        ("relay", {"relay": False}, {"relay": False}, True),
        ("thread-allow", {"threads": ["b", "a"]}, {"thread_allow": ["a", "b"]}, False),
        ("thread-allow", {"threads": ["a"]}, {"thread_allow": ["a", "b"]}, True),
        ("thread-allow", {"threads": ["a", "c"], "remove": True}, {"thread_allow": ["b"]}, False),
        ("thread-rule", {"expression": ' record.kind == "note" '}, {"thread_rule": 'record.kind == "note"'}, False),
        ("thread-allow", {"threads": ["b"], "remove": True}, {"thread_allow": []}, False),
        ("thread-rule", {"expression": ""}, {"thread_rule": ""}, False),
        ("relay", {"relay": True}, OPEN.to_json(), False),
    )
    expected = OPEN.to_json()
    for action, body, change, already in steps:
        found = await served.json("POST", f"{PAIR}/{action}", body)
        expected |= change
        assert (found["filter"], found["already"]) == (expected, already), action
    pair = served.services.views.pairs[PROPOSAL.pair_id]
    assert pair.filter == OPEN
    assert len(pair.filters) == 6


async def test_the_last_thread_named_goes_by_clear_alone(served: Served) -> None:
    """Taking it away would open everything, which nobody means by removing something."""
    give_pair(served)
    await served.json("POST", f"{PAIR}/thread-allow", {"threads": ["a", "b"]})
    remove = {"threads": ["a", "b"], "remove": True}
    assert await served.refused("POST", f"{PAIR}/thread-allow", remove) == (400, "BAD_FIELD")
    assert (await served.json("POST", f"{PAIR}/thread-allow", {"clear": True}))["filter"] == OPEN.to_json()


@pytest.mark.parametrize(("action", "body", "code"), [
    ("relay", {}, "BAD_FIELD"), ("relay", {"relay": 1}, "BAD_FIELD"), ("thread-allow", {}, "BAD_FIELD"),
    ("thread-allow", {"threads": ["a"], "clear": True}, "BAD_FIELD"), ("thread-allow", {"threads": [7]}, "BAD_FIELD"),
    ("thread-allow", {"threads": ["th_consent"]}, "BAD_FIELD"), ("thread-rule", {}, "BAD_FIELD"),
    ("thread-rule", {"expression": "record.thread =="}, "RULE_SYNTAX"),
    ("thread-rule", {"expression": "record.body == 1"}, "RULE_TYPE"),
    ("thread-rule", {"expression": "x" * 5000}, "RULE_SYNTAX"), ("thread-rule", {"expression": " "}, ""),
])  # fmt: skip
async def test_a_filter_that_is_none_changes_nothing(
    served: Served, action: str, body: dict[str, Any], code: str
) -> None:
    give_pair(served)
    if code:
        assert await served.refused("POST", f"{PAIR}/{action}", body) == (400, code)
    else:
        assert (await served.json("POST", f"{PAIR}/{action}", body))["already"]
    assert served.services.views.pairs[PROPOSAL.pair_id].filters == (OPEN,)


async def test_an_ended_pair_takes_no_filter(served: Served) -> None:
    give_pair(served, ended=True)
    refused = await served.refused("POST", f"{PAIR}/relay", {"relay": False})
    assert refused == (410, "PAIR_REVOKED")
