"""Pushes as bytes: what the side that can dial sends to the side that cannot, as JSON lines.

    {"since":"…","cursor":"…","count":2,"again":false,"peer_view":{…},"chains":{"did:…":{…}}}
    {"ns":"default","env":{…}}
    {"ns":"default","env":{…}}

`since` is the position that the receiver saved last, as far as the sender knows ("" for none), `cursor` the one that
the records lead to, both sealed by the sender; the receiver owns the position and refuses another `since`.  `cursor`
"" moves nothing and carries nothing: it asks for the position.  `again` marks records that the receiver asked for,
because it had refused them.  `chains` are the key chains of signers that the sender relays.

The answer is {"cursor","records","results":[{"id","status","code"?}…],"wanted":[id…],"peer_view"}: where the receiver
stands now, how many records were new, one result a line in their order, and what it would see again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import page
from .cursor import TEXT_CHARS_MAX
from .errors import SplError
from .gate import SCOPE_VIOLATION, claimed_id
from .limits import Limits
from .page import Page, PageError

CHAINS_MAX: Final = 64
_HEAD: Final = frozenset({"since", "cursor", "count", "again", "peer_view", "chains"})


class ParcelError(SplError):
    """What was pushed has not the form of a push; nothing of it is stored."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A push as it arrived: decoded, nothing in it checked beyond its form."""

    since: str
    page: Page
    again: bool = False
    chains: Mapping[str, Any] = field(default_factory=dict, repr=False)


def assemble(since: str, item: Page, *, again: bool = False, chains: Mapping[str, Any] | None = None) -> bytes:
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
    """Return the page that carries nothing and asks for the position."""
    return Page([], [], "", False, view, 0)


def decode(data: bytes, records_max: int) -> Parcel:
    """Return the parcel in a request's body; a line that is no record is kept as None, for the gate to refuse.

    Raises ParcelError "bad-json", "bad-field".
    """
    first, *rest = [line for line in data.split(b"\n") if line.strip()] or [b""]
    try:
        head = page.decode_many(first)
    except PageError as exc:
        raise ParcelError("bad-json", "the first line of a push is a JSON object") from exc
    if not isinstance(head, dict) or not {"since", "cursor", "count"} <= head.keys() <= _HEAD:
        raise ParcelError("bad-field", f"the first line has since, cursor and count, and of {', '.join(sorted(_HEAD))}")
    since, cursor = _cursor(head, "since"), _cursor(head, "cursor")
    count, again, view, chains = head["count"], head.get("again", False), head.get("peer_view"), head.get("chains", {})
    if type(count) is not int or count != len(rest) or count > records_max or (count and not cursor):
        raise ParcelError("bad-field", f"count is the number of lines that follow, at most {records_max}")
    if not isinstance(again, bool) or not isinstance(chains, dict) or len(chains) > CHAINS_MAX:
        raise ParcelError("bad-field", f"again is true or false, chains at most {CHAINS_MAX} by DID")
    found = [_record(line) for line in rest]
    known = page.read_view(view) if isinstance(view, dict) else {}
    return Parcel(
        since, Page([env for env, _ in found], [ns for _, ns in found], cursor, False, known, len(data)), again, chains
    )


def results(values: Sequence[Any], refused: Mapping[str, str]) -> list[dict[str, object]]:
    """Return [{id, status, code?}] of the records of a push, where `refused` has the codes by id."""
    found: list[dict[str, object]] = []
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
        value = page.decode_many(line)
    except PageError:
        return None, None
    if not isinstance(value, dict) or value.keys() != {"ns", "env"}:
        return None, None
    return value["env"], value["ns"]


def _cursor(head: Mapping[str, Any], name: str) -> str:
    text = head[name]
    if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX or not text.isascii():
        raise ParcelError("bad-field", f"{name} is a text of at most {TEXT_CHARS_MAX} ASCII characters")
    return text
