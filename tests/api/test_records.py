"""Emit and read: forms, filters, paging, tenants, and reserved threads."""

import asyncio
import json
import threading
from typing import Any

import pytest

from spl.api.emit import AT_ONCE_BYTES
from spl.core import canon
from spl.core.record import record
from tests.api.conftest import Served
from tests.waiting import DEADLINE_S

ALICE = "did:sync:user:alice"


def value(n: int, thread: str = "th", **body: Any) -> dict[str, Any]:
    return {"act": "KNOW", "actor": ALICE, "body": {"n": n, **body}, "thread": thread}


async def test_an_emitted_record_comes_back_whole(served: Served) -> None:
    found = await served.json("POST", "/v1/records", value(1))
    assert found["object"] == "record"
    assert found["id"] == record.record_id({name: found[name] for name in record.HASHED})
    assert found["vouched_by"] == served.services.vault.identity.did  # type: ignore[union-attr]
    assert found["sequence"] > 0
    assert await served.json("GET", f"/v1/records/{found['id']}") == found
    listed = await served.json("GET", "/v1/threads/th/records")
    assert listed == {"object": "list", "data": [found]}


async def test_sixteen_characters_of_an_id_do(served: Served) -> None:
    found = await served.json("POST", "/v1/records", value(1))
    for chars in (16, 17, 63):
        assert await served.json("GET", f"/v1/records/{found['id'][:chars]}") == found
    for other in (found["id"][:15], found["id"] + "0", found["id"][:16].upper(), found["id"][:16] + "x", "f" * 16):
        assert await served.refused("GET", f"/v1/records/{other}") == (404, "NOT_FOUND")


async def test_the_answer_to_an_emit_is_what_is_read_later_whatever_the_record_holds(served: Served) -> None:
    odd = value(1, a={}, sig={"by": "x", "sig": {}}, text=',"sig":{"by":"\\"é\u2028', record={"id": ',"record":'})
    for record_ in (odd, odd, {**odd, "clock": 7, "judged_by": "a" * 64, "parents": ["b" * 64]}):
        found = await served.json("POST", "/v1/records", record_)
        assert {**record_, "id": found["id"]}.items() <= found.items()
        assert found == await served.json("GET", f"/v1/records/{found['id']}")
    lines = [json.dumps(each).encode() for each in ({**odd, "thread": "many"}, {**odd, "thread": ""}, odd)]
    sent = b"\n".join(lines)
    many = await served.fetch("POST", "/v1/records", sent, headers=(("content-type", "application/x-ndjson"),))
    first, bad, last = map(json.loads, many.body.splitlines())
    assert (first["thread"], bad["code"], last["body"]) == ("many", "BAD_FIELD", odd["body"])
    assert first == await served.json("GET", f"/v1/records/{first['id']}")


async def test_a_text_that_no_record_is_so_long_as_is_not_even_decoded(served: Served) -> None:
    bomb = b'{"body":' + b"[" * 4_000_000
    assert await served.refused("POST", "/v1/records", bomb) == (413, "RECORD_TOO_LARGE")


async def test_bad_parameters_are_named(served: Served) -> None:
    assert await served.refused("GET", "/v1/records?since=-1") == (400, "BAD_FIELD"), "also before the first record"
    for query in ("limit=0", "limit=10001", "limit=x", "since=-1", "limit=+5", "since=99999999999999999999"):
        assert await served.refused("GET", f"/v1/records?thread=th&{query}") == (400, "BAD_FIELD")
    for id_ in ("0" * 64, "x", "A" * 64):
        assert await served.refused("GET", f"/v1/records/{id_}") == (404, "NOT_FOUND")


async def test_many_at_once_have_a_result_each(served: Served) -> None:
    good, bad = json.dumps(value(1)), json.dumps({**value(2), "act": "SHOUT"})
    body = f"{good}\n{bad}\nnot json\n\n{json.dumps(value(3))}\n".encode()
    reply = await served.fetch("POST", "/v1/records", body, headers=(("content-type", "application/x-ndjson"),))
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert [line.get("code", line["object"]) for line in lines] == ["record", "BAD_FIELD", "BAD_JSON", "record"]
    assert [line["clock"] for line in lines if line["object"] == "record"] == [0, 1]


async def test_a_page_of_more_lines_than_the_writer_queues_is_taken(served: Served) -> None:
    lines = b"\n".join(json.dumps(value(n)).encode() for n in range(served.services.limits.page_records))
    answer = await served.fetch("POST", "/v1/records", lines, headers=(("content-type", "application/x-ndjson"),))
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert {item["object"] for item in found} == {"record"}
    assert [item["clock"] for item in found] == list(range(len(found)))


@pytest.mark.parametrize("count", [0, 5, 100])
async def test_the_loop_goes_on_while_long_texts_are_decoded(
    served: Served, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Each decoding waits for a turn of the loop, which never comes if it holds the loop itself."""
    loop, real = asyncio.get_running_loop(), canon.decode

    def decode(text: bytes, levels: int) -> Any:
        turn = threading.Event()
        loop.call_soon_threadsafe(turn.set)
        assert turn.wait(DEADLINE_S)
        return real(text, levels)

    monkeypatch.setattr("spl.core.canon.decode", decode)
    if not count:
        assert (await served.json("POST", "/v1/records", value(1, text="x" * AT_ONCE_BYTES)))["clock"] == 0
        return
    lines = b"\n".join(json.dumps(value(n, text="x" * (2 * AT_ONCE_BYTES // count))).encode() for n in range(count))
    answer = await served.fetch("POST", "/v1/records", lines, headers=(("content-type", "application/x-ndjson"),))
    assert [json.loads(line)["body"]["n"] for line in answer.body.splitlines()] == list(range(count))


async def test_a_tenants_token_neither_reads_nor_writes_elsewhere(served: Served) -> None:
    await served.json("POST", "/v1/namespaces", {"name": "music"})
    token = await served.mint("records:read", "records:write", namespaces=["music"])
    outside = await served.json("POST", "/v1/records", value(1))
    inside = await served.json("POST", "/v1/records", value(2, namespace="music"), token=token)
    await served.json("POST", "/v1/records", value(3, "private"))
    assert await served.refused("POST", "/v1/records", value(4), token=token) == (403, "SCOPE_FORBIDDEN")
    assert (await served.json("GET", "/v1/threads/th/records", token=token))["data"] == [inside]
    assert (await served.json("GET", "/v1/records", token=token))["data"] == [inside]
    assert [item["thread"] for item in (await served.json("GET", "/v1/threads", token=token))["data"]] == ["th"]
    assert await served.refused("GET", f"/v1/records/{outside['id']}", token=token) == (404, "NOT_FOUND")
    unknown = await served.fetch("GET", "/v1/threads/never/records", token=token)
    assert (await served.fetch("GET", "/v1/threads/private/records", token=token)).body == unknown.body


async def test_reserved_threads_are_for_the_operator(served: Served) -> None:
    reader = await served.mint("records:read")
    mine = (await served.json("GET", "/v1/threads/th_api_tokens/records"))["data"]
    assert len(mine) == 2
    assert (await served.json("GET", "/v1/threads/th_api_tokens/records", token=reader))["data"] == []
    assert await served.refused("GET", f"/v1/records/{mine[0]['id']}", token=reader) == (404, "NOT_FOUND")
    assert (await served.json("GET", "/v1/threads", token=reader))["data"] == []
    names = [item["thread"] for item in (await served.json("GET", "/v1/threads?reserved=1"))["data"]]
    assert names == ["th_api_tokens"]


async def test_threads_are_listed_by_age_and_paged(served: Served) -> None:
    for name in ("c", "a", "b/d e"):
        await served.json("POST", "/v1/records", value(1, name))
    first = (await served.json("GET", "/v1/threads?limit=2"))["data"]
    assert [(item["thread"], item["records"]) for item in first] == [("c", 1), ("a", 1)]
    rest = (await served.json("GET", "/v1/threads?after=a"))["data"]
    assert [item["thread"] for item in rest] == ["b/d e"]
    assert len((await served.json("GET", "/v1/threads/b%2Fd%20e/records"))["data"]) == 1
