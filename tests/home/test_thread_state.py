"""States are read on in bounded pieces, of what the reader may see, and stay small whatever the records hold."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spl.core import canon, fold
from spl.core.fold import FoldRule
from spl.home.log import Log
from spl.home.segments import Entry
from spl.home.thread_state import KINDS_MAX, PIECE_BYTES, PIECE_ROWS, ThreadState, ThreadStates
from tests.counting import calls_of
from tests.store_kit import AT_MS, open_store, record

SUM = FoldRule("r", "*", "sum", "n", 0)
SET = FoldRule("r", "*", "set", "n", 0)
COUNT = FoldRule("r", "*", "count", "", 0)
LATEST = FoldRule("r", "*", "latest", "", 0)
ALL = frozenset[str]()


@pytest.fixture
def store(tmp_path: Path) -> Log:
    return open_store(tmp_path)


def put(store: Log, *entries: Entry) -> None:
    store.append(entries, AT_MS)


def a_record(n: int, ns: str = "default", thread: str = "th", text: str = "") -> Entry:
    entry = record(n, ns, thread)
    value = json.loads(entry.payload)
    value["record"]["body"] = {"n": n, "text": text}
    return entry._replace(payload=canon.encode(value))


def read(
    states: ThreadStates, rule: FoldRule, to_seq: int, thread: str = "th", ns: frozenset[str] = ALL
) -> list[ThreadState]:
    """Return where the state stood after each piece, until it is there."""
    found = [states.read_on(thread, rule, ns, to_seq)]
    while found[-1].read_seq < to_seq:
        found.append(states.read_on(thread, rule, ns, to_seq))
    return found


def value(states: ThreadStates, rule: FoldRule, found: ThreadState) -> Any:
    return fold.value_of(rule, found.state, states.body_at)


def test_a_long_thread_is_read_in_pieces_and_then_only_what_is_new(store: Log) -> None:
    count = 3 * PIECE_ROWS + 7
    put(store, *(a_record(n) for n in range(count)))
    states = ThreadStates(store)
    pieces = read(states, SUM, store.last_seq)
    assert [piece.records for piece in pieces] == [PIECE_ROWS, 2 * PIECE_ROWS, 3 * PIECE_ROWS, count]
    assert value(states, SUM, pieces[-1]) == sum(range(count))
    assert pieces[-1].sequence == store.last_seq
    put(store, a_record(count), a_record(count + 1, thread="other"))
    assert [piece.records for piece in read(states, SUM, store.last_seq)] == [count + 1]
    assert len(read(states, COUNT, store.last_seq)) == 4


def test_an_exact_number_of_pieces_ends_too(store: Log) -> None:
    put(store, *(a_record(n) for n in range(PIECE_ROWS)), a_record(9999, thread="other"))
    assert [piece.records for piece in read(ThreadStates(store), COUNT, store.last_seq)] == [PIECE_ROWS, PIECE_ROWS]


def test_a_piece_is_bounded_in_bytes_where_bodies_are_read(store: Log) -> None:
    put(store, *(a_record(n, text="x" * (PIECE_BYTES // 2)) for n in range(4)), a_record(4, text="x" * PIECE_BYTES))
    states = ThreadStates(store)
    assert [piece.records for piece in read(states, SUM, store.last_seq)] == [1, 2, 3, 4, 5]
    assert [piece.records for piece in read(states, LATEST, store.last_seq)] == [5]
    assert value(states, LATEST, read(states, LATEST, store.last_seq)[-1])["n"] == 4


def test_only_the_namespaces_of_the_reader_count(store: Log) -> None:
    """Hidden records leave no trace: neither in the numbers, nor in the place of the last one."""
    put(store, a_record(1), a_record(2, "music"), a_record(3, "music/jazz"), a_record(4))
    states = ThreadStates(store)
    found = {ns: read(states, SUM, 4, ns=frozenset(ns.split()))[-1] for ns in ("", "music", "default music", "none")}
    assert {ns: (value(states, SUM, item), item.records, item.sequence) for ns, item in found.items()} == {
        "": (10, 4, 4), "music": (2, 1, 2), "default music": (7, 3, 4), "none": (0, 0, 0)
    }  # fmt: skip
    hidden = read(states, LATEST, 4, ns=frozenset({"none"}))[-1]
    assert (hidden.records, hidden.sequence) == (0, 0)
    assert read(states, LATEST, 4, thread="unknown")[-1] == hidden


def test_a_long_thread_of_hidden_records_is_not_read_at_all(store: Log) -> None:
    """Neither the work nor the number of pieces says whether others have records there."""
    put(store, *(a_record(n) for n in range(2 * PIECE_ROWS + 1)))
    states, nobody = ThreadStates(store), frozenset({"none"})
    assert len(read(states, COUNT, store.last_seq, ns=nobody)) == 1
    hidden, unknown = (
        calls_of(partial(read, ThreadStates(store), SUM, store.last_seq, thread, nobody)) for thread in ("th", "none")
    )
    assert abs(hidden - unknown) < PIECE_ROWS, "no call for each row; some may be the garbage collector's"


def test_rules_of_one_fold_and_field_share_a_state(store: Log) -> None:
    put(store, *(a_record(n) for n in range(PIECE_ROWS + 1)))
    states = ThreadStates(store)
    read(states, SUM, store.last_seq)
    assert len(read(states, FoldRule("other", "th*", "sum", "n", 5), store.last_seq)) == 1
    assert len(read(states, FoldRule("r", "*", "sum", "text", 0), store.last_seq)) == 2


def test_the_states_that_were_asked_longest_ago_are_given_up(store: Log) -> None:
    put(store, *(a_record(n, thread=f"th_{n}") for n in range(KINDS_MAX + 9)))
    states = ThreadStates(store)
    for n in range(KINDS_MAX + 9):
        read(states, COUNT, store.last_seq, thread=f"th_{n}")
        read(states, COUNT, store.last_seq, thread="th_0")
    assert len(states._kept) == KINDS_MAX
    assert {kind[0] for kind in states._kept} >= {"th_0", f"th_{KINDS_MAX + 8}"}
    assert read(states, COUNT, store.last_seq, thread="th_1")[-1].records == 1


def test_a_body_that_the_disk_damaged_is_passed_over(store: Log, tmp_path: Path) -> None:
    put(store, a_record(1), a_record(2), a_record(3))
    segment = next(tmp_path.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'"body":{"n":2', b'"body":["n":2'))
    states = ThreadStates(store)
    found = read(states, SUM, store.last_seq)[-1]
    assert (value(states, SUM, found), found.records) == (4, 3)


def test_a_page_that_lacks_a_damaged_row_is_not_the_end(store: Log, tmp_path: Path) -> None:
    count = 2 * PIECE_ROWS + 1
    put(store, *(a_record(n) for n in range(count)))
    segment = next(tmp_path.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'"body":{"n":2,', b'"body":["n":2,'))
    states = ThreadStates(store)
    read(states, SUM, store.last_seq)  # finds the damage; from now on the row is left out
    assert read(states, COUNT, store.last_seq)[-1].records == count - 1
