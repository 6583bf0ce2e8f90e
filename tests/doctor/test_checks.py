"""The doctor's lines: what is well, what is not, and what is skipped because something else explains it."""

import pytest

from spl.doctor.catalogue import CATALOGUE
from spl.doctor.checks import DAEMON, OURSELVES, PAIR, ago, lines
from spl.doctor.facts import Facts, ReverseReach
from tests.doctor.test_catalogue import CASES, WELL, findings

SEEN = {
    **WELL, "pid": 4121, "tasks_count": 12, "fsync_p99_ms": 4.2, "cut_bytes": 0, "free_bytes": 18_200_000_000,
    "did": "did:sync:instance:alice", "words": "otter plum nine coal fern wax", "host": "hosted.example",
    "addresses": ("203.0.113.7",), "address": "203.0.113.7", "manifest_held": True, "inside_same": True,
    "protocol_ours": "1..1", "protocol_peer": "1..1", "token_taken": True, "scopes": ("federation:sync",),
    "confirmed_s": 12.0, "peer_acked": 42, "peer_lag": 1, "queue_max": 9, "stream_open": True,
    "peer_state": "active", "peer_queue": 0,
    "reverse": ReverseReach(True, "https://alice.example", 142),
}  # fmt: skip

ALL_WELL = """\
ok daemon pid 4121, loop lag 3 ms, 12 pair tasks alive
ok store tail clean, fsync p99 4 ms, 18.2 GB free
ok identity did:sync:instance:alice, key otter plum nine coal fern wax
ok clock peer 0.4 s ahead (limit 30 s)
ok dns hosted.example → 203.0.113.7
ok connect 203.0.113.7 accepts
ok tls chain valid, 61 days left
ok manifest 200, did and signature ok, same bytes inside and outside
ok protocol we 1..1, peer 1..1
ok endpoint POST /v1/federation/pair reachable without a bearer
ok reverse peer reaches https://alice.example in 142 ms
ok token the peer takes it, 61 days left
ok scopes federation:sync
ok cursor clock 42, lagging by 0 records, confirmed 12s ago
ok sends the peer has confirmed 42 of 43 records
ok stream-buffering open, and events arrive
ok mode polling every 300 s
ok queue 0 records wait, at most 9 in the last hour
ok peer-view peer: active, not paused, queue 0
"""


def shown(facts: dict[str, object]) -> dict[str, str]:
    """Return name -> "mark text" of a pair's checks."""
    return {row["name"]: f"{row['mark']} {row['text']}" for row in lines(PAIR, Facts(**facts), findings(facts))}


def test_when_all_is_well() -> None:
    rows = lines(PAIR, Facts(**SEEN), findings(SEEN))
    assert "".join(f"{row['mark']} {row['name']} {row['text']}\n" for row in rows) == ALL_WELL


def test_what_waits_for_a_peer_that_reads_on_demand_is_no_problem_and_not_unsaid() -> None:
    text = shown({**SEEN, "label": "bob", "pair_id": "pair_0f9e8d7c", "peer_mode": "on-demand"})["sends"]
    assert text == "ok the peer has confirmed 42 of 43 records; it reads on demand. On bob: spl sync pair_0f9e8d7c"


def test_a_peer_that_refuses_what_is_sent_is_not_said_to_take_it() -> None:
    found = shown({**SEEN, "label": "bob", "pair_id": "pair_0f9e8d7c", "peer_refuses": True, "grants_count": 2})
    assert found["sends"].endswith("; some of what came it refused. On bob: spl federation show pair_0f9e8d7c")
    assert found["consent"] == "ok 2 grants, and the peer does not take all that is sent"


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.code)
def test_each_finding_has_a_line_of_its_own(row: object) -> None:
    """A code that no check answers for would be a problem without a line."""
    code: str = row.code  # type: ignore[attr-defined]
    facts = {**SEEN, **CASES[code]}
    if code not in {name for check in PAIR for name in check.codes}:
        assert code in {name for check in OURSELVES for name in check.codes}
        return
    [mine] = [item for item in lines(PAIR, Facts(**facts), findings(facts)) if item["code"] == code]
    assert mine["mark"] in ("fail", "warn", "info")


def test_no_code_stands_under_two_checks() -> None:
    for checks in (PAIR, OURSELVES, DAEMON):
        every = [code for check in checks for code in check.codes]
        assert len(set(every)) == len(every)


def test_behind_a_connection_that_is_refused_all_is_skipped() -> None:
    found = shown({**WELL, **CASES["connect"], "host": "bob", "addresses": ("203.0.113.7",)})
    assert found["connect"].startswith("fail bob.example at 203.0.113.7")
    for name in ("tls", "manifest", "endpoint", "reverse", "token", "cursor", "peer-view", "clock"):
        assert found[name] == "skip explained by: connect", name


def test_an_expired_token_explains_scopes_and_cursor() -> None:
    """As the operator reads it: FAIL token, skip scopes, skip cursor."""
    found = shown({**SEEN, **CASES["token-expired"], **CASES["cursor-stalled"]})
    assert found["token"].startswith("fail the peer's token for us expired 2h ago")
    assert found["scopes"] == found["cursor"] == "skip explained by: token"
    assert found["dns"].startswith("ok")


def test_a_pause_of_our_own_is_no_problem_and_is_told() -> None:
    found = shown({**SEEN, "phase": "paused", "paused_by": "us"})
    assert found["mode"] == "ok paused by us; go on with: spl federation resume pair_0f9e8d7c"


def test_a_warning_hides_nothing() -> None:
    found = shown({**SEEN, **CASES["token-expiring"], **CASES["tls-expiry"]})
    assert found["token"].startswith("warn")
    assert found["scopes"] == "ok federation:sync"


def test_ages() -> None:
    assert [ago(None), ago(0.2), ago(59.9), ago(61), ago(7300), ago(200_000)] == [
        "never", "0s ago", "59s ago", "1m ago", "2h ago", "2d ago",
    ]  # fmt: skip
