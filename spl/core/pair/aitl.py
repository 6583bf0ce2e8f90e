"""What waits for the operator's decision: a fold over `th_aitl`.

A request names what is asked and the digest of exactly that; a decision answers a request, once.  Of a request that
was not approved only who asked, when, and the decision stay in memory; the records keep the rest.  The oldest are
forgotten beyond REQUESTS_MAX.
"""

from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

from .. import when
from ..errors import SplError
from ..value import Json, dataclass, replace

THREAD: Final = "th_aitl"
KIND_REQUEST: Final = "syncropel.aitl.request.v1"
KIND_DECISION: Final = "syncropel.aitl.decision.v1"
TYPE_PAIR: Final = "federation.pair"
REQUESTS_MAX: Final = 1000  # strangers make them; decided ones go first


class Status(StrEnum):
    """What became of a request; every word but the first is also that of a decision."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """One request as its asker put it; `maps` are (ours, theirs), `peer_did` is who asks."""

    request_id: str
    type: str
    peer_did: str
    words: str
    digest: str
    namespaces: tuple[str, ...]
    maps: tuple[tuple[str, str], ...]
    mode: str
    endpoint: str
    asked_at_ms: int
    expires_at_ms: int
    status: Status = Status.PENDING
    reason: str = ""
    decided_at_ms: int = 0

    def to_body(self) -> Json:
        """Return the record body from which the fold makes this request."""
        return {
            "request_id": self.request_id,
            "type": self.type,
            "from": self.peer_did,
            "words": self.words,
            "digest": self.digest,
            "namespaces": list(self.namespaces),
            "maps": [{"local": local, "peer": peer} for local, peer in self.maps],
            "mode": self.mode,
            "endpoint": self.endpoint,
            "asked_at": when.text_of(self.asked_at_ms),
            "expires_at": when.text_of(self.expires_at_ms),
        }


def request_summary(request: ApprovalRequest) -> Json:
    """Return what `aitl list` shows of a request."""
    body = request.to_body()
    return {
        "object": "aitl_request",
        "id": body.pop("request_id"),
        "kind": body.pop("type"),
        "pair_id": request.request_id,
        **body,
        "status": request.status.value,
        "reason": request.reason,
        "decided_at": when.text_of(request.decided_at_ms) if request.decided_at_ms else None,
    }


def decision_body(request: ApprovalRequest, status: Status, reason: str, now_ms: int) -> Json:
    """Return the record body that decides a request, bound to its digest."""
    return {
        "request_id": request.request_id,
        "decision": status.value,
        "digest": request.digest,
        "reason": reason,
        "at": when.text_of(now_ms),
    }


def fold_requests(requests: Mapping[str, ApprovalRequest], body: Mapping[str, Any]) -> Mapping[str, ApprovalRequest]:
    """Return the requests by id after one record body of `th_aitl`; never raises.

    A body that cannot be used returns the very mapping that was given.  The first request of an id and the first
    decision of a request stand; a decision on another digest than the request's is skipped.
    """
    with suppress(KeyError, TypeError, ValueError, AttributeError, SplError):
        if body["kind"] == KIND_REQUEST and body["request_id"] not in requests:
            request = _request(body)
            return _bounded({**requests, request.request_id: request})
        if body["kind"] == KIND_DECISION:
            request, status = requests[body["request_id"]], Status(body["decision"])
            if request.status is Status.PENDING and body["digest"] == request.digest and status is not Status.PENDING:
                decided = replace(
                    request, status=status, reason=str(body["reason"]), decided_at_ms=when.ms_of(body["at"])
                )
                if status is not Status.APPROVED:
                    decided = replace(decided, namespaces=(), maps=(), endpoint="")
                return {**requests, request.request_id: decided}
    return requests


def _request(body: Mapping[str, Any]) -> ApprovalRequest:
    maps = tuple((item["local"], item["peer"]) for item in body["maps"])
    names = [body[name] for name in ("request_id", "type", "from", "words", "digest")]
    texts = [*names, body["mode"], body["endpoint"], *body["namespaces"], *(name for both in maps for name in both)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text of the request has another type")
    request_id, type_, peer_did, words, digest = names
    return ApprovalRequest(
        request_id, type_, peer_did, words, digest, tuple(body["namespaces"]), maps, body["mode"], body["endpoint"],
        when.ms_of(body["asked_at"]), when.ms_of(body["expires_at"]),
    )  # fmt: skip


def _bounded(requests: dict[str, ApprovalRequest]) -> dict[str, ApprovalRequest]:
    """Return the requests without the oldest decided one when they are too many."""
    if len(requests) > REQUESTS_MAX:
        decided = (name for name, request in requests.items() if request.status is not Status.PENDING)
        requests.pop(next(decided, next(iter(requests))))
    return requests
