"""Two instances end with the same records whatever happens between, and let in nothing that does not belong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.identity import did
from spl.core.keys import SecretKey
from spl.core.pair.pair import Phase
from spl.core.record import record
from spl.core.record.record import Sig
from spl.home.writes import Arrive, Emit
from spl.net.client import Reply
from spl.sync import pull
from spl.sync.ingest import SPOILT_CODES
from tests.nodes import LIMITS, Node, join, nodes
from tests.store_kit import set_views

PAIR = "pair_00000001"


def on_page(change: Callable[[dict[str, Any]], object], times: int = 1) -> Callable[[str, Reply], Reply]:
    """Return a network that changes the first pages on their way."""
    left = [times]

    def apply(path: str, reply: Reply) -> Reply:
        if path != "/v1/sync/changes" or reply.status != 200 or not left[0]:
            return reply
        left[0] -= 1
        page = json.loads(reply.body)
        change(page)
        return replace(reply, body=json.dumps(page).encode())

    return apply


def slipping(value: dict[str, Any], chain: Reply) -> Callable[[str, Reply], Reply]:
    """Return a network that adds an envelope to the next page and answers every question for a chain itself."""

    def add(page: dict[str, Any]) -> None:
        page["records"].append(value)
        page["ns"].append("default")

    slip = on_page(add)
    return lambda path, reply: chain if path == "/v1/sync/chains" else slip(path, reply)


def signed(key: SecretKey, by: str, **fields: Any) -> dict[str, Any]:
    """Return the envelope of a record under any key and name."""
    value = {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {"n": 1}, "clock": 1, **fields}
    checked = record.check(value, LIMITS)
    id_, text = record.identify(checked, LIMITS)
    sig = Sig(by, did.multibase(key.public), key.sign(record.signed_text(id_, None)))
    found: dict[str, Any] = json.loads(record.seal(checked, id_, text, sig).raw)
    return found


async def test_both_sides_end_with_the_same_records(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        for n in range(5):
            alice.emit(f"a{n}")
            bob.emit(f"b{n}", actor="did:sync:user:b")
        assert await bob.sync.pull(PAIR) == 5
        assert await alice.sync.pull(PAIR) == 5
        assert alice.ids() == bob.ids()
        assert len(alice.ids()) == 10
        assert await bob.sync.pull(PAIR) == await alice.sync.pull(PAIR) == 0


async def test_stored_envelopes_are_byte_identical_on_both_sides(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit('π \u2028 \\ " \x01', thread="tähti")
        await bob.sync.pull(PAIR)
        row = bob.home.store.index.find(sent.id, "default")
        assert row is not None
        assert bob.home.store.payloads([row]) == [sent.raw]
        assert (row.origin, row.own) == (PAIR, False)


async def test_batches_signed_once_verify_on_the_other_side(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.write(
            *(Emit({"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {"n": n}}) for n in range(130))
        )
        assert await bob.sync.pull(PAIR) == 130
        assert not bob.home.views.refused


async def test_equal_clocks_of_two_sides_are_both_kept(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        one, two = alice.emit("one"), bob.emit("two")
        assert (one.record["clock"], one.record["actor"]) == (two.record["clock"], two.record["actor"])
        await alice.sync.pull(PAIR)
        await bob.sync.pull(PAIR)
        assert alice.ids() == bob.ids() == sorted((one.id, two.id))


async def test_a_position_is_kept_over_a_restart_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "bob2") as (alice, bob, _):
        join(alice, bob)
        alice.emit("1")
        await bob.sync.pull(PAIR)
        bob.close()
        again = Node("bob", tmp_path / "bob", alice.network)
        try:
            join(alice, again)
            before = again.home.store.last_seq
            alice.emit("2")
            assert await again.sync.pull(PAIR) == 1
            # One record and one position: the first page was not read again.
            assert again.home.store.last_seq == before + 2
        finally:
            again.close()
            bob.close = lambda: None  # type: ignore[method-assign]


async def test_a_pull_without_news_writes_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        await bob.sync.pull(PAIR)
        seq = bob.home.store.last_seq
        for _ in range(3):
            await bob.sync.pull(PAIR)
        assert bob.home.store.last_seq == seq


async def test_a_long_history_comes_in_pages_of_bounded_queue(tmp_path: Path) -> None:
    limits = replace(LIMITS, queue_records=20, page_bytes=4000)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(57):
            alice.emit(f"{n}")
        assert await bob.sync.pull(PAIR) == 57
        pages = [path for _, path in alice.network.log if path == "/v1/sync/changes"]
        assert len(pages) >= 6
        assert alice.ids() == bob.ids()


async def test_crash_between_pages_resumes_without_loss(tmp_path: Path) -> None:
    limits = replace(LIMITS, queue_records=6)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        for n in range(20):
            alice.emit(f"{n}")
        count = [0]

        def cut(path: str, reply: Reply) -> Reply:
            count[0] += path == "/v1/sync/changes"
            return replace(reply, body=reply.body[:-5]) if count[0] == 4 else reply

        alice.network.change = cut
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == "answer-malformed"
        held = len(bob.ids())
        # The three pages before it came whole.
        assert held == 9
        assert bob.sync.status(PAIR).last_error.kind == "PARSE_ERROR"  # type: ignore[index]
        assert await bob.sync.pull(PAIR) == 20 - held
        assert alice.ids() == bob.ids()


def by_mallory(env: dict[str, Any]) -> None:
    env["sig"].update(by="did:sync:instance:mallory-" + "0" * 24)


BAD: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("record-id", lambda env: env["record"].update(clock=99)),
    ("record-signature", lambda env: env["sig"].update(value="A" * 86 + "==")),
    ("record-signature", lambda env: env["record"].update(judged_by="a" * 64)),
    ("chain-unknown", by_mallory),
    ("chain-unknown", lambda env: env["sig"].update(key="zNobody")),
    ("bad-field", lambda env: env["record"].update(act="SHOUT")),
    ("bad-field", lambda env: env.update(extra=1)),
    ("bad-json", lambda env: env["record"]["body"].update(x=float("nan"))),
    ("bad-json", lambda env: env["record"]["body"].update(x="\ud800")),
    ("bad-json", lambda env: env["record"]["body"].update(x=10**400)),
]


@pytest.mark.parametrize(("code", "spoil"), BAD)
async def test_a_bad_record_is_refused_and_stalls_nothing(
    tmp_path: Path, code: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}") for n in range(3)]
        alice.network.change = on_page(lambda page: spoil(page["records"][1]))
        # Asked for at once: one whose signer's chain the peer may know by then, and what may have changed on the way.
        at_once = spoil is by_mallory or code in SPOILT_CODES
        assert await bob.sync.pull(PAIR) == 2 + at_once
        assert bob.ids() == sorted((sent[0].id, sent[2].id, *([sent[1].id] if at_once else [])))
        assert bob.home.views.refused == {PAIR: 1}
        row = bob.home.store.index.last(f"r:{PAIR}")
        assert row is not None
        assert json.loads(bob.home.store.payloads([row])[0]) == {
                "pair": PAIR, "id": sent[1].id, "code": code, "ns": "default",
            }  # fmt: skip
        # It came damaged, and is asked for again; that it was refused once stays on record.
        assert await bob.sync.pull(PAIR) == (not at_once)
        assert bob.ids() == alice.ids()
        assert bob.home.views.refused == {PAIR: 1}


async def test_what_stays_refused_is_asked_for_once_and_written_down_once(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")

        def spoil(path: str, reply: Reply) -> Reply:
            return replace(reply, body=reply.body.replace(b'"act":"DO"', b'"act":"MAP"'))

        alice.network.change = spoil
        for _ in range(4):
            assert await bob.sync.pull(PAIR) == 0
        assert alice.network.log.count(("POST", "/v1/sync/records")) == 1
        assert bob.home.views.refused == {PAIR: 1}
        assert bob.ids() == []


async def test_a_chain_learnt_later_brings_what_was_refused_for_want_of_it(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "hub", "bob") as (alice, writer, bob):
        join(alice, writer, "pair_0000000a")
        join(writer, bob, "pair_0000000b")
        alice.emit("1")
        await writer.sync.pull("pair_0000000a")
        writer.network.change = lambda path, reply: replace(reply, status=404) if path == "/v1/sync/chains" else reply
        for _ in range(3):
            assert await bob.sync.pull("pair_0000000b") == 0
        writer.network.change = lambda path, reply: reply
        alice.emit("2")
        await writer.sync.pull("pair_0000000a")
        assert await bob.sync.pull("pair_0000000b") == 2
        assert bob.ids() == alice.ids()


async def test_deep_nesting_is_refused_like_at_home(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        deep: Any = 1
        for _ in range(70):
            deep = [deep]
        key = alice.home.vault.identity.key  # type: ignore[union-attr]
        env = signed(key, alice.did, body={"deep": deep})
        alice.network.change = on_page(lambda page: page["records"].__setitem__(0, env))
        assert await bob.sync.pull(PAIR) == 0
        assert bob.home.views.refused == {PAIR: 1}


@pytest.mark.parametrize(
    ("ns", "fields"),
    [
        ("default", {"thread": "th_federation_pairs"}),
        ("default", {"thread": "th_audit_x"}),
        ("secret", {"body": {"namespace": "secret"}}),
        ("default", {"body": {"namespace": "secret"}}),
        ("org", {"body": {}}),
        ("default", {"body": {"namespace": "org"}}),
        ("default", {"actor": "did:sync:instance:bob-" + "1" * 24}),
        (7, {}),
    ],
)
async def test_what_lies_outside_the_agreement_stays_outside(tmp_path: Path, ns: Any, fields: dict[str, Any]) -> None:
    """Even well signed by the peer itself."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, namespaces=("default", "org"))
        alice.emit("x")
        key = alice.home.vault.identity.key  # type: ignore[union-attr]
        env = signed(key, alice.did, **fields)

        def slip_in(page: dict[str, Any]) -> None:
            page["records"].append(env)
            page["ns"].append(ns)

        alice.network.change = on_page(slip_in)
        assert await bob.sync.pull(PAIR) == 1
        assert bob.home.store.index.find(env["id"], "default") is None
        row = bob.home.store.index.last(f"r:{PAIR}")
        assert row is not None
        assert json.loads(bob.home.store.payloads([row])[0])["code"] == "scope-violation"


async def test_an_actors_filter_lets_in_only_those_named(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.change_pair(PAIR, actors=("did:sync:user:a",))
        kept = alice.emit("x", actor="did:sync:user:a")
        alice.emit("y", actor="did:sync:user:b")
        assert await bob.sync.pull(PAIR) == 1
        assert bob.ids() == [kept.id]


async def test_a_relayed_record_brings_its_signers_chain(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "hub", "bob") as (alice, writer, bob):
        join(alice, writer, "pair_0000000a")
        join(writer, bob, "pair_0000000b")
        sent = alice.emit("through the hub")
        await writer.sync.pull("pair_0000000a")
        assert await bob.sync.pull("pair_0000000b") == 1
        assert bob.ids() == [sent.id]
        assert bob.home.views.pins.chain(alice.did) == alice.chain
        alice.emit("again")
        await writer.sync.pull("pair_0000000a")
        before = len(writer.network.log)
        assert await bob.sync.pull("pair_0000000b") == 1
        assert ("GET", "/v1/sync/chains") not in writer.network.log[before:]


async def test_a_hub_that_does_not_relay_gives_its_own_records_only(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "hub", "bob") as (alice, writer, bob):
        join(alice, writer, "pair_0000000a")
        join(writer, bob, "pair_0000000b")
        writer.change_pair("pair_0000000b", relay=False)
        alice.emit("private")
        own = writer.emit("public")
        await writer.sync.pull("pair_0000000a")
        assert await bob.sync.pull("pair_0000000b") == 1
        assert bob.ids() == [own.id]
        assert bob.sync.status("pair_0000000b").lag_records == 0


async def test_a_forged_chain_is_not_pinned(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "hub", "bob", "mallory") as (alice, writer, bob, mallory):
        join(alice, writer, "pair_0000000a")
        join(writer, bob, "pair_0000000b")
        alice.emit("x")
        await writer.sync.pull("pair_0000000a")
        lie = signed(mallory.key, alice.did)
        hostile: list[Any] = [{**mallory.chain.to_json(), "did": alice.did}, mallory.chain.to_json(), {}, [], None]
        for shown in hostile:
            writer.network.change = slipping(lie, Reply(200, {}, json.dumps(shown).encode(), "x"))
            assert await bob.sync.pull("pair_0000000b", resync=True) == 0
            assert bob.home.views.pins.chain(alice.did) is None
            assert bob.ids() == []


async def test_a_pinned_chain_grows_and_never_forks(tmp_path: Path) -> None:
    """A thief of a retired key can sign another successor; the first one seen stands, and the fork is remembered."""
    async with nodes(tmp_path, "alice", "hub", "bob", "mallory") as (alice, writer, bob, mallory):
        join(writer, bob)
        young, thief = SecretKey(b"y" * 32), mallory.key
        grown = did.rotate(alice.chain, alice.key, young.public, "retired", 1)
        forked = did.rotate(alice.chain, alice.key, thief.public, "retired", 1)
        for key, chain, fresh in ((alice.key, alice.chain, 1), (young, grown, 1), (thief, forked, 0)):
            value = signed(key, alice.did, clock=fresh, thread=key.public.hex())
            shown = Reply(200, {}, json.dumps(chain.to_json()).encode(), "x")
            writer.network.change = slipping(value, shown)
            assert await bob.sync.pull(PAIR) == fresh
        assert bob.home.views.pins.chain(alice.did) == grown
        assert bob.home.views.pins.is_forked(alice.did)
        assert len(bob.ids()) == 2


async def test_our_own_records_come_back_from_a_peer_after_loss(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit("precious")
        await bob.sync.pull(PAIR)
        alice.home.store.index.find(sent.id, "default")
        # Nothing of ours comes back by itself, and all of it when we ask.
        await alice.sync.pull(PAIR)
        assert not alice.home.views.refused
        assert await alice.sync.pull(PAIR, resync=True) == 0
        assert alice.ids() == [sent.id]


async def test_a_second_voucher_is_kept_beside_the_first(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        one, two = alice.emit("same"), bob.emit("same")
        assert one.id == two.id
        assert await bob.sync.pull(PAIR) <= 1
        others = bob.home.store.index.alternates(one.id, "default")
        assert [row.voucher for row in others] == [alice.did]
        assert bob.ids() == [one.id]
        assert await bob.sync.pull(PAIR, resync=True) == 0


async def test_a_thread_is_fetched_without_moving_the_position(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        for n in range(3):
            alice.emit(f"{n}", thread="wanted")
            alice.emit(f"{n}", thread="other")
        assert await bob.sync.pull(PAIR, "wanted") == 3
        assert PAIR not in bob.home.views.positions
        assert await bob.sync.pull(PAIR) == 3
        assert bob.ids() == alice.ids()


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 5000,
        b'{"records":[]}',
        b'{"records":{},"ns":[]}',
        b'{"records":[],"ns":["x"],"next_cursor":"a","has_more":false}',
        b'{"records":[],"ns":[],"next_cursor":"","has_more":false}',
        b'{"records":[],"ns":[],"next_cursor":"' + b"a" * 5000 + b'","has_more":false}',
        b'{"records":[],"ns":[],"next_cursor":"a","has_more":1}',
        b'{"records":[],"ns":[],"next_cursor":"a","has_more":false,"peer_view":[]}',
        b'{"records":[' + b"0," * 1000 + b'0],"ns":[' + b"0," * 1000 + b'0],"next_cursor":"a","has_more":false}',
    ],
)
async def test_nonsense_instead_of_a_page_is_an_error_and_nothing_else(tmp_path: Path, page: bytes) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.change = lambda path, reply: replace(reply, body=page)
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == "answer-malformed"
        assert bob.home.store.last_seq == 0


async def test_a_source_that_promises_more_and_stands_still_is_an_error(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        body = b'{"records":[],"ns":[],"next_cursor":"same","has_more":true,"peer_view":{}}'
        alice.network.change = lambda path, reply: Reply(200, {}, body, "x")
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == "answer-malformed"
        assert alice.network.log.count(("GET", "/v1/sync/changes")) == 2


async def test_a_source_that_gives_empty_pages_for_ever_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "EMPTY_PAGES_MAX", 5)
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        count = iter(range(99))

        def answer(path: str, reply: Reply) -> Reply:
            text = {"records": [], "ns": [], "next_cursor": f"{next(count)}", "has_more": True, "peer_view": {}}
            return Reply(200, {}, json.dumps(text).encode(), "x")

        alice.network.change = answer
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == "answer-malformed"


async def test_what_arrives_after_a_pause_is_not_let_in(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("late")

        def pause(path: str, reply: Reply) -> Reply:
            bob.change_pair(PAIR, phase=Phase.PAUSED, sync_allowed=False)
            return reply

        alice.network.change = pause
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)
        assert bob.ids() == []


async def test_positions_are_inherited_from_the_pair_that_was_superseded(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        await bob.sync.pull(PAIR)
        join(alice, bob, "pair_00000002", inherits=PAIR)
        before = bob.home.store.last_seq
        alice.emit("2")
        assert await bob.sync.pull("pair_00000002") == 1
        assert bob.home.store.last_seq == before + 2
        assert bob.ids() == alice.ids()


async def test_restored_records_of_others_travel_like_all(tmp_path: Path) -> None:
    """What was restored from a file has an origin of its own, so every pair is offered it."""
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob)
        sent = carol.emit("from a snapshot")
        alice.write(Arrive(sent, "default", "restore"))
        set_views(alice.home, pins=alice.home.views.pins.seen(carol.chain))
        assert await bob.sync.pull(PAIR) == 1
        assert bob.ids() == [sent.id]
