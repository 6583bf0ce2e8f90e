"""Requests for the operator: one decision each, on exactly what was asked."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.pair.aitl import (
    KIND_DECISION,
    KIND_REQUEST,
    REQUESTS_MAX,
    TYPE_PAIR,
    ApprovalRequest,
    Status,
    decision_body,
    fold_requests,
    request_summary,
)

REQUEST = ApprovalRequest(
    "pair_0badcafe", TYPE_PAIR, "did:sync:instance:a", "six words", "d" * 64, ("default",), (("a", "b"),), "polling",
    "https://a.example/v1/federation/pair", 1000, 2000,
)  # fmt: skip
ASKED = {"kind": KIND_REQUEST, **REQUEST.to_body()}


def decided(status: Status, digest: str = "d" * 64) -> dict[str, Any]:
    return {"kind": KIND_DECISION, **decision_body(REQUEST, status, "because", 1500), "digest": digest}


def fold_all(*bodies: Mapping[str, Any]) -> Mapping[str, ApprovalRequest]:
    found: Mapping[str, ApprovalRequest] = {}
    for body in bodies:
        found = fold_requests(found, body)
    return found


def test_a_request_comes_back_as_it_was_asked() -> None:
    assert fold_all(ASKED, ASKED) == {REQUEST.request_id: REQUEST}


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PENDING])
def test_the_first_decision_stands(status: Status) -> None:
    found = fold_all(ASKED, decided(status), decided(Status.APPROVED), ASKED)[REQUEST.request_id]
    assert (found.status, found.reason, found.decided_at_ms) == (status, "because", 1500)
    kept = (("default",), (("a", "b"),), REQUEST.endpoint) if status is Status.APPROVED else ((), (), "")
    assert (found.namespaces, found.maps, found.endpoint) == kept, "what was refused needs no memory"


def test_a_decision_on_something_else_is_none() -> None:
    assert fold_all(ASKED, decided(Status.APPROVED, "e" * 64)) == fold_all(ASKED)
    assert fold_all(ASKED, decided(Status.PENDING)) == fold_all(ASKED)
    assert fold_all(decided(Status.APPROVED)) == {}


@given(st.sampled_from(sorted(ASKED)), st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=2))
def test_damage_is_skipped(field: str, value: object) -> None:
    found = fold_all({**ASKED, field: value})
    assert all(isinstance(request, ApprovalRequest) for request in found.values())


@pytest.mark.parametrize("value", [None, 7, 1.5, True, {}, [7], [None]], ids=repr)
def test_a_request_with_a_member_of_another_type_is_none(value: object) -> None:
    for name in sorted(REQUEST.to_body()):
        if name not in ("namespaces", "maps"):
            assert fold_all({**ASKED, name: value}) == {}, name
    for name in ("namespaces", "maps"):
        assert fold_all({**ASKED, name: [value]}) == {}, name
    for both in ({"local": value, "peer": "b"}, {"local": "a", "peer": value}, {"local": "a"}):
        assert fold_all({**ASKED, "maps": [both]}) == {}, both


def test_a_body_of_another_kind_is_none() -> None:
    requests = fold_all(ASKED)
    for other in ({**ASKED, "kind": "other", "request_id": "x"}, {**decided(Status.APPROVED), "kind": "other"}):
        assert fold_requests(requests, other) is requests


def test_memory_is_bounded_and_what_waits_is_kept() -> None:
    found = fold_all(ASKED, decided(Status.REJECTED))
    for number in range(REQUESTS_MAX):
        found = fold_requests(found, {**ASKED, "request_id": f"pair_{number:08x}"})
    assert len(found) == REQUESTS_MAX
    assert REQUEST.request_id not in found
    found = fold_requests(found, {**ASKED, "request_id": "pair_ffffffff"})
    assert (len(found), next(iter(found))) == (REQUESTS_MAX, "pair_00000001"), "where none is decided, the oldest goes"


def test_summary_names_what_people_need() -> None:
    found = request_summary(REQUEST)
    assert (found["object"], found["id"], found["from"]) == ("aitl_request", "pair_0badcafe", "did:sync:instance:a")
    assert (found["status"], found["decided_at"]) == ("pending", None)
