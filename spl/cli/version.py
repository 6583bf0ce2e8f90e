"""`spl version`: what is installed here, without asking a daemon."""

import platform
from argparse import Namespace
from typing import Final

from ..core.version import VERSION
from .command import Command, Shell


def _version(args: Namespace, shell: Shell) -> int:
    data = {"version": VERSION, "python": platform.python_version()}
    if not shell.out.data("spl.version/1", data, lambda: None):
        shell.out.line(f"spl {VERSION}")
    return 0


TREE: Final = (
    Command(
        "version",
        "The version of the commands installed here. `spl status` tells that of the running daemon,\n"
        "which differs after an upgrade until the daemon is restarted.",
        "spl version",
        _version,
    ),
)
