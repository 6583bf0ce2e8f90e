"""Facts from what the daemon and the home know, without asking anybody."""

import fcntl
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.pair.pair import Pair
from spl.core.pair.state import Active, Asked, Degraded, PausedByPeer, Revoked, TokenRef, Waiting
from spl.core.pair.status import IntakeStatus, LastError, PairStatus, StreamStatus
from spl.doctor import gather
from spl.doctor.catalogue import findings
from spl.doctor.facts import Facts
from spl.doctor.gather import PairContext
from spl.doctor.health import HealthSampler
from spl.home.disk import Disk
from spl.home.home import now_ms, open_home, read_config
from spl.sync.changes import OfferedStatus
from tests.pair_world import two

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
UNKNOWN = OfferedStatus()
PEER = "did:sync:instance:bob-0123456789abcdef01234567"


def samples(**told: float) -> HealthSampler:
    """Return what facts read of the samples: for how long a pair fails, and so on."""
    known = {"failing_s": 0.0, "still_s": inf, "stalled_s": 0.0, "full_s": 0.0, "mute_s": 0.0, "behind_s": 0.0, **told}
    return cast(HealthSampler, SimpleNamespace(**{name: lambda _, s=s: s for name, s in known.items()}))  # type: ignore[misc]


def a_token(expires_at_ms: int, *scopes: str, since_ms: int = NOW_MS - 88 * DAY_MS) -> TokenRef:
    scopes = scopes or ("federation:sync", "federation:subscribe")
    return TokenRef("tok_1", scopes, expires_at_ms, "h", since_ms)


def a_pair(**changed: Any) -> Pair:
    """Return what facts read of a pair."""
    token = a_token(NOW_MS + 61 * DAY_MS)
    state = changed.pop("state", Active())
    fields: dict[str, Any] = {
        "pair_id": "pair_0f9e8d7c", "peer_did": PEER, "url": "https://bob.example", "state": state,
        "phase": state.phase, "reason": state.reason, "mode": "polling", "poll_interval_ms": 300_000, "paused_by": "",
        "ended": isinstance(state, Revoked), "live": True, "serve_allowed": state.syncs,
        "sync_allowed": state.syncs, "issued_to_us": token,
        "issued_by_us": token, "since_ms": NOW_MS - 9 * DAY_MS, "initiator": True, "answer": None,
    }  # fmt: skip
    return cast(Pair, SimpleNamespace(**{**fields, **changed}))


def status(**changed: Any) -> PairStatus:
    return replace(PairStatus(NOW_MS - 12_000, clock=42, lag_records=0, queue_max=9), **changed)


def seen(
    pair: Pair | None = None, told: PairStatus | None = None, *, trouble: SplError | None = None,
    troubled_s: float = 0.0, uptime_s: float = 86_400.0, unmoved: bool = False, way: str = "",
    offered: OfferedStatus = UNKNOWN, stranger: SplError | None = None, **health: float,
) -> Facts:  # fmt: skip
    context = PairContext(
        told or status(), offered, trouble, way, unmoved, uptime_s, NOW_MS, troubled_s=troubled_s, stranger=stranger
    )
    return gather.with_pair(Facts(), pair or a_pair(), samples(**health), context)


def codes(known: Facts) -> list[str]:
    return [item.code for item in findings(known)]


def test_a_healthy_pair_has_no_finding() -> None:
    assert codes(seen()) == []
    assert seen().confirmed_s == 12.0


def test_an_error_shows_after_half_a_minute_and_before_45_seconds() -> None:
    """Whatever polls fail: the word 'active' stands alone for less than that."""
    error = LastError("connect", "refused", 0)
    told = status(attempt=1, last_error=error)
    assert codes(seen(told=told, failing_s=25.0)) == []
    assert codes(seen(told=told, failing_s=30.0)) == ["connect"]
    assert codes(seen(told=status(last_error=error))) == []


def test_reads_that_fail_are_as_old_as_the_first_of_them() -> None:
    """Whatever the questions between them bring."""
    error = LastError("timeout", "no answer", 0)
    told = status(attempt=1, last_error=error, unread_s=31.0)
    assert codes(seen(told=told)) == ["timeout"]
    assert codes(seen(told=replace(told, unread_s=29.0))) == []


@pytest.mark.parametrize("code", ["manifest-did-mismatch", "identity-cloned"])
def test_another_daemon_in_the_peers_place_is_named_and_not_its_refusal(code: str) -> None:
    """It refuses our token, as it must; a peer that does not answer at all is another matter."""
    refused = status(attempt=3, last_error=LastError("auth-invalid", "unknown", 0, "AUTH", status=401))
    degraded, stranger = a_pair(state=Degraded("auth-invalid")), SplError(code, "http://bob.example is now carol")
    known = seen(degraded, refused, stranger=stranger)
    assert codes(known) == [code, "pair-degraded"]
    found = findings(known)[0]
    assert (found.evidence, found.fix.endswith("spl federation refresh pair_0f9e8d7c --url NEW-URL")) == (
        "http://bob.example is now carol", True,
    )  # fmt: skip
    asked = findings(replace(known, token_refused="the peer answers 401"))
    assert {item.code: item.explained_by for item in asked}["auth-invalid"] == code
    assert codes(seen(degraded, refused))[0] == "auth-invalid"
    gone = status(attempt=3, last_error=LastError("connect", "refused", 0))
    assert codes(seen(degraded, gone, stranger=stranger))[0] == "connect"
    assert codes(seen(told=refused, stranger=stranger)) == ["auth-invalid"]


def test_a_degraded_pair_names_its_cause_also_after_a_restart() -> None:
    """This process has tried nothing yet; the record says why."""
    for code in ("connect", "manifest-signature", "auth-invalid", "peer-rewound"):
        assert codes(seen(a_pair(state=Degraded(code))))[0] == code
    assert codes(seen(a_pair(state=Degraded("internal")))) == ["pair-degraded"]
    assert seen(a_pair(state=Degraded("connect"))).broken_s["connect"] == inf


def test_tokens_and_scopes() -> None:
    token = a_token(NOW_MS - 1, "federation:sync")
    known = seen(a_pair(issued_to_us=token))
    assert known.scopes_missing == ("federation:subscribe",)
    assert [item.explained_by for item in findings(known)] == ["", "token-expired"]
    for soon in (a_token(NOW_MS + 2 * DAY_MS), a_token(NOW_MS + HOUR_MS, since_ms=NOW_MS - 23 * HOUR_MS)):
        assert codes(seen(a_pair(issued_by_us=soon))) == ["token-expiring"]
        assert codes(seen(a_pair(issued_to_us=soon, live=False))) == []
    short = a_token(NOW_MS + 3 * HOUR_MS, since_ms=NOW_MS - 21 * HOUR_MS)
    assert codes(seen(a_pair(issued_by_us=short))) == [], "one of a day is renewed in its last two hours"


@pytest.mark.parametrize(("state", "code"), [(Asked(), "us"), (Waiting(), "peer")])
def test_who_decides(state: Any, code: str) -> None:
    known = seen(a_pair(state=state, live=False))
    assert known.waits_for == code
    assert codes(known) == ["handshake-pending"]


def test_a_handshake_that_is_refused() -> None:
    refused = SplError("handshake-401", "peer rejected handshake: 401 Unauthorized")
    found = findings(seen(a_pair(state=Waiting(), live=False), trouble=refused))
    assert [(item.code, item.explained_by) for item in found] == [
        ("handshake-401", ""), ("handshake-pending", "handshake-401"),
    ]  # fmt: skip


@pytest.mark.parametrize(("troubled_s", "first"), [(10.0, "handshake-pending"), (31.0, "connect")])
def test_a_request_to_a_peer_that_is_gone(troubled_s: float, first: str) -> None:
    gone = SplError("connect", "nothing listens")
    found = findings(seen(a_pair(state=Waiting(), live=False), trouble=gone, troubled_s=troubled_s))
    assert [item.code for item in found if not item.explained_by] == [first]


def test_a_cursor_that_stands_still() -> None:
    """Records wait for two polls and five minutes; a pair that nobody syncs by itself never stands still."""
    told = status(lag_records=138)
    assert codes(seen(told=told, stalled_s=590.0)) == []
    assert codes(seen(told=told, stalled_s=601.0)) == ["cursor-stalled"]
    assert codes(seen(a_pair(mode="continuous"), told, stalled_s=44.0)) == []
    assert codes(seen(a_pair(mode="continuous"), told, stalled_s=46.0)) == ["cursor-stalled"]
    for pair in (a_pair(mode="on-demand"), a_pair(state=PausedByPeer())):
        assert codes(seen(pair, told, stalled_s=9999.0)) == []


def test_a_stream_that_breaks_again_and_again() -> None:
    stream = StreamStatus("open", None, None, 4)
    assert codes(seen(a_pair(mode="continuous"), status(stream=stream))) == ["stream-flapping"]
    assert codes(seen(a_pair(), status(stream=None))) == []


def test_nothing_but_its_end_is_wrong_with_a_pair_that_ended() -> None:
    """Neither its stream, nor its intake, nor what waited when it ended."""
    stream = StreamStatus("down", None, None, 9)
    told = status(stream=stream, intake=IntakeStatus(wait_s=900.0), attempt=3)
    ended = a_pair(state=Revoked("revoked by peer", by_us=False), mode="continuous", live=False)
    offered = OfferedStatus(12, 7, 5, interval_s=0.0)
    assert codes(seen(ended, told, offered=offered, behind_s=900.0)) == ["peer-revoked"]


def test_a_peer_that_does_not_answer_is_gone_since_it_was_heard() -> None:
    """The first failure comes when the silence is long: it counts from its beginning."""
    nobody = status(attempt=1, last_error=LastError("timeout", "silent", NOW_MS, "TIMEOUT"))
    assert codes(seen(told=replace(nobody, unanswered_s=29.0), failing_s=1.0)) == []
    assert codes(seen(told=replace(nobody, unanswered_s=30.0), failing_s=1.0)) == ["timeout"]
    other = LastError("peer-5xx", "503", NOW_MS, "HTTP_5XX")
    assert codes(seen(told=replace(nobody, unanswered_s=99.0, last_error=other), failing_s=1.0)) == []


def test_a_poll_that_never_came() -> None:
    """Two intervals and a minute without a word and without an error: something hangs."""
    old = status(last_sync_ms=NOW_MS - 700_000)
    assert seen(told=old).overdue_s == 40.0
    assert codes(seen(told=old)) == ["cursor-stalled"]
    for since in ({"uptime_s": 20.0}, {"pair": a_pair(since_ms=NOW_MS - 20_000)}, {"still_s": 20.0}):
        assert codes(seen(told=old, **since)) == [], "just started, just resumed, or records still come in"


def test_a_stream_that_is_open_and_says_nothing_more() -> None:
    """Our own intake hangs: no error, and no word taken in for a minute; of a side that is pushed to, two intervals."""
    old = status(last_sync_ms=NOW_MS - 70_000, stream=StreamStatus("open", None, None, 0))
    live = a_pair(mode="continuous", poll_interval_ms=30_000)
    assert seen(live, old).overdue_s == 10.0
    assert codes(seen(live, old)) == ["cursor-stalled"]
    assert codes(seen(live, old, way="peer-pushes")) == []
    assert seen(live, replace(old, attempt=1)).overdue_s == 0
    assert seen(a_pair(mode="on-demand"), old).overdue_s == 0


def test_a_source_that_skips_records() -> None:
    """The pull ended well, records are left, and the position is older than this process."""
    known = seen(told=status(lag_records=3), unmoved=True, stalled_s=700.0)
    assert {item.code: item.explained_by for item in findings(known)} == {
        "cursor-stalled": "cursor-skip-suspect", "cursor-skip-suspect": "",
    }  # fmt: skip


def test_records_counted_since_the_last_read_are_not_skipped() -> None:
    """They wait for the next poll: the peer told its count in answer to a sign of life."""
    last_read = status(lag_records=1, last_sync_ms=NOW_MS - 200_000)
    assert codes(seen(told=last_read, unmoved=True, stalled_s=30.0)) == []
    assert "cursor-skip-suspect" in codes(seen(told=last_read, unmoved=True, stalled_s=201.0))


@pytest.mark.parametrize(("interval_s", "late_s"), [(0.0, 45.0), (10.0, 45.0), (300.0, 900.0)])
def test_a_peer_that_confirms_nothing(interval_s: float, late_s: float) -> None:
    """Later than a stream may be silent, and than three of its own intervals."""
    offered = OfferedStatus(12, 7, 5, interval_s=interval_s)
    assert codes(seen(offered=offered, behind_s=late_s)) == []
    known = seen(offered=offered, behind_s=late_s + 1)
    assert codes(known) == ["peer-behind"]
    assert findings(known)[0].evidence.startswith("5 records wait here for bob, which has confirmed nothing for ")
    assert codes(seen(a_pair(state=PausedByPeer(), paused_by="peer"), offered=offered, behind_s=late_s + 1)) == [
        "peer-paused"
    ]
    for unknown in (replace(offered, interval_s=None), replace(offered, lag_records=None)):
        assert codes(seen(offered=unknown, behind_s=99_999.0)) == []


def test_what_status_looks_at() -> None:
    """A pair that the peer revoked is shown for a day, unless there is a new one."""
    gone = a_pair(state=Revoked("revoked by peer: sold"))
    then_ms = gone.since_ms + 1000
    assert gather.is_watched(gone, {}, then_ms)
    assert not gather.is_watched(gone, {}, then_ms + DAY_MS)
    assert not gather.is_watched(gone, {"pair_1": a_pair()}, then_ms)
    assert not gather.is_watched(a_pair(state=Revoked("revoked")), {}, then_ms)
    assert gather.is_watched(a_pair(), {}, NOW_MS)
    strange = a_pair(state=Revoked("revoked by peer: withdrawn"), initiator=False, answer=None)
    assert not gather.is_watched(strange, {}, then_ms), "a stranger's request that nobody approved"


def test_the_daemons_own_facts(tmp_path: Path) -> None:
    """A full disk and a store that stopped are the disk's word, injected here."""
    disk = Disk()
    home = open_home(tmp_path, read_config(tmp_path, disk, {}), disk=disk, progress=lambda done, total: None)
    health = cast(HealthSampler, SimpleNamespace(loop_lag_ms=0.0, dead=list))
    try:
        known = gather.daemon_facts(home.store, home.vault, health, Limits(), NOW_MS)
        assert codes(replace(known, free_bytes=10**12)) == ["identity-missing"]
        disk.free_bytes = lambda folder: 5 * 10**7  # type: ignore[method-assign]
        home.store._readonly = "a disk sync failed"
        found = findings(gather.daemon_facts(home.store, home.vault, health, Limits(), NOW_MS))
        assert [(item.code, item.severity) for item in found] == [
            ("store-readonly", "fail"), ("disk-low", "fail"), ("identity-missing", "fail"),
        ]  # fmt: skip
    finally:
        home.close()


def test_an_identity_without_a_copy(tmp_path: Path) -> None:
    """A day after it was made, or after its key was rotated, it should have been exported."""
    disk = Disk()
    home = open_home(tmp_path, read_config(tmp_path, disk, {}), disk=disk, progress=lambda done, total: None)
    health = cast(HealthSampler, SimpleNamespace(loop_lag_ms=0.0, dead=list))

    def found(now_ms: int) -> list[str]:
        known = gather.daemon_facts(home.store, home.vault, health, Limits(), now_ms)
        return [code for code in codes(known) if code == "identity-backup"]

    try:
        made_ms = home.vault.generate("alice").created_at_ms
        assert found(made_ms + DAY_MS) == []
        assert found(made_ms + DAY_MS + 1) == ["identity-backup"]
        home.vault.export()
        assert found(made_ms + 99 * DAY_MS) == []
        home.vault.rotate("retired")
        assert found(made_ms + 99 * DAY_MS) == ["identity-backup"]
    finally:
        home.close()


def test_a_home_that_nobody_serves(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert gather.home_facts(path) == Facts(daemon_down=f"no daemon answers at {path}/run/spl.sock")
    assert not (tmp_path / "none").exists()
    assert codes(replace(gather.home_facts(tmp_path), free_bytes=10**12)) == ["daemon-down"]
    (tmp_path / "config.toml").write_text("port = 'x'\n")
    assert "config.toml:1" in gather.home_facts(tmp_path).config_error


def test_a_home_that_somebody_opened(tmp_path: Path) -> None:
    """Just now: it starts. For long: it hangs, and its process is named."""
    for since, code in ((when.text_of(now_ms()), "warming-up"), ("2026-01-01T00:00:00Z", "store-locked")):
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"4711\n{since}\n")
            lock.flush()
            found = {item.code: item.explained_by for item in findings(gather.home_facts(tmp_path))}
            assert found == {"daemon-down": code, code: ""}


async def test_a_real_pair_has_all_that_is_read(tmp_path: Path) -> None:
    """The stand-ins above have the members of a pair that two instances made."""
    async with two(tmp_path) as (_, a, b):
        await a.pair(b)
        pair = a.alive[0]
        context = PairContext(
            status(), OfferedStatus(), None, "", unmoved=False, uptime_s=1.0, now_ms=pair.created_at_ms
        )
        known = gather.with_pair(Facts(), pair, samples(), context)
        assert (known.label, known.scopes_missing) == ("bob", ())
        assert codes(known) == []
