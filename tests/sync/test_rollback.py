"""A peer whose home was restored from an old copy gets everything back, whatever is lost or dies on the way."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from spl.core.errors import SplError
from spl.home.disk import Disk, DiskError
from spl.home.vault import Vault
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.sync.rollback import OURS, Rollbacks
from spl.sync.source import Query
from tests.nodes import Node, join, nodes

PAIR = "pair_00000001"
CHANGES = "/v1/sync/changes"


def again(made: list[Node], at: int, folder: Path) -> Node:
    """Close a node and open its home again: as it is, or as the copy in `folder`."""
    node, network = made[at], made[at].network
    node.close()
    if folder != node.home.path:
        shutil.rmtree(node.home.path)
        shutil.copytree(folder, node.home.path)
    made[at] = Node(node.name, node.home.path, network)
    join(made[0], made[1])
    return made[at]


async def rolled_back(made: list[Node], folder: Path) -> tuple[Node, Node]:
    """Return source and peer: the peer's home is an older copy, the source has noticed, and nothing is mended yet."""
    alice, bob = made
    join(alice, bob)
    for text in ("kept", "lost"):
        bob.emit(text)
        alice.emit(f"{text} of alice")
        await alice.sync.pull(PAIR)
        await bob.sync.pull(PAIR)
        if text == "kept":
            shutil.copytree(bob.home.path, folder)
    bob = again(made, 1, folder)
    bob.emit("new")
    assert len(bob.ids()) == 3
    await alice.sync.pull(PAIR)
    assert alice.feed.doubts(PAIR)
    return alice, bob


async def healed(alice: Node, bob: Node) -> None:
    await bob.sync.pull(PAIR)
    await bob.sync.pull(PAIR)
    assert bob.ids() == alice.ids()
    assert len(bob.ids()) == 5
    assert not alice.feed.doubts(PAIR)


def losing(lost: Callable[[str, Reply], bool]) -> Callable[[str, Reply], Reply]:
    """Return a change of answers that loses those."""

    def change(path: str, reply: Reply) -> Reply:
        if lost(path, reply):
            raise ReachError("disconnected", "the answer was lost")
        return reply

    return change


async def test_both_operators_are_told_until_one_compares(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as made:
        alice, bob = await rolled_back(made, tmp_path / "copy")
        assert [each.feed.offered(PAIR).set_back for each in (alice, bob)] == ["peer", "us"]
        await healed(alice, bob)
        alice, bob = again(made, 0, made[0].home.path), again(made, 1, made[1].home.path)
        for node, whose in ((alice, "peer"), (bob, "us")):
            assert node.feed.offered(PAIR).set_back == whose, "a restart and a repair by itself change nothing"
            await node.reconcile.mend(PAIR)
            assert node.feed.offered(PAIR).set_back == whose
            await node.reconcile.verify(PAIR)
            assert node.feed.offered(PAIR).set_back == ""


async def test_its_own_records_come_back(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as made:
        await healed(*await rolled_back(made, tmp_path / "copy"))


async def test_the_loop_never_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written down of the doubt is written by other threads, from its begin to the ack that ends it."""
    async with nodes(tmp_path, "alice", "bob") as made:
        threads = list[str]()
        for name in ("put", "delete"):
            write = getattr(Vault, name)

            def noted(vault: Vault, secret: str, *text: str, write: Callable[..., None] = write) -> None:
                if secret.startswith("rollback."):
                    threads.append(threading.current_thread().name)
                write(vault, secret, *text)

            monkeypatch.setattr(Vault, name, noted)
        alice, bob = await rolled_back(made, tmp_path / "copy")
        await bob.sync.pull(PAIR)
        await alice.feed.ack(PAIR, bob.ingest.since(bob.pair(PAIR)))
        assert not alice.feed.doubts(PAIR)
        assert len(threads) == 3, "begin, end of the whole reading, end of the doubt"
        assert all(name.startswith("spl-feed") for name in threads)


async def test_after_the_whole_answer_was_lost(tmp_path: Path) -> None:
    """The request for everything arrived, and the peer knows of no answer: it comes back with its old cursor."""
    async with nodes(tmp_path, "alice", "bob") as made:
        alice, bob = await rolled_back(made, tmp_path / "copy")
        real = alice.network.change
        alice.network.change = losing(lambda path, reply: path == CHANGES and reply.status == 200)
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)
        alice.network.change = real
        await healed(alice, bob)


async def test_after_the_source_was_restarted(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as made:
        alice, bob = await rolled_back(made, tmp_path / "copy")
        alice = again(made, 0, alice.home.path)
        assert alice.feed.doubts(PAIR)
        await healed(alice, bob)


async def test_after_the_peer_was_rolled_back_twice(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as made:
        alice, bob = await rolled_back(made, tmp_path / "copy")
        await bob.sync.pull(PAIR)
        bob = again(made, 1, tmp_path / "copy")
        bob.emit("newer")
        await alice.sync.pull(PAIR)
        await bob.sync.pull(PAIR)
        await bob.sync.pull(PAIR)
        assert bob.ids() == alice.ids()
        assert len(bob.ids()) == 6


async def test_the_doubt_ends_with_the_cursor_that_ended_the_whole_reading_and_no_other(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as made:
        alice, bob = await rolled_back(made, tmp_path / "copy")
        await bob.sync.pull(PAIR)
        assert alice.feed.doubts(PAIR), "the answer may be lost yet"
        ended = bob.ingest.since(bob.pair(PAIR))
        alice.emit("later")
        other = await alice.feed.changes(PAIR, Query(since=ended, pushed=True))
        assert alice.feed.doubts(PAIR), "our own reading, for a push, shows nothing"
        assert other
        await alice.feed.ack(PAIR, ended)
        assert not alice.feed.doubts(PAIR)


async def test_a_home_made_again_from_its_key_gets_its_own_records(tmp_path: Path) -> None:
    """It reads from the start, over a pair that is not the first with it; otherwise its records are left out."""
    async with nodes(tmp_path, "alice", "bob") as made:
        alice, bob = made
        join(alice, bob, "pair_00000000")
        sent = [bob.emit(f"{n}").id for n in range(3)]
        await alice.sync.pull("pair_00000000")
        found = await alice.feed.changes("pair_00000000", Query())
        assert not any(id_.encode() in found for id_ in sent), "this pair itself delivered them"
        join(alice, bob, PAIR)
        found = await alice.feed.changes(PAIR, Query())
        assert all(id_.encode() in found for id_ in sent)


def test_a_note_that_the_disk_refuses_counts_and_is_written_later(tmp_path: Path) -> None:
    """A reading that finds something out goes on; only the beginning of a doubt must be on disk."""
    vault = Vault(tmp_path, Disk(), random_bytes=bytes, now_ms=lambda: 0)
    rollbacks = Rollbacks(vault)
    rollbacks.begin(PAIR)
    full = DiskError("home-unusable")
    with patch.object(vault, "put", side_effect=full), patch.object(vault, "delete", side_effect=full):
        rollbacks.note_set_back("pair_other", OURS)
        rollbacks.note_end(PAIR, "end")
        assert PAIR in rollbacks
        rollbacks.end(PAIR)
        with pytest.raises(SplError):
            rollbacks.begin("pair_third")
        rollbacks.save()
        assert rollbacks.has_unsaved
        assert rollbacks.set_back("pair_other") == OURS
        assert PAIR not in rollbacks
    assert PAIR in Rollbacks(vault)
    rollbacks.save()
    assert not rollbacks.has_unsaved
    assert PAIR not in Rollbacks(vault)
    assert Rollbacks(vault).set_back("pair_other") == OURS
