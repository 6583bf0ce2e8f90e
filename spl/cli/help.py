"""`spl help` and `spl version`: the overview, the page of a command, the meaning of an error code, the version."""

import platform
from argparse import Namespace
from typing import Final

from ..core.errors import CODES, cli_code, http_code
from ..core.version import VERSION
from .command import Command, Shell, UsageError, arg, help_of


def _help(args: Namespace, shell: Shell) -> int:
    topic: list[str] = args.topic
    main = shell.load("cli.main")
    if not topic:
        shell.out.page(main.overview())
    elif topic == ["codes"]:
        shell.out.lines("\n".join(f"{code:<26}{entry.meaning}" for code, entry in CODES.items()))
    elif len(topic) == 1 and cli_code(topic[0]) in CODES:
        _explain(cli_code(topic[0]), shell)
    else:
        entry, rest = main.find(topic)
        if rest:
            raise UsageError("usage", f"no command or code is named '{' '.join(topic)}'", hint="spl help")
        shell.out.page(help_of(entry))
    return 0


def _explain(code: str, shell: Shell) -> None:
    entry = CODES[code]
    shell.out.card([
        ("code", code), ("on the wire", f"{http_code(code)}, HTTP status {entry.status}"),
        ("exit code", str(entry.exit)), ("means", entry.meaning), ("fix", entry.fix),
    ])  # fmt: skip


def _version(args: Namespace, shell: Shell) -> int:
    data = {"version": VERSION, "python": platform.python_version()}
    if not shell.out.data("spl.version/1", data, lambda: None):
        shell.out.line(f"spl {VERSION}")
    return 0


TREE: Final = (
    Command(
        "help",
        "Every error ends with a code in brackets; a code has one cause and one next step.\n"
        "`spl help CODE` prints both, `spl help codes` lists all codes, `spl help COMMAND` explains a command.",
        "spl help daemon-down",
        _help,
        (arg("topic", nargs="*", help="the words of a command, an error code, or `codes` for all of them"),),
        result=False,
    ),
    Command(
        "version",
        "Prints the version of the commands installed here. `spl status` prints that of the running daemon,\n"
        "which differs after an upgrade until the daemon is restarted.",
        "spl version",
        _version,
    ),
)
