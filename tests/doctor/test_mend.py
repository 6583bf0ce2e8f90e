"""Promises of the mender: what the disk damaged stops nothing, is said, and comes back; and the finding then ends."""

import asyncio
import errno
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.record.record import Envelope
from spl.doctor import mend as module
from spl.doctor.mend import StoreMender
from spl.home.check import Step, StoreCheck
from spl.home.disk import Disk, File
from tests.nodes import LIMITS, Node, join, nodes
from tests.store_kit import open_store
from tests.waiting import until

SMALL = replace(LIMITS, segment_bytes=6000)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, str]]:
    async with nodes(tmp_path, "ann", "ben", limits=SMALL) as (ann, ben):
        yield ann, ben, join(ann, ben)


def segments(node: Node) -> list[Path]:
    return sorted((node.home.path / "store").glob("*.jsonl"))


def hurt(node: Node, mark: str, bad: str) -> None:
    """Replace a text in the one segment that has it, as a bad disk does."""
    [path] = [path for path in segments(node) if mark.encode() in path.read_bytes()]
    assert len(mark) == len(bad)
    path.write_bytes(path.read_bytes().replace(mark.encode(), bad.encode()))


def mender(node: Node) -> StoreMender:
    return StoreMender(node.home.writer, lambda: node.reconcile, node.push, random_bytes=node.random.randbytes)


@asynccontextmanager
async def mending(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    stop = asyncio.Event()
    task = asyncio.create_task(mender(node).run(stop))
    yield
    stop.set()
    await task


def listed(node: Node, ns: str = "default") -> list[str]:
    """Return what a reader gets of a namespace."""
    store = node.home.store
    return [json.loads(raw)["id"] for raw in store.payloads(store.index.after(f"n:{ns}", 0, 10_000))]


async def repaired(node: Node) -> tuple[list[Step], dict[str, Any]]:
    """Return the steps of a check and its repair, and the last of them."""
    found = StoreCheck(node.home.store, node.home.path / "store", Disk())
    steps = [*found.run(), *[step async for step in mender(node).repair(found)]]
    return steps, steps[-1]


def checked(node: Node) -> tuple[int, int]:
    """Return the damaged places of a check whose lines are not all held again, and of all."""
    damages = [
        step for step in StoreCheck(node.home.store, node.home.path / "store", Disk()).run() if step["step"] == "damage"
    ]
    return sum(not 0 < step["lines"] == step["held_lines"] for step in damages), len(damages)  # type: ignore[operator]


async def shared(ann: Node, ben: Node, pair_id: str, count: int = 30) -> list[Envelope]:
    sent = []
    for n in range(count):
        sent.append(ann.emit(f"text {n:03d}", thread=f"th_{n % 3}"))
        if n % 5 == 4:  # what comes together is in one segment
            await ben.sync.pull(pair_id)
    return sent


async def test_a_lack_of_room_that_the_free_space_does_not_show_ends_by_itself(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a quota that was raised: nobody has to write something or restart the daemon."""
    ann, _, _ = pair
    store = ann.home.store
    monkeypatch.setattr(Disk, "free_bytes", lambda self, folder: 10**9)

    def lack(file: File, data: bytes) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    async with mending(ann, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(File, "write", lack)
            with pytest.raises(SplError, match="Disk quota exceeded"):
                ann.emit("one")
            assert "Disk quota exceeded" in store.full
        await until(lambda: not store.full)
    ann.emit("two")
    assert not store.readonly


@pytest.mark.parametrize("bad", ["tent 007", 'te"t 007', "te\nt 007"])
async def test_the_index_is_built_again_when_a_reading_met_damage(
    pair: tuple[Node, Node, str], bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, pair_id = pair
    sent = await shared(ann, ben, pair_id)
    store, before = ben.home.store, ben.home.store.stats().records_count
    hurt(ben, "text 007", bad)
    async with mending(ben, monkeypatch):
        assert listed(ben) == [each.id for each in sent if each is not sent[7]]
        await until(lambda: not store.index.reader.doubted)
        assert (store.index.count("n:default"), store.stats().records_count) == (29, before - 1)
        await until(lambda: len(store.lost) == 1)
        assert (await ben.reconcile.verify(pair_id, repair=True)).to_json()["equal"]
        await until(lambda: not store.lost)
    assert sorted(listed(ben)) == sorted(each.id for each in sent)
    assert checked(ben) == (0, 1)


async def test_a_comparison_finds_damage_that_nobody_read_yet(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    sent = await shared(ann, ben, pair_id)
    assert (await ben.reconcile.verify(pair_id)).to_json()["equal"]
    hurt(ben, "text 007", "tent 007")
    report: Any = (await ben.reconcile.verify(pair_id)).to_json()
    assert [item["id"] for item in report["missing_here"]] == [sent[7].id]
    report = (await ben.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["equal"], report["repaired"]["fetched_records"]) == (True, 1)
    assert sorted(listed(ben)) == sorted(each.id for each in sent)


async def test_damage_at_the_source_stops_no_newcomer_and_is_fetched_from_who_has_it(
    pair: tuple[Node, Node, str],
) -> None:
    ann, ben, pair_id = pair
    sent = await shared(ann, ben, pair_id)
    hurt(ann, "text 007", 'te"t 007')
    await ben.sync.pull(pair_id, resync=True)
    _, last = await repaired(ann)
    assert (last["lost"], last["fetched"], last["still_lost"]) == (1, 1, 0)
    assert sorted(listed(ann)) == sorted(each.id for each in sent)
    assert checked(ann) == (0, 1)


async def test_a_segment_that_is_gone_is_passed_over_and_forgotten_once_all_is_back(
    pair: tuple[Node, Node, str],
) -> None:
    ann, ben, pair_id = pair
    sent = await shared(ann, ben, pair_id)
    middle = segments(ben)[1]
    middle.unlink()
    # As after a restart: no descriptor keeps the bytes.
    ben.home.store._segments._files.clear()
    assert 0 < len(listed(ben)) < len(sent)
    _, last = await repaired(ben)
    assert last["fetched"] > 0
    assert (last["still_lost"], last["settled"]) == (0, last["lost"])
    assert sorted(listed(ben)) == sorted(each.id for each in sent)
    assert ben.home.store.lost == ()
    assert checked(ben) == (0, 1)
    _, last = await repaired(ben)
    assert (last["lost"], last["still_lost"], last["settled"]) == (0, 0, 0)
    # Also for an index that is built again from the log.
    ben.home.writer.close()
    ben.writer.join()
    ben.home.store.close()
    shutil.rmtree(ben.home.path / "store" / "index")
    again = open_store(ben.home.path / "store", limits=SMALL)
    assert (len(again.report.damaged), again.lost) == (1, ())


async def test_a_place_stays_missed_while_a_pair_did_not_answer(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    await shared(ann, ben, pair_id)
    segments(ben)[1].unlink()
    ben.home.store._segments._files.clear()
    ben.network.down = "connect"
    _, last = await repaired(ben)
    assert (last["still_lost"], last["settled"]) == (last["lost"], 0)
    assert len(ben.home.store.lost) == 1


async def test_an_index_that_was_hit_is_healed_without_a_restart(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings answer meanwhile, and a check says what is wrong."""
    ann, ben, pair_id = pair
    sent, store = await shared(ann, ben, pair_id), ben.home.store
    ben.home.store.index._tables._flush(store.last_seq, store.last_run)
    for path in (ben.home.path / "store" / "index").glob("*.table"):
        data = bytearray(path.read_bytes())
        for at in range(512 + 7, 512 + 56 * 20, 56):
            data[at] ^= 0x40
        with path.open("r+b") as file:  # in place, as a disk does
            file.write(data)
    assert len(listed(ben)) < len(sent)
    assert checked(ben) == (1, 1)
    async with mending(ben, monkeypatch):
        await until(lambda: not store.index.reader.doubted)
    assert listed(ben) == [each.id for each in sent]
    assert (checked(ben), store.lost) == ((0, 0), ())


async def test_the_first_record_of_a_namespace_takes_no_list_with_it(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, pair_id = pair
    await shared(ann, ben, pair_id)
    store = ben.home.store
    hurt(ben, "text 000", "tent 000")
    async with mending(ben, monkeypatch):
        store.index.names("n:")
        await until(lambda: not store.index.reader.doubted)
        assert store.index.names("n:") == ["n:default"]
        assert sorted(name for name in store.index.names("t:") if name.startswith("t:th_") and len(name) == 6) == [
            "t:th_0",
            "t:th_1",
            "t:th_2",
        ]


async def test_a_damaged_header_is_no_finding_once_a_repair_looked_at_it(tmp_path: Path) -> None:
    """No line is lost with it, so there is nothing to fetch, and nothing else would ever end the finding."""
    async with nodes(tmp_path, "ann") as (ann,):
        ann.emit("sound")
        first = next((tmp_path / "ann" / "store").glob("0*.jsonl"))
        data = bytearray(first.read_bytes())
        data[20] ^= 1
        first.write_bytes(data)
        steps, last = await repaired(ann)
        assert [step["what"] for step in steps if step["step"] == "damage"] == ["header"]
        assert (last["lost"], last["still_lost"]) == (0, 0)
        found = StoreCheck(ann.home.store, ann.home.path / "store", Disk())
        assert [step["settled"] for step in found.run() if step["step"] == "damage"] == [True]
        assert not ann.home.store.lost
