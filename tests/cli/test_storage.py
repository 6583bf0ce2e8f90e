"""`spl store`: damage exits 3 and names its place; without a daemon the home is read under its lock."""

from pathlib import Path

from spl.disk import lock_home
from spl.setup import init_home
from tests.cli.conftest import Daemon, Run, chunked

DONE = {"step": "done", "lines": 5, "records": 4, "damaged": 0, "lost_lines": 0, "segments": 1}
DAMAGE = {"step": "damage", "what": "line", "segment": 1, "offset": 117, "seq": 2, "lines": 1}


def test_check_through_the_daemon(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/store/check"] = chunked({"step": "progress", "lines": 1, "of_lines": 5}, DONE)
    result = spl("store", "check")
    assert (result.code, result.out) == (0, "✓ 4 records in 5 lines, 1 segments: every hash and id holds\n")
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
    assert result.out.startswith("✓ 1 records in 1 lines")
    assert spl("store", "stats", "-o", "json").data["records_count"] == 1
    assert "records           1\n" in spl("store", "stats").out
    lock = lock_home(home)
    assert spl("store", "check").code == 11
    lock.release()
