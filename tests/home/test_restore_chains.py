"""A snapshot carries the key chains of its signers: an operator restores it anywhere, a tenant's file teaches none."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.identity.did import multibase, rotate
from spl.core.identity.pins import KIND_CHAIN
from spl.core.keys import SecretKey
from spl.core.record import namespace, record
from spl.core.record.record import Sig
from spl.core.record.snapshot import SnapshotHeader
from spl.home.disk import Disk
from spl.home.snapshot import Rights, take
from spl.home.views import THREAD_NAMESPACES, THREAD_PAIRS
from spl.home.writes import Arrive, Own
from tests.counting import stepped
from tests.home.test_restore import LIMITS, restore, trust
from tests.nodes import Node, nodes


def whole(node: Node, thread: str = "th") -> bytes:
    """Return a snapshot as the API gives it, with the key chains of its signers."""
    assert node.home.vault.identity is not None
    options: dict[str, Any] = {"instance": node.did, "thread": thread, "signer": node.home.writer.signer}
    found, _ = stepped(take(node.home.store, Disk(), node.home.path / "run", views=node.home.views, **options))
    return found.header + b"".join(found.pieces)


async def test_a_thread_moves_into_a_home_that_never_met_its_signers(tmp_path: Path) -> None:
    """Its source's own records and relayed ones; what the chains say is pinned from then on."""
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        theirs, own = bob.emit("theirs"), alice.emit("ours")
        trust(alice, bob)
        alice.write(Arrive(theirs, "default", "pair_0000000b"))
        data = whole(alice)
        seq = carol.home.store.last_seq
        assert restore(carol, data, dry_run=True).new == 2
        assert carol.home.store.last_seq == seq
        plan = restore(carol, data)
        assert (plan.new, len(plan.pins)) == (2, 2)
        assert {*carol.ids()} == {own.id, theirs.id}
        assert {alice.did, bob.did} <= carol.home.views.pins.by_did.keys()
        again_ = restore(carol, data)
        assert (again_.known, len(again_.pins)) == (2, 0)


async def test_a_tenants_file_teaches_no_key_chain(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.emit("one")
        tenant = Rights(admin=False, reaches={"default"}.__contains__)
        assert dict(restore(bob, whole(alice), tenant, dry_run=True).refused) == {"chain-unknown": 1}
        with pytest.raises(SplError) as caught:
            restore(bob, whole(alice), tenant)
        assert "admin" in caught.value.hint
        assert bob.home.views.pins.chain(alice.did) is None


@pytest.mark.parametrize("chains", [
    lambda node, forged_: {node.did: forged_.to_json()}, lambda node, forged_: {node.did: {}},
    lambda node, forged_: {node.did: 7}, lambda node, forged_: {}, lambda node, forged_: {"x": node.chain.to_json()},
])  # fmt: skip
async def test_a_chain_that_does_not_hold_or_contradicts_the_pinned_one_teaches_nothing(
    tmp_path: Path, chains: Any
) -> None:
    """The thief of an old key writes a file with a chain of its own: the pinned one stays, unmarked."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        thief = SecretKey(b"t" * 32)
        forged_ = rotate(alice.chain, alice.key, thief.public, "retired", 1)
        true = rotate(alice.chain, alice.key, SecretKey(b"n" * 32).public, "retired", 1)
        bob.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": true.to_json()}))
        fields = record.check({"act": "DO", "actor": "did:sync:user:x", "body": {}, "clock": 0, "thread": "th"}, LIMITS)
        id_, text = record.identify(fields, LIMITS)
        sig = Sig(alice.did, multibase(thief.public), thief.sign(record.signed_text(id_, None)))
        line = record.seal(fields, id_, text, sig).raw
        head = SnapshotHeader("", "th", 1, hashlib.sha256(f"{id_}\n".encode()).hexdigest(), chains(alice, forged_))
        with pytest.raises(SplError) as caught:
            restore(bob, head.encode() + line + b"\n")
        assert caught.value.code == "chain-unknown"
        assert bob.home.views.pins.chain(alice.did) == true
        assert not bob.home.views.pins.is_forked(alice.did)


async def test_no_file_pins_more_chains_than_there_is_room_for(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.emit("one")
        full = replace(LIMITS, chains_count=len(bob.home.views.pins.by_did))
        assert dict(restore(bob, whole(alice), dry_run=True, limits=full).refused) == {"chain-unknown": 1}
        assert restore(bob, whole(alice), dry_run=True).new == 1


async def test_a_full_backup_goes_into_a_home_of_another_identity_without_the_daemons_own_threads(
    tmp_path: Path,
) -> None:
    """They are named and counted, and nothing of them takes effect; our own still come back from our own file."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "org", "shared": True}))
        alice.write(Own("th_aitl", "x.v1", {"n": 1}), Own("th_aitl", "x.v1", {"n": 2}))
        made = [alice.emit("ours"), alice.emit("theirs", ns="org")]
        data = whole(alice, "")
        with pytest.raises(SplError) as caught:
            restore(bob, data)
        assert (caught.value.code, caught.value.hint) == ("namespace-rejected", "spl namespace create org")
        bob.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "org"}))
        before = dict(bob.home.views.namespaces)
        plan = restore(bob, data)
        assert (plan.new, dict(plan.left_out)) == (2, {THREAD_NAMESPACES: 1, "th_aitl": 2})
        assert (bob.ids(), bob.ids("org")) == ([made[0].id], [made[1].id])
        assert dict(bob.home.views.namespaces) == before
        tenant = Rights(admin=False, reaches=lambda name: True)
        assert "scope-forbidden" in restore(bob, data, tenant, dry_run=True).refused
