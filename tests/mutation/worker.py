"""One forked process for each run of tests: a module is read from a tree in memory, so no file of the project changes.

What one mutant broke is gone with its process.  Two parents fork:

    Warm      has imported the tests and with them the module; the fault is put into the functions that there are, so
              that a run costs little more than its tests
    the tool  has imported pytest and nothing of the product: for what happens while the module is imported, and for
              all examples of a property instead of ten; a run costs half a second or more besides
"""

import ast
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NoReturn, Self

import pytest

from .mutants import Mutant, applied

LOOK_S = 0.002
CPU_S, WAIT_S = 0.5, 10.0
"""What a test may take with a fault besides a few times of what it takes without: of a processor, and in all."""
LIMIT_S = 1200.0
MEMORY_BYTES = 4 << 30
NOT_PUT_IN = 71
"""Exit code of a process whose functions cannot take the fault."""
IMPORT = ""
"""Stands for the test that a line runs in when it runs while the module is imported."""


@dataclass(frozen=True)
class Subject:
    """The module under test: its name, its file, the folder that tests run in, its tests and its text."""

    name: str
    path: Path
    root: Path
    tests: tuple[Path, ...]
    source: str


@dataclass
class Reached:
    """Which tests run which lines of a module, how long each and all of them take, and which draw their examples."""

    lines: dict[str, set[int]]
    times_s: dict[str, float]
    drawing: set[str]
    took_s: float

    def tests(self, lines: range) -> list[str]:
        """Return the tests that run one of these lines, the fastest first; all of them for lines that run at import."""
        wanted = set(lines)
        imported = self.imported(lines)
        found = [test for test, run in self.lines.items() if test and (imported or run & wanted)]
        return sorted(found, key=lambda test: self.times_s[test])

    def imported(self, lines: range) -> bool:
        """Return whether one of these lines runs while the module or a test is imported."""
        return not self.lines.get(IMPORT, set()).isdisjoint(lines)


class _Loader(SourceFileLoader):
    """Loads a module from a tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        super().__init__(name, str(path))
        self.tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.tree, self.path, "exec", dont_inherit=True)


class _Instead(MetaPathFinder):
    """Finds one module in a tree, before its file is found."""

    def __init__(self, subject: Subject, tree: ast.Module) -> None:
        self.subject, self.tree = subject, tree

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.subject.name:
            return None
        loader = _Loader(fullname, self.subject.path, self.tree)
        return spec_from_file_location(fullname, self.subject.path, loader=loader)


class _Only:
    """Plugin: runs the tests named, of those found, in their order."""

    def __init__(self, tests: Collection[str]) -> None:
        self.tests = tests

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        places = {test: number for number, test in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])


class _Trace:
    """Plugin: notes the lines of a file that each test runs, in any thread."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = str(path), IMPORT
        self.lines: dict[str, set[int]] = {IMPORT: set()}
        self.times_s: dict[str, float] = {}
        self.drawing: list[str] = []

    def begin(self) -> None:
        threading.settrace(self.enter)
        sys.settrace(self.enter)

    def enter(self, frame: FrameType, what: str, argument: Any) -> Any:
        return self.step if frame.f_code.co_filename == self.path else None

    def step(self, frame: FrameType, what: str, argument: Any) -> Any:
        self.lines[self.now].add(frame.f_lineno)
        return self.step

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.now = item.nodeid
        self.lines.setdefault(self.now, set())
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            self.drawing.append(self.now)
        start = time.monotonic()
        yield
        self.times_s[self.now] = time.monotonic() - start


class Warm:
    """A process that has imported a module and its tests, and forks for each mutant.  Use as a context."""

    def __init__(self, subject: Subject, found: Collection[Mutant]) -> None:
        self.subject = subject
        self.mutants = {mutant.key: mutant for mutant in found}

    def __enter__(self) -> Self:
        questions, answers = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.child = os.fork()
        if not self.child:
            os.close(questions[1])
            os.close(answers[0])
            self.questions, self.answers = os.fdopen(questions[0]), os.fdopen(answers[1], "w")
            _silenced(self._serve)
        os.close(questions[0])
        os.close(answers[1])
        self.questions_to, self.answers_from = os.fdopen(questions[1], "w"), os.fdopen(answers[0])
        return self

    def __exit__(self, *fault: object) -> None:
        self.questions_to.close()
        self.answers_from.close()
        os.waitpid(self.child, 0)

    def survives(self, mutant: Mutant | None, times_s: dict[str, float]) -> bool | None:
        """Return whether tests pass with the fault, with ten examples each; None if it cannot be put in.

        Without a mutant nothing is put in.  `times_s` names the tests in their order, and what each takes without.
        """
        print(json.dumps([mutant.key if mutant else "", times_s]), file=self.questions_to, flush=True)
        answer = self.answers_from.readline()
        if not answer:
            raise SystemExit(f"the tests of {self.subject.name} cannot be imported")
        return None if int(answer) == NOT_PUT_IN else int(answer) == 0

    def _serve(self) -> int:
        os.environ["SPL_TEST_QUICK"] = "1"
        return _pytest(self.subject, ast.parse(self.subject.source), [self])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Answer questions instead of running the tests that were found."""
        path, items = str(self.subject.path), {item.nodeid: item for item in session.items}
        functions = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
        functions = [each for each in functions if each.__code__.co_filename == path]
        gc.freeze()

        def run(key: str, times_s: dict[str, float]) -> int:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            if key and not self._put_in(self.mutants[key], functions):
                return NOT_PUT_IN
            chosen = [items[test] for test in times_s]
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                # The signals end the process.
                signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S + 3 * times_s[item.nodeid])
                signal.setitimer(signal.ITIMER_REAL, WAIT_S + 10 * times_s[item.nodeid])
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    return 1
            return 0

        for question in self.questions:
            key, times_s = json.loads(question)
            print(_forked(partial(run, key, times_s), LIMIT_S, os.devnull), file=self.answers, flush=True)
        return True

    def _put_in(self, mutant: Mutant, functions: Collection[FunctionType]) -> bool:
        """Give the functions the code that they have with the fault; return whether they take it."""
        tree = applied(self.subject.source, mutant)
        found = _codes(compile(tree, self.subject.path, "exec", dont_inherit=True))
        try:
            for function in functions:
                old = function.__code__
                same = found.get((old.co_qualname, old.co_firstlineno), [])
                if len(same) == 1:  # of others, lambdas in one line, nothing is mutated but what is imported
                    function.__code__ = same[0]
        except ValueError:  # it uses other variables of what is around it
            return False
        return True


def _codes(code: CodeType) -> dict[tuple[str, int], list[CodeType]]:
    """Return the code of all functions in a module, by name and line."""
    found: dict[tuple[str, int], list[CodeType]] = {}
    left = [code]
    for each in left:
        left += [inner for inner in each.co_consts if isinstance(inner, CodeType)]
        found.setdefault((each.co_qualname, each.co_firstlineno), []).append(each)
    return found


def reached(subject: Subject) -> Reached:
    """Run the tests of a module without a fault.  Raises SystemExit unless they pass."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "lines"

        def run() -> int:
            trace = _Trace(subject.path)
            trace.begin()
            code = _pytest(subject, ast.parse(subject.source), [trace])
            sys.settrace(None)
            lines = {test: sorted(lines) for test, lines in trace.lines.items()}
            result.write_text(json.dumps([lines, trace.times_s, trace.drawing]))
            return code

        start = time.monotonic()
        if _forked(run, LIMIT_S, str(Path(folder) / "said")) != 0:
            raise SystemExit((Path(folder) / "said").read_text()[-4000:])
        lines, times_s, drawing = json.loads(result.read_text())
        took_s = time.monotonic() - start
        return Reached({test: set(run) for test, run in lines.items()}, times_s, set(drawing), took_s)


def survives(subject: Subject, tree: ast.Module, tests: Collection[str], limit_s: float, *, quick: bool) -> bool:
    """Return whether the tests named pass with this tree as the module; not within the limit is a failure."""

    def run() -> int:
        os.environ.pop("SPL_TEST_QUICK", None)
        if quick:
            os.environ["SPL_TEST_QUICK"] = "1"
        return _pytest(subject, tree, [_Only(tests)])

    return _forked(run, limit_s, os.devnull) == 0


def _pytest(subject: Subject, tree: ast.Module, plugins: list[object]) -> int:
    sys.meta_path.insert(0, _Instead(subject, tree))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    return int(pytest.main([*options, *map(str, subject.tests)], plugins=plugins))


def _forked(run: Callable[[], int], limit_s: float, output: str) -> int:
    """Return what `run` returns in a process of its own; -1 if it did not end in time, or ended otherwise."""
    sys.stdout.flush()
    folder = tempfile.mkdtemp(prefix="spl-mutate-")
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        _silenced(run, output)
    try:
        return _awaited(child, time.monotonic() + limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what a test left behind
        shutil.rmtree(folder, ignore_errors=True)


def _silenced(run: Callable[[], int], output: str = os.devnull) -> NoReturn:
    """End this process with what `run` returns; what it prints goes to a file."""
    code = 70
    try:
        to = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(to, 1)
        os.dup2(to, 2)
        code = run()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _awaited(child: int, end: float) -> int:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1
        time.sleep(LOOK_S)
