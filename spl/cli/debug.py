"""`spl debug thread-diff`: what differs between two records, two threads, two snapshots, or two sides of a pair."""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from ..client.calls import elements
from ..core.errors import SplError
from ..core.limits import Limits
from ..core.pair import diff
from ..core.pair.diff import Gap, Transition
from ..core.record import snapshot
from ..core.value import dataclass
from .client import CtlError
from .command import FOUND_PROBLEMS, Command, Group, Shell, UsageError, arg
from .out import RECORD_CHARS
from .threads import snapshot_path

HISTORY_PATH: Final = "/v1/federation/history"

_READ_BYTES: Final = 256 * 1024
_PREVIEW_CHARS: Final = 60
_ID: Final = re.compile("[0-9a-f]{16,64}")
"""The id of a record, or as much of it as terminals show."""
_HISTORY_S: Final = 30.0

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Whole:
    """A thread or a snapshot file: its name, and a function that reads its records."""

    name: str
    records: Callable[[], Iterator[Fields]]


@dataclass(frozen=True, slots=True)
class One:
    """A record at its holder; of a peer's record only the place in the pair log is known, and `value` is None.

    `omitted` is the number of oldest transitions that a peer left out of its answer.
    """

    id: str
    holder: str
    pair_id: str
    value: Fields | None
    history: Callable[[], list[Transition]]
    omitted: int = 0


def _thread_diff(args: Namespace, shell: Shell) -> int:
    names: tuple[str, str] = (args.a, args.b)
    ids = [_ID.fullmatch(name) is not None and not os.path.isfile(name) for name in names]
    if any(ids) and not all(ids):
        raise UsageError("usage", "a record id compares with a record id")
    if all(ids):
        one, other = _found(names, args.files, shell)
        if one.pair_id and other.pair_id and one.holder != other.holder:
            return _diff_histories(one, other, shell)
        return _diff_records(one, other, shell)
    return _diff_wholes(_whole(args.a, shell), _whole(args.b, shell), shell)


def _diff_wholes(one: Whole, other: Whole, shell: Shell) -> int:
    """Print the records that only one side has; two threads of different names compare by content.

    Two pair logs of different instances have no record in common, so their histories are compared.
    """
    first, second = (next(side.records(), None) for side in (one, other))
    if first and second and first["thread"] == second["thread"] == diff.THREAD_PAIRS:
        writers = first["actor"], second["actor"]
        if writers[0] != writers[1]:
            return _diff_logs(one, other, writers, shell)
    anywhere = bool(first and second and first["thread"] != second["thread"])
    keys = [{diff.content_key(item, anywhere=anywhere) for item in side.records()} for side in (one, other)]
    rows: list[Fields] = []
    for number, side in enumerate((one, other)):
        lonely = keys[number] - keys[1 - number]
        rows += [
            {"only_in": "AB"[number], **item}
            for item in (side.records() if lonely else ())
            if diff.content_key(item, anywhere=anywhere) in lonely
        ]
    if not shell.out.data("spl.thread_diff/1", rows, lambda: None):
        cells = [
            (row["only_in"], shell.out.record(row["id"]), row["actor"], str(row["clock"]), row["act"],
             _preview(row["body"]))
            for row in rows
        ]  # fmt: skip
        shell.out.table(("ONLY IN", "ID", "ACTOR", "CLOCK", "ACT", "BODY"), cells, keep=("ONLY IN", "ID", "BODY"))
        _names(one.name, other.name, bool(rows), shell)
    return FOUND_PROBLEMS if rows else 0


def _diff_logs(one: Whole, other: Whole, writers: tuple[str, str], shell: Shell) -> int:
    """Compare the histories of all pairs that two instances have with each other."""
    peers = [diff.peers(side.records()) for side in (one, other)]
    mine = {pair_id for pair_id, did in peers[0].items() if did == writers[1]}
    theirs = {pair_id for pair_id, did in peers[1].items() if did == writers[0]}
    found = [
        (pair_id, gap)
        for pair_id in sorted(mine | theirs)
        for gap in diff.gaps(diff.history(one.records(), pair_id), diff.history(other.records(), pair_id))
    ]
    return _print_gaps(found, one.name, other.name, shell)


def _diff_records(one: One, other: One, shell: Shell) -> int:
    """Print the members that differ between two records."""
    for side in (one, other):
        if side.value is None:
            raise SplError(
                "not-found",
                f"record {side.id[:RECORD_CHARS]} is at {side.holder}, which reports only its place in the log",
            )
    assert one.value is not None
    assert other.value is not None
    found = diff.fields(one.value, other.value)
    data = [{"field": item.path, "a": item.values[0], "b": item.values[1]} for item in found]
    if not shell.out.data("spl.record_diff/1", data, lambda: None):
        shell.out.table(("FIELD", "A", "B"), [(row["field"] or "", row["a"] or "-", row["b"] or "-") for row in data])
        _names(one.holder, other.holder, bool(found), shell)
    return FOUND_PROBLEMS if found else 0


def _diff_histories(one: One, other: One, shell: Shell) -> int:
    """Print the transitions of the common pair that one side lacks."""
    if one.pair_id != other.pair_id:
        raise SplError(
            "not-found", f"A is about {one.pair_id} and B about {other.pair_id}: they have no history in common"
        )
    histories = [side.history() for side in (one, other)]
    if one.omitted or other.omitted:
        # Transitions that one side no longer reports must not count as missing there.
        since = max(
            history[0].at for history, side in zip(histories, (one, other), strict=True) if side.omitted and history
        )
        histories = [[item for item in history if item.at >= since] for history in histories]
        shell.out.note(f"compared from {since} on: {one.omitted + other.omitted} older transitions were left out")
    gaps = diff.gaps(*histories)
    return _print_gaps([(one.pair_id, gap) for gap in gaps], one.holder, other.holder, shell)


def _print_gaps(gaps: list[tuple[str, Gap]], one: str, other: str, shell: Shell) -> int:
    data = [
        {"pair_id": pair_id, "only_in": "AB"[gap.side], "lacks": "BA"[gap.side], **gap.transition.to_json()}
        for pair_id, gap in gaps
    ]
    if not shell.out.data("spl.history_diff/1", data, lambda: None):
        rows = [
            (row["only_in"], f"! {row['lacks']} lacks it", row["pair_id"], row["at"], row["kind"], row["state"],
             shell.out.record(row["id"]))
            for row in data
        ]  # fmt: skip
        shell.out.table(
            ("ONLY IN", "", "PAIR ID", "AT", "TRANSITION", "THEN", "RECORD"), rows, keep=("ONLY IN", "AT", "TRANSITION")
        )
        _names(one, other, bool(gaps), shell)
    return FOUND_PROBLEMS if gaps else 0


def _names(one: str, other: str, different: bool, shell: Shell) -> None:
    shell.out.note(f"A is {one}, B is {other}" if different else f"A ({one}) and B ({other}) agree")


# -- finding


def _found(names: tuple[str, str], files: list[str], shell: Shell) -> tuple[One, One]:
    """Return both records: from the files, else from the store, else from the pair log of a peer.

    Raises SplError "not-found" with the id that is missing and the peers that were asked.
    """
    found: list[One | None] = [_in_files(name, files) or _in_store(name, shell) for name in names]
    if None in found:
        known = next((one.pair_id for one in found if one is not None), "")
        answers = elements(shell.ctl.post(HISTORY_PATH, {"pair_id": known}, _HISTORY_S))
        found = [one or _in_answers(name, answers) for name, one in zip(names, found, strict=True)]
        for name, one in zip(names, found, strict=True):
            if one is None:
                raise _nowhere(name, answers)
    first, second = found
    assert first is not None
    assert second is not None
    return first, second


def _in_files(name: str, files: list[str]) -> One | None:
    for file in files:
        value = next((item for item in _file_records(file) if item["id"].startswith(name)), None)
        if value is not None:
            pair_id = diff.pair_id_of(value)
            return One(name, file, pair_id, value, partial(_history_in_file, file, pair_id))
    return None


def _history_in_file(file: str, pair_id: str) -> list[Transition]:
    return diff.history(_file_records(file), pair_id)


def _in_store(name: str, shell: Shell) -> One | None:
    try:
        answer = shell.ctl.get(f"/v1/records/{name}")
    except CtlError as exc:
        if exc.code != "not-found":
            raise
        return None
    value = snapshot.plain(answer)
    pair_id = diff.pair_id_of(value)
    return One(
        name, "the local store", pair_id, value, lambda: diff.history(_stored(diff.THREAD_PAIRS, shell), pair_id)
    )


def _in_answers(name: str, answers: Iterable[dict[str, Any]]) -> One | None:
    for answer in answers:
        transitions = diff.transitions_from_json(answer.get("transitions", []))
        if any(item.id.startswith(name) for item in transitions):
            omitted = int(answer.get("omitted", 0))
            return One(name, str(answer["peer_did"]), str(answer["pair_id"]), None, transitions.copy, omitted)
    return None


def _nowhere(name: str, answers: list[dict[str, Any]]) -> SplError:
    asked = {f"{item['pair_id']}": f"{item['peer_did']} {item.get('code') or 'does not have it'}" for item in answers}
    hint = "take a snapshot on the other side and give it with --from FILE"
    return SplError(
        "not-found", f"record {name[:RECORD_CHARS]}… is neither here nor in a pair log of a peer", hint=hint, **asked
    )


def _whole(name: str, shell: Shell) -> Whole:
    """Return a snapshot file, or the thread of that name in the store; raise SplError "not-found"."""
    if os.path.isfile(name):
        return Whole(name, lambda: _file_records(name))
    side = Whole(f"thread {name}", lambda: _stored(name, shell))
    if next(side.records(), None) is None:
        raise SplError("not-found", f"there is no thread and no file {name}", hint="spl thread list")
    return side


def _stored(thread: str, shell: Shell) -> Iterator[Fields]:
    yield from _plain(shell.ctl.stream(snapshot_path(thread)))


def _file_records(path: str) -> Iterator[Fields]:
    try:
        with open(path, "rb") as file:
            yield from _plain(iter(lambda: file.read(_READ_BYTES), b""))
    except OSError as exc:
        raise UsageError("usage", f"cannot read {path}: {exc.strerror}") from exc


def _plain(pieces: Iterable[bytes]) -> Iterator[Fields]:
    for envelope in snapshot.records(pieces, Limits()):
        yield {"id": envelope.id, **envelope.record}


def _preview(body: Any) -> str:
    text = body.get("text") or body.get("kind") or ""
    return str(text)[:_PREVIEW_CHARS]


TREE: Final = (
    Group(
        "debug",
        "Both instances of a pair record what happened between them, so the two histories can be compared.\n"
        "These commands change nothing.",
        "spl debug thread-diff /tmp/local-pairs.snap.jsonl /tmp/bob-pairs.snap.jsonl",
        (
            Command(
                "debug thread-diff",
                "Compares two records, threads or snapshot files; prints only the differences, and then exits 3.\n"
                "For two records of a pair it compares the histories of both sides, and asks the peer for its own.\n"
                "Logs of pairs: `spl thread snapshot th_federation_pairs --pair PAIR` on each side, both of that pair.",
                "spl debug thread-diff /tmp/local-pairs.snap.jsonl /tmp/bob-pairs.snap.jsonl",
                _thread_diff,
                (
                    arg("a", metavar="A", help="ours: record id (16 characters of it do), thread id or snapshot file"),
                    arg("b", metavar="B", help="what to compare it with, mostly the other side's: the same forms"),
                    arg("--from", action="append", default=[], dest="files", metavar="FILE",
                        help="search this snapshot for record ids before asking the daemon; repeatable"),
                ),
            ),
        ),
    ),
)  # fmt: skip
