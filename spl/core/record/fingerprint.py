"""Which names two sets differ in, at a cost in the size of the difference: range fingerprints over ids.

Two sides compare what they hold by asking for ranges: a range is all names that begin with some hex digits, and is
answered by the fingerprints of its 16 parts, or, if it holds few, by the names themselves.  Equal parts are left
alone, the others are asked for next.  Ten names that differ among a million cost about six questions and 8 KiB.

The fingerprint of a set is the product of (key + name) over its names, modulo a prime above 2^128, cut to 64 bits.
The key is drawn for each comparison, after the sets are fixed: an attacker who crafts ids beforehand, so that sums or
XORs of them would collide, faces a polynomial at an unknown point; two different sets of n names pass for equal with
a chance of at most n / 2^64.  A name counts with its first 128 bits; two ids that agree in those cost 2^64 hashes.

    question  {"key": 32 hex, "ranges": {set: [hex digits…]}, "names": {set: [32 hex…]}, "have": {id: mark}}
    answer    {"ranges": {set: ["s" + base64 of 16 × 8 bytes | "n" + base64 of n × 16 bytes, …]},
               "counts": {set: {ns: n}}, "names": {set: {32 hex: [name, ns]}}, "lacking": [id…]}

`names` gives the whole name of what only one side has, `have` asks which records the other side lacks; its mark shows
that the asker holds that very envelope, so that ids cannot be used to probe for records.
"""

import base64
import binascii
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final

from .. import canon
from ..errors import SplError
from ..value import dataclass, field
from .record import is_id

HELD: Final = "held"
SHOWN: Final = "shown"
SEEN: Final = "seen"
OPPOSITE: Final = {HELD: HELD, SHOWN: SEEN, SEEN: SHOWN}
"""Set of the side that answers -> set of the side that asks, which should be equal; see holdings.py."""
START_BYTES: Final = 16
"""The part of a name that counts."""
SUM_BYTES: Final = 8
PARTS: Final = 16
KEY_BYTES: Final = 2
DEPTH: Final = 2 * KEY_BYTES
"""Digits that pick a bucket: fingerprints of 65,536 buckets are kept while sets are compared, and no names."""
LISTED_MAX: Final = 32
"""A range of at most this many names is answered by the names."""
RANGES_MAX: Final = 256
"""Ranges in one question: the names of all of them take 128 KiB."""
NAMES_MAX: Final = 1000
"""Names, or ids, in one question: as many as one fetch asks for (limits.fetch_ids)."""
ASKED_MAX: Final = 262_144
"""Ranges asked for in one comparison: what 10,000 names apart need, five times over."""

_PRIME: Final = 2**128 + 51
_CUT: Final = 2 ** (8 * SUM_BYTES) - 1
_MARK_BYTES: Final = 16
_DIGITS: Final = "0123456789abcdef"
_BUCKETS: Final = PARTS**DEPTH
_SPARSE_MAX: Final = _BUCKETS // 16
"""More buckets with names take less memory as lists of all."""


class FingerprintError(SplError):
    """A question or an answer that is not of this form: "bad-field", "answer-malformed"."""


@dataclass(frozen=True, slots=True)
class RangePart:
    """What stands in one range: the fingerprints of its parts, or the starts of its names; `cut`: not all of them."""

    sums: bytes = b""
    names: tuple[bytes, ...] = ()
    cut: bool = False


Ranges = Mapping[str, tuple[str, ...]]
"""Set -> the hex digits that its ranges begin with."""


@dataclass(frozen=True, slots=True)
class Question:
    """One side's question; it may have ranges, names and have."""

    key: str
    ranges: Ranges = field(default_factory=lambda: MappingProxyType({}))
    names: Ranges = field(default_factory=lambda: MappingProxyType({}))
    have: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def size(self) -> int:
        """How many ranges, names and ids it asks about."""
        return sum(map(len, (*self.ranges.values(), *self.names.values()))) + len(self.have)

    def halves(self) -> tuple["Question", "Question"]:
        """Return two questions that ask the same together; the answers are joined in their order."""
        ranges = [(name, each) for name, part in self.ranges.items() for each in part]
        names = [(name, each) for name, part in self.names.items() for each in part]
        have = list(self.have.items())
        cuts = [len(part) - len(part) // 2 for part in (ranges, names, have)]
        first = ranges[: cuts[0]], names[: cuts[1]], have[: cuts[2]]
        rest = ranges[cuts[0] :], names[cuts[1] :], have[cuts[2] :]
        one, two = (Question(self.key, _by_set(part[0]), _by_set(part[1]), dict(part[2])) for part in (first, rest))
        return one, two

    def encode(self) -> bytes:
        """Return the question as it is sent."""
        value = {"ranges": self.ranges, "names": self.names, "have": self.have}
        kept = {name: dict(part) for name, part in value.items() if part}
        return json.dumps({"key": self.key, **kept}, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class FingerprintAnswer:
    """What the other side answers; `parts` in the order of the ranges."""

    parts: Mapping[str, tuple[RangePart, ...]]
    counts: Mapping[str, Mapping[str, int]]
    names: Mapping[str, Mapping[str, tuple[str, str]]]
    lacking: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the answer as it is sent."""
        value = {
            "ranges": {name: [_text(part) for part in parts] for name, parts in self.parts.items()},
            "counts": self.counts,
            "names": self.names,
            "lacking": list(self.lacking),
        }
        return json.dumps({name: part for name, part in value.items() if part}, separators=(",", ":")).encode()


def joined(one: FingerprintAnswer, two: FingerprintAnswer) -> FingerprintAnswer:
    """Return the answer to a question from those to its halves."""
    parts = {name: (*one.parts.get(name, ()), *two.parts.get(name, ())) for name in {**one.parts, **two.parts}}
    names = {name: {**one.names.get(name, {}), **two.names.get(name, {})} for name in {**one.names, **two.names}}
    counts = {name: {**one.counts.get(name, {}), **two.counts.get(name, {})} for name in {**one.counts, **two.counts}}
    return FingerprintAnswer(parts, counts, names, one.lacking + two.lacking)


class _Sparse(dict[int, int]):
    """Numbers by bucket, `empty` where there is none yet."""

    __slots__ = ("empty",)

    def __init__(self, empty: int) -> None:
        super().__init__()
        self.empty = empty

    def __missing__(self, bucket: int) -> int:
        return self.empty


class RangeBuckets:
    """Fingerprints of one set, by the first digits of its names: 4 MiB for a large set, however many names it has.

    A million names take a second.  Only buckets that hold names are looked at, so a small set is compared in no time;
    nor has it lists of all buckets, because each pair keeps some sets, and most are small.
    """

    def __init__(self, key: str) -> None:
        """Begin with the empty set; `key` as `is_key` has it."""
        self.key = int(key, 16)
        self._products: _Sparse | list[int] = _Sparse(1)
        self._counts: _Sparse | list[int] = _Sparse(0)
        self._filled: list[int] = []
        self._in_order = True

    def add(self, starts: Iterable[bytes]) -> None:
        """Add names by their starts, each START_BYTES long."""
        products, counts, key, prime = self._products, self._counts, self.key, _PRIME
        shift, number_of = 8 * START_BYTES - 4 * DEPTH, int.from_bytes
        for start in starts:
            number = number_of(start)
            bucket = number >> shift
            products[bucket] = products[bucket] * (key + number) % prime
            if not counts[bucket]:
                self._filled.append(bucket)
                self._in_order = False
            counts[bucket] += 1
        if isinstance(products, _Sparse) and isinstance(counts, _Sparse) and len(products) > _SPARSE_MAX:
            self._products = [products[bucket] for bucket in range(_BUCKETS)]
            self._counts = [counts[bucket] for bucket in range(_BUCKETS)]

    def count(self, digits: str) -> int:
        """Return how many names a range holds; it has at most DEPTH digits."""
        return sum(map(self._counts.__getitem__, self._within(*_span(digits))))

    def heads(self, digits: str) -> list[bytes]:
        """Return the first KEY_BYTES of the names in a range, however many digits it has."""
        if len(digits) >= DEPTH:
            return [bytes.fromhex(digits[:DEPTH])]
        return [number.to_bytes(KEY_BYTES) for number in self._within(*_span(digits))]

    def sums(self, digits: str) -> bytes:
        """Return the fingerprints of the parts of a range with fewer than DEPTH digits."""
        low, high = _span(digits)
        step = (high - low) // PARTS
        parts = (self._within(at, at + step) for at in range(low, high, step))
        return b"".join(_cut(_product(map(self._products.__getitem__, part))) for part in parts)

    def _within(self, low: int, high: int) -> list[int]:
        """Return the buckets from `low` up to `high` that hold names, ascending."""
        if not self._in_order:
            self._filled.sort()
            self._in_order = True
        return self._filled[bisect_left(self._filled, low) : bisect_left(self._filled, high)]


class Collector:
    """One range beyond the buckets, while its names go by: its first ones, and the fingerprints of its parts."""

    def __init__(self, key: int, digits: str, listed_max: int) -> None:
        self.digits, self.names = digits, list[bytes]()
        self.count = 0
        self._key, self._listed_max = key, listed_max
        self._at, self._odd = divmod(len(digits), 2)
        self._products = [1] * PARTS

    def add(self, start: bytes) -> None:
        """Add a name, if it lies in this range."""
        if len(self.digits) > DEPTH and not start.hex().startswith(self.digits):
            return
        self.count += 1
        if len(self.names) < self._listed_max:
            self.names.append(start)
        if self._at < START_BYTES:
            digit = start[self._at] & 15 if self._odd else start[self._at] >> 4
            self._products[digit] = self._products[digit] * (self._key + int.from_bytes(start)) % _PRIME

    def part(self, *, sums: bool) -> RangePart:
        """Return the range as the fingerprints of its parts, or as its names."""
        if sums:
            return RangePart(b"".join(map(_cut, self._products)))
        return RangePart(names=tuple(self.names), cut=self.count > len(self.names))


class Search:
    """The side that asks: which ranges of one set are still open, and what was found."""

    def __init__(self, found_max: int, asked_max: int = ASKED_MAX) -> None:
        """Begin with everything open; it ends after `found_max` names found, and fails after `asked_max` ranges."""
        self.theirs: set[bytes] = set()
        """Starts of names that only the other side has."""
        self.ours: set[bytes] = set()
        self.more = False
        """Whether it ended early, with more to find."""
        self._open = [""]
        self._asked = 0
        self._found_max, self._asked_max = found_max, asked_max

    def next(self, count_max: int = RANGES_MAX) -> tuple[str, ...]:
        """Return the ranges to ask for now, none at the end."""
        taken, self._open = self._open[-count_max:], self._open[:-count_max]
        return tuple(taken)

    def take(self, ranges: Sequence[str], theirs: Sequence[RangePart], ours: Sequence[RangePart]) -> None:
        """Compare the answer to `ranges` with ours, which is in sums where theirs is.

        Raises FingerprintError "answer-malformed" for an answer that fits no set, or one that never ends.
        """
        self._asked += len(ranges)
        if self._asked > self._asked_max:
            raise FingerprintError("answer-malformed", "the peer splits ranges without end")
        for digits, their, our in zip(ranges, theirs, ours, strict=True):
            if not their.sums:
                self._differ(digits, their.names, our.names)
                self.more = self.more or our.cut
            elif len(digits) >= 2 * START_BYTES:
                raise FingerprintError("answer-malformed", "the peer splits a single name")
            else:
                self._open += [digits + digit for digit in _unequal(their.sums, our.sums)]
        if len(self.theirs) + len(self.ours) >= self._found_max and self._open:
            self.more, self._open = True, []

    def _differ(self, digits: str, theirs: Sequence[bytes], ours: Sequence[bytes]) -> None:
        if not all(name.hex().startswith(digits) for name in theirs):
            raise FingerprintError("answer-malformed", "the peer names what lies outside the range asked for")
        self.theirs |= set(theirs).difference(ours)
        self.ours |= set(ours).difference(theirs)


def question_of(body: bytes) -> Question:
    """Return the question in a body; raise FingerprintError "bad-field", CanonError "bad-json"."""
    value = canon.decode(body)
    if not isinstance(value, dict) or value.keys() - {"key", "ranges", "names", "have"} or not is_key(value.get("key")):
        raise FingerprintError("bad-field", "a question has a key of 32 hex digits, ranges, names and have")
    ranges = _sets(value.get("ranges", {}), RANGES_MAX, 0, 2 * START_BYTES)
    names = _sets(value.get("names", {}), NAMES_MAX, 2 * START_BYTES, 2 * START_BYTES)
    have = value.get("have", {})
    if not isinstance(have, dict) or len(have) > NAMES_MAX:
        raise FingerprintError("bad-field", f"have is an object of at most {NAMES_MAX} ids")
    if not all(is_id(id_) and isinstance(mark, str) and len(mark) <= 2 * _MARK_BYTES for id_, mark in have.items()):
        raise FingerprintError("bad-field", "have holds a mark for each id")
    return Question(value["key"], ranges, names, have)


def answer_of(body: bytes, question: Question) -> FingerprintAnswer:
    """Return the answer in a body, to this question and no other; raise FingerprintError "answer-malformed"."""
    try:
        value = canon.decode(body)
        parts = {name: tuple(map(_part, value.get("ranges", {})[name])) for name in question.ranges}
        counts = {name: _counts(value.get("counts", {}).get(name, {})) for name in question.ranges}
        names = {name: _named(value.get("names", {}).get(name, {}), asked) for name, asked in question.names.items()}
        lacking = tuple(value.get("lacking", []))
        if any(len(parts[name]) != len(asked) for name, asked in question.ranges.items()):
            raise ValueError("not a part for each range")
    except (SplError, AttributeError, KeyError, TypeError, ValueError) as exc:
        raise FingerprintError("answer-malformed", "the peer does not answer in fingerprints") from exc
    known = all(isinstance(id_, str) and id_ in question.have for id_ in lacking)
    if not known or len(lacking) > len(question.have):
        raise FingerprintError("answer-malformed", "the peer lacks what it was not asked for")
    return FingerprintAnswer(parts, counts, names, lacking)


def is_key(text: object) -> bool:
    """Return whether a text is the key of a comparison: 32 lower-case hex digits."""
    return isinstance(text, str) and len(text) == 2 * START_BYTES and not text.strip(_DIGITS)


def mark_of(key: str, envelope: bytes) -> str:
    """Return what shows, under this comparison's key, that a side holds these bytes of an envelope."""
    return blake2b(envelope, key=bytes.fromhex(key), digest_size=_MARK_BYTES).hexdigest()


def _by_set(items: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, each in items:
        found.setdefault(name, []).append(each)
    return {name: tuple(part) for name, part in found.items()}


def _sets(value: object, count_max: int, digits_min: int, digits_max: int) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or value.keys() - OPPOSITE.keys():
        raise FingerprintError("bad-field", f"the sets are {', '.join(OPPOSITE)}")
    for texts in value.values():
        if not isinstance(texts, list) or len(texts) > count_max:
            raise FingerprintError("bad-field", f"a question has at most {count_max} of each")
        for text in texts:
            if not isinstance(text, str) or not digits_min <= len(text) <= digits_max or text.strip(_DIGITS):
                raise FingerprintError("bad-field", f"ranges and names are {digits_min} to {digits_max} hex digits")
    return {name: tuple(texts) for name, texts in value.items()}


def _part(text: object) -> RangePart:
    """Return the part in its text; ValueError for what is none."""
    if not isinstance(text, str) or text[:1] not in ("s", "n"):
        raise ValueError("a part begins with s or n")
    try:
        data = base64.b64decode(text[1:], validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64") from exc
    if text[0] == "s":
        if len(data) != PARTS * SUM_BYTES:
            raise ValueError("not the sums of all parts")
        return RangePart(sums=data)
    names = tuple(data[at : at + START_BYTES] for at in range(0, len(data), START_BYTES))
    if len(data) % START_BYTES or len(names) > LISTED_MAX:
        raise ValueError("not a list of few names")
    return RangePart(names=names)


def _text(part: RangePart) -> str:
    return ("s" if part.sums else "n") + base64.b64encode(part.sums or b"".join(part.names)).decode()


def _counts(value: Any) -> dict[str, int]:
    if len(value) > NAMES_MAX or not all(type(count) is int and 0 <= count < 2**63 for count in value.values()):
        raise ValueError("counts are numbers")
    return {str(ns)[:256]: count for ns, count in value.items()}


def _named(value: Any, asked: Sequence[str]) -> dict[str, tuple[str, str]]:
    found = {}
    for start, (name, ns) in value.items():
        if start not in asked or not is_id(name) or not name.startswith(start) or not isinstance(ns, str):
            raise ValueError("a name begins with the start that was asked for")
        found[start] = (name, ns[:256])
    return found


def _span(digits: str) -> tuple[int, int]:
    """Return the buckets of a range, from and up to."""
    width = PARTS ** (DEPTH - len(digits))
    low = int(digits or "0", 16) * width
    return low, low + width


def _product(numbers: Iterable[int]) -> int:
    product = 1
    for number in numbers:
        product = product * number % _PRIME
    return product


def _cut(product: int) -> bytes:
    return (product & _CUT).to_bytes(SUM_BYTES)


def _unequal(theirs: bytes, ours: bytes) -> Iterator[str]:
    """Yield the digits of the parts whose fingerprints differ."""
    for digit, at in zip(_DIGITS, range(0, PARTS * SUM_BYTES, SUM_BYTES), strict=True):
        if theirs[at : at + SUM_BYTES] != ours[at : at + SUM_BYTES]:
            yield digit
