#!/usr/bin/env python3
"""The one command before a commit: format, lint, types, layers, house rules, tests.

    python tools/check.py [--only PART[,PART…]] [-- PYTEST ARGUMENTS]

Each part prints its findings as file:line and the run goes on to the next, so that one call shows everything; the exit
code is 1 when any part found something.  A part whose tool is missing says so and counts as left out: harmless on a
developer's machine, a failure with CI=true.
"""

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import layers
import syntax

ROOT: Final = Path(__file__).resolve().parent.parent
FILE_LINES_MAX: Final = 500
FUNCTION_LINES_MAX: Final = 40
BOUNDARIES: Final = {
    "spl/net/connection.py": ("__exit__",),
    "spl/daemon.py": ("except Exception",),
    "spl/sync/supervise.py": ("except Exception",),
}
"""File -> where an exception of any kind may end in it: the connection boundary and the task boundary."""

UNMIRRORED: Final = frozenset(
    {"__main__", "api.services", "core.limits", "core.version", "core.identity.words", "daemon", "home.writes"}
)
"""Modules without a test file: values alone, and the daemon, which tests/e2e runs as a process."""

TESTS_OF_THEIR_OWN: Final = frozenset(
    {"attack", "crash", "e2e", "fuzz", "homes", "mutation", "sim", "tools", "vectors"}
)
"""Folders of tests/ that mirror no module."""

PARAMETERS_MAX: Final = 8
PUBLIC: Final = "spl/client/__init__.py"
"""The only __init__ with names in it: what programs import."""
FOLDER_ENTRIES_MAX: Final = 22
LEAVES: Final = frozenset({"api/", "cli/"})
"""Folders whose files have one shape, so that many of them are still easy to read."""

PACKAGE: Final = layers.PACKAGE
MAP_FOLDER: Final = re.compile(r"    ([a-z]+(?:/[a-z]+)*/)(?:  |$)")
MAP_FILES: Final = re.compile(r"        ([a-z0-9_]+(?: [a-z0-9_]+)*)(?:  |$)")
"""A line of the map that opens a folder, and one that names files in it; two blanks end the names."""

STALE_WORDS: Final = re.compile(
    r"\b(anew|whoever|reckon\w*|tell whether|take note that|or nobody|somebody must|hinders?)\b", re.IGNORECASE
)
"""Words of no technical English: "again", "clients that", "compute", "return whether", "record that"."""

CLOCK: Final = "a clock, which tests move"
BARE_JSON: Final = "dict[str, object]"
"""What only core/value.py writes out: it says neither whose keys these are nor that they are a form at all."""

HANDED: Final = {
    "now_ms": CLOCK,
    "now_s": CLOCK,
    "steady_ms": CLOCK,
    "steady_ns": CLOCK,
    "steady_s": CLOCK,
    "clock": CLOCK,
    "sleep": CLOCK,
    "random_bytes": "one source, which the simulation replays",
    "reconcile": "made late",
    "make": "made late",
    "load": "made late",
    "form": "made late",
    "read": "bytes of a file, of a segment or of a snapshot",
    "remember": "there is no vault yet while a log is opened",
    "taken": "the connection stands above the body",
    "trace": "there are commands without a screen",
}
"""Parameter of a constructor -> why a function and no object is handed over."""

BOUNDING: Final = re.compile(r"_?[A-Z][A-Z0-9_]*_MAX")
"""What a constant is called that bounds what comes from outside; those that an operator may set are in Limits."""

Rule = Callable[[], list[str]]


def main() -> int:
    """Run the parts asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated: " + " ".join(PARTS))
    parser.add_argument("rest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {' '.join(PARTS)}")
    failed, left_out = [], []
    for name in names:
        code = PARTS[name](options.rest if name == "tests" else [])
        if code is None:
            left_out.append(name)
        elif code:
            failed.append(name)
        print(
            f"check: {name}: {'left out, its tool is missing' if code is None else 'FAILED' if code else 'ok'}",
            flush=True,
        )
    if left_out and os.environ.get("CI") == "true":
        failed += left_out
    print(f"check: {'FAILED: ' + ' '.join(failed) if failed else 'ok'}")
    return 1 if failed else 0


def tool(module: str, *arguments: str) -> Callable[[list[str]], int | None]:
    """Return a part that runs `python -m module`; the part returns None when the module is not installed."""

    def run(more: list[str]) -> int | None:
        if importlib.util.find_spec(module) is None:
            return None
        return subprocess.run([sys.executable, "-m", module, *arguments, *more], cwd=ROOT, check=False).returncode

    return run


def report(*rules: Rule) -> Callable[[list[str]], int | None]:
    """Return a part that prints what the rules find."""

    def run(_: list[str]) -> int | None:
        found = [line for rule in rules for line in rule()]
        print("\n".join(found), end="\n" if found else "")
        return 1 if found else 0

    return run


def sources(*folders: str) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to the root, path) of every Python file below the folders, in order."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path


def sizes() -> list[str]:
    """Return the files over 500 lines and the functions over 40 lines of code."""
    found = []
    for name, path in sources("spl", "tools", "tests"):
        text = path.read_text()
        if (count := text.count("\n")) > FILE_LINES_MAX:
            found.append(f"{name}:1: {count} lines, the limit is {FILE_LINES_MAX}")
        code = syntax.code_lines(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = len(code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if own > FUNCTION_LINES_MAX:
                    found.append(
                        f"{name}:{node.lineno}: {node.name} has {own} lines of code, over {FUNCTION_LINES_MAX}"
                    )
    return found


def import_style() -> list[str]:
    """Return the imports that are absolute where they should be relative, or not at the top of their file."""
    files = layers.modules(ROOT)
    found = []
    for name, path in files.items():
        where = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text())
        found += [f"{where}:{line}: import our own modules relatively" for line in syntax.absolute_lines(tree)]
        found += [
            f"{where}:{item.line}: imports stand at the top of the file"
            for item in layers.imports(path, name, frozenset(files))
            if not item.top
        ]
    return found


def boundaries() -> list[str]:
    """Return where an exception of any kind ends outside the two boundaries, and where one of these is gone.

    It ends in `except Exception`, in a catch-all that does not re-raise and in an `__exit__` that can return true.
    """
    found = []
    for name, path in sources("spl"):
        granted = list(BOUNDARIES.get(name, ()))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.ExceptHandler, *syntax.FUNCTIONS)):
                continue
            what = syntax.swallows(node)
            if what in granted:
                granted.remove(what)
            elif what:
                found.append(f"{name}:{node.lineno}: {what} outside the two boundaries")
            elif syntax.eats_cancellation(node):
                found.append(f"{name}:{node.lineno}: a catch-all that does not re-raise eats cancellation")
        found += [f"{name}:1: BOUNDARIES names an {what} that is gone" for what in granted]
    return found


def tasks() -> list[str]:
    """Return the tasks that belong to no TaskGroup: bare create_task, ensure_future, gather."""
    found = []
    for name, path in sources("spl"):
        tree = ast.parse(path.read_text())
        groups = syntax.task_groups(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called, owner = syntax.called(node.func)
            if called in {"gather", "ensure_future"} and owner in {"", "asyncio"}:
                found.append(f"{name}:{node.lineno}: {called} belongs to no TaskGroup")
            if called == "create_task" and owner.rpartition(".")[2] not in groups:
                found.append(f"{name}:{node.lineno}: create_task on {owner or 'nothing'!r}, which is no TaskGroup")
    return found


def language() -> list[str]:
    """Return the words in code and pages that a maintainer of another project would stumble over."""
    pages = [ROOT / "README.md", *sorted((ROOT / "spl").rglob("*.md")), *(path for _, path in sources("spl", "tools"))]
    return [
        f"{path.relative_to(ROOT).as_posix()}:{number}: plain English for {found[0]!r}"
        for path in pages
        if path.is_file() and path.name != "check.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := STALE_WORDS.search(line))
    ]


def names() -> list[str]:
    """Return modules named like one of the standard library, catch-all names, and __init__ files with code in them."""
    found = []
    for name, path in sources("spl", "tools"):
        stem = path.stem
        if stem in sys.stdlib_module_names and stem != "__main__":
            found.append(f"{name}:1: {stem} is a module of the standard library")
        if stem in {"utils", "util", "helpers", "common", "misc", "base", "types"}:
            found.append(f"{name}:1: {stem} says nothing about what is in it")
        if stem == "__init__" and name != PUBLIC:
            tree = ast.parse(path.read_text())
            if len(tree.body) != 1 or ast.get_docstring(tree) is None:
                found.append(f"{name}:1: __init__.py holds one docstring")
    return found


def constructors() -> list[str]:
    """Return the constructors with more than 8 parameters; the fields of a value are data."""
    return [
        f"{name}:{node.lineno}: {node.name} takes {count} parameters, over {PARAMETERS_MAX}"
        for name, path in sources("spl")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and (count := syntax.parameters(node)) > PARAMETERS_MAX
    ]


def callbacks() -> list[str]:
    """Return the constructors of public classes that take a function which HANDED gives no reason for."""
    return [
        f"{name}:{item.lineno}: {node.name} takes the function {argument.arg}; hand an object over"
        for name, path in sources("spl")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name == "__init__"
        for argument in (*item.args.args, *item.args.kwonlyargs)
        if argument.annotation and "Callable[" in ast.unparse(argument.annotation) and argument.arg not in HANDED
    ]


def json_alias() -> list[str]:
    """Return where a JSON object has no name: core/value.py calls it Json, and says what it is for."""
    return [
        f"{name}:{number}: {BARE_JSON} is Json of core/value, or a value"
        for name, path in sources("spl")
        if name != "spl/core/value.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BARE_JSON in line
    ]


def bounds() -> list[str]:
    """Return the bounds outside `Limits` that no comment or docstring beside them explains."""
    found = []
    for name, path in sources("spl"):
        if name.startswith(("spl/cli/", "spl/ui/")):  # what they show is cut to the screen
            continue
        text = path.read_text()
        lines, body = text.splitlines(), ast.parse(text).body
        for place, node in enumerate(body):
            if not isinstance(node, ast.AnnAssign | ast.Assign) or not syntax.is_number(node.value):
                continue
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            beside = body[place + 1] if place + 1 < len(body) else None
            told = isinstance(beside, ast.Expr) and isinstance(beside.value, ast.Constant)
            told = told or "#" in lines[node.lineno - 1] or lines[node.lineno - 2].startswith("#")
            if not told and BOUNDING.fullmatch(ast.unparse(target)):
                found.append(f"{name}:{node.lineno}: {ast.unparse(target)} bounds something; say what and why")
    return found


def class_names() -> list[str]:
    """Return the public classes and aliases of one name in two files: one word per idea."""
    first: dict[str, str] = {}
    found = []
    for name, path in sources("spl"):
        for node in ast.parse(path.read_text()).body:
            for word in syntax.named_types(node):
                other = first.setdefault(word, name)
                if other != name:
                    found.append(f"{name}:{node.lineno}: {word} is a class of {other}, too")
    return found


def listing() -> list[str]:
    """Return where the map in `spl/__init__.py` and the files of `spl/` differ, folder by folder."""
    path = ROOT / PACKAGE / "__init__.py"
    mapped = _mapped(ast.get_docstring(ast.parse(path.read_text())) or "")
    there = _folders(ROOT / PACKAGE)
    found = [
        f"spl/__init__.py:1: the map {verb} {folder}{entry}"
        for folder in sorted(mapped.keys() | there.keys())
        for verb, entries in (
            ("lacks", there.get(folder, set()) - mapped.get(folder, set())),
            ("still has", mapped.get(folder, set()) - there.get(folder, set())),
        )
        for entry in sorted(entries)
    ]
    return found + [
        f"spl/{folder}:1: {len(entries)} entries, the limit is {FOLDER_ENTRIES_MAX}"
        for folder, entries in there.items()
        if len(entries) > FOLDER_ENTRIES_MAX and folder not in LEAVES
    ]


def mirror() -> list[str]:
    """Return tests that mirror no module, and modules that no test mirrors."""
    modules = {name for name, path in layers.modules(ROOT).items() if path.name != "__init__.py"}
    found, mirrored = [], set(UNMIRRORED)
    for name, path in sources("tests"):
        parts = path.relative_to(ROOT / "tests").with_suffix("").parts
        if parts[0] in TESTS_OF_THEIR_OWN or not parts[-1].startswith("test_"):
            continue
        module = _mirrored(parts, modules)
        mirrored.add(module)
        if module not in modules:
            found.append(f"{name}:1: there is no spl/{module.replace('.', '/')}.py")
    missing = sorted(modules - mirrored)
    return found + [f"spl/{name.replace('.', '/')}.py:1: no test file mirrors it" for name in missing]


def _mirrored(parts: tuple[str, ...], modules: set[str]) -> str:
    """Return the module that a test file mirrors: test_log.py and test_log_damage.py both mirror log.py."""
    words = parts[-1].removeprefix("test_").split("_")
    names = [".".join([*parts[:-1], "_".join(words[:end])]) for end in range(len(words), 0, -1)]
    return next((name for name in names if name in modules), names[0])


def _mapped(text: str) -> dict[str, set[str]]:
    """Return folder -> entries of the map: each line `core/  what is in it`, then lines of `file  what it is`."""
    found: dict[str, set[str]] = {}
    folder = None
    for line in text.splitlines():
        if match := MAP_FOLDER.match(line):
            folder = match[1]
            found[folder] = set()
        elif folder is not None and (match := MAP_FILES.match(line)):
            found[folder] |= set(match[1].split())
        elif not line.strip():
            folder = None
    return found


def _folders(root: Path) -> dict[str, set[str]]:
    """Return folder -> its modules and folders, for the package and everything below it."""
    found: dict[str, set[str]] = {}
    for path in sorted(root.rglob("*.py")):
        folder = path.relative_to(root).parent.as_posix()
        name = "" if folder == "." else f"{folder}/"
        if path.stem != "__init__":
            found.setdefault(name, set()).add(path.stem)
        elif "/" in name.rstrip("/"):
            found.setdefault(f"{path.parent.parent.name}/", set()).add(path.parent.name)
    found.pop("", None)
    return found


def codes() -> list[str]:
    """Return the error codes raised that the registry lacks, and the entries that nothing in the product names."""
    registry = ROOT / "spl/core/errors.py"
    known = _registry(registry)
    errors = _error_classes()
    named: set[str] = set()
    found = []
    for name, path in sources("spl"):
        if path == registry:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
            if isinstance(node, ast.Call) and node.args and syntax.called(node.func)[0] in errors:
                found += [
                    f"{name}:{node.lineno}: {code!r} is not in CODES"
                    for code in syntax.literals(node.args[0])
                    if code not in known
                ]
    return found + [
        f"spl/core/errors.py:{line}: nothing in spl/ names {code!r}"
        for code, line in known.items()
        if code not in named
    ]


def _registry(path: Path) -> dict[str, int]:
    """Return code -> line of the CODES table."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CODES" and isinstance(node.value, ast.Dict):
            return {
                key.value: key.lineno
                for key in node.value.keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    raise SystemExit(f"{path}: no CODES table")


def _error_classes() -> set[str]:
    """Return the names of SplError and of every class below it."""
    bases: dict[str, set[str]] = {}
    for _, path in sources("spl"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    found = {"SplError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


RULES: Final[tuple[Rule, ...]] = (
    sizes, import_style, boundaries, tasks, names, language, constructors, callbacks, json_alias, bounds, class_names,
    listing, mirror, codes,
)  # fmt: skip

PARTS: Final[dict[str, Callable[[list[str]], int | None]]] = {
    "format": tool("ruff", "format", "--check", "--quiet", "spl", "tools", "tests"),
    "lint": tool("ruff", "check", "--output-format=concise", "spl", "tools", "tests"),
    "types": tool("mypy"),
    "layers": report(lambda: layers.breaches(ROOT)),
    "rules": report(*RULES),
    "tests": tool("pytest"),
}

if __name__ == "__main__":
    sys.exit(main())
