"""The manual: pages of Markdown inside the package, the same text on the web and in a terminal.

A pipe gets a page as it is stored.  On a terminal its prose is set to the width, a table becomes columns or, if it is
too wide for that, a list; what stands in a fence is never changed, so that it pastes.
"""

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import groupby
from textwrap import wrap
from typing import Final

TOPICS: Final = tuple(
    "terms pairs modes networks proxies namespaces consent hubs engine rules fold recovery problems findings home "
    "configuration programs http watching service soak speed capacity security faults formats".split()
)
"""The pages, in the order in which they are best read."""

_WIDTH_MIN: Final = 40
_WIDTH_MAX: Final = 100  # longer lines of prose are hard to read
_GAP: Final = "  "
_LINK: Final = re.compile(r"\[([^\]]+)\]\(([a-z]+)\.md\)")
_BULLET: Final = re.compile(r"(- )?(.*)", re.DOTALL)


def page(topic: str) -> str:
    """Return the Markdown of a topic."""
    folder = resources.files(__package__.partition(".")[0])
    return folder.joinpath("manual", f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """Return what a topic's title says after its name."""
    return page(topic).partition("\n")[0].partition(": ")[2]


def rendered(markdown: str, columns: int) -> Iterator[str]:
    """Yield the lines of a page for a terminal of so many columns."""
    width = min(max(columns, _WIDTH_MIN), _WIDTH_MAX)
    fenced = False
    for kind, group in groupby(markdown.splitlines(), _kind):
        lines = list(group)
        if kind == "fence":
            fenced = not fenced
        elif fenced:
            yield from (f"  {line}".rstrip() for line in lines)
        elif kind == "table":
            yield from _table([_cells(line) for line in lines], width)
        elif kind == "title":
            yield from _wrapped("\n".join(lines).replace("#", "").strip().upper(), width)
        elif kind == "blank":
            yield ""
        else:
            yield from _prose(lines, width)


def _kind(line: str) -> str:
    """Return what a line is, if it stands outside a fence."""
    if line.startswith("```"):
        return "fence"
    if not line.strip():
        return "blank"
    return {"|": "table", "#": "title"}.get(line[0], "prose")


def _prose(lines: Sequence[str], width: int) -> Iterator[str]:
    """Yield a paragraph, or the items of a list, wrapped."""
    for item in re.split(r"\n(?=- )", "\n".join(lines)):
        found = _BULLET.fullmatch(item)
        assert found is not None
        bullet = found[1] or ""
        text = _inline(" ".join(found[2].split()))
        yield from _wrapped(text, width, bullet, " " * len(bullet))


def _table(rows: list[list[str]], width: int) -> Iterator[str]:
    """Yield a table as columns; as a list of its rows if the columns do not fit."""
    rows = [
        [_inline(cell) for cell in row] for row in rows if not all(set(cell) <= set("-: ") and cell for cell in row)
    ]
    head, *rows = rows
    titled = [[cell.upper() for cell in head], *rows] if any(head) else rows
    widths = [max(map(len, column)) for column in zip(*titled, strict=True)]
    if sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        for row in titled:
            yield _GAP.join(f"{cell:<{wide}}" for cell, wide in zip(row, widths, strict=True)).rstrip()
        return
    for first, *others in rows:
        yield from _wrapped(first, width)
        for title, cell in zip(head[1:], others, strict=True):
            yield from _wrapped(f"{title}: {cell}" if len(others) > 1 else cell, width, "    ", "    ")


def _wrapped(text: str, width: int, first: str = "", then: str = "") -> list[str]:
    """Return a text as lines; a word is never cut, because it may be an address or a command."""
    return wrap(
        text, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False, break_long_words=False
    )


def _cells(line: str) -> list[str]:
    """Return the cells of a row; a bar inside a cell is written with a backslash."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def _inline(text: str) -> str:
    """Return the text without what only a web page shows."""
    return _LINK.sub(lambda found: f"{found[1]} (spl help {found[2]})", text.replace("**", ""))
