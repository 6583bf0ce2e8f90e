"""The page as a function of facts: pairs with both sides, findings with their fix, what is shared, and what happened.

The facts are those of `spl status`, `list` and `show`; nothing here looks anything up.  The page is made of parts, each
with an id: the browser replaces a part when it has changed, so what is shown with a script and without is the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..core import when
from ..core.errors import count
from .markup import Markup, bars, joined, moment, records, tag, text

PageFacts = Mapping[str, Any]

SUMMARY: Final = "summary"
ENDED: Final = "ended"
SHARING: Final = "sharing"
TITLES: Final = ("State", "Peer", "Peer says", "From the peer", "To the peer", "Queue")
STATES: Final = ("active", "establishing", "paused", "degraded", "revoked")
TRANSITIONS_MAX: Final = 20
ENDED_MAX: Final = 50
_MARKS: Final[Mapping[str, str]] = {
    "active": "M8 2a6 6 0 1 1 0 12a6 6 0 1 1 0-12z",
    "offline": "M8 2a6 6 0 1 1 0 12a6 6 0 1 1 0-12z M8 4a4 4 0 1 0 0 8a4 4 0 1 0 0-8z",
    "establishing": "M8 2v2.5 M8 11.5V14 M2 8h2.5 M11.5 8H14 M3.8 3.8l1.7 1.7 M10.5 10.5l1.7 1.7 "
    "M12.2 3.8l-1.7 1.7 M5.5 10.5l-1.7 1.7",
    "paused": "M4 2.5h2.6v11H4z M9.4 2.5H12v11H9.4z",
    "degraded": "M8 1.5L15 14H1z M7.2 6h1.6v4H7.2z M7.2 11.2h1.6v1.5H7.2z",
    "revoked": "M3.2 2L8 6.8 12.8 2 14 3.2 9.2 8 14 12.8 12.8 14 8 9.2 3.2 14 2 12.8 6.8 8 2 3.2z",
    "fail": "M8 1.5L15 14H1z M7.2 6h1.6v4H7.2z M7.2 11.2h1.6v1.5H7.2z",
    "warn": "M8 1.5L14.5 8 8 14.5 1.5 8z M7.2 4.5h1.6v4H7.2z M7.2 9.8h1.6v1.5H7.2z",
}
"""A shape for each state, so that none is told by colour alone; the word always stands beside it."""


def main(now_ms: int, parts: Sequence[Markup], pairs: Sequence[Markup]) -> Markup:
    """Return the whole page between its head and its foot: the summary, the pairs, what is shared."""
    head, *rest = parts
    titles = tag("tr", *(tag("th", title, scope="col", role="columnheader") for title in TITLES), role="row")
    table = tag(
        "table",
        tag("caption", "Every pair, with both sides", class_="hidden"),
        tag("thead", titles, role="rowgroup"),
        *pairs,
        id="pairs",
        role="table",
    )
    return joined(head, tag("section", tag("h2", "Pairs"), table, _no_pairs(), aria_label="Pairs"), *rest)


def _no_pairs() -> Markup:
    """Return what stands for pairs where there are none: the style shows it beside an empty table."""
    asks = tag("code", "spl federation pair https://peer.example/")
    return tag("p", "No pairs yet. To ask a peer: ", asks, class_="empty")


def summary(status: PageFacts, now_ms: int) -> Markup:
    """Return who this is, its figures, and what needs attention."""
    identity = status["identity"] or {"label": "no identity", "did": "spl identity generate"}
    up = when.span_fine(status["uptime_s"] * 1000)
    who = tag(
        "div",
        tag("h1", identity["label"]),
        tag("p", tag("span", identity["did"], class_="id"), class_="who"),
        tag("p", f"spl {status['version']}, up {up}, ", tag("span", status["url"], class_="id"), class_="who"),
    )
    figures = tag("dl", *(_figure(*figure) for figure in _figures(status)), class_="figures")
    return tag("section", who, figures, _attention(status["attention"]), id=SUMMARY, aria_label="This daemon")


def _figures(status: PageFacts) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and remark."""
    pairs, store, lag, queue = status["pairs"], status["store"], status["lag"], status["queue"]
    states = ", ".join(f"{pairs[state]} {state}" for state in STATES if pairs.get(state))
    yield "Pairs", f"{pairs['total']:,}", states
    free = f"{size(store['bytes'])}, {size(store['free_bytes'])} free"
    yield "Records", f"{store['records']:,}", "takes no records" if store["readonly"] else free
    p50, p99 = lag.get("p50_ms"), lag.get("p99_ms")
    confirmed = "p50 / p99, from write to the peer’s confirmation, last 5 min"
    yield "Lag", "–" if p50 is None else f"{p50:,.0f} / {p99:,.0f} ms", confirmed if p50 is not None else "no writes"
    yield "Behind", f"{lag['lag_records']:,}", "records that one peer holds and we lack, at most"
    yield "Queue", f"{queue['now']:,}", f"records between network and store, at most {queue['max']:,} within an hour"


def _figure(name: str, value: str, remark: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", remark, class_="remark"))


def _attention(findings: Sequence[PageFacts]) -> Markup:
    if not findings:
        return tag("p", mark("active"), "Nothing needs attention.", class_="calm")
    items = (_finding(item) for item in findings)
    title = tag("h2", "Needs attention ", tag("span", len(findings), class_="count"))
    return tag("div", title, tag("ul", *items, class_="findings"), class_="attention")


def _finding(item: PageFacts) -> Markup:
    pair_id = item.get("pair_id")
    where = tag("a", pair_id, href=f"#{pair_id}", class_="id") if pair_id else tag("span", "this daemon", class_="id")
    fix = tag("p", tag("span", "fix ", class_="label"), tag("code", item["fix"])) if item.get("fix") else None
    said = tag("p", tag("strong", item["code"]), " ", where, tag("span", item["title"], class_="what"))
    body = tag("div", said, fix)
    return tag("li", mark("fail" if item["severity"] == "fail" else "warn"), body, class_=severity(item))


def severity(item: PageFacts) -> str:
    """Return the class of a finding, "fail" or "warn"; its word is its code."""
    return "fail" if item["severity"] == "fail" else "warn"


# -- one pair


def pair(row: PageFacts, now_ms: int) -> Markup:
    """Return a pair: a row of the table, and below it why it is as it is."""
    cells = (
        _state(row, now_ms), _peer(row), _peer_says(row, now_ms), _from_peer(row, now_ms), _to_peer(row, now_ms),
        _queue(row),
    )  # fmt: skip
    labelled = (tag("td", cell, role="cell", data_title=title) for title, cell in zip(TITLES, cells, strict=True))
    more = tag("td", _more(row, now_ms), role="cell", colspan=str(len(TITLES)))
    line = tag("tr", *labelled, role="row")
    return tag("tbody", line, tag("tr", more, role="row", class_="more"), id=row["pair_id"], role="rowgroup")


def standing(row: PageFacts) -> tuple[str, str]:
    """Return the mark of a pair and its state in words, without ages, as `spl federation list` has it."""
    state, detail = str(row["state"]), str(row.get("state_detail") or "")
    rest = detail.removeprefix(f"{state} ")
    word = f"{state} ({rest})" if state == "paused" and rest and rest != detail else state
    if row.get("offline_since"):
        return "offline", f"{word}, offline"
    return (state, word) if not row.get("one_way") else ("offline", f"{word}, one-way")


def mark(name: str) -> Markup:
    """Return the shape of a state."""
    shape = tag("path", d=_MARKS.get(name, _MARKS["establishing"]), fill_rule="evenodd")
    return tag("svg", shape, class_=f"mark {name}", viewBox="0 0 16 16", aria_hidden="true")


def _state(row: PageFacts, now_ms: int) -> Markup:
    name, word = standing(row)
    way = row.get("one_way") or {}
    since = row.get("offline_since") or way.get("since") or row["since"]
    reason = row["reason"] if row["reason"] not in ("", None, row["state"]) else ""
    return joined(
        tag("p", mark(name), tag("strong", word), class_="state"),
        tag("p", "since ", moment(since, now_ms), f" ({reason})" if reason else "", class_="sub"),
    )


def _peer(row: PageFacts) -> Markup:
    mode = str(row["mode"])
    every = f" every {when.span_fine(int(row['poll_interval_ms']))}" if mode == "polling" else ""
    return joined(
        tag("p", tag("strong", _label(row)), class_="peer"),
        tag("p", tag("span", row["pair_id"], class_="id"), class_="sub"),
        tag("p", f"{mode}{every}", class_="sub"),
    )


def _peer_says(row: PageFacts, now_ms: int) -> Markup:
    view = row.get("peer_view") or {}
    if not view:
        return tag("p", "nothing yet", class_="none")
    state = str(view.get("state") or "not known")
    notes = ["its store takes no records"] if view.get("readonly") else []
    return joined(
        tag("p", mark(state) if state in STATES else None, state, class_="state"),
        tag("p", moment(view.get("at"), now_ms, "age not known"), class_="sub"),
        *(tag("p", note, class_="sub") for note in notes),
    )


def _from_peer(row: PageFacts, now_ms: int) -> Markup:
    lag, attempt = row["inbound"]["lag_records"], row.get("attempt")
    said = f"{records(lag)} behind" if lag else "caught up" if lag == 0 else "not known yet"
    if attempt:
        code = (row.get("last_error") or {}).get("code") or row.get("reason") or ""
        said = f"failing ({str(code).lower().replace('_', '-')}), attempt {attempt}"
    last = tag("p", "last sync ", moment(row.get("last_sync_at"), now_ms), class_="sub")
    return joined(tag("p", said), last, bars(row["lags"], "records behind the peer"))


def _to_peer(row: PageFacts, now_ms: int) -> Markup:
    lag = row["outbound"]["lag_records"]
    said = f"{records(lag)} waiting" if lag else "all confirmed" if lag == 0 else "not known yet"
    spread, slow = row.get("lag_ms") or {}, None
    if spread.get("samples"):
        slow = tag("p", f"p50 {spread['p50_ms']:,} ms, p99 {spread['p99_ms']:,} ms", class_="sub")
    return joined(tag("p", said), tag("p", "confirmed ", moment(row.get("last_read_at"), now_ms), class_="sub"), slow)


def _queue(row: PageFacts) -> Markup:
    return joined(tag("p", f"{row['queue_records']:,}", class_="number"), bars(row["queues"], "records queued"))


def _more(row: PageFacts, now_ms: int) -> Markup:
    codes = [tag("li", mark(severity(item)), item["code"], class_=severity(item)) for item in row["findings"]]
    wrong = tag("ul", *codes, class_="codes") if codes else None
    shown = (_fact(*fact) for fact in _facts(row, now_ms))
    body = tag("div", _timeline(row["transitions"], now_ms), tag("dl", *shown, class_="facts"), class_="body")
    summary_ = tag("summary", "timeline, grants, keys", tag("span", f" of {row['pair_id']}", class_="hidden"))
    return joined(wrong, tag("details", summary_, body))


def _timeline(steps: Sequence[PageFacts], now_ms: int) -> Markup:
    items = [
        tag("li", mark(str(step["to"])), tag("span", step["to"]), " ", moment(step["at"], now_ms), _why(step))
        for step in steps[:TRANSITIONS_MAX]
    ]
    return tag("ol", *items, class_="timeline", aria_label="What happened, the latest first")


def _why(step: PageFacts) -> Markup | None:
    reason = step.get("reason")
    return tag("span", str(reason), class_="sub") if reason and reason != step["to"] else None


def _facts(row: PageFacts, now_ms: int) -> Iterator[tuple[str, Markup]]:
    yield "peer", joined(tag("span", row["peer_did"], class_="id"), " ", tag("span", row["url"], class_="id"))
    yield "position", text(f"clock {row['inbound']['clock']}, the peer’s clock here {row['outbound']['clock']}")
    for grant in row["grants"]:
        yield "grant", grant_line(grant)
    for token in row["tokens"]:
        ends = joined(", ends ", tag("time", token["expires_at"], datetime=token["expires_at"], data_fixed=True))
        yield "token", joined(f"{token['direction']}, {token['token_id']}, {token['state']}", ends)
    yield "peer key", text(row["peer_words"])
    if row.get("last_error"):
        error = row["last_error"]
        yield "last error", joined(f"{error.get('message', '')} ", moment(error.get("at"), now_ms, ""))
    if row.get("stalled"):
        yield "stalled", text(f"records wait and none moves: {row['stalled']}")


def grant_line(grant: PageFacts) -> Markup:
    """Return a grant in one line, with what it lacks."""
    ours, theirs = str(grant["namespace"]), str(grant["peer_namespace"])
    is_ours = grant["direction"] == "out"
    way = f"{ours} → {theirs}" if is_ours else f"{theirs} → {ours}"
    verb = "we grant" if is_ours else "the peer grants"
    level = grant["level"] if grant["level"] == grant["granted"] else f"{grant['granted']}, in force {grant['level']}"
    lacks = f"; {grant['missing']}" if grant.get("missing") else ""
    return joined(f"{verb} ", tag("code", way), f" ({level}){lacks}")


def _fact(name: str, value: Markup) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value))


def ended(rows: Sequence[PageFacts], total: int, now_ms: int) -> Markup:
    """Return the pairs that were revoked, the latest first; `total` is how many there are."""
    if not rows:
        return tag("section", id=ENDED, hidden=True)
    items = [tag("li", mark("revoked"), _ended_line(row), " ", moment(row["since"], now_ms)) for row in rows]
    if total > len(rows):
        items.append(tag("li", f"and {total - len(rows):,} more: ", tag("code", "spl federation list")))
    title = tag("summary", f"{count(total, 'revoked pair')}, kept for audit")
    body = tag("details", title, tag("ul", *items, class_="ended"))
    return tag("section", body, id=ENDED, aria_label="Revoked pairs")


def _ended_line(row: PageFacts) -> Markup:
    why = f" ({row['state_detail']})" if row["state_detail"] not in ("", row["state"]) else ""
    return joined(tag("strong", _label(row)), " ", tag("span", row["pair_id"], class_="id"), f" revoked{why}")


def _label(row: PageFacts) -> str:
    """Return how people call the peer."""
    label, _, rest = str(row["peer_did"]).rpartition(":")[2].rpartition("-")
    return label or rest


# -- what is shared


def sharing(grants: Sequence[PageFacts]) -> Markup:
    """Return every namespace that crosses a pair or a sink, and with whom."""
    rows = []
    for name in sorted({str(grant["namespace"]) for grant in grants}):
        by_side: dict[str, list[PageFacts]] = {}
        for grant in grants:
            if grant["namespace"] == name:
                by_side.setdefault(str(grant.get("sink") or grant["pair_id"]), []).append(grant)
        rows.append(
            tag("div", tag("dt", name, class_="id"), tag("dd", tag("ul", *map(_shared_with, by_side.values()))))
        )
    body = tag("dl", *rows, class_="shares") if rows else tag("p", "Nothing is shared.", class_="none")
    title = tag("h2", "Namespaces and grants ", tag("span", count(len(rows), "namespace"), class_="count"))
    return tag("section", title, body, id=SHARING, aria_label="Namespaces and grants")


def _shared_with(grants: Sequence[PageFacts]) -> Markup:
    """Return with whom a namespace is shared, and how, out first."""
    first = grants[0]
    if first.get("sink"):
        return tag("li", tag("span", f"sink {first['sink']}", class_="with"), tag("span", f"({first['level']})"))
    who = tag("a", _label(first), href=f"#{first['pair_id']}", class_="with")
    ordered = sorted(grants, key=lambda grant: grant["direction"] != "out")
    return tag("li", who, *(tag("span", grant_line(grant)) for grant in ordered))


def size(count_bytes: int | None) -> str:
    """Return a size in decimal units: 41.2 MB."""
    value, units = float(count_bytes or 0), ["B", "kB", "MB", "GB"]
    while value >= 999.95 and units[1:]:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
