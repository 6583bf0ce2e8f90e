"""Every public method of the installed Python SDK, called against a real daemon and held against the manual's table.

A method that a new release adds stands in no row, and one that it changes answers otherwise than its row says: both are
red here, and the manual is corrected by them.
"""

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest
import syncropel
from syncropel import Client, ClientMembership, Identity, Ref
from syncropel.hashing import hash_levels, record_id

from spl.core import canon
from spl.core.record import record as core_record
from tests.e2e.conftest import House
from tests.e2e.harness import Instance
from tests.pages import MANUAL
from tests.waiting import DEADLINE_S

ACTOR: Final = "did:sync:user:alice"
ODD: Final = "a\u2028b\u2029c\x85d"
"""Ends of lines to `str.splitlines`, by which the SDK reads a stream."""
WORKS, DISABLED, ABSENT, DEFECT, LOCAL = "works", "disabled", "not offered", "defect", "local"


@dataclass
class Program:
    """A program with the SDK; `thread` is one of its own."""

    client: Client
    daemon: Instance
    thread: str

    @property
    def members(self) -> ClientMembership:
        return ClientMembership(self.client._http)

    async def emit(self, n: int, kind: str = "garden.bed.note", **more: Any) -> Any:
        made = await self.client.emit(act="KNOW", kind=kind, body={"n": n}, thread=self.thread, **more)
        assert made.success, made.error
        return made

    async def emit_others(self, count: int) -> None:
        """Write records of another kind, in one request."""
        value = {"act": "KNOW", "actor": ACTOR, "thread": self.thread}
        lines = [json.dumps({**value, "body": {"n": n, "kind": "garden.bed.other"}}) for n in range(count)]
        headers = {"content-type": "application/x-ndjson"}
        answer = await self.client._http.post("/v1/records", content="\n".join(lines), headers=headers)
        assert answer.text.count('"object":"record"') == count, answer.text[:200]


Call = Callable[[Program], Awaitable[Any]]
CALLS: dict[str, Call] = {}


def calls(*names: str) -> Callable[[Call], Call]:
    """Register what a test does with methods."""

    def register(call: Call) -> Call:
        CALLS.update(dict.fromkeys(names, call))
        return call

    return register


def numbers(records: list[dict[str, Any]]) -> list[int]:
    return [item["body"]["n"] for item in records]


@calls("Client.health")
async def health(it: Program) -> None:
    assert (await it.client.health())["did"] == it.daemon.did


@calls("Client.emit", "record_id", "canonical_json", "canonical_value", "sha256_hex")
async def emit(it: Program) -> None:
    made = await it.client.emit(
        act="PUT", kind="music.catalog.track", body={"text": ODD, "x": 1.0}, thread=it.thread,
        refs=[Ref.music_track(isrc="US1")], parents=["b" * 64, "a" * 64],
    )  # fmt: skip
    assert (made.success, made.retried, made.thread) == (True, 0, it.thread), made.error
    [found] = await it.client.query_thread(it.thread)
    seven = {name: found[name] for name in core_record.HASHED}
    assert made.record_id == found["id"] == record_id(seven) == syncropel.sha256_hex(syncropel.canonical_json(seven))
    assert (found["clock"], found["body"]["_refs"]) == (made.clock, [{"kind": "@music.track", "id": "isrc:US1"}])
    assert syncropel.canonical_json(seven).encode() == canon.encode(seven)
    assert canon.encode(syncropel.canonical_value(seven["body"])) == canon.encode(seven["body"])


@calls("Client.emit_sync")
async def emit_sync(it: Program) -> None:
    def blocking() -> Any:
        return it.client.emit_sync(act="KNOW", kind="garden.bed.note", body={"n": 1}, thread=it.thread)

    assert (await asyncio.to_thread(blocking)).success
    assert numbers(await it.client.query_thread(it.thread)) == [1]


@calls("Client.intend", "Client.fulfill")
async def intend_and_fulfill(it: Program) -> None:
    opened = await it.client.intend("ship it")
    closed = await it.client.fulfill(opened.thread, "shipped", fulfills=opened.record_id)
    assert opened.success
    assert closed.success
    first, last = await it.client.query_thread(opened.thread)
    assert (first["act"], last["act"], last["body"]["fulfills"]) == ("INTEND", "KNOW", opened.record_id)


@calls(
    "Client.emit_correction", "Client.emit_erasure", "Client.emit_alias", "Client.emit_scope_transfer",
    "Client.emit_scope_claim",
)  # fmt: skip
async def reserved_kinds(it: Program) -> None:
    """They are stored, and nothing else comes of them."""
    made, client, more = await it.emit(1), it.client, {"reason": "why", "thread": it.thread}
    done = [
        await client.emit_correction(corrects=[made.record_id], revised_fields={"n": 2}, **more),
        await client.emit_erasure(erases=[made.record_id], **more),
        await client.emit_alias(old_kind="garden.bed.note", new_kind="garden.bed.line", **more),
        await client.emit_scope_transfer(scope="garden", from_publisher="did:a:b", to_publisher="did:a:c", **more),
        await client.emit_scope_claim(scope="garden", governance_policy={"type": "x"}, thread=it.thread),
    ]
    assert all(each.success for each in done), done
    found = await client.query_thread(it.thread)
    assert [item["body"]["kind"] for item in found[1:]] == [
        "core.correction", "core.erasure", "core.alias", "core.scope_transfer", "core.scope_claim",
    ]  # fmt: skip
    assert found[0]["body"]["n"] == 1


@calls("Client.query_thread")
async def query_thread(it: Program) -> None:
    await it.emit_others(98)
    made = [await it.emit(n) for n in range(98, 105)]
    assert numbers(await it.client.query_thread(it.thread)) == list(range(5, 105))
    assert numbers(await it.client.query_thread(it.thread, since=made[3].clock)) == [102, 103, 104]
    assert numbers(await it.client.query_thread(it.thread, since=0, limit=2)) == [0, 1]
    assert await it.client.query_thread("nothing.here") == []


@calls("Client.query")
async def query(it: Program) -> None:
    await it.emit_others(110)
    made = [await it.emit(n) for n in range(5)]
    client, kind = it.client, "garden.bed.note"
    assert numbers(await client.query(kind=kind)) == [0, 1, 2, 3, 4], "behind a hundred others"
    assert numbers(await client.query(kind=kind, thread=it.thread, where={"body.n": 3})) == [3]
    assert numbers(await client.query(thread=it.thread, since=made[2].clock)) == [3, 4]
    assert len(await client.query(actor=ACTOR, limit=3)) == 3
    assert await client.query(actor="did:sync:user:nobody") == []


@calls("Client.rich_query")
async def rich_query(it: Program) -> None:
    made = [await it.emit(n) for n in range(6)]
    wanted = {"body.kind": "garden.bed.note", "$or": [{"body.n": {"$lte": 1}}, {"clock": {"$gt": made[3].clock}}]}
    found = await it.client.rich_query(
        filter=wanted, thread=it.thread, sort={"clock": -1}, limit=2, offset=1, explain=True
    )
    assert numbers(found["records"]) == [4, 1]
    assert found["plan"]["indexed"] == ["thread"]
    assert await it.client.rich_query(filter={"nonsense": 1}) == {"records": []}, "refused, which the SDK hides"


@calls("Client.search")
async def search(it: Program) -> str:
    found = await it.client.search("roses")
    assert (found["hits"], found["disabled"]) == ([], True)
    return DISABLED


@calls(
    "Client.subscribe", "Subscription.close", "Subscription.closed", "Subscription.cursor", "Subscription.thread",
    "Subscription.transport_name", "Subscription.wait_closed", "SseTransport.run",
)  # fmt: skip
async def subscribe(it: Program) -> None:
    await it.client.emit(act="KNOW", kind="garden.bed.note", body={"n": 0, "text": ODD}, thread=it.thread)
    got: list[dict[str, Any]] = []
    news, errors = asyncio.Event(), list[object]()

    def took(item: dict[str, Any]) -> None:
        got.append(item)
        news.set()

    open_ = it.client.subscribe(it.thread, took, since_clock=0, on_error=errors.append)
    for n in range(3):
        async with asyncio.timeout(DEADLINE_S):
            while len(got) <= n:
                await news.wait()
                news.clear()
        await it.emit(n + 1)
    assert (numbers(got)[:3], got[0]["body"]["text"]) == ([0, 1, 2], ODD)
    assert not errors
    assert (open_.thread, open_.transport_name, open_.closed) == (it.thread, "sse", False)
    assert open_.cursor
    open_.close()
    await open_.wait_closed(DEADLINE_S)
    assert open_.closed


@calls("Client.infer", "build_infer_input", "build_infer_query_body", "find_infer_result", "random_thread_id")
async def infer(it: Program) -> None:
    """The question is a record, and so is the answer that somebody else gives."""
    request = {"input": {"goal": "sum up"}, "responders": [{"kind": "llm"}], "fold": {"function": "first"}}
    assert syncropel.build_infer_query_body(request)["input"] == syncropel.build_infer_input(request["input"])
    thread = syncropel.random_thread_id()
    options = syncropel.InferOptions(thread=thread, wait=False)
    asked = await it.client.infer(request, options)
    assert (await it.client.query_thread(thread))[0]["id"] == asked.correlation_id
    body = {"answer": "done", "fulfills": asked.correlation_id}
    await it.client.emit(act="KNOW", kind="infer.result.v1", body=body, thread=thread)
    found = syncropel.find_infer_result(await it.client.query_thread(thread), asked.correlation_id)
    assert found is not None
    assert found.answer == "done"


@calls("Client.close", "Client.aclose")
async def close(it: Program) -> None:
    """A client that has a stream open is closed, too."""
    it.client.subscribe(it.thread, lambda item: None)
    await it.client.close()
    await it.client.aclose()


@calls("Client.data")
async def data(it: Program) -> None:
    assert isinstance(it.client.data, syncropel.ClientData)


@calls("Client.membership")
async def membership(it: Program) -> str:
    """Its class is imported for type checking alone, so this fails before anything is sent."""
    with pytest.raises(NameError):
        _ = it.client.membership
    return DEFECT


@calls("Identity.static", "Record.to_api_dict", "Record.to_dict", "Record.to_dict_7field")
async def records(it: Program) -> None:
    """A record built by hand is taken as it is."""
    made = syncropel.Record(act="KNOW", actor=ACTOR, body={"kind": "a.b.c", "n": 1}, clock=1, thread=it.thread)
    answer = await it.client._http.post("/v1/records", json=made.to_api_dict())
    assert answer.json()["id"] == record_id(made, fields=7)
    assert made.to_dict().items() <= made.to_dict_7field().items() <= made.to_api_dict().items()
    assert it.client.identity == Identity.static(ACTOR)


@calls("Identity.key", "Identity.federated")
async def identities(it: Program) -> str:
    for make in (Identity.key, Identity.federated):
        with pytest.raises(NotImplementedError):
            make()
    return DEFECT


@calls("SyncropelDataError.is_conflict")
async def conflict(it: Program) -> None:
    with pytest.raises(syncropel.SyncropelDataError) as found:
        await it.client.data.usage()
    assert found.value.is_conflict is False


REFS: Final[dict[str, dict[str, str]]] = {
    "cal_event": {"uid": "a"}, "code_file": {"path": "a", "repo": "b/c"}, "core_thread": {"id": "th"},
    "doc_text": {"url": "https://a.example"}, "fin_transaction": {"stripe": "a"}, "media_photo": {"sha256": "a"},
    "media_video": {"youtube": "a"}, "music_track": {"isrc": "a"}, "ops_incident": {"linear": "a"},
    "research_paper": {"doi": "a"}, "social_person": {"did": "did:a:b"},
}  # fmt: skip


@calls(*(f"Ref.{name}" for name in REFS), "hash_levels", "validate_kind", "validate_scope")
async def refs(it: Program) -> None:
    made = [getattr(Ref, name)(**arguments) for name, arguments in REFS.items()]
    body = {"n": 1, "_refs": made}
    await it.client.emit(act="KNOW", kind="garden.bed.note", body=body, thread=it.thread)
    found = await it.client.rich_query(filter={"body._refs.id": made[0]["id"]}, thread=it.thread)
    assert found["records"][0]["body"]["_refs"] == made
    assert hash_levels("KNOW", body).l3
    with pytest.raises(syncropel.SyncropelKindError):
        syncropel.validate_kind("note")
    with pytest.raises(syncropel.SyncropelKindError):
        syncropel.validate_scope("Not A Scope")


def absent(name: str, ask: Callable[[Program], Awaitable[Any]]) -> None:
    """Register a method whose route this daemon has not: it raises, so no program goes on as if it had worked."""

    async def refused(it: Program) -> str:
        fault = syncropel.SyncropelDataError if "Data" in name else syncropel.SyncropelMembershipError
        with pytest.raises(fault) as found:
            await ask(it)
        assert (found.value.status, found.value.code) == (404, "NOT_FOUND")
        return ABSENT

    CALLS[name] = refused


for _name, _ask in {
    "capabilities": lambda it: it.client.data.capabilities(), "list": lambda it: it.client.data.list("/files"),
    "materials": lambda it: it.client.data.materials(q="a"), "mkdir": lambda it: it.client.data.mkdir("/files/a"),
    "mv": lambda it: it.client.data.mv("/files/a", "/files/b"), "node": lambda it: it.client.data.node("/files/a"),
    "provenance": lambda it: it.client.data.provenance(), "publish": lambda it: it.client.data.publish("/files/a"),
    "read": lambda it: it.client.data.read("/files/a"), "read_text": lambda it: it.client.data.read_text("/files/a"),
    "read_url": lambda it: it.client.data.read_url("/files/a"), "rm": lambda it: it.client.data.rm("/files/a"),
    "stat": lambda it: it.client.data.stat("/files/a"), "usage": lambda it: it.client.data.usage(),
    "write": lambda it: it.client.data.write(path="/files/a", data="text"),
}.items():  # fmt: skip
    absent(f"ClientData.{_name}", _ask)
for _name, _ask in {
    "adopt": lambda it: it.members.adopt("a"), "issue_invite": lambda it: it.members.issue_invite(),
    "list_members": lambda it: it.members.list_members(),
    "mint_agent_grant": lambda it: it.members.mint_agent_grant("a", aud="b"),
    "redeem_invite": lambda it: it.members.redeem_invite("a", holder_pubkey="b"),
    "revoke_agent_grant": lambda it: it.members.revoke_agent_grant("a", "b"),
    "revoke_member": lambda it: it.members.revoke_member("a"),
}.items():  # fmt: skip
    absent(f"ClientMembership.{_name}", _ask)


def public() -> list[str]:
    """Return what the installed SDK offers: functions, and methods and properties of its classes."""
    found = []
    for name in syncropel.__all__:
        value = getattr(syncropel, name)
        if inspect.isclass(value):
            members = [member for member in vars(value).items() if not member[0].startswith("_")]
            kinds = (staticmethod, classmethod, property)
            found += [f"{name}.{each}" for each, it in members if callable(it) or isinstance(it, kinds)]
        elif callable(value):
            found.append(name)
    return sorted(found)


def table() -> dict[str, str]:
    """Return the manual's table: the answer for each name."""
    rows, found = re.findall(r"^\| (`.*?) \| ([a-z ]+) \|", (MANUAL / "programs.md").read_text(), re.MULTILINE), {}
    for names, answer in rows:
        for name in re.findall(r"`([\w.]+)`", names):
            assert name not in found, f"{name} stands twice in the manual"
            found[name] = answer
    return found


@pytest.fixture(scope="module")
def daemon(house: House) -> Instance:
    """One daemon for all methods."""
    return house("alice", "").start()


def test_the_manual_and_the_calls_name_every_method() -> None:
    assert public() == sorted(CALLS), "a method of the SDK without a call here, or a call without a method"
    assert sorted(table()) == public(), "a method of the SDK without a row in spl/manual/programs.md"


GROUPS: Final = [[name for name in CALLS if CALLS[name] is call] for call in dict.fromkeys(CALLS.values())]


@pytest.mark.parametrize("names", GROUPS, ids=[group[0] for group in GROUPS])
async def test_methods_answer_as_the_manual_says(daemon: Instance, names: list[str]) -> None:
    identity, thread = Identity.static(ACTOR), f"th_{names[0].replace('.', '_').lower()}"
    async with Client(endpoint=daemon.url, identity=identity, api_key=daemon.token, max_retries=0) as client:
        answer = await CALLS[names[0]](Program(client, daemon, thread))
    rows = table()
    for name in names:
        served = name.startswith(("Client.", "Subscription.", "SseTransport."))
        assert rows[name] == (answer or (WORKS if served else LOCAL)), name
