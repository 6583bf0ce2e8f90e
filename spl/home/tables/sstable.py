"""Immutable sorted files that the index is made of: a row for each seq of a range, and sorted entries.

A table holds fixed-width rows for the seqs `first`..`last`, and 16-byte entries: an 8-byte key and an 8-byte
value, both big-endian, sorted as bytes, duplicates kept.  Layout:

    header, 512 bytes: 8 hex CRC-32 of the rest, a space, JSON (what the table covers, and the CRC-32 of each part)
    rows      one for each seq
    entries   sorted
    fence     the first entry of each block of 512
    filter    a bitmap, 8 to 16 bits a key, with two bits of each key in the 64 bytes that its leading bits pick (a
              blocked Bloom filter): of absent keys 1.5 to 5 % look present, where one bit a key let 6 to 12 % through

Nothing is synced: a table that a power loss or anything else left wrong fails its checksums at open, and is built
again from the log.  It never changes after that, so readers need no lock and a merge can be given up at any time.
In memory stands only the fence, 16 bytes for 512 entries; the filter is mapped, about 5 bytes for each line.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from ...core.value import asdict, dataclass, field
from ..disk import TEMP_SUFFIX, Disk, File
from ..segments import LineError

FORMAT: Final = 5
"""Rises with the layout and with what the index writes into it; an older table is dropped and built again."""
SUFFIX: Final = ".table"
NEXT_PREFIX: Final = "next-"
"""Begins the names of tables that are to replace all others, until they do; an opening knows none of these."""
ENTRY_BYTES: Final = 16
KEY_BYTES: Final = 8

_HEAD_BYTES: Final = 512
_BLOCK_ENTRIES: Final = 512
_BLOCK_BYTES: Final = _BLOCK_ENTRIES * ENTRY_BYTES
_BUFFER_BYTES: Final = 128 * 1024
_LAST_VALUE: Final = b"\xff" * 8
_ENTRY: Final = Struct(">8sQ")
_VALUE: Final = Struct(">8xQ")
_FILTERED: Final = Struct(">IH2x")
_FILTER_BLOCK_BYTES: Final = 64
_FILTER_BLOCK_MASK: Final = 8 * _FILTER_BLOCK_BYTES - 1
_BLOCK: Final = Struct(f"{ENTRY_BYTES}s" * _BLOCK_ENTRIES)


class TableFault(Exception):
    """The file is not a whole table; the index drops it and builds another."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a table covers: seqs first..last of the log with this epoch, the running hash at last, the key salt."""

    epoch: str
    salt: str
    first: int
    last: int
    run: str


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of the parts: bytes of a row, entries, and leading key bits that pick a first bit of the filter."""

    row_bytes: int
    rows: int
    entries: int
    filter_bits: int

    def parts(self) -> tuple[int, int, int, int]:
        """Return the sizes in bytes of rows, entries, fence and filter."""
        blocks = -(-self.entries // _BLOCK_ENTRIES)
        return (
            self.rows * self.row_bytes,
            self.entries * ENTRY_BYTES,
            blocks * ENTRY_BYTES,
            (1 << self.filter_bits) // 8,
        )


class Table:
    """An open table.  Every method may run in many threads at once."""

    __slots__ = ("_entries_at", "_fence", "_file", "_filter", "_shift", "keys", "path", "shape", "span", "unread")

    def __init__(self, file: File, path: Path, span: Span, shape: _Shape, keys: int, fence: bytes) -> None:
        self.path, self.span, self.shape, self.keys = path, span, shape, keys
        self.unread = False
        """Whether the disk failed to read it since it was opened."""
        self._file, self._fence = file, fence
        rows, entries, fenced, filtered = shape.parts()
        self._entries_at = _HEAD_BYTES + rows
        # Mapped, because looking for an unknown id asks each table's filter: 0.4 us instead of 2 with pread.
        self._filter = file.map(filtered, self._entries_at + entries + fenced)
        self._shift = 32 - shape.filter_bits

    def rows(self, first: int, count: int) -> bytes:
        """Return the rows of `count` seqs from `first` on; all must be covered."""
        width = self.shape.row_bytes
        return self._read(count * width, _HEAD_BYTES + (first - self.span.first) * width)

    def has(self, key: bytes) -> bool:
        """Return whether the key may be here; False is certain."""
        marks, slot = self._filter, int.from_bytes(key[:4], "big") >> self._shift
        if not marks[slot >> 3] >> (slot & 7) & 1:
            return False
        slot = slot & ~_FILTER_BLOCK_MASK | (key[4] << 8 | key[5]) & _FILTER_BLOCK_MASK
        return marks[slot >> 3] >> (slot & 7) & 1 == 1

    def values(self, key: bytes, low: int, limit: int) -> list[int]:
        """Return up to `limit` values of the key from `low` on, ascending."""
        if not self.has(key):
            return []
        block, data, at = self._seek(key + low.to_bytes(8, "big"))
        found: list[int] = []
        while len(found) < limit:
            if at * ENTRY_BYTES == len(data):
                block, data, at = block + 1, self._block(block + 1), 0
            if not data.startswith(key, at * ENTRY_BYTES):
                break
            end = bisect_right(_entries(data), key + _LAST_VALUE, at, key=lambda i: data[i : i + 16])
            found.extend(value for (value,) in _VALUE.iter_unpack(data[at * ENTRY_BYTES : end * ENTRY_BYTES]))
            at = end
        return found[:limit]

    def newest(self, key: bytes, end: int, limit: int) -> list[int]:
        """Return up to `limit` values of the key below `end`, the highest there are, ascending."""
        if not self.has(key):
            return []
        stop = self._position(key + end.to_bytes(8, "big"))
        start = max(self._position(key + bytes(8)), stop - limit)
        data = self._read((stop - start) * ENTRY_BYTES, self._entries_at + start * ENTRY_BYTES)
        return [value for (value,) in _VALUE.iter_unpack(data)]

    def count(self, key: bytes) -> int:
        """Return the number of entries with the key."""
        if not self.has(key):
            return 0
        return self._end(key) - self._position(key + bytes(8))

    def last(self, key: bytes) -> int | None:
        """Return the highest value of the key."""
        end = self._end(key) if self.has(key) else 0
        if not end:
            return None
        entry = self._read(ENTRY_BYTES, self._entries_at + (end - 1) * ENTRY_BYTES)
        return int.from_bytes(entry[KEY_BYTES:], "big") if entry.startswith(key) else None

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield all entries, in lists of up to 512."""
        for block in range(-(-self.shape.entries // _BLOCK_ENTRIES)):
            data = self._block(block)
            yield list(_BLOCK.unpack(data)) if len(data) == _BLOCK_BYTES else cut(data)

    def _read(self, size: int, offset: int) -> bytes:
        """Return bytes of the file.  Raises LineError "store-damaged"."""
        try:
            return self._file.pread(size, offset)
        except OSError as exc:
            self.unread = True
            raise LineError("store-damaged", f"the index cannot be read: {exc.strerror or exc}") from exc

    def _block(self, block: int) -> bytes:
        """Return a block of entries, empty behind the last one."""
        start = block * _BLOCK_ENTRIES
        count = max(0, min(_BLOCK_ENTRIES, self.shape.entries - start))
        return self._read(count * ENTRY_BYTES, self._entries_at + start * ENTRY_BYTES)

    def _seek(self, entry: bytes) -> tuple[int, bytes, int]:
        """Return (block, its bytes, place in it) of the first entry not lower, or the end of the block before it."""
        fence = self._fence
        block = max(0, bisect_left(_entries(fence), entry, key=lambda i: fence[i : i + 16]) - 1)
        data = self._block(block)
        return block, data, bisect_left(_entries(data), entry, key=lambda i: data[i : i + 16])

    def _position(self, entry: bytes) -> int:
        """Return how many entries are lower than `entry`."""
        block, _, at = self._seek(entry)
        return block * _BLOCK_ENTRIES + at

    def _end(self, key: bytes) -> int:
        """Return how many entries are not above the key's; no value is 2^64-1."""
        return self._position(key + _LAST_VALUE)


def open_table(disk: Disk, path: Path, row_bytes: int) -> Table:
    """Return the table in a file after checking every byte of it.  Raises TableFault, OSError."""
    file = disk.open_read(path)
    head = file.pread(_HEAD_BYTES, 0)
    try:
        if len(head) != _HEAD_BYTES or int(head[:8], 16) != crc32(head[8:]):
            raise TableFault("header")
        value = json.loads(head[8:])
        if value["format"] != FORMAT or value["shape"]["row_bytes"] != row_bytes:
            raise TableFault("format")
        span, shape = Span(**value["span"]), _Shape(**value["shape"])
    except (ValueError, KeyError, TypeError) as exc:
        raise TableFault("header") from exc
    sizes = shape.parts()
    if file.size() != _HEAD_BYTES + sum(sizes) or shape.rows != span.last - span.first + 1:
        raise TableFault("size")
    offset = _HEAD_BYTES
    for size, expected in zip(sizes, value["crc"], strict=True):
        if _crc(file, offset, size) != expected:
            raise TableFault("checksum")
        offset += size
    fence = file.pread(sizes[2], _HEAD_BYTES + sizes[0] + sizes[1])
    return Table(file, path, span, shape, value["keys"], fence)


@dataclass(slots=True)
class Memory:
    """What is in no table yet: rows from seq `first` on, entries, and tallies (entries summed up by key).

    One thread adds; others may read meanwhile, because each single step leaves it whole.
    """

    first: int
    rows: bytearray = field(default_factory=bytearray)
    keys: dict[bytes, int | list[int]] = field(default_factory=dict)
    tallies: dict[bytes, int] = field(default_factory=dict)

    def put(self, key: bytes, value: int) -> None:
        """Add an entry.  Most keys have one value, and a bare int takes a third of a list."""
        have = self.keys.get(key)
        if have is None:
            self.keys[key] = value
        elif isinstance(have, int):
            self.keys[key] = [have, value]
        else:
            have.append(value)

    def values(self, key: bytes) -> list[int]:
        """Return the key's values in order of arrival; not to be changed."""
        have = self.keys.get(key)
        return [] if have is None else [have] if isinstance(have, int) else have

    @property
    def count(self) -> int:
        """How many entries there are."""
        lists = [have for have in self.keys.values() if isinstance(have, list)]
        return len(self.keys) - len(lists) + sum(map(len, lists)) + len(self.tallies)

    def entries(self, count: int) -> Iterator[list[bytes]]:
        """Yield all entries, sorted, by `count`; all at once would take more memory than what they are made of."""
        pack, piece = _ENTRY.pack, list[bytes]()
        for key in sorted(self.keys.keys() | self.tallies.keys()):
            values, tally = self.values(key), self.tallies.get(key)
            # Seqs came in order; clocks need not, as a client may name a lower one than the last.
            for value in sorted(values if tally is None else [*values, tally]):
                piece.append(pack(key, value))
                if len(piece) == count:
                    yield piece
                    piece = []
        yield piece


class TableWriter:
    """Writes one table from rows and entries that come in order; `finish` gives it its name, after a prefix."""

    def __init__(
        self, disk: Disk, folder: Path, span: Span, row_bytes: int, entries: int, keys_max: int, prefix: str = ""
    ) -> None:
        """Make room for exactly `entries` entries; `keys_max` bounds the distinct keys and sizes the filter."""
        self._disk, self._span, self._keys = disk, span, keys_max
        filter_bits = max(_FILTER_BLOCK_MASK.bit_length(), (keys_max * 8 - 1).bit_length())
        self._shape = _Shape(row_bytes, span.last - span.first + 1, entries, min(filter_bits, 32))
        self.path = folder / f"{prefix}{span.first:020d}-{span.last:020d}{SUFFIX}"
        self._temp = self.path.with_name(self.path.name + TEMP_SUFFIX)
        self._file = disk.create(self._temp)
        offset, parts = _HEAD_BYTES, []
        for size in self._shape.parts():
            parts.append(_Part(self._file, offset))
            offset += size
        self._rows, self._entries, self._fence, self._filter = parts
        self._fenced = bytearray()
        self._count = 0

    def add_rows(self, data: bytes) -> None:
        """Add rows."""
        self._rows.add(data)

    def add_entries(self, entries: Sequence[bytes]) -> None:
        """Add entries, each not lower than the one before."""
        ahead = -self._count % _BLOCK_ENTRIES
        fenced = b"".join(entries[ahead::_BLOCK_ENTRIES])
        self._fence.add(fenced)
        self._fenced += fenced
        self._count += len(entries)
        self._entries.add(b"".join(entries))
        shift, mark = 32 - self._shape.filter_bits, self._filter.mark
        for lead, other in map(_FILTERED.unpack, dict.fromkeys([entry[:KEY_BYTES] for entry in entries])):
            mark(lead >> shift, other & _FILTER_BLOCK_MASK)

    def finish(self) -> Table:
        """Return the finished table, now under its own name."""
        assert self._count == self._shape.entries
        sizes = self._shape.parts()
        self._filter.pad(sizes[3])
        crcs = [part.flush() for part in (self._rows, self._entries, self._fence, self._filter)]
        text = json.dumps(
            {
                "format": FORMAT,
                "span": asdict(self._span),
                "shape": asdict(self._shape),
                "keys": self._keys,
                "crc": crcs,
            }
        )
        head = f" {text}".ljust(_HEAD_BYTES - 8).encode()
        self._file.pwrite(b"%08x%b" % (crc32(head), head), 0)
        self._disk.rename(self._temp, self.path)
        return Table(self._file, self.path, self._span, self._shape, self._keys, bytes(self._fenced))

    def give_up(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._disk.unlink(self._temp)


def cut(data: bytes) -> list[bytes]:
    """Return the entries in `data` one by one."""
    return [data[i : i + ENTRY_BYTES] for i in range(0, len(data), ENTRY_BYTES)]


def load(disk: Disk, folder: Path, row_bytes: int, epoch: str) -> list[Table]:
    """Return the tables that cover the log of this epoch without gap from its start; remove all other files."""
    found: dict[int, list[tuple[int, str]]] = {}
    names = disk.list(folder)
    for name in names:
        first, _, last = name.removesuffix(SUFFIX).partition("-")
        if name.endswith(SUFFIX) and len(first) == len(last) == 20 and (first + last).isdigit():
            found.setdefault(int(first), []).append((int(last), name))
    tables: list[Table] = []
    seq = 1
    # A merge that was cut short leaves its sources beside the result; the longer one is tried first.
    while candidates := found.get(seq):
        longest = max(candidates)
        candidates.remove(longest)
        with suppress(TableFault, OSError):
            table = open_table(disk, folder / longest[1], row_bytes)
            if (
                table.span.epoch == epoch
                and table.span.first == seq
                and (not tables or table.span.salt == tables[0].span.salt)
            ):
                tables.append(table)
                seq = table.span.last + 1
    for name in set(names) - {table.path.name for table in tables}:
        if name.endswith((SUFFIX, TEMP_SUFFIX)):
            disk.unlink(folder / name)
    return tables


class _Part:
    """One part of a file being written: buffered, with its checksum."""

    __slots__ = ("_at", "_bits_at", "_buffer", "_crc", "_file")

    def __init__(self, file: File, offset: int) -> None:
        self._file, self._at, self._bits_at, self._crc = file, offset, 0, 0
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            self.flush()

    def mark(self, slot: int, other: int) -> None:
        """Set the bit `slot` and the bit `other` of its block; slots come ascending, so earlier blocks are final."""
        buffer, byte = self._buffer, (slot >> 3) - self._bits_at
        if byte >= len(buffer):
            if byte >= _BUFFER_BYTES:
                self._bits_at += len(buffer)
                byte -= len(buffer)
                self.flush()
            buffer.extend(bytes((byte | _FILTER_BLOCK_BYTES - 1) + 1 - len(buffer)))
        buffer[byte] |= 1 << (slot & 7)
        buffer[byte & -_FILTER_BLOCK_BYTES | other >> 3] |= 1 << (other & 7)

    def pad(self, size: int) -> None:
        """Fill up with zeros to `size` bytes in all."""
        self._buffer.extend(bytes(size - self._bits_at - len(self._buffer)))

    def flush(self) -> int:
        """Write out the buffer; return the CRC-32 of all so far."""
        if self._buffer:
            data = bytes(self._buffer)
            self._file.pwrite(data, self._at)
            self._crc = crc32(data, self._crc)
            self._at += len(data)
            self._buffer.clear()
        return self._crc


def _entries(data: bytes) -> range:
    """Return the offsets of the entries in `data`, for bisect."""
    return range(0, len(data), ENTRY_BYTES)


def _crc(file: File, offset: int, size: int) -> int:
    crc, end = 0, offset + size
    while offset < end:
        data = file.pread(min(_BUFFER_BYTES * 8, end - offset), offset)
        if not data:
            raise TableFault("short")
        crc = crc32(data, crc)
        offset += len(data)
    return crc
