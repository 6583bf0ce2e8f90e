"""`spl doctor`: checks in order, then each problem with its next step."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..client.calls import quote
from ..core.errors import CODES, count, steps
from . import nagios
from .client import CtlError
from .command import FOUND_PROBLEMS, PAIR, Command, Shell, arg
from .out import DIM, GREEN, RED, YELLOW, Out, short_did
from .paste import start_of

_SILENT: Final = frozenset({"daemon-down", "timeout"})
"""No daemon answers, or one holds the home and does not reply: the report is then made from the home itself."""
_HELD: Final = frozenset({"warming-up", "store-locked"})
_MARKS: Final = {"ok": "ok", "fail": "FAIL", "warn": "warn", "skip": "skip", "info": "info"}
_COLORS: Final = {"ok": GREEN, "fail": RED, "warn": YELLOW, "skip": DIM, "info": ""}


def _doctor(args: Namespace, shell: Shell) -> int:
    if args.format == "nagios":
        return nagios.check(args, shell)
    report, asked = _report(args, shell)
    if asked:
        printed = shell.printed("spl.doctor/1", report)
    else:
        printed = shell.out.data("spl.doctor/1", report, lambda: None)
    if not printed:
        _show(report, shell)
    return FOUND_PROBLEMS if _problems(report) else 0


def _report(args: Namespace, shell: Shell) -> tuple[dict[str, Any], bool]:
    """Return the report, and whether the daemon made it; without an answer the home itself is examined."""
    path = f"/v1/doctor/{quote(args.pair)}" if args.pair else "/v1/doctor"
    try:
        return shell.ctl.get(path), True
    except CtlError as exc:
        if exc.code not in _SILENT or shell.distant:
            raise
        step = exc.hint if exc.hint != CODES[exc.code].fix else ""
    report: dict[str, Any] = shell.load("doctor.examine").examine_home(Path(shell.home))
    for item in report["problems"]:
        if item["code"] == "daemon-down":
            item["fix"] = start_of(shell.home, shell.env)
        elif item["code"] in _HELD and step:
            item["fix"] = step
    return report, False


def _problems(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*report["problems"], *(item for pair in report.get("pairs") or [] for item in pair["problems"])]


def _show(report: Mapping[str, Any], shell: Shell) -> None:
    out = shell.out
    if report.get("pair_id"):
        out.line(f"{report['pair_id']}  {short_did(report['peer_did'])}")
    for row in report["checks"]:
        _line(out, row["mark"], row["name"], row["text"])
    for pair in report.get("pairs") or []:
        mark = "fail" if any(item["severity"] == "fail" for item in pair["problems"]) else "warn"
        mark = mark if pair["problems"] else "ok"
        text = f"{short_did(pair['peer_did'])} {pair['state']}, confirmed {pair['confirmed']}"
        _line(out, mark, pair["pair_id"], text)
    problems = _problems(report)
    out.line()
    out.line(_summary(len(problems), int(report["explained"])))
    width = max([len("fix"), *(len(item["code"]) for item in problems)])
    for item in problems:
        pair = f"{item['pair_id']}: " if item.get("pair_id") else ""
        out.entry(f"  {item['code']:<{width}}  ", f"{pair}{item['title']}")
        if item["meaning"] != item["title"]:
            out.entry(f"  {'':<{width}}  ", item["meaning"])
        out.entry(f"  {'fix':<{width}}  ", *steps(item["fix"]))


def _line(out: Out, mark: str, name: str, text: str) -> None:
    out.marked(f"{_MARKS[mark]:<4}", _COLORS[mark], f"{name:<16}  {text}")


def _summary(problems: int, explained: int) -> str:
    """Return "1 problem, 2 checks explained by it"."""
    if not problems:
        return "no problems"
    text = count(problems, "problem")
    if explained:
        by = "it" if problems == 1 else "them"
        text += f", {count(explained, 'check')} explained by {by}"
    return text


TREE: Final = (
    Command(
        "doctor",
        "Checks the daemon, or the whole path to a pair's peer and back; prints each problem with its next step.\n"
        "Without PAIR: process, store, disk, identity, sinks, what is published and our rules, and a line for each\n"
        "pair; if no daemon runs, why not.\n"
        "Checks that another problem explains are skipped; exit code 3 means that there are problems.",
        "spl doctor",
        _doctor,
        (
            PAIR._replace(settings={**PAIR.settings, "nargs": "?"}),
            arg(
                "--format",
                choices=("text", "nagios"),
                default="text",
                help="nagios: one line with values for a monitoring system, and its exit codes 0 to 3",
            ),
            *nagios.THRESHOLDS,
        ),
    ),
)
