"""`spl namespace`: the registry that separates tenants inside one daemon."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .client import quote
from .command import Command, Group, Parser, Shell
from .out import column, label_of, scopes_text

NAMESPACES: Final = "/v1/namespaces"

_CONCEPT: Final = (
    "Namespaces keep several tenants apart inside one daemon: a record names its own in body.namespace, and a token\n"
    "may reach only some. A namespace is private until it is shared: a pair agrees on what it carries, by name.\n"
    "\n"
    "Multi-tenancy in one daemon needs no second instance: make a namespace for each tenant, and give each a token\n"
    "that is bound to it. A tenant's token writes into its namespace, reads nothing else, and learns nothing of the\n"
    "others: a record of another tenant and one that does not exist look the same, and neither is counted. A name\n"
    "does not include those below it: bind a token to each of acme and acme/web that it shall reach."
)
_TENANT: Final = (
    "spl namespace create acme\n"
    "spl token mint --scopes records:read,records:write --namespace acme --label acme\n"
    """spl know 'Paid in May' --thread th_invoices --body '{"namespace": "acme"}'\n"""
    "spl namespace show acme"
)


def _name_option(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="up to 4 segments of a-z, 0-9, _ and -, joined by /")


def _create_options(parser: Parser) -> None:
    _name_option(parser)
    parser.add_argument("--shared", action="store_true", help="let pairs agree on it without being asked by name")


def _create(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post(NAMESPACES, {"name": args.name, "shared": args.shared})
    if not shell.printed("spl.namespace/1", found):
        word = "already_exists" if found["already"] else "active again" if found["revived"] else "created"
        shell.out.line(f"{found['name']}  {word} ({_mark(found)})")
        if not found["shared"]:
            shell.out.hint(f"hint: pairs do not agree on it unasked; that takes: spl namespace share {found['name']}")
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(NAMESPACES)
    if not shell.printed("spl.namespaces/1", found):
        rows = [
            (str(item["name"]), str(item["state"]), "yes" if item["shared"] else "no", f"{item['records']:,}")
            for item in found
        ]
        shell.out.table(("NAMESPACE", "STATE", "SHARED", "RECORDS"), rows)
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
        shell.out.note("pairs that are made from now on may agree on it; for one that stands there is:")
        shell.out.note(f"spl federation grant PAIR --namespace {name} --maps {name},{name} --hash-level L0")
    return 0


def _unshare(args: Namespace, shell: Shell) -> int:
    found = _act(args, shell, "unshare", "private")
    _still_sharing(found, shell)
    return 0


def _archive(args: Namespace, shell: Shell) -> int:
    found = _act(args, shell, "archive", "archived")
    if not found["already"]:
        shell.out.note("no more is written into it or below, and no pair gets it; what it holds can still be read")
        shell.out.note(f"spl namespace create {found['name']} brings it back")
    return 0


def _delete(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.delete(_path(args))
    if not shell.printed("spl.namespace/1", found):
        shell.out.line(f"{found['name']}  deleted")
    return 0


def _act(args: Namespace, shell: Shell, action: str, done: str) -> dict[str, Any]:
    """Ask for one action, print `NAME  done` (`already_done` where nothing changed), and return the namespace."""
    found: dict[str, Any] = shell.ctl.post(f"{_path(args)}/{action}", {})
    if not shell.printed("spl.namespace/1", found):
        shell.out.line(f"{found['name']}  {'already_' if found['already'] else ''}{done}")
    return found


def _still_sharing(found: Mapping[str, Any], shell: Shell) -> None:
    """Say which pairs go on sharing it: taking the mark away changes no agreement."""
    for pair in found["pairs"]:
        peer = label_of(pair["peer_did"])
        end = f"spl federation revoke-grant {pair['pair_id']} --namespace {found['name']}"
        shell.out.note(f"{pair['pair_id']} goes on sharing it with {peer}; {end} ends that")


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
    return "shared: pairs may agree on it" if found["shared"] else "private: pairs need to name it"


def _pair(pair: Mapping[str, Any]) -> str:
    level = f"{pair['level']}, there {pair['peer_namespace']}" if pair["level"] else "not sent at present"
    return f"{pair['pair_id']}  {label_of(pair['peer_did'])}  {level}"


def _token(token: Mapping[str, Any]) -> str:
    return f"{token['token_id']}  {scopes_text(token['scopes'])}" + (f"  {token['label']}" if token["label"] else "")


def _path(args: Namespace) -> str:
    return f"{NAMESPACES}/{quote(args.name)}"


TREE: Final = (
    Group(
        "namespace",
        _CONCEPT,
        _TENANT,
        (
            Command(
                "namespace create",
                "Registers a namespace; the ones above it must exist. It is private until it is shared.\n"
                "An archived one is brought back as it was, with all that it holds.",
                "spl namespace create music --shared",
                _create,
                _create_options,
            ),
            Command(
                "namespace list",
                "Lists every namespace with its state, whether pairs may agree on it unasked, and its records.\n"
                "The namespace default is always there and shared.",
                "spl namespace list",
                _list,
            ),
            Command(
                "namespace show",
                "Shows one namespace: state, records, the pairs that share it and the tokens bound to it.\n"
                "For each pair it says at which level, and what the peer calls it.",
                "spl namespace show music",
                _show,
                _name_option,
            ),
            Command(
                "namespace share",
                "Marks a namespace as shared: pairs to come may agree on it without being asked by name.\n"
                "A pair carries what both sides marked, or named; whoever shares it with the peer gets it from there.",
                "spl namespace share music",
                _share,
                _name_option,
            ),
            Command(
                "namespace unshare",
                "Takes the mark away, so that pairs to come agree on it only by name.\n"
                "Pairs that share it already go on: end that for each by revoke-grant.",
                "spl namespace unshare music",
                _unshare,
                _name_option,
            ),
            Command(
                "namespace archive",
                "Puts a namespace away: nothing more is written into it or below it, and pairs stop sharing it.\n"
                "Reads go on, and nothing is lost.",
                "spl namespace archive music",
                _archive,
                _name_option,
            ),
            Command(
                "namespace delete",
                "Forgets a namespace that holds no records, has no active one below it, and is shared by no pair.\n"
                "Records are never deleted: archive a namespace that holds some.",
                "spl namespace delete music",
                _delete,
                _name_option,
            ),
        ),
    ),
)
