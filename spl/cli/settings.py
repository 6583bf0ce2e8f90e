"""`spl config`: the effective configuration, setting a key of the file, and the rules."""

import os
import signal
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from ..client.calls import elements
from ..core.when import span_fine
from .client import CtlError
from .command import Command, Group, Shell, UsageError, arg
from .fit import tilde
from .rules import COMMANDS

_APPLIES_LATER: Final = "it applies at the next start of the daemon"
_TOLD: Final = "the daemon is told to read it; whether it took it: spl status"
READ_S: Final = 5.0
"""How long the daemon has to read the file again, which takes a moment."""
_ASK_S: Final = 0.05


def _show(args: Namespace, shell: Shell) -> int:
    settings = shell.ctl.items("/v1/config")
    if not shell.printed("spl.config/1", settings):
        rows = [(str(item["key"]), _value(str(item["key"]), item["value"]), str(item["source"])) for item in settings]
        shell.out.table(("KEY", "VALUE", "SOURCE"), rows, keep=("KEY", "VALUE"))
    return 0


def _set(args: Namespace, shell: Shell) -> int:
    """Change the file, and have the daemon read it if the key does not need a start."""
    if shell.distant:
        raise UsageError("usage", "this writes the file of a home here, and the daemon that is named is elsewhere")
    home, config, disk = shell.load("home.home"), shell.load("home.config"), shell.load("home.disk").Disk()
    path = Path(os.path.realpath(os.path.join(shell.home, config.FILE_NAME)))  # an operator may keep it elsewhere
    try:
        text = (disk.read(path, home.CONFIG_BYTES_MAX) or b"").decode()
    except UnicodeDecodeError as exc:
        raise config.ConfigError("config-invalid", f"{config.FILE_NAME} is not UTF-8") from exc
    except OSError as exc:
        raise shell.load("home.disk").unusable(path, exc) from exc
    changed = config.with_setting(text, args.key, args.value)
    try:
        disk.replace_atomic(path, changed.encode())
    except FileNotFoundError as exc:
        raise CtlError("home-unusable", f"there is no folder {path.parent}", hint="spl init") from exc
    shell.out.line(f"{args.key} is set in {tilde(str(path), shell.env)}")
    shell.out.note(_read_again(args.key, args.key in config.RESTART or args.key.startswith("limits."), shell))
    return 0


def _read_again(key: str, needs_start: bool, shell: Shell) -> str:
    """Return when the change applies, after a signal to the daemon that runs; raise "config-invalid" if it refuses."""
    try:
        pid = shell.ctl.pid()
    except CtlError:
        return _APPLIES_LATER
    if needs_start:
        return f"{_APPLIES_LATER}: this key is not read again while it runs"
    if not pid:
        return "it applies once the daemon gets SIGHUP, or at its next start"
    try:
        before = shell.ctl.get("/v1/config").get("reads")
    except CtlError:
        before = None
    os.kill(pid, signal.SIGHUP)
    return _outcome(key, before, shell)


def _outcome(key: str, before: object, shell: Shell) -> str:
    """Return what the daemon made of the file, as soon as it has read it once more."""
    end_s = time.monotonic() + READ_S
    while before is not None and time.monotonic() < end_s:
        try:
            found = shell.ctl.get("/v1/config")
        except CtlError:
            break
        if found.get("reads") == before:
            time.sleep(_ASK_S)
            continue
        if found["fault"]:
            hint = "correct that, or set the key back: until then the next start of the daemon fails"
            raise CtlError("config-invalid", f"the daemon read the file, and refuses: {found['fault']}", hint=hint)
        row = next((item for item in elements(found) if item["key"] == key), None)
        if row is not None and not str(row["source"]).startswith("config.toml"):
            return f"the daemon keeps {_value(key, row['value'])}: it comes from {row['source']}, which goes first"
        return "the daemon has read it; see: spl config show"
    return _TOLD


def _value(key: str, value: Any) -> str:
    """Return a value as the configuration file writes it, without quotes."""
    if key.endswith("interval") and isinstance(value, int):
        return span_fine(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_value("", item) for item in value)
    return "" if value is None else str(value)


TREE: Final = (
    Group(
        "config",
        "Settings come from a flag, the environment, <home>/config.toml or a default, in this order.\n"
        "A flag wins over the environment, and `spl config show` names the source of each value.",
        "spl config show",
        (
            Command(
                "config show",
                "Lists every setting with its value and where that value came from.\n"
                "The running daemon answers, so the values are those in effect and not those in a file.",
                "spl config show",
                _show,
            ),
            Command(
                "config set",
                "Sets one key in <home>/config.toml, keeps all other lines, and has a running daemon read the file.\n"
                "A value that does not fit its key is not written; several texts are separated by commas.\n"
                "What the daemon made of it is told; `spl help configuration` explains every key.",
                "spl config set federation.poll_interval 30s",
                _set,
                (
                    arg("key", metavar="KEY", help="as `spl config show` names it, or limits.NAME"),
                    arg("value", metavar="VALUE", help="text, number, true or false"),
                ),
                result=False,
            ),
            *COMMANDS,
        ),
    ),
)
