"""The process: what it asks of the system, which faults it outlives, and that it ends whatever happens."""

import contextlib
import http.client
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Make
from tests.e2e.findings import Faulty
from tests.e2e.harness import Instance
from tests.waiting import DEADLINE_S, eventually

JSON = "application/json"
BRISK = "[limits]\nbeat_s = 0.05\n"


class Limited(Instance):
    """An instance whose daemon starts with few open files allowed, and may have more."""

    def command(self, *words: str) -> list[str]:
        return ["sh", "-c", 'ulimit -Sn 256 && ulimit -Hn 2048 && exec "$@"', "sh", *super().command(*words)]


class Closed(Instance):
    """An instance whose daemon starts with its standard streams closed, as some supervisors leave them."""

    def command(self, *words: str) -> list[str]:
        return ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *super().command(*words)]


class Listing(Instance):
    """An instance whose daemon lists on stderr each module that it imports."""

    def command(self, *words: str) -> list[str]:
        python, *rest = super().command(*words)
        return [python, "-v", *rest]


ASLEEP = frozenset({
    "calendar", "ctypes", "dataclasses", "datetime", "decimal", "encodings.idna", "nacl.bindings", "pickle", "shlex",
    "shutil", "tomllib", "unicodedata",
    "spl.api.consent", "spl.api.emit", "spl.api.events", "spl.api.lifecycle", "spl.api.metrics",
    "spl.api.openapi", "spl.api.pairs", "spl.api.sinks", "spl.api.snapshots", "spl.api.ui",
    "spl.cli.client", "spl.cli.manual", "spl.client", "spl.core.record.snapshot",
    "spl.doctor.catalogue", "spl.doctor.examine", "spl.doctor.facts",
    "spl.core.record.fingerprint", "spl.engine.service", "spl.home.check", "spl.home.restore", "spl.home.snapshot",
    "spl.net.probe", "spl.sync.compare.fingerprints", "spl.sync.compare.holdings",
    "spl.sync.compare.reconcile",
})  # fmt: skip
"""Modules that an idle daemon does without.  Together they would take 5 MiB."""


@pytest.fixture
def faulty(tmp_path: Path):
    """Return a maker of instances with a fault, or of another class, that are ended afterwards."""
    made: list[Instance] = []

    def maker(kind: type[Instance] = Faulty, config: str = BRISK, fault: str = "") -> Instance:
        instance = kind("alice", tmp_path / "alice" / "home")
        if isinstance(instance, Faulty):
            instance.fault = fault
        instance.home.mkdir(parents=True, mode=0o700)
        made.append(instance)
        instance.configure(config)
        Instance.run(instance, "init")
        return instance

    yield maker
    for instance in made:
        instance.end()


def test_the_soft_limit_of_open_files_is_raised(faulty) -> None:
    limited = faulty(Limited).start()
    assert limited.process is not None
    assert resource.prlimit(limited.process.pid, resource.RLIMIT_NOFILE) == (2048, 2048)


def test_too_few_open_files_for_a_daemon_are_told_in_one_line(faulty) -> None:
    command = ["sh", "-c", 'ulimit -n 24 && exec "$@"', "sh", sys.executable, "-m", "spl", "serve"]
    env = faulty().environment()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 78
    assert "error: this process may open 24 files, and a daemon needs 40" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_without_standard_streams_serves_and_logs(faulty) -> None:
    closed = faulty(Closed).start()
    assert closed.emit("th_a")
    assert closed.stop() == 0
    assert "event=daemon.stopped" in (closed.home / "logs" / "spl.log").read_text()


def test_a_file_system_without_modes_and_folder_syncs_will_do(faulty) -> None:
    alice = faulty(fault="poor-file-system").start()
    written = alice.emit("th_a", 3)
    assert alice.run("status").code == 0
    assert alice.stop() == 0
    assert {record["id"] for record in alice.start().records("th_a")} == set(written)


def test_a_service_that_dies_is_named_and_started_again(faulty) -> None:
    """The others go on meanwhile, and the daemon ends in order, also while the service waits to be started again."""
    alice = faulty(fault="dying-service")
    alice.switch.touch()
    alice.start()

    def crashes() -> int:
        rows = alice.api("GET", "/v1/status").json["services"]
        return rows[0]["crashes"] if rows else 0

    eventually(lambda: crashes() >= 2, "the service was started again and died again")
    [finding] = [item for item in alice.api("GET", "/v1/status").json["attention"] if item["code"] == "task-dead"]
    assert "health died: RuntimeError: a fault that a test put here" in finding["title"]
    assert "task-dead" in alice.run("status").out
    assert alice.emit("th_a")
    assert alice.stop() == 0


def test_a_stop_while_the_disk_is_full(faulty) -> None:
    """Not even the mark of a clean stop finds room; the daemon ends in time, and nothing acknowledged is missing."""
    alice = faulty(fault="full-disk").start()
    written = alice.emit("th_a", 5)
    alice.switch.touch()
    value = {"act": "KNOW", "actor": "did:sync:user:alice", "thread": "th_a", "body": {}}
    eventually(lambda: alice.api("POST", "/v1/records", value).json["code"] == "STORE_FULL", "the daemon says so")
    assert alice.stop() == 0, alice.output()
    alice.switch.unlink()
    alice.start()
    assert {record["id"] for record in alice.records("th_a")} == set(written)


def test_a_daemon_that_no_longer_hears_is_cut_and_loses_nothing(faulty) -> None:
    """The loop never returns; SIGTERM ends the process all the same, and what was acknowledged is there."""
    alice = faulty(config=f"{BRISK}shutdown_s = 0.5\n", fault="deaf-loop").start()
    written = alice.emit("th_a", 20)
    alice.switch.touch()
    eventually(alice.switch.with_name("deaf").exists, "the loop is caught")
    assert alice.stop() == 1
    assert "event=daemon.cut" in (alice.home / "logs" / "spl.log").read_text()
    alice.switch.unlink()
    alice.start()
    assert {record["id"] for record in alice.records("th_a")} == set(written)


def test_a_stop_waits_for_no_thread_that_only_reads(faulty) -> None:
    """One that never comes back: the daemon ends in order, and the log is closed."""
    alice = faulty(fault="hung-reading").start()
    written = alice.emit("th_a", 20)
    alice.switch.touch()
    line = http.client.HTTPConnection("127.0.0.1", alice.port)
    line.request("POST", "/v1/store/check", "{}", {"authorization": f"Bearer {alice.token}", "content-type": JSON})
    eventually(alice.switch.with_name("reading").exists, "a thread reads")
    line.close()
    assert alice.stop() == 0
    assert "event=daemon.stopped" in alice.output()
    alice.switch.unlink()
    alice.start()
    assert {record["id"] for record in alice.records("th_a")} == set(written)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_again_and_again_ends_it_once(faulty, number: int) -> None:
    alice = faulty(Instance).start()
    assert alice.process is not None
    for _ in range(50):
        with contextlib.suppress(ProcessLookupError):
            alice.process.send_signal(number)
    assert alice.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_daemon_is_even_imported_ends_it_in_order(faulty, number: int) -> None:
    """A SIGHUP before it changes nothing."""
    alice = faulty(fault="slow-import")
    alice.switch.touch()
    alice.launch()
    eventually(alice.switch.with_name("importing").exists, "the daemon is being imported")
    assert alice.process is not None
    for sent in (signal.SIGHUP, number):
        alice.process.send_signal(sent)
    alice.switch.unlink()
    assert alice.process.wait(DEADLINE_S) == 0, alice.output()
    assert "event=daemon.stopped" in alice.output()


def test_signals_while_the_index_is_rebuilt(faulty) -> None:
    """SIGTERM ends it between two batches; SIGHUP is heard once there is something to read again."""
    alice = faulty(fault="slow-rebuild").start()
    written = alice.emit("th_a", 20)
    assert alice.stop() == 0
    alice.switch.touch()
    begun = alice.switch.with_name("rebuilding")
    alice.launch()
    eventually(begun.exists, "the index is being rebuilt")
    assert alice.stop() == 0, alice.output()
    begun.unlink()
    alice.launch()
    eventually(begun.exists, "the index is being rebuilt again")
    assert alice.process is not None
    alice.process.send_signal(signal.SIGHUP)
    alice.switch.unlink()
    eventually(lambda: "event=config.reloaded" in alice.output(), "the configuration is read again")
    eventually(alice.is_ready, "it serves")
    assert {record["id"] for record in alice.records("th_a")} == set(written)
    assert alice.stop() == 0


def test_watchers_leave_others_a_connection(make: Make) -> None:
    """Long answers of tokens take half of the port's connections at most, and the socket in the home has its own."""
    alice = make("alice", "[limits]\nconnections_count = 4\n").start()
    held: list[http.client.HTTPConnection] = []
    statuses: list[int] = []
    try:
        for _ in range(4):
            held.append(alice.connection())
            held[-1].request("GET", "/v1/threads/th_a/watch", headers={"authorization": f"Bearer {alice.token}"})
            answer = held[-1].getresponse()
            statuses.append(answer.status)
            if answer.status != 200:
                answer.read()
        assert statuses == [200, 200, 429, 429]
        assert alice.get("/health").status == 200
        assert alice.run("status").code == 0
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("flags", [("--host", "0.0.0.0"), ("--host", "::")])
def test_without_credentials_it_serves_this_machine_only(make: Make, flags: tuple[str, ...]) -> None:
    alice = make("alice", "[auth]\nrequired = false\n")
    refused = alice.run("serve", "--port", str(alice.port), *flags, code=78)
    assert "config.toml:2: auth.required" in refused.err + refused.out
    alice.start()
    assert alice.request("GET", "/v1/threads").status == 200
    assert "event=auth.off" in alice.output()
    assert alice.request("GET", "/v1/threads", headers={"x-forwarded-for": "192.0.2.7"}).status == 401


def test_a_key_that_is_set_is_in_force_without_a_restart(make: Make) -> None:
    """`spl config set` writes the file that the running daemon then reads."""
    alice = make("alice").start()
    alice.run("config", "set", "federation.approval", "closed")

    def approval() -> tuple[object, object]:
        [row] = [row for row in alice.data("config", "show") if row["key"] == "federation.approval"]
        return row["value"], str(row["source"]).partition(":")[0]

    eventually(lambda: approval() == ("closed", "config.toml"), "the daemon read it")


def test_a_key_that_the_running_daemon_refuses_is_told(make: Make) -> None:
    """The file alone would do; with the flags of this daemon it would open it to others."""
    alice = make("alice").start("--host", "0.0.0.0")
    refused = alice.run("config", "set", "auth.required", "false", code=78)
    assert "makes everybody on the network an administrator" in refused.err
    assert alice.request("GET", "/v1/threads").status == 401


def test_an_idle_daemon_imports_what_it_uses(faulty) -> None:
    """What is asked for now and then, or never, is imported at the first request for it."""
    listing = faulty(Listing, config="").start()

    def imported() -> set[str]:
        text = (listing.home.parent / f"{listing.name}.out").read_text(errors="replace")
        names = re.findall(r"^import '(\S+)' # ", text, re.MULTILINE)
        return set(names[names.index("spl") :])

    assert imported() & ASLEEP == set()
    listing.run("doctor")
    assert imported() & ASLEEP >= {"spl.doctor.examine", "spl.net.probe"}
