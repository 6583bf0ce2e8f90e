"""Snapshots are the log's own bytes up to one sequence, and their digest does not depend on memory or order."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.home.disk import Disk
from spl.home.snapshot import IdDigest, take
from spl.home.writes import Own, Refuse, SavedPosition
from tests.nodes import nodes

ids = st.lists(st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}"), max_size=60)


def read(pieces: Any) -> tuple[dict[str, Any], list[bytes]]:
    head, *lines = b"".join(pieces).splitlines()
    return json.loads(head), lines


@given(found=ids, run_ids=st.integers(1, 8))
@settings(max_examples=40)
def test_the_digest_is_that_of_sorted_lines(
    tmp_path_factory: pytest.TempPathFactory, found: list[str], run_ids: int
) -> None:
    digest = IdDigest(Disk(), tmp_path_factory.getbasetemp() / "ids", run_ids)
    for record_id in found:
        digest.add(record_id)
    text, twice = digest.finish()
    assert text == hashlib.sha256(b"".join(f"{item}\n".encode() for item in sorted(found))).hexdigest()
    assert bool(twice) == (len(set(found)) < len(found))
    assert digest.count == len(found)


def test_ids_that_were_spooled_leave_no_file(tmp_path: Path) -> None:
    digest = IdDigest(Disk(), tmp_path, 2)
    for n in range(9):
        digest.add(f"{n:064x}")
    assert list(tmp_path.iterdir()) == []


async def test_a_thread_is_its_stored_bytes_in_order(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        made = [alice.emit(f"é\n{n}") for n in range(700)]
        alice.emit("elsewhere", thread="other")
        head, lines = read(take(alice.home.store, Disk(), tmp_path, instance=alice.did, thread="th"))
        assert lines == [envelope.raw for envelope in made]
        digest = hashlib.sha256(b"".join(f"{one}\n".encode() for one in sorted(env.id for env in made)))
        assert head == {"count": 700, "digest": digest.hexdigest(), "format": "syncropel-snapshot-v1",
                        "instance": alice.did, "thread": "th"}  # fmt: skip


@pytest.mark.parametrize("thread", ["th", ""])
async def test_what_arrives_meanwhile_is_in_neither_pass(tmp_path: Path, thread: str) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        for n in range(5):
            alice.emit(str(n))
        pieces = take(alice.home.store, Disk(), tmp_path, instance=alice.did, thread=thread)
        head = json.loads(next(pieces))
        alice.emit("late")
        assert b"".join(pieces).count(b"\n") == head["count"] >= 5


async def test_all_threads_hold_the_reserved_ones(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        alice.emit("one")
        alice.write(Own("th_aitl", "x.v1", {"n": 1}))
        alice.write(SavedPosition("pair_00000001", "c", 1), Refuse("pair_00000001", "0" * 64, "record-id"))
        head, lines = read(take(alice.home.store, Disk(), tmp_path, instance=alice.did, thread=""))
        assert (head["thread"], head["count"]) == (None, 2)
        assert {json.loads(line)["record"]["thread"] for line in lines} == {"th", "th_aitl"}


async def test_unknown_and_unreadable_look_the_same(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        alice.emit("one")
        nothing = read(take(alice.home.store, Disk(), tmp_path, instance="", thread="th", may_read=lambda row: False))
        unknown = read(take(alice.home.store, Disk(), tmp_path, instance="", thread="gone"))
        assert {**nothing[0], "thread": "gone"} == unknown[0]
        assert nothing[1] == unknown[1] == []
