"""How tests measure cost: by calls of functions, which are the same on every machine; never by time."""

import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions, of Python or C, the work calls in this thread."""
    calls = 0

    def count(_: FrameType, kind: str, __: object) -> None:
        nonlocal calls
        calls += kind in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def stepped(work: Generator[object, None, _T]) -> tuple[_T, int]:
    """Return the result of work that yields between its steps, and how many steps it took."""
    steps = 1
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: _T = end.value
            return result, steps
        steps += 1
