"""Nothing acknowledged is lost when daemons are killed and lose their power under load; `tools/crash` does far more."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.crash.power import JOURNAL, LIES, SIDE, cut
from tests.crash.storm import Storm, made
from tests.e2e.harness import ROOT

COUNT = 60
WRITER = """
import os, sys
from pathlib import Path
from spl.home.disk import Disk
from tests.crash.power import Journal, install

install(Journal(Path(os.environ["SPL_POWER"])))
disk = Disk()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    file = disk.open_append(folder / "log")
    file.write(b"synced")
    file.sync()
    disk.fsync_dir(folder)
    file.write(b"+more")
    file.write(b"+last")
    disk.replace_atomic(folder / "whole", b"old")
    disk.create(folder / "next").write(b"new")
    disk.rename(folder / "next", folder / "whole")
    disk.unlink(folder / "none")
"""


def test_what_was_acknowledged_outlasts_kills_and_power_cuts_everywhere(tmp_path: Path) -> None:
    figures = Storm(records=600, kills=3, cuts=2, seed=1).run(tmp_path, print)
    assert figures["acknowledged"] >= 600
    assert figures["held"] >= figures["acknowledged"]


class Worst(Random):
    """Dice by which a cut takes all that it may."""

    def randrange(self, *bounds: int) -> int:  # type: ignore[override]
        return 0

    def randint(self, a: int, b: int) -> int:
        return a


@pytest.mark.parametrize("syncs", [True, False])
def test_a_daemon_that_does_not_sync_is_found_out(tmp_path: Path, syncs: bool) -> None:
    node = made(tmp_path, "ann", **({} if syncs else {LIES: "1"}))
    try:
        acknowledged = node.emit("th_cut", 20)
        node.kill()
        cut(node.home, node.side, Worst())
        left = b"".join(path.read_bytes() for path in (node.home / "store").rglob("*") if path.is_file())
        assert [id_.encode() in left for id_ in acknowledged] == [syncs] * 20
    finally:
        node.end()


def test_a_cut_takes_what_no_sync_covered_and_nothing_else(tmp_path: Path) -> None:
    """Bytes: all, none, the first with a torn one, or any with zeros between; names: back to what they stood for."""
    home, side = tmp_path / "home", tmp_path / "side"
    for number in range(COUNT):
        (home / f"{number:02}").mkdir(parents=True)
    environment = {**os.environ, SIDE: str(side)}
    subprocess.run([sys.executable, "-c", WRITER, str(home)], cwd=ROOT, env=environment, timeout=120, check=True)
    whole = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert set(whole.values()) == {b"synced+more+last", b"new"}
    assert cut(home, side, Random(1)) > COUNT
    assert not (side / JOURNAL).exists()
    logs = {path.read_bytes() for path in home.glob("*/log")}
    assert len(list(home.glob("*/log"))) == COUNT
    assert {b"synced", b"synced+more", b"synced+more+last", b"synced\0\0\0\0\0+last"} <= logs
    torn = logs - {b"synced", b"synced+more", b"synced+more+last", b"synced\0\0\0\0\0+last"}
    assert torn
    assert all(b"synced+more+last".startswith(log) and log.startswith(b"synced") for log in torn)
    wholes = {path.read_bytes() for path in home.glob("*/whole")}
    assert len(list(home.glob("*/whole"))) == COUNT
    assert b"old" in wholes
    assert wholes <= {b"old", b"", b"n", b"ne", b"new"}
