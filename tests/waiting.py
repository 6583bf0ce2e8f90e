"""How tests wait: for a condition under a deadline, or for turns of the loop; never for a time.

A test that something does not happen does not wait for it either: it does the thing, then waits for a later event
that could not have come before it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from spl.sync.notify import Notifier

DEADLINE_S: Final = 60.0
"""Far beyond any healthy run: it ends a test that would hang."""
_THREAD_LOOKS_S: Final = 0.02
_LOOP_LOOKS_S: Final = 0.001


def waiters(notifier: Notifier) -> int:
    """Return how many wait for commits."""
    return len({event for events in notifier._waiting.values() for event in events})


def eventually(check: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true answer of `check`; fail with `what` and the last answer when the deadline passes."""
    end = time.monotonic() + deadline_s
    while not (answer := check()):
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}; at last: {answer!r}"
        time.sleep(_THREAD_LOOKS_S)
    return answer


async def until(check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true answer of `check`; the loop runs meanwhile."""
    async with asyncio.timeout(deadline_s):
        while not (answer := check()):
            await asyncio.sleep(_LOOP_LOOKS_S)
    return answer


async def turns(count: int = 1) -> None:
    """Let the loop run each ready task so many times; one turn is what a new task needs for its first step."""
    for _ in range(count):
        await asyncio.sleep(0)
