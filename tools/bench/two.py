"""Two real daemons for the benches: own homes, loopback, a pair in continuous mode; ended and removed at the end."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
READY_S: Final = 20.0
THREAD: Final = "th_bench"


class Side:
    """One daemon and a connection to it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.home = name, folder / name
        self.port = _free_port()
        self.env = {**os.environ, "SYNCROPEL_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        self.home.mkdir(mode=0o700)
        (self.home / "config.toml").write_text('[federation]\napproval = "auto"\n')
        self.spl("init", "--label", name)
        self.start()

    def start(self) -> None:
        """Start the daemon and wait until it accepts writes."""
        url = (
            f"http://127.0.0.1:{self.port}"  # as its own address is on this machine, the daemon dials others there too
        )
        command = [sys.executable, "-m", "spl", "serve", "--port", str(self.port), "--public-url", url]
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
        """Return the processor time that the daemon has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Return the daemon's resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def two_sides(*, paired: bool = True) -> Iterator[tuple[Side, Side, str]]:
    """Give two running daemons and their pair's id; the pair is continuous in both directions."""
    folder = Path(tempfile.mkdtemp(prefix="spl-bench-"))
    sides: list[Side] = []
    try:
        sides = [Side("ann", folder)]
        sides.append(Side("ben", folder))
        yield *sides, pair(*sides) if paired else ""  # type: ignore[misc]
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def pair(one: Side, two: Side) -> str:
    """Pair two sides, set both to continuous, wait until both streams are open, and return the pair's id."""
    one.spl("federation", "pair", f"http://127.0.0.1:{two.port}/")
    pair_id = str(one.ask("GET", "/v1/federation/pairs")["data"][0]["pair_id"])
    for side in (one, two):
        side.spl("federation", "set-mode", pair_id, "continuous")
    end = time.monotonic() + READY_S
    while not all(is_open(side, pair_id) for side in (one, two)):
        assert time.monotonic() < end, "the streams did not open"
        time.sleep(0.02)
    return pair_id


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
