"""The page of a pair's projections: bounded, for who may manage pairs, and nothing that looks like a record."""

import json

import pytest

from spl.core.identity.did import multibase
from spl.core.limits import Limits
from spl.core.pair.steps import decide
from spl.core.record import levels
from spl.home.views import THREAD_PAIRS
from spl.home.writes import Own, Projected
from tests.api.conftest import Served
from tests.core.pair_kit import KEY, NOW_MS, PATHS, PEER, PROPOSAL, bodies

PAIR = PROPOSAL.pair_id
PATH = f"/v1/federation/pairs/{PAIR}/projections"


def claim(n: int) -> levels.Projection:
    made = {"act": "DO", "actor": "did:a", "thread": "th", "body": {}, "clock": n, "data_type": "SCALAR", "parents": []}
    shown = levels.content(made, f"{n:064x}", 1, PAIR, b"s")
    raw = levels.project(shown, 1, "music", PAIR, PEER, multibase(KEY.public), KEY)
    return levels.parse(json.loads(raw), Limits())


@pytest.fixture
def showing(served: Served) -> Served:
    """A daemon with a live pair whose peer showed it five projections."""
    pair, items = None, []
    for event in PATHS["Active"]:
        pair, effects = decide(pair, event, NOW_MS)
        items += [Own(THREAD_PAIRS, body.pop("kind"), body) for body in bodies(effects)]
    served.services.writer.submit(items).result(10)
    served.services.writer.submit([Projected(claim(n), "default", PAIR) for n in range(5)]).result(10)
    return served


async def test_pages_follow_one_another(showing: Served) -> None:
    first = await showing.json("GET", f"{PATH}?limit=3")
    assert [item["clock"] for item in first["data"]] == [0, 1, 2]
    assert {(item["object"], item["claimed_by"]) for item in first["data"]} == {("projection", PEER)}
    rest = await showing.json("GET", f"{PATH}?limit=3&after={first['next_after']}&namespace=default")
    assert [item["clock"] for item in rest["data"]] == [3, 4]
    assert rest["next_after"] is None
    assert (await showing.json("GET", f"{PATH}?namespace=music"))["data"] == []
    assert (await showing.json("GET", "/v1/records?thread=th"))["data"] == []
    assert (await showing.refused("GET", f"/v1/records/{first['data'][0]['id']}"))[0] == 404


async def test_who_may_not_manage_pairs_sees_none_of_it(showing: Served) -> None:
    token = await showing.mint("records:read")
    assert await showing.refused("GET", PATH, token=token) == (403, "SCOPE_FORBIDDEN")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=-1", "after=x"])
async def test_bounds_of_the_page(showing: Served, query: str) -> None:
    assert (await showing.refused("GET", f"{PATH}?{query}"))[0] == 400


async def test_a_pair_that_does_not_exist(served: Served) -> None:
    assert (await served.refused("GET", "/v1/federation/pairs/pair_9/projections"))[0] == 404
