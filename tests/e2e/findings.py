"""What tests of findings share: daemons at fault, a pair behind a proxy, and how a finding is read.

A finding counts as seen when the command line shows its code and its fix, and exits 3.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import Instance
from tests.e2e.proxy import Proxy
from tests.waiting import eventually

# Thresholds that an operator may lower; what takes minutes in life takes moments here.
HASTY = """
poll_interval_min_s = 0.1
poll_backoff_max_s = 0.3
answer_timeout_s = 3
check_s = 3
beat_s = 0.05
failing_s = 0.1
stalled_s = 0.3
queue_full_s = 0.1
"""
HERE: dict[str, object] = {}
"""Code -> the test that entered itself for it."""
House = Callable[..., Instance]
NAME = "bob.test"
# Mounts of the test's own; where nobody is root, in a user namespace.
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]


def finds(*codes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a test of this file as the one for these codes."""

    def enter(test: Callable[..., None]) -> Callable[..., None]:
        HERE.update(dict.fromkeys(codes, test))
        return test

    return enter


@dataclass
class World:
    """Alice polls Bob five times a second through a proxy; the pair is well when a test begins."""

    alice: Instance
    bob: Instance
    proxy: Proxy
    pair_id: str

    def seen(self, code: str) -> dict[str, Any]:
        """Return the finding once Alice's doctor has it; the command line shows it, and exits 3."""
        return seen(self.alice, code, self.pair_id)

    def told(self, code: str) -> dict[str, Any]:
        """Return the finding once Alice's status has it, without asking anybody; `--check` exits 3."""
        return told(self.alice, code)

    def mend(self, fix: str) -> None:
        """Do what a fix says, on the side that it names."""
        side = self.bob if fix.startswith("on bob: ") else self.alice
        for command in re.findall(r"spl ([^;,&|(]+)", fix):
            side.run(*shlex.split(command))

    def well(self) -> None:
        """Wait until neither doctor nor status has anything to say of the pair."""
        told: list[Any] = []

        def quiet() -> bool:
            told[:] = attention(self.alice) or report(self.alice, self.pair_id)["problems"]
            return not told

        try:
            eventually(quiet, "neither status nor doctor has a finding")
        except AssertionError as exc:
            raise AssertionError(told) from exc


def report(instance: Instance, *ref: str) -> dict[str, Any]:
    reply = instance.api("GET", "/".join(("/v1/doctor", *ref)))
    assert reply.status == 200, reply.body
    return dict(reply.json)


def attention(instance: Instance) -> list[dict[str, Any]]:
    return list(instance.api("GET", "/v1/status").json["attention"])


def named(found: list[dict[str, Any]], code: str) -> dict[str, Any]:
    """Return the problem of a code, {} without one."""
    return next((item for item in found if item["code"] == code), {})


def seen(instance: Instance, code: str, *ref: str) -> dict[str, Any]:
    """Return a problem once the doctor finds it; on the command line it exits 3 and prints code and fix."""
    eventually(lambda: named(report(instance, *ref)["problems"], code), f"the doctor finds {code}")
    done = instance.run("doctor", *ref, "-o", "json", code=3)
    found = named(done.data["problems"], code)
    assert found, done.out
    assert found["fix"], found
    return found


def told(instance: Instance, code: str) -> dict[str, Any]:
    """Return a problem once status has it; `status --check` exits 3 and prints code and fix."""
    eventually(lambda: named(attention(instance), code), f"status has {code}")
    done = instance.run("status", "--check", "-o", "json", code=3)
    found = named(done.data["attention"], code)
    assert found, done.out
    return found


@dataclass
class Faulty(Instance):
    """An instance whose daemon has a fault of its own (faults.py) for as long as its switch is on."""

    fault: str = ""

    @property
    def switch(self) -> Path:
        """The file whose presence is the fault."""
        return self.home.parent / "fault"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SPL_FAULT": str(self.switch)}

    def command(self, *words: str) -> list[str]:
        command = super().command(*words)
        return [*command[:2], "tests.e2e.faults", self.fault, *words] if self.fault else command

    @property
    def holder(self) -> int:
        """The process that holds the home, as the home itself says; 0 for none."""
        text = (self.home / "lock").read_text().split()
        return int(text[0]) if text else 0

    @contextmanager
    def at_fault(self) -> Iterator[None]:
        """Be at fault for a while."""
        self.switch.touch()
        try:
            yield
        finally:
            self.switch.unlink()


@dataclass
class Mounted(Instance):
    """An instance whose store is on a small file system of its own, which the rest of the machine does not see."""

    mount: str = ""

    @property
    def store(self) -> Path:
        """The store as the running daemon sees it."""
        pid = (self.home / "lock").read_text().split()[0]
        return Path(f"/proc/{pid}/root{self.home}/store")

    def command(self, *words: str) -> list[str]:
        store = shlex.quote(str(self.home / "store"))
        steps = (
            f"cp -a {store} {store}.old && mount -t tmpfs -o {self.mount} none {store} && cp -a {store}.old/. {store}"
        )
        return [*UNSHARE, f'{steps} && exec "$@"', "sh", *super().command(*words)]


@dataclass
class Named(Instance):
    """An instance that looks names up in a file of the test's, and asks no name server."""

    def names(self, *addresses: str) -> None:
        """Let NAME stand for these addresses; "" for nothing."""
        (self.home.parent / "hosts").write_text("".join(f"{each} {NAME}\n" for each in addresses if each))
        (self.home.parent / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def command(self, *words: str) -> list[str]:
        bind = " && ".join(f"mount --bind {self.home.parent}/{name} /etc/{name}" for name in ("hosts", "resolv.conf"))
        return [*UNSHARE, f'{bind} && exec "$@"', "sh", *super().command(*words)]


def later(instance: Instance, *words: str) -> str:
    """Return what a command prints to somebody who runs it 46 seconds from now."""
    command = [sys.executable, "-m", "tests.e2e.faults", "46-seconds-later", *words]
    return subprocess.run(
        command, env=instance.environment(), capture_output=True, check=True, timeout=60
    ).stdout.decode()
