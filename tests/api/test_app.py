"""The door: host and origin, the principal before the handler, and one form for every error."""

import dataclasses
import socket

import pytest

from spl.api.app import Api
from spl.core.errors import SplError
from spl.home.config import Settings
from spl.home.disk import DiskError
from spl.net.http1 import RequestHead
from tests.api.conftest import PAGE_ORIGIN, Served


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9100", "localhost.evil.example", "localhost@evil"])
async def test_a_foreign_host_is_refused(served: Served, host: str) -> None:
    """A page that rebinds its name to 127.0.0.1 still sends its own name."""
    answer = await served.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert answer.startswith("HTTP/1.1 4")
    assert "HOST_REFUSED" in answer or "BAD_REQUEST" in answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9100", "127.0.0.1:1", "[::1]:9100", "192.0.2.7"])
async def test_our_own_names_and_addresses_are_taken(served: Served, host: str) -> None:
    answer = await served.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200")


async def test_a_foreign_origin_may_not_write(served: Served) -> None:
    record = {"act": "KNOW", "actor": "did:sync:user:a", "body": {}, "thread": "th"}
    foreign = (("origin", "https://evil.example"),)
    assert await served.refused("POST", "/v1/records", record, headers=foreign) == (403, "ORIGIN_REFUSED")
    assert await served.refused("POST", "/v1/records", record, headers=(("origin", "null"),)) == (403, "ORIGIN_REFUSED")
    own = (("origin", served.url),)
    assert (await served.fetch("POST", "/v1/records", record, headers=own)).status == 200


async def test_no_answer_invites_another_origin(served: Served) -> None:
    reply = await served.fetch("GET", "/health", headers=(("origin", "https://evil.example"),))
    assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_an_allowed_origin_may_read_and_not_write(served: Served) -> None:
    origin = PAGE_ORIGIN
    for path, token in (("/health", ""), ("/v1/threads", None), ("/v1/threads", "")):
        reply = await served.fetch(
            "GET", path, headers=(("origin", origin),), **({} if token is None else {"token": token})
        )
        assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (origin, "origin")
        near = await served.fetch("GET", path, headers=(("origin", f"{origin}0"),))
        assert "access-control-allow-origin" not in near.headers
    record = {"act": "KNOW", "actor": "did:sync:user:a", "body": {}, "thread": "th"}
    assert await served.refused("POST", "/v1/records", record, headers=(("origin", origin),)) == (403, "ORIGIN_REFUSED")


@pytest.mark.parametrize(
    ("token", "code"),
    [("", "AUTH_REQUIRED"), ("spl_home_sa_00000000_" + "a" * 43, "AUTH_INVALID"), ("x", "AUTH_INVALID")],
)
async def test_without_a_bearer_that_holds_nothing_is_told(served: Served, token: str, code: str) -> None:
    for path in ("/v1/threads", "/v1/records?thread=th", "/v1/federation/pairs", "/v1/tokens", "/v1/sync/changes"):
        assert await served.refused("GET", path, token=token) == (401, code)


async def test_a_401_names_the_scheme(served: Served) -> None:
    reply = await served.fetch("GET", "/v1/threads", token="")
    assert reply.headers["www-authenticate"].startswith("Bearer")


async def test_a_scope_opens_its_routes_and_no_others(served: Served) -> None:
    reader = await served.mint("records:read")
    assert (await served.fetch("GET", "/v1/threads", token=reader)).status == 200
    for method, path, body in (
        ("POST", "/v1/records", {}),
        ("GET", "/v1/tokens", None),
        ("GET", "/v1/config", None),
        ("POST", "/v1/sync", {}),
        ("GET", "/v1/aitl", None),
        ("GET", "/v1/federation/pairs", None),
    ):
        assert await served.refused(method, path, body, token=reader) == (403, "SCOPE_FORBIDDEN")


async def test_unknown_paths_and_methods(served: Served) -> None:
    assert await served.refused("GET", "/nope") == (404, "NOT_FOUND")
    reply = await served.fetch("DELETE", "/v1/records")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")
    assert (await served.fetch("GET", "/v1/federation/pair")).headers["allow"] == "OPTIONS, POST"


async def test_a_token_in_the_query_is_refused(served: Served) -> None:
    assert await served.refused("GET", f"/v1/threads?token={served.token}") == (400, "TOKEN_IN_QUERY")


@pytest.mark.parametrize("origin", ["http://[", "null", "http://", "]["])
async def test_an_origin_that_is_none_is_foreign(served: Served, origin: str) -> None:
    found = await served.refused("POST", "/v1/records", {}, headers=(("origin", origin),))
    assert found == (403, "ORIGIN_REFUSED")


@pytest.mark.parametrize(
    ("host", "ours"),
    [("box", True), ("BOX:9100", True), ("box.local", True), ("192.168.1.5:9100", True), ("box.evil.example", False)],
)
async def test_the_name_that_the_manifest_gives_this_machine_is_ours(served: Served, host: str, ours: bool) -> None:
    """A daemon on every address publishes http://<host name>:<port>, and must answer to it."""
    services = dataclasses.replace(served.services, url="http://box:9100")
    head = RequestHead("GET", "/health", "/health", "", {"host": host}, 0, True, False, 1)
    try:
        Api(services, local=False).match(head)
    except SplError as exc:
        assert (exc.code, ours) == ("host-refused", False)
    else:
        assert ours


@pytest.mark.parametrize(("listens", "ours"), [("127.0.0.1", False), ("0.0.0.0", True)])
async def test_beyond_loopback_the_names_of_this_machine_are_ours(
    served: Served, monkeypatch: pytest.MonkeyPatch, listens: str, ours: bool
) -> None:
    """Also if public_url says an address, as with --lan: people type the name that they know."""
    monkeypatch.setattr(socket, "gethostname", lambda: "kitchen")
    settings = Settings(dataclasses.replace(served.services.settings.now, host=listens))
    api = Api(dataclasses.replace(served.services, url="http://192.168.1.20:9100", settings=settings), local=False)
    for host in ("kitchen:9100", "kitchen.local"):
        head = RequestHead("GET", "/health", "/health", "", {"host": host}, 0, True, False, 1)
        try:
            api.match(head)
        except SplError as exc:
            assert (exc.code, ours) == ("host-refused", False)
        else:
            assert ours


@pytest.mark.parametrize(("local", "told"), [(False, False), (True, True)])
async def test_a_fault_of_the_disk_names_no_path_beyond_this_machine(served: Served, local: bool, told: bool) -> None:
    api = Api(served.services, local=local)
    answer = api.refuse(DiskError("home-unusable", "/home/ann/.syncro/secrets/nonces.jsonl: Input/output error"), None)
    assert answer.status == 500
    assert isinstance(answer.body, bytes)
    assert (b"/home/ann" in answer.body) is told
    assert b"HOME_UNUSABLE" in answer.body
