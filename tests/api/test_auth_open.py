"""With tokens off, requests of this machine alone need none: no proxy's, and none for another name."""

import pytest

from spl.api.auth import Kind, is_proxied
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


@pytest.mark.parametrize("name", [
    "forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-original-forwarded-for", "x-real-ip", "x-client-ip",
    "x-cluster-client-ip", "true-client-ip", "fastly-client-ip", "fly-client-ip", "x-azure-clientip", "x-remote-ip",
    "x-appengine-user-ip", "cf-connecting-ip", "cf-ray", "cdn-loop", "x-envoy-external-address", "x-original-host",
])  # fmt: skip
def test_a_proxy_is_known_by_any_header_of_its_own(name: str) -> None:
    assert is_proxied({"host": "localhost", name: "203.0.113.7", "accept": "*/*"})


def test_what_programs_of_this_machine_send_is_no_sign_of_a_proxy() -> None:
    names = (
        "host user-agent accept accept-encoding accept-language connection content-length content-type authorization "
        "cookie origin referer cache-control pragma if-none-match last-event-id sec-fetch-site sec-fetch-user "
        "upgrade-insecure-requests x-requested-with idempotency-key traceparent dnt priority spl-proof expect range te"
    )
    assert not is_proxied(dict.fromkeys(names.split(), "x"))
