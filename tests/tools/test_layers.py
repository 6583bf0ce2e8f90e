"""The check of the floors: each rule finds its breach, and a clean house passes."""

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
    "home/__init__.py": '"""Files."""\n',
    "home/log.py": "import os\nfrom ..core.record import check\n",
    "net/__init__.py": '"""Bytes."""\n',
    "net/client.py": "import asyncio\nfrom ..core.errors import SplError\n",
    "sync/__init__.py": '"""Both sides."""\n',
    "sync/pull.py": "from ..net import client\nfrom ..home.log import Log\n",
    "api/__init__.py": '"""Routes."""\n',
    "api/app.py": "from ..sync import pull\n",
    "daemon.py": "try:\n    import uvloop\nexcept ImportError:\n    uvloop = None\nfrom .api import app\n",
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
        ("core/record.py", "import nacl.bindings\n", "only core.keys may import nacl"),
        ("core/record.py", "from ..home.log import Log\n", "core.record imports home.log, which stands above it"),
        ("home/log.py", "import asyncio\n", "spl/home/log.py:1: home imports asyncio"),
        ("home/log.py", "import numpy\n", "numpy is neither ours nor of the standard library"),
        ("home/log.py", "from ..net import client\n", "home and net never import each other"),
        ("net/client.py", "from ..core.record import check\n", "net knows no records"),
        ("net/client.py", "from ..home.log import Log\n", "net and home never import each other"),
        ("sync/pull.py", "from ..api import app\n", "sync.pull imports api.app, which stands above it"),
        ("api/app.py", "import spl.daemon\n", "api.app imports daemon, which stands above it"),
        ("sync/pull.py", "from .gone import x\n", "there is no module 'sync.gone'"),
        ("cli/main.py", "import ssl\n", "spl/cli/main.py:1: cli imports ssl"),
        ("cli/main.py", "import uvloop\n", "only daemon may import uvloop"),
        ("attic.py", "", "attic has no place in the order"),
        ("core/errors.py", "from .record import check\n", "import circle core.errors -> core.record -> core.errors"),
    ],
)
def test_each_breach_is_found_with_its_place(tmp_path: Path, name: str, text: str, says: str) -> None:
    """The exit code is 1 and the line names file, number and reason."""
    code, output = guard(tmp_path, {name: text})
    assert code == 1
    assert says in output
