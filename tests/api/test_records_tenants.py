"""Tenants of one daemon: a token that is bound to a namespace sees that one, and nothing of the others.

Each read route is asked about what another tenant holds and about what does not exist, and must answer the same;
where both tenants write into one thread, what is read and what is counted is the token's own.
"""

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from spl.api.lists import MILLISECONDS
from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.home.index import Index
from spl.home.tables.compaction import IndexState
from spl.home.tables.rows import PayloadReader, Row
from spl.home.writes import Commit, Emit
from tests.api.conftest import Served
from tests.api.test_watch import watching
from tests.waiting import DEADLINE_S, until

MIXED, THEIRS, NOBODYS = "th_mixed", "th_theirs", "th_nobodys"
NDJSON = (("content-type", "application/x-ndjson"),)
ROUTES = (
    "/v1/threads/{}/records", "/v1/threads/{}/state", "/v1/threads/{}/snapshot", "/v1/records?thread={}",
    "/v1/threads?after={}", "/v1/records?actor={}", "/v1/namespaces/{}", "/v1/records?thread={}&actor=did:sync:user:a",
)  # fmt: skip
"""Those that name a thing; in its place there is another tenant's, or one that does not exist."""


@dataclass
class Tenants:
    """A daemon with two tenants, acme and other; `token` is acme's.

    `own` are the records of acme as its token sees them, `theirs` those of others as the operator does.
    """

    served: Served
    token: str
    own: list[dict[str, Any]]
    theirs: list[dict[str, Any]]

    async def get(self, path: str) -> Any:
        return await self.served.json("GET", path, token=self.token)


async def emit(served: Served, ns: str, thread: str, n: int) -> dict[str, Any]:
    value = {"act": "KNOW", "actor": "did:sync:user:a", "thread": thread, "body": {"namespace": ns, "n": n}}
    found: dict[str, Any] = await served.json("POST", "/v1/records", value)
    return found


@pytest.fixture
async def tenants(served: Served) -> Tenants:
    for name in ("acme", "other", "acme/web"):
        await served.json("POST", "/v1/namespaces", {"name": name})
    own = [await emit(served, "acme", MIXED, 1)]
    theirs = [await emit(served, ns, MIXED, 2) for ns in ("other", "default", "acme/web")]
    own.append(await emit(served, "acme", MIXED, 3))
    theirs += [await emit(served, "other", thread, 4) for thread in (MIXED, THEIRS)]
    token = await served.mint("records:read", "records:write", namespaces=["acme"])
    own = [await served.json("GET", f"/v1/records/{item['id']}", token=token) for item in own]
    return Tenants(served, token, own, theirs)


@pytest.mark.parametrize("wants", ["emit", "many", "one", "list", "thread", "state", "watch", "beat"])
async def test_the_writes_of_others_show_in_no_position(tenants: Tenants, wants: str) -> None:
    """Whatever carries a position carries one of the token's own: none is the log's, and `since` takes it back."""
    token, plain = tenants.token, []
    for n in range(3):
        await emit(tenants.served, "other", MIXED, 30 + n)
        plain.append((await emit(tenants.served, "acme", MIXED, 40 + n))["sequence"])
    value = {"act": "KNOW", "actor": "did:sync:user:a", "thread": MIXED, "body": {"namespace": "acme", "n": 50}}
    if wants == "emit":
        shown = [(await tenants.served.json("POST", "/v1/records", value, token=token))["sequence"]]
    elif wants == "many":
        lines = b"\n".join(json.dumps({**value, "body": {**value["body"], "n": n}}).encode() for n in range(60, 63))
        reply = await tenants.served.fetch("POST", "/v1/records", lines, token=token, headers=NDJSON)
        shown = [json.loads(line)["sequence"] for line in reply.body.splitlines()]
    elif wants == "one":
        shown = [tenants.own[0]["sequence"]]
    elif wants in ("list", "thread"):
        path = "/v1/records" if wants == "list" else f"/v1/threads/{MIXED}/records"
        shown = [item["sequence"] for item in (await tenants.get(path))["data"]]
    elif wants == "state":
        shown = [(await tenants.get(f"/v1/threads/{MIXED}/state"))["sequence"]]
    else:
        query = "?since_clock=0" if wants == "watch" else ""
        async with watching(tenants.served, query, thread=MIXED, token=token) as stream:
            while (event := await anext(stream)).name != ("record.created" if wants == "watch" else "heartbeat"):
                pass
        shown = [json.loads(event.data)["sequence"]]
        assert event.id == str(shown[0])
    assert not set(range(1, plain[-1] + 20)) & set(shown)
    everything = (await tenants.get("/v1/records"))["data"]
    places = {item["sequence"]: number for number, item in enumerate(everything)}
    for position in shown:
        rest = (await tenants.get(f"/v1/records?since={position}"))["data"]
        assert rest == everything[places[position] + 1 :]


@pytest.mark.parametrize("path", ["/v1/records?since={}", f"/v1/records?thread={MIXED}&since={{}}", "watch"])
async def test_a_position_that_was_never_shown_is_refused(tenants: Tenants, path: str) -> None:
    """One of the log, one of a token of other namespaces; and both say how to begin again."""
    other = await tenants.served.mint("records:read", namespaces=["acme", "other"])
    theirs = (await tenants.served.json("GET", "/v1/records", token=other))["data"]
    foreign = next(item["sequence"] for item in theirs if item["sequence"] not in MILLISECONDS)
    for number in (tenants.theirs[-1]["sequence"], foreign, 2**63 - 1):
        route, headers = path.format(number), ()
        if path == "watch":
            route, headers = f"/v1/threads/{MIXED}/watch", (("last-event-id", str(number)),)
        reply = await tenants.served.fetch("GET", route, token=tenants.token, headers=headers)
        value = json.loads(reply.body)
        assert (reply.status, value["code"]) == (400, "POSITION_UNKNOWN")
        assert "since=0" in value["hint"]


async def test_tokens_of_the_same_namespaces_share_their_positions(tenants: Tenants) -> None:
    other = await tenants.served.mint("records:read", namespaces=["acme"])
    path = f"/v1/records?since={tenants.own[0]['sequence']}"
    found = (await tenants.served.json("GET", path, token=other))["data"]
    assert found == tenants.own[1:] == (await tenants.get(path))["data"]


SIGNATURE = re.compile(r'(?<="value":")[^"]+(?="},"thread")')


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("hidden", [THEIRS, "other", "acme%2Fweb", "th_api_tokens"])
async def test_hidden_and_unknown_answer_the_same(tenants: Tenants, route: str, hidden: str) -> None:
    """Byte for byte, but for the name and a snapshot's signature over it.

    A snapshot of the daemon's own thread says what it needs: that name is known.
    """
    if hidden == "th_api_tokens" and "snapshot" in route:
        return
    answers = []
    for name in (hidden, NOBODYS):
        reply = await tenants.served.fetch("GET", route.format(name), token=tenants.token)
        text = reply.body.decode().replace(name.replace("%2F", "/"), "NAME")
        answers.append((reply.status, SIGNATURE.sub("S", text)))
    assert answers[0] == answers[1]


@dataclass
class Reads:
    """What the index read from now on: the namespace of each row, and the thread of the process that read it."""

    rows: list[tuple[str, str]]

    def of(self, *namespaces: str) -> int:
        return sum(ns in namespaces for ns, _ in self.rows)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found, real = Reads([]), Index._rows

    def rows(index: Index, state: IndexState, seqs: Sequence[int]) -> Iterator[Row]:
        for row in real(index, state, seqs):
            found.rows.append((row.ns, threading.current_thread().name))
            yield row

    monkeypatch.setattr(Index, "_rows", rows)
    return found


@pytest.mark.parametrize("thread", [MIXED, THEIRS])
@pytest.mark.parametrize("route", [
    *ROUTES[:4], "/v1/threads", "/v1/records", "/v1/records?actor=did:sync:user:a",
    "/v1/records?kind=none&thread={}", "/v1/threads/{}/watch?since_clock=0",
])  # fmt: skip
async def test_nothing_of_other_tenants_is_read(tenants: Tenants, reads: Reads, route: str, thread: str) -> None:
    """So no work, and no time, depends on what they hold."""
    reads.rows.clear()
    if "watch" in route:
        async with watching(tenants.served, "?since_clock=0", thread=thread, token=tenants.token) as stream:
            while thread == MIXED and (await anext(stream)).id != str(tenants.own[1]["sequence"]):
                pass
            await anext(stream) if thread == THEIRS else None
    else:
        await tenants.served.fetch("GET", route.format(thread), token=tenants.token)
    assert reads.of("other", "acme/web", "default") == 0
    assert (reads.of("acme") > 0) == (thread == MIXED or "{}" not in route)


async def test_the_payload_of_anothers_record_is_not_read(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = PayloadReader.one
    monkeypatch.setattr(PayloadReader, "one", lambda reader, row: read.append(row.seq) or real(reader, row))
    for item in tenants.theirs:
        await tenants.served.fetch("GET", f"/v1/records/{item['id']}", token=tenants.token)
    assert not {item["sequence"] for item in tenants.theirs} & set(read)


@pytest.mark.parametrize("route", [
    "/v1/records", "/v1/records?actor=did:sync:user:a", f"/v1/records?thread={MIXED}", "/v1/threads",
    f"/v1/threads/{MIXED}/state", f"/v1/threads/{MIXED}/watch?since_clock=0",
    f"/v1/threads/{MIXED}/watch?since_clock={2**63 - 1}",
])  # fmt: skip
async def test_the_event_loop_reads_no_rows(tenants: Tenants, reads: Reads, route: str) -> None:
    """A history is as long as others write it, and the loop serves everybody."""
    reads.rows.clear()
    for token in (tenants.token, tenants.served.token):
        if "watch" in route:
            async with watching(tenants.served, route.partition("watch")[2], thread=MIXED, token=token) as stream:
                await anext(stream)
                await until(lambda: reads.rows)
        else:
            await tenants.served.fetch("GET", route, token=token)
    here = threading.current_thread().name
    assert reads.rows
    assert not [row for row in reads.rows if row[1] == here]


async def test_threads_of_several_namespaces_come_once_in_order_of_their_first_record(tenants: Tenants) -> None:
    for ns, thread in (("other", "th_a"), ("acme", "th_b"), ("acme", "th_a"), ("default", "th_c")):
        await emit(tenants.served, ns, thread, 7)
    token = await tenants.served.mint("records:read", namespaces=["acme", "other"])
    found = (await tenants.served.json("GET", "/v1/threads", token=token))["data"]
    names = [(item["thread"], item["records"]) for item in found]
    assert names == [(MIXED, 4), (THEIRS, 1), ("th_a", 2), ("th_b", 1)]
    for number in range(len(found)):
        path = f"/v1/threads?after={found[number]['thread']}&limit=1"
        assert (await tenants.served.json("GET", path, token=token))["data"] == found[number + 1 : number + 2]
    everything = (await tenants.served.json("GET", "/v1/records?actor=did:sync:user:a", token=token))["data"]
    whole = (await tenants.served.json("GET", "/v1/records?actor=did:sync:user:a"))["data"]
    arrived = [item["id"] for item in whole if item["body"]["namespace"] in ("acme", "other")]
    assert [item["id"] for item in everything] == arrived
    assert {item["body"]["namespace"] for item in everything} == {"acme", "other"}


async def test_a_record_of_another_tenant_is_unknown(tenants: Tenants) -> None:
    answers = [
        await tenants.served.fetch("GET", f"/v1/records/{id_}", token=tenants.token)
        for id_ in (*(item["id"] for item in tenants.theirs), "0" * 64, "none")
    ]
    assert {(reply.status, reply.body) for reply in answers} == {(404, answers[0].body)}
    assert (await tenants.get(f"/v1/records/{tenants.own[0]['id']}"))["id"] == tenants.own[0]["id"]


@pytest.mark.parametrize("path", [
    "/v1/records", f"/v1/records?thread={MIXED}", "/v1/records?actor=did:sync:user:a", f"/v1/threads/{MIXED}/records",
    "/v1/records?since=0&limit=10000", f"/v1/threads/{MIXED}/records?limit=2",
])  # fmt: skip
async def test_lists_hold_the_own_records_alone(tenants: Tenants, path: str) -> None:
    assert (await tenants.get(path))["data"] == tenants.own


async def test_threads_are_those_with_own_records_and_counted_by_them(tenants: Tenants) -> None:
    [found] = (await tenants.get("/v1/threads"))["data"]
    assert (found["thread"], found["records"]) == (MIXED, 2)
    everything = (await tenants.served.json("GET", "/v1/threads"))["data"]
    assert [(item["thread"], item["records"]) for item in everything] == [(MIXED, 6), (THEIRS, 1)]
    await emit(tenants.served, "other", MIXED, 5)
    assert (await tenants.get("/v1/threads"))["data"] == [found], (
        "another tenant's record moves nothing, no time either"
    )


async def test_a_state_is_that_of_the_own_records(tenants: Tenants) -> None:
    found = await tenants.get(f"/v1/threads/{MIXED}/state")
    assert (found["records"], found["sequence"]) == (2, tenants.own[-1]["sequence"])
    assert found["value"]["n"] == 3


async def test_a_snapshot_holds_and_counts_the_own_records(tenants: Tenants) -> None:
    reply = await tenants.served.fetch("GET", f"/v1/threads/{MIXED}/snapshot", token=tenants.token)
    head, *lines = [json.loads(line) for line in reply.body.splitlines()]
    assert head["count"] == 2
    assert [line["id"] for line in lines] == [item["id"] for item in tenants.own]


async def test_a_watch_tells_of_no_hidden_record_and_counts_none(tenants: Tenants) -> None:
    """Heartbeats come at once, and their ids stand at the last own record, whatever others write meanwhile."""
    object.__setattr__(tenants.served.services, "limits", Limits(heartbeat_s=0.01))
    last = tenants.own[-1]["sequence"]
    async with watching(tenants.served, thread=MIXED, token=tenants.token) as stream:
        for n in range(3):
            beat = await anext(stream)
            assert (beat.name, beat.id, json.loads(beat.data)) == ("heartbeat", str(last), {"sequence": last})
            await emit(tenants.served, "other", MIXED, 10 + n)
        fresh = await tenants.get(f"/v1/records/{(await emit(tenants.served, 'acme', MIXED, 20))['id']}")
        while (event := await anext(stream)).name == "heartbeat":
            assert event.id == str(last)
        assert (event.name, event.id) == ("record.created", str(fresh["sequence"]))


@pytest.mark.parametrize("thread", [THEIRS, NOBODYS])
@pytest.mark.parametrize("place", [None, 0, 1])
async def test_watching_what_is_hidden_is_watching_nothing(tenants: Tenants, thread: str, place: int | None) -> None:
    last_id = "" if place is None else str(tenants.own[place]["sequence"])
    async with watching(tenants.served, thread=thread, token=tenants.token, last_id=last_id) as stream:
        beat = await anext(stream)
        assert (beat.name, beat.id) == ("heartbeat", "0")


async def test_where_the_log_ends_cannot_be_found_out_by_resuming(tenants: Tenants) -> None:
    """A position beyond the own records of the thread is another log's, wherever the log ends: all is sent again."""
    fresh = await emit(tenants.served, "acme", THEIRS, 9)
    last_id = str((await tenants.get(f"/v1/records/{fresh['id']}"))["sequence"])
    async with watching(tenants.served, thread=MIXED, token=tenants.token, last_id=last_id) as stream:
        beat, record = await anext(stream), await anext(stream)
    assert (beat.id, record.id) == ("0", str(tenants.own[0]["sequence"]))


async def test_the_registry_lists_the_own_namespaces(tenants: Tenants) -> None:
    [found] = (await tenants.get("/v1/namespaces"))["data"]
    assert (found["name"], found["records"]) == ("acme", 2)


@pytest.mark.parametrize("ns", ["other", "acme/web", "nowhere", "default"])
async def test_a_write_elsewhere_is_refused_alike_whether_that_exists(tenants: Tenants, ns: str) -> None:
    value = {"act": "KNOW", "actor": "did:sync:user:a", "thread": "th", "body": {"namespace": ns}}
    reply = await tenants.served.fetch("POST", "/v1/records", value, token=tenants.token)
    body = json.loads(reply.body)
    assert (reply.status, body["code"]) == (403, "SCOPE_FORBIDDEN")
    assert body["message"] == f"the token does not reach namespace {ns}"


async def test_a_restore_of_what_others_hold_is_refused_alike(tenants: Tenants) -> None:
    """Whether the namespace exists here, and whether its records do, is not told."""
    foreign = (await tenants.served.fetch("GET", f"/v1/threads/{THEIRS}/snapshot")).body
    args: dict[str, Any] = {"token": tenants.token, "headers": NDJSON}
    before = await tenants.served.json("POST", "/v1/threads/restore", foreign, 403, **args)
    assert before["code"] == "SCOPE_FORBIDDEN"
    await tenants.served.json("POST", "/v1/namespaces/other/archive", {})
    assert await tenants.served.json("POST", "/v1/threads/restore", foreign, 403, **args) == before


@pytest.mark.parametrize("path", [
    "/v1/status", "/v1/identity", "/v1/config", "/v1/tokens", "/v1/aitl", "/v1/federation/pairs", "/v1/snapshot",
    "/v1/store/stats", "/v1/doctor", "/v1/sync/changes", "/v1/sync/chains?did=x", "/v1/config/permission-rules",
    "/v1/config/fold-rules",
])  # fmt: skip
async def test_what_tells_of_the_whole_daemon_needs_another_scope(tenants: Tenants, path: str) -> None:
    assert await tenants.served.refused("GET", path, token=tenants.token) == (403, "SCOPE_FORBIDDEN")
    health = await tenants.served.json("GET", "/health", token=tenants.token)
    assert not {"records", "store_bytes", "pid"} & health.keys()


@pytest.mark.parametrize(("more", "reads"), [({}, "default"), ({"namespaces": ["acme"]}, "acme")])
async def test_a_federation_token_minted_by_hand_reads_its_own_namespaces(
    tenants: Tenants, more: dict[str, Any], reads: str
) -> None:
    """And `default` without any; a namespace that it does not reach is as empty as one that does not exist."""
    token = await tenants.served.mint("federation:sync", "federation:subscribe", **more)
    everything = [*tenants.own, *tenants.theirs]
    wanted = {item["id"] for item in everything if item["body"]["namespace"] == reads}
    page = await tenants.served.json("GET", "/v1/sync/changes", token=token)
    assert {item["id"] for item in page["records"]} == wanted
    ids = [item["id"] for item in everything]
    fetched = await tenants.served.json("POST", "/v1/sync/records", {"ids": ids}, token=token)
    assert {item["id"] for item in fetched["records"]} == wanted
    pages = [
        await tenants.served.json("GET", f"/v1/sync/changes?target_namespace={name}", token=token)
        for name in ("other", "nowhere")
    ]
    assert [page["records"] for page in pages] == [[], []]
    assert pages[0].keys() == pages[1].keys()


async def test_a_tenant_that_fills_the_queue_of_writes_shuts_nobody_out(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the writer is held up in a commit, one client queues until it is refused; another one is not."""
    served, writer, limits = tenants.served, tenants.served.services.writer, tenants.served.services.limits
    began, going_on, queued = threading.Event(), threading.Event(), []
    submit = writer.submit_posted

    def held_up(commit: Commit) -> None:
        began.set()
        going_on.wait(DEADLINE_S)

    def counted(*args: Any) -> None:
        submit(*args)
        queued.append(args)

    stop = writer.listen(held_up)
    first = asyncio.create_task(emit(served, "default", MIXED, 5))
    try:
        await until(began.is_set)
        bulk = writer.submit([Emit({}, principal="bulk")] * limits.waiting_writes)
        with pytest.raises(SplError):
            writer.submit([Emit({}, principal="bulk")])
        monkeypatch.setattr(writer, "submit_posted", counted)
        body = {"act": "KNOW", "actor": "did:sync:user:a", "thread": MIXED, "body": {"namespace": "acme"}}
        asked = asyncio.create_task(served.json("POST", "/v1/records", body, token=tenants.token))
        await until(lambda: queued or asked.done())
    finally:
        stop()
        going_on.set()
    assert (await asked)["body"] == {"namespace": "acme"}
    assert (await first)["body"]["n"] == 5
    assert isinstance(bulk.exception(DEADLINE_S), SplError)
