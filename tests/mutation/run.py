"""`tools/mutate`: puts one small fault after the other into a module, and names those that no test notices."""

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from .mutants import Mutant, applied, mutants
from .worker import Reached, Subject, Warm, reached, survives

ROOT = Path(__file__).parents[2]
EXPLAINED = Path(__file__).with_name("survivors.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants of the modules that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/mutate", description="Look for faults that no test notices.")
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="home/log, core/identity/pins …")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose name holds the text")
    parser.add_argument("--also", action="append", default=[], metavar="PATH", help="more tests than the mirror's")
    parser.add_argument("--part", default="1/1", metavar="N/OF", help="every OF-th mutant, from the N-th on")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--package", default="spl", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["CI"] = "true"  # the same examples each time
    os.chdir(options.root)
    sys.path.insert(0, str(options.root))
    known = tomllib.loads(EXPLAINED.read_text())
    part, of = map(int, options.part.split("/"))
    left = 0
    for name in options.modules:
        subject = subject_of(options.root, options.package, name, options.also)
        found = [each for each in mutants(subject.source) if options.only in each.key][part - 1 :: of]
        left += judged(subject, found, known.get(name.replace("/", "."), {}), is_whole=not options.only and of == 1)
    return 1 if left else 0


def subject_of(root: Path, package: str, name: str, also: Sequence[str]) -> Subject:
    """Return the module of a name like home/log, and the tests that mirror it."""
    path = root / package / f"{name}.py"
    if not path.is_file():
        raise SystemExit(f"there is no {path}")
    folder, stem = root / "tests" / Path(name).parent, path.stem
    others = {each.stem for each in path.parent.glob("*.py")}
    tests = [file for file in sorted(folder.glob(f"test_{stem}*.py")) if _mirrors(file.stem, stem, others)]
    return Subject(f"{package}/{name}".strip("/").replace("/", "."), path, root, (*tests, *map(Path, also)),
                   path.read_text())  # fmt: skip


def judged(subject: Subject, found: list[Mutant], known: dict[str, str], *, is_whole: bool) -> int:
    """Print what becomes of each mutant; return how many survive without an explanation."""
    ways = reached(subject)
    print(f"{subject.name}: {len(found)} mutants, {len(ways.lines) - 1} tests of {ways.took_s:.1f} s", flush=True)
    unexplained = explained = 0
    with Warm(subject, found) as warm:
        if not warm.survives(None, ways.times_s):
            raise SystemExit(f"the tests of {subject.name} fail in a process that others forked")
        for mutant in found:
            if not lives(subject, mutant, ways, warm):
                continue
            if mutant.key in known:
                explained += 1
                continue
            unexplained += 1
            print(f"{subject.path.relative_to(subject.root)}:{mutant.line}: {mutant.key}", flush=True)
    print(f"{subject.name}: {unexplained} survive, {explained} more are explained", flush=True)
    for key in known.keys() - {mutant.key for mutant in found} if is_whole else ():
        print(f"{subject.name}: explained, and no mutant any more: {key}")
    return unexplained


def lives(subject: Subject, mutant: Mutant, ways: Reached, warm: Warm) -> bool:
    """Return whether all tests that run the lines of a mutant pass with it."""
    tests = ways.tests(mutant.lines)
    if not tests:
        return True
    lived = None
    if not ways.imported(mutant.lines):
        lived = warm.survives(mutant, {test: ways.times_s[test] for test in tests})
    tree, limit_s = applied(subject.source, mutant), 20.0 + 4.0 * sum(ways.times_s[test] for test in tests)
    if lived is None:
        lived = survives(subject, tree, tests, limit_s, quick=True)
    drawing = [test for test in tests if test in ways.drawing]
    return lived and (not drawing or survives(subject, tree, drawing, limit_s, quick=False))


def _mirrors(file: str, stem: str, others: set[str]) -> bool:
    """Return whether a file of tests mirrors the module itself, and not another whose name is longer."""
    words = file.removeprefix("test_").split("_")
    names = ("_".join(words[:end]) for end in range(len(words), 0, -1))
    return next((name for name in names if name in others), "") == stem


if __name__ == "__main__":
    sys.exit(main())
