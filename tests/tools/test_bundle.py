"""The single file: the same from the same sources, small, and a whole spl on a bare Python."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.e2e.harness import Instance

ROOT = Path(__file__).resolve().parents[2]
BYTES_MAX = 720_000
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


def test_lines_keep_their_numbers(built: Path) -> None:
    with zipfile.ZipFile(built / "spl.pyz") as archive:
        for path in (ROOT / "spl/core").glob("*.py"):
            kept = archive.read(path.relative_to(ROOT).as_posix()).decode().splitlines()
            lines = path.read_text().splitlines()
            assert len(kept) == len(lines)
            assert [n for n, line in enumerate(lines) if line.startswith("def ")] == [
                n for n, line in enumerate(kept) if line.startswith("def ")
            ]
