"""A reverse proxy in front of a daemon, with the faults that proxies, caches and peers have.

All of a faulty peer is played here: what a daemon sees of another is bytes, and whose fault they are it cannot know.
"""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.waiting import DEADLINE_S

MANIFEST: Final = "/.well-known/syncropel"
EVENTS: Final = "text/event-stream"
PASS, HOLD, CUT, MUTE = "pass", "hold", "cut", "mute"
"""What is done with event streams: passed on, held back, cut after the first event, or robbed of their heartbeats."""


@dataclass(frozen=True)
class Reply:
    """An answer on its way to the client."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def with_json(self, value: object) -> "Reply":
        """Return the answer with another value for its body."""
        return replace(self, body=json.dumps(value).encode())


Change = Callable[[Reply], Reply | None]


def answer(status: int, body: bytes = b"<h1>nginx</h1>", **headers: str) -> Change:
    """Return a change of any answer into this one."""
    return lambda reply: Reply(status, {"content-type": "text/html", **headers}, body)


def hang_up(reply: Reply) -> None:
    """Answer nothing and close the connection."""


class Proxy(ThreadingHTTPServer):
    """`statuses`: ending of a path -> status given without asking the daemon; `changes`: -> what becomes of an answer.

    Of several endings the first that fits counts; a query is no part of a path.
    `flow` is for event streams; `body_max` bounds what a request may carry.
    """

    daemon_threads = True

    def __init__(self, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target_port = target_port
        self._open = threading.Event()
        self.heal()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def heal(self) -> None:
        """Be a good proxy from now on."""
        self._open.set()
        self.statuses: dict[str, int] = {}
        self.changes: dict[str, Change] = {}
        self.flow = PASS
        self.body_max = 1 << 30

    def swallow(self) -> None:
        """Take connections and requests from now on, and answer none."""
        self._open.clear()

    def passes(self) -> None:
        """Return once requests are answered."""
        self._open.wait(DEADLINE_S)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()


class _Forward(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        self.server.passes()
        status = next((code for end, code in self.server.statuses.items() if path.endswith(end)), 0)
        status = 413 if len(body) > self.server.body_max else status
        if status:
            return self._answer(Reply(status, {"content-type": "text/html"}, b"<h1>nginx</h1>"))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target_port, timeout=DEADLINE_S)
        try:
            # It reads what it passes on, so it asks for no coding.
            passed = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
            upstream.request(self.command, self.path, body or None, passed)
            came = upstream.getresponse()
            headers = {name.lower(): value for name, value in came.getheaders()}
            if headers.get("content-type", "").startswith(EVENTS):
                return self._events(came, headers)
            reply: Reply | None = Reply(came.status, headers, came.read())
        except (OSError, http.client.HTTPException):
            reply = Reply(502, {"content-type": "text/html"}, b"<h1>nginx</h1>")
        finally:
            upstream.close()
        change = next((change for end, change in self.server.changes.items() if path.endswith(end)), None)
        reply = change(reply) if change is not None and reply is not None else reply
        return self._answer(reply) if reply is not None else None

    do_POST = do_GET

    def _events(self, came: http.client.HTTPResponse, headers: dict[str, str]) -> None:
        """Pass events on one by one, as far as the present flow lets them."""
        self._head(came.status, headers)
        held, event = b"", b""
        try:
            while line := came.readline():
                event += line
                if line.strip():
                    continue
                flow, whole, event = self.server.flow, event, b""
                if flow == MUTE and b"event: heartbeat" in whole:
                    continue
                held += whole
                if flow == HOLD:
                    continue
                self.wfile.write(held)
                self.wfile.flush()
                held = b""
                if flow == CUT and b"event:" in whole:
                    return
        except (OSError, http.client.HTTPException):
            return

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the daemon waited no longer
            super().handle()

    def _answer(self, reply: Reply) -> None:
        self._head(reply.status, {**reply.headers, "content-length": str(len(reply.body))})
        self.wfile.write(reply.body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name not in ("transfer-encoding", "connection", "keep-alive"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        return
