"""HTTP/1.1 heads as lines of text: which characters they may have, parsing and encoding.

Parsing and encoding make the same check: after every allowed character is deleted,
only the line ends of a head may remain.  So no value from outside becomes a header,
or a message, of its own.
"""

import re
from collections.abc import Iterable, Mapping
from time import gmtime
from typing import Final, Generic, TypeVar

from ..core import when
from ..core.errors import SplError

LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
TOKEN_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VISIBLE = bytes(range(0x21, 0x7F))
_HOST = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._~%!$&'()*+,;=:[]"
_ABSOLUTE = re.compile(r"https?://([^/?#]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_FIELD = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))  # RFC 9110 §5.5, obs-text included
REASONS: Final[Mapping[int, str]] = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 207: "Multi-Status", 301: "Moved Permanently",
    302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 410: "Gone", 413: "Content Too Large", 414: "URI Too Long",
    415: "Unsupported Media Type", 417: "Expectation Failed", 421: "Misdirected Request",
    422: "Unprocessable Content", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

_PARTS_COUNT = 128
_PART_BYTES = 1024

_SINGLE = frozenset({"host", "content-length", "transfer-encoding", "authorization"})
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE: Final = re.compile(r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}:[0-9]{2}:[0-9]{2}) GMT")

_T = TypeVar("_T")


class WireError(SplError):
    """The peer sent bytes HTTP/1.1 forbids, or more than we accept.

    Codes: bad-request, bad-length, body-too-large, head-too-large, uri-too-long,
    version-unsupported, expectation-failed; answer-malformed for event streams.
    """


class Parts(Generic[_T]):
    """Parts of heads that were parsed and found sound, by their exact bytes: the same bytes need no third parsing.

    Most parts come once: each request of a peer has a proof of its own.  So only a part that comes again is remembered,
    and of the others a number each.

    Bounded in number and size, so a stranger who sends ever new heads gains nothing but slower requests.  Two
    generations instead of an order: when the younger is full, the older is dropped.  For one event loop.
    """

    __slots__ = ("_old", "_once", "_young")

    def __init__(self) -> None:
        self._once: set[int] = set()
        """The hashes of parts that came once."""
        self._young: dict[bytes, _T] = {}
        self._old: dict[bytes, _T] = {}

    def get(self, text: bytes) -> _T | None:
        """Return what was made of exactly these bytes."""
        found = self._young.get(text)
        if found is None and (found := self._old.get(text)) is not None:
            self._keep(text, found)
        return found

    def add(self, text: bytes, value: _T) -> None:
        """Remember what was made of these bytes if they came before, unless they are long."""
        if len(text) > _PART_BYTES:
            return
        mark = hash(text)
        if mark in self._once:
            self._once.remove(mark)
            self._keep(text, value)
            return
        if len(self._once) >= _PARTS_COUNT:
            self._once.clear()
        self._once.add(mark)

    def _keep(self, text: bytes, value: _T) -> None:
        if len(self._young) >= _PARTS_COUNT:
            self._old, self._young = self._young, {}
        self._young[text] = value


def split_lines(block: bytes) -> list[str]:
    """Split a head at CRLF; refuse bare CR, bare LF, NUL and other control characters.

    What remains after deleting everything allowed must be exactly the line ends:
    one C call instead of a look at each byte.
    """
    lines = block.decode("latin-1").split("\r\n")
    if len(block.translate(None, _FIELD)) != 2 * (len(lines) - 1):
        raise WireError("bad-request", "the head has a control character or a bare line end")
    return lines


def content_length(text: str) -> int:
    """Return the body size in bytes announced by a Content-Length value.

    Digits only (RFC 9110 §8.6); int() alone would also take "+5" and "1_0".
    Raises WireError "bad-length" or "body-too-large".
    """
    if not text or text.strip("0123456789"):
        raise WireError("bad-length", f"content-length {text[:20]!r}")
    if len(text) > 15:
        raise WireError("body-too-large", f"content-length {text[:20]!r}")
    return int(text)


def parse_fields(lines: list[str], count_max: int) -> dict[str, str]:
    """Return header lines as one dict: lower-case name -> value, repeated ones joined by ", ".

    Raises WireError "bad-request", "bad-length" (two Content-Lengths), "head-too-large" (too many).
    """
    if len(lines) > count_max:
        raise WireError("head-too-large", f"there are over {count_max} header lines")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon:
            raise WireError("bad-request", "a header line has no colon")
        if name in fields:
            if name in _SINGLE:
                code = "bad-length" if name == "content-length" else "bad-request"
                raise WireError(code, f"there is more than one {name} header")
            fields[name] += ", " + value.strip(" \t")
        else:
            fields[name] = value.strip(" \t")
    # One translate for all names: obs-fold and space before a colon put a space into a name.
    if "" in fields or "".join(fields).encode("latin-1").translate(None, TOKEN_BYTES):
        raise WireError("bad-request", "a header name is not a token")
    return fields


def check_host(headers: Mapping[str, str], minor: int) -> None:
    """Raise WireError "bad-request" unless Host is a host; HTTP/1.0 may leave it out."""
    host = headers.get("host")
    if host is None:
        if minor:
            raise WireError("bad-request", "HTTP/1.1 needs a Host header")
    elif host.encode("latin-1").translate(None, _HOST):
        raise WireError("bad-request", "the Host header is not a host")


def minor_of(version: str) -> int:
    """Return 1 for HTTP/1.1, 0 for HTTP/1.0; raise WireError "version-unsupported", "bad-request"."""
    if version == "HTTP/1.1":
        return 1
    if version == "HTTP/1.0":
        return 0
    if re.fullmatch(r"HTTP/[0-9](\.[0-9])?", version):
        raise WireError("version-unsupported", f"{version} is not supported")
    raise WireError("bad-request", "the version is not HTTP/1.1")


def closes(headers: Mapping[str, str]) -> bool:
    """Return whether the headers announce the end of the connection."""
    value = headers.get("connection")
    return value is not None and "close" in (word.strip() for word in value.lower().split(","))


def split_target(method: str, target: str, headers: dict[str, str]) -> tuple[str, str]:
    """Return path and query; an absolute target's authority replaces Host (RFC 9112 §3.2.2)."""
    if target.encode("latin-1").translate(None, _VISIBLE) or "#" in target:
        raise WireError("bad-request", "the target has a character that must be encoded")
    if target[:1] != "/":
        found = _ABSOLUTE.fullmatch(target)
        if found is not None and not found[1].encode("latin-1").translate(None, _HOST):
            headers["host"] = found[1]
            target = (found[2] or "/") + (found[3] or "")
        elif target != "*" or method != "OPTIONS":
            raise WireError("bad-request", "the target is neither a path nor an absolute URL")
    path, _, query = target.partition("?")
    return path, query


def encode_request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """Return a request's bytes; `headers` has Host, and no framing header.  Raises WireError "bad-request"."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"content-length: {len(body)}")
    return encode_head(lines) + body


def encode_head(lines: list[str]) -> bytes:
    """Return lines as a head's bytes with its empty line.

    Raises WireError "bad-request" for a control character in any, so that no value
    ever becomes a header of its own.
    """
    try:
        head = "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError as exc:
        raise WireError("bad-request", "a header value is not latin-1") from exc
    if len(head.translate(None, _FIELD)) != 2 * (len(lines) - 1):
        raise WireError("bad-request", "a header value has a control character")
    return head + b"\r\n\r\n"


def encode_chunk(data: bytes) -> bytes:
    """Return one chunk; `data` is not empty, for an empty one would end the body."""
    assert data
    return b"%x\r\n%b\r\n" % (len(data), data)


def status_line(status: int) -> str:
    """Return the first line of a response."""
    return f"HTTP/1.1 {status} {REASONS.get(status, '')}"


def date_ms(text: str) -> int | None:
    """Return the Unix milliseconds of a Date header in its one present form; None for anything else.

    email.utils reads older forms too, and is half a megabyte of modules.
    """
    found = _DATE.fullmatch(text)
    if found is None or found[2] not in _MONTHS:
        return None
    try:
        return when.ms_of(f"{found[3]}-{_MONTHS.index(found[2]) + 1:02}-{found[1]}T{found[4]}Z")
    except when.WhenError:
        return None


def http_date(unix_s: int) -> str:
    """Return a time in the form of the Date header (RFC 9110 §5.6.7); strftime would ask the locale."""
    t = gmtime(unix_s)
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} {clock} GMT"
