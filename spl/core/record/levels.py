"""Hash levels of a record, and projections: what travels of a record that is not shared in full.

    L3  {in, out}                 the shapes
    L2  + p                       the act
    L1  + op, d                   operation and domain
    L0  L2 + op, params           everything; never leaves without the consent of both sides

`in` and `out` are `body.input_shape` and `body.output_shape` ("VOID" where absent), `op` is `body.operation` (the act
in lower case where absent), `d` is `body.domain` ("" where absent), `params` the body without operation and shapes.
Each hash is the SHA-256 of the canonical JSON.

A projection stands in the place of an envelope:

    {"id":…,"projection":{"by","key","level","ns","value"},"record":{…,"body":{"redacted":true,"level","hashes"}}}

L1 keeps id, thread, actor, act, clock, data_type and parents; L2 and L3 have pseudonyms for id and parents, which only
the source can resolve and which differ from pair to pair, and leave out the actor and, at L3, the act.  It is a claim
of its source, signed by that instance over `syncropel-projection-v1` NUL the canonical JSON of {pair, level, ns,
content: {id, record}}, and never a record.

Pseudonyms are keyed by a secret and by the pair: equal ones for all would let two peers match what each was shown, and
bare hashes of ids would confirm a guess.  The signature binds level, pair and namespace, or a peer could pass a claim
on as what it was shown itself.  Rejected: a projection as a record of its own, which every reader would have to keep
apart from what its author signed.  One costs 50 us, most of it the signature, and is made for each pair when it is
sent; where the level is unchanged, a reading gives it once (sync/lanes).
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from .. import canon, keys
from ..errors import SplError
from ..keys import SIGNATURE_BYTES, KeyFault, SecretKey, b64, unb64
from ..limits import Limits
from ..value import dataclass, field
from . import record

NAMES: Final = ("L0", "L1", "L2", "L3")
EXACT: Final = 0
STRUCTURAL: Final = 1
REST_BYTES: Final = 768
"""What a projection has beside the fields that it keeps takes less: hashes, names, signature."""

_SIG: Final = frozenset({"by", "key", "level", "ns", "value"})
_KEPT: Final[Mapping[int, frozenset[str]]] = {
    1: frozenset({"act", "actor", "body", "clock", "data_type", "parents", "thread"}),
    2: frozenset({"act", "body", "clock", "data_type", "parents", "thread"}),
    3: frozenset({"body", "clock", "data_type", "parents", "thread"}),
}


class LevelError(SplError):
    """A hash level or projection that is not of the contract's form."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection as it was received: `id` is the record's at L1, else a pseudonym; `raw` is its canonical JSON."""

    id: str
    level: int
    ns: str
    record: dict[str, Any]
    by: str
    key: str
    value: bytes = field(repr=False)
    raw: bytes = field(repr=False)


def level_of(text: object) -> int:
    """Return 0 to 3 for "L0" to "L3"; raise LevelError "bad-field"."""
    if text not in NAMES:
        raise LevelError("bad-field", f"a hash level is one of {' '.join(NAMES)}, not {str(text)[:20]!r}")
    return NAMES.index(text)


def hashes(act: str, body: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return the hashes L0, L1, L2, L3 of a record's act and body, in lower-case hex."""
    shapes = {"in": body.get("input_shape", "VOID"), "out": body.get("output_shape", "VOID")}
    flow = {**shapes, "p": act}
    operation = body.get("operation", act.lower())
    params = {key: value for key, value in body.items() if key not in ("operation", "input_shape", "output_shape")}
    texts = (
        {**flow, "op": operation, "params": params},
        {**flow, "op": operation, "d": body.get("domain", "")},
        flow,
        shapes,
    )
    exact, structural, flowing, intent = (hashlib.sha256(canon.encode(text)).hexdigest() for text in texts)
    return exact, structural, flowing, intent


def pseudonym(secret: bytes, pair_id: str, record_id: str) -> str:
    """Return what stands for a record id at L2 and L3: 64 hex digits that only the holder of `secret` can compute."""
    return hmac.new(secret, f"syncropel-pseudonym-v1\0{pair_id}\0{record_id}".encode(), hashlib.sha256).hexdigest()


def content(value: Mapping[str, Any], record_id: str, level: int, pair_id: str, secret: bytes) -> dict[str, Any]:
    """Return {id, record} of what a record shows at level 1, 2 or 3; `secret` makes the pseudonyms."""
    found = hashes(value["act"], value["body"])
    body = {
        "redacted": True,
        "level": NAMES[level],
        "hashes": {NAMES[number]: found[number] for number in range(level, len(NAMES))},
    }
    kept = {name: value[name] for name in _KEPT[level] if name not in ("body", "parents")}
    if level == STRUCTURAL:
        return {"id": record_id, "record": {**kept, "body": body, "parents": list(value["parents"])}}
    parents = sorted(pseudonym(secret, pair_id, parent) for parent in value["parents"])
    return {"id": pseudonym(secret, pair_id, record_id), "record": {**kept, "body": body, "parents": parents}}


def shown_bytes(value: Mapping[str, Any], level: int) -> int:
    """Return an upper bound of a projection's size in bytes, computed only from the fields that it shows."""
    return len(canon.encode({name: value[name] for name in _KEPT[level] if name != "body"})) + REST_BYTES


def project(
    content: Mapping[str, Any], level: int, ns: str, pair_id: str, by: str, key_text: str, key: SecretKey
) -> bytes:
    """Return the signed projection of what `content` returned; `key_text` is the multibase of our public key."""
    value = key.sign(_signed_text(content, level, ns, pair_id))
    mark = {"by": by, "key": key_text, "level": NAMES[level], "ns": ns, "value": b64(value)}
    return canon.encode({**content, "projection": mark})


def is_projection(value: object) -> bool:
    """Return whether a decoded item of a page claims to be a projection."""
    return isinstance(value, dict) and "projection" in value


def parse(value: object, limits: Limits) -> Projection:
    """Return the projection in a decoded JSON value; nothing is verified but its form.

    Raises LevelError "bad-field", RecordError "bad-field", "record-too-large".
    """
    if not isinstance(value, dict) or value.keys() != {"id", "projection", "record"}:
        raise LevelError("bad-field", "a projection has exactly the members id, projection, record")
    mark, inner, id_ = value["projection"], value["record"], value["id"]
    if not isinstance(mark, dict) or mark.keys() != _SIG or not all(isinstance(part, str) for part in mark.values()):
        raise LevelError("bad-field", f"projection has the members {', '.join(sorted(_SIG))}")
    level = level_of(mark["level"])
    if level == EXACT or not record.is_id(id_) or not isinstance(inner, dict) or inner.keys() != _KEPT[level]:
        raise LevelError("bad-field", f"not what a record shows at {mark['level']}")
    _check_body(inner["body"], level)
    # What a level leaves out is filled in for the check only.
    record.check({"act": "KNOW", "actor": "did:none", **inner, "body": {}}, limits)
    try:
        signature = unb64(mark["value"], SIGNATURE_BYTES)
    except KeyFault as exc:
        raise LevelError("bad-field", "projection.value is not base64") from exc
    if len(signature) != SIGNATURE_BYTES or not 0 < len(mark["by"]) <= 256 or not 0 < len(mark["key"]) <= 128:
        raise LevelError("bad-field", "projection.by, key and value are the signature of an instance")
    raw = canon.encode(value)
    if len(raw) > limits.record_bytes:
        raise LevelError("record-too-large", f"the projection has {len(raw)} bytes")
    return Projection(id_, level, mark["ns"], inner, mark["by"], mark["key"], signature, raw)


def verify(projection: Projection, pair_id: str, public: bytes) -> bool:
    """Return whether the key signed this projection for this pair."""
    content = {"id": projection.id, "record": projection.record}
    return keys.verify(public, _signed_text(content, projection.level, projection.ns, pair_id), projection.value)


def _check_body(body: object, level: int) -> None:
    if not isinstance(body, dict) or body.keys() != {"redacted", "level", "hashes"} or body["redacted"] is not True:
        raise LevelError("bad-field", "the body of a projection has redacted (true), level and hashes")
    found = body["hashes"]
    if body["level"] != NAMES[level] or not isinstance(found, dict) or found.keys() != set(NAMES[level:]):
        raise LevelError("bad-field", f"a projection at {NAMES[level]} has the hashes {' '.join(NAMES[level:])}")
    if not all(record.is_id(each) for each in found.values()):
        raise LevelError("bad-field", "a hash is 64 lower-case hex digits")


def _signed_text(content: Mapping[str, Any], level: int, ns: str, pair_id: str) -> bytes:
    text = {
        "pair": pair_id,
        "level": NAMES[level],
        "ns": ns,
        "content": {"id": content["id"], "record": content["record"]},
    }
    return b"syncropel-projection-v1\0" + canon.encode(text)
