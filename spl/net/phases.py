"""Where a connection stands, and when the silence of its peer ends that.

The right column is what ends a phase when the peer does nothing.

    IDLE     no byte of a request            idle_timeout_s, closed silently
    HEAD     a head in part                  head_timeout_s from its first byte: 408
    BODY     a body in part                  body_timeout_s without progress, or at less than FLOOR_BYTES_S: 408
    ANSWER   the app works                   the app's own deadline; also while it takes no more of a body in parts
    STREAM   the app's iterator yields       write_stall_timeout_s without progress
    FLUSH    the answer is not yet taken     write_stall_timeout_s without progress
    LINGER   refused, the answer is out      linger_s, reading on so that it arrives
    CLOSING  told to close                   write_stall_timeout_s without progress, or linger_s

From the stop on no deadline is more than STOPPING_S away: a client that takes nothing, or sends half a request, would
otherwise use up the time that the services and the last commit have.

A deadline is one number, which the server's sweep compares (`expire`): timers would cost more than the parser.
"""

import asyncio
from enum import IntEnum
from math import inf
from typing import Any, Final

from .shared import Shared

STOPPING_S: Final = 1.0
"""How long a peer may make no progress once the server stops."""

# Numbers, for each request asks sets of them for its hash.
Stage = IntEnum("Stage", ["IDLE", "HEAD", "BODY", "ANSWER", "STREAM", "FLUSH", "LINGER", "CLOSING", "CLOSED"])
BUSY: Final = frozenset({Stage.ANSWER, Stage.STREAM, Stage.FLUSH})
QUIET: Final = frozenset({Stage.IDLE, Stage.HEAD, Stage.BODY})
"""The peer owes bytes."""
OVER: Final = frozenset({Stage.LINGER, Stage.CLOSING, Stage.CLOSED})


class Phased(asyncio.Protocol):
    """The phase of one connection and its deadline."""

    __slots__ = ("deadline", "phase", "shared", "since")

    def __init__(self, shared: Shared[Any]) -> None:
        self.shared = shared
        self.phase = Stage.IDLE
        self.deadline = inf
        self.since = 0.0

    def is_late(self, now: float, idle_s: float) -> bool:
        """Return whether its deadline has passed, or it has been idle for `idle_s` seconds."""
        return self.deadline <= now or (self.phase is Stage.IDLE and self.since + idle_s <= now)

    def quiet_since(self) -> float:
        """Return since when the peer owes bytes; inf while a request is being answered."""
        return self.since if self.phase in QUIET else inf

    def _wait(self, phase: Stage, seconds: float) -> None:
        self.phase = phase
        self.since = now = self.shared.loop.time()
        self.deadline = now + (min(seconds, STOPPING_S) if self.shared.stopping else seconds)

    def _in(self, seconds: float) -> float:
        return self.shared.loop.time() + (min(seconds, STOPPING_S) if self.shared.stopping else seconds)
