"""What the answering side takes and refuses: hostile requests, limits, the policies of approval."""

import asyncio
import json
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.identity import message
from spl.core.limits import Limits
from spl.core.pair.pair import Phase
from spl.core.pair.state import Approved, Asked
from tests.pair_world import Call, Node, World, both_active, code_of, names, paired, two
from tests.store_kit import set_views
from tests.waiting import until


@pytest.mark.parametrize(("approval", "permitted", "code"), [
    ("closed", True, "handshake-closed"), ("auto", False, "handshake-401"),
])  # fmt: skip
async def test_a_peer_that_refuses_says_so_signed(tmp_path: Path, approval: str, permitted: bool, code: str) -> None:
    async with two(tmp_path, approval) as (world, a, b):
        world.permitted = permitted
        with pytest.raises(SplError) as caught:
            await a.pair(b)
        assert code_of(caught) == code
        assert code != "handshake-401" or caught.value.message == "peer rejected handshake: 401 Unauthorized"
        assert not a.alive
        assert not b.pairs
        assert not b.home.views.requests


async def test_more_than_auto_grants_goes_to_the_operator_whole(tmp_path: Path) -> None:
    async with two(tmp_path, "auto") as (_, a, b):
        a.register("music", "a")
        b.register("music", shared=True)
        b.register("b", "b/c")
        await a.pair(b, namespaces=("default", "music"), maps=(("a", "b/c"),), wait_ms=0)
        await until(lambda: b.alive)
        assert isinstance(b.alive[0].state, Asked)
        assert b.alive[0].maps == (("b/c", "a"),)
        await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        await both_active(a, b)
        assert a.alive[0].namespaces == b.alive[0].namespaces == ("default", "music")
        assert a.alive[0].maps == (("a", "b/c"),)
        assert set(b.home.views.tokens.values()).pop().namespaces == ("default", "music")


@pytest.mark.parametrize(("here", "named", "agreed"), [
    ("", "", "default"), ("shared", "", "default music"), ("private", "", "default"),
    ("private", "default music", "default music"), ("private", "music", "music"), ("shared", "default", "default"),
    ("archived", "", "default"),
])  # fmt: skip
async def test_an_approval_agrees_to_what_both_share_or_to_what_the_approver_names(
    tmp_path: Path, here: str, named: str, agreed: str
) -> None:
    """The initiator asks for default and all that it shares; `here` is how the responder holds music."""
    async with two(tmp_path, "manual") as (_, a, b):
        a.register("music", shared=True)
        a.register("diary")
        if here:
            b.register("music", shared=here != "private", archived=here == "archived")
        watching = asyncio.create_task(a.pair(b))
        await until(lambda: b.alive)
        assert b.alive[0].namespaces == ("default", "music")
        await b.pairing.decide_request(b.alive[0].pair_id, "approve", namespaces=named.split())
        last = (await watching)[-1]
        await both_active(a, b)
        assert a.alive[0].namespaces == b.alive[0].namespaces == tuple(agreed.split())
        assert last["namespaces"] == agreed.split()
        assert last["left_out"] == [name for name in ("default", "music") if name not in agreed.split()]


@pytest.mark.parametrize(("here", "named", "code", "hint"), [
    ("", "", "namespace-rejected", "spl namespace create --shared music"),
    ("private", "", "namespace-rejected", "spl namespace share music"),
    ("archived", "music", "namespace-rejected", "spl namespace create music"),
    ("shared", "default", "bad-field", ""),
])  # fmt: skip
async def test_an_approval_that_leaves_nothing_is_refused_and_the_request_stays(
    tmp_path: Path, here: str, named: str, code: str, hint: str
) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        a.register("music")
        if here:
            b.register("music", shared=here == "shared", archived=here == "archived")
        await a.pair(b, namespaces=("music",), wait_ms=0)
        await until(lambda: b.alive)
        pair_id = b.alive[0].pair_id
        with pytest.raises(SplError) as caught:
            await b.pairing.decide_request(pair_id, "approve", namespaces=named.split())
        assert code_of(caught) == code
        assert not hint or caught.value.hint == hint
        assert isinstance(b.alive[0].state, Asked)
        assert b.home.views.requests[pair_id].status == "pending"
        assert not b.home.views.tokens
        b.register("music", shared=True)
        await b.pairing.decide_request(pair_id, "approve")
        await both_active(a, b)


@pytest.mark.parametrize("maps", [True, False])
async def test_a_map_needs_a_usable_name_here_or_is_dropped_by_the_approver(tmp_path: Path, maps: bool) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        a.register("music")
        await a.pair(b, maps=(("music", "projects/music"),), wait_ms=0)
        await until(lambda: b.alive)
        pair_id = b.alive[0].pair_id
        with pytest.raises(SplError) as caught:
            await b.pairing.decide_request(pair_id, "approve")
        assert code_of(caught) == "namespace-rejected"
        assert caught.value.hint == "spl namespace create projects; or approve --without-maps"
        assert isinstance(b.alive[0].state, Asked)
        if maps:
            b.register("projects", "projects/music")
        await b.pairing.decide_request(pair_id, "approve", maps=maps)
        await both_active(a, b)
        assert a.alive[0].maps == ((("music", "projects/music"),) if maps else ())
        assert b.alive[0].maps == ((("projects/music", "music"),) if maps else ())


async def answers_before_approval(folder: Path, approval: str, music: str) -> list[dict[str, object]]:
    """Return the first two answers to an initiator that asks for music, without the fields that differ each time."""
    async with two(folder, approval) as (world, a, b):
        a.register("music")
        if music:
            b.register("music", shared=music == "shared")
        said: list[dict[str, object]] = []

        def hear(call: Call) -> bytes:
            if call.answer and "/v1/federation/pair" in call.path:
                said.append(json.loads(call.body)["message"])
            return call.body

        world.faults.append(hear)
        await a.pair(b, namespaces=("default", "music"), wait_ms=0)
        await until(lambda: len(said) >= 2)
        differ = ("nonce", "issued_at", "signer", "audience", "pair_id", "request_digest")
        return [{name: value for name, value in fields.items() if name not in differ} for fields in said[:2]]


@pytest.mark.parametrize("approval", ["auto", "manual"])
@pytest.mark.parametrize("music", ["", "private", "shared"])
async def test_the_answer_before_an_approval_does_not_tell_which_namespaces_exist(
    tmp_path: Path, approval: str, music: str
) -> None:
    assert await answers_before_approval(tmp_path, approval, music) == [{"status": 202, "state": "pending"}] * 2


@pytest.mark.parametrize("usable", [True, False])
async def test_a_rule_grants_private_namespaces_but_none_that_is_not_usable(tmp_path: Path, usable: bool) -> None:
    async with two(tmp_path, "manual") as (world, a, b):
        world.granted = frozenset({"default", "music"})
        a.register("music")
        if usable:
            b.register("music")
        await a.pair(b, namespaces=("default", "music"), wait_ms=60_000 if usable else 0)
        await until(lambda: b.alive)
        assert isinstance(b.alive[0].state, Asked) is not usable


async def test_two_that_ask_at_once_agree_on_what_both_asked_for(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        a.register("music", "diary")
        b.register("music", "books")
        await a.pair(b, namespaces=("default", "music", "diary"), wait_ms=0)
        await until(lambda: b.alive)
        await b.pair(a, namespaces=("books", "music"))
        await both_active(a, b)
        assert a.alive[0].namespaces == b.alive[0].namespaces == ("music",)


@pytest.mark.parametrize(("approval", "granted", "namespaces", "maps", "at_once"), [
    ("manual", "default", "default", False, True), ("manual", "default music", "music", False, True),
    ("manual", "default", "default music", False, False), ("manual", "default", "default", True, False),
    ("manual", "", "default", False, False), ("auto", "music", "music", False, True),
    ("auto", "music", "default", False, True), ("auto", "music", "default music", False, False),
])  # fmt: skip
async def test_a_rule_approves_at_most_its_own_namespaces(
    tmp_path: Path, approval: str, granted: str, namespaces: str, maps: bool, at_once: bool
) -> None:
    async with two(tmp_path, approval) as (world, a, b):
        world.granted = frozenset(granted.split())
        asked = (("a", "b"),) if maps else ()
        a.register("music", "a")
        b.register("music", "b")
        steps = await a.pair(b, namespaces=tuple(namespaces.split()), maps=asked, wait_ms=60_000 if at_once else 0)
        await until(lambda: b.alive)
        assert ("active" in names(steps)) is at_once
        assert isinstance(b.alive[0].state, Asked) is not at_once
        assert b.alive[0].namespaces == tuple(namespaces.split()), "more than the rule grants waits whole"


async def test_a_rule_opens_no_closed_instance(tmp_path: Path) -> None:
    async with two(tmp_path, "closed") as (world, a, b):
        world.granted = frozenset({"default"})
        with pytest.raises(SplError) as caught:
            await a.pair(b)
        assert code_of(caught) == "handshake-closed"


async def a_request(world: World, a: Node, b: Node) -> dict[str, object]:
    """Return a sound request of a to b that never arrived."""
    kept: list[bytes] = []

    def take(call: Call) -> bytes | None:
        if call.path == "/v1/federation/pair" and not call.answer:
            kept.append(call.body)
            return None
        return call.body

    world.faults.append(take)
    await _begin(a, b, lambda: bool(kept))
    world.faults.remove(take)
    await a.end()
    found: dict[str, object] = json.loads(kept[0])
    return found


async def _begin(a: Node, b: Node, test: object) -> None:
    watching = asyncio.create_task(a.pair(b))
    await until(test)  # type: ignore[arg-type]
    watching.cancel()
    await asyncio.wait([watching])


def resigned(a: Node, value: dict[str, object], **changes: object) -> bytes:
    """Return the request changed and signed by its sender."""
    fields = {**value["message"], **changes}  # type: ignore[dict-item]
    assert a.home.vault.identity is not None
    return json.dumps(message.sign("pair-request", fields, a.home.vault.identity.key)).encode()


@pytest.mark.parametrize("name", [
    "tampered", "audience", "old", "early", "form", "namespaces", "token", "pair_id", "not json", "huge", "endpoint",
])  # fmt: skip
async def test_a_bad_request_is_refused_and_stores_nothing(tmp_path: Path, name: str) -> None:
    async with two(tmp_path) as (world, a, b):
        sound = await a_request(world, a, b)
        body, code = await bad(name, world, a, b, sound)
        before = b.home.store.last_seq, b.home.vault.names()
        try:
            status, answer = await b.pairing.receive(body, "1.2.3.4")
        except SplError as exc:
            status, answer = exc.status, exc.to_json()
        assert status >= 400
        assert answer["code"] == code
        assert (b.home.store.last_seq, b.home.vault.names()) == before
        if name not in ("old", "early"):
            status, _ = await b.pairing.receive(json.dumps(sound).encode(), "1.2.3.4")
            assert status == 200


async def bad(name: str, world: World, a: Node, b: Node, sound: dict[str, object]) -> tuple[bytes, str]:
    fields: dict[str, object] = sound["message"]  # type: ignore[assignment]
    match name:
        case "tampered":
            return json.dumps({**sound, "message": {**fields, "mode": "on-demand"}}).encode(), "MESSAGE_SIGNATURE"
        case "audience":
            other = b.did.replace("bob", "rob")
            return resigned(a, sound, audience=other, responder_did=other), "MESSAGE_MALFORMED"
        case "old" | "early":
            world.time_ms += 301_000 if name == "old" else -301_000
            return json.dumps(sound).encode(), "CLOCK_SKEW"
        case "form":
            return resigned(a, sound, mode=7), "BAD_FIELD"
        case "namespaces":
            return resigned(a, sound, namespaces=["../etc"]), "BAD_FIELD"
        case "token":
            return resigned(a, sound, token="AAAA"), "SEALED_TOKEN"
        case "pair_id":
            return resigned(a, sound, pair_id="pair_00000000"), "MESSAGE_MALFORMED"
        case "not json":
            return b"{", "BAD_JSON"
        case "endpoint":
            return resigned(a, sound, endpoint="http://10.0.0.1/v1/federation/pair"), "MESSAGE_MALFORMED"
    return b" " * (64 * 1024 + 1), "BODY_TOO_LARGE"


async def test_a_request_for_somebody_else_is_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        c = world.node("carol")
        sound = await a_request(world, a, b)
        with pytest.raises(SplError) as caught:
            await c.pairing.receive(json.dumps(sound).encode(), "1.2.3.4")
        assert code_of(caught) == "message-audience"
        assert not c.pairs


async def test_a_replayed_request_mints_nothing(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        body = json.dumps(await a_request(world, a, b)).encode()
        assert (await b.pairing.receive(body, "1.2.3.4"))[0] == 200
        tokens, seq = dict(b.home.views.tokens), b.home.store.last_seq
        status, answer = await b.pairing.receive(body, "1.2.3.4")
        assert (status, answer["code"]) == (410, "PAIR_REQUEST_SEEN")
        await b.restart()
        status, answer = await b.pairing.receive(body, "1.2.3.4")
        assert (status, answer["code"]) == (410, "PAIR_REQUEST_SEEN")
        assert (b.home.views.tokens, b.home.store.last_seq) == (tokens, seq)


async def test_a_nonce_outlives_the_memory_of_its_pair(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        body = json.dumps(await a_request(world, a, b)).encode()
        assert (await b.pairing.receive(body, "1.2.3.4"))[0] == 200
        set_views(b.home, pairs={})
        seq = b.home.store.last_seq
        status, answer = await b.pairing.receive(body, "1.2.3.4")
        assert (status, answer["code"]) == (410, "PAIR_REQUEST_SEEN")
        assert b.home.store.last_seq == seq


async def test_a_fault_of_ours_is_no_signed_word_on_the_request(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        body = json.dumps(await a_request(world, a, b)).encode()
        b.disk.dead = True
        with pytest.raises(SplError) as caught:
            await b.pairing.receive(body, "1.2.3.4")
        assert caught.value.status >= 500


async def test_pending_requests_are_bounded(tmp_path: Path) -> None:
    limits = Limits(requests_pending=3, requests_per_address=2, handshakes_per_minute=100_000)
    async with two(tmp_path, "manual", limits) as (world, a, b):
        askers = [a, *(world.node(f"n{number}") for number in range(3))]
        bodies = [json.dumps(await a_request(world, node, b)).encode() for node in askers]
        places = ["1.1.1.1", "1.1.1.1", "1.1.1.1", "2.2.2.2"]
        found = [(await b.pairing.receive(body, place))[0] for body, place in zip(bodies, places, strict=True)]
        assert found == [202, 202, 429, 202]
        seq = b.home.store.last_seq
        assert (await b.pairing.receive(bodies[2], "3.3.3.3"))[0] == 429
        assert b.home.store.last_seq == seq


async def test_messages_of_an_address_are_rate_limited(tmp_path: Path) -> None:
    async with two(tmp_path, "auto", Limits(handshakes_per_minute=2)) as (_, _a, b):
        codes = []
        for _ in range(3):
            with pytest.raises(SplError) as caught:
                await b.pairing.receive(b"{", "1.2.3.4")
            codes.append(code_of(caught))
        assert codes == ["bad-json", "bad-json", "rate-limited"]


async def test_an_old_word_of_the_peer_changes_nothing(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.pause(pair_id)
        await until(lambda: b.alive[0].paused_by == "peer")
        said = [call for call in world.calls if call.path.endswith("/poll") and not call.answer]
        await a.pairing.resume(pair_id)
        await both_active(a, b)
        await b.restart()
        await b.pairing.answer("poll", pair_id, said[-1].body, "1.2.3.4")
        assert b.alive[0].phase is Phase.ACTIVE


async def test_first_use_of_the_token_confirms(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        world.faults.append(lambda call: None if call.path.endswith("/confirm") else call.body)
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive and isinstance(b.alive[0].state, Approved))
        await b.pairing.contact(b.alive[0].pair_id)
        assert b.alive[0].phase is Phase.ACTIVE
        world.faults.clear()
        await both_active(a, b)
