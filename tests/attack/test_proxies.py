"""Requests that a proxy and the daemon behind it could read in two ways, sent through real ones that keep connections.

A proxy puts the requests of many clients on one connection to the daemon.  If both cut a request at different places,
the rest of one client's request becomes the start of the next one's: the others get answers that are not theirs, or
their request, with their token, becomes somebody's body.  So after each hostile request other clients ask for what is
theirs, over the same few connections, and get exactly that.  What the proxy forbids stays forbidden in every spelling.
"""

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.attack.adversary import wire
from tests.attack.probes import instances, log_text, pid_of
from tests.attack.routes import ANYONE, PEER, ROUTES
from tests.e2e.harness import Instance, free_port
from tests.e2e.test_proxy import process
from tests.waiting import DEADLINE_S

NGINX: Final = """
daemon off; pid {folder}/pid; error_log stderr; user {user}; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream daemon {{ server 127.0.0.1:{target}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location /v1/tokens {{ return 403; }}
    location / {{
      proxy_pass http://daemon;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Connection "";
      proxy_request_buffering off;
    }}
  }}
}}
"""
CACHING: Final = NGINX.replace(
    "access_log off;", "access_log off; proxy_cache_path {folder}/cache keys_zone=all:1m;"
).replace("location /v1/tokens {{ return 403; }}", "proxy_cache all; proxy_cache_valid any 10m;")
"""Keeps whatever it may, by the URL alone, as is common."""
CADDY: Final = """
{{
  admin off
  auto_https off
  grace_period 100ms
}}
http://127.0.0.1:{port} {{
  @hidden path /v1/tokens /v1/tokens/*
  respond @hidden 403
  reverse_proxy 127.0.0.1:{target}
}}
"""
OTHERS: Final = 3
"""Requests of other clients after each hostile one; the proxies keep fewer connections to the daemon."""
HERE: Final = b"Host: 127.0.0.1\r\n"
NEXT: Final = b"GET /v1/tokens HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Rest: "
"""Begins a request that swallows the first line of whatever follows it."""
THIEF: Final = (
    b"POST /v1/records HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: 400\r\n\r\n"
)
"""Begins a request whose body would be what follows it."""


def post(*lines: bytes, body: bytes = b"", to: bytes = b"/v1/records", version: bytes = b"1.1") -> bytes:
    """Return a POST of JSON with these header lines besides."""
    head = b"POST %b HTTP/%b\r\n%bContent-Type: application/json\r\n" % (to, version, HERE)
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(*lines: bytes, target: bytes = b"/health", version: bytes = b"1.1", body: bytes = b"") -> bytes:
    """Return a GET with these header lines besides."""
    head = b"GET %b HTTP/%b\r\n%b" % (target, version, HERE)
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def chunks(*sizes: bytes, rest: bytes = b"") -> bytes:
    """Return a POST in chunks whose size lines are these, each of two bytes, and what follows."""
    return post(b"Transfer-Encoding: chunked", body=b"".join(size + b"\r\n{}\r\n" for size in sizes) + rest)


CHUNKED: Final = b"Transfer-Encoding: chunked"
LENGTHS: Final = {
    "twice": (b"Content-Length: 2", b"Content-Length: %d" % (2 + len(NEXT))),
    "a list": (b"Content-Length: 2, %d" % (2 + len(NEXT)),),
    "a sign": (b"Content-Length: +2",),
    "hexadecimal": (b"Content-Length: 0x2",),
    "a blank before the colon": (b"Content-Length : 2",),
    "a blank inside": (b"Content-Length: 2 0",),
    "too large": (b"Content-Length: 18446744073709551618",),
    "negative": (b"Content-Length: -1",),
    "dropped by the next hop": (b"Connection: close, Content-Length", b"Content-Length: 2"),
    "kept by the next hop": (b"Connection: keep-alive, Content-Length", b"Content-Length: 2"),
    "folded": (b"Content-Length:\r\n 2",),
    "of a bare LF": (b"X: y\nContent-Length: 2",),
    "of a bare CR": (b"X: y\rContent-Length: 2",),
    "after a NUL": (b"X: \0y", b"Content-Length: 2"),
}
CODINGS: Final = {
    "beside a length": (CHUNKED, b"Content-Length: 5"),
    "behind a length": (b"Content-Length: %d" % (5 + len(NEXT)), CHUNKED),
    "unknown": (b"Transfer-Encoding: xchunked", b"Content-Length: 5"),
    "identity last": (b"Transfer-Encoding: chunked, identity", b"Content-Length: 5"),
    "chunked twice": (CHUNKED, CHUNKED, b"Content-Length: 5"),
    "cow behind chunked": (CHUNKED, b"Transfer-Encoding: cow", b"Content-Length: 5"),
    "in quotes": (b'Transfer-Encoding: "chunked"', b"Content-Length: 5"),
    "behind a tab": (b"Transfer-Encoding:\tchunked", b"Content-Length: 5"),
    "behind a vertical tab": (b"Transfer-Encoding: \x0bchunked", b"Content-Length: 5"),
    "a blank before the colon": (b"Transfer-Encoding : chunked", b"Content-Length: 5"),
    "folded": (b"X: y", b" Transfer-Encoding: chunked", b"Content-Length: 5"),
    "an underscore": (b"Transfer_Encoding: chunked", b"Content-Length: 5"),
    "dropped by the next hop": (b"Connection: keep-alive, Transfer-Encoding", CHUNKED),
}
CUTS: Final = {
    "extension": chunks(b"2;name=value", b'2;"quoted"', rest=b"0\r\n\r\n"),
    "long extension": chunks(b"2;" + b"x" * 20_000, rest=b"0\r\n\r\n"),
    "LF in an extension": chunks(b"2;\n", rest=b"0\r\n\r\n" + NEXT),
    "CR in an extension": chunks(b"2;\rx", rest=b"0\r\n\r\n" + NEXT),
    "size with a sign": chunks(b"+2", rest=b"0\r\n\r\n" + NEXT),
    "size with 0x": chunks(b"0x2", rest=b"0\r\n\r\n" + NEXT),
    "size with an underscore": chunks(b"0_2", rest=b"0\r\n\r\n" + NEXT),
    "size with blanks": chunks(b" 2 ", rest=b"0\r\n\r\n" + NEXT),
    "size that overflows": chunks(b"10000000000000002", rest=b"0\r\n\r\n" + NEXT),
    "no size": chunks(b"", rest=b"0\r\n\r\n" + NEXT),
    "size line ended by LF": post(CHUNKED, body=b"2\n{}\r\n0\r\n\r\n" + NEXT),
    "data ended by LF": post(CHUNKED, body=b"2\r\n{}\n0\r\n\r\n" + NEXT),
    "data without an end": post(CHUNKED, body=b"2\r\n{}XX0\r\n\r\n" + NEXT),
    "last chunk ended by LF": chunks(b"2", rest=b"0\n\n" + NEXT),
    "last chunk of many zeros": chunks(b"2", rest=b"0" * 40 + b"\r\n\r\n" + NEXT),
    "trailers": chunks(b"2", rest=b"0\r\nContent-Length: 99\r\nHost: evil\r\nTransfer-Encoding: cow\r\n\r\n" + NEXT),
    "huge trailers": chunks(b"2", rest=b"0\r\n" + b"X: %b\r\n" % (b"y" * 1000) * 200 + b"\r\n" + NEXT),
    "HTTP/1.0": post(CHUNKED, b"Connection: keep-alive", version=b"1.0", body=b"2\r\n{}\r\n0\r\n\r\n" + NEXT),
}
PIPES: Final = {
    "garbage": get() + b"\0\1\2 garbage\r\n\r\n" + NEXT,
    "half a request": get() + NEXT,
    "a body to a GET": get(b"Content-Length: %d" % len(NEXT), body=NEXT),
    "a body in chunks to a GET": get(CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(NEXT), NEXT)),
    "a body to a HEAD": b"HEAD" + get(b"Content-Length: %d" % len(NEXT), body=NEXT)[3:],
    "a body to a path that takes none": post(b"Content-Length: %d" % len(NEXT), to=b"/nothing", body=NEXT),
    "a thief of requests": post(b"Content-Length: %d" % len(THIEF), to=b"/nothing", body=THIEF),
    "a thief after chunks": chunks(b"2", rest=b"0\r\n\r\n" + THIEF),
    "one that waits for 100": post(b"Expect: 100-continue", b"Content-Length: %d" % len(NEXT), body=NEXT),
    "one that expects more": post(b"Expect: 100-continue, x", b"Content-Length: %d" % len(NEXT), body=NEXT),
    "an upgrade": get(b"Connection: Upgrade", b"Upgrade: websocket", body=NEXT),
    "an upgrade to h2c": get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA", body=NEXT),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NEXT,
    "HTTP/0.9": b"GET /health\r\n" + NEXT,
    "HTTP/1.0 kept alive": get(b"Connection: keep-alive", version=b"1.0", body=NEXT),
    "HTTP/1.2": get(version=b"1.2", body=NEXT),
    "absolute form": get(target=b"http://evil.example/v1/tokens", body=NEXT),
    "absolute form with a user": get(target=b"http://127.0.0.1@evil.example/", body=NEXT),
    "a port to connect to": b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n" + HERE + b"\r\n" + NEXT,
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HERE + b"\r\n" + NEXT,
    "two hosts": get(b"Host: evil.example", body=NEXT),
    "no host": b"GET /health HTTP/1.1\r\n\r\n" + NEXT,
    "a blank in a name": get(b"X y: z", body=NEXT),
    "a blank in the target": get(target=b"/health x", body=NEXT),
    "a line end in the target": get(target=b"/health%0d%0aX:%20y", body=NEXT),
    "a header for the next hop": get(b"Connection: close, Host, Authorization", b"Authorization: Bearer x", body=NEXT),
}
HOSTILE: Final = {
    **{f"length {name}": post(*lines, body=b"{}" + NEXT) for name, lines in LENGTHS.items()},
    **{f"coding {name}": post(*lines, body=b"0\r\n\r\n" + NEXT) for name, lines in CODINGS.items()},
    **{f"chunk {name}": data for name, data in CUTS.items()},
    **{f"pipe {name}": data for name, data in PIPES.items()},
}
SPELLINGS: Final = (
    "/v1/tokens", "/v1/tokens/", "/v1/tokens?", "/v1/tokens#x", "/v1/%74okens", "/v1/%2574okens", "/v1%2ftokens",
    "/v1%2Ftokens", "//v1/tokens", "/v1//tokens", "/./v1/./tokens", "/v1/x/../tokens", "/v1/%2e%2e/v1/tokens",
    "/v1/x/..%2ftokens", "/v1/x/%2e%2e/tokens", "/x/../../v1/tokens", "/v1/tokens%20", "/v1/tokens%00", "/v1/tokens%2f",
    "/v1/tokens;x", "/v1;x/tokens", "/v1/tokens/.", "/v1/tokens/x/..", "/V1/TOKENS", "/v1/tokens%09", "/v1\\tokens",
    "/v1/tokens%3f", "/v1/\u0074okens", "http://127.0.0.1/v1/tokens", "http://127.0.0.1/v1/x/../tokens",
)  # fmt: skip


class Behind(NamedTuple):
    """A daemon, the port of the proxy before it, and records that only their readers ask for: id -> the answer."""

    daemon: Instance
    port: int
    answers: dict[str, bytes]


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """A daemon behind a proxy, for the whole file."""
    kind = str(request.param)
    if shutil.which(kind) is None:
        pytest.skip(f"{kind} is not installed")
    folder, port = tmp_path_factory.mktemp(kind), free_port()
    with instances(folder) as make:
        daemon = make("served").start()
        ids = daemon.emit("th_theirs", OTHERS, text="only for who asks")
        answers = {id_: daemon.api("GET", f"/v1/records/{id_}").body for id_ in ids}
        template = NGINX if kind == "nginx" else CADDY
        with process(kind, folder, port, template, target=daemon.port):
            pid = pid_of(daemon)
            yield Behind(daemon, port, answers)
            assert pid_of(daemon) == pid
            assert "Traceback" not in log_text(daemon)


def answered(port: int, data: bytes) -> bytes:
    """Return the answer to a request that is followed by nothing, over a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("name", HOSTILE)
def test_no_request_is_cut_in_two_ways(behind: Behind, name: str) -> None:
    daemon, port, answers = behind
    held = len(daemon.records("th_theirs"))
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as attacker:
        attacker.sendall(HOSTILE[name])
        attacker.settimeout(0.1)  # a proxy that waits for the rest of the request gives no answer
        got = b""
        with suppress(TimeoutError, ConnectionError):
            got += attacker.recv(65536)
        for id_, answer in answers.items():
            asks = b"Authorization: Bearer %b" % daemon.token.encode(), b"Connection: close"
            whole = answered(port, get(*asks, target=f"/v1/records/{id_}".encode()))
            assert whole.startswith(b"HTTP/1.1 200 "), (whole, got)
            assert answer in whole
        attacker.setblocking(False)
        with suppress(OSError):
            got += attacker.recv(65536)
    assert b"only for who asks" not in got
    assert daemon.token.encode() not in got
    assert len(daemon.records("th_theirs")) == held
    assert len(daemon.api("GET", "/v1/threads").json["data"]) == 1, "somebody's request is a record now"


def test_what_the_proxy_forbids_stays_forbidden_in_every_spelling(behind: Behind) -> None:
    """The daemon takes a path as it is written: what it would answer is what a proxy's rule has matched."""
    asks = b"Authorization: Bearer %b" % behind.daemon.token.encode(), b"Connection: close"
    for spelling in SPELLINGS:
        answer = answered(behind.port, get(*asks, target=spelling.encode()))
        assert not answer.startswith(b"HTTP/1.1 200 "), (spelling, answer)
    assert b" 200 " in answered(behind.daemon.port, get(*asks, target=b"/v1/tokens"))[:15]


def test_a_proxy_that_caches_keeps_no_answer_for_others(tmp_path: Path) -> None:
    """Neither for who has no token, nor for another tenant, however the holder showed its token."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    with instances(tmp_path) as make:
        daemon, port = make("served").start(), free_port()
        (id_,) = daemon.emit("th_theirs", 1, text="only for who asks")
        daemon.run("namespace", "create", "acme")
        tenant = daemon.api("POST", "/v1/tokens", {"scopes": ["records:read"], "namespaces": ["acme"]}).json["token"]
        named = {"thread": "th_theirs", "id": id_}
        with process("nginx", tmp_path, port, CACHING, target=daemon.port):
            for row in ROUTES:
                if row.method != "GET" or row.opens in (ANYONE, PEER) or row.path.endswith(("/events", "/watch")):
                    continue
                path = re.sub(r"\{(\w+)\}", lambda found: named.get(found[1], "none"), row.path)
                for header, value in (("x-api-key", daemon.token), ("authorization", f"Bearer {daemon.token}")):
                    held = wire.ask(port, "GET", path, headers={header: value})
                    assert "no-" in held.headers["cache-control"], (path, held)
                    nobody = wire.ask(port, "GET", path)
                    assert nobody.status in (401, 403), (path, nobody)
                    other = wire.ask(port, "GET", path, headers={"authorization": f"Bearer {tenant}"})
                    assert b"only for who asks" not in other.body, path
