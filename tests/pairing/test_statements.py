"""What a peer says of itself counts at once, at a bounded rate, and its last word wins."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from spl.core import canon
from spl.core.identity import message
from spl.core.pair import handshake
from spl.core.pair.pair import Phase
from spl.home.views import THREAD_PAIRS, records_about
from spl.pairing.statements import CHANGE_EVERY_S, CHANGES_MAX
from tests.pair_world import Node, paired
from tests.waiting import until

FLOOD = 60
FEW = FLOOD // 2
"""The world's clock moves with each look at it, so more than CHANGES_MAX may get their turn during a flood."""
TURN_MS = int(CHANGE_EVERY_S * 1000) + 1000


async def say(a: Node, b: Node, state: str, **said: object) -> int:
    """Let b hear a's signed state of their pair; return the status of the answer."""
    pair = next(pair for pair in a.pairs if not pair.ended)
    own, now_ms, nonce = a.pairing.pairs.identity, a.world.now_ms(), a.pairing.pairs.nonce()
    fields = {**handshake.poll_fields(pair, own.did, now_ms, nonce), "state": state, **said}
    body = canon.encode(message.sign("pair-poll", fields, own.key))
    return (await b.pairing.answer("poll", pair.pair_id, body, "10.0.0.1"))[0]


def changes(node: Node, pair_id: str, *kinds: str) -> int:
    """Return how many records of these kinds a node has of the pair."""
    bodies = (record["body"] for record in records_about(node.home.store, THREAD_PAIRS, node.did, pair_id))
    return sum(str(body["kind"]).removeprefix("syncropel.federation.") in kinds for body in bodies)


def flips(node: Node, pair_id: str) -> int:
    return changes(node, pair_id, "pair_pause.v1", "pair_resume.v1")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "spl.federation"):
        yield caplog


async def test_pauses_and_resumptions_without_end_are_few_records_and_fewer_lines(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    async with paired(tmp_path) as (_world, a, b, pair_id):
        for number in range(FLOOD):
            assert await say(a, b, "active" if number % 2 else "paused") == 200
        assert CHANGES_MAX <= flips(b, pair_id) < FEW
        told = [each.message for each in lines.records if each.message in ("pair.paused", "pair.resumed")]
        assert {"pair.paused", "pair.resumed"} == set(told)
        assert len(told) < CHANGES_MAX, "the others of the minute are only counted"


@pytest.mark.parametrize("last", ["paused", "active"])
async def test_the_last_word_wins_once_its_turn_has_come(tmp_path: Path, last: str) -> None:
    """Also without another message, as from a peer that went away; what it replaced never takes effect."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        first = "active" if last == "paused" else "paused"
        for _ in range(FLOOD):
            await say(a, b, first)
            await say(a, b, last)
        said = flips(b, pair_id)
        world.time_ms += TURN_MS
        await until(lambda: b.alive[0].paused_by == ("peer" if last == "paused" else ""))
        for _ in range(3):
            world.time_ms += TURN_MS
            await say(a, b, last)
        assert flips(b, pair_id) <= said + 1


async def test_the_end_of_a_pair_waits_for_no_turn(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        for number in range(FLOOD):
            await say(a, b, "active" if number % 2 else "paused")
        assert await say(a, b, "revoked", reason="over") == 200
        assert b.home.views.pairs[pair_id].phase is Phase.REVOKED
        world.time_ms += TURN_MS
        await b.jobs_done(pair_id)
        assert b.home.views.pairs[pair_id].reason == "revoked by peer: over"


async def test_doubt_without_end_is_few_records(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, _a, b, pair_id):
        world.faults.append(lambda call: None)
        for number in range(FLOOD):
            b.pairing.on_trouble(pair_id, "connect" if number % 2 else "dns")
            await b.jobs_done(pair_id)
        degraded = changes(b, pair_id, "pair_degraded.v1")
        assert 1 <= degraded < FEW


async def test_what_a_peer_changes_counts_as_brought_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charged = list[tuple[str, int]]()
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        await b.jobs_done(pair_id)
        monkeypatch.setattr(b.pairing.pairs.budget, "charge", lambda *args: charged.append(args))
        before = b.home.store.last_seq
        for number in range(4):
            await say(a, b, "active" if number % 2 else "paused")
        stored = sum(len(line.payload) for line in b.home.store.scan(before + 1))
        assert {each for each, _ in charged} == {pair_id}
        assert sum(size for _, size in charged) >= stored > 0
        charged.clear()
        await b.pairing.pause(pair_id)
        assert charged == [], "what our operator says is no intake"
