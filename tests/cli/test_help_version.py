"""What is installed, told without a daemon."""

import re

from tests.cli.conftest import Run


def test_version(spl: Run) -> None:
    assert spl("version").out == spl("--version").out
    assert re.fullmatch(r"spl \d+\.\d+\.\d+\n", spl("version").out)
    assert spl("version", "-o", "json").data["version"] in spl("version").out
