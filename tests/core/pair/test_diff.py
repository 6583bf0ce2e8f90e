"""Differences between records, sets and histories: only what differs, and every transition that one side lacks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.pair import diff
from spl.core.pair.diff import Gap, Transition

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
