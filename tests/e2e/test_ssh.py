"""Daemons behind a real sshd on loopback: with a key that it lets in, with one that it refuses; and one is gone."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Instance, free_port
from tests.waiting import DEADLINE_S, eventually

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(not (SSHD and shutil.which("ssh")), reason="an OpenSSH server is not installed")
SERVER = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""
CLIENT = """\
Host nas stranger gone
    HostName 127.0.0.1
    User {user}
    UserKnownHostsFile {folder}/known
    StrictHostKeyChecking yes
    IdentitiesOnly yes
    IdentityAgent none
Host nas stranger
    Port {port}
Host gone
    Port {closed}
Host nas gone
    IdentityFile {folder}/user
Host stranger
    IdentityFile {folder}/stranger
"""


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Path]:
    """Run a server with keys of its own; give the folder whose `ssh` knows the hosts nas, stranger and gone."""
    assert SSHD is not None
    folder, user = tmp_path / "ssh", pwd.getpwuid(os.geteuid()).pw_name
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:  # where the server of root wants an empty folder, which a service would make
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "server").write_text(SERVER.format(port=port, folder=folder))
    (folder / "client").write_text(CLIENT.format(port=port, folder=folder, user=user, closed=free_port()))
    program = folder / "bin/ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/client "$@"\n')
    program.chmod(0o755)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "server"], stderr=log)
    try:
        eventually(lambda: b"listening on" in (folder / "log").read_bytes(), "the server listens")
        yield program.parent
    finally:
        server.kill()
        server.wait(DEADLINE_S)


def test_a_context_reaches_a_daemon_through_ssh_and_a_dead_row_stops_no_other(alice: Instance, sshd: Path) -> None:
    alice.env |= {"XDG_CONFIG_HOME": str(sshd.parent), "PATH": f"{sshd}:{os.environ['PATH']}"}
    for host in ("nas", "stranger", "gone"):
        token = str(alice.home / "token")
        alice.run("context", "add", host, "--url", f"ssh:{host}:{alice.port}", "--token-file", token)
    alice.run("know", "said from afar", "--thread", "th_far", "--context", "nas")
    assert "th_far" in alice.run("thread", "list").out
    rows = {row["context"]: row for row in alice.run("status", "--all", "-o", "json", code=3).data}
    assert {name: row["reachable"] for name, row in rows.items()} == {
        "gone": "unreachable", "nas": "ok", "stranger": "unreachable",
    }  # fmt: skip
    assert rows["nas"]["did"] == alice.did
    assert "Connection refused" in rows["gone"]["error"]
    assert "Permission denied (publickey)" in rows["stranger"]["error"]
