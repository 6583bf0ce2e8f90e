"""Queries with a filter: what they find, in which order, at which cost, and what a tenant is told."""

import json
from typing import Any

import pytest

from spl.api import queries
from tests.api.conftest import Served
from tests.api.test_lists import NDJSON, emit, numbers
from tests.api.test_records import ALICE, value

QUERY = "/v1/records/query"
BOB = "did:sync:user:bob"


@pytest.fixture
async def full(served: Served) -> Served:
    """Two threads, two actors, two namespaces; `n` counts by arrival, clocks run against it on th_down."""
    await served.json("POST", "/v1/namespaces", {"name": "acme"})
    await emit(served, *({**value(n, "th_up", kind="up"), "clock": n} for n in range(10)))
    await emit(served, *({**value(n, "th_down", kind="down", at={"n": n}), "clock": 20 - n} for n in range(10, 20)))
    await emit(served, *({**value(n, "th_acme", namespace="acme"), "actor": BOB} for n in range(20, 25)))
    return served


async def found(served: Served, filter_: object, status: int = 200, token: str | None = None, **more: Any) -> Any:
    return await served.json("POST", QUERY, {"filter": filter_, **more}, status, token=token)


CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "all": ({"filter": {}}, [*range(25)]),
    "kind": ({"filter": {"body.kind": "up"}}, [*range(10)]),
    "thread beside": ({"filter": {}, "thread": "th_down"}, [*range(10, 20)]),
    "thread within": ({"filter": {"thread": "th_down"}}, [*range(10, 20)]),
    "two threads": ({"filter": {"thread": "th_down"}, "thread": "th_up"}, []),
    "actor": ({"filter": {"actor": BOB}}, [*range(20, 25)]),
    "actor and namespace": ({"filter": {"actor": BOB, "namespace": "default"}}, []),
    "namespace": ({"filter": {"namespace": "acme", "body.n": {"$gt": 22}}}, [23, 24]),
    "no such namespace": ({"filter": {"namespace": "none"}}, []),
    "either": ({"filter": {"$or": [{"body.n": 3}, {"thread": "th_acme", "body.n": {"$lt": 21}}]}}, [3, 20]),
    "clock": ({"filter": {"clock": {"$gte": 3, "$lt": 5}, "actor": ALICE}}, [3, 4, 16, 17]),
    "ascending": ({"filter": {"thread": "th_down"}, "sort": {"clock": 1}}, [*range(19, 9, -1)]),
    "descending": ({"filter": {"actor": ALICE}, "sort": {"clock": -1}, "limit": 4}, [10, 11, 9, 12]),
    "page": ({"filter": {"actor": ALICE}, "offset": 8, "limit": 4}, [8, 9, 10, 11]),
    "sorted page": ({"filter": {"thread": "th_down"}, "sort": {"clock": 1}, "offset": 8, "limit": 4}, [11, 10]),
    "beyond": ({"filter": {}, "offset": 25}, []),
    "reserved": ({"filter": {"body.n": {"$exists": False}}}, []),
}


@pytest.mark.parametrize("case", CASES)
async def test_what_is_found(full: Served, case: str) -> None:
    body, wanted = CASES[case]
    answer = await full.json("POST", QUERY, body)
    assert answer["object"] == "list"
    assert numbers(answer["data"]) == wanted
    for item in answer["data"][:2]:
        assert item == await full.json("GET", f"/v1/records/{item['id']}")


async def test_records_of_the_daemon_itself_are_for_admin(full: Served) -> None:
    query = {"filter": {"thread": "th_api_tokens"}}
    assert (await full.json("POST", QUERY, query))["data"]
    reader = await full.mint("records:read")
    assert (await full.json("POST", QUERY, query, token=reader))["data"] == []
    assert (await found(full, {}, token=reader, limit=1000))["data"] == (await found(full, {}, limit=1000))["data"]


async def test_a_sort_keeps_little_however_much_there_is(served: Served) -> None:
    """Ties in clock are in order of arrival, or the newest first."""
    await emit(served, *({**value(n), "clock": n * 7919 % 1000} for n in range(1000)))
    await emit(served, *({**value(1000 + n), "actor": BOB, "clock": n * 7919 % 1000} for n in range(1000)))
    by_clock = sorted(range(2000), key=lambda n: (n % 1000 * 7919 % 1000, n))
    for order, wanted in ((1, by_clock), (-1, by_clock[::-1])):
        for offset, limit in ((0, 5), (0, 300), (700, 50), (1990, 100)):
            data = (await found(served, {}, sort={"clock": order}, offset=offset, limit=limit))["data"]
            assert numbers(data) == wanted[offset : offset + limit]


REFUSED: dict[str, dict[str, Any]] = {
    "$regex": {"filter": {"body.n": {"$regex": "."}}},
    "$nor": {"filter": {"$nor": []}},
    "colour": {"filter": {"colour": 1}},
    "filter: is missing": {},
    "wrong": {"filter": [], "limit": 1},
    "sort": {"filter": {}, "sort": {"actor": 1}},
    "clock is 1": {"filter": {}, "sort": {"clock": 2}},
    "clock is": {"filter": {}, "sort": {"clock": True}},
    "limit": {"filter": {}, "limit": 0},
    "offset": {"filter": {}, "offset": -1},
    "projection": {"filter": {}, "projection": {}},
}


@pytest.mark.parametrize("named", REFUSED)
async def test_what_is_not_known_is_refused_by_its_name(full: Served, named: str) -> None:
    answer = await full.json("POST", QUERY, REFUSED[named], 400)
    assert answer["code"] == "BAD_FIELD"
    assert named in answer["message"]


async def test_a_plan_says_what_the_index_answered(full: Served) -> None:
    filter_ = {"thread": "th_up", "body.kind": "up"}
    plan = (await found(full, filter_, explain=True))["plan"]
    assert (plan["indexed"], plan["fields"]) == (["thread"], ["thread", "body.kind"])
    assert 0 < plan["steps"] < (await found(full, {"body.kind": "up"}, explain=True))["plan"]["steps"]
    assert "plan" not in await found(full, filter_)
    answer = await found(full, {"body.text": "x"}, explain=True)
    assert (answer["data"], answer["plan"]["indexed"]) == ([], [])


@pytest.mark.parametrize("body", [
    {"filter": {"body.kind": "none"}}, {"filter": {}, "sort": {"clock": 1}},
    {"filter": {"body.text": {"$like": "%a_b%"}}},
])  # fmt: skip
async def test_a_query_that_costs_too_much_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    """By what it reads and by what it tests; narrowed by an index it is answered."""
    await emit(served, *(value(n, text="a" * 2000) for n in range(30)), *(value(n, "small") for n in range(3)))
    monkeypatch.setattr(queries, "QUERY_STEPS", 4000)
    answer = await served.json("POST", QUERY, body, 400)
    assert answer["code"] == "QUERY_COST"
    assert "thread" in answer["hint"]
    await served.json("POST", QUERY, {**body, "thread": "small"})


async def test_a_long_query_is_cut_into_turns(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others come between: one turn ends after STEP_COST, whatever the filter asks of each record."""
    await emit(served, *(value(n) for n in range(200)))
    turns = []
    real = served.services.searches._result

    async def step(*args: Any, **more: Any) -> Any:
        turns.append(args)
        return await real(*args, **more)

    monkeypatch.setattr(type(served.services.searches), "_result", lambda self, *args, **more: step(*args, **more))
    monkeypatch.setattr(queries, "STEP_COST", 500)
    spent = (await found(served, {"body.none": 1}, explain=True))["plan"]["steps"]
    assert spent > 5000
    assert len(turns) >= spent // 1000


async def test_a_tenant_finds_its_own_and_learns_nothing_of_others(full: Served) -> None:
    """Byte for byte: what lies in another namespace is as unknown as what does not exist, at the same cost."""
    token = await full.mint("records:read", namespaces=["acme"])
    assert numbers((await found(full, {}, token=token))["data"]) == [*range(20, 25)]
    assert numbers((await found(full, {"namespace": "acme", "actor": BOB}, token=token))["data"]) == [*range(20, 25)]
    for theirs, nobodys in (
        ({"thread": "th_down"}, {"thread": "th_none"}), ({"actor": ALICE}, {"actor": "did:sync:user:alicf"}),
        ({"namespace": "default"}, {"namespace": "defaulu"}), ({"body.kind": "down"}, {"body.kind": "dowm"}),
    ):  # fmt: skip
        answers = [
            (await full.fetch("POST", QUERY, {"filter": filter_, "explain": True}, token=token)).body
            for filter_ in (theirs, nobodys)
        ]
        assert answers[0] == answers[1]
        assert json.loads(answers[0])["data"] == []


async def test_a_search_says_that_it_is_disabled(served: Served) -> None:
    assert await served.refused("POST", "/v1/records/search", {"query": "x", "k": 3}) == (503, "EMBEDDINGS_DISABLED")
    writer = await served.mint("records:write")
    for path in ("search", "query"):
        reply = await served.refused("POST", f"/v1/records/{path}", {"filter": {}}, token=writer)
        assert reply == (403, "SCOPE_FORBIDDEN")


async def test_a_query_of_megabytes_is_sent_in_pieces(served: Served) -> None:
    body = b"".join(json.dumps(value(n, text="x" * 50_000)).encode() + b"\n" for n in range(40))
    await served.fetch("POST", "/v1/records", body, headers=NDJSON)
    query = {"filter": {"body.n": {"$gte": 5}}, "sort": {"clock": -1}, "limit": 1000, "explain": True}
    reply = await served.fetch("POST", QUERY, query)
    assert reply.headers["transfer-encoding"] == "chunked"
    answer = json.loads(reply.body)
    assert numbers(answer["data"]) == [*range(39, 4, -1)]
    assert answer["plan"]["fields"] == ["body.n"]
