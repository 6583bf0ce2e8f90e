"""A command as a value, its arguments as data, and the shell a command runs in.

Arguments are values (`arg(...)`) and not functions over a parser, so that commands share them, a table of similar
commands can be built from them, and no command can bring a check of its own that another one lacks.
"""

import argparse
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from ..core.errors import SplError
from ..core.when import DURATION_MS_MAX, WhenError, duration_ms, span_fine
from .fit import HOME_DEFAULT
from .out import FORMS, Out

if TYPE_CHECKING:
    from .client import Ctl

FOUND_PROBLEMS: Final = 3
INTERRUPTED: Final = 130
"""Exit codes that are not those of an error."""
_SAYS_WHERE: Final = ("SPL_SERVE_URL", "SYNCROPEL_HOME", "STATE_DIRECTORY")
CONTEXTS: Final = "spl/contexts.json"
"""The user's file of contexts, below the folder of configurations."""
VALUED: Final = frozenset({"-o", "--output", "--home", "--context"})
"""The common options that take a value; they may stand before the command too."""

TOKEN_BYTES_MAX: Final = 4096
"""Read of stdin for a token, which has some 100 bytes: a wrong file is refused and not read."""

_COLUMNS: Final = 80
_NUMBER: Final = re.compile("-?[0-9]{1,19}")


class UsageError(SplError):
    """The command line has the wrong form."""


class Shell:
    """What a command works with: its home, its output, the daemon, the clock and the source of randomness."""

    def __init__(
        self,
        home: str,  # as --home gives it, "" without
        env: Mapping[str, str],
        out: Out,
        stdin: BufferedIOBase,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        load: Callable[[str], ModuleType],
        context: str = "",  # as --context gives it, "" without
    ) -> None:
        self._given_home, self._given_context = home, context
        self.env = env
        self.out = out
        self.stdin = stdin
        self.now_ms = now_ms
        self.random_bytes = random_bytes
        self.load = load
        """Returns a module of the package by its name: what few commands need and takes long to import."""
        self._ctl: Ctl | None = None
        self._context: Any = False  # not looked up yet
        self._home = ""

    @property
    def home(self) -> str:
        """The absolute path of the home folder.  Raises SplError "home-unusable" if there is none to be found."""
        if self._given_context:
            raise UsageError("usage", "this command works on a home of this machine, and --context names a daemon")
        self._home = self._home or _absolute(
            self._given_home
            or self.env.get("SYNCROPEL_HOME")
            or self.env.get("STATE_DIRECTORY", "").partition(":")[0]  # in a unit of systemd
            or HOME_DEFAULT,
            self.env,
        )
        return self._home

    @property
    def ctl(self) -> "Ctl":
        """The client for the daemon, whose files the daemon itself does without."""
        if self._ctl is None:
            context, trace = self.context, self.out.detail
            made: Ctl = (
                context.ctl(trace) if context is not None
                else self.load("cli.client").open_ctl(self.home, self.env, trace)
            )  # fmt: skip
            self._ctl = made
        return self._ctl

    @property
    def distant(self) -> bool:
        """Whether SPL_SERVE_URL or a context names the daemon, so that this home says nothing about it."""
        return self.context is not None or bool(self.env.get("SPL_SERVE_URL"))

    @property
    def context(self) -> Any:
        """The cli.contexts.Context that names the daemon; None for that of the home or of SPL_SERVE_URL.

        What is said for one command goes before the environment, and that before what was selected once: a script
        that sets SYNCROPEL_HOME never reaches another daemon.
        """
        if self._context is False:
            env, name = self.env, self._given_context
            if not name and not self._given_home and not env.get("SPL_SERVE_URL"):
                name = env.get("SPL_CONTEXT", "")
            said = name or self._given_home or any(env.get(each) for each in _SAYS_WHERE)
            self._context = None
            if name:
                self._context = self.load("cli.contexts").read(env).get(name)
            elif not said and os.path.exists(path_of_contexts(env)):
                found = self.load("cli.contexts").read(env)
                self._context = found.named.get(found.selected)
        return self._context

    def token(self) -> str:
        """Return the text of a token from stdin, "" if there is none."""
        return self.stdin.read(TOKEN_BYTES_MAX).decode(errors="replace").strip()

    @contextmanager
    def source(self, path: str | None, what: str) -> Iterator[BufferedIOBase]:
        """Open the file at `path`, or stdin without one, for which a terminal is told `what` is read.

        Raises UsageError if the file cannot be opened.
        """
        if not path:
            if self.stdin.isatty():
                self.out.hint(f"reading {what}; Ctrl-D ends")
            yield self.stdin
            return
        try:
            file = open(path, "rb")  # noqa: SIM115
        except OSError as exc:
            raise UsageError("usage", f"cannot read {path}: {exc.strerror}") from exc
        with file:
            yield file

    def printed(self, schema: str, data: Any) -> bool:
        """Print the daemon's data for programs and return True; return False if the form is one for people."""
        return self.out.data(schema, data, self.ctl.instance)


def write_file(path: str | os.PathLike[str], text: str | None) -> None:
    """Give a file its whole content, or none of it; with None, only see whether that could be done.

    Who else may write into the folder may have planted something there: no link is followed, nothing but a file of our
    own is replaced, and nobody is waited for.  Raises OSError.
    """
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise FileExistsError(errno.EEXIST, "a link, a folder or something else that is no file is in its place")
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"the file there is owned by user {found.st_uid}")
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:200]}.{os.urandom(8).hex()}")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text or "")
        if text is not None:
            os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the command's help as the next step."""
        raise UsageError("usage", message, hint=f"{self.prog} --help")


class Arg(NamedTuple):
    """One argument of a command, as argparse takes it; of those with one `choice` at most one may be given."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]
    choice: str = ""


class Command(NamedTuple):
    """One command: its words, its concept in two sentences, an example that runs, the code, the arguments."""

    name: str
    concept: str
    example: str
    run: Callable[[argparse.Namespace, Shell], int]
    args: tuple[Arg, ...] = ()
    result: bool = True
    """Whether it prints a result, whose form `-o` sets."""
    whose: str = "any"
    """What it works on: "any" daemon, a "home" of this machine, or "nobody"; its help names no option beyond that."""


class Group(NamedTuple):
    """Commands under one noun."""

    name: str
    concept: str
    example: str
    commands: tuple[Command, ...]


def arg(*names: str, choice: str = "", **settings: Any) -> Arg:
    """Return an argument; `settings` are those of argparse."""
    return Arg(names, settings, choice)


def number(low: int, high: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number within bounds.

    Digits only: int() alone would also take "1_0", foreign digits, and thousands of them.
    """

    def read(text: str) -> int:
        if _NUMBER.fullmatch(text) is None or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text[:40]!r}")
        return int(text)

    return read


def duration(low_ms: int = 0, high_ms: int = DURATION_MS_MAX) -> Callable[[str], int]:
    """Return the type of an argument that is a duration within bounds; its value is in milliseconds."""

    def read(text: str) -> int:
        try:
            ms = duration_ms(text)
        except WhenError as exc:
            raise argparse.ArgumentTypeError(f"{exc.message}; {exc.hint}") from exc
        if not low_ms <= ms <= high_ms:
            raise argparse.ArgumentTypeError(
                f"must be from {span_fine(low_ms)} to {span_fine(high_ms)}, not {text[:40]!r}"
            )
        return ms

    return read


SEQ_MAX: Final = 2**53 - 1

SINCE: Final = arg(
    "--since",
    type=number(0, SEQ_MAX),
    default=0,
    metavar="SEQ",
    help="only those after this number of column SEQ (default: 0)",
)
PAIR: Final = arg("pair", metavar="PAIR", help="pair id, a unique prefix of one, or the peer's label or DID")
NAME: Final = arg("name", metavar="NAME", help="the rule's name")


def limit(default: int) -> Arg:
    """Return the argument --limit of a list that is read page by page."""
    return arg("--limit", type=number(1, SEQ_MAX), default=default, metavar="N", help=f"at most N (default: {default})")


def parser_of(command: Command) -> Parser:
    """Return the argument parser of a command, common options included."""
    parser = Parser(
        prog=f"spl {command.name}",
        description=command.concept,
        epilog=f"example:\n{indented(command.example)}",
        formatter_class=_page,
        allow_abbrev=False,
        add_help=False,
    )
    names = {each.choice for each in command.args if each.choice}
    choices = {name: parser.add_mutually_exclusive_group() for name in names}
    for each in command.args:
        choices.get(each.choice, parser).add_argument(*each.names, **each.settings)
    common = parser.add_argument_group("common options")
    # argparse cannot print a choice of which a part is hidden
    whose = common.add_mutually_exclusive_group() if command.whose == "any" else common
    home, context = "home folder (SYNCROPEL_HOME, default ~/.syncro)", "ask the daemon of a context (SPL_CONTEXT)"
    whose.add_argument("--home", metavar="DIR", help=argparse.SUPPRESS if command.whose == "nobody" else home)
    whose.add_argument("--context", metavar="NAME", help=context if command.whose == "any" else argparse.SUPPRESS)
    if command.result:
        forms = f"form of the result: {', '.join(FORMS[:-1])} or {FORMS[-1]} (default: table)"
        common.add_argument("-o", "--output", metavar="FORM", choices=FORMS, default="table", help=forms)
        common.add_argument("-q", "--quiet", action="store_true", help="print no hints and notes on stderr")
        common.add_argument("-v", "--verbose", action="store_true", help="print each request to the daemon on stderr")
    common.add_argument("-h", "--help", action="store_true", help="show this page")
    return parser


def actions_of(command: Command) -> list[argparse.Action]:
    """Return the arguments that the help of a command names, common options included."""
    actions = parser_of(command)._actions  # argparse has no public list of them
    return [each for each in actions if each.help != argparse.SUPPRESS]


def _page(prog: str) -> argparse.HelpFormatter:
    """Return the form of help pages.

    Without a width argparse would import `shutil` for each command, and a daemon would keep it.
    """
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(sys.stdout.fileno()).columns
    except (ValueError, OSError):
        columns = 0
    return argparse.RawDescriptionHelpFormatter(prog, width=(columns or _COLUMNS) - 2)


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
    return re.split(r"[.:;](?:\s|\Z)", concept, maxsplit=1)[0].replace("\n", " ") + "."


def indented(text: str) -> str:
    """Return the text with each line two spaces in."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def path_of_contexts(env: Mapping[str, str]) -> str:
    """Return the path of the user's file of contexts."""
    folder = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    return os.path.join(folder, CONTEXTS)


def _absolute(home: str, env: Mapping[str, str]) -> str:
    """Return the path of a home folder as an absolute one.  Raises SplError "home-unusable".

    A process without HOME and without a login name, as in some containers, would otherwise get a folder named "~", and
    a new identity in each working folder.
    """
    path = os.path.expanduser(home)
    if path.startswith("~") or (home.startswith("~/") and not os.path.isabs(env.get("HOME", "/"))):
        hint = "set SYNCROPEL_HOME or HOME to an absolute path, or give --home DIR"
        raise SplError("home-unusable", f"{home} names no folder: this user has no home folder", hint=hint)
    try:
        return os.path.abspath(path)
    except FileNotFoundError as exc:
        hint = "set SYNCROPEL_HOME to an absolute path, or change to another folder"
        raise SplError("home-unusable", f"{home} is relative, and the current folder was removed", hint=hint) from exc
