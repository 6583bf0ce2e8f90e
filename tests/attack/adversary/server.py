"""The adversary's own server: what a daemon finds when it dials, and how often it dialled."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Given:
    """One answer; a `body` that yields pieces is sent in chunks as they come."""

    status: int = 200
    body: bytes | Iterator[bytes] = b"{}"
    media: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


Answering = Callable[[Asked], Given]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Listener"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        names = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, names, self.rfile.read(length))
        self.server.asked.append(asked)
        given = self.server.answering(asked)
        with contextlib.suppress(OSError):
            self._give(given)

    do_POST = do_GET

    def _give(self, given: Given) -> None:
        self.send_response(given.status)
        for name, value in {"content-type": given.media, **given.headers}.items():
            self.send_header(name, value)
        if isinstance(given.body, bytes):
            self.send_header("content-length", str(len(given.body)))
            self.end_headers()
            self.wfile.write(given.body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in given.body:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: str, answering: Answering) -> None:
        super().__init__((address, 0), _Handler)
        self.answering = answering
        self.asked: list[Asked] = []
        self.connections = 0
        self._open: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        self._open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Take a daemon that hangs up for what it is."""

    def end(self) -> None:
        self.shutdown()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.server_close()


class Server:
    """A listener on a loopback address that answers as `answering` says and keeps what it was asked."""

    def __init__(self, answering: Answering, address: str = "127.0.0.1") -> None:
        self._listener = _Listener(address, answering)
        self.port: int = self._listener.server_address[1]
        self.url = f"http://{address}:{self.port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def asked(self) -> list[Asked]:
        """What was asked so far."""
        return list(self._listener.asked)

    @property
    def connections(self) -> int:
        """How many connections came in so far."""
        return self._listener.connections

    def close(self) -> None:
        """End the listener and every connection."""
        self._listener.end()
        self._thread.join()
