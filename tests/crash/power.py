"""Power cuts for real daemons: what a disk of its own would have lost, taken from the home after SIGKILL.

`python -m tests.crash.power serve …` is a daemon that notes, in a journal outside its home, which bytes it wrote and
which it synced, and which names it changed in which folder.  The journal is written without syncs, so it outlives the
process and costs little.  `cut` then plays the power cut: of the writes that no sync covered it leaves all, none, the
first ones with a torn one at their end, or any of them, with zeros where one is missing; of the names that were changed
since the folder was synced it takes the last ones back.  What is left is on the disk for good, as after a real cut.

The simulator's disk does the same in memory (tests/sim/disk.py); this one meets the real files, kernel and processes.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from spl.home.disk import Disk, File

SIDE = "SPL_POWER"
LIES = "SPL_POWER_LIES"
"""Set for a daemon that does not sync its files: what it acknowledges is lost, and that must be seen."""
JOURNAL = "journal"


class Journal:
    """The journal of one home, in a folder beside it; old files that a name lost are kept there, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._fd = os.open(folder / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *what: object) -> None:
        os.write(self._fd, json.dumps(what).encode() + b"\n")

    def keep(self, path: Path) -> str:
        """Keep the file that has a name, and return what it is called here; "" if no file has it."""
        kept = self.folder / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            os.link(path, kept)
        except FileNotFoundError:
            return ""
        return str(kept)


class Noting(File):
    """A file that may be written."""

    __slots__ = ("_journal", "_number")

    def __init__(self, file: File, journal: Journal) -> None:
        super().__init__(os.dup(file._fd))
        self._journal, self._number = journal, os.fstat(self._fd).st_ino
        file.close()

    def write(self, data: bytes) -> None:
        self._journal.note("write", self._number, self.size(), len(data))
        super().write(data)

    def pwrite(self, data: bytes, offset: int) -> None:
        self._journal.note("write", self._number, offset, len(data))
        super().pwrite(data, offset)

    def sync(self) -> float:
        if os.environ.get(LIES):
            return 0.0
        took_ms = super().sync()
        self._journal.note("sync", self._number)
        return took_ms


def install(journal: Journal) -> None:
    """Let every disk of this process note what it does."""
    real_rename, real_unlink, real_sync = Disk.rename, Disk.unlink, Disk.fsync_dir

    def noting(opens: Any) -> Any:
        def method(self: Disk, path: Path) -> File:
            was_there = path.exists()
            found = Noting(opens(self, path), journal)
            if not was_there:
                journal.note("name", str(path.parent), str(path), "", "", "")
            return found

        return method

    def rename(self: Disk, old: Path, new: Path) -> None:
        kept = journal.keep(new)
        real_rename(self, old, new)
        journal.note("name", str(new.parent), str(new), kept, str(old), "")

    def unlink(self: Disk, path: Path) -> None:
        if kept := journal.keep(path):
            real_unlink(self, path)
            journal.note("name", str(path.parent), "", kept, "", str(path))

    def fsync_dir(self: Disk, folder: Path) -> None:
        real_sync(self, folder)
        journal.note("folder", str(folder))

    changes = {"rename": rename, "unlink": unlink, "fsync_dir": fsync_dir}
    changes |= {name: noting(getattr(Disk, name)) for name in ("open_append", "open_edit", "create")}
    for name, method in changes.items():
        setattr(Disk, name, method)


def cut(home: Path, side: Path, dice: Random) -> int:
    """Take from a home, whose daemon is dead, what a power cut would take; return how many writes and names it took."""
    writes: dict[int, list[tuple[int, int]]] = {}
    names: dict[str, list[list[str]]] = {}
    for what, *facts in _noted(side / JOURNAL):
        match what:
            case "write":
                writes.setdefault(facts[0], []).append((facts[1], facts[2]))
            case "sync":
                writes.pop(facts[0], None)
            case "name":
                names.setdefault(facts[0], []).append(facts[1:])
            case "folder":
                names.pop(facts[0], None)
    lost = 0
    for changes in names.values():
        for change in reversed(changes[dice.randint(0, len(changes)) :]):
            _take_back(*change)
            lost += 1
    for path in sorted(path for path in home.rglob("*") if path.is_file() and not path.is_symlink()):
        lost += _lose(path, writes.get(path.stat().st_ino, []), dice)
    for path in side.iterdir():
        path.unlink()
    os.sync()
    return lost


def _noted(path: Path) -> Iterator[list[Any]]:
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if line.endswith(b"\n"):  # the last one may be cut by the kill itself
            yield json.loads(line)


def _take_back(new: str, kept: str, old: str, removed: str) -> None:
    """Give names back what they stood for: a new file goes, a renamed or removed one is where it was."""
    if old and os.path.exists(new):
        os.rename(new, old)
    elif new and os.path.exists(new):
        os.unlink(new)
    if kept and os.path.exists(kept):
        os.replace(kept, removed or new)


def _lose(path: Path, writes: list[tuple[int, int]], dice: Random) -> int:
    """Lose a part of the unsynced writes of a file; return how many."""
    kept = [True] * len(writes)
    torn = -1
    match dice.randrange(4):
        case 0:
            kept = [False] * len(writes)
        case 1:
            count = dice.randint(0, len(writes))
            kept = [number < count for number in range(len(writes))]
            torn = count
        case 2:
            kept = [dice.random() < 0.5 for _ in writes]
    size = path.stat().st_size
    first = min((offset for offset, _ in writes), default=size)
    data = bytearray(path.read_bytes()[first:])
    image, end = bytearray(len(data)), 0
    for number, (offset, length) in enumerate(writes):
        keep = length if kept[number] else dice.randint(0, length) if torn == number else 0
        start = offset - first
        keep = max(0, min(keep, len(data) - start))  # a write may be noted that the kill prevented
        image[start : start + keep] = data[start : start + keep]
        end = max(end, start + keep if keep else 0)
    if all(kept):
        return 0
    with path.open("r+b") as file:
        file.seek(first)
        file.write(image[:end])
        file.truncate(first + end)
    return kept.count(False)


if __name__ == "__main__":
    from spl.cli.main import main

    install(Journal(Path(os.environ[SIDE])))
    sys.exit(main())
