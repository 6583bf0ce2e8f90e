"""The pair log is told to the pair's peer and to nobody else, in every state of the pair, without secrets."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity import message
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.pair import diff
from spl.home.home import random_bytes
from spl.net.address import ReachError
from spl.net.client import Client, DialPolicy, Reply
from spl.pairing.pair_log import PairLog
from tests.pair_world import Node, World, both_active, two

LIMITS = Limits()


@dataclass
class Wire:
    """Carries questions to the histories of other nodes; `change` may forge the answers."""

    histories: dict[str, PairLog]
    change: Callable[[bytes], bytes] = lambda body: body
    down: bool = False

    async def fetch(self, method: str, url: str, *, body: bytes, **_: Any) -> Reply:
        if self.down:
            raise ReachError("connect")
        origin, _mark, rest = url.partition("/v1/federation/pair/")
        try:
            answer = self.histories[origin].answer(rest.removesuffix("/log"), body)
            return Reply(200, {}, self.change(json.dumps(answer).encode()), "127.0.0.1")
        except SplError as exc:
            return Reply(exc.status, {}, json.dumps(exc.to_json()).encode(), "127.0.0.1")


def histories(world: World, a: Node, b: Node) -> tuple[Wire, PairLog, PairLog]:
    wire = Wire({})
    for node in (a, b):
        wire.histories[node.url] = PairLog(
            node.home.writer, node.home.vault, cast(Client, wire), LIMITS, dial=lambda pair: DialPolicy(),
            now_ms=world.now_ms, random_bytes=random_bytes,
        )  # fmt: skip
    return wire, wire.histories[a.url], wire.histories[b.url]


async def test_both_sides_tell_the_same_story(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        pair_id = await both_active(a, b)
        _, ours, theirs = histories(world, a, b)
        await a.pairing.pause(pair_id)
        await b.until(lambda: b.alive[0].paused_by == "peer")
        [answer] = await ours.ask(pair_id)
        heard = diff.transitions_from_json(answer["transitions"])
        assert heard == theirs.own(pair_id)
        assert diff.gaps(ours.own(pair_id), heard) == []
        assert heard[-1].by == a.did
        assert heard[-1].state == "paused: paused by peer"
        await a.pairing.revoke(pair_id)
        await b.until(lambda: not b.alive)
        [answer] = await ours.ask()
        assert diff.gaps(ours.own(pair_id), diff.transitions_from_json(answer["transitions"])) == []


async def test_a_transition_that_one_side_lacks_is_marked(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        pair_id = await both_active(a, b)
        _, ours, theirs = histories(world, a, b)
        world.faults.append(lambda call: None)
        await a.pairing.pause(pair_id)
        await b.pairing.pause(pair_id)
        await b.pairing.resume(pair_id)
        found = diff.gaps(ours.own(pair_id), theirs.own(pair_id))
        assert {(gap.side, gap.transition.event) for gap in found} == {
            (0, f"pause by {a.did}"), (1, f"pause by {b.did}"), (1, f"resume by {b.did}")
        }  # fmt: skip


async def test_nothing_secret_is_told(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        pair_id = await both_active(a, b)
        _, ours, _ = histories(world, a, b)
        [answer] = await ours.ask(pair_id)
        text = json.dumps(answer)
        pair = b.alive[0]
        assert pair.issued_by_us is not None
        assert not [word for word in ("tok_", "spl_", "sealed", "hash", pair.issued_by_us.token_id) if word in text]


async def test_nobody_else_is_told(tmp_path: Path) -> None:
    """Another signer, another audience, another pair, an old message, another purpose: one refusal each."""
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        pair_id = await both_active(a, b)
        _, _, theirs = histories(world, a, b)
        key = a.pairing.pairs.identity.key
        good = message.head(a.did, b.did, pair_id, world.now_ms(), "0" * 32)

        def code(purpose: str = "log", signer: SecretKey = key, path: str = pair_id, **changes: object) -> str:
            try:
                theirs.answer(path, canon.encode(message.sign(purpose, {**good, **changes}, signer)))
            except SplError as exc:
                return exc.code
            return ""

        assert code() == ""
        assert code(signer=SecretKey(b"x" * 32)) == "message-signature"
        assert code("pair-poll") == "message-signature"
        assert code(audience=a.did) == "message-audience"
        assert code(signer_=1, path="pair_00000000") == code(pair_id="pair_00000000") == "pair-unknown"
        assert code(issued_at="2020-01-01T00:00:00.000Z") == "clock-skew"
        with pytest.raises(SplError) as caught:
            theirs.answer(pair_id, b"[")
        assert caught.value.code == "bad-json"


async def test_a_peer_that_lies_or_is_away_is_named(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        pair_id = await both_active(a, b)
        wire, ours, _ = histories(world, a, b)
        wire.change = lambda body: body.replace(b"pair_active", b"pair_paused")
        assert [found["code"] for found in await ours.ask()] == ["message-signature"]
        wire.change = lambda body: b"{"
        assert [found["code"] for found in await ours.ask()] == ["bad-json"]
        wire.down = True
        [found] = await ours.ask(pair_id)
        assert (found["code"], found["peer_did"]) == ("connect", b.did)
        assert await ours.ask("pair_00000000") == []


async def test_questions_are_bounded_by_address(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        _, ours, _ = histories(world, a, b)
        for _ in range(LIMITS.handshakes_per_minute):
            ours.admit("10.0.0.1")
        with pytest.raises(SplError) as caught:
            ours.admit("10.0.0.1")
        assert caught.value.code == "rate-limited"
        ours.admit("10.0.0.2")
