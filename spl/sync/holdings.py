"""What the two sides of a pair should both hold, as one of them sees it: the sets that `reconcile.py` compares.

    held      what we offer in full, and what the peer delivered or signed in the namespaces shared in full
    shown     what we offer as projections, by the names that they travel under
    seen      projections that the peer showed us

Our `held` are compared with the peer's, our `shown` with its `seen`.  Nothing else that we hold is in any of them,
so whatever the peer asks, it learns of nothing that this pair does not share.

A set is never held in memory: it goes by, a piece of the log at a time, as the starts of its names.  A million lines
take half a second, unless a rule of the pair's filter or a pseudonym needs each record read.
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..core.consent import Outbound
from ..core.record import filter as filters
from ..core.record.filter import PairFilter
from ..core.record.fingerprint import (
    DEPTH,
    KEY_BYTES,
    LISTED_MAX,
    OPPOSITE,
    SEEN,
    SHOWN,
    START_BYTES,
    Buckets,
    Collector,
    RangePart,
)
from ..core.record.levels import EXACT, STRUCTURAL
from ..home.index import NO_START, Facts, Row
from ..home.log import Log
from ..home.segments import PROJECTION

OWN_LISTED_MAX: Final = 20_000
"""Names of our own that are looked at in a range where the other side has few."""
PIECE_LINES: Final = 2048
"""So many lines go by before other threads may run."""

_NEVER: Final = 0
_LATER: Final = 1  # from the pair's start on
_ALWAYS: Final = 2
_READ: Final = 3  # from the pair's start on, if the record says so


class Scope(Protocol):
    """What a pair may read, as the feed goes by (lanes.py)."""

    @property
    def shares(self) -> Mapping[str, Outbound]:
        """What goes out of each of our namespaces."""

    @property
    def filter(self) -> PairFilter:
        """The filter that holds now."""

    @property
    def origins(self) -> frozenset[str]:
        """The pair, and those that it inherits from."""

    @property
    def peer_did(self) -> str:
        """The peer."""

    @property
    def own_did(self) -> str:
        """Ourselves."""

    @property
    def floor(self) -> int:
        """The line after which the pair starts."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The terms of one pair, and the line up to which they hold.

    `received` are our namespaces that take in the peer's records, each with its name there; `pseudonym` gives the name
    that an id travels under from L2 on.  `last_seq` was read before the rest, so that nothing counts that was written
    after something was withdrawn.
    """

    scope: Scope
    received: Mapping[str, str]
    last_seq: int = field(compare=False)
    pseudonym: Callable[[str], str] = field(compare=False)

    def offers(self, store: Log, row: Row) -> bool:
        """Tell whether we offer a record in full."""
        facts = facts_of(row)
        verdict = self._offer(facts, EXACT)
        is_late = self.scope.floor < row.seq <= self.last_seq
        return is_late and (verdict == _LATER or (verdict == _READ and self._admits(store, facts, row)))

    def verdict(self, name: str, facts: Facts) -> int:
        """Return whether lines with these facts are in a set."""
        kind, ns, origin, voucher, _ = facts
        if name == SEEN:
            return _ALWAYS if kind == PROJECTION and origin in self.scope.origins else _NEVER
        if kind != "rec":
            return _NEVER
        level = self.level(ns)
        from_peer = origin in self.scope.origins or voucher == self.scope.peer_did
        if name == SHOWN:
            return self._offer(facts, level) if level > EXACT and not from_peer else _NEVER
        return _ALWAYS if from_peer and (ns in self.received or level == EXACT) else self._offer(facts, EXACT)

    def holds(self, store: Log, name: str, row: Row) -> bool:
        """Tell whether a line is in a set."""
        facts = facts_of(row)
        verdict = self.verdict(name, facts)
        if verdict in (_NEVER, _ALWAYS) or not self.scope.floor < row.seq <= self.last_seq:
            return verdict == _ALWAYS and row.seq <= self.last_seq
        return verdict == _LATER or self._admits(store, facts, row)

    def is_empty(self, store: Log, name: str) -> bool:
        """Tell whether a set certainly holds nothing, without looking at lines."""
        if name == SEEN:
            return not any(store.index.count(f"x:{origin}") for origin in self.scope.origins)
        return name == SHOWN and all(share.level == EXACT for share in self.scope.shares.values())

    def name(self, store: Log, facts: Facts, row: Row) -> bytes:
        """Return the start of the name that a record travels under, NO_START where the filter leaves it out."""
        if not self._admits(store, facts, row):
            return NO_START
        id_ = json.loads(store.payloads([row])[0])["id"]
        return bytes.fromhex((id_ if self.level(row.ns) <= STRUCTURAL else self.pseudonym(id_))[: 2 * START_BYTES])

    def label(self, ns: str) -> str:
        """Return a namespace of ours as the peer calls it."""
        share = self.scope.shares.get(ns)
        return share.peer_ns if share is not None else self.received.get(ns, ns)

    def level(self, ns: str) -> int:
        """Return the level at which a namespace goes out, -1 when it does not."""
        share = self.scope.shares.get(ns)
        return -1 if share is None else share.level

    def _offer(self, facts: Facts, level: int) -> int:
        kind, ns, _, voucher, _ = facts
        if kind != "rec" or self.level(ns) != level:
            return _NEVER
        if voucher != self.scope.own_did and not self.scope.filter.relay:
            return _NEVER
        return _READ if self.scope.filter.reads_records or level > STRUCTURAL else _LATER

    def _admits(self, store: Log, facts: Facts, row: Row) -> bool:
        _, ns, _, voucher, _ = facts
        record = json.loads(store.payloads([row])[0])["record"]
        return self.scope.filter.admits(filters.facts_of(record, ns, voucher), voucher != self.scope.own_did)


class Holdings:
    """Our sets of one pair at one moment, under the key of one comparison; for one thread at a time."""

    def __init__(self, store: Log, shared: Shared, key: str) -> None:
        self.store, self.shared, self.key = store, shared, key
        self._sets: dict[str, tuple[Buckets, dict[str, int]]] = {}

    def prepare(self) -> None:
        """Reckon all sets now."""
        for name in OPPOSITE:
            self._set(name)

    def counts(self, name: str) -> dict[str, int]:
        """Return how many names a set has, by our namespace."""
        return self._set(name)[1]

    def counts_told(self, name: str) -> dict[str, int]:
        """Return how many names a set has, by namespace as the peer calls it."""
        return {self.shared.label(ns): count for ns, count in self.counts(name).items()}

    def parts(self, name: str, ranges: Sequence[str], theirs: Sequence[RangePart] = ()) -> tuple[RangePart, ...]:
        """Return what stands in each range: in sums or names as `theirs` is, else names where there are few."""
        buckets, _ = self._set(name)
        likes = dict(zip(ranges, theirs, strict=True)) if theirs else {}
        found: dict[str, RangePart] = {}
        collectors: dict[str, Collector] = {}
        for digits in dict.fromkeys(ranges):
            few = len(digits) >= DEPTH or buckets.count(digits) <= LISTED_MAX
            if len(digits) < DEPTH and (bool(likes[digits].sums) if likes else not few):
                found[digits] = RangePart(buckets.sums(digits))
            else:
                collectors[digits] = Collector(buckets.key, digits, OWN_LISTED_MAX if likes else LISTED_MAX)
        if collectors:
            self._collect(name, buckets, list(collectors.values()))
        for digits, each in collectors.items():
            sums = bool(likes[digits].sums) if likes else each.count > LISTED_MAX and len(digits) < 2 * START_BYTES
            found[digits] = each.part(sums=sums)
        return tuple(found[digits] for digits in ranges)

    def find(self, name: str, start: str) -> tuple[Row, str] | None:
        """Return the record in a set whose name begins so, with its id; None for what has no id to be found by."""
        found = self.store.index.starting(bytes.fromhex(start))
        return next(((row, id_) for row, id_ in found if self._goes_by_id(name, row)), None)

    def _goes_by_id(self, name: str, row: Row) -> bool:
        """Tell whether a line is in a set under the id of its record; where pseudonyms travel, no id is confirmed."""
        if name == SHOWN and self.shared.level(row.ns) > STRUCTURAL:
            return False
        return self.shared.holds(self.store, name, row)

    def _set(self, name: str) -> tuple[Buckets, dict[str, int]]:
        if name not in self._sets:
            buckets, sweep = Buckets(self.key), Sweep(self.store, self.shared, name)
            for piece in sweep.pieces():
                buckets.add(piece)
            self._sets[name] = buckets, sweep.counts()
        return self._sets[name]

    def _collect(self, name: str, buckets: Buckets, collectors: Sequence[Collector]) -> None:
        """Let a set go by once, past all of them."""
        near: dict[bytes, list[Collector]] = {}
        for each in collectors:
            for head in buckets.heads(each.digits):
                near.setdefault(head, []).append(each)
        if not near:
            return
        for piece in Sweep(self.store, self.shared, name).pieces(near):
            for start in piece:
                for each in near.get(start[:KEY_BYTES], ()):
                    each.add(start)


class Sweep:
    """One set going by."""

    def __init__(self, store: Log, shared: Shared, name: str) -> None:
        self._store, self._shared, self._name = store, shared, name
        self._verdicts = _Verdicts(store, shared, name)
        self._counter: Counter[int] = Counter()

    def pieces(self, heads: Container[bytes] | None = None) -> Iterator[list[bytes]]:
        """Yield the starts of the set's names; with `heads` at least those that begin with one of them."""
        if self._name == SHOWN:
            heads = None  # a pseudonym begins otherwise than the id that it stands for
        if self._shared.is_empty(self._store, self._name):
            return
        seq, verdicts, floor, last_seq = 1, self._verdicts, self._shared.scope.floor, self._shared.last_seq
        while seq <= last_seq:
            is_late = seq > floor
            end = last_seq if is_late else min(floor, last_seq)
            marks = self._store.index.marks(seq, min(PIECE_LINES, end + 1 - seq))
            least = _LATER if is_late else _ALWAYS
            near = marks if heads is None else [mark for mark in marks if mark[1][:KEY_BYTES] in heads]
            taken = [mark for mark in near if least <= verdicts[mark[0]] <= _ALWAYS and mark[1] != NO_START]
            if is_late and verdicts.reads:
                taken += self._read(seq, marks, heads)
            self._counter.update(number for number, _ in taken)
            yield [start for _, start in taken]
            seq += len(marks)

    def counts(self) -> dict[str, int]:
        """Return how many names went by, by our namespace."""
        found: dict[str, int] = {}
        for number, count in self._counter.items():
            facts = self._store.index.facts(number, number)
            if facts is not None:
                found[facts[1]] = found.get(facts[1], 0) + count
        return found

    def _read(
        self, first: int, marks: Sequence[tuple[int, bytes]], heads: Container[bytes] | None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (facts' number, start of the name) of those records that have to be read for it."""
        for seq, (number, start) in enumerate(marks, first):
            if heads is not None and start[:KEY_BYTES] not in heads:
                continue
            facts = self._store.index.facts(number, seq) if self._verdicts[number] == _READ else None
            place = self._store.index.place(seq)
            if facts is None or place is None or start == NO_START:
                continue
            kind, ns, origin, voucher, own = facts
            at = place.offset + place.head
            row = Row(seq, kind, place.segment, at, place.length, ns, origin, voucher, own, 0)
            name = self._shared.name(self._store, facts, row)
            if name != NO_START:
                yield number, name


def facts_of(row: Row) -> Facts:
    """Return the facts of a line."""
    return row.kind, row.ns, row.origin, row.voucher, row.own


class _Verdicts(dict[int, int]):
    """Number of facts -> verdict, found at the first line with them; there are few."""

    def __init__(self, store: Log, shared: Shared, name: str) -> None:
        super().__init__({0: _NEVER})
        self._store, self._shared, self._name = store, shared, name
        self.reads = False

    def __missing__(self, number: int) -> int:
        # The line that the number names had them first; where it is damaged, its likes are compared one by one.
        facts = self._store.index.facts(number, number)
        verdict = _NEVER if facts is None else self._shared.verdict(self._name, facts)
        self.reads = self.reads or verdict == _READ
        self[number] = verdict
        return verdict
