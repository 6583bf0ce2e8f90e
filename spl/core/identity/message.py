"""Signed messages that two instances exchange outside the manifest.

A message travels as `{"message": fields, "signature": base64}`; the signature is Ed25519 over
`syncropel-<purpose>-v1` NUL the canonical JSON of the fields, so one made for one purpose never serves another.
Fields always name signer, audience, pair_id, issued_at and nonce; an answer adds `request_digest` and `status`.
The receiver checks in this order: `unwrap` (form) → `verify` under the signer's present key → `check_audience` →
`check_times` → the caller remembers the nonce.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from .. import canon, keys, when
from ..errors import SplError
from ..keys import KeyFault, SecretKey
from ..limits import Limits
from ..value import Json
from .did import is_instance_did

PURPOSES: Final = frozenset(
    "pair-request pair-answer pair-poll pair-confirm notify-revoke pair-state consent renew log".split()
)
HEAD: Final = ("signer", "audience", "pair_id", "issued_at", "nonce")
ANSWER: Final = ("request_digest", "status")

_PAIR_ID: Final = re.compile(r"pair_[0-9a-f]{8}\Z")
_NONCE: Final = re.compile(r"[0-9a-f]{32}\Z")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


class MessageError(SplError):
    """A signed message that is malformed, forged, late, or meant for another instance.

    Codes: message-malformed, message-signature, message-audience, clock-skew (with our time as fact `time`).
    """


def head(signer: str, audience: str, pair_id: str, issued_at_ms: int, nonce: str) -> Json:
    """Return the fields that every message has; add the purpose's own ones to it."""
    return {
        "signer": signer,
        "audience": audience,
        "pair_id": pair_id,
        "issued_at": when.text_of(issued_at_ms),
        "nonce": nonce,
    }


def answer_head(request: Mapping[str, Any], status: int, issued_at_ms: int, nonce: str) -> Json:
    """Return the fields that every answer to `request` (verified fields) has, its audience being the asker."""
    fields = head(request["audience"], request["signer"], request["pair_id"], issued_at_ms, nonce)
    return {**fields, "request_digest": digest(request), "status": status}


def sign(purpose: str, fields: Mapping[str, object], key: SecretKey) -> Json:
    """Return {"message": fields, "signature": base64} for one of PURPOSES."""
    return {"message": dict(fields), "signature": keys.b64(key.sign(_signed_text(purpose, fields)))}


def unwrap(value: object) -> dict[str, Any]:
    """Return the fields of a decoded message; only their form is checked, nothing is verified yet.

    Raises MessageError "message-malformed" naming what is wrong.
    """
    if not isinstance(value, dict) or value.keys() != {"message", "signature"}:
        raise MessageError("message-malformed", "a signed message has the members message and signature")
    fields = value["message"]
    if not isinstance(fields, dict):
        raise MessageError("message-malformed", "message is a JSON object")
    for name in HEAD:
        if name not in fields:
            raise MessageError("message-malformed", f"field {name!r} is missing")
    if not (is_instance_did(fields["signer"]) and is_instance_did(fields["audience"])):
        raise MessageError("message-malformed", "signer and audience are instance DIDs")
    if not is_pair_id(fields["pair_id"]):
        raise MessageError("message-malformed", "pair_id is pair_ and 8 hex digits")
    if not is_nonce(fields["nonce"]):
        raise MessageError("message-malformed", "nonce is 32 hex digits")
    issued_at_ms(fields)
    return fields


def verify(purpose: str, value: object, public: bytes) -> dict[str, Any]:
    """Return the fields of a decoded message once its signature holds under this key for this purpose.

    Raises MessageError "message-malformed", "message-signature".
    """
    fields = unwrap(value)
    assert isinstance(value, dict)
    try:
        signature = keys.unb64(value["signature"], keys.SIGNATURE_BYTES)
    except KeyFault as exc:
        raise MessageError("message-malformed", "signature is base64") from exc
    if not keys.verify(public, _signed_text(purpose, fields), signature):
        raise MessageError("message-signature", f"the {purpose} signature is not that of {fields['signer']}")
    return fields


def verify_any(purpose: str, value: object, publics: Sequence[bytes]) -> dict[str, Any]:
    """Return the fields once the signature holds under one of these keys; raise as `verify`, for the first of them."""
    for public in publics[1:]:
        with suppress(MessageError):
            return verify(purpose, value, public)
    return verify(purpose, value, publics[0])


def check_audience(fields: Mapping[str, Any], did: str) -> None:
    """Raise MessageError "message-audience" unless the message is addressed to this DID."""
    if fields["audience"] != did:
        raise MessageError("message-audience", f"the message is addressed to {fields['audience']}")


def check_times(fields: Mapping[str, Any], now_ms: int, limits: Limits) -> None:
    """Raise MessageError "clock-skew" unless issued_at is within ±5 min of our clock.

    The error has our time as fact `time`, by which the sender can correct its own.
    """
    off_ms = issued_at_ms(fields) - now_ms
    if abs(off_ms) > limits.message_age_s * 1000:
        side = "ahead of" if off_ms > 0 else "behind"
        raise MessageError(
            "clock-skew", f"the message is {abs(off_ms) // 1000} s {side} our clock", time=when.text_of(now_ms)
        )


def check_answer(answer: Mapping[str, Any], request: Mapping[str, Any]) -> int:
    """Return the status of a verified answer that belongs to exactly this request of ours.

    An answer is bound to its request by digest, so neither its time nor its nonce needs memory.
    Raises MessageError "message-audience" or "message-malformed".
    """
    if answer["signer"] != request["audience"] or answer["audience"] != request["signer"]:
        raise MessageError("message-audience", "the answer is not from the instance we asked, to us")
    found, status = answer.get("request_digest"), answer.get("status")
    if not isinstance(found, str) or not _DIGEST.match(found) or type(status) is not int or not 100 <= status <= 599:
        raise MessageError("message-malformed", "an answer has request_digest and status")
    if answer["pair_id"] != request["pair_id"] or found != digest(request):
        raise MessageError("message-audience", "the answer belongs to another request")
    return status


def digest(fields: Mapping[str, object]) -> str:
    """Return the hex SHA-256 of the fields' canonical JSON."""
    return keys.digest(canon.encode(dict(fields)))


def issued_at_ms(fields: Mapping[str, Any]) -> int:
    """Return the message's own time in Unix ms; raise MessageError "message-malformed"."""
    try:
        return when.ms_of(fields["issued_at"])
    except when.WhenError as exc:
        raise MessageError("message-malformed", "issued_at is an RFC 3339 UTC time") from exc


def is_pair_id(text: object) -> bool:
    """Return whether the text has the form of a pair id."""
    return isinstance(text, str) and _PAIR_ID.match(text) is not None


def is_nonce(text: object) -> bool:
    """Return whether the text is 16 bytes in lower-case hex."""
    return isinstance(text, str) and _NONCE.match(text) is not None


def _signed_text(purpose: str, fields: Mapping[str, object]) -> bytes:
    assert purpose in PURPOSES
    return f"syncropel-{purpose}-v1\0".encode() + canon.encode(dict(fields))
