"""What differs between two records, two sets of records, or the two histories of one pair; pure.

The two sides of a pair write different records about the same events: the initiator's `pair_init` answers to the
responder's `pair_pending`, a pause "by us" to one "by peer".  So each record of a pair becomes a Transition, and of its
events those that both sides must have get a common label.  What a side writes about itself alone (its mode, its
trouble, a manifest it fetched) has none and is never missed on the other.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from .. import canon, keys, when
from ..errors import SplError
from ..record import record
from ..value import dataclass
from . import pair
from .pair import Pair

THREAD_PAIRS: Final = "th_federation_pairs"
TRANSITIONS_MAX: Final = 1000
"""The newest transitions of a pair that one side shows the other."""
TEXT_CHARS_MAX: Final = 256
"""Of each text of a transition; with TRANSITIONS_MAX it bounds what a peer has us keep."""

_SHARED: Final = {
    "pair_init.v1": "request",
    "pair_pending.v1": "request",
    "pair.genesis.v1": "agreement",
    "pair_active.v1": "activation",
    "pair_pause.v1": "pause",
    "pair_resume.v1": "resume",
    "pair.revoke.v1": "end",
    "pair_rejected.v1": "end",
}
_CONTENT: Final = ("act", "actor", "body", "clock", "data_type", "judged_by")
_MEMBERS: Final = ("id", "kind", "at", "actor", "by", "state", "event")


class DiffError(SplError):
    """A peer's history is not of the expected form."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One record of a pair as both sides can read it.

    `kind` is short, `at` RFC 3339, `actor` the instance that wrote the record, `by` the DID that paused or resumed,
    `state` what people saw afterwards, `event` the label that the other side must have too, "" for its own affairs.
    """

    id: str
    kind: str
    at: str
    actor: str
    by: str
    state: str
    event: str

    def to_json(self) -> dict[str, str]:
        """Return the members by name; `transitions_from_json` reads them."""
        return {name: getattr(self, name) for name in _MEMBERS}


@dataclass(frozen=True, slots=True)
class Gap:
    """A transition that only one side has: 0 the first, 1 the second."""

    side: int
    transition: Transition


@dataclass(frozen=True, slots=True)
class Field:
    """One member that differs, by its path; None where a side lacks it."""

    path: str
    values: tuple[str | None, str | None]


def pair_id_of(value: Mapping[str, Any]) -> str:
    """Return the pair that a record of the pair log is about, "" for any other record."""
    pair_id = value["body"].get("pair_id")
    return pair_id if value["thread"] == THREAD_PAIRS and isinstance(pair_id, str) else ""


def peers(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return pair id -> peer DID of every pair that began in these records."""
    found: dict[str, str] = {}
    for item in records:
        pair_id, body = pair_id_of(item), item["body"]
        if pair_id and pair_id not in found:
            after = pair.fold({}, body).get(pair_id)
            if after is not None:
                found[pair_id] = after.peer_did
    return found


def history(records: Iterable[Mapping[str, Any]], pair_id: str) -> list[Transition]:
    """Return the transitions of one pair from records that have an id beside their fields; others are passed over.

    In the order of their clocks, which is the order in which their one writer made them.
    """
    found: list[Transition] = []
    pairs: Mapping[str, Pair] = {}
    mine = sorted((item for item in records if pair_id_of(item) == pair_id), key=lambda item: item["clock"])
    for item in mine:
        before, pairs = pairs, pair.fold(pairs, item["body"])
        if pairs is not before:
            found.append(_transition(item, pairs[pair_id], before.get(pair_id)))
    return found


def transitions_from_json(value: object) -> list[Transition]:
    """Return the transitions in a peer's answer; raise DiffError "answer-malformed"."""
    if not isinstance(value, list) or len(value) > TRANSITIONS_MAX:
        raise DiffError("answer-malformed", f"transitions is a list of at most {TRANSITIONS_MAX}")
    found = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != set(_MEMBERS) or not record.is_id(item["id"]):
            raise DiffError("answer-malformed", "a transition has an id and its six other members")
        if not all(isinstance(text, str) and len(text) <= TEXT_CHARS_MAX for text in item.values()):
            raise DiffError("answer-malformed", "the members of a transition are short texts")
        found.append(Transition(**item))
    return found


def gaps(one: list[Transition], other: list[Transition]) -> list[Gap]:
    """Return the transitions that the other side lacks, in the order of events, as few as explain the difference.

    Cost: the product of what is left of both histories without their common start; each has at most a few hundred.
    """
    a, b = ([item for item in side if item.event] for side in (one, other))
    start = 0
    while start < min(len(a), len(b)) and a[start].event == b[start].event:
        start += 1
    a, b = a[start:], b[start:]
    # common[i][j]: the longest common sequence of a[i:] and b[j:].
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            same = a[i].event == b[j].event
            common[i][j] = common[i + 1][j + 1] + 1 if same else max(common[i + 1][j], common[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(a) or j < len(b):
        if i < len(a) and j < len(b) and a[i].event == b[j].event:
            i, j = i + 1, j + 1
        elif j == len(b) or (i < len(a) and common[i + 1][j] >= common[i][j + 1]):
            found.append(Gap(0, a[i]))
            i += 1
        else:
            found.append(Gap(1, b[j]))
            j += 1
    return found


def fields(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> list[Field]:
    """Return the members that differ, objects compared member by member and lists whole."""
    found = []
    for name in sorted(one.keys() | other.keys()):
        here = f"{path}.{name}" if path else name
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += fields(a, b, here)
        elif name not in one or name not in other or canon.encode(a) != canon.encode(b):
            found.append(Field(here, (_shown(one, name), _shown(other, name))))
    return found


def content_key(value: Mapping[str, Any], *, anywhere: bool) -> bytes:
    """Return what makes a record the same: its id, or `anywhere` its content whatever its thread and parents."""
    if not anywhere:
        return bytes.fromhex(value["id"])
    return bytes.fromhex(keys.digest(canon.encode({name: value[name] for name in _CONTENT})))


def _transition(item: Mapping[str, Any], after: Pair, before: Pair | None) -> Transition:
    body = item["body"]
    kind, by = pair.short_kind(body["kind"]), ""
    event = _SHARED.get(kind, "")
    if event in ("pause", "resume"):
        by = item["actor"] if body["by"] == "us" else after.peer_did
        event = f"{event} by {by}"
    if kind == "pair_pending.v1" and before is not None:
        event = ""  # the initiator learnt that it must wait; the responder wrote its own at the request
    detail = after.state.detail or after.reason
    state = f"{after.phase.value}: {detail}" if detail and detail != after.phase.value else after.phase.value
    at = when.text_of(when.ms_of(body["at"]))
    return Transition(item["id"], kind, at, item["actor"], by, state[:TEXT_CHARS_MAX], event)


def _shown(value: Mapping[str, Any], name: str) -> str | None:
    return canon.encode(value[name]).decode() if name in value else None
