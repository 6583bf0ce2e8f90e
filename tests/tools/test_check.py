"""The house rules: each finds its breach with file and line, and leaves clean code alone."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parent.parent.parent / "tools"
ERRORS = 'CODES: Final[dict[str, Code]] = {\n    "known": 1,\n    "unused": 2,\n}\nclass SplError(Exception): ...\n'
NINE = "a, b, c, d, e, f, g, h, i"
WIDE = "class A:\n    def __init__(self, " + NINE + ") -> None: ...\n"
BAG = "@dataclass(slots=True)\nclass A:\n" + "".join(f"    {name}: int\n" for name in NINE.split(", "))
BAG += "    def f(self) -> int: ...\n"
TOLD = "class A:\n    def __init__(self, tell: Callable[[], None]) -> None: ...\n"
VALUE = BAG.replace("slots=True", "frozen=True, slots=True")
MAP = '"""The map.\n\n    a/  what a does\n        one gone  two words\n        two\n\nMore.\n"""\n'
EXIT = "def __exit__(self, kind, exc, trace):\n"
OUTSIDE = " outside the two boundaries"
GROUP = "async def run():\n    async with asyncio.TaskGroup() as tasks:\n        tasks.create_task(one())\n"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return tools/check.py, looking at an empty house."""
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    spec = importlib.util.spec_from_file_location("check_under_test", TOOLS / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """Return a writer of files of the house."""

    def writer(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return writer


@pytest.mark.parametrize(
    ("rule", "name", "text", "found"),
    [
        ("sizes", "spl/a.py", "x = 1\n" * 501, ["spl/a.py:1: 501 lines, the limit is 500"]),
        ("sizes", "spl/a.py", "def f():\n" + "    x = 1\n" * 40, ["spl/a.py:1: f has 41 lines of code, over 40"]),
        ("sizes", "spl/a.py", 'def f():\n    """D.\n\n    E.\n    """\n\n    # why\n' + "    x = 1\n" * 39, []),
        ("import_style", "spl/a.py", "from spl.core import b\n", ["spl/a.py:1: import our own modules relatively"]),
        ("import_style", "spl/a.py", "def f():\n    import re\n", ["spl/a.py:2: imports stand at the top of the file"]),
        ("import_style", "spl/a.py", "try:\n    import uvloop\nexcept ImportError:\n    uvloop = None\n", []),
        ("boundaries", "spl/a.py", "try:\n    x\nexcept Exception:\n    y\n", 1),
        ("boundaries", "spl/a.py", "try:\n    x\nexcept (OSError, Exception):\n    y\n", 1),
        ("boundaries", "spl/a.py", "try:\n    x\nexcept:\n    y\n", 1),
        ("boundaries", "spl/a.py", "try:\n    x\nexcept BaseException:\n    y\n    raise\n", []),
        ("boundaries", "spl/a.py", EXIT + "    return kind is not None\n", [f"spl/a.py:1: __exit__{OUTSIDE}"]),
        ("boundaries", "spl/a.py", f"async {EXIT}    return True\n".replace("_e", "_ae"), 1),
        ("boundaries", "spl/a.py", EXIT + "    if kind:\n        return False\n    return\n", []),
        ("boundaries", "spl/net/connection.py", EXIT + "    return True\n", []),
        ("boundaries", "spl/net/connection.py", EXIT + "    return False\n", 1),
        ("boundaries", "spl/net/connection.py", EXIT + "    return True\ntry:\n    x\nexcept Exception:\n    y\n", 1),
        ("language", "spl/a.py", '"""Return it, made anew."""\n', ["spl/a.py:1: plain English for 'anew'"]),
        ("language", "spl/manual/a.md", "Whoever asks\n", ["spl/manual/a.md:1: plain English for 'Whoever'"]),
        ("language", "spl/a.py", '"""Return what was renewed."""\n', []),
        ("tasks", "spl/a.py", "asyncio.create_task(one())\n", 1),
        ("tasks", "spl/a.py", "asyncio.gather(one())\n", 1),
        ("tasks", "spl/a.py", GROUP, []),
        ("tasks", "spl/a.py", "def f(group: asyncio.TaskGroup):\n    group.create_task(one())\n", []),
        ("names", "spl/token.py", "", ["spl/token.py:1: token is a module of the standard library"]),
        ("names", "spl/utils.py", "", 1),
        ("names", "spl/__init__.py", "x = 1\n", ["spl/__init__.py:1: __init__.py holds one docstring"]),
        ("constructors", "spl/a.py", WIDE, ["spl/a.py:1: A takes 9 parameters, over 8"]),
        ("constructors", "spl/a.py", WIDE.replace("a, ", "*, "), []),
        ("constructors", "spl/a.py", BAG, ["spl/a.py:2: A takes 9 parameters, over 8"]),
        ("callbacks", "spl/a.py", TOLD, ["spl/a.py:2: A takes the function tell; hand an object over"]),
        ("callbacks", "spl/a.py", TOLD.replace("tell", "now_ms"), []),
        ("callbacks", "spl/a.py", TOLD.replace("class A", "class _A"), []),
        ("json_alias", "spl/a.py", "def f() -> dict[str, object]: ...\n", 1),
        ("json_alias", "spl/core/value.py", "Json = dict[str, object]\n", []),
        ("bounds", "spl/a.py", "NAMES_MAX: Final = 8\n", ["spl/a.py:1: NAMES_MAX bounds something; say what and why"]),
        ("bounds", "spl/a.py", "NAMES_MAX: Final = 8 * KIB  # of one page\n", []),
        ("bounds", "spl/a.py", 'NAMES_MAX: Final = 8\n"""Of one page."""\n', []),
        ("bounds", "spl/a.py", 'NAMES_MAX: Final = "b"\nNAMES: Final = 3\n', []),
        ("constructors", "spl/a.py", VALUE, []),
        ("mirror", "tests/test_gone.py", "", ["tests/test_gone.py:1: there is no spl/gone.py"]),
        ("mirror", "spl/core/a.py", "", ["spl/core/a.py:1: no test file mirrors it"]),
        ("mirror", "tests/e2e/test_page.py", "", []),
    ],
)
def test_each_rule_finds_its_breach_and_nothing_else(
    check: ModuleType, write: Callable[[str, str], None], rule: str, name: str, text: str, found: list[str] | int
) -> None:
    """The findings are those expected: by text, or by number."""
    write(name, text)
    lines = getattr(check, rule)()
    assert lines == found or len(lines) == found


def test_one_word_names_one_class(check: ModuleType, write: Callable[[str, str], None]) -> None:
    """A class or alias of a type that another file has too is named; constants and private classes are not."""
    write("spl/a.py", "class Abc: ...\nclass _P: ...\nLIMIT = 1\nShape = int | str\n")
    write("spl/b.py", "class _P: ...\nLIMIT = 2\nAbc = int\nclass Shape: ...\n")
    assert check.class_names() == [
        "spl/b.py:3: Abc is a class of spl/a.py, too",
        "spl/b.py:4: Shape is a class of spl/a.py, too",
    ]


def test_the_map_is_held_against_the_tree(check: ModuleType, write: Callable[[str, str], None]) -> None:
    """A file that the map lacks and one that is gone are named; a folder of more than twenty-two entries, too."""
    write("spl/__init__.py", MAP)
    for name in ("__init__", "one", "two", "new"):
        write(f"spl/a/{name}.py", "")
    assert check.listing() == ["spl/__init__.py:1: the map lacks a/new", "spl/__init__.py:1: the map still has a/gone"]
    write("spl/__init__.py", MAP.replace("gone", " ".join(f"m{n}" for n in range(20)) + " new"))
    for n in range(20):
        write(f"spl/a/m{n}.py", "")
    assert check.listing() == ["spl/a/:1: 23 entries, the limit is 22"]


def test_codes_are_held_against_what_is_raised(check: ModuleType, write: Callable[[str, str], None]) -> None:
    """A code that the registry lacks, and an entry that nothing names, also through a subclass and a choice."""
    write("spl/core/errors.py", ERRORS)
    write("spl/a.py", 'class AError(SplError): ...\nraise AError("known")\nraise AError("new" if x else "known")\n')
    assert check.codes() == [
        "spl/a.py:3: 'new' is not in CODES",
        "spl/core/errors.py:3: nothing in spl/ names 'unused'",
    ]
