"""Snapshot, restore and pair log over HTTP: who may, and what hostile input gets."""

import json

import pytest

from spl.core.identity import message
from tests.api.conftest import Served

NDJSON = (("content-type", "application/x-ndjson"),)
RECORD = {"act": "DO", "actor": "did:sync:user:a", "thread": "th x", "body": {"n": 1}}
PATH = "/v1/threads/th%20x/snapshot"


async def lines(served: Served, path: str, **more: str) -> list[dict[str, object]]:
    reply = await served.fetch("GET", path, **more)  # type: ignore[arg-type]
    assert reply.status == 200, reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


async def test_a_thread_goes_out_and_comes_back(served: Served) -> None:
    made = await served.json("POST", "/v1/records", RECORD)
    data = (await served.fetch("GET", PATH)).body
    head, line = data.splitlines()
    assert json.loads(head)["count"] == 1
    assert json.loads(line)["id"] == made["id"]
    plan = await served.json("POST", "/v1/threads/restore", data, headers=NDJSON)
    assert (plan["new"], plan["known"], plan["thread"]) == (0, 1, "th x")


async def test_restricted_tokens_see_their_namespaces(served: Served) -> None:
    await served.json("POST", "/v1/namespaces", {"name": "org"})
    await served.json("POST", "/v1/records", RECORD)
    token = await served.mint("records:read", "records:write", namespaces=["org"])
    [unreadable] = await lines(served, PATH, token=token)
    [unknown] = await lines(served, "/v1/threads/gone/snapshot", token=token)
    assert {**unreadable, "thread": "gone", "sig": unknown["sig"]} == unknown
    assert len(await lines(served, PATH)) == 2
    assert len(await lines(served, PATH, token=await served.mint("records:read"))) == 2
    data = (await served.fetch("GET", PATH)).body
    reply = await served.refused("POST", "/v1/threads/restore", data, headers=NDJSON, token=token)
    assert reply == (403, "SCOPE_FORBIDDEN")


@pytest.mark.parametrize("path", ["/v1/threads/th_api_tokens/snapshot", "/v1/snapshot", "/v1/store/stats"])
async def test_reserved_threads_need_admin(served: Served, path: str) -> None:
    token = await served.mint("records:read", "federation:manage")
    assert await served.refused("GET", path, token=token) == (403, "SCOPE_FORBIDDEN")
    assert (await served.fetch("GET", path)).status == 200
    assert (await served.refused("GET", path, token=""))[0] == 401


async def test_a_restore_in_pieces_is_one_restore(served: Served) -> None:
    for n in range(20):
        await served.json("POST", "/v1/records", {**RECORD, "body": {"n": n}})
    data = (await served.fetch("GET", PATH)).body
    name, third = "0" * 32, len(data) // 3
    base = f"/v1/threads/restore?upload={name}"
    for at in (0, third):
        found = await served.json("POST", f"{base}&at={at}&more=1", data[at : at + third], headers=NDJSON)
        assert found["bytes"] == at + third
    wrong = await served.refused("POST", f"{base}&at=1", data[:9], headers=NDJSON)
    assert wrong == (409, "SNAPSHOT_UPLOAD")
    plan = await served.json("POST", f"{base}&at={2 * third}&dry_run=1", data[2 * third :], headers=NDJSON)
    assert (plan["known"], plan["dry_run"]) == (20, True)


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ("", b"", "SNAPSHOT_MALFORMED"),
        ("", b"\x00\xff", "SNAPSHOT_MALFORMED"),
        ("", b"{}\n" * 9, "SNAPSHOT_MALFORMED"),
        ("?dry_run=yes", b"x", "BAD_FIELD"),
        ("?upload=short", b"x", "BAD_FIELD"),
        ("?upload=" + "0" * 32 + "&at=-1", b"x", "BAD_FIELD"),
        ("?upload=" + "0" * 32 + "&at=5", b"x", "SNAPSHOT_UPLOAD"),
    ],
)
async def test_what_is_no_restore_stores_nothing(served: Served, query: str, body: bytes, code: str) -> None:
    before = served.home.store.last_seq
    status, found = await served.refused("POST", f"/v1/threads/restore{query}", body, headers=NDJSON)
    assert (status // 100, found) == (4, code)
    assert served.home.store.last_seq == before
    json_type = (("content-type", "application/json"),)
    assert (await served.refused("POST", "/v1/threads/restore", b"{}", headers=json_type))[1] == "MEDIA_TYPE"


async def test_the_pair_log_is_told_to_no_stranger(served: Served) -> None:
    identity = served.home.vault.identity
    assert identity is not None
    path = "/v1/federation/pair/pair_00000001/log"
    assert (await served.refused("POST", path, {}, token=""))[1] == "MESSAGE_MALFORMED"
    fields = message.head(identity.did, identity.did, "pair_00000001", served.services.now_ms(), "0" * 32)
    signed = message.sign("log", fields, identity.key)
    assert await served.refused("POST", path, signed, token="") == (404, "PAIR_UNKNOWN")
    assert await served.json("POST", "/v1/federation/history", {}) == {"object": "list", "data": []}
