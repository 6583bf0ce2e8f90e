"""Whether the permission rules let a request through, when it comes and for as long as its answer streams."""

from collections.abc import Callable
from typing import Final

from ..auth import Kind, Principal
from ..core import rules
from ..core.errors import SplError
from ..net.routes import Request
from .services import Services

CONFIG: Final = "config:"


def check(services: Services, resource: str, request: Request, principal: Principal) -> None:
    """Return unless a permission rule refuses the request; raise "permission-denied".

    The operator at this machine always reaches the configuration, else a rule could lock everybody out of it.
    """
    if not services.views.rules or (principal.kind == Kind.LOCAL and resource.startswith(CONFIG)):
        return
    who = {
        "kind": principal.kind.value, "scopes": sorted(principal.scopes), "namespaces": list(principal.namespaces),
        "token_id": principal.token_id, "pair_id": principal.pair_id, "peer_did": principal.peer_did,
    }  # fmt: skip
    facts = rules.request_facts(resource, request.method, request.path, request.params, who, principal.address)
    name = principal.pair_id or principal.token_id or principal.kind.value
    verdict = services.policy.allows(resource, facts, rules.capabilities_of(principal.scopes), name)
    if verdict.outcome == rules.DENY:
        # A peer learns that it is refused, and not how our rules are called.
        rule = f"the permission rule {verdict.rule}" if principal.kind != Kind.PEER else "a permission rule"
        raise SplError("permission-denied", f"{rule} refuses {resource}", resource=resource)


class Permit:
    """What an answer that takes its time was asked with: the token and the permission rules; used on the loop."""

    def __init__(self, services: Services, resource: str, request: Request, principal: Principal) -> None:
        self._services, self._principal = services, principal
        self._rules = services.views.rules
        self._ask: Callable[[], None] = lambda: check(services, resource, request, principal)

    def check(self) -> None:
        """Return while the credential holds; raise "auth-invalid", "permission-denied"."""
        if not token_holds(self._services, self._principal):
            raise SplError("auth-invalid", "the token that this was asked with is not valid any more")
        if self._services.views.rules is not self._rules:
            asked = self._services.views.rules
            self._ask()
            self._rules = asked

    def holds(self) -> bool:
        """Tell whether the credential still holds."""
        try:
            self.check()
        except SplError:
            return False
        return True


def token_holds(services: Services, principal: Principal) -> bool:
    """Tell whether the token that opened a stream is still good; who came without one needs none."""
    if not principal.token_id:
        return True
    token = services.views.tokens.get(principal.token_id)
    return token is not None and not token.revoked and not token.expired(services.now_ms())
