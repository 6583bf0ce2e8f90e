"""The guard of the floors: each rule finds its breach, and a clean house passes."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools/layers.py"
HOUSE = {
    "__init__.py": '"""The house."""\n',
    "core/__init__.py": '"""Rules."""\n',
    "core/keys.py": "import nacl\n",
    "core/errors.py": "import re\n",
    "core/record.py": "from . import keys\nfrom .errors import SplError\n",
    "store.py": "import os\nfrom .core.record import check\n",
    "net/__init__.py": '"""Bytes."""\n',
    "net/client.py": "import asyncio\nfrom ..core.errors import SplError\n",
    "feed.py": "from .net import client\nfrom .store import Store\n",
    "sync.py": "from .store import Store\n",
    "daemon.py": "try:\n    import uvloop\nexcept ImportError:\n    uvloop = None\nfrom . import feed, sync\n",
    "cli/__init__.py": '"""Words."""\n',
    "cli/main.py": "from ..core.errors import SplError\n",
}


def guard(folder: Path, changes: dict[str, str]) -> tuple[int, str]:
    """Return (exit code, output) of the guard over the house with the changes."""
    for name, text in {**HOUSE, **changes}.items():
        path = folder / "spl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run([sys.executable, TOOL, folder], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_clean_house_passes(tmp_path: Path) -> None:
    """Imports down the floors are no breach."""
    assert guard(tmp_path, {}) == (0, "layers: ok\n")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("core/record.py", "import os\n", "spl/core/record.py:1: core imports os"),
        ("core/record.py", "def now():\n    from time import time\n", "spl/core/record.py:2: core imports time"),
        ("core/record.py", "import nacl.bindings\n", "nacl is imported by core.keys only"),
        ("core/record.py", "from ..store import Store\n", "core.record (floor 0) imports store (floor 1): up"),
        ("store.py", "import asyncio\n", "spl/store.py:1: ground imports asyncio"),
        ("store.py", "import numpy\n", "numpy is neither ours nor of the standard library"),
        ("net/client.py", "from ..core.record import check\n", "net knows no records"),
        ("net/client.py", "from ..store import Store\n", "net knows no records"),
        ("sync.py", "from . import feed\n", "sync imports feed: services never import each other"),
        ("feed.py", "import spl.daemon\n", "feed (floor 3) imports daemon (floor 4): up"),
        ("feed.py", "from .gone import x\n", "no module 'gone' in the house"),
        ("cli/main.py", "import ssl\n", "spl/cli/main.py:1: cli imports ssl"),
        ("cli/main.py", "import uvloop\n", "uvloop is imported by"),
        ("attic.py", "", "attic has no floor"),
        ("core/errors.py", "from .record import check\n", "import circle core.errors -> core.record -> core.errors"),
    ],
)
def test_each_breach_is_found_with_its_place(tmp_path: Path, name: str, text: str, says: str) -> None:
    """The exit code is 1 and the line names file, number and reason."""
    code, output = guard(tmp_path, {name: text})
    assert code == 1
    assert says in output
