"""The way to a peer, step by step: name, connection, certificate; each fails with a code of its own.

The client does the same in one call and reports only the last error; a diagnosis needs every step on the way.
"""

import asyncio
import ssl
from dataclasses import dataclass

from .address import ReachError, Url, is_address, is_loopback, judge, parse_url
from .client import DialPolicy, Resolve
from .sockets import dial

_ADDRESSES_COUNT = 8
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Reached:
    """How far it went: `code` is "" on success; steps that were not taken are empty or None."""

    host: str
    addresses: tuple[str, ...] = ()
    address: str = ""
    """The one that accepted."""
    tls_ends_s: int | None = None
    """Unix time at which the peer's certificate ends; None without TLS."""
    code: str = ""
    message: str = ""


class Prober:
    """Connects as the client does: `resolve` looks names up, `tls` verifies, all within `timeout_s`."""

    def __init__(self, resolve: Resolve, tls: ssl.SSLContext, timeout_s: float) -> None:
        self._resolve, self._tls, self._timeout_s = resolve, tls, timeout_s

    async def reach(self, url: str, policy: DialPolicy) -> Reached:
        """Return how far a connection to the origin of `url` gets; no request is sent.

        Nothing is dialled that `policy` forbids.  Raises ReachError "url-invalid" only.
        """
        where = parse_url(url)
        addresses: tuple[str, ...] = ()
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = await self._addresses(where)
                allowed = _allowed(where, addresses, policy)
                address, ends_s = await _connect(where, allowed, self._tls if where.scheme == "https" else None)
                return Reached(where.host, addresses, address, ends_s)
        except TimeoutError:
            step = "accept the connection" if addresses else "resolve"
            fault = ReachError("timeout", f"{where.host} did not {step} within {self._timeout_s:g} s")
        except ReachError as exc:
            fault = exc
        return Reached(where.host, addresses, code=fault.code, message=fault.message)

    async def _addresses(self, where: Url) -> tuple[str, ...]:
        if is_address(where.host):
            return (where.host,)
        try:
            found = await self._resolve(where.host, where.port)
        except OSError as exc:
            raise ReachError("dns", f"{where.host}: {exc.strerror or 'the lookup failed'}") from exc
        return tuple(dict.fromkeys(found))[:_ADDRESSES_COUNT]


def days_left(ends_s: int, now_s: float) -> int:
    """Return the whole days until a certificate ends; negative after that."""
    return int((ends_s - now_s) // _DAY_S)


def _allowed(where: Url, addresses: tuple[str, ...], policy: DialPolicy) -> list[str]:
    """Return the addresses that may be dialled; raise ReachError when there is none."""
    refusal = ReachError("dns", f"{where.host} has no address")
    allowed = []
    for address in addresses:
        try:
            judge(address, policy.allow_private, policy.near)
        except ReachError as exc:
            refusal = exc
            continue
        if where.scheme == "http" and not (policy.allow_http or is_loopback(address)):
            refusal = ReachError("http-plain", f"{where.origin} is not on this machine")
            continue
        allowed.append(address)
    if not allowed:
        raise refusal
    return allowed


async def _connect(where: Url, addresses: list[str], tls: ssl.SSLContext | None) -> tuple[str, int | None]:
    """Return (address, end of its certificate) of the first that accepts; raise the last one's ReachError."""
    fault: ReachError | None = None
    for address in addresses:
        try:
            _, writer = await dial(address, where.port, tls, where.host)
        except ReachError as exc:
            fault = exc
            continue
        certificate = writer.get_extra_info("peercert")
        writer.transport.abort()
        ends = certificate.get("notAfter") if isinstance(certificate, dict) else None
        return address, int(ssl.cert_time_to_seconds(ends)) if ends else None
    assert fault is not None
    raise fault
