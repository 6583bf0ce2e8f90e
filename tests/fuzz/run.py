"""`tools/fuzz`: feeds one parser with inputs from seeds for as long as one likes."""

import argparse
import sys
import time
import traceback

from .stores import Lines, Logs, Tables
from .target import Target
from .texts import Canon, Cursors, Expressions, Manifests, Snapshots
from .wire import Chunks, Events, Requests, Responses

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (Requests(), Responses(), Chunks(), Events(), Canon(), Cursors(), Manifests(), Expressions(),
                   Snapshots(), Lines(), Logs(), Tables())
}  # fmt: skip


def main() -> int:
    """Run the targets that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description="Feed parsers with inputs, each from its seed.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=10.0, metavar="N", help="how long for each target")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="this input alone")
    parser.add_argument("--first", type=int, default=1_000_000, metavar="S", help="the first of many")
    options = parser.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no target {unknown.pop()!r}; there are {' '.join(TARGETS)}")
    broken = 0
    for name in options.targets or TARGETS:
        target = TARGETS[name]
        corpus, seed, faults = target.corpus(), options.first, 0
        end = time.monotonic() + options.seconds
        while time.monotonic() < end and faults < 5:
            faults += _faulty(target, seed if options.seed is None else options.seed, corpus)
            seed += 1
            if options.seed is not None:
                break
        print(f"{name}: {seed - options.first} inputs, {faults} broken", flush=True)
        broken += faults
    return 1 if broken else 0


def _faulty(target: Target, seed: int, corpus: list[bytes]) -> bool:
    try:
        target.run(seed, corpus)
    except Exception:  # noqa: BLE001 -- whatever a parser lets through is a find
        traceback.print_exc(file=sys.stdout)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
