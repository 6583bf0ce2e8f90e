"""Promises of the index's files: they answer as a sorted list would, and every bad byte is noticed at open."""

import bisect
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.home.disk import Disk
from spl.home.tables import sstable as tables
from spl.home.tables.sstable import Memory, Span, Table, TableFault, TableWriter, cut, open_table

ROW = 4
KEYS = st.sampled_from([bytes(8), b"\xff" * 8, b"key one!", b"key two!", b"\x00\x00\x00\x00\x00\x00\x00\x01"])
ENTRIES = st.lists(
    st.tuples(KEYS | st.binary(min_size=8, max_size=8), st.integers(0, 2**63 - 1) | st.integers(0, 9)), max_size=200
)


def written(folder: Path, entries: list[bytes], first: int = 1, last: int = 3) -> Table:
    span = Span("e" * 32, "5" * 32, first, last, "0" * 32)
    writer = TableWriter(Disk(), folder, span, ROW, len(entries), len({entry[:8] for entry in entries}))
    writer.add_rows(b"".join(seq.to_bytes(ROW, "big") for seq in range(first, last + 1)))
    writer.add_entries(sorted(entries))
    return writer.finish()


def flat(pairs: list[tuple[bytes, int]]) -> list[bytes]:
    return sorted(key + value.to_bytes(8, "big") for key, value in pairs)


@given(ENTRIES, KEYS, st.integers(0, 12), st.integers(1, 20))
def test_a_table_answers_as_a_sorted_list(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[bytes, int]], key: bytes, low: int, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    made = written(folder, flat(pairs))
    for table in (made, open_table(Disk(), made.path, ROW)):
        for each in {key, *(key for key, _ in pairs[:5])}:
            values = sorted(value for other, value in pairs if other == each)
            assert table.values(each, low, limit) == values[bisect.bisect_left(values, low) :][:limit]
            assert table.count(each) == len(values)
            assert table.last(each) == (values[-1] if values else None)
        assert [entry for block in table.blocks() for entry in block] == flat(pairs)
        assert table.rows(2, 2) == b"\0\0\0\2\0\0\0\3"


def test_long_lists_cross_blocks_of_entries(tmp_path: Path) -> None:
    pairs = [(b"neighbou", 1), *((b"the list", value) for value in range(5000)), (b"then one", 3)]
    table = written(tmp_path, flat(pairs))
    assert table.values(b"the list", 0, 10_000) == list(range(5000))
    assert table.count(b"the list") == 5000
    assert table.values(b"the list", 4990, 4) == [4990, 4991, 4992, 4993]
    for low in (511, 512, 513, 1023, 1024):
        assert table.values(b"the list", low, 600) == list(range(low, low + 600))
    assert table.values(b"then one", 0, 9) == [3]
    assert table.last(b"the list") == 4999
    assert table.values(b"the lost", 0, 9) == []
    assert table.last(b"then two") is None


def test_every_bad_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    table = written(tmp_path, flat([(bytes([i]) * 8, i) for i in range(20)]))
    whole = table.path.read_bytes()
    for at in range(len(whole)):
        table.path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(TableFault):
            open_table(Disk(), table.path, ROW)
        if at % 7 == 0:
            table.path.write_bytes(whole[:at])
            with pytest.raises(TableFault):
                open_table(Disk(), table.path, ROW)
    table.path.write_bytes(whole)
    assert open_table(Disk(), table.path, ROW).span == table.span
    with pytest.raises(TableFault):
        open_table(Disk(), table.path, ROW + 1)
    text = whole[8:512].replace(b'"format": %d' % tables.FORMAT, b'"format": %d' % (tables.FORMAT + 1))
    table.path.write_bytes(b"%08x" % crc32(text) + text + whole[512:])
    with pytest.raises(TableFault):
        open_table(Disk(), table.path, ROW)


def test_an_unfinished_table_leaves_nothing(tmp_path: Path) -> None:
    writer = TableWriter(Disk(), tmp_path, Span("e" * 32, "5" * 32, 1, 1, "0" * 32), ROW, 5, 5)
    writer.add_rows(bytes(ROW))
    assert len(list(tmp_path.iterdir())) == 1
    writer.give_up()
    assert list(tmp_path.iterdir()) == []


def test_filters_larger_than_the_write_buffer_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BUFFER_BYTES", 64)
    pairs = [((i * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big"), i) for i in range(3000)]
    table = open_table(Disk(), written(tmp_path, flat(pairs)).path, ROW)
    assert all(table.values(key, 0, 1) == [value] for key, value in pairs)
    absent = [((i * 0x9E3779B97F4A7C15 % 2**64) ^ 1).to_bytes(8, "little") for i in range(3000)]
    assert sum(table.has(key) for key in absent) < 150, "one absent key in twenty looks present, as 5 % at the most do"


def test_memory_keeps_single_and_many_values() -> None:
    memory = Memory(1)
    memory.put(b"one key!", 1)
    for value in (1, 2, 3):
        memory.put(b"key many", value)
    memory.tallies[b"tally it"] = 7
    assert memory.values(b"one key!") == [1]
    assert memory.values(b"key many") == [1, 2, 3]
    assert memory.values(b"none") == []
    every = flat([(b"key many", 1), (b"key many", 2), (b"key many", 3), (b"one key!", 1), (b"tally it", 7)])
    assert list(memory.entries(2)) == [every[:2], every[2:4], every[4:]]
    assert memory.count == len(every)
    assert cut(b"".join(every)) == every
    memory.tallies[b"key many"] = 2  # a hash may be that of both
    assert next(memory.entries(9))[:4] == flat([(b"key many", value) for value in (1, 2, 2, 3)])
