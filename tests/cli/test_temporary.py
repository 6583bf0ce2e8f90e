"""Throw-away daemons take nothing from the operator's settings, and leave nothing when they cannot start.

That they run and end is seen in tests/e2e/test_soak.py and test_demo.py.
"""

import signal
import sys
import tempfile
from pathlib import Path

import pytest

from spl.cli.client import CtlError
from spl.cli.temporary import TemporaryDaemons, ended_by_signals


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


def test_only_the_first_stop_signal_ends_the_command() -> None:
    """A second one, while the daemons are ended, would leave them running."""
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        with ended_by_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGHUP)
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_runs_at_the_home_of_its_daemon() -> None:
    made = One({}, lambda text: None)
    assert made.command("one", "federation", "list")[1:] == [
        "-m", "spl", "federation", "--home", str(made.home("one")), "list",
    ]  # fmt: skip
