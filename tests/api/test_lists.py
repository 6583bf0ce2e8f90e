"""Lists of records: filters, paging, what is the newest, and what `since` means."""

import json
from typing import Any

import pytest

from spl.api import lists
from spl.api.answers import positions
from spl.api.auth import Kind, Principal
from tests.api.conftest import Served
from tests.api.test_records import value

NDJSON = (("content-type", "application/x-ndjson"),)
TIME_MS = 1_764_000_000_000


def numbers(data: list[dict[str, Any]]) -> list[int]:
    return [item["body"]["n"] for item in data]


async def emit(served: Served, *values: dict[str, Any]) -> None:
    body = b"\n".join(json.dumps(each).encode() for each in values)
    reply = await served.fetch("POST", "/v1/records", body, headers=NDJSON)
    assert all(json.loads(line)["object"] == "record" for line in reply.body.splitlines()), reply.body


async def test_filters_and_paging_by_sequence(served: Served) -> None:
    for n in range(7):
        await served.json("POST", "/v1/records", value(n, kind="even" if n % 2 == 0 else "odd"))
    await served.json("POST", "/v1/records", {**value(9, "other"), "actor": "did:sync:user:bob"})
    found: list[int] = []
    since = 0
    while data := (await served.json("GET", f"/v1/records?thread=th&limit=3&since={since}"))["data"]:
        found += [item["body"]["n"] for item in data]
        since = data[-1]["sequence"]
    assert found == list(range(7))
    even = (await served.json("GET", "/v1/records?thread=th&kind=even&limit=3"))["data"]
    assert numbers(even) == [2, 4, 6]
    assert numbers((await served.json("GET", "/v1/records?thread=th&kind=even&limit=3&since=0"))["data"]) == [0, 2, 4]
    bobs = (await served.json("GET", "/v1/records?actor=did:sync:user:bob"))["data"]
    assert [item["thread"] for item in bobs] == ["other"]
    assert len((await served.json("GET", "/v1/records"))["data"]) == 8
    assert (await served.json("GET", "/v1/records?thread=nobody"))["data"] == []


async def test_a_long_thread_is_read_whole(served: Served) -> None:
    """More records than one look at the index takes: none falls between two looks."""
    body = b"".join(json.dumps(value(n)).encode() + b"\n" for n in range(1203))
    await served.fetch("POST", "/v1/records", body, headers=(("content-type", "application/x-ndjson"),))
    wanted = {
        "limit=2000": (0, 1203),
        "limit=2000&kind=none": (0, 0),
        "limit=7": (1196, 1203),
        "limit=7&since=0": (0, 7),
    }
    for query, bounds in wanted.items():
        data = (await served.json("GET", f"/v1/threads/th/records?{query}"))["data"]
        assert numbers(data) == list(range(*bounds)), query


async def test_a_list_of_megabytes_is_sent_in_pieces_and_whole(served: Served) -> None:
    """Its reader gets every record in order; a short list has a length."""
    text = "x" * 50_000
    body = b"".join(json.dumps(value(n, text=text, kind="k")).encode() + b"\n" for n in range(40))
    await served.fetch("POST", "/v1/records", body, headers=(("content-type", "application/x-ndjson"),))
    for path in ("/v1/threads/th/records?limit=1000", "/v1/records?limit=1000", "/v1/records?kind=k&limit=30"):
        reply = await served.fetch("GET", path)
        assert reply.headers["transfer-encoding"] == "chunked"
        found = numbers(json.loads(reply.body)["data"])
        assert found == list(range(10 if "kind" in path else 0, 40))
    assert (await served.fetch("GET", "/v1/records?limit=1")).headers["content-length"]


@pytest.mark.parametrize("path", [
    "/v1/records?", "/v1/records?thread=th&", "/v1/threads/th/records?", "/v1/records?actor=did:sync:user:alice&",
    "/v1/records?kind=k&", "/v1/threads/th/records?kind=k&", "/v1/records?thread=th&actor=did:sync:user:alice&",
])  # fmt: skip
async def test_without_since_a_list_holds_the_newest_in_order_of_arrival(served: Served, path: str) -> None:
    """Wanted ones are found behind any number of others."""
    await emit(served, *(value(n, kind="k") for n in range(150)))
    await emit(served, *({**value(n, kind="other"), "actor": "did:sync:user:b", "thread": "th_b"} for n in range(700)))
    if path != "/v1/records?":
        assert numbers((await served.json("GET", f"{path}limit=100"))["data"]) == list(range(50, 150))
        assert numbers((await served.json("GET", f"{path}limit=1"))["data"]) == [149]
        assert numbers((await served.json("GET", f"{path}limit=200"))["data"]) == list(range(150))
    else:
        assert numbers((await served.json("GET", f"{path}limit=701"))["data"]) == [149, *range(700)]


async def test_a_list_that_nobody_reads_on_keeps_few_rows(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a piece, whatever its length: the others are read as they are sent."""
    await emit(served, *(value(n, text="x" * 500) for n in range(1000)))
    index, asked = served.services.store.index, list[int]()
    rows = type(index).rows

    def counted(self: Any, seqs: Any) -> Any:
        asked.append(len(seqs))
        return rows(self, seqs)

    monkeypatch.setattr(type(index), "rows", counted)
    principal = Principal(Kind.TOKEN, frozenset({"admin"}))
    wanted = lists.Wanted(served.services.store, principal, positions(principal, served.services))
    pieces = lists._newest(wanted, ["t:th"], 1000)
    first = next(piece for piece in pieces if piece)
    assert 0 < sum(asked) <= 200 < len(first)
    assert numbers(json.loads(b"[" + first + b"".join(pieces) + b"]")) == list(range(1000))
    assert max(asked) <= lists.HELD_ROWS


async def test_a_list_that_is_too_long_lacks_the_oldest(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what is newest is never missed; with `since` it is the newest that the next list brings."""
    monkeypatch.setattr(lists, "ANSWER_BYTES", 20_000)
    await emit(served, *(value(n, text="x" * 1000) for n in range(50)))
    found = numbers((await served.json("GET", "/v1/threads/th/records"))["data"])
    assert found == list(range(found[0], 50))
    assert 10 < len(found) < 20
    first = numbers((await served.json("GET", "/v1/threads/th/records?since=0"))["data"])
    assert first[0] == 0
    await emit(served, value(50, text="x" * 30_000))
    assert numbers((await served.json("GET", "/v1/threads/th/records"))["data"]) == [50], (
        "at least one, whatever its size"
    )


async def test_since_is_a_clock_on_a_thread(served: Served) -> None:
    """As the SDK knows it, whatever the sequences are; 0 is the begin."""
    await emit(served, *(value(n, "other") for n in range(20)))
    await emit(served, *({**value(n), "clock": 10 * n} for n in range(4)))
    for since, wanted in ((0, [0, 1, 2, 3]), (9, [1, 2, 3]), (10, [2, 3]), (25, [3]), (30, []), (2**63 - 1, [])):
        assert numbers((await served.json("GET", f"/v1/threads/th/records?since={since}"))["data"]) == wanted


async def test_since_is_a_position_or_a_time_as_clock(served: Served) -> None:
    """A time in milliseconds is no position of any log; what lies beyond the log and is none is still ahead of it."""
    await served.json("POST", "/v1/namespaces", {"name": "acme"})
    await emit(served, *({**value(n, namespace="acme"), "clock": TIME_MS + n} for n in range(4)))
    for token in (served.token, await served.mint("records:read", namespaces=["acme"])):
        data = (await served.json("GET", "/v1/records?thread=th", token=token))["data"]
        for since in (data[1]["sequence"], TIME_MS + 1):
            path = f"/v1/records?thread=th&since={since}"
            assert numbers((await served.json("GET", path, token=token))["data"]) == [2, 3]
        path = f"/v1/records?since={TIME_MS + 3}&limit=2"
        assert (await served.json("GET", path, token=token))["data"] == []
    assert (await served.json("GET", "/v1/records?thread=th&since=1000000"))["data"] == []


async def test_a_list_since_a_clock_looks_at_few_rows_in_a_step(served: Served) -> None:
    """Behind any number of lower clocks, of which none is read."""
    await emit(served, *({**value(n), "clock": n} for n in range(1, 1203)))
    assert numbers((await served.json("GET", "/v1/threads/th/records?since=1199"))["data"]) == [1200, 1201, 1202]


async def test_ndjson_results_are_lines_to_any_reader(served: Served) -> None:
    """Also to those that end a line at U+2028, U+2029 and U+0085."""
    odd = "a\u2028b\u2029c\x85d"
    body = b"\n".join(json.dumps(value(n, text=odd), ensure_ascii=False).encode() for n in range(3))
    reply = await served.fetch("POST", "/v1/records", body, headers=NDJSON)
    results = [json.loads(line) for line in reply.body.decode().splitlines()]
    assert [item["body"]["text"] for item in results] == [odd] * 3
