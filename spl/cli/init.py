"""`spl init`: the home folder with configuration, identity and admin token."""

from argparse import Namespace
from pathlib import Path
from typing import Any, Final, cast

from ..home.home import init_home
from .command import Command, Shell, arg
from .fit import tilde
from .identity import LABEL, identity_facts
from .paste import start_of

_PARTS: Final = ("config", "identity", "token")


def _init(args: Namespace, shell: Shell) -> int:
    made = cast("dict[str, Any]", init_home(Path(shell.home), args.label or "", new_log=args.new_log))
    kept = [part for part in _PARTS if part not in made["created"]]
    out = shell.out
    if out.data("spl.init/1", {**made, "kept": kept}, lambda: str(made["did"])):
        return 0
    out.line(f"Home {tilde(shell.home, shell.env)}: created {', '.join(made['created']) or 'nothing'}.")
    if kept:
        out.line(f"Kept as before: {', '.join(kept)}.")
    out.card(identity_facts(made, out))
    if args.label and args.label != made["label"]:
        out.warn(f"! the identity keeps its label {made['label']}; a label cannot change")
    out.hint(f"hint: start the daemon with: {start_of(shell.home, shell.env)}")
    return 0


TREE: Final = (
    Command(
        "init",
        "Creates the home folder, which holds everything of one instance: configuration, keys, secrets and records.\n"
        "It creates what is missing and keeps what exists, so running it twice is harmless,\n"
        "but while its daemon runs, it is refused.",
        "spl init --label alice",
        _init,
        (
            LABEL,
            arg("--new-log", action="store_true", help="begin an empty log for an identity whose log is lost"),
        ),
        whose="home",
    ),
)
