"""What commands write where others may write, too: no link is followed, no FIFO waited for, nothing else replaced."""

import ast
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from spl.cli import main as cli
from spl.cli.command import write_file
from tests.cli.conftest import Stream

CLI: Final = Path(cli.__file__).parent
PLACES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "install-service": (("install-service", "--user"), "systemd/user/spl.service"),
    "pages": (("help", "--man", "{folder}"), "spl.1"),
    "soak": (("federation", "soak", "--report", "{folder}/report.html"), "report.html"),
    "identity": (("identity", "export", "--out", "{folder}/me.json"), "me.json"),
}
"""Command -> its words, and what it writes, below a folder."""


def spl(folder: Path, *words: str) -> tuple[int, str]:
    """Run a command whose home and settings lie beside the folder; return its exit code and stderr."""
    env = {"SYNCROPEL_HOME": f"{folder}-home", "HOME": f"{folder}-user", "XDG_CONFIG_HOME": str(folder)}
    out, err = Stream(False), Stream(False)
    code = cli.run([word.replace("{folder}", str(folder)) for word in words], env, io.BytesIO(b""), out, err)
    return code, err.text


def link(path: Path) -> Path:
    """Plant a link to a file of the user's."""
    target = path.parent / "theirs"
    target.write_text("kept")
    path.symlink_to(target)
    return target


def dangling(path: Path) -> Path:
    """Plant a link to a file that is not there yet."""
    target = path.parent / "not-there"
    path.symlink_to(target)
    return target


def fifo(path: Path) -> Path:
    """Plant a FIFO that nobody reads."""
    os.mkfifo(path)
    return path


PLANTED: Final[tuple[Callable[[Path], Path], ...]] = (link, dangling, fifo)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", PLACES)
def test_what_was_planted_is_not_written_through(name: str, plant: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    words, written = PLACES[name]
    path = folder / written
    path.parent.mkdir(parents=True)
    if name == "identity":
        assert spl(folder, "init")[0] == 0
    target = plant(path)
    before = os.lstat(path)
    code, said = spl(folder, *words)
    assert code in (1, 2), said
    assert str(path) in said or written in said or str(folder) in said
    assert "Traceback" not in said
    found = os.lstat(path)
    assert (found.st_ino, stat.S_IFMT(found.st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert not target.is_file() or target.read_text() == "kept"
    assert not [each for each in path.parent.iterdir() if each.name.startswith(".")], "a temporary is left"


def test_a_file_is_replaced_whole_and_by_a_new_one(tmp_path: Path) -> None:
    """So one that is linked hard to elsewhere, or that others hold open, keeps what it has."""
    path, other = tmp_path / "unit", tmp_path / "other"
    path.write_text("old")
    other.hardlink_to(path)
    write_file(path, None)
    assert (path.read_text(), path.samefile(other)) == ("old", True)
    write_file(path, "new")
    assert (path.read_text(), other.read_text()) == ("new", "old")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "unit"]


def test_a_file_of_another_owner_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unit"
    path.write_text("old")
    monkeypatch.setattr("spl.cli.command.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="owned by user"):
        write_file(path, "new")
    assert path.read_text() == "old"


def test_every_command_writes_files_in_one_of_these_ways() -> None:
    """A new way to write a file belongs into the table above."""
    ways = set()
    for file in sorted(CLI.glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            modes = {arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
            flags = {each.attr for arg in call.args for each in ast.walk(arg) if isinstance(each, ast.Attribute)}
            opens = name in ("open", "fdopen") and modes & {"w", "wb", "a", "ab", "x", "xb", "r+"}
            if (
                opens
                or name in ("write_text", "write_bytes", "mkstemp")
                or (name == "open" and flags & {"O_CREAT", "O_WRONLY"})
            ):
                ways.add((file.name, name))
    assert ways == {
        ("command.py", "open"), ("command.py", "fdopen"),  # write_file
        ("identity.py", "open"), ("identity.py", "fdopen"),  # a new file alone
        ("temporary.py", "open"),  # in a folder that was just made for it
        ("main.py", "open"),  # /dev/null
    }  # fmt: skip
