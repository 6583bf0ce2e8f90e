"""`spl thread`: the records of the store by thread; threads as files, taken and restored."""

import json
import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from itertools import chain, islice
from typing import Any, Final

from ..client.calls import NDJSON, later, quote
from ..core.errors import SplError, count
from ..core.limits import MIB, Limits
from ..core.pair.diff import THREAD_PAIRS, pair_id_of
from ..core.record.snapshot import DAMAGED_HEADER, part
from ..net.http1 import ResponseHead
from .client import LIST_BYTES, LONG_S, CtlError
from .command import FOUND_PROBLEMS, SINCE, Command, Group, Shell, UsageError, arg, limit
from .fit import size
from .out import column

RESTORE_PATH: Final = "/v1/threads/restore"
PIECE_BYTES: Final = 4 * MIB
"""Of one request of a restore: half of what the route takes."""

_UPLOAD_BYTES: Final = 16
_PAGE_RECORDS: Final = 500
_SHOWN_RECORDS: Final = 1000
_PREVIEW_CHARS: Final = 60
_CELL_CHARS: Final = 240
"""Of a body in a table, which cuts it to the terminal."""
_TOP: Final = 10
_COUNTED: Final = 10_000
"""Names of a sum that are told apart."""
_OTHERS: Final = "(others)"
_WALKED_BYTES: Final = 16_384 * MIB
"""Of a thread that is summed up: more than any holds."""
_NAMED: Final = 5
_SEARCHED: Final = 10_000
"""Threads that are looked at for one whose beginning was given."""


def snapshot_path(thread: str) -> str:
    """Return the route of a thread's snapshot; "" for all threads."""
    return f"/v1/threads/{quote(thread)}/snapshot" if thread else "/v1/snapshot"


def _list(args: Namespace, shell: Shell) -> int:
    threads = list(_names(shell, args.reserved))
    if not shell.printed("spl.threads/1", threads):
        out = shell.out
        rows = [(item["thread"], str(item["records"]), out.ago(item.get("last_at"), "-")) for item in threads]
        out.table(("THREAD", "RECORDS", "LAST"), rows, none="no threads yet: spl know 'TEXT'")
    return 0


def _records(args: Namespace, shell: Shell) -> int:
    records = list(_walk(shell, args.thread, args.since, args.limit))
    if not records and not args.since:
        args.thread = _whole_name(args.thread, shell)
        return _records(args, shell)
    out = shell.out
    if not shell.printed("spl.records/1", records):
        rows = [
            (
                str(item["sequence"]), item["act"], item["actor"], str(item["clock"]), shell.out.record(item["id"]),
                _preview(item["body"], shell, _CELL_CHARS),
            )
            for item in records
        ]  # fmt: skip
        titles, keep = ("SEQ", "ACT", "ACTOR", "CLOCK", "ID", "BODY"), ("SEQ", "ACT", "BODY", "ACTOR")
        out.table(titles, rows, keep=keep, none=f"no records of {args.thread}; every thread: spl thread list")
    if len(records) == args.limit:
        out.note(f"continue with: spl thread records {args.thread} --since {records[-1]['sequence']}")
    return 0


def _show(args: Namespace, shell: Shell) -> int:
    """Fold over all records of the thread, page by page, and print the sums."""
    latest: dict[str, Any] = {}
    sums: dict[str, Counter[str]] = {name: Counter() for name in ("actors", "acts", "kinds", "vouched_by")}
    for latest in _walk(shell, args.thread, 0, None):
        kind, voucher = str(latest["body"].get("kind", "-")), str(latest.get("vouched_by", "-"))
        for sum, name in zip(sums.values(), (latest["actor"], latest["act"], kind, voucher), strict=True):
            sum[name if name in sum or len(sum) < _COUNTED else _OTHERS] += 1
    if not latest:
        args.thread = _whole_name(args.thread, shell)
        return _show(args, shell)
    total = sums["acts"].total()
    counted = {name: dict(sum) for name, sum in sums.items()}
    data = {"thread": args.thread, "records": total, **counted, "latest": latest}
    if not shell.printed("spl.thread/1", data):
        shell.out.card([
            ("thread", args.thread), ("records", str(total)),
            *chain.from_iterable(column(name.replace("_", " "), _counts(sum)) for name, sum in sums.items()),
            ("latest", str(latest["id"])), ("", f"{latest['act']} {_preview(latest['body'], shell)}".rstrip()),
        ])  # fmt: skip
    return 0


def _state(args: Namespace, shell: Shell) -> int:
    """Print the value that the thread's fold rule computes."""
    found = shell.ctl.get(f"/v1/threads/{quote(args.thread)}/state")
    if not found["records"]:
        args.thread = _whole_name(args.thread, shell)
        return _state(args, shell)
    if not shell.printed("spl.state/1", found):
        rule = f"rule {found['rule']}" if found["rule"] else "no rule covers the thread"
        field = f" of {found['field']}" if found["field"] else ""
        value = found["value"]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
        shell.out.card([
            ("thread", str(found["thread"])), ("fold", f"{found['fold']}{field} ({rule})"),
            ("records", f"{found['records']}, the last one at sequence {found['sequence']}"),
            *column("value", text.splitlines() or [""]),
        ])  # fmt: skip
        if not found["complete"]:
            shell.out.warn("! the thread has more values than a set holds; the set has the first ones")
    return 0


def _names(shell: Shell, reserved: bool) -> Iterator[dict[str, Any]]:
    """Yield every thread in order of its first record, fetched page by page."""
    query = [("limit", str(_PAGE_RECORDS))] + ([("reserved", "1")] if reserved else [])
    page, seen = shell.ctl.items("/v1/threads", query), set[str]()
    while page:
        names = {item["thread"] for item in page}
        if not seen.isdisjoint(names):
            raise CtlError("answer-malformed", f"{shell.ctl.where} lists threads twice, so its list may have no end")
        seen |= names
        yield from page
        shell.ctl.check_taken(LIST_BYTES)
        page = shell.ctl.items("/v1/threads", [*query, ("after", page[-1]["thread"])])


def _walk(shell: Shell, thread: str, since: int, limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield the thread's records in order of arrival, page by page; a short page need not be the last."""
    left = limit
    while left is None or left > 0:
        wanted = _PAGE_RECORDS if left is None else min(left, _PAGE_RECORDS)
        page = shell.ctl.items("/v1/records", [("thread", thread), ("since", str(since)), ("limit", str(wanted))])
        if not page:
            return
        yield from page
        shell.ctl.check_taken(_WALKED_BYTES)
        since = later(page[-1]["sequence"], since)
        left = None if left is None else left - len(page)


def _counts(sum: Counter[str]) -> list[str]:
    lines = [f"{name}  {number}" for name, number in sum.most_common(_TOP)]
    return [*lines, f"and {len(sum) - _TOP} more"] if len(sum) > _TOP else lines


def _preview(body: Mapping[str, Any], shell: Shell, chars: int = _PREVIEW_CHARS) -> str:
    """Return the body's text, or the body as JSON; people get the first characters."""
    text = body.get("text")
    if not isinstance(text, str):
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    if shell.out.people and len(text) > chars:
        return text[: chars - 1] + "…"
    return text


def _whole_name(begin: str, shell: Shell) -> str:
    """Return the one thread whose name begins so, as a narrow table cuts it; among the oldest _SEARCHED.

    Raises SplError "not-found", "ambiguous".
    """
    begin, names = begin.removesuffix("…"), islice(_names(shell, reserved=True), _SEARCHED)
    found = [item["thread"] for item in names if item["thread"].startswith(begin) and item["thread"] != begin]
    if not found:
        raise SplError("not-found", f"there is no thread {begin}", hint="spl thread list")
    if len(found) > 1:
        raise SplError("ambiguous", f"{begin} begins {', '.join(found[:_NAMED])}")
    return str(found[0])


def _snapshot(args: Namespace, shell: Shell) -> int:
    if bool(args.thread) == args.all:
        raise UsageError("usage", "name a thread, or give --all", hint="spl thread snapshot --help")
    if args.pair and args.thread != THREAD_PAIRS:
        raise UsageError("usage", f"--pair is about {THREAD_PAIRS}, the log of all pairs")
    lines, heads = 0, list[ResponseHead]()
    pieces = shell.ctl.stream(snapshot_path(args.thread or ""), heads)
    if args.pair:
        pair_id = shell.ctl.get(f"/v1/federation/pairs/{quote(args.pair)}")["pair_id"]
        pieces = part(pieces, lambda found: pair_id_of(found.record) == pair_id, Limits())
    for piece in pieces:
        lines += piece.count(b"\n")
        shell.out.raw(piece)
    if damaged := heads[0].headers.get(DAMAGED_HEADER, ""):
        shell.out.warn(f"! the log is damaged at sequence {damaged.replace(' ', ', ')}; what stood there is left out")
        shell.out.hint("to fetch it from the pairs: spl store check --repair; then take the snapshot again")
        return FOUND_PROBLEMS
    if lines < 2:
        shell.out.note(f"no records: {args.thread or 'the store'} is empty, unknown or not readable with this token")
    return 0


def _restore(args: Namespace, shell: Shell) -> int:
    with shell.source(args.file, "a snapshot from stdin") as source:
        try:
            plan = _send(source, args, shell)
        except CtlError as exc:
            has_header = not exc.message.startswith("the first line")
            if exc.code == "snapshot-malformed" and has_header and not args.skip_damaged:
                rest = shlex.quote(args.file) if args.file else "FILE"
                exc.hint += f"; what is sound of it: spl thread restore --skip-damaged {rest}"
            raise
    refused = int(plan["refused"])
    if not shell.printed("spl.restore/1", plan):
        shell.out.card(_plan_facts(plan))
    if refused:
        shell.out.warn(f"! {count(refused, 'line')} refused, so nothing of this file would be restored")
        if "key-retired" in map(str.lower, plan["refused_codes"]):
            shell.out.hint("of a file that was in no other hands than yours: spl thread restore --accept-retired FILE")
    if damaged := int(plan["damaged"]):
        shell.out.warn(f"! {count(damaged, 'line')} of the file damaged or missing, and left out")
    return FOUND_PROBLEMS if refused or damaged else 0


def _send(source: BufferedIOBase, args: Namespace, shell: Shell) -> dict[str, Any]:
    """Return the daemon's answer to the snapshot; one that does not fit into a request is sent in pieces."""
    upload, at = shell.random_bytes(_UPLOAD_BYTES).hex(), 0
    wish = ("dry_run=1" if args.dry_run else "dry_run=0") + ("&skip_damaged=1" if args.skip_damaged else "")
    wish += "&accept_retired=1" if args.accept_retired else ""
    pieces = _pieces(source)
    piece = next(pieces)
    for following in pieces:
        _post(shell, f"{RESTORE_PATH}?upload={upload}&at={at}&more=1", piece)
        at += len(piece)
        shell.out.progress(f"sent {size(at)}")
        piece = following
    return _post(shell, f"{RESTORE_PATH}?upload={upload}&at={at}&{wish}" if at else f"{RESTORE_PATH}?{wish}", piece)


def _post(shell: Shell, target: str, data: bytes) -> dict[str, Any]:
    for answer in shell.ctl.lines(target, data, NDJSON, LONG_S):
        return answer
    raise CtlError("answer-malformed", "the daemon did not answer with a JSON object")


def _pieces(source: BufferedIOBase) -> Iterator[bytes]:
    """Yield the input in pieces of 4 MiB, at least one."""
    data = source.read(PIECE_BYTES)
    while True:
        following = source.read(PIECE_BYTES) if data else b""
        yield data
        if not following:
            return
        data = following


def _left_out(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about what is left out: threads of the other daemon, and what compromised keys signed."""
    threads, signers = plan.get("left_out_threads", {}), plan.get("left_out_compromised", {})
    told = (
        (threads, "of that daemon's own threads"), (signers, "signed by a compromised key, which proves nothing"),
    )  # fmt: skip
    return [("left out", f"{sum(found.values())} {what}: {', '.join(sorted(found))}") for found, what in told if found]


def _plan_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [f"line {item['line']}: {item['message']} [{item['code'].lower()}]" for item in plan["refusals"]]
    lines += [f"line {number}: damaged" for number in plan["damaged_lines"]]
    verb = "would be restored" if plan["dry_run"] else "restored"
    codes = Counter(plan["refused_codes"])
    return [
        ("thread", str(plan["thread"] or "all threads")), ("from", str(plan["instance"] or "-")),
        ("records", str(plan["records"])), ("new", f"{plan['new']} {verb}"),
        ("known", f"{plan['known']} skipped"), *_left_out(plan), ("refused", str(plan["refused"])),
        *((f"  {code}", str(number)) for code, number in codes.most_common()), *(("", line) for line in lines),
    ]  # fmt: skip


_THREAD: Final = arg("thread", metavar="THREAD", help="thread id, or a unique beginning of one")

TREE: Final = (
    Group(
        "thread",
        "A thread is the set of records that carry its id; it exists as soon as one record does.\n"
        "Records are listed in the order in which they arrived here.",
        "spl thread list",
        (
            Command(
                "thread list",
                "Lists the threads with the number of their records and when the last one arrived.\n"
                "The daemon keeps its own records in reserved threads; --reserved lists these too.",
                "spl thread list --reserved",
                _list,
                (arg("--reserved", action="store_true", help="list the daemon's own threads too"),),
            ),
            Command(
                "thread records",
                "Lists a thread's records in the order of their arrival, oldest first.\n"
                "`-o jsonl` prints them in full, one per line; --since continues after a sequence number.",
                "spl thread records th_release -o jsonl",
                _records,
                (_THREAD, SINCE, limit(_SHOWN_RECORDS)),
            ),
            Command(
                "thread show",
                "Sums up a thread: the number of records, their acts, actors and kinds, and the latest one.\n"
                "Vouched by names the instances that first accepted the records and signed them.",
                "spl thread show th_release",
                _show,
                (_THREAD,),
            ),
            Command(
                "thread state",
                "Prints a thread's folded state: the value that its fold rule computes from its present records.\n"
                "Without a rule it is the latest record's body; see `spl config add-fold-rule --help`.",
                "spl thread state th_release",
                _state,
                (_THREAD,),
            ),
            Command(
                "thread snapshot",
                "Writes a thread as JSON lines: a header with count and digest, then the signed records as stored.\n"
                "It is a backup for `thread restore`, and evidence for `debug thread-diff`. If the log is damaged the\n"
                "exit code is 3, and what stood at the damaged places is left out.",
                "spl thread snapshot th_federation_pairs --pair bob > /tmp/local-pairs.snap.jsonl",
                _snapshot,
                (
                    arg("thread", nargs="?", metavar="THREAD", help="thread id, or --all instead"),
                    arg("--all", action="store_true", help="every thread, the daemon's own threads too"),
                    arg(
                        "--pair",
                        metavar="PAIR",
                        help="of th_federation_pairs, the log of all pairs, what is about this pair alone",
                    ),
                ),
                result=False,
            ),
            Command(
                "thread restore",
                "Restores a snapshot. Ids, signatures, count and digest are verified before anything is stored.\n"
                "A file with one fault restores nothing; known records are skipped, so repeating is harmless.",
                "spl thread restore --dry-run < /tmp/local-pairs.snap.jsonl",
                _restore,
                (
                    arg("file", nargs="?", metavar="FILE", help="written by `thread snapshot` (default: stdin)"),
                    arg("--dry-run", action="store_true", help="verify, and print what would be restored"),
                    arg("--skip-damaged", action="store_true", help="restore what is sound of a cut or damaged file"),
                    arg(
                        "--accept-retired",
                        action="store_true",
                        help="also take what keys signed that were rotated since; for files that only you had",
                    ),
                ),
            ),
        ),
    ),
)
