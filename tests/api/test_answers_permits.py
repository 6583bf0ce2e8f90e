"""A permit ends with its token, and with a rule that comes to refuse it."""

import pytest

from spl.api import answers
from spl.api.answers import Permit
from spl.api.auth import Kind, Principal
from spl.core.errors import SplError
from spl.net.routes import Request
from tests.api.conftest import Served

PEER = Principal(Kind.PEER, frozenset({"federation:sync"}), ("default",), "pair_0a0b0c0d", "did:x")


def request() -> Request:
    path = "/v1/sync/changes"
    return Request(
        "GET", path, {}, {}, b"", {}, "127.0.0.1", local=False, target=path, scheme="http", address="127.0.0.1"
    )


async def rule(served: Served, name: str, expression: str, resource: str = "sync:*") -> None:
    body = {"name": name, "resource": resource, "action": "deny", "priority": 5, "expression": expression}
    await served.json("POST", "/v1/config/permission-rules", body)


def code_of(permit: Permit) -> str:
    with pytest.raises(SplError) as caught:
        permit.check()
    assert not permit.holds()
    return caught.value.code


async def test_a_rule_that_comes_to_refuse_ends_a_permit_and_its_removal_gives_it_back(served: Served) -> None:
    permit = Permit(served.services, "sync:read", request(), PEER)
    assert permit.holds()
    await rule(served, "other", 'principal.pair_id == "pair_ffffffff"')
    assert permit.holds()
    await rule(served, "this", 'principal.pair_id == "pair_0a0b0c0d"')
    assert code_of(permit) == "permission-denied"
    assert code_of(permit) == "permission-denied"
    await served.json("DELETE", "/v1/config/permission-rules/this")
    assert permit.holds()


async def test_a_peer_is_not_told_how_a_rule_is_called(served: Served) -> None:
    await rule(served, "zq-name", "true")
    for principal, told in ((PEER, False), (Principal(Kind.TOKEN, token_id="tok_1"), True)):
        with pytest.raises(SplError) as caught:
            answers.check(served.services, "sync:read", request(), principal)
        assert ("zq-name" in caught.value.message) == told


async def test_the_local_operator_always_reaches_the_configuration(served: Served) -> None:
    await rule(served, "all", "true", "threads:*")
    local = Principal(Kind.LOCAL, frozenset({"admin"}))
    answers.check(served.services, "config:write", request(), local)
    with pytest.raises(SplError):
        answers.check(served.services, "threads:read", request(), local)


async def test_a_permit_ends_with_its_token(served: Served) -> None:
    text = await served.mint("federation:sync")
    token = next(t for t in served.home.views.tokens.values() if t.scopes == frozenset({"federation:sync"}))
    permit = Permit(served.services, "sync:read", request(), Principal(Kind.TOKEN, token_id=token.token_id))
    assert permit.holds()
    await served.json("DELETE", f"/v1/tokens/{token.token_id}")
    assert code_of(permit) == "auth-invalid"
    reply = await served.fetch("GET", "/v1/sync/changes", token=text)
    assert reply.status == 401
