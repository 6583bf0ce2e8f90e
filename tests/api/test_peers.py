"""What peers call: nothing is served to who cannot prove to be the pair's peer, but pages to a token of its own."""

import asyncio

from tests.api.conftest import Served
from tests.waiting import DEADLINE_S, until, waiters

NDJSON = (("content-type", "application/x-ndjson"),)


async def test_sync_routes_serve_no_ordinary_token(served: Served) -> None:
    for scopes in (["admin"], ["federation:sync", "federation:subscribe"]):
        token = await served.mint(*scopes)
        assert await served.refused("GET", "/v1/sync/changes?feed=continuous", token=token) == (403, "SCOPE_FORBIDDEN")
        pushed = await served.refused("POST", "/v1/sync/records", b"{}", token=token, headers=NDJSON)
        assert pushed == (403, "SCOPE_FORBIDDEN")
        assert await served.refused("POST", "/v1/sync/ack", {"cursor": ""}, token=token) == (403, "SCOPE_FORBIDDEN")
        assert await served.refused("GET", "/v1/sync/chains?did=x", token=token) == (403, "SCOPE_FORBIDDEN")
    admin = await served.mint("admin")
    assert await served.refused("GET", "/v1/sync/changes", token=admin) == (403, "SCOPE_FORBIDDEN")
    assert await served.refused("POST", "/v1/sync/records", {"ids": []}, token=admin) == (403, "SCOPE_FORBIDDEN")
    reader = await served.mint("records:read")
    assert await served.refused("GET", "/v1/sync/changes", token=reader) == (403, "SCOPE_FORBIDDEN")


async def emit(served: Served, text: str, ns: str = "default", thread: str = "th") -> str:
    body = {"text": text, "namespace": ns}
    value = {"act": "DO", "actor": "did:sync:user:a", "thread": thread, "body": body}
    return str((await served.json("POST", "/v1/records", value))["id"])


async def test_a_token_minted_for_no_pair_reads_its_own_namespaces_in_full(served: Served) -> None:
    for name in ("org", "music"):
        await served.json("POST", "/v1/namespaces", {"name": name})
    sent = {ns: [await emit(served, f"{ns} {n}", ns) for n in range(3)] for ns in ("default", "org", "music")}
    plain = await served.mint("federation:sync")
    tenant = await served.mint("federation:sync", namespaces=["org", "music"])
    every = [id_ for ids in sent.values() for id_ in ids]
    for token, names in ((plain, ["default"]), (tenant, ["org", "music"])):
        mine = [id_ for ns in names for id_ in sent[ns]]
        found, since, more = list[str](), "", True
        while more:
            one = await served.json("GET", f"/v1/sync/changes?limit=2&since={since}", token=token)
            found += [env["id"] for env in one["records"]]
            since, more = one["next_cursor"], one["has_more"]
            assert all(env["sig"]["by"] for env in one["records"])
        assert sorted(found) == sorted(mine)
        assert (one["peer_view"]["head"], one["peer_view"]["clock"]) == (len(mine), len(mine))
        fetched = await served.json("POST", "/v1/sync/records", {"ids": every}, token=token)
        assert sorted(env["id"] for env in fetched["records"]) == sorted(mine)
        for other in ("default", "org", "nowhere"):
            page = await served.json("GET", f"/v1/sync/changes?target_namespace={other}", token=token)
            assert [env["id"] for env in page["records"]] == (sent[other] if other in names else [])
        reserved = await served.json("GET", "/v1/sync/changes?thread=th_api_tokens", token=token)
        assert reserved["records"] == []
        other = tenant if token == plain else plain
        assert await served.refused("GET", f"/v1/sync/changes?since={since}", token=other) == (400, "CURSOR_INVALID")


async def test_a_longpoll_is_not_answered_for_a_token_that_ended_meanwhile(served: Served) -> None:
    token = await served.mint("federation:sync")
    page = await served.json("GET", "/v1/sync/changes", token=token)
    path = f"/v1/sync/changes?feed=longpoll&since={page['next_cursor']}"
    held = next(t for t in served.home.views.tokens.values() if t.scopes == frozenset({"federation:sync"}))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(served.refused("GET", path, token=token))
        await until(lambda: waiters(served.services.feed.notifier))
        await served.json("DELETE", f"/v1/tokens/{held.token_id}")
    assert asked.result() == (401, "AUTH_INVALID")


async def test_a_longpoll_is_not_answered_against_a_rule_that_came_meanwhile(served: Served) -> None:
    token = await served.mint("federation:sync")
    page = await served.json("GET", "/v1/sync/changes", token=token)
    path = f"/v1/sync/changes?feed=longpoll&since={page['next_cursor']}"
    rule = {"name": "no", "resource": "sync:read", "action": "deny", "priority": 1, "expression": "true"}
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(served.refused("GET", path, token=token))
        await until(lambda: waiters(served.services.feed.notifier))
        await served.json("POST", "/v1/config/permission-rules", rule)
    assert asked.result() == (403, "PERMISSION_DENIED")


async def test_unsigned_messages_of_the_handshake_are_refused(served: Served) -> None:
    before = served.home.store.last_seq
    for path in ("", "/pair_00000000/poll", "/pair_00000000/confirm", "/pair_00000000/notify-revoke"):
        status, code = await served.refused(
            "POST", f"/v1/federation/pair{path}", {"message": {}, "signature": ""}, token=""
        )
        assert status in (400, 401), code
    assert served.home.store.last_seq == before
