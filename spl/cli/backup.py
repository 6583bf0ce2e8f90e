"""`spl thread snapshot` and `spl thread restore`: threads into a file, and back."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from io import BufferedIOBase
from typing import Any, Final

from ..core.limits import MIB
from .command import Command, Parser, Shell, UsageError
from .ctl import LONG_S, NDJSON, CtlError, quote
from .out import size

RESTORE_PATH: Final = "/v1/threads/restore"
PIECE_BYTES: Final = 4 * MIB

_UPLOAD_BYTES: Final = 16
_FOUND_PROBLEMS: Final = 3


def snapshot_path(thread: str) -> str:
    """Return the route of a thread's snapshot; "" for all threads."""
    return f"/v1/threads/{quote(thread)}/snapshot" if thread else "/v1/snapshot"


def _snapshot_options(parser: Parser) -> None:
    parser.add_argument("thread", nargs="?", metavar="THREAD", help="thread id")
    parser.add_argument("--all", action="store_true", help="every thread, those that the daemon keeps too")


def _snapshot(args: Namespace, shell: Shell) -> int:
    if bool(args.thread) == args.all:
        raise UsageError("usage", "name a thread, or give --all", hint="spl thread snapshot --help")
    count = 0
    for piece in shell.ctl.stream(snapshot_path(args.thread or "")):
        count += piece.count(b"\n")
        shell.out.raw(piece)
    if count < 2:
        shell.out.note(f"no records: {args.thread or 'the store'} is empty, unknown or not readable with this token")
    return 0


def _restore_options(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="what `thread snapshot` wrote (default: stdin)")
    parser.add_argument("--dry-run", action="store_true", help="verify, and print what would be restored")


def _restore(args: Namespace, shell: Shell) -> int:
    with ExitStack() as stack:
        source: BufferedIOBase = shell.stdin
        if args.file:
            try:
                source = stack.enter_context(open(args.file, "rb"))
            except OSError as exc:
                raise UsageError("usage", f"cannot read {args.file}: {exc.strerror}") from exc
        elif source.isatty():
            shell.out.hint("reading a snapshot from stdin; Ctrl-D ends")
        plan = _send(source, args.dry_run, shell)
    refused = int(plan["refused"])
    if not shell.printed("spl.restore/1", plan):
        shell.out.card(_plan_facts(plan))
    if refused:
        shell.out.warn(f"! {refused} lines are refused, so that nothing of this file would be restored")
    return _FOUND_PROBLEMS if refused else 0


def _send(source: BufferedIOBase, dry_run: bool, shell: Shell) -> dict[str, Any]:
    """Return the daemon's answer to the whole snapshot, sent in pieces where it does not fit into one request."""
    upload, at = shell.random_bytes(_UPLOAD_BYTES).hex(), 0
    wish = "dry_run=1" if dry_run else "dry_run=0"
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
    """Yield the input in pieces of 4 MiB; one empty piece for no input."""
    data = source.read(PIECE_BYTES)
    while True:
        following = source.read(PIECE_BYTES) if data else b""
        yield data
        if not following:
            return
        data = following


def _plan_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [f"line {item['line']}: {item['message']} [{item['code'].lower()}]" for item in plan["refusals"]]
    verb = "would be restored" if plan["dry_run"] else "restored"
    codes = Counter(plan["refused_codes"])
    return [
        ("thread", str(plan["thread"] or "all threads")), ("from", str(plan["instance"] or "-")),
        ("records", str(plan["records"])), ("new", f"{plan['new']} {verb}"),
        ("known", f"{plan['known']} passed over"), ("refused", str(plan["refused"])),
        *((f"  {code}", str(count)) for code, count in codes.most_common()), *(("", line) for line in lines),
    ]  # fmt: skip


SNAPSHOT: Final = Command(
    "thread snapshot",
    "Writes a thread as JSON lines: a header with count and digest, then the signed records as they are stored.\n"
    "It is a backup that `thread restore` takes back, and evidence that `debug thread-diff` compares.",
    "spl thread snapshot th_federation_pairs > /tmp/local-pairs.snap.jsonl",
    _snapshot,
    _snapshot_options,
    result=False,
)

RESTORE: Final = Command(
    "thread restore",
    "Restores a snapshot: every id, signature, the count and the digest are verified before anything is stored.\n"
    "A file with one fault restores nothing, and what is held already is passed over, so repeating is harmless.",
    "spl thread restore --dry-run < /tmp/local-pairs.snap.jsonl",
    _restore,
    _restore_options,
)
