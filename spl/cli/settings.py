"""`spl config`: the effective configuration, and the rules."""

from argparse import Namespace
from typing import Any, Final

from ..core.when import span_fine
from .command import Command, Group, Shell
from .rules import COMMANDS


def _show(args: Namespace, shell: Shell) -> int:
    settings = shell.ctl.items("/v1/config")
    if not shell.printed("spl.config/1", settings):
        rows = [(str(item["key"]), _value(str(item["key"]), item["value"]), str(item["source"])) for item in settings]
        shell.out.table(("KEY", "VALUE", "SOURCE"), rows, keep=("KEY", "VALUE"))
    return 0


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
            *COMMANDS,
        ),
    ),
)
