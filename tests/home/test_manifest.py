"""The documents that an instance publishes."""

import asyncio
from pathlib import Path

from tests.pair_world import two


def test_the_manifest_is_signed_later_each_time(tmp_path: Path) -> None:
    async def run() -> None:
        async with two(tmp_path) as (world, a, _b):

            def signed() -> str:
                return str(a.pairing.manifest_document()["signature"]["signed_at"])

            first = signed()
            assert signed() == first
            world.time_ms += 4 * 86_400_000
            second = signed()
            world.time_ms -= 30 * 86_400_000
            await a.restart()
            assert first < second < signed()

    asyncio.run(run())
