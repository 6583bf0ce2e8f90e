"""A restore is all or nothing: one fault restores nothing, twice is once, and a dry run writes nothing."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core import consent
from spl.core.consent import Grant
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.identity.did import Chain, did_of, multibase, rotate
from spl.core.identity.pins import KIND_CHAIN
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.record import namespace, record
from spl.core.record.namespace import Namespace
from spl.core.record.record import Envelope, Sig
from spl.core.record.snapshot import SnapshotHeader, sound
from spl.home.disk import Disk
from spl.home.restore import Plan, Restorer
from spl.home.snapshot import Rights, take
from spl.home.views import THREAD_NAMESPACES, THREAD_PAIRS, THREAD_TOKENS, load
from spl.home.writes import Arrive, Own
from tests.counting import stepped
from tests.nodes import Node, join, nodes
from tests.store_kit import set_views

LIMITS = Limits()
ADMIN = Rights(admin=True, reaches=lambda name: True)
STRANGER = SecretKey(b"s" * 32)
STRANGER_DID = did_of("stranger", STRANGER.public)


def snapshot(node: Node, thread: str = "th") -> bytes:
    views = node.home.views
    found, _ = stepped(
        take(node.home.store, Disk(), node.home.path / "run", views=views, instance=node.did, thread=thread)
    )
    return found.header + b"".join(found.pieces)


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda size, offset: data[offset : offset + size]


def restorer(node: Node, limits: Limits = LIMITS) -> Restorer:
    return Restorer(node.home.writer, node.home.path, Disk(), limits, now_ms=node.now_ms)


def restore(node: Node, data: bytes, rights: Rights = ADMIN, dry_run: bool = False, limits: Limits = LIMITS) -> Plan:
    return restorer(node, limits).run(reader(data), rights, dry_run=dry_run)


def trust(node: Node, other: Node) -> None:
    """Pin the other's chain, as a pull does."""
    node.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": other.chain.to_json()}))


def again(data: bytes, lines: list[bytes]) -> bytes:
    """Return the lines under a header that fits them."""
    head = json.loads(data.splitlines()[0])
    ids = sorted(json.loads(line)["id"] for line in lines)
    digest = hashlib.sha256(b"".join(f"{item}\n".encode() for item in ids)).hexdigest()
    header = SnapshotHeader(head["instance"] or "", head["thread"] or "", len(lines), digest)
    return header.encode() + b"".join(line + b"\n" for line in lines)


def forged(
    thread: str, by: str = STRANGER_DID, actor: str = "did:sync:user:x", key: SecretKey = STRANGER, **body: Any
) -> bytes:
    """Return an envelope that the stranger signed, or whoever has the key, in whosever name."""
    fields = record.check({"act": "DO", "actor": actor, "body": body, "clock": 0, "thread": thread}, LIMITS)
    id_, text = record.identify(fields, LIMITS)
    sig = Sig(by, multibase(key.public), key.sign(record.signed_text(id_, None)))
    return record.seal(fields, id_, text, sig).raw


async def test_round_trip_keeps_bytes_and_is_idempotent(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        made = [alice.emit(f"é{n}") for n in range(30)]
        data = snapshot(alice)
        trust(bob, alice)
        plan = restore(bob, data, limits=replace(LIMITS, commit_records=7))
        assert (plan.new, plan.known) == (30, 0)
        assert snapshot(bob).splitlines()[1:] == [envelope.raw for envelope in made]
        row = bob.home.store.index.find(made[0].id, "default")
        assert row is not None
        assert (row.origin, row.ns, row.own) == ("restore", "default", False)
        seq = bob.home.store.last_seq
        assert (restore(bob, data).new, bob.home.store.last_seq) == (0, seq)


async def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.emit("one")
        data = snapshot(alice)
        seq = bob.home.store.last_seq
        plan = restore(bob, data, dry_run=True)
        assert (plan.new, dict(plan.refused)) == (0, {"chain-unknown": 1})
        trust(bob, alice)
        assert restore(bob, data, dry_run=True).new == 1
        assert bob.home.store.last_seq == seq + 1
        assert not list((bob.home.path / "run").glob("*"))


FAULTS: dict[str, tuple[Callable[[bytes, list[bytes]], bytes], str]] = {
    "count": (lambda data, lines: data.replace(b'"count":5', b'"count":4'), "snapshot-malformed"),
    "digest": (lambda data, lines: again(data, lines[:4]).replace(b'"count":4', b'"count":5') + lines[4] + b"\n",
               "snapshot-malformed"),
    "line lost": (lambda data, lines: data.replace(lines[2] + b"\n", b""), "snapshot-malformed"),
    "line doubled": (lambda data, lines: again(data, [*lines, lines[2]]), "snapshot-malformed"),
    "id": (lambda data, lines: data.replace(lines[2][:20], lines[2][:10] + b"0" * 10), "record-id"),
    "content": (lambda data, lines: data.replace(b'"text":"n2"', b'"text":"n9"'), "record-id"),
    "signature": (lambda data, lines: data.replace(lines[2][-30:], lines[2][-30:-28] + b"AAAA" + lines[2][-24:]),
                  "record-signature"),
    "truncated": (lambda data, lines: data[:-40], "bad-json"),
    "no header": (lambda data, lines: b"\n".join(lines), "snapshot-malformed"),
    "nothing": (lambda data, lines: b"", "snapshot-malformed"),
    "binary": (lambda data, lines: data + b"\xff\xfe\n", "bad-json"),
    "other thread": (lambda data, lines: data.replace(b'"thread":"th"}\n', b'"thread":"xx"}\n', 1),
                     "snapshot-malformed"),
    "stranger": (lambda data, lines: again(data, [*lines, forged("th")]), "chain-unknown"),
    "in alice's name": (lambda data, lines: again(data, [*lines, forged("th", by=json.loads(lines[0])["sig"]["by"])]),
                        "chain-unknown"),
    "as an instance": (lambda data, lines: again(data, [*lines, forged("th", actor=STRANGER_DID + "0")]),
                       "actor-refused"),
    "no namespace": (lambda data, lines: again(data, [*lines, forged("th", namespace="gone")]), "namespace-rejected"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_broken_file_restores_nothing(tmp_path: Path, fault: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        for n in range(5):
            alice.emit(f"n{n}")
        data = snapshot(alice)
        trust(bob, alice)
        change, code = FAULTS[fault]
        broken = change(data, data.splitlines()[1:])
        assert broken != data
        seq = bob.home.store.last_seq
        with pytest.raises(SplError) as caught:
            restore(bob, broken)
        assert caught.value.code == code
        assert caught.value.exit_code in (2, 4, 10)
        assert bob.home.store.last_seq == seq
        assert restore(bob, data).new == 5


async def test_a_refusal_names_line_and_signer(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        for n in range(3):
            alice.emit(f"n{n}")
        with pytest.raises(SplError) as caught:
            restore(bob, snapshot(alice))
        assert (caught.value.facts["line"], caught.value.facts["refused"]) == (2, 3)
        assert alice.did in caught.value.message


async def test_a_line_of_more_parts_than_a_record_has_bytes_is_refused_unread(tmp_path: Path) -> None:
    """Its value would take twenty times the memory of its text."""
    async with nodes(tmp_path, "alice") as (alice,):
        header = SnapshotHeader("", "th", 1, hashlib.sha256(b"").hexdigest()).encode()
        with pytest.raises(SplError) as caught:
            restore(alice, header + b'{"id":"","record":[' + b"[]," * 600_000 + b"[]]}\n")
        assert (caught.value.code, caught.value.facts["line"]) == ("record-too-large", 2)


async def test_reserved_threads_take_what_this_instance_signed_and_from_admin_only(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.write(Own("th_aitl", "x.v1", {"n": 1}))
        trust(bob, alice)
        data = snapshot(alice, "th_aitl")
        with pytest.raises(SplError) as caught:
            restore(bob, data)
        assert caught.value.code == "reserved-thread"
        with pytest.raises(SplError) as caught:
            restore(alice, data, Rights(admin=False, reaches=lambda name: True))
        assert caught.value.code == "scope-forbidden"
        assert restore(alice, data).known == 1
        with pytest.raises(SplError) as caught:
            restore(alice, again(data, [forged("th_aitl", by=alice.did)]))
        assert caught.value.code == "record-signature"


async def test_a_token_restores_into_its_namespaces_only(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("org")
        bob.share("org")
        alice.emit("one", ns="org")
        trust(bob, alice)
        for names, code in ((("default",), "scope-forbidden"), (("org",), "")):
            rights = Rights(admin=False, reaches=names.__contains__)
            assert list(restore(bob, snapshot(alice), rights, dry_run=True).refused) == ([code] if code else [])


async def test_a_peers_records_go_back_into_the_namespace_that_they_crossed_into(tmp_path: Path) -> None:
    """Not into one of ours that happens to have the name they bear; and ours go where they were made."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        for node in (alice, bob):
            node.share("music", "projects")
        join(alice, bob)
        trust(bob, alice)
        for kind, grant in (
            (consent.KIND_PEER_GRANT, Grant("music", "projects", 0, 1)),
            (consent.KIND_GRANT, Grant("projects", "music", 0, 1)),
        ):
            bob.write(Own(consent.THREAD, kind, {"pair_id": "pair_00000001", "grant": grant.to_json()}))
        made = [alice.emit("x", ns="music"), alice.emit("y")]
        restore(bob, again(snapshot(alice), [each.raw for each in made]))
        rows = [next(bob.home.store.index.copies(each.id)) for each in made]
        assert [row.ns for row in rows if row] == ["projects", "default"]
        own = bob.emit("z", ns="music")
        assert (restore(bob, again(snapshot(bob), [own.raw])).known, own.sig.by) == (1, bob.did)
        set_views(bob.home, namespaces={**bob.home.views.namespaces, "projects": Namespace("projects", active=False)})
        later = again(snapshot(alice), [alice.emit("later", ns="music").raw])
        with pytest.raises(SplError) as caught:
            restore(bob, later)
        assert caught.value.code == "namespace-rejected"


async def test_only_a_record_that_its_signers_pair_does_not_place_gets_a_line(tmp_path: Path) -> None:
    """Older versions read the file as long as there is none; a way that is younger than a record proves nothing."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        for node in (alice, bob):
            node.share("music", "projects")
        join(alice, bob)
        early, late, plain = (alice.emit(text, ns=ns) for text, ns in (("x", "music"), ("y", "music"), ("z", "")))
        bob.write(Arrive(early, "projects", "pair_0000000b"))
        for kind, grant in (
            (consent.KIND_PEER_GRANT, Grant("music", "projects", 0, 1)),
            (consent.KIND_GRANT, Grant("projects", "music", 0, 1)),
        ):
            bob.write(Own(consent.THREAD, kind, {"pair_id": "pair_00000001", "grant": grant.to_json()}))
        bob.write(Arrive(late, "projects", "pair_00000001"), Arrive(plain, "default", "pair_0000000b"))
        line = b'{"namespace":"projects"}'
        assert snapshot(bob).splitlines()[1:] == [line, early.raw, late.raw, plain.raw]


@contextmanager
def an_empty_home_of(node: Node, folder: Path) -> Iterator[Node]:
    """Give a new home with the node's identity."""
    identity = node.home.vault.identity
    assert identity is not None
    fresh = Node(folder.name, folder, node.network)
    try:
        fresh.home.adopt(identity)
        yield fresh
    finally:
        fresh.close()


def relayed(origin: Node, to: Node) -> Envelope:
    """Bring the other's record of `music`, a name that is unknown here, into our `projects`, as a hub's pair does."""
    origin.share("music")
    to.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "projects", "shared": True}))
    trust(to, origin)
    sent = origin.emit("through a hub", ns="music")
    to.write(Arrive(sent, "projects", "pair_0000000b"))
    return sent


def unplaced(data: bytes) -> bytes:
    """Return the snapshot as older versions wrote it."""
    return b"".join(line + b"\n" for line in data.splitlines() if not line.startswith(b'{"namespace"'))


@pytest.mark.parametrize("created", [False, True])
@pytest.mark.parametrize("thread", ["", "th"])
async def test_what_came_through_a_hub_goes_back_where_it_was(tmp_path: Path, thread: str, created: bool) -> None:
    """Even if a namespace with the name that its maker gave is created here later: that is another tenant's."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        sent, own = relayed(alice, bob), bob.emit("mine")
        if created:
            bob.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "music"}))
        data = snapshot(bob, thread)
        assert data.count(b'{"namespace":"projects"}\n' + sent.raw) == data.count(b'\n{"namespace"') == 1
        assert restore(bob, data).new == 0, "all of it is here"
        with an_empty_home_of(bob, tmp_path / "fresh") as fresh:
            restore(fresh, snapshot(bob, THREAD_PAIRS))
            restore(fresh, snapshot(bob, THREAD_NAMESPACES))
            restore(fresh, data)
            assert (fresh.ids("projects"), fresh.ids("music"), fresh.ids()) == ([sent.id], [], [own.id])
            assert snapshot(fresh, "th").splitlines()[1:] == snapshot(bob, "th").splitlines()[1:]
            assert restore(fresh, data).new == 0


async def test_a_full_backup_alone_brings_back_what_came_through_a_hub(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        sent, data = relayed(alice, bob), snapshot(bob, "")
        with an_empty_home_of(bob, tmp_path / "fresh") as fresh:
            assert restore(fresh, data).refused == {}
            assert fresh.ids("projects") == [sent.id]


@pytest.mark.parametrize("created", [False, True])
async def test_a_file_that_does_not_say_where_finds_what_is_here(tmp_path: Path, created: bool) -> None:
    """As older versions wrote it: nothing is refused or stored twice; an empty home cannot know, and takes nothing."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        sent, data = relayed(alice, bob), unplaced(snapshot(bob, "th"))
        if created:
            bob.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "music"}))
        plan = restore(bob, data)
        assert (plan.new, plan.known, bob.ids("projects"), bob.ids("music")) == (0, 1, [sent.id], [])
        with an_empty_home_of(bob, tmp_path / "fresh") as fresh:
            trust(fresh, alice)
            with pytest.raises(SplError) as caught:
                restore(fresh, data)
            assert caught.value.code == "namespace-rejected"


async def test_where_a_record_belongs_is_said_by_our_own_file_and_within_the_callers_reach(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        sent, data = relayed(alice, bob), snapshot(bob, "th")
        carol.share("projects")
        trust(carol, alice)
        assert restore(carol, data, dry_run=True).refused == {"namespace-rejected": 1}, "those are bob's namespaces"
        mine = Rights(admin=False, reaches={"projects"}.__contains__)
        theirs = Rights(admin=False, reaches={"default"}.__contains__)
        assert restore(bob, data, mine, dry_run=True).known == 1
        for file in (data, unplaced(data)):
            assert restore(bob, file, theirs, dry_run=True).refused == {"scope-forbidden": 1}
        with an_empty_home_of(bob, tmp_path / "fresh") as fresh:
            trust(fresh, alice)
            fresh.share("projects")
            assert restore(fresh, data, mine, dry_run=True).new == 1
            fresh.share("music")
            assert restore(fresh, data, mine, dry_run=True).refused == {"scope-forbidden": 1}
            restore(fresh, data)
            assert fresh.ids("projects") == [sent.id]


async def test_what_we_signed_stays_in_the_namespace_that_it_names(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        alice.share("projects")
        made, data = alice.emit("mine"), snapshot(alice)
        moved = data.replace(made.raw, b'{"namespace":"projects"}\n' + made.raw)
        with an_empty_home_of(alice, tmp_path / "fresh") as fresh:
            fresh.share("projects")
            restore(fresh, moved)
            assert (fresh.ids("projects"), fresh.ids()) == ([], [made.id])


async def test_a_home_comes_back_from_all_threads(tmp_path: Path) -> None:
    """Into an empty store of the same identity: chains and namespaces come before what needs them."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        trust(alice, bob)
        bob.emit("theirs")
        restore(alice, snapshot(bob))
        alice.write(Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": "org", "shared": True}))
        alice.emit("ours", ns="org")
        data = snapshot(alice, "")
        identity = alice.home.vault.identity
        assert identity is not None
        fresh = Node("fresh", tmp_path / "fresh", alice.network)
        try:
            fresh.home.adopt(identity)
            plan = restore(fresh, data)
            assert (plan.new, plan.header.count) == (4, 4)
            assert snapshot(fresh, "").splitlines()[1:] == data.splitlines()[1:]
            assert fresh.home.views.pins == alice.home.views.pins
            assert fresh.home.views.namespaces == alice.home.views.namespaces
            row = fresh.home.store.index.last("t:th")
            assert row is not None
            assert row.own
            assert fresh.emit("next", ns="org").record["clock"] == 1
        finally:
            fresh.close()


async def test_late_records_are_folded_in_their_own_order(tmp_path: Path) -> None:
    """A mint restored after its revocation stays revoked, at once and after a restart."""
    async with nodes(tmp_path, "alice") as [alice]:
        mint = {"token_id": "tok_1", "sa_id": "sa_1", "hash": "0" * 64, "scopes": ["admin"], "namespaces": [],
                "pair_id": "", "peer_did": "", "expires_at": "2099-01-01T00:00:00.000Z",
                "created_at": "2026-01-01T00:00:00.000Z", "label": ""}  # fmt: skip
        alice.write(Own(THREAD_TOKENS, bearer.KIND_MINT, mint))
        alice.write(Own(THREAD_TOKENS, bearer.KIND_REVOKE, {"token_id": "tok_1"}))
        assert alice.home.views.tokens["tok_1"].revoked
        data = snapshot(alice, THREAD_TOKENS)
        lines = data.splitlines()[1:]
        identity = alice.home.vault.identity
        assert identity is not None
        fresh = Node("fresh", tmp_path / "fresh", alice.network)
        try:
            fresh.home.adopt(identity)
            restore(fresh, again(data, lines[1:]))
            assert restore(fresh, again(data, lines[:1])).new == 1
            assert fresh.home.views.tokens["tok_1"].revoked
            views = load(fresh.home.store, alice.did, LIMITS)
            assert views.tokens["tok_1"].revoked
        finally:
            fresh.close()


async def test_a_full_disk_is_refused_before_it_is_full(tmp_path: Path) -> None:
    class Full(Disk):
        def free_bytes(self, folder: Path) -> int:
            return 1 << 20

    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.emit("one")
        trust(bob, alice)
        seq = bob.home.store.last_seq
        work = Restorer(bob.home.writer, bob.home.path, Full(), LIMITS, now_ms=bob.now_ms)
        with pytest.raises(SplError) as caught:
            work.run(reader(snapshot(alice)), ADMIN, dry_run=False)
        assert (caught.value.code, bob.home.store.last_seq) == ("home-unusable", seq)


async def test_a_restore_ends_at_the_next_line_once_the_store_stops(tmp_path: Path) -> None:
    """The daemon stops: nothing more is verified or stored, whatever the file holds."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.emit("one")
        trust(bob, alice)
        work, data, seq = restorer(bob), snapshot(alice), bob.home.store.last_seq
        bob.home.store.stop()
        with pytest.raises(SplError) as caught:
            work.run(reader(data), ADMIN, dry_run=False)
        assert (caught.value.code, bob.home.store.last_seq) == ("shutting-down", seq)


async def test_a_retired_key_signs_nothing_new_in_a_tenants_file(tmp_path: Path) -> None:
    """Its thief could have written it today; in an operator's neither, unless the operator says so."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        chain, old = Chain(did_of("carol", STRANGER.public), STRANGER.public), STRANGER
        rotated = rotate(chain, old, SecretKey(bytes(31) + b"z").public, "retired", 0)
        bob.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": rotated.to_json()}))
        alice.emit("one")
        data = again(snapshot(alice), [forged("th", by=rotated.did)])
        tenant = Rights(admin=False, reaches=lambda name: name == "default")
        for rights in (tenant, replace(tenant, retired=True), ADMIN):
            assert dict(restore(bob, data, rights, dry_run=True).refused) == {"key-retired": 1}
        assert restore(bob, data, replace(ADMIN, retired=True), dry_run=True).new == 1
        with pytest.raises(SplError) as caught:
            restore(bob, data)
        assert "--accept-retired" in caught.value.hint


@pytest.mark.parametrize("bad", [b"tent 3", b'te"t 3', b"te\xfft 3"])
async def test_of_a_damaged_file_what_is_sound_is_restored_if_asked(tmp_path: Path, bad: bytes) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        made = [alice.emit(f"text {n}") for n in range(8)]
        trust(bob, alice)
        data = snapshot(alice)
        assert data.count(b"text 3") == 1
        data = data.replace(b"text 3", bad)
        with pytest.raises(SplError):
            restore(bob, data)
        assert bob.ids() == []
        plan = restorer(bob).run(reader(data), ADMIN, dry_run=False, skip_damaged=True)
        assert (plan.new, plan.damaged, plan.damaged_lines) == (7, 1, [5])
        assert bob.ids() == sorted(each.id for each in made if each is not made[3])


async def test_lines_that_are_gone_are_counted(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        for n in range(8):
            alice.emit(f"text {n}")
        trust(bob, alice)
        data = b"".join(snapshot(alice).splitlines(keepends=True)[:-3])
        plan = restorer(bob).run(reader(data), ADMIN, dry_run=False, skip_damaged=True)
        assert (plan.new, plan.damaged, plan.damaged_lines) == (5, 3, [])


async def test_a_record_behind_a_line_that_cannot_be_read_is_put_nowhere(tmp_path: Path) -> None:
    """The line may have named its namespace, and the one that the record names is another."""
    async with nodes(tmp_path, "alice") as [alice]:
        made = [alice.emit(f"text {n}") for n in range(4)]
        head, *lines = snapshot(alice).splitlines()
        data = b"\n".join([head, lines[0], b'{"namezpace":"a"}', lines[1], lines[2], b'{"namespace":"a}', *lines[3:]])
        found = list(sound(data.splitlines()[1:], LIMITS))
        assert [raw for _, raw, _ in found] == [lines[0], b"", b"", lines[2], b"", b""]
        assert all(each.raw in lines for each in made)
