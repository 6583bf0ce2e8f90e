"""Opening and closing under deadlines, listening sockets and TLS contexts."""

import asyncio
import errno
import fcntl
import os
import socket
import ssl
import stat
import struct
import sys
import termios
from asyncio import sslproto
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from ..core.errors import SplError
from ..core.value import dataclass
from .address import ReachError, kind_of, route_step, tls_step

FLOOR_BYTES_S: Final = 1024
"""A body that moves at less, in either direction, is given up like one that does not move at all."""
_VERSION_MIN = ssl.TLSVersion.TLSv1_2
TLS_READ_BYTES: Final = 32 * 1024
_ELSEWHERE: Final = "198.51.100.1"
"""An address of the documentation (RFC 5737), which no network has."""
_SIOCGIFADDR: Final = 0x8915 if sys.platform == "linux" else 0xC0206921
_IFREQ_BYTES: Final = 40
_AUTHORITIES_BYTES = 4 * 1024 * 1024
_BACKLOG = 1024  # as many as the server keeps; the kernel may lower it
_NO_SOCKETS = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
_LACKING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class ListenError(SplError):
    """A socket cannot be listened on, or a certificate not be used.  Codes: listen-failed, config-invalid."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket that the server accepts from."""

    sock: socket.socket
    tls: ssl.SSLContext | None = None
    local: bool = False
    """A Unix socket: a process that can open it is already trusted."""


class ServerTls:
    """A server's certificate, which can be replaced while connections are open.

    `context` is what listeners hold.  Each handshake is moved to the newest inner
    context: loading a certificate into a live one would leave it broken when the
    key does not fit.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._newest = _load_pair(cert, key)
        self.context = _load_pair(cert, key)
        self.context.sni_callback = self._choose

    def replace(self, cert: Path, key: Path) -> None:
        """Use another certificate for handshakes from now on.

        Raises ListenError "config-invalid" and keeps the old one when the files do not fit.
        """
        self._newest = _load_pair(cert, key)

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest


Verifying = Callable[[], ssl.SSLContext]
"""Gives the context that verifies those who are dialled, always the same one."""


class _ClientContext(ssl.SSLContext):
    """Loads the system's authorities with its first connection: a daemon that dials no TLS saves their 1.5 MB.

    Loading takes 20 ms, once.
    """

    _loaded = False

    def wrap_bio(self, *args: Any, **named: Any) -> ssl.SSLObject:
        """Return a connection's TLS over buffers, as both loops ask for it."""
        if not self._loaded:
            self._loaded = True
            self.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return super().wrap_bio(*args, **named)


def lean_tls() -> None:
    """Have asyncio's TLS connections begun from now on read into 32 KiB each instead of 256 KiB.

    It fills the buffer with zeros for each connection, also for one that only sends half a hello.  A record of TLS has
    16 KiB.  uvloop's has memory only for what is used of it.
    """
    sslproto.SSLProtocol.max_size = TLS_READ_BYTES


def server_tls(cert: Path, key: Path) -> ServerTls:
    """Return a server's TLS >= 1.2 context and the handle to replace it.  Raises ListenError "config-invalid"."""
    return ServerTls(cert, key)


def _authorities(path: Path) -> str:
    """Return the text of a file of certificates; a FIFO or a device is refused instead of waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return file.read(_AUTHORITIES_BYTES).decode("ascii", "ignore")


def client_tls(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that verifies chain and host name, always, with TLS >= 1.2.

    Trusts the system's authorities (SSL_CERT_FILE, SSL_CERT_DIR) and those in `ca_file`.
    Raises ListenError "config-invalid" when `ca_file` cannot be read.
    """
    context = _ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSION_MIN
    if ca_file is not None:
        try:
            context.load_verify_locations(cadata=_authorities(ca_file))
        except ValueError as exc:
            raise ListenError("config-invalid", f"tls.ca_file {ca_file}: it holds no certificate") from exc
        except OSError as exc:
            raise ListenError("config-invalid", f"tls.ca_file {ca_file}: {_reason(exc)}") from exc
    return context


def client_trust(ca_file: Path | None) -> Verifying:
    """Return what gives the context of `client_tls`, which takes half a MiB: made when it is first asked for.

    With `ca_file` it is made at once, for the same errors.
    """
    if ca_file is not None:
        context = client_tls(ca_file)
        return lambda: context
    return cache(partial(client_tls, None))


def bind_unix(path: Path) -> socket.socket:
    """Return a socket listening at `path` with mode 0600; a stale socket is replaced.

    On Linux through /proc/self/fd, because an AF_UNIX address has at most 107 bytes.  The mode is set before listen(),
    and so before a connection is possible.  If the file system refuses to set it, the mode that the umask gave is
    accepted, unless it admits group or others.
    Raises ListenError "listen-failed".
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        address = str(path)
        if sys.platform == "linux":
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            address = f"/proc/self/fd/{folder}/{path.name}"
        _remove_stale(address)
        sock.bind(address)
        _close_to_others(address)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        hint = f"see what is at {path}, or move the home with SYNCROPEL_HOME"
        if exc.errno in _NO_SOCKETS:
            hint = f"its file system may take no sockets: mount a tmpfs at {path.parent}, or move the home"
        raise ListenError("listen-failed", f"{path}: {exc.strerror or exc}", hint=hint) from exc
    finally:
        if folder >= 0:
            os.close(folder)
    sock.setblocking(False)
    return sock


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Return one listening socket for each address of `host`; port 0 takes one free port for all.

    An address of a name that this machine lacks is left out if it has another: `localhost` is often ::1 too, even
    without IPv6.  Raises ListenError "listen-failed".
    """
    bound: list[socket.socket] = []
    try:
        lacking: OSError | None = None
        # As text a name would be encoded by IDNA, whose tables every daemon would then hold.
        name = host.encode() if host.isascii() else host
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            chosen = port or (bound[0].getsockname()[1] if bound else 0)
            try:
                bound.append(_bind_one(family, kind, protocol, (address[0], chosen, *address[2:])))
            except OSError as exc:
                if exc.errno not in _LACKING:
                    raise
                lacking = exc
        if lacking and not bound:
            raise lacking
    except OSError as exc:
        for sock in bound:
            sock.close()
        taken = exc.errno == errno.EADDRINUSE
        other = port + 100 if port < 65_436 else port - 100
        hint = f"a daemon or program has it; choose another: spl serve --port {other}" if taken else ""
        raise ListenError("listen-failed", f"{host} port {port}: {exc.strerror or exc}", hint=hint) from exc
    return bound


def lan_address() -> str:
    """Return the IPv4 address at which the other machines of our private network find this one.

    Raises ListenError "listen-failed" if it has none.
    """
    return chosen_lan_address(_route_address(), _interface_addresses())


def own_names() -> frozenset[str]:
    """Return the names of this machine, in lower case, that the other machines of its network may call it by.

    A name without a dot is also asked for in the domain of multicast DNS, as laptops on one network do.
    """
    name = socket.gethostname().lower()
    first = name.partition(".")[0]
    return frozenset({name, first, f"{first}.local"}) - {"", ".local"}


def chosen_lan_address(routed: str, others: Sequence[str]) -> str:
    """Return the address of the default route, or without one, as on a cable between two machines, the first other.

    A public one is refused: it is no private network that it leads to, whatever else the machine is connected with.
    """
    found = [routed] if routed else others
    for address in found:
        if kind_of(address) not in ("", "loopback"):
            return address
    why = f"its address {found[0]} is public" if routed else "it has no address of one"
    hint = "give --host and --public-url; on the internet use https, see: spl help proxies"
    raise ListenError("listen-failed", f"this machine is on no private network: {why}", hint=hint)


async def dial(
    ip_text: str, port: int, tls: ssl.SSLContext | None, name: str, stream_bytes: int = 65536
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return streams to exactly this address; with `tls`, `name` is what the certificate must prove.

    The caller sets the deadline.  Raises ReachError "connect", "no-route" or "tls-chain".
    """
    where = f"{ip_text} port {port}" if name in ("", ip_text) else f"{name} at {ip_text} port {port}"
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in ip_text else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as exc:  # no IPv6 in this kernel, or no descriptor for now
        raise ReachError("connect", f"{where}: {_reason(exc)}") from exc
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (ip_text, port))
        server_name = name if tls else None
        return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=server_name, limit=stream_bytes)
    except ssl.SSLCertVerificationError as exc:
        sock.close()
        raise ReachError("tls-chain", f"{name}: certificate refused: {exc.verify_message}") from exc
    except ssl.SSLError as exc:
        sock.close()
        hint = tls_step(name, ip_text, port)
        raise ReachError("tls-chain", f"{name}: TLS failed: {_reason(exc)}", hint=hint) from exc
    except OSError as exc:
        sock.close()
        code = "no-route" if exc.errno in _NO_ROUTE else "connect"
        hint = route_step(ip_text, _reason(exc)) if code == "no-route" else ""
        raise ReachError(code, f"{where}: {_reason(exc)}", hint=hint) from exc
    except BaseException:
        sock.close()
        raise


async def hang_up(writer: asyncio.StreamWriter, linger_s: float) -> None:
    """Flush and close; abort a peer that has not read the rest in `linger_s` seconds."""
    writer.close()
    try:
        async with asyncio.timeout(linger_s):
            await writer.wait_closed()  # alone, this hangs for ever on a peer that stops reading
    except (TimeoutError, OSError):
        writer.transport.abort()


def _bind_one(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _load_pair(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSION_MIN
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError) as exc:
        raise ListenError("config-invalid", f"TLS certificate {cert} with key {key}: {_reason(exc)}") from exc
    return context


def _no_password() -> str:
    """Answer OpenSSL's request for a pass phrase, which would otherwise be read from the terminal."""
    return ""


def _close_to_others(address: str) -> None:
    try:
        os.chmod(address, 0o600)
    except OSError:
        if os.lstat(address).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise


def _remove_stale(address: str) -> None:
    """Unlink a socket that refuses connections; raise OSError for anything else that is there."""
    try:
        mode = os.lstat(address).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            os.unlink(address)
            return
        except FileNotFoundError:
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.lower().replace("_", " ")
    # The loops put words of their own into strerror: "Connect call failed ('127.0.0.1', 9100)".
    return os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc) or type(exc).__name__


def _route_address() -> str:
    """Return the address from which a packet to the internet would leave; none is sent.  "" without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((_ELSEWHERE, 9))
        except OSError:
            return ""
        return str(sock.getsockname()[0])


def _interface_addresses() -> list[str]:
    """Return the IPv4 address of each interface that has one, in the system's order."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, name.encode().ljust(_IFREQ_BYTES, b"\0"))
            except OSError:
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def unsent_bytes(transport: asyncio.WriteTransport) -> int:
    """Return how many bytes wait in the buffers of a connection and of the system for the other end to take them."""
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with suppress(OSError):  # a system that does not tell
            size += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return size
