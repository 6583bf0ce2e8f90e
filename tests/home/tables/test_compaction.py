"""Promises of the tables: few whatever the log, the same answers after each merge, and no harm by a disk that fails."""

import errno
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.home.disk import Disk
from spl.home.index import Index
from spl.home.segments import Place, encode
from spl.home.tables.compaction import merge
from spl.home.tables.sstable import Span, TableWriter, open_table
from tests.home.tables.test_sstable import ENTRIES, ROW, flat, written
from tests.home.test_index import Log
from tests.store_kit import AT_MS, FaultyDisk, record


@given(st.lists(ENTRIES, min_size=2, max_size=5))
def test_merged_tables_hold_what_their_sources_held(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[bytes, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    sources = [written(folder, flat(pairs), i * 3 + 1, i * 3 + 3) for i, pairs in enumerate(parts)]
    total = sum(len(pairs) for pairs in parts)
    span = Span("e" * 32, "5" * 32, 1, len(parts) * 3, "0" * 32)
    writer = TableWriter(Disk(), folder, span, ROW, total, sum(table.keys for table in sources))
    assert sum(merge(sources, writer)) == total + len(sources)
    table = open_table(Disk(), writer.finish().path, ROW)
    assert [entry for block in table.blocks() for entry in block] == flat([pair for pairs in parts for pair in pairs])
    assert table.rows(1, span.last) == b"".join(seq.to_bytes(ROW, "big") for seq in range(1, span.last + 1))
    assert all(table.has(key) for pairs in parts for key, _ in pairs)


def test_many_lines_stay_in_few_tables(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for n in range(1000):
        log.add(record(n, origin="pair_1" if n % 3 else "local"))
        assert log.index.stats().tables_count <= 24
        assert log.index.stats().memory_lines <= 4
    log.check()
    assert len(list(tmp_path.iterdir())) <= 30


def test_a_full_disk_costs_the_index_nothing_but_memory(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = Log(tmp_path, disk)
    for n in range(30):
        log.add(record(n))
    disk.fail_create = errno.ENOSPC
    for n in range(30, 60):
        log.add(record(n))
    assert "space" in log.index.stats().fault
    log.check()
    disk.fail_create = 0
    for n in range(60, 90):
        log.add(record(n))
    assert log.index.stats().fault == ""
    assert log.index.stats().memory_lines < 20
    log.check()
    log.index.close()
    log.index = log.opened()
    assert log.index.covered == 90
    log.check()


def test_the_folder_may_be_deleted_while_lines_are_added(tmp_path: Path) -> None:
    """What follows is written into a new folder, and the next opening reads the log for the rest."""
    folder = tmp_path / "index"
    log = Log(folder)
    log.add(*[record(n) for n in range(30)])
    shutil.rmtree(folder)
    for n in range(30, 60):
        log.add(record(n))
    assert log.index.stats().fault == ""
    assert log.index.stats().memory_lines <= 4
    log.check()
    log.index.close()
    assert log.opened().covered == 0


def anew(log: Log) -> Index:
    salt = b"\x22"
    return Index(
        log.folder, log.disk, "e" * 32, log.read, lambda size: salt * size, memory_rows=log.rows, replaces=True
    )


def fill(log: Log, index: Index, *lost: int) -> None:
    """Add all lines of the log to another index, those lost as damaged ones."""
    run, offset = "0" * 32, 0
    for seq, entry in enumerate(log.entries, 1):
        assert entry is not None
        raw, run, head = encode(entry, seq, AT_MS, run)
        hole = seq in lost
        place = Place(1, offset, head, len(entry.payload))
        index.add([(seq, None if hole else place, None if hole else entry)], run)
        offset += len(raw)


def test_a_new_index_takes_the_place_of_one_that_is_still_read(tmp_path: Path) -> None:
    """Lists, counts, tallies and names are those of the new one, in this process and the next."""
    log = Log(tmp_path)
    log.add(*[record(n, thread=f"th_{n % 5}") for n in range(90)])
    old, fresh = log.index, anew(log)
    fill(log, fresh, 1, 50)
    fresh.replace(old)
    assert old.count("n:default") == len(old.after("n:default", 0, 100)) == 90
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("next-")]
    log.index = fresh
    log.entries[0] = log.entries[49] = None
    log.check()
    log.add(*[record(n) for n in range(100, 160)])
    log.check()
    log.index.close()
    log.index = log.opened()
    assert log.index.covered == 150
    log.check()


def test_a_new_index_that_is_given_up_leaves_the_old_one_alone(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.add(*[record(n) for n in range(30)])
    before = sorted(path.name for path in tmp_path.iterdir())
    fresh = anew(log)
    fill(log, fresh)
    assert len(list(tmp_path.iterdir())) > len(before)
    fresh.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    left = anew(log)
    fill(log, left, 7)
    log.index.close()
    log.index = log.opened()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("next-")]
    log.check()
