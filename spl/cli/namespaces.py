"""`spl namespace`: the registry that separates tenants inside one daemon."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..client.calls import quote
from .command import Command, Group, Shell, arg
from .out import column, label_of, scopes_text

NAMESPACES: Final = "/v1/namespaces"

_CONCEPT: Final = (
    "Namespaces separate tenants inside one daemon: a record names its own in body.namespace, and a token may reach\n"
    "only some of them. A namespace is private until it is shared: a pair agrees on what it carries, by name.\n"
    "\n"
    "Several tenants need no second instance: make a namespace for each tenant, and mint a token bound to it. That\n"
    "token writes into its namespace, reads nothing else, and learns nothing about other tenants: a record of another\n"
    "tenant and one that does not exist look the same, and neither is counted. A name does not include the names\n"
    "below it: bind a token to each of acme and acme/web that it is to reach."
)
_TENANT: Final = (
    "spl namespace create acme\n"
    "spl token mint --scopes records:read,records:write --namespace acme --label acme\n"
    """spl know 'Paid in May' --thread th_invoices --body '{"namespace": "acme"}'\n"""
    "spl namespace show acme"
)


def _create(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post(NAMESPACES, {"name": args.name, "shared": args.shared})
    if not shell.printed("spl.namespace/1", found):
        word = "already_exists" if found["already"] else "active again" if found["revived"] else "created"
        shell.out.line(f"{found['name']}  {word} ({_mark(found)})")
        if not found["shared"]:
            shell.out.hint(
                f"hint: new pairs do not include it by default; to include it: spl namespace share {found['name']}"
            )
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(NAMESPACES)
    if not shell.printed("spl.namespaces/1", found):
        rows = [
            (str(item["name"]), str(item["state"]), "yes" if item["shared"] else "no", f"{item['records']:,}")
            for item in found
        ]
        none = "no namespace is readable with this token"
        shell.out.table(("NAMESPACE", "STATE", "SHARED", "RECORDS"), rows, keep=("NAMESPACE", "STATE"), none=none)
    return 0


def _show(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.get(_path(args))
    if not shell.printed("spl.namespace/1", found):
        shell.out.card(_facts(found))
    return 0


def _share(args: Namespace, shell: Shell) -> int:
    found = _act(args, shell, "share", "shared")
    if not found["already"]:
        name = found["name"]
        shell.out.note("new pairs include it by default; for an existing pair:")
        shell.out.note(f"spl federation grant PAIR --namespace {name} --maps {name},{name} --hash-level L0")
    return 0


def _unshare(args: Namespace, shell: Shell) -> int:
    found = _act(args, shell, "unshare", "private")
    _still_sharing(found, shell)
    return 0


def _archive(args: Namespace, shell: Shell) -> int:
    found = _act(args, shell, "archive", "archived")
    if not found["already"]:
        shell.out.note(
            "nothing more is written into it or below it, and no pair receives it; its records can still be read"
        )
        shell.out.note(f"to make it active again: spl namespace create {found['name']}")
    return 0


def _delete(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.delete(_path(args))
    if not shell.printed("spl.namespace/1", found):
        shell.out.line(f"{found['name']}  deleted")
    return 0


def _act(args: Namespace, shell: Shell, action: str, done: str) -> dict[str, Any]:
    """Ask for one action, print `NAME  done` (`already_done` if nothing changed), and return the namespace."""
    found: dict[str, Any] = shell.ctl.post(f"{_path(args)}/{action}", {})
    if not shell.printed("spl.namespace/1", found):
        shell.out.line(f"{found['name']}  {'already_' if found['already'] else ''}{done}")
    return found


def _still_sharing(found: Mapping[str, Any], shell: Shell) -> None:
    """Print which pairs still share it: removing the mark changes no agreement."""
    for pair in found["pairs"]:
        peer = label_of(pair["peer_did"])
        end = f"spl federation revoke-grant {pair['pair_id']} --namespace {found['name']}"
        shell.out.note(f"{pair['pair_id']} still shares it with {peer}; to end that: {end}")


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for each line of `show`; a token that is bound to namespaces sees the first four."""
    yield "namespace", str(found["name"])
    yield "state", f"{found['state']}, not usable: {found['unusable']}" if found.get("unusable") else found["state"]
    yield "shared", f"{'yes' if found['shared'] else 'no'} ({_mark(found)})"
    yield "records", f"{found['records']:,}"
    if "pairs" in found:
        yield from column("pairs", [_pair(pair) for pair in found["pairs"]] or ["none"])
    if "tokens" in found:
        yield from column("tokens", [_token(token) for token in found["tokens"]] or ["none bound to it"])


def _mark(found: Mapping[str, Any]) -> str:
    return "shared: new pairs include it" if found["shared"] else "private: pairs include it by name only"


def _pair(pair: Mapping[str, Any]) -> str:
    level = f"{pair['level']}, as {pair['peer_namespace']} at the peer" if pair["level"] else "not sent at present"
    return f"{pair['pair_id']}  {label_of(pair['peer_did'])}  {level}"


def _token(token: Mapping[str, Any]) -> str:
    return f"{token['token_id']}  {scopes_text(token['scopes'])}" + (f"  {token['label']}" if token["label"] else "")


def _path(args: Namespace) -> str:
    return f"{NAMESPACES}/{quote(args.name)}"


_NAME: Final = arg("name", metavar="NAME", help="up to 4 segments of a-z, 0-9, _ and -, joined by /")

TREE: Final = (
    Group(
        "namespace",
        _CONCEPT,
        _TENANT,
        (
            Command(
                "namespace create",
                "Registers a namespace; those above it must exist. It is private until it is shared.\n"
                "An archived one becomes active again, with everything that it holds.",
                "spl namespace create music --shared",
                _create,
                (_NAME, arg("--shared", action="store_true", help="mark it as shared: new pairs include it")),
            ),
            Command(
                "namespace list",
                "Lists every namespace with its state, whether new pairs include it, and its records.\n"
                "The namespace default always exists and is shared.",
                "spl namespace list",
                _list,
            ),
            Command(
                "namespace show",
                "Shows one namespace: state, records, the pairs that share it and the tokens bound to it.\n"
                "For each pair it shows the level, and the peer's name for it.",
                "spl namespace show music",
                _show,
                (_NAME,),
            ),
            Command(
                "namespace share",
                "Marks a namespace as shared: new pairs include it without naming it.\n"
                "A pair carries what both sides marked or named; the peer's own peers may receive it from the peer.",
                "spl namespace share music",
                _share,
                (_NAME,),
            ),
            Command(
                "namespace unshare",
                "Removes the mark, so that new pairs include the namespace only by name.\n"
                "Pairs that share it already continue: end each with revoke-grant.",
                "spl namespace unshare music",
                _unshare,
                (_NAME,),
            ),
            Command(
                "namespace archive",
                "Closes a namespace: nothing more is written into it or below it, and pairs stop sharing it.\n"
                "It can still be read, and nothing is lost.",
                "spl namespace archive music",
                _archive,
                (_NAME,),
            ),
            Command(
                "namespace delete",
                "Deletes a namespace that holds no records, has no active one below it, and is shared by no pair.\n"
                "Records are never deleted: archive a namespace that holds some.",
                "spl namespace delete music",
                _delete,
                (_NAME,),
            ),
        ),
    ),
)
