"""The handshake and the life of a pair, as operators see them."""

import asyncio
import json
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.identity.did import label_of
from spl.core.limits import Limits
from spl.core.pair.pair import PairError, Phase
from spl.core.pair.state import Waiting
from spl.home.writes import SavedPosition
from spl.pairing.names import pair_named, request_named
from tests.pair_world import Node, World, both_active, code_of, names, paired, two
from tests.waiting import until

STEPS = ["manifest", "verified", "posted", "token", "recorded", "synced", "active"]


async def test_pairing_in_one_command(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        steps = await a.pair(b)
        assert names(steps) == STEPS
        by = {str(step["step"]): step for step in steps}
        assert by["manifest"]["did"] == b.did
        assert by["posted"]["status"] == 200
        assert by["token"]["scopes"] == ["federation:subscribe", "federation:sync"]
        assert by["synced"] == {"step": "synced", "records": 12}
        assert (by["active"]["label"], by["active"]["peer_label"]) == ("alice", "bob")
        assert by["active"]["our_words"] != by["active"]["peer_words"]
        pair_id = await both_active(a, b)
        assert by["recorded"]["pair_id"] == pair_id
        assert a.alive[0].namespaces == b.alive[0].namespaces == ("default",)
        assert a.alive[0].start == b.alive[0].start == "beginning"
        await until(lambda: b.first_syncs == [pair_id] and a.first_syncs == [pair_id])


async def test_manual_approval_waits_and_then_grants(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        steps = await a.pair(b, wait_ms=0)
        *_, last = names(steps)
        assert last == "pending"
        await until(lambda: isinstance(a.alive[0].state, Waiting))
        request = request_named(b.home.views.requests, a.alive[0].pair_id)
        assert (request.status, request.peer_did, request.namespaces) == ("pending", a.did, ("default",))
        assert request_named(b.home.views.requests, label_of(a.did)) == request
        steps = await a.pair(b, wait_ms=0)
        assert names(steps) == ["manifest", "verified", "posted", "pending"]
        assert [step["status"] for step in steps if step["step"] == "posted"] == [202]
        watching = asyncio.create_task(a.pair(b))
        await b.pairing.decide_request(request.request_id, "approve")
        assert names(await watching) == STEPS
        await both_active(a, b)
        assert request_named(b.home.views.requests, request.request_id).status == "approved"
        with pytest.raises(SplError) as caught:
            await b.pairing.decide_request(request.request_id, "reject")
        assert code_of(caught) == "pair-state-conflict"


async def test_rejection_ends_both_sides(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        watching = asyncio.create_task(a.pair(b))
        await until(lambda: b.alive)
        await b.pairing.decide_request(b.alive[0].pair_id, "reject", "not today")
        with pytest.raises(SplError) as caught:
            await watching
        assert code_of(caught) == "handshake-rejected"
        assert not a.alive
        assert not b.alive
        assert (a.pairs[0].reason, b.pairs[0].reason) == ("rejected", "rejected")
        assert not a.home.views.tokens
        assert not b.home.views.tokens
        assert request_named(b.home.views.requests, b.pairs[0].pair_id).reason == "not today"


async def test_what_waits_too_long_expires_on_both_sides(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        world.time_ms += 86_400_000 + 1000
        with pytest.raises(SplError) as caught:
            await b.pairing.decide_request(b.pairs[0].pair_id, "approve")
        assert code_of(caught) == "pair-state-conflict"
        await until(lambda: not a.alive and not b.alive)
        assert (a.pairs[0].reason, b.pairs[0].reason) == ("expired", "expired")
        assert request_named(b.home.views.requests, b.pairs[0].pair_id).status == "expired"


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_clock_that_is_days_ahead_for_a_moment_ends_no_request(tmp_path: Path, restarts: bool) -> None:
    """What its operator can still decide when the clock is right again was not ended for good."""
    async with two(tmp_path, "manual") as (world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        world.set_ms += 3 * 86_400_000
        if restarts:
            await a.restart()
            await b.restart()
        for node in (a, b):
            assert await node.pairing.stepper.do(node.pairing.pairs.expire) == []
        world.set_ms -= 3 * 86_400_000
        assert a.alive
        await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        assert b.alive


async def test_an_instance_without_identity(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.node("alice"), world.node("nobody", label="")
    try:
        with pytest.raises(SplError) as caught:
            await a.pair(b)
        assert code_of(caught) == "manifest-missing"
        with pytest.raises(SplError) as caught:
            await b.pair(a)
        assert code_of(caught) == "identity-missing"
        assert names(await b.pair(a, auto_generate_identity=True)) == STEPS
        await both_active(b, a)
    finally:
        await world.close()


async def test_the_daemon_goes_on_without_its_caller_and_after_a_restart(tmp_path: Path) -> None:
    async with two(tmp_path, "manual") as (_, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: a.alive and isinstance(a.alive[0].state, Waiting))
        pair_id = a.alive[0].pair_id
        await a.restart()
        await b.restart()
        await b.pairing.decide_request(pair_id, "approve")
        assert await both_active(a, b) == pair_id


async def test_pause_and_resume_are_seen_on_both_sides(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        for node, other in ((a, b), (b, a)):
            await node.pairing.pause(pair_id, "upgrade")
            await node.pairing.pause(pair_id, "upgrade")
            await until(lambda: other.alive[0].paused_by == "peer")  # noqa: B023
            assert not node.alive[0].serve_allowed
            assert not other.alive[0].sync_allowed
            with pytest.raises(SplError) as caught:
                await other.pairing.resume(pair_id)
            assert (code_of(caught), caught.value.exit_code) == ("pair-paused", 7)
            await node.pairing.resume(pair_id)
            await both_active(a, b)
        await a.pairing.pause(pair_id)
        await b.pairing.pause(pair_id)
        await until(lambda: a.alive[0].paused_by == b.alive[0].paused_by == "both")


async def test_a_pause_told_to_nobody_is_learnt_at_the_next_contact(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        await a.pairing.pause(pair_id)
        world.faults.clear()
        await b.pairing.refresh(pair_id)
        assert b.alive[0].paused_by == "peer"
        world.faults.append(lambda call: None)
        await a.pairing.resume(pair_id)
        world.faults.clear()
        b.pairing.on_peer_state(pair_id, {})
        await both_active(a, b)


@pytest.mark.parametrize("reached", [True, False])
async def test_revoke_kills_tokens_and_tells_the_peer(tmp_path: Path, reached: bool) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        if not reached:
            world.faults.append(lambda call: None)
        pair = await a.pairing.revoke(pair_id, "moving on")
        assert (pair.phase, pair.reason, pair.live) == (Phase.REVOKED, "moving on", False)
        assert all(token.revoked for token in a.home.views.tokens.values())
        assert not a.home.vault.names("peer-token.")
        assert (await a.pairing.revoke(pair_id)).transitions == pair.transitions
        if reached:
            await until(lambda: b.pairs[0].reason == "revoked by peer: moving on")  # told again if it took too long
            await until(lambda: all(token.revoked for token in b.home.views.tokens.values()))
            await until(lambda: not b.home.vault.names("peer-token."))
        else:
            world.faults.clear()
            b.pairing.on_peer_state(pair_id, {})
            await until(lambda: not b.alive)


async def test_a_revocation_that_a_crash_cut_completes(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_world, a, b, pair_id):
        held = asyncio.Event()
        real = a.pairing.peers.client.fetch

        async def never(*args: object, **more: object) -> object:
            held.set()
            await asyncio.Event().wait()
            return await real(*args, **more)  # type: ignore[arg-type]

        a.pairing.peers.client.fetch = never  # type: ignore[assignment]
        task = asyncio.create_task(a.pairing.revoke(pair_id))
        await held.wait()
        task.cancel()
        await asyncio.wait([task])
        assert all(token.revoked for token in a.home.views.tokens.values())
        await a.restart()
        await until(lambda: not b.alive and a.pairs[0].state.detail == "")
        assert a.pairs[0].phase is Phase.REVOKED


async def test_degraded_and_back(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        a.pairing.on_trouble(pair_id, "auth-invalid")
        await until(lambda: (a.alive[0].phase, a.alive[0].reason) == (Phase.DEGRADED, "auth-invalid"))
        assert a.alive[0].sync_allowed
        a.pairing.on_success(pair_id)
        await both_active(a, b)
        assert [line[2] for line in a.alive[0].transitions] == ["active", "degraded", "active"]


async def test_a_store_that_refuses_writes_for_a_while_does_not_end_the_service(tmp_path: Path) -> None:
    """What is due by time is tried again; a request that expires meanwhile ended the daemon, reads and all."""
    async with two(tmp_path, "manual", Limits(request_ttl_s=5, handshakes_per_minute=100_000)) as (world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        real, refusals = b.home.writer.submit, 0

        def refuse(items: object) -> object:
            nonlocal refusals
            refusals += 1
            raise PairError("store-readonly")

        b.home.writer.submit = refuse  # type: ignore[method-assign,assignment]
        world.time_ms += 6000
        await until(lambda: refusals > 2)
        assert not b.task.done()
        c = world.node("carol")
        await c.pair(b, wait_ms=0)
        await until(lambda: c.pairing.handshakes.trouble)
        [trouble] = c.pairing.handshakes.trouble.values()
        assert trouble.code == "peer-5xx", "messages of peers are answered meanwhile"
        b.home.writer.submit = real  # type: ignore[method-assign]
        await until(lambda: not b.alive)


async def test_settings_are_kept(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, _b, pair_id):
        await a.pairing.set_mode(pair_id, "on-demand")
        await a.pairing.set_poll_interval(pair_id, 30_000)
        for call in (
            a.pairing.set_mode(pair_id, "now and then"),
            a.pairing.set_poll_interval(pair_id, 10),
            a.pairing.set_poll_interval(pair_id, 9_999_999 * 86_400_000),
        ):
            with pytest.raises(SplError) as caught:
                await call
            assert code_of(caught) == "bad-field"
        await a.restart()
        assert (a.alive[0].mode, a.alive[0].poll_interval_ms) == ("on-demand", 30_000)


def audits(node: Node) -> list[dict[str, object]]:
    """Return the bodies on the audit thread."""
    store = node.home.store
    rows = store.index.after("t:th_audit_federation_pairs", 0, 10_000)
    return [json.loads(payload)["record"]["body"] for payload in store.payloads(rows)]


async def test_each_transition_is_audited_for_people(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        await a.pairing.pause(pair_id, "upgrade")
        await a.pairing.resume(pair_id)
        await a.pairing.maintenance.doubt(pair_id, "dns")
        await a.pairing.refresh(pair_id)
        await b.pairing.rotate_identity("retired")
        await until(lambda: len(a.alive[0].chain.rotations) == 1)
        await a.pairing.maintenance.renew(pair_id)
        await a.pairing.set_mode(pair_id, "on-demand")
        await a.pairing.revoke(pair_id, "moving on")
        await until(lambda: len(audits(a)) == 12)  # that the peer was told is the last, and may come after the answer
        found = audits(a)
        members = {"kind", "timestamp", "pair_id", "peer_did", "transition", "reason"}
        assert all(body.keys() == members for body in found)
        assert {(body["pair_id"], body["peer_did"]) for body in found} == {(pair_id, b.did)}
        assert [(body["transition"], body["reason"]) for body in found] == [
            ("none -> establishing", ""), ("establishing -> establishing", ""), ("establishing -> active", ""),
            ("active -> paused", "upgrade"), ("paused -> active", ""), ("active -> degraded", "dns"),
            ("degraded -> active", ""), ("peer_manifest_changed.v1", ""), ("pair_token.v1", ""),
            ("pair_config.v1", ""), ("active -> revoked", "moving on"), ("revoked -> revoked", "moving on"),
        ]  # fmt: skip


async def test_resume_catches_up_with_what_the_cursor_may_have_skipped(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        await until(lambda: a.compared == b.compared == [pair_id])  # after the first sync
        await a.pairing.pause(pair_id)
        await a.pairing.resume(pair_id)
        await until(lambda: a.compared == [pair_id] * 2)
        await a.pairing.resume(pair_id)
        await both_active(a, b)
        await until(lambda: b.compared == [pair_id] * 2)
        assert a.compared == [pair_id] * 2


async def test_of_two_that_paused_also_the_first_to_resume_catches_up(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        await until(lambda: a.compared == b.compared == [pair_id])  # after the first sync
        for node in (a, b):
            await node.pairing.pause(pair_id)
        await until(lambda: a.alive[0].paused_by == b.alive[0].paused_by == "both")
        await a.pairing.resume(pair_id)
        await until(lambda: b.alive[0].paused_by == "us")
        assert a.compared == b.compared == [pair_id]
        await b.pairing.resume(pair_id)
        await until(lambda: a.compared == b.compared == [pair_id] * 2)


async def test_a_peer_whose_view_says_otherwise_of_a_pause_is_asked_for_its_word(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.pause(pair_id)
        await until(lambda: b.alive[0].paused_by == "peer")
        world.faults.append(lambda call: call.body if call.path == "/v1/sync/chains" else None)
        await a.pairing.resume(pair_id)
        await until(lambda: "poll" in world.lost)
        world.faults.clear()
        assert b.alive[0].paused_by == "peer"
        b.pairing.on_view(pair_id, {"state": "paused", "pauses": True})
        assert not b.pairing.stepper.take_jobs()
        b.pairing.on_view(pair_id, {"state": "active"})
        await both_active(a, b)


async def test_a_revoked_peer_that_is_offline_learns_it_when_it_is_refused(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        await b.end()
        await a.pairing.maintenance.doubt(pair_id, "connect")
        assert (await a.pairing.revoke(pair_id, "sold")).reason == "sold"
        b.start()
        assert await b.call(a) == 401
        b.pairing.on_trouble(pair_id, "auth-invalid")
        await until(lambda: not b.alive)
        assert b.pairs[0].reason == "revoked by peer: sold"
        assert all(token.revoked for token in b.home.views.tokens.values())


async def test_block_refuses_the_did_until_its_operator_pairs_with_it_again(tmp_path: Path) -> None:
    async with two(tmp_path) as (world, a, b):
        carol = world.node("carol")
        await a.pair(b)
        await a.pair(carol)
        await until(lambda: [pair.phase for pair in a.alive] == [Phase.ACTIVE] * 2)
        pair = pair_named(a.home.views.pairs, b.did)
        pair_id = pair.pair_id
        assert [hub.peer_did for hub in a.pairing.pairs.hubs(pair)] == [carol.did]
        await a.pairing.revoke(pair_id)
        assert a.home.views.blocked == frozenset()
        await a.pairing.revoke(pair_id, block=True)
        assert a.home.views.blocked == {b.did}
        with pytest.raises(SplError) as caught:
            await b.pair(a)
        assert code_of(caught) == "handshake-closed"
        await a.restart()
        assert a.home.views.blocked == {b.did}
        await a.pair(b)
        assert a.home.views.blocked == frozenset()


async def test_pairing_again_after_a_revocation_starts_at_present_unless_asked(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        await a.pair(b, from_now=True)
        assert a.alive[0].start == "present"
        for options, start in (({}, "present"), ({"backfill": True}, "beginning"), ({"from_now": True}, "present")):
            await a.pairing.revoke(a.alive[0].pair_id)
            await until(lambda: not b.alive)
            await a.pair(b, **options)
            await both_active(a, b)
            assert a.alive[0].start == b.alive[0].start == start


async def test_a_request_of_a_peer_with_a_live_pair_supersedes_it_and_inherits_the_position(tmp_path: Path) -> None:
    """As after a revocation that we slept through, or a home that the peer built anew around its old key."""
    async with two(tmp_path, "manual") as (world, a, b):
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        old = await both_active(a, b)
        await asyncio.wrap_future(b.home.writer.submit([SavedPosition(old, "sealed", 42)]))
        world.faults.append(lambda call: None)
        await a.pairing.revoke(old)
        world.faults.clear()
        await a.pair(b, wait_ms=0)
        await until(lambda: len(b.alive) == 2)
        new = next(pair.pair_id for pair in b.alive if pair.pair_id != old)
        await b.pairing.decide_request(new, "approve")
        assert await both_active(a, b) == new
        assert pair_named(b.home.views.pairs, old).reason == "superseded"
        assert b.alive[0].inherits == old
        assert b.home.views.positions[new].cursor == "sealed"


async def test_steps_that_are_refused_again_and_again_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer can cause one with each message, and a line each would drive all others out of the files."""
    async with paired(tmp_path) as (_world, a, _b, pair_id):

        async def refused() -> None:
            raise PairError("pair-state-conflict", "again")

        for _ in range(30):
            a.pairing.stepper.start(pair_id, refused)
            await a.jobs_done(pair_id)
        await until(lambda: any(each.message == "pair.step_refused" for each in caplog.records))
        assert sum(each.message == "pair.step_refused" for each in caplog.records) < 15
