"""Where a peer may be dialled, and who sends a request: strict URLs, address verdicts, sources, proxies; pure.

An address is judged after unwrapping the forms that carry another inside
(IPv4-mapped, NAT64, 6to4), because `ipaddress` judges only the outside: for
::ffff:169.254.169.254 and 64:ff9b::a9fe:a9fe `is_link_local` is False.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from ..core.errors import CODES, SplError
from ..core.value import dataclass

_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_METADATA: Final = frozenset(map(ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))
_PRIVATE4 = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8")))
_NEVER4 = tuple(
    map(
        IPv4Network,
        # this network, link-local, IETF assignments, documentation, benchmarks, 6to4 relays, multicast, reserved
        ("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
         "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)  # fmt: skip
_PRIVATE6 = (IPv6Network("fc00::/7"), IPv6Network("::1/128"))
_PUBLIC6 = IPv6Network("2000::/3")
_NEVER6 = tuple(map(IPv6Network, ("2001:db8::/32", "2001::/23", "3fff::/20")))  # documentation, protocol assignments
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?(/[^?#]*)?(\?[^#]*)?", re.I)
_PORTS = {"http": 80, "https": 443}
GATEWAY_STATUS: Final = frozenset({502, 503, 504})
TOO_LARGE_STATUS: Final = 413
_SLIPPED = re.compile(r"h?[tp]{2,4}(s?)(?:[:;]/*|//+)(?![0-9]*$)(.*)", re.I)
"""A scheme that was mistyped, and what follows it; digits alone are a port."""
USUAL_PORT: Final = 9100
"""Where a daemon listens that is told no other port."""
LAN_STEP: Final = "on a network that you trust, stop the daemon, then: spl serve --lan"
"""What lets a daemon that was started for its own machine alone use plain http to others, and be reached by it."""


class ReachError(SplError):
    """A peer cannot be reached, or not in a way that we accept.

    Codes: dns, connect, no-route, timeout, disconnected, tls-chain, redirect, address-refused,
    http-plain, answer-malformed, url-invalid; peer-4xx and peer-5xx for a refused
    stream; then `peer_status`, `peer_headers` and `peer_body` are its answer, otherwise 0 and empty.
    `addresses` are those that the peer's name has, as far as they were looked up.
    `reached`: there was a connection, so it was the exchange that failed.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        hint: str = "",
        peer_status: int = 0,
        peer_body: bytes = b"",
        peer_headers: Mapping[str, str] | None = None,
        addresses: tuple[str, ...] = (),
    ) -> None:
        super().__init__(code, message, hint=hint)
        self.peer_status = peer_status
        self.peer_body = peer_body
        self.peer_headers = peer_headers or {}
        self.addresses = addresses
        self.reached = True


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http or https URL, taken apart."""

    scheme: str
    host: str
    """Lower-case; an IPv6 address stands without brackets."""
    port: int
    authority: str
    """For the Host header: host, brackets and a port that is not the scheme's own."""
    target: str

    @property
    def origin(self) -> str:
        """Scheme and authority."""
        return f"{self.scheme}://{self.authority}"


def parse_url(text: str) -> Url:
    """Return the parts of an absolute URL.

    Refused: user information, fragments, zones, control characters, host names
    outside ASCII (write their xn-- form).  Raises ReachError "url-invalid".
    """
    found = _URL.fullmatch(text) if text.isascii() and text.isprintable() and " " not in text else None
    if found is None:
        raise ReachError(
            "url-invalid", f"{text[:80]!r} is not an absolute http or https URL", hint=_with_scheme(text.rstrip("/"))
        )
    scheme, host = found[1].lower(), found[2].lower().strip("[]")
    port = int(found[3] or _PORTS[scheme])
    if found[2].startswith("[") and (":" not in host or _parse(host) is None):
        raise ReachError("url-invalid", f"{text[:80]!r} has no valid host")
    if not 0 < port < 65536:
        usual = f"http://{found[2]}:{USUAL_PORT}/" if scheme == "http" else f"https://{found[2]}/"
        raise ReachError(
            "url-invalid", f"{text[:80]!r} has no valid port", hint=f"with the port of the peer, often: {usual}"
        )
    authority = f"[{host}]" if ":" in host else host
    if port != _PORTS[scheme]:
        authority += f":{port}"
    return Url(scheme, host, port, authority, (found[4] or "/") + (found[5] or ""))


def _with_scheme(text: str) -> str:
    """Return what to type if the scheme is missing or mistyped; only here and in private networks is it http."""
    if slip := _SLIPPED.fullmatch(text):
        likely = _with_scheme(slip[2])
        return f"with its scheme: https://{slip[2]}/" if likely and slip[1] else likely
    found = _URL.fullmatch(f"http://{text}/")
    if found is None or found[4] != "/" or found[5]:
        return ""
    host, plain = found[2].lower().strip("[]"), text if found[3] else f"{text}:{USUAL_PORT}"
    kind = "loopback" if host == "localhost" else kind_of(host)
    if kind == "loopback":
        return f"with its scheme: http://{plain}/"
    if kind or "." not in host or host.endswith(".local"):
        return f"if it was started with --lan: http://{plain}/; if it has TLS: https://{text}/"
    return f"with its scheme: https://{text}/"


def listen_step(where: Url) -> str:
    """Return what makes the peer listen at a URL; behind https, and at port 80, something else may stand before it."""
    port = f" --port {where.port}" if where.scheme == "http" and where.port not in (80, USUAL_PORT) else ""
    if where.scheme == "http" and kind_of(where.host) not in ("", "loopback"):
        runs = "if it runs without --lan, only its own machine reaches it: stop it first"
        return f"spl serve --lan{port}; {runs}; if with it, open its port in the firewall"
    return f"spl serve{port}" + ("" if is_loopback(where.host) else "; if it runs, open its port in the firewall")


def route_step(ip_text: str, message: str) -> str:
    """Return the next step after a dial that found no way, as `message` says: without an answer the host may be off."""
    step = CODES["no-route"].fix + (f": ip route get {ip_text}" if ip_text else "")
    off = "see that the peer's machine is on and still has this address; if so, "
    return off + step if os.strerror(errno.EHOSTUNREACH) in message else step


def connect_step(where: Url) -> str:
    """Return the next step after a URL that nothing answers at: most often the port was left out, or is not served."""
    step = f"on the peer: {listen_step(where)}; if its `spl status` shows another port, name that one"
    if where.scheme != "http" or where.port != 80:
        return step
    return f"with the port of the peer, {USUAL_PORT} if it was told none: {where.origin}:{USUAL_PORT}/; {step}"


def tls_step(name: str, ip_text: str, port: int) -> str:
    """Return the next step after a handshake that failed before any certificate: near by, mostly nobody has one."""
    speaks = "this port must speak TLS, version 1.2 or newer"
    host = f"[{name}]" if ":" in name else name
    return (
        f"if it has no TLS: http://{host}:{port}/; otherwise {speaks}" if kind_of(ip_text) else f"at the peer: {speaks}"
    )


def foreign_step(status: int) -> str:
    """Return what its operator does about a server that answers this in a daemon's place."""
    if status in GATEWAY_STATUS:
        return "start the daemon: spl serve; or correct its address and port in the proxy"
    if status in (401, 403):
        return "let the proxy pass /v1/ and /.well-known/ without a login or filter of its own"
    if status == TOO_LARGE_STATUS:
        return "raise the body limit of the proxy (nginx: client_max_body_size 8m)"
    return "let the proxy pass /.well-known/ and /v1/ as they are, if this is the right URL"


def judge(ip_text: str, allow_private: bool, near: Iterable[str] = ()) -> None:
    """Raise ReachError "address-refused" unless this address may be dialled.

    Loopback and private ones (RFC 1918, unique local, shared 100.64/10) only with
    `allow_private`, or if one of the addresses `near` is of the same kind: loopback
    like loopback, 10.0.0.0/8 like 10.0.0.0/8, a unique local one in the same /48.
    Metadata services, unspecified, multicast, link-local and reserved ones never.
    """
    address = _parse(ip_text)
    if address is None:
        raise ReachError("address-refused", f"{ip_text[:60]!r} is not an address")
    inner = _unwrap(address)
    if inner in _METADATA or _is_never(inner):
        raise ReachError("address-refused", f"{ip_text} is never dialled")
    if allow_private or not _is_private(address, inner):
        return
    kind = kind_of(ip_text)
    if not kind or kind not in map(kind_of, near):
        raise ReachError(
            "address-refused", f"{ip_text} is a private address that our operator neither typed nor approved"
        )


def kind_of(ip_text: str) -> str:
    """Return the network that a loopback or private address belongs to; "" for any other text.

    The local-use NAT64 prefix has no kind: only its network knows where in it an address stands.
    """
    address = _parse(ip_text)
    if address is None or (isinstance(address, IPv6Address) and address in _NAT64_LOCAL):
        return ""
    inner = _unwrap(address)
    if inner.is_loopback:
        return "loopback"
    if isinstance(inner, IPv6Address):
        return str(IPv6Network((int(inner) >> 80 << 80, 48))) if inner in _PRIVATE6[0] else ""
    return next((str(network) for network in _PRIVATE4 if inner in network), "")


def source_of(ip_text: str) -> str:
    """Return what bounds count as one source: an IPv4 address, or the /64 of an IPv6 one, which one host can fill.

    Any other text, such as "unix", is a source by itself.
    """
    address = _parse(ip_text.partition("%")[0])
    if address is None:
        return ip_text
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(_unwrap(address))


def stands_at(url: Url, ip_text: str) -> bool:
    """Return whether a URL names this address itself, without a look-up: as a literal, or loopback as `localhost`."""
    if url.host == "localhost":
        return is_loopback(ip_text)
    address, other = _parse(url.host), _parse(ip_text.partition("%")[0])
    return address is not None and other is not None and _unwrap(address) == _unwrap(other)


class Proxies:
    """The reverse proxies whose word about the client's address is believed; replaced whole by `trust`."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self.trust(networks)

    def trust(self, networks: Iterable[str]) -> None:
        """Believe those in these networks (addresses or CIDR) from now on; raise ValueError for anything else."""
        self._networks = tuple(map(ip_network, networks))

    def trusts(self, ip_text: str) -> bool:
        """Return whether a connection from this address is a proxy's."""
        if not self._networks:
            return False
        address = _parse(ip_text.partition("%")[0])
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return address is not None and any(address in network for network in self._networks)

    def client_of(self, peer: str, forwarded: str) -> str:
        """Return the address that a request comes from: the peer's, or behind proxies the one that the last added.

        Of X-Forwarded-For the right-most address that is no proxy's counts; anyone may have written what stands left
        of it.  A part that is no address ends the search at the proxy that passed it on.
        """
        client = peer
        for part in reversed(forwarded.split(",")):
            if not self.trusts(client):
                break
            address = _parse(part.strip())
            if address is None:
                break
            client = str(address)
        return client


def is_address(text: str) -> bool:
    """Return whether this is an address already, in its one standard form, so that nothing needs looking up."""
    return _parse(text) is not None


def is_loopback(ip_text: str) -> bool:
    """Return whether the address is this machine's own, in any wrapping."""
    address = _parse(ip_text)
    return address is not None and _unwrap(address).is_loopback


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    if "%" in text:
        return None  # a zone belongs to link-local addresses, which are never dialled
    try:
        return ip_address(text)
    except ValueError:
        return None


def _unwrap(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the address inside, if a translator or tunnel would deliver to that one."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or address in _NAT64_LOCAL:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_never(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return any(address in network for network in _NEVER4)
    if any(address in network for network in _PRIVATE6):
        return False
    return address not in _PUBLIC6 or any(address in network for network in _NEVER6)


def _is_private(address: IPv4Address | IPv6Address, inner: IPv4Address | IPv6Address) -> bool:
    """Judge the local-use NAT64 prefix as private whatever its last 32 bits say.

    RFC 8215 leaves it to the network where in the address the inner one stands: a
    stranger could show a public one there and have the packets go to another.
    """
    if isinstance(address, IPv6Address) and address in _NAT64_LOCAL:
        return True
    return any(inner in network for network in (_PRIVATE4 if isinstance(inner, IPv4Address) else _PRIVATE6))
