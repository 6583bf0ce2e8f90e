"""The filter of a query: which records a program asks for, in the form of the public SDK's `rich_query`.

    {"body.kind": "garden.note", "clock": {"$gte": 10}, "$or": [{"act": "KNOW"}, {"body.n": {"$in": [1, 2]}}]}

A filter is an object whose members must all hold: a field with a value or with operators, `$and` and `$or` with a list
of filters, `$not` with one.  A field is a column of the record, or `body` and the names on the way into it.  As in
MongoDB: a list matches if it or one of its items does, a way into a list goes into each object of it, null also matches
a field that is absent, and numbers are ordered among numbers, texts among texts.  `$like` and `$ilike` are SQL's, with
`%` for any characters and `_` for one.

Everything is counted in steps before it is done, as in `cel/evaluate`: a test, a group, a value tried and sixteen
characters that may be read are one each, and four characters that a pattern with `_` may read.  One record may take
RECORD_STEPS, for its tests are one turn.  Refused by name are fields and operators that are not known here: an empty
answer would look like one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import ge, gt, le, lt
from typing import Any, Final

from . import canon
from .errors import SplError
from .record.record import CLOCK_MAX
from .value import dataclass

COLUMNS: Final = ("thread", "actor", "act", "clock", "namespace", "data_type", "id", "parents", "vouched_by")
TESTS_MAX: Final = 256  # each is made for each record that is looked at
LEVELS_MAX: Final = 16
"""How deep `$and`, `$or` and `$not` may be nested."""
CHARS_PER_STEP: Final = 16
CHARS_TRIED_PER_STEP: Final = 4
PIECE_PER_TRY: Final = 256
"""How many characters of a piece are compared at once: see `_find`."""
RECORD_STEPS: Final = 1_000_000
"""Of one record: half a second."""

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
_NEGATIONS: Final = {"$ne": "$eq", "$nin": "$in"}
_OPERATORS: Final = ("$eq", "$ne", *_ORDERS, "$in", "$nin", "$like", "$ilike", "$exists", "$not")
_LOGIC: Final = ("$and", "$or", "$not")


class QueryError(SplError):
    """The filter is not of the known form, "bad-field"; or a query would cost too much, "query-cost"."""


class Cost:
    """The steps that a query may still take."""

    def __init__(self, steps: int) -> None:
        self.steps, self.left = steps, steps
        self._floor = 0

    @property
    def spent(self) -> int:
        """How many were taken."""
        return self.steps - self.left

    def spend(self, steps: int) -> None:
        """Take so many steps; raise QueryError "query-cost" if they are not left."""
        self.left -= steps
        if self.left < 0:
            raise QueryError("query-cost", f"the query takes more than {self.steps:,} steps")
        if self.left < self._floor:
            raise QueryError("query-cost", f"the query takes more than {RECORD_STEPS:,} steps for one record")

    def begin_record(self) -> None:
        """From here to `end_record` no more than RECORD_STEPS are left."""
        self._floor = self.left - RECORD_STEPS

    def end_record(self) -> None:
        """Only the whole query is bounded again."""
        self._floor = 0


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """A filter that was parsed; all of its parts must hold of a record."""

    parts: "tuple[_Part, ...]"

    def holds(self, record: Mapping[str, Any], cost: Cost) -> bool:
        """Return whether the filter holds of a record, given as its columns and `body`."""
        cost.begin_record()
        held = all(part.holds(record, cost) for part in self.parts)
        cost.end_record()
        return held

    def fixed(self, column: str) -> str | None:
        """Return the one text that a column must have for the filter to hold; None if it leaves a choice."""
        texts = [test.only for test in self._tests() if test.path == (column,) and test.name in ("$eq", "$in")]
        return next((text for text in texts if isinstance(text, str)), None)

    def clocks(self) -> tuple[int, int]:
        """Return the lowest and the highest clock of which the filter can hold."""
        low, high = 0, CLOCK_MAX
        for test in self._tests():
            if test.path != ("clock",) or not isinstance(test.only, int):
                continue
            if test.name in ("$eq", "$in", "$gte", "$gt"):
                low = max(low, test.only + (test.name == "$gt"))
            if test.name in ("$eq", "$in", "$lte", "$lt"):
                high = min(high, test.only - (test.name == "$lt"))
        return low, high

    def fields(self) -> list[str]:
        """Return the fields that are tested, each once, in their order."""
        return list(dict.fromkeys(".".join(test.path) for part in self.parts for test in part.tests()))

    def _tests(self) -> "Iterator[_Test]":
        """Yield the tests without which the filter cannot hold."""
        parts = list(self.parts)
        while parts:
            part = parts.pop()
            if isinstance(part, _Test):
                yield part
            elif not part.negated and (not part.one or len(part.parts) == 1):
                parts += part.parts


def parse(value: object) -> RecordFilter:
    """Return the filter in a JSON value.  Raises QueryError "bad-field", which names what is not known."""
    reader = _Reader()
    return RecordFilter(reader.filter(value, 1))


@dataclass(frozen=True, slots=True)
class _Test:
    """One operator on one field; `operand` is prepared for it, `only` is the single value that it names."""

    path: tuple[str, ...]
    name: str
    operand: Any
    only: object = None

    def tests(self) -> "Iterator[_Test]":
        yield self

    def holds(self, record: Mapping[str, Any], cost: Cost) -> bool:
        found = _values(record, self.path, cost)
        if self.name == "$exists":
            return bool(found) is self.operand
        if self.name in ("$eq", "$in"):
            return any(_key(value, cost) in self.operand for value in found or [None])
        if isinstance(self.operand, _Like):
            return any(isinstance(value, str) and self.operand.matches(value, cost) for value in found)
        kind, order = _kind(self.operand), _ORDERS[self.name]
        return any(_kind(value) == kind and order(value, self.operand) for value in found)


@dataclass(frozen=True, slots=True)
class _Group:
    """Parts of which all must hold, or one; and the opposite of that with `negated`."""

    parts: "tuple[_Part, ...]"
    one: bool = False
    negated: bool = False

    def tests(self) -> Iterator[_Test]:
        for part in self.parts:
            yield from part.tests()

    def holds(self, record: Mapping[str, Any], cost: Cost) -> bool:
        cost.spend(1)
        holding = (part.holds(record, cost) for part in self.parts)
        return (any(holding) if self.one else all(holding)) is not self.negated


_Part = _Test | _Group


@dataclass(frozen=True, slots=True)
class _Like:
    """A pattern of SQL, cut at its `%`."""

    pieces: tuple[str, ...]
    any_case: bool

    def matches(self, text: str, cost: Cost) -> bool:
        """Return whether the whole text fits; each piece is taken where it fits first, so nothing is tried twice."""
        cost.spend(1 + len(self.pieces) + len(text) // CHARS_PER_STEP)
        tried = max((1 + len(piece) // PIECE_PER_TRY for piece in self.pieces if "_" in piece), default=0)
        cost.spend(len(text) * tried // CHARS_TRIED_PER_STEP)
        text = text.lower() if self.any_case else text
        first, *between, last = self.pieces if len(self.pieces) > 1 else (*self.pieces, "")
        at, end = len(first), len(text) - len(last)
        if end < at or (len(self.pieces) == 1 and end > at) or not (_fits(text, 0, first) and _fits(text, end, last)):
            return False
        for piece in between:
            at = _find(text, piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


def _find(text: str, piece: str, start: int, end: int) -> int:
    """Return where a piece fits first; -1 for nowhere.

    With "_" by shift-and: bit n of `begun` says that the n + 1 characters up to here fit the begin of the piece, so
    every character of the text is read once, however much of it nearly fits.
    """
    if "_" not in piece:
        return text.find(piece, start, end)
    fitting, any_char, bit = dict[str, int](), 0, 1
    for char in piece:
        if char == "_":
            any_char |= bit
        else:
            fitting[char] = fitting.get(char, 0) | bit
        bit <<= 1
    masks, last, begun = {char: bits | any_char for char, bits in fitting.items()}, bit >> 1, 0
    for at in range(start, end):
        begun = (begun << 1 | 1) & masks.get(text[at], any_char)
        if begun & last:
            return at + 1 - len(piece)
    return -1


def _fits(text: str, at: int, piece: str) -> bool:
    part = text[at : at + len(piece)]
    return part == piece or ("_" in piece and all(map(_same, piece, part)))


def _same(wanted: str, have: str) -> bool:
    return wanted in ("_", have)


def _values(value: Any, path: Sequence[str], cost: Cost) -> list[Any]:
    """Return what stands at the end of a path, of a list also its items; nothing if the field is absent."""
    cost.spend(1 + len(path))
    for place, name in enumerate(path):
        if isinstance(value, list):
            cost.spend(len(value))
            inside = [_values(item, path[place:], cost) for item in value if isinstance(item, dict)]
            cost.spend(sum(map(len, inside)))
            return [found for each in inside for found in each]
        if not isinstance(value, dict) or name not in value:
            return []
        value = value[name]
    if not isinstance(value, list):
        return [value]
    cost.spend(len(value))
    return [value, *value]


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _key(value: object, cost: Cost) -> tuple[str, object]:
    """Return what equal values share: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, str):
        cost.spend(len(value) // CHARS_PER_STEP)
    if value is None or isinstance(value, (bool, int, float, str)):
        return _kind(value), value
    _spend_for(value, cost)
    return "json", canon.encode(value)


def _spend_for(value: object, cost: Cost) -> None:
    """Spend what it takes to write a list or an object, as far as it was looked at."""
    inner = [value]
    while inner:
        each = inner.pop()
        if isinstance(each, str):
            cost.spend(1 + len(each) // CHARS_PER_STEP)
        elif isinstance(each, (list, dict)):
            cost.spend(1 + 2 * len(each))
            inner += each if isinstance(each, list) else [*each, *each.values()]


class _Reader:
    """Reads one filter and counts its tests."""

    def __init__(self) -> None:
        self._tests = 0

    def filter(self, value: object, level: int) -> tuple[_Part, ...]:
        if not isinstance(value, dict):
            raise _refusal("a filter is an object of fields and operators")
        if level > LEVELS_MAX:
            raise _refusal(f"nested deeper than {LEVELS_MAX} levels")
        if not value:
            self._count()
        return tuple(part for name, inner in value.items() for part in self._member(name, inner, level))

    def _count(self) -> None:
        """Count a test, or what is looked at like one: a group, or a filter without members."""
        self._tests += 1
        if self._tests > TESTS_MAX:
            raise _refusal(f"more than {TESTS_MAX} tests and groups")

    def _member(self, name: str, inner: object, level: int) -> list[_Part]:
        if not name.startswith("$"):
            return self._field(_path(name), inner, level)
        if name not in _LOGIC:
            raise _refusal(f"{name[:40]!r} is not known beside fields; known are {', '.join(_LOGIC)}")
        self._count()
        if name == "$not":
            return [_Group(self.filter(inner, level + 1), negated=True)]
        if not isinstance(inner, list) or not inner:
            raise _refusal(f"{name} takes a list of filters")
        groups = tuple(_Group(self.filter(each, level + 1)) for each in inner)
        return [_Group(groups, one=name == "$or")]

    def _field(self, path: tuple[str, ...], inner: object, level: int) -> list[_Part]:
        if not isinstance(inner, dict) or not any(name.startswith("$") for name in inner):
            inner = {"$eq": inner}
        return [self._operator(path, name, operand, level) for name, operand in inner.items()]

    def _operator(self, path: tuple[str, ...], name: str, operand: Any, level: int) -> _Part:
        self._count()
        if name not in _OPERATORS:
            raise _refusal(f"{name[:40]!r} is not an operator on a field; known are {', '.join(_OPERATORS)}")
        if name == "$not":
            if not isinstance(operand, dict) or not operand or level >= LEVELS_MAX:
                raise _refusal("$not takes operators, in an object")
            return _Group(tuple(self._operator(path, *each, level + 1) for each in operand.items()), negated=True)
        if name in _NEGATIONS:
            return _Group((self._operator(path, _NEGATIONS[name], operand, level),), negated=True)
        return _Test(path, name, *_prepared(name, operand))


def _prepared(name: str, operand: Any) -> tuple[Any, object]:
    """Return an operand in the form that its test uses, and the single value that it names."""
    if name == "$exists":
        if not isinstance(operand, bool):
            raise _refusal("$exists takes true or false")
        return operand, None
    if name in ("$eq", "$in"):
        values = operand if name == "$in" else [operand]
        if not isinstance(values, list):
            raise _refusal("$in and $nin take a list of values")
        only = values[0] if len(values) == 1 and _kind(values[0]) else None
        return frozenset(_key(value, Cost(CLOCK_MAX)) for value in values), only
    if name in ("$like", "$ilike"):
        if not isinstance(operand, str):
            raise _refusal(f"{name} takes a text")
        any_case = name == "$ilike"
        return _Like(tuple((operand.lower() if any_case else operand).split("%")), any_case), None
    if not _kind(operand):
        raise _refusal(f"{name} takes a number or a text")
    return operand, operand


def _path(name: str) -> tuple[str, ...]:
    path = tuple(name.split("."))
    if path[0] != "body" and name not in COLUMNS:
        raise _refusal(f"there is no field {name[:40]!r}; there are {', '.join(COLUMNS)}, and body and what is in it")
    return path


def _refusal(fault: str) -> QueryError:
    return QueryError("bad-field", f"filter: {fault}")
