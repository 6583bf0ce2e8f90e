"""Manifests that wait for their hour are on disk, and a peer makes us write few of them."""

from pathlib import Path

import pytest

from spl.core.identity import manifest
from spl.core.identity.manifest import Manifest
from spl.home.disk import DiskError
from spl.pairing.newer import NEWER_NAME, WRITES_MAX, NewerManifests
from tests.pair_world import Node, paired


def newer_of(node: Node) -> NewerManifests:
    return NewerManifests(node.home.vault, node.home.views.pairs, node.pairing.limits)


def manifests(node: Node, count: int) -> list[Manifest]:
    """Return manifests of a node, each signed later than the one before."""
    limits, made = node.pairing.limits, list[Manifest]()
    for _ in range(count):
        node.world.time_ms += 2000
        made.append(manifest.from_json(node.pairing.pairs.published.federation_manifest(), limits))
    return made


async def test_the_last_one_outlives_a_restart_and_its_file_goes_with_it(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        (shown,) = manifests(b, 1)
        newer_of(a).put(pair_id, shown, 0.0)
        again = newer_of(a)
        assert again.get(pair_id) == shown
        again.drop(pair_id)
        assert a.home.vault.names(NEWER_NAME) == []
        assert newer_of(a).get(pair_id) is None


async def test_a_peer_that_shows_one_after_another_has_few_written(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        (shown,) = manifests(b, 1)
        newer = newer_of(a)
        for _ in range(WRITES_MAX):
            newer.put(pair_id, shown, 0.0)
        a.home.vault.delete(NEWER_NAME + pair_id)
        newer.put(pair_id, shown, 0.0)
        assert a.home.vault.names(NEWER_NAME) == [], "each one shown is a write"
        newer.save(1e6)
        assert a.home.vault.names(NEWER_NAME) == [NEWER_NAME + pair_id]


async def test_what_is_no_manifest_of_the_peer_is_left_out(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, _b, pair_id):
        (foreign,) = manifests(a, 1)
        newer_of(a).put(pair_id, foreign, 0.0)
        assert newer_of(a).get(pair_id) is None
        a.home.vault.put(NEWER_NAME + pair_id, "[")
        assert newer_of(a).get(pair_id) is None


async def test_one_that_the_disk_refuses_waits_all_the_same_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must stop neither the message that brought it nor the round that takes what waits."""

    def full(*_: object) -> None:
        raise DiskError("home-unusable", "No space left on device")

    async with paired(tmp_path) as (_, a, b, pair_id):
        (shown,) = manifests(b, 1)
        newer = newer_of(a)
        with monkeypatch.context() as patch:
            patch.setattr(a.home.vault, "put", full)
            newer.put(pair_id, shown, 0.0)
            newer.save(1e6)
        assert newer.get(pair_id) == shown
        assert newer_of(a).get(pair_id) is None
        newer.save(2e6)
        assert newer_of(a).get(pair_id) == shown
        with monkeypatch.context() as patch:
            patch.setattr(a.home.vault, "delete", full)
            newer.drop(pair_id)
        assert newer.get(pair_id) is None
