"""The life of a world: nodes meet, a phase of faults, a phase of healing, and what must hold then."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from .promises import Promises
from .trouble import Faults, Operator
from .world import Late, World

NAMES: Final = ("alice", "bob", "carol", "dave", "erin")
COUNTS: Final = (2, 2, 2, 2, 2, 3, 3, 3, 4, 5)
FAULTS_S: Final = (15.0, 30.0, 60.0)
BRIEF_S: Final = (5.0, 12.0, 25.0)
HEAL_S: Final = 1800.0
LOOK_S: Final = 5.0


async def live(world: World, faults_s: Sequence[float] = FAULTS_S) -> None:
    """Live through the phases, that of faults taking one of these times.  Raises Broken."""
    dice = Random(f"life {world.seed}")
    promises = world.promises = Promises(world)
    for name in NAMES[: dice.choice(COUNTS)]:
        world.add(name)
    operators = [
        Operator(world, promises, node, Random(f"operator {world.seed} {node.name}")) for node in world.nodes
    ]  # fmt: skip
    for operator in operators:
        await operator.registers()
    for number, operator in enumerate(operators[1:], 1):
        async with asyncio.TaskGroup() as tasks:
            other = dice.randrange(number)
            tasks.create_task(operator.pairs(world.nodes[other]))
            await asyncio.sleep(1)
            await operators[other].approves()
    until_s = world.loop.time() + dice.choice(faults_s)
    faults = Faults(world, Random(f"faults {world.seed}"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(faults.run(until_s))
        for node in world.nodes:
            tasks.create_task(faults.keep_up(node, until_s))
        for operator in operators:
            tasks.create_task(operator.run(until_s))
    await heal(world, faults, operators)
    await promises.at_end()


async def heal(world: World, faults: Faults, operators: list[Operator]) -> None:
    """End all faults, have each operator resume what it paused, and wait until the pairs are equal."""
    world.tell("heal")
    await faults.heal()
    await asyncio.sleep(1)
    for operator in operators:
        for pair in list(operator.node.home.views.pairs.values()):
            if pair.paused_by in ("us", "both"):
                world.promises.opened(operator.node, pair.peer_did, "unpaused")
                await world.act(operator.node, "POST", f"/v1/federation/pairs/{pair.pair_id}/resume", {})
            if not pair.ended and pair.mode == "on-demand":
                await world.act(
                    operator.node, "POST", f"/v1/federation/pairs/{pair.pair_id}/mode", {"mode": "polling"}
                )  # fmt: skip
    end_s = world.loop.time() + HEAL_S
    while complaint := world.promises.differences() or await world.promises.says_so():
        world.tell(complaint)
        if world.loop.time() >= end_s:
            raise Late(world.report(f"not within {HEAL_S:.0f} s: {complaint}"))
        for operator in operators:
            await operator.approves(always=True)
        await asyncio.sleep(LOOK_S)
    world.tell("converged")
