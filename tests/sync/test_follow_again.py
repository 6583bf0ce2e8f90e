"""How often a stream has what was refused asked for again."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from spl.core.backoff import Backoff
from spl.core.consent import Inbound
from spl.core.pair.pair import Pair
from spl.core.record.page import Page
from spl.home.writes import Refuse
from spl.net.client import Reply
from spl.sync.follow import Again
from spl.sync.ingest import Taken
from spl.sync.ledger import AGAIN_MAX_S, AGAIN_S
from spl.sync.peer import RECORDS
from tests.nodes import LIMITS, join, nodes
from tests.sync.test_follow import PAIR, opened, syncing
from tests.sync.test_ingest import born, signed
from tests.sync.test_ingest_pages import page
from tests.waiting import until

NOTHING: MappingProxyType[str, Inbound] = MappingProxyType({})
RULES = {"music": Inbound("music", full=True)}


def make() -> Again:
    """Return one whose draws are all the longest."""
    return Again(Backoff(lambda count: b"\xff" * count, AGAIN_S, AGAIN_MAX_S))


def test_a_day_of_heartbeats_asks_less_and_less() -> None:
    again = make()
    tries = [now_s for now_s in range(86_400) if again.is_due(now_s, NOTHING, owed=True)]
    assert tries[:4] == [0, 60, 180, 420]
    assert len(tries) == 29


def test_other_rules_are_tried_at_once_and_a_success_shortens_the_wait_to_a_minute() -> None:
    again = make()
    tries = [now_s for now_s in range(10_000) if again.is_due(now_s, NOTHING, owed=True)]
    assert again.due_s > 10_000 + AGAIN_S
    assert again.is_due(10_000, RULES, owed=True)
    assert not again.is_due(10_001, RULES, owed=True)
    assert again.due_s <= 10_000 + AGAIN_S
    again.due_s = 20_000.0
    assert not again.is_due(10_002, RULES, owed=False)
    assert not again.is_due(10_003, RULES, owed=True)
    assert again.is_due(10_002 + AGAIN_S, RULES, owed=True)
    assert len(tries) == 8


async def test_heartbeats_fetch_what_stays_refused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub shows no chain of a signer: each try would be in vain."""
    monkeypatch.setattr("spl.sync.follow.AGAIN_S", 3600.0)
    asked: list[str] = []

    def cut(path: str, reply: Reply) -> Reply:
        asked.append(path)
        return replace(reply, status=502) if path == "/v1/sync/chains" else reply

    limits = replace(LIMITS, heartbeat_s=0.05)
    async with nodes(tmp_path, "alice", "hub", "bob", limits=limits) as (alice, writer, bob), syncing(writer, bob):
        join(alice, writer, "pair_0000000a", mode="continuous")
        join(writer, bob, PAIR, mode="continuous")
        writer.network.change = cut
        for node in (writer, bob):
            node.sync._rouse()
        bob.sync._follower._random_bytes = lambda count: b"\xff" * count

        def beats() -> int:
            return sum(event.name == "heartbeat" for each in writer.network.streams for event in each.seen)

        await opened(bob)
        alice.emit("1")
        await until(lambda: bob.home.views.refused == {PAIR: 1})
        before = beats()
        await until(lambda: beats() > before + 10 and "/v1/sync/records" in asked)
        assert bob.sync._follower.agains[PAIR].backoff.attempt == 1


async def test_a_chain_that_is_learnt_while_a_debt_is_paid_is_a_debt_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream brings it between two pages: what the first one brought was refused for want of it."""
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, fetch_ids=2)) as (alice, bob):
        join(alice, bob)
        pair, (key, chain) = bob.home.views.pairs[PAIR], born(1)
        lacking = [signed(key, chain.did, clock) for clock in (1, 2)]
        await bob.ingest.take(pair, page(*lacking), moves=False)
        bob.write(*(Refuse(PAIR, f"{n:064x}", "record-signature") for n in range(4)))

        async def fetch(_: Pair, ids: list[str], withheld: list[str]) -> AsyncGenerator[Page]:
            for at in range(0, len(ids), 2):
                yield page(*[value for value in lacking if value["id"] in ids[at : at + 2]])

        monkeypatch.setattr(bob.sync.puller, "fetch", fetch)
        refused, inbound = bob.ingest.refused, bob.ingest.inbound(pair)
        refused.owe(PAIR)
        paying = bob.sync.puller.retry_refused(pair)
        assert await anext(paying) == 0
        judged = await bob.ingest.judge(pair, page(signed(key, chain.did, 3)), {chain.did: chain.to_json()})
        assert (await bob.ingest.keep(pair, judged, moves=False)).learnt
        assert sum([fresh async for fresh in paying]) == 0
        assert refused.owes(PAIR, inbound)
        assert sum([fresh async for fresh in bob.sync.puller.retry_refused(pair)]) == 2
        assert {value["id"] for value in lacking} <= set(bob.ids())
        assert not refused.owes(PAIR, inbound)


async def test_a_stream_asks_again_for_one_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much was refused: what the stream brings is stored between two of them."""
    limits = replace(LIMITS, heartbeat_s=0.05, fetch_ids=2)
    seen: list[str] = []
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob), syncing(alice, bob):
        join(alice, bob, mode="continuous")
        for node in (alice, bob):
            node.sync._rouse()
        await opened(bob)
        keep, carry = bob.ingest.keep, bob.ingest.peers.carry

        async def kept(*args: Any, **named: Any) -> Taken:
            seen.append("kept")
            return await keep(*args, **named)

        async def carried(pair: Pair, way: str, count: int, method: str, target: str, body: bytes = b"") -> Any:
            if target == RECORDS:
                seen.append("asked")
                assert count <= 2
            return await carry(pair, way, count, method, target, body)

        monkeypatch.setattr(bob.ingest, "keep", kept)
        monkeypatch.setattr(bob.ingest.peers, "carry", carried)
        bob.write(*(Refuse(PAIR, f"{n:064x}", "record-signature") for n in range(6)))
        bob.ingest.refused.owe(PAIR)
        await until(lambda: not bob.ingest.refused.owes(PAIR, bob.ingest.inbound(bob.home.views.pairs[PAIR])))
    assert seen.count("asked") == 3
    assert all(pair != ("asked", "asked") for pair in pairwise(seen))
