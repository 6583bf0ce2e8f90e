"""The simulation itself: its worlds run, converge, and replay."""

import asyncio

from tests.sim.promises import ids
from tests.sim.world import World


async def two_converge(world: World) -> None:
    """Pair two nodes, write on both, and wait until both hold the same."""
    one, two = world.add("alice"), world.add("bob")
    await world.pair(one, two)
    for number in range(4):
        node = (one, two)[number % 2]
        await world.emit(
            node, {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {"n": number}}
        )  # fmt: skip
        await asyncio.sleep(1)

    def differ() -> str:
        held = [ids(node, "default") for node in (one, two)]
        return "" if held[0] == held[1] and len(held[0]) == 4 else f"{held}"

    await world.until(differ, 600)
    for node in (one, two):
        await node.end()
    world.check(not one.faults + two.faults, f"{one.faults + two.faults}")


def test_two_daemons_converge_and_a_seed_replays_exactly() -> None:
    first, again, other = (World(seed).run(two_converge) for seed in (1, 1, 2))
    assert first == again
    assert first != other
