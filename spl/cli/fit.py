"""What a narrow terminal holds: columns of a table, lines of a text, pages of help.

Nothing is lost that decides something: long cells are cut before a column is dropped, states, ids and names never, and
columns go by worth.  Words are kept whole, so that ids, addresses and paths can be copied, and so are commands.
"""

import importlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from textwrap import wrap
from typing import Final

GAP: Final = "  "
CUT_CHARS: Final = 12
"""A cell that is cut shows at least so much."""
TEXT_CHARS: Final = 20
"""Room for less is no column of text: the text goes on further left."""
WHOLE_CHARS: Final = 16
"""A cell up to this is never cut."""
UNCUT: Final = frozenset({"STATE", "PAIR ID", "TOKEN ID", "SEGMENT", "KEY", "NAME", "NAMESPACE"})
"""Columns that are shown whole or not at all: half of a state may be another one, and half of a name is none."""
PAGE_CHARS: Final = 40

_NARROW_CHARS: Final = 8
HOME_DEFAULT: Final = "~/.syncro"
COMMAND: Final = re.compile(r"(?=(?:SYNCROPEL_HOME=|spl [a-z]))")
_COMMAND: Final = re.compile(f"(?<=: ){COMMAND.pattern}")
"""Where a text ends and the command begins that it recommends."""


def columns_of(text: str) -> int:
    """Return how many columns a terminal gives to a text: two to a wide character, as of Chinese, none to an accent."""
    if text.isascii():
        return len(text)
    table = importlib.import_module("unicodedata")  # a library of C that a daemon does without
    return sum(0 if table.combining(char) else 2 if table.east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, width: int) -> str:
    """Return a text of at most so many columns."""
    if columns_of(text) <= width:
        return text
    taken = list(accumulate(columns_of(char) for char in text))
    return text[: bisect_right(taken, width - 1)] + "…"


def widths_of(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the width of each column."""
    return {title: max(len(title), *(columns_of(row[i]) for row in cells)) for i, title in enumerate(titles)}


def fits(widths: Mapping[str, int], columns: int | None) -> bool:
    """Return whether columns of these widths fit side by side; None is a pipe, which holds everything."""
    return columns is None or sum(widths.values(), len(GAP) * (len(widths) - 1)) <= columns


def fitting(widths: Mapping[str, int], keep: Sequence[str], columns: int | None) -> dict[str, int]:
    """Return the columns that are shown with their widths, at least one; what room is left goes to those that are cut.

    Those of `keep` come first, by worth, then the others from the left.
    """
    if columns is None or fits(widths, columns):
        return dict(widths)
    room: dict[str, int] = {}
    left = columns + len(GAP)
    for title in [*keep, *(title for title in widths if title not in keep)]:
        whole = title in UNCUT or widths[title] <= WHOLE_CHARS
        least = len(GAP) + (widths[title] if whole else max(len(title), CUT_CHARS))
        # What does not matter most only takes what leaves the others enough of their cells.
        owed = 0 if title in keep else sum(min(widths[each], TEXT_CHARS) - room[each] for each in room)
        if room and least + max(0, owed) > left:
            break
        room[title] = least - len(GAP)
        left -= least
    shortened = sorted((title for title in room if room[title] < widths[title]), key=widths.__getitem__)
    for number, title in enumerate(shortened):
        more = max(0, min(widths[title] - room[title], left // (len(shortened) - number)))
        room[title] += more
        left -= more
    return {title: room[title] for title in widths if title in room}


def wrapped(text: str, first: int, rest: int, columns: int | None) -> list[str]:
    """Return a text as lines: `first` characters stand before it, and `rest` blanks begin each other line."""
    if columns is None or first + len(text) <= columns:
        return [text]
    rest = rest if columns - rest >= TEXT_CHARS else min(rest, _NARROW_CHARS)
    below = rest + len(text) - len(text.lstrip())
    text, *commands = _COMMAND.split(text, maxsplit=1)
    lines = wrap(
        text, max(columns, below + CUT_CHARS), initial_indent=" " * first, subsequent_indent=" " * below,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    lines = [lines[0][first:], *lines[1:]] if lines else [text]
    return [*lines, *(" " * below + command for command in commands)]


def headed(text: str) -> int:
    """Return how wide the column is that a text begins with, up to where two blanks end; 0 without one."""
    lead = len(text) - len(text.lstrip(" "))
    label, gap, rest = text[lead:].partition(GAP)
    return len(text) - len(rest.lstrip(" ")) if gap and label else 0


def page(text: str, columns: int) -> Iterator[str]:
    """Yield the lines of a help page: prose is rewrapped, lists go on below their texts, an example is left alone."""
    width = max(PAGE_CHARS, columns)
    prose, found, example = text.removesuffix("\n").partition("\nexample:\n")
    for paragraph in _paragraphs(prose.split("\n")):
        if max(map(len, paragraph)) <= width:
            yield from paragraph
            continue
        line = " ".join(paragraph)
        indent = headed(line) if line.startswith(" ") else 0
        if width - indent < TEXT_CHARS:
            indent = 4
        yield from wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    if found:
        yield from ["example:", *example.split("\n")]


def _paragraphs(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield lines that belong together: those of prose, which begin at the edge; each other line is one of its own."""
    held: list[str] = []
    for line in lines:
        if line and line[0] != " " and held and held[-1][-1:] != ":" and not held[0].startswith("usage:"):
            held.append(line)
            continue
        if held:
            yield held
        held = [line] if line and line[0] != " " else []
        if not held:
            yield [line]
    if held:
        yield held


def tilde(path: str, env: Mapping[str, str]) -> str:
    """Return a path as people write it, with ~ for HOME."""
    own = env.get("HOME", "").rstrip("/")
    return "~" + path[len(own) :] if own and path.startswith(own + "/") else path


def size(count_bytes: int) -> str:
    """Return a size in decimal units: 41.2 MB."""
    if count_bytes < 1000:
        return f"{count_bytes} B"
    value = float(count_bytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"
