"""HTTP by hand: a client over plain sockets that comes from any address of 127.0.0.0/8 and sends what it is told."""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

TIMEOUT_S: Final = 30.0
HERE: Final = "127.0.0.1"


@dataclass(frozen=True, repr=False)
class Reply:
    """What came back: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error form, "" for another body."""
        value = self.json if self.body.startswith(b"{") else {}
        return str(value.get("code", "")) if value.get("object") == "error" else ""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the signed message in the body, or beside its error form."""
        value = self.json
        return dict(value.get("statement", value)["message"])

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:400].decode(errors='replace')}"


class Line:
    """One connection, kept alive; `source` is the address it comes from."""

    def __init__(self, port: int, source: str = HERE, *, read_bytes: int = 0) -> None:
        """Connect; `read_bytes` is the size of the buffer for what is not read, 0 the system's."""
        self.sock = socket.socket()
        self.sock.settimeout(TIMEOUT_S)
        if read_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_bytes)
        self.sock.bind((source, 0))
        self.sock.connect((HERE, port))
        self._file = self.sock.makefile("rb")
        self._host = f"127.0.0.1:{port}"

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self.sock.close()

    def send(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send one request and do not wait for its answer."""
        given = {"host": self._host, **(headers or {})}
        if body or method == "POST":
            given = {"content-type": "application/json", "content-length": str(len(body)), **given}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        self.sock.sendall("\r\n".join(lines).encode() + body)

    def read(self) -> Reply:
        """Read one answer that has a length or comes in chunks."""
        status, headers = self.read_head()
        if headers.get("transfer-encoding") == "chunked":
            return Reply(status, headers, b"".join(self.chunks()))
        return Reply(status, headers, self._file.read(int(headers.get("content-length", "0"))))

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Read the status and the headers of an answer."""
        first = self._file.readline()
        assert first, "the daemon ended the connection without an answer"
        headers: dict[str, str] = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(first.split()[1]), headers

    def peek(self, count: int) -> bytes:
        """Wait for the first bytes of an answer and leave them where they are."""
        return self.sock.recv(count, socket.MSG_PEEK)

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks of a body as they come."""
        while size := int(self._file.readline().strip() or b"0", 16):
            yield self._file.read(size)
            self._file.readline()
        self._file.readline()

    def ask(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """Send one request and return its answer."""
        self.send(method, target, body, headers)
        return self.read()

    def events(self) -> Iterator[tuple[str, str, str]]:
        """Yield (event, id, data) of a stream whose head was read, as they come."""
        text = ""
        for piece in self.chunks():
            text += piece.decode()
            while "\n\n" in text:
                block, _, text = text.partition("\n\n")
                found = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
                yield found.get("event", ""), found.get("id", ""), found.get("data", "")


def ask(
    port: int, method: str, target: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None,
    source: str = HERE,
) -> Reply:  # fmt: skip
    """Send one request over a connection of its own, from `source`, and return its answer."""
    with contextlib.closing(Line(port, source)) as line:
        return line.ask(method, target, body, headers)


def statuses(port: int, count: int, target: str, body: bytes, source: str = HERE) -> set[int]:
    """Return what status codes a POST gets that is sent so many times, on as few connections as the daemon allows."""
    found, line = set(), Line(port, source)
    for _ in range(count):
        reply = line.ask("POST", target, body)
        found.add(reply.status)
        if reply.headers.get("connection", "").lower() == "close":
            line.close()
            line = Line(port, source)
    line.close()
    return found
