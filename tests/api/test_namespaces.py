"""The registry over HTTP: what exists, what a tenant sees of it, and that nothing is deleted that holds something."""

from typing import Any

from spl.core import consent
from spl.core.pair.steps import End, decide
from spl.home.views import THREAD_PAIRS
from spl.home.writes import Own
from tests.api.conftest import Served
from tests.core.pair_kit import NOW_MS, PATHS, PROPOSAL, bodies

RECORD = {"act": "KNOW", "actor": "did:sync:user:a", "thread": "th"}
PATH = "/v1/namespaces"


async def make(served: Served, *names: str, **more: Any) -> None:
    for name in names:
        await served.json("POST", PATH, {"name": name, **more})


async def emit(served: Served, ns: str, **more: Any) -> Any:
    return await served.fetch("POST", "/v1/records", {**RECORD, "body": {"namespace": ns}}, **more)


def give_pair(served: Served, ended: bool = False) -> None:
    """Put an active pair into the log that shares default and maps `a`; its peer is nobody's."""
    pair = None
    items = []
    for event in (*PATHS["Active"], *([End("over")] if ended else [])):
        pair, effects = decide(pair, event, NOW_MS)
        items += [Own(THREAD_PAIRS, body.pop("kind"), body) for body in bodies(effects)]
    served.services.writer.submit(items).result(10)


async def test_namespaces_need_those_above_them(served: Served) -> None:
    assert await served.refused("POST", PATH, {"name": "org/web"}) == (403, "NAMESPACE_REJECTED")
    made = await served.json("POST", PATH, {"name": "org"})
    assert (made["already"], made["revived"], made["shared"]) == (False, False, False)
    assert (await served.json("POST", PATH, {"name": "org/web", "shared": True}))["shared"]
    assert (await served.json("POST", PATH, {"name": "org"}))["already"]
    names = [item["name"] for item in (await served.json("GET", PATH))["data"]]
    assert names == ["default", "org", "org/web"]
    assert await served.refused("POST", PATH, {"name": "No Good"}) == (400, "BAD_FIELD")


async def test_a_slash_travels_escaped(served: Served) -> None:
    await make(served, "org", "org/web")
    assert (await served.json("GET", f"{PATH}/org%2Fweb"))["name"] == "org/web"
    assert await served.refused("GET", f"{PATH}/org%2Fnone") == (404, "NOT_FOUND")
    assert await served.refused("GET", f"{PATH}/..%2Forg") == (400, "BAD_FIELD")
    assert await served.refused("POST", f"{PATH}/org/sell", {}) == (404, "NOT_FOUND")


async def test_an_archived_one_takes_no_writes_keeps_its_records_and_comes_back(served: Served) -> None:
    await make(served, "org", "org/web", shared=True)
    assert (await emit(served, "org/web")).status == 200
    assert not (await served.json("POST", f"{PATH}/org/archive", {}))["already"]
    assert (await served.json("POST", f"{PATH}/org/archive", {}))["already"]
    for name in ("org", "org/web"):
        reply = await served.refused("POST", "/v1/records", {**RECORD, "body": {"namespace": name}})
        assert reply == (403, "NAMESPACE_REJECTED")
    refusal = await served.json("POST", "/v1/records", {**RECORD, "body": {"namespace": "org/web"}}, 403)
    assert refusal["hint"] == "spl namespace create org"
    web = await served.json("GET", f"{PATH}/org%2Fweb")
    assert (web["state"], web["records"], web["unusable"]) == ("active", 1, "namespace org is archived")
    assert len((await served.json("GET", "/v1/threads/th/records"))["data"]) == 1
    assert await served.refused("POST", f"{PATH}/org%2Fweb/share", {}) == (403, "NAMESPACE_REJECTED")
    back = await served.json("POST", PATH, {"name": "org"})
    assert (back["revived"], back["already"], back["shared"]) == (True, False, True)
    assert (await emit(served, "org/web")).status == 200


async def test_sharing_is_a_mark_and_create_sets_it_but_never_takes_it(served: Served) -> None:
    await make(served, "org")
    for action, shared in (("share", True), ("share", True), ("unshare", False)):
        assert (await served.json("POST", f"{PATH}/org/{action}", {}))["shared"] is shared
    assert (await served.json("POST", PATH, {"name": "org", "shared": True}))["shared"]
    assert (await served.json("POST", PATH, {"name": "org"}))["shared"]
    manifest = await served.json("GET", "/.well-known/syncropel")
    assert manifest["federation_manifest"]["advertises"]["namespaces"] == ["default", "org"]


async def test_default_is_always_there_and_shared(served: Served) -> None:
    for action in ("unshare", "archive"):
        assert await served.refused("POST", f"{PATH}/default/{action}", {}) == (400, "BAD_FIELD")
    assert await served.refused("DELETE", f"{PATH}/default") == (400, "BAD_FIELD")
    assert (await served.json("POST", f"{PATH}/default/share", {}))["already"]


async def test_only_what_holds_nothing_is_deleted(served: Served) -> None:
    await make(served, "org", "org/web", "full", "a")
    assert (await emit(served, "full")).status == 200
    give_pair(served)
    for name in ("org", "full", "a"):
        assert await served.refused("DELETE", f"{PATH}/{name}") == (409, "NAMESPACE_IN_USE")
        assert (await served.json("GET", f"{PATH}/{name}"))["state"] == "active", "a refusal changes nothing"
    assert (await served.json("DELETE", f"{PATH}/org%2Fweb"))["state"] == "deleted"
    assert (await served.json("DELETE", f"{PATH}/org"))["state"] == "deleted"
    assert await served.refused("DELETE", f"{PATH}/org") == (404, "NOT_FOUND")
    assert await served.refused("POST", "/v1/records", {**RECORD, "body": {"namespace": "org"}}) == (
        403, "NAMESPACE_REJECTED",
    )  # fmt: skip
    names = [item["name"] for item in (await served.json("GET", PATH))["data"]]
    assert names == ["a", "default", "full"]


async def test_an_ended_pair_holds_nothing(served: Served) -> None:
    await make(served, "a")
    give_pair(served, ended=True)
    assert (await served.json("GET", f"{PATH}/a"))["pairs"] == []
    assert (await served.json("DELETE", f"{PATH}/a"))["state"] == "deleted"


async def test_show_tells_which_pairs_share_it_and_which_tokens_are_bound_to_it(served: Served) -> None:
    await make(served, "a")
    give_pair(served)
    await served.mint("records:read", namespaces=["a"], label="tenant")
    gone = await served.json("POST", "/v1/tokens", {"scopes": ["records:read"], "namespaces": ["a"]}, 201)
    await served.json("DELETE", f"/v1/tokens/{gone['token_id']}")
    found = await served.json("GET", f"{PATH}/a")
    assert [(pair["pair_id"], pair["peer_namespace"], pair["level"]) for pair in found["pairs"]] == [
        (PROPOSAL.pair_id, "b", "L1")
    ]
    assert [token["label"] for token in found["tokens"]] == ["tenant"]
    default = await served.json("GET", f"{PATH}/default")
    assert [(pair["peer_namespace"], pair["level"]) for pair in default["pairs"]] == [("default", "L0")]
    await served.json("POST", f"{PATH}/a/archive", {})
    assert [pair["level"] for pair in (await served.json("GET", f"{PATH}/a"))["pairs"]] == [None]


async def test_what_was_withdrawn_is_shared_no_more(served: Served) -> None:
    give_pair(served)
    grant = {"namespace": "default", "maps": ["default", "default"], "level": consent.WITHDRAWN, "version": 1}
    own = Own(consent.THREAD, consent.KIND_GRANT, {"pair_id": PROPOSAL.pair_id, "grant": grant})
    served.services.writer.submit([own]).result(10)
    assert (await served.json("GET", f"{PATH}/default"))["pairs"] == []


async def test_a_tenant_sees_its_own_and_nothing_of_others(served: Served) -> None:
    await make(served, "acme", "other")
    token = await served.mint("records:read", namespaces=["acme"])
    assert [item["name"] for item in (await served.json("GET", PATH, token=token))["data"]] == ["acme"]
    own = await served.json("GET", f"{PATH}/acme", token=token)
    assert not {"pairs", "tokens", "unusable"} & own.keys()
    seen = [await served.fetch("GET", f"{PATH}/{name}", token=token) for name in ("other", "nowhere")]
    assert seen[0].status == seen[1].status == 404
    assert seen[0].body.replace(b"other", b"nowhere") == seen[1].body
    for method, path, body in (
        ("POST", PATH, {"name": "x"}), ("POST", f"{PATH}/acme/share", {}), ("DELETE", f"{PATH}/acme", None),
    ):  # fmt: skip
        assert await served.refused(method, path, body, token=token) == (403, "SCOPE_FORBIDDEN")
