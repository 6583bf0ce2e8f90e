"""`tools/sim`: worlds from their seeds, one after another.

It needs PYTHONHASHSEED=0, or sets of texts have another order in each process and a seed another life.
"""

import argparse
import gc
import logging
import os
import sys
from functools import partial

from .life import BRIEF_S, FAULTS_S, live
from .loop import OWNER
from .world import Broken, Late, World


class Telling(logging.Handler):
    """Puts the log lines of the daemons among what happened."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.told.append(
            f"{self.world.loop.time():12.6f}   {OWNER.get()}: {record.getMessage()} {getattr(record, 'fields', {})}"
        )


def main() -> int:
    """Run the seeds that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/sim", description="Run simulated worlds, each from its seed.")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many")
    parser.add_argument("--seed", type=int, default=0, metavar="FIRST", help="the first of them")
    parser.add_argument("--safety", action="store_true", help="do not count worlds that only converge too late")
    parser.add_argument("--brief", action="store_true", help="shorter phases of faults: other lives, half the time")
    parser.add_argument("--tell", action="store_true", help="print what happened")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        parser.error("set PYTHONHASHSEED=0")
    broken = 0
    gc.collect()
    gc.freeze()  # what was imported is never looked through again
    for seed in range(options.seed, options.seed + options.seeds):
        fault = _ran(seed, is_brief=options.brief, tells=options.tell)
        broken += fault is not None and not (options.safety and isinstance(fault, Late))
    print(f"{options.seeds} worlds, {broken} broken")
    return 1 if broken else 0


def _ran(seed: int, *, is_brief: bool, tells: bool) -> Broken | None:
    """Run one seed and print its line; return the promise that did not hold, if one did not."""
    fault: Broken | None = None
    life = partial(live, faults_s=BRIEF_S if is_brief else FAULTS_S)
    world, log = World(seed, " --brief" if is_brief else ""), logging.getLogger("spl")
    log.propagate = False
    telling = Telling(world)
    if tells:
        log.setLevel(logging.DEBUG)
        log.addHandler(telling)
    try:
        line = f"{seed} {world.run(life)[:32]} {len(world.nodes)} nodes {world.loop.time():.0f} s"
    except Broken as exc:
        line, fault = str(exc), exc
    log.removeHandler(telling)
    if tells:
        print("\n".join(world.told))
    print(line, flush=True)
    return fault


if __name__ == "__main__":
    sys.exit(main())
