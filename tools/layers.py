#!/usr/bin/env python3
"""Check the imports of `spl/` against its floors; print file:line for each breach and exit 1 if there are any.

    python tools/layers.py [FOLDER]

    core  net | home  sync  host  engine  pairing  doctor  ui  api | client  daemon  cli

A module imports only what stands left of its own place in that line, and `net` and `home` never import each other.
Inside a place there is no import circle.  Imports from elsewhere are the standard library, nacl and uvloop.
Nothing of the product is imported here: the files are read.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = "spl"
ORDER: Final = "core  net | home  sync  host  engine  pairing  doctor  ui  api | client  daemon  cli"
"""The one list of places, bottom up; `|` joins two that stand on the same floor."""

FLOORS: Final = {
    place: floor for floor, group in enumerate(ORDER.replace(" | ", "|").split()) for place in group.split("|")
} | {"__main__": len(ORDER.split())}
"""First part of a module's name below the package -> its floor."""

CORE_OF_NET: Final = frozenset({"errors", "event", "limits", "value", "when", "version"})
"""Modules of core/ that hold no record, so that net/ can be vendored with them."""

_LOOP: Final = frozenset({"asyncio", "socket", "ssl", "selectors", "select", "http", "urllib.request"})
_WORLD: Final = frozenset(
    {
        *("os", "time", "random", "secrets", "logging", "pathlib", "io", "tempfile", "shutil", "subprocess", "sys"),
        *("threading", "multiprocessing", "concurrent", "signal", "uuid", "sqlite3", "mmap", "fcntl"),
    }
)
REFUSED: Final[dict[str, frozenset[str]]] = {
    "core": _LOOP | _WORLD,
    "home": _LOOP,
    "cli": frozenset({"asyncio", "ssl", "nacl", "uvloop"}),
}
"""Place -> modules of elsewhere that no file there imports."""

THIRD_PARTY: Final = {"nacl": frozenset({"core.keys"}), "uvloop": frozenset({"daemon"})}
"""Package from outside -> the only files that import it."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import: the line, the module named, and whether it is one of ours (then the name lacks the package)."""

    line: int
    name: str
    ours: bool
    top: bool


def modules(root: Path) -> dict[str, Path]:
    """Return name -> file of every module of the package at `root`; "core.canon", "hub", "core" for a folder."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, name: str, known: frozenset[str]) -> Iterator[Import]:
    """Yield every import of the module `name` that `path` holds, functions included; `known` are our modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    top = set(_top_level(tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                ours = alias.name.partition(".")[0] == PACKAGE
                yield Import(node.lineno, alias.name.removeprefix(f"{PACKAGE}."), ours, node in top)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node, package, known, node in top)


def breaches(root: Path) -> list[str]:
    """Return every breach as "file:line: text", in the order of the files."""
    files = modules(root)
    known = frozenset(files)
    found, graph = [], {}
    for name, path in files.items():
        lines = list(dict.fromkeys(imports(path, name, known)))
        graph[name] = sorted({item.name for item in lines if item.ours})
        where = path.relative_to(root)
        found += [f"{where}:{item.line}: {text}" for item in lines for text in _faults(name, item, known)]
        if name and name.partition(".")[0] not in FLOORS:
            found.append(f"{where}:1: {name} has no place in the order of tools/layers.py")
    return found + [
        f"{files[circle[0]].relative_to(root)}:1: import circle {' -> '.join(circle)}" for circle in circles(graph)
    ]


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Return each import circle once, as the path from its least module back to itself."""
    found: dict[frozenset[str], list[str]] = {}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            least = circle.index(min(circle))
            found.setdefault(frozenset(circle), [*circle[least:], *circle[:least], circle[least]])
        elif name not in done:
            for other in graph.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return sorted(found.values())


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the module's own statements, those inside top-level try and if included."""
    for node in body:
        yield node
        if isinstance(node, ast.Try):
            handled = [line for handler in node.handlers for line in handler.body]
            yield from _top_level(node.body + node.orelse + handled)
        elif isinstance(node, ast.If):
            yield from _top_level(node.body + node.orelse)


def _from(node: ast.ImportFrom, package: str, known: frozenset[str], top: bool) -> Iterator[Import]:
    module = node.module or ""
    if not node.level:
        ours = module.partition(".")[0] == PACKAGE
        yield Import(node.lineno, module.removeprefix(PACKAGE).removeprefix(".") if ours else module, ours, top)
        return
    parts = package.split(".") if package else []
    base = ".".join([*parts[: len(parts) - node.level + 1], *([module] if module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}" if base else alias.name
        yield Import(node.lineno, inner if inner in known else base, True, top)


def _faults(name: str, item: Import, known: frozenset[str]) -> Iterator[str]:
    if item.ours:
        if item.name not in known:
            yield f"there is no module {item.name or PACKAGE!r}"
        elif item.name and name:
            yield from _floor_faults(name, item.name)
        return
    head = item.name.partition(".")[0]
    place = name.partition(".")[0]
    if {item.name, head} & REFUSED.get(place, frozenset()):
        yield f"{place} imports {item.name}"
    if head in THIRD_PARTY and name not in THIRD_PARTY[head]:
        yield f"only {', '.join(sorted(THIRD_PARTY[head]))} may import {head}"
    if head not in THIRD_PARTY and head not in sys.stdlib_module_names:
        yield f"{head} is neither ours nor of the standard library"


def _floor_faults(name: str, target: str) -> Iterator[str]:
    here, there = name.partition(".")[0], target.partition(".")[0]
    low, high = FLOORS.get(here, len(FLOORS)), FLOORS.get(there, len(FLOORS))
    if high > low:
        yield f"{name} imports {target}, which stands above it"
    elif low == high and here != there:
        yield f"{name} imports {target}: {here} and {there} never import each other"
    elif here == "net" and there == "core" and target.removeprefix("core.") not in CORE_OF_NET:
        yield f"net knows no records, yet {name} imports {target}"


def main() -> int:
    """Print the breaches below the folder given, by default this checkout; return the exit code."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = breaches(root)
    print("\n".join([*found, f"layers: {len(found)} breaches" if found else "layers: ok"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
