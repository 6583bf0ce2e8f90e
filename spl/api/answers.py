"""The forms of answers, and the few checks that every handler shares."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..core import canon, rules
from ..core.errors import SplError
from ..core.identity import bearer
from ..core.record.position import PLAIN, Positions, positions_of
from ..home.tables.lists import by_namespace
from ..net.routes import Request, Response
from .auth import Kind, Principal
from .services import Services

NDJSON: Final = "application/x-ndjson"
HTML: Final = "text/html; charset=utf-8"
CSS: Final = "text/css; charset=utf-8"
SCRIPT: Final = "text/javascript; charset=utf-8"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
CONFIG: Final = "config:"
"""What the names of resources of the configuration begin with."""
TEXTS_MAX: Final = 64  # of a list: as many as a pair has namespaces
TEXT_CHARS_MAX: Final = 256
"""Of each text in it: as the name of a thread."""


def json_response(value: object, status: int = 200) -> Response:
    """Return one JSON value as answer."""
    return Response(status, canon.told(value))


def list_response(data: Iterable[object]) -> Response:
    """Return the list form of the wire; each row becomes bytes as it comes, so of many one is held as a value."""
    return Response(body=b'{"object":"list","data":[%b]}' % b",".join(map(canon.told, data)))


def field_error(name: str, fault: str) -> SplError:
    """Return the refusal of one field."""
    return SplError("bad-field", f"{name}: {fault}")


def number(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a number of the query within its bounds; raise "bad-field"."""
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not low <= int(text) <= high:
        raise field_error(name, f"must be a number from {low} to {high}")
    return int(text)


def members(request: Request, known: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return the JSON object of the body with only known members of the right type; an empty body is {}.

    Raises "bad-json", "bad-field".
    """
    value = canon.decode(request.body) if request.body.strip() else {}
    if not isinstance(value, dict):
        raise SplError("bad-field", "the body is a JSON object")
    for name, item in value.items():
        if name not in known:
            raise field_error(name[:40], f"is not known here; known are {', '.join(known)}")
        if not isinstance(item, known[name]) or (isinstance(item, bool) and known[name] is int):
            raise field_error(name, "has the wrong type")
    return value


def texts(value: object, name: str, count_max: int = TEXTS_MAX) -> tuple[str, ...]:
    """Return a bounded list of short texts as a tuple; raise "bad-field"."""
    if not isinstance(value, list) or len(value) > count_max:
        raise field_error(name, f"must be a list of at most {count_max} texts")
    if not all(isinstance(item, str) and 0 < len(item) <= TEXT_CHARS_MAX for item in value):
        raise field_error(name, f"holds texts of 1 to {TEXT_CHARS_MAX} characters")
    return tuple(value)


def positions(principal: Principal, services: Services) -> Positions:
    """Return how this principal sees positions in the log; each `sequence` that an answer carries goes through here.

    A token that is bound to namespaces sees numbers of its own, for the gaps between sequences would count the writes
    of others.
    """
    return positions_of(services.vault.cursor_key(), principal.namespaces) if principal.namespaces else PLAIN


def is_admin(principal: Principal) -> bool:
    """Return whether the principal may see what the daemon keeps for itself."""
    return bearer.holds(principal.scopes, bearer.ADMIN)


def check_admin(principal: Principal, what: str) -> None:
    """Raise "scope-forbidden" unless the principal is an admin, which `what` needs."""
    if not is_admin(principal):
        raise SplError("scope-forbidden", f"{what} needs the scope {bearer.ADMIN}", scope=bearer.ADMIN)


def check(services: Services, resource: str, request: Request, principal: Principal) -> None:
    """Raise "permission-denied" if a permission rule refuses the request.

    The operator at this machine always reaches the configuration, or a rule could lock out everyone who can remove it.
    """
    if not services.views.rules or (principal.kind == Kind.LOCAL and resource.startswith(CONFIG)):
        return
    who = {
        "kind": principal.kind.value, "scopes": sorted(principal.scopes), "namespaces": list(principal.namespaces),
        "token_id": principal.token_id, "pair_id": principal.pair_id, "peer_did": principal.peer_did,
    }  # fmt: skip
    facts = rules.request_facts(resource, request.method, request.path, request.params, who, principal.address)
    verdict = services.policy.allows(resource, facts, rules.capabilities_of(principal.scopes), principal.who)
    if verdict.outcome == rules.DENY:
        # A peer learns that it is refused, and not how our rules are called.
        rule = f"the permission rule {verdict.rule}" if principal.kind != Kind.PEER else "a permission rule"
        raise SplError("permission-denied", f"{rule} refuses {resource}", resource=resource)


class Permit:
    """The credential and the permission rules behind an answer that goes on for long; used on the loop."""

    def __init__(self, services: Services, resource: str, request: Request, principal: Principal) -> None:
        self._services, self._resource, self._request, self._principal = services, resource, request, principal
        self._rules = services.views.rules

    def check(self) -> None:
        """Raise unless the credential still holds: "auth-invalid", "permission-denied"."""
        if not self._token_holds():
            raise SplError("auth-invalid", "the token that this was asked with is not valid any more")
        if self._services.views.rules is not self._rules:
            asked = self._services.views.rules
            check(self._services, self._resource, self._request, self._principal)
            self._rules = asked

    def holds(self) -> bool:
        """Return whether the credential still holds."""
        try:
            self.check()
        except SplError:
            return False
        return True

    def _token_holds(self) -> bool:
        """Return whether the token is still good; a principal without a token needs none."""
        token_id, services = self._principal.token_id, self._services
        if not token_id:
            return True
        token = services.views.tokens.get(token_id)
        return token is not None and not token.revoked and not token.expired(services.now_ms())


def records_kept(services: Services) -> int:
    """Return how many records there are in threads of users: the daemon's own bookkeeping is in no namespace."""
    return sum(services.store.index.count(by_namespace(name)) for name in services.views.namespaces)
