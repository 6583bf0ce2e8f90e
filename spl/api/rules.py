"""Permission rules, rules of automatic approval and fold rules, for whoever may change the configuration.

Rules hold for the whole daemon, so a token that is bound to namespaces changes none.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from ..core import fold, rules
from ..core.errors import SplError
from ..core.fold import FoldRule
from ..core.record import namespace
from ..core.rules import AitlRule, PermissionRule
from ..home.writes import Own
from ..net.routes import Request, Response
from .answers import field_error, json_response, list_response, members, texts
from .auth import Principal
from .services import Services

RULE = {"name": str, "action": str, "priority": int, "expression": str}
APPROVE = "aitl:approve"


def permission_list(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/config/permission-rules: every rule, in the order in which they are asked."""
    return list_response([_permission(rule) for rule in services.views.rules.values()])


async def permission_add(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/config/permission-rules {name, resource, action, priority?, expression?}: add or replace a rule.

    `locks_out_handshake` in the answer names the rule that from now on refuses every pair request, if one does.
    """
    _check_unbound(principal)
    rule = rules.permission_rule(members(request, {**RULE, "resource": str}))
    known = sorted(services.policy.resources)
    if not any(rules.covers(rule.resource, name) for name in known):
        raise SplError("bad-field", "resource: covers nothing there is", hint=f"resources: {', '.join(known)}")
    _check_names(rule, rules.sample_facts(rules.HANDSHAKE))
    replaced = await _add(services, services.views.rules, rules.KIND_PERMISSION, rule)
    locked = rules.locks_out_handshake(services.views.rules) or None
    return json_response({**_permission(rule), "replaced": replaced, "locks_out_handshake": locked})


async def permission_remove(request: Request, principal: Principal, services: Services) -> Response:
    """DELETE /v1/config/permission-rules/{name}."""
    _check_unbound(principal)
    name = request.params["name"]
    rule = services.views.rules.get(name)
    if rule is None:
        raise SplError("not-found", f"no permission rule {name[:80]!r}", hint="spl config list-permission-rules")
    await _remove(services, rules.KIND_PERMISSION_REMOVED, name)
    return json_response(_permission(rule))


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


def aitl_list(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/config/aitl-rules: every rule of automatic approval, in the order in which they are asked."""
    return list_response([_aitl(rule) for rule in services.views.aitl_rules.values()])


async def aitl_add(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/config/aitl-rules {name, action, priority?, expression?, namespaces?}: add or replace a rule.

    The rule will approve in the operator's place, so whoever adds it must be allowed to approve.
    """
    _check_unbound(principal)
    services.auth.require(principal, APPROVE)
    rule = rules.aitl_rule(members(request, {**RULE, "namespaces": list}))
    for name in rule.namespaces:
        namespace.usable(services.views.namespaces, name)
    _check_names(rule, rules.sample_facts(rules.HANDSHAKE))
    replaced = await _add(services, services.views.aitl_rules, rules.KIND_AITL, rule)
    return json_response({**_aitl(rule), "replaced": replaced})


async def aitl_remove(request: Request, principal: Principal, services: Services) -> Response:
    """DELETE /v1/config/aitl-rules/{name}."""
    _check_unbound(principal)
    name = request.params["name"]
    rule = services.views.aitl_rules.get(name)
    if rule is None:
        raise SplError("not-found", f"no rule of automatic approval {name[:80]!r}", hint="spl config list-aitl-rules")
    await _remove(services, rules.KIND_AITL_REMOVED, name)
    return json_response(_aitl(rule))


def fold_list(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/config/fold-rules: every fold rule, in the order in which they are asked."""
    return list_response([_fold(rule) for rule in services.views.fold_rules.values()])


async def fold_add(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/config/fold-rules {name, thread, fold, field?, priority?}: add or replace a rule.

    Whoever asks for a state next is answered by it.
    """
    _check_unbound(principal)
    known = {"name": str, "thread": str, "fold": str, "field": str, "priority": int}
    rule = fold.fold_rule(members(request, known))
    replaced = await _add(services, services.views.fold_rules, fold.KIND_FOLD, rule)
    return json_response({**_fold(rule), "replaced": replaced})


async def fold_remove(request: Request, principal: Principal, services: Services) -> Response:
    """DELETE /v1/config/fold-rules/{name}."""
    _check_unbound(principal)
    name = request.params["name"]
    rule = services.views.fold_rules.get(name)
    if rule is None:
        raise SplError("not-found", f"no fold rule {name[:80]!r}", hint="spl config list-fold-rules")
    await _remove(services, fold.KIND_FOLD_REMOVED, name)
    return json_response(_fold(rule))


def _check_unbound(principal: Principal) -> None:
    if principal.namespaces:
        raise SplError("scope-forbidden", "a token bound to namespaces changes no rule of the daemon")


def _check_names(rule: PermissionRule | AitlRule, facts: Mapping[str, Any]) -> None:
    """Refuse an expression that asks for what never is there, such as a misspelt `request`."""
    unknown = rules.unknown_names(rule.expr, facts)
    if unknown:
        raise field_error("expression", f"there is no {unknown[0][:40]!r}; there are {', '.join(sorted(facts))}")


async def _add(
    services: Services, held: Mapping[str, object], kind: str, rule: PermissionRule | AitlRule | FoldRule
) -> bool:
    """Return whether the rule took the place of another once it is durable and in force."""
    replaced = rule.name in held
    if not replaced and len(held) >= services.limits.rules_count:
        raise SplError("bad-field", f"there are {services.limits.rules_count} rules, and no room for more")
    await asyncio.wrap_future(services.writer.submit([Own(rules.THREAD, kind, rule.to_body())]))
    return replaced


async def _remove(services: Services, kind: str, name: str) -> None:
    await asyncio.wrap_future(services.writer.submit([Own(rules.THREAD, kind, {"name": name})]))


def _permission(rule: PermissionRule) -> dict[str, object]:
    return {"object": "permission_rule", **rule.to_body()}


def _aitl(rule: AitlRule) -> dict[str, object]:
    return {"object": "aitl_rule", **rule.to_body()}


def _fold(rule: FoldRule) -> dict[str, object]:
    return {"object": "fold_rule", **rule.to_body()}
