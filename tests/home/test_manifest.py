"""The documents that an instance publishes."""

from pathlib import Path

from spl.core.when import ms_of
from tests.pair_world import Node, both_active, two


def signed(node: Node) -> int:
    return ms_of(node.pairing.published.manifest()["signature"]["signed_at"])


async def test_the_manifest_is_signed_later_each_time(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, _b):
        first = signed(a)
        assert signed(a) == first
        world.time_ms += 4 * 86_400_000
        second = signed(a)
        world.time_ms -= 4 * 60_000
        assert signed(a) == second, "a small correction of the clock signs nothing"
        await a.restart()
        assert first < second < signed(a)


async def test_a_date_of_a_clock_that_ran_ahead_is_not_built_upon(tmp_path: Path) -> None:
    """Peers take no manifest of the future, so one start with a wrong clock must not date all later ones."""
    async with two(tmp_path) as (world, a, b):
        right_ms = world.time_ms
        world.time_ms += 85 * 86_400_000
        await a.restart()
        assert signed(a) > right_ms + 84 * 86_400_000
        world.time_ms = right_ms
        assert signed(a) < right_ms + 60_000, "the running daemon goes on with the early date"
        await a.restart()
        assert right_ms < signed(a) < right_ms + 60_000
        await a.pair(b)
        await both_active(a, b)
