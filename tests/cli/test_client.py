"""The control client against a real socket: doors, refusals, and answers that break off."""

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from spl.cli import client as c
from spl.cli.client import Ctl, CtlError, open_ctl, tilde
from spl.client.calls import quote
from spl.client.errors import refusal
from tests.cli.conftest import Daemon, Run, chunked, error, listed, read, reply, serve


def a_ctl(home: Path, **env: str) -> Ctl:
    return open_ctl(str(home), env, lambda text: None)


def caught(code: str, call: Callable[[], object]) -> CtlError:
    with pytest.raises(CtlError) as found:
        call()
    assert found.value.code == code
    return found.value


def test_requests_are_plain_http_over_the_socket(daemon: Daemon, home: Path) -> None:
    daemon.answers["GET", "/v1/x?thread=a%20b%2F%C3%BC&since=0"] = {"a": 1}
    assert a_ctl(home).get("/v1/x", [("thread", "a b/ü"), ("since", "0")]) == {"a": 1}
    daemon.answers["POST", "/v1/y"] = (201, {"b": 2})
    assert a_ctl(home).post("/v1/y", {"text": "ü\udc80"}) == {"b": 2}
    get, post = daemon.calls
    assert (get.headers["host"], "content-type" in get.headers, "authorization" in get.headers) == (
        "localhost",
        False,
        False,
    )
    assert post.headers["content-type"] == "application/json"


def test_a_path_too_long_for_a_socket_address_still_connects(home: Path) -> None:
    deep = home / ("x" * 60) / ("y" * 60)
    (deep / "run").mkdir(parents=True)
    server = socket.socket(socket.AF_UNIX)
    folder = os.open(deep / "run", os.O_PATH)
    server.bind(f"/proc/self/fd/{folder}/spl.sock")
    os.close(folder)
    server.listen()
    daemon = Daemon({("GET", "/v1/x"): {"far": True}})
    thread = threading.Thread(target=serve, args=(server, daemon))
    thread.start()
    try:
        assert a_ctl(deep).get("/v1/x") == {"far": True}
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def test_a_refusal_keeps_code_hint_and_facts(daemon: Daemon, home: Path) -> None:
    daemon.answers["GET", "/v1/x"] = (409, {**error("pair-paused", "no", pair_id="p"), "hint": "resume it"})
    exc = caught("pair-paused", lambda: a_ctl(home).get("/v1/x"))
    assert (exc.message, exc.hint, exc.facts, exc.exit_code) == ("no", "resume it", {"pair_id": "p"}, 7)


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (401, "auth-invalid", 4),
        (404, "not-found", 6),
        (422, "usage", 2),
        (429, "rate-limited", 9),
        (500, "internal", 1),
    ],
)
def test_a_code_of_a_newer_daemon_counts_as_the_nearest(status: int, code: str, exit_code: int) -> None:
    exc = refusal({"code": "NEW_THING", "message": "m"}, status)
    assert (exc.code, exc.exit_code, exc.message) == (code, exit_code, "m (new-thing)")
    assert refusal({}, status).code == code


@pytest.mark.parametrize(
    "answer", [reply(200, [1]), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{x", b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
               b"HTTP/1.1 500 X\r\ncontent-length: 5\r\n\r\n<p>no"],
)  # fmt: skip
def test_what_is_no_daemon_is_malformed(daemon: Daemon, home: Path, answer: bytes) -> None:
    daemon.answers["GET", "/v1/x"] = answer
    caught("answer-malformed", lambda: a_ctl(home).get("/v1/x"))


def test_a_redirect_of_a_proxy_is_said(daemon: Daemon, home: Path) -> None:
    daemon.answers["GET", "/v1/x"] = b"HTTP/1.1 301 X\r\ncontent-length: 5\r\n\r\n<p>no"
    caught("redirect", lambda: a_ctl(home).get("/v1/x"))


def test_a_list_that_is_none_is_malformed(daemon: Daemon, home: Path) -> None:
    for value in ({}, {"data": {}}, listed(1)):
        daemon.answers["GET", "/v1/x"] = value
        caught("answer-malformed", lambda: a_ctl(home).items("/v1/x"))


def test_an_answer_cut_anywhere_is_disconnected(daemon: Daemon, home: Path) -> None:
    whole = reply(200, {"a": "b" * 20})
    for end in range(len(whole)):
        daemon.answers["GET", "/v1/x"] = whole[:end]
        caught("disconnected", lambda: a_ctl(home).get("/v1/x"))


def test_lines_arrive_as_objects_however_they_are_cut(daemon: Daemon, home: Path) -> None:
    text = b'{"a":1}\n\n{"b":"\xc3\xbc"}\n{"c":3}'
    for step in range(1, len(text) + 1):
        pieces = [text[at : at + step] for at in range(0, len(text), step)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        daemon.answers["POST", "/v1/x"] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body
        assert list(a_ctl(home).lines("/v1/x", b"{}", c.JSON, 5)) == [{"a": 1}, {"b": "ü"}, {"c": 3}]


def test_lines_cut_short_yield_what_came_then_raise(daemon: Daemon, home: Path) -> None:
    daemon.answers["POST", "/v1/x"] = chunked({"a": 1}, end=False)
    lines = a_ctl(home).lines("/v1/x", b"{}", c.JSON, 5)
    assert next(lines) == {"a": 1}
    caught("disconnected", lambda: next(lines))


def test_a_refused_stream_raises_its_error(daemon: Daemon, home: Path) -> None:
    daemon.answers["POST", "/v1/x"] = (403, error("scope-forbidden", "no"))
    caught("scope-forbidden", lambda: list(a_ctl(home).lines("/v1/x", b"{}", c.JSON, 5)))


def test_a_silent_daemon_times_out(home: Path) -> None:
    (home / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(home / "run/spl.sock"))
        server.listen()
        assert "our own" in str(caught("timeout", lambda: a_ctl(home).post("/v1/x", {}, timeout_s=0.01)).facts)


def test_a_stale_socket_file_is_a_daemon_that_is_down(home: Path) -> None:
    (home / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(home / "run/spl.sock"))
    assert caught("daemon-down", lambda: a_ctl(home).get("/health")).exit_code == 5


def test_a_url_takes_http_and_a_token(home: Path) -> None:
    daemon = Daemon({("GET", "/v1/x"): {"a": 1}})
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server, daemon))
        thread.start()
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        (home / "token").write_text("spl_home_sa_1_file\n")
        assert a_ctl(home, SPL_SERVE_URL=url, SPL_TOKEN="spl_home_sa_1_env").get("/v1/x") == {"a": 1}
        assert a_ctl(home, SPL_SERVE_URL=f"{url}/").get("/v1/x") == {"a": 1}
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert [call.headers["authorization"] for call in daemon.calls] == [
        "Bearer spl_home_sa_1_env",
        "Bearer spl_home_sa_1_file",
    ]
    assert {call.headers["host"] for call in daemon.calls} == {f"127.0.0.1:{port}"}
    caught("daemon-down", lambda: a_ctl(home, SPL_SERVE_URL=url).get("/v1/x"))
    caught("daemon-down", lambda: a_ctl(home, SPL_SERVE_URL=url.replace("http", "https")).get("/v1/x"))


@pytest.mark.parametrize("url", ["http://10.0.0.5:9100", "https://127.0.0.1:9100/x", "https://a@b",
                                 "http://localhost.evil", "http://127.0.0.1:0",
                                 "http://u@127.0.0.1", "127.0.0.1:9100", "http://localhost:9100/x"])  # fmt: skip
def test_a_token_never_leaves_the_machine_in_the_clear(spl: Run, home: Path, url: str) -> None:
    result = spl("status", env={"SPL_SERVE_URL": url, "SPL_TOKEN": "spl_home_sa_1_secret"})
    assert result.code == 10
    assert "[http-plain]" in result.err
    assert "secret" not in result.err


def test_verbose_shows_each_request(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/threads?limit=500"] = listed()
    result = spl("thread", "list", "-v")
    assert result.err == "· GET /v1/threads?limit=500 answered 200\nno threads yet: spl know 'TEXT'\n"


def test_quote_and_tilde() -> None:
    assert quote("did:sync:x/ü?&%") == "did:sync:x%2F%C3%BC%3F%26%25"
    assert tilde("/home/a/x", {"HOME": "/home/a/"}) == "~/x"
    assert tilde("/home/ab/x", {"HOME": "/home/a"}) == "/home/ab/x"
    assert json.loads(json.dumps(quote("\udc80"))) == "%3F"


def test_a_kept_connection_carries_many_requests_and_is_dialled_again_after_a_fault(home: Path) -> None:
    (home / "run").mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(home / "run/spl.sock"))
    server.listen()
    served: list[list[str]] = []

    def answer() -> None:
        """Answer three requests on the first connection and hang up in the fourth; then all of the second."""
        for most in (3, 9):
            sock, _ = server.accept()
            served.append([])
            with sock:
                while (call := read(sock)) is not None:
                    served[-1].append(call.target)
                    if len(served[-1]) > most:
                        break
                    sock.sendall(
                        reply(*((404, error("not-found", "no")) if call.target == "/no" else (200, {"n": most})))
                    )

    thread = threading.Thread(target=answer)
    thread.start()
    kept = a_ctl(home).kept()
    assert kept.get("/1") == {"n": 3}
    assert kept.post("/2", {"a": 1}) == {"n": 3}
    assert caught("not-found", lambda: kept.get("/no")).exit_code == 6
    assert kept.get("/4") == {"n": 9}  # a reading is sent again
    assert kept.get("/5") == {"n": 9}
    kept.close()
    thread.join()
    server.close()
    assert served == [["/1", "/2", "/no", "/4"], ["/4", "/5"]]
