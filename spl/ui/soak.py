"""The report of a soak as one file: figures and plots by window, beside those of the reference page's own run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .markup import Markup, file, joined, tag

PageFigures = Mapping[str, Any]

REFERENCE: Final = (
    ("warmup", 5, 1240, 180, 420, 3),
    ("ramp", 15, 8420, 210, 512, 7),
    ("steady", 60, 33180, 225, 548, 9),
    ("spike", 5, 4860, 610, 1290, 18),
    ("recovery", 15, 7240, 240, 580, 12),
)
"""Window, minutes, records, p50 and p99 of the lag in ms, fullest queue, as the reference page has them."""
WIDTH: Final = 640
HEIGHT: Final = 190
_BASE: Final = 156
_TOP: Final = 26
_GAP: Final = 3
_TITLES: Final = ("Window", "Minutes", "Emitted", "Synced", "Records/min", "p50 ms", "p99 ms", "Queue", "Errors")
_STYLE: Final = """
body{max-width:980px}td,th{padding:7px 16px 7px 0;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}th[scope=row]{color:inherit;font-size:inherit}td .sub{display:block}
.chart{width:100%;max-width:640px;height:auto;display:block;margin-top:6px}.scroll{overflow-x:auto}
.chart text{font:12px var(--sans);fill:var(--soft);font-variant-numeric:tabular-nums}.chart .axis{stroke:var(--line)}
.ours{fill:var(--link)}.theirs{fill:var(--bar);opacity:.55}.limit{stroke:var(--bad);stroke-dasharray:4 3}
.chart .bound{fill:var(--bad)}.key{width:11px;height:11px;margin:0 5px 0 0;vertical-align:-1px}.key+*{margin-right:18px}
.passed strong{color:var(--good)}.failed strong{color:var(--bad)}
@media(max-width:900px){tr{padding:10px 0}th[scope=row]{grid-column:1/-1;font-weight:600;padding:0}td{text-align:left}
td::before{content:attr(data-title);display:block;font-size:13px;color:var(--soft)}}
@media(max-width:560px){.chart text{font-size:17px}}
"""


@dataclass(frozen=True, slots=True)
class Plot:
    """A value of each window; `limit` is what it must stay below in the window `limited`."""

    title: str
    value: Callable[[PageFigures], float | None]
    theirs: Callable[[tuple[str, int, int, int, int, int]], float]
    limit: int = 0
    limited: str = ""


PLOTS: Final = (
    Plot("Lag, p50, ms", lambda row: row["sync_lag_p50_ms"], lambda row: row[3], 500, "steady"),
    Plot("Lag, p99, ms", lambda row: row["sync_lag_p99_ms"], lambda row: row[4], 1500, "spike"),
    Plot("Queue, most records", lambda row: row["reconcile_queue_max"], lambda row: row[5], 20),
    Plot("Rate, records a minute", lambda row: rate(row), lambda row: row[2] / row[1]),
)


def report(rows: Sequence[PageFigures], verdict: str, at: str, *, passed: bool, readings: Sequence[str] = ()) -> str:
    """Return the whole file; it needs nothing else and asks nobody."""
    said = tag("p", tag("strong", verdict), class_="passed" if passed else "failed")
    body = tag(
        "main",
        tag("h1", "spl federation soak"),
        tag("p", f"ended {at}", class_="who"),
        said,
        *(tag("p", reading) for reading in readings),
        tag("h2", "Windows"),
        tag("div", _table(rows), class_="scroll", tabindex="0", role="region", aria_label="Windows"),
        tag("p", _key("ours"), tag("span", "this run"), _key("theirs"), tag("span", "the reference page’s run")),
        *(joined(tag("h2", plot.title), _chart(plot, rows)) for plot in PLOTS),
    )
    style = Markup(file("page.css").decode() + _STYLE)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    heads = (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="content-security-policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"soak: {verdict}"),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', tag('head', *heads), tag('body', body), lang='en')}\n"


def rate(row: PageFigures) -> float | None:
    """Return the records a minute of a window."""
    return row["records_emitted"] / row["duration_min"] if row["duration_min"] else None


def _table(rows: Sequence[PageFigures]) -> Markup:
    theirs = {name: more for name, *more in REFERENCE}
    head = tag("tr", *(tag("th", title, scope="col") for title in _TITLES))
    return tag("table", tag("thead", head), tag("tbody", *(_row(row, theirs.get(row["window"])) for row in rows)))


def _row(row: PageFigures, theirs: Sequence[int] | None) -> Markup:
    minutes, records, p50, p99, queue = theirs or (None,) * 5
    pace = round(records / minutes) if records and minutes else None
    cells = (
        (row["duration_min"], minutes), (row["records_emitted"], records), (row["records_synced"], records),
        (round(rate(row) or 0), pace), (row["sync_lag_p50_ms"], p50), (row["sync_lag_p99_ms"], p99),
        (row["reconcile_queue_max"], queue), (row["errors"], 0 if theirs else None),
    )  # fmt: skip
    shown = (
        tag("td", _number(mine), tag("span", _number(his), class_="sub"), data_title=title)
        for title, (mine, his) in zip(_TITLES[1:], cells, strict=True)
    )
    return tag("tr", tag("th", row["window"], scope="row"), *shown)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or value >= 10 else f"{value:.3g}"


def _key(name: str) -> Markup:
    box = tag("path", d="M0 0h11v11h-11z", class_=name)
    return tag("svg", box, class_="key", viewBox="0 0 11 11", aria_hidden="true")


def _chart(plot: Plot, rows: Sequence[PageFigures]) -> Markup:
    """Return bars of this run and of the reference's, window by window, and the limit where there is one."""
    theirs = {row[0]: plot.theirs(row) for row in REFERENCE}
    groups = [(str(row["window"]), plot.value(row), theirs.get(row["window"])) for row in rows]
    most = max([plot.limit, 1, *(value for _, *pair in groups for value in pair if value is not None)])
    shapes = list(_bars(groups, most))
    label = "; ".join(f"{name}: {_number(ours)}, reference {_number(his)}" for name, ours, his in groups)
    if plot.limit:
        y = _height(plot.limit, most)
        where = f" in {plot.limited}" if plot.limited else ""
        shapes.append(tag("path", d=f"M0 {y:.4g}H{WIDTH}", class_="limit"))
        shapes.append(_text(WIDTH, y - 4, f"limit {plot.limit:,}{where}", "end", "bound"))
        label += f"; limit {plot.limit:,}{where}"
    axis = tag("path", d=f"M0 {_BASE}H{WIDTH}", class_="axis")
    box = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", axis, *shapes, class_="chart", role="img", aria_label=f"{plot.title}: {label}", viewBox=box)


def _bars(groups: Sequence[tuple[str, float | None, float | None]], most: float) -> Iterator[Markup]:
    step = WIDTH / max(1, len(groups))
    width = min(46.0, step / 3)
    for number, (name, *pair) in enumerate(groups):
        middle = (number + 0.5) * step
        for place, (value, kind) in enumerate(zip(pair, ("ours", "theirs"), strict=True)):
            if value is not None:
                x, y = middle + (place - 1) * (width + _GAP) + _GAP / 2, _height(value, most)
                yield tag("path", d=f"M{x:.4g} {_BASE}V{y:.4g}h{width:.4g}V{_BASE}z", class_=kind)
                yield _text(x + width / 2, y - 4, _number(value))
        yield _text(middle, _BASE + 18, name)


def _height(value: float, most: float) -> float:
    """Return where a value stands; the smallest above zero can still be seen."""
    return _BASE - max(1.5 if value else 0, (_BASE - _TOP) * value / most)


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> Markup:
    return tag("text", words, x=f"{x:.4g}", y=f"{y:.4g}", text_anchor=anchor, class_=kind or None)
