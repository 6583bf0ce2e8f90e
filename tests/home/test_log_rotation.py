"""Where a segment ends, what happens when no new one can be begun, and when another process is in the file."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from spl.core.limits import Limits
from spl.home import log as logs
from spl.home.disk import File
from spl.home.recovery import StoreError
from tests.store_kit import AT_MS, FaultyDisk, FaultyFile, LazyDisk, contents, fail, log_files, open_store, record


def sizes(folder: Path, count: int) -> list[int]:
    """Return the size of a segment before and after each of so many records."""
    store, found = open_store(folder), []
    for number in range(count):
        found.append(store.stats().log_bytes)
        store.append([record(number)], AT_MS)
    return [*found, store.stats().log_bytes]


def names(folder: Path) -> list[int]:
    return [int(path.stem) for path in log_files(folder)]


def test_a_segment_is_filled_to_its_last_byte(tmp_path: Path) -> None:
    full = sizes(tmp_path / "a", 3)[2]
    for bytes_max, segments in ((full, [1, 3]), (full - 1, [1, 2, 3]), (full + 1, [1, 3])):
        folder = tmp_path / str(bytes_max)
        store = open_store(folder, limits=Limits(segment_bytes=bytes_max))
        for number in range(3):
            store.append([record(number)], AT_MS)
        assert names(folder) == segments


def test_a_line_longer_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    store = open_store(tmp_path, limits=Limits(segment_bytes=100))
    for number in range(3):
        store.append([record(number)], AT_MS)
    assert names(tmp_path) == [1, 2, 3]
    assert len(contents(store)) == 3


def test_a_segment_that_cannot_grow_any_more_is_no_room_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offset has four bytes in the index; so beyond that a new segment is needed, and until then nothing fits."""
    full = sizes(tmp_path / "a", 2)[2]
    monkeypatch.setattr(logs, "_SEGMENT_BYTES_MAX", full)
    disk = FaultyDisk()
    store = open_store(tmp_path / "b", disk, Limits(segment_bytes=100))
    disk.fail_create = errno.EMFILE
    for number in range(2):
        store.append([record(number)], AT_MS)
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            store.append([record(2)], AT_MS)
        assert caught.value.code == "store-full"
    assert not store.readonly
    disk.fail_create = 0
    assert store.append([record(2)], AT_MS) == [3]
    assert names(tmp_path / "b") == [1, 3]


class UnopenableDisk(LazyDisk):
    """A disk on which, once armed, new segments can be made and not opened."""

    armed = False

    def open_append(self, path: Path) -> File:
        if self.armed:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().open_append(path)


def test_a_segment_that_was_made_and_cannot_be_opened_is_taken_back(tmp_path: Path) -> None:
    disk = UnopenableDisk()
    store = open_store(tmp_path, disk, Limits(segment_bytes=100))
    store.append([record(0)], AT_MS)
    disk.armed = True
    assert store.append([record(1)], AT_MS) == [2]
    assert names(tmp_path) == [1]
    disk.armed = False
    assert store.append([record(2)], AT_MS) == [3]
    assert names(tmp_path) == [1, 3]
    assert [seq for seq, _ in contents(store)] == [1, 2, 3]


def test_a_segment_that_cannot_be_looked_at_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.append([record(0)], AT_MS)

    def fails(self: File) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(type(store._active), "size_in_place", fails)
        with pytest.raises(StoreError) as caught:
            store.append([record(1)], AT_MS)
    assert caught.value.code == "store-readonly"
    assert store.last_seq == 1


def test_what_another_process_wrote_meanwhile_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for us, and the file is longer than we could have made it: the rest is not ours to cut."""
    store = open_store(tmp_path)
    store.append([record(0)], AT_MS)
    [path] = log_files(tmp_path)
    other = b"x" * 5000 + b"\n"

    def full(self: File, data: Any) -> None:
        with path.open("ab") as file:
            file.write(other)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(type(store._active), "write", full)
        with pytest.raises(StoreError) as caught:
            store.append([record(1)], AT_MS)
    assert caught.value.code == "store-readonly"
    assert path.read_bytes().endswith(other)


def test_what_could_not_be_cut_off_durably_is_final(tmp_path: Path) -> None:
    """The cut of a half-written line is synced, and a failed sync is no lack of room."""
    disk = FaultyDisk()
    store = open_store(tmp_path, disk)
    store.append([record(0)], AT_MS)
    disk.room, disk.fail_sync = 100, errno.EIO
    with pytest.raises(StoreError) as caught:
        store.append([record(1)], AT_MS)
    assert caught.value.code == "store-readonly"
    disk.room, disk.fail_sync, disk.free = None, 0, 0
    assert store.readonly
    assert store.full == "", "a log that takes nothing more is not full as well"


def test_a_segment_that_has_no_line_yet_is_not_begun_again(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = open_store(tmp_path, disk, Limits(segment_bytes=100))
    store.append([record(0)], AT_MS)
    disk.room = 50
    for _ in range(3):
        with pytest.raises(StoreError) as caught:
            store.append([record(1)], AT_MS)
        assert caught.value.code == "store-full"
    disk.room = None
    assert store.append([record(1)], AT_MS) == [2]
    assert names(tmp_path) == [1, 2]
    assert store.stats().log_bytes == sum(path.stat().st_size for path in log_files(tmp_path))


def test_a_stop_that_cannot_be_marked_says_why(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = open_store(tmp_path, disk)
    store.append([record(0)], AT_MS)
    disk.fail_create = errno.EROFS
    store.close()
    assert "without a mark" in store.readonly
    again = open_store(tmp_path)
    assert (again.report.unclean, len(contents(again))) == (True, 1)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOMEM, errno.ENOSPC])
def test_a_lack_that_the_free_space_does_not_show_ends_when_its_cause_does(tmp_path: Path, number: int) -> None:
    """A quota that was raised while others filled the disk: a try tells, and leaves nothing in the log."""
    disk = FaultyDisk()
    disk.free = 10**9
    store = open_store(tmp_path, disk)
    store.append([record(1)], AT_MS)
    before = log_files(tmp_path)[0].read_bytes()

    def lack(file: File, data: bytes) -> None:
        File.write(file, data[:700])
        fail(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaultyFile, "write", lack)
        for append in (lambda: store.append([record(2)], AT_MS), store.look_for_room, store.look_for_room):
            with pytest.raises(StoreError) as caught:
                append()
            assert (caught.value.code, store.readonly) == ("store-full", "")
            assert log_files(tmp_path)[0].read_bytes() == before
            disk.free -= 1
    assert "no room" in store.full
    store.look_for_room()
    assert store.full == ""
    assert log_files(tmp_path)[0].read_bytes() == before
    assert store.append([record(2)], AT_MS) == [2]


def test_a_try_for_room_whose_sync_fails_is_final(tmp_path: Path) -> None:
    disk = FaultyDisk()
    disk.free = 10**9
    store = open_store(tmp_path, disk)
    disk.room = 50
    with pytest.raises(StoreError):
        store.append([record(1)], AT_MS)
    disk.room, disk.fail_sync = None, errno.EIO
    with pytest.raises(StoreError) as caught:
        store.look_for_room()
    assert (caught.value.code, bool(store.readonly)) == ("store-readonly", True)
