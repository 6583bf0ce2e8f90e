"""What an attacker holds in hand, and what is measured of the daemon meanwhile: sockets, memory, descriptors, log.

Nothing here knows the product beyond its HTTP, its command line and the files that its manual names.
"""

import contextlib
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.attack.homes import settle
from tests.e2e.harness import DEADLINE_S, Instance, eventually

KIB: Final = 1024
MIB: Final = 1024 * KIB
LOCAL: Final = "127.0.0.1"

Make = Callable[..., Instance]


@dataclass
class Bounded(Instance):
    """An instance whose daemon starts under limits of open files: `soft` and `hard`."""

    soft: int = 1024
    hard: int = 4096

    def command(self, *words: str) -> list[str]:
        """Return the command under its limits; `exec` keeps the process id."""
        limits = f'ulimit -Sn {self.soft} && ulimit -Hn {self.hard} && exec "$@"'
        return ["sh", "-c", limits, "sh", *super().command(*words)]


@contextlib.contextmanager
def instances(folder: Path) -> Iterator[Make]:
    """Yield a maker of initialised instances: name, configuration, class; end what still runs afterwards."""
    made: list[Instance] = []

    def maker(name: str, config: str = "", kind: type[Instance] = Instance, **more: Any) -> Instance:
        instance = kind(name, folder / name / "home", **more)
        made.append(instance)
        settle(instance, config)
        return instance

    try:
        yield maker
    finally:
        for instance in made:
            instance.end()


def paired(first: Instance, second: Instance) -> str:
    """Pair two running daemons, of which the second approves by itself, and return the pair's id."""
    *_, last = first.steps(second.url)
    assert last.get("step") == "active", last
    return str(last["pair_id"])


# -- what the operating system says of the daemon


def pid_of(instance: Instance) -> int:
    """Return the process id of the running daemon."""
    assert instance.process is not None
    assert instance.process.poll() is None, f"{instance.name} has ended\n{instance.output()}"
    return instance.process.pid


def rss_bytes(instance: Instance) -> int:
    """Return the memory that the daemon holds now."""
    return _status_bytes(instance, "VmRSS")


def peak_bytes(instance: Instance) -> int:
    """Return the most memory that the daemon held since `forget_peak`, or since its start."""
    return _status_bytes(instance, "VmHWM")


def forget_peak(instance: Instance) -> int:
    """Begin a new measurement of the peak and return the memory held now."""
    Path(f"/proc/{pid_of(instance)}/clear_refs").write_text("5")
    return rss_bytes(instance)


def soft_descriptors(instance: Instance) -> int:
    """Return how many files the daemon may hold open: its soft limit."""
    text = Path(f"/proc/{pid_of(instance)}/limits").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("Max open files")]
    return int(line.split()[3])


def log_text(instance: Instance) -> str:
    """Return everything that the daemon logged: its files, and what it printed."""
    files = sorted((instance.home / "logs").glob("spl.log*"))
    printed = instance.home.parent / f"{instance.name}.out"
    return "".join(file.read_text(errors="replace") for file in (*files, printed))


def crash_of(instance: Instance) -> str:
    """Return the first traceback in its log and what follows it; "" without one."""
    _, mark, rest = log_text(instance).partition("Traceback")
    return mark + rest[:4000]


def log_bytes(instance: Instance) -> int:
    """Return the size of the daemon's log files."""
    return sum(file.stat().st_size for file in (instance.home / "logs").glob("spl.log*"))


def store_bytes(instance: Instance) -> int:
    """Return the size of everything below `store/`."""
    return sum(file.stat().st_size for file in (instance.home / "store").rglob("*") if file.is_file())


def _status_bytes(instance: Instance, name: str) -> int:
    text = Path(f"/proc/{pid_of(instance)}/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * KIB


# -- sockets


def allow_descriptors(count: int) -> None:
    """Let the process of the tests open so many files itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        assert hard == resource.RLIM_INFINITY or hard >= count, f"the tests need {count} open files, {hard} are allowed"
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def dial(port: int, source: str = LOCAL, *, receive_bytes: int = 0, timeout_s: float = DEADLINE_S) -> socket.socket:
    """Return a connection to a daemon's plain listener from an address of this machine.

    `receive_bytes` bounds what the kernel takes for a client that does not read.
    """
    sock = socket.socket()
    try:
        sock.settimeout(timeout_s)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.bind((source, 0))
        sock.connect((LOCAL, port))
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def silent(port: int, sources: Sequence[str], data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Yield one connection from each of the addresses, in their order, that sends `data` at most and does not read.

    None waits for the daemon to accept it; all are reset at the end.
    """
    allow_descriptors(len(sources) + 512)
    socks: list[socket.socket] = []
    try:
        for source in sources:
            sock = socket.socket()
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, 0))
            sock.setblocking(False)
            sock.connect_ex((LOCAL, port))
            if data:
                with contextlib.suppress(OSError):
                    sock.settimeout(1)
                    sock.sendall(data)
        yield socks
    finally:
        for sock in socks:
            drop(sock)


def drop(sock: socket.socket) -> None:
    """End a connection with a reset, so that no port stays taken."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_open(sock: socket.socket) -> bool:
    """Return whether the daemon has neither closed nor reset the connection; anything it sent counts as closing."""
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def received(sock: socket.socket, bytes_max: int = 16 * MIB) -> bytes:
    """Return everything that comes until the daemon closes; a reset or a silence of the deadline ends it too."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < bytes_max and (piece := sock.recv(65536)):
            data += piece
    return data


def until(sock: socket.socket, mark: bytes, count: int = 1) -> bytes:
    """Return what comes until `mark` came `count` times; fail when the daemon closes before, or by the deadline."""
    data, found, end = bytearray(), 0, time.monotonic() + DEADLINE_S
    while found < count:
        piece = sock.recv(65536)
        assert piece, f"closed before {mark!r}: {bytes(data[-400:])!r}"
        assert time.monotonic() < end, f"{mark!r} came {found} times of {count}: {bytes(data[-400:])!r}"
        start = max(0, len(data) - len(mark) + 1)
        data += piece
        found += data.count(mark, start)
    return bytes(data)


def head(method: str, path: str, **headers: str) -> bytes:
    """Return the head of a request; `_` in a header's name stands for `-`."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {LOCAL}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def asked(port: int, data: bytes, source: str = LOCAL) -> bytes:
    """Send bytes from an address of this machine, and return what is answered until the daemon closes."""
    sock = dial(port, source)
    try:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        return received(sock)
    finally:
        sock.close()


def status_of(answer: bytes) -> int:
    """Return the HTTP status of an answer; 0 for none."""
    first = answer.split(b"\r\n", 1)[0].split(b" ")
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0


def serves(instance: Instance, source: str = LOCAL) -> bool:
    """Return whether the daemon answers an ordinary request from an address."""
    sock: socket.socket | None = None
    try:
        sock = dial(instance.port, source, timeout_s=10)
        sock.sendall(head("GET", "/health/ready", connection="close"))
        return status_of(received(sock)) == 200
    except OSError:
        return False
    finally:
        if sock is not None:
            sock.close()


def assert_serving(instance: Instance, source: str = LOCAL) -> None:
    """Fail unless the daemon soon answers from this address, its own command line works, and it takes a write."""
    pid_of(instance)
    eventually(lambda: serves(instance, source), f"{instance.name} answers {source} with 200")
    instance.run("status")
    instance.run("know", "still here", "--thread", "th_serving")


def stopped(instance: Instance, deadline_s: float = DEADLINE_S) -> int | None:
    """Send SIGTERM and return the exit code; None, after SIGKILL, for a daemon that did not end by the deadline."""
    assert instance.process is not None
    instance.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return instance.process.wait(deadline_s)
    instance.process.kill()
    instance.process.wait()
    return None
