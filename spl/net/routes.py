"""The route table, one line per route, and the values that handlers take and return.

The table drives dispatch, 404 and 405 with Allow, the body limit and media types
before the body is read, and the permission check: `scope` has no default, so
nothing is open by omission.  Handlers take a Request and return a Response or
raise; they never see a socket.  JSON is the application's:

    return Response(body=encode(value))
"""

import re
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Generator, Iterable, Mapping
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from ..core.errors import SplError
from ..core.value import dataclass, field
from .heads import encode_head, status_line
from .http1 import RequestHead, WireError
from .parts import BodyParts

JSON: Final = "application/json"
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

_T = TypeVar("_T")
_SECRET_KEYS = frozenset({"token", "access_token", "api_key", "apikey", "bearer"})
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class HttpError(SplError):
    """The request fits no route, or its target has the wrong form.

    Codes: not-found, method-not-allowed (with `allow`), bad-request, bad-field,
    token-in-query, media-type, body-too-large, request-timeout.
    """

    def __init__(self, code: str, message: str = "", *, allow: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.allow = allow


@dataclass(slots=True)  # not frozen, as each request makes one and an answer: that would cost four times as much
class Request:
    """One whole request; names of `headers` are lower-case, `params` and `query` decoded."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    params: Mapping[str, str]
    peer: str
    """The other end of the connection: its address in text, or "unix"."""
    local: bool
    """It came over the Unix socket, whose file permission is the credential."""
    target: str
    """As sent: path and query, encoded."""
    scheme: str
    address: str
    """Who asks: `peer`, or the client that a trusted proxy names."""
    parts: BodyParts | None = None
    """The body as it arrives, if the route takes its media type so; `body` is empty then."""


@dataclass(slots=True)
class Response:
    """One answer.  An iterator as body is sent as it yields, and closed when the client goes."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, length: int | None, date: str, *, chunked: bool, last: bool) -> bytes:
        """Return the head as bytes; `length` None is a streamed body, `last` ends the connection.

        No cache on the way keeps an answer that does not allow it: the next client may have no token.
        """
        lines = [status_line(self.status), "date: " + date, "x-content-type-options: nosniff"]
        if all(name != "cache-control" for name, _ in self.headers):
            lines.append("cache-control: no-store")
        if self.status not in (204, 304):
            lines.append("content-type: " + self.content_type)
            if length is not None:
                lines.append(f"content-length: {length}")
            elif chunked:
                lines.append("transfer-encoding: chunked")
        lines += [f"{name}: {value}" for name, value in self.headers]
        if last:
            lines.append("connection: close")
        try:
            return encode_head(lines)
        except WireError as exc:
            raise RuntimeError("the app's answer has a header that cannot be sent") from exc


class Later(Awaitable[Response], Generic[_T]):
    """An answer made by `form` of what a later call on the loop brings, once.

    Nothing waits for it, so it costs neither task nor future; it may be awaited all the same.  Its client does not
    cancel it: what was asked for is done.
    """

    __slots__ = ("_form", "_make", "_take")

    def __init__(self, form: Callable[[_T], Response]) -> None:
        self._form = form
        self._make: Callable[[], Response] | None = None
        self._take: Callable[[Callable[[], Response]], object] | None = None

    def cancelled(self) -> bool:
        """Return False."""
        return False

    def done(self) -> bool:
        """Return whether it was given."""
        return self._make is not None

    def set_result(self, result: _T, /) -> None:
        """Give the answer that the form makes of this."""
        form = self._form  # not self, which would refer to itself then: each answer would wait for a collection
        self._give(lambda: form(result))

    def set_exception(self, exception: SplError, /) -> None:
        """Give the refusal."""

        def refuse() -> Response:
            raise exception

        self._give(refuse)

    def then(self, take: Callable[[Callable[[], Response]], object], loop: AbstractEventLoop) -> None:
        """Call `take` with what returns the answer, or raises, once it is given; never from inside this call."""
        self._take = take
        if self._make is not None:
            loop.call_soon(take, self._make)

    def _give(self, make: Callable[[], Response]) -> None:
        self._make = make
        if self._take is not None:
            self._take(make)

    def __await__(self) -> Generator[None, None, Response]:
        loop = get_running_loop()
        given = loop.create_future()
        self.then(lambda make: None if given.done() else given.set_result(make), loop)
        make: Callable[[], Response] = yield from given
        return make()


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table.  `{name}` in the path stands for one segment."""

    method: str
    path: str
    handler: "Callable[..., Response | Awaitable[Response]]"
    scope: str
    body_bytes: int = 0
    also: tuple[str, ...] = ()
    """Further scopes, any one of which opens the route too."""
    streams: bool = False
    """The answer streams or waits long: the handler is cancelled as soon as the client is gone."""
    media: tuple[str, ...] = (JSON,)
    in_parts: str = ""
    """Of them the one whose bodies the handler takes as they arrive; it reads them to their end before it answers."""
    gives: tuple[str, ...] = (JSON,)
    """The media types that an answer may have; a refusal is JSON."""
    summary: str = ""
    cookie: bool = False
    """The credential may be the cookie of a page."""


@dataclass(slots=True)  # not frozen, as the values of http1 and routes that each request makes
class Match:
    """What the app found for a head: the route, its params, and whatever it keeps for `respond`."""

    route: Route
    params: Mapping[str, str]
    principal: object = None


class App(Protocol):
    """What a server serves."""

    def match(self, head: RequestHead) -> Match:
        """Return the route; called before the body is read.  Raises SplError to refuse the request.

        An HttpError "method-not-allowed" for OPTIONS becomes 204 with Allow.
        """

    def respond(self, request: Request, match: Match) -> Response | Awaitable[Response]:
        """Return the answer, at once (called inline: must not block) or to be awaited.  May raise SplError."""

    def refuse(self, error: SplError, head: RequestHead | None) -> Response:
        """Return the error form; `head` is None when none was understood."""


class _Node:
    """One path segment: what may follow it, and the routes that end here."""

    __slots__ = ("follow", "routes", "wild")

    def __init__(self) -> None:
        self.follow: dict[str, _Node] = {}
        self.wild: _Node | None = None
        self.routes: dict[str, tuple[Route, tuple[str, ...]]] = {}


class RouteTable:
    """All routes; immutable once built."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        self._literal: dict[tuple[str, str], Route] = {}
        self._tailed: dict[tuple[str, str], tuple[Route, str, Container[str]]] = {}
        """Routes whose only `{name}` is their last segment, by what is before; with the literals beside it."""
        for route in self.routes:
            self._add(route)
        for route in self.routes:
            above, _, last = route.path.rpartition("/")
            if last.startswith("{") and "{" not in above:
                self._tailed[route.method, above] = route, last[1:-1], self._literals_below(above)

    def match(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route and its decoded params; a literal segment wins over `{name}`.

        `path` is percent-encoded.  HEAD is served by GET.  Raises HttpError
        "not-found", "method-not-allowed" with `allow` (for OPTIONS always), "bad-request".
        """
        literal = self._literal.get((method, path))
        if literal is not None:
            return literal, NOTHING
        above, _, last = path.rpartition("/")
        tailed = self._tailed.get((method, above))
        if tailed is not None and last and last not in tailed[2]:
            return tailed[0], {tailed[1]: decode_segment(last)}
        node, values = self._find(path)
        found = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if found is None:
            allowed = _allow(node.routes)
            raise HttpError("method-not-allowed", f"this path answers {', '.join(allowed)}", allow=allowed)
        route, names = found
        if not names:
            return route, NOTHING
        return route, {name: decode_segment(value) for name, value in zip(names, values, strict=True)}

    def _find(self, path: str) -> tuple[_Node, list[str]]:
        if path == "*":
            raise HttpError("method-not-allowed", allow=_allow({route.method for route in self.routes}))
        segments = path.split("/")
        values: list[str] = []
        node: _Node | None = _descend(self._root, segments, 1, values)
        if node is None:
            raise HttpError("not-found", "there is no such route", hint="every route: spl help http")
        return node, values

    def _literals_below(self, path: str) -> Container[str]:
        node = self._root
        for segment in path.split("/")[1:]:
            node = node.follow[segment]
        return node.follow

    def _add(self, route: Route) -> None:
        node = self._root
        names: list[str] = []
        for segment in route.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.wild = node.wild or _Node()
                node = node.wild
            else:
                node = node.follow.setdefault(segment, _Node())
        assert route.path.startswith("/")
        assert len(set(names)) == len(names)
        assert route.method not in node.routes, f"{route.method} {route.path} stands twice"
        node.routes[route.method] = (route, tuple(names))
        if not names:
            self._literal[route.method, route.path] = route


def decode_segment(text: str) -> str:
    """Return one path segment decoded once; %2F stays inside it as a slash.

    Raises HttpError "bad-request" for a bad escape, bytes that are not UTF-8, control characters.
    """
    if "%" not in text:
        return text  # visible ASCII: the parser refused all else
    decoded = _unquote(text.encode("latin-1"))
    if decoded is None or _CONTROL.search(decoded):
        raise HttpError("bad-request", "a path segment is not percent-encoded UTF-8 text")
    return decoded


def parse_query(text: str) -> Mapping[str, str]:
    """Return the query's keys and values, decoded once, `+` as space.

    Raises HttpError "bad-field" (no `=`, no key, a key twice, a bad escape) and "token-in-query".
    """
    if not text:
        return NOTHING
    query: dict[str, str] = {}
    for piece in text.split("&"):
        name, equals, value = piece.partition("=")
        key = _unquote(name.replace("+", " ").encode("latin-1"))
        decoded = _unquote(value.replace("+", " ").encode("latin-1"))
        if not key or not equals or decoded is None:
            raise HttpError("bad-field", "the query is not key=value&key=value in percent-encoded UTF-8")
        if key.lower() in _SECRET_KEYS:
            raise HttpError("token-in-query")
        if key in query:
            raise HttpError("bad-field", f"the query has {key[:40]!r} twice")
        query[key] = decoded
    return query


def check_media(headers: Mapping[str, str], route: Route) -> str:
    """Return a body's media type; refuse one that is encoded, or not of the route's: HttpError "media-type"."""
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise HttpError("media-type", f"content-encoding {coding[:40]!r} is not supported")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in route.media:
        raise HttpError("media-type", f"{kind[:60]!r} is not {' or '.join(route.media)}")
    return kind


def _descend(node: _Node, segments: list[str], depth: int, values: list[str]) -> _Node | None:
    if depth == len(segments):
        return node if node.routes else None
    segment = segments[depth]
    literal = node.follow.get(segment)
    if literal is not None:
        found = _descend(literal, segments, depth + 1, values)
        if found is not None:
            return found
    if node.wild is None or not segment:
        return None
    values.append(segment)
    found = _descend(node.wild, segments, depth + 1, values)
    if found is None:
        values.pop()
    return found


def _allow(methods: Iterable[str]) -> tuple[str, ...]:
    known = set(methods) | {"OPTIONS"}
    return tuple(sorted(known | {"HEAD"} if "GET" in known else known))


def _unquote(raw: bytes) -> str | None:
    """Decode %XX once, then UTF-8; None if either fails."""
    if _BAD_ESCAPE.search(raw):
        return None
    try:
        return _ESCAPE.sub(lambda found: bytes((int(found[0][1:], 16),)), raw).decode()
    except UnicodeDecodeError:
        return None
