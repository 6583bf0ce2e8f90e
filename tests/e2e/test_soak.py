"""The soak against real daemons, a few seconds of it: rows, verdict, equal sets, and what a dead peer does to it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spl.cli.soak_plan import HEADER
from tests.e2e.conftest import Make
from tests.e2e.harness import Instance
from tests.waiting import DEADLINE_S, eventually

SECONDS = ("--window", "warmup=0.02", "--window", "ramp=0.02", "--window", "steady=0.03", "--window", "spike=0.02",
           "--window", "recovery=0.02")  # fmt: skip
ONE = ("--window", "ramp=0", "--window", "steady=0", "--window", "spike=0", "--window", "recovery=0")


def folders(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "tmp").glob("spl-soak-*"))


@pytest.fixture
def desk(make: Make, tmp_path: Path) -> Instance:
    """An operator without a daemon, whose temporary files are looked after."""
    (tmp_path / "tmp").mkdir()
    return make("desk", bare=True, TMPDIR=str(tmp_path / "tmp"))


def test_two_daemons_of_its_own_end_with_equal_sets(desk: Instance, tmp_path: Path) -> None:
    """All five windows, approvals and reloads too: each record synced, no error, sets compared, nothing left behind."""
    done = desk.run("federation", "soak", "--csv", *SECONDS)
    head, *rows = done.out.splitlines()
    assert head == HEADER
    cells = [row.split(",") for row in rows]
    assert [row[:4] for row in cells] == [
        ["warmup", "0.02", "5", "5"], ["ramp", "0.02", "11", "11"], ["steady", "0.03", "17", "17"],
        ["spike", "0.02", "44", "44"], ["recovery", "0.02", "10", "10"],
    ]  # fmt: skip
    assert all(row[7] == "0" and row[4].isdigit() and row[5].isdigit() for row in cells)
    assert "87 records emitted, 5 fold rules reloaded, 5 requests approved; both hold the same" in done.err
    assert "soak scaled" in done.err
    assert "soak passed" not in done.err
    assert not folders(tmp_path)


def test_a_live_pair_is_driven_from_one_side(alice: Instance, bob: Instance, pair_id: str) -> None:
    for side in (alice, bob):
        side.run("federation", "set-mode", pair_id, "continuous")
    done = alice.run("federation", "soak", pair_id, "--window", "warmup=0.05", *ONE, "-o", "json")
    assert "12 records emitted, 1 fold rule reloaded; the peer confirmed 12 of them" in done.err
    assert alice.data("config", "list-fold-rules") == []
    assert [(row["records_emitted"], row["errors"]) for row in done.data["rows"]] == [(12, 0)]
    held = {thread: ids for thread, ids in bob.holding().items() if thread.startswith("th_soak_")}
    assert held == {thread: ids for thread, ids in alice.holding().items() if thread.startswith("th_soak_")}
    assert sum(map(len, held.values())) == 12


def test_a_peer_that_dies_makes_it_fail(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Killed in the middle of a window: errors are counted, the row is kept, and the exit code is 3."""
    for side in (alice, bob):
        side.run("federation", "set-mode", pair_id, "continuous")
    soak = spawn(alice, pair_id, "--csv", "--window", "warmup=0.1", *ONE)
    eventually(lambda: any(name.startswith("th_soak_") for name in bob.holding()), "the first synced record")
    bob.kill()
    out, err = soak.communicate(timeout=120)
    assert soak.returncode == 3, err
    head, row = out.splitlines()
    assert head == HEADER
    assert int(row.split(",")[7]) > 0
    assert re.search(r"soak FAILED \(scaled\): errors \d", err)
    assert "target=syncropel_engine::federation" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_the_rows_and_leaves_nothing(desk: Instance, tmp_path: Path, number: int, code: int) -> None:
    soak = spawn(desk, "--csv", "--window", "warmup=0.02", "--window", "ramp=10")
    assert soak.stdout is not None
    assert soak.stdout.readline().strip() == HEADER
    assert soak.stdout.readline().startswith("warmup,0.02,5,5,")
    pids = [int(pid) for pid in Path(f"/proc/{soak.pid}/task/{soak.pid}/children").read_text().split()]
    assert len(pids) == 3
    soak.send_signal(number)
    soak.communicate(timeout=DEADLINE_S)
    assert soak.returncode == code
    assert not folders(tmp_path)
    assert not [pid for pid in pids if is_alive(pid)]


def test_a_pair_that_is_paused_is_refused(alice: Instance, pair_id: str) -> None:
    alice.run("federation", "pause", pair_id)
    assert "is paused" in alice.run("federation", "soak", pair_id, code=7).err
    alice.run("federation", "soak", "pair_none", code=6)


def spawn(instance: Instance, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "spl", "federation", "soak", *words], env=instance.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
