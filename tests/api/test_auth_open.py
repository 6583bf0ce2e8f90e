"""With tokens off, requests of this machine alone need none: no proxy's, and none for another name."""

import pytest

from spl.api.auth import Kind
from tests.api.test_auth import World, refused


@pytest.mark.parametrize("config", [{"insecure": True}, {"auth_required": False}])
def test_an_open_daemon_asks_nobody_but_still_knows_its_peers(config: dict[str, bool]) -> None:
    world = World(**config)
    assert world.ask({}, "config:write").kind == Kind.OPEN
    assert world.ask({"authorization": "Basic x"}, "config:write").kind == Kind.OPEN
    world.auth.check_presented({})
    assert world.ask(world.proven()).kind == Kind.PEER
    world.pair.live = False
    refused("auth-invalid", world.ask, world.proven())
    refused("auth-required", world.ask, {"spl-proof": "x"})
    for host in ("localhost:9100", "127.0.0.9:1", "[::1]:9100", "LOCALHOST"):
        assert world.ask({"host": host}, "config:write").kind == Kind.OPEN
    for host in ("spl.example", "192.0.2.7:9100", "[2001:db8::1]", "localhost.example", "127.0.0.1.example:9100"):
        refused("auth-required", world.ask, {"host": host})
    for name in ("via", "x-real-ip", "forwarded", "x-forwarded-for", "x-forwarded-host", "cf-connecting-ip"):
        refused("auth-required", world.ask, {name: "x"})
