"""Every command line of the README is one that the product has."""

import re
import shlex
from pathlib import Path

from spl.cli import main as cli
from spl.cli.command import Command, parser_of

README = Path(__file__).parent.parent.parent / "README.md"
LINE = re.compile(r"^(?:[a-z]*\$ )?(?:[A-Z_]+=\S+ )*spl (.+)$", re.MULTILINE)


def command_lines() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [found.partition(" #")[0].strip() for block in blocks for found in LINE.findall(block)]


def test_the_readme_has_command_lines() -> None:
    assert len(command_lines()) > 25


def test_every_command_line_of_the_readme_parses() -> None:
    for line in command_lines():
        words = shlex.split(line.replace("[", "").replace("]", ""))
        words = words[: next((at for at, word in enumerate(words) if word in ("|", "<", ">")), None)]
        command, rest = cli.find(words)
        assert isinstance(command, Command), line
        parser_of(command).parse_args(rest)
