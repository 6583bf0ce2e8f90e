"""Pages for man(1): one a command, sound for mandoc, and with everything that --help has."""

import re
import subprocess
from pathlib import Path

import pytest

from spl.cli import main
from spl.cli.command import Command, Group, actions_of
from spl.core.errors import CODES
from tests.cli.conftest import Run


@pytest.fixture
def pages(spl: Run, tmp_path: Path) -> Path:
    folder = tmp_path / "man1"
    done = spl("help", "--man", str(folder))
    assert (done.code, f"{len(list(folder.iterdir()))} pages in" in done.out) == (0, True)
    return folder


def test_mandoc_finds_nothing(pages: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-W", "warning", *pages.iterdir()], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_command_option_and_code_is_told(pages: Path) -> None:
    overview = subprocess.run(["mandoc", "-Tascii", pages / "spl.1"], capture_output=True, text=True, check=True).stdout
    plain = _plain(overview)
    assert all(code in plain for code in CODES)
    for noun, place in main.PLACES.items():
        for entry in main.load(f"cli.{place.file}").TREE:
            if entry.name != noun:
                continue
            for command in entry.commands if isinstance(entry, Group) else (entry,):
                assert isinstance(command, Command)
                path = pages / f"spl-{command.name.replace(' ', '-')}.1"
                page = subprocess.run(["mandoc", "-Tascii", path], capture_output=True, text=True, check=True).stdout
                for action in actions_of(command):
                    assert all(name in _plain(page) for name in action.option_strings), (path, action)


def _plain(text: str) -> str:
    """Return the text without bold and underline, which a terminal makes of backspaces."""
    return re.sub(".\b", "", text)


def test_a_folder_that_cannot_be_written_is_said(spl: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = spl("help", "--man", str(tmp_path / "file"))
    assert (done.code, "[output-failed]" in done.err) == (1, True)
    assert spl("help", "pairs", "--man", "x").code == 2
