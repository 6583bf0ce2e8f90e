"""A thread across connections: each record once, a foreign log noticed, what ends a tail and what does not."""

import json

import pytest

from spl.client.errors import ClientError, ForbiddenError, fault, refusal
from spl.client.follow import LAST_WAIT_S, Follow
from tests.client.test_calls import FORM

FIELDS = {name: FORM[name] for name in ("thread", "actor", "act", "clock", "body", "parents", "data_type", "judged_by")}


def event(sequence: int) -> bytes:
    value = {"record": FIELDS, "id": "a" * 64, "sequence": sequence, "vouched_by": "did:x"}
    return f"event: record.created\nid: {sequence}\ndata: {json.dumps(value)}\n\n".encode()


def test_a_tail_goes_on_behind_what_it_delivered() -> None:
    follow = Follow("a b", 3, None)
    assert follow.call().target == "/v1/threads/a%20b/watch"
    assert [record.sequence for record in follow.feed(event(5) + event(9))] == [5, 9]
    assert dict(follow.headers())["last-event-id"] == "9"
    follow.feed(b'event: heartbeat\nid: 40\ndata: {"sequence":40}\n\n')
    assert dict(follow.headers())["last-event-id"] == "40"


def test_an_event_that_was_cut_is_not_mixed_with_the_next_connection() -> None:
    follow = Follow("t", 0, None)
    assert follow.feed(event(1)[:-10]) == []
    follow.connected()
    assert [record.sequence for record in follow.feed(event(1))] == [1]


def test_a_log_that_is_not_the_one_followed_is_said_and_not_mixed() -> None:
    follow = Follow("t", 9, None)
    with pytest.raises(ClientError, match="not the one") as found:
        follow.feed(event(4))
    assert found.value.code == "position-unknown"
    with pytest.raises(ClientError):
        follow.failed(found.value)


def test_a_revoked_token_ends_it() -> None:
    with pytest.raises(ForbiddenError, match="hold") as found:
        Follow("t", 0, None).feed(b'event: error\ndata: {"code":"revoked","message":"does not hold"}\n\n')
    with pytest.raises(ForbiddenError):
        Follow("t", 0, None).failed(found.value)


def test_what_may_pass_is_waited_for_and_what_does_not_is_raised() -> None:
    follow = Follow("t", 0, None)
    for passing in (fault("disconnected"), fault("daemon-down"), refusal({}, 502), refusal({}, 503), refusal({}, 429)):
        assert 0 < follow.failed(passing) <= LAST_WAIT_S
    for lasting in (refusal({}, 401), refusal({}, 404), refusal({}, 422)):
        with pytest.raises(ClientError):
            follow.failed(lasting)


def test_patience_ends() -> None:
    follow = Follow("t", 0, 0.0)
    with pytest.raises(ClientError):
        follow.failed(fault("daemon-down"))
