"""The table of the pair machine: total, and in step with the fold."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.pair.pair import PREFIX, Pair, PairError, Phase, fold
from spl.core.pair.steps import (
    STEPS,
    Append,
    Audit,
    Confirm,
    DropSecrets,
    End,
    EndOthers,
    FirstSync,
    KillTokens,
    ManifestChange,
    Mint,
    PairEvent,
    Pause,
    PeerPause,
    PeerResume,
    Resume,
    Resync,
    Revoke,
    TellPeer,
    TokenChange,
    decide,
)
from tests.core.pair_kit import EVENTS, LATER, NOW_MS, OTHER_TOKEN, PATHS, PROPOSAL, bodies, folded


def walk(events: tuple[PairEvent, ...]) -> Pair | None:
    pair: Pair | None = None
    for event in events:
        pair, _ = decide(pair, event, NOW_MS)
    return pair


def test_the_events_of_this_test_are_all_there_are() -> None:
    assert {type(event) for event in EVENTS} == set(PairEvent.__args__)  # type: ignore[attr-defined]
    assert {type(pair.state).__name__ if (pair := walk(path)) else "none" for path in PATHS.values()} == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_decide_is_total(name: str) -> None:
    """Each (state, event) cell moves, or refuses with exactly one code."""
    pair = walk(PATHS[name])
    for event in EVENTS:
        cell = (type(None if pair is None else pair.state), type(event))
        try:
            after, effects = decide(pair, event, NOW_MS + 5)
        except PairError as exc:
            assert cell not in STEPS, cell
            assert exc.code == "pair-state-conflict"
        else:
            assert cell in STEPS, cell
            assert after.steps == (pair.steps if pair else 0) + 1
            assert isinstance(effects[0], Append)
            assert isinstance(effects[1], Audit)


LEGAL = {
    "none": "Begin Ask",
    "Requested": "Park Agree ManifestChange Revoke End",
    "Waiting": "Agree ManifestChange Revoke End",
    "Answered": "Confirm ManifestChange Revoke End",
    "Asked": "Approve Revoke End",
    "Approved": "Confirm ManifestChange Revoke End",
    "Active": "Pause PeerPause Degrade Configure ManifestChange TokenChange Revoke End",
    "Degraded": "Pause PeerPause Degrade Recover Configure ManifestChange TokenChange Revoke End",
    "PausedByUs": "Resume PeerPause Configure ManifestChange TokenChange Revoke End",
    "PausedByPeer": "Pause PeerResume Configure ManifestChange TokenChange Revoke End",
    "PausedByBoth": "Resume PeerResume Configure ManifestChange TokenChange Revoke End",
    "Revoking": "Told End",
    "Revoked": "",
}


@pytest.mark.parametrize("name", PATHS)
def test_each_state_knows_these_events_and_no_others(name: str) -> None:
    pair = walk(PATHS[name])
    state = type(None if pair is None else pair.state)
    assert {event.__name__ for known, event in STEPS if known is state} == set(LEGAL[name].split())


def test_what_a_peer_said_last_is_kept() -> None:
    paused = walk((*PATHS["Active"], EVENTS[8]))
    resumed = walk((*PATHS["Active"], *EVENTS[8:10]))
    assert paused is not None
    assert resumed is not None
    assert (paused.peer_said_ms, resumed.peer_said_ms) == (NOW_MS, NOW_MS + 1)


def test_every_row_of_the_table_has_a_state_that_reaches_it() -> None:
    states = {type(pair.state) if (pair := walk(path)) else type(None) for path in PATHS.values()}
    assert {state for state, _ in STEPS} <= states
    assert {event for _, event in STEPS} == set(PairEvent.__args__)  # type: ignore[attr-defined]


@given(st.lists(st.sampled_from(EVENTS), max_size=25), st.data())
def test_folding_what_decide_emitted_gives_what_it_returned(events: list[PairEvent], data: st.DataObject) -> None:
    """Whatever happens in whatever order, refused or not, the records tell the same pair, duplicates or not."""
    pair: Pair | None = None
    kept: list[dict[str, Any]] = []
    for at_ms, event in enumerate(events, NOW_MS):
        try:
            pair, effects = decide(pair, event, at_ms)
        except PairError:
            continue
        kept += bodies(effects)
    assert folded(kept) == pair
    again = data.draw(st.lists(st.sampled_from(kept), max_size=5)) if kept else []
    assert folded([*kept, *again]) == pair
    doubled = [body for body in kept for _ in range(2)]
    assert folded(doubled) == pair


def test_equal_inputs_give_equal_outputs() -> None:
    for path, event in itertools.product(PATHS.values(), EVENTS):
        outcomes = []
        for _ in range(2):
            try:
                outcomes.append(decide(walk(path), event, NOW_MS))
            except PairError as exc:
                outcomes.append(exc.message)  # type: ignore[arg-type]
        assert outcomes[0] == outcomes[1]


def test_our_token_is_minted_by_the_genesis_and_not_before() -> None:
    for first, second in ((EVENTS[0], EVENTS[3]), (EVENTS[1], EVENTS[4])):
        pair, effects = decide(None, first, NOW_MS)
        assert not any(isinstance(effect, Mint) for effect in effects)
        assert not pair.live
        pair, effects = decide(pair, second, NOW_MS)
        assert [effect.namespaces for effect in effects if isinstance(effect, Mint)] == [("default",)]
        assert pair.live


def test_effects_of_the_steps_that_have_some() -> None:
    def kinds(name: str, event: PairEvent) -> set[type]:
        return {type(effect) for effect in decide(walk(PATHS[name]), event, NOW_MS)[1][2:]}

    confirm, pause, resume, revoke, end = EVENTS[5], EVENTS[6], EVENTS[7], EVENTS[16], EVENTS[18]
    assert kinds("Approved", confirm) == {EndOthers, FirstSync}
    assert kinds("Active", pause) == {TellPeer}
    assert kinds("PausedByUs", resume) == {TellPeer, Resync}
    assert kinds("PausedByPeer", EVENTS[9]) == {Resync}
    assert (kinds("PausedByBoth", resume), kinds("PausedByBoth", EVENTS[9])) == ({TellPeer}, set())
    assert kinds("Degraded", revoke) == {KillTokens, DropSecrets, TellPeer}
    assert kinds("PausedByPeer", end) == {KillTokens, DropSecrets}


def test_people_read_what_a_step_changed_and_why() -> None:
    def told(name: str, event: PairEvent) -> tuple[str, str]:
        [audit] = [each for each in decide(walk(PATHS[name]), event, NOW_MS)[1] if isinstance(each, Audit)]
        return audit.transition, audit.reason

    assert told("none", EVENTS[0]) == ("none -> establishing", "")
    assert told("Requested", EVENTS[2]) == ("establishing -> establishing", ""), "another state of the same phase"
    assert told("Answered", EVENTS[5]) == ("establishing -> active", "")
    assert told("Active", EVENTS[6]) == ("active -> paused", "upgrade")
    assert told("Active", EVENTS[10]) == ("active -> degraded", "timeout")
    assert told("Degraded", EVENTS[10]) == ("pair_degraded.v1", "timeout"), "no other state"
    assert told("Active", EVENTS[12]) == ("pair_config.v1", "")
    assert told("Active", EVENTS[13]) == ("peer_manifest_changed.v1", "")


def test_a_new_token_of_ours_is_minted_unless_it_is_known() -> None:
    def minted(event: PairEvent) -> list[Mint]:
        return [each for each in decide(walk(PATHS["Active"]), event, NOW_MS)[1] if isinstance(each, Mint)]

    assert minted(TokenChange(True, OTHER_TOKEN)) == [Mint(OTHER_TOKEN, ("default",))]
    assert minted(TokenChange(True, OTHER_TOKEN, minted=True)) == []
    assert minted(TokenChange(False, OTHER_TOKEN)) == []


def test_what_the_records_of_a_step_say() -> None:
    def body(name: str, event: PairEvent) -> dict[str, Any]:
        return bodies(decide(walk(PATHS[name]), event, NOW_MS)[1])[0]

    ends = {name: body(name, End("expired", "too late")) for name in PATHS if name not in ("none", "Revoked")}
    assert {name for name, each in ends.items() if each["kind"] == f"{PREFIX}pair_rejected.v1"} == {
        "Requested", "Waiting", "Answered", "Asked", "Approved",
    }  # fmt: skip
    assert {each["kind"] for each in ends.values()} == {f"{PREFIX}pair_rejected.v1", f"{PREFIX}pair.revoke.v1"}
    assert all((each["reason"], each["note"]) == ("expired", "too late") for each in ends.values())
    assert "pinned" not in body("Active", ManifestChange(LATER))
    assert body("Active", ManifestChange(LATER, pinned=True))["pinned"] is True
    assert body("Active", Revoke("over"))["change"] == "revoked"
    assert body("Active", Pause("upgrade"))["by"] == body("PausedByUs", Resume())["by"] == "us"
    assert body("Active", PeerPause(1))["by"] == body("PausedByPeer", PeerResume(2))["by"] == "peer"
    confirmed = [body("Answered", Confirm(inherits)) for inherits in ("", "pair_00000000")]
    assert [each.get("inherits") for each in confirmed] == [None, "pair_00000000"]


def test_a_revoked_pair_is_dead_before_the_peer_is_told() -> None:
    pair = walk(PATHS["Revoking"])
    assert pair is not None
    assert (pair.phase, pair.live, pair.sync_allowed, pair.serve_allowed) == (Phase.REVOKED, False, False, False)


def test_a_changed_manifest_extends_the_pinned_chain() -> None:
    pair = walk((*PATHS["Active"], EVENTS[13]))
    assert pair is not None
    assert len(pair.chain.rotations) == 1
    with pytest.raises(Exception, match="shorter key chain"):
        decide(pair, type(EVENTS[13])(PROPOSAL.manifest), NOW_MS)


def test_all_that_fold_takes_a_step_brings() -> None:
    """Nothing is folded that decide cannot emit: every kind of record is emitted by some step."""
    emitted = set()
    for path, event in itertools.product(PATHS.values(), EVENTS):
        try:
            _, effects = decide(walk(path), event, NOW_MS)
        except PairError:
            continue
        emitted |= {effect.kind for effect in effects if isinstance(effect, Append)}
    assert emitted == {
        f"syncropel.federation.{name}.v1"
        for name in (
            "pair_init", "pair_pending", "pair.genesis", "pair_active", "pair_config", "pair_pause", "pair_resume",
            "pair_degraded", "pair_recovered", "peer_manifest_changed", "pair_token", "pair.revoke", "pair_rejected",
        )
    }  # fmt: skip
    assert fold({}, {"kind": "syncropel.federation.pair_init.v1"}) == {}
