"""Pages of a feed and push bodies: assembled from stored envelopes without decoding them, and read from a peer.

    {"records":[envelope…],"ns":["default",…],"next_cursor":"…","has_more":false,"peer_view":{…}}

If less than the full record is granted, a projection (levels.py) replaces the envelope.
A page asked for with `names=1` has one record at most, and if that would be an envelope its name instead: a member
`withheld` {id: ns}.  So a reader goes past a record that the way does not carry, and fetches it by its id later.
`ns` names each record's namespace at the source and is as long as `records`.  `peer_view` is how the source sees the
pair: `state`, `reason`, `head` (records in the reader's scope, null while the source counts them), `acked` (how many
of them the reader confirmed, null before it did), `queue` (records waiting in the source's own intake from the
reader), `consent` (rises with each grant of the source, see consent.py; omitted without any), `reach` (which way the
pair runs, see reach.py; omitted until that is known), `mode` and `poll_ms` (how the source reads from the reader, and
in mode polling how often), `asks_ms` (how often it asks at least; omitted unless it does), `unreached` (the code of
what stops its requests; omitted if they arrive), `unread_ms` (for how long, if only its reads fail), `cloned`,
`readonly`, `pauses` (its operator paused the pair) and `refuses` (it refused records of the reader as they came) if
true, and, in a page, `clock` (records in scope up to `next_cursor`).

In a stream each record is one event, whose data is the stored envelope with `ns` as a further member; the last of a
write also has `clock`, which counts up to the cursor that is the event's id.

A push is NDJSON: a head line {since, cursor, count, again?, peer_view?, chains?}, then a line {ns, env} for each
record.  A push body holds a page like any other, so one gate and one store path serve both.
"""

import json
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, Final

from .. import canon
from ..errors import CODES, SplError, printable
from ..gate import SCOPE_VIOLATION, claimed_id
from ..limits import MIB, Limits
from ..presence import REACH_WORDS
from ..value import Json, dataclass, field
from .cursor import TEXT_CHARS_MAX
from .record import is_id

STREAM_ENDS: Final = {"paused": "pair-paused", "revoked": "pair-revoked", "reset": "cursor-reset"}
"""Word in the error event that ends a stream -> the error code that it stands for; any other word: open another one."""
HEAD: Final = b'{"records":['
"""What stands before the envelopes of a page."""
CODE_CHARS_MAX: Final = 40
"""Of a code in a peer's answer; ours are shorter."""
NAME_CHARS_MAX: Final = 255
"""Of a namespace in `withheld`: four segments of 63."""
CHAINS_MAX: Final = 64
"""Key chains in one push; further ones come with later pushes."""
BUILT_BYTES_MAX: Final = 96 * MIB
"""Memory that the value of a text may take, as `_built_bytes` estimates it.

A page of 7 MiB of empty lists would take 190 MiB.  No text of honest records comes near: 5 MiB of pairs of numbers, the
densest that sources were seen to send, are estimated at 80 MiB.  Not in Limits: a lower bound would refuse pages that
the source must send again and again.
"""

_PUSH_HEAD: Final = frozenset({"since", "cursor", "count", "again", "peer_view", "chains"})


class PageError(SplError):
    """The peer's answer is not a page."""


class PushBodyError(SplError):
    """A push body is malformed; nothing of it is stored."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page as a peer sent it: decoded, nothing in it checked beyond its form.  `size` is its bytes on the wire."""

    values: list[Any] = field(repr=False)
    ns: list[Any] = field(repr=False)
    next_cursor: str
    has_more: bool
    view: Mapping[str, Any]
    size: int
    withheld: Mapping[str, str] = field(default_factory=dict)
    """Records that the page only names: id -> the source's namespace."""

    @property
    def count(self) -> int:
        """How many records it holds."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class PushBody:
    """A push as it arrived: decoded, nothing in it checked beyond its form."""

    since: str
    page: Page
    again: bool = False
    chains: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class PushAnswer:
    """The answer to a push, checked."""

    cursor: str
    records: int
    """How many were new."""
    wanted: tuple[str, ...]
    codes: frozenset[str]
    """Why records were refused."""
    view: Mapping[str, Any]


def assemble(envelopes: Sequence[bytes], ns: Sequence[str], **tail: object) -> bytes:
    """Return the bytes of a page, or of an answer like one; the envelopes go in as they are stored."""
    return b"".join((HEAD, b",".join(envelopes), end(ns, **tail)))


def end(ns: Sequence[str], **tail: object) -> bytes:
    """Return what follows the envelopes of a page; HEAD stands before them."""
    rest = json.dumps({"ns": list(ns), **tail}, ensure_ascii=False, separators=(",", ":")).encode()
    return b"]," + rest[1:]


def decode(data: bytes, records_max: int, *, fetched: bool = False, names: bool = False) -> Page:
    """Return the page in a peer's answer; `fetched`: records asked for by id, which come without a cursor.

    With `names` it may name the one record in `withheld`.

    Raises PageError "answer-malformed".
    """
    value = decode_many(data)
    if not isinstance(value, dict):
        raise PageError("answer-malformed", "a page is a JSON object")
    records, ns, cursor = value.get("records"), value.get("ns"), value.get("next_cursor")
    if not isinstance(records, list) or not isinstance(ns, list) or len(ns) != len(records):
        raise PageError("answer-malformed", "a page has the lists records and ns, equally long")
    if len(records) > records_max:
        raise PageError("answer-malformed", f"the page holds {len(records)} records, {records_max} were asked for")
    if fetched:
        cursor = "none"
    if not isinstance(cursor, str) or not 0 < len(cursor) <= TEXT_CHARS_MAX or not cursor.isascii():
        raise PageError("answer-malformed", f"next_cursor is a text of 1 to {TEXT_CHARS_MAX} ASCII characters")
    has_more, view = value.get("has_more"), value.get("peer_view", {})
    if not isinstance(has_more, bool) or not isinstance(view, dict):
        raise PageError("answer-malformed", "has_more is true or false, peer_view an object")
    withheld = value.get("withheld", {}) if names else {}
    if not isinstance(withheld, dict) or len(withheld) + len(records) > records_max or not _are_names(withheld):
        raise PageError("answer-malformed", "withheld names the records of the page that it does not hold")
    return Page(records, ns, cursor, has_more, read_view(view), len(data), withheld)


def cursor_in(data: bytes) -> str:
    """Return the cursor in the answer to an ack, "" for none; raise PageError "answer-malformed"."""
    value = decode_many(data)
    return answer_cursor(value.get("cursor", "")) if isinstance(value, dict) else ""


def with_ns(envelope: bytes, ns: str, clock: int | None = None) -> bytes:
    """Return the data of a record's event: one line of JSON."""
    rest = b"}" if clock is None else b',"clock":%d}' % clock
    return b'%b,"ns":%b%b' % (envelope[:-1], json.dumps(ns).encode(), rest)


def gather(data: Sequence[bytes], cursor: str, view: Mapping[str, Any]) -> Page:
    """Return the data of records' events that came one after another as a page; the last `clock` goes into the view.

    Raises PageError "answer-malformed".
    """
    values = decode_many(b"[%b]" % b",".join(data))
    if len(values) != len(data) or not all(isinstance(value, dict) for value in values):
        raise PageError("answer-malformed", "the data of a record's event is one JSON object")
    names = [value.pop("ns", None) for value in values]
    clocks = [clock for value in values if (clock := value.pop("clock", None)) is not None]
    found = {**view, **({"clock": clocks[-1]} if clocks else {})}
    return Page(values, names, cursor, False, read_view(found), sum(map(len, data)))


def decode_many(data: bytes) -> Any:
    """Return the value of JSON text that holds many envelopes, decoded once and plainly.

    What strict decoding refuses in one envelope must not cost the others: numbers out of range come back as NaN or
    infinity and lone surrogates stay, so that the gate refuses the one that has them.  A key given twice keeps its
    last value; ids are computed from the value, and our own encoding of it is stored.
    Raises PageError "answer-malformed" for what is no JSON at all, or for a value beyond BUILT_BYTES_MAX.
    """
    if _built_bytes(data) > BUILT_BYTES_MAX:
        raise PageError("answer-malformed", f"the value would take over {BUILT_BYTES_MAX} bytes of memory")
    try:
        return json.loads(data, parse_int=_int)
    except (ValueError, RecursionError) as exc:
        raise PageError("answer-malformed", "the answer is not JSON, or nested without end") from exc


def read_view(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a peer's view that are of the known form; texts are printable, at most 200 characters."""
    texts = {
        name: printable(view[name][:200])[:200]
        for name in ("state", "reason", "mode")
        if isinstance(view.get(name), str)
    }
    counts = {
        name: view[name]
        for name in ("head", "acked", "queue", "clock", "consent", "poll_ms", "asks_ms", "unread_ms")
        if type(view.get(name)) is int and 0 <= view[name] < 2**63
    }
    reach = view.get("reach")
    way = {"reach": reach} if isinstance(reach, str) and reach in REACH_WORDS else {}
    code = view.get("unreached")
    way |= {"unreached": code} if isinstance(code, str) and code in CODES else {}
    flags: dict[str, Any] = {
        name: True for name in ("cloned", "readonly", "pauses", "refuses") if view.get(name) is True
    }
    return {**texts, **counts, **way, **flags}


def assemble_push(since: str, item: Page, *, again: bool = False, chains: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of a push."""
    head = {
        "since": since,
        "cursor": item.next_cursor,
        "count": item.count,
        "again": again,
        "peer_view": dict(item.view),
        "chains": dict(chains or {}),
    }
    lines = [head, *({"ns": ns, "env": value} for value, ns in zip(item.values, item.ns, strict=True))]
    return b"\n".join(_line(value) for value in lines)


def asking(view: Mapping[str, Any]) -> Page:
    """Return the empty page that asks for the position."""
    return Page([], [], "", False, view, 0)


def decode_push(data: bytes, records_max: int) -> PushBody:
    """Return the push in a request's body; a line that is no record is kept as None, for the gate to refuse.

    Raises PushBodyError "bad-json", "bad-field".
    """
    if _built_bytes(data) > BUILT_BYTES_MAX:
        raise PushBodyError("bad-json", f"the records would take over {BUILT_BYTES_MAX} bytes of memory")
    first, *rest = [line for line in data.split(b"\n") if line.strip()] or [b""]
    try:
        head = decode_many(first)
    except PageError as exc:
        raise PushBodyError("bad-json", "the first line of a push is a JSON object") from exc
    if not isinstance(head, dict) or not {"since", "cursor", "count"} <= head.keys() <= _PUSH_HEAD:
        raise PushBodyError(
            "bad-field", f"the first line has since, cursor and count, and of {', '.join(sorted(_PUSH_HEAD))}"
        )
    since, cursor = _cursor(head, "since"), _cursor(head, "cursor")
    count, again, view, chains = head["count"], head.get("again", False), head.get("peer_view"), head.get("chains", {})
    if type(count) is not int or count != len(rest) or count > records_max or (count and not cursor):
        raise PushBodyError("bad-field", f"count is the number of lines that follow, at most {records_max}")
    if not isinstance(again, bool) or not isinstance(chains, dict) or len(chains) > CHAINS_MAX:
        raise PushBodyError("bad-field", f"again is true or false, chains at most {CHAINS_MAX} by DID")
    found = [_record(line) for line in rest]
    known = read_view(view) if isinstance(view, dict) else {}
    return PushBody(
        since, Page([env for env, _ in found], [ns for _, ns in found], cursor, False, known, len(data)), again, chains
    )


def push_answer(body: bytes, wanted_max: int) -> PushAnswer:
    """Return the answer to a push; raise PageError "answer-malformed"."""
    value = decode_many(body)
    if not isinstance(value, dict) or not isinstance(value.get("peer_view"), dict):
        raise PageError("answer-malformed", "the answer to a push is an object with peer_view")
    results, wanted, records = value.get("results"), value.get("wanted", []), value.get("records")
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise PageError("answer-malformed", "results is a list of objects")
    if not isinstance(wanted, list) or len(wanted) > wanted_max or type(records) is not int:
        raise PageError("answer-malformed", f"records is a number, wanted a list of at most {wanted_max}")
    codes = frozenset(str(result["code"])[:CODE_CHARS_MAX] for result in results if result.get("code"))
    view = read_view(value["peer_view"])
    return PushAnswer(answer_cursor(value.get("cursor")), records, tuple(filter(is_id, wanted)), codes, view)


def answer_cursor(value: object) -> str:
    """Return the cursor that a peer names in its answer to a push; raise PageError "answer-malformed"."""
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
        raise PageError("answer-malformed", "the answer to a push names no cursor")
    return value


def results(values: Sequence[Any], refused: Mapping[str, str]) -> list[Json]:
    """Return [{id, status, code?}] of the records of a push, where `refused` has the codes by id."""
    found: list[Json] = []
    for id_ in map(claimed_id, values):
        code = refused.get(id_)
        if code is None:
            found.append({"id": id_, "status": 200})
        else:
            found.append({"id": id_, "status": 403 if code == SCOPE_VIOLATION else 422, "code": code})
    return found


def body_bytes(limits: Limits) -> int:
    """Return the most bytes that a push may have: a page, and what stands around its records."""
    return limits.page_bytes + limits.record_bytes


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _record(line: bytes) -> tuple[Any, Any]:
    """Return (envelope value, ns) of a line, (None, None) for one of another form."""
    try:
        value = decode_many(line)
    except PageError:
        return None, None
    if not isinstance(value, dict) or value.keys() != {"ns", "env"}:
        return None, None
    return value["env"], value["ns"]


def _cursor(head: Mapping[str, Any], name: str) -> str:
    text = head[name]
    if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX or not text.isascii():
        raise PushBodyError("bad-field", f"{name} is a text of at most {TEXT_CHARS_MAX} ASCII characters")
    return text


def _are_names(withheld: Mapping[str, Any]) -> bool:
    return all(is_id(id_) and isinstance(ns, str) and len(ns) <= NAME_CHARS_MAX for id_, ns in withheld.items())


def _int(text: str) -> int | float:
    return int(text) if len(text) <= canon.INTEGER_DIGITS_MAX else nan


def _built_bytes(data: bytes) -> int:
    """Return about what the value of a JSON text takes in memory: 64 bytes a list or object, 16 an item, and the text.

    Signs inside strings count too.  The scan takes a fifteenth of the time of decoding, so short texts, which cannot
    reach the bound, are left out.
    """
    if len(data) < BUILT_BYTES_MAX // 32:
        return len(data)
    return len(data) + 64 * (data.count(b"[") + data.count(b"{")) + 16 * data.count(b",")
