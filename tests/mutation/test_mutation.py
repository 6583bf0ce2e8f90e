"""The tool that plants faults finds those that no test notices, and no others."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.mutation.mutants import applied, mutants
from tests.mutation.run import EXPLAINED

ROOT = Path(__file__).parents[2]
MODULE = '''"""A module."""

LIMIT = 10


def fits(size: int, *, strict: bool = False) -> bool:
    """Return whether a size fits."""
    assert size >= 0
    if strict and size == LIMIT:
        return False
    return size <= LIMIT


def check(size: int) -> None:
    """Raise unless it fits."""
    if not fits(size):
        raise ValueError("too-large")


def unused() -> int:
    """No test calls this."""
    return 1
'''
TESTS = """from toys.box import check, fits


def test_the_limit_fits():
    assert fits(10) and not fits(11)


def test_what_does_not_fit_is_refused():
    check(10)
    try:
        check(11)
    except ValueError:
        return
    raise AssertionError
"""
SURVIVORS = [
    "fits: `strict and size == LIMIT` without `size == LIMIT`", "fits: `size == LIMIT` with NotEq",
    "fits: without `return False`", "fits: False turned #2", "check: code 'too-large'", "unused: without `return 1`",
    "unused: 1 more by one", "unused: 1 less by one",
]  # fmt: skip


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    for name, text in (("toys/box.py", MODULE), ("tests/test_box.py", TESTS), ("pyproject.toml", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_survivors_are_named_and_the_files_stay(toys: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation.run", "--root", str(toys), "--package", "toys", "box"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    found = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("toys/box.py:")]
    assert sorted(found) == sorted(SURVIVORS), done.stdout + done.stderr
    assert done.returncode == 1
    assert (toys / "toys/box.py").read_text() == MODULE


def test_each_mutant_is_another_program_that_still_compiles() -> None:
    source = (ROOT / "spl/core/gate.py").read_text()
    texts = [ast.unparse(applied(source, mutant)) for mutant in mutants(source)]
    assert ast.unparse(ast.parse(source)) not in texts
    assert len(set(texts)) == len(texts)
    for text in texts:
        compile(text, "gate.py", "exec")


def test_a_mutant_keeps_its_name_when_lines_are_added_above() -> None:
    more = MODULE.replace("LIMIT = 10", "LIMIT = 10\n\n# more\n")
    assert [mutant.key for mutant in mutants(more)] == [mutant.key for mutant in mutants(MODULE)]


def test_survivors_are_explained_by_module() -> None:
    for module, reasons in tomllib.loads(EXPLAINED.read_text()).items():
        assert (ROOT / "spl" / f"{module.replace('.', '/')}.py").is_file()
        assert all(len(reason) > 20 for reason in reasons.values())
