"""Which way a pair runs: found out from failures and contact alone, told apart from a peer that is gone."""

from hypothesis import given
from hypothesis import strategies as st

from spl.core.record.page import BOTH, PEER_PUSHES, WE_PUSH
from spl.sync.reach import CONTACT_FRESH_S, Reaches

PAIR = "pair_00000001"


def test_five_failures_while_the_peer_keeps_in_touch_mean_that_it_pushes() -> None:
    reaches = Reaches(5)
    assert reaches.word(PAIR) == ""
    reaches.contact(PAIR, 0.0)
    assert [reaches.failed(PAIR, "TIMEOUT", float(n), 300.0) for n in range(6)] == [False] * 4 + [True] * 2
    assert reaches.word(PAIR) == PEER_PUSHES
    assert not reaches.may_push(PAIR)


def test_a_peer_that_is_silent_is_gone_and_not_behind_a_wall() -> None:
    reaches = Reaches(2)
    assert [reaches.failed(PAIR, "CONNECT_REFUSED", 0.0, 1.0) for _ in range(4)] == [False] * 4
    reaches.contact(PAIR, 1.0)
    assert reaches.failed(PAIR, "CONNECT_REFUSED", 2.0, 1.0)
    assert not reaches.failed(PAIR, "CONNECT_REFUSED", 2.0 + CONTACT_FRESH_S, 1.0)
    assert reaches.word(PAIR) == ""
    assert reaches.failed(PAIR, "CONNECT_REFUSED", 2.0 + CONTACT_FRESH_S, CONTACT_FRESH_S)


def test_an_answer_of_any_kind_proves_that_the_way_is_open() -> None:
    reaches = Reaches(2)
    reaches.contact(PAIR, 0.0)
    for kind in ("AUTH", "HTTP_5XX", "PARSE_ERROR", "TLS"):
        assert not reaches.failed(PAIR, "DNS_FAILURE", 0.0, 1.0)
        assert reaches.failed(PAIR, "DNS_FAILURE", 0.0, 1.0)
        assert not reaches.failed(PAIR, kind, 0.0, 1.0)
        assert reaches.word(PAIR) == ""
    reaches.failed(PAIR, "DNS_FAILURE", 0.0, 1.0)
    reaches.failed(PAIR, "DNS_FAILURE", 0.0, 1.0)
    reaches.reached(PAIR, {})
    assert reaches.word(PAIR) == BOTH


def test_the_peers_word_decides_whether_we_push_and_silence_changes_nothing() -> None:
    reaches, called = Reaches(2), list[str]()
    reaches.listen(called.append)
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
    reaches = Reaches(3)
    run = 0
    for step in steps:
        if step == "contact":
            reaches.contact(PAIR, 0.0)
        elif step == "reached":
            reaches.reached(PAIR, {})
        else:
            reaches.failed(PAIR, step, 0.0, 1.0)
        run = {"contact": run, "TIMEOUT": run + 1}.get(step, 0)
        assert (reaches.word(PAIR) == PEER_PUSHES) <= (run >= 3)


def test_every_view_of_a_peer_is_told_to_who_asked_for_it() -> None:
    reaches, told = Reaches(5), list[tuple[str, object]]()
    reaches.hear(lambda pair_id, view: told.append((pair_id, view.get("consent"))))
    reaches.heard(PAIR, {"consent": 3})
    reaches.reached(PAIR, {"consent": 4})
    assert told == [(PAIR, 3), (PAIR, 4)]
