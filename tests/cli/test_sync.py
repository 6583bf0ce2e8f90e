"""`spl sync`: one pair, one thread of a pair, or all."""

from tests.cli.conftest import BOB, Daemon, Run, error, listed

PAIR = "/v1/federation/pairs/did:sync:instance:bob/sync"


def test_one_pair_and_one_thread(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", PAIR] = {"pair_id": "pair_a1b2c3d4", "peer_did": BOB, "records": 12}
    assert spl("sync", "did:sync:instance:bob").out == "pair_a1b2c3d4  12 records fetched from bob\n"
    assert spl("sync", "th_r", "from", "did:sync:instance:bob").out == "pair_a1b2c3d4  12 records fetched from bob\n"
    assert [call.json() for call in daemon.calls] == [{}, {"thread": "th_r"}]
    assert spl("sync", "did:sync:instance:bob", "-o", "json").data["records"] == 12


def test_all_pairs_with_one_that_fails(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/sync"] = listed(
        {"pair_id": "pair_1", "records": 3}, {"pair_id": "pair_2", "records": 0, "error": error("connect", "refused")}
    )
    result = spl("sync")
    assert result.code == 9
    assert result.out == "PAIR ID  RECORDS  ERROR\npair_1   3        -\npair_2   0        CONNECT\n"
    assert result.err.startswith("error: refused [connect]\n")


def test_no_pairs(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/sync"] = listed()
    result = spl("sync", tty=True)
    assert (result.code, result.out) == (0, "")
    assert "spl federation pair URL" in result.err


def test_what_was_pushed_is_told_where_we_push(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", PAIR] = {
        "pair_id": "pair_a1b2c3d4",
        "peer_did": BOB,
        "records": 12,
        "pushed": 3,
        "reach": "we-push",
    }
    assert (
        spl("sync", "did:sync:instance:bob").out
        == "pair_a1b2c3d4  12 records fetched from bob, 3 records pushed there\n"
    )
