"""Throw-away daemons take nothing from the operator's settings, and leave nothing when they cannot start.

That they run and end is seen in tests/e2e/test_soak.py and test_demo.py.
"""

import sys
import tempfile
from pathlib import Path

import pytest

from spl.cli.client import CtlError
from spl.cli.temporary import TemporaryDaemons


class One(TemporaryDaemons):
    """A single daemon."""

    names = ("one",)
    purpose = "test"


def test_the_operators_settings_do_not_reach_them() -> None:
    env = {"PATH": "/bin", "SPL_LOOP": "asyncio", "SPL_PORT": "9100", "SPL_TOKEN": "x", "SYNCROPEL_HOME": "/home/o"}
    found = One(env, lambda text: None)._env
    assert {name: found[name] for name in found if name != "PYTHONPATH"} == {"PATH": "/bin", "SPL_LOOP": "asyncio"}
    assert (Path(found["PYTHONPATH"]) / "spl" / "__main__.py").exists()


@pytest.mark.parametrize("ends_in", ["init", "serve"])
def test_one_that_does_not_start_is_told_and_nothing_stays(
    ends_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spl(self: One, command: str, home: Path) -> list[str]:
        ends = f"import sys; print('one', file=sys.stderr); sys.exit('no {command} today')"
        return [sys.executable, "-c", ends if command == ends_in else "pass"]

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(One, "_spl", spl)
    with pytest.raises(CtlError) as caught, One({}, lambda text: None):
        pytest.fail("it started")
    assert f"no {ends_in} today" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_a_command_runs_at_the_home_of_its_daemon() -> None:
    made = One({}, lambda text: None)
    assert made.command("one", "federation", "list")[1:] == [
        "-m", "spl", "federation", "--home", str(made.home("one")), "list",
    ]  # fmt: skip
