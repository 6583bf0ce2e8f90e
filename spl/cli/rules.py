"""`spl config …-rule`: permission rules, rules of automatic approval and fold rules."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .client import quote
from .command import Command, Parser, Shell, UsageError

PERMISSION: Final = "/v1/config/permission-rules"
AITL: Final = "/v1/config/aitl-rules"
FOLD: Final = "/v1/config/fold-rules"
DENIED: Final = 4

_LANGUAGE: Final = """
The expression is CEL without arithmetic: a.b  a["b"]  == != < <= > >= in  && || !  x ? y : z  [1, 2]  {"a": 1}
  size(x)  has(a.b)  t.startsWith("x")  t.endsWith("x")  t.contains("x")
  list.exists(i, i == "x")  list.all(i, i != "x")
A field that is missing is an error, and has() asks before."""


def _rule_options(parser: Parser, actions: str) -> None:
    parser.add_argument("name", metavar="NAME", help="its name; a rule of this name is replaced")
    parser.add_argument("--action", required=True, metavar="A", help=actions)
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher is asked first (default 0)")
    parser.add_argument("--expression", default="true", metavar="E", help="when the rule holds (default: always)")


def _permission_options(parser: Parser) -> None:
    _rule_options(parser, "allow, deny, or require:CAPABILITY")
    parser.add_argument("--resource", required=True, metavar="R", help="such as records:write; * for any characters")


def _add_permission(args: Namespace, shell: Shell) -> int:
    added = shell.ctl.post(PERMISSION, {**_body(args), "resource": args.resource})
    if not shell.printed("spl.permission_rule/1", added):
        shell.out.line(f"{added['name']}  {'replaced' if added['replaced'] else 'added'}")
    if added.get("locks_out_handshake"):
        shell.out.warn(f"! nobody can pair with this instance: {added['locks_out_handshake']} refuses federation:pair")
    return 0


def _list_permission(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(PERMISSION)
    if not shell.printed("spl.permission_rules/1", found):
        rows = [(*_texts(item, "name", "resource", "action", "priority"), _one_line(item)) for item in found]
        shell.out.table(("NAME", "RESOURCE", "ACTION", "PRIORITY", "EXPRESSION"), rows)
        _warn_of_faults(found, shell)
        if not found:
            shell.out.hint("there are no permission rules: scopes alone decide")
    return 0


def _remove_permission(args: Namespace, shell: Shell) -> int:
    return _remove(PERMISSION, "spl.permission_rule/1", args, shell)


def _test_options(parser: Parser) -> None:
    parser.add_argument("resource", metavar="RESOURCE", help="such as records:write or federation:pair")
    parser.add_argument("--facts", metavar="JSON", help="what the request is like; what is left out is empty")
    parser.add_argument("--scopes", metavar="A,B", help="the scopes that the caller holds, comma-separated")


def _test(args: Namespace, shell: Shell) -> int:
    body: dict[str, object] = {"resource": args.resource}
    if args.facts:
        body["facts"] = _facts(args.facts)
    if args.scopes:
        body["scopes"] = [scope.strip() for scope in args.scopes.split(",") if scope.strip()]
    found = shell.ctl.post(f"{PERMISSION}/test", body)
    if not shell.printed("spl.permission_verdict/1", found):
        shell.out.line(f"{found['verdict']}  {_reason(found)}")
        if found["fault"]:
            shell.out.warn(f"! the expression of {found['rule']} fails: {found['fault']}")
    return DENIED if found["verdict"] == "deny" else 0


def _aitl_options(parser: Parser) -> None:
    _rule_options(parser, "auto_apply")
    parser.add_argument(
        "--namespace", action="append", metavar="N", help="grant at most this one; repeatable (default: default)"
    )


def _add_aitl(args: Namespace, shell: Shell) -> int:
    body = _body(args) | ({"namespaces": args.namespace} if args.namespace else {})
    added = shell.ctl.post(AITL, body)
    if not shell.printed("spl.aitl_rule/1", added):
        word = "replaced" if added["replaced"] else "added"
        shell.out.line(f"{added['name']}  {word} (grants at most {', '.join(added['namespaces'])})")
    return 0


def _list_aitl(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(AITL)
    if not shell.printed("spl.aitl_rules/1", found):
        rows = [
            (*_texts(item, "name", "action", "priority"), ",".join(item["namespaces"]), _one_line(item))
            for item in found
        ]
        shell.out.table(("NAME", "ACTION", "PRIORITY", "NAMESPACES", "EXPRESSION"), rows)
        _warn_of_faults(found, shell)
        if not found:
            shell.out.hint("there are no rules of automatic approval: federation.approval alone decides")
    return 0


def _remove_aitl(args: Namespace, shell: Shell) -> int:
    return _remove(AITL, "spl.aitl_rule/1", args, shell)


def _warn_of_faults(found: Sequence[Mapping[str, Any]], shell: Shell) -> None:
    """Name each rule that counts as failed, with the reason."""
    for item in found:
        if item.get("fault"):
            shell.out.warn(f"! {item['name']} counts as failed: {item['fault']}")


def _fold_options(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="its name; a rule of this name is replaced")
    parser.add_argument("--thread", required=True, metavar="T", help="the threads; * for any characters")
    parser.add_argument("--fold", required=True, metavar="F", help="latest, first, count, sum or set")
    parser.add_argument("--field", default="", metavar="PATH", help="of the body, such as order.total (default: all)")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher is asked first (default 0)")


def _add_fold(args: Namespace, shell: Shell) -> int:
    names = ("name", "thread", "fold", "field", "priority")
    added = shell.ctl.post(FOLD, {name: getattr(args, name) for name in names})
    if not shell.printed("spl.fold_rule/1", added):
        shell.out.line(f"{added['name']}  {'replaced' if added['replaced'] else 'added'}")
    return 0


def _list_fold(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(FOLD)
    if not shell.printed("spl.fold_rules/1", found):
        rows = [(*_texts(item, "name", "thread", "fold", "priority"), item["field"] or "-") for item in found]
        shell.out.table(("NAME", "THREAD", "FOLD", "PRIORITY", "FIELD"), rows)
        if not found:
            shell.out.hint("there are no fold rules: the state of a thread is its latest record")
    return 0


def _remove_fold(args: Namespace, shell: Shell) -> int:
    return _remove(FOLD, "spl.fold_rule/1", args, shell)


def _name_option(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the rule's name")


def _remove(route: str, schema: str, args: Namespace, shell: Shell) -> int:
    removed = shell.ctl.delete(f"{route}/{quote(args.name)}")
    if not shell.printed(schema, removed):
        shell.out.line(f"{removed['name']}  removed")
    return 0


def _body(args: Namespace) -> dict[str, object]:
    return {name: getattr(args, name) for name in ("name", "action", "priority", "expression")}


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


def _texts(item: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(str(item[name]) for name in names)


def _one_line(item: Mapping[str, Any]) -> str:
    """Return a rule's expression on one line, as every rule has one."""
    return " ".join(str(item["expression"]).split("\n"))


COMMANDS: Final = (
    Command(
        "config add-permission-rule",
        "Adds or replaces a rule that guards a resource, for the requests that its expression is true of. The first\n"
        "that matches decides, highest priority first: it refuses, or lets scopes decide; what these refuse stays so.\n"
        "\n"
        "Resources: NOUN:read and NOUN:write, the noun of the path after /v1/ (sync for what peers call), and\n"
        "  federation:pair, the handshake, which holds no capability.\n"
        "Capabilities: record_read record_write thread_read config_read config_write aitl_decide, held by scope.\n"
        "Facts: request.resource, .method, .path, .params; peer.address; principal.kind (local, open, token, peer or\n"
        "  anonymous), .scopes, .namespaces, .token_id, .pair_id, .peer_did; for federation:pair also\n"
        "  request.initiator_did, .label, .words, .namespaces, .maps, .mode, .endpoint, .host.\n"
        "An expression that fails counts as true for deny and require, and as false for allow.\n" + _LANGUAGE,
        "spl config add-permission-rule no-mint --resource tokens:write --action deny "
        "--expression 'principal.kind != \"local\"'",
        _add_permission,
        _permission_options,
    ),
    Command(
        "config list-permission-rules",
        "Lists the permission rules, one a line, in the order in which they are asked: by priority, then by name.\n"
        "A rule over federation:pair that nobody passes makes peers see 401 Unauthorized.",
        "spl config list-permission-rules",
        _list_permission,
    ),
    Command(
        "config remove-permission-rule",
        "Removes a permission rule at once. This machine's own command line reaches the rules whatever they say.",
        "spl config remove-permission-rule no-mint",
        _remove_permission,
        _name_option,
    ),
    Command(
        "config test-permission",
        "Tells what the permission rules would say to a request, and which rule decides. Exit 4 when they refuse it.",
        'spl config test-permission federation:pair --facts \'{"request": {"label": "bob"}}\'',
        _test,
        _test_options,
    ),
    Command(
        "config add-aitl-rule",
        "Adds or replaces a rule that approves pair requests in your place, at most for its own namespaces. A request\n"
        "for more, or with maps, waits for you whole; federation.approval = closed refuses all the same.\n"
        "\n"
        "Facts: request.initiator_did, .words, .peer.address, which the request proves, and .label, .namespaces,\n"
        ".maps, .mode, .endpoint, .host, which are the peer's own claims. A rule must compare a proved fact with a\n"
        "value, for otherwise any stranger could satisfy it; of an address a prefix is enough.\n"
        "The first rule that matches decides, highest priority first; an expression that fails does not match.\n"
        "A peer that you revoked before always waits for you.\n" + _LANGUAGE,
        "spl config add-aitl-rule family --action auto_apply --namespace default "
        "--expression 'request.peer.address.startsWith(\"192.168.7.\")'",
        _add_aitl,
        _aitl_options,
    ),
    Command(
        "config list-aitl-rules",
        "Lists the rules of automatic approval, in the order in which they are asked.\n"
        "Whatever none of them covers waits in `spl aitl list`.",
        "spl config list-aitl-rules",
        _list_aitl,
    ),
    Command(
        "config remove-aitl-rule",
        "Removes a rule of automatic approval at once. Pairs that it approved stay; revoke those that should not.",
        "spl config remove-aitl-rule family",
        _remove_aitl,
        _name_option,
    ),
    Command(
        "config add-fold-rule",
        "Adds or replaces a rule that says what the records of some threads come to, in `spl thread state`. It holds\n"
        "from the next question on; the first rule that covers a thread decides, highest priority first.\n"
        "\n"
        "latest  the body of the last record to arrive, or its field    first  the same of the first one\n"
        "count   how many records there are, or have the field\n"
        "sum     the exact sum of the field's numbers                   set    the field's distinct values\n"
        "Records without the field do not count.",
        "spl config add-fold-rule spent --thread 'th_orders_*' --fold sum --field order.total",
        _add_fold,
        _fold_options,
    ),
    Command(
        "config list-fold-rules",
        "Lists the fold rules, in the order in which they are asked: by priority, then by name.\n"
        "The state of a thread that none of them covers is its latest record.",
        "spl config list-fold-rules",
        _list_fold,
    ),
    Command(
        "config remove-fold-rule",
        "Removes a fold rule; the next question goes without it. No record is touched.",
        "spl config remove-fold-rule spent",
        _remove_fold,
        _name_option,
    ),
)
