"""What the HTTP server serves: host and origin checks, the route table, the principal, the error form.

One `Api` per kind of listener: over the Unix socket the file permission is the credential, over TCP it is the bearer.
A browser cannot be turned against a loopback daemon: Host must be a name of ours (DNS rebinding), a foreign Origin
may not write, and may read only if `http.allowed_origins` names it: a page's EventSource needs that.
"""

import ipaddress
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from ..core import rules
from ..core.errors import SplError
from ..core.identity import bearer
from ..core.value import replace
from ..home.config import Config, is_loopback
from ..home.disk import DiskError
from ..net.http1 import RequestHead
from ..net.routes import Match, Request, Response, Route, RouteTable
from ..net.sockets import own_names
from . import answers
from .answers import json_response
from .auth import ANYONE, cookie_of, with_cookie
from .services import Services
from .streams import LongAnswers
from .table import PAGE, ROUTES, refusal

READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
TO_THE_PAGE: Final = Response(308, headers=(("location", PAGE.removeprefix("/")),))
LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def resource_of(route: Route) -> str:
    """Return what permission rules call a route: its noun, `read` for GET and `write` for the rest.

    The noun is the segment after /v1/, or `sync` if only the token of a pair opens the route.  "" for a route that
    is open to anyone: of those a rule guards the handshake alone, and the pairing service asks it once the signature
    is verified, so that its refusal is signed.
    """
    if route.scope == ANYONE:
        return ""
    noun = "sync" if route.scope in bearer.FEDERATION else route.path.removeprefix("/v1").split("/")[1]
    return f"{noun}:{'read' if route.method == 'GET' else 'write'}"


_RESOURCES: Final = {(route.method, route.path): resource_of(route) for route in ROUTES}
RESOURCES: Final = frozenset(_RESOURCES.values()) - {""} | {rules.HANDSHAKE}
"""Everything that a permission rule can guard."""
_TABLE: Final = RouteTable(ROUTES)


class Api:
    """The app of one listener kind; `local` is the Unix socket.

    `connections` is how many its server keeps, as few open files may allow less than the limit: tokens get half.
    """

    def __init__(self, services: Services, *, local: bool, connections: int = 0) -> None:
        self.services = services
        self.local = local
        self.table = _TABLE
        self._long = LongAnswers(connections or services.limits.connections_count)
        self._names = services.settings.now, _hosts(services.settings.now, services.url)

    def match(self, head: RequestHead) -> Match:
        """Return the route of a request whose body is not yet read; refuse early what needs no body to be refused."""
        if not self.local:
            self._check_browser(head.method, head.headers)
        route, params = self.table.match(head.method, head.path)
        if not self.local and route.scope != ANYONE:
            self.services.auth.check_presented(self._with_cookie(head.headers) if route.cookie else head.headers)
        return Match(route, params)

    def respond(self, request: Request, match: Match) -> Response | Awaitable[Response]:
        """Return the handler's answer once the principal holds the route's scope and no permission rule refuses it."""
        route, services = match.route, self.services
        if route.cookie:
            request.headers = self._with_cookie(request.headers)
        principal = services.auth.principal(request, request.body)
        services.auth.require(principal, route.scope, *route.also)
        resource = _RESOURCES[route.method, route.path]
        if resource:
            answers.check(services, resource, request, principal)
        answer: Response | Awaitable[Response]
        if route.streams and not self.local:
            permit = answers.Permit(services, resource, request, principal)
            answer = self._long.counted(principal, partial(route.handler, request, principal, services), permit)
        else:
            answer = route.handler(request, principal, services)
        readable = self._readable_by(request.method, request.headers)
        if not readable:
            return answer
        if isinstance(answer, Response):
            return replace(answer, headers=(*answer.headers, *readable))
        return _readable(answer, readable)

    def refuse(self, error: SplError, head: RequestHead | None) -> Response:
        """Return the error form, with the headers that its code asks for; the server adds Allow.

        A browser that asks for "/", where there is nothing, is sent to the page.
        What a fault of the disk says names paths of this machine: over TCP only its code goes out.
        """
        if isinstance(error, DiskError) and not self.local:
            error = SplError(error.code)
        if head is not None and "text/html" in head.headers.get("accept", ""):
            if head.path.startswith(PAGE):
                return refusal(error)
            if head.path == "/" and error.code == "not-found" and head.method in READING:
                return TO_THE_PAGE
        response = json_response(error.to_json(), error.status)
        headers: list[tuple[str, str]] = []
        if error.status == 401:
            headers.append(("www-authenticate", 'Bearer realm="spl"'))
        if "retry_after_s" in error.facts:
            headers.append(("retry-after", str(error.facts["retry_after_s"])))
        if head is not None and not self.local:
            headers += self._readable_by(head.method, head.headers)
        return Response(response.status, response.body, response.content_type, tuple(headers))

    def _with_cookie(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        identity = self.services.vault.identity
        return with_cookie(headers, cookie_of(identity.did if identity else ""), self.services.auth.is_live)

    def _check_browser(self, method: str, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if not _is_ours(host, self._hosts()):
            raise SplError("host-refused", f"Host {host[:80]!r} is not a name of this daemon")
        origin = headers.get("origin")
        if method in READING or origin is None:
            return
        if _authority(origin) != host.lower():
            raise SplError("origin-refused", f"Origin {origin[:80]!r} is foreign")

    def _hosts(self) -> frozenset[str]:
        """Return our names; computed again after a reload of the configuration."""
        config = self.services.settings.now
        if self._names[0] is not config:
            self._names = config, _hosts(config, self.services.url)
        return self._names[1]

    def _readable_by(self, method: str, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Return the headers that let a page of an allowed origin read the answer; none for any other."""
        if "origin" not in headers:
            return ()
        origin = headers["origin"]
        if self.local or origin not in self.services.settings.now.http_allowed_origins or method not in READING:
            return ()
        return ("access-control-allow-origin", origin), ("vary", "origin")


async def _readable(answer: Awaitable[Response], headers: tuple[tuple[str, str], ...]) -> Response:
    found = await answer
    return replace(found, headers=(*found.headers, *headers))


def _hosts(config: Config, url: str) -> frozenset[str]:
    """Return our names: those of the URL in our manifest, and beyond loopback also those of this machine."""
    own = (urlsplit(url).hostname or "").lower()
    here = (own, f"{own}.local") if own and "." not in own else (own,)
    machine = frozenset() if is_loopback(config.host) else own_names()
    return frozenset({*LOCAL_NAMES, *here, *machine, *map(str.lower, config.http_allowed_hosts)}) - {""}


def _authority(origin: str) -> str:
    """Return host and port of an Origin header; "" for `null` and for what is no origin at all."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as "http://["
        return ""


def _is_ours(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header names us: a known name, or an IP literal (which no DNS answer can forge)."""
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
