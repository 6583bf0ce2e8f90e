"""The table of faults names tests that exist, so that no promise in it outlives what shows it."""

import ast
import re
from pathlib import Path

from spl.cli.manual import page

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")


def rows() -> list[list[str]]:
    """Return the cells of each row of the tables."""
    lines = [line for line in page("faults").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("fault", "---")]


def test_each_fault_has_a_promise_and_tests_that_exist() -> None:
    assert len(rows()) >= 60
    for fault, promise, shown in rows():
        assert fault
        assert promise
        named = NAMED.findall(shown)
        assert named, f"no test shows: {fault}"
        assert NAMED.sub("", shown).strip(", ") == ""
        for path, test in named:
            tree = ast.parse((ROOT / path).read_text())
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
