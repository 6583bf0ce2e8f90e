"""When a peer is said to be silent, and in which direction, from the times at which it was heard."""

import pytest

from spl.core import canon
from spl.core.backoff import Backoff
from spl.core.presence import (
    ANSWER_S,
    ASK_S,
    AWAKE_S,
    CONTACT_FRESH_S,
    LOST_SHOWN_S,
    OFFLINE_S,
    PAUSE_S,
    TO_PEER,
    TO_US,
    Known,
    OwnBeat,
    Presence,
    Turns,
    known_in,
    known_text,
)  # fmt: skip

ASKS = {"asks_ms": int(ASK_S * 1100)}
UNASKED_S = 2 * ASK_S * 1.1 + ANSWER_S / 2


def turns(**known: float) -> Turns:
    backoffs = (Backoff(lambda size: b"\x80" + bytes(size - 1), 1.0, 300.0) for _ in range(2))
    return Turns(*backoffs, **known)


def test_silence_counts_from_whatever_was_heard_last_and_an_answer_alone_answers() -> None:
    presence = Presence()
    assert (presence.silent_s(5.0), presence.unanswered_s(5.0), presence.is_known) == (0.0, 0.0, False)
    presence.waited_s = 10.0
    assert (presence.silent_s(25.0), presence.unanswered_s(25.0), presence.is_known) == (15.0, 15.0, True)
    presence.contact_s = 20.0
    assert (presence.silent_s(25.0), presence.unanswered_s(25.0)) == (5.0, 15.0)
    presence.answered(24.0)
    assert (presence.silent_s(25.0), presence.unanswered_s(25.0)) == (1.0, 1.0)


def test_each_side_of_a_direction_that_is_cut_says_which_it_is() -> None:
    """Ours that fail while the peer is in contact; the peer's that do not come while it answers."""
    ours = Presence(waited_s=0.0, contact_s=50.0, answered_s=30.0)
    assert ours.one_way(51.0, {}, served=False) is None
    ours.lost("timeout", 51.0)
    ours.lost("connect", 55.0)
    told = ours.one_way(60.0, {}, served=False)
    assert told is not None
    assert (told.direction, told.for_s, told.code) == (TO_PEER, 30.0, "connect")
    assert ours.unreached(served=False) == "connect"
    assert ours.one_way(51.0 + CONTACT_FRESH_S, {}, served=False) is None  # the peer is gone as a whole
    ours.answered(61.0)
    assert (ours.unreached(served=False), ours.one_way(61.0, {}, served=False)) == ("", None)


@pytest.mark.parametrize(
    ("view", "unasked_s", "pushed", "told"),
    [
        (ASKS, UNASKED_S, False, False),
        (ASKS, UNASKED_S + 1, False, True),
        (ASKS, UNASKED_S + 1, True, False),  # by our push it has no need to ask
        ({}, 1e6, False, False),  # a version that does not ask
        (ASKS, UNASKED_S + 0.01, False, True),
        ({**ASKS, "unreached": "timeout"}, ASK_S * 1.1 + ANSWER_S / 2, False, False),
        ({**ASKS, "unreached": "timeout"}, ASK_S * 1.1 + ANSWER_S / 2 + 0.01, False, True),
        ({**ASKS, "unreached": "timeout"}, ASK_S, False, False),  # for a moment: it asks as soon as it hears us
        ({**ASKS, "unreached": "timeout"}, ASK_S * 1.1 + ANSWER_S, False, True),
    ],
)
def test_a_peer_that_answers_and_no_longer_asks(
    view: dict[str, object], unasked_s: float, pushed: bool, told: bool
) -> None:
    presence = Presence(waited_s=0.0, contact_s=100.0, answered_s=100.0 + unasked_s)
    now_s = 100.0 + unasked_s
    found = presence.one_way(now_s, view, served=False, pushed=pushed)
    assert (found is not None) is told
    assert found is None or (found.direction, found.code) == (TO_US, view.get("unreached", ""))
    # While one of its requests is being answered, a stream for example, its word on an older one does not count.
    assert presence.one_way(now_s, view, served=False, pushed=pushed, reads=True) is None
    # Nor is the way closed by which its requests come that we refuse.
    presence.refused_s = now_s
    assert presence.one_way(now_s, view, served=False, pushed=pushed) is None
    # While it does not answer either, both directions are gone, which is another fact.
    assert presence.one_way(now_s + OFFLINE_S + ANSWER_S + 1, view, served=False, pushed=pushed) is None


def test_only_a_read_ends_the_failure_of_reads() -> None:
    """An answered question shows which function fails; while none is answered the whole way may be cut."""
    presence = Presence(waited_s=0.0, contact_s=95.0, answered_s=90.0)
    presence.unread("timeout", 100.0)
    presence.lost("timeout", 130.0)
    assert presence.unread_for_s(130.0) == 30.0
    whole = presence.one_way(130.0, {}, served=False)
    assert whole is None or not whole.reads
    presence.answered(131.0)
    presence.unread("disconnected", 140.0)
    presence.lost("disconnected", 140.0)
    told = presence.one_way(141.0, {}, served=False)
    assert told is not None
    assert (told.direction, told.for_s, told.code, told.reads) == (TO_PEER, 41.0, "disconnected", True)
    assert presence.one_way(131.0 + OFFLINE_S + ANSWER_S + ASK_S + 1, {}, served=False) is None, "it is silent"
    presence.read(142.0)
    assert (presence.one_way(142.0, {}, served=False), presence.unread_for_s(200.0)) == (None, 0.0)


def test_a_peer_that_does_not_reach_us_is_asked_though_its_stream_goes_on() -> None:
    presence, plan = Presence(waited_s=0.0, answered_s=99.0), turns(asked_s=90.0)
    assert plan.quiet_s(100.0, presence, pushes=False, only_asked=False) == ASK_S - 1
    assert plan.quiet_s(100.0, presence, pushes=False, only_asked=False, called=True) == ASK_S - 10
    plan.asked_s = None
    assert plan.quiet_s(100.0, presence, pushes=False, only_asked=False, called=True) == 0.0


def test_what_is_told_of_a_peer_that_asks_no_longer_holds_until_a_question_to_it_fails() -> None:
    """The next question is due after ASK_S, may be a tenth late, and waits for its answer; a busy machine adds."""
    presence = Presence(waited_s=0.0, contact_s=100.0, answered_s=(answered_s := 101.0 + UNASKED_S))
    for later_s in (0.0, ASK_S * 1.1 + ANSWER_S, OFFLINE_S + 1, OFFLINE_S + ANSWER_S):
        assert presence.one_way(answered_s + later_s, ASKS, served=False) is not None
    presence.lost("timeout", answered_s + ASK_S * 1.1 + ANSWER_S)
    assert presence.one_way(answered_s + OFFLINE_S, ASKS, served=False) is None


def test_a_peer_that_is_dead_is_not_said_to_be_out_of_our_reach_alone() -> None:
    """It is if it asked since the first request to it failed; one that timed out began before it failed."""
    for code, contact_s, is_one_way in (("connect", 49.0, False), ("connect", 50.0, True), ("timeout", 42.0, True)):
        gone = Presence(waited_s=0.0, contact_s=contact_s, answered_s=30.0)
        gone.lost(code, 50.0)
        assert (gone.one_way(51.0, {}, served=False) is not None) is is_one_way, (code, contact_s)


def test_a_peer_that_was_gone_has_to_ask_anew_before_its_silence_shows_anything() -> None:
    """Not one whose requests did not arrive before: what was told of it is not withdrawn by an answer."""
    late_s = 100.0 + UNASKED_S + 1
    for contact_s, is_told in ((90.0, False), (100.0 - CONTACT_FRESH_S, True)):
        back = Presence(waited_s=0.0, contact_s=contact_s, answered_s=90.0)
        back.lost("connect", 100.0)
        back.answered(late_s)
        assert (back.one_way(late_s, ASKS, served=False) is not None) is is_told
        back.answered(later_s := late_s + UNASKED_S + 1)
        assert back.one_way(later_s, ASKS, served=False) is not None


def test_after_a_pause_of_our_own_everything_is_older_by_what_no_clock_counted() -> None:
    presence = Presence(waited_s=0.0, contact_s=90.0, answered_s=95.0)
    presence.slept(100.0, 3600.0)
    assert (presence.contact_s, presence.answered_s, presence.silent_s(101.0)) == (-3510.0, -3505.0, 1.0)
    assert presence.heard_ms(101.0, 10_000_000, None) == 10_000_000 - 3_606_000
    unheard = Presence()
    unheard.slept(100.0, 3600.0)
    assert not unheard.is_known


def test_a_peer_is_asked_soon_after_we_began_to_wait_for_it() -> None:
    """At a start and after a pause, unless it answers first; then not again before its turn."""
    presence, plan = Presence(waited_s=100.0, answered_s=99.0), turns(asked_s=99.0)
    assert plan.quiet_s(100.0, presence, pushes=False, only_asked=True) == AWAKE_S
    assert plan.quiet_s(100.0, Presence(waited_s=100.0, answered_s=100.0), pushes=False, only_asked=True) == ASK_S
    plan.asked_s = 101.0
    assert plan.quiet_s(101.0, presence, pushes=False, only_asked=True) == ASK_S


def test_a_peer_that_only_pushes_is_out_of_reach_for_an_hour_and_then_that_is_its_way() -> None:
    behind = Presence(contact_s=0.0)
    behind.lost("timeout", 1.0)
    assert (behind.unreached(served=True), behind.unreached(served=False)) == ("", "timeout")
    moved = Presence(contact_s=0.0, answered_s=0.0)
    moved.lost("timeout", 1.0)
    assert moved.unreached(served=True) == "timeout"
    moved.lost("timeout", LOST_SHOWN_S + 1)
    assert moved.unreached(served=True) == ""


def test_what_fails_while_this_daemon_did_not_run_shows_nothing_of_the_peer() -> None:
    own = OwnBeat()
    assert not own.was_stopped(1e6)
    assert not own.beat(10.0, 5.0)
    assert not own.was_stopped(15.0 + PAUSE_S)
    assert own.was_stopped(16.0 + PAUSE_S)  # before the next beat has noticed it
    assert own.beat(100.0, 5.0)
    assert (own.was_stopped(100.0 + PAUSE_S / 2), own.was_stopped(101.0 + PAUSE_S)) == (True, False)
    assert not own.beat(105.0, 5.0)
    assert not own.was_stopped(106.0)
    assert own.beat(110.0, 5.0, asleep=True)
    assert own.was_stopped(111.0)


def test_a_peer_is_asked_when_it_has_not_answered_for_a_while_whatever_it_asks_of_us() -> None:
    presence = Presence(waited_s=0.0, contact_s=17.0, answered_s=0.0)
    plan = turns()
    assert plan.quiet_s(0.0, presence, pushes=False, only_asked=False) == ASK_S
    assert plan.quiet_s(18.0, presence, pushes=False, only_asked=False) == 0.0
    plan.asked_s = 18.0
    assert plan.quiet_s(19.0, presence, pushes=False, only_asked=False) == ASK_S - 1
    plan.at_once()
    assert plan.quiet_s(19.0, presence, pushes=False, only_asked=False) < 0
    assert plan.quiet_s(19.0, presence, pushes=True, only_asked=False) == 17.0 + CONTACT_FRESH_S - 19.0
    plan.errors.failed()
    assert plan.quiet_s(1.0, presence, pushes=False, only_asked=True) < 0


def test_a_peer_that_never_answered_is_not_said_to_be_cut_off_in_one_direction() -> None:
    assert Presence(waited_s=0.0, contact_s=1.0).one_way(1e6, ASKS, served=False) is None


def test_when_a_peer_was_heard_last_is_what_this_process_knows_or_the_one_before() -> None:
    assert Presence().heard_ms(5.0, 10_000, None) is None
    assert Presence().heard_ms(5.0, 10_000, 7) == 7
    assert Presence(waited_s=3.0).heard_ms(5.0, 10_000, 7) == 7
    assert Presence(waited_s=3.0).heard_ms(5.0, 10_000, None) == 8000
    assert Presence(waited_s=3.0, contact_s=4.0).heard_ms(5.0, 10_000, 7) == 9000
    assert Presence(contact_s=1.0, answered_s=4.0).heard_ms(5.0, 10_000, 7) == 9000


def test_contact_is_fresh_up_to_its_bound() -> None:
    presence = Presence(contact_s=10.0)
    assert presence.is_fresh(10.0 + CONTACT_FRESH_S)
    assert not presence.is_fresh(10.5 + CONTACT_FRESH_S)
    assert not Presence().is_fresh(0.0)
    moved = Presence(contact_s=0.0, answered_s=0.0)
    moved.lost("timeout", LOST_SHOWN_S)
    assert moved.unreached(served=True) == "timeout"


def test_a_peer_is_read_in_its_turn_and_later_after_failures_and_refusals() -> None:
    plan = turns()
    assert plan.read_s(12.0, 30.0, follows=False) == plan.read_s(12.0, 30.0, follows=True, hold_s=9.0) == 0.0
    plan.attempted(10.0)
    assert plan.read_s(12.0, 30.0, follows=False) == 28.0
    assert plan.read_s(99.0, 30.0, follows=False) == 0.0
    plan.refusals.attempt = 1
    assert plan.read_s(10.0, 30.0, follows=False) == 30.0
    plan.refusals.attempt = 8
    assert plan.read_s(10.0, 30.0, follows=False) == 64.0
    plan.errors.attempt = 3
    assert plan.read_s(10.0, 30.0, follows=False) == 2.0
    assert plan.read_s(10.0, 30.0, follows=True) == 15.0, "as the refusals, which are more"
    plan.refusals.attempt = 0
    assert plan.read_s(10.0, 30.0, follows=True) == 1.0
    assert plan.read_s(10.0, 30.0, follows=True, hold_s=5.0) == 5.0
    plan.at_once()
    assert plan.read_s(10.0, 30.0, follows=False) == 0.0


def test_a_peer_is_well_once_it_was_read_and_until_it_fails() -> None:
    plan = turns()
    assert plan.is_well is False
    plan.attempted(1.0)
    assert plan.is_well is True
    for backoff in (plan.errors, plan.refusals):
        backoff.failed()
        assert plan.is_well is False
        backoff.reset()
    assert plan.is_well


KNOWN = {"a": Known(1, 2, "", 0), "b": Known(None, None, "", 3), "c": Known(0, 1000, "timeout", 1000, 0)}


def test_what_was_known_of_a_peer_is_read_back() -> None:
    text = known_text(KNOWN, 10_000)
    assert known_in(text, 1000) == KNOWN
    assert known_in(text, 999) == {"a": KNOWN["a"], "b": KNOWN["b"]}, "what has a time to come is left out"
    assert known_in("[]", 1000) == {}


def test_a_note_has_as_many_peers_as_fit() -> None:
    sizes = [
        len(canon.encode({key: [each.heard_ms, each.sync_ms, each.code, each.failed_ms, each.answered_ms]}))
        for key, each in KNOWN.items()
    ]
    for count in range(1, 4):
        exact = 2 + sum(sizes[:count])
        assert len(known_in(known_text(KNOWN, exact), 1000)) == count
        assert len(known_in(known_text(KNOWN, exact - 1), 1000)) == count - 1


@pytest.mark.parametrize("item", [
    7, None, {}, "abcd", [], [1, 2, ""], [1, 2, "", 3, 4, 5], [1, 2, 7, 3], [1, 2, None, 3], [-1, 2, "", 3],
    [1, -1, "", 3], [1, 2, "", -1], [1001, 2, "", 3], [1, 1001, "", 3], [1, 2, "", 1001], [True, 2, "", 3],
    [1, "2", "", 3], [1, 2, "", None], [1.5, 2, "", 3], [None, 2, "timeout", 3],
    [1, 2, "", 3, -1], [1, 2, "", 3, 1001], [1, 2, "", 3, "4"],
], ids=repr)  # fmt: skip
def test_what_is_damaged_of_a_note_is_left_out(item: object) -> None:
    text = canon.encode({"a": item, "b": [1000, 0, "dns", 1000]}).decode()
    assert known_in(text, 1000) == {"b": Known(1000, 0, "dns", 1000)}
