"""Where the daemon listens: addresses of its own or handed over, their certificate, and how many may connect.

Strangers, peers, the operator and the store share the file descriptors.  The soft limit is raised to the hard
one, and what the listeners may take of it leaves DESCRIPTORS_KEPT for the store, the operator and our own connections.
"""

import logging
import socket
import ssl
from pathlib import Path
from typing import Final

from ..core.errors import SplError
from ..core.event import event
from ..core.limits import Limits
from ..core.value import replace
from ..home.config import Config, is_loopback
from ..net.sockets import Listener, ServerTls, bind_tcp, server_tls
from .systemd import Manager

log = logging.getLogger("spl.daemon")

DESCRIPTORS_MIN: Final = 40
"""What the store, the loop and one connection each of operator and peer take; with less nothing can be served."""
DESCRIPTORS_KEPT: Final = 256
LOCAL_CONNECTIONS_MIN: Final = 16
STOPPING_SHARE: Final = 0.7
"""Of `shutdown_s`: the time that open connections have to end; the rest is for the services and the last commit."""


class DaemonError(SplError):
    """The daemon cannot start as configured."""


def check_descriptors(descriptors: int) -> None:
    """Raise DaemonError "listen-failed" if a process may open too few files to be a daemon."""
    if descriptors < DESCRIPTORS_MIN:
        text = f"this process may open {descriptors} files, and a daemon needs {DESCRIPTORS_MIN} at least"
        raise DaemonError("listen-failed", text, hint="ulimit -n 1024; if that is refused, raise the hard limit first")


def handed_over(config: Config, manager: Manager) -> Config:
    """Return the configuration with the addresses of the sockets that a service manager handed over.

    Clients that those let in are judged like those whom `host` and `tls.listen` let in: of several the widest counts.
    """
    for sockets, is_tls in ((manager.plain, False), (manager.secure, True)):
        places = [sock.getsockname()[:2] for sock in sockets]
        for host, port in sorted(places, key=lambda address: is_loopback(address[0]))[:1]:
            if not is_tls:
                config = replace(config, host=host, port=port)
            elif config.tls_listen:
                config = replace(config, tls_listen=f"[{host}]:{port}")
            else:
                raise DaemonError("config-invalid", "a socket named tls was handed over, and tls.listen is not set")
    return config


def limits_of(limits: Limits, descriptors: int) -> tuple[Limits, Limits]:
    """Return the limits of the TCP listeners and of the home's own socket, so that neither takes the other's.

    On the socket there are no strangers, so its one source may hold all of its connections.
    """
    limits = replace(limits, shutdown_s=limits.shutdown_s * STOPPING_SHARE)
    tcp = min(limits.connections_count, max(descriptors - DESCRIPTORS_KEPT, descriptors // 4))
    local = min(limits.connections_count, max(LOCAL_CONNECTIONS_MIN, descriptors // 16))
    return (
        replace(limits, connections_count=tcp),
        replace(limits, connections_count=local, connections_per_source=local),
    )


def bound(config: Config, tls: ServerTls | None, manager: Manager) -> tuple[list[Listener], str]:
    """Bind the addresses, unless sockets were handed over; return them with the URL that peers use."""
    plain = [Listener(sock) for sock in manager.plain or bind_tcp(config.host, config.port)]
    port = plain[0].sock.getsockname()[1]
    url = f"http://{_bracketed(config.host)}:{port}"
    if tls is not None:
        host, _, text = config.tls_listen.rpartition(":")
        secure = [
            Listener(sock, tls=tls.context) for sock in manager.secure or bind_tcp(host.strip("[]"), _port_of(text))
        ]
        plain += secure
        url = f"https://{_bracketed(host.strip('[]'))}:{secure[0].sock.getsockname()[1]}"
    return plain, config.public_url or url


def _port_of(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise DaemonError("config-invalid", "tls.listen is host:port")
    return int(text)


def _bracketed(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - this asks, it does not bind
        host = socket.gethostname()
    return f"[{host}]" if ":" in host else host


def server_tls_of(config: Config) -> ServerTls | None:
    """Return what the TLS listener shows, None without one.  Raises DaemonError "config-invalid"."""
    if not config.tls_listen:
        return None
    if not config.tls_certificate or not config.tls_key:
        raise DaemonError("config-invalid", "tls.listen needs tls.certificate and tls.key")
    return server_tls(Path(config.tls_certificate), Path(config.tls_key))


def ca_file_of(config: Config) -> Path | None:
    """Return the file of the authorities that are trusted beside the system's, if one is set."""
    return Path(config.tls_ca_file) if config.tls_ca_file else None


def reload_tls(config: Config, tls: ServerTls | None) -> str:
    """Swap in the certificate on disk, return ""; a bad one is logged, the old one serves on, and why is returned."""
    if tls is None:
        return ""
    try:
        tls.replace(Path(config.tls_certificate), Path(config.tls_key))
        log.info(**event("tls.reloaded", certificate=config.tls_certificate))
    except (SplError, OSError, ssl.SSLError) as exc:
        log.error(**event("tls.reload_failed", error=str(exc)[:200]))
        return exc.message if isinstance(exc, SplError) else str(exc)[:200]
    return ""
