"""`spl store`: the log on disk, with and without a running daemon."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ..client.calls import JSON
from ..client.errors import refusal
from ..core.errors import cli_code, count
from .client import LONG_S, CtlError
from .command import FOUND_PROBLEMS, Command, Group, Shell, arg
from .fit import size
from .out import Out, label_of
from .paste import start_of

_WHAT: Final = {
    "line": "the running hash does not hold",
    "header": "the segment's header is damaged",
    "foreign": "another segment stood here; it was renamed to .foreign",
    "index": "the index does not lead here",
    "id": "the id is not that of the record",
}


def _check(args: Namespace, shell: Shell) -> int:
    out = shell.out
    damages: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    done: dict[str, Any] = {}
    repaired: dict[str, Any] | None = None
    cut_bytes = 0
    for step in _repairing(shell) if args.repair else _steps(shell):
        fields = {name: value for name, value in step.items() if name != "step"}
        match step["step"]:
            case "progress":
                out.progress(f"checked {step['lines']:,} of {count(step['of_lines'], 'line')}")
            case "index":
                out.progress(f"read {size(step['bytes'])} of {size(step['of_bytes'])} into a new index")
            case "damage":
                damages.append(fields)
            case "opened":
                cut_bytes = step["cut_bytes"]
            case "repair":
                pairs.append(fields)
            case "done":
                done = fields
            case "repaired":
                repaired = {**fields, "pairs": pairs}
            case "error":
                raise refusal(step["error"])
    if not done or (args.repair and repaired is None):
        raise CtlError("disconnected", "the check broke off")
    data = {**done, "cut_bytes": cut_bytes, "damages": damages, "repaired": repaired}
    if not out.data("spl.store_check/1", data, lambda: _instance(shell)):
        _print_check(data, shell)
        if repaired is not None:
            _print_repair(repaired, out)
    if repaired is not None:
        return FOUND_PROBLEMS if repaired["still_lost"] else 0
    return 0 if _is_whole(data) else FOUND_PROBLEMS


def _is_whole(data: Mapping[str, Any]) -> bool:
    """Return whether all lines lost are held again, and a repair looked at each place where none was."""
    healed = sum(
        item["lines"] == item["held_lines"] and bool(item["lines"] or item["settled"]) for item in data["damages"]
    )
    return bool(healed == data["damaged"])


def _print_check(data: Mapping[str, Any], shell: Shell) -> None:
    out = shell.out
    rows = [
        (
            f"{item['segment']:020d}.jsonl", str(item["offset"]), str(item["seq"]), str(item["lines"]),
            str(item["held_lines"]), _WHAT.get(item["what"], str(item["what"])),
        )
        for item in data["damages"]
    ]  # fmt: skip
    out.table(
        ("SEGMENT", "OFFSET", "SEQ", "LINES LOST", "HELD AGAIN", "WHAT"),
        rows,
        keep=("SEGMENT", "OFFSET", "LINES LOST", "HELD AGAIN"),
    )
    if data["cut_bytes"]:
        out.warn(f"! {count(data['cut_bytes'], 'byte')} of a torn tail cut: never acknowledged")
    mark = f"{count(data['records'], 'record')} in {count(data['lines'], 'line')}, {count(data['segments'], 'segment')}"
    if not data["damaged"]:
        out.line(f"✓ {mark}: every hash and id holds")
    elif _is_whole(data):
        out.line(f"✓ {mark}: {count(data['damaged'], 'damaged place')}, and nothing is missing any more")
        out.note("the damaged bytes stay on the disk and are skipped")
    else:
        out.warn(f"! {count(data['damaged'], 'damaged place')}; everything else is served")
        if data["lost_lines"] > data["held_lines"] and data["repaired"] is None:
            out.hint("to fetch lost records from the pairs: spl store check --repair")


def _print_repair(repaired: Mapping[str, Any], out: Out) -> None:
    for item in repaired["pairs"]:
        peer = f"{item['pair_id']}  {label_of(item['peer_did'])}"
        if error := item.get("error"):
            why = f"{error['message']} [{cli_code(error['code'])}]"
            out.line(f"{peer}: nothing fetched: {why}; fix: {out.pasted(error['hint'])}")
        else:
            out.line(f"{peer}: {count(item['fetched'], 'record')} fetched")
    lost, still_lost = repaired["lost"], repaired["still_lost"]
    if not lost:
        out.line("✓ nothing is lost, so nothing was fetched")
    elif not still_lost and not repaired["settled"]:
        out.line(f"✓ {count(lost, 'lost line')} recovered, nothing is missing any more")
    elif not still_lost:
        given_up = count(repaired["settled"], "line")
        out.line(f"✓ nothing is missing that a pair holds; {given_up} without a readable id given up")
        _warn_of_withdrawals(out)
    else:
        out.warn(f"! {still_lost:,} of {lost:,} lost lines could not be recovered")
        if not repaired["pairs"]:
            out.warn("  no pair may sync now, so there is none to fetch from")
        out.note("peers do not hold what was never sent to them: reserved threads, namespaces that are not shared")
        out.note("restore that from a snapshot: spl thread restore; lines without a readable id stay counted as lost")
        _warn_of_withdrawals(out)


def _warn_of_withdrawals(out: Out) -> None:
    out.warn("! tokens, pairs and grants that were withdrawn by these lines are in force again")
    out.hint("to look, and withdraw them again: spl token list; spl federation list; spl consent list")


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
            ("log", f"{size(found['log_bytes'])} in {count(found['segments_count'], 'segment')}"),
            ("free", size(found["free_bytes"])),
            ("sync", f"p50 {found['sync_p50_ms']:.1f} ms, p99 {found['sync_p99_ms']:.1f} ms"),
            ("state", found["readonly"] or found["full"] or "accepts writes"),
            ("last opening", f"{opened['took_ms']} ms, {count(opened['lines_read'], 'line')} read"
                             + (", after an unclean stop" if opened["unclean"] else "")),
            *(("damaged", f"segment {item['segment']} offset {item['offset']}") for item in opened["damaged"]),
        ])  # fmt: skip
    return 0


def _steps(shell: Shell) -> Iterable[dict[str, Any]]:
    """Return the steps of the running daemon's check, or of our own if no daemon runs."""
    try:
        yield from shell.ctl.lines("/v1/store/check", b"", JSON, LONG_S)
    except CtlError as exc:
        yield from _without_daemon(exc, shell).check_home(Path(shell.home))


def _repairing(shell: Shell) -> Iterable[dict[str, Any]]:
    """Return the steps of the running daemon's repair; without a daemon there is no way to ask peers."""
    try:
        yield from shell.ctl.lines("/v1/store/check", b'{"repair":true}', JSON, LONG_S)
    except CtlError as exc:
        if exc.code != "daemon-down" or shell.distant:
            raise
        start = start_of(shell.home, shell.env)
        hint = f"start the daemon, which asks the peers: {start}; then again: spl store check --repair"
        raise CtlError(exc.code, exc.message, hint=hint) from exc


def _without_daemon(exc: CtlError, shell: Shell) -> Any:
    """Return the module that reads the home itself; raise the error again unless it says that no daemon runs."""
    if exc.code != "daemon-down" or shell.distant:
        raise exc
    return shell.load("home.check")


def _instance(shell: Shell) -> str | None:
    try:
        return shell.ctl.instance()
    except CtlError:
        return None


TREE: Final = (
    Group(
        "store",
        "The store is one log of JSON lines in segments, and its running hash covers every byte of it.\n"
        "These commands work with a running daemon; all but a repair also work on the home itself if none runs.",
        "spl store check",
        (
            Command(
                "store check",
                "Reads the whole log and verifies the running hash of every line and the id of every record.\n"
                "Damage is reported by segment and offset and exits 3; the rest of the log is still served.\n"
                "--repair has the running daemon fetch lost records from its pairs, by id, and exits 0 once all are\n"
                "held again. Records that no peer received cannot come back; lines without a readable id are given up\n"
                "once no pair has more to give. The damaged bytes stay on the disk: later checks still report\n"
                "them, and exit 0 if nothing is missing any more.",
                "spl store check --repair",
                _check,
                (arg("--repair", action="store_true", help="fetch lost records from the pairs; needs the daemon"),),
            ),
            Command(
                "store stats",
                "Shows the records and bytes of the log, the duration of its disk syncs, and its last opening.\n"
                "Sync times are those of the answering process, over its last 512 syncs.",
                "spl store stats -o json",
                _stats,
            ),
        ),
    ),
)
