"""HTTP/1.1 heads as lines of text: which characters they may have, parsing and encoding.

Parsing and encoding make the same check: after every allowed character is deleted,
only the line ends of a head may remain.  So no value from outside becomes a header,
or a message, of its own.
"""

from collections.abc import Iterable, Mapping
from time import gmtime
from typing import Final

from ..core.errors import SplError

LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
TOKEN_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
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

_SINGLE = frozenset({"host", "content-length", "transfer-encoding", "authorization"})
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class WireError(SplError):
    """The peer sent bytes HTTP/1.1 forbids, or more than we accept.

    Codes: bad-request, bad-length, body-too-large, head-too-large, uri-too-long,
    version-unsupported, expectation-failed; answer-malformed for event streams.
    """


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


def http_date(unix_s: int) -> str:
    """Return a time in the form of the Date header (RFC 9110 §5.6.7); strftime would ask the locale."""
    t = gmtime(unix_s)
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} {clock} GMT"
