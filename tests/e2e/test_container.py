"""The container recipe, run as it says in a namespace: a user without a name, a read-only disk, process 1, no /tmp."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import LOOP, ROOT, free_port
from tests.waiting import DEADLINE_S, eventually

RECIPE = (ROOT / "Containerfile").read_text()
UID = 4242


def lines(word: str) -> list[str]:
    """Return what follows an instruction in the last stage."""
    stage = RECIPE.rpartition("\nFROM ")[2].replace("\\\n", " ")
    return [line.partition(" ")[2] for line in stage.splitlines() if line.startswith(f"{word} ")]


class Box:
    """A folder as the volume of a container whose root file system cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.data, self._tools = folder / "data", folder / "bin"
        self.data.mkdir(mode=0o700)
        self._tools.mkdir()
        spl = self._tools / "spl"
        spl.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m spl "$@"\n')
        spl.chmod(0o755)
        self.port = free_port()

    def command(self, *argv: str) -> list[str]:
        """Return what runs a command in a fresh container over the same volume."""
        env = dict(line.split("=", 1) for line in lines("ENV"))
        env |= {"SYNCROPEL_HOME": str(self.data), "PATH": f"{self._tools}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
        env |= {"SPL_LOOP": LOOP, "SPL_PORT": str(self.port)}
        given = [word for name, value in env.items() for word in ("--setenv", name, value)]
        return [
            "bwrap", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--bind", self.data, self.data,
            "--unshare-user", "--uid", str(UID), "--gid", str(UID), "--unshare-pid", "--as-pid-1", "--die-with-parent",
            "--clearenv", *given, *argv,
        ]  # type: ignore[list-item]  # fmt: skip

    def run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Run the recipe's command and give the id of its first process; it has ended afterwards."""
        told, tells = os.pipe()
        command = self.command(*json.loads(lines("CMD")[0]))
        command[1:1] = ["--info-fd", str(tells)]
        process = subprocess.Popen(command, pass_fds=(tells,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(tells)
        with os.fdopen(told) as info:
            first = json.load(info)["child-pid"]
        try:
            yield first
            os.kill(first, signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_it_has_no_root_one_volume_and_a_check_of_our_own() -> None:
    assert lines("USER") == [f"{UID}:{UID}"]
    assert lines("VOLUME") == ["/data"]
    assert "SYNCROPEL_HOME=/data" in lines("ENV")
    assert lines("HEALTHCHECK")[0].rpartition("CMD ")[2] == '["spl", "health"]'


def test_it_serves_is_healthy_and_ends_when_told(box: Box) -> None:
    """The check tells a daemon that is down from one that is ready, and writes nothing."""
    check = json.loads(lines("HEALTHCHECK")[0].rpartition("CMD ")[2])
    with box.running():
        eventually(lambda: box.run(*check).returncode == 0, "the container is healthy")
        status = box.run("spl", "status", "-o", "json")
        assert json.loads(status.stdout)["data"]["identity"], status.stderr
        assert box.run("sh", "-c", "id -un").returncode != 0
        assert "Read-only" in box.run("sh", "-c", "touch /tmp/x").stderr
    before = sorted(path.name for path in box.data.rglob("*"))
    assert box.run(*check).returncode == 5
    assert sorted(path.name for path in box.data.rglob("*")) == before
    with box.running():  # on the same volume
        eventually(lambda: box.run(*check).returncode == 0, "the container is healthy again")


def test_a_folder_of_another_user_is_refused_and_both_are_named(box: Box) -> None:
    """What belongs to nobody in this namespace shows as the overflow user."""
    os.chown(box.data, 12345, 12345)
    refused = box.run("spl", "init")
    assert refused.returncode != 0
    assert "[home-unusable]" in refused.stderr
