"""The daemon: builds everything in floor order, serves until told to stop, and takes it down in reverse.

SIGTERM and SIGINT stop it: no new connections, streams told, what waits written, exit 0.  SIGHUP reads configuration
and TLS certificate again.  The writer runs in a thread of its own; should it ever die, the daemon stops rather than
serve on without writing.
"""

import asyncio
import importlib
import importlib.util
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import logs
from .api.app import Api
from .config import Config, Settings
from .core.errors import SplError
from .core.version import VERSION
from .disk import Disk
from .home import SOCKET, Home, now_ms, open_home, read_config
from .net.client import Client
from .net.server import Server
from .net.streams import Listener, ServerTls, bind_tcp, bind_unix, client_tls, server_tls
from .wiring import services_of

log = logging.getLogger("spl.daemon")

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class DaemonError(SplError):
    """The daemon cannot start as configured."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `spl serve` was given; None where a flag was not."""

    home: Path
    host: str | None = None
    port: int | None = None
    public_url: str | None = None
    insecure_localhost: bool = False
    log_format: str | None = None

    def flags(self) -> dict[str, object]:
        """Return what was given by configuration key; None where a flag was not."""
        return {
            "host": self.host, "port": self.port, "public_url": self.public_url, "log.format": self.log_format
        }  # fmt: skip


def run(options: ServeOptions) -> int:
    """Serve until a signal; return the process exit code.

    Raises SplError when the home cannot be opened or an address cannot be listened on.
    """
    os.umask(0o077)  # whatever is created from here on, rotated logs too, is the operator's alone
    disk = Disk()
    disk.mkdir(options.home)
    config = read_config(options.home, disk, options.flags())
    if options.insecure_localhost and config.host not in LOOPBACK_HOSTS:
        raise DaemonError("config-invalid", f"--insecure-localhost serves loopback only, not {config.host}")
    logs.setup(options.home / "logs", config.log_format, config.log_level)
    home = open_home(options.home, config, disk=disk, progress=_progress)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_Daemon(home, options).serve())
    finally:
        home.close()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop's where it is installed, unless SPL_LOOP=asyncio."""
    if os.environ.get("SPL_LOOP") == "asyncio" or importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


class _Daemon:
    """One run of the daemon over an open home."""

    def __init__(self, home: Home, options: ServeOptions) -> None:
        self.home = home
        self.config = home.config
        self.settings = Settings(home.config)
        self.options = options
        self.failed = False

    async def serve(self) -> int:
        """Listen, run the services, and end them; return the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        tls = _server_tls(self.config)
        listeners, url = _listeners(self.config, tls)
        local = [Listener(bind_unix(self._socket_path()), local=True)]
        writer = threading.Thread(target=self._write, args=(loop, stop), name="spl-writer")
        verifying = client_tls(_ca_file(self.config))
        client = Client(self.config.limits, tls=verifying)
        insecure = self.options.insecure_localhost
        services = services_of(self.home, client, verifying, url, self.settings, insecure=insecure)
        _on_signals(loop, stop, lambda: self._reload(tls))
        writer.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind, found in ((True, local), (False, listeners)):
                    server = Server(Api(services, local=kind), self.config.limits, now_ms=now_ms)
                    tasks.create_task(server.serve(found, stop))
                tasks.create_task(services.pairing.run(stop))
                tasks.create_task(services.sync.run(stop))
                tasks.create_task(services.feed.run(stop))
                tasks.create_task(services.push.run(stop))
                tasks.create_task(services.doctor.pulse.run(stop))
                self._announce(url)
        finally:
            services.feed.close()
            services.sync.close()
            services.push.close()
            services.reconcile.close()
            await client.close()
            self.home.hub.close()
            await asyncio.to_thread(writer.join)
            self._socket_path().unlink(missing_ok=True)
        log.info("daemon.stopped", extra={"fields": {"pid": os.getpid()}})
        return 1 if self.failed else 0

    def _write(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Run the hub; the task boundary of the writer's thread."""
        try:
            self.home.hub.run()
        except Exception:
            self.failed = True
            log.exception("daemon.writer_died")
            loop.call_soon_threadsafe(stop.set)

    def _reload(self, tls: ServerTls | None) -> None:
        """Read configuration and certificate again; what is wrong is logged, and what was in force stays so."""
        try:
            config = read_config(self.home.path, self.home.disk, self.options.flags())
        except SplError as exc:
            log.error("config.reload_failed", extra={"fields": {"code": exc.code, "msg": exc.message}})
        else:
            changed, waiting = self.settings.take(config)
            logs.setup(self.home.path / "logs", config.log_format, config.log_level)
            fields = {"changed": ",".join(changed), "after_restart": ",".join(waiting)}
            log.log(logging.WARNING if waiting else logging.INFO, "config.reloaded", extra={"fields": fields})
        _reload_tls(self.settings.now, tls)

    def _socket_path(self) -> Path:
        folder = self.home.path / SOCKET
        self.home.disk.mkdir(folder.parent)
        return folder

    def _announce(self, url: str) -> None:
        identity = self.home.vault.identity
        fields = {"url": url, "did": identity.did if identity else "", "version": VERSION, "pid": os.getpid()}
        log.info("daemon.listening", extra={"fields": {**fields, "msg": f"listening on {url}"}})
        if identity is None:
            log.warning("identity.missing", extra={"fields": {"msg": "no identity; fix: spl identity generate"}})
        if self.options.insecure_localhost:
            log.warning("auth.off", extra={"fields": {"msg": "INSECURE: everybody on this machine has admin access"}})


def _listeners(config: Config, tls: ServerTls | None) -> tuple[list[Listener], str]:
    """Bind the addresses; return them with the URL that peers shall use."""
    plain = [Listener(sock) for sock in bind_tcp(config.host, config.port)]
    port = plain[0].sock.getsockname()[1]
    url = f"http://{_bracketed(config.host)}:{port}"
    if tls is not None:
        host, _, text = config.tls_listen.rpartition(":")
        secure = [Listener(sock, tls=tls.context) for sock in bind_tcp(host.strip("[]"), _port_of(text))]
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


def _server_tls(config: Config) -> ServerTls | None:
    if not config.tls_listen:
        return None
    if not config.tls_certificate or not config.tls_key:
        raise DaemonError("config-invalid", "tls.listen needs tls.certificate and tls.key")
    return server_tls(Path(config.tls_certificate), Path(config.tls_key))


def _ca_file(config: Config) -> Path | None:
    return Path(config.tls_ca_file) if config.tls_ca_file else None


def _on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, reload: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)


def _reload_tls(config: Config, tls: ServerTls | None) -> None:
    """Swap in the certificate on disk; a bad one is logged and the old one serves on."""
    if tls is None:
        return
    try:
        tls.replace(Path(config.tls_certificate), Path(config.tls_key))
        log.info("tls.reloaded", extra={"fields": {"certificate": config.tls_certificate}})
    except (SplError, OSError, ssl.SSLError) as exc:
        log.error("tls.reload_failed", extra={"fields": {"error": str(exc)[:200]}})


def _progress(done: int, total: int) -> None:
    print(f"rebuilding the index: {done:,} of {total:,} lines", file=sys.stderr, flush=True)
