"""Inputs from seeds: a text of the corpus, changed a few times.  Equal seeds give equal inputs on every machine."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Final

import spl

PRODUCT: Final = f"{Path(spl.__file__).parent}/"
GROWN_BYTES_MAX: Final = 8192
NUMBERS: Final = (
    b"0",
    b"-1",
    b"1",
    b"00",
    b"255",
    b"65536",
    b"4294967296",
    b"9223372036854775808",
    b"9" * 400,
    b"1e400",
    b"1e300",
    b"1.0",
    b"0x10",
    b"+5",
    b"1_0",
    b"\xd9\xa3",
    b"ffffffffffffffff",
)
ODD_VALUES: Final = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**53,
    2**63,
    10**320,
    1e300,
    0.5,
    "",
    "x",
    "x" * 3000,
    "\u2028",
    "\ud800",
    "\0",
    "null",
    [],
    [[]],
    {},
    {"": ""},
    [None] * 100,
    "did:sync:instance:x",
    "2025-01-01T00:00:00Z",
)


def changed(corpus: Sequence[bytes], words: Sequence[bytes], dice: Random) -> bytes:
    """Return a text of the corpus after one to four changes."""
    data = dice.choice(corpus)
    for _ in range(dice.randint(1, 4)):
        data = dice.choice(_CHANGES)(data, corpus, words, dice)
    return data


def changed_value(value: Any, dice: Random) -> Any:
    """Return a JSON value with one to three of its parts replaced, dropped or doubled; the value itself stays."""
    for _ in range(dice.randint(1, 3)):
        value = _changed_part(value, dice)
    return value


def pieces_of(data: bytes, dice: Random) -> list[bytes]:
    """Return the bytes cut into a few pieces, or into single bytes."""
    if len(data) < 300 and dice.random() < 0.2:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(dice.randint(0, len(data)) for _ in range(dice.randint(0, 5)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def steps_of(run: Callable[[], object]) -> int:
    """Return how many lines of the product a call runs: a measure of work that no machine changes."""
    count = 0

    def step(frame: FrameType, what: str, argument: object) -> Any:
        nonlocal count
        count += what == "line"
        return step

    def enter(frame: FrameType, what: str, argument: object) -> Any:
        return step if frame.f_code.co_filename.startswith(PRODUCT) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def _changed_part(value: Any, dice: Random) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        match dice.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, dice.choice(["", "x", "sig", "body", "\u00e9", "a" * 300]): dice.choice(ODD_VALUES)}
        return {**value, key: _changed_part(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        match dice.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * dice.choice([2, 40])
        return [*value[:at], _changed_part(value[at], dice), *value[at + 1 :]]
    if isinstance(value, str) and value and dice.random() < 0.5:
        at = dice.randrange(len(value))
        return value[:at] + dice.choice(["", "\u0663", "\n", "A", "%", "/", "\u00e9"]) + value[at + dice.randrange(3) :]
    return dice.choice(ODD_VALUES)


def _span(data: bytes, dice: Random) -> tuple[int, int]:
    start = dice.randint(0, len(data))
    return start, min(len(data), start + dice.choice([1, 2, 4, 16, 64, 512]))


def _flip(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    if not data:
        return b"\0"
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _put(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    start, end = _span(data, dice)
    return (
        data[:start] + dice.choice([b"\0", b"\r", b"\n", b"\t", b" ", b"\x7f", b"\x80", b"\xff", b"\x0b"]) + data[end:]
    )


def _drop(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    start, end = _span(data, dice)
    return data[:start] + data[end:]


def _double(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    start, end = _span(data, dice)
    times = 1 if dice.random() < 0.7 else max(1, GROWN_BYTES_MAX // max(1, end - start))
    return data[:end] + data[start:end] * times + data[end:]


def _word(data: bytes, corpus: object, words: Sequence[bytes], dice: Random) -> bytes:
    start, end = _span(data, dice)
    return data[:start] + dice.choice(words) + data[start if dice.random() < 0.5 else end :]


def _number(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    places = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if not places:
        return data
    at = dice.choice(places)
    return data[:at] + dice.choice(NUMBERS) + data[at + 1 :]


def _splice(data: bytes, corpus: Sequence[bytes], words: object, dice: Random) -> bytes:
    other = dice.choice(corpus)
    return data[: dice.randint(0, len(data))] + other[dice.randint(0, len(other)) :]


def _cut(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    return data[: dice.randint(0, len(data))]


def _swap(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    a, b, c = sorted(dice.randint(0, len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _noise(data: bytes, corpus: object, words: object, dice: Random) -> bytes:
    start, end = _span(data, dice)
    return data[:start] + dice.randbytes(dice.randint(1, 16)) + data[end:]


_CHANGES: Final = (_flip, _put, _drop, _double, _word, _word, _number, _splice, _cut, _swap, _noise)
