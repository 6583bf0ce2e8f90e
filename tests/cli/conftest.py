"""A daemon of canned answers on a real Unix socket, and a runner for command lines."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spl.cli import main as cli
from spl.core.limits import Limits
from spl.core.when import ms_of
from spl.net.http1 import END, RequestHead, RequestParser

NOW = "2026-11-23T06:00:00.000Z"
ALICE = "did:sync:instance:alice-0123456789abcdef01234567"
BOB = "did:sync:instance:bob-89abcdef0123456789abcdef"


@dataclass
class Call:
    """One request as the daemon saw it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Daemon:
    """Answers (method, target) from a dict: a value, (status, value), bytes sent as they are, or a function of Call."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def sent(self, method: str, target: str) -> Call:
        """Return the last request of this method and target."""
        return next(call for call in reversed(self.calls) if (call.method, call.target) == (method, target))

    def answer(self, call: Call) -> bytes:
        if call.target not in {target for _, target in self.answers}:
            return reply(404, error("not-found", f"no route {call.target}"))
        found = self.answers[call.method, call.target]
        value = found(call) if callable(found) else found
        if isinstance(value, bytes):
            return value
        status, body = value if isinstance(value, tuple) else (200, value)
        return reply(status, body)


@dataclass
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)["data"]


class Stream(io.TextIOWrapper):
    """A text stream in memory, which may claim to be a terminal."""

    def __init__(self, tty: bool, encoding: str = "utf-8") -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, newline="\n")
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        self.flush()
        return self.raw_bytes.getvalue().decode(self.encoding)


def reply(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(*lines: object, end: bool = True) -> bytes:
    """Return an NDJSON answer, one object a chunk; cut short without `end`."""
    pieces = [json.dumps(line).encode() + b"\n" for line in lines]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + (b"0\r\n\r\n" if end else b"")


def error(code: str, message: str, **facts: object) -> dict[str, object]:
    wire = code.upper().replace("-", "_")
    return {"object": "error", "type": "t", "code": wire, "message": message, "hint": "", **facts}


def child(*argv: str, home: Path, **more: object) -> "subprocess.Popen[bytes]":
    """Start Python with these arguments and this home, its stderr in a pipe."""
    env = {**os.environ, "SYNCROPEL_HOME": str(home)}
    return subprocess.Popen([sys.executable, *argv], env=env, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]


def listed(*items: object) -> dict[str, object]:
    return {"object": "list", "data": list(items)}


@pytest.fixture
def home() -> Iterator[Path]:
    """The usual home of a user who has no other file."""
    folder = Path(tempfile.mkdtemp(prefix="spl-cli-"))
    (folder / ".syncro").mkdir()
    yield folder / ".syncro"
    shutil.rmtree(folder)


@pytest.fixture
def daemon(home: Path) -> Iterator[Daemon]:
    (home / "run").mkdir()
    found = Daemon({("GET", "/health"): {"status": "ok", "did": ALICE, "version": "1.0.0", "uptime_s": 9, "pid": 7}})
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(home / "run/spl.sock"))
    server.listen(8)
    thread = threading.Thread(target=serve, args=(server, found))
    thread.start()
    yield found
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


def serve(server: socket.socket, daemon: Daemon) -> None:
    """Answer connections one by one until the listener is shut down."""
    while True:
        try:
            sock, _ = server.accept()
        except OSError:
            return
        with sock:
            call = read(sock)
            if call is not None:
                daemon.calls.append(call)
                with suppress(ConnectionError):  # some commands are ended in the middle
                    sock.sendall(daemon.answer(call))


def read(sock: socket.socket) -> Call | None:
    parser = RequestParser(Limits())
    head: RequestHead | None = None
    body = b""
    while True:
        event = parser.next()
        if isinstance(event, RequestHead):
            head = event
            parser.take_body(1 << 24)
        elif isinstance(event, bytes):
            body += event
        elif event is END:
            assert head is not None
            return Call(head.method, head.target, dict(head.headers), body)
        else:
            data = sock.recv(65536)
            if not data:
                return None
            parser.feed(data)


Run = Callable[..., Result]


@pytest.fixture
def spl(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process, at the time NOW."""
    monkeypatch.setattr(cli, "now_ms", lambda: ms_of(NOW))

    def run(
        *argv: str, tty: bool = False, stdin: bytes = b"", env: Mapping[str, str] | None = None, encoding: str = "utf-8"
    ) -> Result:
        stdout, stderr = Stream(tty, encoding), Stream(tty, encoding)
        environ = {"SYNCROPEL_HOME": str(home), "HOME": str(home.parent), **(env or {})}
        if tty:
            environ.setdefault("COLUMNS", "100")
            environ.setdefault("NO_COLOR", "1")
        code = cli.run(list(argv), environ, io.BytesIO(stdin), stdout, stderr)
        return Result(code, stdout.text, stderr.text)

    return run
