"""Promises of opening a log: whatever happened to its files, what was acknowledged is there or reported, no more."""

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from spl.core.limits import Limits
from spl.home import recovery
from spl.home.check import StoreCheck
from spl.home.disk import Disk, DiskError
from spl.home.index import Index
from spl.home.recovery import StoreError
from spl.home.segments import RUN_START, Entry, LineError
from spl.home.tables.lists import by_actor, by_thread_in
from tests.sim.disk import MemoryDisk
from tests.store_kit import AT_MS, FaultyDisk, contents, log_files, note, open_store, record, shown

SMALL = Limits(segment_bytes=1100)


EIGHT = ([record(1), record(2)], [note("pos", pair="pair_1", at=5)], [record(3, origin="pair_1")],
         [note("ref", pair="pair_1", id="x"), note("odd", a=1)], [record(4)], [note("odd", a=2)])  # fmt: skip
FOUR = ([note("odd", a=1), record(1)], [note("pos", pair="pair_1", at=5), note("odd", a=2)])


def filled(folder: Path, limits: Limits = SMALL, batches: tuple[list[Entry], ...] = EIGHT) -> list[tuple[int, bytes]]:
    """Make a store of these lines, stop it cleanly, return its contents."""
    store = open_store(folder, limits=limits)
    for batch in batches:
        store.append(batch, AT_MS)
    found = contents(store)
    store.close()
    assert len(found) == sum(len(batch) for batch in batches)
    return found


def lines_with_ends(path: Path) -> list[tuple[int, bytes]]:
    """Return (offset behind it, line) of each line of a file."""
    found, end = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        end += len(raw)
        found.append((end, raw))
    return found


@pytest.mark.parametrize("left", ["index", "clean", "nothing"])
def test_a_log_cut_at_any_byte_reopens_with_every_whole_line(tmp_path: Path, left: str) -> None:
    before = filled(tmp_path / "a")
    last = log_files(tmp_path / "a")[-1]
    first = int(last.stem)
    if left != "clean":
        os.unlink(tmp_path / "a" / "clean")
    if left == "nothing":
        shutil.rmtree(tmp_path / "a" / "index")
    ends = [end for end, _ in lines_with_ends(last)]
    for size in range(last.stat().st_size):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        os.truncate(tmp_path / "b" / last.name, size)
        store = open_store(tmp_path / "b", limits=SMALL)
        whole = sum(end <= size for end in ends)
        kept = [line for line in before if line[0] < first - 1 + max(whole, 1)]
        # The mark of a clean stop counts the lines that were cut off: they are lost, and nothing is a torn tail.
        end = before[-1][0] if left == "clean" else kept[-1][0]
        assert (contents(store), store.last_seq) == (kept, end), size
        assert store.report.unclean == (left != "clean")
        assert bool(store.report.damaged) == bool(store.lost) == (left == "clean")
        assert store.report.cut_bytes == (0 if left == "clean" and whole else size - ([0, *ends][whole]))
        assert store.append([record(99)], AT_MS) == [end + 1]
        store.close()
        if size % 16 == 0 or size in ends:
            again = open_store(tmp_path / "b", limits=SMALL)
            assert contents(again) == [*kept, (end + 1, record(99).payload)]
            assert bool(again.lost) == (left == "clean")
            assert not again.report.unclean
            assert again.epoch == "2a" * 16
        shutil.rmtree(tmp_path / "b")


@pytest.mark.parametrize("clean", [True, False])
def test_any_changed_byte_loses_its_line_and_serves_nothing_changed(tmp_path: Path, clean: bool) -> None:
    before = filled(tmp_path / "a", Limits(), FOUR)
    shutil.rmtree(tmp_path / "a" / "index")
    if not clean:
        os.unlink(tmp_path / "a" / "clean")
    whole = log_files(tmp_path / "a")[0].read_bytes()
    hit_seq, last = 0, before[-1][0]
    for at in range(len(whole)):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        bad = whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :]
        log_files(tmp_path / "b")[0].write_bytes(bad)
        store = open_store(tmp_path / "b")
        served = contents(store)
        assert set(served) <= set(before), at
        lost = {seq for seq, _ in before} - {seq for seq, _ in served}
        assert {hit_seq} - {0} <= lost <= {hit_seq, hit_seq + 1}, at
        if clean or hit_seq < last - 1:
            places = [damage for damage in store.report.damaged if damage.lines]
            assert sum(damage.lines for damage in places) == len(lost)
            assert {damage.seq for damage in places} <= lost
            assert store.last_seq == last
            assert store.report.cut_bytes == 0
            assert log_files(tmp_path / "b")[0].read_bytes() == bad
        assert lost or store.report.damaged or not hit_seq
        for seq in lost & set(range(1, store.last_seq + 1)):
            with pytest.raises(LineError) as caught:
                store.line(seq)
            assert caught.value.code == "store-damaged"
        shutil.rmtree(tmp_path / "b")
        hit_seq += whole[at : at + 1] == b"\n"


def test_a_store_with_damage_goes_on_and_stays_as_it_is(tmp_path: Path) -> None:
    before = filled(tmp_path)
    shutil.rmtree(tmp_path / "index")
    last = log_files(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:-9] + b"?" + last.read_bytes()[-8:])
    store = open_store(tmp_path, limits=SMALL)
    assert store.report.damaged[0].seq == 8
    assert store.report.damaged[0].segment == int(last.stem)
    assert contents(store) == before[:-1]
    assert store.append([record(9)], AT_MS) == [9]
    for _ in range(2):
        store.close()
        store = open_store(tmp_path, limits=SMALL)
        assert contents(store) == [*before[:-1], (9, record(9).payload)]
        assert store.index.last("k:odd").seq == 6
        assert store.index.find(record(9).id, "default")


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("back", [1, 2, 20])
def test_a_bad_end_of_a_cleanly_stopped_log_is_kept_even_through_a_kill(
    tmp_path: Path, indexed: bool, back: int
) -> None:
    before = filled(tmp_path)
    last = log_files(tmp_path)[-1]
    bad = last.read_bytes()[:-back] + b"?" + last.read_bytes()[len(last.read_bytes()) - back + 1 :]
    last.write_bytes(bad)
    if not indexed:
        shutil.rmtree(tmp_path / "index")
    for n in range(3):
        store = open_store(tmp_path)
        served = [(seq, payload) for seq, payload in contents(store) if seq <= 8]
        assert served == before[:-1] or (indexed and n == 0 and back > 1)
        assert store.last_seq == 8 + n
        assert store.append([record(20 + n)], AT_MS) == [9 + n]
    assert last.read_bytes().startswith(bad) or indexed
    assert [payload for _, payload in contents(store)][-3:] == [record(20 + n).payload for n in range(3)]


def test_an_unclean_log_is_synced_before_it_is_served(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = open_store(tmp_path, disk)
    store.append([record(1)], AT_MS)
    disk.fail_sync = errno.EIO
    with pytest.raises(DiskError) as caught:
        open_store(tmp_path, disk)
    assert caught.value.code == "home-unusable"
    disk.fail_sync = 0
    open_store(tmp_path, disk).close()
    disk.fail_sync = errno.EIO
    assert contents(open_store(tmp_path, disk)) == [(1, record(1).payload)]


@pytest.mark.parametrize("seed", range(20))
def test_what_a_start_after_a_failed_sync_serves_outlasts_a_power_loss(seed: int) -> None:
    """The kernel may drop what it failed to sync, shows it until then, and calls it synced when it is asked again."""
    disk, folder = MemoryDisk(Random(seed)), Path("/home/store")
    store = open_store(folder, disk)
    store.append([record(1)], AT_MS)
    disk.syncs_to_fail = 1
    with pytest.raises(StoreError):
        store.append([record(2), record(3)], AT_MS)
    disk.revive(power_lost=False)
    served = contents(store := open_store(folder, disk))
    assert len(served) == 3
    store.append([record(4)], AT_MS)
    served = contents(store)
    disk.revive(power_lost=True)
    assert contents(open_store(folder, disk)) == served


def test_a_missing_segment_is_reported_and_the_rest_served(tmp_path: Path) -> None:
    before = filled(tmp_path)
    files = log_files(tmp_path)
    assert len(files) > 2
    for at in (1, 0):
        files[at].unlink()
        shutil.rmtree(tmp_path / "index")
        store = open_store(tmp_path, limits=SMALL)
        gone = range(int(files[at].stem), int(files[2].stem))
        assert contents(store) == [line for line in before if line[0] not in gone]
        assert sum(damage.lines for damage in store.report.damaged) == len(gone)
        assert store.last_seq == 8
        store.close()


def test_a_log_that_is_gone_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    filled(tmp_path)
    for path in log_files(tmp_path):
        path.unlink()
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path)
        assert caught.value.code == "store-damaged"
        assert "8 lines" in str(caught.value)


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    filled(tmp_path)
    text = b'{"k":"head","format":2,"epoch":"%b","seq":9,"run":"%b"' % (b"2a" * 16, b"00" * 16)
    newer = text + b',"sum":"' + sha256(text).hexdigest()[:32].encode() + b'"}\nsome other form'
    (tmp_path / f"{9:020d}.jsonl").write_bytes(newer)
    for _ in range(2):
        with pytest.raises(LineError) as caught:
            open_store(tmp_path)
        assert caught.value.code == "store-newer"
    assert log_files(tmp_path)[-1].read_bytes() == newer


def test_the_epoch_outlives_the_index_and_lost_headers(tmp_path: Path) -> None:
    before = filled(tmp_path)
    for path in [*log_files(tmp_path)[:-1], tmp_path / "index"]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.write_bytes(path.read_bytes().replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    store = open_store(tmp_path, random_byte=b"\x77", limits=SMALL)
    assert store.epoch == "2a" * 16
    assert contents(store) == before
    assert store.report.damaged[0].lines == 0
    store.close()
    last = log_files(tmp_path)[-1]
    last.write_bytes(last.read_bytes().replace(b'"epoch":"2a', b'"epoch":"2b', 1))
    for byte in (b"\x77", b"\x78"):
        store = open_store(tmp_path, random_byte=byte, limits=SMALL)
        assert store.epoch == "77" * 16
        assert contents(store) == before
        store.append([note("odd")], AT_MS) if byte == b"\x78" else None
        store.close()
    assert open_store(tmp_path).last_seq == 9


def test_a_rewound_log_is_noticed_by_the_index(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a")
    store.append([record(1), record(2)], AT_MS)
    store.close()
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    for kept in (2, 3):
        store = open_store(tmp_path / "a")
        store.append([record(3), record(4)], AT_MS)
        store.close()
        log_files(tmp_path / "a")[0].write_bytes(log_files(tmp_path / "old")[0].read_bytes())
        if kept == 3:
            shutil.copytree(tmp_path / "old", tmp_path / "b")
            other = open_store(tmp_path / "b")
            other.append([record(5), record(6)], AT_MS)
            log_files(tmp_path / "a")[0].write_bytes(log_files(tmp_path / "b")[0].read_bytes())
        store = open_store(tmp_path / "a")
        assert store.index.find(record(4).id, "default") is None
        assert store.index.count("n:default") == (2 if kept == 2 else 4)
        assert contents(store)[:2] == [(1, record(1).payload), (2, record(2).payload)]
        assert (store.index.find(record(6).id, "default") is not None) == (kept == 3)
        store.close()
        shutil.rmtree(tmp_path / "a")
        shutil.copytree(tmp_path / "old", tmp_path / "a")


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the index write a table every eight lines."""
    monkeypatch.setattr(recovery, "Index", functools.partial(Index, memory_rows=8))


def answers(index: Index, count: int) -> list[object]:
    """Return what the index says about the records of `many`."""
    rows: list[object] = [next(index.copies(record(n).id), None) for n in range(count + 2)]
    names = [
        "n:a",
        "n:b",
        "t:th_1",
        "p:pair_1",
        "x:pair_1",
        by_thread_in("a", "th_1"),
        by_actor("a", "did:sync:user:ann"),
    ]
    lists = [index.after(name, 0, 1000) for name in names]
    assert all(lists)
    rows += [index.has_projection("pair_1", "L1", record(n).id) for n in range(count + 2)]
    return [rows, lists, index.names("t:"), index.threads_in("a"), index.tally("rec"),
            index.tally("v:a:did:sync:instance:me"), index.clock_next("a", "did:sync:user:ann", "th_1")]  # fmt: skip


def many(count: int) -> list[Entry]:
    """Return mixed entries."""
    others = (lambda n: note("pos", pair="pair_1", n=n), shown)
    return [record(n, ns="ab"[n % 2]) if n % 5 else others[n % 2](n) for n in range(count)]


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])


@pytest.mark.usefixtures("small_tables")
@pytest.mark.parametrize("damage", [Path.unlink, damage_cut, damage_empty, damage_flip])
@pytest.mark.parametrize("clean", [True, False])
def test_any_damage_to_any_index_file_is_healed_from_the_log(
    tmp_path: Path, damage: Callable[[Path], None], clean: bool
) -> None:
    store = open_store(tmp_path / "a")
    for entry in many(203):
        store.append([entry], AT_MS)
    expected = answers(store.index, 203)
    if clean:
        store.close()
    # The file of a merge that has just begun may be empty.
    names = sorted(path.name for path in (tmp_path / "a" / "index").iterdir() if path.stat().st_size)
    assert len(names) > 3
    for name in names:
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        damage(tmp_path / "b" / "index" / name)
        again = open_store(tmp_path / "b")
        assert answers(again.index, 203) == expected
        assert again.report.lines >= 3
        again.close()
        assert open_store(tmp_path / "b").report.lines == 0
        shutil.rmtree(tmp_path / "b")


@pytest.mark.usefixtures("small_tables")
def test_a_crash_costs_only_the_lines_behind_the_last_table(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a")
    entries = many(700)
    for start in range(0, 700, 7):
        store.append(entries[start : start + 7], AT_MS)
        if start % 63 == 0:
            shutil.rmtree(tmp_path / "b", ignore_errors=True)
            shutil.copytree(tmp_path / "a", tmp_path / "b")
            again = open_store(tmp_path / "b")
            assert again.report.unclean
            assert again.report.lines <= 15
            assert not again.report.cut_bytes
            assert again.last_seq == store.last_seq
            assert again.last_run == store.last_run
            assert answers(again.index, 700) == answers(store.index, 700)
            assert not list((tmp_path / "b" / "index").glob("*.tmp"))


def test_a_merge_killed_between_its_renaming_and_its_clearing_up_is_used(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(many(20), AT_MS)
    store.close()
    table = next((tmp_path / "index").glob("*.table"))
    inner = table.with_name(f"{1:020d}-{5:020d}.table")
    shutil.copy(table, inner)
    (tmp_path / "index" / "x.table.tmp").write_bytes(b"half")
    store = open_store(tmp_path)
    assert store.report.lines == 0
    assert [path.name for path in (tmp_path / "index").iterdir()] == [table.name]


def test_progress_is_told_in_bytes_while_much_is_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([note("odd", n=n) for n in range(2000)], AT_MS)
    store.close()
    shutil.rmtree(tmp_path / "index")
    told: list[tuple[int, int]] = []
    store = open_store(tmp_path, progress=lambda done, total: told.append((done, total)))
    size = log_files(tmp_path)[0].stat().st_size
    assert len(told) >= 3
    assert told == sorted(told)
    assert {total for _, total in told} == {size}
    assert store.report.rebuilt
    assert store.report.lines == 2000
    assert store.report.took_ms == 0


def test_a_new_store_is_clean_and_a_bad_mark_is_not_believed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert not store.report.unclean
    assert store.last_run == RUN_START
    assert store.last_seq == 0
    store.append([record(1)], AT_MS)
    store.close()
    mark = (tmp_path / "clean").read_bytes()
    for bad in (b"", b"[]", mark.replace(b'"seq": 1', b'"seq": "1"'), mark.replace(b'"bytes": ', b'"bytes": 1')):
        (tmp_path / "clean").write_bytes(bad)
        store = open_store(tmp_path)
        assert store.report.unclean
        assert store.last_seq == 1
        assert not (tmp_path / "clean").exists()


CHILD = """
import sys
from pathlib import Path
from spl.home.disk import Disk
from tests.store_kit import open_store, record
store = open_store(Path(sys.argv[1]), Disk())
n = store.last_seq
print("open", n, flush=True)
while True:
    seqs = store.append([record(n + i, text="x" * 300) for i in range(3)], 5)
    n += 3
    print(seqs[-1], flush=True)
"""


def test_every_acknowledged_line_survives_kill_9(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    acknowledged = 0
    for acks in (1, 40, 7):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "store")], stdout=subprocess.PIPE,
                                 text=True, cwd=root)  # fmt: skip
        assert child.stdout
        opened = int(child.stdout.readline().split()[1])
        assert opened >= acknowledged
        for _ in range(acks):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0].splitlines()
        acknowledged = (
            int(rest[-1]) if rest and rest[-1].isdigit() and len(rest[-1]) >= len(str(acknowledged)) else acknowledged
        )
        store = open_store(tmp_path / "store")
        assert store.report.unclean
        assert store.last_seq >= acknowledged
        found = contents(store)
        assert [seq for seq, _ in found] == list(range(1, store.last_seq + 1))
        assert all(payload == record(seq - 1, text="x" * 300).payload for seq, payload in found)


def test_a_store_killed_while_it_was_created_begins_anew(tmp_path: Path) -> None:
    open_store(tmp_path / "a")
    header = log_files(tmp_path / "a")[0].read_bytes()
    for size in (0, 1, len(header) - 1):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / log_files(tmp_path / "a")[0].name).write_bytes(header[:size])
        store = open_store(tmp_path / "b")
        assert store.report.cut_bytes == size
        assert store.report.unclean == (size > 0)
        assert store.append([record(1)], AT_MS) == [1]
        assert contents(store) == [(1, record(1).payload)]
        shutil.rmtree(tmp_path / "b")


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_log_that_was_shortened_after_a_clean_stop_says_what_it_lost(tmp_path: Path, how: str, indexed: bool) -> None:
    """Acknowledged lines are gone, which no torn tail explains; what is left is served, and writing goes on."""
    store = open_store(tmp_path, limits=SMALL)
    for n in range(12):
        store.append([record(n)], AT_MS)
    store.close()
    last = log_files(tmp_path)[-1]
    if how == "gone":
        kept = int(last.stem) - 1
        last.unlink()
    else:
        lines = last.read_bytes().splitlines(keepends=True)
        last.write_bytes(b"".join(lines[:-1]))
        kept = 11
    if not indexed:
        shutil.rmtree(tmp_path / "index")
    for turn in range(3):
        again = open_store(tmp_path, limits=SMALL)
        [damage] = again.lost
        assert (damage.seq, damage.lines, again.last_seq) == (kept + 1, 12 - kept, 12 + turn)
        [step] = [step for step in StoreCheck(again, tmp_path, Disk()).run() if step.get("what") == "line"]
        assert (step["seq"], step["lines"]) == (kept + 1, 12 - kept)
        assert again.append([record(50 + turn)], AT_MS) == [13 + turn], "no seq is given twice"
        assert [seq for seq, _ in contents(again)] == [*range(1, kept + 1), *range(13, 14 + turn)]
        again.close()
    again = open_store(tmp_path, limits=SMALL)
    again.settle(again.lost)
    assert again.lost == ()
    again.close()
    assert open_store(tmp_path, limits=SMALL).lost == ()
