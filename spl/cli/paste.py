"""Commands as the reader can paste them: each names the home or the context that he named, wherever it is printed.

What is said with `--home` or before one command is not known to the next; without it a fix for one instance would act
on another.  Steps for somebody else (`on bob: spl ...`) stay as they are.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Final

from ..core.errors import CODES, SplError, steps
from ..core.version import SOCKET
from .command import Shell
from .fit import HOME_DEFAULT, tilde
from .out import label_of, short_did

_LOG_TAIL: Final = 256 * 1024
_LISTENED: Final = re.compile(rb"daemon\.listening\"?,? \"?port[=\": ]+([0-9]{1,5})\b")
_ELSEWHERE: Final = re.compile(
    r"(?:^|  )the peer says: |(?:^|  |\. |: )(?:[Oo]n(?! both sides| a network)|[Aa]sk|[Aa]t)"
    r" (?:(?!, then: )(?:[^:]|:[\d/]))+: "
)
"""Begins a step for the peer, or for another machine, or one that somebody else told us; what is "then" is ours."""
_OURS: Final = re.compile(
    r"(?:(?<=: )|(?<=  )|(?<=&& )|(?<=sudo )|^)spl (?!(?:help|version|context|completion|demo)\b)"
    r"(?=[a-z])(?!.* --(?:help|home|context)\b)"
)
_ON_THE_HOME: Final = re.compile(r"(?:init|serve|logs|install-service|config set)\b")
"""Commands that a daemon elsewhere cannot be asked for."""


def pasted(text: str, shell: Shell) -> str:
    """Return a text with its commands as they can be pasted here."""
    if (spl := _begin(shell)) == "spl":
        return text
    return "; ".join(step if _ELSEWHERE.search(step) else _OURS.sub(lambda found: _put(found, spl), step)
                     for step in steps(text))  # fmt: skip


def _put(found: re.Match[str], spl: str) -> str:
    local = "--context" in spl and _ON_THE_HOME.match(found.string, found.end())
    return f"on its machine: {found[0]}" if local else f"{spl} "


def _begin(shell: Shell) -> str:
    """Return how a command for the home or context of a shell begins."""
    try:
        if (context := shell.context) is not None:
            return f"spl --context {context.name}"
        return "spl" if shell.distant else spl_of(shell.home, shell.env)
    except SplError:  # which is what went wrong, and is told
        return "spl"


def with_start(exc: SplError, shell: Shell) -> SplError:
    """Return the error; one whose next step is a start with the command for it, for its home, as the hint."""
    if exc.hint == CODES["daemon-down"].fix:
        exc.hint = "on its machine: spl status" if shell.distant else start_of(shell.home, shell.env)
    elif exc.code == "program-replaced" and not shell.distant:
        with suppress(SplError, OSError):
            if pid := shell.ctl.pid():
                start = start_of(shell.home, shell.env)
                exc.hint = f"stop the daemon, which loses nothing: kill {pid}; then: {start}"
    return exc


def own_name(shell: Shell, name: str) -> str:
    """Return what to do about a name that is the asked daemon's own, so that another one was meant; "" if it is not."""
    with suppress(SplError):
        if (own := shell.ctl.instance()) and name in (own, short_did(own), label_of(own)):
            asked = f"{label_of(own)} is itself the daemon that was asked ({place_of(shell)})"
            return f"{asked}; for that of another home first: export SYNCROPEL_HOME=DIR; elsewhere: --context NAME"
    return ""


def place_of(shell: Shell) -> str:
    """Return where the daemon is that is asked: a home, or the URL of a context."""
    return shell.ctl.where.removesuffix("/" + SOCKET)


def start_of(home: str, env: Mapping[str, str]) -> str:
    """Return the command that starts the daemon of a home, with the port that it last had if that is another one.

    A home without an identity, such as one that a daemon made which could not listen, gets one first.
    """
    spl = spl_of(home, env)
    begin = "" if _has_identity(home) else f"{spl} init && "
    try:
        with open(os.path.join(home, "logs", "spl.log"), "rb", opener=_without_waiting) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL))
            ports = _LISTENED.findall(file.read(_LOG_TAIL))
    except OSError:
        ports = []
    return f"{begin}{spl} serve" + (f" --port {int(ports[-1])}" if ports and ports[-1] != b"9100" else "")


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe in its place, which nobody writes into, would keep us waiting for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def spl_of(home: str, env: Mapping[str, str]) -> str:
    """Return how a command for a home begins, whatever the shell that it is pasted into has set."""
    path, said = tilde(home, env), env.get("SYNCROPEL_HOME") or HOME_DEFAULT
    is_usual = path == HOME_DEFAULT == tilde(said, env)
    return "spl" if is_usual else f"SYNCROPEL_HOME={_quoted(path)} spl"


def _quoted(path: str) -> str:
    """Return a path as a shell takes it, with a ~ that still stands for HOME."""
    quote: Callable[[str], str] = import_module("shlex").quote
    return "~/" + quote(path[2:]) if path.startswith("~/") else quote(path)


def _has_identity(home: str) -> bool:
    """Return whether a home has an identity; one that we may not look into has."""
    try:
        os.stat(os.path.join(home, "keys", "identity.json"))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
