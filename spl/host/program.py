"""Files of the program that a running daemon imports when it first needs them.

An upgrade replaces the files under a daemon that runs.  What it imports after that would be another version beside the
one in memory, or not there at all; so nothing more is imported, and callers are told to restart it.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, Generic, TypeVar

from ..core.errors import SplError

PACKAGE: Final = str(__package__).partition(".")[0]
_Part = TypeVar("_Part")


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced; of the archive, if the program runs from one."""
    for place in (path, *path.parents):
        try:
            found = os.stat(place)
        except NotADirectoryError:
            continue
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


_FILE: Final = Path(str(sys.modules[PACKAGE].__file__))
_BEGAN: Final = _mark(_FILE)


def is_replaced() -> bool:
    """Return whether the program's files are not those that this process began with."""
    return _BEGAN is not None and _mark(_FILE) != _BEGAN


def check(name: str) -> None:
    """Raise SplError "program-replaced" if `load` would; imports nothing."""
    if f"{PACKAGE}.{name}" not in sys.modules and is_replaced():
        raise SplError("program-replaced")


def load(name: str) -> ModuleType:
    """Return a module of the package by its name in it, such as "doctor.examine"; imported at the first call.

    Raises SplError "program-replaced" if the files are not those that this process began with, "overloaded" if no
    descriptor is free for now.
    """
    whole = f"{PACKAGE}.{name}"
    if (known := sys.modules.get(whole)) is not None:
        return known
    check(name)
    try:
        return import_module(whole)
    except OSError as exc:
        raise SplError("overloaded", "the daemon cannot open another file for now") from exc


class Lazy(Generic[_Part]):
    """A part of the daemon that is made when it is first asked for, as its files take memory; for the event loop."""

    def __init__(self, make: Callable[[], _Part]) -> None:
        self._make = make
        self.made: _Part | None = None

    def __call__(self) -> _Part:
        """Return the part; raises as `load` does."""
        if self.made is None:
            self.made = self._make()
        return self.made
