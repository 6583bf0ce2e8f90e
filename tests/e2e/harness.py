"""Real daemons for tests: a home, a process, its command line and its HTTP, and nothing that reaches into the product.

Every wait has a deadline and ends as soon as its condition holds.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.conftest import LOOP
from tests.waiting import DEADLINE_S, eventually

ROOT: Final = Path(__file__).resolve().parent.parent.parent
READY_S: Final = 60.0
PORTS: Final = range(10_000, 32_000)
_BLOCK_PORTS: Final = 100
_HELD: Final[list[socket.socket]] = []


def hold_port(port: int) -> bool:
    """Keep a TCP port of 127.0.0.1 from every other process until this one ends; return False if another has it."""
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        return False
    _HELD.append(sock)
    return True


def _own_ports() -> Iterator[int]:
    """Yield ports, each once, that no other process of tests yields: who holds the first of a block has the rest.

    Chosen one by one, two workers would now and then choose the same, before the daemon of either is listening.
    """
    starts = list(PORTS[::_BLOCK_PORTS])
    random.SystemRandom().shuffle(starts)
    for start in starts:
        if hold_port(start):
            yield from range(start + 1, start + _BLOCK_PORTS)


_OWN_PORTS: Final = _own_ports()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing uses at present, and that no process of tests returned before.

    It lies below those that systems take for outgoing connections: one of those may be gone before a daemon binds it.
    """
    for port in _OWN_PORTS:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("every port was used")


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The `data` member of a command called with `-o json`."""
        return json.loads(self.out)["data"]


@dataclass(frozen=True)
class Answer:
    """What an HTTP request was answered: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error form; "" for any other body."""
        return str(self.json.get("code", "")) if self.body.startswith(b'{"object":"error"') else ""


@dataclass
class Instance:
    """One home and, while it runs, its daemon."""

    name: str
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    flags: tuple[str, ...] = ()
    published: bool = False
    """Its own URL is set as public_url, so that peers on this machine are near; else only what is typed is dialled."""

    @property
    def url(self) -> str:
        """Where its plain listener is, with the slash at the end."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def token(self) -> str:
        """The admin token that `spl init` left in the home."""
        return (self.home / "token").read_text().strip()

    @property
    def did(self) -> str:
        """Its DID, as its health page says."""
        return str(self.get("/health").json["did"])

    def environment(self) -> dict[str, str]:
        """Return the environment of its processes: nothing of the tests' own but the path and the loop."""
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.home.parent), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT),
            "SYNCROPEL_HOME": str(self.home), "SPL_LOOP": LOOP,
            **({"SPL_PUBLIC_URL": self.url.rstrip("/")} if self.published else {}), **self.env,
        }  # fmt: skip

    # the command line

    def run(self, *words: str, code: int | None = 0, stdin: bytes = b"") -> Done:
        """Run `spl WORDS` and return what it left; fail unless it exits with `code` (None: any)."""
        command = [sys.executable, "-m", "spl", *words]
        ran = subprocess.run(
            command, env=self.environment(), input=stdin, capture_output=True, timeout=120, check=False
        )
        done = Done(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
        if code is not None:
            assert done.code == code, f"{self.name}$ spl {' '.join(words)}: exit {done.code}\n{done.out}\n{done.err}"
        return done

    def data(self, *words: str) -> Any:
        """Return the data of `spl WORDS -o json`."""
        return self.run(*words, "-o", "json").data

    # the daemon

    def configure(self, text: str) -> "Instance":
        """Write the configuration file and return the instance."""
        (self.home / "config.toml").write_text(text)
        return self

    def start(self, *flags: str) -> "Instance":
        """Start the daemon, wait until it takes writes, and return the instance; no flags means those of before."""
        self.flags = flags or self.flags
        self.launch()
        try:
            eventually(self.is_ready, f"{self.name} is ready", READY_S)
        except AssertionError:
            print(self.output())
            raise
        return self

    def launch(self) -> None:
        """Start the daemon and do not wait."""
        assert self.process is None or self.process.poll() is not None
        with (self.home.parent / f"{self.name}.out").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("serve", "--port", str(self.port), *self.flags),
                env=self.environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def command(self, *words: str) -> list[str]:
        """Return the command that starts a daemon with these words."""
        return [sys.executable, "-m", "spl", *words]

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection to the daemon's plain listener."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def is_ready(self) -> bool:
        """Tell whether the daemon takes writes; fail when its process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}\n{self.output()}"
        try:
            return self.get("/health/ready").status == 200
        except OSError:
            return False

    def output(self) -> str:
        """Return the last of what the daemon's processes printed."""
        return (self.home.parent / f"{self.name}.out").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End the daemon with SIGKILL."""
        self.signal(signal.SIGKILL)

    def stop(self) -> int:
        """End the daemon with SIGTERM and return its exit code."""
        return self.signal(signal.SIGTERM)

    def signal(self, number: int) -> int:
        """Send a signal to the daemon and return the exit code it ends with."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_S)

    def end(self) -> None:
        """End the daemon if it still runs, whatever its state."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # HTTP

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one HTTP request with the headers as given, and return the answer."""
        connection = self.connection()
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """GET without a token."""
        return self.request("GET", path)

    def api(self, method: str, path: str, value: object = None, token: str = "") -> Answer:
        """Send a JSON request with the admin token, or with the one given."""
        headers = {"authorization": f"Bearer {token or self.token}"}
        body = None
        if value is not None:
            body = json.dumps(value).encode()
            headers["content-type"] = "application/json"
        return self.request(method, path, body, headers)

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are, half-close, and return everything that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused early; the answer is there already
            return b"".join(_received(sock))

    # records

    def emit(self, thread: str, count: int = 1, **body: object) -> list[str]:
        """Emit records on a thread in one request and return their ids."""
        lines = [
            json.dumps(
                {"act": "KNOW", "actor": f"did:sync:user:{self.name}", "thread": thread, "body": {**body, "n": n}}
            )
            for n in range(count)
        ]
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/x-ndjson"}
        answer = self.request("POST", "/v1/records", "\n".join(lines).encode(), headers)
        assert answer.status == 200, answer.body
        values = [json.loads(line) for line in answer.body.splitlines()]
        assert all(value["object"] == "record" for value in values), values
        return [value["id"] for value in values]

    def records(self, thread: str) -> list[dict[str, Any]]:
        """Return the records of a thread as the API shows them."""
        answer = self.api("GET", f"/v1/threads/{thread}/records?limit=10000")
        assert answer.status == 200, answer.body
        return list(answer.json["data"])

    def holding(self) -> dict[str, frozenset[str]]:
        """Return thread -> record ids of everything but the reserved threads."""
        threads = self.api("GET", "/v1/threads?limit=10000").json["data"]
        return {item["thread"]: frozenset(record["id"] for record in self.records(item["thread"])) for item in threads}

    # pairs

    def pairs(self, *states: str) -> list[dict[str, Any]]:
        """Return its pairs as `spl federation list` has them, in these states or all."""
        answer = self.api("GET", "/v1/federation/pairs")
        assert answer.status == 200, answer.body
        return [pair for pair in answer.json["data"] if not states or pair["state"] in states]

    def pair(self, ref: str) -> dict[str, Any]:
        """Return one pair in full."""
        answer = self.api("GET", f"/v1/federation/pairs/{ref}")
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def paired(self, url: str, **options: object) -> str:
        """Pair with the daemon at this URL, and return the id of the pair, which is active on both sides."""
        *_, last = self.steps(url, **options)
        assert last.get("step") == "active", last
        return str(last["pair_id"])

    def compared(self, pair_id: str) -> None:
        """Return once this side has compared the new pair, which it does by itself: until then it may read it again."""
        eventually(lambda: self.pair(pair_id)["compared"], f"{self.name} has compared {pair_id}")

    def steps(self, url: str, **options: object) -> Iterator[dict[str, Any]]:
        """Ask the daemon to pair and yield the steps as they happen; a daemon that dies ends them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        try:
            connection.request("POST", "/v1/federation/pairs", json.dumps({"url": url, **options}), headers)
            answer = connection.getresponse()
            while line := answer.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()


class Wire:
    """A TCP relay in front of a daemon that keeps what clients sent and what they heard, one entry a connection."""

    def __init__(self, target_port: int) -> None:
        self.sent: list[bytes] = []
        self.heard: list[bytes] = []
        self._target = target_port
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def requests(self, start: bytes) -> list[bytes]:
        """Return the requests sent so far, whose bytes begin with `start`; a connection may carry several."""
        found = []
        for data in list(self.sent):
            at = data.find(start)
            while at >= 0:
                head, _, rest = data[at:].partition(b"\r\n\r\n")
                length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                               if line.startswith(b"content-length:")), 0)  # fmt: skip
                found.append(head + b"\r\n\r\n" + rest[:length])
                at = data.find(start, at + 1)
        return found

    def close(self) -> None:
        """Stop accepting, and end every connection."""
        for sock in (self._sock, *self._ends):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for sock in (self._sock, *self._ends):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            number = len(self.sent)
            self.sent.append(b"")
            self.heard.append(b"")
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._ends += [client, server]
            self._run(self._relay, client, server, self.sent, number)
            self._run(self._relay, server, client, self.heard, number)

    def _run(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _relay(self, source: socket.socket, target: socket.socket, kept: list[bytes], number: int) -> None:
        try:
            for piece in _received(source):
                kept[number] += piece
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()


def _received(sock: socket.socket) -> Iterator[bytes]:
    try:
        while piece := sock.recv(65536):
            yield piece
    except ConnectionResetError:
        return
