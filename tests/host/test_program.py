"""A daemon imports late only from the files that it began with, and says so otherwise."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import spl
from spl.host import program

PROGRAM = """
import sys
from spl.host import program
assert program.load("core.query").__name__ == "spl.core.query"
print("ready", flush=True)
sys.stdin.readline()
from spl.core.errors import SplError
assert program.load("core.query").__name__ == "spl.core.query"
try:
    program.load("core.portion")
except SplError as exc:
    print(exc.code)
"""


def told(tree: Path, change: str) -> str:
    """Return what a process says of a late import after its package was changed in that way."""
    shutil.copytree(Path(str(spl.__file__)).parent, tree / "spl", ignore=shutil.ignore_patterns("__pycache__"))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if change == "moved":
        (tree / "spl").rename(tree / "spl.old")
    elif change == "replaced":
        shutil.copytree(tree / "spl", tree / "new")
        (tree / "spl").rename(tree / "spl.old")
        (tree / "new").rename(tree / "spl")
    said, _ = process.communicate("\n")
    assert process.returncode == 0
    return said.strip()


def test_a_program_that_was_moved_or_replaced_is_imported_no_further(tmp_path: Path) -> None:
    for change, wanted in (("moved", "program-replaced"), ("replaced", "program-replaced"), ("left", "")):
        (tmp_path / change).mkdir()
        assert told(tmp_path / change, change) == wanted


def test_a_lazy_part_is_made_once_when_it_is_first_asked_for() -> None:
    asked: list[int] = []

    def make() -> object:
        asked.append(1)
        return object()

    part = program.Lazy(make)
    assert (part.made, asked) == (None, [])
    assert part() is part() is part.made
    assert asked == [1]
