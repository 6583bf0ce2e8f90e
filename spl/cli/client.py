"""The control client: blocking requests to the daemon of this home or of SPL_SERVE_URL, with the daemon's own parser.

Over the Unix socket the file mode is the credential.  With SPL_SERVE_URL a request carries SPL_TOKEN or `<home>/token`:
over plain HTTP to this machine only, else over TLS, whose certificate the system's authorities or those in
SSL_CERT_FILE have to vouch for.
"""

import importlib
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ..core.errors import CODES, SplError, cli_code
from ..core.limits import MIB, Limits
from ..core.version import SOCKET
from ..net.heads import WireError, encode_request
from ..net.http1 import END, UNBOUNDED, Mark, ResponseHead, ResponseParser, read_answer

ANSWER_S: Final = 30.0
LONG_S: Final = 3600.0
"""For requests that move many records: the first sync of a long history has no smaller bound."""
ANSWER_BYTES: Final = 64 * MIB
"""Of an answer that is taken whole; longer ones are streamed."""
KEPT_IDLE_S: Final = 20.0
"""Less than any daemon or proxy keeps a silent connection open."""
LINE_BYTES: Final = 8 * MIB
"""Of one object in an NDJSON answer; a record has at most 1 MiB."""
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

_PATH_BYTES: Final = 107  # what sun_path holds
_NEAR: Final = re.compile(r"http://(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::([0-9]{1,5}))?/?\Z", re.IGNORECASE)
_FAR: Final = re.compile(r"https://([a-z0-9][a-z0-9.-]*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?\Z", re.IGNORECASE)
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:")
_OWN_KEYS: Final = frozenset({"object", "type", "code", "message", "hint"})
_UNKNOWN: Final[Mapping[int, str]] = {
    401: "auth-invalid", 403: "scope-forbidden", 404: "not-found", 409: "pair-state-conflict",
    413: "body-too-large", 429: "rate-limited", 502: "peer-5xx", 503: "overloaded", 504: "timeout",
}  # fmt: skip
"""HTTP status -> the code of ours that replaces an unknown code of a newer daemon."""


class CtlError(SplError):
    """The daemon cannot be reached, or it refused."""


class Ctl:
    """Requests to one daemon; every method raises CtlError with the daemon's own code if it refuses."""

    def __init__(
        self,
        connect: Callable[[float], socket.socket],
        where: str,
        authority: str,
        token: str,
        trace: Callable[[str], None],
    ) -> None:
        self.where = where
        """The name of the daemon in messages to people."""
        self._connect = connect
        self._authority = authority
        self._token = token
        self._trace = trace
        self._limits = Limits()

    def get(self, path: str, query: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
        """Return the object that a GET answers."""
        pairs = "&".join(f"{quote(name)}={quote(value)}" for name, value in query)
        return self._object("GET", f"{path}?{pairs}" if pairs else path, b"", ANSWER_S)

    def items(self, path: str, query: Iterable[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        """Return the elements of the list that a GET answers."""
        return elements(self.get(path, query))

    def post(self, path: str, body: Mapping[str, object], timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the object that a POST answers."""
        return self._object("POST", path, json.dumps(body).encode(), timeout_s)

    def delete(self, path: str) -> dict[str, Any]:
        """Return the object that a DELETE answers."""
        return self._object("DELETE", path, b"", ANSWER_S)

    def fetch(self, path: str) -> bytes:
        """Return the bytes that a GET answers."""
        return b"".join(self._pieces("GET", path, b"", JSON, ANSWER_S, ANSWER_BYTES))

    def stream(self, path: str, heads: list[ResponseHead] | None = None) -> Iterator[bytes]:
        """Yield the bytes that a GET answers as they arrive; a cut answer raises CtlError "disconnected".

        The head of the answer goes into `heads` before the first of them.
        """
        return self._pieces("GET", path, b"", JSON, LONG_S, UNBOUNDED, heads)

    def lines(self, path: str, body: bytes, media: str, silence_s: float) -> Iterator[dict[str, Any]]:
        """Return the objects of an NDJSON answer to a POST, each as it arrives.

        `silence_s` bounds the wait for the next byte.  Raises CtlError "disconnected" when the answer is cut.
        """
        rest = b""
        for piece in self._pieces("POST", path, body, media, silence_s, UNBOUNDED):
            *whole, rest = (rest + piece).split(b"\n")
            for line in filter(None, whole):
                yield self._decode(line)
            if len(rest) > LINE_BYTES:
                raise CtlError("answer-malformed", f"{self.where} sent a line over {LINE_BYTES} bytes")
        if rest:
            yield self._decode(rest)

    def kept(self) -> "Kept":
        """Return a connection that carries many requests one after another; nothing is dialled yet."""
        return Kept(self._connect, self.where, self._authority, self._token, self._limits)

    def instance(self) -> str | None:
        """Return the daemon's DID, or None without identity."""
        did = self.get("/health").get("did")
        return did if isinstance(did, str) else None

    def pid(self) -> int:
        """Return the process id of the daemon as this process may signal it; 0 if the system does not tell.

        What the daemon says of itself may be an id of another container.
        """
        with self._connect(ANSWER_S) as sock:
            return _peer_pid(sock)

    def _object(self, method: str, target: str, body: bytes, timeout_s: float) -> dict[str, Any]:
        return self._decode(b"".join(self._pieces(method, target, body, JSON, timeout_s, ANSWER_BYTES)) or b"{}")

    def _pieces(
        self, method: str, target: str, body: bytes, media: str, timeout_s: float, answer_bytes: int,
        heads: list[ResponseHead] | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        """Yield the body of a successful answer as it arrives; raise CtlError for any other."""
        headers = [("host", self._authority), ("connection", "close")]
        if body or method == "POST":
            headers.append(("content-type", media))
        if self._token:
            headers.append(("authorization", f"Bearer {self._token}"))
        request = encode_request(method, target, headers, body)
        parser = ResponseParser(self._limits, method, answer_bytes)
        refused: list[bytes] = []
        status = 0
        with _faults(self.where, timeout_s), self._connect(timeout_s) as sock:
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
            raise refusal(self._decode(b"".join(refused)), status)

    def _send(self, sock: socket.socket, request: bytes) -> None:
        """Send a request; a daemon that refuses early stops reading, and its answer states the reason."""
        try:
            sock.sendall(request)
        except TimeoutError:
            raise
        except OSError:
            self._trace("the daemon stopped reading")

    def _decode(self, data: bytes) -> dict[str, Any]:
        return _decoded(data, self.where)


class Kept:
    """Requests over one connection; after a fault or too long a silence the next request dials another one.

    One thread at a time may use it.
    """

    def __init__(
        self, connect: Callable[[float], socket.socket], where: str, authority: str, token: str, limits: Limits
    ) -> None:
        self.where = where
        self._connect = connect
        self._headers = [("host", authority), ("content-type", JSON)]
        if token:
            self._headers.append(("authorization", f"Bearer {token}"))
        self._limits = limits
        self._sock: socket.socket | None = None
        self._used_s = 0.0

    def ask(self, method: str, target: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the object that the daemon answers within 30 s; raise CtlError as `Ctl` does."""
        data = b"" if body is None else json.dumps(body).encode()
        if time.monotonic() - self._used_s > KEPT_IDLE_S:
            self.close()
        with _faults(self.where, ANSWER_S):
            sock, self._sock = self._sock or self._connect(ANSWER_S), None
            keep = False
            try:
                sock.sendall(encode_request(method, target, self._headers, data))
                head, answer = read_answer(sock.recv, self._limits, method, ANSWER_BYTES)
                keep = head.keep_alive
            finally:
                if keep:
                    self._sock, self._used_s = sock, time.monotonic()
                else:
                    sock.close()
        value = _decoded(answer, self.where)
        if head.status >= 300:
            raise refusal(value, head.status)
        return value

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def open_ctl(home: str, env: Mapping[str, str], trace: Callable[[str], None]) -> Ctl:
    """Return the client for this home's daemon, or for the one that SPL_SERVE_URL names.

    Nothing is dialled yet.  Raises CtlError "http-plain" for a URL of http that is not this machine.
    """
    url = env.get("SPL_SERVE_URL", "")
    if not url:
        path = os.path.join(home, SOCKET)
        return Ctl(lambda timeout_s: _dial_unix(path, timeout_s, env), tilde(path, env), "localhost", "", trace)
    far = _FAR.match(url)
    found = far or _NEAR.match(url)
    port = int(found[2] or (443 if far else 80)) if found else 0
    if found is None or not 0 < port < 65536:
        raise CtlError(
            "http-plain",
            "SPL_SERVE_URL is https://HOST:PORT, or http:// to this machine, and without a path: it is sent a token",
            hint="its tls.listen over https; or ssh -L 9100:127.0.0.1:9100 HOST, then http://127.0.0.1:9100",
        )
    host = found[1].strip("[]")
    token = env.get("SPL_TOKEN", "") or _token_file(home)
    if far:
        ca_file = env.get("SSL_CERT_FILE", "")
        authority = found[1] + (f":{port}" if found[2] else "")
        return Ctl(lambda timeout_s: _dial_tls(host, port, timeout_s, ca_file), url, authority, token, trace)
    return Ctl(lambda timeout_s: _dial_tcp(host, port, timeout_s), url, f"{found[1]}:{port}", token, trace)


def elements(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects in a list answer."""
    data = answer.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise CtlError("answer-malformed", "the daemon did not answer with a list")
    return data


def refusal(form: Mapping[str, Any], status: int = 500) -> CtlError:
    """Return the error of an error form, ready to be raised.

    An unknown code of a newer daemon is named in the message and replaced by the nearest of ours.
    """
    wire = form.get("code")
    code = cli_code(wire) if isinstance(wire, str) else ""
    message, hint = form.get("message"), form.get("hint")
    text = message if isinstance(message, str) else f"the daemon answered {status}"
    if code not in CODES:
        text, code = f"{text} ({code or status})", _UNKNOWN.get(status, "usage" if 400 <= status < 500 else "internal")
    error = CtlError(code, text, hint=hint if isinstance(hint, str) else "")
    error.facts = {name: value for name, value in form.items() if name not in _OWN_KEYS}
    return error


def quote(text: str) -> str:
    """Return the text percent-encoded for one path segment or query value."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


def tilde(path: str, env: Mapping[str, str]) -> str:
    """Return a path as people write it, with ~ for HOME."""
    own = env.get("HOME", "").rstrip("/")
    return "~" + path[len(own) :] if own and path.startswith(own + "/") else path


@contextmanager
def _faults(where: str, timeout_s: float) -> Iterator[None]:
    """Raise CtlError for the faults of a connection to the daemon."""
    try:
        yield
    except WireError as exc:
        raise CtlError("answer-malformed", f"{where} did not answer in HTTP: {exc.message}") from exc
    except TimeoutError as exc:
        raise CtlError("timeout", f"{where} did not answer within {timeout_s:.0f} s") from exc
    except OSError as exc:  # those of TLS are neither of these two
        raise CtlError("disconnected", f"{where} closed the connection too early") from exc


def _decoded(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CtlError("answer-malformed", f"{where} did not answer with JSON") from exc
    if not isinstance(value, dict):
        raise CtlError("answer-malformed", f"{where} did not answer with a JSON object")
    return value


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


def _dial_unix(path: str, timeout_s: float, env: Mapping[str, str]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        if len(os.fsencode(path)) <= _PATH_BYTES:
            sock.connect(path)
            return sock
        # A longer path is reached through its open folder, whose name in /proc is short.
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.close(folder)
        return sock
    except PermissionError as exc:
        sock.close()
        hint = "run as the user of the daemon"
        raise CtlError("home-unusable", f"no permission to open {tilde(path, env)}", hint=hint) from exc
    except OSError as exc:
        sock.close()
        raise _down(tilde(path, env)) from exc


def _dial_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), timeout_s)
    except OSError as exc:
        raise _down(f"http://{host}:{port}") from exc
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _dial_tls(host: str, port: int, timeout_s: float, ca_file: str) -> socket.socket:
    sockets = importlib.import_module("..net.sockets", __package__)  # only this way needs it, and TLS with it
    try:
        sock: socket.socket = sockets.dial_tls(host, port, timeout_s, ca_file)
    except SplError as exc:
        if exc.code == "connect":
            raise _down(f"https://{host}:{port}") from exc
        raise CtlError(exc.code, exc.message, hint=exc.hint) from exc
    return sock


def _down(where: str) -> CtlError:
    return CtlError("daemon-down", f"cannot reach the daemon at {where}")


def _unblocked(path: str, flags: int) -> int:
    """Open a file without waiting, as a FIFO would make us wait for who writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _token_file(home: str) -> str:
    """Return the admin token of the home, "" without one."""
    try:
        with open(os.path.join(home, "token"), encoding="ascii", opener=_unblocked) as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError):
        return ""
