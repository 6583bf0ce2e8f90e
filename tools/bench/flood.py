#!/usr/bin/env python3
"""Flood a daemon by strangers from 300 addresses; print what it costs, and whether that is within its bounds.

    python tools/bench/flood.py [--seconds 600]

Memory, log and store may grow by so much, however long it lasts; a start, a paired peer's lag and `status` may slow
down by so much, beside minutes in which the same clients flood another listener.  Two minutes and some restarts come
on top of the seconds, of which the times need sixty.  The machine should do nothing else.  Exit code 1: over a bound.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
TEST: Final = "tests/attack/test_flood.py"
MARK: Final = "flood: "


def main() -> int:
    """Run the flood and pass its figures on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    seconds = parser.parse_args().seconds
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", TEST]
    env = {**os.environ, "SPL_FLOOD_S": str(seconds)}
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        for line in test.stdout:
            at = line.find(MARK)
            if at >= 0 or line.startswith("E "):
                print(line[max(at, 0) :].rstrip(), flush=True)
    return 1 if test.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
