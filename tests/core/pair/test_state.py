"""The values of a pair: what each state allows and says, when a token is renewed, maps as they travel."""

import pytest

from spl.core.pair.state import (
    Pair,
    PairError,
    Revoked,
    TokenRef,
    known,
    maps_from_json,
    maps_to_json,
    refusal_code,
    resuming,
)
from spl.core.pair.steps import End, Pause, PeerPause, Revoke, Told, decide
from spl.core.record.filter import OPEN
from spl.core.value import replace
from tests.core.pair_kit import CHAIN, EVENTS, GRANT, MANIFEST, NOW_MS, PATHS, PROPOSAL

ID = PROPOSAL.pair_id
DAY_MS = 86_400_000
WAITS, RESUMES = f"spl wait pair {ID} --state active", f"spl federation resume {ID}"


def a_pair(*events: object) -> Pair:
    pair: Pair | None = None
    for event in events:
        pair, _ = decide(pair, event, NOW_MS)  # type: ignore[arg-type]
    assert pair is not None
    return pair


@pytest.mark.parametrize(("name", "phase", "allows", "paused_by", "refusal", "fix"), [
    ("Requested", "establishing", "", "", "pair-state-conflict", WAITS),
    ("Waiting", "establishing", "", "", "pair-state-conflict", WAITS),
    ("Answered", "establishing", "live serves", "", "pair-state-conflict", WAITS),
    ("Asked", "establishing", "", "", "pair-state-conflict", f"spl aitl approve {ID}"),
    ("Approved", "establishing", "live serves", "", "pair-state-conflict", WAITS),
    ("Active", "active", "live syncs serves", "", "pair-state-conflict", ""),
    ("PausedByUs", "paused", "live", "us", "pair-paused", RESUMES),
    ("PausedByPeer", "paused", "live serves", "peer", "pair-paused", f"on bob: {RESUMES}"),
    ("PausedByBoth", "paused", "live", "both", "pair-paused", RESUMES),
    ("Degraded", "degraded", "live syncs serves", "", "pair-state-conflict", ""),
    ("Revoking", "revoked", "", "", "pair-revoked", ""),
    ("Revoked", "revoked", "", "", "pair-revoked", ""),
])  # fmt: skip
def test_what_a_state_allows_and_what_it_waits_for(
    name: str, phase: str, allows: str, paused_by: str, refusal: str, fix: str
) -> None:
    pair = a_pair(*PATHS[name])
    said = {"live": pair.live, "syncs": pair.sync_allowed, "serves": pair.serve_allowed}
    assert [word for word, holds in said.items() if holds] == allows.split()
    assert (pair.phase, pair.paused_by, refusal_code(pair)) == (phase, paused_by, refusal)
    assert resuming(pair) == fix
    assert pair.ended is (phase == "revoked")


def test_who_ended_a_pair_is_kept() -> None:
    active = PATHS["Active"]
    assert (Revoked().by_us, Revoked().paused_by_us) == (False, False)
    assert a_pair(*active, Revoke("over")).ended_by_us
    assert a_pair(*active, Revoke("over"), Told()).ended_by_us
    assert not a_pair(*active, End("revoked")).ended_by_us
    assert not a_pair(*active).ended_by_us
    for events, paused in (((Pause(),), True), ((PeerPause(1),), False), ((PeerPause(1), Pause()), True), ((), False)):
        ended = a_pair(*PATHS["Approved"], EVENTS[5], *events, End("revoked")).state
        assert (ended.by_us, ended.paused_by_us) == (False, paused)  # type: ignore[attr-defined]


def test_a_pair_says_what_was_agreed() -> None:
    assert a_pair(*PATHS["Requested"]).answered == {}
    active = a_pair(*PATHS["Active"])
    assert active.answered == GRANT["message"]
    assert active.filter == OPEN
    narrowed = a_pair(*PATHS["Active"], EVENTS[19])
    assert narrowed.filter.thread_allow == ("th_a",)
    assert narrowed.filters[1:] == (OPEN,)
    assert PROPOSAL.to_json()["strict"] is True
    assert (active.nonce, active.url, active.manifest) == (PROPOSAL.nonce, "https://bob.example", MANIFEST)
    assert (active.chain, active.reason, a_pair(*PATHS["Degraded"]).reason) == (CHAIN, "", "dns")
    assert known({ID: active}, ID) is active
    with pytest.raises(PairError) as caught:
        known({}, ID)
    assert caught.value.code == "pair-unknown"


def test_a_token_is_renewed_in_time_whatever_its_life() -> None:
    """A week before its end; of one that lives for less than twelve weeks, after 11/12 of its life."""
    token = TokenRef("tok_1", (), NOW_MS + 90 * DAY_MS, since_ms=NOW_MS)
    assert token.renew_at_ms(7 * 86_400) == NOW_MS + 83 * DAY_MS
    assert token.renew_at_ms(0.001) == token.expires_at_ms - 1
    short = replace(token, expires_at_ms=NOW_MS + 12 * DAY_MS)
    assert short.renew_at_ms(7 * 86_400) == NOW_MS + 11 * DAY_MS
    assert replace(token, expires_at_ms=NOW_MS - DAY_MS).renew_at_ms(7 * 86_400) == NOW_MS - DAY_MS
    assert TokenRef("tok_1", (), 12).renew_at_ms(7 * 86_400) == 11


def test_maps_travel_as_objects() -> None:
    maps = (("music", "projects/music"), ("a", "b"))
    assert maps_from_json(maps_to_json(maps)) == maps


@pytest.mark.parametrize("value", [
    None, {}, [1], [{}], [{"local": "a"}], [{"local": "a", "peer": 1}], [{"local": 1, "peer": "a"}],
    [{"local": "a", "peer": "b", "more": "c"}], "maps",
])  # fmt: skip
def test_other_forms_of_maps_are_refused(value: object) -> None:
    with pytest.raises(PairError) as caught:
        maps_from_json(value)
    assert caught.value.code == "bad-field"
