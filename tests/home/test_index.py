"""Promises of the index: it answers as plain lists would, through every flush, merge and reopening."""

import itertools
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.core.record import record as core_record
from spl.core.record.levels import NAMES
from spl.home.disk import Disk
from spl.home.index import Added, Index
from spl.home.segments import Entry, Place, encode
from spl.home.tables.lists import by_thread_in, lists
from tests.store_kit import AT_MS, note, open_store, record, shown


class Log:
    """A log in memory that an index reads from, and the plain lists it is compared with."""

    def __init__(self, folder: Path, disk: Disk | None = None, rows: int = 4) -> None:
        self.folder, self.disk, self.rows = folder, disk or Disk(), rows
        self.data, self.run = b"", "0" * 32
        self.entries: list[Entry | None] = []
        self.index = self.opened()

    def opened(self) -> Index:
        return Index(self.folder, self.disk, "e" * 32, self.read, lambda size: b"\x11" * size, memory_rows=self.rows)

    def read(self, segment: int, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def add(self, *entries: Entry | None) -> None:
        batch: list[Added] = []
        for entry in entries:
            self.entries.append(entry)
            seq = len(self.entries)
            if entry is None:
                batch.append((seq, None, None))
                continue
            raw, self.run, head = encode(entry, seq, AT_MS, self.run)
            batch.append((seq, Place(1, len(self.data), head, len(entry.payload)), entry))
            self.data += raw
        self.index.add(batch, self.run)

    def seqs(self, name: str) -> list[int]:
        return [seq for seq, entry in enumerate(self.entries, 1) if entry and name in lists(entry)]

    def check(self) -> None:
        """Compare every answer."""
        index, found = self.index, [(seq, entry) for seq, entry in enumerate(self.entries, 1) if entry]
        names = list(dict.fromkeys(name for _, entry in found for name in lists(entry)))
        for name in [*names, "n:none"]:
            seqs = self.seqs(name)
            assert [row.seq for row in index.after(name, 0, 10**6)] == seqs
            assert index.count(name) == len(seqs)
            assert (row.seq if (row := index.last(name)) else 0) == (seqs or [0])[-1]
            middle = seqs[len(seqs) // 2] if seqs else 3
            assert [row.seq for row in index.after(name, middle, 2)] == [seq for seq in seqs if seq > middle][:2]
        self.check_namespaces([entry for _, entry in found if "n:" + entry.ns in lists(entry)])
        for letter in "ntprkx":
            of_letter = [name for name in names if name[0] == letter]
            assert index.names(letter + ":") == of_letter
            assert index.names(letter + ":", of_letter[0] if of_letter else "", 2) == of_letter[1:3]
        for each, ns in {(entry.id, entry.ns) for _, entry in found if entry.id} | {("0" * 64, "none")}:
            rec, alt, copies = (
                [seq for seq, entry in found if (entry.kind, entry.id) == (kind, each) and (any_ or entry.ns == ns)]
                for kind, any_ in (("rec", False), ("alt", False), ("rec", True))
            )
            assert [row.seq for row in filter(None, [index.find(each, ns)])] == rec[:1]
            assert [row.seq for row in index.alternates(each, ns)] == alt
            assert [row.seq for row in index.copies(each)] == copies
        self.check_shown([entry for _, entry in found])
        self.check_rows(found)
        self.check_tallies([entry for _, entry in found if entry.kind == "rec"])
        self.check_clocks([entry for _, entry in found if entry.kind == "rec"])

    def check_namespaces(self, entries: list[Entry]) -> None:
        """Compare what is asked of some namespaces with what all of them hold."""
        every = sorted({entry.ns for entry in entries})
        for chosen in (every[:1], every[1:], every, ["none"]):
            threads = list(dict.fromkeys(entry.thread for entry in entries if entry.ns in chosen))
            assert self.index.threads_in(chosen) == threads
            assert self.index.threads_in(chosen, threads[0] if threads else "none", 2) == threads[1:3]
            for thread in [*threads, "none"]:
                names = [by_thread_in(ns, thread) for ns in chosen]
                seqs = sorted(seq for name in names for seq in self.seqs(name))
                assert [row.seq for row in self.index.after_any(names, 0, 10**6)] == seqs
                middle = seqs[len(seqs) // 2] if seqs else 3
                behind = [seq for seq in seqs if seq > middle]
                assert [row.seq for row in self.index.after_any(names, middle, 2)] == behind[:2]
                assert [row.seq for row in self.index.before_any(names, 2**63 - 1, 10**6)] == seqs
                before = [seq for seq in seqs if seq < middle]
                assert [row.seq for row in self.index.before_any(names, middle, 2)] == before[-2:]

    def check_shown(self, entries: list[Entry]) -> None:
        held = {(entry.pair, entry.level, entry.id) for entry in entries if entry.kind == "proj"}
        for id_ in {entry.id for entry in entries if entry.id}:
            for pair, level in itertools.product(("pair_1", "pair_2"), NAMES):
                assert self.index.has_projection(pair, level, id_) == ((pair, level, id_) in held)
        assert self.index.tally("proj") == sum(entry.kind == "proj" for entry in entries)

    def check_rows(self, found: list[tuple[int, Entry]]) -> None:
        for seq, entry in found:
            for row in self.index.after((lists(entry) or ["none"])[0], seq - 1, 1):
                assert (row.kind, row.ns, row.origin, row.voucher, row.own, row.clock) == (
                    entry.kind,
                    entry.ns,
                    entry.origin,
                    entry.voucher,
                    entry.own,
                    entry.clock,
                )
                assert self.read(row.segment, row.offset, row.length) == entry.payload

    def check_tallies(self, records: list[Entry]) -> None:
        index, expected = self.index, dict[str, int]()
        for entry in records:
            ns, origin, voucher = entry.ns, entry.origin, entry.voucher
            names = ["rec"]
            if f"n:{ns}" in lists(entry):
                names += [f"v:{ns}:{voucher}"]
                names += [f"o:{ns}:{origin}", f"ov:{ns}:{origin}:{voucher}"] if origin != "local" else []
            for name in names:
                expected[name] = expected.get(name, 0) + 1
        assert {name: index.tally(name) for name in expected} == expected
        assert index.tally("v:none:none") == index.tally("o:default:local") == 0

    def check_clocks(self, records: list[Entry]) -> None:
        for ns, actor, thread in {(entry.ns, entry.actor, entry.thread) for entry in records}:
            own = [e for e in records if (e.ns, e.actor, e.thread) == (ns, actor, thread) and e.own]
            clocks = {entry.clock for entry in own}
            top = max(clocks, default=-1) + 1
            assert self.index.clock_next(ns, actor, thread) == (top if top < 2**63 else None)
            for clock in {entry.clock for entry in records} | {0}:
                row = self.index.taken(ns, actor, thread, clock)
                assert (row is not None) == (clock in clocks)
                assert row is None or (row.own and row.clock == clock)


ENTRIES = st.one_of(
    st.builds(
        record,
        st.integers(0, 30),
        ns=st.sampled_from(["default", "team.a", ""]),
        thread=st.sampled_from(["th_1", "th_2", "th_consent", "th_audit_x"]),
        actor=st.sampled_from(["did:a", "did:b"]),
        clock=st.sampled_from([0, 1, 2, 2**63 - 1]),
        origin=st.sampled_from(["local", "restore", "pair_1"]),
        voucher=st.sampled_from(["did:v1", "did:v2"]),
        kind=st.sampled_from(["rec", "rec", "rec", "alt"]),
    ),
    st.builds(
        lambda kind, pair: note(kind, pair=pair), st.sampled_from(["pos", "ref"]), st.sampled_from(["pair_1", "pair_2"])
    ),
    st.builds(
        shown, st.integers(0, 30), st.sampled_from(["pair_1", "pair_2"]), st.sampled_from(["L1", "L3"]),
        st.sampled_from(["default", "team.a"]),
    ),
    st.sampled_from([note("pub", x=1), note("odd")]),
    st.none(),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.lists(ENTRIES, min_size=1, max_size=12), max_size=25), st.data())
def test_the_index_answers_as_plain_lists(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Entry | None]], data: Any
) -> None:
    log = Log(tmp_path_factory.mktemp("index"))
    for batch in batches:
        log.add(*batch)
        if data.draw(st.integers(0, 9)) == 0:
            log.index.close()
            log.index = log.opened()
            assert (log.index.covered, log.index.run) == (len(log.entries), log.run)
    log.check()


def test_lists_are_paged_and_names_come_by_first_line(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for n in range(50):
        log.add(record(n, thread=f"th_{n * 7 % 50}"))
    assert log.index.names("t:") == [f"t:th_{n * 7 % 50}" for n in range(50)]
    assert log.index.names("t:th_1", limit=3) == ["t:th_14", "t:th_13", "t:th_12"]
    assert log.index.names("t:", "t:th_never") == []
    pages, place = [], 0
    while page := log.index.after("n:default", place, 7):
        pages += [row.seq for row in page]
        place = page[-1].seq
    assert pages == list(range(1, 51))


def test_reserved_threads_are_in_no_namespace_list(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for n, thread in enumerate([*sorted(core_record.RESERVED_THREADS), "th_audit_federation_pairs", "th_aitl_open"]):
        log.add(record(n, thread=thread, origin="pair_1"))
    assert log.index.count("n:default") == log.index.tally("o:default:pair_1") == 1
    assert log.index.count("t:th_consent") == 1
    assert log.index.tally("rec") == 8


def test_ids_that_share_their_first_bytes_are_told_apart(tmp_path: Path) -> None:
    log = Log(tmp_path)
    ids = ["ab" * 8 + f"{n:048x}" for n in range(10)]
    for each in ids[:9]:
        payload = record(1).payload.replace(record(1).id.encode(), each.encode())
        log.add(Entry("rec", payload, ns="default", id=each, thread="t", actor="a", voucher="did:sync:instance:me"))
    assert [row.seq if (row := log.index.find(each, "default")) else 0 for each in ids] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        0,
    ]
    for odd in ("", "AB" * 32, "zz" * 32, "ab" * 31, " " * 64, "é" * 64):
        assert log.index.find(odd, "default") is None
        assert log.index.alternates(odd, "default") == []


def test_facts_survive_damage_to_the_line_that_first_had_them(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for n in range(12):
        log.add(record(n, origin="pair_1"))
    log.index.close()
    first = log.data.index(b"\n") + 1
    log.data = b"?" * (first - 1) + log.data[first - 1 :]
    log.index = log.opened()
    rows = log.index.after("n:default", 0, 20)
    assert [row.seq for row in rows] == list(range(2, 13))
    assert {row.origin for row in rows} == {"pair_1"}


def test_another_epoch_begins_a_new_index(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.add(*[record(n) for n in range(20)])
    log.index.close()
    other = Index(tmp_path, Disk(), "f" * 32, log.read, lambda size: bytes(size), memory_rows=4)
    assert other.covered == 0
    assert other.names("t:") == []
    assert list(tmp_path.iterdir()) == []


def test_the_next_clock_follows_the_highest_though_a_lower_one_came_last(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.add(*[record(n, thread="th_1", actor="did:a", clock=clock) for n, clock in enumerate([0, 5, 1, 2])])
    log.add(*[record(n, actor="did:b") for n in range(4, 20)])
    assert log.index.clock_next("default", "did:a", "th_1") == 6
    log.check()


def test_a_row_that_a_key_leads_to_can_be_read_at_once(tmp_path: Path) -> None:
    """A reader that finds the newest seq while the writer is still adding the batch finds its line, too."""
    store = open_store(tmp_path)
    missing: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            row = store.index.last("t:th_0")
            if row is not None and store.index.place(row.seq) is None:
                missing.append(f"seq {row.seq}")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(60):
            store.append([record(n * 50 + k, thread="th_0") for k in range(50)], AT_MS)
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(before)
        store.close()
    assert missing == []
