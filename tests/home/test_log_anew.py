"""The index of an open log read anew: what takes its place, what is lost then, and what is left of an attempt."""

import functools
import itertools
from pathlib import Path

import pytest

from spl.core.limits import Limits
from spl.home import log as logs
from spl.home.index import Index
from spl.home.log import Log
from spl.home.segments import encode_header
from tests.store_kit import AT_MS, LazyDisk, contents, log_files, open_store, record

COUNT = 40


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Return a log of several segments; a new index writes a table every eight lines."""
    store = open_store(tmp_path, limits=Limits(segment_bytes=4000))
    for number in range(COUNT):
        store.append([record(number)], AT_MS)
    monkeypatch.setattr(logs, "Index", functools.partial(Index, memory_rows=8))
    monkeypatch.setattr("spl.home.recovery._BATCH_LINES", 4)
    return store


def test_an_attempt_that_is_given_up_leaves_no_file(store: Log, tmp_path: Path) -> None:
    before = sorted((tmp_path / "index").iterdir())
    steps = store.reindex(bytes)
    list(itertools.islice(steps, 6))
    assert sorted((tmp_path / "index").iterdir()) != before
    steps.close()
    assert sorted((tmp_path / "index").iterdir()) == before
    assert store.index.tally("rec") == COUNT


def test_the_new_index_stands_in_the_place_of_the_old_one_at_the_next_opening(store: Log, tmp_path: Path) -> None:
    list(store.reindex(bytes))
    assert store.append([record(COUNT)], AT_MS) == [COUNT + 1]
    store.close()
    again = open_store(tmp_path)
    assert (again.report.lines, again.report.rebuilt, again.index.tally("rec")) == (0, False, COUNT + 1)
    assert [seq for seq, _ in contents(again)] == list(range(1, COUNT + 2))


def test_what_the_new_index_misses_is_lost_until_it_comes_back(store: Log, tmp_path: Path) -> None:
    for path in log_files(tmp_path):
        path.write_bytes(path.read_bytes().replace(b'"clock":16', b'"clock":61'))
    list(store.reindex(bytes))
    assert [(damage.seq, damage.lines) for damage in store.lost] == [(17, 1)]
    store.append([record(16)], AT_MS)
    store.look_again()
    assert store.lost == ()


def test_what_was_cut_off_while_the_log_was_open_is_lost(store: Log, tmp_path: Path) -> None:
    last = log_files(tmp_path)[-1]
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    list(store.reindex(bytes))
    assert [(damage.seq, damage.lines) for damage in store.lost] == [(COUNT, 1)]
    assert store.index.tally("rec") == COUNT - 1


def test_what_stands_behind_the_last_durable_line_is_not_read(store: Log, tmp_path: Path) -> None:
    """A line that is being written at this moment."""
    with log_files(tmp_path)[-1].open("ab") as file:
        file.write(b'{"k":"rec","seq":41')
    list(store.reindex(bytes))
    assert (store.index.covered, store.lost) == (COUNT, ())


def test_a_header_that_was_hit_is_lost_until_somebody_looked_at_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([record(1)], AT_MS)
    store.close()
    [path] = log_files(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    for left in (tmp_path / "index").iterdir():
        left.unlink()
    store = open_store(tmp_path)
    [damage] = store.lost
    assert damage.lines == 0
    store.look_again()
    assert store.lost == (damage,)
    store.settle([damage])
    assert store.lost == ()


def test_a_scan_behind_a_withdrawn_segment_knows_the_running_hash(tmp_path: Path) -> None:
    """The segment came back after a crash, in front of one whose header was hit."""
    for withdrawn in (2, 3, 4):
        folder = tmp_path / str(withdrawn)
        store = open_store(folder)
        runs = [store.last_run]
        for number in range(4):
            store.append([record(number)], AT_MS)
            runs.append(store.last_run)
        store.close()
        (folder / f"{withdrawn:020d}.jsonl").write_bytes(encode_header(store.epoch, withdrawn, runs[withdrawn - 1]))
        store = open_store(folder, limits=Limits(segment_bytes=100))
        for number in range(4, 7):
            store.append([record(number)], AT_MS)
        path = folder / f"{5:020d}.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"epoch":"2a', b'"epoch":"2b', 1))
        for first in range(1, 8):
            assert [line.seq for line in store.scan(first)] == list(range(first, 8))


class UnknownSpace(LazyDisk):
    """A disk that says how much is free until it is asked once too often."""

    known = True

    def free_bytes(self, folder: Path) -> int:
        if not self.known:
            raise OSError(5, "Input/output error")
        return 5_000_000_000


def test_where_the_free_space_cannot_be_read_the_last_known_stands(tmp_path: Path) -> None:
    disk = UnknownSpace()
    store = open_store(tmp_path, disk)
    disk.known = False
    assert (store.stats().free_bytes, store.full) == (5_000_000_000, "")
