"""`spl config …-rule`: permission rules, rules of automatic approval and fold rules.

The three kinds differ in their members alone, so a kind is a value and `commands` builds its three commands.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from ..client.calls import quote
from ..core.value import Json
from .command import NAME, Arg, Command, Shell, UsageError, arg, number

DENIED: Final = 4
PRIORITY_MAX: Final = 1_000_000

_LANGUAGE: Final = """
The expression is CEL without arithmetic: a.b  a["b"]  == != < <= > >= in  && || !  x ? y : z  [1, 2]  {"a": 1}
  size(x)  has(a.b)  t.startsWith("x")  t.endsWith("x")  t.contains("x")
  list.exists(i, i == "x")  list.all(i, i != "x")
A missing field is an error; has() tests for it."""


class RuleHelp(NamedTuple):
    """What one command of a kind says in its help."""

    concept: str
    example: str


class RuleCommands(NamedTuple):
    """One kind of rule: its name in commands, route and schema, its members, and what its commands say."""

    name: str
    columns: tuple[str, ...]
    """The members in the order of the list's columns; `name` is the first."""
    args: tuple[Arg, ...]
    none: str
    """What holds without any rule of the kind."""
    add: RuleHelp
    show: RuleHelp
    remove: RuleHelp

    @property
    def route(self) -> str:
        """The route of the kind's rules."""
        return f"/v1/config/{self.name}-rules"

    @property
    def schema(self) -> str:
        """The schema of one rule for programs; the list's has an "s" before the version."""
        return f"spl.{self.name}_rule"


def commands(kind: RuleCommands) -> tuple[Command, Command, Command]:
    """Return the commands that add, list and remove rules of a kind."""
    return (
        Command(f"config add-{kind.name}-rule", *kind.add, partial(_add, kind), (_NEW_NAME, *kind.args, _PRIORITY)),
        Command(f"config list-{kind.name}-rules", *kind.show, partial(_list, kind)),
        Command(f"config remove-{kind.name}-rule", *kind.remove, partial(_remove, kind), (NAME,)),
    )


def _add(kind: RuleCommands, args: Namespace, shell: Shell) -> int:
    names = ("name", *(each.settings["dest"] for each in kind.args), "priority")
    given = {name: getattr(args, name) for name in names}
    added = shell.ctl.post(kind.route, {name: value for name, value in given.items() if value is not None})
    if not shell.printed(f"{kind.schema}/1", added):
        limits = f" (grants at most {', '.join(added['namespaces'])})" if "namespaces" in added else ""
        shell.out.line(f"{added['name']}  {'replaced' if added['replaced'] else 'added'}{limits}")
    if added.get("locks_out_handshake"):
        shell.out.warn(f"! no instance can pair with this one: {added['locks_out_handshake']} refuses federation:pair")
    return 0


def _list(kind: RuleCommands, args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(kind.route)
    if not shell.printed(f"{kind.schema}s/1", found):
        titles = [name.upper() for name in kind.columns]
        shell.out.table(titles, [[_cell(item[name]) for name in kind.columns] for item in found], none=kind.none)
        for item in found:
            if item.get("fault"):
                shell.out.warn(f"! {item['name']} counts as failed: {item['fault']}")
    return 0


def _remove(kind: RuleCommands, args: Namespace, shell: Shell) -> int:
    removed = shell.ctl.delete(f"{kind.route}/{quote(args.name)}")
    if not shell.printed(f"{kind.schema}/1", removed):
        shell.out.line(f"{removed['name']}  removed")
    return 0


def _cell(value: object) -> str:
    """Return a member of a rule for a table: on one line, "-" for an empty one."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split("\n")) or "-"


def _test(args: Namespace, shell: Shell) -> int:
    body: Json = {"resource": args.resource}
    if args.facts:
        body["facts"] = _facts(args.facts)
    if args.scopes:
        body["scopes"] = [scope.strip() for scope in args.scopes.split(",") if scope.strip()]
    found = shell.ctl.post(f"{_PERMISSION.route}/test", body)
    if not shell.printed("spl.permission_verdict/1", found):
        shell.out.line(f"{found['verdict']}  {_reason(found)}")
        if found["fault"]:
            shell.out.warn(f"! the expression of {found['rule']} fails: {found['fault']}")
    return DENIED if found["verdict"] == "deny" else 0


def _facts(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise UsageError("usage", f"--facts is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise UsageError("usage", '--facts is a JSON object, as in \'{"request": {"label": "bob"}}\'')
    return value


def _reason(found: Mapping[str, Any]) -> str:
    return f"{found['rule']} ({found['action']})" if found["rule"] else "no rule matches, scopes decide"


def _action(values: str) -> Arg:
    return arg("--action", dest="action", required=True, metavar="A", help=values)


_NEW_NAME: Final = arg("name", metavar="NAME", help="the rule's name; a rule of the same name is replaced")
_PRIORITY: Final = arg(
    "--priority", type=number(-PRIORITY_MAX, PRIORITY_MAX), default=0, metavar="N",
    help="rules of higher priority are tried first (default 0)",
)  # fmt: skip
_EXPRESSION: Final = arg(
    "--expression", dest="expression", default="true", metavar="E", help="when the rule matches (default: always)"
)

_PERMISSION: Final = RuleCommands(
    "permission",
    ("name", "resource", "action", "priority", "expression"),
    (
        _action("allow, deny, or require:CAPABILITY"),
        _EXPRESSION,
        arg("--resource", dest="resource", required=True, metavar="R",
            help="the resource, such as records:write; * stands for any characters"),
    ),
    "there are no permission rules: scopes alone decide",
    RuleHelp(
        "Adds or replaces a rule that guards a resource. Rules are tried highest priority first, and the first that\n"
        "matches decides: it refuses, or leaves the decision to scopes. A rule never allows what scopes refuse.\n"
        "\n"
        "Resources: NOUN:read and NOUN:write, with the noun of the path after /v1/ (sync for what peers call), and\n"
        "  federation:pair, the handshake, which holds no capability.\n"
        "Capabilities: record_read record_write thread_read config_read config_write aitl_decide, held by scope.\n"
        "Facts: request.resource, .method, .path, .params; peer.address; principal.kind (local, open, token, peer or\n"
        "  anonymous), .scopes, .namespaces, .token_id, .pair_id, .peer_did; for federation:pair also\n"
        "  request.initiator_did, .label, .words, .namespaces, .maps, .mode, .endpoint, .host.\n"
        "An expression that fails counts as true for deny and require, and as false for allow.\n" + _LANGUAGE,
        "spl config add-permission-rule no-mint --resource tokens:write --action deny "
        "--expression 'principal.kind != \"local\"'",
    ),
    RuleHelp(
        "Lists the permission rules, one per line, in the order in which they are tried: by priority, then by name.\n"
        "Peers see 401 Unauthorized if a rule over federation:pair refuses them.",
        "spl config list-permission-rules",
    ),
    RuleHelp(
        "Removes a permission rule at once. The commands of this machine can always remove rules, whatever these say.",
        "spl config remove-permission-rule no-mint",
    ),
)  # fmt: skip
_AITL: Final = RuleCommands(
    "aitl",
    ("name", "action", "priority", "namespaces", "expression"),
    (
        _action("auto_apply"),
        _EXPRESSION,
        arg("--namespace", dest="namespaces", action="append", metavar="N",
            help="grant at most this namespace; repeatable (default: the one named default)"),
    ),
    "there are no rules of automatic approval: federation.approval alone decides",
    RuleHelp(
        "Adds or replaces a rule that approves pair requests for you, at most for its own namespaces. A request for\n"
        "more, or with maps, waits for you as a whole. federation.approval = closed refuses all requests.\n"
        "\n"
        "Proved facts: request.initiator_did, .words (the six words of the key that signed it, as `spl aitl list`\n"
        "  and the peer's `spl identity show` print them) and .peer.address.\n"
        "Claims of the peer: request.label, .namespaces, .maps, .mode, .endpoint, .host. A rule must compare a proved\n"
        "  fact with a value, because a stranger can claim any label and host; of an address a prefix is enough.\n"
        "Rules are tried highest priority first, and the first that matches decides; one that fails does not match.\n"
        "A request of a peer that you revoked before always waits for you.\n" + _LANGUAGE,
        "spl config add-aitl-rule laptop --action auto_apply --namespace default "
        "--expression 'request.words == \"otter plum nine coal fern wax\"'",
    ),
    RuleHelp(
        "Lists the rules of automatic approval, in the order in which they are tried.\n"
        "A request that no rule matches waits in `spl aitl list`.",
        "spl config list-aitl-rules",
    ),
    RuleHelp(
        "Removes a rule of automatic approval at once. Pairs that it approved stay; `spl federation revoke` ends them.",
        "spl config remove-aitl-rule laptop",
    ),
)  # fmt: skip
_FOLD: Final = RuleCommands(
    "fold",
    ("name", "thread", "fold", "priority", "field"),
    (
        arg("--thread", dest="thread", required=True, metavar="T", help="the threads; * stands for any characters"),
        arg("--fold", dest="fold", required=True, metavar="F", help="latest, first, count, sum or set"),
        arg("--field", dest="field", default="", metavar="PATH",
            help="a field of the body, such as order.total (default: the whole body)"),
    ),
    "there are no fold rules: the state of a thread is its latest record",
    RuleHelp(
        "Adds or replaces a rule that computes the state of some threads, as `spl thread state` prints it. It applies\n"
        "from the next query on. Rules are tried highest priority first; the first that covers a thread decides.\n"
        "\n"
        "latest  the body of the last record to arrive, or its field    first  the same of the first record\n"
        "count   the number of records, or of those with the field\n"
        "sum     the exact sum of the field's numbers                   set    the field's distinct values\n"
        "Records without the field do not count.",
        "spl config add-fold-rule spent --thread 'th_orders_*' --fold sum --field order.total",
    ),
    RuleHelp(
        "Lists the fold rules, in the order in which they are tried: by priority, then by name.\n"
        "The state of a thread that no rule covers is its latest record.",
        "spl config list-fold-rules",
    ),
    RuleHelp(
        "Removes a fold rule; the next query is answered without it. No record is touched.",
        "spl config remove-fold-rule spent",
    ),
)  # fmt: skip

COMMANDS: Final = (
    *commands(_PERMISSION),
    Command(
        "config test-permission",
        "Prints what the permission rules decide about a request, and which rule decides. Exits 4 if they refuse it.",
        'spl config test-permission federation:pair --facts \'{"request": {"label": "bob"}}\'',
        _test,
        (
            arg("resource", metavar="RESOURCE", help="such as records:write or federation:pair"),
            arg(
                "--facts",
                metavar="JSON",
                help="facts as `spl config add-permission-rule --help` names them; others are empty",
            ),
            arg("--scopes", metavar="A,B", help="the scopes of the caller, comma-separated (default: none)"),
        ),
    ),
    *commands(_AITL),
    *commands(_FOLD),
)
