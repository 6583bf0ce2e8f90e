"""Promises of opening a log whose files were mixed up: each costs what stood in its place, and is never read."""

import os
import shutil
from pathlib import Path

import pytest

from spl.core.limits import Limits
from spl.home.check import StoreCheck
from spl.home.disk import Disk
from spl.home.log import Log
from tests.store_kit import AT_MS, contents, log_files, open_store, record

SMALL = Limits(segment_bytes=1100)

MIXED = {
    "a later one over an earlier": (3, 1),
    "an earlier one over a later": (1, 3),
    "over the last": (1, -1),
    "over the first": (3, 0),
}


def filled(folder: Path) -> list[tuple[int, bytes]]:
    """Make a log of five segments and more, stop it cleanly, return its contents."""
    store = open_store(folder, limits=SMALL)
    for n in range(14):
        store.append([record(n)], AT_MS)
    found = contents(store)
    store.close()
    assert len(log_files(folder)) > 4
    return found


def stood(store: Log, folder: Path) -> set[int]:
    """Return the places that the check names as those of files that are no segment of this log."""
    return {step["segment"] for step in StoreCheck(store, folder, Disk()).run() if step.get("what") == "foreign"}


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("how", MIXED)
def test_a_file_in_the_place_of_a_segment_costs_that_segment_alone(
    tmp_path: Path, how: str, other: bool, indexed: bool, clean: bool
) -> None:
    """Neither the lines of another segment nor those of another log are taken for the ones that stood there."""
    source, target = MIXED[how]
    before = filled(tmp_path / "a")
    files = log_files(tmp_path / "a")
    first = int(files[target].stem)
    behind = int(files[target + 1].stem) if target != -1 else before[-1][0] + 1
    if other:
        theirs = open_store(tmp_path / "b", limits=SMALL, random_byte=b"x")
        theirs.append([record(n) for n in range(500, 540)], AT_MS)
        theirs.close()
    shutil.copy(log_files(tmp_path / "b")[-1] if other else files[source], files[target])
    bad = files[target].read_bytes()
    if not indexed:
        shutil.rmtree(tmp_path / "a" / "index")
    if not clean:
        os.unlink(tmp_path / "a" / "clean")
    kept = [line for line in before if not first <= line[0] < behind]
    for turn in range(2):
        store = open_store(tmp_path / "a", limits=SMALL, epoch="2a" * 16)
        assert [line for line in contents(store) if line in before] == kept
        lost = sum(place.lines for place in store.lost)
        assert lost == (0 if target == -1 and not clean else behind - first)
        assert stood(store, tmp_path / "a") == {first} <= {place.seq for place in store.lost}
        [seq] = store.append([record(900 + turn)], AT_MS)
        assert store.index.find(record(900 + turn).id, "default") is not None
        assert store.line(seq).payload == record(900 + turn).payload
        store.close()
    assert [path.read_bytes() for path in (tmp_path / "a").glob("*.foreign")] == [bad]


def test_segments_whose_files_changed_places_are_put_back(tmp_path: Path) -> None:
    before = filled(tmp_path / "a")
    one, two, *_ = log_files(tmp_path / "a")
    spare = tmp_path / "spare"
    for old, new in ((one, spare), (two, one), (spare, two)):
        old.rename(new)
    store = open_store(tmp_path / "a", limits=SMALL)
    assert (contents(store), store.lost, list((tmp_path / "a").glob("*.foreign"))) == (before, (), [])


def test_a_running_log_takes_out_a_file_that_came_into_the_place_of_a_segment(tmp_path: Path) -> None:
    before = filled(tmp_path / "a")
    files = log_files(tmp_path / "a")
    store = open_store(tmp_path / "a", limits=SMALL)
    files[1].write_bytes(files[3].read_bytes())
    lost = range(int(files[1].stem), int(files[2].stem))
    assert stood(store, tmp_path / "a") == {lost[0]}
    for _ in store.reindex(lambda size: b"y" * size):
        pass
    assert contents(store) == [line for line in before if line[0] not in lost]
    assert {(place.seq, place.lines) for place in store.lost} == {(lost[0], len(lost)), (lost[0], 0)}


def test_the_files_taken_out_of_one_place_are_all_kept(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    target, *others = log_files(tmp_path / "a")[1:5]
    bad = [path.read_bytes() for path in others]
    (tmp_path / "a" / "notes.foreign").write_bytes(b"an operator's")
    for data in bad:
        target.write_bytes(data)
        open_store(tmp_path / "a", limits=SMALL).close()
    assert sorted(path.read_bytes() for path in (tmp_path / "a").glob("0*.foreign")) == sorted(bad)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("data", [b"", b"junk", b"junk\nand more\n"])
@pytest.mark.parametrize("names", [(3_000_000,), (10**20 - 1,), (10**20 - 2, 10**20 - 1)])
def test_a_stray_file_with_a_high_name_makes_no_line_lost(
    tmp_path: Path, names: tuple[int, ...], data: bytes, clean: bool
) -> None:
    """No segment before it had room for so many lines."""
    before = filled(tmp_path / "a")
    for name in names:
        (tmp_path / "a" / f"{name:020d}.jsonl").write_bytes(data)
    if not clean:
        os.unlink(tmp_path / "a" / "clean")
    for turn in range(2):
        store = open_store(tmp_path / "a", limits=SMALL)
        assert contents(store)[: len(before)] == before
        assert [(place.seq, place.lines) for place in store.lost] == [(name, 0) for name in names]
        assert store.append([record(900 + turn)], AT_MS) == [before[-1][0] + 1 + turn]
        store.close()


def test_a_start_that_ended_behind_the_renaming_is_made_up_for(tmp_path: Path) -> None:
    """The index still leads to the lines of the file that is gone."""
    before = filled(tmp_path / "a")
    one, two, three, *_ = log_files(tmp_path / "a")
    two.rename(two.with_name(f"{two.stem}.0.foreign"))
    two.with_name(f"{two.stem}.0.foreign").write_bytes(one.read_bytes().replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    lost = range(int(two.stem), int(three.stem))
    store = open_store(tmp_path / "a", limits=SMALL)
    assert contents(store) == [line for line in before if line[0] not in lost]
    assert {(place.seq, place.lines) for place in store.lost} == {(lost[0], len(lost)), (lost[0], 0)}
