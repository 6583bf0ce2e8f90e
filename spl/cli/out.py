"""What the commands print: results to stdout, notes and errors to stderr, for people and for programs.

All text passes through `Out`.  Labels, reasons and record bodies come from peers, so what a terminal would act on or
hide (controls, direction marks, zero-width characters) is written out as an escape, in tables, cards and errors alike;
colours are added after that.  A terminal without UTF-8 gets ASCII marks.  A tty is read by people: times are relative
there, DIDs short and states coloured; a pipe gets full values.
"""

import json
import os
import re
import select
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from types import MappingProxyType
from typing import Any, Final, TextIO, cast

from ..core.errors import BLANKS, CODES, SplError, steps
from ..core.when import age, ms_of, span, span_fine, text_of
from . import fit
from .fit import GAP

FORMS: Final = ("table", "wide", "json", "jsonl")
GREEN: Final = "32"
YELLOW: Final = "33"
RED: Final = "31"
DIM: Final = "2"

_ASCII: Final = str.maketrans({"✓": "ok", "✗": "FAIL", "·": "-", "→": "->", "…": "..."})
_UNSEEN: Final = re.compile(
    f"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb{BLANKS}]"
)
"""What a terminal acts on or hides: C0, C1, soft hyphens, directions, formats, zero widths, surrogates, blanks."""
_LABEL_CHARS: Final = 18  # the left column of a detail view
RECORD_CHARS: Final = 16
"""Of a record's id, for people: the daemon finds a record by so many."""
_FACT_CHARS: Final = 10  # the left column under an error
_LEAD: Final = re.compile(r" *(?:[!·] |(?:[^ :]+ ){0,2}[^ :]+ {2,})?")  # blanks, a mark, the label of a column
_UNSHOWN: Final = frozenset({"why", "peer_view"})
"""Facts of an error that are shown elsewhere, or are for programs."""
_COMMANDS: Final = frozenset({"fix", "docs"})
"""Labels of commands, which a line end inside would spoil for pasting."""
_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_DAY_MS: Final = 24 * _HOUR_MS
_REDRAW: Final = "\r\x1b[K"
_FINGERPRINT: Final = re.compile(r"-[0-9a-f]{24}\Z")
_INSTANCE: Final = "did:sync:instance:"
_SCOPES: Final = {
    scope: rank
    for rank, scope in enumerate(
        "admin records:read records:write config:read config:write aitl:approve "
        "federation:manage federation:sync federation:subscribe status:read metrics:read".split()
    )
}

Paint = Callable[[str], str]
"""Returns the colour of a cell as an SGR parameter such as "32"; "" for none."""


class OutputError(SplError):
    """The result cannot be written, such as onto a full disk."""


class Out:
    """Writes a command's results and messages, each in the form that its reader wants."""

    def __init__(
        self, stdout: TextIO, stderr: TextIO, env: Mapping[str, str], now_ms: Callable[[], int], form: str = "table"
    ) -> None:
        self.form = form
        self.quiet = False
        self.verbose = False
        self.pasted: Callable[[str], str] = str
        """Returns a text of ours with its commands as they can be pasted: paste.py."""
        self.now_ms = now_ms
        self._stdout = stdout
        self._stderr = stderr
        self._tty = stdout.isatty()
        self._tty_err = stderr.isatty()
        self._colors = self._tty and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        self._columns = _columns(stdout, env.get("COLUMNS", ""))
        self._columns_err = _columns(stderr, env.get("COLUMNS", ""))
        self._drawn = False
        self._rows = 1
        self._frame = 0
        self.can_redraw = self._tty and env.get("TERM") != "dumb"
        """Whether a frame can be drawn over the last one."""

    @property
    def people(self) -> bool:
        """Whether a person reads the result: then values may be shortened."""
        return self._tty and self.form == "table"

    @property
    def interactive(self) -> bool:
        """Whether a person watches the messages: then a state is drawn in place."""
        return self._tty_err

    @property
    def wide(self) -> bool:
        """Whether all columns are wanted."""
        return self.form == "wide"

    @property
    def _room(self) -> int | None:
        """How wide a result may be; None if everything is wanted."""
        return None if self.wide else self._columns

    @property
    def columns(self) -> int | None:
        """The width of the terminal that shows the result; None if there is none."""
        return self._columns if self._tty else None

    # results

    def line(self, text: str = "") -> None:
        """Print one line of the result at once."""
        self._result(clean(text))

    def marked(self, mark: str, color: str, text: str) -> None:
        """Print an indented line that begins with a coloured mark; what is too long goes on below its last column."""
        text, left = clean(text), len(mark) + 2 * len(GAP)
        first, *rest = fit.wrapped(text, left, left + fit.headed(text), self._room)
        self._result(f"  {self.paint(clean(mark), color)}  {first}".rstrip())
        for line in rest:
            self._result(line)

    def entry(self, head: str, *texts: str) -> None:
        """Print texts below each other after a head; what is too long goes on below itself, unless a command."""
        for text in texts:
            room = None if text.startswith("spl ") else self._room
            first, *rest = fit.wrapped(clean(self.pasted(text)), len(head), len(head), room)
            self.line(head + first)
            for line in rest:
                self._result(line)
            head = " " * len(head)

    def brief(self, head: str, text: str, color: str, *, whole: bool) -> None:
        """Print a line with a coloured head; without `whole` its end is cut off where the terminal ends."""
        head, text = clean(head), clean(text)
        if self._columns is not None and not whole:
            text = fit.cut(text, max(fit.CUT_CHARS, self._columns - len(head) - len(GAP)))
        self._result(f"{self.paint(head, color)}{GAP}{text}")

    def raw(self, data: bytes) -> None:
        """Print bytes of a file format as they are; on a terminal as text that cannot drive it."""
        if self._tty:
            self.lines(data.decode(errors="replace"))
            return
        try:
            self._stdout.flush()
            cast(TextIOWrapper, self._stdout).buffer.write(data)
        except OSError as exc:
            raise self._failed(exc) from exc

    def page(self, text: str) -> None:
        """Print a help page; prose that is wider than the terminal is wrapped, an example never, so that it pastes."""
        for line in text.removesuffix("\n").split("\n") if self._columns is None else fit.page(text, self._columns):
            self.line(line)

    def lines(self, text: str) -> None:
        """Print a text of several lines, each as it is."""
        for line in text.removesuffix("\n").split("\n"):  # not splitlines(), which also cuts at U+2028 and hides it
            self.line(line)

    def data(self, schema: str, data: Any, instance: Callable[[], str | None]) -> bool:
        """Print the result for programs and return True; return False if the form is one for people.

        json: one envelope `{schema, generated_at, instance, data}`; jsonl: one line per element of a list, one
        line for any other value.  `instance` is called for the form json alone.
        """
        if self.form == "jsonl":
            for item in data if isinstance(data, list) else [data]:
                self.json_line(item)
        elif self.form == "json":
            head = {"schema": schema, "generated_at": text_of(self.now_ms()), "instance": instance()}
            self._result(_UNSEEN.sub(_json_escape, json.dumps({**head, "data": data}, ensure_ascii=False, indent=2)))
        return self.form in ("json", "jsonl")

    def json_line(self, item: object) -> None:
        """Print one value as one line of JSON."""
        self._result(_UNSEEN.sub(_json_escape, json.dumps(item, ensure_ascii=False, separators=(",", ":"))))

    def table(
        self,
        titles: Sequence[str],
        rows: Iterable[Sequence[str]],
        paints: Mapping[str, Paint] = MappingProxyType({}),
        below: Sequence[str] = (),
        keep: Sequence[str] = (),
        none: str = "",
    ) -> None:
        """Print rows under their titles; without rows the note `none`, which says what to do about it.

        On a terminal that is too narrow, instances are named by their labels alone, then long cells are cut with "…",
        then columns are dropped from the right, those of `keep` last, whose first matters most.  `paints` maps a title
        to the colour of its cells; `below` holds one more text per row, indented to the second column, "" for none.
        """
        cells = [[clean(cell) for cell in row] for row in rows]
        if not cells:
            if none:
                self.note(none)
            return
        widths = fit.widths_of(titles, cells)
        if not fit.fits(widths, self._room):
            cells = [[cell.removeprefix(_INSTANCE) for cell in row] for row in cells]
            widths = fit.widths_of(titles, cells)
        room = fit.fitting(widths, keep, self._room)
        self._row([(title, width, None) for title, width in room.items()])
        for number, row in enumerate(cells):
            shown = zip(titles, row, strict=True)
            self._row([(cell, room[title], paints.get(title)) for title, cell in shown if title in room])
            if below and below[number]:
                self.entry(" " * (widths[titles[0]] + len(GAP)), below[number])

    def card(self, facts: Iterable[tuple[str, str]]) -> None:
        """Print one fact per line, labels in a column; an empty label continues the one above.

        A label that ends with ":" is followed by one space.  On a narrow terminal a text goes on below itself; a
        command never does.
        """
        last = ""
        for label, text in facts:
            last = label or last
            head = f"{label} " if label.endswith(":") else f"{label:<{_LABEL_CHARS}}"
            room = None if last in _COMMANDS else self._room
            text = self.pasted(text) if last in _COMMANDS else text
            lines = fit.wrapped(clean(text), len(head), _LABEL_CHARS, room)
            self.line(head + lines[0])
            for line in lines[1:]:
                self._result(line)

    def row(self, facts: Sequence[tuple[str, str]]) -> None:
        """Print the values on one line, or as a card if the terminal is too narrow for that."""
        line = GAP.join(text for _, text in facts)
        if self._columns is not None and fit.columns_of(line) > self._columns:
            self.card(facts)
        else:
            self.line(line)

    # messages

    def note(self, text: str) -> None:
        """Print what happened, on stderr; `--quiet` drops it."""
        if not self.quiet:
            self._say(text)

    def hint(self, text: str) -> None:
        """Print a possible next step on stderr, to people only."""
        if self._tty_err and not self.quiet:
            self._say(text)

    def detail(self, text: str) -> None:
        """Print one step on stderr; `--verbose` shows it."""
        if self.verbose:
            self._say(f"· {text}")

    def warn(self, text: str) -> None:
        """Print a warning on stderr, also with `--quiet`."""
        self._say(text)

    def progress(self, text: str) -> None:
        """Show a state that changes: redrawn in place on a tty, once elsewhere; `--quiet` drops it."""
        if self.quiet:
            return
        if self._tty_err:
            shown = _encodable(self._stderr, clean(text))
            _put(self._stderr, self._back() + shown)
            self._drawn, self._rows = True, -(-len(shown) // (self._columns_err or len(shown) or 1)) or 1
        elif not self._drawn:
            self._drawn = True
            self._say(text)

    def failure(self, exc: SplError) -> None:
        """Print an error on stderr: what happened with its code, the evidence, why, the next step."""
        self._say(f"error: {exc.message.rstrip('.')} [{exc.code}]")
        facts = [(name.replace("_", " "), _text(value)) for name, value in exc.facts.items() if name not in _UNSHOWN]
        entry = CODES[exc.code]
        why = exc.facts.get("why") or (entry.meaning if exc.code not in ("usage", "daemon-down") else "")
        if why and why != exc.message:
            facts.append(("why", _text(why)))
        if exc.code != "usage" or exc.hint != entry.fix:
            facts += column("fix", steps(exc.hint))
        if exc.code != "usage":
            facts.append(("docs", f"spl help {exc.code}"))
        width = max([_FACT_CHARS, *(len(name) + 2 for name, _ in facts)])
        for name, text in facts:
            self._say(f"  {name:<{width}}{text}")

    # a frame that is drawn again and again

    def check_reader(self) -> None:
        """Raise BrokenPipeError if what reads the result is gone, which otherwise only the next line would show."""
        poll, seen = select.poll(), 0
        with suppress(OSError, ValueError):  # a file cannot be polled, a test's stream is none
            poll.register(self._stdout.fileno(), 0)
            seen = sum(event for _, event in poll.poll(0))
        if seen & select.POLLERR:
            raise BrokenPipeError

    def frame_columns(self) -> int:
        """Return how wide a frame may be: the terminal as it is now, which may have been resized."""
        with suppress(OSError, ValueError):
            self._columns = os.get_terminal_size(self._stdout.fileno()).columns or self._columns
        return max(fit.CUT_CHARS, self._columns or 80)

    def redraw(self, lines: Sequence[tuple[str, str]]) -> None:
        """Draw lines with their colours over the last frame, each in one go, so that nothing flickers."""
        columns = self.frame_columns()
        with suppress(OSError, ValueError):
            lines = lines[: (os.get_terminal_size(self._stdout.fileno()).lines or len(lines) + 1) - 1]
        drawn = [self.paint(fit.cut(clean(text), columns), color) for text, color in lines]
        back, rest = f"\x1b[{self._frame}A\r" if self._frame else "", "\x1b[J" if len(drawn) < self._frame else ""
        self._frame = len(drawn)
        self._stdout.write(back + "".join(f"{_encodable(self._stdout, line)}\x1b[K\n" for line in drawn) + rest)
        self._stdout.flush()

    # times and names

    def ago(self, at: object, never: str = "never") -> str:
        """Return "2s ago" to people, else the RFC 3339 time; `never` without one."""
        if not isinstance(at, str) or not at:
            return never
        if not self.people:
            return at
        return age(self.now_ms() - ms_of(at))

    def until(self, at: str) -> str:
        """Return "in 3m10s" (or "now") to people, else "at <RFC 3339>"."""
        left_ms = ms_of(at) - self.now_ms()
        return (f"in {span_fine(left_ms)}" if left_ms > 0 else "now") if self.people else f"at {at}"

    def left(self, at: str) -> str:
        """Return "61d left" to people, rounded, else "until <RFC 3339>"; "EXPIRED" once it is over."""
        left_ms = ms_of(at) - self.now_ms()
        if left_ms <= 0:
            return "EXPIRED" if self.people else f"EXPIRED {at}"
        unit_ms = next((unit for unit in (_DAY_MS, _HOUR_MS, _MINUTE_MS) if left_ms >= 2 * unit), 0)
        return f"{span(left_ms + unit_ms / 2)} left" if self.people else f"until {at}"

    def record(self, record_id: str) -> str:
        """Return how to show a record's id: to people as much of it as commands take."""
        return record_id[:RECORD_CHARS] if self.people else record_id

    def dids(self, dids: Iterable[str]) -> dict[str, str]:
        """Return how to show each DID: to people without its fingerprint, unless two would look alike."""
        unique = set(dids)
        if not self.people:
            return {did: did for did in unique}
        names = [short_did(did) for did in unique]
        return {did: short_did(did) if names.count(short_did(did)) == 1 else did for did in unique}

    # how

    def paint(self, text: str, color: str) -> str:
        """Return the text in a colour if the terminal has colours; `line` and `table` would escape it again."""
        return f"\x1b[{color}m{text}\x1b[0m" if color and self._colors else text

    def end(self) -> None:
        """Erase a line that was drawn in place, and flush both streams.  Raises OutputError."""
        self._erase()
        self._drawn = False
        try:
            self._stdout.flush()
        except OSError as exc:
            raise self._failed(exc) from exc

    def _result(self, text: str) -> None:
        """Write a line to stdout; otherwise a line drawn on stderr would share its row."""
        self._erase()
        try:
            self._stdout.write(_encodable(self._stdout, text) + "\n")
            self._stdout.flush()
        except OSError as exc:
            raise self._failed(exc) from exc

    def _say(self, text: str) -> None:
        """Print a message; on a terminal what is too long goes on below its last column, unless a command."""
        self._erase()
        text = clean(self.pasted(text))
        head: str = _LEAD.findall(text)[0]
        body, at = text[len(head) :], len(head)
        room = self._columns_err if self._tty_err and fit.COMMAND.match(body) is None else None
        for line in fit.wrapped(body, at, at or len(GAP), room):
            _put(self._stderr, _encodable(self._stderr, head + line) + "\n")
            head = ""

    def _erase(self) -> None:
        if self._drawn and self._tty_err:
            _put(self._stderr, self._back())
            self._drawn = False

    def _back(self) -> str:
        """Return what goes back to the begin of a line that was drawn, over all rows that it took, and erases it."""
        rows = self._rows - 1 if self._drawn else 0
        return f"\x1b[{rows}A\r\x1b[J" if rows else _REDRAW

    def _failed(self, exc: OSError) -> Exception:
        """Return the error to raise for a failed write to stdout; a closed pipe stays what it is."""
        if isinstance(exc, BrokenPipeError):
            return exc
        return OutputError("output-failed", f"the output cannot be written: {exc.strerror}")

    def _row(self, cells: Sequence[tuple[str, int, Paint | None]]) -> None:
        pieces = []
        for text, width, paint in cells:
            cut = fit.cut(text, width)
            pieces.append((self.paint(cut, paint(text)) if paint else cut) + " " * (width - fit.columns_of(cut)))
        self._result(GAP.join(pieces).rstrip())


def clean(text: str) -> str:
    """Return the text with everything that a terminal would act on or hide written out as an escape."""
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub(_escape, text)


def short_did(did: str) -> str:
    """Return an instance DID without its fingerprint: did:sync:instance:bob.

    `core/identity/did` has the same for verified DIDs; it brings nacl, whose import costs a command 10 ms of its 45.
    """
    return _FINGERPRINT.sub("", did) if did.startswith(_INSTANCE) else did


def label_of(did: str) -> str:
    """Return the label inside an instance DID: bob."""
    return short_did(did).removeprefix(_INSTANCE)


def scopes_text(scopes: Iterable[str], separator: str = ",") -> str:
    """Return scopes in the order of the documentation, whatever the order of storage."""
    return separator.join(sorted(scopes, key=lambda scope: (_SCOPES.get(scope, len(_SCOPES)), scope)))


def column(label: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines as facts of a card, under one label."""
    for i, line in enumerate(lines):
        yield ("" if i else label), line


def state_paint(state: str) -> str:
    """Return the colour of a pair's state; the word itself is always printed too."""
    word = state.partition(" ")[0].removesuffix(",")
    if ", offline" in state or ", one-way" in state:
        return RED
    return {"active": GREEN, "establishing": YELLOW, "paused": YELLOW, "degraded": RED, "revoked": DIM}.get(word, "")


def _columns(stdout: TextIO, wanted: str) -> int | None:
    """Return the width to keep to: COLUMNS, or the terminal's; None for a pipe."""
    if wanted.isascii() and wanted.isdigit() and 0 < len(wanted) < 6 and int(wanted):
        return int(wanted)
    if not stdout.isatty():
        return None
    try:
        return os.get_terminal_size(stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def _put(stream: TextIO, text: str) -> None:
    """Write to stderr; if that fails too, only the exit code is left to tell."""
    with suppress(OSError):
        stream.write(text)
        stream.flush()


def _encodable(stream: TextIO, text: str) -> str:
    """Return the text in the stream's encoding: marks in ASCII, then "?" for characters that it lacks."""
    encoding = stream.encoding or "utf-8"
    if text.isascii() or encoding.lower() == "utf-8":
        return text
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _escape(found: re.Match[str]) -> str:
    point = ord(found[0])
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _json_escape(found: re.Match[str]) -> str:
    # A raw line end comes from the indentation; json.dumps escapes those inside strings.
    return found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)
