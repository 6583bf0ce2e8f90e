"""The fold over the pair records: never raises, skips what it cannot use, and says what happened."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.pair.modes import POLL_INTERVAL_MS_MAX
from spl.core.pair.pair import PREFIX, TRANSITIONS_MAX, Pair, PairError, Phase, fold, in_effect, is_by_hand, summary
from spl.core.pair.state import Revoked
from spl.core.pair.steps import Configure, Degrade, End, PairEvent, Recover, Revoke, Told, decide
from spl.core.record.filter import FILTERS_MAX, OPEN
from spl.core.when import text_of
from tests.core.pair_kit import GROWN, LATER, NEXT_KEY, NOW_MS, PATHS, PROPOSAL, a_manifest, bodies, folded


def history(*events: PairEvent) -> list[dict[str, Any]]:
    pair: Pair | None = None
    found = []
    for event in events:
        pair, effects = decide(pair, event, NOW_MS)
        found += bodies(effects)
    return found


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["us", "peer", "revoked"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(PATHS)), st.data())
def test_fold_never_raises_and_damage_changes_nothing_or_what_it_says(name: str, data: st.DataObject) -> None:
    found = history(*PATHS[name]) or history(*PATHS["Active"])
    place = data.draw(st.integers(0, len(found) - 1))
    field = data.draw(st.sampled_from(sorted(found[place])))
    damaged = {**found[place], field: data.draw(JUNK)}
    pairs: Mapping[str, Pair] = {}
    for body in [*found[:place], damaged, *found[place + 1 :]]:
        pairs = fold(pairs, body)
    assert all(isinstance(pair, Pair) for pair in pairs.values())


@given(st.dictionaries(st.sampled_from(["kind", "pair_id", "step", "at", "x"]), JUNK))
def test_what_fold_cannot_use_gives_back_the_same_mapping(body: dict[str, Any]) -> None:
    before = fold({}, history(*PATHS["Requested"])[0])
    assert fold(before, body) is before


def test_short_names_are_accepted() -> None:
    found = history(*PATHS["Active"])
    assert folded([{**body, "kind": body["kind"].removeprefix(PREFIX)} for body in found]) == folded(found)


def test_a_revoked_pair_stays_revoked() -> None:
    over = history(*PATHS["Revoked"])
    more = history(*PATHS["Active"])[1:]
    late = [{**body, "step": body["step"] + 10} for body in more]
    pair = folded([*over, *late])
    assert pair is not None
    assert pair.phase is Phase.REVOKED


def test_transitions_are_bounded_and_tell_the_last() -> None:
    events = [*PATHS["Active"], *(event for _ in range(30) for event in (Degrade("dns"), Recover()))]
    pair = folded(history(*events))
    assert pair is not None
    assert len(pair.transitions) == TRANSITIONS_MAX
    assert pair.transitions[-2:] == ((NOW_MS, "active", "degraded", "dns"), (NOW_MS, "degraded", "active", ""))


def test_responder_sees_maps_from_its_side() -> None:
    asked, begun = folded(history(*PATHS["Approved"])), folded(history(*PATHS["Answered"]))
    assert asked is not None
    assert begun is not None
    assert (begun.maps, asked.maps) == ((("a", "b"),), (("b", "a"),))
    assert begun.namespaces == asked.namespaces == ("default",)
    assert (asked.start, asked.start_seq) == ("present", 7)


def test_a_manifest_of_another_chain_is_not_taken() -> None:
    found = history(*PATHS["Active"])
    strange = {**found[-1], "kind": f"{PREFIX}peer_manifest_changed.v1", "step": 9, "manifest": LATER}
    assert folded([*found, strange]) != folded(found)
    older = {**strange, "step": 10, "manifest": PROPOSAL.manifest}
    assert folded([*found, strange, older]) == folded([*found, strange])


def test_a_manifest_dated_ahead_is_no_floor_for_later_ones() -> None:
    """The peer's clock ran ahead once; what it signs by the right clock is taken, and then the order holds again."""
    ahead = {"manifest": a_manifest(at_ms=NOW_MS + 365 * 86_400_000)}
    changed = {"kind": f"{PREFIX}peer_manifest_changed.v1", "pair_id": PROPOSAL.pair_id, "at": text_of(NOW_MS)}
    found = [*history(*PATHS["Active"]), {**changed, **ahead, "step": 8}]
    right = {**changed, "step": 9, "manifest": LATER}
    pair = folded([*found, right])
    assert pair is not None
    assert pair.peer.signed_at_ms == NOW_MS + 1000
    older = {**changed, "step": 10, "manifest": a_manifest(GROWN, NEXT_KEY, NOW_MS)}
    assert folded([*found, right, older]) == pair


@pytest.mark.parametrize("end", [End("withdrawn"), End("rejected", "no"), End("expired")])
def test_of_a_request_that_ended_unapproved_nothing_stays_that_its_asker_claimed(end: End) -> None:
    asked = folded(history(*PATHS["Asked"]))
    pair = folded(history(*PATHS["Asked"], end))
    assert asked is not None
    assert pair is not None
    assert (pair.pair_id, pair.nonce, pair.peer_did, pair.chain) == (
        asked.pair_id, asked.nonce, asked.peer_did, asked.chain,
    )  # fmt: skip
    assert (pair.reason, pair.created_at_ms) == (end.reason, asked.created_at_ms)
    assert (pair.url, pair.manifest, pair.proposal.sealed) == ("", {}, "")
    assert (pair.namespaces, pair.maps, pair.proposal.namespaces, pair.proposal.maps) == ((), (), (), ())


def test_a_request_of_ours_and_an_agreed_pair_keep_what_they_were() -> None:
    for path in (PATHS["Waiting"], PATHS["Active"], PATHS["Approved"]):
        pair = folded(history(*path, End("rejected")))
        assert pair is not None
        assert pair.url == "https://bob.example"


def test_an_ended_pair_says_whether_our_operator_ended_it() -> None:
    by_us = folded(history(*PATHS["Active"], Revoke("over"), Told()))
    by_peer = folded(history(*PATHS["Active"], End("revoked by peer")))
    assert isinstance(by_us and by_us.state, Revoked)
    assert isinstance(by_peer and by_peer.state, Revoked)
    assert (by_us.state.by_us, by_peer.state.by_us) == (True, False)  # type: ignore[union-attr]


def test_a_poll_interval_of_an_older_version_is_cut_to_one_that_has_a_date() -> None:
    """One of 27,000 years was stored, and each start failed at the time of the next poll."""
    pair = folded(history(*PATHS["Active"], Configure({"poll_interval_ms": 9_999_999 * 86_400_000})))
    assert pair is not None
    assert pair.poll_interval_ms == POLL_INTERVAL_MS_MAX
    assert text_of(NOW_MS + 2 * pair.poll_interval_ms)


@pytest.mark.parametrize(("name", "phase", "allowed"), [
    ("Requested", "establishing", (False, False, False)),
    ("Waiting", "establishing", (False, False, False)),
    ("Asked", "establishing", (False, False, False)),
    ("Answered", "establishing", (True, False, True)),
    ("Approved", "establishing", (True, False, True)),
    ("Active", "active", (True, True, True)),
    ("Degraded", "degraded", (True, True, True)),
    ("PausedByUs", "paused", (True, False, False)),
    ("PausedByPeer", "paused", (True, False, True)),
    ("PausedByBoth", "paused", (True, False, False)),
    ("Revoking", "revoked", (False, False, False)),
    ("Revoked", "revoked", (False, False, False)),
])  # fmt: skip
def test_what_each_state_allows(name: str, phase: str, allowed: tuple[bool, bool, bool]) -> None:
    pair = folded(history(*PATHS[name]))
    assert pair is not None
    assert pair.phase == phase
    assert (pair.live, pair.sync_allowed, pair.serve_allowed) == allowed


def test_summary_is_json_for_people() -> None:
    pair = folded(history(*PATHS["PausedByPeer"]))
    assert pair is not None
    found = summary(pair)
    assert (found["state"], found["state_detail"]) == ("paused", "paused by peer")
    assert found["pair_id"] == PROPOSAL.pair_id
    with pytest.raises(PairError):
        decide(pair, PATHS["Requested"][0], NOW_MS)


def test_the_last_eight_filters_are_remembered_newest_first() -> None:
    """What an earlier filter let through is known by it; one that comes back is the newest again, not a second one."""
    pair = folded(history(*PATHS["Active"]))
    assert pair is not None
    assert pair.filters == (OPEN,)
    for number in range(10):
        pair, _ = decide(pair, Configure({"thread_allow": [f"th_{number}"]}), NOW_MS)
    assert len(pair.filters) == FILTERS_MAX
    assert [item.thread_allow for item in pair.filters] == [(f"th_{number}",) for number in range(9, 1, -1)]
    pair, _ = decide(pair, Configure({"thread_allow": ["th_5"], "mode": "on-demand"}), NOW_MS)
    assert [item.thread_allow[0] for item in pair.filters[:3]] == ["th_5", "th_9", "th_8"]
    assert len(pair.filters) == len(set(pair.filters)) == FILTERS_MAX
    same, _ = decide(pair, Configure({"mode": "polling"}), NOW_MS)
    assert same.filters == pair.filters
    assert same.filter.relay


@pytest.mark.parametrize("change", [{"thread_allow": "th_a"}, {"thread_allow": [7]}, {"thread_rule": None}])
def test_a_damaged_filter_changes_nothing(change: dict[str, object]) -> None:
    pair = folded(history(*PATHS["Active"]))
    assert pair is not None
    body = {**change, "kind": f"{PREFIX}pair_config.v1", "pair_id": pair.pair_id, "step": pair.steps + 1,
            "at": "2026-01-01T00:00:00.000Z"}  # fmt: skip
    before = {pair.pair_id: pair}
    assert fold(before, body) is before


def test_only_our_operator_admits_a_peer_again_whose_last_agreed_pair_had_limits() -> None:
    by_us, by_peer, live, asked, paused, narrowed, still, theirs = (
        folded(history(*PATHS[name], *ends))
        for name, ends in (
            ("Active", (Revoke("over"), Told())),
            ("Active", (End("revoked by peer"),)),
            ("Active", ()),
            ("Asked", (Revoke("over"), Told())),
            ("PausedByUs", (End("revoked by peer"),)),
            ("Active", (Configure({"relay": False}), End("revoked by peer"))),
            ("PausedByUs", ()),
            ("PausedByPeer", (End("revoked by peer"),)),
        )
    )
    revoking = folded(history(*PATHS["Revoking"]))
    assert by_us is not None
    assert by_peer is not None
    assert live is not None
    assert asked is not None
    assert revoking is not None
    assert paused is not None
    assert narrowed is not None
    assert still is not None
    assert theirs is not None
    did = PROPOSAL.manifest["daemon"]["did"]
    for pair, by_hand in (
        (by_us, True), (revoking, True), (paused, True), (narrowed, True), (still, True),
            (live, False), (by_peer, False), (theirs, False),
    ):  # fmt: skip
        assert is_by_hand(pair) is by_hand
        assert in_effect([by_peer, pair, asked], did)[-1] is pair
    assert in_effect([asked], did) == []
    assert in_effect([by_us], "did:sync:instance:somebody") == []


def test_pairs_that_were_never_confirmed_or_ended_before_hide_no_limits_of_the_one_in_use() -> None:
    paused, live, gone, reserve, revoked = (
        folded(history(*PATHS[name], *ends))
        for name, ends in (
            ("PausedByUs", ()),
            ("Active", ()),
            ("Active", (End("superseded"),)),
            ("Approved", (End("revoked by peer"),)),
            ("Approved", (Revoke("over"), Told())),
        )
    )
    assert None not in (paused, live, gone, reserve, revoked)
    did = PROPOSAL.manifest["daemon"]["did"]
    assert in_effect([gone, paused, reserve], did) == [paused, reserve]
    assert in_effect([paused, gone], did) == [paused, gone], "the one that is in use was asked for first"
    assert in_effect([reserve], did) == [reserve]
    assert any(map(is_by_hand, in_effect([live, revoked], did)))
