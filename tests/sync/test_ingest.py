"""Judging: rules are kept as long as what they are made of, and counted at once when it changes."""

import json
from copy import copy
from pathlib import Path

from spl.core.record.page import Page
from spl.core.record.record import Envelope
from spl.sync.ingest import ON_LOOP_RECORDS
from tests.nodes import Node, join, nodes
from tests.store_kit import set_views

PAIR = "pair_00000001"


def page_of(*envelopes: Envelope) -> Page:
    return Page([json.loads(each.raw) for each in envelopes], ["default"] * len(envelopes), "c", False, {}, 0)


async def codes(node: Node, page: Page) -> list[str]:
    judged = await node.ingest.judge(node.home.views.pairs[PAIR], page)
    return [verdict.code for verdict in judged.verdicts]


async def test_few_and_many_are_judged_alike(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(3 * ON_LOOP_RECORDS)]
        for count in range(len(sent) + 1):
            assert await codes(bob, page_of(*sent[:count])) == [""] * count
            spoilt = page_of(*sent[:count])
            for value in spoilt.values:
                value["record"]["clock"] += 1
            assert await codes(bob, spoilt) == ["record-id"] * count


async def test_rules_are_made_once_and_again_when_the_pair_or_the_chains_change(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit("x")
        verifier = bob.ingest
        rules = verifier._gate(bob.home.views.pairs[PAIR], {})
        assert verifier._gate(bob.home.views.pairs[PAIR], {}) is rules
        assert await codes(bob, page_of(sent)) == [""]
        bob.change_pair(PAIR, namespaces=("org",))
        assert await codes(bob, page_of(sent)) == ["scope-violation"]
        bob.change_pair(PAIR, namespaces=("default",), actors=("did:sync:user:other",))
        assert await codes(bob, page_of(sent)) == ["scope-violation"]
        bob.change_pair(PAIR, actors=())
        for changed in ("pins", "consents", "namespaces"):
            rules = verifier._gate(bob.home.views.pairs[PAIR], {})
            set_views(bob.home, **{changed: copy(getattr(bob.home.views, changed))})
            assert verifier._gate(bob.home.views.pairs[PAIR], {}) is not rules, changed
        set_views(bob.home, blocked=frozenset({alice.did}))
        assert await codes(bob, page_of(sent)) != [""]


async def test_what_is_held_is_not_judged_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(2)]
        await bob.sync.pull(PAIR)
        assert await codes(bob, page_of(*sent)) == []
