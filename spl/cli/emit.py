"""`spl intend|do|know|learn` and `spl emit`: hand records to the daemon."""

import json
import os
import pwd
import re
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase
from itertools import chain
from typing import Any, Final

from ..client.calls import NDJSON
from ..client.errors import refusal
from ..core import canon
from ..core.errors import count
from ..core.limits import MIB, Limits
from ..core.value import Json
from .client import LONG_S, CtlError
from .command import Command, Shell, UsageError, arg, number

RECORDS: Final = "/v1/records"

_READ_BYTES: Final = MIB
_THREAD_BYTES: Final = 32


def _say(act: str, args: Namespace, shell: Shell) -> int:
    body: dict[str, Any] = {"kind": f"core.{act.lower()}", "text": args.text}
    if args.namespace:
        body["namespace"] = args.namespace
    if args.body is not None:
        # A command line that is not UTF-8 arrives with lone surrogates, which are refused as bad JSON.
        more = canon.decode(args.body.encode("utf-8", "surrogatepass"))
        if not isinstance(more, dict):
            raise UsageError("usage", "--body is not a JSON object")
        body.update(more)
    record: Json = {
        "thread": args.thread or f"th_{shell.random_bytes(_THREAD_BYTES).hex()}",
        "actor": args.actor or f"did:sync:user:{login()}",
        "act": act,
        "body": body,
    }
    if args.clock is not None:
        record["clock"] = args.clock
    stored = shell.ctl.post(RECORDS, record)
    if not shell.printed("spl.record/1", stored):
        shell.out.row(_row(stored))
    return 0


def login() -> str:
    """Return the login name of the process's user in the characters of a DID."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may run under a number without a name
        name = f"uid-{uid}"
    return re.sub("[^A-Za-z0-9._-]", "-", name)


def _emit(args: Namespace, shell: Shell) -> int:
    """Send the records in batches as they arrive, and print the results in the order of the input."""
    code, answered = 0, 0
    results: list[dict[str, Any]] = []
    with shell.source(args.file, "records from stdin, one JSON object per line") as source:
        for batch in _batches(source):
            for result in _send(batch, shell):
                answered += 1
                if result.get("object") == "error":
                    error = refusal(result)
                    error.facts["record"] = str(answered)
                    shell.out.failure(error)
                    code = code or error.exit_code
                if shell.out.form == "json":
                    results.append(result)
                elif shell.out.form == "jsonl":
                    shell.out.json_line(result)
                elif result.get("object") != "error":
                    shell.out.line("  ".join(text for _, text in _row(result)))
    if not answered:
        raise UsageError("usage", "the input holds no record")
    if shell.out.form == "json":
        shell.printed("spl.records/1", results)
    return code


def _send(batch: list[bytes], shell: Shell) -> Iterator[dict[str, Any]]:
    """Yield the result of each line, from as many requests as the lines need."""
    most = Limits().page_records
    for part in (batch[at : at + most] for at in range(0, len(batch), most)):
        answered = 0
        for result in shell.ctl.lines(RECORDS, b"\n".join(part) + b"\n", NDJSON, LONG_S):
            answered += 1
            yield result
        if answered != len(part):
            raise CtlError("disconnected", f"{count(len(part), 'record')} sent, {answered:,} answered")


def _batches(source: BufferedIOBase) -> Iterator[list[bytes]]:
    """Yield the records of the input as lines of JSON, grouped as they arrived.

    Input is one object per line, or one JSON value over several lines: an object or an array of objects.
    Raises CtlError "record-too-large", CanonError "bad-json".
    """
    pieces = _pieces(source)
    first = next(pieces, [])
    if first and not _is_object(first[0]):
        yield _document(b"\n".join(chain.from_iterable(_bounded(chain([first], pieces)))))
        return
    yield from chain([first] if first else [], pieces)


def _pieces(source: BufferedIOBase) -> Iterator[list[bytes]]:
    """Yield the complete lines of each read without empty ones, so that a slow producer's records go out at once."""
    rest = b""
    while data := source.read1(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        whole = [line for line in lines if line.strip()]
        if whole:
            yield whole
        if len(rest) > Limits().body_bytes:
            raise CtlError("record-too-large", f"a line is over {Limits().body_bytes} bytes")
    if rest.strip():
        yield [rest]


def _bounded(pieces: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    room = Limits().body_bytes
    for piece in pieces:
        room -= sum(map(len, piece))
        if room < 0:
            raise CtlError("record-too-large", "one JSON value is too long; write one record per line")
        yield piece


def _document(data: bytes) -> list[bytes]:
    value = canon.decode(data, canon.NESTING_LEVELS_MAX + 2)
    records = value if isinstance(value, list) else [value]
    if not records or not all(isinstance(record, dict) for record in records):
        raise UsageError("usage", "the input is neither an object nor an array of objects")
    return [canon.encode(record) for record in records]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _row(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [("id", str(record["id"])), ("thread", str(record["thread"])), ("clock", str(record["clock"]))]


_PRINTS: Final = (
    "A record is signed and cannot be changed or deleted; a thread collects the records that belong together.\n"
    "intend, do, know and learn differ in the act alone. Prints id, thread and clock.\n"
    'The body is {"kind": "core.<act>", "text": TEXT}, plus --namespace and --body.'
)
_SAY_ARGS: Final = (
    arg("text", metavar="TEXT", help="the text of the record, in quotes; becomes body.text"),
    arg("--thread", metavar="TH", help="thread id, any text such as th_release (default: a new one, which is printed)"),
    arg("--actor", metavar="DID", help="the author (default: did:sync:user:<login>)"),
    arg("--body", metavar="JSON", help="an object whose members are added to the body, or replace its own"),
    arg(
        "--clock",
        type=number(0, 2**63 - 1),
        metavar="N",
        help="number of the record among those of the actor in the thread (default: the next free one)",
    ),
    arg("--namespace", metavar="N", help="namespace of the record (default: the one named default)"),
)

TREE: Final = (
    Command(
        "intend",
        f"Records an intention, such as a task to be done (act INTEND).\n{_PRINTS}",
        "spl intend 'tag release 1.2' --thread th_release",
        partial(_say, "INTEND"),
        _SAY_ARGS,
    ),
    Command(
        "do",
        f"Records an action that was taken (act DO).\n{_PRINTS}",
        "spl do 'tagged release 1.2' --thread th_release",
        partial(_say, "DO"),
        _SAY_ARGS,
    ),
    Command(
        "know",
        f"Records a fact (act KNOW).\n{_PRINTS}",
        "spl know 'the build takes 4 minutes' --thread th_release --body '{\"minutes\": 4}'",
        partial(_say, "KNOW"),
        _SAY_ARGS,
    ),
    Command(
        "learn",
        f"Records a lesson drawn from what happened (act LEARN).\n{_PRINTS}",
        "spl learn 'tag before the build' --thread th_release",
        partial(_say, "LEARN"),
        _SAY_ARGS,
    ),
    Command(
        "emit",
        "Emits records written as JSON, one object per line or one value (an object or an array of objects).\n"
        "Each is stored or refused by itself: results come in the order of the input, and a refusal stops nothing.",
        'echo \'{"thread": "th_x", "actor": "did:sync:user:me", "act": "KNOW", "body": {"n": 1}}\' | spl emit -o jsonl',
        _emit,
        (arg("--file", metavar="FILE", help="read from a file instead of stdin"),),
    ),
)
