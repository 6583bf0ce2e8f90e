"""The state of a thread over HTTP: by its rule, at once after a change, of what the reader may see and no more."""

import json
from typing import Any

import pytest

from spl.api import records as state_api
from spl.home.thread_state import PIECE_ROWS
from tests.api.conftest import Served

RULES = "/v1/config/fold-rules"


def a_record(thread: str = "th", namespace: str = "", **body: Any) -> dict[str, Any]:
    more = {"namespace": namespace} if namespace else {}
    return {"act": "DO", "actor": "did:sync:user:a", "thread": thread, "body": {**body, **more}}


async def emit(served: Served, *records: dict[str, Any]) -> int:
    """Return the sequence of the last one."""
    body = b"".join(json.dumps(item).encode() + b"\n" for item in records)
    reply = await served.fetch("POST", "/v1/records", body, headers=(("content-type", "application/x-ndjson"),))
    return int(json.loads(reply.body.splitlines()[-1])["sequence"])


async def state(served: Served, thread: str = "th", **more: Any) -> Any:
    return await served.json("GET", f"/v1/threads/{thread}/state", **more)


async def test_without_a_rule_it_is_the_latest_record(served: Served) -> None:
    sequence = await emit(served, a_record(n=1), a_record(n=2))
    assert await state(served) == {
        "object": "state", "thread": "th", "fold": "latest", "field": None, "rule": None, "value": {"n": 2},
        "complete": True, "records": 2, "sequence": sequence,
    }  # fmt: skip


async def test_a_rule_holds_from_the_next_question_on(served: Served) -> None:
    await emit(served, *(a_record(n=n, of={"k": "ab"[n % 2]}) for n in range(4)))
    rule = {"name": "r", "thread": "t*"}
    for fold, field, value in (
        ("count", "", 4), ("sum", "n", 6), ("set", "of.k", ["a", "b"]), ("first", "n", 0), ("latest", "n", 3),
    ):  # fmt: skip
        await served.json("POST", RULES, {**rule, "fold": fold, "field": field})
        found = await state(served)
        assert (found["rule"], found["fold"], found["field"], found["value"]) == ("r", fold, field or None, value)
    await served.json("POST", RULES, {"name": "above", "thread": "th", "fold": "count", "priority": 1})
    assert ((await state(served))["rule"], (await state(served, "t2"))["rule"]) == ("above", "r")
    await emit(served, a_record(n=5))
    assert (await state(served))["value"] == 5
    await served.json("DELETE", f"{RULES}/above")
    await served.json("DELETE", f"{RULES}/r")
    assert (await state(served))["rule"] is None


async def test_a_long_thread_is_read_whole(served: Served) -> None:
    await served.json("POST", RULES, {"name": "r", "thread": "*", "fold": "sum", "field": "n"})
    count = 3 * PIECE_ROWS + 1
    await emit(served, *(a_record(n=n) for n in range(count)))
    found = await state(served)
    assert (found["records"], found["value"]) == (count, sum(range(count)))


async def test_a_request_reads_so_much_and_the_next_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_api, "PIECES_MAX", 2)
    await emit(served, *(a_record(n=n) for n in range(5 * PIECE_ROWS)))
    answers = [await served.fetch("GET", "/v1/threads/th/state") for _ in range(3)]
    assert [(reply.status, json.loads(reply.body).get("records")) for reply in answers] == [
        (503, None), (503, None), (200, 5 * PIECE_ROWS)
    ]  # fmt: skip
    assert "ask again" in json.loads(answers[0].body)["hint"]


async def test_a_tenant_sees_the_state_of_its_own_records(served: Served) -> None:
    """Unknown, empty and hidden threads answer byte for byte the same, with a rule and without one."""
    for name in ("music", "quiet"):
        await served.json("POST", "/v1/namespaces", {"name": name})
    token = await served.mint("records:read", namespaces=["music"])
    await emit(served, a_record(namespace="music", n=2), a_record(n=5))
    await emit(served, a_record("hidden", n=7))
    for rule in (None, {"name": "r", "thread": "*", "fold": "sum", "field": "n"}):
        if rule:
            await served.json("POST", RULES, rule)
        mine = await state(served, token=token)
        [own] = (await served.json("GET", "/v1/records", token=token))["data"]
        assert (mine["records"], mine["sequence"]) == (1, own["sequence"])
        assert mine["value"] == (2 if rule else {"n": 2, "namespace": "music"})
        assert (await state(served))["records"] == 2
        hidden, unknown = [
            (await served.fetch("GET", f"/v1/threads/{thread}/state", token=token)).body
            for thread in ("hidden", "nobody")
        ]
        assert hidden.replace(b"hidden", b"nobody") == unknown
        assert json.loads(hidden)["value"] == (0 if rule else None)


async def test_the_daemons_own_threads_are_for_its_operator(served: Served) -> None:
    reader, tenant = await served.mint("records:read"), await served.mint("records:read", namespaces=["default"])
    mine = await state(served, "th_api_tokens")
    assert mine["records"] == 3
    unknown = (await served.fetch("GET", "/v1/threads/nobody/state", token=reader)).body
    for token in (reader, tenant):
        found = await served.fetch("GET", "/v1/threads/th_api_tokens/state", token=token)
        assert found.body.replace(b"th_api_tokens", b"nobody") == unknown
    assert await served.refused("GET", "/v1/threads/th/state", token="") == (401, "AUTH_REQUIRED")
    writer = await served.mint("records:write")
    assert await served.refused("GET", "/v1/threads/th/state", token=writer) == (403, "SCOPE_FORBIDDEN")


async def test_a_set_that_is_full_says_so(served: Served) -> None:
    await served.json("POST", RULES, {"name": "r", "thread": "*", "fold": "set", "field": "n"})
    await emit(served, *(a_record(n=n) for n in range(1001)))
    found = await state(served)
    assert (len(found["value"]), found["complete"], found["records"]) == (1000, False, 1001)
