"""A clock that is wrong for a while: once it is right again, everything is as if it had never been wrong.

A ratchet (a date that may only grow) or a timer on the wall clock would keep what was met in the wrong time until that
time comes: pairs degraded, manifests refused, peers shut out, polls that never run.
"""

import asyncio
from typing import Final

import pytest

from tests.sim.node import Node
from tests.sim.promises import ids
from tests.sim.world import World

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
JUMPS_MS: Final = [sign * size for size in (10 * MINUTE_MS, 8 * HOUR_MS, 100 * DAY_MS) for sign in (1, -1)]
HEALED_S: Final = 900


async def write(world: World, *nodes: Node) -> None:
    for node in nodes:
        await world.emit(node, {"act": "DO", "actor": f"did:sync:user:{node.name}", "thread": "th", "body": {}})


async def settled(world: World, *nodes: Node) -> None:
    """Wait until all hold the same records, each pair is active, and no operator has anything to act on."""

    def differ() -> str:
        held = [ids(node, "default") for node in nodes]
        states = [str(pair.phase) for node in nodes for pair in node.home.views.pairs.values()]
        found = [item.code for node in nodes for item in node.services.doctor.attention()]
        found = [code for code in found if code != "identity-backup"]
        return (
            ""
            if held.count(held[0]) == len(held) and set(states) == {"active"} and not found
            else (f"{[len(each) for each in held]} records, {states}, {found}")
        )

    await world.until(differ, HEALED_S)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("jump_ms", JUMPS_MS)
def test_a_clock_that_was_wrong_leaves_nothing_behind(jump_ms: int, restarts: bool) -> None:
    """The clock jumps under a running daemon, or is wrong when it starts and set right soon after."""

    async def life(world: World) -> None:
        alice, bob = world.add("alice"), world.add("bob")
        await world.pair(alice, bob)
        await write(world, alice, bob)
        await settled(world, alice, bob)
        if restarts:
            await bob.end()
        bob.skew_ms = jump_ms
        if restarts:
            world.check(bob.boot(), "bob starts")
        await write(world, alice, bob)
        await asyncio.sleep(120)
        await write(world, alice, bob)
        bob.skew_ms = 0
        await write(world, alice, bob)
        await settled(world, alice, bob)
        carol = world.add("carol")
        await world.pair(carol, bob)
        await write(world, carol, bob)
        await settled(world, alice, bob, carol)
        for node in (alice, bob, carol):
            await node.end()

    World(1).run(life)
