"""A daemon behind ssh, with a program in its place that does what `ssh -W` does, or fails as it does."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spl.client.blocking import Client
from spl.client.dial import Where, dial
from spl.client.errors import ClientError
from spl.client.ssh import SshSocket
from tests.cli.conftest import Daemon, serve
from tests.waiting import eventually

SSH = """#!{python}
import socket, sys, threading
words = sys.argv[1:]
open({log!r}, "w").write("\\n".join(words))
host, _, port = words[words.index("-W") + 1].rpartition(":")
sock = socket.create_connection((host, int(port)))
def up():
    while data := sys.stdin.buffer.raw.read(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := sock.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""
REFUSES = """#!/bin/sh
echo 'a banner' >&2
echo 'me@nas: Permission denied (publickey).' >&2
exit 255
"""

LEAVES_A_HOLDER = """#!/bin/sh
exec 3<{fifo}
cat <&3 >/dev/null &
exec 3<&-
echo 'channel 0: open failed: connect failed: Connection refused' >&2
exit 255
"""


def a_program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ssh").write_text(text)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def nas(port: int = 9100) -> Where:
    return Where("ssh:nas", host="127.0.0.1", port=port, authority=f"127.0.0.1:{port}", ssh="me@nas")


def test_requests_go_through_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "words"
    a_program(tmp_path, SSH.format(python=sys.executable, log=str(log)), monkeypatch)
    daemon = Daemon({("GET", "/v1/status"): {"object": "status"}})
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server, daemon))
        thread.start()
        with Client.at(nas(server.getsockname()[1]), "spl_token") as client:
            assert client.status() == {"object": "status"}
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert daemon.calls[0].headers["authorization"] == "Bearer spl_token"
    words = log.read_text().split("\n")
    assert words[-2:] == ["--", "me@nas"]
    assert "BatchMode=yes" in words
    assert "spl_token" not in words


def test_why_ssh_failed_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_program(tmp_path, REFUSES, monkeypatch)
    with pytest.raises(ClientError, match="Permission denied") as found, Client.at(nas()) as client:
        client.status()
    assert (found.value.code, found.value.hint) == ("daemon-down", "ssh me@nas")


def test_the_reason_does_not_wait_for_what_ssh_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    a_program(tmp_path, LEAVES_A_HOLDER.format(fifo=fifo), monkeypatch)
    held = os.open(fifo, os.O_RDWR)  # `cat` keeps stderr open until this is closed
    found: list[ClientError] = []

    def ask() -> None:
        with pytest.raises(ClientError) as raised, Client.at(nas()) as client:
            client.status()
        found.append(raised.value)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    answered = not thread.is_alive()
    os.close(held)
    thread.join()
    assert answered
    assert "Connection refused" in found[0].message


def test_who_leaves_without_closing_leaves_no_ssh(tmp_path: Path) -> None:
    """As `status --all` does with the thread of a daemon that hangs."""
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "ssh").chmod(0o755)
    code = (
        "from spl.client.dial import Where; from spl.client.ssh import connect;"
        "c = connect(Where('x', host='h', port=1, authority='h', ssh='h'), 9.0); print(c._process.pid)"
    )
    words = [sys.executable, "-c", code]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(words, env=env, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    pid = int(said)
    state = Path(f"/proc/{pid}/stat")
    eventually(lambda: not state.exists() or state.read_text().split()[2] == "Z", "the end of ssh")


def test_without_ssh_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClientError, match="cannot run ssh"):
        dial(nas(), 5.0)


def test_a_closed_connection_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_program(tmp_path, "#!/bin/sh\nexec sleep 600\n", monkeypatch)
    sock = dial(nas(), 5.0)
    assert isinstance(sock, SshSocket)
    pid = sock._process.pid
    sock.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
