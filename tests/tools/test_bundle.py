"""The single file: the same from the same sources, small, and a whole spl on a bare Python."""

import ast
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Instance

ROOT = Path(__file__).resolve().parents[2]
BYTES_MAX = 660_000
LIB_BYTES_MAX = 5_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    subprocess.run([sys.executable, ROOT / "tools/bundle", "--lib", folder], check=True, capture_output=True)
    return folder


def test_it_is_small_and_the_same_again(built: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, ROOT / "tools/bundle", tmp_path], check=True, capture_output=True, env=env)
    first, second = ((folder / "spl.pyz").read_bytes() for folder in (built, tmp_path))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert len(first) <= BYTES_MAX
    assert sum(file.stat().st_size for file in (built / "lib").rglob("*") if file.is_file()) <= LIB_BYTES_MAX
    with zipfile.ZipFile(built / "spl.pyz") as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pyc", ".so"))]


def test_a_daemon_runs_from_it_without_site_packages(built: Path, tmp_path: Path) -> None:
    """-S leaves out what is installed: PyNaCl comes from lib/ beside the file."""
    alice = Instance("alice", tmp_path / "home")
    alice.home.mkdir(mode=0o700)
    env = {"HOME": str(tmp_path), "SYNCROPEL_HOME": str(alice.home), "PATH": os.environ["PATH"], "SPL_LOOP": "asyncio"}
    command = [sys.executable, "-S", "-E", str(built / "spl.pyz")]

    def run(*words: str) -> str:
        return subprocess.run([*command, *words], env=env, check=True, capture_output=True, text=True).stdout

    assert "did:sync:instance:alice-" in run("init", "--label", "alice")
    assert run("help", "pairs").startswith("# Pairs")
    alice.process = subprocess.Popen([*command, "serve", "--port", str(alice.port)], env=env, stderr=subprocess.PIPE)
    try:
        assert alice.process.stderr is not None
        assert b"event=daemon.listening" in alice.process.stderr.readline()
        assert run("health").startswith("ok")
    finally:
        alice.process.kill()
        alice.process.communicate()


def test_every_module_loads_from_it(built: Path) -> None:
    """With the names that it imports, of which those for types alone are left out."""
    code = (
        "import importlib, pkgutil, spl; "
        "[importlib.import_module(each.name) for each in pkgutil.walk_packages(spl.__path__, 'spl.') "
        "if not each.name.endswith('__main__')]"
    )
    env = {"PYTHONPATH": f"{built / 'spl.pyz'}:{built / 'lib'}", "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-S", "-P", "-c", code], env=env, check=True)


class WithoutTypes(ast.NodeTransformer):
    """What `bare` promises, done to a tree; imports are left out, as another test covers them."""

    def visit(self, node: ast.AST) -> Any:
        members = {id(each) for each in node.body} if isinstance(node, ast.ClassDef) else set()
        if isinstance(getattr(node, "body", None), list):
            kept = [each for each in node.body if not is_text(each) and not isinstance(each, ast.ImportFrom)]  # type: ignore[attr-defined]
            node.body = [member(each) if id(each) in members else untyped(each) for each in kept]  # type: ignore[attr-defined]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        return self.generic_visit(node)


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def member(node: ast.stmt) -> ast.stmt:
    if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
        node.annotation = ast.Name("int", ast.Load())
    return node


def untyped(node: ast.stmt) -> ast.stmt:
    if not isinstance(node, ast.AnnAssign) or node.value is None:
        return node
    return ast.Assign([node.target], node.value, lineno=node.lineno)


def test_the_rest_is_the_same_program_and_lines_keep_their_numbers(built: Path) -> None:
    with zipfile.ZipFile(built / "spl.pyz") as archive:
        for path in (ROOT / "spl/core").rglob("*.py"):
            kept = archive.read(path.relative_to(ROOT).as_posix()).decode()
            trees = [ast.dump(WithoutTypes().visit(ast.parse(text))) for text in (kept, path.read_text())]
            assert trees[0] == trees[1], path
            defs = [
                [number for number, line in enumerate(text.splitlines()) if line.startswith("def ")]
                for text in (kept, path.read_text())
            ]
            assert defs[0] == defs[1]
