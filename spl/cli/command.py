"""A command as a value, the options that all share, and the shell a command runs in."""

import argparse
import re
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from types import ModuleType
from typing import Any, Final, NamedTuple, NoReturn

from ..core.errors import SplError
from .client import Ctl, open_ctl
from .out import FORMS, Out

VALUED: Final = frozenset({"-o", "--output", "--home"})
"""The common options that take a value; they may stand before the command too."""


class UsageError(SplError):
    """The command line has the wrong form."""


class Shell:
    """What a command works with: its home, its output, the daemon, and the outside world as functions."""

    def __init__(
        self,
        home: str,
        env: Mapping[str, str],
        out: Out,
        stdin: BufferedIOBase,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        load: Callable[[str], ModuleType],
    ) -> None:
        self.home = home
        self.env = env
        self.out = out
        self.stdin = stdin
        self.now_ms = now_ms
        self.random_bytes = random_bytes
        self.load = load
        """Returns a module of the package by its name; for what few commands need and takes long to load."""
        self._ctl: Ctl | None = None

    @property
    def ctl(self) -> Ctl:
        """The client for the daemon."""
        if self._ctl is None:
            self._ctl = open_ctl(self.home, self.env, self.out.detail)
        return self._ctl

    @property
    def distant(self) -> bool:
        """Whether SPL_SERVE_URL names the daemon, so that this home says nothing about it."""
        return bool(self.env.get("SPL_SERVE_URL"))

    def printed(self, schema: str, data: Any) -> bool:
        """Print the daemon's data for programs, with the instance it came from; False when people asked."""
        return self.out.data(schema, data, self.ctl.instance)


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the fault as our own error, with the command's help as the next step."""
        raise UsageError("usage", message, hint=f"{self.prog} --help")


class Command(NamedTuple):
    """One command: its words, its concept in two sentences, an example that runs, and the code."""

    name: str
    concept: str
    example: str
    run: Callable[[argparse.Namespace, Shell], int]
    options: Callable[[Parser], None] | None = None
    result: bool = True
    """Whether it prints a result, which `-o` gives a form."""


class Group(NamedTuple):
    """Commands under one noun."""

    name: str
    concept: str
    example: str
    commands: tuple[Command, ...]


def parser_of(command: Command) -> Parser:
    """Return the argument parser of a command, common options included."""
    parser = Parser(
        prog=f"spl {command.name}",
        description=command.concept,
        epilog=f"example:\n{indented(command.example)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    if command.options is not None:
        command.options(parser)
    common = parser.add_argument_group("common options")
    common.add_argument("--home", metavar="DIR", help="home folder (SYNCROPEL_HOME, default ~/.syncro)")
    if command.result:
        common.add_argument("-o", "--output", choices=FORMS, default="table", help="form of the result (default table)")
        common.add_argument("-q", "--quiet", action="store_true", help="no hints and notes on stderr")
        common.add_argument("-v", "--verbose", action="store_true", help="show each step on stderr")
    common.add_argument("-h", "--help", action="store_true", help="show this page")
    return parser


def help_of(entry: Command | Group) -> str:
    """Return the help page of a command or of a group."""
    if isinstance(entry, Command):
        return parser_of(entry).format_help()
    names = [command.name.rpartition(" ")[2] for command in entry.commands]
    width = max(map(len, names))
    verbs = [f"  {name:<{width}}  {gist(command.concept)}" for name, command in zip(names, entry.commands, strict=True)]
    return "\n".join([
        f"usage: spl {entry.name} COMMAND [options]", "", entry.concept, "", "commands:", *verbs, "",
        f"`spl {entry.name} COMMAND --help` explains one.", "", "example:", indented(entry.example), "",
    ])  # fmt: skip


def gist(concept: str) -> str:
    """Return the first part of a concept, up to a full stop, colon or semicolon, on one line."""
    return re.split(r"[.:;](?:\s|\Z)", concept, maxsplit=1)[0] + "."


def indented(text: str) -> str:
    """Return the text with each line two spaces in."""
    return "\n".join(f"  {line}" for line in text.splitlines())
