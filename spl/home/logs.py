"""Log lines: logfmt or JSON, one line per fact, secrets masked, rotated at 10 MB, seven files kept.

Values come from peers too, so everything unprintable is escaped in both forms: the operator reads this file in a
terminal.  A peer or a stranger also decides how often most lines are written, so the handlers count what repeats: of
one event, pair and code five lines a minute, the others as `repeated` of the next one.  Counting at the handlers
covers every line, new ones too; rejected: to trust each caller to know what a peer can repeat.

Members: ts, level, target, event, the fields of the event, msg.  Everything about federation carries the target
`syncropel_engine::federation`, which the operator's page tells people to filter on.
"""

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from threading import Lock
from typing import Final, TextIO

from ..core import when
from ..core.errors import printable
from ..core.event import event
from ..core.recent import Repeats
from ..core.value import Json
from .disk import FILE_MODE, Disk, unusable

FILE_BYTES: Final = 10_000_000
FILES_KEPT: Final = 7
REPEAT_EVERY_S: Final = 60.0
KINDS_MAX: Final = 4096  # kinds of lines that peers can repeat, counted apart; further ones share
LINES_PER_MINUTE: Final = 600
BURST: Final = 5
KIND_FIELDS: Final = ("pair", "code", "namespace")
OPERATORS: Final = ("config.", "daemon.", "tls.")
"""How events begin that only our operator brings about; each of them is written."""
TARGETS: Final = {
    "spl.federation": "syncropel_engine::federation",
    "spl.net": "syncropel_engine::http",
    "spl.store": "syncropel_engine::store",
}

_PRIORITIES: Final = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_PLAIN: Final = re.compile(r"[^\s\"=\\]+\Z")
_SECRET: Final = re.compile(r"(spl_[A-Za-z0-9]+_sa_[0-9a-f]+_)[A-Za-z0-9_-]+")


class CountedLog:
    """A log that takes one line of a kind in a minute, by event, pair ("": none) and code, and counts the others.

    A peer can repeat what it is refused for as fast as it likes; a line each would drive everything else out of the
    files within a minute.
    """

    def __init__(self, log: logging.Logger, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._log, self._steady_s = log, steady_s
        self._repeats = Repeats(REPEAT_EVERY_S, KINDS_MAX, LINES_PER_MINUTE)
        self.warnings: Counter[tuple[str, str]] = Counter()
        """How many warnings there were since the start, written or not, by pair and code; of those that have both."""

    def info(self, name: str, pair: str, code: str = "", **fields: object) -> None:
        """Write or count a line about a state that changed."""
        self._write(logging.INFO, name, pair, code, fields)

    def warning(self, name: str, pair: str, code: str = "", **fields: object) -> None:
        """Write or count a line about what we recovered from."""
        if pair and code:
            self.warnings[pair, code] += 1
        self._write(logging.WARNING, name, pair, code, fields)

    def _write(self, level: int, name: str, pair: str, code: str, fields: Json) -> None:
        repeated = self._repeats.due((name, pair, code), self._steady_s())
        if repeated is not None:
            fields |= {"code": code} if code else {}
            fields |= {"repeated": repeated} if repeated else {}
            self._log.log(level, **event(name, **({"pair": pair} if pair else {}), **fields))


class RepeatFilter(logging.Filter):
    """Keeps repeated lines out of all handlers that share it, and counts them.

    Lines of level debug pass, as the operator asked for all of them, and so do OPERATORS.  The address is no part of a
    kind: a stranger has many.
    """

    def __init__(self, steady_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._steady_s, self._lock = steady_s, Lock()
        self._repeats = {
            is_error: Repeats(REPEAT_EVERY_S, KINDS_MAX, LINES_PER_MINUTE, BURST) for is_error in (False, True)
        }

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is written; the first handler decides for the others."""
        decided = getattr(record, "is_due", None)
        if isinstance(decided, bool):
            return decided
        whole = record.levelno <= logging.DEBUG or record.getMessage().startswith(OPERATORS)
        record.is_due = due = whole or self._is_due(record)
        return due

    def _is_due(self, record: logging.LogRecord) -> bool:
        fields = getattr(record, "fields", None) or {}
        kind = (record.getMessage(), *(str(fields.get(name, "")) for name in KIND_FIELDS))
        with self._lock:
            repeated = self._repeats[record.levelno >= logging.ERROR].due(kind, self._steady_s())
        if repeated:
            record.fields = {**fields, "repeated": repeated}
        return repeated is not None


class Formatter(logging.Formatter):
    """Render records as logfmt, or as JSON lines."""

    def __init__(self, as_json: bool, *, to_journal: bool = False) -> None:
        """To the journal a line has its priority in front instead of its time: sd-daemon(3)."""
        super().__init__()
        self.as_json, self.to_journal = as_json, to_journal

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; `extra={"fields": {...}}` gives the event's members, an exception goes into msg."""
        fields = getattr(record, "fields", None)
        line: Json = {} if self.to_journal else {"ts": when.text_of(int(record.created * 1000))}
        line |= {
            "level": record.levelname.lower(),
            "target": TARGETS.get(record.name, record.name.replace("spl", "syncropel_engine", 1).replace(".", "::")),
        }
        message = record.getMessage()
        if isinstance(fields, dict):
            # The line's own members stand, whatever an event calls its fields.
            line = {**line, "event": message, **{name: value for name, value in fields.items() if name not in line}}
            line.setdefault("msg", message.replace(".", " "))
        else:
            line |= {"event": "log", "msg": message}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        text = json.dumps(line, default=str, ensure_ascii=False) if self.as_json else _logfmt(line)
        priority = f"<{_PRIORITIES.get(record.levelno, 6)}>" if self.to_journal else ""
        return priority + mask(printable(text))


class _LogFile(logging.FileHandler):
    """A log file that is never written through a link, and whose opening waits for nobody, as that of a FIFO would.

    Once it has FILE_BYTES the next line begins a new one, and older ones get the numbers 1 to 6.  The handler of the
    standard library does the same, with 500 KiB of modules for handlers that send lines elsewhere.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and end the file if that filled it; one that cannot be written ends nobody's work."""
        try:
            super().emit(record)  # opens the file if it is not open
            if self.stream is not None and self.stream.seekable() and self.stream.tell() >= FILE_BYTES:
                self._rotate()
        except (OSError, ValueError):
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback for each line on a full disk: the line itself goes to stderr as well."""

    def _rotate(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = None  # if what follows fails, the next line opens the file
        for number in range(FILES_KEPT - 2, -1, -1):
            older = f"{self.baseFilename}.{number}" if number else self.baseFilename
            with suppress(FileNotFoundError):
                os.replace(older, f"{self.baseFilename}.{number + 1}")
        self.stream = self._open()

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self.baseFilename, flags, FILE_MODE)
        return open(fd, "a", encoding=self.encoding)


def setup(folder: Path, log_format: str, level: str) -> None:
    """Send the product's log to `<folder>/spl.log` and to stderr, if the process has one.

    Raises DiskError "home-unusable".
    """
    Disk().mkdir(folder)
    path = folder / "spl.log"
    try:
        handlers: list[logging.Handler] = [_LogFile(path, encoding="utf-8")]
    except OSError as exc:
        raise unusable(path, exc) from exc
    if sys.stderr is not None:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger("spl")
    for old in root.handlers[:]:
        root.removeHandler(old)
        with suppress(OSError):  # lines that a full disk did not take are on stderr
            old.close()
    for handler in handlers:
        to_journal = not isinstance(handler, _LogFile) and _is_journal(sys.stderr, os.environ.get("JOURNAL_STREAM", ""))
        handler.setFormatter(Formatter(log_format == "json", to_journal=to_journal))
        root.addHandler(handler)
    repeats = RepeatFilter()
    for handler in root.handlers:
        handler.addFilter(repeats)
    root.setLevel(level.upper())
    root.propagate = False


def _is_journal(stream: TextIO, name: str) -> bool:
    """Return whether the stream is the one that JOURNAL_STREAM names: systemd.exec(5)."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return name == f"{found.st_dev}:{found.st_ino}"


def mask(text: str) -> str:
    """Return the text with the secret part of every bearer token replaced."""
    return _SECRET.sub(r"\1…", text)


def _logfmt(line: Json) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in line.items())


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.match(text) and printable(text) == text else json.dumps(text, ensure_ascii=False)
