"""Bad input over HTTP: each refused with its code, nothing stored, and the daemon serves on."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance, Wire

GOOD = {"act": "KNOW", "actor": "did:sync:user:a", "thread": "th_a", "body": {"n": 1}}
MIB = 1024 * 1024


def a_record(**changes: object) -> bytes:
    """Return a valid record as JSON with the changes; `...` takes a field away."""
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not ...}).encode()


RECORDS = [
    # malformed
    (b"", 400, "BAD_JSON"), (b"{", 400, "BAD_JSON"), (b"\xff\xfe", 400, "BAD_JSON"), (b"{}x", 400, "BAD_JSON"),
    (a_record(body={"n": float("nan")}), 400, "BAD_JSON"), (a_record()[:-1] + b',"act":"DO"}', 400, "BAD_JSON"),
    (a_record(body={"t": "\ud800"}), 400, "BAD_JSON"), (b'{"body":{"n":%s}}' % (b"1" * 311), 400, "BAD_JSON"),
    (a_record(body={"a": 1}).replace(b'"a": 1', b'"a":1,"a":2'), 400, "BAD_JSON"),
    (b"[" * 100_000, 400, "BAD_JSON"), (b'{"a":' * 70 + b"1" + b"}" * 70, 400, "BAD_JSON"),
    # unknown and wrong
    (b"[]", 400, "BAD_FIELD"), (b'"text"', 400, "BAD_FIELD"), (b"null", 400, "BAD_FIELD"), (b"{}", 400, "BAD_FIELD"),
    (a_record(colour="red"), 400, "BAD_FIELD"), (a_record(act="SHOUT"), 400, "BAD_FIELD"),
    (a_record(act=...), 400, "BAD_FIELD"), (a_record(act=1), 400, "BAD_FIELD"), (a_record(body="x"), 400, "BAD_FIELD"),
    (a_record(body=...), 400, "BAD_FIELD"), (a_record(actor="alice"), 400, "BAD_FIELD"),
    (a_record(actor=None), 400, "BAD_FIELD"), (a_record(thread=""), 400, "BAD_FIELD"),
    (a_record(thread="x" * 257), 400, "BAD_FIELD"), (a_record(thread=7), 400, "BAD_FIELD"),
    (a_record(clock=-1), 400, "BAD_FIELD"), (a_record(clock=2**63), 400, "BAD_FIELD"),
    (a_record(clock="1"), 400, "BAD_FIELD"), (a_record(clock=True), 400, "BAD_FIELD"),
    (a_record(parents=["x"]), 400, "BAD_FIELD"), (a_record(parents="x"), 400, "BAD_FIELD"),
    (a_record(data_type="NUMBER"), 400, "BAD_FIELD"), (a_record(judged_by="me"), 400, "BAD_FIELD"),
    (a_record(body={"namespace": 1}), 400, "BAD_FIELD"),
    # too much
    (a_record(body={"x": "y" * MIB}), 413, "RECORD_TOO_LARGE"),
    # not allowed
    (a_record(thread="th_federation_pairs"), 403, "RESERVED_THREAD"),
    (a_record(thread="th_audit_x"), 403, "RESERVED_THREAD"),
    (a_record(actor="did:sync:instance:mallory-" + "0" * 24), 403, "ACTOR_REFUSED"),
    (a_record(body={"namespace": "nowhere"}), 403, "NAMESPACE_REJECTED"),
]  # fmt: skip

JSON = {"content-type": "application/json"}
REQUESTS = [
    # access
    ("POST", "/v1/records", JSON, 401, "AUTH_REQUIRED"),
    ("GET", "/v1/records?thread=th_a", {}, 401, "AUTH_REQUIRED"),
    ("GET", "/v1/threads", {"authorization": "Bearer spl_home_sa_00000000_AAAA"}, 401, "AUTH_INVALID"),
    ("GET", "/v1/threads", {"authorization": "Bearer "}, 401, None),
    ("GET", "/v1/threads", {"authorization": "Basic YTpi"}, 401, None),
    ("GET", "/v1/threads", {"x-api-key": "x" * 5000}, 401, "AUTH_INVALID"),
    ("GET", "/v1/sync/changes", {}, 401, "AUTH_REQUIRED"),
    ("GET", "/v1/federation/pairs", {}, 401, "AUTH_REQUIRED"),
    ("GET", "/v1/threads?token=spl_home_sa_00000000_AAAA", {}, 400, "TOKEN_IN_QUERY"),
    # routes and forms
    ("GET", "/nowhere", {}, 404, "NOT_FOUND"),
    ("GET", "/v1/../health", {}, None, None),
    ("DELETE", "/health", {}, 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v1/federation/pair", {}, 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/health", {"host": "evil.example"}, 421, "HOST_REFUSED"),
    ("GET", "/" + "x" * 9000, {}, 414, "URI_TOO_LONG"),
    ("POST", "/v1/federation/pair", {**JSON, "origin": "https://evil.example"}, 403, "ORIGIN_REFUSED"),
    ("POST", "/v1/federation/pair", {"content-type": "text/plain"}, 415, "MEDIA_TYPE"),
    ("POST", "/v1/federation/pair", {**JSON, "content-encoding": "gzip"}, 415, "MEDIA_TYPE"),
    ("POST", "/v1/federation/pair", {**JSON, "expect": "miracles"}, 417, "EXPECTATION_FAILED"),
]  # fmt: skip

HANDSHAKES = [
    b"{}", b"[]", b"null", b"{", b'{"request":{"message":{},"signature":""}}', b'{"manifest":1,"request":2}',
    b'{"message":{"signer":"x"},"signature":"AAAA"}', b'{"a":1,"a":2}', b"[" * 10_000,
]  # fmt: skip

HOST = b"HTTP/1.1\r\nhost: localhost\r\n"
ASK = b"POST /v1/federation/pair " + HOST + b"content-type: application/json\r\n"
RAW = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n", 505),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (b"GET /health " + HOST + b"host: localhost\r\n\r\n", 400),
    (b"GET /health " + HOST + b"x: a\r\n b\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n", 400),
    (b"GET /health " + HOST + b"x: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    (ASK + b"content-length: +5\r\n\r\nhello", 400),
    (ASK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!", 400),
    (ASK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (ASK + b"content-length: 99999999\r\n\r\n", 413),
    (ASK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One daemon for the whole matrix; it must be the same process at the end."""
    instance = Instance("served", tmp_path_factory.mktemp("served") / "home")
    instance.home.mkdir(mode=0o700)
    instance.configure(AUTO).run("init", "--label", "served")
    try:
        instance.start().emit("th_a")
        yield instance
    finally:
        instance.end()


@pytest.fixture
def unmoved(served: Instance) -> Iterator[Instance]:
    """The daemon; afterwards it must serve on in the same process, with the same records and no pair."""

    def facts() -> tuple[object, ...]:
        health = served.api("GET", "/health").json
        return health["pid"], health["records"], len(served.pairs()), served.holding()

    before = facts()
    yield served
    assert served.is_ready()
    assert facts() == before


@pytest.mark.parametrize(("body", "status", "code"), RECORDS, ids=lambda value: str(value)[:40])
def test_a_bad_record_is_refused(unmoved: Instance, body: bytes, status: int, code: str) -> None:
    """The error form carries object, type, code, message and hint."""
    headers = {"authorization": f"Bearer {unmoved.token}", **JSON}
    answer = unmoved.request("POST", "/v1/records", body, headers)
    assert (answer.status, answer.code) == (status, code), answer.body
    assert answer.json["message"]
    assert answer.json["hint"]


def test_many_at_once_are_judged_line_by_line(served: Instance) -> None:
    """A bad line has its own error in its place; the good ones are stored."""
    before = len(served.records("th_lines"))
    lines = [a_record(thread="th_lines", body={"n": n}) for n in range(3)]
    body = b"\n".join([lines[0], b"{", lines[1], a_record(act="SHOUT"), lines[2]])
    headers = {"authorization": f"Bearer {served.token}", "content-type": "application/x-ndjson"}
    answer = served.request("POST", "/v1/records", body, headers)
    values = [json.loads(line) for line in answer.body.splitlines()]
    assert [value.get("code", value["object"]) for value in values] == [
        "record",
        "BAD_JSON",
        "record",
        "BAD_FIELD",
        "record",
    ]
    assert len(served.records("th_lines")) == before + 3


def test_a_taken_clock_is_refused_and_a_repeat_is_not(served: Instance) -> None:
    """The same record again answers as before; other content at its clock is INGEST_FAILED in the original's words."""
    first = {**GOOD, "thread": "th_clock", "clock": 7}
    one, again = (served.api("POST", "/v1/records", first) for _ in range(2))
    assert (one.status, again.status, one.json["id"]) == (200, 200, again.json["id"])
    other = served.api("POST", "/v1/records", {**first, "body": {"n": 2}})
    assert (other.status, other.code) == (400, "INGEST_FAILED")
    assert other.json["message"].startswith("DuplicateClock: thread=th_clock actor=did:sync:user:a clock=7")
    assert len(served.records("th_clock")) == 1


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), REQUESTS, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_refused(
    unmoved: Instance, method: str, path: str, headers: dict[str, str], status: int | None, code: str | None
) -> None:
    """No token, foreign browsers, unknown routes and forms: each with its status and code."""
    answer = unmoved.request(method, path, b"{}" if method == "POST" else None, headers)
    assert answer.status == status or (status is None and 400 <= answer.status < 500), answer.body
    assert code is None or answer.code == code
    if answer.status == 405:
        assert answer.headers["allow"]
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("body", HANDSHAKES, ids=lambda body: repr(body[:40]))
@pytest.mark.parametrize("tail", ["", "/pair_00000000/poll", "/pair_00000000/confirm", "/pair_00000000/notify-revoke"])
def test_a_handshake_of_another_form_is_refused(unmoved: Instance, tail: str, body: bytes) -> None:
    """The open routes take signed messages and nothing else."""
    answer = unmoved.request("POST", f"/v1/federation/pair{tail}", body, JSON)
    assert 400 <= answer.status < 500, answer.body
    assert answer.code


@pytest.mark.parametrize(("data", "status"), RAW, ids=lambda value: repr(value)[:60])
def test_what_is_not_http_is_refused(unmoved: Instance, data: bytes, status: int) -> None:
    """One answer with the status, then the connection ends; nothing is smuggled behind it."""
    answer = unmoved.raw(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert len(re.findall(rb"^HTTP/1\.1 \d", answer, re.MULTILINE)) == 1


def test_a_scope_is_not_exceeded(served: Instance) -> None:
    """A token that may read does not write, mint, pair or sync; the refusal names the scope."""
    token = served.run("token", "mint", "--scopes", "records:read").out.strip()
    assert served.api("GET", "/v1/threads", token=token).status == 200
    for method, path, value in (
        ("POST", "/v1/records", GOOD),
        ("POST", "/v1/tokens", {"scopes": ["admin"]}),
        ("GET", "/v1/federation/pairs", None),
        ("POST", "/v1/federation/pairs", {"url": served.url}),
        ("GET", "/v1/sync/changes", None),
    ):
        answer = served.api(method, path, value, token)
        assert (answer.status, answer.code) == (403, "SCOPE_FORBIDDEN"), (path, answer.body)
    [minted] = [item for item in served.data("token", "list") if item["scopes"] == ["records:read"]]
    served.run("token", "revoke", minted["token_id"])


def test_what_was_captured_on_the_wire_is_worth_nothing(make: Make) -> None:
    """A request repeated, addressed to somebody else or changed, and a bearer without its proof: all refused."""
    bob = make("bob", AUTO)
    carol, alice = make("carol", AUTO).start(), make("alice").start()
    wire = Wire(bob.port)
    bob.start("--public-url", wire.url)
    alice.paired(wire.url + "/")
    [ask] = wire.requests(b"POST /v1/federation/pair HTTP/1.1")
    body = ask.partition(b"\r\n\r\n")[2]
    again = bob.request("POST", "/v1/federation/pair", body, JSON)
    assert (again.status, again.code) in ((410, "PAIR_REQUEST_SEEN"), (409, "MESSAGE_REPLAYED"))
    elsewhere = carol.request("POST", "/v1/federation/pair", body, JSON)
    assert (elsewhere.status, elsewhere.code) == (403, "MESSAGE_AUDIENCE")
    changed = bob.request("POST", "/v1/federation/pair", body.replace(b'"polling"', b'"on-demand"'), JSON)
    assert changed.code in ("MESSAGE_SIGNATURE", "MESSAGE_MALFORMED")
    reads = [data for data in wire.requests(b"GET /v1/sync/changes") if b"authorization:" in data.lower()]
    lines = reads[0].split(b"\r\n")
    path = lines[0].split(b" ")[1].decode()
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.decode().partition(":") for line in lines[1:] if line)
    }
    bearer = {"authorization": headers["authorization"]}
    assert bob.request("GET", path, headers=bearer).code == "AUTH_INVALID"
    replayed = bob.request("GET", path, headers={**bearer, "spl-proof": headers["spl-proof"]})
    assert replayed.code == "AUTH_INVALID"
    assert [len(carol.pairs()), len(bob.pairs()), len(alice.pairs())] == [0, 1, 1]
    wire.close()
