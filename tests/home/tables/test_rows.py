"""Promises of the way to payloads: bytes that are not those that were indexed are never given out."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.limits import Limits
from spl.home.log import Log
from spl.home.segments import LineError
from spl.home.tables import rows as module
from spl.home.tables.rows import PayloadReader, Row
from tests.store_kit import AT_MS, log_files, note, open_store, record, shown

COUNT = 12


def filled(folder: Path) -> Log:
    store = open_store(folder, limits=Limits(segment_bytes=2500))
    for n in range(COUNT):
        store.append([record(n, ns="plans" if n % 2 else "default", text=f"text {n}")], AT_MS)
    return store


def hurt(folder: Path, mark: bytes, bad: bytes) -> None:
    """Replace bytes in the one segment that has them, as a bad disk does."""
    [path] = [path for path in log_files(folder) if mark in path.read_bytes()]
    assert len(mark) == len(bad)
    path.write_bytes(path.read_bytes().replace(mark, bad))


def all_rows(store: Log) -> list[Row]:
    return store.index.rows(range(1, COUNT + 1))


STORES: dict[str, Log] = {}


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    STORES["store"] = filled(tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("bad", [b"tfxt 5", b'te"t 5', b"te\nt 5", b"te\xfft 5", b"te\\t 5"])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_changed_payload_is_left_out_of_every_answer(tmp_path: Path, bad: bytes, reopened: bool) -> None:
    """In a sealed segment and in the one that is written, with an index that is older than the damage."""
    store = filled(tmp_path)
    if reopened:
        store.close()
    hurt(tmp_path, b"text 5", bad)
    store = open_store(tmp_path, limits=Limits(segment_bytes=2500)) if reopened else store
    gone, rows = record(5, ns="plans", text="text 5"), all_rows(store)
    assert [row.seq for row, _ in store.read(rows)] == [seq for seq in range(1, COUNT + 1) if seq != 6]
    assert store.index.reader.doubted
    assert store.payload(rows[5]) is None
    assert 6 not in [row.seq for row in store.index.after(f"t:{gone.thread}", 0, 99)]
    assert (store.index.find(gone.id, gone.ns), store.index.place(6)) == (None, None)
    assert store.index.starting(bytes.fromhex(gone.id[:32])) == []
    assert store.index.marks(6, 1) == [(0, bytes(16))]
    with pytest.raises(LineError) as caught:
        store.line(6)
    assert caught.value.code == "store-damaged"
    # It is stored again when it comes back, and found.
    [seq] = store.append([gone], AT_MS)
    found = store.index.find(gone.id, gone.ns)
    assert found is not None
    assert (found.seq, store.payload(found)) == (seq, gone.payload)


def test_damage_is_found_by_each_way_of_reading(tmp_path: Path) -> None:
    for number, ask in enumerate((
        lambda store, entry: store.index.find(entry.id, entry.ns),
        lambda store, entry: store.index.starting(bytes.fromhex(entry.id[:32])),
        lambda store, entry: store.payloads(all_rows(store)),
        lambda store, entry: store.payload(all_rows(store)[5]),
        lambda store, entry: store.index.line(6),
    )):  # fmt: skip
        store = filled(tmp_path / str(number))
        hurt(tmp_path / str(number), b"text 5", b"tent 5")
        try:
            ask(store, record(5, ns="plans", text="text 5"))
        except LineError as exc:
            assert exc.code == "store-damaged"
        assert store.index.reader.left_out == {6}, number


def test_a_projection_that_changed_is_asked_for_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([shown(7), shown(8)], AT_MS)
    hurt(
        tmp_path,
        shown(7).id.encode() + b'","projection":{"level":"L1"',
        shown(7).id.encode() + b'","projection":{"level":"L2"',
    )
    assert not store.index.has_projection("pair_1", "L1", shown(7).id)
    assert store.index.has_projection("pair_1", "L1", shown(8).id)


def test_a_segment_that_is_gone_stops_none_behind_it(tmp_path: Path) -> None:
    filled(tmp_path).close()
    _, middle, *others = log_files(tmp_path)
    assert others
    middle.unlink()
    store = open_store(tmp_path, limits=Limits(segment_bytes=2500))
    lost = set(range(int(middle.stem), int(others[0].stem)))
    assert {row.seq for row, _ in store.read(all_rows(store))} == set(range(1, COUNT + 1)) - lost
    assert store.index.reader.left_out == lost
    assert store.index.find(record(int(middle.stem) - 1).id, "default") is None
    store.close()


def test_facts_that_a_flipped_bit_made_are_none(tmp_path: Path) -> None:
    """The namespace stands before the payload: a record must not be read in another one than it was stored in."""
    store = open_store(tmp_path)
    store.append([record(1, ns="secret"), record(2, ns="secret"), record(3, ns="public")], AT_MS)
    store.close()
    hurt(
        tmp_path,
        b'"seq":1,"at":%d,"from":"local","ns":"secret"' % AT_MS,
        b'"seq":1,"at":%d,"from":"local","ns":"public"' % AT_MS,
    )
    store = open_store(tmp_path)
    assert [row.ns for row in store.index.rows([2, 3])] == ["secret", "public"]
    assert "public" not in [row.ns for row in store.index.rows([1])]


def test_a_lack_of_descriptors_is_no_damage() -> None:
    def read(segment: int, offset: int, size: int) -> bytes:
        raise LineError("overloaded", os.strerror(errno.EMFILE))

    reader = PayloadReader(read)
    with pytest.raises(LineError) as caught:
        list(reader.each([Row(1, "rec", 1, 0, 5, "", "", "", False, 0)]))
    assert (caught.value.code, reader.left_out, reader.doubted) == ("overloaded", set(), False)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEFT_OUT_MAX", 3)
    reader = PayloadReader(lambda segment, offset, size: b"x" * size)
    rows = [Row(seq, "rec", 1, seq * 10, 5, "", "", "", False, 0, crc=1) for seq in range(1, 10)]
    assert list(reader.each(rows)) == []
    assert reader.left_out == {1, 2, 3}
    assert list(reader.each(rows)) == []


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_no_row_makes_a_reading_fail(places: list[tuple[int, int, int]], crc: int) -> None:
    """Index rows that a disk changed lead anywhere."""
    store = STORES["store"]
    rows = [
        Row(seq, "rec", segment, offset, size, "", "", "", False, 0, crc)
        for seq, (segment, offset, size) in enumerate(places, 1000)
    ]
    good = all_rows(store)
    found = [row for row, _ in store.read([*rows, *good])]
    assert found[-COUNT:] == good
    assert all(row.length == 0 and crc == 0 for row in found[:-COUNT])


def test_lines_that_are_no_records_are_checked_too(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([note("pos", pair="pair_1", cursor="c1"), note("pos", pair="pair_1", cursor="c2")], AT_MS)
    hurt(tmp_path, b'"cursor":"c1"', b'"cursor":"c9"')
    assert store.payloads(store.index.rows([1, 2])) == [note("pos", pair="pair_1", cursor="c2").payload]
