"""Records: validation, ids, and the signed envelope that travels.

A record has eight fields; its id is the SHA-256 of the canonical JSON of seven (`judged_by` is not hashed).  The
envelope `{"id","record","sig"}` is canonical JSON too, byte-identical on disk and on the wire.  `sig` is Ed25519 by
the instance that first took the record, over `syncropel-record-v1` NUL id NUL judged_by-or-empty; in a batch over
the RFC 9162 Merkle root of such messages (batch.py).
"""

import hashlib
import itertools
import re
from binascii import b2a_base64
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from .. import canon
from ..errors import SplError
from ..keys import SIGNATURE_BYTES, KeyFault, unb64
from ..limits import Limits
from .batch import Batch

ACTS: Final = frozenset({"INTEND", "DO", "KNOW", "LEARN", "GET", "PUT", "CALL", "MAP"})
DATA_TYPES: Final = frozenset({"SCALAR", "FORMULA", "DISTRIBUTION", "REFERENCE", "MORPHISM", "VOID"})
CLOCK_MAX: Final = 2**63 - 1  # eight bytes in the index, and the same in every language
HASHED: Final = ("act", "actor", "body", "clock", "data_type", "parents", "thread")
FIELDS: Final = frozenset({*HASHED, "judged_by"})
RESERVED_THREADS: Final = frozenset(
    {
        "th_federation_pairs",
        "th_consent",
        "th_engine_config",
        "th_namespace_registry",
        "th_aitl",
        "th_api_tokens",
    }
)
AUDIT_PREFIX: Final = "th_audit_"
NAMESPACE_DEFAULT: Final = "default"
INSTANCE_PREFIX: Final = "did:sync:instance:"

_SIG_FIELDS: Final = frozenset({"by", "key", "value"})
_BATCHED_SIG_FIELDS: Final = _SIG_FIELDS | {"batch"}
_ENVELOPE_FIELDS: Final = frozenset({"id", "record", "sig"})
_ID: Final = re.compile(r"[0-9a-f]{64}\Z")
_ID_DIGITS: Final = 64
_JUDGED: Final = b',"judged_by":'


class RecordError(SplError):
    """The record or envelope is not of the contract's form."""


class Sig(NamedTuple):
    """Who vouches: instance DID, its key (a hint, never evidence), 64 signature bytes, and the batch if any."""

    by: str
    key: str
    value: bytes
    batch: Batch | None = None


class Envelope(NamedTuple):
    """A validated record with its id and signature; `raw` is the canonical JSON of all three."""

    id: str
    record: dict[str, Any]
    sig: Sig
    raw: bytes


def record_id(record: Mapping[str, object]) -> str:
    """Return the lower-case hex id of a record that has the seven hashed fields; any strings are taken."""
    return hashlib.sha256(canon.encode({name: record[name] for name in HASHED})).hexdigest()


def is_reserved(thread: str) -> bool:
    """Return whether only the daemon itself may write the thread."""
    return thread in RESERVED_THREADS or thread.startswith(AUDIT_PREFIX)


def is_id(text: object) -> bool:
    """Return whether the text has the form of a record id: 64 lower-case hex digits."""
    return isinstance(text, str) and _ID.match(text) is not None


def namespace_of(record: Mapping[str, Any]) -> str:
    """Return the record's namespace: `body.namespace`, or "default" if it names none."""
    name = record["body"].get("namespace", NAMESPACE_DEFAULT)
    return name if isinstance(name, str) and name else NAMESPACE_DEFAULT


def check(value: object, limits: Limits) -> dict[str, Any]:
    """Return the record with all eight fields, defaults filled in, parents as given.

    `clock` must be present.  Raises RecordError "bad-field" naming the field, "record-too-large", or CanonError.
    """
    if not isinstance(value, dict):
        raise RecordError("bad-field", "a record is a JSON object")
    if not FIELDS.issuperset(value):
        raise RecordError("bad-field", f"unknown field {min(value.keys() - FIELDS)[:40]!r}")
    record = {"data_type": "SCALAR", "judged_by": None, "parents": [], **value}
    for name, rule in _RULES:
        if name not in record:
            raise RecordError("bad-field", f"field {name!r} is missing")
        fault = rule(record[name], limits)
        if fault:
            raise RecordError("bad-field", f"{name}: {fault}")
    return record


def signed_text(record_id: str, judged_by: str | None) -> bytes:
    """Return the bytes that a plain signature signs and that are one leaf of a batch."""
    return f"syncropel-record-v1\0{record_id}\0{judged_by or ''}".encode()


def identify(record: dict[str, Any], limits: Limits) -> tuple[str, bytes]:
    """Return (id, canonical JSON of the eight fields) of a checked record, in one canonical pass.

    Raises RecordError "record-too-large", CanonError "bad-json".
    """
    text = canon.encode(record)
    if len(text) > limits.record_bytes:
        raise RecordError("record-too-large", f"the record has {len(text)} bytes, the limit is {limits.record_bytes}")
    # No string in JSON holds bare quotes, and what stands behind this member, parents and thread, has no keys.
    at = text.rindex(_JUDGED)
    judged = len("null") if record["judged_by"] is None else _ID_DIGITS + 2
    hashed = text[:at] + text[at + len(_JUDGED) + judged :]
    return hashlib.sha256(hashed).hexdigest(), text


def seal(record: dict[str, Any], record_id: str, text: bytes, sig: Sig) -> Envelope:
    """Return the envelope of what `identify` returned and a signature."""
    batch = b"" if sig.batch is None else b'"batch":%b,' % sig.batch.encoded()
    raw = b'{"id":"%b","record":%b,"sig":{%b"by":%b,"key":%b,"value":"%b"}}' % (
        record_id.encode(), text, batch, _text(sig.by), _text(sig.key), b2a_base64(sig.value, newline=False)
    )  # fmt: skip
    return Envelope(record_id, record, sig, raw)


def parse(data: bytes, limits: Limits) -> Envelope:
    """Return the envelope in foreign JSON text, its id recomputed, its text encoded again.

    The signature is not verified here.

    Raises RecordError "bad-field", "record-id", "record-too-large", CanonError "bad-json".
    """
    value = canon.decode_canonical(data, limits.nesting_levels + 2)
    if value is None:
        value = canon.decode(data, limits.nesting_levels + 2)
    return from_json(value, limits)


def from_json(value: object, limits: Limits) -> Envelope:
    """Return the envelope of a decoded JSON value; see `parse`."""
    if not isinstance(value, dict) or value.keys() != _ENVELOPE_FIELDS:
        raise RecordError("bad-field", "an envelope has exactly the members id, record, sig")
    inner = value["record"]
    if not isinstance(inner, dict) or inner.keys() != FIELDS:
        raise RecordError("bad-field", "the record in an envelope has exactly its eight fields")
    record = check(inner, limits)
    found, text = identify(record, limits)
    if found != value["id"]:
        raise RecordError("record-id", f"the id {str(value['id'])[:16]!r} is not that of the record, {found[:16]}")
    return seal(record, found, text, _sig(value["sig"]))


def _sig(value: object) -> Sig:
    if not isinstance(value, dict) or not (value.keys() == _SIG_FIELDS or value.keys() == _BATCHED_SIG_FIELDS):
        raise RecordError("bad-field", "sig has the members by, key, value and at most batch")
    by, key = value["by"], value["key"]
    if not (isinstance(by, str) and isinstance(key, str) and 0 < len(by) <= 256 and 0 < len(key) <= 128):
        raise RecordError("bad-field", "sig.by and sig.key are short texts")
    try:
        signature = unb64(value["value"], SIGNATURE_BYTES)
    except KeyFault as exc:
        raise RecordError("bad-field", "sig.value is not base64") from exc
    if len(signature) != SIGNATURE_BYTES:
        raise RecordError("bad-field", f"sig.value has {len(signature)} bytes, not {SIGNATURE_BYTES}")
    return Sig(by, key, signature, Batch.from_json(value["batch"]) if "batch" in value else None)


def _act(value: object, _: Limits) -> str:
    return "" if isinstance(value, str) and value in ACTS else f"must be one of {' '.join(sorted(ACTS))}"


def _actor(value: object, limits: Limits) -> str:
    if not isinstance(value, str) or not value.startswith("did:") or len(value) > limits.actor_chars:
        return f"must be a DID of at most {limits.actor_chars} characters"
    return "" if value.isprintable() and " " not in value else "must be printable, without spaces"


def _body(value: object, limits: Limits) -> str:
    if not isinstance(value, dict):
        return "must be a JSON object"
    namespace = value.get("namespace", NAMESPACE_DEFAULT)
    return "" if isinstance(namespace, str) and namespace else "namespace in it must be a text"


def _clock(value: object, _: Limits) -> str:
    return "" if type(value) is int and 0 <= value <= CLOCK_MAX else "must be an integer from 0 to 2^63-1"


def _data_type(value: object, _: Limits) -> str:
    return "" if isinstance(value, str) and value in DATA_TYPES else f"must be one of {' '.join(sorted(DATA_TYPES))}"


def _judged_by(value: object, _: Limits) -> str:
    return "" if value is None or is_id(value) else "must be null or a record id"


def _parents(value: object, limits: Limits) -> str:
    if value == []:
        return ""
    if not isinstance(value, list) or len(value) > limits.parents_count:
        return f"must be a list of at most {limits.parents_count} record ids"
    if not all(is_id(item) for item in value):
        return "must hold record ids: 64 lower-case hex digits"
    return "" if all(a < b for a, b in itertools.pairwise(value)) else "must be ascending, each once"


def _thread(value: object, limits: Limits) -> str:
    is_sound = isinstance(value, str) and 1 <= len(value) <= limits.thread_chars and value.isprintable()
    return "" if is_sound else f"must have 1 to {limits.thread_chars} printable characters"


_RULES: Final = (
    ("act", _act),
    ("actor", _actor),
    ("body", _body),
    ("clock", _clock),
    ("data_type", _data_type),
    ("judged_by", _judged_by),
    ("parents", _parents),
    ("thread", _thread),
)


@lru_cache(maxsize=256)
def _text(value: str) -> bytes:
    """Return the JSON of a signer or a key, which come again and again."""
    return canon.encode(value)
