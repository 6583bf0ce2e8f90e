"""Snapshots go to stdout byte by byte; restores are sent whole, or in pieces that follow one another."""

import json
from pathlib import Path
from typing import Any

import pytest

from spl.cli import threads
from tests.cli.conftest import Call, Daemon, Run, chunked, error

PLAN = {"object": "restore", "dry_run": False, "instance": "did:x", "thread": "th_r", "records": 3, "new": 2,
        "known": 1, "refused": 0, "refused_codes": {}, "refusals": [], "damaged": 0, "damaged_lines": []}  # fmt: skip


def test_snapshot_prints_the_bytes(spl: Run, daemon: Daemon) -> None:
    lines = [{"count": 1}, {"id": "é\u202e\x7f"}]
    daemon.answers["GET", "/v1/threads/th%2Fa/snapshot"] = chunked(*lines)
    daemon.answers["GET", "/v1/snapshot"] = chunked(*lines)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert spl("thread", "snapshot", "th/a").out == text
    assert spl("thread", "snapshot", "--all").out == text
    daemon.answers["GET", "/v1/snapshot"] = chunked(lines[0])
    assert "no records" in spl("thread", "snapshot", "--all").err
    daemon.answers["GET", "/v1/snapshot"] = chunked(*lines, end=False)
    assert spl("thread", "snapshot", "--all").code == 9


def test_a_snapshot_that_lacks_something_exits_3_and_says_where(spl: Run, daemon: Daemon) -> None:
    whole = chunked({"count": 1}, {"id": "a"})
    daemon.answers["GET", "/v1/snapshot"] = whole.replace(b"\r\n", b"\r\nspl-damaged: 7 40\r\n", 1)
    result = spl("thread", "snapshot", "--all")
    assert (result.code, result.out.count("\n")) == (3, 2)
    assert "damaged at sequence 7, 40" in result.err


def test_what_is_damaged_in_a_file_is_passed_over_if_asked(spl: Run, daemon: Daemon) -> None:
    plan = {**PLAN, "damaged": 2, "damaged_lines": [9]}
    daemon.answers["POST", "/v1/threads/restore?dry_run=0&skip_damaged=1"] = plan
    result = spl("thread", "restore", "--skip-damaged", stdin=b"x")
    assert result.code == 3
    assert "line 9: damaged" in result.out
    assert "2 lines of the file damaged or missing" in result.err


def test_a_file_that_was_cut_names_the_way_to_what_is_left(spl: Run, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a b.jsonl"
    file.write_text("x")
    daemon.answers["POST", "/v1/threads/restore?dry_run=0"] = (422, error("snapshot-malformed", "it is cut"))
    step = f"what is sound of it: spl thread restore --skip-damaged '{file}'"
    assert step in " ".join(spl("thread", "restore", str(file)).err.split())
    daemon.answers["POST", "/v1/threads/restore?dry_run=0"] = (422, error("snapshot-malformed", "the first line is no"))
    assert "--skip-damaged" not in spl("thread", "restore", str(file)).err  # nothing tells what is sound


def test_what_is_left_out_is_named(spl: Run, daemon: Daemon) -> None:
    own, stolen = {"th_aitl": 2, "th_rules": 1}, {"did:sync:instance:bob": 4}
    daemon.answers["POST", "/v1/threads/restore?dry_run=0"] = {
        **PLAN, "left_out": 7, "left_out_threads": own, "left_out_compromised": stolen,
    }  # fmt: skip
    result = spl("thread", "restore", stdin=b"x")
    assert result.code == 0
    assert "3 of that daemon's own threads: th_aitl, th_rules" in result.out
    assert "4 signed by a compromised key, which proves nothing: did:sync:instance:bob" in result.out


@pytest.mark.parametrize("words", [(), ("th_r", "--all")])
def test_snapshot_takes_a_thread_or_all(spl: Run, daemon: Daemon, words: tuple[str, ...]) -> None:
    assert spl("thread", "snapshot", *words).code == 2


def test_restore_reads_stdin_or_a_file(spl: Run, daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers["POST", "/v1/threads/restore?dry_run=0"] = PLAN
    result = spl("thread", "restore", stdin=b"head\nline\n")
    assert (result.code, daemon.sent("POST", "/v1/threads/restore?dry_run=0").body) == (0, b"head\nline\n")
    assert "2 restored" in result.out
    file = tmp_path / "x.snap.jsonl"
    file.write_bytes(b"other")
    assert spl("thread", "restore", str(file), "-o", "json").data == PLAN
    assert daemon.sent("POST", "/v1/threads/restore?dry_run=0").body == b"other"
    assert spl("thread", "restore", str(tmp_path / "none")).code == 2


def test_a_dry_run_prints_the_plan_and_what_is_refused(spl: Run, daemon: Daemon) -> None:
    refusal = {"line": 2, "code": "chain-unknown", "message": "the signature by did:x is not known here"}
    daemon.answers["POST", "/v1/threads/restore?dry_run=1"] = {
        **PLAN, "dry_run": True, "refused": 1, "refused_codes": {"chain-unknown": 1}, "refusals": [refusal]
    }  # fmt: skip
    result = spl("thread", "restore", "--dry-run", stdin=b"x")
    assert result.code == 3
    assert "2 would be restored" in result.out
    assert "line 2: the signature by did:x is not known here [chain-unknown]" in result.out
    assert "nothing of this file would be restored" in result.err


def test_a_big_file_goes_in_pieces(spl: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PIECE_BYTES", 4)
    got: dict[str, bytes] = {}

    def answer(call: Call) -> Any:
        got[call.target.partition("&")[2]] = call.body
        return PLAN

    class Any_(dict):  # type: ignore[type-arg]
        """Answers every target of the restore, whose upload id is random."""

        def __iter__(self) -> Any:
            return iter([("POST", call.target) for call in daemon.calls])

        def __getitem__(self, key: Any) -> Any:
            return answer

    daemon.answers = Any_()
    assert spl("thread", "restore", stdin=b"0123456789", env={}).code == 0
    assert got == {"at=0&more=1": b"0123", "at=4&more=1": b"4567", "at=8&dry_run=0": b"89"}
    assert len({call.target.partition("&")[0] for call in daemon.calls}) == 1


def test_a_refused_restore_says_why(spl: Run, daemon: Daemon) -> None:
    refused = error("record-signature", "line 7: the signature does not hold; nothing was restored", line=7)
    daemon.answers["POST", "/v1/threads/restore?dry_run=0"] = (422, refused)
    result = spl("thread", "restore", stdin=b"x")
    assert result.code == 10
    assert "[record-signature]" in result.err
