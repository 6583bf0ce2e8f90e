#!/usr/bin/env python3
"""Hold the imports of `spl/` against the floors of the house; print file:line for each breach and exit 1.

    python tools/layers.py [FOLDER]

    5  cli/       prints; no asyncio, ssl, nacl
    4  app        api doctor logs setup daemon
    3  services   auth feed pairing sync push reconcile soak; they never import each other
    2  net/       bytes and sockets; of core/ it knows only what has no record in it
    1  ground     disk line segments table index store views vault config hub home; files, no sockets, no asyncio
    0  core/      values and rules; no I/O, clock, randomness, environment, logging

A file imports its own floor and floors below, never up; no circle; nothing outside the standard library but nacl (in
core/keys) and uvloop.  Nothing of the product is imported here: the files are read.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = "spl"
SERVICES: Final = {
    "auth": ("auth",),
    "feed": ("feed", "acks", "offer", "counts", "shown", "source", "tail", "bells"),
    "sync": ("sync", "pull", "follow", "intake", "jury", "wire"),
    "pairing": (
        *("pairing", "pairs", "published", "responder", "initiator", "driver", "renewal", "talk", "upkeep"),
        *("grants", "handover"),
    ),
    "history": ("history",),
    "push": ("push",),
    "reconcile": ("reconcile", "shared"),
    "soak": ("soak",),
}
"""Service -> its files; files of one service may import each other, services never."""

GROUND: Final = (
    "disk", "line", "segments", "recover", "table", "index", "store", "views", "vault", "config", "hub", "home",
    "desk", "snapshot", "restore", "storecheck", "policy", "lists", "claims", "states", "adapters", "remains",
)  # fmt: skip
FLOORS: Final = {
    "core": 0,
    **dict.fromkeys(GROUND, 1),
    "net": 2,
    **{name: 3 for files in SERVICES.values() for name in files},
    **dict.fromkeys(("api", "doctor", "checkup", "facts", "pulse", "logs", "setup", "wiring", "daemon"), 4),
    "cli": 5,
    "__main__": 5,
}
"""First part of a module's name below the package -> its floor."""

NET_MAY_IMPORT: Final = frozenset({"errors", "limits", "when", "backoff", "version"})
"""Modules of core/ that hold no record, so that net/ can be vendored with them."""

_LOOP: Final = frozenset({"asyncio", "socket", "ssl", "selectors", "select", "http", "urllib.request"})
_WORLD: Final = frozenset(
    {
        "os",
        "time",
        "random",
        "secrets",
        "logging",
        "pathlib",
        "io",
        "tempfile",
        "shutil",
        "subprocess",
        "threading",
        "multiprocessing",
        "concurrent",
        "signal",
        "sys",
        "uuid",
        "sqlite3",
        "mmap",
        "fcntl",
    }
)
REFUSED: Final[dict[str, frozenset[str]]] = {
    "core": _LOOP | _WORLD,
    "ground": _LOOP,
    "cli": frozenset({"asyncio", "ssl", "nacl", "uvloop"}),
}
"""Where -> modules of elsewhere that no file there imports."""

THIRD_PARTY: Final = {"nacl": frozenset({"core.keys"}), "uvloop": frozenset({"daemon", "__main__", "cli.serve"})}
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
            found.append(f"{where}:1: {name} has no floor; name it in tools/layers.py")
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
            yield f"no module {item.name or PACKAGE!r} in the house"
        elif item.name and name:
            yield from _floor_faults(name, item.name)
        return
    head = item.name.partition(".")[0]
    first = name.partition(".")[0]
    floor = "ground" if FLOORS.get(first) == 1 else first
    if {item.name, head} & REFUSED.get(floor, frozenset()):
        yield f"{floor} imports {item.name}"
    if head in THIRD_PARTY and name not in THIRD_PARTY[head]:
        yield f"{head} is imported by {', '.join(sorted(THIRD_PARTY[head]))} only"
    if head not in THIRD_PARTY and head not in sys.stdlib_module_names:
        yield f"{head} is neither ours nor of the standard library"


def _floor_faults(name: str, target: str) -> Iterator[str]:
    here, there = name.partition(".")[0], target.partition(".")[0]
    low, high = FLOORS.get(here, 5), FLOORS.get(there, 5)
    if high > low:
        yield f"{name} (floor {low}) imports {target} (floor {high}): up"
    if low == high and _service(here) != _service(there):
        yield f"{name} imports {target}: services never import each other"
    if here == "net" and low != high and target.removeprefix("core.") not in NET_MAY_IMPORT:
        yield f"net knows no records, yet {name} imports {target}"


def _service(head: str) -> str:
    """Return the service that a file belongs to, "" for one of another floor."""
    return next((service for service, files in SERVICES.items() if head in files), "")


def main() -> int:
    """Print the breaches below the folder given, by default this checkout; return the exit code."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = breaches(root)
    print("\n".join([*found, f"layers: {len(found)} breaches" if found else "layers: ok"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
