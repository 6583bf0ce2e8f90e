"""`federation show`: one pair on one page."""

from typing import Any

import pytest

from spl.cli import pair_page
from spl.cli.pair_page import _until, cursor_text, sparkline, state_of
from tests.cli.conftest import Daemon, Run
from tests.cli.test_federation import PAIRS, a_pair

DETAIL: dict[str, Any] = {
    "pair_id": "pair_0f9e8d7c",
    "peer_did": "did:sync:instance:hosted-0123456789abcdef01234567",
    "url": "https://hosted.example",
    "state": "degraded",
    "mode": "polling",
    "since": "2026-11-23T04:00:00.000Z",
    "reason": "token-expired",
    "next_attempt_at": "2026-11-23T06:03:10.000Z",
    "attempt": 7,
    "last_error": {
        "class": "AUTH",
        "code": "auth-invalid",
        "message": "the token expired",
        "at": "2026-11-23T05:59:00.000Z",
    },
    "last_sync_cursor": {"clock": 42, "lag_records": 138},
    "outbound": {"clock": 17, "lag_records": 0},
    "last_confirmed_at": "2026-11-23T04:00:00.000Z",
    "caught_up_ms": 11 * 86_400_000,
    "last_read_at": "2026-11-23T05:59:48.000Z",
    "lags": [*[0] * 11, None, 20, 70, *[138] * 16],
    "lag_ms": {"p50_ms": 212, "p99_ms": 1548, "samples": 1},
    "peer_view": {
        "state": "active",
        "reason": "",
        "head": 180,
        "acked": 42,
        "queue": 0,
        "at": "2026-11-23T05:59:48.000Z",
    },
    "manifest": {
        "did": "did:sync:instance:hosted",
        "pair_endpoint": "https://hosted.example/v1/federation/pair",
        "signed_at": "2026-11-22T05:00:00.000Z",
        "fetched_at": "2026-11-23T05:56:00.000Z",
        "expires_at": "2026-11-29T07:00:00.000Z",
    },
    "peer_words": "moss lark ten pine clay reed",
    "our_words": "otter plum nine coal fern wax",
    "tokens": [
        {
            "direction": "issued to us",
            "token_id": "tok_5c1e",
            "scopes": ["federation:sync", "federation:subscribe"],
            "expires_at": "2026-11-23T05:00:00.000Z",
            "state": "live",
        },
        {
            "direction": "issued by us",
            "token_id": "tok_91ab",
            "scopes": ["federation:sync"],
            "expires_at": "2027-01-23T07:00:00.000Z",
            "state": "revoked",
        },
    ],
    "grants": [
        {
            "direction": "out",
            "namespace": "music",
            "maps": ["music", "projects/music"],
            "granted": "L1",
            "level": "L1",
            "missing": "",
        },
        {
            "direction": "in",
            "namespace": "music",
            "maps": ["projects/music", "music"],
            "granted": "L0",
            "level": "L1",
            "missing": "L0 behaves as L1 until we grant it too",
            "fix": "spl federation grant x",
            "at_peer": False,
        },
    ],
    "maps": [{"local": "a", "peer": "b"}],
    "intake": {"day_bytes": 1_048_576, "day_bytes_max": 10_737_418_240, "paused_until": None},
    "refused_records": 2,
    "refused_beyond": ["record-id", "scope-violation"],
    "transitions": [
        {"at": "2026-11-23T02:04:11Z", "from": "active", "to": "degraded", "reason": "token-expired"},
        {"at": "2026-11-12T09:31:02Z", "from": "establishing", "to": "active", "reason": ""},
    ],
    "fix": "spl federation refresh pair_0f9e8d7c",
}

ENDPOINT = "https://hosted.example/v1/federation/pair"

PAGE = f"""\
pair_id           pair_0f9e8d7c
peer              did:sync:instance:hosted-0123456789abcdef01234567   https://hosted.example
state             degraded since 2h ago (token-expired)
mode              polling every 5m, next attempt in 3m10s (attempt 7)
last_sync_cursor: clock=42, lagging by 138 records
read by the peer  clock=17, lagging by 0 records
last confirmed    2h ago; before that caught up for 11d
peer view         active, head 180, acked 42, queue 0, 12s ago; it last read from us 12s ago
manifest          did:sync:instance:hosted, {ENDPOINT}, signed 25h ago, fetched 4m ago, expires in 6d 1h
peer key          moss lark ten pine clay reed
our key           otter plum nine coal fern wax
namespaces        default
maps              a:b
tokens            issued to us  tok_5c1e  federation:sync,federation:subscribe  EXPIRED
                  issued by us  tok_91ab  federation:sync  revoked
grants            music -> hosted:projects/music (L1)
                  music <- hosted:projects/music (L0); L0 behaves as L1 until we grant it too: spl federation grant x
intake            1,048,576 of 10,737,418,240 bytes within a day
refused           2 records and more: record-id, scope-violation
last error        AUTH the token expired [auth-invalid], 1m ago
lag, last 30 min  ▁▁▁▁▁▁▁▁▁▁▁·▂▅████████████████  (records)
lag, last 5 min   p50 212 ms, p99 1,548 ms, over 1 write of ours
transitions       2026-11-23T02:04:11Z active -> degraded  token-expired
                  2026-11-12T09:31:02Z establishing -> active
fix               spl federation refresh pair_0f9e8d7c
"""


def test_the_page(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", f"{PAIRS}/pair_0f"] = a_pair(**DETAIL)
    result = spl("federation", "show", "pair_0f", tty=True, env={"COLUMNS": "160"})
    assert (result.code, result.out, result.err) == (0, PAGE, "")


def test_times_are_exact_in_a_pipe_and_the_cursor_line_is_literal(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", f"{PAIRS}/pair_0f"] = a_pair(**DETAIL)
    lines = spl("federation", "show", "pair_0f").out.splitlines()
    assert "last_sync_cursor: clock=42, lagging by 138 records" in lines
    assert "mode              polling every 5m, next attempt at 2026-11-23T06:03:10.000Z (attempt 7)" in lines
    assert "ago" not in " ".join(lines)


def test_a_young_pair_has_no_line_for_what_is_unknown(spl: Run, daemon: Daemon) -> None:
    young = {
        "since": "2026-11-23T05:59:58.000Z",
        "reason": "",
        "last_sync_cursor": None,
        "outbound": None,
        "peer_view": None,
        "manifest": None,
        "tokens": [],
        "transitions": [],
        "fix": None,
        "last_error": None,
        "next_attempt_at": None,
    }
    pair = a_pair(state="establishing", state_detail="waiting for approval by the peer", mode="on-demand", **young)
    daemon.answers["GET", f"{PAIRS}/p"] = pair
    assert spl("federation", "show", "p", tty=True).out.splitlines()[2:] == [
        "state             establishing since 2s ago (waiting for approval by the peer)",
        "mode              on-demand",
        "last_sync_cursor: none yet",
        "namespaces        default",
    ]
    assert spl("federation", "show", "p", "-o", "json").data == pair


def test_states_and_cursors_as_text() -> None:
    assert state_of({"state": "paused", "state_detail": "paused by both"}) == "paused (by both)"
    assert state_of({"state": "paused", "state_detail": "paused"}) == "paused"
    assert state_of({"state": "degraded", "state_detail": "token-expired"}) == "degraded"
    assert state_of({"state": "revoked", "state_detail": "revoked by peer: sold"}) == "revoked"
    assert cursor_text({"clock": 1, "lag_records": None}) == "clock=1, lag not known yet"


def confirmed(spl: Run, daemon: Daemon, **more: Any) -> dict[str, str]:
    """Return the lines of a pair by their label."""
    young = {"last_confirmed_at": "2026-11-23T05:59:48.000Z", "last_sync_cursor": {"clock": 3, "lag_records": 0}}
    daemon.answers["GET", f"{PAIRS}/p"] = a_pair(**{**young, "attempt": 0, **more})
    lines = spl("federation", "show", "p", tty=True).out.splitlines()
    return {line[:18].strip(): line[18:] for line in lines}


def test_it_is_caught_up_only_as_of_the_peers_last_word(spl: Run, daemon: Daemon) -> None:
    """Within 45 s that is now; later, or while attempts fail, it is a thing of the past and says so."""
    fresh = confirmed(spl, daemon)
    assert (fresh["last_sync_cursor:"], fresh["last confirmed"]) == (
        "clock=3, lagging by 0 records",
        "12s ago, caught up",
    )
    old = confirmed(spl, daemon, last_confirmed_at="2026-11-23T05:56:00.000Z")
    assert (old["last_sync_cursor:"], old["last confirmed"]) == (
        "clock=3, lagging by 0 records (as of 4m ago)",
        "4m ago, caught up then",
    )
    failing = confirmed(spl, daemon, attempt=1, caught_up_ms=7_200_000)
    assert failing["last_sync_cursor:"].endswith("(as of 12s ago)")
    assert failing["last confirmed"] == "12s ago; before that caught up for 2h"
    behind = {"clock": 3, "lag_records": 5}
    assert confirmed(spl, daemon, last_sync_cursor=behind)["last confirmed"] == "12s ago"


def test_of_many_withheld_records_the_first_are_named() -> None:
    lines = list(pair_page._withheld([f"{number:064x}" for number in range(pair_page.WITHHELD_SHOWN + 2)], "to"))
    assert len(lines) == pair_page.WITHHELD_SHOWN + 1
    assert lines[-1] == "and 2 more"


def test_bars() -> None:
    assert sparkline([None, 0, 1, 2, 4, 8]) == "·▁▁▂▄█"
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"


def test_a_pair_that_runs_one_way_says_which(spl: Run, daemon: Daemon) -> None:
    """Both ways is the rule and has no line."""
    assert "reach" not in confirmed(spl, daemon, reach="both")
    assert confirmed(spl, daemon, reach="we-push")["reach"] == "pushes to the peer"
    assert confirmed(spl, daemon, reach="peer-pushes")["reach"] == "served by push (peer opens the connections)"
    failed = {"last_push_at": None, "last_error": {"code": "timeout", "message": "no answer", "at": None}}
    line = confirmed(spl, daemon, reach="we-push", push=failed)["reach"]
    assert line == "pushes to the peer; the last push failed: no answer [timeout]"


def test_how_long_the_peer_reads_in_vain_is_no_interval(spl: Run, daemon: Daemon) -> None:
    told = {"state": "active", "asks_ms": 20_000, "unreached": "timeout", "unread_ms": 89_000}
    line = confirmed(spl, daemon, peer_view=told)["peer view"]
    assert line.startswith("active, asks every 20s, unreached timeout, unread for 1m29s")


def test_a_rejection_shows_the_peers_reason(spl: Run, daemon: Daemon) -> None:
    """The reason that the peer's operator gave is for this operator's eyes; a reason that repeats the state is not."""
    for detail, shown in (("rejected: not today", "revoked (rejected: not today)"), ("revoked", "revoked")):
        daemon.answers["GET", f"{PAIRS}/pair_0f"] = a_pair(state="revoked", state_detail=detail, reason="rejected")
        if detail == "revoked":
            daemon.answers["GET", f"{PAIRS}/pair_0f"] = a_pair(state="revoked", state_detail=detail)
        assert f"state             {shown}\n" in spl("federation", "show", "pair_0f").out


def test_a_revoked_pair_shows_nothing_that_still_runs(spl: Run, daemon: Daemon) -> None:
    """A revoked pair neither polls nor is caught up, so the page has no line that says so."""
    daemon.answers["GET", f"{PAIRS}/pair_0f"] = a_pair(**{**DETAIL, "state": "revoked", "state_detail": "revoked"})
    page = spl("federation", "show", "pair_0f").out
    assert "last_sync_cursor: clock=42" in page
    for label in ("mode", "reach", "last confirmed", "peer view"):
        assert not any(line.startswith(f"{label} ") for line in page.splitlines()), label


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ({"state": "active", "peer_view": {"mode": "polling"}}, "; they wait for its poll"),
        ({"state": "active", "peer_view": {"mode": "on-demand"}}, "; it reads when its operator asks"),
        ({"state": "active", "peer_view": {"mode": "continuous"}}, ""),
        ({"state": "active", "peer_view": None}, ""),
        ({"state": "active", "offline_since": "2026-01-01T00:00:00.000Z"}, "; the peer is offline"),
        ({"state": "paused", "peer_view": {"mode": "polling"}}, "; the pair is paused"),
        ({"state": "revoked", "peer_view": {"mode": "polling"}}, ""),
    ],
)
def test_what_the_peer_has_not_read_waits_for_something(pair: dict[str, Any], text: str) -> None:
    assert _until({**pair, "outbound": {"clock": 1, "lag_records": 2}}) == text
    assert _until({**pair, "outbound": {"clock": 1, "lag_records": 0}}) == ""
