"""Reading an open log: from any line on, past what the disk damaged, and what is settled, counted and measured."""

import itertools
import os
from pathlib import Path
from typing import ClassVar

import pytest

from spl.core.limits import Limits
from spl.home.disk import DiskError, File
from spl.home.log import Log
from tests.store_kit import AT_MS, FaultyDisk, LazyDisk, LazyFile, contents, log_files, note, open_store, record

SMALL = Limits(segment_bytes=1500)
COUNT = 20


def filled(folder: Path, count: int = COUNT) -> Log:
    """Return an open log of so many records in several segments."""
    store = open_store(folder, limits=SMALL)
    for number in range(count):
        store.append([record(number)], AT_MS + number)
    assert len(log_files(folder)) > 3
    return store


def seqs(store: Log, first: int) -> list[int]:
    return [line.seq for line in store.scan(first)]


def starts(store: Log, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the places at which readings of the log begin from now on."""
    found: list[tuple[int, int]] = []
    lines = store._segments.lines
    monkeypatch.setattr(store._segments, "lines", lambda *at: found.append(at) or lines(*at))
    return found


def test_a_scan_begins_at_its_line_and_reads_nothing_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    begun = starts(store, monkeypatch)
    for first in range(COUNT + 4):
        assert seqs(store, first) == list(range(max(first, 1), COUNT + 1))
        before = min(first, COUNT + 1) - 1
        place = store.index.place(before) if before > 0 else None
        assert begun.pop() == ((place.segment, place.end) if place else (1, 0))
        assert not begun


def test_a_scan_goes_on_behind_a_segment_whose_end_is_unreadable(tmp_path: Path) -> None:
    """The running hash is lost with the last line; the header of the next segment has it."""
    store = filled(tmp_path)
    first, second = log_files(tmp_path)[:2]
    last = int(second.stem) - 1
    *lines, bad = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines) + b"x" * (len(bad) - 1) + b"\n")
    for start in (1, last, last + 1):
        assert seqs(store, start) == [seq for seq in range(start, COUNT + 1) if seq != last]


def test_a_line_without_its_end_is_not_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    last = log_files(tmp_path)[-1]
    os.truncate(last, last.stat().st_size - 1)
    assert seqs(store, 1) == list(range(1, COUNT))


def test_a_payload_is_read_by_its_row(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for row in store.index.after("n:default", 0, COUNT):
        assert store.payload(row) == record(row.seq - 1).payload


def test_the_bytes_since_a_time_count_what_arrived_at_that_very_time(tmp_path: Path) -> None:
    store = filled(tmp_path)
    sizes = {int(path.stem): path.stat().st_size for path in log_files(tmp_path)}
    for first in sizes:
        since = sum(size for other, size in sizes.items() if other >= first)
        assert store.bytes_since(AT_MS + first - 1) >= since
    last = max(sizes)
    assert store.bytes_since(AT_MS + last) == sizes[last]


def test_a_damaged_first_line_hides_no_bytes_of_its_segment(tmp_path: Path) -> None:
    store = filled(tmp_path)
    files = log_files(tmp_path)
    head, first, *rest = files[-1].read_bytes().splitlines(keepends=True)
    files[-1].write_bytes(head + b"x" * (len(first) - 1) + b"\n" + b"".join(rest))
    assert store.bytes_since(0) == sum(path.stat().st_size for path in files)
    assert store.bytes_since(AT_MS + COUNT) <= sum(path.stat().st_size for path in files[-2:])


def test_sizes_and_counts_of_a_log_that_is_opened_again(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for again in (False, True):
        stats = store.stats()
        files = log_files(tmp_path)
        assert stats.log_bytes == sum(path.stat().st_size for path in files)
        assert (stats.lines_count, stats.segments_count) == (COUNT, len(files))
        assert stats.free_bytes > 0
        if not again:
            assert 0 < stats.sync_p50_ms + 1 <= stats.sync_p99_ms + 1
            store.close()
            store = open_store(tmp_path, limits=SMALL)
    assert (store.stats().sync_last_ms, store.stats().sync_p99_ms) == (0.0, 0.0), "nothing was synced yet"


def test_the_free_space_is_that_of_now_and_the_last_known_without_the_folder(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = open_store(tmp_path, disk)
    for free in (5_000_000, 7_000_000):
        disk.free = free
        assert store.stats().free_bytes == free


def test_an_opening_says_how_long_it_took_and_names_a_home_that_it_cannot_use(tmp_path: Path) -> None:
    clock = itertools.count(AT_MS, 7)
    store = Log.open(
        tmp_path, LazyDisk(), SMALL, now_ms=lambda: next(clock), random_bytes=bytes, progress=lambda done, total: None
    )
    assert store.report.took_ms == 7
    disk = FaultyDisk()
    disk.fail_create = 5  # EIO
    with pytest.raises(DiskError) as caught:
        open_store(tmp_path / "other", disk)
    assert caught.value.code == "home-unusable"


def test_a_place_that_is_settled_is_not_missed_any_more_also_after_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([note("odd", a=1), note("odd", a=2), note("odd", a=3), note("odd", a=4)], AT_MS)
    store.close()
    [path] = log_files(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"x" * (len(lines[2]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    for left in (tmp_path / "index").iterdir():
        left.unlink()
    store = open_store(tmp_path)
    [damage] = store.lost
    assert (damage.seq, damage.lines) == (2, 2), "with the running hash the line behind it is lost, too"
    assert not store.is_settled(damage)
    assert store.held_lines(damage) == 0
    store.settle([damage])
    assert store.is_settled(damage)
    assert store.lost == ()
    store.close()
    for left in (tmp_path / "index").iterdir():
        left.unlink()
    again = open_store(tmp_path)
    assert [(each.seq, each.lines) for each in again.report.damaged] == [(2, 2)]
    assert again.is_settled(again.report.damaged[0])
    assert again.lost == ()
    assert [seq for seq, _ in contents(again)] == [1, 4]


def test_the_bytes_since_a_time_include_each_segment_with_a_line_of_that_time(tmp_path: Path) -> None:
    store = open_store(tmp_path, limits=SMALL)
    for number in range(COUNT):
        store.append([record(number)], AT_MS)
    assert store.bytes_since(AT_MS) == store.stats().log_bytes


def test_a_log_says_that_its_file_is_not_in_its_place(tmp_path: Path) -> None:
    store = filled(tmp_path / "a")
    assert store.gone == ""
    (tmp_path / "a").rename(tmp_path / "b")
    assert str(tmp_path / "a") in store.gone


class TimedFile(LazyFile):
    """A file whose syncs take so long as the test says."""

    times_ms: ClassVar[list[float]] = []

    def sync(self) -> float:
        return self.times_ms.pop() if self.times_ms else 0.0


class TimedDisk(LazyDisk):
    def open_append(self, path: Path) -> File:
        return TimedFile(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))


def test_the_times_of_syncs_are_those_of_the_disk(tmp_path: Path) -> None:
    store = open_store(tmp_path, TimedDisk())
    TimedFile.times_ms = [float(1 + (number * 7) % 200) for number in range(200)]
    last_ms = TimedFile.times_ms[0]
    for number in range(200):
        store.append([note("odd", n=number)], AT_MS)
    stats = store.stats()
    assert (stats.sync_last_ms, stats.sync_p50_ms, stats.sync_p99_ms) == (last_ms, 101.0, 199.0)
    assert store.sync_times.to_json()["count"] == 200
    assert store.sync_times.sum_ms == sum(range(1, 201))
