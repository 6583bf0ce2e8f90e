"""What a long retired key signed is restored from a file that vouches for it as a whole, and from no other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.identity.pins import KIND_CHAIN
from spl.core.keys import SecretKey
from spl.core.record.snapshot import SnapshotHeader, header_of
from spl.home.restore import Plan
from spl.home.snapshot import Rights
from spl.home.views import THREAD_PAIRS
from spl.home.writes import Own
from tests.home.test_restore import ADMIN, STRANGER, again, forged, reader, restore, restorer, snapshot
from tests.nodes import Node, nodes

PRESENT = SecretKey(bytes(31) + b"z")
FIRST = Chain(did_of("carol", STRANGER.public), STRANGER.public)
CAROL = rotate(FIRST, STRANGER, PRESENT.public, "retired", 0)


def signed(data: bytes, instance: str, key: SecretKey) -> bytes:
    """Return a file with the header that this instance signed."""
    head, rest = data.split(b"\n", 1)
    return replace(header_of(head), instance=instance).signed(key).encode() + rest


def spliced(data: bytes, line: bytes) -> bytes:
    """Return a signed file with one more line, under a header of another count and digest with the same signature."""
    sig = header_of(data.splitlines()[0]).sig
    more = again(data, [*data.splitlines()[1:], line])
    head, rest = more.split(b"\n", 1)
    return replace(header_of(head), sig=sig).encode() + rest


def own_key(node: Node) -> SecretKey:
    assert node.home.writer.signer is not None
    return node.home.writer.signer.key


def an_old_file(node: Node) -> bytes:
    """Return an unsigned file of a record of carol's retired key, whose chain the node has pinned."""
    node.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": CAROL.to_json()}))
    node.emit("one")
    return again(snapshot(node), [forged("th", by=CAROL.did)])


def refused(node: Node, data: bytes) -> dict[str, int]:
    plan: Plan = restore(node, data, dry_run=True)
    return dict(plan.refused)


async def test_our_own_file_and_the_owners_bring_old_records(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as (alice,):
        data = an_old_file(alice)
        assert refused(alice, data) == {"key-retired": 1}
        assert refused(alice, signed(data, alice.did, own_key(alice))) == {}
        assert refused(alice, signed(data, CAROL.did, PRESENT)) == {}
        assert restore(alice, signed(data, alice.did, own_key(alice))).new == 1


async def test_no_other_signature_brings_them(tmp_path: Path) -> None:
    """That of the retired key itself, of another instance, or in our name."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        data = an_old_file(alice)
        alice.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": bob.chain.to_json()}))
        for instance, key in ((CAROL.did, STRANGER), (bob.did, own_key(bob)), (alice.did, STRANGER)):
            assert refused(alice, signed(data, instance, key)) == {"key-retired": 1}
        kept = json.loads(signed(data, alice.did, own_key(alice)).splitlines()[0])
        for value in ("", 7, kept["sig"]["value"][:-4], None):
            odd = SnapshotHeader(
                alice.did, "th", kept["count"], kept["digest"], sig={"key": kept["sig"]["key"], "value": value}
            )
            assert refused(alice, odd.encode() + data.split(b"\n", 1)[1]) == {"key-retired": 1}


async def test_a_line_that_was_put_into_a_signed_file_is_refused(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as (alice,):
        data = signed(an_old_file(alice), alice.did, own_key(alice))
        more = forged("th", by=CAROL.did, text="written today")
        assert refused(alice, spliced(data, more)) == {"key-retired": 2}
        with pytest.raises(SplError) as caught:
            restore(alice, data + more + b"\n")
        assert caught.value.code == "snapshot-malformed"
        plan = restorer(alice).run(reader(data + more + b"\n"), ADMIN, dry_run=True, skip_damaged=True)
        assert dict(plan.refused) == {"key-retired": 2}, "count and digest are not compared, so they stand for nothing"


THEFT = rotate(FIRST, STRANGER, PRESENT.public, "compromised", 0)
"""Another carol: whether a thief or she signed with the first key, no record tells."""


def a_file_with_stolen(node: Node) -> bytes:
    """Return an unsigned file of a record by carol's compromised key and one by her present one."""
    node.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": THEFT.to_json()}))
    return again(snapshot(node), [forged("th", by=THEFT.did), forged("th", by=THEFT.did, text="2", key=PRESENT)])


async def test_a_compromised_key_counts_in_our_own_file_and_in_its_owners(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as (alice,):
        data = a_file_with_stolen(alice)
        for instance, key in ((alice.did, own_key(alice)), (THEFT.did, PRESENT)):
            plan = restore(alice, signed(data, instance, key), dry_run=True)
            assert (plan.new, plan.refused.total(), plan.compromised.total()) == (2, 0, 0)
        assert restore(alice, signed(data, alice.did, own_key(alice))).new == 2
        assert len(alice.ids()) == 2


async def test_elsewhere_what_a_compromised_key_signed_is_left_out_and_named(tmp_path: Path) -> None:
    """Of a file by the stolen key itself, by another instance, in our name or by nobody; the rest is restored."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        data = a_file_with_stolen(alice)
        alice.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": bob.chain.to_json()}))
        signers = ((THEFT.did, STRANGER), (bob.did, own_key(bob)), (alice.did, STRANGER))
        for found in (data, *(signed(data, instance, key) for instance, key in signers)):
            plan = restore(alice, found, dry_run=True)
            assert (plan.new, plan.refused.total(), dict(plan.compromised)) == (1, 0, {THEFT.did: 1})
        plan = restore(alice, signed(data, bob.did, own_key(bob)))
        assert (plan.new, dict(plan.compromised), dict(plan.left_out)) == (1, {THEFT.did: 1}, {})
        assert alice.ids() == [json.loads(data.splitlines()[2])["id"]]
        tenant = Rights(admin=False, reaches=lambda name: True)
        assert dict(restore(alice, data, tenant, dry_run=True).refused) == {"record-signature": 1}


async def test_a_full_file_of_a_home_that_had_another_identity_restores_without_what_that_said_of_its_daemon(
    tmp_path: Path,
) -> None:
    """Only as this instance signed it as a whole; what somebody puts into it keeps it out."""
    async with nodes(tmp_path, "alice", "new") as (alice, new):
        former = alice.did
        alice.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": CAROL.to_json()}))
        before = alice.emit("before")
        alice.home.adopt(alice.home.vault.generate("alice", force=True))
        alice.write(*alice.home.former_pins())
        assert alice.home.former_pins() == []
        alice.emit("after")
        alice.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": CAROL.to_json()}))
        data = signed(snapshot(alice, ""), alice.did, own_key(alice))
        new.home.adopt(new.home.vault.install(alice.home.vault.export(), force=True))
        assert alice.did == new.did != former
        for bad in (spliced(data, forged(THREAD_PAIRS)), again(data, data.splitlines()[1:])):
            with pytest.raises(SplError):
                restore(new, bad)
        plan = restore(new, data)
        assert (dict(plan.left_out), dict(plan.refused)) == ({THREAD_PAIRS: 1}, {})
        assert new.home.store.index.find(before.id, "default") is not None
        assert restore(new, data).new == 0
