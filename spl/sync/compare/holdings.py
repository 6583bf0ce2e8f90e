"""What both sides of a pair should hold, as one of them sees it: the sets that `reconcile.py` compares.

    held      what we offer in full, and what the peer delivered or signed in the namespaces shared in full
    shown     what we offer as projections, by the names that they have at the peer
    seen      projections that the peer showed us

Our `held` are compared with the peer's, our `shown` with its `seen`.  Nothing else that we hold is in any of them, so
whatever the peer asks, it learns nothing that this pair does not share.

A set is never in memory as a whole.  It is scanned a piece of the log at a time, as the first bytes of its names, and
only sums and counts by range are kept (`Buckets`).  The index has those bytes and a number for each distinct
combination of facts, so a line costs one lookup of an integer: a million lines take half a second, unless a rule of the
pair's filter or a pseudonym makes each record be read.  Keeping sums up to date at each commit was rejected: each pair
has its own key and terms, so every write would pay for comparisons that are never requested.
"""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final

from ...core import consent
from ...core.record import filter as filters
from ...core.record.fingerprint import (
    DEPTH,
    KEY_BYTES,
    LISTED_MAX,
    OPPOSITE,
    SEEN,
    SHOWN,
    START_BYTES,
    Collector,
    RangeBuckets,
    RangePart,
)
from ...core.record.levels import EXACT, STRUCTURAL
from ...core.value import dataclass, field
from ...home.index import Row
from ...home.log import Log
from ...home.segments import PROJECTION
from ...home.tables.lists import LineFacts, projections_of
from ...home.tables.rows import NO_START
from ..scope import Scope
from ..source import OutgoingForm, Source

OWN_LISTED_MAX: Final = 20_000
"""Our own names that are listed for a range in which the other side has few."""
PIECE_LINES: Final = 2048
"""Lines scanned before other threads get a turn."""

_NEVER: Final = 0
_LATER: Final = 1  # from the pair's start on
_ALWAYS: Final = 2
_READ: Final = 3  # from the pair's start on, if the record's content allows


@dataclass(frozen=True, slots=True)
class PairTerms:
    """What one pair shares both ways, and the line up to which that holds.

    `received` are our namespaces that take in the peer's records, each with its name there; `outgoing` has the names of
    ids from L2 on.  `last_seq` was read before the rest, so a record written after a withdrawal is in no set.
    """

    scope: Scope
    received: Mapping[str, str]
    last_seq: int = field(compare=False)
    outgoing: OutgoingForm = field(compare=False)
    pair_id: str

    def offers(self, store: Log, row: Row) -> bool:
        """Return whether we offer a record in full."""
        facts = facts_of(row)
        verdict = self._offer(facts, EXACT)
        is_late = self.scope.floor < row.seq <= self.last_seq
        return is_late and (verdict == _LATER or (verdict == _READ and self._admits(store, facts, row)))

    def verdict(self, name: str, facts: LineFacts) -> int:
        """Return whether lines with these facts are in a set: one of _NEVER, _LATER, _ALWAYS, _READ."""
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
        """Return whether a line is in a set."""
        facts = facts_of(row)
        verdict = self.verdict(name, facts)
        if verdict in (_NEVER, _ALWAYS) or not self.scope.floor < row.seq <= self.last_seq:
            return verdict == _ALWAYS and row.seq <= self.last_seq
        return verdict == _LATER or self._admits(store, facts, row)

    def is_empty(self, store: Log, name: str) -> bool:
        """Return whether a set is empty for certain, without scanning lines."""
        if name == SEEN:
            return not any(store.index.count(projections_of(origin)) for origin in self.scope.origins)
        return name == SHOWN and all(share.level == EXACT for share in self.scope.shares.values())

    def name(self, store: Log, facts: LineFacts, row: Row) -> bytes:
        """Return the start of the name that a record has at the peer, NO_START if the filter leaves it out."""
        entry = _entry(store, row)
        if entry is None or not self._admits_record(facts, entry["record"]):
            return NO_START
        id_ = entry["id"]
        name = id_ if self.level(row.ns) <= STRUCTURAL else self.outgoing.pseudonym(self.pair_id, id_)
        return bytes.fromhex(name[: 2 * START_BYTES])

    def label(self, ns: str) -> str:
        """Return a namespace of ours as the peer calls it."""
        share = self.scope.shares.get(ns)
        return share.peer_ns if share is not None else self.received.get(ns, ns)

    def level(self, ns: str) -> int:
        """Return the level at which a namespace is shared, -1 if it is not."""
        share = self.scope.shares.get(ns)
        return -1 if share is None else share.level

    def _offer(self, facts: LineFacts, level: int) -> int:
        kind, ns, _, voucher, _ = facts
        if kind != "rec" or self.level(ns) != level:
            return _NEVER
        if voucher != self.scope.own_did and not self.scope.filter.relay:
            return _NEVER
        return _READ if self.scope.filter.reads_records or level > STRUCTURAL else _LATER

    def _admits(self, store: Log, facts: LineFacts, row: Row) -> bool:
        entry = _entry(store, row)
        return entry is not None and self._admits_record(facts, entry["record"])

    def _admits_record(self, facts: LineFacts, record: Mapping[str, Any]) -> bool:
        _, ns, _, voucher, _ = facts
        return self.scope.filter.admits(filters.fields_of(record, ns, voucher), voucher != self.scope.own_did)


class Holdings:
    """Our sets of one pair at one moment, for the key of one comparison; for one thread at a time."""

    def __init__(self, store: Log, terms: PairTerms, key: str) -> None:
        self.store, self.terms, self.key = store, terms, key
        self._sets: dict[str, tuple[RangeBuckets, dict[str, int]]] = {}
        self._abandoned = False

    def abandon(self) -> None:
        """End a scan that runs in another thread, within PIECE_LINES lines; it raises CancelledError there."""
        self._abandoned = True

    def prepare(self) -> None:
        """Compute all sets now."""
        for name in OPPOSITE:
            self._set(name)

    def counts(self, name: str) -> dict[str, int]:
        """Return how many names a set has, by our namespace."""
        return self._set(name)[1]

    def counts_for_peer(self, name: str) -> dict[str, int]:
        """Return how many names a set has, by namespace as the peer calls it."""
        return {self.terms.label(ns): count for ns, count in self.counts(name).items()}

    def parts(self, name: str, ranges: Sequence[str], theirs: Sequence[RangePart] = ()) -> tuple[RangePart, ...]:
        """Return the content of each range: sums or names as `theirs` has, otherwise names if there are few."""
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
        """Return the record in a set whose name begins so, with its id; None if it may not be found by its id."""
        found = self.store.index.starting(bytes.fromhex(start))
        return next(((row, id_) for row, id_ in found if self._is_named_by_id(name, row)), None)

    def _is_named_by_id(self, name: str, row: Row) -> bool:
        """Return whether a line is in a set under its record's id; in a set of pseudonyms no id is confirmed."""
        if name == SHOWN and self.terms.level(row.ns) > STRUCTURAL:
            return False
        return self.terms.holds(self.store, name, row)

    def _set(self, name: str) -> tuple[RangeBuckets, dict[str, int]]:
        if name not in self._sets:
            buckets, scan = RangeBuckets(self.key), SetScan(self.store, self.terms, name)
            for piece in self._until_abandoned(scan.pieces()):
                buckets.add(piece)
            self._sets[name] = buckets, scan.counts()
        return self._sets[name]

    def _collect(self, name: str, buckets: RangeBuckets, collectors: Sequence[Collector]) -> None:
        """Scan a set once for all of these collectors."""
        near: dict[bytes, list[Collector]] = {}
        for each in collectors:
            for head in buckets.heads(each.digits):
                near.setdefault(head, []).append(each)
        if not near:
            return
        for piece in self._until_abandoned(SetScan(self.store, self.terms, name).pieces(near)):
            for start in piece:
                for each in near.get(start[:KEY_BYTES], ()):
                    each.add(start)

    def _until_abandoned(self, pieces: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
        for piece in pieces:
            if self._abandoned:
                raise CancelledError
            yield piece


class SetScan:
    """One scan of a set."""

    def __init__(self, store: Log, terms: PairTerms, name: str) -> None:
        self._store, self._terms, self._name = store, terms, name
        self._verdicts = _MembershipByFacts(store, terms, name)
        self._counter: Counter[int] = Counter()

    def pieces(self, heads: Container[bytes] | None = None) -> Iterator[list[bytes]]:
        """Yield the starts of the set's names; with `heads` at least those that begin with one of them."""
        if self._name == SHOWN:
            heads = None  # a pseudonym and its id begin differently
        if self._terms.is_empty(self._store, self._name):
            return
        seq, verdicts, floor, last_seq = 1, self._verdicts, self._terms.scope.floor, self._terms.last_seq
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
        """Return how many names were scanned, by our namespace."""
        found: dict[str, int] = {}
        for number, count in self._counter.items():
            facts = self._store.index.facts(number, number)
            if facts is not None:
                found[facts[1]] = found.get(facts[1], 0) + count
        return found

    def _read(
        self, first: int, marks: Sequence[tuple[int, bytes]], heads: Container[bytes] | None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (number of the facts, start of the name) of the records that must be read to know it."""
        wanted = {
            seq: number
            for seq, (number, start) in enumerate(marks, first)
            if start != NO_START and (heads is None or start[:KEY_BYTES] in heads) and self._verdicts[number] == _READ
        }
        for row in self._store.index.rows(list(wanted)):
            name = self._terms.name(self._store, facts_of(row), row)
            if name != NO_START:
                yield wanted[row.seq], name


def terms_of(source: Source, pair_id: str) -> PairTerms:
    """Return the terms of a pair that we serve; raise as `Source.pair` does for any other."""
    last_seq, pair, views = source.last_seq(), source.pair(pair_id), source.writer.views
    inbound = consent.inbound(pair, consent.grants_of(views.consents, pair), views.namespaces)
    received = {each.ns: name for name, each in inbound.items() if each.full}
    return PairTerms(source.scope(pair), received, last_seq, source.outgoing, pair_id)


def _entry(store: Log, row: Row) -> dict[str, Any] | None:
    """Return the stored envelope of a row; None for a damaged one, which is in no set that must be read."""
    payload = store.payload(row)
    entry: dict[str, Any] | None = None if payload is None else json.loads(payload)
    return entry


def facts_of(row: Row) -> LineFacts:
    """Return the facts of a line."""
    return row.kind, row.ns, row.origin, row.voucher, row.own


class _MembershipByFacts(dict[int, int]):
    """Number of facts -> membership, computed at the first line with them; there are few."""

    def __init__(self, store: Log, terms: PairTerms, name: str) -> None:
        super().__init__({0: _NEVER})
        self._store, self._terms, self._name = store, terms, name
        self.reads = False

    def __missing__(self, number: int) -> int:
        # The number is that of the first line with these facts; if that line is damaged, each such line is compared.
        facts = self._store.index.facts(number, number)
        verdict = _NEVER if facts is None else self._terms.verdict(self._name, facts)
        self.reads = self.reads or verdict == _READ
        self[number] = verdict
        return verdict
