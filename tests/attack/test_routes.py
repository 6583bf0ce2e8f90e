"""The route matrix: every route against every kind of principal, and a bound token's namespace against every route.

`routes.py` has the expectation.  A request that is allowed is made harmless by its parameters and body, which name
nothing that exists; so "allowed" means any answer but 401 and 403.
"""

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from spl.api import table
from tests.attack.probes import dial, head, instances, paired, until
from tests.attack.routes import ANYONE, BOUND, PEER, ROUTES, SCOPES, SOCKET, UNBOUND, Row
from tests.e2e.conftest import AUTO
from tests.e2e.harness import DEADLINE_S, Answer, Instance
from tests.engine.nkeys import seed_text
from tests.waiting import eventually

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
TENANT: Final = ("records:read", "records:write")
BEAT: Final = b"event: heartbeat"
CURSOR: Final = re.compile(r'(?<="next_cursor":")[^"]+')
SIGNATURE: Final = re.compile(r'(?<="value":")[^"]+(?="},"thread")')
"""Of a snapshot's header, in which the thread's name counts."""
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z|\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Names:
    """What a request names: of the token's own namespace, of another one, or of one that does not exist."""

    word: str
    record_id: str = ""

    def fill(self, text: str) -> str:
        """Return a template with the names in it; all three kinds give texts of the same length."""
        word = self.word
        named = {"thread": f"th_{word}_1", "actor": f"did:sync:user:{word}", "kind": f"{word}.note", "ns": word}
        for name, value in {**named, "id": self.record_id}.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def masked(self, answer: Answer) -> tuple[int, dict[str, str], str]:
        """Return an answer without what it repeats of the request, time and signature, and of cursors the length."""
        headers = {name: TIME.sub("T", value) for name, value in answer.headers.items() if name != "date"}
        text = TIME.sub("T", CURSOR.sub(lambda found: str(len(found[0])), answer.body.decode()))
        text = SIGNATURE.sub("S", text)
        return answer.status, headers, text.replace(self.record_id or "\0", "ID").replace(self.word, "WORD")


@dataclass(frozen=True)
class House:
    """The daemon under attack, with records in two namespaces and a pair."""

    served: Instance
    pair_id: str
    own: Names
    other: Names
    unknown: Names

    def mint(self, *scopes: str, **more: object) -> str:
        """Return a new token; fail when the daemon does not know a scope."""
        answer = self.served.api("POST", "/v1/tokens", {"scopes": list(scopes), **more})
        assert answer.status == 201, f"no token with {scopes} {more}: {answer.body!r}"
        return str(answer.json["token"])

    def ask(self, row: Row, token: str) -> tuple[int, str]:
        """Return status and error code of a harmless request; of an allowed one only the head is read."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        body = None
        if row.method == "POST":
            headers["content-type"] = NDJSON if row.path.endswith("/restore") else JSON
            # If no scope opens the route the body is a good one, so that nothing but the credential can be refused.
            body = b"{}" if row.opens in (SOCKET, PEER) else b'{"nonsense":1}'
        connection = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=DEADLINE_S)
        try:
            connection.request(row.method, row.target(), body, headers)
            answer = connection.getresponse()
            code = json.loads(answer.read())["code"] if answer.status in (401, 403) else ""
            return answer.status, code
        finally:
            connection.close()

    def begin(self, target: str, token: str) -> tuple[int, bytes]:
        """Return the status of a GET, and its answer or, of a stream without end, the first piece."""
        connection = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", target, headers={"authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            endless = answer.getheader("content-type", "").startswith("text/event-stream")
            return answer.status, answer.read1() if endless else answer.read()
        finally:
            connection.close()

    def request(self, method: str, target: str, token: str, body: str = "", media: str = JSON) -> Answer:
        """Return the whole answer to a request under a token."""
        headers = {"authorization": f"Bearer {token}", **({"content-type": media} if body else {})}
        return self.served.request(method, target, body.encode() or None, headers)

    def write(self, word: str, count: int = 1) -> list[str]:
        """Write records into the namespace of a word, as its operator, and return their ids."""
        names = Names(word)
        body = json.dumps({"namespace": word, "kind": names.fill("{kind}"), "text": "secret of " + word})
        lines = "\n".join(
            names.fill('{"act":"KNOW","actor":"{actor}","thread":"{thread}","body":BODY}').replace("BODY", body)
            for _ in range(count)
        )
        answer = self.request("POST", "/v1/records", self.served.token, lines, NDJSON)
        return [json.loads(line)["id"] for line in answer.body.splitlines()]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One daemon for the whole matrix, with a heartbeat a second; its peer is another daemon."""
    with instances(tmp_path_factory.mktemp("routes")) as make:
        served = make("served", "[limits]\nheartbeat_s = 1\n").start()
        pair_id = paired(served, make("bob", AUTO).start())
        for word in ("acme", "bolt"):
            served.run("namespace", "create", word)
        made = House(served, pair_id, Names("acme"), Names("bolt"), Names("cork"))
        [own, *_], [other, *_] = made.write("acme", 2), made.write("bolt", 2)
        unknown = other[::-1] if other != other[::-1] else other[1:] + other[:1]
        yield House(served, pair_id, Names("acme", own), Names("bolt", other), Names("cork", unknown))


# -- the table is the daemon's


def test_the_table_has_every_route_of_the_daemon() -> None:
    """A route added to the product without a line in the table is found by the product's own table."""
    declared = [(route.method, route.path) for route in table.ROUTES]
    ours = [(row.method, row.path) for row in ROUTES]
    assert len(set(ours)) == len(ours), "a route stands twice in tests/attack/routes.py"
    assert sorted(set(declared) - set(ours)) == [], "tests/attack/routes.py lacks routes of the daemon"
    assert sorted(set(ours) - set(declared)) == [], "tests/attack/routes.py has routes that the daemon lacks"


def test_the_daemon_answers_the_methods_of_the_table(house: House) -> None:
    """OPTIONS on each path allows exactly the methods that the table has for it."""
    differ = []
    for path in sorted({row.path for row in ROUTES}):
        target = next(row.target() for row in ROUTES if row.path == path)
        answer = house.served.request("OPTIONS", target)
        allowed = {name.strip() for name in answer.headers.get("allow", "").split(",")} - {"HEAD", "OPTIONS"}
        if (answer.status, allowed) != (204, {row.method for row in ROUTES if row.path == path}):
            differ.append(f"{path}: {answer.status} {sorted(allowed)}")
    assert not differ, "\n".join(differ)


# -- who is let in


def assert_as_the_table(house: House, token: str, scopes: frozenset[str], refusal: tuple[int, str]) -> None:
    """Fail with the routes that answer a principal otherwise than the table says."""
    found = []
    for row in ROUTES:
        status, code = house.ask(row, token)
        allowed = row.allows(scopes)
        if allowed and status in (401, 403):
            found.append(f"{row.method} {row.path}: refused with {status} {code}, though the table allows it")
        elif not allowed and (status, code) != refusal:
            found.append(f"{row.method} {row.path}: answered {status} {code}, expected {refusal}")
    assert not found, "\n".join(found)


def test_nobody(house: House) -> None:
    """Without a credential only the open routes answer; all others say the same 401."""
    assert_as_the_table(house, "", frozenset(), (401, "AUTH_REQUIRED"))


def test_a_peer_without_its_proof(house: House) -> None:
    """A pair's token alone is worth as much as none."""
    token = house.mint("federation:sync", "federation:subscribe", pair=house.pair_id)
    assert_as_the_table(house, token, frozenset(), (401, "AUTH_INVALID"))


def test_a_tenant(house: House) -> None:
    """A program's token for one namespace reaches the routes of records and no others."""
    token = house.mint(*TENANT, namespaces=["acme"])
    assert_as_the_table(house, token, frozenset(TENANT), (403, "SCOPE_FORBIDDEN"))


@pytest.mark.parametrize("scope", [*SCOPES, "config:write+aitl:approve"])
def test_a_scope(house: House, scope: str) -> None:
    """A token for the whole daemon opens the routes of its scope, each other one refuses it."""
    scopes = scope.split("+")
    assert_as_the_table(house, house.mint(*scopes), frozenset(scopes), (403, "SCOPE_FORBIDDEN"))


@pytest.mark.parametrize("scope", BOUND)
def test_a_bound_scope(house: House, scope: str) -> None:
    """Binding a token to a namespace opens no route that its scope does not open."""
    token = house.mint(scope, namespaces=["acme"])
    assert_as_the_table(house, token, frozenset({scope}), (403, "SCOPE_FORBIDDEN"))


def test_a_viewer_sees_no_secret(house: House) -> None:
    """status:read shows pairs and findings; neither a token's text nor its hash, nor a key, is among them."""
    token = house.mint("status:read")
    for row in ROUTES:
        if "status:read" in row.opens.split(","):
            status, body = house.begin(row.path.replace("{ref}", house.pair_id), token)
            assert status == (404 if "{name}" in row.path else 200), f"{row.path}: {body!r}"
            found = re.search(r'spl_\w+_sa_|"(hash|secret|token|seed)":', body.decode())
            assert not found, f"{row.path} shows {found}"


def test_who_may_only_watch_is_shown_no_path_of_this_machine(house: House) -> None:
    """Not that of the home, not those that sinks name, and not what their programs print."""
    folder = str(house.served.home.parent)
    creds = house.served.home.parent / "user.creds"
    creds.write_text(f"{seed_text(bytes(32))}\n")
    creds.chmod(0o600)
    house.served.run("sink", "add", "nats://127.0.0.1:1", "--namespace", "acme", "--name", "far", "--creds", str(creds))
    creds.unlink()
    program = house.served.home.parent / "put"
    program.write_text(f"#!/bin/sh\necho {folder}/secret\nexit 3\n")
    program.chmod(0o755)
    house.served.run("sink", "add", f"exec:{program} --password=x", "--namespace", "acme", "--name", "near")
    house.write("acme")
    viewer = house.mint("status:read", "metrics:read")

    def failing() -> bool:
        rows = house.request("GET", "/v1/sinks", viewer).json["data"]
        return all(row["finding"] for row in rows) and "ended with status 3" in json.dumps(rows)

    eventually(failing, "both sinks to fail")
    seen = house.request("GET", "/v1/sinks", house.served.token).body.decode()
    assert f"{folder}/secret" in seen, "an administrator is shown what the program says"
    for row in ROUTES:
        if row.method == "GET" and row.allows(frozenset({"status:read", "metrics:read"})):
            path = row.path.replace("{ref}", house.pair_id).replace("{name}", "far").replace("{file}", "page.js")
            status, body = house.begin(path, viewer)
            assert status in (200, 308, 400), f"{row.path}: {status} {body!r}"
            assert folder not in body.decode(), row.path
            assert "password" not in body.decode(), row.path


# -- what a namespace binds


@pytest.mark.parametrize("scope", UNBOUND)
def test_a_scope_about_the_whole_daemon_cannot_be_bound(house: House, scope: str) -> None:
    """Such a token would reach what its namespace does not hold, so it is not minted; alone or beside others."""
    before = len(house.served.api("GET", "/v1/tokens").json["data"])
    done = house.served.run("token", "mint", "--scopes", scope, "--namespace", "acme", code=None)
    assert done.code != 0, f"a token for {scope} was minted that is bound to a namespace"
    assert "[token-scope-bound]" in done.err, done.err
    for scopes in ([scope], ["records:read", scope], [scope, "federation:sync"]):
        answer = house.served.api("POST", "/v1/tokens", {"scopes": scopes, "namespaces": ["acme"]})
        assert (answer.status, answer.code) == (400, "TOKEN_SCOPE_BOUND"), f"{scopes}: {answer.body!r}"
        assert scope in answer.json["message"], answer.body
    assert len(house.served.api("GET", "/v1/tokens").json["data"]) == before


@pytest.mark.parametrize("scope", UNBOUND)
def test_a_scope_about_the_whole_daemon_is_not_bound_unasked(house: House, scope: str) -> None:
    """A token that reaches the whole daemon does not say that it is bound to `default`."""
    answer = house.served.api("POST", "/v1/tokens", {"scopes": [scope]})
    assert answer.status == 201, answer.body
    assert answer.json["namespaces"] == []


READS: Final = {
    "GET /v1/records?thread={thread}": "GET /v1/records",
    "GET /v1/records?actor={actor}": "GET /v1/records",
    "GET /v1/records?kind={kind}": "GET /v1/records",
    "GET /v1/records?thread={thread}&actor={actor}&kind={kind}&since=0&limit=1": "GET /v1/records",
    "GET /v1/records/{id}": "GET /v1/records/{id}",
    "GET /v1/threads?after={thread}": "GET /v1/threads",
    "GET /v1/threads/{thread}/records": "GET /v1/threads/{thread}/records",
    "GET /v1/threads/{thread}/records?since=0&limit=1": "GET /v1/threads/{thread}/records",
    "GET /v1/threads/{thread}/records?kind={kind}": "GET /v1/threads/{thread}/records",
    "GET /v1/records?kind={kind}&since=0&limit=1": "GET /v1/records",
    "GET /v1/threads/{thread}/state": "GET /v1/threads/{thread}/state",
    "GET /v1/threads/{thread}/snapshot": "GET /v1/threads/{thread}/snapshot",
    "GET /v1/namespaces/{ns}": "GET /v1/namespaces/{name}",
}
"""Target with names in it -> its route; a bound reader asks for each."""

RECORD: Final = '{"act":"KNOW","actor":"{actor}","thread":"{thread}","body":{"namespace":"{ns}","n":1}}'
WRITES: Final = {"one": (RECORD, JSON), "many": (RECORD + "\n" + RECORD.replace('"n":1', '"n":2'), NDJSON)}

SYNCS: Final = {
    "GET /v1/sync/changes?target_namespace={ns}": "",
    "GET /v1/sync/changes?thread={thread}": "",
    "GET /v1/sync/changes?target_namespace={ns}&thread={thread}&resync=1": "",
    "POST /v1/sync/records": '{"ids":["{id}"]}',
}
QUERIES: Final = (
    '{"thread":"{thread}"}',
    '{"actor":"{actor}"}',
    '{"namespace":"{ns}"}',
    '{"body.kind":"{kind}"}',
    '{"id":"{id}"}',
    '{"body.text":"secret of {ns}"}',
    '{"$or":[{"thread":"{thread}"},{"body.kind":{"$in":["{kind}"]}}]}',
    '{"$and":[{"clock":{"$gte":0}},{"body.namespace":{"$eq":"{ns}"}}]}',
    '{"$not":{"body.namespace":{"$ne":"{ns}"}}}',
    '{"namespace":{"$in":["{ns}"]}}',
)
"""Filters of a query; each names something of the token's own namespace, of another one, or what is not there."""
LISTS: Final = (
    "/v1/records?limit=1000", "/v1/threads?limit=1000", "/v1/namespaces", "/v1/records?kind=acme.note&limit=1",
    "/v1/records?actor=did:sync:user:acme&since=0&limit=1", "/v1/threads/th_acme_1/records?limit=1",
)  # fmt: skip


def test_every_bound_route_is_tried() -> None:
    """The cases below cover each route that a bound token reaches."""
    tried = {*READS.values(), *(target.partition("?")[0] for target in SYNCS), "POST /v1/records"}
    tried |= {"GET /v1/namespaces", "GET /v1/threads/{thread}/watch", "POST /v1/threads/restore"}
    tried |= {"POST /v1/records/query", "POST /v1/records/search"}  # a search answers everyone the same
    assert {f"{row.method} {row.path}" for row in ROUTES if row.bound == "own"} == tried
    assert all(row.bound in ("own", "-") for row in ROUTES)
    assert all(row.bound == "-" for row in ROUTES if row.opens in (ANYONE, PEER, SOCKET, *UNBOUND))


@pytest.mark.parametrize("case", READS)
def test_another_namespace_reads_like_one_that_is_not_there(house: House, case: str) -> None:
    """Own names are served; those of another tenant and unused names give equal bytes."""
    token = house.mint("records:read", namespaces=["acme"])
    method, target = case.split(" ")
    own, other, unknown = (
        house.request(method, names.fill(target), token) for names in (house.own, house.other, house.unknown)
    )
    assert own.status == 200, own.body
    assert house.other.masked(other) == house.unknown.masked(unknown)
    assert b"secret of bolt" not in other.body
    if "after=" not in target:
        assert house.own.masked(own) != house.other.masked(other), "own names read like unknown ones"


@pytest.mark.parametrize("case", QUERIES)
def test_another_namespace_is_queried_like_one_that_is_not_there(house: House, case: str) -> None:
    """Also in what the query cost, which its plan tells."""
    token = house.mint("records:read", namespaces=["acme"])
    own, other, unknown = (
        house.request("POST", "/v1/records/query", token, '{"filter":FILTER,"explain":true}'.replace("FILTER", text))
        for text in (names.fill(case) for names in (house.own, house.other, house.unknown))
    )
    assert b"secret of acme" in own.body
    assert house.other.masked(other) == house.unknown.masked(unknown)
    assert b'"data":[]' in other.body, other.body


@pytest.mark.parametrize("case", WRITES)
def test_another_namespace_is_written_like_one_that_is_not_there(house: House, case: str) -> None:
    """A bound writer is refused with equal bytes for both, and nothing is written."""
    token, (text, media) = house.mint("records:write", namespaces=["acme"]), WRITES[case]
    before = len(house.served.records("th_bolt_1"))
    other, unknown = (
        house.request("POST", "/v1/records", token, names.fill(text), media) for names in (house.other, house.unknown)
    )
    assert b"SCOPE_FORBIDDEN" in other.body, other.body
    assert house.other.masked(other) == house.unknown.masked(unknown)
    own = house.request("POST", "/v1/records", token, house.own.fill(text), media)
    assert own.status == 200, own.body
    assert b'"object":"error"' not in own.body.replace(b" ", b"")
    assert len(house.served.records("th_bolt_1")) == before


@pytest.mark.parametrize("case", SYNCS)
@pytest.mark.parametrize("bound", [("acme",), ()], ids=["bound", "unbound"])
def test_a_reader_of_changes_reads_its_own(house: House, bound: tuple[str, ...], case: str) -> None:
    """federation:sync by hand reads the namespaces that it names, else `default`; the others are not there."""
    token = house.mint("federation:sync", namespaces=list(bound))
    method, target = case.split(" ")
    own, other, unknown = (
        house.request(method, names.fill(target), token, names.fill(SYNCS[case]))
        for names in (house.own, house.other, house.unknown)
    )
    assert house.other.masked(other) == house.unknown.masked(unknown)
    assert b"secret of bolt" not in other.body
    assert (b"secret of acme" in own.body) is bool(bound), own.body[:400]


@pytest.mark.parametrize("path", LISTS)
def test_lists_do_not_change_with_what_others_do(house: House, path: str) -> None:
    """What another tenant writes shows in no list and no count; a new namespace neither."""
    token = house.mint("records:read", namespaces=["acme"])
    before = house.request("GET", path, token)
    assert b"acme" in before.body, before.body
    house.write("bolt", 3)
    house.served.run("namespace", "create", f"bolt/{LISTS.index(path)}")
    after = house.request("GET", path, token)
    assert after.body == before.body
    assert b"bolt" not in after.body


def test_a_watch_of_another_thread_is_a_watch_of_nothing(house: House) -> None:
    """Streams of another tenant's thread and of no thread carry the same bytes, also while the other one grows."""
    token = house.mint("records:read", namespaces=["acme"])
    streams = {}
    for names in (house.other, house.unknown, house.own):
        for ask in ("", "?since_clock=0"):
            sock = dial(house.served.port)
            target = names.fill("/v1/threads/{thread}/watch") + ask
            sock.sendall(head("GET", target, authorization=f"Bearer {token}", last_event_id="0"))
            streams[names.word, ask] = sock, until(sock, BEAT)
    house.write("bolt", 2)
    [new] = house.write("acme", 1)
    texts: dict[Any, bytes] = {}
    for key, (sock, begun) in streams.items():
        texts[key] = without_date(begun + (until(sock, new.encode()) if key[0] == "acme" else until(sock, BEAT, 2)))
        sock.close()
    for ask in ("", "?since_clock=0"):
        other, unknown = (texts[word, ask].split(BEAT)[:3] for word in ("bolt", "cork"))
        assert other == unknown
        assert b"secret" not in texts["bolt", ask]


def test_a_restore_tells_nothing_of_another_namespace(house: House) -> None:
    """A tenant that brings another's records is refused each, and none of them is called known."""
    snapshot = house.served.api("GET", "/v1/threads/th_bolt_1/snapshot").body.decode()
    token = house.mint(*TENANT, namespaces=["acme"])
    for query in ("?dry_run=1", ""):
        answer = house.request("POST", f"/v1/threads/restore{query}", token, snapshot, NDJSON)
        if answer.status != 403:
            assert answer.status == 200, answer.body
            assert (answer.json["known"], answer.json["new"]) == (0, 0), answer.body
            assert answer.json["refused"] == answer.json["records"]


def without_date(text: bytes) -> bytes:
    """Return an answer without its Date header."""
    return re.sub(rb"(?mi)^date: .*\r\n", b"", text)
