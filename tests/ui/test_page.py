"""The page says what the other faces say, of whatever state, and nothing that a peer writes is more than text."""

from typing import Any

from spl.cli.pair_page import state_of
from spl.ui import page
from spl.ui.markup import Markup
from tests.ui.test_markup import Read

NOW_MS = 1_795_414_211_000
AT = "2026-11-23T06:08:11.000Z"
HOSTILE = "<img src=x onerror=alert(1)>‮"

ROW: dict[str, Any] = {
    "pair_id": "pair_a1b2c3d4", "peer_did": "did:sync:instance:bob-89abcdef0123456789abcdef", "url": "https://bob.example",
    "state": "active", "state_detail": "active", "mode": "polling", "poll_interval_ms": 300_000, "since": AT,
    "reason": "", "offline_since": None, "one_way": None, "peer_view": {"state": "paused", "at": AT, "readonly": True},
    "inbound": {"clock": 42, "lag_records": 138}, "outbound": {"clock": 7, "lag_records": 0}, "attempt": 0,
    "last_error": None, "last_sync_at": AT, "last_read_at": None, "lags": [None, 0, 138], "queues": [0, 0, 3],
    "queue_records": 2, "lag_ms": {"samples": 2, "p50_ms": 212, "p99_ms": 548}, "findings": [], "stalled": None,
    "transitions": [{"at": AT, "from": "establishing", "to": "active", "reason": ""}],
    "grants": [{"direction": "out", "namespace": "music", "peer_namespace": "projects/music", "granted": "L1",
                "level": "none", "missing": "the peer has not granted it", "sink": None, "pair_id": "pair_a1b2c3d4",
                "peer_did": "did:sync:instance:bob-89abcdef0123456789abcdef"}],
    "tokens": [{"direction": "issued to us", "token_id": "tok_1", "state": "live", "expires_at": AT}],
    "peer_words": "sable tin four oak rush dune",
}  # fmt: skip


def said(html: Markup) -> str:
    return " ".join(Read(html).said.split())


def row(**changed: Any) -> str:
    return said(page.pair({**ROW, **changed}, NOW_MS))


def test_a_pair_shows_both_sides_each_with_its_age() -> None:
    text = row()
    for part in ("active", "since 2m ago", "paused", "its store takes no records", "138 records behind",
                 "last sync 2m ago", "all confirmed", "confirmed never", "p50 212 ms, p99 548 ms", "polling every 5m",
                 "we grant music → projects/music (L1, in force none); the peer has not granted it"):  # fmt: skip
        assert part in text, part
    assert "nothing yet" in row(peer_view=None)


def test_a_pair_whose_last_attempt_failed_says_so_and_never_that_it_waits() -> None:
    failing = row(attempt=7, last_error={"code": "CONNECT", "message": "connection refused", "at": AT})
    assert "failing (connect), attempt 7" in failing
    assert "behind" not in failing.split("last sync")[0]
    assert "caught up" not in row(attempt=1, inbound={"clock": 42, "lag_records": 0})
    assert "not known yet" in row(inbound={"clock": 0, "lag_records": None})


def test_states_are_the_words_of_the_list_and_shapes_of_their_own() -> None:
    details = {"paused": "paused by peer", "degraded": "connect"}
    for state in page.STATES:
        pair = {**ROW, "state": state, "state_detail": details.get(state, state)}
        assert page.standing(pair) == (state, state_of(pair))
    assert page.standing({**ROW, "offline_since": AT}) == ("offline", "active, offline")
    assert page.standing({**ROW, "one_way": {"since": AT}}) == ("offline", "active, one-way")
    shapes = {str(page.mark(name)).split(' d="')[1] for name in (*page.STATES, "offline", "warn")}
    assert len(shapes) == len(page.STATES) + 2


def test_findings_stand_with_their_fix_and_lead_to_their_pair() -> None:
    finding = {
        "code": "token-expired",
        "severity": "fail",
        "title": "expired 2h ago",
        "fix": "spl federation refresh x",
    }
    status = {
        "identity": None, "version": "1.0.0", "url": "http://127.0.0.1:9100", "uptime_s": 90,
        "pairs": {"total": 2, "active": 1, "degraded": 1},
        "store": {"records": 33_180, "bytes": 41_200_000, "free_bytes": 18_200_000_000, "readonly": False},
        "lag": {"p50_ms": 212.0, "p99_ms": 548.0, "lag_records": 138}, "queue": {"now": 0, "max": 9},
        "attention": [{**finding, "pair_id": "pair_a1b2c3d4"}, {**finding, "code": "disk-low", "severity": "warn"}],
    }  # fmt: skip
    html = page.summary(status, NOW_MS)
    text = said(html)
    for part in ("33,180", "41.2 MB, 18.2 GB free", "212 / 548 ms", "1 active, 1 degraded", "token-expired",
                 "fix spl federation refresh x", "disk-low this daemon"):  # fmt: skip
        assert part in text, part
    assert 'href="#pair_a1b2c3d4"' in html
    assert "Nothing needs attention" in said(page.summary({**status, "attention": []}, NOW_MS))


def test_hostile_words_are_text_in_every_place() -> None:
    """Each text of a pair in turn; the elements stay those of an honest pair."""
    honest = [name for name, _ in Read(page.pair(ROW, NOW_MS)).elements]

    def check(changed: dict[str, Any]) -> None:
        read = Read(page.pair({**ROW, **changed}, NOW_MS))
        assert [name for name, _ in read.elements] == honest
        assert "‮" not in read.said

    for name, value in ROW.items():
        if isinstance(value, str) and name not in ("since", "last_sync_at", "state", "mode"):
            check({name: HOSTILE if name != "reason" else ""})
    for name in ("grants", "tokens", "transitions"):
        for key, value in ROW[name][0].items():
            if isinstance(value, str) and key not in ("at", "expires_at", "direction") and value:
                check({name: [{**ROW[name][0], key: HOSTILE}]})


def test_what_is_shared_and_what_has_ended() -> None:
    sink = {**ROW["grants"][0], "sink": "lake", "peer_did": None, "pair_id": None, "level": "L0"}
    text = said(page.sharing([*ROW["grants"], sink]))
    assert "bobwe grant music → projects/music" in text
    assert "sink lake(L0)" in text
    assert "Nothing is shared" in said(page.sharing([]))
    gone = {**ROW, "state": "revoked", "state_detail": "by-peer: moved on"}
    assert "3 revoked pairs" in (text := said(page.ended([gone], 3, NOW_MS)))
    assert "bob pair_a1b2c3d4 revoked (by-peer: moved on) 2m ago" in text
    assert "and 2 more" in text
    assert "hidden" in page.ended([], 0, NOW_MS)
