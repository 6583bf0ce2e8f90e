"""From a URL to a connection: the name is looked up, each of its addresses judged, and those allowed are raced.

Happy Eyeballs (RFC 8305): the families take turns, a new attempt begins every STAGGER_S, or at once when one fails, and
the first connection that is up, TLS included, is used; the others are closed.  Rejected: one address after the other
under one deadline, where a first address that does not answer, such as an IPv6 one behind a broken tunnel, takes all
the time that there is, so that a peer whose second address is fine is never reached.  TLS is part of the race, because
a port may be open and say nothing.

The address that was judged is the address that is dialled: a name is resolved once for each connection, and the socket
never resolves again.  Each address is judged, so a name cannot lead to a forbidden one behind an allowed one.
"""

import asyncio
import errno
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Final, Literal

from ..core.value import dataclass, field
from .address import LAN_STEP, ReachError, Url, connect_step, is_address, is_loopback, judge, kind_of
from .sockets import Verifying, dial

STAGGER_S: Final = 0.25
_FURTHER: Final = ("no-route", "connect", "tls-chain")
"""How far an attempt came, by its code; a certificate says more than a port that is closed."""
_LOOKUPS_COUNT: Final = 8
"""Lookups at once, each in a thread that the system may hold for half a minute."""
_ADDRESSES_COUNT: Final = 8
"""Addresses tried for one connection: at STAGGER_S each, all have begun within two seconds."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class DialPolicy:
    """What our operator allows for one peer."""

    allow_private: bool = False
    """Loopback and private addresses; plain http to loopback."""
    allow_http: bool | Literal["private"] = False
    """Plain http to any address that may be dialled, or to those of a private network alone."""
    near: tuple[str, ...] = ()
    """Addresses, of whose kind private ones may be dialled."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """An open connection to one address."""

    address: str
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)
    found: tuple[str, ...] = ()
    """Every address that the name has."""


class Dialer:
    """Opens connections: `resolve(host, port)` returns addresses in text; `tls` None refuses https."""

    def __init__(self, tls: Verifying | None, resolve: Resolve | None = None) -> None:
        self._tls = tls
        self._resolve = resolve or Resolver().resolve

    async def connect(self, where: Url, policy: DialPolicy, timeout_s: float) -> Dialled:
        """Return a connection to the first address of `where` that is up, within `timeout_s` in all.

        Raises ReachError, whose `addresses` are those that were found: "dns", "address-refused", "http-plain";
        "timeout", "connect" or "tls-chain" with what each address did.
        """
        found: tuple[str, ...] = ()
        race = _Race(where)
        try:
            context = None
            if where.scheme == "https":
                if self._tls is None:
                    raise ReachError("tls-chain", "this client was made without TLS")
                context = self._tls()
            async with asyncio.timeout(timeout_s):
                found = await self._addresses(where)
                won = await race.run(_allowed(where, found, policy), context)
            return Dialled(*won, found)
        except TimeoutError as exc:
            race.abort()
            step = f"accept a connection ({race.tried()})" if found else "resolve"
            raise ReachError("timeout", f"{where.host} did not {step} within {timeout_s:g} s", addresses=found) from exc
        except ReachError as exc:
            exc.addresses = found
            if exc.code == "connect":
                exc.hint = connect_step(where)
            raise
        except BaseException:
            race.abort()
            raise

    async def _addresses(self, where: Url) -> tuple[str, ...]:
        if is_address(where.host):
            return (where.host,)
        try:
            return tuple(dict.fromkeys(await self._resolve(where.host, where.port)))
        except OSError as exc:
            raise ReachError("dns", f"{where.host}: {exc.strerror or 'the lookup failed'}") from exc


class _Race:
    """The attempts at one connection: `failed` is filled in the order in which they fail."""

    def __init__(self, where: Url) -> None:
        self._where = where
        self._won: tuple[str, asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._begun: list[str] = []
        self._failed: dict[str, ReachError] = {}
        self._changed = asyncio.Event()

    async def run(
        self, addresses: Sequence[str], tls: ssl.SSLContext | None
    ) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the first connection; raise the ReachError of the attempt that came furthest if there is none."""
        async with asyncio.TaskGroup() as tasks:
            attempts = []
            while self._won is None and len(self._failed) < len(addresses):
                self._changed.clear()
                rest = addresses[len(self._begun) :]
                if rest:
                    self._begun.append(rest[0])
                    attempts.append(tasks.create_task(self._attempt(rest[0], tls)))
                with suppress(TimeoutError):
                    async with asyncio.timeout(STAGGER_S if rest[1:] else None):
                        await self._changed.wait()
            for attempt in attempts:
                attempt.cancel()
        if self._won is None:
            raise self._failure()
        return self._won

    def abort(self) -> None:
        """Close the connection that won, if its caller does not get it."""
        if self._won is not None:
            self._won[2].transport.abort()

    def tried(self) -> str:
        """Return what each address did that was dialled."""
        return "; ".join(
            self._failed[each].message if each in self._failed else f"{each}: no answer" for each in self._begun
        )

    async def _attempt(self, address: str, tls: ssl.SSLContext | None) -> None:
        try:
            reader, writer = await dial(address, self._where.port, tls, self._where.host)
        except ReachError as exc:
            self._failed[address] = exc.bare()
        else:
            if self._won is None:
                self._won = address, reader, writer
            else:
                writer.transport.abort()
        self._changed.set()

    def _failure(self) -> ReachError:
        """Return what to report if each attempt failed: of the one that came furthest."""
        *_, last = sorted(self._failed.values(), key=lambda exc: _FURTHER.index(exc.code))
        return ReachError(last.code, self.tried(), hint=last.hint)


class Resolver:
    """Name lookups in daemon threads of their own, a few at a time.

    Not in an executor: the interpreter joins those at exit, and a lookup that hangs
    for half a minute would keep a stopped daemon alive.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_LOOKUPS_COUNT)
        self._running: dict[str, asyncio.Future[list[str] | OSError]] = {}
        """By name: a peer whose name hangs holds one slot with it, however often it is dialled."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of `host`; the caller sets the deadline.  Raises OSError."""
        if host not in self._running:
            await self._slots.acquire()
            if host in self._running:
                self._slots.release()
            else:
                self._begin(host, port)
        found = await asyncio.shield(self._running[host])
        if isinstance(found, OSError):
            raise found
        return found

    def _begin(self, host: str, port: int) -> None:
        """Start a lookup, which holds the slot until it ends; raise OSError without a thread for it."""
        loop = asyncio.get_running_loop()

        def settle(found: list[str] | OSError) -> None:
            self._slots.release()
            self._running.pop(host).set_result(found)

        def look_up() -> None:
            found: list[str] | OSError
            try:
                rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = [str(row[4][0]) for row in rows]
            except OSError as exc:
                found = exc
            except UnicodeError:
                found = OSError(0, "the name is not valid")
            try:
                loop.call_soon_threadsafe(settle, found)
            except RuntimeError:
                return  # the loop is closed: no one waits for it

        self._running[host] = loop.create_future()
        try:
            threading.Thread(target=look_up, name="spl-dns", daemon=True).start()
        except RuntimeError as exc:
            settle(OSError(errno.EAGAIN, "no thread for the lookup"))
            raise OSError(errno.EAGAIN, "no thread for the lookup") from exc


def interleaved(addresses: Sequence[str]) -> list[str]:
    """Return the addresses with the families taking turns, beginning with that of the first (RFC 8305 §4)."""
    first = [each for each in addresses if (":" in each) == (":" in addresses[0])]
    second = [each for each in addresses if (":" in each) != (":" in addresses[0])]
    return [each for each in chain.from_iterable(zip_longest(first, second)) if each is not None]


def _allowed(where: Url, found: Sequence[str], policy: DialPolicy) -> list[str]:
    """Return the addresses that may be dialled, in the order of the attempts; one refused among them is left out.

    Raises ReachError when there is none.
    """
    refusal = ReachError("dns", f"{where.host} has no address")
    allowed = []
    for address in found:
        try:
            judge(address, policy.allow_private, policy.near)
            if where.scheme == "http" and not _is_plain_allowed(address, policy):
                hint = LAN_STEP if kind_of(address) else ""
                raise ReachError("http-plain", f"{where.origin} is not on this machine", hint=hint)
        except ReachError as exc:
            refusal = exc.bare()
        else:
            allowed.append(address)
    if not allowed:
        raise refusal.bare()
    return interleaved(allowed)[:_ADDRESSES_COUNT]


def _is_plain_allowed(address: str, policy: DialPolicy) -> bool:
    """Return whether plain http to this address is allowed."""
    return policy.allow_http is True or is_loopback(address) or (bool(policy.allow_http) and kind_of(address) != "")
