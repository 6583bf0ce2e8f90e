"""`spl help` and `spl version`: the overview, a command, a topic of the manual, an error code, the version."""

import platform
from argparse import Namespace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Final

from ..core.errors import CODES, SplError, cli_code, count, http_code, steps
from ..core.version import DISTRIBUTION, VERSION
from .command import Command, Group, Shell, UsageError, arg, help_of
from .manual import TOPICS, page, rendered, summary
from .out import column


def _help(args: Namespace, shell: Shell) -> int:
    topic: list[str] = args.topic
    main = shell.load("cli.main")
    if args.man:
        if topic:
            raise UsageError("usage", "--man takes no topic", hint="spl help --man FOLDER")
        _write_pages(Path(args.man), shell, main)
    elif not topic:
        shell.out.page(main.overview())
    elif topic == ["codes"]:
        shell.out.lines("\n".join(f"{code:<26}{entry.meaning}" for code, entry in CODES.items()))
    elif topic == ["topics"]:
        shell.out.lines("\n".join(f"{name:<15}{summary(name)}" for name in TOPICS))
    elif len(topic) == 1 and topic[0] in TOPICS:
        _read(topic[0], shell)
    elif len(topic) == 1 and cli_code(topic[0]) in CODES:
        _explain(cli_code(topic[0]), shell)
    else:
        entry, rest = _found(topic, main)
        if rest:
            raise UsageError("usage", f"no command, topic or code is named '{' '.join(topic)}'", hint="spl help")
        shell.out.page(help_of(entry))
    return 0


def _write_pages(folder: Path, shell: Shell, main: ModuleType) -> None:
    try:
        written = shell.load("cli.manpages").write(folder, main)
    except OSError as exc:
        raise SplError("output-failed", f"{folder}: {exc.strerror}") from exc
    shell.out.line(f"{count(written, 'page')} in {folder}; man finds them in share/man/man1 beside a bin in PATH")


def _found(topic: list[str], main: ModuleType) -> tuple[Command | Group, list[str]]:
    """Return the command that the words name, and the rest; raise UsageError with the nearest name."""
    try:
        found: tuple[Command | Group, list[str]] = main.find(topic)
        return found
    except UsageError as exc:
        if "Did you mean" in exc.message:
            raise
        words = " ".join(topic)
        near = get_close_matches(words.lower(), (*TOPICS, *CODES), 1)
        guess = f". Did you mean '{near[0]}'?" if near else ""
        raise UsageError(
            "usage", f"no command, topic or code is named '{words}'{guess}", hint="spl help topics"
        ) from exc


def _read(topic: str, shell: Shell) -> None:
    """Print a page of the manual."""
    columns = shell.out.columns
    shell.out.lines(page(topic) if columns is None else "\n".join(rendered(page(topic), columns)))
    if topic in shell.load("cli.main").PLACES:
        shell.out.hint(f"hint: spl {topic} --help explains the command")


def _explain(code: str, shell: Shell) -> None:
    entry = CODES[code]
    found: str = shell.load("doctor.catalogue").usual_fix(code)
    shell.out.card([
        ("code", code), ("on the wire", f"{http_code(code)}, HTTP status {entry.status}"),
        ("exit code", str(entry.exit)), ("means", entry.meaning),
        *column("fix", steps(entry.fix)),
        *(column("as a finding", steps(found)) if found not in ("", entry.fix) else ()),
    ])  # fmt: skip


def _version(args: Namespace, shell: Shell) -> int:
    data = {"version": VERSION, "distribution": DISTRIBUTION, "python": platform.python_version()}
    if not shell.out.data("spl.version/1", data, lambda: None):
        shell.out.line(f"spl {VERSION} ({DISTRIBUTION})")
    return 0


TREE: Final = (
    Command(
        "help",
        "Explains a command, a topic of the manual, or the code in brackets that ends every error.\n"
        "`spl help topics` and `spl help codes` list them; into a pipe a topic is printed as Markdown.",
        "spl help pairs\nspl help daemon-down",
        _help,
        (
            arg(
                "topic",
                nargs="*",
                metavar="TOPIC",
                help="the words of a command, a topic, an error code, `topics` or `codes`",
            ),
            arg("--man", metavar="FOLDER", help="write a page for man(1) about each command into a folder"),
        ),
        result=False,
        whose="nobody",
    ),
    Command(
        "version",
        "Prints the version of the commands installed here. `spl status` prints that of the running daemon,\n"
        "which differs after an upgrade until the daemon is restarted.",
        "spl version",
        _version,
        whose="nobody",
    ),
)
