"""Every command with streams that take nothing: one clear line and an exit code, never a traceback."""

import errno
import io
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

import pytest

from spl.cli import main as cli
from spl.cli.command import Command
from tests.cli.conftest import Daemon, Stream
from tests.cli.test_main import entries
from tests.cli.test_out_screens import SCREENS

FULL: Final = "error: the output cannot be written: No space left on device [output-failed]"
NO_ANSWERS: Final = {
    "serve", "init", "demo", "federation soak", "monitor", "wait daemon", "wait pair", "wait caught-up",
}  # fmt: skip
"""Commands that would start something if they ran, or wait for a daemon."""


class FullDisk(io.RawIOBase):
    """What takes no byte until it is told to; then what was kept back for it can be dropped."""

    takes = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.takes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


@contextmanager
def full() -> Iterator[TextIO]:
    """Yield a stream on a disk without room."""
    disk = FullDisk()
    with io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8") as stream:
        yield stream
        disk.takes = True


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs words against given streams, as `main` does, and returns the exit code."""
    monkeypatch.setenv("HOME", str(home.parent))
    env = {"SYNCROPEL_HOME": str(home), "HOME": str(home.parent), "LANG": "C.UTF-8"}

    def run(words: list[str], stdout: Any, stderr: Any) -> int:
        return cli.run(words, env, io.BytesIO(), stdout, stderr)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_help_on_a_full_disk_is_one_line_and_exit_1(run: Callable[..., int], name: str) -> None:
    err = Stream(tty=False)
    with full() as out:
        assert run([*name.split(), "--help"], out, err) == 1
    assert err.text.splitlines()[0] == FULL
    assert len(err.text.splitlines()) <= 4
    with full() as out, full() as also:
        assert run([*name.split(), "--help"], out, also) == 1


@pytest.mark.parametrize("words", SCREENS)
def test_a_result_on_a_full_disk_is_one_line_and_exit_1(run: Callable[..., int], daemon: Daemon, words: str) -> None:
    daemon.answers.update(SCREENS[words])
    good = Stream(tty=False)
    code = run(shlex.split(words), good, Stream(tty=False))
    daemon.answers.update(SCREENS[words])
    err = Stream(tty=False)
    with full() as out:
        found = run(shlex.split(words), out, err)
    if good.text:
        assert found == 1
        assert FULL in err.text.splitlines()
    else:
        assert found == code
    with full() as messages:
        assert run(shlex.split(words), Stream(tty=False), messages) == code


@pytest.mark.parametrize("entry", [each for each in entries() if isinstance(each, Command)], ids=lambda each: each.name)
def test_a_message_that_cannot_be_written_changes_no_exit_code(run: Callable[..., int], entry: Command) -> None:
    """Without a daemon each command has something to say on stderr, or its result."""
    if entry.name in NO_ANSWERS or entry.name == "context remove":  # its second run finds nothing to remove
        return
    words = shlex.split(entry.example.splitlines()[0].replace("<(", "").rstrip(")"))
    words = words[words.index("spl") + 1 :]
    words = words[: next((at for at, word in enumerate(words) if word in "|<>"), None)]
    # Twice, as what a command removes is gone for the next one.
    code = [run(words, Stream(tty=False), Stream(tty=False)) for _ in range(2)][-1]
    with full() as messages:
        assert run(words, Stream(tty=False), messages) == code
