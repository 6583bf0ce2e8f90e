"""The public Python SDK, unchanged, against a real daemon."""

import json
from typing import Any

import pytest
from syncropel import Client, Identity
from syncropel.hashing import record_id as sdk_record_id

from tests.e2e.harness import Instance

SEVEN = ("act", "actor", "body", "clock", "data_type", "parents", "thread")
ACTOR = "did:sync:user:alice"
BODY: dict[str, Any] = {
    "title": "Glow",
    "n": 1.0,
    "x": 0.1,
    "e": 1e-07,
    "big": 1e21,
    "u": "é😀\n\u2028",
    "l": [None, True, -0.0],
}


def client(instance: Instance, token: str = "") -> Client:
    """Return the SDK's client with a bearer of the instance."""
    return Client(
        endpoint=instance.url, identity=Identity.static(ACTOR), api_key=token or instance.token, max_retries=0
    )


def assert_same_id(record: dict[str, Any]) -> None:
    """The SDK's own function over the seven fields of the answer gives the id of the answer."""
    assert sdk_record_id({name: record[name] for name in SEVEN}) == record["id"]


async def test_emit_and_read_back(alice: Instance) -> None:
    """emit, query_thread, query by kind and actor, health: nothing of the SDK is replaced."""
    async with client(alice) as sdk:
        made = [
            await sdk.emit(act="PUT", kind="music.catalog.track", body={**BODY, "i": i}, thread="music.library")
            for i in range(5)
        ]
        assert all(result.success for result in made), made
        records = await sdk.query_thread("music.library")
        assert [record["id"] for record in records] == [result.record_id for result in made]
        assert [record["clock"] for record in records] == [result.clock for result in made]
        for record in records:
            assert_same_id(record)
        assert len(await sdk.query(kind="music.catalog.track", thread="music.library")) == 5
        assert len(await sdk.query(actor=ACTOR, limit=3)) == 3
        assert await sdk.query(kind="music.catalog.track", actor="did:sync:user:nobody") == []
        assert await sdk.query_thread("nothing.here") == []
        assert len(await sdk.query(thread="music.library", where={"body.i": 3})) == 1
        health = await sdk.health()
        assert (health["status"], health["did"]) == ("ok", alice.did)


async def test_intend_and_fulfill(alice: Instance) -> None:
    """A thread is opened and closed; parents and fulfilled ids survive."""
    async with client(alice) as sdk:
        opened = await sdk.intend("ship it")
        assert opened.success
        assert opened.record_id
        closed = await sdk.fulfill(opened.thread, "shipped", fulfills=opened.record_id, parents=[opened.record_id])
        assert closed.success, closed.error
        first, last = await sdk.query_thread(opened.thread)
        assert (first["act"], first["body"]["goal"]) == ("INTEND", "ship it")
        assert (last["act"], last["body"]["fulfills"], last["parents"]) == (
            "KNOW",
            opened.record_id,
            [opened.record_id],
        )
        for record in (first, last):
            assert_same_id(record)
            assert record["vouched_by"] == alice.did


def test_emit_sync(alice: Instance) -> None:
    """The blocking call keeps one connection and gets the same answers."""
    sdk = client(alice)
    made = [sdk.emit_sync(act="KNOW", kind="core.note", body={"i": i}, thread="th_sync") for i in range(10)]
    assert all(result.success for result in made), made
    assert [record["id"] for record in alice.records("th_sync")] == [result.record_id for result in made]
    assert sdk._sync_http is not None
    sdk._sync_http.close()


async def test_refusals_reach_the_client_as_results(alice: Instance) -> None:
    """A taken clock, a wrong token and a reserved thread: no exception, the daemon's words in the error."""
    note = {"act": "KNOW", "kind": "core.note", "thread": "th_a"}
    async with client(alice) as sdk:
        assert (await sdk.emit(**note, body={"i": 1}, clock=5)).success
        assert (await sdk.emit(**note, body={"i": 1}, clock=5)).success
        taken = await sdk.emit(**note, body={"i": 2}, clock=5)
        assert not taken.success
        assert "DuplicateClock" in str(taken.error)
        reserved = await sdk.emit(**{**note, "thread": "th_consent"}, body={})
        assert "RESERVED_THREAD" in str(reserved.error)
    async with client(alice, "spl_home_sa_00000000_AAAA") as stranger:
        assert not (await stranger.emit(**note, body={})).success
        assert await stranger.query_thread("th_a") == []


@pytest.mark.parametrize("scope", ["records:write", "records:read"])
async def test_a_scoped_token_is_enough(alice: Instance, scope: str) -> None:
    """A program needs the scope of what it does and no more."""
    token = alice.run("token", "mint", "--scopes", scope).out.strip()
    alice.emit("th_a")
    async with client(alice, token) as sdk:
        made = await sdk.emit(act="KNOW", kind="core.note", body={}, thread="th_b")
        assert made.success is (scope == "records:write")
        assert len(await sdk.query_thread("th_a")) == (1 if scope == "records:read" else 0)


async def test_what_one_client_emits_the_peers_client_reads(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Across a pair, ids and contents are the same, and the voucher is the instance that took the record."""
    async with client(alice) as here, client(bob) as there:
        made = await here.emit(
            act="MAP", kind="music.catalog.link", body=BODY, thread="music.links", data_type="REFERENCE"
        )
        assert made.success
        bob.run("sync", pair_id)
        [record] = await there.query_thread("music.links")
        assert record["id"] == made.record_id
        assert record["vouched_by"] == alice.did
        assert json.loads(json.dumps(record["body"]))["title"] == "Glow"
        assert_same_id(record)
