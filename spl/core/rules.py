"""Permission rules and rules of automatic approval: values, their fold over `th_engine_config`, and the verdict.

A permission rule guards a resource, such as `records:write` or `federation:pair`, for the requests that its expression
is true of.  The rule of the highest priority comes first, among equals the one whose name sorts first; the first that
matches decides.  `deny` refuses; `require:<capability>` refuses callers that do not hold it; `allow` ends the search,
and the scopes decide as they do if no rule matches.  So a rule narrows what scopes open and never widens it.

An expression that cannot be evaluated (a missing field, too much cost) counts as true if the rule denies or
requires, and as false if it allows: a caller gains nothing by making a rule fail.

The handshake holds no capability, so a rule that requires any of them for `federation:pair` refuses every peer.

A rule of automatic approval must depend on what a request proves (proved.py).  One that does not is refused when it is
added, and one that an older version stored counts as failed: the request waits for the operator.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from .cel.evaluate import Budget, Expr, ExprError, evaluate, parse
from .errors import SplError
from .identity import bearer
from .identity.did import label_of, words
from .identity.manifest import Manifest
from .proved import is_proved
from .record import namespace
from .value import Json, dataclass, field, replace

THREAD: Final = "th_engine_config"
KIND_PERMISSION: Final = "syncropel.policy.permission_rule.v1"
KIND_PERMISSION_REMOVED: Final = "syncropel.policy.permission_rule_removed.v1"
KIND_AITL: Final = "syncropel.policy.aitl_rule.v1"
KIND_AITL_REMOVED: Final = "syncropel.policy.aitl_rule_removed.v1"

HANDSHAKE: Final = "federation:pair"
ALLOW: Final = "allow"
DENY: Final = "deny"
NONE: Final = "none"
REQUIRE: Final = "require:"
AUTO_APPLY: Final = "auto_apply"
CAPABILITIES: Final[Mapping[str, str]] = {
    "record_read": "records:read",
    "record_write": "records:write",
    "thread_read": "records:read",
    "config_read": "config:read",
    "config_write": "config:write",
    "aitl_decide": "aitl:approve",
}
"""Capability -> the scope through which it is held."""

PRIORITY_MAX: Final = 1_000_000  # exact in every JSON, with room between any two
DECISION_STEPS: Final = 50_000
"""For all expressions of one decision: some 25 ms."""
NAMES_TAKEN: Final = frozenset({"test"})
"""Names that no rule has, for the API has a route of that name."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_RESOURCE: Final = re.compile(r"[a-z0-9*._-]{1,64}(:[a-z0-9*._-]{1,64}){0,3}\Z")
_PRINCIPAL: Final[Mapping[str, Any]] = {
    "kind": "anonymous", "scopes": [], "namespaces": [], "token_id": "", "pair_id": "", "peer_did": "",
}  # fmt: skip


class RuleError(SplError):
    """A rule of the wrong form: "bad-field", or "rule-unproved"; its expression raises ExprError "rule-syntax"."""


@dataclass(frozen=True, slots=True)
class PermissionRule:
    """One permission rule; `expr` is None for a stored expression that this version cannot read."""

    name: str
    resource: str
    action: str
    priority: int
    expression: str
    expr: Expr | None = field(repr=False, compare=False)

    def to_body(self) -> Json:
        """Return the record body that adds the rule."""
        return {name: getattr(self, name) for name in ("name", "resource", "action", "priority", "expression")}


@dataclass(frozen=True, slots=True)
class AitlRule:
    """One rule of automatic approval; `namespaces` are the most that it grants."""

    name: str
    action: str
    priority: int
    expression: str
    namespaces: tuple[str, ...]
    expr: Expr | None = field(repr=False, compare=False)

    def to_body(self) -> Json:
        """Return the record body that adds the rule."""
        texts = {name: getattr(self, name) for name in ("name", "action", "priority", "expression")}
        return {**texts, "namespaces": list(self.namespaces)}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision: allow, deny or none, the rule that made it, and why its expression failed, if it did."""

    outcome: str
    rule: str = ""
    action: str = ""
    fault: str = ""


PermissionRules = Mapping[str, PermissionRule]
AitlRules = Mapping[str, AitlRule]
"""Rules by name, in the order of evaluation."""

_R = TypeVar("_R", PermissionRule, AitlRule)


def permission_rule(fields: Mapping[str, Any]) -> PermissionRule:
    """Return the rule {name, resource, action, priority, expression}; raise RuleError "bad-field", ExprError."""
    rule = _permission(fields, None)
    return replace(rule, expr=parse(rule.expression))


def aitl_rule(fields: Mapping[str, Any]) -> AitlRule:
    """Return the rule {name, action, priority, expression, namespaces}; raise RuleError "bad-field", ExprError."""
    rule = _aitl(fields, None)
    return replace(rule, expr=parse(rule.expression))


def check_proved(rule: AitlRule) -> None:
    """Raise RuleError "rule-unproved" for a parsed rule that a stranger can satisfy by its claims."""
    fault = fault_of(rule)
    if fault:
        raise RuleError("rule-unproved", fault)


def fold(rules: PermissionRules, body: Mapping[str, Any]) -> PermissionRules:
    """Return the permission rules after one record body of `th_engine_config`; it skips unusable ones."""
    return _folded(rules, body, KIND_PERMISSION, KIND_PERMISSION_REMOVED, _permission)


def fold_aitl(rules: AitlRules, body: Mapping[str, Any]) -> AitlRules:
    """Return the rules of automatic approval after one record body of `th_engine_config`."""
    return _folded(rules, body, KIND_AITL, KIND_AITL_REMOVED, _aitl)


def decide(
    rules: PermissionRules, resource: str, facts: Mapping[str, Any], capabilities: frozenset[str] = frozenset()
) -> Decision:
    """Return what the first matching rule says; all expressions together cost at most DECISION_STEPS."""
    budget = Budget(DECISION_STEPS)
    for rule in rules.values():
        if not covers(rule.resource, resource):
            continue
        matched, fault = _asked(rule, facts, budget)
        if not (matched or (fault and rule.action != ALLOW)):
            continue
        held = rule.action.removeprefix(REQUIRE) in capabilities
        return Decision(ALLOW if rule.action == ALLOW or held else DENY, rule.name, rule.action, fault)
    return Decision(NONE)


def applies(rules: AitlRules, facts: Mapping[str, Any]) -> tuple[AitlRule | None, tuple[str, ...]]:
    """Return the first rule whose expression is true, and the names of those before it that could not be evaluated."""
    budget, failed = Budget(DECISION_STEPS), list[str]()
    for rule in rules.values():
        matched, fault = _asked(rule, facts, budget)
        if matched:
            return rule, tuple(failed)
        if fault:
            failed.append(rule.name)
    return None, tuple(failed)


def fault_of(rule: PermissionRule | AitlRule) -> str:
    """Return why a stored rule can never be evaluated, "" for a sound one."""
    if rule.expr is None:
        try:
            parse(rule.expression)
        except ExprError as exc:
            return f"this version cannot read the expression: {exc.message}"
    elif isinstance(rule, AitlRule) and not is_proved(rule.expr):
        return (
            "the expression can be true by what the peer says of itself; compare request.initiator_did, "
            "request.words or request.peer.address with a value"
        )
    return ""


def covers(pattern: str, resource: str) -> bool:
    """Return whether a rule's resource covers this one; `*` stands for any number of characters."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == resource
    last = rest.pop()
    if not resource.startswith(first) or not resource.endswith(last) or len(resource) < len(first) + len(last):
        return False
    at, end = len(first), len(resource) - len(last)
    for piece in rest:  # the first place for each piece leaves the most room for those after it
        found = resource.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def capabilities_of(scopes: frozenset[str]) -> frozenset[str]:
    """Return the capabilities that are held through these scopes."""
    return frozenset(name for name, scope in CAPABILITIES.items() if bearer.holds(scopes, scope))


def request_facts(resource: str, method: str = "", path: str = "", params: Mapping[str, str] | None = None,
                  principal: Mapping[str, Any] = _PRINCIPAL, address: str = "") -> dict[str, Any]:  # fmt: skip
    """Return the facts of a request to the API."""
    request = {"resource": resource, "method": method, "path": path, "params": dict(params or {})}
    return {"request": request, "principal": {**_PRINCIPAL, **principal}, "peer": {"address": address}}


def handshake_facts(peer: Manifest, asked: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Return the facts of a pair request.

    `asked` are the fields of the signed message, `address` is that of the connection it came over.  Of `maps`, `local`
    is our namespace and `peer` the asker's, as `spl aitl show` prints them.
    """
    facts = _handshake_frame(address)
    facts["request"] |= {
        "peer": {"address": address},
        "initiator_did": peer.did,
        "label": label_of(peer.did),
        "words": words(peer.public_key),
        "namespaces": list(asked["namespaces"]),
        "maps": [{"local": item["peer"], "peer": item["local"]} for item in asked["maps"]],
        "mode": asked["mode"],
        "endpoint": peer.pair_endpoint,
        "host": urlsplit(peer.pair_endpoint).hostname or "",
    }
    return facts


def sample_facts(resource: str) -> dict[str, Any]:
    """Return facts of the right form with nothing in them, for trying a rule out."""
    if resource != HANDSHAKE:
        return request_facts(resource)
    facts = _handshake_frame("")
    texts = dict.fromkeys(("initiator_did", "label", "words", "mode", "endpoint", "host"), "")
    facts["request"] |= {**texts, "namespaces": [], "maps": [], "peer": {"address": ""}}
    return facts


def locks_out_handshake(rules: PermissionRules) -> str:
    """Return the name of the rule that refuses every pair request, "" where some request may pass.

    What is the same in every pair request is known, the rest is not: a rule counts if its expression is true of all
    of them, as `true` is, or can never be evaluated.
    """
    for rule in rules.values():
        if not covers(rule.resource, HANDSHAKE):
            continue
        matches = _of_every_peer(rule)
        if rule.action == ALLOW and matches is not False:
            return ""  # it lets some in, or all of them
        if rule.action != ALLOW and matches:
            return rule.name
    return ""


def named(fields: Mapping[str, Any]) -> tuple[str, int]:
    """Return (name, priority) of a rule's fields, priority 0 by default; raise RuleError "bad-field"."""
    name, priority = fields.get("name"), fields.get("priority", 0)
    if not isinstance(name, str) or not _NAME.match(name) or name in NAMES_TAKEN:
        raise RuleError("bad-field", "name: must be 1 to 64 of a-z, A-Z, 0-9, . _ and -, and not test")
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > PRIORITY_MAX:
        raise RuleError("bad-field", f"priority: must be a whole number of at most {PRIORITY_MAX:,} either way")
    return name, priority


def unknown_names(expr: Expr | None, facts: Mapping[str, Any]) -> list[str]:
    """Return the names that the expression expects and these facts lack, sorted."""
    return sorted(expr.names - facts.keys()) if expr else []


def _of_every_peer(rule: PermissionRule) -> bool | None:
    """Return whether the rule matches every pair request (True), none (False), or it depends (None).

    An expression that needs a fact which differs between peers fails over the facts that never do; one that fails
    over a whole sample too is taken to fail always.
    """
    known, sample = _handshake_frame(""), sample_facts(HANDSHAKE)
    del known["peer"]
    sample["request"] |= {"namespaces": ["default"], "maps": [{"local": "default", "peer": "default"}]}
    whole, fault = _asked(rule, sample, Budget())
    if fault:
        return rule.action != ALLOW
    part, unknown = _asked(rule, known, Budget())
    return part if not unknown and part == whole else None


def _handshake_frame(address: str) -> dict[str, Any]:
    return request_facts(HANDSHAKE, "POST", "/v1/federation/pair", address=address)


def _asked(rule: PermissionRule | AitlRule, facts: Mapping[str, Any], budget: Budget) -> tuple[bool, str]:
    """Return (whether the expression is true, why it could not be evaluated)."""
    fault = fault_of(rule)
    if fault or rule.expr is None:
        return False, fault
    try:
        return evaluate(rule.expr, facts, budget), ""
    except ExprError as exc:
        return False, exc.message


def _folded(
    rules: Mapping[str, _R],
    body: Mapping[str, Any],
    added: str,
    removed: str,
    made: Callable[[Mapping[str, Any], Expr | None], _R],
) -> Mapping[str, _R]:
    kind, name = body.get("kind"), body.get("name")
    if not isinstance(name, str):
        return rules
    if kind == removed:
        return {key: rule for key, rule in rules.items() if key != name}
    if kind != added:
        return rules
    try:
        rule = made(body, _read(body.get("expression")))
    except RuleError:
        return rules
    ordered = sorted({**rules, name: rule}.values(), key=lambda item: (-item.priority, item.name))
    return {item.name: item for item in ordered}


def _read(expression: object) -> Expr | None:
    """Return a stored expression parsed, None for what this version cannot read."""
    with suppress(ExprError):
        return parse(expression) if isinstance(expression, str) else None
    return None


def _permission(fields: Mapping[str, Any], expr: Expr | None) -> PermissionRule:
    name, priority, expression = _common(fields)
    resource, action = fields.get("resource"), fields.get("action")
    if not isinstance(resource, str) or not _RESOURCE.match(resource):
        raise RuleError("bad-field", "resource: must be a name such as records:write, with * for any characters")
    actions = (ALLOW, DENY, *(REQUIRE + capability for capability in CAPABILITIES))
    if action not in actions:
        raise RuleError("bad-field", f"action: must be one of {' '.join(actions)}")
    return PermissionRule(name, resource, str(action), priority, expression, expr)


def _aitl(fields: Mapping[str, Any], expr: Expr | None) -> AitlRule:
    name, priority, expression = _common(fields)
    if fields.get("action") != AUTO_APPLY:
        raise RuleError("bad-field", f"action: must be {AUTO_APPLY}")
    names = fields.get("namespaces", [namespace.DEFAULT])
    if not isinstance(names, list | tuple) or not names:
        raise RuleError("bad-field", "namespaces: must be a list of at least one")
    try:
        checked = tuple(dict.fromkeys(namespace.check_name(name) for name in names))
    except namespace.NamespaceError as exc:
        raise RuleError("bad-field", f"namespaces: {exc.message}") from exc
    return AitlRule(name, AUTO_APPLY, priority, expression, checked, expr)


def _common(fields: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return (name, priority, expression) of a rule's fields; the expression `true` may be left out."""
    name, priority = named(fields)
    expression = fields.get("expression", "true")
    if not isinstance(expression, str):
        raise RuleError("bad-field", "expression: must be a text")
    return name, priority, expression
