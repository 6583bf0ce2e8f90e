"""The manual's table of threats names every file of attacks, and no other."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent.parent / "spl/manual/security.md"


def test_the_manual_names_each_file_of_attacks_and_no_other() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", TABLE.read_text()))
    there = {path.name for path in HERE.glob("test_*.py")} - {Path(__file__).name}
    assert named == there
    for path in re.findall(r"`(tests/[\w/]+\.py)`", TABLE.read_text()):
        assert (TABLE.parent.parent.parent / path).is_file(), path
