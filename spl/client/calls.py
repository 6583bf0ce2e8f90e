"""Requests and answers as values, without I/O: what `Client` and `AsyncClient` share, so that both do the same."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from ..core.limits import KIB, MIB, Limits
from ..core.value import Json, dataclass
from ..net.heads import encode_request
from ..net.http1 import UNBOUNDED, ResponseHead, ResponseParser
from .dial import Where
from .errors import ClientError, PartialError, fault, refusal

ANSWER_BYTES: Final = 64 * MIB
"""Of an answer that is taken whole."""
READ_BYTES: Final = 64 * KIB
KEPT_IDLE_S: Final = 20.0
"""Less than any daemon or proxy keeps a silent connection open."""
REFUSAL_BYTES: Final = 64 * KIB
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
PAGE_RECORDS: Final = 500
BATCH_RECORDS: Final = 1000
BATCH_BYTES: Final = 4 * MIB
"""Of one request of `emit_many`; the daemon takes 8 MiB."""

_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Record:
    """A record as the daemon answers it: the signed fields, its id, and its place in this daemon's log.

    `clock` orders the records of an actor in a thread; `sequence` those of this daemon, in order of arrival.
    `vouched_by` is the DID of the instance that signed it.
    """

    id: str
    thread: str
    actor: str
    act: str
    clock: int
    body: Mapping[str, Any]
    parents: tuple[str, ...]
    data_type: str
    judged_by: str | None
    sequence: int
    vouched_by: str


@dataclass(frozen=True, slots=True)
class Call(Generic[_T]):
    """One request, and what its answer means; `is_reading` if it may be sent twice without doing anything twice."""

    method: str
    target: str
    decode: Callable[[bytes], _T]
    body: bytes = b""
    media: str = JSON
    is_reading: bool = True

    def encoded(self, where: Where, token: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """Return the bytes of the request."""
        fields = [("host", where.authority), *headers]
        if self.body or self.method == "POST":
            fields.append(("content-type", self.media))
        if token:
            fields.append(("authorization", f"Bearer {token}"))
        return encode_request(self.method, self.target, fields, self.body)

    def answer(self, head: ResponseHead, body: bytes) -> _T:
        """Return the value of an answer; raise the ClientError of a refusal."""
        if head.status >= 300:
            raise refused(head, body)
        return self.decode(body)


class WholeAnswer:
    """One whole answer, found in what arrives; `head` and `body` once `feed` says so."""

    def __init__(self, method: str) -> None:
        self._parser = ResponseParser(Limits(), method, ANSWER_BYTES)
        self._pieces: list[bytes] = []
        self.head: ResponseHead | None = None

    def feed(self, data: bytes) -> ResponseHead | None:
        """Return the head once the answer is whole; no bytes are the end of the connection.

        Raises WireError; ConnectionError when the answer was cut short.
        """
        if not data:
            self._parser.feed_end()
        self._parser.feed(data)
        while (event := self._parser.next()) is not None:
            if isinstance(event, ResponseHead):
                self.head = event
            elif not isinstance(event, bytes):
                return self.head
            else:
                self._pieces.append(event)
        if not data:
            raise ConnectionResetError("the answer was cut short")
        return None

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)


class Pieces:
    """The pieces of a streamed answer, found in what arrives; the whole of a refusal."""

    def __init__(self) -> None:
        self._parser = ResponseParser(Limits(), "GET", UNBOUNDED)
        self._head: ResponseHead | None = None
        self._refusal = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces that these bytes complete; none of them are the end of the connection.

        Raises the ClientError of a refusal, "disconnected" at the end of the answer, WireError.
        """
        if not data:
            self._parser.feed_end()
        self._parser.feed(data)
        found: list[bytes] = []
        while (event := self._parser.next()) is not None:
            if isinstance(event, ResponseHead):
                self._head = event
            elif not isinstance(event, bytes):
                break
            elif self._is_refused:
                self._refusal += event[:REFUSAL_BYTES]
            else:
                found.append(event)
        ended = event is not None or not data
        if self._head is not None and self._is_refused and (ended or len(self._refusal) >= REFUSAL_BYTES):
            raise refused(self._head, self._refusal)
        if ended and not found:
            raise fault("disconnected", "the daemon ended the stream")
        return found

    @property
    def _is_refused(self) -> bool:
        return self._head is not None and self._head.status >= 300


def refused(head: ResponseHead, body: bytes) -> ClientError:
    """Return the error of an answer that is not a success: the daemon's own, or that of something in between."""
    try:
        form = object_of(body)
    except ClientError:
        form = {}
    return refusal(form, head.status)


def health() -> Call[dict[str, Any]]:
    """Ask for liveness, DID and version."""
    return Call("GET", "/health", object_of)


def get(path: str, **query: object) -> Call[dict[str, Any]]:
    """Ask for the object of a route; None in the query is left out."""
    return Call("GET", _target(path, query), object_of)


def items(path: str, **query: object) -> Call[list[dict[str, Any]]]:
    """Ask for the elements of a list."""
    return Call("GET", _target(path, query), lambda data: elements(object_of(data)))


def post(path: str, body: Mapping[str, object]) -> Call[dict[str, Any]]:
    """Send an object to a route."""
    return Call("POST", path, object_of, _encoded(body), is_reading=False)


def delete(path: str) -> Call[dict[str, Any]]:
    """Delete what a path names."""
    return Call("DELETE", path, object_of, is_reading=False)


def emit(record: Mapping[str, object]) -> Call[Record]:
    """Write one record."""
    return Call("POST", "/v1/records", lambda data: record_of(object_of(data)), _encoded(record), is_reading=False)


def draft(
    thread: str, actor: str, body: Mapping[str, object], act: str, parents: Iterable[str], clock: int | None
) -> Json:
    """Return the fields of a record that is to be written."""
    fields: Json = {"thread": thread, "actor": actor, "act": act, "body": body}
    if given := list(parents):
        fields["parents"] = given
    if clock is not None:
        fields["clock"] = clock
    return fields


def batches(records: Iterable[Mapping[str, object]]) -> Iterable[Call[list[Record]]]:
    """Yield requests that together write all the records, in order."""
    lines: list[bytes] = []
    size = 0
    for record in records:
        line = _encoded(record)
        if lines and (len(lines) >= BATCH_RECORDS or size + len(line) > BATCH_BYTES):
            yield _batch(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield _batch(lines)


def record(record_id: str) -> Call[Record]:
    """Ask for one record."""
    return Call("GET", f"/v1/records/{quote(record_id)}", lambda data: record_of(object_of(data)))


def page(since: int, **query: object) -> Call[list[Record]]:
    """Ask for the records that follow a sequence; an empty page is the end."""
    return Call("GET", _target("/v1/records", {**query, "since": since, "limit": PAGE_RECORDS}), records_of)


def later(position: object, before: int) -> int:
    """Return the position that a page ends at, to go on from; raise ClientError unless it is after the one before.

    Otherwise a daemon elsewhere could keep its reader turning for ever.
    """
    if type(position) is not int or position <= before:
        raise fault("answer-malformed", f"the daemon's pages do not go on: after {before} comes {str(position)[:40]}")
    return position


def newest(thread: str) -> Call[list[Record]]:
    """Ask for the last record of a thread."""
    return Call("GET", _target("/v1/records", {"thread": thread, "limit": 1}), records_of)


def query(question: Mapping[str, object]) -> Call[list[Record]]:
    """Ask for the records that a filter holds of."""
    return Call("POST", "/v1/records/query", records_of, _encoded(question))


def quote(text: str) -> str:
    """Return the text percent-encoded for one path segment or query value."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


def object_of(data: bytes) -> dict[str, Any]:
    """Return the object in an answer; raise ClientError "answer-malformed"."""
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError) as exc:
        raise fault("answer-malformed", "the daemon did not answer with JSON") from exc
    if not isinstance(value, dict):
        raise fault("answer-malformed", "the daemon did not answer with a JSON object")
    return value


def elements(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects in a list answer."""
    data = answer.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise fault("answer-malformed", "the daemon did not answer with a list")
    return data


def records_of(data: bytes) -> list[Record]:
    """Return the records in a list answer."""
    return [record_of(item) for item in elements(object_of(data))]


def record_of(form: Mapping[str, Any]) -> Record:
    """Return a record of its answer form; members of a newer daemon are passed over."""
    try:
        if type(form["sequence"]) is not int:
            raise fault("answer-malformed", "the daemon answered a record whose sequence is no number")
        return Record(
            form["id"], form["thread"], form["actor"], form["act"], form["clock"], form["body"],
            tuple(form["parents"]), form["data_type"], form["judged_by"], form["sequence"], form["vouched_by"],
        )  # fmt: skip
    except (KeyError, TypeError) as exc:
        raise fault("answer-malformed", f"the daemon answered a record without {exc}") from exc


def _batch(lines: Sequence[bytes]) -> Call[list[Record]]:
    def decode(data: bytes) -> list[Record]:
        found = [object_of(line) for line in data.split(b"\n") if line]
        if len(found) != len(lines):
            raise fault("answer-malformed", f"the daemon answered {len(found)} of {len(lines)} records")
        results: list[Record | ClientError] = [
            refusal(form) if form.get("object") == "error" else record_of(form) for form in found
        ]
        if any(isinstance(each, ClientError) for each in results):
            raise PartialError(results)
        return [each for each in results if isinstance(each, Record)]

    return Call("POST", "/v1/records", decode, b"\n".join(lines), NDJSON, is_reading=False)


def _encoded(value: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise fault("bad-json", f"this cannot be sent as JSON: {exc}") from exc


def _target(path: str, query: Mapping[str, object]) -> str:
    pairs = "&".join(f"{quote(name)}={quote(str(value))}" for name, value in query.items() if value is not None)
    return f"{path}?{pairs}" if pairs else path
