"""Fuzzing what lies in a home: log lines, whole logs at their opening, index tables."""

from contextlib import suppress
from pathlib import Path
from random import Random

from spl.home.disk import DiskError
from spl.home.recovery import StoreError
from spl.home.segments import Entry, LineError, chain, encode, encode_header, entry_of, header_of, parse, split
from spl.home.tables.sstable import Span, Table, TableFault, TableWriter, open_table
from tests.sim.disk import MemoryDisk
from tests.store_kit import AT_MS, contents, note, open_store, record, shown

from .target import Target

EPOCH = "2a" * 16
ENTRIES = (
    record(1),
    record(2, text="more"),
    note("pos", pair="pair_1", at=5),
    shown(3),
    note("ref", pair="pair_1", id="x"),
    record(4, origin="pair_1"),
    note("odd", a=1),
)
WORDS = (
    b"\n",
    b',"run":"',
    b'"env":',
    b'"body":',
    b'{"k":"rec",',
    b'"seq":',
    b"0" * 32,
    b"null",
    b"{}",
    b"[",
    b'"sig":',
    b"\0" * 40,
    b'"own":true',
    b'{"k":"head","format":1,',
    b"[" * 3000,
)


def log_text() -> bytes:
    """Return the bytes of a segment."""
    text, run = encode_header(EPOCH, 1, "0" * 32), "0" * 32
    for seq, entry in enumerate(ENTRIES, 1):
        line, run, _ = encode(entry, seq, AT_MS, run)
        text += line
    return text


class Lines(Target):
    """One line: it is read or refused as damaged; also if its running hash is right, as after a bug of our own."""

    name = "line"
    words = WORDS

    def corpus(self) -> list[bytes]:
        return [*super().corpus(), *log_text().splitlines()]

    def parse(self, data: bytes) -> None:
        with suppress(LineError):
            entry_of(parse(data))

    def check(self, data: bytes, dice: Random) -> None:
        with suppress(LineError):
            header_of(data)
        try:
            prefix, run, tail = split(data)
            line = parse(data)
        except LineError as exc:
            assert exc.code == "store-damaged"
            return
        assert prefix + b'"run":"' + run.encode() + b'",' + tail == data
        assert data.endswith(line.payload + b"}")
        assert len(chain("0" * 32, prefix, tail)) == 32
        try:
            entry = entry_of(line)
        except LineError as exc:
            assert exc.code == "store-damaged"
            return
        assert isinstance(entry, Entry)
        assert entry.payload == line.payload


class Logs(Target):
    """A whole log: whatever became of its bytes, nothing that was never written is in it, and it opens again."""

    name = "log"
    words = WORDS
    folder = Path("/home/store")
    steps = (60_000, 200)

    def corpus(self) -> list[bytes]:
        return [*super().corpus(), log_text()]

    def parse(self, data: bytes) -> None:
        self.opened(self.disk(data))

    def check(self, data: bytes, dice: Random) -> None:
        written = {entry.payload for entry in ENTRIES}
        disk = self.disk(data)
        found = self.opened(disk)
        if found is None:
            return
        assert {payload for _, payload in found} <= written, "a line that was never written is served"
        seqs = [seq for seq, _ in found]
        assert seqs == sorted(set(seqs))
        assert self.opened(disk) == found, "a second opening finds something else"

    def disk(self, data: bytes) -> MemoryDisk:
        disk = MemoryDisk(Random(0))
        disk.create(self.folder / f"{1:020d}.jsonl").write(data)
        return disk

    def opened(self, disk: MemoryDisk) -> list[tuple[int, bytes]] | None:
        """Return the lines of the log on a disk, None if it cannot be opened."""
        try:
            store = open_store(self.folder, disk)
        except (LineError, StoreError, DiskError) as exc:
            assert exc.code in ("store-newer", "store-damaged"), exc
            return None
        found = contents(store)
        for seq, payload in found:
            assert store.line(seq).payload == payload
        if not store.lost:
            store.append([], AT_MS)
        store.close()
        return found


class Tables(Target):
    """A table of the index: unless each byte is as it was written it does not open, and the index is built again."""

    name = "table"
    words = (b"\0" * 16, b"\xff" * 16, b'"format": 4', b'"rows": 3', b"null", b"1" * 30)
    steps = (4000, 5)

    def corpus(self) -> list[bytes]:
        made = []
        for count in (1, 40):
            disk, folder = MemoryDisk(Random(0)), Path("/home/index")
            writer = TableWriter(disk, folder, Span("e" * 32, "5" * 32, 1, 3, "0" * 32), 4, count, count)
            writer.add_rows(b"aaaabbbbcccc")
            writer.add_entries([n.to_bytes(8, "big") + bytes(8) for n in range(count)])
            made.append(bytes(disk.names[writer.finish().path].data))
        self.whole = frozenset(data[8:] for data in made)
        return [*super().corpus(), *made]

    def parse(self, data: bytes) -> None:
        self.opened(data)

    def check(self, data: bytes, dice: Random) -> None:
        table = self.opened(data)
        if table is not None:
            assert data[8:] in self.whole, "digits of the checksum may be capitals, and nothing else may differ"
            assert table.rows(2, 1) == b"bbbb"
            assert table.values(bytes(8), 0, 5) == [0]

    def opened(self, data: bytes) -> Table | None:
        disk = MemoryDisk(Random(0))
        path = Path("/home/index/x.table")
        disk.create(path).write(data)
        try:
            return open_table(disk, path, 4)
        except TableFault:
            return None
