"""Where a daemon is, the way there, and the credential: a Unix socket whose file mode is one, or a URL and a token.

A token goes over plain HTTP to this machine only, else over TLS, whose certificate the system's authorities or those
in a file of the program's have to vouch for.
"""

import importlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ..core.value import dataclass
from ..core.version import SOCKET
from ..net.heads import WireError
from .errors import ClientError, fault

if TYPE_CHECKING:
    import ssl  # loaded by the one way that needs it

ANSWER_S: Final = 30.0
_PATH_BYTES: Final = 107  # what sun_path holds
_NEAR: Final = re.compile(r"http://(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::([0-9]{1,5}))?/?\Z", re.IGNORECASE)
_FAR: Final = re.compile(r"https://([a-z0-9][a-z0-9.-]*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?\Z", re.IGNORECASE)

_OWN_CA: Final = "trust a private CA with SSL_CERT_FILE=FILE"
_FAR_AND_SILENT: Final = "on its machine: spl doctor", "that daemon hangs, or something on the way to it"
_NO_TLS: Final = "name the port of its tls.listen or proxy, which speaks TLS; to its plain port: ssh:HOST in a context"


@dataclass(frozen=True, slots=True)
class Where:
    """A daemon: the path of its socket, or host and port; `name` says it to people, `authority` is sent as Host."""

    name: str
    path: str = ""
    host: str = ""
    port: int = 0
    authority: str = "localhost"
    is_tls: bool = False
    ca_file: str = ""
    ssh: str = ""
    """The [USER@]HOST whose ssh reaches host and port."""


class AtDaemon:
    """What both clients begin with: the place of a daemon, the token for it, and how long an answer may take."""

    def __init__(self, url: str, token: str = "", *, ca_file: str = "", timeout_s: float = ANSWER_S) -> None:
        """Name a daemon by its URL; nothing is dialled yet.

        Raises ClientError "http-plain" for a URL of http that is not this machine.  `ca_file` holds the authorities
        to trust instead of the system's.
        """
        self._begin(at_url(url, ca_file), token, timeout_s)

    @classmethod
    def from_home(cls, home: str | os.PathLike[str] = "", *, timeout_s: float = ANSWER_S) -> Self:
        """Name the daemon of a home by its socket, whose file mode is the credential; default: that of commands."""
        return cls.at(at_home(os.fspath(home) or home_of(os.environ)), timeout_s=timeout_s)

    @classmethod
    def at(cls, where: Where, token: str = "", *, timeout_s: float = ANSWER_S) -> Self:
        """Name a daemon by its place."""
        client = cls.__new__(cls)
        client._begin(where, token, timeout_s)
        return client

    def _begin(self, where: Where, token: str, timeout_s: float) -> None:
        self._where, self._token, self._timeout_s = where, token, timeout_s


def home_of(env: Mapping[str, str]) -> str:
    """Return the home that commands use: SYNCROPEL_HOME, or ~/.syncro."""
    return env.get("SYNCROPEL_HOME") or str(Path("~/.syncro").expanduser())


def at_home(home: str, name: str = "") -> Where:
    """Return the socket of the daemon of a home."""
    path = os.path.join(home, SOCKET)
    return Where(name or path, path)


def at_url(url: str, ca_file: str = "", what: str = "the URL") -> Where:
    """Return the place that a URL names; raise ClientError "http-plain" for one that a token must not travel to."""
    far = _FAR.match(url)
    found = far or _NEAR.match(url)
    port = int(found[2] or (443 if far else 80)) if found else 0
    if found is None or not 0 < port < 65536:
        raise fault(
            "http-plain",
            f"{what} is https://HOST:PORT, or http:// to this machine, and without a path: it is sent a token",
            hint="https, as its tls.listen or a proxy serves it; by a tunnel: ssh -L 9100:127.0.0.1:9100 HOST; "
            "then http://127.0.0.1:9100",
        )
    authority = found[1] + (f":{port}" if found[2] or not far else "")
    return Where(url, "", found[1].strip("[]"), port, authority, far is not None, ca_file)


def token_of(home: str) -> str:
    """Return the admin token of the home, "" without one."""
    try:
        with open(os.path.join(home, "token"), encoding="ascii", opener=_unblocked) as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def dial(where: Where, timeout_s: float) -> socket.socket:
    """Return a blocking connection whose every operation may take `timeout_s`.

    Raises ClientError "daemon-down", "home-unusable" or "tls-chain"; OSError for what ends a connection during TLS.
    """
    if where.path:
        return _dial_unix(where, timeout_s)
    if where.ssh:
        carried: socket.socket = importlib.import_module(f"{__package__}.ssh").connect(where, timeout_s)
        return carried
    try:
        sock = socket.create_connection((where.host, where.port), timeout_s)
    except OSError as exc:
        raise fault("daemon-down", f"cannot reach the daemon at {where.name}") from exc
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _secured(sock, where) if where.is_tls else sock


def unix_address(path: str) -> tuple[str, int]:
    """Return what to connect to for a path, and a folder to close afterwards, -1 for none.

    A path too long for an address is reached through its open folder, whose name in /proc is short.
    """
    if len(os.fsencode(path)) <= _PATH_BYTES:
        return path, -1
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}", folder


def tls_context(where: Where) -> "ssl.SSLContext":
    """Return what verifies chain and host name, with TLS >= 1.2; raise ClientError "tls-chain" for a bad CA file."""
    tls = importlib.import_module("ssl")
    try:
        context: ssl.SSLContext = tls.create_default_context(cafile=where.ca_file or None)
    except OSError as exc:
        raise fault("tls-chain", f"{where.ca_file}: {exc.strerror or exc}", hint=_OWN_CA) from exc
    context.minimum_version = tls.TLSVersion.TLSv1_2
    return context


def tls_fault(where: Where, exc: OSError) -> ClientError | None:
    """Return the error of a failed handshake; None for a fault that is not one of TLS."""
    tls = importlib.import_module("ssl") if where.is_tls else None
    if tls is None or not isinstance(exc, tls.SSLError):
        return None
    if isinstance(exc, tls.SSLCertVerificationError):
        return fault("tls-chain", f"{where.host}: certificate refused: {exc.verify_message}", hint=_OWN_CA)
    reason = (exc.reason or str(exc)).lower().replace("_", " ")
    return fault("tls-chain", f"{where.host}: TLS failed: {reason}", hint=_NO_TLS)


@contextmanager
def faults(where: Where, timeout_s: float) -> Iterator[None]:
    """Raise ClientError for the faults of a connection to the daemon."""
    try:
        yield
    except WireError as exc:
        raise fault("answer-malformed", f"{where.name} did not answer in HTTP: {exc.message}") from exc
    except TimeoutError as exc:
        hint, why = ("look at it: spl logs", "our own daemon hangs or is starved") if where.path else _FAR_AND_SILENT
        late = fault("timeout", f"{where.name} did not answer within {timeout_s:.0f} s", hint=hint)
        late.facts = {"why": f"{why}; no peer is concerned"}
        raise late from exc
    except OSError as exc:  # those of TLS are neither of these two
        raise fault("disconnected", f"{where.name} closed the connection too early") from exc


def _dial_unix(where: Where, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        address, folder = unix_address(where.path)
        try:
            sock.connect(address)
        finally:
            if folder >= 0:
                os.close(folder)
    except PermissionError as exc:
        sock.close()
        hint = "run as the user of the daemon"
        raise fault("home-unusable", f"no permission to open {where.name}", hint=hint) from exc
    except OSError as exc:
        sock.close()
        raise fault("daemon-down", f"cannot reach the daemon at {where.name}") from exc
    return sock


def _secured(sock: socket.socket, where: Where) -> socket.socket:
    try:
        return tls_context(where).wrap_socket(sock, server_hostname=where.host)
    except OSError as exc:
        sock.close()
        raise tls_fault(where, exc) or exc from exc
    except BaseException:
        sock.close()
        raise


def _unblocked(path: str, flags: int) -> int:
    """Open a file without waiting, as a FIFO would make us wait for who writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)
