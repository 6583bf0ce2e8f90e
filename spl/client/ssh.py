"""A daemon behind ssh: `ssh -W` carries one connection, so nothing listens here and nothing is installed there.

Loaded by `dial` for such a daemon alone.  ssh asks nothing (BatchMode): keys come from an agent or a file.
"""

import atexit
import os
import socket
import subprocess
from typing import Any, Final

from .dial import Where
from .errors import ClientError, fault

_CONNECT_S: Final = 10
_REASON_BYTES: Final = 4096
_END_S: Final = 2.0


class SshSocket(socket.socket):
    """Our end of a pair of sockets whose other end are stdin and stdout of ssh."""

    def __init__(self, ours: socket.socket, where: Where, process: "subprocess.Popen[bytes]") -> None:
        super().__init__(fileno=ours.detach())
        self._where, self._process, self._heard = where, process, False
        atexit.register(
            process.kill
        )  # who waits for a daemon that hangs is not waited for: nobody closes its connection

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Return what arrived; raise ClientError "daemon-down" with the reason of ssh if nothing ever came."""
        try:
            data = super().recv(bufsize, flags)
        except ConnectionError:
            data = b""
        if not data and not self._heard:
            raise self._failed()
        self._heard = True
        return data

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send everything; an ssh that has ended has a reason."""
        try:
            super().sendall(data, flags)
        except ConnectionError as exc:
            raise self._failed() from exc

    def close(self) -> None:
        """Close the connection and end ssh."""
        super().close()
        self._end()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        atexit.unregister(self._process.kill)

    def _failed(self) -> ClientError:
        assert self._process.stderr is not None
        self._end()
        # What ssh started, such as a ProxyCommand, may hold stderr open: only what is there now is read.
        os.set_blocking(self._process.stderr.fileno(), False)
        said = self._process.stderr.read(_REASON_BYTES) or b""
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        message = f"cannot reach the daemon at {self._where.name}: {reason or 'ssh ended'}"
        return fault("daemon-down", message, hint=f"ssh {self._where.ssh}")


def connect(where: Where, timeout_s: float) -> SshSocket:
    """Start ssh and return the connection that it carries.  Raises ClientError "daemon-down"."""
    bound_s = max(1, min(_CONNECT_S, int(timeout_s)))
    options = ("BatchMode=yes", f"ConnectTimeout={bound_s}", "LogLevel=ERROR")
    flags = [word for option in options for word in ("-o", option)]
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: S603 - the host cannot be read as an option
                ["ssh", *flags, "-W", f"{where.host}:{where.port}", "--", where.ssh],  # noqa: S607 - the user's own
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as exc:
            ours.close()
            raise fault("daemon-down", f"cannot run ssh: {exc.strerror}", hint="install an ssh client") from exc
    carried = SshSocket(ours, where, process)
    carried.settimeout(timeout_s)
    return carried
