"""`spl logs`: this home's log, filtered by the members of its lines; it needs no daemon."""

import json
import os
import re
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final, NamedTuple

from ..core.when import WhenError
from .command import Command, Shell, UsageError, arg, number
from .out import DIM, RED, YELLOW, label_of

LINES_DEFAULT: Final = 100
LINES_MAX: Final = 1_000_000
"""The lines are held in memory before the first one is printed."""
LINE_BYTES: Final = 1 << 20
"""A longer line is not of our log; the rest of it is cut off."""
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LOOK_AGAIN_S: Final = 0.2
_FILES: Final = 7
_LEVEL_CHARS: Final = 7
_COLORS: Final[Mapping[str, str]] = {"debug": DIM, "warning": YELLOW, "error": RED, "critical": RED}
_HEAD: Final = frozenset({"ts", "level", "target", "event", "msg"})
"""Members of a line that people see otherwise or not at all; `-o wide` shows the line as it is."""
_BLOCK: Final = 1 << 16
_PAIR: Final = re.compile(r'([A-Za-z0-9_.-]+)=("(?:[^"\\]|\\.)*"|\S*)')

LogLine = Mapping[str, Any]


class Filter(NamedTuple):
    """One condition on a line: an exact value, the beginning of one, or a minimum level."""

    key: str
    value: str

    def takes(self, line: LogLine) -> bool:
        """Return whether the line meets the condition."""
        found = str(line.get(self.key, ""))
        if self.key == "level" and found in LEVELS:
            return LEVELS.index(found) >= LEVELS.index(self.value)
        if self.value.endswith("*"):
            return found.startswith(self.value[:-1])
        return found == self.value


def filters_of(words: list[str]) -> list[Filter]:
    """Return the filters of KEY=VALUE words; raise UsageError."""
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise UsageError("usage", f"a filter is KEY=VALUE, such as level=warning; not {word!r}")
        if key == "level" and value not in LEVELS:
            raise UsageError("usage", f"level is one of {', '.join(LEVELS)}; not {value!r}")
        found.append(Filter(key, value))
    return found


def parse(text: str) -> LogLine:
    """Return the members of one line of logfmt or JSON; any other line becomes `msg`."""
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return {"msg": text}
        return value if isinstance(value, dict) else {"msg": text}
    return {key: _unquoted(value) for key, value in _PAIR.findall(text)} or {"msg": text}


def newest(folder: str, count: int, filters: list[Filter]) -> list[str]:
    """Return the last `count` lines that pass, oldest first; rotated files are read as far back as needed."""
    found: deque[str] = deque()
    for name in ["spl.log", *(f"spl.log.{age}" for age in range(1, _FILES))]:
        try:
            file = open(os.path.join(folder, name), "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue
        with file:
            for raw in _backwards(file):
                text = raw.decode("utf-8", "replace")
                if _passes(text, filters):
                    found.appendleft(text)
                if len(found) >= count:
                    return list(found)
    return list(found)


def follow(folder: str, filters: list[Filter], wait: Callable[[], object]) -> Iterator[str]:
    """Yield lines that pass as they are written, from now on, also after the log is rotated."""
    path = os.path.join(folder, "spl.log")
    file, rest, rotated = _at_end(path), b"", False
    try:
        while True:
            piece = file.read(LINE_BYTES) if file is not None else b""
            *lines, rest = (rest + piece).split(b"\n")
            for raw in filter(None, lines):
                text = raw.decode("utf-8", "replace")
                if _passes(text, filters):
                    yield text
            if piece:
                continue
            if rotated:
                # The rotation came before this last read of the old file, so nothing more is written there.
                file, rest, rotated = _reopened(file, path), b"", False
            elif _is_rotated(file, path):
                rotated = True
            else:
                wait()
    finally:
        if file is not None:
            file.close()


def _passes(text: str, filters: list[Filter]) -> bool:
    line = parse(text) if filters else {}
    return all(item.takes(line) for item in filters)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _backwards(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, last first; one over 1 MiB is cut."""
    at, rest = file.seek(0, os.SEEK_END), b""
    while at > 0:
        step = min(_BLOCK, at)
        at -= step
        file.seek(at)
        first, *lines = (file.read(step) + rest).split(b"\n")
        yield from filter(None, reversed(lines))
        rest = first[:LINE_BYTES]
    if rest:
        yield rest


def _opened(path: str) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _at_end(path: str) -> BinaryIO | None:
    file = _opened(path)
    if file is not None:
        file.seek(0, os.SEEK_END)
    return file


def _reopened(file: BinaryIO | None, path: str) -> BinaryIO | None:
    if file is not None:
        file.close()
    return _opened(path)


def _is_rotated(file: BinaryIO | None, path: str) -> bool:
    """Return whether the log's name refers to another file now."""
    try:
        there = os.stat(path).st_ino
    except FileNotFoundError:
        return False
    return file is None or os.fstat(file.fileno()).st_ino != there


def _logs(args: Namespace, shell: Shell) -> int:
    filters = filters_of(args.filters)
    folder = os.path.join(shell.home, "logs")
    texts = newest(folder, args.lines, filters) if args.lines else []
    if args.follow:
        for text in texts:
            _print(text, shell, running=True)
        for text in follow(folder, filters, lambda: time.sleep(LOOK_AGAIN_S)):
            _print(text, shell, running=True)
    parsed = [parse(text) for text in texts] if shell.out.form in ("json", "jsonl") else []
    if not shell.out.data("spl.logs/1", parsed, lambda: None):
        for text in texts:
            _print(text, shell)
    if args.lines and not texts and not args.follow:
        where = f"no line of {folder} passes" if os.path.isdir(folder) else f"no log at {folder}; the daemon writes it"
        shell.out.note(where)
    return 0


def _print(text: str, shell: Shell, *, running: bool = False) -> None:
    """Print one line: short to people at a terminal, as a JSON object to programs, else unchanged."""
    if shell.out.form in ("json", "jsonl"):
        shell.out.json_line(parse(text))
    elif shell.out.people and "level" in (line := parse(text)):
        level = str(line["level"])
        at = _time(str(line.get("ts", "")), shell, running=running)
        words = f"{at:>8}  {level:<{_LEVEL_CHARS}}", _message(line)
        shell.out.brief(*words, _COLORS.get(level, ""), whole=level in _COLORS and level != "debug")
    else:
        shell.out.line(text)


def _time(at: str, shell: Shell, *, running: bool) -> str:
    """Return how long ago a line was written; of a log that runs on the time of the day, which stays true."""
    try:
        return at[11:19] if running else shell.out.ago(at)
    except WhenError:
        return at


def _message(line: Mapping[str, Any]) -> str:
    """Return what happened and its facts, instances by their labels."""
    message = str(line.get("msg", line.get("event", "")))
    facts = [(key, label_of(str(value))) for key, value in line.items() if key not in _HEAD]
    return "  ".join([message, *(f"{key}={value}" for key, value in facts)])


TREE: Final = (
    Command(
        "logs",
        "Prints the last lines of this home's log, also if no daemon runs; federation logs under\n"
        "target=syncropel_engine::federation. Each KEY=VALUE narrows the output; VALUE may end with * for any rest.\n"
        "The levels are debug, info, warning, error and critical; the file is <home>/logs/spl.log.\n"
        "A terminal gets one short line each, warnings and errors in full; -o wide prints lines as they are written.",
        "spl logs -n 50 target=syncropel_engine::federation level=warning",
        _logs,
        (
            arg("filters", nargs="*", metavar="KEY=VALUE", help="only lines with this value; level means at least"),
            arg("-n", "--lines", type=number(0, LINES_MAX), default=LINES_DEFAULT, metavar="N",
                help=f"number of lines (default: {LINES_DEFAULT})"),
            arg("-f", "--follow", action="store_true", help="print new lines as they are written, until Ctrl-C"),
        ),
        whose="home",
    ),
)  # fmt: skip
