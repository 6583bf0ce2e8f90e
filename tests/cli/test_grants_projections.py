"""Projections on a terminal: each says whose claim it is."""

from tests.cli.conftest import BOB, Daemon, Run, listed

BASE = "/v1/federation/pairs/pair_1/projections"
ONE = {"object": "projection", "claimed_by": BOB, "id": "ab" * 32, "level": "L1", "namespace": "projects/music",
       "peer_namespace": "music", "sequence": 7, "thread": "th", "act": "DO", "actor": "did:sync:user:bo", "clock": 1,
       "body": {"redacted": True, "level": "L1", "hashes": {}}}  # fmt: skip
HIDDEN = {key: value for key, value in ONE.items() if key not in ("act", "actor")} | {"level": "L3", "sequence": 9}


def test_each_row_names_whose_claim_it_is(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", f"{BASE}?after=0&limit=500"] = {**listed(ONE, HIDDEN), "next_after": None}
    result = spl("federation", "projections", "pair_1", tty=True)
    assert result.out == (
        "SEQ  SOURCE          LEVEL  NAMESPACE       THREAD  ACT  ACTOR             ID\n"
        "7    claimed by bob  L1     projects/music  th      DO   did:sync:user:bo  abababababababab\n"
        "9    claimed by bob  L3     projects/music  th      -    -                 abababababababab\n"
    )
    assert "ab" * 32 in spl("federation", "projections", "pair_1", "-o", "wide").out
    assert spl("federation", "projections", "pair_1", "-o", "json").data == [ONE, HIDDEN]


def test_pages_are_walked_also_empty_ones_until_there_are_enough(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", f"{BASE}?after=3&limit=2&namespace=a%2Fb"] = {**listed(), "next_after": 5}
    daemon.answers["GET", f"{BASE}?after=5&limit=2&namespace=a%2Fb"] = {**listed(ONE), "next_after": 7}
    daemon.answers["GET", f"{BASE}?after=7&limit=1&namespace=a%2Fb"] = {**listed(HIDDEN), "next_after": 9}
    words = "federation projections pair_1 --namespace a/b --since 3 --limit 2"
    result = spl(*words.split())
    assert result.out.count("claimed by bob") == 2
    assert "--since 9" in result.err
    assert spl("federation", "projections", "pair_1", "--limit", "0").code == 2


def test_none_is_no_error(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", f"{BASE}?after=0&limit=500"] = {**listed(), "next_after": None}
    result = spl("federation", "projections", "pair_1", tty=True)
    assert (result.code, "spl consent list pair_1" in result.err) == (0, True)
