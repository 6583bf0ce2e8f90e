"""What the peer refused and would see again is kept wanted on both sides until it was sent."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.record import page
from spl.core.record.page import Page
from spl.core.record.record import Envelope
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.sync.ledger import WANTED_ANSWERS_MAX
from tests.nodes import LIMITS, Node, join, nodes

PAIR = "pair_00000001"


def walled(laptop: Node, server: Node, namespaces: tuple[str, ...]) -> None:
    """Pair the two; the server cannot dial the laptop."""
    join(laptop, server, PAIR, namespaces=namespaces)
    laptop.network.walled = {laptop.name}


async def round_trip(laptop: Node) -> int:
    """Pull and push, as one poll of the laptop; return what was new to the server."""
    await laptop.sync.pull(PAIR)
    return await laptop.push.push(PAIR)


def refused_once(laptop: Node, server: Node) -> Envelope:
    """Have the laptop write what the server will refuse until it registers the namespace."""
    walled(laptop, server, namespaces=("default", "org"))
    laptop.share("org")
    return laptop.emit("early", ns="org")


async def test_what_is_wanted_again_is_sent_after_the_last_page(tmp_path: Path) -> None:
    """The answer to the first of many pages names it; those to the later ones must not make it forgotten."""
    limits = replace(LIMITS, page_records_default=4)
    async with nodes(tmp_path, "laptop", "server", limits=limits) as (laptop, server):
        early = refused_once(laptop, server)
        assert await round_trip(laptop) == 0
        assert server.home.views.refused == {PAIR: 1}
        server.share("org")
        for n in range(11):
            laptop.emit(f"{n}")
        assert await round_trip(laptop) == 12
        assert server.ids("org") == [early.id]


async def test_a_peer_that_names_it_once_is_sent_it_all_the_same(tmp_path: Path) -> None:
    """An older one does so in its answer to the first of many pages."""
    limits, named = replace(LIMITS, page_records_default=4), list[str]()

    def once(path: str, reply: Reply) -> Reply:
        value = json.loads(reply.body)
        if path == "/v1/sync/records" and value.get("wanted"):
            value["wanted"], named[:] = ([] if named else value["wanted"]), value["wanted"]
        return replace(reply, body=json.dumps(value).encode())

    async with nodes(tmp_path, "laptop", "server", limits=limits) as (laptop, server):
        early = refused_once(laptop, server)
        await round_trip(laptop)
        server.share("org")
        for n in range(11):
            laptop.emit(f"{n}")
        laptop.network.change = once
        assert await round_trip(laptop) == 12
        assert server.ids("org") == named == [early.id]


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_what_is_wanted_again_stays_wanted_while_the_answer_is_lost(tmp_path: Path, way: str) -> None:
    """By whichever way they meet next: the ledger is settled by the records, not by having asked for them."""
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        early = refused_once(laptop, server)
        await round_trip(laptop)
        server.share("org")
        laptop.emit("late")

        def lose(path: str, reply: Reply) -> Reply:
            if path == "/v1/sync/records" and json.loads(reply.body).get("wanted"):
                raise ReachError("disconnected", "the answer is lost")
            return reply

        laptop.network.change = lose
        with pytest.raises(ReachError):
            await round_trip(laptop)
        laptop.network.change = lambda path, reply: reply
        assert server.ids("org") == []
        if way == "push":
            laptop.emit("next")
            await round_trip(laptop)
        else:
            laptop.network.walled = set()
            await server.sync.pull(PAIR)
        assert server.ids("org") == [early.id]


async def test_what_a_pusher_no_longer_has_is_asked_for_a_few_times(tmp_path: Path) -> None:
    """An empty push answers for what cannot be given; a peer that says nothing is not asked for ever."""
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        early = refused_once(laptop, server)
        await round_trip(laptop)
        server.share("org")
        laptop.change_pair(PAIR, namespaces=("default",))
        laptop.emit("1")
        assert await round_trip(laptop) == 1
        assert early.id not in server.ids("org")

        asked = 0
        server.ingest.refused.settle(PAIR, {})
        for n in range(2 * WANTED_ANSWERS_MAX):
            since = server.ingest.since(server.home.views.pairs[PAIR])
            silent = page.assemble_push(since, Page([], [], f"at {n}", False, {}, 0))
            asked += bool((await server.push.receive(PAIR, silent))["wanted"])
        assert asked == WANTED_ANSWERS_MAX
