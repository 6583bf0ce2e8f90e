"""Adds lines to the index: a row for each, and its seq under the keys of its lists; the writer's thread only.

What the next lines are likely to share is remembered, each bounded: the keys of names, which lists there are, the facts
that rows point at, and where records of one namespace, thread and actor go.
"""

from hashlib import blake2b
from typing import Final, NamedTuple, TypeVar
from zlib import crc32

from ..segments import ENVELOPE_KINDS, PROJECTION, Entry, Place
from .compaction import Compaction, values_of
from .lists import (
    THREADS,
    THREADS_IN,
    LineFacts,
    all_of,
    clock_name,
    facts_name,
    is_offered,
    lists,
    projection_name,
    tallies,
)
from .rows import NO_START, ROW
from .sstable import KEY_BYTES, Memory

_CACHE_NAMES: Final = 8192
_CACHE_KEYS: Final = 32_768
_CACHE_FACTS: Final = 2048
_CACHE_WAYS: Final = 8192
_ODD: Final = 0x9E3779B97F4A7C15

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Way(NamedTuple):
    """Where records of one namespace, thread and actor go.

    `offered` as `is_offered`; the keys of their lists, and that of their clocks if they are our own, else b"".
    """

    offered: bool
    lists: tuple[bytes, ...]
    clocks: bytes


class Adder:
    """What is remembered from line to line, over the tables of one index."""

    def __init__(self, tables: Compaction, salt: bytes) -> None:
        self._tables, self._salt = tables, salt
        self._known: dict[str, bytes] = {}
        self._joined: dict[bytes, None] = {}
        self._sources: dict[LineFacts, tuple[int, tuple[bytes, ...]]] = {}
        self._ways: dict[tuple[str, str, str, bool], _Way] = {}

    def forget(self) -> None:
        """Remember nothing, because tables were dropped."""
        self._known.clear()
        self._joined.clear()
        self._sources.clear()
        self._ways.clear()

    def add(self, memory: Memory, seq: int, place: Place, entry: Entry) -> None:
        """Add a line to the newest lines."""
        kind = entry.kind
        facts = (kind, entry.ns, entry.origin, entry.voucher, entry.own)
        number, tallied = self._sources.get(facts) or self._source(facts, seq)
        way = self._ways.get((entry.ns, entry.thread, entry.actor, entry.own)) if kind == "rec" else None
        offered = way.offered if way else kind == "rec" and is_offered(entry)
        start = bytes.fromhex(entry.id[:32]) if kind in ENVELOPE_KINDS or kind == PROJECTION else NO_START
        # The row first: a reader that finds the seq under a key must find the row too.
        memory.rows += ROW.pack(
            place.segment, place.offset, place.head, place.length, number, entry.clock,
            start if offered or kind == PROJECTION else NO_START, crc32(entry.payload),
        )  # fmt: skip
        put, tallies = memory.put, memory.tallies
        if kind in ENVELOPE_KINDS:
            put(start[:KEY_BYTES], seq)
        way = way or self._way(entry, seq, offered)
        for key in way.lists:
            put(key, seq)
        for key in tallied if offered else tallied[:1]:
            tallies[key] = tallies.get(key, 0) + 1
        if kind == PROJECTION:
            put(self._hash(projection_name(entry.pair, entry.level, entry.id)), seq)
        if way.clocks:
            put(way.clocks, entry.clock)
            put(clock_key(way.clocks, entry.clock), seq)

    def _way(self, entry: Entry, seq: int, offered: bool) -> _Way:
        """Return where a line goes; for a record it is remembered, because the next one may be like it."""
        keys = tuple(self._known.get(name) or self._join(name, seq) for name in lists(entry))
        if entry.kind != "rec":
            return _Way(False, keys, b"")
        shared = (entry.ns, entry.thread, entry.actor, entry.own)
        clocks = self._hash(clock_name(entry.ns, entry.actor, entry.thread)) if entry.own else b""
        way = _Way(offered, keys, clocks)
        _remember(self._ways, shared, way, _CACHE_WAYS)
        return way

    def _join(self, name: str, seq: int) -> bytes:
        """Return the key of a list, after noting the list itself when this is its first line.

        There are lists for each thread, so of those only the key is remembered, at a third of the memory of a name; to
        look for each of them in the tables would double the cost of a line.
        """
        key = self._hash(name)
        if key not in self._joined:
            tables, memory = self._tables.state
            # The newest first: a list that was left out of the cache is most likely still young.
            if key not in memory.keys and not any(table.values(key, 0, 1) for table in reversed(tables)):
                every = all_of(name)
                memory.put(self._known.get(every) or self._remember_key(every), seq)
            _remember(self._joined, key, None, _CACHE_KEYS)
        if not name.startswith((THREADS, THREADS_IN)):
            _remember(self._known, name, key, _CACHE_NAMES)
        return key

    def _remember_key(self, name: str) -> bytes:
        key = self._hash(name)
        _remember(self._known, name, key, _CACHE_NAMES)
        return key

    def _source(self, facts: LineFacts, seq: int) -> tuple[int, tuple[bytes, ...]]:
        """Return (seq of the first line with these facts, keys of its tallies).

        Rows name that line instead of holding texts; so nothing about vouchers and origins is kept but in the log.
        """
        state = self._tables.state
        key = self._hash(facts_name(facts))
        first = values_of(state, key, 0, 1)
        if not first:
            state[1].put(key, seq)
        source = (first[0] if first else seq, tuple(self._hash("#" + name) for name in tallies(*facts[:4])))
        if len(self._sources) >= _CACHE_FACTS:
            self._sources.clear()
        self._sources[facts] = source
        return source

    def _hash(self, name: str) -> bytes:
        return key_of(name, self._salt)


def key_of(name: str, salt: bytes) -> bytes:
    """Return the key of a list, a tally or a clock: its name may be long and comes from outside."""
    return blake2b(name.encode(), digest_size=KEY_BYTES, key=salt).digest()


def clock_key(key: bytes, clock: int) -> bytes:
    """Return the key of one clock: the list's key, moved by the clock; saves a hash for each record."""
    return ((int.from_bytes(key, "big") + (clock + 1) * _ODD) % 2**64).to_bytes(8, "big")


def _remember(cache: dict[_K, _V], key: _K, value: _V, most: int) -> None:
    """Add to a cache, at the expense of what was added longest ago."""
    if len(cache) >= most:
        del cache[next(iter(cache))]
    cache[key] = value
