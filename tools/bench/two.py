"""What the benches share: two real daemons with a pair in continuous mode, load on them, and the form of a report.

The daemons have homes of their own below a temporary folder, speak over loopback, and are ended and removed at the end.
A report is a table for people and, as the last line, one JSON object for programs; both name the machine.
"""

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, cast

ROOT: Final = Path(__file__).resolve().parent.parent.parent
READY_S: Final = 20.0
THREAD: Final = "th_bench"
HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length: "
LOAD_FROM: Final = ("127.0.0.2", 0)
"""Where connections of a load come from: those of one address are bounded, and the peer has its own."""


Secure = tuple[Path, Path]
"""A certificate, which is its own authority, and its key."""


class Side:
    """One daemon and a connection to it; with `secure` its peers reach it by https."""

    def __init__(self, name: str, folder: Path, secure: Secure | None = None) -> None:
        self.name, self.home = name, folder / name
        self.port = _free_port()
        # As its own address is on this machine, the daemon dials others there too.
        self.url = f"http://127.0.0.1:{self.port}"
        said = {"SYNCROPEL_HOME": str(self.home), "PYTHONPATH": str(ROOT), "SPL_FEDERATION_APPROVAL": "auto"}
        self.env = {**os.environ, **said}
        if secure is not None:
            address = f"127.0.0.1:{_free_port()}"
            certificate, key = map(str, secure)
            self.env |= {"SPL_TLS_LISTEN": address, "SPL_TLS_CERTIFICATE": certificate, "SPL_TLS_KEY": key}
            self.env["SPL_TLS_CA_FILE"], self.url = certificate, f"https://{address}"
        self.home.mkdir(mode=0o700)
        self.spl("init", "--label", name)
        self._lines = "".join(f"{field}: {value}\r\n" for field, value in self.headers().items())
        self.start()

    def start(self) -> None:
        """Start the daemon and wait until it accepts writes."""
        command = [sys.executable, "-m", "spl", "serve", "--port", str(self.port), "--public-url", self.url]
        with (self.home.parent / f"{self.name}.out").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        end = time.monotonic() + READY_S
        while True:
            try:
                self.connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
                if self.ask("GET", "/health/ready")["status"] == "ready":
                    return
            except (OSError, KeyError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the daemon."""
        self.connection.close()
        self.process.terminate()
        self.process.wait(30)

    def spl(self, *words: str) -> str:
        """Return what a command printed."""
        command = [sys.executable, "-m", "spl", *words]
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    def headers(self, media: str = "application/json") -> dict[str, str]:
        """Return the headers of a request with the admin token."""
        return {"authorization": f"Bearer {(self.home / 'token').read_text().strip()}", "content-type": media}

    def ask(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        """Return the JSON answer to a request over the kept connection."""
        body = None if value is None else json.dumps(value)
        self.connection.request(method, path, body, self.headers())
        found: dict[str, Any] = json.loads(self.connection.getresponse().read())
        return found

    def emit_many(self, bodies: list[dict[str, object]]) -> None:
        """Emit records on the bench's thread in one request."""
        lines = [json.dumps(record(self.name, body)) for body in bodies]
        self.connection.request("POST", "/v1/records", "\n".join(lines), self.headers("application/x-ndjson"))
        answer = self.connection.getresponse().read()
        assert answer.count(b'"object":"record"') + answer.count(b'"object": "record"') == len(bodies), answer[:300]

    def count(self) -> int:
        """Return the number of records of the bench's thread that it holds."""
        rows = self.ask("GET", "/v1/threads?limit=1000")["data"]
        return next((int(row["records"]) for row in rows if row["thread"] == THREAD), 0)

    def cpu_s(self) -> float:
        """Return the processor time that the daemon has used, user and system, to the nanosecond."""
        return cpu_s(self.process.pid)

    def rss_mib(self) -> float:
        """Return the daemon's resident memory."""
        return rss_mib(self.process.pid)

    def posted(self, body: dict[str, object]) -> bytes:
        """Return the bytes of a request that emits one record on the bench's thread."""
        return self.request("POST", "/v1/records", json.dumps(record(self.name, body)).encode())

    def request(self, method: str, path: str, body: bytes = b"", *, bare: bool = False) -> bytes:
        """Return the bytes of a request, with the admin token unless `bare`."""
        lines = "" if bare else self._lines
        length = f"content-length: {len(body)}\r\n" if body else ""
        return f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{lines}{length}\r\n".encode() + body


class Asker(asyncio.Protocol):
    """One kept connection that sends the next request as soon as the last answer is whole, until there is none."""

    def __init__(self, following: Callable[[], bytes | None], answers: list[int]) -> None:
        self.following, self.answers = following, answers
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        end = data.find(HEAD_END)
        if end < 0:
            return
        start = data.index(LENGTH) + len(LENGTH)
        if len(data) < end + len(HEAD_END) + int(data[start : data.index(b"\r", start)]):
            return
        assert data.startswith(b"HTTP/1.1 200"), data
        self.buffer = b""
        self.answers[0] += 1
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _ask(self) -> None:
        text = self.following()
        if text is not None:
            self.transport.write(text)
        elif not self.done.done():
            self.done.set_result(None)


def self_signed(folder: Path) -> Secure:
    """Return a certificate for 127.0.0.1 and its key, made in a folder."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return certificate, key


@contextmanager
def two_sides(*, paired: bool = True, secure: Secure | None = None) -> Iterator[tuple[Side, Side, str]]:
    """Give two running daemons and their pair's id; the pair is continuous in both directions."""
    folder = Path(tempfile.mkdtemp(prefix="spl-bench-"))
    sides: list[Side] = []
    try:
        sides = [Side("ann", folder, secure)]
        sides.append(Side("ben", folder, secure))
        yield *sides, pair(*sides) if paired else ""  # type: ignore[misc]
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def pair(one: Side, two: Side) -> str:
    """Pair two sides, set both to continuous, wait until both streams are open, and return the pair's id."""
    one.spl("federation", "pair", f"{two.url}/")
    pair_id = str(one.ask("GET", "/v1/federation/pairs")["data"][0]["pair_id"])
    for side in (one, two):
        side.spl("federation", "set-mode", pair_id, "continuous")
    end = time.monotonic() + READY_S
    while not all(is_open(side, pair_id) for side in (one, two)):
        assert time.monotonic() < end, "the streams did not open"
        time.sleep(0.02)
    return pair_id


def cpu_s(pid: int) -> float:
    """Return the processor time that all threads of a process have used."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def pin(pid: int, core: int) -> None:
    """Give every thread of a process, and those that they start, one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def percentile_ms(times: Sequence[float], percent: int) -> float:
    """Return a percentile of sorted seconds, in ms."""
    return round(times[min(len(times) - 1, len(times) * percent // 100)] * 1000, 2)


def machine() -> dict[str, object]:
    """Return what the figures of a report depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "cores": os.cpu_count(), "cpu": model, "kernel": platform.release(),
        "python": platform.python_version(), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def report(bench: str, columns: Sequence[str], rows: Sequence[Sequence[object]], figures: Mapping[str, object]) -> None:
    """Print a table, the machine that it was measured on, and all of it again as one line of JSON."""
    cells = [[*columns], *([f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    here = machine()
    print(f"on {here['cores']} cores of {here['cpu']}, Python {here['python']}, load {here['load']}")
    print(json.dumps({"bench": bench, "figures": figures, "machine": here}), flush=True)


def is_open(side: Side, pair_id: str) -> bool:
    """Return whether a side's stream is open."""
    stream = side.ask("GET", f"/v1/federation/pairs/{pair_id}").get("stream") or {}
    return bool(stream.get("state") == "open")


def record(actor: str, body: dict[str, object]) -> dict[str, object]:
    """Return a record of about 600 bytes once it is signed."""
    return {"act": "KNOW", "actor": f"did:sync:agent:{actor}", "thread": THREAD, "body": {**body, "text": "x" * 180}}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
