"""What facts show: in words, and from which threshold on."""

from typing import Any

import pytest

from spl.core.limits import Limits
from spl.doctor import conditions as seen
from spl.doctor.facts import Facts
from tests.doctor.test_catalogue import failure

BOUNDS = "(warns at 30 s, refuses at 5 min)"
THEIRS, OURS = "the peer's token for us", "our token for the peer"


@pytest.mark.parametrize(
    ("evidence", "facts", "text"),
    [
        (seen.disk, {"free_bytes": 5 * 10**8}, "500 MB free on the disk of the store"),
        (seen.loop, {"loop_lag_ms": 2500.0}, "the daemon's event loop ran 2.5 s late within the last minute"),
        (seen.dead, {"dead_tasks": ("pair_1", "pair_2")}, "no sync task runs for pair_1, pair_2"),
        (seen.skew, {"clock_ahead_ms": 45_000}, f"the peer's clock is 45s ahead of ours {BOUNDS}"),
        (seen.skew, {"clock_ahead_ms": -600_000}, f"the peer's clock is 10m behind ours {BOUNDS}"),
        (seen.expiring, {"own_token_due": True, "own_token_left_ms": 259_200_000}, f"{OURS} expires in 3d"),
        (seen.expired, {"token_left_ms": -7_200_000}, f"{THEIRS} expired 2h ago, so each pull answers 401"),
        (seen.expired, {"own_token_left_ms": -1}, f"{OURS} expired 0s ago, so it cannot pull from us"),
        (seen.stalled, {"overdue_s": 40.0}, "the last answer of the peer is 40s overdue"),
        (seen.behind, {"peer_readonly": True, "label": "bob"}, "the store of bob takes no records now, as it says"),
        (seen.behind, {"peer_lag": 2, "peer_behind_s": 60.0}, "2 records wait here for the peer, which has confirmed"
                                                              " nothing for 1m"),
        (seen.tls_chain, {"published_tls": "https://a: self-signed"}, "https://a: self-signed"),
        (seen.throttled, failure("rate-limited", "429 slow down"), "429 slow down"),
        (seen.endpoint_strange, failure("peer-4xx", "404 nothing here"), "404 nothing here"),
        (seen.endpoint_strange, {"endpoint_status": 404}, "the pair endpoint answers a GET with 404, not 405"),
    ],
)  # fmt: skip
def test_what_is_seen(evidence: seen.Condition, facts: dict[str, Any], text: str) -> None:
    assert evidence(Facts(**facts)) == text
    assert evidence(Facts()) == ""


@pytest.mark.parametrize(
    ("evidence", "facts", "limits"),
    [
        (seen.disk, {"free_bytes": 5 * 10**8}, Limits(disk_low_bytes=10**8)),
    ],
)
def test_a_lowered_limit_bears_more(evidence: seen.Condition, facts: dict[str, Any], limits: Limits) -> None:
    """A small disk, a token that is renewed late on purpose: what the operator says is enough, is."""
    assert evidence(Facts(**facts))
    assert evidence(Facts(**facts, limits=limits)) == ""


@pytest.mark.parametrize(
    ("evidence", "facts", "limits"),
    [
        (seen.loop, {"loop_lag_ms": 300.0}, Limits(loop_late_s=0.2)),
        (seen.unsaved, {"unsaved_s": 60.0}, Limits(backup_due_s=59.0)),
        (seen.buffered, {"mute_s": 2.0}, Limits(check_s=1.0)),
        (seen.stalled, {"lag_records": 1, "broken_s": {"cursor-stalled": 2.0}}, Limits(stalled_s=1.0)),
    ],
)
def test_a_lowered_limit_bears_less(evidence: seen.Condition, facts: dict[str, Any], limits: Limits) -> None:
    assert evidence(Facts(**facts)) == ""
    assert evidence(Facts(**facts, limits=limits))


def test_a_full_disk_is_a_tenth_of_a_low_one() -> None:
    assert [seen.disk_full(Facts(free_bytes=free)) for free in (99_999_999, 100_000_000)] == [True, False]
    assert not seen.disk_full(Facts())
