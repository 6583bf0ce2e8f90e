"""`spl demo` ends well, shows its commands, and leaves nothing; a stop signal ends its daemons too."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from spl.cli.demo import AFTER, APPROVAL, BEFORE, LOOK
from tests.e2e.harness import ROOT
from tests.waiting import DEADLINE_S, eventually


def environment(folder: Path) -> dict[str, str]:
    """Return an environment whose temporary folder and HOME are the test's; settings of an operator are ignored."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT), "SPL_PORT": "9100", "SYNCROPEL_HOME": str(folder / "none"),
    }  # fmt: skip


def test_the_demo_ends_with_both_holding_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spl", "demo"],
        env=environment(tmp_path), capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("demo: ok, both daemons hold the same 6 records\n")
    for name, line in (*BEFORE, *APPROVAL, *AFTER, *LOOK):
        assert f"\n{name}$ spl {line}\n" in done.stdout
    assert "Pair active." in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_stop_signal_ends_the_daemons_of_the_demo(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "spl", "demo"],
        env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        pids = []
        for line in demo.stdout:
            if found := re.search(r"pid (\d+)", line):
                pids.append(int(found[1]))
            if len(pids) == 2:
                break
        demo.send_signal(signal.SIGTERM)
        demo.stdout.read()
    assert demo.returncode == 128 + signal.SIGTERM
    eventually(lambda: not any(map(runs, pids)), "both daemons ended")
    assert not list(tmp_path.iterdir())


def runs(pid: int) -> bool:
    """Return whether a process with this id runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
