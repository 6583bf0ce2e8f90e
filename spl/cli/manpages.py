"""Manual pages for man(1), in mdoc(7), made from the same commands as `--help`."""

import re
from argparse import Action
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from ..core.errors import CODES
from ..core.version import VERSION
from .command import Command, Group, actions_of, gist, write_file

DATE: Final = "November 27, 2026"
"""Of the pages; a fixed one, so that they are the same from the same sources."""

_FLAG: Final = re.compile(r"^-{1,2}")
_EXITS: Final = (
    (0, "success"), (1, "unexpected"), (2, "usage"), (3, "problems were found"), (4, "no right to it"),
    (5, "no daemon answers"), (6, "there is no such thing"), (7, "its state does not allow it"), (8, "still pending"),
    (9, "peer or network: a retry may help"), (10, "verification failed: a retry will not help"),
    (11, "another daemon has the home"), (12, "the log is damaged or newer"), (78, "configuration"),
)  # fmt: skip


def write(folder: Path, main: ModuleType) -> int:
    """Write every page into a folder and return how many there are; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = dict(pages_of(main))
    for name, text in pages.items():
        write_file(folder / name, text)
    return len(pages)


def pages_of(main: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield file name and text: spl.1, and one page a command."""
    commands: list[Command] = []
    for noun, place in main.PLACES.items():
        for entry in main.load(f"cli.{place.file}").TREE:
            if entry.name == noun:
                commands += entry.commands if isinstance(entry, Group) else (entry,)
    yield "spl.1", _overview(main, commands)
    for command in commands:
        yield f"spl-{command.name.replace(' ', '-')}.1", _page(command)


def _overview(main: ModuleType, commands: list[Command]) -> str:
    rows = [f".It Nm spl {_text(each.name)}\n{_text(gist(each.concept))}" for each in commands]
    exits = [f".It {number}\n{_sentence(text)}" for number, text in _EXITS]
    codes = [f".It {_text(code)}\n{_text(entry.meaning)}\nFix: {_text(entry.fix)}" for code, entry in CODES.items()]
    return "\n".join([
        *_head("spl"), ".Nd records in threads, synced between paired instances", ".Sh SYNOPSIS", ".Nm", ".Ar command",
        ".Op options", ".Sh DESCRIPTION", "An instance keeps records in threads and syncs them with the instances that",
        "it is paired with.", "One daemon,", ".Nm spl serve ,", "does the work; the other commands ask it.", ".Pp",
        "The commands are:", ".Bl -tag -width Ds", *rows, ".El",
        ".Sh ENVIRONMENT", ".Bl -tag -width Ds", ".It Ev SYNCROPEL_HOME", "The home folder, instead of",
        ".Pa ~/.syncro .", ".It Ev SPL_SERVE_URL", "The URL of a daemon elsewhere.", ".It Ev SPL_TOKEN",
        "The token for it.", ".It Ev SPL_CONTEXT", "The context whose daemon is asked.",
        ".El", ".Sh EXIT STATUS", ".Bl -tag -width Ds", *exits, ".El",
        ".Sh DIAGNOSTICS", "Each error ends with one of these codes:", ".Bl -tag -width Ds", *codes, ".El",
        ".Sh SEE ALSO", *_references([f"spl-{each.name.replace(' ', '-')}" for each in commands]), "",
    ])  # fmt: skip


def _page(command: Command) -> str:
    actions = actions_of(command)
    flags = [each for each in actions if each.option_strings]
    places = [each for each in actions if not each.option_strings]
    title = f"spl-{command.name.replace(' ', '-')}"
    shown = [f".Op {_option(each)}" for each in flags] + [_place(each) for each in places]
    concept = [_text(line) or ".Pp" for line in command.concept.splitlines()]
    lines = [
        *_head(title), f".Nd {_text(gist(command.concept)).rstrip('.')}", ".Sh SYNOPSIS",
        f".Nm spl {_text(command.name)}", *shown, ".Sh DESCRIPTION", *concept,
    ]  # fmt: skip
    items = [
        f".It {_option(each) if each.option_strings else f'Ar {_name(each)}'}\n{_sentence(each.help or '')}"
        for each in [*places, *flags]
    ]
    examples = [_text(line) for line in command.example.splitlines()]
    lines += [".Bl -tag -width Ds", *items, ".El", ".Sh EXAMPLES", ".Bd -literal", *examples, ".Ed"]
    return "\n".join([*lines, ".Sh SEE ALSO", *_references(["spl"]), ""])


def _head(title: str) -> list[str]:
    return [f".Dd {DATE}", f".Dt {_text(title.upper())} 1", f".Os spl {VERSION}", ".Sh NAME", f".Nm {_text(title)}"]


def _references(names: list[str]) -> list[str]:
    names = sorted(names)
    return [f".Xr {_text(name)} 1 ," for name in names[:-1]] + [f".Xr {_text(names[-1])} 1"]


def _option(action: Action) -> str:
    names = " , ".join(
        f"Fl {_text(_FLAG.sub('', name, 1) if len(name) == 2 else name[1:])}" for name in action.option_strings
    )
    return names if action.nargs == 0 else f"{names} Ar {_name(action)}"


def _place(action: Action) -> str:
    name = f"Ar {_name(action)}"
    return f".Op {name}" if action.nargs in ("*", "?") else f".{name}"


def _name(action: Action) -> str:
    if action.choices is not None and action.metavar is None:
        return " | ".join(map(_text, map(str, action.choices)))
    return _text(str(action.metavar or action.dest).replace("_", " "))


def _sentence(text: str) -> str:
    """Return a help text as a sentence; what argparse fills in is not part of ours."""
    text = _text(text[:1].upper() + text[1:])
    return text if text.endswith((".", "…")) or not text else f"{text}."


def _text(text: str) -> str:
    """Return text that roff takes as it is, each sentence on a line of its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("%%", "%")
    text = re.sub(r"(?<=[a-z0-9)\"'`]\.) +(?=[A-Z])", "\n", " ".join(text.split()))
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))
