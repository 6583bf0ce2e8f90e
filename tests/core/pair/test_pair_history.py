"""Each body of a pair's history has its effect once, from the right state, with values of the right form; or none."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from spl.core.identity.did import rotate
from spl.core.keys import SecretKey
from spl.core.pair.pair import PAUSES, PREFIX, RESUMES, Pair, PairError, apply, fold, summary
from spl.core.pair.state import (
    Active,
    Degraded,
    PausedByBoth,
    PausedByPeer,
    PausedByUs,
    Revoking,
    TokenRef,
)
from spl.core.pair.steps import Begin, Degrade, End, Pause, PeerPause, Revoke, Told
from spl.core.when import text_of
from tests.core.pair.test_pair import history
from tests.core.pair_kit import CHAIN, GRANT, KEY, LATER, NOW_MS, PATHS, PROPOSAL, a_manifest, folded

ID = PROPOSAL.pair_id


def pair_at(name: str, **changes: Any) -> Pair:
    pair = folded(history(*PATHS[name]))
    assert pair is not None
    return replace(pair, **changes)


def a_body(pair: Pair, kind: str, **fields: Any) -> dict[str, Any]:
    """Return the pair's next body."""
    return {"kind": f"{PREFIX}{kind}.v1", "pair_id": ID, "step": pair.steps + 1, "at": text_of(NOW_MS), **fields}


def after(pair: Pair, kind: str, **fields: Any) -> Pair:
    return apply(pair, a_body(pair, kind, **fields))


def unused(pair: Pair, kind: str, **fields: Any) -> None:
    """See that a body leaves the very mapping that there was, so that it counts as one that cannot be used."""
    before = {ID: pair}
    assert fold(before, a_body(pair, kind, **fields)) is before


@pytest.mark.parametrize("name", PATHS)
def test_a_body_that_comes_again_changes_nothing(name: str) -> None:
    pairs: Mapping[str, Pair] = {}
    found = history(*PATHS[name])
    for place, body in enumerate(found):
        pairs = fold(pairs, body)
        for earlier in found[: place + 1]:
            assert fold(pairs, earlier) is pairs


@pytest.mark.parametrize("step", [1, 0, -1, True, "9", 9.5, None])
def test_a_step_is_a_number_above_the_last(step: object) -> None:
    pair = pair_at("Active", steps=1)
    unused(pair, "pair_pause", by="us", step=step)
    with pytest.raises(PairError) as caught:
        after(pair, "pair_pause", by="us", step=step)
    assert caught.value.code == "pair-state-conflict"
    assert after(pair, "pair_pause", by="us", step=2).steps == 2


def test_the_first_body_has_a_step_above_zero() -> None:
    first = history(*PATHS["Requested"])[0]
    for step in (0, -1, True, False):
        assert fold({}, {**first, "step": step}) == {}
    assert ID in fold({}, {**first, "step": 1})


def test_a_body_in_the_wrong_state_is_a_conflict() -> None:
    with pytest.raises(PairError) as caught:
        after(pair_at("Active"), "pair_recovered")
    assert caught.value.code == "pair-state-conflict"
    with pytest.raises(PairError) as caught:
        after(pair_at("Active"), "peer_manifest_changed", manifest=a_manifest(at_ms=NOW_MS - 5))
    assert caught.value.code == "pair-state-conflict"


def test_a_new_pair_begins_at_the_start_and_heard_nothing_of_its_peer() -> None:
    for name in ("Requested", "Asked"):
        pair = pair_at(name)
        assert (pair.start_seq, pair.peer_said_ms, pair.created_at_ms) == (0, 0, NOW_MS)
        assert pair.transitions == ()


@pytest.mark.parametrize(("state", "by"), PAUSES)
def test_a_pause_is_by_one_side_and_adds_to_the_other(state: type, by: str) -> None:
    pair = pair_at("Active", state=state("dns") if state is Degraded else state())
    found = after(pair, "pair_pause", by=by, reason="upgrade")
    assert type(found.state) is PAUSES[state, by]
    assert found.reason == "upgrade"


@pytest.mark.parametrize(("state", "by"), RESUMES)
def test_a_resume_takes_back_the_own_pause_alone(state: type, by: str) -> None:
    pair = pair_at("Active", state=state())
    assert type(after(pair, "pair_resume", by=by).state) is RESUMES[state, by]
    for other_state, other in (
        (Active, "us"), (Active, "peer"), (PausedByUs, "peer"), (PausedByPeer, "us"), (PausedByBoth, "nobody"),
    ):  # fmt: skip
        unused(replace(pair, state=other_state()), "pair_resume", by=other)


def test_what_the_peer_said_last_is_kept_and_never_moves_back() -> None:
    pair = pair_at("Active", peer_said_ms=NOW_MS)
    assert after(pair, "pair_pause", by="us").peer_said_ms == NOW_MS
    assert after(pair, "pair_pause", by="peer", said_at=text_of(NOW_MS + 5)).peer_said_ms == NOW_MS + 5
    assert after(pair, "pair_pause", by="peer", said_at=text_of(NOW_MS - 5)).peer_said_ms == NOW_MS


def test_transitions_tell_changes_of_what_people_see_and_no_others() -> None:
    assert pair_at("Waiting").transitions == pair_at("Answered").transitions == ()
    paused = folded(history(*PATHS["Active"], PeerPause(NOW_MS), Pause("upgrade")))
    assert paused is not None
    assert [line[1:] for line in paused.transitions] == [
        ("establishing", "active", ""), ("active", "paused", "paused by peer"), ("paused", "paused", "upgrade"),
    ]  # fmt: skip
    failing = folded(history(*PATHS["Active"], Degrade("dns"), Degrade("dns"), Degrade("timeout")))
    assert failing is not None
    assert [line[2:] for line in failing.transitions[1:]] == [("degraded", "dns"), ("degraded", "timeout")]
    over = folded(history(*PATHS["Active"], Revoke("over"), Told()))
    assert over is not None
    assert [line[2:] for line in over.transitions[1:]] == [("revoked", "over")]
    kept = after(pair_at("Active"), "pair_config", mode="on-demand", at=text_of(NOW_MS + 9))
    assert (kept.transitions, kept.since_ms) == (pair_at("Active").transitions, NOW_MS)


def test_settings_change_one_by_one() -> None:
    pair = pair_at("Active")
    assert (pair.mode, pair.poll_interval_ms, pair.actors, pair.filter.relay) == ("polling", 300_000, (), True)
    assert after(pair, "pair_config", mode="continuous").mode == "continuous"
    assert after(pair, "pair_config", mode="polling", said_at=text_of(NOW_MS + 5)).peer_said_ms == NOW_MS + 5
    assert after(pair, "pair_config", actors=["did:a", "did:b"]).actors == ("did:a", "did:b")
    assert after(pair, "pair_config", poll_interval_ms=0).poll_interval_ms == 0
    assert not after(pair, "pair_config", relay=False).filter.relay
    assert not after(pair, "pair_config", relay="true").filter.relay, "relaying needs a plain true"
    assert after(after(pair, "pair_config", relay=False), "pair_config", relay=True).filter.relay
    assert after(pair, "pair_config", thread_rule="true").filter.thread_rule == "true"
    assert after(pair, "pair_config", thread_allow=["th_a"]).filter.thread_allow == ("th_a",)


@pytest.mark.parametrize("fields", [
    {"mode": "always"}, {"mode": ["polling"]}, {"mode": None}, {"poll_interval_ms": -1}, {"poll_interval_ms": True},
    {"poll_interval_ms": 1.5}, {"poll_interval_ms": "5"}, {"actors": "did:a"}, {"actors": [7]}, {"actors": None},
    {"thread_rule": 7}, {"thread_allow": {}},
])  # fmt: skip
def test_a_setting_of_another_form_changes_nothing(fields: dict[str, Any]) -> None:
    unused(pair_at("Active"), "pair_config", **fields)
    with pytest.raises(PairError) as caught:
        after(pair_at("Active"), "pair_config", **fields)
    assert caught.value.code == "bad-field"


def test_tokens_change_on_the_side_named_and_no_word_stands_for_another() -> None:
    pair, ref = pair_at("Active"), {"token_id": "tok_9", "scopes": ["federation:sync"], "expires_at": text_of(NOW_MS)}
    token = TokenRef("tok_9", ("federation:sync",), NOW_MS, "", NOW_MS)
    to_us = after(pair, "pair_token", change="issued to us", token=ref)
    assert (to_us.issued_to_us, to_us.issued_by_us) == (token, pair.issued_by_us)
    by_us = after(pair, "pair_token", change="issued by us", token=ref)
    assert (by_us.issued_to_us, by_us.issued_by_us) == (pair.issued_to_us, token)
    assert after(pair, "pair_token", change="revoked", reason="over").state == Revoking("over")
    unused(pair, "pair_token", change="issued", token=ref)
    with pytest.raises(PairError) as caught:
        after(pair, "pair_token", change="issued", token=ref)
    assert caught.value.code == "bad-field"


def test_only_a_pin_by_the_operator_replaces_a_chain() -> None:
    pair, thief = pair_at("Active", steps=5), SecretKey(b"\7" * 32)
    once = after(pair, "peer_manifest_changed", manifest=LATER)
    fork = a_manifest(rotate(CHAIN, KEY, thief.public, "retired", NOW_MS), thief, NOW_MS + 5000)
    for pinned in ({}, {"pinned": False}, {"pinned": 1}, {"pinned": "true"}):
        unused(once, "peer_manifest_changed", manifest=fork, **pinned)
    assert after(once, "peer_manifest_changed", manifest=fork, pinned=True).chain.present == thief.public
    other = a_manifest(replace(CHAIN, did=CHAIN.did.replace("bob", "eve")), KEY, NOW_MS + 5000)
    unused(once, "peer_manifest_changed", manifest=other, pinned=True)


def test_a_manifest_of_the_same_moment_is_taken_and_an_earlier_one_is_not() -> None:
    pair = pair_at("Active")
    assert pair.peer.signed_at_ms == NOW_MS
    assert after(pair, "peer_manifest_changed", manifest=a_manifest()).peer == pair.peer
    unused(pair, "peer_manifest_changed", manifest=a_manifest(at_ms=NOW_MS - 1000))


@pytest.mark.parametrize("fields", [
    *({name: value} for name in ("nonce", "start", "endpoint", "sealed", "digest", "url") for value in (7, ["x"])),
    {"pair_id": "pair_x"}, {"nonce": "0" * 31}, {"nonce": "x" * 32}, {"mode": "always"}, {"namespaces": "default"},
    {"actors": None},
])  # fmt: skip
def test_a_request_of_another_form_is_no_pair(fields: dict[str, Any]) -> None:
    first = history(*PATHS["Requested"])[0]
    assert fold({}, {**first, **fields}) == {}
    with pytest.raises((PairError, KeyError)) as caught:
        apply(None, {**first, **fields})
    assert getattr(caught.value, "code", "bad-field") == "bad-field"


def test_a_request_is_strict_unless_it_says_otherwise_in_so_many_words() -> None:
    first = history(*PATHS["Requested"])[0]
    for said, strict in ((True, True), (False, False), (0, True), ("false", True)):
        assert fold({}, {**first, "strict": said})[ID].proposal.strict is strict


@pytest.mark.parametrize("position", [-1, True, 1.5, "7", None])
def test_a_grant_starts_at_a_number_from_zero(position: object) -> None:
    pair = pair_at("Asked")
    token = {"token_id": "tok_9", "scopes": [], "expires_at": text_of(NOW_MS)}
    unused(pair, "pair.genesis", answer=GRANT, token=token, position=position)
    assert after(pair, "pair.genesis", answer=GRANT, token=token, position=0).start_seq == 0


def test_of_a_bare_request_no_token_stays() -> None:
    ended = folded(history(*PATHS["Asked"], End("rejected")))
    assert ended is not None
    assert (ended.proposal.token, ended.issued_to_us) == (TokenRef("", (), 0), None)


def test_the_summary_says_why() -> None:
    begun = history(Begin(PROPOSAL, 300_000), End("rejected", "too early"))
    for bodies, detail in (
        (begun, "rejected: too early"),
        (history(Begin(PROPOSAL, 300_000), End("expired")), "expired"),
        (history(*PATHS["Degraded"]), "dns"),
        (history(*PATHS["Requested"]), "requested"),
        (history(*PATHS["Active"]), ""),
    ):
        pair = folded(bodies)
        assert pair is not None
        assert summary(pair)["state_detail"] == detail
