"""The documents that an instance publishes."""

import asyncio
import errno
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.when import ms_of
from tests.pair_world import Node, both_active, two
from tests.waiting import until


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


def full(path: Path, data: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_keeps_no_manifest_from_being_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its date goes on rising, also over a restart once there is room again."""
    async with two(tmp_path) as (world, a, _b):
        first = signed(a)
        with monkeypatch.context() as patch:
            patch.setattr(a.disk, "replace_atomic", full)
            world.time_ms += 4 * 86_400_000
            second = signed(a)
            a.pairing.published.renew()
            third = signed(a)
        assert first < second < third
        world.time_ms += 1000
        await a.restart()
        assert third < signed(a)


async def test_a_full_disk_refuses_a_pair_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(tmp_path) as (_world, a, b):
        refused: list[Path] = []

        def refuse(path: Path, data: bytes) -> None:
            refused.append(path)
            full(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(b.disk, "replace_atomic", refuse)
            with pytest.raises(SplError) as caught:
                b.home.vault.put("token-x", "secret")
            assert (caught.value.code, caught.value.status) == ("store-full", 503)
            assert str(tmp_path) not in caught.value.message
            refused.clear()
            pairing = asyncio.create_task(a.pair(b))
            await until(lambda: refused)
        await pairing
        await both_active(a, b)


async def test_a_date_that_looks_stale_to_peers_is_left_as_soon_as_the_clock_is_right_again(tmp_path: Path) -> None:
    """A clock that stood behind when the manifest had to be signed dates it before the one that peers hold."""
    async with two(tmp_path) as (world, a, _b):
        held = signed(a)
        world.set_ms -= 20 * 60_000
        a.pairing.published.renew()
        assert signed(a) < held
        assert signed(a) < held, "nothing better can be signed yet"
        world.set_ms += 20 * 60_000
        assert signed(a) > held
        world.set_ms = 8 * 3_600_000
        assert signed(a) > held + 7 * 3_600_000
        world.set_ms = -8 * 3_600_000
        assert signed(a) < held
        world.set_ms = 0
        assert signed(a) > held, "also when a date far ahead was signed before"
