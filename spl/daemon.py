"""The daemon: builds everything in the order of the folders, serves until a signal, and closes it in reverse.

SIGTERM and SIGINT stop it: no new connections, streams told, queued writes written, exit 0.  SIGHUP reads configuration
and TLS certificate again.  Both may come at any moment of the start: `cli/main` holds signals back until there are
handlers, a stop ends an opening between two batches of the index, and SIGHUP waits until there is something to read
again.  Three faults must not turn a daemon into one that neither serves nor ends:

- A service that crashes is logged, named in `spl status` and started again after a delay; the others go on.  Without
  that boundary one uncaught error of one pair ended everything in the group.
- The writer runs in a thread of its own.  If it dies, the daemon stops rather than serve on without writing.
- A stop waits for no thread that only reads: the log tells long readings to end (`Log.stop`), the pools are not joined,
  and the process ends under what still runs once the log is closed.  What may write is waited for: the writer.
- A stop that does not come to its end is cut by a thread that waits for nothing else, `Watchdog`.  The log takes that
  as it takes a power cut: what was acknowledged is synced, and the next start drops what was not.
"""

import asyncio
import importlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from .api.app import RESOURCES, Api
from .api.auth import Auth
from .api.searches import Searches
from .api.services import ServiceFaults, Services
from .core.backoff import Backoff
from .core.errors import SplError
from .core.event import event
from .core.value import Json, dataclass
from .core.version import SOCKET, VERSION
from .doctor.health import HealthSampler
from .doctor.mend import StoreMender
from .engine.engines import Engines
from .home import logs
from .home.config import Settings, check_open
from .home.disk import Disk
from .home.home import MACHINE, Home, Machine, keys_lacking, now_ms, open_home, read_config
from .home.manifest import ManifestSigner
from .home.policy import Policy
from .home.thread_state import ThreadStates
from .host import listeners, program
from .host.process import (
    CUT_GRACE_S,
    StoppedError,
    Watchdog,
    collect_seldom,
    raise_descriptors,
    settle,
    share_memory,
)
from .host.program import Lazy
from .host.systemd import ManagedService, Manager
from .net.address import Proxies
from .net.client import HttpClient
from .net.server import Server
from .net.sockets import Listener, ServerTls, Verifying, bind_unix, client_trust, lean_tls
from .pairing.machine import Pairs
from .pairing.names import PairNames
from .pairing.service import Pairing
from .sync.changes import Feed
from .sync.compare.anti_entropy import AntiEntropy
from .sync.ingest import Ingest
from .sync.peer import PeerClient
from .sync.push import Push
from .sync.reach import Reaches
from .sync.schedule import Sync
from .sync.supervise import BACKOFF_BASE_S, guard

if TYPE_CHECKING:
    from .doctor.examine import Doctor
    from .home.restore import Restorer
    from .sync.compare.fingerprints import Fingerprints
    from .sync.compare.reconcile import Reconcile

log = logging.getLogger("spl.daemon")

RESTART_MAX_S: Final = 60.0
SETTLED_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The flags of `spl serve`; None for one that was not given."""

    home: Path
    host: str | None = None
    port: int | None = None
    public_url: str | None = None
    allow_http: str | None = None
    insecure_localhost: bool = False
    log_format: str | None = None

    def flags(self) -> Json:
        """Return the flags by configuration key; None for one that was not given."""
        return {
            "host": self.host, "port": self.port, "public_url": self.public_url, "log.format": self.log_format,
            "federation.allow_http": self.allow_http,
        }  # fmt: skip


def run(options: ServeOptions) -> int:
    """Serve until a signal; return the process exit code.

    Raises SplError when the home cannot be opened or an address cannot be listened on.
    """
    os.umask(0o077)  # whatever is created from here on, rotated logs too, is the operator's alone
    watchdog = Watchdog()
    watchdog.start()
    try:
        code = _run(options, watchdog)
    finally:
        watchdog.ended.set()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        os._exit(code)  # returning would wait for them
    return code


def _run(options: ServeOptions, watchdog: Watchdog) -> int:
    descriptors = raise_descriptors()
    listeners.check_descriptors(descriptors)
    share_memory()
    collect_seldom()
    manager = Manager(os.environ, os.getpid())
    disk = Disk()
    disk.own(options.home)
    config = listeners.handed_over(read_config(options.home, disk, options.flags()), manager)
    check_open(config, insecure=options.insecure_localhost)
    watchdog.limit_s = config.limits.shutdown_s + CUT_GRACE_S
    logs.setup(options.home / "logs", config.log_format, config.log_level)
    if options.insecure_localhost or not config.auth_required:
        log.warning(**event("auth.off", msg="INSECURE: everybody on this machine has admin access"))
    if parent := disk.open_parent(options.home):
        log.warning(**event("home.parent_open", path=str(parent), msg="everybody may move the home away: chmod +t"))
    if lacking := keys_lacking(options.home, disk):
        raise lacking

    def opening(done: int, total: int) -> None:
        watchdog.progress(done, total)
        manager.opening(done, total)

    try:
        watchdog.check()
        home = open_home(options.home, config, disk=disk, progress=opening)
    except StoppedError:
        log.info(**event("daemon.stopped", pid=os.getpid(), msg="stopped while the home was being opened"))
        return 0
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_Daemon(home, options, watchdog, manager, descriptors).serve())
    finally:
        home.close()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop's if it is installed, unless SPL_LOOP=asyncio."""
    if os.environ.get("SPL_LOOP") == "asyncio" or importlib.util.find_spec("uvloop") is None:
        lean_tls()
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


class _Workers(ThreadPoolExecutor):
    """The loop's threads; the loop joins its executor when it is closed, and a read may take long."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin nothing more, and wait for nothing."""
        super().shutdown(wait=False, cancel_futures=True)


class _Service(Protocol):
    """What runs from start to stop beside the listeners."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; can be called again after a crash."""


class _Daemon:
    """One run of the daemon over an open home."""

    def __init__(
        self, home: Home, options: ServeOptions, watchdog: Watchdog, manager: Manager, descriptors: int
    ) -> None:
        self.home = home
        self.config = home.config
        self.settings = Settings(home.config)
        self.proxies = Proxies(home.config.http_trusted_proxies)
        self.options = options
        self.watchdog = watchdog
        self.manager = manager
        self.limits = listeners.limits_of(home.config.limits, descriptors)
        self.failed = False
        self.written = asyncio.Event()

    async def serve(self) -> int:
        """Listen, run the services, and end them; return the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_Workers(thread_name_prefix="spl-work"))
        tls = listeners.server_tls_of(self.config)
        bound, url = listeners.bound(self.config, tls, self.manager)
        paths = self._socket_paths()
        local = [Listener(bind_unix(path), local=True) for path in paths]
        writer = threading.Thread(target=self._write, args=(loop,), name="spl-writer")
        verifying = client_trust(listeners.ca_file_of(self.config))
        client, insecure = HttpClient(self.config.limits, tls=verifying), self.options.insecure_localhost
        services = services_of(self.home, client, verifying, url, self.settings, insecure=insecure)
        self.watchdog.on_stop(lambda: loop.call_soon_threadsafe(stop.set))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._reload(tls))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
        writer.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                tcp, own = self.limits
                api = Api(services, local=False, connections=tcp.connections_count)
                server = Server(api, tcp, now_ms=now_ms, proxies=self.proxies)
                tasks.create_task(server.serve(bound, stop))
                tasks.create_task(Server(Api(services, local=True), own, now_ms=now_ms).serve(local, stop))
                start(services, tasks, stop, self._more(services))
                self._announce(bound[0].sock.getsockname()[1], url)
                loop.call_later(SETTLED_S, settle, loop)
                await stop.wait()
                self.manager.stopping()
                self.home.store.stop()
                services.searches.close()
        finally:
            services.close()
            await client.close()
            self.home.writer.close()
            await self.written.wait()  # in no thread of the pool: all of them may be reading
            writer.join()
            for path in paths:
                path.unlink(missing_ok=True)
        log.info(**event("daemon.stopped", pid=os.getpid()))
        return 1 if self.failed else 0

    def _more(self, services: Services) -> dict[str, _Service]:
        """Return the services that only a daemon of its own process has."""
        home = self.home
        names = PairNames(home.writer, services.feed.notifier, home.path, home.disk)
        if not self.manager.is_there:
            return {"names": names}
        return {"names": names, "manager": ManagedService(self.manager, home.writer, services.feed.notifier)}

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the writer; the task boundary of its thread."""
        try:
            self.home.writer.run()
        except Exception:
            self.failed = True
            log.exception(**event("daemon.writer_died"))
            self.watchdog.alarm()
        finally:
            loop.call_soon_threadsafe(self.written.set)

    def _reload(self, tls: ServerTls | None) -> None:
        """Read configuration and certificate again; what is wrong is logged, and what was in force stays in force."""
        self.manager.reloading()
        try:
            self._read_again()
            self.settings.fault = self.settings.fault or listeners.reload_tls(self.settings.now, tls)
        finally:
            self.settings.reads += 1
            self.manager.ready(self.settings.fault)

    def _read_again(self) -> None:
        try:
            config = read_config(self.home.path, self.home.disk, self.options.flags())
            changed, waiting = self.settings.take(config)
        except SplError as exc:
            self.settings.fault = exc.message
            log.error(**event("config.reload_failed", code=exc.code, msg=exc.message))
        else:
            self.settings.fault = ""
            self.proxies.trust(config.http_trusted_proxies)
            try:
                logs.setup(self.home.path / "logs", config.log_format, config.log_level)
            except SplError as exc:  # lines go where they went
                log.error(**event("log.reload_failed", code=exc.code, msg=exc.message))
            fields = {"changed": ",".join(changed), "after_restart": ",".join(waiting)}
            log.log(logging.WARNING if waiting else logging.INFO, **event("config.reloaded", **fields))

    def _socket_paths(self) -> list[Path]:
        """Return where the commands find the daemon: in its home, and where a service manager made a folder for it."""
        path = self.home.path / SOCKET
        self.home.disk.mkdir(path.parent)
        return [path, *(Path(folder) / path.name for folder in self.manager.folders)]

    def _announce(self, port: int, url: str) -> None:
        identity = self.home.vault.identity
        fields = {"url": url, "did": identity.did if identity else "", "version": VERSION, "pid": os.getpid()}
        log.info(**event("daemon.listening", port=port, **fields, msg=f"listening on {url}"))
        if identity is None:
            home = str(self.home.path).replace("'", "'\\''")
            text = f"no identity; fix: spl identity generate --label NAME --home '{home}'"
            log.warning(**event("identity.missing", msg=text))


def start(
    services: Services, tasks: asyncio.TaskGroup, stop: asyncio.Event,
    more: Mapping[str, _Service] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Run what works beside the listeners until `stop`; a crash of one ends no other, and it is run again."""
    running: dict[str, _Service] = {
        "pairing": services.pairing, "sync": services.sync, "feed": services.feed, "push": services.push,
        "compare": services.anti_entropy, "engine": services.engines, "health": services.health,
        "store": services.mender, "proofs": services.auth.proofs, **more,
    }  # fmt: skip
    for name, service in running.items():
        backoff = Backoff(services.random_bytes, BACKOFF_BASE_S, RESTART_MAX_S)
        guarded = guard(name, partial(service.run, stop), services.faults, backoff, stop)
        tasks.create_task(guarded, name=f"service {name}")


def services_of(
    home: Home, client: HttpClient, tls: Verifying, url: str, settings: Settings, *, insecure: bool = False,
    machine: Machine = MACHINE,
) -> Services:  # fmt: skip
    """Return the services over an open home; `url` is where peers reach this daemon, `tls` verifies theirs.

    Their `run` methods are the caller's to start, their `close` methods to call at the end.
    """
    limits = home.config.limits
    now_ms, random_bytes = machine.now_ms, machine.random_bytes
    policy = Policy(home.writer, resources=RESOURCES, now_ms=now_ms)
    own_url = settings.now.public_url  # what was set, not the address that is published without it
    peers = PeerClient(home.writer, home.vault, client, settings, url=own_url, now_ms=now_ms, random_bytes=random_bytes)
    reaches = Reaches(limits.errors_until_degraded, now_ms)
    ingest = Ingest(home.writer, peers, reaches, limits, now_ms=now_ms, steady_s=machine.steady_s)
    feed = Feed(home.writer, home.vault, limits, reaches, now_ms=now_ms, random_bytes=random_bytes)
    sync = Sync(ingest, feed, now_ms=now_ms, random_bytes=random_bytes)
    push = Push(ingest, feed, now_ms=now_ms, random_bytes=random_bytes)
    fingerprints = Lazy(partial(_fingerprints, home.writer, feed))
    reconcile = Lazy(lambda: _reconcile(ingest, fingerprints(), push, sync, now_ms=now_ms, random_bytes=random_bytes))
    every_s = limits.compare_interval_s
    anti_entropy = AntiEntropy(reconcile, sync, reaches, interval_s=every_s, now_ms=now_ms, random_bytes=random_bytes)
    clocks = {"now_ms": now_ms, "steady_ms": machine.steady_ms}
    published = ManifestSigner(home.writer, home.vault, limits, url=url, **clocks)
    pairs = Pairs(home, published, ingest.budget, **clocks, random_bytes=random_bytes)
    pairing = Pairing(pairs, settings, peers, policy, sync, anti_entropy)
    reaches.watch(pairing)
    health = HealthSampler(home.writer, sync, feed, limits, steady_s=machine.steady_s)
    started_ms = now_ms()
    return Services(
        now_ms=now_ms, random_bytes=random_bytes, started_ms=started_ms, url=url,
        home=home.path, settings=settings, limits=limits, disk=home.disk, vault=home.vault, store=home.store,
        writer=home.writer, policy=policy, states=ThreadStates(home.store),
        make_restorer=partial(_restorer, home, now_ms),
        ingest=ingest, feed=feed, sync=sync, push=push, late_reconcile=reconcile, late_fingerprints=fingerprints,
        anti_entropy=anti_entropy,
        engines=Engines(feed, sync, home.disk, tls, now_ms=now_ms, random_bytes=random_bytes),
        pairing=pairing, health=health,
        make_doctor=partial(_doctor, home, settings, client, tls, pairing, sync, feed, health, now_ms, started_ms),
        mender=StoreMender(home.writer, reconcile, push, random_bytes=random_bytes),
        auth=Auth(home, settings, reaches, machine, insecure=insecure),
        searches=Searches(),
        faults=ServiceFaults(now_ms),
    )  # fmt: skip


def _fingerprints(*parts: object) -> "Fingerprints":
    made: Fingerprints = program.load("sync.compare.fingerprints").Fingerprints(*parts)
    return made


def _reconcile(*parts: object, **more: object) -> "Reconcile":
    made: Reconcile = program.load("sync.compare.reconcile").Reconcile(*parts, **more)
    return made


def _restorer(home: Home, now_ms: Callable[[], int]) -> "Restorer":
    made: Restorer = program.load("home.restore").Restorer(
        home.writer, home.path, home.disk, home.config.limits, now_ms=now_ms
    )
    return made


def _doctor(
    home: Home, settings: Settings, client: HttpClient, tls: Verifying, pairing: Pairing, sync: Sync, feed: Feed,
    health: HealthSampler, now_ms: Callable[[], int], started_ms: int,
) -> "Doctor":  # fmt: skip
    limits = home.config.limits
    probe = program.load("net.probe").Prober(None, tls, limits.check_s)
    peer = program.load("doctor.peer_check").PeerCheck(client, probe, pairing, home.vault, limits, now_ms=now_ms)
    doctor: Doctor = program.load("doctor.examine").Doctor(
        home, settings, pairing, sync, feed, health, peer, now_ms=now_ms
    )
    doctor.started_ms = started_ms
    return doctor
