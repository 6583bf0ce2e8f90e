"""`spl store`: damage exits 3 and names its place; without a daemon the home is read under its lock."""

from pathlib import Path

from spl.home.disk import lock_home
from spl.home.home import init_home
from tests.cli.conftest import Daemon, Run, chunked

DONE = {"step": "done", "lines": 5, "records": 4, "damaged": 0, "lost_lines": 0, "held_lines": 0, "segments": 1}
DAMAGE = {
    "step": "damage",
    "what": "line",
    "segment": 1,
    "offset": 117,
    "seq": 2,
    "lines": 1,
    "held_lines": 0,
    "settled": False,
}


def test_check_through_the_daemon(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/store/check"] = chunked({"step": "progress", "lines": 1, "of_lines": 5}, DONE)
    result = spl("store", "check")
    assert (result.code, result.out) == (0, "✓ 4 records in 5 lines, 1 segment: every hash and id holds\n")
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE, {**DONE, "damaged": 1})
    result = spl("store", "check")
    assert result.code == 3
    assert "00000000000000000001.jsonl  117     2    1" in result.out
    data = spl("store", "check", "-o", "json").data
    assert (data["damages"][0]["offset"], data["damaged"]) == (117, 1)
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE)
    assert spl("store", "check").code == 9


def test_check_and_stats_without_a_daemon(spl: Run, home: Path) -> None:
    assert spl("store", "check").code == 6
    init_home(home, "alice")
    result = spl("store", "check")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("✓ 1 record in 1 line")
    assert spl("store", "stats", "-o", "json").data["records_count"] == 1
    assert "records           1\n" in spl("store", "stats").out
    lock = lock_home(home)
    assert spl("store", "check").code == 11
    lock.release()


REPAIR = {"step": "repair", "pair_id": "pair_00000001", "peer_did": "did:sync:instance:bob-" + "0" * 24}


def test_repair_tells_what_came_from_whom(spl: Run, daemon: Daemon) -> None:
    error = {"object": "error", "code": "CONNECT", "message": "it is down", "hint": "is it running?"}
    other = {**REPAIR, "pair_id": "pair_00000002", "error": error}
    done, back = (
        {**DONE, "damaged": 1, "lost_lines": 1},
        {"step": "repaired", "lost": 1, "fetched": 1, "still_lost": 0, "settled": 0},
    )
    index = {"step": "index", "bytes": 10, "of_bytes": 20}
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE, done, index, other, {**REPAIR, "fetched": 1}, back)
    result = spl("store", "check", "--repair")
    assert result.code == 0
    assert "pair_00000002  bob: nothing fetched: it is down [connect]; fix: is it running?\n" in result.out
    assert "pair_00000001  bob: 1 record fetched\n" in result.out
    assert "1 lost line recovered, nothing is missing any more" in result.out
    data = spl("store", "check", "--repair", "-o", "json").data
    assert (data["repaired"]["still_lost"], len(data["repaired"]["pairs"])) == (0, 2)


def test_what_is_still_lost_exits_3_and_says_why(spl: Run, daemon: Daemon) -> None:
    done, lost = (
        {**DONE, "damaged": 1, "lost_lines": 1},
        {"step": "repaired", "lost": 1, "fetched": 0, "still_lost": 1, "settled": 0},
    )
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE, done, {**REPAIR, "fetched": 0}, lost)
    result = spl("store", "check", "--repair")
    assert result.code == 3
    assert "1 of 1 lost lines could not be recovered" in result.err
    assert "reserved threads" in result.err
    assert "pairs and grants that were withdrawn by these lines are in force again" in result.err
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE, done, lost)
    assert "no pair may sync now" in spl("store", "check", "--repair").err
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE, done)
    assert spl("store", "check", "--repair").code == 9
    error = {"step": "error", "error": {"object": "error", "code": "STORE_READONLY", "message": "no", "hint": "x"}}
    daemon.answers["POST", "/v1/store/check"] = chunked(DAMAGE, done, error)
    assert spl("store", "check", "--repair").code == 12


def test_damage_that_lost_nothing_is_told_and_exits_0(spl: Run, daemon: Daemon) -> None:
    done = {**DONE, "damaged": 1, "lost_lines": 1, "held_lines": 1}
    daemon.answers["POST", "/v1/store/check"] = chunked({**DAMAGE, "held_lines": 1}, done)
    result = spl("store", "check")
    assert result.code == 0
    assert "1 damaged place, and nothing is missing any more" in result.out
    assert "stay on the disk" in result.err
    header = {**DAMAGE, "what": "header", "lines": 0}
    daemon.answers["POST", "/v1/store/check"] = chunked({**DAMAGE, "held_lines": 1}, header, {**done, "damaged": 2})
    assert spl("store", "check").code == 3
    looked = {**header, "settled": True}
    daemon.answers["POST", "/v1/store/check"] = chunked({**DAMAGE, "held_lines": 1}, looked, {**done, "damaged": 2})
    assert spl("store", "check").code == 0, "a repair looked at it"


def test_a_home_at_rest_cannot_be_repaired(spl: Run, home: Path) -> None:
    init_home(home, "alice")
    result = spl("store", "check", "--repair", env={"HOME": "/"})
    assert result.code == 5
    spl_here = f"SYNCROPEL_HOME={home} spl"
    assert f"{spl_here} serve\n            then again: {spl_here} store check --repair\n" in result.err
