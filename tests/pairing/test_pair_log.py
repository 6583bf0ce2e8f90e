"""The pair log is told to the pair's peer and to nobody else, in every state of the pair, without secrets."""

import asyncio
import json
from pathlib import Path

import pytest

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity import message
from spl.core.keys import SecretKey
from spl.core.pair import diff
from spl.pairing.pair_log import PairLog
from tests.pair_world import Call, paired, two
from tests.waiting import DEADLINE_S, until


async def agreed(ours: PairLog, pair_id: str) -> list[diff.Transition]:
    """Return the peer's history once ours tells the same: what is on its way to one side comes a moment later."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            [answer] = await ours.ask(pair_id)
            heard = diff.transitions_from_json(answer["transitions"])
            if diff.gaps(ours.own(pair_id), heard) == []:
                return heard


async def test_both_sides_tell_the_same_story(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        ours, theirs = a.pairing.history, b.pairing.history
        await a.pairing.pause(pair_id)
        await until(lambda: b.alive[0].paused_by == "peer")
        heard = await agreed(ours, pair_id)
        assert heard == theirs.own(pair_id)
        *_, last = heard
        assert last.by == a.did
        assert last.state == "paused: paused by peer"
        await a.pairing.revoke(pair_id)
        await until(lambda: not b.alive)
        await agreed(ours, pair_id)


async def test_a_transition_that_one_side_lacks_is_marked(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        ours, theirs = a.pairing.history, b.pairing.history
        world.faults.append(lambda call: None)
        await a.pairing.pause(pair_id)
        await b.pairing.pause(pair_id)
        await b.pairing.resume(pair_id)
        found = diff.gaps(ours.own(pair_id), theirs.own(pair_id))
        assert {(gap.side, gap.transition.event) for gap in found} == {
            (0, f"pause by {a.did}"), (1, f"pause by {b.did}"), (1, f"resume by {b.did}")
        }  # fmt: skip


async def test_nothing_secret_is_told(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_world, a, b, pair_id):
        [answer] = await a.pairing.history.ask(pair_id)
        text = json.dumps(answer)
        pair = b.alive[0]
        assert pair.issued_by_us is not None
        assert not [word for word in ("tok_", "spl_", "sealed", "hash", pair.issued_by_us.token_id) if word in text]


async def test_nobody_else_is_told(tmp_path: Path) -> None:
    """Another signer, another audience, another pair, an old message, another purpose: one refusal each."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        key = a.pairing.pairs.identity.key
        good = message.head(a.did, b.did, pair_id, world.now_ms(), "0" * 32)

        async def code(purpose: str = "log", signer: SecretKey = key, path: str = pair_id, **changes: object) -> str:
            try:
                body = canon.encode(message.sign(purpose, {**good, **changes}, signer))
                await b.pairing.answer("log", path, body, "10.0.0.1")
            except SplError as exc:
                return exc.code
            return ""

        assert await code() == ""
        assert await code(signer=SecretKey(b"x" * 32)) == "message-signature"
        assert await code("pair-poll") == "message-signature"
        assert await code(audience=a.did) == "message-audience"
        assert await code(path="pair_00000000") == await code(pair_id="pair_00000000") == "message-malformed"
        assert await code(path="pair_00000000", pair_id="pair_00000000") == "pair-unknown"
        assert await code(issued_at="2020-01-01T00:00:00.000Z") == "clock-skew"
        with pytest.raises(SplError) as caught:
            await b.pairing.answer("log", pair_id, b"[", "10.0.0.1")
        assert caught.value.code == "bad-json"


async def test_a_peer_that_lies_or_is_away_is_named(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        ours = a.pairing.history

        def answers(change: bytes | None) -> None:
            def lie(call: Call) -> bytes | None:
                if not (call.answer and call.path.endswith("/log")):
                    return call.body
                return call.body.replace(b"pair_active", change) if change else b"{"

            world.faults[:] = [lie]

        answers(b"pair_paused")
        assert [found["code"] for found in await ours.ask()] == ["message-signature"]
        answers(None)
        assert [found["code"] for found in await ours.ask()] == ["answer-malformed"]
        world.faults[:] = [lambda call: None]
        [found] = await ours.ask(pair_id)
        assert (found["code"], found["peer_did"]) == ("disconnected", b.did)
        assert await ours.ask("pair_00000000") == []


async def test_a_stranger_whose_request_was_not_approved_is_not_asked(tmp_path: Path) -> None:
    """Nobody is dialled before an approval, also not for a comparison."""
    async with two(tmp_path, "manual") as (world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        asked = len([call for call in world.calls if call.origin == a.url])
        assert await b.pairing.history.ask() == []
        assert len([call for call in world.calls if call.origin == a.url]) == asked


async def test_a_stranger_whose_request_was_not_approved_gets_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer reads the records of all pairs, and a stranger may ask once a second."""
    async with two(tmp_path, "manual") as (world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        pair_id, reads = b.alive[0].pair_id, list[str]()
        monkeypatch.setattr(b.pairing.history, "own", reads.append)
        head = message.head(a.did, b.did, pair_id, world.now_ms(), "0" * 32)
        body = canon.encode(message.sign("log", head, a.pairing.pairs.identity.key))
        with pytest.raises(SplError) as caught:
            await b.pairing.answer("log", pair_id, body, "10.0.0.1")
        assert (caught.value.code, reads) == ("pair-unknown", [])
