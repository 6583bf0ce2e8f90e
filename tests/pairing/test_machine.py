"""The shell of the pair machine: crashes after each durable step, secrets, and what people call a pair."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.pair.aitl import Status
from spl.core.pair.pair import Pair, Phase
from spl.core.pair.state import Asked
from spl.core.pair.steps import Effect, KillTokens
from spl.home.writes import Item, SavedPosition
from spl.pairing import machine
from spl.pairing.maintenance import ACCEPTED_MS, END_ACCEPTED
from spl.pairing.names import pair_named
from spl.pairing.newer import NEWER_NAME
from spl.sync.peer import PAIR_NOTES
from tests.pair_world import Node, both_active, code_of, paired, two
from tests.waiting import DEADLINE_S, until


async def test_a_rebuilt_side_supersedes_and_inherits_the_position(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        await a.pair(b)
        old = await both_active(a, b)
        b.home.writer.submit([SavedPosition(old, "sealed-by-a", 7)]).result(DEADLINE_S)
        world.faults.append(lambda call: None if call.path.endswith("notify-revoke") else call.body)
        await a.pairing.revoke(old)
        assert a.pairs[0].phase is Phase.REVOKED
        assert b.alive
        await a.pair(b)
        new = await both_active(a, b)
        assert new != old
        assert b.home.views.pairs[old].reason == "superseded"
        assert b.alive[0].inherits == old
        place = b.home.views.positions[new]
        assert (place.cursor, place.count) == ("sealed-by-a", 7)
        assert {token.pair_id for token in b.home.views.tokens.values() if not token.revoked} == {new}
        # The initiator revoked the earlier pair, so the new one starts at the present.
        assert a.alive[0].start == b.alive[0].start == "present"
        assert a.alive[0].start_seq > 0


async def _fault_free_counts(folder: Path, approval: str) -> tuple[int, int]:
    async with two(folder, approval) as (_, a, b):
        await _pair_through(a, b, approval)
        return a.disk.done, b.disk.done


async def _pair_through(a: Node, b: Node, approval: str) -> None:
    """Do what operators do until it works: ask on one side, approve on the other."""

    async def ask() -> None:
        try:
            await a.pair(b)
        except (SplError, OSError):
            return

    async def approve() -> None:
        for pair in b.alive:
            if isinstance(pair.state, Asked):
                try:
                    await b.pairing.decide_request(pair.pair_id, "approve")
                except (SplError, OSError):
                    return

    watching = asyncio.create_task(ask())
    async with asyncio.timeout(DEADLINE_S):
        while not watching.done() and not a.disk.dead and not b.disk.dead:
            if approval == "manual":
                await approve()
            await asyncio.sleep(0.001)
    watching.cancel()
    await asyncio.wait([watching])


@pytest.mark.parametrize("approval", ["auto", "manual"])
@pytest.mark.parametrize("side", ["initiator", "responder"])
async def test_a_crash_after_any_durable_step_heals(tmp_path: Path, approval: str, side: str) -> None:
    counts = await _fault_free_counts(tmp_path / "sound", approval)
    total = counts[0] if side == "initiator" else counts[1]
    assert total >= 4
    for step in range(1, total + 1):
        async with two(tmp_path / f"step{step}", approval) as (_, a, b):
            victim = a if side == "initiator" else b
            victim.disk.dies_after = step
            await _pair_through(a, b, approval)
            if victim.disk.dead:
                await victim.restart()
            if not a.alive or a.alive[0].phase is not Phase.ACTIVE or b.alive[0].phase is not Phase.ACTIVE:
                await _pair_through(a, b, approval)
            pair_id = await both_active(a, b)
            assert [pair.pair_id for pair in a.pairs if pair.answer] == [pair_id]
            assert [pair.pair_id for pair in b.pairs if pair.answer] == [pair_id]


async def test_secrets_and_records_agree_after_a_restart(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        for node in (a, b):
            node.home.vault.delete(f"peer-token.{pair_id}")
            node.home.vault.put("peer-token.pair_00000000", "without a record")
            await node.restart()
            await until(lambda: node.home.vault.names("peer-token.") == [f"peer-token.{pair_id}"])  # noqa: B023
        await both_active(a, b)


async def test_the_tokens_of_a_pair_end_at_the_next_start_if_a_torn_write_kept_only_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        whole = machine.Pairs._items

        def torn(pairs: machine.Pairs, pair: Pair, effect: Effect) -> list[Item]:
            return [] if isinstance(effect, KillTokens) else whole(pairs, pair, effect)

        monkeypatch.setattr(machine.Pairs, "_items", torn)
        await a.pairing.revoke(pair_id)
        await until(lambda: b.home.views.pairs[pair_id].ended)
        monkeypatch.undo()
        for node in (a, b):
            assert any(not token.revoked for token in node.home.views.tokens.values() if token.pair_id)
            await node.restart()
            await until(lambda: all(token.revoked for token in node.home.views.tokens.values() if token.pair_id))  # noqa: B023


async def test_what_people_see_of_a_request_is_completed_at_the_next_start_if_a_torn_write_kept_only_its_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could approve it else, and one that was decided would wait for ever."""
    async with two(tmp_path, "manual") as (_, a, b):

        async def after(step: Callable[[], Awaitable[object]], left: Status | None, whole: Status) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(machine.Pairs, "_aitl", lambda pairs, pair, note="": [])
                await step()
            request = b.home.views.requests.get(b.alive[0].pair_id)
            assert (request.status if request else None) == left
            await b.restart()
            await until(lambda: [each.status for each in b.home.views.requests.values()] == [whole])

        await after(lambda: a.pair(b), None, Status.PENDING)
        pair_id = b.alive[0].pair_id
        await after(lambda: b.pairing.decide_request(pair_id, "approve"), Status.PENDING, Status.APPROVED)
        await both_active(a, b)


async def test_what_was_noted_of_a_pair_goes_with_it(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, _, pair_id):
        vault, notes = a.home.vault, [note + pair_id for note in (*PAIR_NOTES, NEWER_NAME, END_ACCEPTED)]
        for note in (*notes, "end-accepted.pair_00000000", "other.thing"):
            vault.put(note, "")
        await until(lambda: "end-accepted.pair_00000000" not in vault.names())
        assert set(notes) <= set(vault.names())
        await a.pairing.revoke(pair_id)
        await until(lambda: set(notes) & set(vault.names()) == {END_ACCEPTED + pair_id})
        world.time_ms += ACCEPTED_MS + 60_000
        await until(lambda: not set(notes) & set(vault.names()))
        assert "other.thing" in vault.names()


async def test_pairs_are_found_by_what_people_call_them(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        await a.pair(b)
        pair = a.alive[0]
        for ref in (pair.pair_id, pair.pair_id[:8], b.did, b.did.rpartition("-")[0], "bob"):
            assert pair_named(a.home.views.pairs, ref) is pair
        for ref in ("", "pair_x", "did:sync:instance:zoe"):
            with pytest.raises(SplError) as caught:
                pair_named(a.home.views.pairs, ref)
            assert (code_of(caught), caught.value.exit_code) == ("pair-unknown", 6)
        await a.pairing.revoke(pair.pair_id)
        assert pair_named(a.home.views.pairs, b.did).ended


async def test_a_stranger_does_not_take_the_name_of_an_agreed_pair(tmp_path: Path) -> None:
    """It chooses its label, and with it the short names that people type; the request keeps its own id and DID."""
    async with two(tmp_path, "manual") as (world, _, b):
        friend, stranger = world.node("carol"), world.node("mallory", label="carol")
        await friend.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        agreed = await both_active(friend, b)
        await stranger.pair(b, wait_ms=0)
        await until(lambda: len(b.alive) > 1)
        [asked] = [pair for pair in b.alive if pair.pair_id != agreed]
        for ref in ("carol", "did:sync:instance:carol", "pair_", friend.did, agreed):
            assert pair_named(b.home.views.pairs, ref).pair_id == agreed, ref
        for ref in (asked.pair_id, stranger.did):
            assert pair_named(b.home.views.pairs, ref).pair_id == asked.pair_id, ref


async def test_each_step_is_written_for_people(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, _b, pair_id):
        await a.pairing.revoke(pair_id, "done")
        rows = a.home.store.index.after("t:th_audit_federation_pairs", 0, 100)
        bodies = [json.loads(text)["record"]["body"] for text in a.home.store.payloads(rows)]
        assert {body["pair_id"] for body in bodies} == {pair_id}
        assert {"none -> establishing", "establishing -> active"} <= {body["transition"] for body in bodies}
        assert bodies[-1]["reason"] == "done"
        assert all({"timestamp", "peer_did"} <= body.keys() for body in bodies)


async def test_no_secret_stands_in_a_record(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        secrets = [node.home.vault.get(f"peer-token.{pair_id}") for node in (a, b)]
        for node in (a, b):
            text = b"".join(path.read_bytes() for path in sorted((node.path / "store").rglob("*")) if path.is_file())
            for secret in secrets:
                assert secret is not None
                assert secret.rpartition("_")[2].encode() not in text


class BegunWrite(Future[list[object]]):
    """A write that the writer has begun, and that it ends when somebody tries to cancel it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        self.set_result([])
        return super().cancel()


async def test_a_write_that_is_refused_after_its_time_does_not_happen_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the caller reports a refused step that then takes effect, without what follows it."""
    async with two(tmp_path) as (_, a, _b):
        pairs, waiting = a.pairing.pairs, Future[list[object]]()
        monkeypatch.setattr(machine, "COMMIT_TIMEOUT_S", 0.0)
        monkeypatch.setattr(pairs.writer, "submit", lambda items: waiting)
        with pytest.raises(SplError) as caught:
            pairs.submit([])
        assert code_of(caught) == "overloaded"
        assert waiting.cancelled()
        monkeypatch.setattr(pairs.writer, "submit", lambda items: BegunWrite())
        pairs.submit([])
