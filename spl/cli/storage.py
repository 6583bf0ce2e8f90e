"""`spl store`: the log on disk, with and without a running daemon."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from .command import Command, Group, Shell
from .ctl import JSON, LONG_S, CtlError
from .out import size

_FOUND_PROBLEMS: Final = 3
_WHAT: Final = {
    "line": "the running hash does not hold",
    "header": "the segment's header is damaged",
    "id": "the id is not that of the record",
}


def _check(args: Namespace, shell: Shell) -> int:
    out = shell.out
    damages: list[dict[str, Any]] = []
    done: dict[str, Any] = {}
    cut_bytes = 0
    for step in _steps(shell):
        match step["step"]:
            case "progress":
                out.progress(f"checked {step['lines']:,} of {step['of_lines']:,} lines")
            case "damage":
                damages.append({name: value for name, value in step.items() if name != "step"})
            case "opened":
                cut_bytes = step["cut_bytes"]
            case "done":
                done = {name: value for name, value in step.items() if name != "step"}
    if not done:
        raise CtlError("disconnected", "the check broke off")
    data = {**done, "cut_bytes": cut_bytes, "damages": damages}
    if not out.data("spl.store_check/1", data, lambda: _instance(shell)):
        _print_check(data, shell)
    return _FOUND_PROBLEMS if done["damaged"] else 0


def _print_check(data: Mapping[str, Any], shell: Shell) -> None:
    out = shell.out
    rows = [
        (
            f"{item['segment']:020d}.jsonl", str(item["offset"]), str(item["seq"]), str(item["lines"]),
            _WHAT.get(item["what"], str(item["what"])),
        )
        for item in data["damages"]
    ]  # fmt: skip
    out.table(("SEGMENT", "OFFSET", "SEQ", "LINES LOST", "WHAT"), rows)
    if data["cut_bytes"]:
        out.warn(f"! {data['cut_bytes']} bytes of a torn tail were cut; they were never acknowledged")
    if data["damaged"]:
        out.warn(f"! {data['damaged']} places are damaged; everything else is served")
        return
    mark = f"{data['records']:,} records in {data['lines']:,} lines, {data['segments']} segments"
    out.line(f"✓ {mark}: every hash and id holds")


def _stats(args: Namespace, shell: Shell) -> int:
    try:
        found = shell.ctl.get("/v1/store/stats")
    except CtlError as exc:
        found = _without_daemon(exc, shell).facts_of_home(Path(shell.home))
    found.pop("object", None)
    out = shell.out
    if not out.data("spl.store/1", found, lambda: _instance(shell)):
        opened = found["opened"]
        out.card([
            ("records", f"{found['records_count']:,}"), ("lines", f"{found['lines_count']:,}"),
            ("projections", f"{found['projections_count']:,}"),
            ("log", f"{size(found['log_bytes'])} in {found['segments_count']} segments"),
            ("free", size(found["free_bytes"])),
            ("sync", f"p50 {found['sync_p50_ms']:.1f} ms, p99 {found['sync_p99_ms']:.1f} ms"),
            ("state", found["readonly"] or "takes writes"),
            ("last opening", f"{opened['took_ms']} ms, {opened['lines_read']:,} lines read"
                             + (", after an unclean stop" if opened["unclean"] else "")),
            *(("damaged", f"segment {item['segment']} offset {item['offset']}") for item in opened["damaged"]),
        ])  # fmt: skip
    return 0


def _steps(shell: Shell) -> Iterable[dict[str, Any]]:
    """Return the steps of the running daemon's check, or of our own where none runs."""
    try:
        yield from shell.ctl.lines("/v1/store/check", b"", JSON, LONG_S)
    except CtlError as exc:
        yield from _without_daemon(exc, shell).check_home(Path(shell.home))


def _without_daemon(exc: CtlError, shell: Shell) -> Any:
    """Return the module that reads the home itself; raise the error again unless it says that no daemon runs."""
    if exc.code != "daemon-down" or shell.distant:
        raise exc
    return shell.load("storecheck")


def _instance(shell: Shell) -> str | None:
    try:
        return shell.ctl.instance()
    except CtlError:
        return None


TREE: Final = (
    Group(
        "store",
        "The store is one log of JSON lines in segments, and its running hash covers every byte of it.\n"
        "These commands work with a running daemon, and on the home itself where none runs.",
        "spl store check",
        (
            Command(
                "store check",
                "Reads the whole log and verifies the running hash of every line and the id of every record.\n"
                "Damage is named by segment and offset and exits 3; the rest of the log is served all the same.",
                "spl store check",
                _check,
            ),
            Command(
                "store stats",
                "Shows the records and bytes of the log, how long its syncs take, and how its last opening went.\n"
                "Sync times are those of the process that answers, over its last 512 syncs.",
                "spl store stats -o json",
                _stats,
            ),
        ),
    ),
)
