"""The lines of the log as bytes: written, read back, and judged by the running hash.

A segment is one header line, then lines of this exact member order (strict JSON, UTF-8, one line feed each):

    {"k":"head","format":1,"epoch":E,"seq":S,"run":R,"sum":H}
    {"k":"rec","seq":12,"at":1763877600123,"from":"local","ns":"default","own":true,"run":R,"env":{…}}

`ns` is left out when empty and `own` when false; the last member, the payload, is `env` for kinds rec and alt and
`body` for all others (pos: a saved position, ref: a refused record, proj: a projection that a peer showed us), and its
bytes stand unchanged inside.  R, 32 hex digits, is the start of SHA-256 over the R
before (raw), the line's bytes before `"run":`, and its bytes from the payload's member name to the line's end.  So
R is a fingerprint of the whole log up to there and the line's own checksum.  A header carries a checksum of its own
(`sum`, the same hash over what stands before `"sum":`), because the epoch must not change by one bad bit.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from .core import canon
from .core.errors import SplError

FORMAT: Final = 1
RUN_START: Final = "0" * 32
ENVELOPE_KINDS: Final = frozenset({"rec", "alt"})
PROJECTION: Final = "proj"

_RUN: Final = b',"run":"'
_ENV: Final = b'"env":'
_BODY: Final = b'"body":'
_SUM: Final = b',"sum":"'
_RUN_DIGITS: Final = 32
_ANCHORS_MAX: Final = 8
_RUN_FIELD: Final = re.compile(rb',"run":"([0-9a-f]{32})","(?:env|body)":')


class LineError(SplError):
    """A line is not of the log's form."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is appended.  `payload` is canonical JSON; what follows `own` is derived from it, for the index.

    id, thread, actor, clock and voucher belong to envelopes (kinds rec and alt), pair to kinds pos and ref; pair, id
    and level to projections (kind proj).
    """

    kind: str
    payload: bytes
    origin: str = "local"
    ns: str = ""
    own: bool = False
    id: str = ""
    thread: str = ""
    actor: str = ""
    clock: int = 0
    voucher: str = ""
    pair: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it stands in the log; `at_ms` is its arrival in Unix ms, `run` the running hash after it."""

    kind: str
    seq: int
    at_ms: int
    origin: str
    ns: str
    own: bool
    run: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a segment: format, the store's epoch, the first seq in it and the running hash before."""

    format: int
    epoch: str
    seq: int
    run: str


def encode(entry: Entry, seq: int, at_ms: int, before: str) -> tuple[bytes, str, int]:
    """Return (line with its line feed, running hash after it, bytes before the payload)."""
    prefix = b'{"k":%b,"seq":%d,"at":%d,"from":%b%b%b,' % (
        _text(entry.kind), seq, at_ms, _text(entry.origin),
        b',"ns":' + _text(entry.ns) if entry.ns else b"",
        b',"own":true' if entry.own else b"",
    )  # fmt: skip
    member = _ENV if entry.kind in ENVELOPE_KINDS else _BODY
    tail = b"%b%b}" % (member, entry.payload)
    run = chain(before, prefix, tail)
    line = b'%b"run":"%b",%b\n' % (prefix, run.encode(), tail)
    return line, run, len(prefix) + len(_RUN) - 1 + _RUN_DIGITS + 2 + len(member)


def chain(before: str, prefix: bytes, tail: bytes) -> str:
    """Return the running hash after a line of these parts, `before` being the one before it."""
    return sha256(b"%b%b%b" % (bytes.fromhex(before), prefix, tail)).hexdigest()[:_RUN_DIGITS]


def split(raw: bytes) -> tuple[bytes, str, bytes]:
    """Return (prefix, stored running hash, tail) of a line without its line feed.

    The first `,"run":"` is the member itself: in the texts before it a quote would stand behind a backslash.
    Raises LineError "store-damaged".
    """
    at = raw.find(_RUN)
    start = at + len(_RUN)
    end = start + _RUN_DIGITS
    if at < 0 or raw[end : end + 2] != b'",':
        raise LineError("store-damaged", "a line has no running hash")
    try:
        return raw[: at + 1], raw[start:end].decode("ascii"), raw[end + 2 :]
    except UnicodeDecodeError as exc:
        raise LineError("store-damaged", "a line has no running hash") from exc


def assemble(prefix: bytes, run: str, tail: bytes) -> Line:
    """Return the Line of the parts that `split` returned.  Raises LineError "store-damaged"."""
    try:
        head = json.loads(prefix[:-1].decode() + "}")
        kind, seq, at_ms, origin = head["k"], head["seq"], head["at"], head["from"]
        ns, own = head.get("ns", ""), head.get("own", False)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise LineError("store-damaged", "a line's facts are not readable") from exc
    member = _ENV if kind in ENVELOPE_KINDS else _BODY
    if not (tail.startswith(member) and tail.endswith(b"}")):
        raise LineError("store-damaged", "a line's payload is not where its kind has it")
    return Line(kind, seq, at_ms, origin, ns, own, run, tail[len(member) : -1])


def parse(raw: bytes) -> Line:
    """Return the Line in these bytes (no line feed), its running hash not checked.  Raises LineError."""
    return assemble(*split(raw))


def entry_of(line: Line) -> Entry:
    """Return what was appended as this line; the index is rebuilt from it.  Raises LineError "store-damaged"."""
    kind, payload = line.kind, line.payload
    try:
        if kind in ENVELOPE_KINDS:
            value = json.loads(payload.decode())
            record = value["record"]
            return Entry(
                kind,
                payload,
                line.origin,
                line.ns,
                line.own,
                value["id"],
                record["thread"],
                record["actor"],
                record["clock"],
                value["sig"]["by"],
            )
        if kind == PROJECTION:
            value = json.loads(payload.decode())
            level = value["projection"]["level"]
            return Entry(kind, payload, line.origin, line.ns, id=value["id"], pair=line.origin, level=level)
        if kind in ("pos", "ref"):
            return Entry(kind, payload, line.origin, line.ns, line.own, pair=json.loads(payload.decode())["pair"])
    except (ValueError, KeyError, TypeError) as exc:
        raise LineError("store-damaged", f"the payload of line {line.seq} is not readable") from exc
    return Entry(kind, payload, line.origin, line.ns, line.own)


def encode_header(epoch: str, seq: int, run: str) -> bytes:
    """Return the header line of a segment, with its line feed."""
    text = b'{"k":"head","format":%d,"epoch":"%b","seq":%d,"run":"%b"' % (FORMAT, epoch.encode(), seq, run.encode())
    return b'%b%b%b"}\n' % (text, _SUM, _checksum(text))


def parse_header(raw: bytes) -> Header:
    """Return the header in these bytes (no line feed).

    Raises LineError "store-newer" for a later format, or "store-damaged".
    """
    text, _, rest = raw.partition(_SUM)
    # The checksum first: every format keeps these two members, or one bad bit would look like a newer format.
    if not text.startswith(b'{"k":"head","format":') or rest != _checksum(text) + b'"}':
        raise LineError("store-damaged", "a segment's header is not readable")
    value: dict[str, Any] = json.loads(text + b"}")
    if value["format"] > FORMAT:
        raise LineError("store-newer", f"the store has format {value['format']}, this version knows {FORMAT}")
    return Header(value["format"], value["epoch"], value["seq"], value["run"])


def header_of(raw: bytes) -> Header | None:
    """Return the header in a line's bytes, None when it is damaged or none.  Raises LineError "store-newer"."""
    try:
        return parse_header(raw)
    except LineError as exc:
        if exc.code == "store-newer":
            raise
        return None


class Chain:
    """Judges the lines of a log in order: good ones by the running hash, the rest as damaged.

    `expected` is the seq after the last good line or header, `run` the running hash there.

    After a damaged line the hash goes on from either its stored or its computed value, so one bad byte costs one
    line wherever it hit.  Where a line cannot even be taken apart, what looks like its running hash is tried; if
    that was hit too, the line after it counts as damaged as well, and its stored hash carries on.
    """

    __slots__ = ("_anchors", "expected", "run")

    def __init__(self, expected: int, run: str) -> None:
        self.expected, self.run = expected, run
        self._anchors = [run]

    def enter(self, raw: bytes, first: int) -> bool:
        """Go on behind the first line of the segment named `first`; tell whether it is a good header.

        A good one is as good as a line; of a bad one the segment's name gives the seq, and the hash just goes on.
        """
        header = header_of(raw)
        self.expected = max(self.expected, header.seq if header else first)
        if header:
            self.run, self._anchors = header.run, [header.run]
        else:
            self._remember(_runs_in(raw) + self._anchors)
        return header is not None

    def judge(self, raw: bytes) -> Line | None:
        """Return the line in these bytes (no line feed), or None when it is damaged."""
        try:
            prefix, run, tail = split(raw)
        except LineError:
            self._remember(_runs_in(raw) + self._anchors)
            return None
        computed = [chain(anchor, prefix, tail) for anchor in self._anchors]
        if run in computed:
            line = assemble(prefix, run, tail)
            if line.seq >= self.expected:
                self._anchors, self.expected, self.run = [run], line.seq + 1, run
                return line
        self._remember(_runs_in(raw) + computed)
        return None

    def _remember(self, candidates: list[str]) -> None:
        # Bounded, or a long stretch of bad lines would cost its square.
        self._anchors = list(dict.fromkeys(candidates))[:_ANCHORS_MAX]


def _runs_in(raw: bytes) -> list[str]:
    """Return what looks like running hashes in bytes that may be parts of lines."""
    return [text.decode() for text in _RUN_FIELD.findall(raw)[-_ANCHORS_MAX // 2 :]]


def _checksum(text: bytes) -> bytes:
    return sha256(text).hexdigest()[:_RUN_DIGITS].encode()


@lru_cache(maxsize=1024)
def _text(value: str) -> bytes:
    return canon.encode(value)
