"""What a side keeps of its own and of its peer's words: nothing old, nothing forged, everything durable."""

import json
from pathlib import Path
from typing import Any

import pytest

from spl.core import canon
from spl.core.consent import ConsentError, Grant
from spl.core.errors import SplError
from spl.core.identity import message
from spl.core.pair import handshake
from spl.home.writes import LINE_BYTES
from spl.pairing.grants import RECEIVED_BYTES_MAX
from tests.counting import calls_of
from tests.pair_world import Node, code_of
from tests.pairing.test_grants_handover import consent_calls, grants_of, scene
from tests.waiting import until


async def post(node: Node, pair_id: str, value: object) -> tuple[int, dict[str, Any]]:
    try:
        return await node.pairing.answer("consent", pair_id, canon.encode(value), "elsewhere")
    except SplError as exc:
        return exc.status, exc.to_json()


def spoken(a: Node, b: Node, pair_id: str, **said: object) -> dict[str, object]:
    """Return a message of a to b about grants."""
    pair = a.home.views.pairs[pair_id]
    fields = handshake.word_fields(pair, a.did, a.world.now_ms(), a.pairing.pairs.nonce(), **said)
    return message.sign("consent", fields, a.pairing.pairs.identity.key)


async def test_old_and_foreign_statements_are_refused_and_counted(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        handover, old = a.pairing.handover, Grant("music", "music", 1, 1).to_json()
        await handover.set_grant(pair_id, "music", "music", 1)
        replayed = consent_calls(world)[0].body
        await handover.set_grant(pair_id, "music", "music", None)
        before = grants_of(b, pair_id)
        assert (await post(b, pair_id, json.loads(replayed)))[1]["code"] == "MESSAGE_REPLAYED"
        status, answer = await post(b, pair_id, spoken(a, b, pair_id, grants=[old], held={}))
        assert (status, answer["code"]) == (409, "CONSENT_STALE")
        assert b.pairing.handover.grants.stale[pair_id] == 1
        other = spoken(a, b, pair_id, grants=[{**old, "version": 2}], held={})
        assert (await post(b, pair_id, other))[1]["code"] == "CONSENT_STALE", "another word of the same version"
        for said in ({}, {"grants": 7}, {"grants": [{**old, "level": "L9"}]}, {"grants": [old, old]}):
            status, answer = await post(b, pair_id, spoken(a, b, pair_id, held={}, **said))
            assert (status, answer["code"]) == (400, "BAD_FIELD")
            assert answer["statement"]["message"]["state"] == "refused"
        forged = message.sign("consent", spoken(a, b, pair_id, grants=[])["message"], b.pairing.pairs.identity.key)
        assert (await post(b, pair_id, forged))[1]["code"] == "MESSAGE_SIGNATURE"
        poll = spoken(a, b, pair_id, grants=[])
        assert (await post(b, "pair_00000000", poll))[1]["code"] == "MESSAGE_MALFORMED"
        elsewhere = {**poll["message"], "pair_id": "pair_00000000"}
        found = await post(b, "pair_00000000", message.sign("consent", elsewhere, a.pairing.pairs.identity.key))
        assert (found[0], found[1]["message"]["state"]) == (404, "unknown")
        assert grants_of(b, pair_id) == before


async def test_words_that_we_did_not_sign_are_not_taken_for_ours(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        await a.pairing.handover.set_grant(pair_id, "music", "music", 1)
        wide = [Grant("music", "music", 0, 9).to_json()]
        pair, grants = a.home.views.pairs[pair_id], a.pairing.handover.grants
        by_b = message.head(a.did, b.did, pair_id, world.now_ms(), a.pairing.pairs.nonce())
        forged = message.sign("consent", {**by_b, "grants": wide}, b.pairing.pairs.identity.key)
        mine = spoken(b, a, pair_id, grants=wide)
        for evidence in (forged, mine, 7, {}, {"message": {}, "signature": ""}):
            assert grants.adopt(pair, evidence) is False
        assert grants_of(a, pair_id).ours["music"] == Grant("music", "music", 1, 1)


async def test_what_was_withdrawn_after_a_home_was_set_back_does_not_open_again(tmp_path: Path) -> None:
    """The peer brings a wider word of ours that we lost: the narrower one stands, under a version after both."""
    async with scene(tmp_path) as (_world, a, b, pair_id):
        pair, grants = a.home.views.pairs[pair_id], a.pairing.handover.grants
        for name, lost_version in (("music", 2), ("projects", 5)):
            await a.pairing.handover.set_grant(pair_id, name, name, 2)
            wider = spoken(a, b, pair_id, grants=[Grant(name, name, 0, lost_version).to_json()])
            assert grants.set_grant(pair_id, name, name, None)
            assert grants.adopt(pair, wider)
            assert grants_of(a, pair_id).ours[name] == Grant(name, name, None, lost_version + 1)
            assert name in grants_of(a, pair_id).waiting
            assert not grants.adopt(pair, wider)


async def test_a_key_that_was_told_to_be_compromised_says_nothing_for_us(tmp_path: Path) -> None:
    async with scene(tmp_path) as (_world, a, b, pair_id):
        said = [Grant("music", "music", 0, 9).to_json()]
        stolen = spoken(a, b, pair_id, grants=said)
        await a.pairing.rotate_identity("compromised")
        grants = a.pairing.handover.grants
        assert grants.adopt(a.home.views.pairs[pair_id], stolen) is False
        assert "music" not in grants_of(a, pair_id).ours
        retired = spoken(a, b, pair_id, grants=said)
        await a.pairing.rotate_identity("retired")
        assert grants.adopt(a.home.views.pairs[pair_id], retired) is True


async def test_words_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, _b, pair_id):
        handover, last = a.pairing.handover, a.home.store.last_seq
        for args, code in (
            (("lost", "lost", 1), "namespace-rejected"), (("music/lost", "music", 1), "namespace-rejected"),
            (("default", "music", 1), "grant-conflict"), (("music", "music", None), "not-found"),
            (("music", "No", 1), "bad-field"),
        ):  # fmt: skip
            with pytest.raises(SplError) as caught:
                await handover.set_grant(pair_id, *args)
            assert code_of(caught) == code
        with pytest.raises(SplError) as caught:
            await handover.set_grant(pair_id, "music/lost", "music", 1)
        assert caught.value.hint == "spl namespace create music/lost"
        assert (a.home.store.last_seq, consent_calls(world)) == (last, [])


async def test_a_pair_that_is_not_agreed_yet_takes_no_grant(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, _b, _pair_id):
        carol = world.node("carol", approval="manual")
        await a.pair(carol, wait_ms=0)
        waiting = next(pair for pair in a.alive if pair.peer_did == carol.did)
        with pytest.raises(SplError) as caught:
            await a.pairing.handover.set_grant(waiting.pair_id, "music", "music", 1)
        assert code_of(caught) == "pair-state-conflict"
        await until(lambda: carol.alive)
        status, answer = await post(carol, waiting.pair_id, spoken(a, carol, waiting.pair_id, grants=[]))
        assert (status, answer["message"]["state"]) == (202, "pending")


async def test_the_peers_signed_message_stands_beside_its_words(tmp_path: Path) -> None:
    async with scene(tmp_path) as (_world, a, b, pair_id):
        await a.pairing.handover.set_grant(pair_id, "music", "x", 1)
        rows = b.home.store.index.after("t:th_consent", 0, 10)
        [body] = [json.loads(raw)["record"]["body"] for raw in b.home.store.payloads(rows)]
        assert body["grant"] == Grant("music", "x", 1, 1).to_json()
        fields = message.verify("consent", body["statement"], a.pairing.pairs.identity.key.public)
        assert fields["grants"] == [body["grant"]]


async def test_the_last_statement_is_read_alone_however_many_there_are(tmp_path: Path) -> None:
    """Reading all of the thread for each outdated message held up the steps of every pair."""
    async with scene(tmp_path) as (_world, a, b, pair_id):
        statements: list[Any] = []

        async def say(count: int) -> None:
            for _ in range(count):
                version = len(statements) + 1
                statements.append(spoken(a, b, pair_id, grants=[Grant("music", "music", 1, version).to_json()]))
                assert (await post(b, pair_id, statements[-1]))[0] == 200

        async def cost() -> int:
            """Return the calls that one outdated statement takes, on the thread of the steps."""
            grants, pair = b.pairing.handover.grants, b.home.views.pairs[pair_id]
            found: list[object] = []

            def refused() -> None:
                with pytest.raises(ConsentError) as caught:
                    grants.take(pair, {"grants": []}, None)
                found.append(caught.value.facts["evidence"])

            calls = await b.pairing.stepper.do(calls_of, refused)
            assert found == [statements[-1]]
            return calls

        await say(2)
        few = await cost()
        await say(20)
        assert await cost() < few + 20, "the cost grows with the statements"
        await b.restart()
        assert await cost() < 2 * few


async def test_grants_that_change_without_end_are_refused_until_there_is_room(tmp_path: Path) -> None:
    """All namespaces that a statement holds, each time under the next version; what is refused is taken later."""
    async with scene(tmp_path) as (world, a, b, pair_id):
        names = [f"n{number}" for number in range(64)]

        async def hand_over(version: int) -> tuple[int, dict[str, Any]]:
            grants = [Grant(name, name, version % 3 + 1, version).to_json() for name in names]
            return await post(b, pair_id, spoken(a, b, pair_id, grants=grants, held={}))

        replies = [await hand_over(version) for version in range(1, 41)]
        taken = sum(status == 200 for status, _ in replies)
        most = RECEIVED_BYTES_MAX // (64 * LINE_BYTES)
        assert 5 <= taken <= most < len(replies)
        status, answer = replies[-1]
        assert (status, answer["code"]) == (429, "RATE_LIMITED")
        assert "statement" not in answer, "a signed refusal would be final"
        assert len(b.home.store.index.after("t:th_consent", 0, 10_000)) == 64 * taken
        world.time_ms += answer["retry_after_s"] * 1000
        assert (await hand_over(41))[0] == 200
        assert grants_of(b, pair_id).theirs["n63"].version == 41


async def test_outdated_statements_without_end_are_one_line_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path) as (_world, a, b, pair_id):
        for version in (2, *([1] * 30)):
            await post(b, pair_id, spoken(a, b, pair_id, grants=[Grant("music", "music", 1, version).to_json()]))
        assert b.pairing.handover.grants.stale[pair_id] == 30
        assert 1 <= sum(each.message == "consent.stale" for each in caplog.records) < 15
