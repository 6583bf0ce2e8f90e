"""What the demo shows: commands of the product, each failing one with what it said.

The whole of it runs in tests/e2e/test_demo.py.
"""

import shlex
import sys

import pytest

from spl.cli import demo
from spl.cli import main as cli
from spl.cli.client import CtlError
from spl.cli.command import Command, parser_of
from spl.cli.demo import DemoDaemons, Story
from spl.cli.out import Out
from tests.cli.conftest import Stream


def test_every_command_of_the_story_is_one() -> None:
    for _, line in (*demo.BEFORE, *demo.APPROVAL, *demo.AFTER, *demo.LOOK):
        command, rest = cli.find(shlex.split(line))
        assert isinstance(command, Command), line
        parser_of(command).parse_args(rest)


def test_a_command_that_fails_ends_the_demo_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print('a result'); sys.exit('no luck')"
    monkeypatch.setattr(DemoDaemons, "command", lambda self, name, *words: [sys.executable, "-c", code])
    stdout = Stream(tty=False)
    stage = Story(DemoDaemons({}, lambda text: None), Out(stdout, Stream(tty=False), {}, lambda: 0))
    with pytest.raises(CtlError, match="no luck"):
        stage.play((("alice", "status"),))
    assert "alice$ spl status\na result\n" in stdout.text
