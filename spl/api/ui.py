"""The page at /ui/: read-only, of parts that change by themselves, and the sessions that open it.

A session is a token of scope `status:read` in a cookie: listed and revoked as others are, and good after a restart of
the daemon.  All of them belong to one service account.  `spl ui` makes a link for one: its code works once, for a
minute, and is kept in memory.  A link that a token made, and its session, end with that token.  A foreign page gets
nothing: the cookie stays at home (SameSite), answers are not readable from elsewhere, and nothing here changes
anything.

A part is made once for all who look, when a row of the event stream has changed.  A browser that has an older page is
told so, and fetches it again.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import Any, Final

from ..core import when
from ..core.errors import CODES, SplError, cli_code
from ..core.identity import bearer
from ..core.pair.pair import summary
from ..core.value import dataclass
from ..home.config import is_loopback
from ..home.views import THREAD_TOKENS
from ..home.writes import Own
from ..net.routes import HttpError, Request, Response
from ..ui import markup
from ..ui import page as look
from ..ui.markup import Markup, tag
from . import admin, consent, pairs
from .answers import CSS, HTML, SCRIPT, Permit, field_error, json_response, members, number
from .auth import Principal, cookie_of
from .events import NamedEvent, Rows, shared_rows, stream
from .live import streamed
from .services import Services

READING: Final = "ui:read"
CODE_MS: Final = 60_000
CODE_BYTES: Final = 16
CODES_MAX: Final = 8  # codes that wait to be used, one for each `spl ui`; the oldest goes
SESSION_MS: Final = 7 * 86_400_000
SESSIONS_MAX: Final = 8
"""With one more, the oldest ends."""
GAP_S: Final = 0.25
SUMMARY_S: Final = 1.0
OLD_S: Final = 60.0
"""The age at which a part is made again although its row has not changed: the plots move on by the minute."""
AT_ONCE: Final = 8
"""Parts that are made before others have their turn on the loop."""
FIXED: Final = (look.SUMMARY, look.ENDED, look.SHARING)
FILES: Final = {"page.css": CSS, "page.js": SCRIPT}
_WALLS: Final = (
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)
_PRIVATE: Final = (*_WALLS, ("cache-control", "no-store"))


# -- sessions


@dataclass(frozen=True, slots=True)
class _Code:
    """Until when a link is good, and the token that made it, "" over the socket of the daemon."""

    until_ms: int
    maker: str


async def link(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/ui/links: a link that opens the page once, within a minute."""
    members(request, {})
    codes, now_ms = _codes(services), services.now_ms()
    while len(codes) >= CODES_MAX:
        del codes[next(iter(codes))]
    code = services.random_bytes(CODE_BYTES).hex()
    codes[bearer.hash_of(code)] = _Code(now_ms + CODE_MS, principal.token_id)
    expires_at = when.text_of(now_ms + CODE_MS)
    return json_response(
        {"object": "link", "url": f"{_url(services)}/ui/open?code={code}", "expires_at": expires_at}, 201
    )


async def redeem(request: Request, principal: Principal, services: Services) -> Response:
    """GET /ui/open?code=: the cookie of a new session, and the way to the page.

    No redirect: a browser that came from elsewhere would not send the new cookie along with it.
    """
    onward = _plain("Opening …", tag("p", tag("a", "To the page", href="./")), refresh="0; url=./")
    if request.method == "HEAD":
        return onward
    secure = _secure(request, services)
    code = request.query.get("code", "")
    if not code:
        raise field_error("code", "is missing")
    found, now_ms = _codes(services).pop(bearer.hash_of(code), _Code(0, "")), services.now_ms()
    if found.until_ms < now_ms:
        raise SplError("auth-invalid", "this link was used before, or is older than a minute", hint="spl ui --print")
    maker = services.views.tokens.get(found.maker)
    if found.maker and (maker is None or maker.revoked or maker.expired(now_ms)):
        raise SplError("auth-invalid", "the token that made this link is not valid any more", hint="spl ui --print")
    until_ms = now_ms + SESSION_MS
    if maker and maker.expires_at_ms:
        until_ms = min(until_ms, maker.expires_at_ms)
    text = await _session(services, until_ms, found.maker)
    identity = services.vault.identity
    cookie = f"{cookie_of(identity.did if identity else '')}={text}; Path=/ui/; HttpOnly; SameSite=Strict"
    cookie += f"; Max-Age={(until_ms - now_ms) // 1000}{'; Secure' if secure else ''}"
    return Response(200, onward.body, HTML, (*onward.headers, ("set-cookie", cookie)))


async def _session(services: Services, until_ms: int, maker: str) -> str:
    """Return the text of a new token of the page; the oldest end if there are too many."""
    now_ms = services.now_ms()
    text = bearer.mint_text(admin.ENVIRONMENT, bearer.PAGE, services.random_bytes(bearer.SECRET_BYTES))
    digest = bearer.hash_of(text)
    token = bearer.Token(
        f"tok_{digest[:8]}", bearer.PAGE, digest, frozenset({"status:read"}), expires_at_ms=until_ms,
        created_at_ms=now_ms, label="page", maker=maker,
    )  # fmt: skip
    held = [each for each in services.views.tokens.values() if each.sa_id == bearer.PAGE]
    live = sorted(
        (each for each in held if not each.revoked and not each.expired(now_ms)), key=lambda each: each.created_at_ms
    )
    items = [Own(THREAD_TOKENS, bearer.KIND_MINT, bearer.mint_body(token))]
    old = live[: max(0, len(live) + 1 - SESSIONS_MAX)]
    items += [Own(THREAD_TOKENS, bearer.KIND_REVOKE, {"token_id": each.token_id}) for each in old]
    await asyncio.wrap_future(services.writer.submit(items))
    return text


def _codes(services: Services) -> dict[str, _Code]:
    """Return the links that wait to be used, by the digest of their codes, the oldest first."""
    codes = services.held.setdefault("ui.codes", {})
    assert isinstance(codes, dict)
    return codes


def _url(services: Services) -> str:
    """Return where a browser of this machine reaches the page, or any by TLS."""
    config = services.settings.now
    if services.url.startswith("https:") or is_loopback(config.host):
        return services.url
    return f"http://127.0.0.1:{config.port}" if config.host in ("0.0.0.0", "::") else services.url  # noqa: S104


def _secure(request: Request, services: Services) -> bool:
    """Return whether the browser came by TLS.  Raises "http-plain" if all on its way could read the session."""
    if request.scheme == "https":
        return True
    host = request.headers.get("host", "").lower()
    if services.url.lower() == f"https://{host}":
        return True
    if request.local or is_loopback(request.address) or host.rpartition(":")[0].strip("[]") == request.address:
        return False
    port = services.settings.now.port
    raise SplError(
        "http-plain", "without TLS the page opens on this machine only",
        hint=f"ssh -L {port}:127.0.0.1:{port} HOST; then open the link at http://127.0.0.1:{port}",
    )  # fmt: skip


# -- the page


def slash(request: Request, principal: Principal, services: Services) -> Response:
    """GET /ui: to the page, whose parts stand below its slash; also behind a proxy that puts a folder before it."""
    return Response(308, headers=(("location", "ui/"),))


def file(request: Request, principal: Principal, services: Services) -> Response:
    """GET /ui/{file}: the style or the script of the page; open to anyone, as the source is."""
    name = request.params["file"]
    if name not in FILES:
        raise HttpError("not-found", "there is no such route")
    body = services.held.get(f"ui.{name}")
    if not isinstance(body, bytes):
        body = services.held[f"ui.{name}"] = markup.file(name)
    tag_ = f'"{bearer.hash_of(body.decode())[:32]}"'
    headers = (*_WALLS, ("etag", tag_), ("cache-control", "no-cache"))
    if tag_ in request.headers.get("if-none-match", ""):
        return Response(304, b"", FILES[name], headers)
    return Response(200, body, FILES[name], headers)


async def page(request: Request, principal: Principal, services: Services) -> Response:
    """GET /ui/: everything, as it is now."""
    parts = _parts(services)
    now_s = asyncio.get_running_loop().time()
    parts.look(now_s, now_s - GAP_S)
    while parts.make():  # noqa: ASYNC110 - nothing is waited for: others have their turn
        await asyncio.sleep(0)
    now_ms = services.now_ms()
    identity = services.vault.identity
    body = markup.file("index.html").decode()
    main = tag(
        "main", look.main(now_ms, parts.fixed(), parts.pairs()),
        data_at=when.text_of(now_ms), data_from=f"{parts.epoch}.{parts.number}",
    )  # fmt: skip
    at = tag("time", when.text_of(now_ms)[:19].replace("T", " ") + " UTC", data_fixed=True)
    body = body.replace("<main></main>", main).replace("<time data-fixed>now</time>", at)
    body = body.replace("<title>spl</title>", tag("title", f"{identity.label if identity else 'no identity'} · spl"))
    return Response(200, body.encode(), HTML, _PRIVATE)


async def events(request: Request, principal: Principal, services: Services) -> Response:
    """GET /ui/events?from=: `part` events, and `stale` first if the browser's page is not one of this process."""
    parts = _parts(services)
    epoch, _, seen = request.query.get("from", "").partition(".")
    known = epoch == parts.epoch and seen.isascii() and seen.isdigit() and len(seen) < 16
    since = number({"from": seen}, "from", 0, 0, 10**15) if known else None
    if since is not None and since > parts.number:
        since = None
    permit = Permit(services, READING, request, principal)
    return streamed(stream(services, permit, parts, since), _WALLS)


def refusal(error: SplError) -> Response:
    """Return a refusal for people."""
    asks = error.status == 401
    title = "This page needs a link" if asks else "This does not work"
    hint = "spl ui" if asks else error.hint
    code = cli_code(error.code)
    lines = (
        tag("p", error.message or (CODES[code].meaning if code in CODES else code)),
        tag("p", "On the machine of the daemon: " if asks else "", tag("code", hint or f"spl help {code}")),
        tag("p", code, class_="sub"),
    )
    return Response(error.status, _plain(title, *lines).body, HTML, _PRIVATE)


def _plain(title: str, *children: Markup, refresh: str = "") -> Response:
    """Return a page of a few words."""
    heads = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="refresh", content=refresh) if refresh else None,
        tag("title", title),
        tag("link", rel="stylesheet", href="page.css"),
    ]
    body = tag("body", tag("main", tag("h1", title), *children, class_="plain"))
    return Response(200, f"<!doctype html>{tag('html', tag('head', *heads), body, lang='en')}".encode(), HTML, _PRIVATE)


# -- its parts


@dataclass(slots=True)
class _Part:
    """A part as it was last made; `number` is that of its last change, `made_s` when."""

    html: Markup
    number: int
    made_s: float


class PageParts:
    """The parts of the page of one daemon, for all browsers; a Face of the event stream."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rows: Rows = shared_rows(services)
        self._seen = 0
        self._parts: dict[str, _Part] = {}
        self._due: dict[str, None] = {}
        """Pairs whose part is out of date, in the order in which they are made."""
        self._looked_s = self._now_s = self._summed_s = -OLD_S
        self.number = 0
        self.epoch = services.random_bytes(4).hex()
        """Which numbers these are: another process has others."""

    @property
    def every_s(self) -> float:
        """The time after which a look is due although nothing woke anyone."""
        return self._rows.every_s

    def rest_s(self, now_s: float) -> float:
        """Return for how long a client that was woken waits."""
        return max(self._rows.rest_s(now_s), self._looked_s + GAP_S - now_s)

    def begin(self) -> Iterator[NamedEvent]:
        """Yield that the browser's page is out of date."""
        yield "stale", {"at": when.text_of(self._services.now_ms())}

    def look(self, now_s: float, since_s: float) -> None:
        """Look at the rows, and note which parts are out of date."""
        self._now_s = now_s
        if self._looked_s >= since_s:
            return
        self._looked_s = now_s
        self._rows.look(now_s, since_s)
        changed = [str(value["pair_id"]) for _, (name, value) in self._rows.since(self._seen) if name == "pair"]
        moved = self._seen != self._rows.number
        self._seen = self._rows.number
        old = [key for key, part in self._parts.items() if part.html and now_s - part.made_s >= OLD_S]
        aged = (key for key in old if key in self._services.views.pairs)
        # What changed goes first: parts that only aged may come out as they were, and a stream then waits for a look.
        self._due = dict.fromkeys((*changed, *self._due, *aged))
        if (moved and now_s - self._summed_s >= SUMMARY_S) or now_s - self._summed_s >= OLD_S / 6:
            self._sum_up()

    def make(self, count: int = AT_ONCE) -> bool:
        """Make a few of the parts that are out of date; return whether there are more."""
        for pair_id in list(self._due)[:count]:
            del self._due[pair_id]
            self._put(pair_id, partial(self._pair, pair_id))
        return bool(self._due)

    def since(self, number: int) -> Iterator[tuple[int, NamedEvent]]:
        """Yield the changes after that one, a few at a time."""
        self.make(max(AT_ONCE, ceil(len(self._parts) * self.every_s / OLD_S)))  # no part ages for much longer
        newer = sorted((part.number, key) for key, part in self._parts.items() if part.number > number)
        at = when.text_of(self._services.now_ms())
        for changed, key in newer[:AT_ONCE]:
            yield changed, ("part", {"at": at, "n": changed, "id": key, "html": self._parts[key].html})

    def fixed(self) -> tuple[Markup, ...]:
        """Return the parts that are not pairs."""
        return tuple(self._parts[name].html for name in FIXED)

    def pairs(self) -> list[Markup]:
        """Return the parts of the pairs that have not ended."""
        return [part.html for key, part in self._parts.items() if key not in FIXED and part.html]

    def _sum_up(self) -> None:
        services = self._services
        self._summed_s = self._now_s
        rows = self._rows.by_pair()
        found = [item.to_json() for item in (*services.doctor.own_problems(), *admin.service_findings(services))]
        for pair in services.doctor.watched():
            row: Any = rows.get(pair.pair_id)
            wrong = row["findings"] if row else [item.to_json() for item in services.doctor.overview(pair).findings]
            found += [{**item, "pair_id": pair.pair_id} for item in wrong]
        status = admin.status_of(services, found)
        self._put(look.SUMMARY, partial(look.summary, status))
        ended = [pair for pair in services.views.pairs.values() if pair.ended]
        newest = sorted(ended, key=lambda pair: pair.since_ms)[: -look.ENDED_MAX - 1 : -1]
        gone = [{**summary(pair), "since": when.text_of(pair.since_ms)} for pair in newest]
        self._put(look.ENDED, lambda now_ms: look.ended(gone, len(ended), now_ms))
        self._put(look.SHARING, lambda now_ms: look.sharing(consent.rows_of(services)))

    def _pair(self, pair_id: str, now_ms: int) -> Markup:
        pair = self._services.views.pairs.get(pair_id)
        if pair is None or pair.ended:
            return Markup("")
        row = self._rows.by_pair()[pair_id]
        return look.pair({**pairs.detail(self._services, pair), **row}, now_ms)

    def _put(self, key: str, make: Callable[[int], Markup]) -> None:
        html, before = make(self._services.now_ms()), self._parts.get(key)
        if before is not None and before.html == html:
            before.made_s = self._now_s
            return
        self.number += 1
        self._parts[key] = _Part(html, self.number, self._now_s)


def _parts(services: Services) -> PageParts:
    parts = services.held.get("ui.parts")
    if not isinstance(parts, PageParts):
        parts = services.held["ui.parts"] = PageParts(services)
    return parts
