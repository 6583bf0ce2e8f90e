"""A log that two processes have open, as on a file system whose locks do not reach: nothing acknowledged is lost."""

import os
from pathlib import Path

import pytest

from spl.home.disk import File
from spl.home.log import StoreError
from tests.store_kit import AT_MS, LazyDisk, LazyFile, contents, log_files, open_store, record


def test_a_log_that_another_process_grew_takes_nothing_more(tmp_path: Path) -> None:
    """The one that finds more than it wrote stops without a byte, the other goes on."""
    first = open_store(tmp_path)
    second = open_store(tmp_path)
    first.append([record(1)], AT_MS)
    before = log_files(tmp_path)[0].read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            second.append([record(2)], AT_MS)
        assert (caught.value.code, "stop any other process" in caught.value.message) == ("store-readonly", True)
    assert log_files(tmp_path)[0].read_bytes() == before
    assert first.append([record(3)], AT_MS) == [2]
    first.close()
    second.close()
    again = open_store(tmp_path)
    assert (len(contents(again)), again.report.cut_bytes, again.report.damaged) == (2, 0, ())


def test_of_two_that_write_at_once_none_acknowledges_what_the_other_hides(tmp_path: Path) -> None:
    """Both find the log as they left it, and then both write."""
    first = open_store(tmp_path)
    acked: list[int] = []

    class RacedFile(LazyFile):
        def write(self, data: bytes) -> None:
            acked.extend(first.append([record(1)], AT_MS))
            super().write(data)

    class RacedDisk(LazyDisk):
        def open_append(self, path: Path) -> File:
            return RacedFile(os.open(path, os.O_RDWR | os.O_APPEND))

    second = open_store(tmp_path, RacedDisk())
    for store in (second, first):
        with pytest.raises(StoreError):
            store.append([record(2)], AT_MS)
        assert store.readonly
    assert acked == [1]
    first.close()
    assert contents(open_store(tmp_path)) == [(1, record(1).payload)]


def test_a_log_whose_file_was_removed_acknowledges_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log_files(tmp_path)[0].unlink()
    with pytest.raises(StoreError) as caught:
        store.append([record(1)], AT_MS)
    assert "removed" in caught.value.message


def test_a_clean_stop_beside_another_process_leaves_no_mark(tmp_path: Path) -> None:
    """The mark of the one that wrote less would call the lines of the other a torn tail."""
    first, second = open_store(tmp_path), open_store(tmp_path)
    first.append([record(n) for n in range(3)], AT_MS)
    first.close()
    second.close()
    again = open_store(tmp_path)
    assert (len(contents(again)), again.report.cut_bytes, again.report.unclean) == (3, 0, False)
