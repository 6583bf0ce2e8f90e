"""Patterns for `matches`: a subset of RE2's syntax, searched in time linear in the text.

    x  .  [a-z]  [^a-z]  \\d \\D \\w \\W \\s \\S  ^  $  (x)  (?:x)  x|y  x*  x+  x?  x{2}  x{2,}  x{2,5}

Python's own `re` backtracks, and even without nested repeats a pattern such as `a*a*a*b` costs it the cube of the
text.  Here a pattern becomes a small program, and all its states advance together over each character once (Thompson,
1968): at most len(text) + 1 times the program's length, whatever was written.  A program has at most
INSTRUCTIONS_MAX instructions.  Classes are ASCII; `$` is the very end; `.` is all but a newline.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NoReturn

PATTERN_CHARS_MAX: Final = 256
INSTRUCTIONS_MAX: Final = 1000
REPEATS_MAX: Final = 100
GROUPS_DEEP_MAX: Final = 16

Ranges = tuple[tuple[int, int], ...]

_LAST: Final = 0x10FFFF
_DIGIT: Final[Ranges] = ((48, 57),)
_WORD: Final[Ranges] = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Final[Ranges] = ((9, 10), (12, 13), (32, 32))
_CLASSES: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS: Final = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_META: Final = "\\^$.[]|()?*+{}"


class PatternFault(ValueError):
    """The pattern is not of the subset; `at` is the offset in it."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


@dataclass(frozen=True, slots=True)
class Op:
    """One instruction: `char` takes a character of the ranges, `split` goes both ways, `jump` one; no more to it."""

    kind: str
    ranges: Ranges = ()
    ways: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a parsed pattern: a char, an assertion, a sequence, a choice, or a repeat of its only piece."""

    kind: str
    ranges: Ranges = ()
    parts: "tuple[Part, ...]" = ()
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern ready to search; equal texts are equal patterns."""

    text: str
    program: tuple[Op, ...] = field(repr=False, compare=False)

    def search(self, text: str, spend: Callable[[int], None]) -> bool:
        """Tell whether the pattern is found anywhere in the text.

        `spend` is called for each character with the steps that it took, and raises to end the search.
        """
        waiting: list[int] = []
        for at in range(len(text) + 1):
            states, cost = self._reached([*waiting, 0], at == 0, at == len(text))
            spend(cost)
            if states is None:
                return True
            if at < len(text):
                code = ord(text[at])
                waiting = [pc + 1 for pc in states if _holds(self.program[pc].ranges, code)]
        return False

    def _reached(self, stack: list[int], first: bool, last: bool) -> tuple[list[int] | None, int]:
        """Return the char instructions reached without taking a character, None at the end; and the steps it took."""
        seen: set[int] = set()
        states, cost = [], 0
        while stack:
            pc = stack.pop()
            if pc in seen:
                continue
            seen.add(pc)
            op = self.program[pc]
            cost += 1 + len(op.ranges) // 4
            if op.kind == "found":
                return None, cost
            if op.kind == "char":
                states.append(pc)
            elif op.kind in ("split", "jump"):
                stack.extend(op.ways)
            elif first if op.kind == "begin" else last:
                stack.append(pc + 1)
        return states, cost


def compile_pattern(text: str) -> Pattern:
    """Return the pattern; raise PatternFault for what the subset lacks, or a program that would be too long."""
    if len(text) > PATTERN_CHARS_MAX:
        raise PatternFault(f"a pattern has at most {PATTERN_CHARS_MAX} characters", 0)
    part = _Parser(text).whole()
    maker = _Maker(len(text))
    maker.add(part)
    maker.emit("found")
    return Pattern(text, tuple(maker.program))


def _holds(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _negated(ranges: Ranges) -> Ranges:
    """Return every character that the ranges leave out."""
    found, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return (*found, (start, _LAST)) if start <= _LAST else tuple(found)


class _Parser:
    """Recursive descent over the pattern's text."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.deep = text, 0, 0

    def whole(self) -> Part:
        part = self.choice()
        if self.at < len(self.text):
            self.fail("this ) closes nothing")
        return part

    def choice(self) -> Part:
        parts = [self.sequence()]
        while self.taken("|"):
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else Part("choice", parts=tuple(parts))

    def sequence(self) -> Part:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return Part("sequence", parts=tuple(parts))

    def repeated(self, part: Part) -> Part:
        bounds = self.bounds()
        if bounds is None:
            return part
        if self.at < len(self.text) and self.text[self.at] in "*+?{":
            self.fail("a repeat cannot be repeated; lazy ones are not known here")
        return Part("repeat", parts=(part,), low=bounds[0], high=bounds[1])

    def bounds(self) -> tuple[int, int | None] | None:
        """Return (least, most) of a repeat that stands here; most None: without end.  None where there is none."""
        for char, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.taken(char):
                return bounds
        if not self.taken("{"):
            return None
        low = self.count()
        high: int | None = low
        if self.taken(","):
            high = None if self.text[self.at : self.at + 1] == "}" else self.count()
        if not self.taken("}"):
            self.fail("a repeat is {2}, {2,} or {2,5}; a { itself is written \\{")
        if high is not None and high < low:
            self.fail("the repeat's end is below its start")
        return low, high

    def count(self) -> int:
        start = self.at
        while self.text[self.at : self.at + 1].isascii() and self.text[self.at : self.at + 1].isdigit():
            self.at += 1
        digits = self.text[start : self.at]
        if not digits or len(digits) > 4 or int(digits) > REPEATS_MAX:
            self.fail(f"a repeat counts from 0 to {REPEATS_MAX}; a {{ itself is written \\{{")
        return int(digits)

    def atom(self) -> Part:
        char = self.text[self.at]
        self.at += 1
        match char:
            case "(":
                return self.group()
            case "[":
                return Part("char", ranges=self.bracket())
            case ".":
                return Part("char", ranges=_negated(((10, 10),)))
            case "^":
                return Part("begin")
            case "$":
                return Part("end")
            case "\\":
                return Part("char", ranges=self.escape())
        if char in _META:
            self.at -= 1
            self.fail(f"{char} repeats nothing here; written \\{char} it is meant literally")
        return Part("char", ranges=((ord(char), ord(char)),))

    def group(self) -> Part:
        if self.taken("?") and not self.taken(":"):
            self.fail("of the groups that begin with (? only (?: is known")
        self.deep += 1
        if self.deep > GROUPS_DEEP_MAX:
            self.fail(f"groups nest at most {GROUPS_DEEP_MAX} deep")
        part = self.choice()
        self.deep -= 1
        if not self.taken(")"):
            self.fail("a ) is missing")
        return part

    def bracket(self) -> Ranges:
        """Return the ranges of a class whose [ is taken."""
        negate = self.taken("^")
        ranges: list[tuple[int, int]] = []
        while not (ranges and self.taken("]")):
            low = self.member()
            if len(low) == 1 and low[0][0] == low[0][1] and self._range_follows():
                self.at += 1
                high = self.member()
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    self.fail("a range goes from a lower character to a higher one")
                low = ((low[0][0], high[0][1]),)
            ranges += low
        return _negated(tuple(ranges)) if negate else tuple(ranges)

    def _range_follows(self) -> bool:
        return self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("", "]")

    def member(self) -> Ranges:
        if self.at >= len(self.text):
            self.fail("a ] is missing")
        if self.text.startswith("[:", self.at) or self.text[self.at] == "]":
            self.fail("a [ or ] inside a class is written \\[ or \\]")
        char = self.text[self.at]
        self.at += 1
        return self.escape() if char == "\\" else ((ord(char), ord(char)),)

    def escape(self) -> Ranges:
        """Return what stands for the escape whose backslash is taken."""
        char = self.text[self.at : self.at + 1]
        if char.lower() in _CLASSES and char:
            self.at += 1
            found = _CLASSES[char.lower()]
            return _negated(found) if char.isupper() else found
        if not char or (char.isalnum() and char not in _CONTROLS):
            self.fail("this escape is not known here")
        self.at += 1
        code = _CONTROLS.get(char, ord(char))
        return ((code, code),)

    def taken(self, char: str) -> bool:
        found = self.text.startswith(char, self.at)
        self.at += found
        return found

    def fail(self, text: str) -> NoReturn:
        raise PatternFault(text, self.at)


class _Maker:
    """Writes the program of a pattern; counted repeats are written out, so length and work are both bounded."""

    def __init__(self, end: int) -> None:
        self.program: list[Op] = []
        self.end, self.work = end, 0

    def emit(self, kind: str, ranges: Ranges = (), ways: tuple[int, ...] = ()) -> int:
        self.program.append(Op(kind, ranges, ways))
        return len(self.program) - 1

    def add(self, part: Part) -> None:
        # Counted apart from the program: repeats of nothing, such as ((){99}){99}, write nothing and take for ever.
        self.work += 1
        if self.work > INSTRUCTIONS_MAX or len(self.program) > INSTRUCTIONS_MAX:
            raise PatternFault("the pattern is too costly; use smaller repeats", self.end)
        if part.kind == "repeat":
            self.repeat(part.parts[0], part.low, part.high)
        elif part.kind == "choice":
            self.choice(part.parts)
        elif part.kind == "sequence":
            for item in part.parts:
                self.add(item)
        else:
            self.emit(part.kind, part.ranges)

    def choice(self, parts: tuple[Part, ...]) -> None:
        jumps = []
        for part, more in _with_more(parts):
            fork = self.emit("split") if more else -1
            self.add(part)
            if more:
                jumps.append(self.emit("jump"))
                self.program[fork] = Op("split", ways=(fork + 1, len(self.program)))
        for jump in jumps:
            self.program[jump] = Op("jump", ways=(len(self.program),))

    def repeat(self, part: Part, low: int, high: int | None) -> None:
        for _ in range(low):
            self.add(part)
        if high is None:
            fork = self.emit("split")
            self.add(part)
            self.emit("jump", ways=(fork,))
            self.program[fork] = Op("split", ways=(fork + 1, len(self.program)))
            return
        forks = []
        for _ in range(high - low):
            forks.append(self.emit("split"))
            self.add(part)
        for fork in forks:
            self.program[fork] = Op("split", ways=(fork + 1, len(self.program)))


def _with_more(parts: tuple[Part, ...]) -> Iterator[tuple[Part, bool]]:
    """Yield each part with whether another one follows."""
    for number, part in enumerate(parts, 1):
        yield part, number < len(parts)
