"""Snapshots are the log's own bytes up to one sequence, under a header that counts and digests them."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.home.disk import Disk
from spl.home.snapshot import STEP_RECORDS, take
from spl.home.writes import Own, Refuse, SavedPosition
from tests.counting import stepped
from tests.nodes import Node, nodes


def taken(node: Node, folder: Path, **options: Any) -> Iterator[bytes]:
    found, _ = stepped(take(node.home.store, Disk(), folder, views=node.home.views, **options))
    assert found.damaged == ()
    return chain([found.header], found.pieces)


def read(pieces: Any) -> tuple[dict[str, Any], list[bytes]]:
    head, *lines = b"".join(pieces).splitlines()
    return json.loads(head), lines


async def test_a_thread_is_its_stored_bytes_in_order(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        made = [alice.emit(f"é\n{n}") for n in range(700)]
        alice.emit("elsewhere", thread="other")
        head, lines = read(taken(alice, tmp_path, instance=alice.did, thread="th"))
        assert lines == [envelope.raw for envelope in made]
        digest = hashlib.sha256(b"".join(f"{one}\n".encode() for one in sorted(env.id for env in made)))
        assert head == {"count": 700, "digest": digest.hexdigest(), "format": "syncropel-snapshot-v1",
                        "instance": alice.did, "thread": "th"}  # fmt: skip


@pytest.mark.parametrize("thread", ["th", ""])
async def test_what_arrives_meanwhile_is_in_neither_pass(tmp_path: Path, thread: str) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        for n in range(5):
            alice.emit(str(n))
        pieces = taken(alice, tmp_path, instance=alice.did, thread=thread)
        head = json.loads(next(pieces))
        alice.emit("late")
        assert b"".join(pieces).count(b"\n") == head["count"] >= 5


async def test_all_threads_hold_the_reserved_ones(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        alice.emit("one")
        alice.write(Own("th_aitl", "x.v1", {"n": 1}))
        alice.write(SavedPosition("pair_00000001", "c", 1), Refuse("pair_00000001", "0" * 64, "record-id"))
        head, lines = read(taken(alice, tmp_path, instance=alice.did, thread=""))
        assert (head["thread"], head["count"]) == (None, 2)
        assert {json.loads(line)["record"]["thread"] for line in lines} == {"th", "th_aitl"}


async def test_unknown_and_unreadable_look_the_same(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        alice.emit("one")
        nothing = read(taken(alice, tmp_path, instance="", thread="th", namespaces=["none"]))
        unknown = read(taken(alice, tmp_path, instance="", thread="gone"))
        assert {**nothing[0], "thread": "gone"} == unknown[0]
        assert nothing[1] == unknown[1] == []


def hurt(node: Node, mark: bytes, bad: bytes) -> None:
    [path] = (node.home.path / "store").glob("*.jsonl")
    data = path.read_bytes()
    assert data.count(mark) == 1
    path.write_bytes(data.replace(mark, bad))


@pytest.mark.parametrize("thread", ["th", ""])
@pytest.mark.parametrize("bad", [b"tent 3", b'te"t 3', b"te\nt 3"])
@pytest.mark.parametrize("again", [False, True])
async def test_what_the_disk_damaged_is_left_out_and_named(
    tmp_path: Path, thread: str, bad: bytes, again: bool
) -> None:
    """Whether the damage is met by this reading, or the index was built again since."""
    async with nodes(tmp_path, "alice") as [alice]:
        made = [alice.emit(f"text {n}") for n in range(8)]
        store = alice.home.store
        [row] = store.index.copies(made[3].id)
        hurt(alice, b"text 3", bad)
        if again:
            for _ in store.reindex(bytes):
                pass
        found, _ = stepped(take(store, Disk(), tmp_path, views=alice.home.views, instance=alice.did, thread=thread))
        head, lines = read([found.header, *found.pieces])
        assert lines == [each.raw for each in made if each is not made[3]]
        assert (head["count"], found.damaged) == (7, (row.seq,))


async def test_damage_between_the_passes_ends_the_second(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        for n in range(8):
            alice.emit(f"text {n}")
        views = alice.home.views
        found, _ = stepped(take(alice.home.store, Disk(), tmp_path, views=views, instance=alice.did, thread="th"))
        hurt(alice, b"text 3", b"tent 3")
        with pytest.raises(SplError) as caught:
            list(found.pieces)
        assert caught.value.code == "store-damaged"


@pytest.mark.parametrize("thread", ["th", ""])
async def test_a_snapshot_ends_when_the_store_stops(tmp_path: Path, thread: str) -> None:
    """Between two pieces, as for a client that does not read; and none begins."""
    async with nodes(tmp_path, "alice") as [alice]:
        for n in range(8):
            alice.emit(f"{n} {'x' * 30_000}")
        pieces = taken(alice, tmp_path, instance=alice.did, thread=thread)
        assert [len(next(pieces)) > 0 for _ in range(2)] == [True, True]
        alice.home.store.stop()
        with pytest.raises(SplError) as caught:
            list(pieces)
        assert caught.value.code == "shutting-down"
        with pytest.raises(SplError) as caught:
            taken(alice, tmp_path, instance=alice.did, thread=thread)
        assert caught.value.code == "shutting-down"


async def test_the_first_pass_is_cut_into_steps(tmp_path: Path) -> None:
    """Others read between two of them, however long the thread is."""
    async with nodes(tmp_path, "alice") as [alice]:
        for n in range(2 * STEP_RECORDS):
            alice.emit(str(n))
        for thread in ("th", ""):
            found, steps = stepped(
                take(alice.home.store, Disk(), tmp_path, views=alice.home.views, instance=alice.did, thread=thread)
            )
            assert steps >= 3
            assert json.loads(found.header)["count"] >= 2 * STEP_RECORDS
