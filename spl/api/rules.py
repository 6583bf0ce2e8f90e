"""Permission rules, rules of automatic approval and fold rules: one table of the kinds, the same three routes for each.

A kind says where its rules are kept, how one is read from a request, and what it must pass before it is stored;
listing, adding and removing are written once.  Rules hold for the whole daemon, so no bound token reaches them.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..core import fold, rules
from ..core.errors import SplError
from ..core.fold import FoldRule
from ..core.record import namespace
from ..core.rules import AitlRule, PermissionRule
from ..core.value import Json, dataclass
from ..home.writes import Own
from ..net.routes import Request, Response
from .answers import field_error, json_response, list_response, members, texts
from .auth import Principal
from .services import Services

AnyRule = PermissionRule | AitlRule | FoldRule
APPROVE: Final = "aitl:approve"
_EXPRESSION: Final[Mapping[str, type]] = {"name": str, "action": str, "priority": int, "expression": str}


@dataclass(frozen=True, slots=True)
class RuleKind:
    """One kind of rule: the routes under /v1/config/{path}."""

    path: str
    form: str
    """The `object` of its JSON form."""
    text: str
    """What an error calls it."""
    members: Mapping[str, type]
    added: str
    removed: str
    """The kinds of record that store and remove one."""
    held: Callable[[Services], Mapping[str, AnyRule]]
    read: Callable[[dict[str, Any]], AnyRule]
    also: str = ""
    """A scope that adding one takes besides the route's."""

    def show(self, rule: AnyRule) -> Json:
        """Return the JSON form of a rule; `fault` says why a stored one counts as failed."""
        fault = "" if isinstance(rule, FoldRule) else rules.fault_of(rule)
        return {"object": self.form, **rule.to_body(), **({"fault": fault} if fault else {})}

    def listing(self, request: Request, principal: Principal, services: Services) -> Response:
        """GET /v1/config/{path}: every rule, in the order in which they are asked."""
        return list_response([self.show(rule) for rule in self.held(services).values()])

    async def add(self, request: Request, principal: Principal, services: Services) -> Response:
        """POST /v1/config/{path}: add or replace a rule; answered once it is durable and in force.

        A permission rule's answer names in `locks_out_handshake` the rule that from now on refuses every pair request.
        """
        if self.also:
            services.auth.require(principal, self.also)
        rule = self.read(members(request, self.members))
        _check(services, rule)
        held = self.held(services)
        replaced = rule.name in held
        if not replaced and len(held) >= services.limits.rules_count:
            raise SplError("bad-field", f"there are {services.limits.rules_count} rules, and no room for more")
        await _append(services, self.added, rule.to_body())
        answer = {**self.show(rule), "replaced": replaced}
        if isinstance(rule, PermissionRule):
            answer["locks_out_handshake"] = rules.locks_out_handshake(services.views.rules) or None
        return json_response(answer)

    async def remove(self, request: Request, principal: Principal, services: Services) -> Response:
        """DELETE /v1/config/{path}/{name}."""
        name = request.params["name"]
        rule = self.held(services).get(name)
        if rule is None:
            raise SplError("not-found", f"no {self.text} {name[:80]!r}", hint=f"spl config list-{self.path}")
        await _append(services, self.removed, {"name": name})
        return json_response(self.show(rule))


PERMISSION: Final = RuleKind(
    "permission-rules", "permission_rule", "permission rule", {**_EXPRESSION, "resource": str},
    rules.KIND_PERMISSION, rules.KIND_PERMISSION_REMOVED, lambda services: services.views.rules, rules.permission_rule,
)  # fmt: skip
AITL: Final = RuleKind(
    "aitl-rules", "aitl_rule", "rule of automatic approval", {**_EXPRESSION, "namespaces": list},
    rules.KIND_AITL, rules.KIND_AITL_REMOVED, lambda services: services.views.aitl_rules, rules.aitl_rule,
    also=APPROVE,  # it approves in the operator's place
)  # fmt: skip
FOLD: Final = RuleKind(
    "fold-rules", "fold_rule", "fold rule", {"name": str, "thread": str, "fold": str, "field": str, "priority": int},
    fold.KIND_FOLD, fold.KIND_FOLD_REMOVED, lambda services: services.views.fold_rules, fold.fold_rule,
)  # fmt: skip


def permission_test(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/config/permission-rules/test {resource, facts?, scopes?}: what the rules would say, and which one.

    Facts that are left out are empty.  A pair request holds no scope, whatever is given here.
    """
    fields = members(request, {"resource": str, "facts": dict, "scopes": list})
    resource = fields.get("resource", "")
    if resource not in services.policy.resources:
        known = ", ".join(sorted(services.policy.resources))
        raise SplError("bad-field", f"resource: there is no {resource[:80]!r}", hint=f"resources: {known}")
    facts = rules.sample_facts(resource)
    for name, given in fields.get("facts", {}).items():
        if name not in facts or not isinstance(given, dict):
            raise field_error("facts", f"holds objects named {', '.join(facts)}")
        facts[name] |= given
    scopes = frozenset(texts(fields.get("scopes", []), "scopes"))
    held = rules.capabilities_of(scopes) if resource != rules.HANDSHAKE else frozenset[str]()
    verdict = rules.decide(services.views.rules, resource, facts, held)
    return json_response({
        "object": "permission_verdict", "resource": resource, "verdict": verdict.outcome, "rule": verdict.rule or None,
        "action": verdict.action or None, "fault": verdict.fault or None,
    })  # fmt: skip


def _check(services: Services, rule: AnyRule) -> None:
    """Refuse a rule that can never hold: of a resource, a namespace or a name in its expression that is not there.

    Refuse a rule of automatic approval that a stranger can satisfy, too.
    """
    if isinstance(rule, FoldRule):
        return
    if isinstance(rule, PermissionRule):
        known = sorted(services.policy.resources)
        if not any(rules.covers(rule.resource, name) for name in known):
            raise SplError("bad-field", "resource: covers nothing there is", hint=f"resources: {', '.join(known)}")
    else:
        for name in rule.namespaces:
            namespace.usable(services.views.namespaces, name)
    facts = rules.sample_facts(rules.HANDSHAKE)
    unknown = rules.unknown_names(rule.expr, facts)
    if unknown:
        raise field_error("expression", f"there is no {unknown[0][:40]!r}; there are {', '.join(sorted(facts))}")
    if isinstance(rule, AitlRule):
        rules.check_proved(rule)


async def _append(services: Services, kind: str, body: Json) -> None:
    await asyncio.wrap_future(services.writer.submit([Own(rules.THREAD, kind, body)]))
