"""What is uploaded: archives of the same bytes from the same sources, whose tests run and whose pages can be read."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from spl.cli.main import PLACES

ROOT = Path(__file__).resolve().parents[2]
TREE = (
    "spl",
    "tests",
    "tools",
    ".ci",
    "Containerfile",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.py",
)


def build(source: Path, target: Path, **env: str) -> list[Path]:
    """Build both archives of a tree, as `pip wheel` does it, with the setuptools of this environment."""
    code = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
    whole = {**os.environ, "SOURCE_DATE_EPOCH": "1764000000", "PYTHONDONTWRITEBYTECODE": "1", **env}
    target.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code, target], cwd=source, capture_output=True, text=True, env=whole)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return sorted(target.iterdir())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because a build writes beside the sources."""
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "spl/py.typed").chmod(0o664)  # as a checkout under another umask has it
    return folder


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The source archive and the wheel of this tree."""
    return build(tree, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(built: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(next(path for path in built if path.suffix == ".gz")) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def test_what_is_uploaded_is_well_formed(built: list[Path]) -> None:
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(built) == 2


def test_the_archive_builds_the_same_archives(built: list[Path], unpacked: Path, tmp_path: Path) -> None:
    """In another folder, by another clock and order of hashes."""
    again = build(unpacked, tmp_path / "dist", PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert [path.name for path in again] == [path.name for path in built]
    for first, second in zip(built, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_the_wheel_has_a_page_for_every_command_and_nothing_of_the_tests(built: list[Path]) -> None:
    wheel = next(path for path in built if path.suffix == ".whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    pages = {name.rpartition("/")[2] for name in names if ".data/data/share/man/man1/" in name}
    assert "spl.1" in pages
    assert {noun for noun in PLACES if not any(page.startswith(f"spl-{noun}") for page in pages)} == set()
    assert not [name for name in names if name.startswith(("tests", "tools"))]


def test_the_tests_of_the_archive_are_all_there_and_run(tree: Path, unpacked: Path) -> None:
    for folder in ("spl", "tests", "tools", ".ci"):
        ours, theirs = (
            {path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file()}
            for root in (tree, unpacked)
        )
        assert {path for path in ours - theirs if "__pycache__" not in path.parts} == set()
    words = ["-q", "-p", "no:cacheprovider", "tests/core/test_when.py", "tests/core/test_backoff.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
