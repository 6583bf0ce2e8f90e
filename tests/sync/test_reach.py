"""Which way a pair runs: found out from failures and contact alone, told apart from a peer that is gone."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.pair.status import LastError, PairStatus
from spl.core.presence import (
    BOTH,
    CONTACT_FRESH_S,
    OFFLINE_S,
    PEER_PUSHES,
    TO_PEER,
    TO_US,
    WE_PUSH,
    Known,
    known_in,
    known_text,
)
from spl.home.disk import Disk, DiskError
from spl.home.vault import Vault
from spl.sync.pull import Progress, Queue
from spl.sync.reach import CLONED_S, KnownPeers, Reaches, with_way
from spl.sync.rollback import Rollbacks
from tests.nodes import Watched

PAIR = "pair_00000001"


def test_five_failures_while_the_peer_keeps_in_touch_mean_that_it_pushes() -> None:
    reaches = Reaches(5, int)
    assert reaches.word(PAIR) == ""
    assert not reaches.failed(PAIR, "TIMEOUT", 0.0)
    reaches.contact(PAIR, 1.0)
    assert [reaches.failed(PAIR, "TIMEOUT", 1.0 + n) for n in range(5)] == [False] * 3 + [True] * 2
    assert reaches.word(PAIR) == PEER_PUSHES
    assert not reaches.may_push(PAIR)


def test_contact_from_before_the_first_failure_proves_no_wall() -> None:
    """Both sides of a short outage were in touch just before: one that waits for the other to dial waits for nobody."""
    reaches = Reaches(2, int)
    reaches.contact(PAIR, 10.0)
    assert [reaches.failed(PAIR, "CONNECT_REFUSED", 10.0 + n) for n in range(5)] == [False] * 5
    assert (reaches.word(PAIR), reaches.may_push(PAIR)) == ("", True)


def test_a_new_streak_asks_for_new_contact() -> None:
    reaches = Reaches(2, int)
    reaches.failed(PAIR, "TIMEOUT", 0.0)
    reaches.contact(PAIR, 1.0)
    assert reaches.failed(PAIR, "TIMEOUT", 2.0)
    reaches.reached(PAIR, {})
    assert [reaches.failed(PAIR, "TIMEOUT", 3.0 + n) for n in range(3)] == [False] * 3


def test_a_peer_that_is_silent_is_gone_and_not_behind_a_wall() -> None:
    reaches = Reaches(2, int)
    assert [reaches.failed(PAIR, "CONNECT_REFUSED", 0.0) for _ in range(4)] == [False] * 4
    reaches.contact(PAIR, 1.0)
    assert reaches.failed(PAIR, "CONNECT_REFUSED", 1.0 + CONTACT_FRESH_S)
    assert not reaches.failed(PAIR, "CONNECT_REFUSED", 1.5 + CONTACT_FRESH_S)
    assert reaches.word(PAIR) == ""


def test_a_peer_at_an_address_that_we_do_not_dial_pushes_while_it_is_in_touch() -> None:
    """It is nobody's fault and no outage: no failures are counted, and only silence is trouble."""
    reaches = Reaches(5, int)
    assert reaches.forbidden(PAIR, 0.0)
    assert reaches.word(PAIR) == PEER_PUSHES
    assert not reaches.may_push(PAIR)
    assert reaches.forbidden(PAIR, CONTACT_FRESH_S)
    assert not reaches.forbidden(PAIR, CONTACT_FRESH_S + 1)
    reaches.contact(PAIR, 50.0)
    assert reaches.forbidden(PAIR, 50.0 + CONTACT_FRESH_S)
    reaches.reached(PAIR, {})
    assert reaches.word(PAIR) == BOTH


def test_a_view_has_the_time_at_which_the_peer_told_it() -> None:
    now_ms = [7]
    reaches = Reaches(5, lambda: now_ms[0])
    assert reaches.told_ms(PAIR) is None
    reaches.heard(PAIR, {"state": "paused"})
    now_ms[0] = 9
    reaches.answered(PAIR, {})  # an answer without a view tells nothing of it
    assert (reaches.view(PAIR), reaches.told_ms(PAIR)) == ({"state": "paused"}, 7)
    reaches.heard(PAIR, {"state": "active"})
    assert reaches.told_ms(PAIR) == 9


def test_what_was_known_of_peers_outlives_the_process(tmp_path: Path) -> None:
    """Offline peers with their error; not what is damaged or has a time to come; a full disk is no end of anything."""
    vault = Vault(tmp_path, Disk(), random_bytes=bytes, now_ms=lambda: 0)
    rollbacks = Rollbacks(vault)

    def peers(now_ms: int) -> KnownPeers:
        return KnownPeers(vault, rollbacks, lambda: now_ms)

    error = LastError("timeout", "", 9000, "TIMEOUT")
    lost: dict[str, Any] = {"lost_code": "timeout", "answered_ms": 6500, "last_sync_ms": 6000}
    gone = PairStatus(last_error=error, attempt=3, silent_s=OFFLINE_S, heard_ms=7000, **lost)
    found = {PAIR: gone, "pair_there": PairStatus(heard_ms=8000, last_sync_ms=5000)}
    peers(9000).save(found)
    again = peers(67_000)
    assert again.get(PAIR) == Known(7000, 6000, "timeout", 9000, 6500)
    assert (known := again.error(PAIR)) is not None
    assert (known.code, known.kind, known.at_ms) == ("timeout", "TIMEOUT", 9000)
    assert (again.get("pair_there"), again.error("pair_there")) == (Known(8000, 5000), None)
    assert peers(8500).get(PAIR) == Known(), "a time to come"
    vault.put("peers-known", f'{{"{PAIR}":[7000,6000,"timeout",9000]}}')
    assert peers(9000).get(PAIR) == Known(7000, 6000, "timeout", 9000), "as it was noted before"
    damaged = ("[1]", '[1,1,"",0,true]', '[true,1,"",0]', '[1,1,"made-up",0]')
    for text in ("{", "[]", *(f'{{"{PAIR}":{each}}}' for each in damaged)):
        vault.put("peers-known", text)
        assert peers(9000).get(PAIR) == Known(), text
    with patch.object(vault, "put", side_effect=DiskError("home-unusable")):
        peers(9000).save(found)


def test_of_too_many_peers_the_first_are_noted() -> None:
    """The note stays within what the vault reads."""
    known = {f"pair_{at:08x}": Known(at, at) for at in range(50)}
    text = known_text(known, 1000)
    assert len(text) <= 1000
    kept = known_in(text, 100)
    assert 10 < len(kept) < 50
    assert kept == {key: known[key] for key in list(known)[: len(kept)]}


def test_a_process_waits_for_a_lost_peer_since_one_before_it_did() -> None:
    """Only the first time: a pause or its end makes a silent peer heard no later."""
    reaches = Reaches(5, lambda: 99_000)
    reaches.waits(PAIR, 10.0, Known(39_000, 30_000, "timeout", 40_000))
    presence = reaches.presence(PAIR)
    assert (presence.silent_s(11.0), presence.one_way(11.0, {}, served=False)) == (61.0, None)
    assert presence.heard_ms(11.0, 100_000, 39_000) == 39_000
    assert presence.heard_ms(11.0, 100_000, None) == 39_000
    reaches.waits(PAIR, 20.0, Known())
    assert presence.silent_s(21.0) == 71.0
    reaches.contact(PAIR, 25.0)
    assert presence.heard_ms(30.0, 100_000, 39_000) == 95_000


def test_a_restart_withdraws_no_word_on_a_direction_that_is_cut() -> None:
    """The peer asked until we stopped, and had not answered for a minute; at once, and also once it serves us by push.

    A peer that was well is waited for from the start, and so is one that was faster than our first look.
    """
    reaches = Reaches(2, lambda: 100_000)
    reaches.waits(PAIR, 10.0, Known(98_000, 30_000, "timeout", 99_000, 40_000))
    told = reaches.one_way(PAIR, 10.0, reads=False)
    assert told is not None
    assert (told.direction, told.for_s, told.code) == (TO_PEER, 60.0, "timeout")
    assert (reaches.lost_code(PAIR, 10.0), reaches.trouble(PAIR)) == ("timeout", {"unreached": "timeout"})
    reaches.failed(PAIR, "TIMEOUT", 11.0)
    reaches.contact(PAIR, 12.0)
    reaches.presence(PAIR).lost("timeout", 19.0)
    assert reaches.failed(PAIR, "TIMEOUT", 19.0)
    assert (reaches.word(PAIR), reaches.lost_code(PAIR, 19.0)) == (PEER_PUSHES, "timeout")
    for other, known in (("pair_00000002", Known(98_000)), ("pair_00000003", Known(98_000, 1, "timeout", 1, 40_000))):
        if known.code:
            reaches.contact(other, 9.0)
        reaches.waits(other, 10.0, known)
        assert (reaches.presence(other).unanswered_s(11.0), reaches.one_way(other, 11.0, reads=False)) == (1.0, None)


def test_a_peer_whose_questions_arrive_says_for_how_long_its_reads_have_failed() -> None:
    """Said by the peer's own clock's measure, and no longer once it is gone or says nothing of it."""
    now_ms = [50_000]
    theirs, ours = Reaches(2, lambda: now_ms[0]), Reaches(2, lambda: now_ms[0])
    assert theirs.trouble(PAIR) == {}
    theirs.unread(PAIR, "disconnected", 10.0, 12.0)
    theirs.presence(PAIR).lost("disconnected", 12.0)
    assert theirs.trouble(PAIR) == {"unreached": "disconnected"}, "no question was answered: all may be cut"
    theirs.presence(PAIR).answered(13.0)
    assert theirs.trouble(PAIR) == {"unreached": "disconnected", "unread_ms": 2000}
    now_ms[0] += 40_000
    theirs.unread(PAIR, "timeout", 40.0, 52.0)
    assert theirs.trouble(PAIR) == {"unreached": "timeout", "unread_ms": 42_000}
    ours.contact(PAIR, 100.0)
    ours.heard(PAIR, theirs.trouble(PAIR))
    now_ms[0] += 1000
    told = ours.one_way(PAIR, 101.0, reads=False)
    assert told is not None
    assert (told.direction, told.for_s, told.code, told.reads) == (TO_US, 43.0, "timeout", True)
    assert ours.one_way(PAIR, 101.0 + CONTACT_FRESH_S, reads=False) is None
    theirs.presence(PAIR).read(53.0)
    ours.heard(PAIR, {"state": "active", **theirs.trouble(PAIR)})
    assert ours.one_way(PAIR, 101.0, reads=False) is None


def test_a_peer_that_goes_on_to_say_that_its_requests_fail_hears_none_of_our_answers() -> None:
    """What it said as it came back is forgotten before that counts."""
    now_ms = [50_000]
    reaches = Reaches(2, lambda: now_ms[0])
    reaches.contact(PAIR, 100.0)
    reaches.heard(PAIR, {"unreached": "foreign-answer"})
    now_ms[0] += 20_000
    assert reaches.one_way(PAIR, 120.0, reads=False) is None
    reaches.heard(PAIR, {"unreached": "foreign-answer"})
    now_ms[0] += 5_000
    told = reaches.one_way(PAIR, 125.0, reads=False)
    assert told is not None
    assert (told.direction, told.for_s >= OFFLINE_S, told.code) == (TO_US, True, "foreign-answer")
    reaches.heard(PAIR, {"state": "active"})
    assert reaches.one_way(PAIR, 125.0, reads=False) is None
    reaches.heard(PAIR, {"unreached": "foreign-answer"})
    assert reaches.one_way(PAIR, 125.0, reads=False) is None


def test_reads_that_fail_while_questions_pass_are_no_push() -> None:
    """Whatever contact there is: a question has to fail as well."""
    reaches = Reaches(2, int)
    reaches.failed(PAIR, "TIMEOUT", 0.0, asked=False)
    reaches.contact(PAIR, 1.0)
    assert [reaches.failed(PAIR, "TIMEOUT", 2.0, asked=False) for _ in range(4)] == [False] * 4
    assert (reaches.may_serve(PAIR, 2.0), reaches.word(PAIR)) == (True, "")
    assert reaches.failed(PAIR, "TIMEOUT", 3.0)
    assert (reaches.failed(PAIR, "TIMEOUT", 4.0, asked=False), reaches.may_serve(PAIR, 4.0)) == (True, False)


def test_an_answer_of_any_kind_proves_that_the_way_is_open() -> None:
    reaches = Reaches(2, int)
    for kind in ("AUTH", "HTTP_5XX", "PARSE_ERROR", "TLS"):
        assert not reaches.failed(PAIR, "DNS_FAILURE", 0.0)
        reaches.contact(PAIR, 0.5)
        assert reaches.failed(PAIR, "DNS_FAILURE", 1.0)
        assert not reaches.failed(PAIR, kind, 0.0)
        assert reaches.word(PAIR) == ""
    reaches.failed(PAIR, "DNS_FAILURE", 0.0)
    reaches.failed(PAIR, "DNS_FAILURE", 0.0)
    reaches.reached(PAIR, {})
    assert reaches.word(PAIR) == BOTH


@dataclass
class _Pusher:
    reached: list[str] = field(default_factory=list)

    def on_reached(self, pair_id: str) -> None:
        self.reached.append(pair_id)


def test_the_peers_word_decides_whether_we_push_and_silence_changes_nothing() -> None:
    reaches, pusher = Reaches(2, int), _Pusher()
    called = pusher.reached
    reaches.add_pusher(pusher)
    reaches.reached(PAIR, {})
    assert (reaches.word(PAIR), reaches.may_push(PAIR), called) == (BOTH, True, [PAIR])
    reaches.reached(PAIR, {"reach": PEER_PUSHES})
    reaches.reached(PAIR, {})
    assert (reaches.word(PAIR), called) == (WE_PUSH, [PAIR] * 3)
    for word in (BOTH, WE_PUSH):
        reaches.heard(PAIR, {"reach": PEER_PUSHES})
        reaches.reached(PAIR, {"reach": word})
        assert (reaches.word(PAIR), reaches.may_push(PAIR), len(called)) == (BOTH, False, 3)


STEPS = st.lists(st.sampled_from(["contact", "reached", "TIMEOUT", "AUTH"]), max_size=30)


@given(STEPS)
def test_no_order_of_events_makes_a_reached_peer_one_that_pushes(steps: list[str]) -> None:
    reaches = Reaches(3, int)
    run = 0
    for step in steps:
        if step == "contact":
            reaches.contact(PAIR, 0.0)
        elif step == "reached":
            reaches.reached(PAIR, {})
        else:
            reaches.failed(PAIR, step, 0.0)
        run = {"contact": run, "TIMEOUT": run + 1}.get(step, 0)
        assert (reaches.word(PAIR) == PEER_PUSHES) <= (run >= 3)


def test_every_view_of_a_peer_is_told_to_the_watcher_and_the_last_one_kept() -> None:
    reaches, watched = Reaches(5, int), Watched()
    assert reaches.view(PAIR) == {}
    reaches.watch(watched)
    reaches.heard(PAIR, {"consent": 3})
    reaches.reached(PAIR, {"consent": 4})
    assert watched.views == [(PAIR, {"consent": 3}), (PAIR, {"consent": 4})]
    reaches.stopped(PAIR, {"state": "paused"})
    reaches.troubled(PAIR, "timeout")
    reaches.recovered(PAIR)
    assert watched.heard == [("peer-state", PAIR, "paused"), ("trouble", PAIR, "timeout"), ("success", PAIR, "")]
    assert reaches.view(PAIR) == {"state": "paused"}


def test_what_waits_is_known_by_pair() -> None:
    reaches, progress = Reaches(5, int), Progress()
    reaches.track(PAIR, progress)
    assert reaches.queue_records(PAIR) == 0
    progress.queue = Queue(10, 10, records=7)
    assert (reaches.queue_records(PAIR), reaches.queue_records("pair_00000002")) == (7, 0)


def test_two_processes_of_a_peer_that_ask_in_turn_are_a_clone() -> None:
    """A restart is one process after another; only processes that keep coming back run beside each other."""
    reaches = Reaches(5, int)
    for process in ("a", "a", "b", "b", "c", ""):
        reaches.contact(PAIR, 1.0, process)
    assert reaches.cloned(PAIR) == ""
    reaches.contact(PAIR, 2.0, "b")
    reaches.contact(PAIR, 2.0, "c")
    assert reaches.cloned(PAIR) == "", "a request that was held up, and the process that runs goes on"
    reaches.contact(PAIR, 3.0, "b")
    assert reaches.cloned(PAIR) == "peer"
    reaches.contact(PAIR, 3.0 + CLONED_S, "b")
    assert reaches.cloned(PAIR) == "peer"
    reaches.contact(PAIR, 4.0 + CLONED_S, "b")
    assert reaches.cloned(PAIR) == "", "it ended, and one process has asked for an hour"


def test_peers_whose_nonces_name_no_process_are_no_clones() -> None:
    reaches = Reaches(5, int)
    for number in range(100):
        reaches.contact(PAIR, 1.0, f"{number:08x}")
    assert reaches.cloned(PAIR) == ""


def test_the_peer_says_that_we_run_twice() -> None:
    reaches = Reaches(5, int)
    reaches.heard(PAIR, {"state": "active", "cloned": True})
    assert reaches.cloned(PAIR) == "us"


def test_after_a_pause_of_our_own_each_peer_that_was_known_is_waited_for_anew() -> None:
    reaches = Reaches(2, int)
    reaches.contact(PAIR, 1.0)
    reaches.presence("pair_00000002")
    reaches.beat(1.0, 5.0)
    assert reaches.was_stopped(60.0)
    assert reaches.beat(60.0, 5.0)
    assert reaches.presence(PAIR).silent_s(61.0) == 1.0
    assert not reaches.beat(65.0, 5.0, 1.0)
    assert reaches.beat(70.0, 5.0, 3601.0), "the machine slept, and the clock of the loop did not count it"
    assert reaches.presence(PAIR).heard_ms(71.0, 10_000_000, None) == 10_000_000 - 3_670_000
    assert not reaches.presence("pair_00000002").is_known


@pytest.mark.parametrize(("code", "is_way"), [("connect", True), ("timeout", True), ("pair-paused", False)])
def test_only_what_did_not_arrive_is_for_the_peers_side_to_do(code: str, is_way: bool) -> None:
    pair: Any = SimpleNamespace(peer_did="did:sync:instance:bob-0123456789abcdef01234567")
    error = SplError(code, "no", hint="its own")
    assert with_way(BOTH, pair, error, "spl sync PAIR") is error
    found = with_way(PEER_PUSHES, pair, error, "spl sync PAIR")
    assert (found.hint, found.code) == ("on bob: spl sync PAIR" if is_way else "its own", code)
