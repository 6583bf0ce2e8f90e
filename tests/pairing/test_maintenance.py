"""Looking after a live pair: manifests that change or do not hold, keys that rotate, and the way back from trouble."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from spl.core.errors import SplError
from spl.core.identity.did import multibase, rotate, words
from spl.core.identity.pins import KIND_CHAIN, pin_body
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.pair.pair import Phase
from spl.core.pair.state import Waiting
from spl.home.views import THREAD_PAIRS
from spl.home.writes import Own
from spl.pairing import machine
from spl.pairing.newer import NEWER_NAME
from spl.pairing.statements import CHANGES_MAX
from tests.pair_world import Call, Node, World, both_active, code_of, paired, two
from tests.store_kit import set_views
from tests.waiting import DEADLINE_S, until

HOUR_MS = 3_600_000
LONG = Limits(handshakes_per_minute=100_000)


def kinds(node: Node, kind: str) -> int:
    """Return how many records of a kind stand on the pair thread."""
    store = node.home.store
    rows = store.index.after("t:th_federation_pairs", 0, 10_000)
    found = [json.loads(payload)["record"]["body"]["kind"] for payload in store.payloads(rows)]
    return found.count(f"syncropel.federation.{kind}")


async def test_an_unchanged_manifest_writes_nothing_and_is_shown_as_fetched(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        seq = a.home.store.last_seq
        before = a.pairing.maintenance.status(pair_id).fetched_at_ms
        await b.restart()
        world.time_ms += HOUR_MS
        assert (await a.pairing.refresh(pair_id)).phase is Phase.ACTIVE
        assert a.home.store.last_seq == seq
        assert a.pairing.maintenance.status(pair_id).fetched_at_ms != before
        asked = [call for call in world.calls if call.path == "/.well-known/syncropel" and not call.answer]
        assert len(asked) >= 2


async def test_a_manifest_is_refreshed_on_a_schedule_also_while_paused(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.pause(pair_id)
        await until(lambda: b.alive[0].paused_by == "peer")
        b.home.vault.rotate("retired")
        world.time_ms += 7 * HOUR_MS
        await until(lambda: len(a.alive[0].chain.rotations) == 1)
        assert a.alive[0].paused_by == "us"
        assert kinds(a, "peer_manifest_changed.v1") == 1


async def test_a_clock_that_is_set_back_puts_no_retry_off(tmp_path: Path) -> None:
    """Retries go by a clock that nobody sets; by the wall clock this one would come a month later."""
    async with paired(tmp_path) as (world, a, _b, pair_id):
        world.faults.append(lambda call: None)
        world.time_ms += 7 * HOUR_MS
        await until(lambda: a.pairing.maintenance.status(pair_id).attempt)
        world.set_ms -= 30 * 24 * HOUR_MS
        world.faults.clear()
        world.time_ms += HOUR_MS
        await until(lambda: not a.pairing.maintenance.status(pair_id).attempt)


async def test_a_peer_that_changes_its_manifest_leaves_one_record_an_hour(tmp_path: Path) -> None:
    """The last of the others is taken when the hour is over; a grown key chain does not wait."""
    async with paired(tmp_path) as (world, a, b, pair_id):

        async def share(name: str) -> int:
            b.register(name, shared=True)
            await b.pairing.handshakes.ask(pair_id, poll=True)
            return kinds(a, "peer_manifest_changed.v1")

        assert [await share(f"n{number}") for number in range(4)] == [1] * 4
        assert a.alive[0].peer.namespaces == ("default", "n0")
        await b.pairing.rotate_identity("retired")
        await until(lambda: len(a.alive[0].chain.rotations) == 1)
        assert kinds(a, "peer_manifest_changed.v1") == 2
        assert await share("late") == 2
        assert "late" not in (a.alive[0].peer.namespaces or ())
        world.time_ms += HOUR_MS
        await until(lambda: "late" in (a.alive[0].peer.namespaces or ()))
        assert kinds(a, "peer_manifest_changed.v1") == 3


async def test_a_rotated_key_is_told_to_the_peer_at_once(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        for reason in ("retired", "compromised"):
            await b.pairing.rotate_identity(reason)
            await until(lambda: a.alive[0].chain == b.home.vault.identity.chain)
            assert await b.call(a) == 200
            assert await a.call(b) == 200
        assert [step.reason for step in a.alive[0].chain.rotations] == ["retired", "compromised"]
        assert a.alive[0].pair_id == pair_id
        await both_active(a, b)
        await a.restart()
        await b.restart()
        assert a.alive[0].chain == b.home.vault.identity.chain
        assert await b.call(a) == 200


async def test_a_rotation_that_nobody_told_is_learnt_from_the_answer_or_from_the_next_message(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        await b.pairing.rotate_identity("retired")
        await until(lambda: "poll" in world.lost)
        world.faults.clear()
        assert await b.call(a) == 401
        await a.pairing.pause(pair_id)
        await until(lambda: b.alive[0].paused_by == "peer")
        await a.pairing.refresh(pair_id)
        assert len(a.alive[0].chain.rotations) == 1
        assert await b.call(a) == 200


async def test_a_refused_token_heals_when_only_the_key_was_unknown(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        await b.pairing.rotate_identity("retired")
        await until(lambda: "poll" in world.lost)
        world.faults.clear()
        b.pairing.on_trouble(pair_id, "auth-invalid")
        await until(lambda: b.alive[0].phase is Phase.ACTIVE and len(a.alive[0].chain.rotations) == 1)
        await until(lambda: b.woken)
        assert await b.call(a) == 200


async def test_a_peer_that_moved_says_so_itself_and_the_old_place_is_left(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: a.alive[0].url == "http://127.0.0.1:9555")
        assert await a.call(b) == 200
        await a.pairing.refresh(pair_id)
        await both_active(a, b)
        assert kinds(a, "peer_manifest_changed.v1") == 1


async def test_a_peer_that_moves_twice_within_an_hour_is_followed(tmp_path: Path) -> None:
    """The second place waits for its hour, which the status says; the operator's refresh goes there at once."""
    async with paired(tmp_path) as (_, a, b, pair_id):
        for port in (9555, 9556):
            await b.end()
            b.move(f"http://127.0.0.1:{port}")
            b.start()
            await until(lambda port=port: str(port) in a.alive[0].url + str(newer(a, pair_id)))
        assert a.alive[0].url == "http://127.0.0.1:9555"
        assert newer(a, pair_id)["url"] == "http://127.0.0.1:9556"
        await until(lambda: bool(a.home.vault.names(NEWER_NAME)))  # it is known before it is on disk
        await a.restart()
        assert newer(a, pair_id)["url"] == "http://127.0.0.1:9556", "a restart forgot where the peer is"
        await a.pairing.refresh(pair_id)
        assert a.alive[0].url == "http://127.0.0.1:9556"
        assert newer(a, pair_id) is None
        assert await a.call(b) == 200


async def test_a_peer_that_is_out_of_reach_is_followed_before_its_hour(tmp_path: Path) -> None:
    """A copy of its home ran elsewhere and is gone: it hears that it is out of reach, and says anew where it is."""
    async with paired(tmp_path) as (_, a, b, pair_id):
        for port in (9555, 9556):
            await b.end()
            b.move(f"http://127.0.0.1:{port}")
            b.start()
            await until(lambda port=port: str(port) in a.alive[0].url + str(newer(a, pair_id)))
        await a.pairing.stepper.do(a.pairing.pairs.adopt_waiting, lambda _: "connect")
        assert a.alive[0].url == "http://127.0.0.1:9555", "one in five minutes at most"
        with patch.object(machine, "MANIFEST_LOST_MS", 0):
            await a.pairing.stepper.do(a.pairing.pairs.adopt_waiting, lambda _: "")
            assert a.alive[0].url == "http://127.0.0.1:9555"
            await a.pairing.stepper.do(a.pairing.pairs.adopt_waiting, lambda _: "connect")
        assert a.alive[0].url == "http://127.0.0.1:9556"
        before = b.pairing.published.federation_manifest()
        with patch.object(b.pairing.handshakes, "ask") as asked:
            for view in ({"unreached": "connect"}, {"unreached": "connect"}, {}):
                b.pairing.on_view(pair_id, view)
            await until(lambda: asked.call_count == 1)
        assert b.pairing.published.federation_manifest() != before, "signed anew"


def newer(node: Node, pair_id: str) -> Any:
    return node.pairing.maintenance.status(pair_id).to_json()["newer"]


async def test_a_manifest_at_the_known_place_may_name_a_new_endpoint(tmp_path: Path) -> None:
    """The place that the operator typed stays the one to ask; from then on the pair talks to the new one."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        old = b.url
        world.faults.append(lambda call: None)
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: "poll" in world.lost)
        world.nodes[old] = b
        world.faults.clear()
        await a.pairing.refresh(pair_id)
        assert a.alive[0].url == "http://127.0.0.1:9555"
        del world.nodes[old]
        assert await a.call(b) == 200
        assert a.alive[0].phase is Phase.ACTIVE


def forged(call: Call, change: str) -> bytes:
    """Return the answer with the endpoint in its manifest moved, as somebody in the middle would."""
    if call.answer and call.path == "/.well-known/syncropel":
        return call.body.replace(b"/v1/federation/pair", change.encode() + b"/v1/federation/pair")
    return call.body


async def test_a_changed_manifest_that_does_not_verify_degrades_until_it_does(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        url = a.alive[0].url
        await a.pairing.maintenance.doubt(pair_id, "connect")
        world.faults.append(lambda call: forged(call, ".evil.example"))
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) in ("manifest-signature", "manifest-malformed")
        assert (a.alive[0].phase, a.alive[0].reason, a.alive[0].url) == (Phase.DEGRADED, code_of(caught), url)
        seq = a.home.store.last_seq
        a.pairing.on_success(pair_id)
        a.pairing.on_trouble(pair_id, "connect")
        await a.jobs_done(pair_id)
        assert a.home.store.last_seq == seq, "neither a success nor a trouble of another kind changes the pair"
        await until(lambda: a.pairing.maintenance.status(pair_id).attempt)
        assert (a.alive[0].phase, a.alive[0].reason) == (Phase.DEGRADED, code_of(caught))
        error = a.pairing.maintenance.status(pair_id).last_error
        assert error is not None
        assert error.code == code_of(caught)
        assert not any("evil" in call.origin for call in world.calls)
        world.faults.clear()
        world.time_ms += HOUR_MS
        await both_active(a, b)


async def test_a_paused_pair_stays_paused_and_a_degraded_one_recovers(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.maintenance.doubt(pair_id, "connect")
        await a.pairing.refresh(pair_id)
        assert a.alive[0].phase is Phase.ACTIVE
        assert a.woken == [pair_id]
        await a.pairing.pause(pair_id)
        assert (await a.pairing.refresh(pair_id)).paused_by == "us"
        world.faults.append(lambda call: None)
        await b.pairing.pause(pair_id)
        world.faults.clear()
        assert (await a.pairing.refresh(pair_id)).paused_by == "both"


async def test_refresh_completes_a_pending_pair(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: a.alive and isinstance(a.alive[0].state, Waiting))
        pair_id = a.alive[0].pair_id
        await b.pairing.decide_request(pair_id, "approve")
        await a.pairing.refresh(pair_id)
        await both_active(a, b)


async def test_a_peer_that_lost_the_pair_is_named_and_does_not_recover(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        await a.pairing.maintenance.doubt(pair_id, "auth-invalid")
        set_views(b.home, pairs={})
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) == "pair-unknown"
        assert a.alive[0].phase is Phase.DEGRADED


async def test_a_fork_of_the_key_chain_is_refused_until_the_operator_names_the_key(tmp_path: Path) -> None:
    """Two successors of one key: whoever holds the old key may have made the second."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        first = b.home.vault.export()
        await b.pairing.rotate_identity("retired")
        await until(lambda: len(a.alive[0].chain.rotations) == 1)
        seen = a.alive[0].chain
        await fork(b, first)
        await until(lambda: (a.alive[0].phase, a.alive[0].reason) == (Phase.DEGRADED, "chain-fork"))
        assert a.alive[0].chain == seen
        assert await b.call(a) == 401
        a.pairing.on_success(pair_id)
        for key in ("", words(seen.present), "six words that nobody ever said"):
            with pytest.raises(SplError) as caught:
                await a.pairing.refresh(pair_id, key)
            assert code_of(caught) in ("chain-fork", "manifest-did-mismatch")
            assert f"refresh {pair_id} --expect-key" in caught.value.hint or key
            assert a.alive[0].phase is Phase.DEGRADED
        named = b.home.vault.identity.key.public
        await a.pairing.refresh(pair_id, words(named) if world.time_ms % 2 else multibase(named))
        assert a.alive[0].chain == b.home.vault.identity.chain
        await both_active(a, b)
        assert await b.call(a) == 200
        assert a.home.views.pins.chain(b.did) == a.alive[0].chain


async def test_the_thief_of_a_compromised_key_at_the_peers_address_degrades_nothing(tmp_path: Path) -> None:
    """What it serves is refused, and the pair goes on with its owner."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        first = b.home.vault.export()
        await b.pairing.rotate_identity("compromised")
        await until(lambda: len(a.alive[0].chain.rotations) == 1)
        owners = b.home.vault.export()
        await fork(b, first)
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) == "chain-fork"
        world.time_ms += 7 * HOUR_MS
        await until(lambda: a.pairing.maintenance.status(pair_id).attempt)
        assert a.alive[0].phase is Phase.ACTIVE
        b.home.vault.identity = None
        b.home.vault.install(owners)
        await b.pairing.rotate_identity("retired")
        await until(lambda: len(a.alive[0].chain.rotations) == 2)
        assert await b.call(a) == 200
        await both_active(a, b)


async def fork(node: Node, first: str) -> None:
    """Give the node the second successor of its first key."""
    node.home.vault.identity = None
    node.home.vault.install(first)
    await node.pairing.rotate_identity("retired")


async def test_a_fork_that_a_relay_shows_degrades_the_pair_until_the_operator_names_the_key(tmp_path: Path) -> None:
    """The pinned chain goes on to count over the pair, so a thief of an old key shuts its owner out of nothing."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        old = b.home.vault.identity
        await b.pairing.rotate_identity("retired")
        await until(lambda: len(a.alive[0].chain.rotations) == 1)
        forged = rotate(old.chain, old.key, SecretKey(b"t" * 32).public, "retired", world.time_ms)
        a.home.writer.submit([Own(THREAD_PAIRS, KIND_CHAIN, pin_body(forged, via="pair_0000000c"))]).result(DEADLINE_S)
        assert a.home.views.pins.is_forked(b.did)
        world.time_ms += HOUR_MS
        await until(lambda: (a.alive[0].phase, a.alive[0].reason) == (Phase.DEGRADED, "chain-fork"))
        assert await b.call(a) == 200, "its own pair goes on"
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) == "chain-fork"
        assert f"spl federation refresh {pair_id} --expect-key" in caught.value.hint
        await a.pairing.refresh(pair_id, words(b.home.vault.identity.key.public))
        await both_active(a, b)
        assert not a.home.views.pins.is_forked(b.did)
        assert a.home.views.pins.chain(b.did) == b.home.vault.identity.chain


async def test_a_key_that_a_relay_showed_as_rotated_speaks_for_the_peer_no_more(tmp_path: Path) -> None:
    """Before the peer itself is heard again: the thief of the old key can neither sync nor change the pair."""
    async with paired(tmp_path) as (_, a, b, pair_id):
        own = b.home.vault.identity
        after = rotate(own.chain, own.key, SecretKey(b"n" * 32).public, "compromised", 1)
        a.home.writer.submit([Own(THREAD_PAIRS, KIND_CHAIN, pin_body(after, via="pair_0000000c"))]).result(DEADLINE_S)
        assert a.home.views.pins.chain(b.did) == after
        assert await b.call(a) == 401
        with pytest.raises(SplError):
            await b.pairing.refresh(pair_id)


async def test_a_request_pins_nothing_before_it_is_approved(tmp_path: Path) -> None:
    """Else whoever asks first, with an old key of another instance, would be its first word here."""
    async with two(tmp_path, "manual") as (_, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: a.alive and isinstance(a.alive[0].state, Waiting))
        assert b.home.views.pins.chain(a.did) is None
        assert a.home.views.pins.chain(b.did) is not None, "our operator named the peer"
        await b.pairing.decide_request(a.alive[0].pair_id, "approve")
        assert b.home.views.pins.chain(a.did) == a.home.vault.identity.chain


async def test_the_first_rounds_after_a_start_are_spread(tmp_path: Path) -> None:
    world = World(tmp_path, LONG)
    a = world.node("alice")
    others = [world.node(name) for name in ("bob", "carol")]
    try:
        for other in others:
            await a.pair(other)
        await until(lambda: [pair.phase for pair in a.alive] == [Phase.ACTIVE] * 2)
        assert a.pairing.maintenance.due() == []
        waits = [a.pairing.maintenance._wait_ms(pair) for pair in a.alive]
        assert len(set(waits)) == 2
        assert all(5 * HOUR_MS < wait < 7 * HOUR_MS for wait in waits)
        assert 5 * 3600 < a.pairing.maintenance.next_s() < 7 * 3600
    finally:
        await world.close()


async def test_the_peer_takes_a_mode_from_us_only_if_its_operator_lets_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.node("alice"), world.node("bob")
    try:
        await a.pair(b)
        pair_id = await both_active(a, b)
        ask = a.pairing.maintenance.ask_mode
        with pytest.raises(SplError) as caught:
            await ask(pair_id, "continuous")
        assert (code_of(caught), caught.value.exit_code, b.alive[0].mode) == ("mode-kept", 4, "polling")
        assert "bob stays in mode polling" in caught.value.message
        assert f"on bob: spl federation set-mode {pair_id} continuous" in caught.value.hint
        b.config = replace(b.config, federation_follow_mode=True)
        await b.restart()
        await ask(pair_id, "continuous")
        assert (a.alive[0].mode, b.alive[0].mode) == ("polling", "continuous")
        with pytest.raises(SplError):
            await ask(pair_id, "sometimes")
        assert b.alive[0].mode == "continuous"
        # Each change is a record, so a peer that asks again and again is not followed for ever.
        before = kinds(b, "pair_config.v1")
        for mode in ["polling", "continuous"] * CHANGES_MAX:
            with suppress(SplError):
                await ask(pair_id, mode)
        assert kinds(b, "pair_config.v1") <= before + CHANGES_MAX
    finally:
        await world.close()


async def test_refresh_takes_the_address_that_the_operator_names_if_the_peer_is_there(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        other, fault = world.node("carol"), world.faults.append
        fault(lambda call: None)
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: "poll" in world.lost)
        world.faults.clear()
        for url, code in ((other.url, "manifest-did-mismatch"), ("http://127.0.0.1:9777", "connect")):
            with pytest.raises(SplError) as caught:
                await a.pairing.refresh(pair_id, url=url)
            assert (code_of(caught), a.alive[0].phase) == (code, Phase.ACTIVE)
        assert (await a.pairing.refresh(pair_id, url="http://127.0.0.1:9555/")).url == "http://127.0.0.1:9555"
        assert a.home.vault.get(f"typed.{pair_id}") == "http://127.0.0.1:9555/", "it is dialled after a restart, too"
        world.nodes["http://127.0.0.1:9666"] = b
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id, url="http://127.0.0.1:9666")
        assert code_of(caught) == "manifest-differs-outside"
        assert "spl config set public_url http://127.0.0.1:9666" in caught.value.hint
