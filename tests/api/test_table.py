"""The table of routes: nothing open by omission, every body bounded, every route documented."""

from spl.api.auth import ANYONE
from spl.api.table import ROUTES, Late
from spl.core.identity.bearer import SCOPES
from spl.core.limits import MIB
from tests import pages

OPEN_TO_ALL = {
    "/health",
    "/health/ready",
    "/v1/openapi.json",
    "/ui",
    "/ui/open",
    "/ui/{file}",
    "/.well-known/syncropel",
    "/.well-known/did.json",
    "/v1/federation/pair",
    "/v1/federation/pair/{id}/poll",
    "/v1/federation/pair/{id}/confirm",
    "/v1/federation/pair/{id}/notify-revoke",
    "/v1/federation/pair/{id}/log",
    "/v1/federation/pair/{id}/renew",
    "/v1/federation/pair/{id}/consent",
}


def test_only_these_routes_need_no_bearer() -> None:
    assert {route.path for route in ROUTES if route.scope == ANYONE} == OPEN_TO_ALL
    assert all(route.scope in SCOPES | {ANYONE} for route in ROUTES)


def test_every_body_is_bounded_and_reads_have_none() -> None:
    for route in ROUTES:
        assert (0 < route.body_bytes <= 8 * MIB) if route.method == "POST" else route.body_bytes == 0, route.path


def test_every_route_is_in_the_manual() -> None:
    text = (pages.MANUAL / "http.md").read_text()
    assert not [route.path for route in ROUTES if route.path not in text]
    assert all(route.summary for route in ROUTES)


def test_every_late_handler_is_there() -> None:
    late = [route.handler for route in ROUTES if isinstance(route.handler, Late)]
    assert late
    assert all(callable(handler.handler()) for handler in late)
