"""A watched thread: what a program may read, from where it asks, once and in order, until it must end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from spl.core.record import record
from spl.home.writes import Own
from spl.net.client import EventStream
from spl.net.sse import Event
from tests.api.conftest import HERE, Served
from tests.api.test_records import value
from tests.waiting import DEADLINE_S, until, waiters

NDJSON = (("content-type", "application/x-ndjson"),)


@asynccontextmanager
async def watching(
    served: Served, query: str = "", *, thread: str = "th", token: str = "", last_id: str = ""
) -> AsyncIterator[EventStream]:
    headers = [("authorization", f"Bearer {token or served.token}")]
    if last_id:
        headers.append(("last-event-id", last_id))
    url = f"{served.url}/v1/threads/{thread}/watch{query}"
    async with asyncio.timeout(DEADLINE_S), served.client.stream(url, headers=headers, dial=HERE) as stream:
        yield stream


async def numbers(stream: EventStream, count: int) -> list[int]:
    """Return body.n of the next records."""
    return [item["record"]["body"]["n"] for item in [json.loads(event.data) for event in await records(stream, count)]]


async def records(stream: EventStream, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        event = await anext(stream)
        if event.name == "record.created":
            found.append(event)
    return found


async def emit(served: Served, *each: int, thread: str = "th", **more: Any) -> list[dict[str, Any]]:
    return [await served.json("POST", "/v1/records", {**value(n, thread), **more}) for n in each]


async def test_it_begins_with_now_and_tells_what_the_record_answer_tells(served: Served) -> None:
    await emit(served, 1)
    async with watching(served) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-cache"
        beat = await anext(stream)
        assert (beat.name, stream.retry_ms) == ("heartbeat", 1000)
        [sent] = await emit(served, 2)
        await emit(served, 3, thread="other")
        event = await anext(stream)
        assert (event.name, event.id) == ("record.created", str(sent["sequence"]))
        told = json.loads(event.data)
        assert told["record"] == {name: sent[name] for name in record.FIELDS}
        assert (told["id"], told["sequence"], told["vouched_by"]) == (sent["id"], sent["sequence"], sent["vouched_by"])


async def test_nothing_is_missed_between_the_records_of_other_threads(served: Served) -> None:
    async with watching(served) as stream:
        await anext(stream)
        for n in range(3):
            others = "\n".join(json.dumps(value(each, "other")) for each in range(100))
            await served.fetch("POST", "/v1/records", others.encode(), headers=NDJSON)
            await emit(served, n)
            assert await numbers(stream, 1) == [n]
        lines = "\n".join(json.dumps(value(each)) for each in range(3, 200))
        await served.fetch("POST", "/v1/records", lines.encode(), headers=NDJSON)
        assert await numbers(stream, 197) == list(range(3, 200))


async def test_it_goes_on_after_the_last_event_of_any_kind(served: Served) -> None:
    async with watching(served) as stream:
        beat = await anext(stream)
    await emit(served, 1, 2)
    async with watching(served, last_id=beat.id) as stream:
        [first, second] = await records(stream, 2)
    await emit(served, 3)
    # `since_clock` is for the first connection only; a browser sends it again all the same.
    async with watching(served, "?since_clock=0", last_id=first.id) as stream:
        assert await numbers(stream, 2) == [2, 3]
    assert second.id


async def test_since_clock_replays_the_thread_and_then_takes_everything(served: Served) -> None:
    await emit(served, *range(5))
    async with watching(served, "?since_clock=2") as stream:
        data = (await served.json("GET", "/v1/threads/th/records"))["data"]
        held = [item["body"]["n"] for item in data if item["clock"] > 2]
        assert await numbers(stream, len(held)) == held
        await emit(served, 9, actor="did:sync:user:other", clock=0)
        assert await numbers(stream, 1) == [9]


async def test_an_id_of_another_log_sends_everything_again(served: Served) -> None:
    await emit(served, 1, 2)
    async with watching(served, last_id="999999") as stream:
        assert await numbers(stream, 2) == [1, 2]


async def test_a_long_history_comes_whole(served: Served) -> None:
    lines = "\n".join(json.dumps(value(n)) for n in range(300)).encode()
    await served.fetch("POST", "/v1/records", lines, headers=(("content-type", "application/x-ndjson"),))
    async with watching(served, "?since_clock=0", last_id="0") as stream:
        assert await numbers(stream, 300) == list(range(300))


async def test_a_token_of_one_namespace_sees_nothing_else(served: Served) -> None:
    await served.json("POST", "/v1/namespaces", {"name": "org"})
    token = await served.mint("records:read", namespaces=["org"])
    async with watching(served, token=token) as stream:
        await served.json("POST", "/v1/records", value(1))
        await served.json("POST", "/v1/records", value(2, namespace="org"))
        assert await numbers(stream, 1) == [2]


async def test_the_daemons_own_threads_are_for_admin(served: Served) -> None:
    token = await served.mint("records:read")
    found = await served.refused("GET", "/v1/threads/th_api_tokens/watch", token=token)
    assert found == (403, "SCOPE_FORBIDDEN")
    async with watching(served, thread="th_api_tokens") as stream:
        await anext(stream)
        await served.mint("records:read")
        [event] = await records(stream, 1)
        assert json.loads(event.data)["record"]["thread"] == "th_api_tokens"


@pytest.mark.parametrize("last_id", ["x", "-1", "1" * 30])
async def test_ids_that_are_none_are_refused(served: Served, last_id: str) -> None:
    found = await served.refused("GET", "/v1/threads/th/watch", headers=(("last-event-id", last_id),))
    assert found == (400, "BAD_FIELD")
    assert await served.refused("GET", "/v1/threads/th/watch?since_clock=-1") == (400, "BAD_FIELD")


async def test_a_revoked_token_ends_it_at_once(served: Served) -> None:
    minted = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"]}, 201)
    async with watching(served, token=minted["token"]) as stream:
        await anext(stream)
        await served.json("DELETE", f"/v1/tokens/{minted['token_id']}")
        event = await anext(stream)
        assert (event.name, json.loads(event.data)["code"]) == ("error", "revoked")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_rule_that_comes_to_refuse_it_ends_it_at_once(served: Served) -> None:
    minted = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"]}, 201)
    rule = {"name": "no", "resource": "threads:read", "action": "deny", "priority": 1,
            "expression": 'principal.kind == "token" && !("admin" in principal.scopes)'}  # fmt: skip
    async with watching(served, token=minted["token"]) as stream:
        await anext(stream)
        await served.json("POST", "/v1/config/permission-rules", rule)
        event = await anext(stream)
        assert (event.name, json.loads(event.data)["code"]) == ("error", "revoked")


async def test_the_stop_is_told(served: Served) -> None:
    async with watching(served) as stream:
        await anext(stream)
        served.services.feed.notifier.stop()
        event = await anext(stream)
        assert (event.name, json.loads(event.data)) == ("server_shutdown", {"retry_after_ms": 1000})


async def test_who_went_is_forgotten(served: Served) -> None:
    async with watching(served) as stream:
        await anext(stream)
        assert waiters(served.services.feed.notifier) == 1
    await until(lambda: not waiters(served.services.feed.notifier))
    served.services.writer.submit([Own("th_audit_x", "note", {})]).result(20)


async def test_a_text_with_odd_line_ends_is_one_line_of_the_stream(served: Served) -> None:
    """Clients that cut the stream by `str.splitlines` still read the record whole."""
    text = "a\u2028b\u2029c\u0085d"
    async with watching(served) as stream:
        await served.json("POST", "/v1/records", {**value(1), "body": {"text": text}})
        [event] = await records(stream, 1)
        assert len(event.data.decode().splitlines()) == 1
        assert json.loads(event.data)["record"]["body"]["text"] == text
