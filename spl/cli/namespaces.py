"""`spl namespace`: the registry that separates tenants inside one daemon."""

from argparse import Namespace
from typing import Final

from .command import Command, Group, Parser, Shell

_CONCEPT: Final = (
    "Namespaces keep several tenants apart inside one daemon: a record names its own in body.namespace, and a token\n"
    "may reach only some. A namespace is private until it is shared: a pair agrees on what it carries, by name."
)


def _create_options(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="up to 4 segments of a-z, 0-9, _ and -, joined by /")
    parser.add_argument("--shared", action="store_true", help="let pairs agree on it without being asked by name")


def _create(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post("/v1/namespaces", {"name": args.name, "shared": args.shared})
    if not shell.printed("spl.namespace/1", found):
        word = "already_exists" if found["already"] else "created"
        shell.out.line(f"{found['name']} {word} ({'shared' if found['shared'] else 'private'})")
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items("/v1/namespaces")
    if not shell.printed("spl.namespaces/1", found):
        rows = [
            (str(item["name"]), str(item["state"]), "yes" if item["shared"] else "no", f"{item['records']:,}")
            for item in found
        ]
        shell.out.table(("NAMESPACE", "STATE", "SHARED", "RECORDS"), rows)
    return 0


TREE: Final = (
    Group(
        "namespace",
        _CONCEPT,
        "spl namespace create music --shared",
        (
            Command("namespace create", _CONCEPT, "spl namespace create music --shared", _create, _create_options),
            Command(
                "namespace list",
                "Lists every namespace with its state, whether pairs may agree on it unasked, and its records.\n"
                "The namespace default is always there and shared.",
                "spl namespace list",
                _list,
            ),
        ),
    ),
)
