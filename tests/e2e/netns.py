"""Daemons in network namespaces of a test's own; the commands reach them over their socket files."""

import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import Instance

PORT = 9100


@contextmanager
def namespaces(*names: str, tools: tuple[str, ...] = ("ip",)) -> Iterator[list[str]]:
    """Make network namespaces and take them away at the end; skip the test where that is not allowed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = [f"spl{os.getpid()}-{name}" for name in names]
    try:
        probe = subprocess.run(("ip", "netns", "add", made[0]), capture_output=True, check=False)
        if probe.returncode:
            pytest.skip(f"network namespaces are not allowed here: {probe.stderr.decode().strip()}")
        for name in made[1:]:
            sh("ip", "netns", "add", name)
        yield made
    finally:
        for name in made:
            subprocess.run(("ip", "netns", "delete", name), capture_output=True, check=False)


def sh(*words: str, text: str = "") -> None:
    """Run a command; fail with what it said."""
    done = subprocess.run(words, input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.decode()}"


class Unix(http.client.HTTPConnection):
    """HTTP to a daemon's socket file, which is the same file in every network namespace."""

    def __init__(self, folder: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._folder = folder

    def connect(self) -> None:
        """Connect by way of the folder's descriptor: a socket's path may not be long."""
        folder = os.open(self._folder, os.O_PATH)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/spl.sock")
        except OSError:
            self.sock.close()
            raise
        finally:
            os.close(folder)


@dataclass
class Inside(Instance):
    """An instance whose daemon runs in a network namespace; it is asked over its socket file."""

    namespace: str = ""
    address: str = ""

    @property
    def url(self) -> str:
        """Where it listens, in the networks of the test."""
        return f"http://{self.address}:{PORT}/"

    def command(self, *words: str) -> list[str]:
        """Run the daemon in its namespace."""
        return ["ip", "netns", "exec", self.namespace, *super().command(*words)]

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection to its socket."""
        return Unix(self.home / "run")
