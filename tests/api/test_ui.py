"""The page's sessions, walls and parts, over a served API."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from spl.api import ui
from spl.api.answers import HTML
from spl.api.app import Api
from spl.core.errors import SplError
from spl.core.identity.bearer import PAGE
from spl.core.pair.state import Degraded, Revoked
from spl.net.client import Reply
from tests.api.conftest import HERE, PAGE_ORIGIN, Served
from tests.api.pairs_many import a_pair, copy, show

LOOKING = ("accept", "text/html")


async def link(served: Served) -> str:
    made = await served.json("POST", "/v1/ui/links", {}, 201)
    assert made["url"].startswith(f"{served.url}/ui/open?code=")
    return str(made["url"]).removeprefix(served.url)


async def opened(served: Served) -> str:
    """Return the cookie of a new session, as a browser sends it."""
    reply = await served.fetch("GET", await link(served), token="")
    assert reply.status == 200, reply.body
    name_value, *attributes = reply.headers["set-cookie"].split("; ")
    assert attributes == ["Path=/ui/", "HttpOnly", "SameSite=Strict", "Max-Age=604800"]
    return name_value


async def visit(served: Served, cookie: str, path: str = "/ui/", method: str = "GET", **headers: str) -> Reply:
    sent = (("cookie", cookie), *((name.replace("_", "-"), value) for name, value in headers.items()))
    return await served.fetch(method, path, token="", headers=sent)


async def test_a_link_opens_a_session_once(served: Served) -> None:
    path = await link(served)
    assert (await served.fetch("HEAD", path, token="")).status == 200  # what looks ahead uses up nothing
    first = await served.fetch("GET", path, token="")
    assert first.status == 200
    assert b'http-equiv="refresh"' in first.body
    assert (await served.fetch("GET", path, token="")).status == 401
    assert (await served.fetch("GET", "/ui/open?code=" + 32 * "0", token="")).status == 401
    assert (await served.fetch("GET", "/ui/open", token="")).status == 400
    cookie = first.headers["set-cookie"].split(";")[0]
    page = await visit(served, "a=b; " + cookie + "; c=d")
    assert page.status == 200
    assert b"<h1>alice</h1>" in page.body
    assert not re.findall(rb'(?:src|href|action|content)="[^"]*://', page.body)


async def test_a_foreign_cookie_of_the_same_name_hides_no_session(served: Served) -> None:
    cookie = await opened(served)
    name = cookie.partition("=")[0]
    assert (await visit(served, f"{name}=x; {name}=; {name}=y; {cookie}")).status == 200
    assert (await visit(served, f"{name}=x; " * 8 + cookie)).status == 401
    assert (await visit(served, f"{name}=x; a=b")).status == 401


async def test_a_link_ends_after_a_minute_and_there_are_few(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [await link(served) for _ in range(ui.CODES_MAX + 1)]
    assert (await served.fetch("GET", paths[0], token="")).status == 401
    codes = served.services.held["ui.codes"]
    assert isinstance(codes, dict)
    codes.update(dict.fromkeys(codes, ui._Code(served.services.now_ms() - 1, "")))
    assert (await served.fetch("GET", paths[-1], token="")).status == 401


async def test_a_cookie_opens_the_page_and_nothing_else(served: Served) -> None:
    cookie = await opened(served)
    for path in ("/v1/status", "/v1/events", "/v1/federation/pairs", "/v1/tokens", "/metrics", "/v1/threads"):
        assert (await visit(served, cookie, path)).status == 401, path
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/ui/", "/ui/events", "/ui/open", "/ui/page.css"):
            assert (await visit(served, cookie, path, method)).status == 405, (method, path)
    assert (await visit(served, cookie.replace("spl-page", "spl-other"))).status == 401
    assert (await visit(served, cookie[:-4] + "0000")).status == 401
    assert (await visit(served, "")).status == 401


async def test_a_session_ends_with_its_token_and_the_oldest_with_one_too_many(served: Served) -> None:
    cookies = [await opened(served) for _ in range(ui.SESSIONS_MAX + 1)]
    assert [(await visit(served, cookie)).status for cookie in cookies[:2]] == [401, 200]
    rows = [row for row in (await served.json("GET", "/v1/tokens"))["data"] if row["label"] == "page"]
    assert all(row["scopes"] == ["status:read"] for row in rows)
    assert sum(row["state"] == "live" for row in rows) == ui.SESSIONS_MAX
    await served.json("DELETE", f"/v1/tokens/{PAGE}")
    assert {(await visit(served, cookie)).status for cookie in cookies} == {401}
    assert (await visit(served, await opened(served))).status == 200


@pytest.mark.parametrize("how", ["id", "account"])
async def test_links_and_sessions_end_with_the_token_that_made_them(served: Served, how: str) -> None:
    made = await served.json("POST", "/v1/tokens", {"scopes": ["admin"], "ttl_ms": 3_600_000}, 201)
    links = []
    for _ in range(2):
        reply = await served.fetch("POST", "/v1/ui/links", {}, token=made["token"])
        links.append(str(json.loads(reply.body)["url"]).removeprefix(served.url))
    first = await served.fetch("GET", links[0], token="")
    cookie, *attributes = first.headers["set-cookie"].split("; ")
    assert int(attributes[-1].removeprefix("Max-Age=")) <= 3600  # no longer than its token
    ours = await opened(served)
    assert (await visit(served, cookie)).status == 200
    await served.json("DELETE", f"/v1/tokens/{made['token_id' if how == 'id' else 'sa_id']}")
    assert (await served.fetch("GET", links[1], token="")).status == 401
    assert (await visit(served, cookie)).status == 401
    assert (await visit(served, cookie, "/ui/events")).status == 401
    assert (await visit(served, ours)).status == 200


async def test_an_open_stream_of_the_page_ends_with_the_token_that_made_its_link(served: Served) -> None:
    made = await served.json("POST", "/v1/tokens", {"scopes": ["admin"]}, 201)
    link_ = json.loads((await served.fetch("POST", "/v1/ui/links", {}, token=made["token"])).body)["url"]
    reply = await served.fetch("GET", str(link_).removeprefix(served.url), token="")
    headers = [("cookie", reply.headers["set-cookie"].split(";")[0])]
    async with served.client.stream(f"{served.url}/ui/events", headers=headers, dial=HERE) as stream:
        assert (await anext(stream)).name == "stale"
        await served.json("DELETE", f"/v1/tokens/{made['token_id']}")
        names = [event.name async for event in stream]
    assert names[-1] == "error"


async def test_without_its_slash_it_is_elsewhere(served: Served) -> None:
    reply = await served.raw("GET /ui HTTP/1.1\r\nhost: localhost\r\n\r\n", end=b"\r\n\r\n")
    assert reply.startswith("HTTP/1.1 308 ")
    assert "\r\nlocation: ui/\r\n" in reply


async def test_a_browser_at_the_root_is_sent_to_the_page_and_nothing_else_is(served: Served) -> None:
    """The way is relative, so that it also leads there behind a proxy that puts a folder before it."""
    ask = "GET /{} HTTP/1.1\r\nhost: localhost\r\naccept: {}\r\n\r\n"
    reply = await served.raw(ask.format("", "text/html,*/*"), end=b"\r\n\r\n")
    assert reply.startswith("HTTP/1.1 308 ")
    assert "\r\nlocation: ui/\r\n" in reply
    for path, accept in (("", "*/*"), ("", "application/json"), ("x", "text/html")):
        reply = await served.raw(ask.format(path, accept), end=b"\r\n\r\n")
        assert reply.startswith("HTTP/1.1 404 "), (path, accept)


async def test_only_the_operator_makes_links(served: Served) -> None:
    token = await served.mint("status:read", "config:read", "federation:manage")
    assert (await served.fetch("POST", "/v1/ui/links", {}, token=token)).status == 403
    assert (await served.fetch("GET", "/ui/", token=token)).status == 200
    assert (await served.fetch("GET", "/ui/", token=await served.mint("records:read"))).status == 403


async def test_walls_stand_around_everything_that_a_browser_gets(served: Served) -> None:
    cookie = await opened(served)
    for path in ("/ui/", "/ui/page.css", "/ui/page.js", await link(served)):
        headers = (await visit(served, cookie, path)).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; "), path
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
    refused = await visit(served, "", accept="text/html,*/*")
    assert (refused.status, refused.headers["content-type"]) == (401, HTML)
    assert b"<code>spl ui</code>" in refused.body
    assert refused.headers["content-security-policy"].startswith("default-src 'none'")
    tag = (await visit(served, "", "/ui/page.js")).headers["etag"]
    assert (await visit(served, "", "/ui/page.js", if_none_match=tag)).status == 304
    assert (await visit(served, "", "/ui/page.py")).status == 404


async def test_another_name_or_page_gets_nothing(served: Served) -> None:
    """DNS rebinding, and a page of an origin that may read the API: neither reads this."""
    cookie = await opened(served)
    port = served.url.rpartition(":")[2]
    head = f"GET /ui/ HTTP/1.1\r\nhost: evil.example:{port}\r\ncookie: {cookie}\r\n\r\n"
    assert "HOST_REFUSED" in await served.raw(head)
    answer = await visit(served, cookie, origin=PAGE_ORIGIN)
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_over_plain_http_the_page_opens_on_this_machine_only(served: Served) -> None:
    def secure(host: str, address: str, scheme: str = "http") -> bool:
        request: Any = type("R", (), {"scheme": scheme, "headers": {"host": host}, "local": False, "address": address})
        return ui._secure(request, served.services)

    assert not secure("localhost:9100", "127.0.0.1")
    assert not secure("192.168.1.20:9100", "192.168.1.20")
    assert secure("bob.example", "203.0.113.7", "https")
    with pytest.raises(SplError, match="this machine only"):
        secure("192.168.1.20:9100", "192.168.1.21")


async def test_parts_are_made_when_rows_change_and_told_by_number(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        parts, now_s = ui.PageParts(served.services), 1000.0

        def turn() -> dict[str, str]:
            nonlocal now_s
            now_s += 2
            before = parts.number
            parts.look(now_s, now_s)
            while parts.make():
                pass
            told: dict[str, str] = {}
            while found := list(parts.since(before)):
                before = max(number for number, _ in found)
                told |= {str(value["id"]): str(value["html"]) for _, (_, value) in found}
            return told

        show(served, *(copy(pair, number) for number in range(20)))
        first = turn()
        assert first.keys() == {"summary", "ended", "sharing", *(f"pair_{number:08x}" for number in range(20))}
        assert "nothing needs" not in turn()
        show(served, copy(pair, 0), copy(pair, 1, state=Degraded("connect")), copy(pair, 2, state=Revoked("gone")))
        second = turn()
        assert "degraded" in second["pair_00000001"]
        assert second["pair_00000002"] == ""
        assert "pair_00000002" in second["ended"]
        assert "connect" in second["summary"]
        assert len(parts.pairs()) == 19


async def test_what_changed_is_told_before_what_only_aged(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        parts, now_s = ui.PageParts(served.services), 1000.0
        count = 3 * ui.AT_ONCE
        show(served, *(copy(pair, number) for number in range(count)))
        parts.look(now_s, now_s)
        while parts.make():
            pass
        parts._due = dict.fromkeys(f"pair_{number:08x}" for number in range(count - 1))
        show(served, *(copy(pair, number) for number in range(count - 1)),
             copy(pair, count - 1, state=Degraded("connect")))  # fmt: skip
        parts.look(now_s + 2, now_s + 2)
        assert next(iter(parts._due)) == f"pair_{count - 1:08x}"


async def test_parts_of_many_pairs_age_no_longer_than_those_of_few(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "OLD_S", 4.0)
    async with a_pair(tmp_path / "world") as pair:
        parts, began_s = ui.PageParts(served.services), 1000.0
        show(served, *(copy(pair, number) for number in range(60)))
        parts.look(began_s, began_s)
        while parts.make():
            pass
        for turn in range(1, 9):  # one a second, as nothing changes
            parts.look(began_s + turn, began_s + turn)
            list(parts.since(parts.number))
        assert min(part.made_s for part in parts._parts.values()) > began_s


async def test_a_browser_with_an_older_page_is_told_so(served: Served) -> None:
    cookie = await opened(served)
    page = (await visit(served, cookie)).body.decode()
    seen = page.split('data-from="')[1].split('"')[0]

    async def first(of: str) -> str:
        headers = [("cookie", cookie)]
        async with served.client.stream(f"{served.url}/ui/events?from={of}", headers=headers, dial=HERE) as stream:
            served.services.feed.notifier.stop()
            event = await anext(stream)
            json.loads(event.data)
            return str(event.name)

    assert await first("0000.1") == "stale"
    assert await first(f"{seen}0000000000000000") == "stale"
    assert await first("x") == "stale"
    assert await first(seen) != "stale"


async def test_the_socket_needs_no_session(served: Served) -> None:
    assert Api(served.services, local=True).table.match("GET", "/ui/")[0].cookie
