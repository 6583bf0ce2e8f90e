"""Shift the wall clock of a process; Python imports this file at its start where its folder is on the path.

SPL_TEST_CLOCK_AHEAD_MS says by how much, and may be negative.  The monotonic clock stays as it is, so timeouts and
delays last as long as ever.
"""

import os
import time
from typing import Final

AHEAD_NS: Final = int(os.environ.get("SPL_TEST_CLOCK_AHEAD_MS", "0")) * 1_000_000
_time, _time_ns = time.time, time.time_ns


def _later() -> float:
    return _time() + AHEAD_NS / 1e9


def _later_ns() -> int:
    return _time_ns() + AHEAD_NS


time.time, time.time_ns = _later, _later_ns
