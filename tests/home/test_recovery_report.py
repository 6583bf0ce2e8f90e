"""What an opening says of the log that it found, in numbers, and where the log goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spl.core.limits import Limits
from spl.home import recovery
from spl.home.disk import DiskError
from spl.home.index import Index
from spl.home.recovery import Damage, Replay, read_settled, write_settled
from spl.home.segments import encode_header
from tests.store_kit import AT_MS, LazyDisk, contents, log_files, note, open_store, record

SMALL = Limits(segment_bytes=1100)


def filled(folder: Path, count: int, limits: Limits | None = None) -> Path:
    """Make a store of so many records, stop it cleanly, return its last segment."""
    store = open_store(folder, limits=limits)
    for n in range(count):
        store.append([record(n)], AT_MS)
    store.close()
    return log_files(folder)[-1]


def ends(path: Path) -> list[int]:
    """Return the offset behind each line of a segment; the first is the header's."""
    found, end = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        end += len(raw)
        found.append(end)
    return found


def test_a_new_log_is_whole_and_not_built_anew(tmp_path: Path) -> None:
    report = open_store(tmp_path).report
    assert (report.unclean, report.cut_bytes, report.damaged, report.rebuilt, report.lines) == (False, 0, (), False, 0)


def test_an_empty_log_whose_file_is_gone_is_a_new_one(tmp_path: Path) -> None:
    filled(tmp_path, 0).unlink()
    store = open_store(tmp_path)
    assert (store.last_seq, store.report.unclean, store.report.damaged) == (0, False, ())


@pytest.mark.parametrize("count", [1, 2])
def test_an_index_that_covered_nothing_was_built_anew_and_one_that_was_behind_was_not(
    tmp_path: Path, count: int
) -> None:
    filled(tmp_path, count)
    shutil.rmtree(tmp_path / "index")
    store = open_store(tmp_path)
    assert (store.report.rebuilt, store.report.lines) == (True, count)
    store.close()
    store = open_store(tmp_path)
    store.append([record(9)], AT_MS)
    behind = open_store(tmp_path)
    assert (behind.report.rebuilt, behind.report.lines, behind.report.unclean) == (False, 1, True)


def test_a_folder_in_the_place_of_which_a_link_stands_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskError) as caught:
        open_store(tmp_path / "store")
    assert caught.value.code == "home-unusable"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_where_no_header_tells_the_epoch_the_log_goes_on_in_a_segment_of_its_own(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    path.write_bytes(path.read_bytes().replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    open_store(tmp_path)
    assert [int(each.stem) for each in log_files(tmp_path)] == [1, 4]


@pytest.mark.parametrize("size", [0, 7])
def test_last_segments_without_a_header_are_removed_and_what_is_appended_then_stays(tmp_path: Path, size: int) -> None:
    """Also if the one before was hit: in a file without a header the next line would be taken for one."""
    filled(tmp_path, 6, SMALL)
    (tmp_path / "clean").unlink()
    *_, before, last = log_files(tmp_path)
    before.write_bytes(b"x" * size)
    last.write_bytes(b"y" * 5)
    store = open_store(tmp_path, limits=SMALL)
    assert (store.report.unclean, store.report.cut_bytes) == (True, size + 5)
    kept, end = int(before.stem) - 1, int(last.stem) - 1
    assert store.last_seq == end
    assert [(each.seq, each.lines) for each in store.report.damaged] == [(kept + 1, end - kept)]
    assert store.append([record(50)], AT_MS) == [end + 1]
    again = open_store(tmp_path, limits=SMALL)
    assert contents(again)[-2:] == [(kept, record(kept - 1).payload), (end + 1, record(50).payload)]


def test_a_bad_header_at_the_very_end_is_reported_and_the_log_goes_on(tmp_path: Path) -> None:
    """A segment was begun, the process killed, the header hit: no line is lost, and the next ones are served."""
    filled(tmp_path, 2)
    (tmp_path / "clean").unlink()
    header = encode_header("2a" * 16, 3, "1" * 32).replace(b"2a2a", b"2a2b", 1)
    (tmp_path / f"{3:020d}.jsonl").write_bytes(header)
    store = open_store(tmp_path)
    assert store.report.damaged == (Damage(3, 0, 3, 0, (3, len(header))),)
    assert store.report.cut_bytes == 0
    assert store.append([record(7)], AT_MS) == [3]
    store.close()
    assert [seq for seq, _ in contents(open_store(tmp_path))] == [1, 2, 3]


def test_a_torn_line_is_cut_to_the_byte(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    whole = ends(path)[-1]
    for more in (b"", b"{", b"half a line", b"a bad line\nand a half"):
        (tmp_path / "clean").unlink(missing_ok=True)
        path.write_bytes(path.read_bytes()[:whole] + more)
        store = open_store(tmp_path)
        assert (store.report.cut_bytes, path.stat().st_size) == (len(more), whole)


def test_progress_is_told_after_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes read, of those behind the index."""
    monkeypatch.setattr(recovery, "_BATCH_LINES", 4)
    store = open_store(tmp_path)
    store.append([record(n) for n in range(3)], AT_MS)
    store.close()
    store = open_store(tmp_path)
    [path] = log_files(tmp_path)
    start = path.stat().st_size
    store.append([record(n) for n in range(3, 13)], AT_MS)
    behind = [end - start for end in ends(path)[4:]]
    told: list[tuple[int, int]] = []
    open_store(tmp_path, progress=lambda *at: told.append(at))
    assert told == [(behind[3], behind[-1]), (behind[7], behind[-1])]
    told.clear()
    shutil.rmtree(tmp_path / "index")
    open_store(tmp_path, progress=lambda *at: told.append(at))
    assert told == [(ends(path)[batch], ends(path)[-1]) for batch in (4, 8, 12)]


def test_a_reading_ends_in_front_of_a_place_and_goes_on_from_there(tmp_path: Path) -> None:
    path = filled(tmp_path, 5)
    store, disk = open_store(tmp_path), LazyDisk()
    fresh = Index(tmp_path / "other", disk, store.epoch, store._segments.read, bytes)
    replay = Replay(store._segments, fresh)
    for end, covered in ((ends(path)[2], 2), (ends(path)[3], 3), (ends(path)[3] + 1, 4)):
        assert list(replay.run((1, end))) == []
        assert (fresh.covered, replay.lines) == (covered, covered)
    assert list(replay.run()) == []
    assert (fresh.covered, fresh.run, replay.damaged) == (5, store.last_run, [])


def test_settled_places_are_kept_and_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    disk = LazyDisk()
    assert read_settled(tmp_path, disk) == frozenset()
    places = frozenset((seq, 2) for seq in range(1, recovery.DAMAGES_MAX + 5))
    write_settled(tmp_path, disk, places)
    assert read_settled(tmp_path, disk) == frozenset((seq, 2) for seq in range(1, recovery.DAMAGES_MAX + 1))
    for bad in (b"", b"[", b"7", b"[1]", b"[[1]]", b'[["a", 1]]', b"\xff"):
        (tmp_path / recovery.SETTLED_NAME).write_bytes(bad)
        assert read_settled(tmp_path, disk) == frozenset()


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, ends(path)[0])


@pytest.mark.parametrize("hurt", [remove, cut])
def test_notes_that_went_with_the_end_are_counted_too(tmp_path: Path, hurt: Callable[[Path], None]) -> None:
    store = open_store(tmp_path, limits=SMALL)
    for n in range(9):
        store.append([note("odd", n=n, text="x" * 300)], AT_MS)
    store.close()
    last = log_files(tmp_path)[-1]
    first = int(last.stem)
    hurt(last)
    again = open_store(tmp_path, limits=SMALL)
    [damage] = again.report.damaged
    assert (damage.seq, damage.lines) == (first, 9 - first + 1)
    end = log_files(tmp_path)[-2]  # behind it a new one begins
    assert (damage.segment, damage.offset, damage.end) == (int(end.stem), ends(end)[-1], (int(end.stem), ends(end)[-1]))
