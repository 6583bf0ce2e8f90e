"""Markup as values: the one place where text becomes HTML, so the one place that escapes.

`tag` takes text and markup.  Text is escaped, markup is not; nothing else makes markup.  So a peer's words are text
wherever they stand, in an attribute too.
"""

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Final

from ..core import when
from ..core.errors import count, printable

TEXT_CHARS_MAX: Final = 400
"""Of one text: names and messages of peers are no longer, and what is longer is no reading."""
PLOT_WIDTH: Final = 120
PLOT_HEIGHT: Final = 24
_VOID: Final = frozenset({"meta", "link"})


class Markup(str):
    """HTML that is safe to send."""

    __slots__ = ()


Child = str | int | None


def tag(name: str, /, *children: Child, **attributes: str | bool | None) -> Markup:
    """Return an element; a text among the children is escaped, None is nothing.

    Of the attributes, `_` at the end of a name is dropped and inside it is `-`; False and None leave one out.
    """
    head = f"<{name}{''.join(_attributes(attributes))}>"
    return Markup(head if name in _VOID else f"{head}{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Return elements and texts one after another."""
    return Markup("".join([child if type(child) is Markup else text(child) for child in children if child is not None]))


def text(value: str | int) -> Markup:
    """Return a text as markup: escaped, bounded, and with what would turn or hide other text made visible."""
    shown = str(value)
    if len(shown) > TEXT_CHARS_MAX:
        shown = shown[: TEXT_CHARS_MAX - 1] + "…"
    return Markup(escape(printable(shown)))


def moment(at: str | None, now_ms: int, none: str = "never") -> Markup:
    """Return a time as its age, which the page keeps counting; `none` without one."""
    if not at:
        return tag("span", none, class_="none")
    return tag("time", when.age(max(0, now_ms - when.ms_of(at))), datetime=at, title=at)


def file(name: str) -> bytes:
    """Return a file of this folder."""
    return resources.files(__package__).joinpath(name).read_bytes()


def bars(values: Sequence[int | None], what: str) -> Markup:
    """Return a plot of one value a minute, the latest at the right; `what` is counted, None is not known."""
    known = [value for value in values if value is not None]
    most, step = max(known, default=0), PLOT_WIDTH / len(values)
    last = values[-1]
    now = "not known" if last is None else f"{last:,}"
    label = f"{what}, by the minute, last {len(values)} minutes: at the end {now}, at most {most:,}"
    shapes = [tag("path", d=f"M0 {PLOT_HEIGHT - 0.5}H{PLOT_WIDTH}", class_="axis")]
    if most:
        shapes.append(tag("path", d="".join(_bar(values, most, step)), class_="bar"))
    if len(known) < len(values):
        holes = (f"M{n * step + step / 2 - 0.75:.4g} {PLOT_HEIGHT - 4}h1.5" for n, v in enumerate(values) if v is None)
        shapes.append(tag("path", d="".join(holes), class_="hole"))
    box = f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}"
    plot = tag("svg", *shapes, class_="plot", role="img", aria_label=label, viewBox=box)
    return tag("div", plot, tag("span", f"max {most:,}", class_="sub") if most else None, class_="plotted")


def _bar(values: Sequence[int | None], most: int, step: float) -> Iterator[str]:
    """Yield the path of each value above zero; the smallest can still be seen."""
    for number, value in enumerate(values):
        if value:
            height = max(1.5, (PLOT_HEIGHT - 2) * value / most)
            yield f"M{number * step + 0.4:.4g} {PLOT_HEIGHT - 0.5}v{-height:.3g}h{step - 0.8:.3g}v{height:.3g}z"


def records(number: int) -> str:
    """Return "1 record" or "1,240 records"."""
    return count(number, "record")


def _attributes(attributes: dict[str, str | bool | None]) -> Iterator[str]:
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        shown = name.rstrip("_").replace("_", "-")
        yield f" {shown}" if value is True else f' {shown}="{escape(printable(value))}"'
