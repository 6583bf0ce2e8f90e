"""The run of the manual's page on engines, as it is printed: a server, a hub, two readers that verify, and equality."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import ROOT, free_port
from tests.engine.servers import binary
from tests.pages import MANUAL, blocks
from tests.waiting import DEADLINE_S

PAGE = MANUAL / "engine.md"
ENDS = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"


def tools(folder: Path) -> str:
    """Return a PATH on which `spl`, `python` and `nats-server` are those of the tests."""
    folder.mkdir()
    for name, words in (("spl", f"{sys.executable} -m spl"), ("python", sys.executable), ("nats-server", binary())):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o700)
    return f"{folder}:{os.environ['PATH']}"


def test_the_run_ends_in_equality_as_printed(tmp_path: Path) -> None:
    [run], [shown] = blocks(PAGE, "sh"), [text for text in blocks(PAGE, "text") if "-->" not in text]
    [reader] = (text for text in blocks(PAGE, "python") if text.startswith("# reader.py"))
    (tmp_path / "reader.py").write_text(reader)
    for port in ("4222", "9100"):
        run = run.replace(port, str(free_port()))
    assert len(run.splitlines()) == 5
    env = {"PATH": tools(tmp_path / "bin"), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:  # the jobs would hold pipes open
        done = subprocess.run(
            ["bash", "-c", ENDS + run],
            cwd=tmp_path,
            env=env,
            stdout=out,
            stderr=err,
            timeout=3 * DEADLINE_S,
            check=False,
        )
    assert done.returncode == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().endswith(shown)
    assert len((tmp_path / "one").read_text().split()) == 100
