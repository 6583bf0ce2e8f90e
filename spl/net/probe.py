"""The way to a peer, step by step: name, connection, certificate; each fails with a code of its own.

The client does the same and reports the error alone; a diagnosis needs every step on the way.
"""

import ssl

from ..core.value import dataclass
from .address import ReachError, parse_url
from .dialer import Dialer, DialPolicy, Resolve
from .sockets import Verifying

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

    def __init__(self, resolve: Resolve | None, tls: Verifying, timeout_s: float) -> None:
        self._dialer, self._timeout_s = Dialer(tls, resolve), timeout_s

    async def reach(self, url: str, policy: DialPolicy) -> Reached:
        """Return how far a connection to the origin of `url` gets; no request is sent.

        Nothing is dialled that `policy` forbids.  Raises ReachError "url-invalid" only.
        """
        where = parse_url(url)
        try:
            made = await self._dialer.connect(where, policy, self._timeout_s)
        except ReachError as exc:
            return Reached(where.host, exc.addresses, code=exc.code, message=exc.message)
        certificate = made.writer.get_extra_info("peercert")
        made.writer.transport.abort()
        ends = certificate.get("notAfter") if isinstance(certificate, dict) else None
        return Reached(where.host, made.found, made.address, int(ssl.cert_time_to_seconds(ends)) if ends else None)


def days_left(ends_s: int, now_s: float) -> int:
    """Return the whole days until a certificate ends; negative after that."""
    return int((ends_s - now_s) // _DAY_S)
