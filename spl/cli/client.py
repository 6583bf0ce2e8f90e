"""The control client: blocking requests to the daemon of this home or of SPL_SERVE_URL, with the daemon's own parser.

Over the Unix socket the file mode is the credential.  With SPL_SERVE_URL a request carries SPL_TOKEN or `<home>/token`:
over plain HTTP to this machine only, else over TLS, whose certificate the system's authorities or those in
SSL_CERT_FILE have to vouch for.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from ..client.blocking import Client
from ..client.calls import ANSWER_BYTES, JSON, elements, object_of, quote
from ..client.dial import ANSWER_S, Where, at_home, at_url, dial, faults, token_of
from ..client.errors import ClientError, fault, refusal
from ..core.limits import KIB, MIB, Limits
from ..core.version import SOCKET
from ..net.heads import encode_request
from ..net.http1 import END, UNBOUNDED, Mark, ResponseHead, ResponseParser
from .fit import tilde

LONG_S: Final = 3600.0
"""For requests that move many records: the first sync of a long history has no smaller bound."""
LIST_BYTES: Final = 256 * MIB
"""Of a list that is kept while it is fetched page by page."""
_COUNTED_BYTES: Final = 4 * KIB
"""So much counts of the smallest one of them."""
LINE_BYTES: Final = 8 * MIB
"""Of one object in an NDJSON answer; a record has at most 1 MiB."""

CtlError = ClientError
"""The daemon cannot be reached, or it refused."""


class Ctl:
    """Requests to one daemon; every method raises CtlError with the daemon's own code if it refuses."""

    def __init__(self, where: Where, token: str, trace: Callable[[str], None]) -> None:
        self.where = where.name
        """The name of the daemon in messages to people."""
        self._where = where
        self._token = token
        self._trace = trace
        self._limits = Limits()
        self._taken = 0

    def get(self, path: str, query: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
        """Return the object that a GET answers."""
        pairs = "&".join(f"{quote(name)}={quote(value)}" for name, value in query)
        return self._object("GET", f"{path}?{pairs}" if pairs else path, b"", ANSWER_S)

    def items(self, path: str, query: Iterable[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        """Return the elements of the list that a GET answers."""
        return elements(self.get(path, query))

    def check_taken(self, bytes_max: int) -> None:
        """Raise CtlError when whole answers took more than this in all: a daemon elsewhere may list without end."""
        if self._taken > bytes_max:
            text = f"{self.where} listed more than {bytes_max // MIB} MiB; what came may have no end"
            raise CtlError("answer-malformed", text)

    def post(self, path: str, body: Mapping[str, object], timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the object that a POST answers."""
        return self._object("POST", path, json.dumps(body).encode(), timeout_s)

    def delete(self, path: str) -> dict[str, Any]:
        """Return the object that a DELETE answers."""
        return self._object("DELETE", path, b"", ANSWER_S)

    def fetch(self, path: str) -> bytes:
        """Return the bytes that a GET answers."""
        return b"".join(self._pieces("GET", path, b"", JSON, ANSWER_S, ANSWER_BYTES))

    def stream(self, path: str, heads: list[ResponseHead] | None = None, silence_s: float = LONG_S) -> Iterator[bytes]:
        """Yield the bytes that a GET answers as they arrive; a cut answer raises CtlError "disconnected".

        The head of the answer goes into `heads` before the first of them; `silence_s` bounds the wait for the next.
        """
        return self._pieces("GET", path, b"", JSON, silence_s, UNBOUNDED, heads)

    def request(
        self, method: str, path: str, body: bytes, media: str, silence_s: float, heads: list[ResponseHead]
    ) -> Iterator[bytes]:
        """Yield the bytes that any request is answered with, as they arrive."""
        return self._pieces(method, path, body, media, silence_s, UNBOUNDED, heads)

    def lines(self, path: str, body: bytes, media: str, silence_s: float) -> Iterator[dict[str, Any]]:
        """Return the objects of an NDJSON answer to a POST, each as it arrives.

        `silence_s` bounds the wait for the next byte.  Raises CtlError "disconnected" when the answer is cut.
        """
        rest = b""
        for piece in self._pieces("POST", path, body, media, silence_s, UNBOUNDED):
            *whole, rest = (rest + piece).split(b"\n")
            for line in filter(None, whole):
                yield object_of(line)
            if len(rest) > LINE_BYTES:
                raise CtlError("answer-malformed", f"{self.where} sent a line over {LINE_BYTES} bytes")
        if rest:
            yield object_of(rest)

    def kept(self) -> Client:
        """Return a client with one connection for many requests, one after another; nothing is dialled yet."""
        return Client.at(self._where, self._token)

    def instance(self) -> str | None:
        """Return the daemon's DID, or None without identity."""
        did = self.get("/health").get("did")
        return did if isinstance(did, str) else None

    def pid(self) -> int:
        """Return the process id of the daemon as this process may signal it; 0 if the system does not tell.

        What the daemon says of itself may be an id of another container.
        """
        with dial(self._where, ANSWER_S) as sock:
            return _peer_pid(sock) if self._where.path else 0

    def _object(self, method: str, target: str, body: bytes, timeout_s: float) -> dict[str, Any]:
        answer = b"".join(self._pieces(method, target, body, JSON, timeout_s, ANSWER_BYTES))
        self._taken += max(len(answer), _COUNTED_BYTES)
        return object_of(answer or b"{}")

    def _pieces(
        self, method: str, target: str, body: bytes, media: str, timeout_s: float, answer_bytes: int,
        heads: list[ResponseHead] | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        """Yield the body of a successful answer as it arrives; raise CtlError for any other."""
        headers = [("host", self._where.authority), ("connection", "close")]
        if body or method == "POST":
            headers.append(("content-type", media))
        if self._token:
            headers.append(("authorization", f"Bearer {self._token}"))
        request = encode_request(method, target, headers, body)
        parser = ResponseParser(self._limits, method, answer_bytes)
        refused: list[bytes] = []
        status = 0
        with faults(self._where, timeout_s), dial(self._where, timeout_s) as sock:
            if hint := stopped_hint(pid := _peer_pid(sock)):
                raise fault("daemon-down", f"the daemon of this home, process {pid}, is stopped (T)", hint=hint)
            self._send(sock, request)
            for event in _events(sock, parser):
                if isinstance(event, ResponseHead):
                    status = event.status
                    if heads is not None:
                        heads.append(event)
                    self._trace(f"{method} {target} answered {status}")
                elif isinstance(event, bytes) and status < 300:
                    yield event
                elif isinstance(event, bytes):
                    refused.append(event)
        if status >= 300:
            raise refusal({} if status < 400 else object_of(b"".join(refused)), status)

    def _send(self, sock: socket.socket, request: bytes) -> None:
        """Send a request; a daemon that refuses early stops reading, and its answer states the reason."""
        try:
            sock.sendall(request)
        except TimeoutError:
            raise
        except OSError:
            self._trace("the daemon stopped reading")


def open_ctl(home: str, env: Mapping[str, str], trace: Callable[[str], None]) -> Ctl:
    """Return the client for this home's daemon, or for the one that SPL_SERVE_URL names.

    Nothing is dialled yet.  Raises CtlError "http-plain" for a URL of http that is not this machine.
    """
    url = env.get("SPL_SERVE_URL", "")
    if not url:
        return Ctl(at_home(home, tilde(os.path.join(home, SOCKET), env)), "", trace)
    where = at_url(url, env.get("SSL_CERT_FILE", ""), "SPL_SERVE_URL")
    return Ctl(where, env.get("SPL_TOKEN", "") or token_of(home), trace)


def stopped_hint(pid: int) -> str:
    """Return what to do if this process is stopped, as by Ctrl-Z or SIGSTOP; "" if it runs, or nothing tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b") ")[2][:1]
    except OSError:
        return ""
    step = f"to let it go on: kill -CONT {pid}; to end it, which loses nothing: kill -9 {pid}"
    return step if state in (b"T", b"t") else ""


def _events(sock: socket.socket, parser: ResponseParser) -> Iterator[ResponseHead | bytes | Mark]:
    """Yield the events of one answer; an answer cut short raises ConnectionResetError."""
    ended = False
    while True:
        event = parser.next()
        if event is not None:
            yield event
            if event is END:
                return
        elif ended:
            raise ConnectionResetError
        elif data := sock.recv(65536):
            parser.feed(data)
        else:
            ended = True
            parser.feed_end()


def _peer_pid(sock: socket.socket) -> int:
    """Return the process that listens at the other end of a Unix socket; 0 for any other socket."""
    if sock.family != socket.AF_UNIX:
        return 0
    if hasattr(socket, "SO_PEERCRED"):  # Linux
        return int(
            struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))[0]
        )
    return sock.getsockopt(0, 2)  # SOL_LOCAL, LOCAL_PEERPID
