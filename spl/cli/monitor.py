"""`spl monitor` and `spl top`: what changes, line by line; and the present state, drawn in place."""

import signal
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from ..core.errors import SplError, count
from ..core.when import text_of
from . import fit
from .command import Command, Shell, UsageError, arg
from .live import DOWN, Live, Shown, rows_of
from .out import DIM, GREEN, RED, YELLOW, label_of, state_paint
from .pair_page import broken, standing

DRAW_S: Final = 0.5
"""At most two frames a second."""
READER_S: Final = 1.0
"""How often a monitor that prints nothing looks whether anybody still reads."""
_ROWS_SHOWN: Final = 200
_TITLES: Final = ("PAIR ID", "PEER", "STATE", "MODE", "LAST SYNC", "IN", "OUT", "FINDINGS")
_KEPT: Final = ("STATE", "PAIR ID", "PEER", "FINDINGS", "OUT", "LAST SYNC")
"""Columns of `top` by worth: on a narrow terminal the others go first."""
_COLORS: Final = {"active": GREEN, "establishing": YELLOW, "paused": YELLOW, "degraded": RED, "revoked": DIM}
_SEEN: Final = ("state", "state_detail", "mode", "reach")
"""Of a pair, what a line of text says when it changes."""


class KnownRows:
    """The rows that were told, and what a new one says beside them; also across a restart of the daemon."""

    def __init__(self) -> None:
        self.rows: dict[str, Shown] = {}
        self.daemon: Shown = {}
        self.is_down = False

    def take(self, name: str, value: Shown) -> Iterator[dict[str, Any]]:
        """Yield what changed, as objects with `event`."""
        if name == DOWN:
            self.is_down = True
            yield {"event": "daemon-down", "code": value["code"], "message": value["message"]}
        elif name == "snapshot" and not self.daemon:
            self.rows, self.daemon = rows_of(value), value["daemon"]
            self.is_down = False
            yield {"event": "snapshot", "daemon": value["daemon"], "pairs": value["pairs"]}
        elif name == "snapshot":
            yield {"event": "daemon-up", "started_at": value["daemon"]["started_at"]}
            self.is_down = False
            yield from self._daemon(value["daemon"])
            found = rows_of(value)
            for pair_id in self.rows.keys() - found.keys():
                yield {"event": "gone", **_who(self.rows.pop(pair_id))}
            for row in found.values():
                yield from self._pair(row)
        elif name == "daemon":
            yield from self._daemon(value)
        elif name == "pair":
            yield from self._pair(value)

    def _daemon(self, value: Shown) -> Iterator[dict[str, Any]]:
        before, self.daemon = self.daemon, value
        yield from _findings({}, before.get("findings", []), value["findings"])

    def _pair(self, row: Shown) -> Iterator[dict[str, Any]]:
        who, before = _who(row), self.rows.get(row["pair_id"])
        self.rows[row["pair_id"]] = row
        if row["state"] == "revoked" and not row["findings"]:
            del self.rows[row["pair_id"]]
        if before is None:
            yield {"event": "new", **who, "pair": row}
            return
        changes = {name: [before.get(name), row.get(name)] for name in _SEEN if before.get(name) != row.get(name)}
        if changes:
            yield {"event": "changed", **who, "changes": changes}
        if bool(before["offline_since"]) != bool(row["offline_since"]):
            yield {"event": "offline" if row["offline_since"] else "online", **who, "since": row["offline_since"]}
        way, was = row.get("one_way"), before.get("one_way")
        if (was or {}).get("direction") != (way or {}).get("direction"):
            if way:
                yield {"event": "one-way", **who, **way}
            elif not row["offline_since"]:
                yield {"event": "both-ways", **who}
        if bool(before["stalled"]) != bool(row["stalled"]):
            yield {"event": "stalled", **who, "code": row["stalled"]} if row["stalled"] else {"event": "moving", **who}
        yield from _findings(who, before["findings"], row["findings"])
        if (before["inbound"], before["outbound"]) != (row["inbound"], row["outbound"]):
            yield {"event": "position", **who, "inbound": row["inbound"], "outbound": row["outbound"]}


def _who(row: Shown) -> dict[str, Any]:
    return {"pair_id": row["pair_id"], "peer_did": row["peer_did"]}


def _findings(who: Shown, before: list[Shown], now: list[Shown]) -> Iterator[dict[str, Any]]:
    """Yield each finding that is new, with its next step, and each code that is gone."""
    known, found = {item["code"] for item in before}, {item["code"] for item in now}
    for item in now:
        if item["code"] not in known:
            yield {"event": "finding", **who, **{name: item[name] for name in ("code", "severity", "title", "fix")}}
    for code in sorted(known - found):
        yield {"event": "cleared", **who, "code": code}


def _monitor(args: Namespace, shell: Shell) -> int:
    known = KnownRows()
    with Live(shell.ctl) as live:
        while True:
            item = live.next(READER_S)
            shell.out.check_reader()
            for event in known.take(*item) if item is not None else ():
                _print(event, shell)
            if item is not None and item[0] == DOWN and args.once_down:
                raise SplError("daemon-down", item[1]["message"])


def _print(event: Mapping[str, Any], shell: Shell) -> None:
    at = text_of(shell.now_ms())
    if shell.out.form in ("json", "jsonl"):
        shell.out.json_line({"at": at, **event})
    elif event["event"] == "snapshot":
        for row in event["pairs"]:
            shell.out.line(f"{at}  {_text(row)}")
        for item in event["daemon"]["findings"]:
            shell.out.line(f"{at}  {_finding(item, shell)}")
        if not event["pairs"]:
            shell.out.line(f"{at}  no pairs")
    elif event["event"] != "position" or shell.out.verbose:
        shell.out.line(f"{at}  {_sentence(event, shell)}")


def _text(row: Shown) -> str:
    """Return a pair as one line."""
    waits = f"in {_lag(row['inbound'])}, out {_lag(row['outbound'])}"
    codes = ", ".join(item["code"] for item in row["findings"])
    state = f"{row['state']} ({row['state_detail']})" if row["state_detail"] else row["state"]
    state += f", offline, no contact since {row['offline_since']}" if row.get("offline_since") else ""
    state += f", one-way since {row['one_way']['since']}" if row.get("one_way") else ""
    return (
        f"{row['pair_id']}  {label_of(row['peer_did'])}  {state}  {row['mode']}  {waits}{f'  {codes}' if codes else ''}"
    )


def _lag(side: Shown) -> str:
    return "?" if side["lag_records"] is None else f"{side['lag_records']:,}"


def _finding(item: Mapping[str, Any], shell: Shell) -> str:
    return shell.out.pasted(f"{item['code']}: {item['title']}; {item['fix']}")


def _sentence(event: Mapping[str, Any], shell: Shell) -> str:
    """Return what an event says to people."""
    head = f"{event['pair_id']}  {label_of(event['peer_did'])}  " if "pair_id" in event else ""
    match event["event"]:
        case "changed":
            parts = (
                f"{name.replace('_', ' ')} {old or '-'} -> {new or '-'}"
                for name, (old, new) in event["changes"].items()
            )
            text = ", ".join(parts)
        case "finding":
            text = _finding(event, shell)
        case "cleared":
            text = f"{event['code']} is over"
        case "one-way":
            text = f"one-way: {broken(event)}{f' ({code})' if (code := event.get('code')) else ''}"
        case "both-ways":
            text = "requests arrive in both directions"
        case "stalled":
            text = f"stalled: records wait and none moves ({event['code']})"
        case "position":
            text = f"in {event['inbound']['clock']:,} ({_lag(event['inbound'])} wait), " + (
                f"out {event['outbound']['clock']:,} ({_lag(event['outbound'])} wait)"
            )
        case "new":
            return _text(event["pair"])
        case "daemon-down":
            text = f"daemon-down: {event['message'].rstrip('.')}; trying again"
        case word:
            text = str(word)
    return head + text


def _top(args: Namespace, shell: Shell) -> int:
    """Draw until Ctrl-C."""
    if not shell.out.can_redraw or shell.out.form not in ("table", "wide"):
        raise UsageError("usage", "`spl top` redraws a terminal, and this is none", hint="to print lines: spl monitor")
    known, resized = KnownRows(), list[int]()

    def on_resize(number: int, frame: FrameType | None) -> None:
        resized.append(number)

    before = signal.signal(signal.SIGWINCH, on_resize)
    drawn_s, dirty = -DRAW_S, True
    try:
        with Live(shell.ctl) as live:
            while True:
                item = live.next(max(0.0, drawn_s + DRAW_S - time.monotonic()) if dirty else 2 * DRAW_S)
                changed = list(known.take(*item)) if item is not None else []
                dirty = dirty or bool(resized) or item is None or bool(changed)
                if dirty and time.monotonic() - drawn_s >= DRAW_S:
                    resized.clear()
                    shell.out.redraw(frame(known, shell))
                    drawn_s, dirty = time.monotonic(), False
    finally:
        signal.signal(signal.SIGWINCH, before)


def frame(known: KnownRows, shell: Shell) -> list[tuple[str, str]]:
    """Return the lines of a frame, each with its colour; those in trouble first."""
    if not known.daemon:
        return [("no daemon answers; trying again" if known.is_down else "asking the daemon", DIM)]
    rows = sorted(
        known.rows.values(),
        key=lambda row: (
            not (row["findings"] or row["offline_since"] or row.get("one_way")),
            row["state"] == "active", row["pair_id"],
        ),
    )  # fmt: skip
    states = [row["state"] for row in rows]
    head = ", ".join(f"{states.count(state)} {state}" for state in _COLORS if state in states)
    down = "  daemon-down, trying again" if known.is_down else ""
    lines = [(f"{count(len(rows), 'pair')}{f': {head}' if head else ''}{down}", RED if down else "")]
    lines += [(f"! {_finding(item, shell)}", RED) for item in known.daemon["findings"]]
    return [*lines, *_table(rows[:_ROWS_SHOWN], shell)] if rows else lines


def _table(rows: Sequence[Shown], shell: Shell) -> Iterator[tuple[str, str]]:
    """Yield the titles and a line for each pair, with its colour, as wide as the terminal is now."""
    cells = [
        (
            row["pair_id"], label_of(row["peer_did"]), standing(row, shell.out), row["mode"],
            shell.out.ago(row["last_sync_at"]), _lag(row["inbound"]), _lag(row["outbound"]),
            ", ".join(item["code"] for item in row["findings"]) or "-",
        )
        for row in rows
    ]  # fmt: skip
    room = fit.fitting(fit.widths_of(_TITLES, cells), _KEPT, shell.out.frame_columns())
    for shown in (_TITLES, *cells):
        line = (
            text + " " * (room[title] - fit.columns_of(text))
            for title, cell in zip(_TITLES, shown, strict=True)
            if title in room
            for text in (fit.cut(cell, room[title]),)
        )
        yield fit.GAP.join(line).rstrip(), DIM if shown is _TITLES else state_paint(shown[2])


TREE: Final = (
    Command(
        "monitor",
        "Prints the state of every pair, then each change as it happens: states, findings, stalls, restarts.\n"
        "It follows the daemon over restarts until Ctrl-C; with -v also each position.",
        "spl monitor -o jsonl | head -n 1",
        _monitor,
        (arg("--once-down", action="store_true", help="end with exit code 5 when the daemon goes away"),),
    ),
    Command(
        "top",
        "Shows every pair on this terminal, those in trouble first, and redraws it at most twice a second.\n"
        "Ctrl-C ends it; for a pipe or a log use `spl monitor`.",
        "spl top",
        _top,
    ),
)
