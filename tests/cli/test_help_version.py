"""What is installed, told without a daemon."""

import re
import tomllib

from spl.core.version import DISTRIBUTION
from tests.cli.conftest import Run
from tests.pages import ROOT


def test_version(spl: Run) -> None:
    assert spl("version").out == spl("--version").out
    assert re.fullmatch(r"spl \d+\.\d+\.\d+ \(syncropel-pair\)\n", spl("version").out)
    assert spl("version", "-o", "json").data["version"] in spl("version").out


def test_the_distribution_is_named_as_it_is_published() -> None:
    """What tells people to install it again must not send them to a stranger's package."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION
