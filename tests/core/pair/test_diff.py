"""Differences between records, sets and histories: only what differs, and every transition that one side lacks."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.identity.did import Chain, did_of
from spl.core.pair import diff
from spl.core.pair.diff import Gap, Transition
from spl.core.pair.pair import Pair
from spl.core.pair.steps import (
    Begin,
    Configure,
    Confirm,
    Degrade,
    PairEvent,
    Park,
    Pause,
    PeerPause,
    PeerResume,
    Recover,
    Resume,
    Revoke,
    Told,
    decide,
)
from spl.core.value import replace
from tests.core.pair_kit import EVENTS as KNOWN
from tests.core.pair_kit import NEXT_KEY, NOW_MS, PEER, PROPOSAL, a_manifest, bodies

EVENTS = st.lists(
    st.sampled_from(["request", "agreement", "activation", "pause by a", "resume by a", "end", ""]), max_size=12
)


def step(event: str, n: int = 0) -> Transition:
    return Transition(f"{n:064x}", "k.v1", "2026-11-23T06:00:00.000Z", "did:a", "", "active", event)


def a_record(**more: Any) -> dict[str, Any]:
    return {"id": "0" * 64, "thread": "th", "actor": "did:a", "act": "DO", "body": {"x": {"y": 1}}, "clock": 0,
            "data_type": "SCALAR", "judged_by": None, "parents": [], **more}  # fmt: skip


@given(EVENTS)
def test_a_history_agrees_with_itself(events: list[str]) -> None:
    side = [step(event, n) for n, event in enumerate(events)]
    assert diff.gaps(side, side) == []


@given(EVENTS, st.data())
def test_what_is_taken_away_is_found(events: list[str], data: st.DataObject) -> None:
    """As many gaps as shared transitions were dropped, all of them on the side that still has them."""
    side = [step(event, n) for n, event in enumerate(events)]
    kept = [item for item in side if data.draw(st.booleans())]
    found = diff.gaps(side, kept)
    shared = [item for item in side if item.event]
    assert len(found) == len(shared) - len([item for item in kept if item.event])
    assert all(gap.side == 0 for gap in found)
    assert [gap.side for gap in diff.gaps(kept, side)] == [1] * len(found)


def shared_most(a: list[str], b: list[str]) -> int:
    """Return the length of the longest sequence that both have, by definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + shared_most(a[1:], b[1:])
    return max(shared_most(a[1:], b), shared_most(a, b[1:]))


@example(list("bbab"), list("aab"))
@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_the_gaps_are_as_few_as_explain_the_difference_and_in_order(one: list[str], other: list[str]) -> None:
    sides = [[step(event, n) for n, event in enumerate(events)] for events in (one, other)]
    found = diff.gaps(*sides)
    assert len(found) == len(one) + len(other) - 2 * shared_most(one, other)
    for side, items in enumerate(sides):
        lacking = [gap.transition for gap in found if gap.side == side]
        assert lacking == [item for item in items if item in lacking]
    left = [[item.event for item in items if Gap(side, item) not in found] for side, items in enumerate(sides)]
    assert left[0] == left[1]


def test_own_affairs_are_never_missed() -> None:
    assert diff.gaps([step("request"), step(""), step("end", 2)], [step("request"), step("end")]) == []
    assert diff.gaps([step("request")], []) == [Gap(0, step("request"))]


def test_fields_name_the_path_and_both_values() -> None:
    assert diff.fields(a_record(), a_record()) == []
    found = diff.fields(a_record(clock=1), a_record(body={"x": {"y": 2}, "z": [1]}))
    assert [(item.path, item.values) for item in found] == [
        ("body.x.y", ("1", "2")), ("body.z", (None, "[1]")), ("clock", ("1", "0"))
    ]  # fmt: skip
    assert diff.fields({"a": 1}, {"a": True})
    assert diff.fields({"a": None}, {}) == [diff.Field("a", ("null", None))]
    assert diff.fields({}, {"a": None}) == [diff.Field("a", (None, "null"))]
    assert diff.fields({"a": {"b": 1}}, {"a": [1]}) == [diff.Field("a", ('{"b":1}', "[1]"))]
    assert diff.fields({"a": 1}, {"a": {"b": 1}}) == [diff.Field("a", ("1", '{"b":1}'))]


def test_content_is_the_same_in_another_thread() -> None:
    one, other = a_record(), a_record(id="1" * 64, thread="other", parents=["2" * 64])
    assert diff.content_key(one, anywhere=True) == diff.content_key(other, anywhere=True)
    assert diff.content_key(one, anywhere=False) != diff.content_key(other, anywhere=False)
    assert diff.content_key(one, anywhere=True) != diff.content_key(a_record(clock=1), anywhere=True)


def test_damaged_bodies_are_passed_over() -> None:
    bad = [a_record(thread=diff.THREAD_PAIRS, body={"pair_id": "pair_00000001", **more})
           for more in ({}, {"kind": 7}, {"kind": "pair_pause.v1"}, {"kind": "pair_init.v1", "step": 1})]  # fmt: skip
    assert diff.history(bad, "pair_00000001") == []
    assert diff.peers(bad) == {}
    assert diff.pair_id_of(a_record(body={"pair_id": "pair_00000001"})) == ""
    assert diff.pair_id_of(a_record(thread=diff.THREAD_PAIRS, body={"pair_id": 7})) == ""
    assert diff.pair_id_of(bad[0]) == "pair_00000001"


@pytest.mark.parametrize(
    "value",
    [None, {}, [1], [{}], [{**step("end").to_json(), "id": "x"}], [{**step("end").to_json(), "more": ""}],
     [{**step("end").to_json(), "by": 1}], [{**step("end").to_json(), "state": "x" * 257}],
     [step("").to_json()] * 1001],
)  # fmt: skip
def test_a_peers_history_is_bounded_and_typed(value: object) -> None:
    with pytest.raises(SplError) as caught:
        diff.transitions_from_json(value)
    assert caught.value.code == "answer-malformed"


def test_a_history_reads_back() -> None:
    assert diff.transitions_from_json([step("end", 7).to_json()]) == [step("end", 7)]
    longest = replace(step("end", 7), state="x" * diff.TEXT_CHARS_MAX)
    assert diff.transitions_from_json([longest.to_json()] * diff.TRANSITIONS_MAX) == [longest] * diff.TRANSITIONS_MAX


def records_of(*events: PairEvent) -> list[dict[str, Any]]:
    """Return the records of the pair log that these events of one pair write, each with an id of its own."""
    pair: Pair | None = None
    found: list[dict[str, Any]] = []
    for event in events:
        pair, effects = decide(pair, event, NOW_MS)
        found += [a_record(thread=diff.THREAD_PAIRS, body=body) for body in bodies(effects)]
    return [{**each, "id": f"{n:064x}", "clock": n} for n, each in enumerate(found)]


def test_a_history_tells_each_step_as_people_and_the_other_side_read_it() -> None:
    found = records_of(
        KNOWN[0], Park(), KNOWN[3], Confirm(), Pause("upgrade"), Resume(), PeerPause(NOW_MS), PeerResume(NOW_MS + 1),
        Degrade("timeout"), Recover(), Configure({"mode": "on-demand"}), Revoke("x" * 300), Told(),
    )  # fmt: skip
    told = diff.history([*reversed(found), found[0], a_record()], PROPOSAL.pair_id)
    assert [(each.event, each.state, each.by) for each in told] == [
        ("request", "establishing: requested", ""),
        ("", "establishing: waiting for approval by the peer", ""),
        ("agreement", "establishing: confirming", ""),
        ("activation", "active", ""),
        ("pause by did:a", "paused", "did:a"),
        ("resume by did:a", "active", "did:a"),
        (f"pause by {PEER}", "paused: paused by peer", PEER),
        (f"resume by {PEER}", "active", PEER),
        ("", "degraded: timeout", ""),
        ("", "active", ""),
        ("", "active", ""),
        ("", "revoked: telling the peer", ""),
        ("end", ("revoked: " + "x" * 300)[: diff.TEXT_CHARS_MAX], ""),
    ]
    assert [each.id for each in told] == [each["id"] for each in found]
    assert diff.transitions_from_json([each.to_json() for each in told]) == told
    assert diff.history(found, "pair_00000001") == []


def test_a_request_of_the_peer_is_the_request_of_the_history() -> None:
    told = diff.history(records_of(KNOWN[1], KNOWN[4], Confirm("")), PROPOSAL.pair_id)
    assert [each.event for each in told] == ["request", "agreement", "activation"]


def test_the_peer_of_a_pair_is_the_one_that_it_began_with() -> None:
    mallory = Chain(did_of("mallory", NEXT_KEY.public), NEXT_KEY.public)
    again = records_of(Begin(replace(PROPOSAL, manifest=a_manifest(mallory, NEXT_KEY)), 1000))
    assert diff.peers(again) == {PROPOSAL.pair_id: mallory.did}
    assert diff.peers([a_record(), *records_of(*KNOWN[0:1], KNOWN[3]), *again]) == {PROPOSAL.pair_id: PEER}
