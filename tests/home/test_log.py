"""Promises of the log while it is open: durable before acknowledged, read by many, silent for ever after a failure."""

import errno
import functools
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.limits import Limits
from spl.home import recovery
from spl.home.disk import Disk, File
from spl.home.index import Index
from spl.home.log import Entry, Log, StoreError
from spl.home.segments import RUN_START, LineError, chain, encode_header, split
from spl.home.tables import rows as rows_module
from tests.store_kit import AT_MS, FaultyDisk, FaultyFile, contents, fail, log_files, note, open_store, record


def test_appending_gives_dense_seqs_and_lines_that_chain(tmp_path: Path) -> None:
    store = open_store(tmp_path, Disk())
    assert store.append([], AT_MS) == []
    assert store.append([record(1), note("pos", pair="pair_1")], AT_MS) == [1, 2]
    assert store.append([record(2, ns="", origin="pair_1")], AT_MS + 1) == [3]
    header, *lines = log_files(tmp_path)[0].read_bytes().splitlines()
    assert json.loads(header)["epoch"] == store.epoch
    assert log_files(tmp_path)[0].name == f"{1:020d}.jsonl"
    run = RUN_START
    for seq, raw in enumerate(lines, 1):
        prefix, stored, tail = split(raw)
        run = chain(run, prefix, tail)
        assert run == stored == store.run_at(seq)
        assert json.loads(raw)["seq"] == seq
    assert store.last_run == run
    assert store.run_at(0) == RUN_START
    line = store.line(3)
    assert (line.kind, line.at_ms, line.origin, line.ns, line.own) == ("rec", AT_MS + 1, "pair_1", "", False)
    assert line.payload == record(2, ns="").payload


def test_a_commit_is_one_write_and_one_sync(tmp_path: Path) -> None:
    calls: list[str] = []

    class CountingFile(File):
        def write(self, data: bytes) -> None:
            calls.append(f"write {data.count(10)}")
            super().write(data)

        def sync(self) -> float:
            calls.append("sync")
            return super().sync()

    class CountingDisk(Disk):
        def open_append(self, path: Path) -> File:
            file = super().open_append(path)
            counting = CountingFile(file._fd)
            file._fd = -1
            return counting

    store = open_store(tmp_path, CountingDisk())
    calls.clear()
    store.append([record(n) for n in range(64)], AT_MS)
    assert calls == ["write 64", "sync"]


@pytest.mark.parametrize("fault", ["sync", "write"])
def test_a_failed_write_or_sync_ends_appending_for_ever(tmp_path: Path, fault: str) -> None:
    """Also a lack of room, if what was written cannot be cut off again."""
    disk = FaultyDisk()
    store = open_store(tmp_path, disk)
    store.append([record(1)], AT_MS)
    disk.fail_sync, disk.room = errno.EIO if fault == "sync" else 0, 700 if fault == "write" else None
    disk.fail_cut = errno.EIO
    size = log_files(tmp_path)[0].stat().st_size
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            store.append([record(2), record(3)], AT_MS)
        assert caught.value.code == "store-readonly"
        disk.fail_sync, disk.room = 0, None
    assert log_files(tmp_path)[0].stat().st_size > size, "nothing is truncated by the process that failed"
    assert contents(store) == [(1, record(1).payload)]
    assert store.last_seq == 1
    assert store.index.find(record(2).id, "default") is None
    assert store.index.count("n:default") == 1
    assert "failed" in store.stats().readonly
    store.close()
    assert not (tmp_path / "clean").exists()
    again = open_store(tmp_path)
    assert again.report.unclean
    assert [seq for seq, _ in contents(again)] == ([1, 2, 3] if fault == "sync" else [1, 2])
    assert bool(again.report.cut_bytes) == (fault == "write")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("fault", ["sync", "write"])
def test_a_lack_of_room_is_waited_out(tmp_path: Path, fault: str, number: int) -> None:
    """Nothing of the refused lines stays, and the next append is tried as usual."""
    disk = FaultyDisk()
    disk.free = 10**9
    store = open_store(tmp_path, disk)
    store.append([record(1)], AT_MS)
    before = log_files(tmp_path)[0].read_bytes()

    def lack(file: File, data: bytes) -> None:
        File.write(file, data[:700])
        fail(number)

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            if fault == "write":
                patch.setattr(FaultyFile, "write", lack)
            else:
                patch.setattr(FaultyFile, "sync", failing_once(number))
            with pytest.raises(StoreError) as caught:
                store.append([record(2), record(3)], AT_MS)
        assert caught.value.code == "store-full"
        assert log_files(tmp_path)[0].read_bytes() == before
        assert (store.readonly, store.last_seq) == ("", 1)
        assert "no room" in store.full
    disk.free = 10**9 + 1
    assert store.full == "", "there is more room than at the fault"
    assert store.append([record(2)], AT_MS) == [2]
    disk.free = 10**9
    assert store.full == ""
    store.close()
    again = open_store(tmp_path)
    assert (again.report.unclean, again.report.damaged) == (False, ())
    assert contents(again) == [(1, record(1).payload), (2, record(2).payload)]


def failing_once(number: int) -> Callable[[File], float]:
    """Return a sync that fails the first time."""
    left = [number]

    def sync(file: File) -> float:
        fail(left.pop() if left else 0)
        return File.sync(file)

    return sync


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EIO])
def test_without_a_new_segment_the_present_one_grows(tmp_path: Path, number: int) -> None:
    disk = FaultyDisk()
    store = open_store(tmp_path, disk, limits=Limits(segment_bytes=1000))
    store.append([record(1)], AT_MS)
    disk.fail_create = number
    for n in range(2, 6):
        assert store.append([record(n)], AT_MS) == [n]
    assert len(log_files(tmp_path)) == 1
    disk.fail_create = 0
    store.append([record(6)], AT_MS)
    assert [path.stem[-1] for path in log_files(tmp_path)] == ["1", "6"]
    store.close()
    again = open_store(tmp_path)
    assert (again.report.unclean, again.report.damaged) == (False, ())
    assert [seq for seq, _ in contents(again)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("more", [0, 1], ids=["last", "in-the-middle"])
def test_a_segment_that_was_withdrawn_may_come_back(tmp_path: Path, more: int) -> None:
    """Its removal was not durable: the lines that went on in the segment before it are all served."""
    store = open_store(tmp_path, limits=Limits(segment_bytes=4000))
    store.append([record(1), record(2)], AT_MS)
    (tmp_path / f"{3:020d}.jsonl").write_bytes(encode_header(store.epoch, 3, store.last_run))
    store.append([record(3), record(4)], AT_MS)
    for n in range(5, 5 + 6 * more):
        store.append([record(n)], AT_MS)
    last = store.last_seq
    for rebuild in (False, True):
        if rebuild:
            shutil.rmtree(tmp_path / "index")
        again = open_store(tmp_path)
        assert again.report.damaged == ()
        assert [seq for seq, _ in contents(again)] == list(range(1, last + 1))
        assert again.append([record(last + 1)], AT_MS) == [last + 1]
        last += 1
        again.close()
    assert [seq for seq, _ in contents(open_store(tmp_path))] == list(range(1, last + 1))


def test_below_the_floor_the_log_says_that_it_is_full(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = open_store(tmp_path, disk, limits=Limits(disk_floor_bytes=1000))
    disk.free = 999
    assert "0.0 MB are free" in store.full
    assert store.append([record(1)], AT_MS) == [1], "lines of the daemon's own are still taken"
    disk.free = 1000
    assert store.full == ""


def test_an_append_that_breaks_off_is_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.append([record(1)], AT_MS)
    with pytest.raises(ValueError, match="hex"):
        store.append([record(2), Entry("rec", record(3).payload, id="not an id")], AT_MS)
    with pytest.raises(StoreError) as caught:
        store.append([record(4)], AT_MS)
    assert caught.value.code == "store-readonly"
    assert store.last_seq == 1
    store.close()
    again = open_store(tmp_path)
    assert again.report.unclean
    assert contents(again) == [(seq, record(seq).payload) for seq in (1, 2, 3)]
    assert again.append([record(4)], AT_MS) == [4]


def test_segments_rotate_by_size_and_a_commit_stays_whole(tmp_path: Path) -> None:
    store = open_store(tmp_path, limits=Limits(segment_bytes=2000))
    entries = [record(n, text="x" * (n % 4) * 100) for n in range(40)]
    for start in range(0, 40, 2):
        store.append(entries[start : start + 2], AT_MS)
    store.append([record(100, text="x" * 5000), record(101)], AT_MS)
    files = log_files(tmp_path)
    assert len(files) > 8
    assert all(path.stat().st_size <= 2000 for path in files[:-1])
    assert {json.loads(path.read_bytes().split(b"\n")[0])["epoch"] for path in files} == {store.epoch}
    assert [payload for _, payload in contents(store)] == [
        entry.payload for entry in [*entries, record(100, text="x" * 5000), record(101)]
    ]
    rows = store.index.after("n:default", 0, 100)
    assert store.payloads(rows) == [payload for _, payload in contents(store)]
    assert store.stats().segments_count == len(files)
    assert store.stats().log_bytes == sum(path.stat().st_size for path in files)
    assert store.stats().records_count == store.stats().lines_count == 42


def test_the_bytes_since_a_time_are_never_too_few_and_a_segment_too_many_at_most(tmp_path: Path) -> None:
    store, ends = open_store(tmp_path, limits=Limits(segment_bytes=2000)), [0]
    for n in range(40):
        store.append([record(n)], AT_MS + n)
        ends.append(store.stats().log_bytes)
    for n in range(41):
        found, exact = store.bytes_since(AT_MS + n), ends[-1] - ends[n]
        assert exact <= found <= exact + 2 * 2000
    assert store.bytes_since(AT_MS + 1000) <= 2000
    assert store.bytes_since(0) == ends[-1]


@given(st.lists(st.integers(0, 29), max_size=30), st.integers(1, 3000), st.integers(0, 900))
def test_payloads_come_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[int], span: int, gap: int
) -> None:
    store = STORES.get("payloads") or STORES.setdefault(
        "payloads", open_store(tmp_path_factory.mktemp("s"), limits=Limits(segment_bytes=4000))
    )
    entries = [record(n, text="é" * (n % 5) * 60) for n in range(30)]
    if not store.last_seq:
        for entry in entries:
            store.append([entry], AT_MS)
    rows = store.index.after("n:default", 0, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_SPAN_BYTES", span)
        patch.setattr(rows_module, "_GAP_BYTES", gap)
        assert store.payloads([rows[n] for n in wanted]) == [entries[n].payload for n in wanted]


STORES: dict[str, Log] = {}


def test_scanning_starts_anywhere_and_skips_what_went_bad(tmp_path: Path) -> None:
    store = open_store(tmp_path, limits=Limits(segment_bytes=1500))
    for n in range(12):
        store.append([record(n)], AT_MS)
    for first in range(14):
        assert [line.seq for line in store.scan(first)] == list(range(max(first, 1), 13))
    path = log_files(tmp_path)[1]
    path.write_bytes(path.read_bytes().replace(record(5).id[:30].encode(), b"0" * 30))
    for first in range(14):
        assert [line.seq for line in store.scan(first)] == [seq for seq in range(max(first, 1), 13) if seq != 6]
    assert store.append([record(99)], AT_MS) == [13]


def test_lines_that_are_not_there_are_told_from_damaged_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([record(1)], AT_MS)
    for seq in (-1, 0, 2, 2**63):
        with pytest.raises(LineError) as caught:
            store.line(seq)
        assert caught.value.code == "not-found"
    path = log_files(tmp_path)[0]
    path.write_bytes(path.read_bytes().replace(b'"seq":1,"at"', b'"seq":7,"at"'))
    with pytest.raises(LineError) as caught:
        store.line(1)
    assert caught.value.code == "store-damaged"


def test_a_payload_with_a_line_feed_is_refused_before_it_is_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    size = log_files(tmp_path)[0].stat().st_size
    with pytest.raises(StoreError) as caught:
        store.append([note("odd"), Entry("odd", b'{"a":\n1}')], AT_MS)
    assert caught.value.code == "internal"
    assert log_files(tmp_path)[0].stat().st_size == size
    assert store.append([note("odd")], AT_MS) == [1]


def test_a_clean_stop_leaves_a_mark_and_takes_no_more(tmp_path: Path) -> None:
    store = open_store(tmp_path, Disk())
    store.append([record(1)], AT_MS)
    assert not (tmp_path / "clean").exists()
    store.close()
    assert (tmp_path / "clean").exists()
    with pytest.raises(StoreError):
        store.append([record(2)], AT_MS)
    again = open_store(tmp_path, Disk())
    report = again.report
    assert not (report.unclean)
    assert not (report.lines)
    assert not (report.rebuilt)
    assert not (report.damaged)
    assert not (report.cut_bytes)
    assert not (tmp_path / "clean").exists()
    assert again.epoch == store.epoch


def test_readers_see_whole_durable_lines_while_one_thread_appends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "Index", functools.partial(Index, memory_rows=16))
    store = open_store(tmp_path, limits=Limits(segment_bytes=20_000))
    total, done = 1200, threading.Event()
    entries = [record(n, ns="ab"[n % 2]) for n in range(total)]

    def read() -> int:
        seen, place = 0, 0
        while True:
            ended = done.is_set()
            rows = store.index.after("n:b", place, 50)
            for row, payload in zip(rows, store.payloads(rows), strict=True):
                assert payload == entries[seen * 2 + 1].payload
                assert (row.clock, row.seq) == (seen * 2 + 1, seen * 2 + 2)
                seen, place = seen + 1, row.seq
            if rows:
                assert store.index.find(entries[rows[0].seq - 1].id, "b") == rows[0]
                assert store.line(rows[-1].seq).payload == entries[rows[-1].seq - 1].payload
                assert store.index.count("n:b") >= seen
            elif ended:
                return seen

    with ThreadPoolExecutor(2) as readers:
        found = [readers.submit(read) for _ in range(2)]
        try:
            for start in range(0, total, 8):
                store.append(entries[start : start + 8], AT_MS)
        finally:
            done.set()
        assert [each.result() for each in found] == [total // 2] * 2


def hurt(folder: Path, seq: int) -> None:
    """Change a byte in the payload of a line on the disk, as a bad disk does."""
    for path in log_files(folder):
        lines = path.read_bytes().splitlines(keepends=True)
        bad = [line.replace(b'"thread"', b'"thr#ad"') if b'"seq":%d,' % seq in line[:40] else line for line in lines]
        path.write_bytes(b"".join(bad))


def many(folder: Path, count: int = 40) -> Log:
    store = open_store(folder, Disk(), Limits(segment_bytes=4000))
    for n in range(count):
        store.append([record(n)], AT_MS)
    return store


@pytest.mark.parametrize("seq", [1, 17, 40])
def test_reading_the_log_anew_leaves_damaged_lines_out_of_every_answer(tmp_path: Path, seq: int) -> None:
    store = many(tmp_path)
    hurt(tmp_path, seq)
    lost = record(seq - 1)
    assert store.index.place(seq) is not None
    steps = list(store.reindex(bytes))
    assert all(done <= total for done, total in steps)
    assert store.index.find(lost.id, lost.ns) is None
    assert (store.index.count("n:default"), store.index.tally("rec")) == (39, 39)
    with pytest.raises(LineError):
        store.line(seq)
    assert store.append([lost], AT_MS) == [41]
    assert store.index.count(f"t:{lost.thread}") == len(store.index.after(f"t:{lost.thread}", 0, 99))
    store.close()
    again = open_store(tmp_path, Disk(), Limits(segment_bytes=4000))
    assert (again.report.lines, again.index.tally("rec"), again.last_run) == (0, 40, store.last_run)
    found = again.index.find(lost.id, lost.ns)
    assert found is not None
    assert found.seq == 41


def test_what_is_appended_while_the_log_is_read_anew_is_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_BATCH_LINES", 4)
    store = many(tmp_path)
    hurt(tmp_path, 17)
    count = 40
    for _ in store.reindex(bytes):
        for _ in range(5):
            store.append([record(count)], AT_MS)
            count += 1
    assert count > 80
    assert store.index.covered == store.last_seq == count
    assert {row.seq for row in store.index.after("n:default", 0, 999)} == set(range(1, count + 1)) - {17}
    assert store.index.tally("rec") == count - 1


def test_reading_the_log_anew_given_up_or_refused_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_BATCH_LINES", 4)
    store = many(tmp_path)
    index, steps = store.index, store.reindex(bytes)
    next(steps)
    with pytest.raises(StoreError) as caught:
        next(store.reindex(bytes))
    assert caught.value.code == "overloaded"
    steps.close()
    assert store.index is index
    steps = store.reindex(bytes)
    next(steps)
    store.close()
    with pytest.raises(StoreError) as caught:
        list(steps)
    assert caught.value.code == "store-readonly"
    assert store.index is index
    assert not list((tmp_path / "index").glob("next-*"))


@pytest.mark.parametrize("pieces", [1, 10])
def test_no_index_takes_the_place_of_another_once_the_log_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """Whether more is to be read, or only the exchange is left."""
    monkeypatch.setattr(recovery, "_BATCH_LINES", 4)
    store = many(tmp_path)
    index, steps = store.index, store.reindex(bytes)
    for _ in range(pieces):
        next(steps)
    store.stop()
    with pytest.raises(StoreError) as caught:
        next(steps)
    assert (caught.value.code, store.index) == ("shutting-down", index)
    assert not list((tmp_path / "index").glob("next-*"))
    assert store.append([record(99)], AT_MS) == [41]


def test_an_index_that_cannot_take_the_place_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = many(tmp_path)
    index = store.index

    def fail(self: Index, other: Index) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Index, "replace", fail)
    with pytest.raises(StoreError) as caught:
        list(store.reindex(bytes))
    assert (caught.value.code, store.index) == ("store-readonly", index)
    assert store.append([record(99)], AT_MS) == [41]


def test_what_was_lost_at_opening_is_looked_for_again(tmp_path: Path) -> None:
    store = many(tmp_path)
    store.close()
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    hurt(tmp_path, 17)
    store = open_store(tmp_path, Disk(), Limits(segment_bytes=4000))
    assert [damage.seq for damage in store.lost] == [17]
    store.append([record(16)], AT_MS)
    store.look_again()
    assert (store.lost, len(store.report.damaged)) == ((), 1)
