"""Many records in one request: lines flow to the disk as they arrive, and each has its result in its place."""

import asyncio
import json
from dataclasses import replace

import pytest

from spl.api import emit, searches
from spl.api.emit import HELD_BYTES, Lines
from tests.api.conftest import Served
from tests.api.test_lists import NDJSON
from tests.api.test_records import value
from tests.waiting import DEADLINE_S, until


def body_of(*values: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in values)


async def upload(served: Served, size: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a request of many records; its body is the caller's to send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    head = f"POST /v1/records HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {served.token}\r\n"
    writer.write(f"{head}content-type: application/x-ndjson\r\ncontent-length: {size}\r\n\r\n".encode())
    return reader, writer


@pytest.mark.parametrize("body", [b"", b"\n", b"ab\n\ncd", b"ab\r\n \ncd\n", b"abcdef\nx\n", b"abcdefgh"])
def test_lines_are_the_same_wherever_the_body_is_cut(body: bytes) -> None:
    whole = [line[:6] for line in body.split(b"\n") if line.strip()]
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            lines = Lines(5)
            parts = body[:first], body[first:second], body[second:]
            found = [line for part in parts for line in lines.feed(part)]
            assert [*found, *lines.end()] == whole, (first, second)


def test_a_line_without_end_holds_no_more_than_shows_that_it_is_too_long() -> None:
    lines = Lines(100)
    assert not any(lines.feed(b"x" * 60) for _ in range(1000))
    assert lines.feed(b"x\nyes\n") == [b"x" * 101, b"yes"]
    assert lines.end() == []


async def test_a_long_answer_has_each_result_in_its_place_as_it_is_read_later(served: Served) -> None:
    """Most records are read from the log for it; a known one has the sequence that it has."""
    known = {**value(0), "clock": 70_000}
    await served.json("POST", "/v1/records", known)
    values = [value(n, text="x\u2028" * 100) for n in range(3 * HELD_BYTES // 1000)]
    values[100:100] = [{"act": "SHOUT"}, known]
    values.append(known)
    reply = await served.fetch("POST", "/v1/records", body_of(*values), headers=NDJSON)
    assert len(reply.body) > 2 * HELD_BYTES
    assert "content-length" not in reply.headers
    found = [json.loads(line) for line in reply.body.decode().splitlines()]
    assert [item.get("body", {}).get("n", item.get("code")) for item in found] == [
        each["body"]["n"] if "body" in each else "BAD_FIELD" for each in values
    ]
    assert found[101] == found[-1]
    for item in (*found[::97], found[-1]):
        if item["object"] == "record":
            assert item == await served.json("GET", f"/v1/records/{item['id']}")


async def test_lines_over_the_limit_share_one_refusal(served: Served) -> None:
    object.__setattr__(served.services, "limits", replace(served.services.limits, page_records=3))
    reply = await served.fetch("POST", "/v1/records", body_of(*map(value, range(5))), headers=NDJSON)
    found = [json.loads(line) for line in reply.body.splitlines()]
    assert [item.get("code", item["object"]) for item in found] == ["record"] * 3 + ["BAD_FIELD"]
    assert (found[-1]["not_taken_lines"], found[-1]["message"]) == (2, "body: holds over 3 lines; not taken: 2 lines")
    assert found[-1]["hint"] == "send the lines that were not taken again, at most 3 in one request"
    assert len((await served.json("GET", "/v1/threads/th/records"))["data"]) == 3


async def test_few_bytes_draw_no_large_answer(served: Served) -> None:
    reply = await served.fetch("POST", "/v1/records", b"x\n" * 200_000, headers=NDJSON)
    found = [json.loads(line) for line in reply.body.splitlines()]
    assert len(found) == served.services.limits.page_records + 1
    assert {item["code"] for item in found[:-1]} == {"BAD_JSON"}
    assert found[0]["message"] != found[100]["message"] == found[-2]["message"]
    assert (found[-1]["code"], found[-1]["not_taken_lines"]) == ("BAD_FIELD", 200_000 - len(found) + 1)


async def test_a_late_refusal_points_to_no_message_that_it_lacks(served: Served) -> None:
    """From the 101st on no field is named, so the hint says how to hear of it."""
    reply = await served.fetch("POST", "/v1/records", b"[]\n" * 101, headers=NDJSON)
    *_, full, late = [json.loads(line) for line in reply.body.splitlines()]
    assert (full["code"], late["code"]) == ("BAD_FIELD", "BAD_FIELD")
    assert full["hint"] == "correct the field named in the message"
    assert late["hint"] == "send this line in a request of its own: the answer names the field"


async def test_a_client_that_dies_midway_has_stored_what_arrived_and_holds_nothing(served: Served) -> None:
    lines = body_of(*(value(n, text="x" * 400) for n in range(1000)))
    before = served.services.store.last_seq
    _, writer = await upload(served, len(lines) + 1)
    writer.write(lines)
    await until(lambda: served.services.store.last_seq > before + 500)
    writer.close()
    await until(lambda: not served.services.searches._bulk)
    assert (await served.json("POST", "/v1/records", value(-1)))["body"]["n"] == -1
    stored = [
        item["body"]["n"] for item in (await served.json("GET", "/v1/threads/th/records?since=0&limit=2000"))["data"]
    ]
    assert stored == [*range(len(stored) - 1), -1]


async def test_a_body_that_pauses_keeps_no_other_request_of_its_principal_waiting(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit, "PAUSE_S", 0.01)
    lines = body_of(*(value(n, text="x" * 400) for n in range(400)))
    begun = [await upload(served, 2 * len(lines)) for _ in range(searches.BULK_WRITES + 1)]
    for _, writer in begun:
        writer.write(lines)
    async with asyncio.timeout(DEADLINE_S):
        reply = await served.fetch("POST", "/v1/records", body_of(value(1), value(2)), headers=NDJSON)
        assert reply.body.count(b'"object":"record"') == 2
        for reader, writer in begun:
            writer.write(lines)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()


async def test_a_token_that_is_revoked_midway_writes_no_more(served: Served) -> None:
    minted = await served.json("POST", "/v1/tokens", {"scopes": ["records:write"]}, 201)
    lines = body_of(*(value(n, text="x" * 400) for n in range(400)))
    admin, served.token = served.token, minted["token"]
    reader, writer = await upload(served, 2 * len(lines))
    served.token = admin
    before = served.services.store.last_seq
    writer.write(lines)
    await until(lambda: served.services.store.last_seq > before)
    await served.fetch("DELETE", f"/v1/tokens/{minted['token_id']}")
    writer.write(lines)
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()
