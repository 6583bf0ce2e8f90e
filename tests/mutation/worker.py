"""One forked process for each run of tests: a module is read from a tree in memory, so no file of the project changes.

The parent has imported pytest and nothing of the product; so a run costs the import of what it tests, some half a
second, and what one mutant broke is gone with its process.
"""

import ast
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

LOOK_S = 0.01
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
        imported = wanted & self.lines.get(IMPORT, set())
        found = [test for test, run in self.lines.items() if test and (imported or run & wanted)]
        return sorted(found, key=lambda test: self.times_s[test])


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
        if _forked(run, 1200.0, str(Path(folder) / "said")) != 0:
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
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setpgid(0, 0)
            to = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(to, 1)
            os.dup2(to, 2)
            code = run()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1
        time.sleep(LOOK_S)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test left behind
    return os.waitstatus_to_exitcode(status)
