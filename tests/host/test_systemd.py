"""A service manager's side of the protocol, played against real daemons."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from spl.core.errors import SplError
from spl.home.writer import Writer
from spl.host.systemd import ManagedService, Manager
from spl.sync.notify import Notifier
from tests.e2e.conftest import make  # noqa: F401 (fixture)
from tests.e2e.harness import ROOT, Instance, free_port

DEADLINE_S = 60.0
HANDING = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
    "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Hands a socket over as systemd does, and becomes the command behind it."""


class Listening:
    """The socket that NOTIFY_SOCKET names."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.bind("\0" + address[1:] if address[0] == "@" else address)
        self.heard: list[dict[str, str]] = []

    def until(self, test: Callable[[dict[str, str]], Any]) -> dict[str, str]:
        """Return the first message that passes."""
        while True:
            text = self.sock.recv(4096).decode()
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))
            if test(self.heard[-1]):
                return self.heard[-1]


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    found = Listening(str(tmp_path / "notify") if request.param == "path" else f"@spl-test-{os.getpid()}")
    yield found
    found.sock.close()


def test_ready_reload_and_stop_are_told(told: Listening, make: Any) -> None:  # noqa: F811
    alice: Instance = make("alice", NOTIFY_SOCKET=told.address).start()
    ready = told.until(lambda said: said.get("READY"))
    assert ready["STATUS"] == "0 pairs"
    assert alice.process is not None
    alice.process.send_signal(signal.SIGHUP)
    assert told.until(lambda said: said.get("RELOADING"))["MONOTONIC_USEC"].isdigit()
    told.until(lambda said: said.get("READY"))
    (alice.home / "config.toml").write_text("nonsense = = 1\n")
    alice.process.send_signal(signal.SIGHUP)
    told.until(lambda said: said.get("RELOADING"))
    assert "line 1" in told.until(lambda said: said.get("READY"))["STATUS"]
    assert alice.stop() == 0
    told.until(lambda said: said.get("STOPPING"))
    assert not any("WATCHDOG" in said for said in told.heard), "nobody asked for it"


def test_no_readiness_without_a_port(make: Any, tmp_path: Path) -> None:  # noqa: F811
    told = Listening(str(tmp_path / "notify"))
    alice: Instance = make("alice")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = alice.command("serve", "--port", str(taken.getsockname()[1]))
        env = {**alice.environment(), "NOTIFY_SOCKET": told.address}
        done = subprocess.run(command, env=env, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 78
    told.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        told.sock.recv(100)
    told.sock.close()


def test_signs_of_life_need_the_writer(make: Any, tmp_path: Path) -> None:  # noqa: F811
    told = Listening(str(tmp_path / "notify"))
    alice: Instance = make("alice", NOTIFY_SOCKET=told.address, WATCHDOG_USEC="400000")
    alice.start()
    told.until(lambda said: said.get("WATCHDOG"))
    told.until(lambda said: said.get("WATCHDOG"))
    alice.end()
    told.sock.close()


class Stuck:
    """A writer whose disk hangs: it answers nothing, and writes what the test says."""

    def __init__(self) -> None:
        self.asked: list[Future[list[object]]] = []
        self.store = self
        self.last_seq = 0

    def submit(self, items: list[object]) -> "Future[list[object]]":
        self.asked.append(Future())
        return self.asked[-1]


def test_a_writer_that_hangs_gives_no_sign_of_life() -> None:
    writer = Stuck()
    service = ManagedService(Manager({}, 1), cast(Writer, writer), cast(Notifier, None))
    assert service._moves(), "asked for the first time"
    assert [service._moves(), service._moves(), len(writer.asked)] == [False, False, 1]
    writer.last_seq = 5
    assert [service._moves(), service._moves()] == [True, False], "it writes, slowly"
    writer.asked[0].set_result([])
    assert service._moves()


def test_sockets_that_are_handed_over_are_served(make: Any) -> None:  # noqa: F811
    alice: Instance = make("alice")
    with socket.create_server(("127.0.0.1", alice.port)) as sock:
        command = [
            sys.executable,
            "-c",
            HANDING,
            str(sock.fileno()),
            *alice.command("serve", "--port", str(free_port())),
        ]
        alice.process = subprocess.Popen(command, env=alice.environment(), pass_fds=[sock.fileno()], cwd=ROOT)
        assert alice.get("/health").status == 200  # waits in the backlog until the daemon accepts


@pytest.mark.parametrize("flags", [("--insecure-localhost",), ()])
def test_a_socket_that_lets_the_network_in_needs_tokens(make: Any, flags: tuple[str, ...]) -> None:  # noqa: F811
    alice: Instance = make("alice")
    if not flags:
        alice.configure("[auth]\nrequired = false\n")
    with socket.create_server(("0.0.0.0", 0)) as sock:
        command = [sys.executable, "-c", HANDING, str(sock.fileno()), *alice.command("serve", *flags)]
        done = subprocess.run(
            command, env=alice.environment(), pass_fds=[sock.fileno()], cwd=ROOT, capture_output=True, text=True,
            timeout=DEADLINE_S,
        )  # fmt: skip
    assert (done.returncode, "0.0.0.0" in done.stderr, "[config-invalid]" in done.stderr) == (78, True, True)


def test_a_home_and_a_folder_of_the_manager_are_used(make: Any, tmp_path: Path) -> None:  # noqa: F811
    runtime = tmp_path / "run"
    runtime.mkdir()
    alice: Instance = make("alice", RUNTIME_DIRECTORY=str(runtime))
    alice.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(runtime / "spl.sock"))
    did = alice.did
    alice.stop()
    assert list(runtime.iterdir()) == []
    env = {name: text for name, text in alice.environment().items() if name != "SYNCROPEL_HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "spl", "identity", "show"], env={**env, "STATE_DIRECTORY": str(alice.home)}, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert did in done.stdout


def test_the_environment_of_another_process_is_not_ours() -> None:
    env = {"LISTEN_FDS": "2", "LISTEN_PID": "1", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}
    manager = Manager(env, 7)
    assert ([*manager.plain, *manager.secure], manager.watchdog_s, manager.is_there, env) == ([], 0.0, False, {})
    manager.ready()


def test_what_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    code = (
        "import os, sys; from spl.host.systemd import Manager; fd = os.open('/dev/null', os.O_RDONLY); os.dup2(fd, 3);"
        "Manager({'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}, os.getpid())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "descriptor 3 was handed over and is no socket" in done.stderr
    assert SplError("listen-failed").exit_code == 78
