"""Hostile HTTP: odd header values, bodies that are small on the wire and huge in memory, and probing.

A refusal is a 4xx with an error form, costs no traceback, and tells two wrong tokens apart by nothing.
"""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.attack.probes import (
    KIB,
    MIB,
    asked,
    dial,
    forget_peak,
    head,
    instances,
    log_bytes,
    log_text,
    peak_bytes,
    pid_of,
    status_of,
    until,
)
from tests.e2e.harness import Answer, Instance

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
RECORD_BYTES: Final = 1024 * KIB
PAGE_BYTES: Final = 8 * MIB
CALLS: Final = 200
NOSNIFF: Final = re.compile(rb"(?mi)^x-content-type-options: nosniff\r$")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One daemon for the whole file."""
    with instances(tmp_path_factory.mktemp("abuse")) as make:
        served = make("served").start()
        served.emit("th_a")
        yield served


@pytest.fixture
def served(running: Instance) -> Iterator[Instance]:
    """The daemon; afterwards it is the same process, serves on, and logged neither a traceback nor an inner error."""
    pid, before = pid_of(running), len(log_text(running))
    yield running
    assert pid_of(running) == pid
    assert running.is_ready()
    logged = log_text(running)[before:]
    assert "Traceback" not in logged, logged[:3000]
    assert "http.failed" not in logged, logged[:3000]


# -- odd values

URLS: Final = (
    "http://[", "http://]", "http://[::1", "http://[::1]]", "http://[v1.x]", "http://[fe80::1%25eth0]", "http://a:b",
    "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://127.0.0.1:١", "//[", "[", "]", "null", "", "http://",
    "http:///", "://", "http://\u2100", "http://127.0.0.1\u2044", "http://a@[", "http://%5b", "data:1", "a" * 8000,
)  # fmt: skip
HOSTS: Final = (
    "[", "]", "[]", "[::1", "[::1]]", "[::1]x", "::1", "[v1.x]", "[fe80::1%eth0]", "127.0.0.1:99999", "127.0.0.1:-1",
    "127.0.0.1:٣", "localhost:", "localhost:[", "a:b:c", "127.0.0.1@evil", "1", "0x7f000001", "%00", "ä", "a" * 8000,
)  # fmt: skip
CREDENTIALS: Final = (
    "Bearer", "Bearer ", "bearer\t", "Bearer \u00e4", "Bearer a b c", "Bearer =", "Bearer " + "a" * 8000, "Basic YTpi",
    "Basic", "Digest x=[", "Negotiate", "", " ", ",", "Bearer,Bearer", "Bearer spl_home_sa_00000000_[", "spl-proof",
    "Bearer spl_" + "_" * 500, "Bearer spl_home_sa_" + "0" * 500 + "_AAAA",
)  # fmt: skip
TARGETS: Final = {
    "open": ("GET", "/health"),
    "document": ("GET", "/.well-known/syncropel"),
    "handshake": ("POST", "/v1/federation/pair"),
    "guarded": ("GET", "/v1/records"),
    "writing": ("POST", "/v1/records"),
    "none": ("POST", "/nowhere"),
}


def odd(served: Instance, name: str, value: str, target: str) -> bytes:
    """Return the answer to a request with one odd header."""
    method, path = TARGETS[target]
    host = value if name == "host" else f"127.0.0.1:{served.port}"
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close"]
    lines += [f"{name}: {value}"] if name != "host" else []
    lines += ["content-type: application/json", "content-length: 2"] if method == "POST" else []
    data = "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"{}" if method == "POST" else b"")
    return asked(served.port, data)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "values"),
    [("origin", URLS), ("referer", URLS), ("host", HOSTS), ("authorization", CREDENTIALS), ("x-api-key", CREDENTIALS),
     ("spl-proof", CREDENTIALS), ("last-event-id", URLS), ("content-type", URLS), ("forwarded", URLS),
     ("x-forwarded-for", HOSTS), ("accept-encoding", URLS), ("expect", HOSTS), ("range", HOSTS)],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_odd_values_are_refused_or_passed_over(
    served: Instance, name: str, values: tuple[str, ...], target: str
) -> None:
    """Any value of these headers: an answer below 500, and nothing of it in a traceback."""
    before, wrong = log_bytes(served), []
    for value in values:
        answer = odd(served, name, value, target)
        if not 200 <= status_of(answer) < 500:
            wrong.append(f"{name}: {value[:40]!r} -> {answer[:60]!r}")
    assert not wrong, "\n".join(wrong)
    assert log_bytes(served) - before < 4 * KIB, "each odd header leaves a line"


@pytest.mark.parametrize("value", [value for value in URLS if value])
def test_a_foreign_origin_writes_nowhere(served: Instance, value: str) -> None:
    """What cannot be read as an origin of ours is a foreign one."""
    answer = odd(served, "origin", value, "handshake")
    assert (status_of(answer), b"ORIGIN_REFUSED" in answer) in ((403, True), (400, False), (431, False)), answer[:400]


def test_refusals_by_the_hundred_leave_a_bounded_log(served: Instance) -> None:
    """Anybody can send them as often as they like."""
    before = log_bytes(served)
    for number in range(CALLS):
        for name, value in (("origin", f"http://[{number}"), ("host", f"[{number}"), ("authorization", f"{number}")):
            odd(served, name, value, "handshake")
    grown = log_bytes(served) - before
    assert grown < 16 * KIB, f"{3 * CALLS} refusals left {grown} bytes in the log"


# -- what an answer tells

WRONG_TOKENS: Final = {
    "unknown": "spl_home_sa_00000000_" + "0" * 64,
    "short": "spl_home_sa_00000000_0",
    "other words": "hunter2",
    "long": "x" * 4000,
    "of another form": "spl_home_xx_00000000_" + "0" * 64,
}


def test_wrong_tokens_are_told_apart_by_nothing(served: Instance) -> None:
    """Unknown and malformed ones get equal bytes, in both headers, on every kind of route."""
    for method, path in (("GET", "/v1/records"), ("POST", "/v1/records"), ("GET", "/v1/sync/changes")):
        answers = set()
        for text in WRONG_TOKENS.values():
            for headers in ({"authorization": f"Bearer {text}"}, {"x-api-key": text}):
                sent = {**headers, "content-type": JSON} if method == "POST" else headers
                answer = served.request(method, path, b"{}" if method == "POST" else None, sent)
                assert answer.status == 401
                answers.add((answer.body, *sorted(item for item in answer.headers.items() if item[0] != "date")))
        assert len(answers) == 1, f"{path}: " + "\n".join(str(answer[0]) for answer in answers)


KINDS: Final[dict[str, Callable[[Instance], Answer]]] = {
    "open": lambda served: served.get("/health"),
    "document": lambda served: served.get("/.well-known/syncropel"),
    "json": lambda served: served.api("GET", "/v1/records"),
    "written": lambda served: served.api("POST", "/v1/records", {}),
    "ndjson": lambda served: served.api("GET", "/v1/threads/th_a/snapshot"),
    "unauthorised": lambda served: served.get("/v1/records"),
    "not found": lambda served: served.get("/nowhere"),
    "wrong method": lambda served: served.request("DELETE", "/health"),
    "options": lambda served: served.request("OPTIONS", "/health"),
    "head": lambda served: served.request("HEAD", "/health"),
    "foreign host": lambda served: served.request("GET", "/health", headers={"host": "evil.example"}),
    "foreign origin": lambda served: served.request("POST", "/v1/records", b"{}", {"origin": "http://evil.example"}),
    "too long": lambda served: served.get("/" + "x" * 9000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_sniffed(served: Instance, kind: str) -> None:
    """A browser takes every answer for what its content type says, errors too."""
    answer = KINDS[kind](served)
    assert answer.headers.get("x-content-type-options") == "nosniff", answer.headers


def test_no_stream_and_no_bad_request_is_sniffed(served: Instance) -> None:
    """The same for event streams, and for the answer to bytes that are not HTTP."""
    ask = head("GET", "/v1/threads/th_a/watch", authorization=f"Bearer {served.token}")
    with dial(served.port) as sock:
        sock.sendall(ask)
        assert NOSNIFF.search(until(sock, b"\r\n\r\n"))
    for data in (b"\x16\x03\x01\r\n\r\n", ask.replace(b"host:", b"host :")):
        assert NOSNIFF.search(served.raw(data))


# -- bodies that grow in memory

ITEMS: Final = {
    "lists": "[]", "objects": "{}", "nested lists": "[[]]", "nested objects": '{"":{}}', "texts": '""', "zeros": "0",
    "nulls": "null", "members": None, "floats": "1e1", "escapes": '"\\u0000"',
}  # fmt: skip
"""What a bomb is made of; None stands for an object with many members."""


def bomb(kind: str, size: int) -> bytes:
    """Return a record of about so many bytes that holds as many small things as fit."""
    room, item = size - 200, ITEMS[kind]
    if item is None:
        many = "{" + ",".join(f'"{number:05x}":0' for number in range(room // 10)) + "}"
    else:
        many = "[" + ",".join([item] * (room // (len(item) + 1))) + "]"
    return f'{{"act":"KNOW","actor":"did:sync:user:a","thread":"th_bomb","body":{{"x":{many}}}}}'.encode()


FORMS: Final = {
    "one": (tuple(ITEMS), 64 * MIB),
    "oversized": (tuple(ITEMS), 64 * MIB),
    "many": (("lists", "nested objects", "texts", "members"), 120 * MIB),
}
"""What is sent one after another, and the most that all of it may cost."""


def page_of(form: str, kind: str) -> tuple[bytes, str]:
    """Return a body of bombs, and its media type."""
    if form == "many":
        return b"\n".join([bomb(kind, RECORD_BYTES - KIB)] * (PAGE_BYTES // RECORD_BYTES)), NDJSON
    return bomb(kind, RECORD_BYTES - KIB if form == "one" else PAGE_BYTES - KIB), JSON


@pytest.mark.parametrize("form", FORMS)
def test_bombs_cost_a_bounded_part_of_memory(tmp_path: Path, form: str) -> None:
    """A record within its bytes, one over them, a page full of such: stored or refused, one after another.

    The bound is on what the daemon had before the first of them, so that nothing that stays is overlooked.
    """
    with instances(tmp_path) as make:
        served = make("fresh").start()
        served.emit("th_a", 100)
        before, found = forget_peak(served), []
        kinds, most = FORMS[form]
        for kind in kinds:
            body, media = page_of(form, kind)
            headers = {"authorization": f"Bearer {served.token}", "content-type": media}
            answer = served.request("POST", "/v1/records", body, headers)
            assert answer.status in (200, 400, 413), answer.body[:400]
            found.append(f"after {len(body)} bytes of {kind} {(peak_bytes(served) - before) / MIB:.0f} MiB")
        assert peak_bytes(served) - before <= most, "\n".join(found)


@pytest.mark.parametrize("kind", ITEMS)
def test_a_bomb_costs_the_open_routes_no_more(served: Instance, kind: str) -> None:
    """The bodies that strangers may send are small, and so is what they cost."""
    body = json.dumps({"request": 1}).encode()[:-1] + b',"x":' + bomb(kind, 60 * KIB) + b"}"
    before = forget_peak(served)
    for _ in range(20):
        answer = served.request("POST", "/v1/federation/pair", body, {"content-type": JSON})
        assert 400 <= answer.status < 500, answer.body[:400]
    assert peak_bytes(served) - before <= 8 * MIB


# -- bodies and streams that do not end


def test_bodies_sent_but_for_their_end_hold_a_bounded_part_of_memory(served: Instance) -> None:
    """A token's 64 connections of one address each send 8 MiB but for some bytes; other addresses still write."""
    before, lines = forget_peak(served), list[socket.socket]()
    request = head("POST", "/v1/records", **{
        "authorization": f"Bearer {served.token}", "content-type": NDJSON, "content-length": str(PAGE_BYTES),
    })  # fmt: skip
    try:
        for _ in range(64):
            sock = dial(served.port, "127.0.4.1", timeout_s=10)
            lines.append(sock)
            with suppress(OSError):  # refused, and cut while we send
                sock.sendall(request + b"x" * (PAGE_BYTES - 10))
        assert served.emit("th_a", 3)
        assert peak_bytes(served) - before <= 64 * MIB
    finally:
        for sock in lines:
            sock.close()


@pytest.mark.parametrize(("path", "media"), [("/v1/federation/pair", JSON), ("/v1/records", NDJSON)])
def test_bodies_in_chunks_of_one_byte_are_refused(served: Instance, path: str, media: str) -> None:
    """Each byte costs as much as a kilobyte would; a stranger needs no credential for it."""
    request = head("POST", path, **{
        "authorization": f"Bearer {served.token}", "content-type": media, "transfer-encoding": "chunked",
    })  # fmt: skip
    answer = asked(served.port, request + b"1\r\n \r\n" * 5000 + b"0\r\n\r\n")
    assert status_of(answer) == 400
    assert b"chunks" in answer


def test_a_reading_token_cannot_take_every_connection(served: Instance) -> None:
    """It opens streams from sixteen addresses until it is refused; the operator and health checks are served."""
    minted = served.api("POST", "/v1/tokens", {"scopes": ["records:read"]}).json["token"]
    request, lines, statuses = head("GET", "/v1/threads/th_x/watch", authorization=f"Bearer {minted}"), [], []
    try:
        for number in range(16):
            for _ in range(16):
                sock = dial(served.port, f"127.0.5.{number + 1}")
                lines.append(sock)
                sock.sendall(request)
                statuses.append(status_of(until(sock, b"\r\n\r\n")))
        assert statuses.count(200) == 64
        assert set(statuses) == {200, 429}
        assert served.is_ready()
    finally:
        for sock in lines:
            sock.close()


def test_restores_of_one_token_keep_nobody_elses_out(served: Instance) -> None:
    """A token that begins uploads without end has one at a time; another one's and the operator's are taken."""
    tokens = [served.api("POST", "/v1/tokens", {"scopes": ["records:write"]}).json["token"] for _ in range(2)]

    def begins(token: str, number: int) -> int:
        path = f"/v1/threads/restore?upload={number:032x}&at=0&more=1"
        return served.request("POST", path, b"x", {"authorization": f"Bearer {token}", "content-type": NDJSON}).status

    assert {begins(tokens[0], number) for number in range(20)} == {200}
    assert [begins(token, 20) for token in (tokens[1], served.token)] == [200, 200]
