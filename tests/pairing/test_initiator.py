"""The asking side: options, pins, lost messages, two that ask at once."""

import asyncio
import json
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.core.pair.state import Requested, Waiting
from spl.pairing.service import PairOptions
from tests.pair_world import Call, World, both_active, code_of, names, two
from tests.store_kit import set_views
from tests.waiting import until

STEPS = ["manifest", "verified", "posted", "token", "recorded", "synced", "active"]


async def test_a_bare_401_moves_nothing_and_asking_again_heals(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):

        def unsigned(call: Call) -> bytes:
            hit = call.answer and call.path == "/v1/federation/pair"
            return b'{"object":"error","code":"AUTH_REQUIRED"}' if hit else call.body

        world.permitted = False
        world.faults.append(unsigned)
        with pytest.raises(SplError) as caught:
            await a.pair(b)
        assert code_of(caught) == "handshake-401"
        assert caught.value.message == "peer rejected handshake: 401 Unauthorized"
        assert isinstance(a.alive[0].state, Requested)
        world.permitted = True
        world.faults.clear()
        await a.pair(b)
        await both_active(a, b)


async def test_live_pair_and_own_did_are_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        await a.pair(b)
        for asker, asked, code in ((a, b, "pair-exists"), (b, a, "pair-exists"), (a, a, "identity-cloned")):
            with pytest.raises(SplError) as caught:
                await asker.pair(asked)
            assert (code_of(caught), caught.value.exit_code) == (code, 7)
        await both_active(a, b)


async def test_the_new_address_of_a_known_peer_is_adopted_and_makes_no_second_pair(tmp_path: Path) -> None:
    """Both sides moved, so neither finds the other by itself; one operator knows where the peer is."""
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        await both_active(a, b)
        world.faults.append(lambda call: None)
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: "poll" in world.lost)
        world.faults.clear()
        steps = await a.pair(b)
        assert names(steps) == ["manifest", "verified", "moved", "active"]
        assert steps[2]["url"] == "http://127.0.0.1:9555"
        assert [pair.url for pair in a.alive] == ["http://127.0.0.1:9555"]
        assert a.alive[0].transitions[-1][3] == "peer_manifest_changed"


@pytest.mark.parametrize("name", ["pinned DID", "pinned key"])
async def test_pins_of_the_operator_hold(tmp_path: Path, name: str) -> None:
    async with two(tmp_path) as (_, a, b):
        pins = {"expect_did": a.did} if name == "pinned DID" else {"expect_key": "abandon " * 5 + "ability"}
        with pytest.raises(SplError) as caught:
            await a.pair(b, **pins)
        assert (code_of(caught), caught.value.exit_code) == ("manifest-did-mismatch", 10)
        assert not a.pairs


async def test_no_strict_goes_by_the_peers_clock(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        b.pairing.pairs.now_ms = lambda: world.now_ms() + 600_000
        with pytest.raises(SplError) as caught:
            await a.pair(b)
        assert code_of(caught) == "clock-skew"
        assert names(await a.pair(b, strict=False)) == STEPS


@pytest.mark.parametrize("approval", ["auto", "manual"])
@pytest.mark.parametrize("first", ["lower", "higher"])
async def test_two_that_ask_at_once_end_as_one_pair(tmp_path: Path, approval: str, first: str) -> None:
    """Both records stand before either request arrives; then one arrives before the other."""
    world = World(tmp_path)
    nodes = sorted((world.node(name, approval=approval) for name in ("alice", "bob")), key=lambda node: node.did)
    low, high = nodes if first == "lower" else reversed(nodes)

    def hold(call: Call) -> bytes | None:
        if call.path != "/v1/federation/pair" or call.answer:
            return call.body
        ready = low.pairs and high.pairs
        mine = call.origin == high.url
        return call.body if ready and (mine or passed) else None

    passed: list[bool] = []
    world.faults.append(hold)
    try:
        both = asyncio.gather(low.pair(high), high.pair(low))
        await until(lambda: any(call.answer for call in world.calls if call.path == "/v1/federation/pair"))
        passed.append(True)
        ends = await both
        assert [names(steps)[-1] for steps in ends] == ["active", "active"]
        await both_active(low, high)
        lower = min(low, high, key=lambda node: node.did)
        assert lower.alive[0].initiator
        over = [pair.reason for node in (low, high) for pair in node.pairs if pair.ended]
        assert set(over) == {"superseded"}
    finally:
        await world.close()


async def test_asking_approves_what_the_peer_asked_before(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        await b.pair(a)
        await both_active(a, b)
        assert a.alive[0].initiator


@pytest.mark.parametrize(("options", "start"), [({}, "present"), ({"backfill": True}, "beginning")])
async def test_pairing_again_starts_where_the_operator_says(
    tmp_path: Path, options: dict[str, object], start: str
) -> None:
    async with two(tmp_path) as (_, a, b):
        await a.pair(b, from_now=True)
        assert a.alive[0].start == "present"
        await a.pairing.revoke(a.alive[0].pair_id)
        await until(lambda: not b.alive)
        await b.pair(a, wait_ms=0, **options)
        await until(lambda: a.alive)
        await a.pairing.decide_request(a.alive[0].pair_id, "approve")
        await both_active(a, b)
        assert a.alive[0].start == b.alive[0].start == start


@pytest.mark.parametrize("path", ["/v1/federation/pair", "poll", "confirm"])
@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("approval", ["auto", "manual"])
async def test_a_lost_message_heals(tmp_path: Path, path: str, answer: bool, approval: str) -> None:
    async with two(tmp_path, approval) as (world, a, b):
        lost: list[Call] = []

        def lose(call: Call) -> bytes | None:
            if call.path.endswith(path) and call.answer is answer and len(lost) < 2:
                lost.append(call)
                return None
            return call.body

        world.faults.append(lose)
        watching = asyncio.create_task(a.pair(b))
        if approval == "manual":
            await until(lambda: b.alive and (lost or path != "poll"))
            await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        assert names(await watching)[-1] == "active"
        await both_active(a, b)
        assert lost or (path, approval) == ("poll", "auto")
        assert len(a.pairs) == len(b.pairs) == 1


async def test_what_was_granted_is_sent_again_byte_for_byte(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        grants: list[object] = []

        def lose(call: Call) -> bytes | None:
            if not call.answer or "well-known" in call.path:
                return call.body
            value = json.loads(call.body)
            answer = value["message"].get("answer") if value.keys() == {"message", "signature"} else None
            if answer is not None:
                grants.append(answer)
                return None if len(grants) < 3 else call.body
            return call.body

        world.faults.append(lose)
        await a.pair(b)
        assert len(grants) == 3
        assert grants[0] == grants[1] == grants[2]
        assert len(b.home.views.tokens) == 1


async def test_a_peer_that_forgot_is_asked_again(tmp_path: Path) -> None:
    """A signed 404 to a poll: the responder lost its home's last writes, or remembered only the nonce."""
    async with two(tmp_path, "manual") as (_world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: a.alive and isinstance(a.alive[0].state, Waiting))
        first = a.alive[0].pair_id
        set_views(b.home, pairs={})
        set_views(b.home, requests={})
        await until(lambda: b.alive)
        assert b.alive[0].pair_id != first
        await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        await until(lambda: a.alive and a.alive[0].phase is Phase.ACTIVE)
        assert a.home.views.pairs[first].reason == "lost"


async def test_options_that_contradict_are_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        for options, code in (
            (PairOptions(backfill=True, from_now=True), "usage"),
            (PairOptions(namespaces=("..",)), "bad-field"),
            (PairOptions(mode="sometimes"), "bad-field"),
        ):
            with pytest.raises(SplError) as caught:
                async for _ in a.pairing.pair(b.url, options):
                    pass
            assert code_of(caught) == code
        assert not a.pairs
