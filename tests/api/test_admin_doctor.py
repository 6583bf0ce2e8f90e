"""The doctor's routes: for the operator, and the check that only a pair's own peer may ask for."""

from tests.api.conftest import Served


async def test_the_daemons_report(served: Served) -> None:
    """Our own manifest is fetched by our public URL, and is the one that we serve."""
    report = await served.json("GET", "/v1/doctor")
    assert (report["object"], report["pair_id"], report["pairs"]) == ("doctor", None, [])
    rows = {row["name"]: row["mark"] for row in report["checks"]}
    assert (rows["daemon"], rows["identity"], rows["published"]) == ("ok", "ok", "ok")
    assert [item for item in report["problems"] if item["code"] != "disk-low"] == []


async def test_a_pair_that_there_is_not(served: Served) -> None:
    assert await served.refused("GET", "/v1/doctor/pair_00000000") == (404, "PAIR_UNKNOWN")


async def test_the_doctor_is_the_operators(served: Served) -> None:
    """A reading token sees neither report; nobody without a token sees anything."""
    token = await served.mint("records:read")
    for path in ("/v1/doctor", "/v1/doctor/pair_00000000"):
        assert await served.refused("GET", path, token=token) == (403, "SCOPE_FORBIDDEN")
        assert await served.refused("GET", path, token="") == (401, "AUTH_REQUIRED")


async def test_only_the_pairs_peer_may_make_us_look(served: Served) -> None:
    """Not even an admin: what we would dial stands in a pair's pinned manifest, and there is no pair here."""
    path = "/v1/federation/pair/pair_00000000/check"
    for token in (None, await served.mint("federation:sync")):
        assert await served.refused("POST", path, {}, token=token) == (403, "SCOPE_FORBIDDEN")
    assert await served.refused("POST", path, {}, token="") == (401, "AUTH_REQUIRED")
    assert await served.refused("POST", path, {"url": "http://127.0.0.1:1/"}) == (400, "BAD_FIELD")
