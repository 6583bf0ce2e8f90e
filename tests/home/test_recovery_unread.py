"""Promises of a log on a disk that cannot read some of it: that is damage, never an end, and comes back if it can."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from spl.core.limits import Limits
from spl.home.check import StoreCheck
from spl.home.disk import Disk, File
from spl.home.log import LineError, Log
from tests.store_kit import AT_MS, LazyDisk, LazyFile, contents, log_files, open_store, record

SECTOR = 4096
SMALL = Limits(segment_bytes=14_000)
COUNT = 44


class WornDisk(LazyDisk):
    """A disk without durability that cannot read some sectors: names of files and numbers of 4 KiB in them."""

    def __init__(self) -> None:
        self.bad: set[tuple[str, int]] = set()

    def open_read(self, path: Path) -> File:
        return WornFile(os.open(path, os.O_RDONLY), self, path.name)

    def open_append(self, path: Path) -> File:
        return WornFile(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), self, path.name)

    def open_edit(self, path: Path) -> File:
        return WornFile(os.open(path, os.O_RDWR), self, path.name)


class WornFile(LazyFile):
    def __init__(self, fd: int, disk: WornDisk, name: str) -> None:
        super().__init__(fd)
        self._disk, self._name = disk, name

    def pread(self, size: int, offset: int) -> bytes:
        data = super().pread(size, offset)
        sectors = range(offset // SECTOR, (offset + max(1, len(data)) - 1) // SECTOR + 1)
        if any((self._name, sector) in self._disk.bad for sector in sectors):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data


def filled(folder: Path, disk: WornDisk) -> tuple[list[tuple[int, bytes]], list[tuple[str, int]]]:
    """Make a log of three segments, stop it cleanly; return its contents, and the sectors of its files."""
    store = open_store(folder, disk, SMALL)
    for n in range(COUNT):
        store.append([record(n, text="x" * 350)], AT_MS)
    found = contents(store)
    store.close()
    files = log_files(folder)
    assert len(files) == 3
    return found, [(path.name, n) for path in files for n in range(-(-path.stat().st_size // SECTOR))]


def damages(store: Log, folder: Path, disk: Disk) -> list[tuple[int, int]]:
    """Return what a check names; the ids of these records are not theirs, which is no matter here."""
    steps = [step for step in StoreCheck(store, folder, disk).run() if step.get("what") in ("line", "header")]
    return [(int(str(step["seq"])), int(str(step["lines"]))) for step in steps]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_sector_costs_the_lines_in_it_for_as_long_as_it_cannot_be_read(
    tmp_path: Path, indexed: bool, clean: bool
) -> None:
    """Wherever it is: the log opens, goes on, and says what a check says; nothing is cut; what is behind is served."""
    disk = WornDisk()
    before, sectors = filled(tmp_path / "a", disk)
    for number, sector in enumerate(sectors):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "a", folder)
        if not indexed:
            shutil.rmtree(folder / "index")
        if not clean:
            os.unlink(folder / "clean")
        disk.bad = {sector}
        held: list[tuple[int, bytes]] = []
        for turn in range(2):
            store = open_store(folder, disk, SMALL, epoch="2a" * 16)
            list(store.reindex(bytes))
            served = contents(store)
            assert [line for line in served if line in before or line in held] == served
            assert len(before) - 14 <= len(served) - len(held) < len(before)
            named = damages(store, folder, disk)
            assert {(place.seq, place.lines) for place in store.lost} == set(named)
            missing = {seq for seq, _ in before} - {seq for seq, _ in served}
            assert missing <= {seq for first, lines in named for seq in range(first, first + lines)}
            [seq] = store.append([record(900 + turn)], AT_MS)
            assert seq > max(missing)
            held.append((seq, record(900 + turn).payload))
            store.close()
        disk.bad = set()
        shutil.rmtree(folder / "index")
        whole = open_store(folder, disk, SMALL, epoch="2a" * 16)
        assert [line for line in contents(whole) if line in before] == before
        assert [line for line in contents(whole) if line in held] == held


@pytest.mark.parametrize("way", ["killed", "index gone", "stopped", "line hit", "cut"])
def test_a_tail_that_could_not_be_read_is_no_loss_once_it_can_be(tmp_path: Path, way: str) -> None:
    """Its last byte ends the last line that there was; where it does not, what is missing stays lost."""
    disk = WornDisk()
    before, sectors = filled(tmp_path, disk)
    (tmp_path / "clean").unlink()
    path = log_files(tmp_path)[-1]
    disk.bad = {sectors[-1]}
    store = open_store(tmp_path, disk, SMALL)
    [place] = store.lost
    assert place.behind > COUNT + 1
    new = [store.append([record(900 + n)], AT_MS)[0] for n in range(2)]
    if way == "stopped":
        store.close()
    disk.bad = set()
    if way == "index gone":
        shutil.rmtree(tmp_path / "index")
    sound = path.read_bytes()
    if way == "line hit":
        path.write_bytes(sound[:-100] + b"#" + sound[-99:])
    elif way == "cut":
        path.write_bytes(sound[: sound.rindex(b"\n", 0, -1) + 1])
    for _ in range(2):
        store = open_store(tmp_path, disk, SMALL)
        named = damages(store, tmp_path, disk)
        if not StoreCheck(store, tmp_path, disk).fits_index():
            list(store.reindex(bytes))
        served = [line for line in contents(store) if line in before]
        assert [seq for seq, _ in contents(store)][-2:] == new
        if way in ("line hit", "cut"):
            assert (served, len(named), len(store.lost)) == (before[:-1], 1, 1)
        else:
            assert (served, named, store.lost) == (before, [], ())
        store.close()


def test_two_sectors_beside_each_other_and_one_alone(tmp_path: Path) -> None:
    disk = WornDisk()
    before, sectors = filled(tmp_path, disk)
    shutil.rmtree(tmp_path / "index")
    disk.bad = {sectors[1], sectors[2], sectors[-1]}
    store = open_store(tmp_path, disk, SMALL)
    assert [line for line in contents(store) if line in before] == contents(store)
    assert len(store.lost) == 2
    assert store.append([record(900)], AT_MS) == [COUNT + 1]


def test_a_file_is_read_past_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(20 * SECTOR + 7)
    path.write_bytes(data)
    disk = WornDisk()
    for bad in ({3}, {0}, {20}, {3, 4, 9}, set(range(21))):
        disk.bad = {("file", n) for n in bad}
        for start in (0, 5, SECTOR, 3 * SECTOR + 1):
            for size in (10_000, 7 * SECTOR, len(data)):
                read = bytearray(data)
                last = start
                for offset, piece in disk.open_read(path).stretches(start, len(data), size):
                    assert offset == last
                    if piece:
                        assert data[offset : offset + len(piece)] == piece
                        last = offset + len(piece)
                    else:
                        assert offset // SECTOR in bad
                        last = min(len(data), (offset // SECTOR + 1) * SECTOR)
                assert last == len(read)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_header_that_was_hit_is_told_by_the_next_opening_until_a_check_looked(tmp_path: Path, place: int) -> None:
    """The index covers all lines, so none is read; a header that can be read again is no damage any more."""
    disk = WornDisk()
    before, _ = filled(tmp_path, disk)
    path = log_files(tmp_path)[place]
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    for _ in range(2):
        store = open_store(tmp_path, disk, SMALL, epoch="2a" * 16)
        assert contents(store) == before
        assert [(each.seq, each.lines) for each in store.lost] == [(int(path.stem), 0)]
        assert damages(store, tmp_path, disk) == [(int(path.stem), 0)]
        store.close()
    path.write_bytes(sound)
    healed = open_store(tmp_path, disk, SMALL, epoch="2a" * 16)
    assert (healed.lost, damages(healed, tmp_path, disk)) == ((), [])
    healed.close()
    path.write_bytes(sound.replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    store = open_store(tmp_path, disk, SMALL, epoch="2a" * 16)
    store.settle(store.lost)
    store.close()
    assert open_store(tmp_path, disk, SMALL, epoch="2a" * 16).lost == ()


def test_what_a_check_finds_in_an_open_log_is_left_out_and_lost_from_then_on(tmp_path: Path) -> None:
    """Nobody read it yet: a header, and a line."""
    disk = WornDisk()
    filled(tmp_path, disk)
    store = open_store(tmp_path, disk, SMALL, epoch="2a" * 16)
    first, second, _ = log_files(tmp_path)
    for path, old, new in ((first, b"xxx", b"xyx"), (second, b'"epoch":"2a', b'"epoch":"2b')):
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(data.index(old))
            file.write(new)
    assert (store.lost, store.index.reader.left_out) == ((), set())
    assert damages(store, tmp_path, disk) == [(1, 1), (int(second.stem), 0)]
    assert store.index.reader.left_out == {1}
    assert [place.seq for place in store.lost] == [int(second.stem)]
    list(store.reindex(bytes))
    assert {(place.seq, place.lines) for place in store.lost} == {(1, 1), (int(second.stem), 0)}


def test_a_file_with_the_header_of_another_segment_that_a_former_version_wrote_on_is_read(tmp_path: Path) -> None:
    """It took the segment in the place of the last for one without lines, and wrote what it acknowledged behind it."""
    disk = WornDisk()
    before, _ = filled(tmp_path, disk)
    _, other, last = log_files(tmp_path)
    header, rest = other.read_bytes().split(b"\n", 1)[0], last.read_bytes().split(b"\n", 1)[1]
    last.write_bytes(header + b"\n" + rest)
    for left in ("index", "clean"):
        path = tmp_path / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    store = open_store(tmp_path, disk, SMALL, epoch="2a" * 16)
    assert contents(store) == before
    assert (store.lost, damages(store, tmp_path, disk)) == ((), [])
    assert store.append([record(900)], AT_MS) == [COUNT + 1]


def test_an_index_that_the_disk_cannot_read_ends_neither_writing_nor_the_log(tmp_path: Path) -> None:
    """Questions are refused with a code, lines are taken; the next index has them all."""
    disk = WornDisk()
    filled(tmp_path, disk)
    store = open_store(tmp_path, disk, SMALL)
    [table] = (tmp_path / "index").glob("*.table")
    disk.bad = {(table.name, sector) for sector in range(1000)}
    with pytest.raises(LineError) as caught:
        store.index.find(record(1).id, "default")
    assert (caught.value.code, store.index.doubted) == ("store-damaged", True)
    new = [store.append([record(900 + n, thread="th_new")], AT_MS)[0] for n in range(3)]
    assert new == [COUNT + 1, COUNT + 2, COUNT + 3]
    disk.bad = set()
    list(store.reindex(bytes))
    assert not store.index.doubted
    assert [seq for seq, _ in contents(store)] == [*range(1, COUNT + 4)]
    assert store.index.find(record(901, thread="th_new").id, "default") is not None
    store.close()
    assert open_store(tmp_path, disk, SMALL).lost == ()
