"""Grants handed over between two instances: each holds the other's words, whoever can dial, whatever was lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spl.core import consent
from spl.core.consent import Grant, PairGrants
from spl.core.errors import SplError
from spl.core.record.namespace import KIND_CREATE
from spl.home.views import THREAD_NAMESPACES
from spl.home.writes import Own
from tests.pair_world import Call, Node, World, code_of, paired
from tests.store_kit import set_views
from tests.waiting import until

L0, L1, L2 = 0, 1, 2


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[tuple[World, Node, Node, str]]:
    """Yield what `paired` does; both sides know the namespace music."""
    async with paired(folder) as (world, a, b, pair_id):
        for node in (a, b):
            await known(node, "music", "projects", "projects/music")
        yield world, a, b, pair_id


async def known(node: Node, *names: str) -> None:
    """Register namespaces."""
    made = [Own(THREAD_NAMESPACES, KIND_CREATE, {"name": name}) for name in names]
    await asyncio.wrap_future(node.home.writer.submit(made))


def grants_of(node: Node, pair_id: str) -> PairGrants:
    return consent.grants_of(node.home.views.consents, node.home.views.pairs[pair_id])


async def agree(a: Node, b: Node, pair_id: str) -> None:
    """Wait until each side holds exactly what the other said."""

    def same() -> bool:
        ours, theirs = grants_of(a, pair_id), grants_of(b, pair_id)
        return (ours.ours, ours.theirs) == (theirs.theirs, theirs.ours) and not (ours.waiting or theirs.waiting)

    await until(same)


def consent_calls(world: World) -> list[Call]:
    return [call for call in world.calls if call.path.endswith("/consent") and not call.answer]


def cut(world: World, origin: str = "") -> Callable[[Call], bytes | None]:
    """Lose every message about consent, or only those to one origin."""

    def fault(call: Call) -> bytes | None:
        lost = call.path.endswith("/consent") and (not origin or call.origin == origin)
        return None if lost else call.body

    world.faults.append(fault)
    return fault


async def test_a_grant_is_with_the_peer_when_the_command_returns(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        assert await a.pairing.handover.set_grant(pair_id, "music", "projects/music", L1) == (True, "")
        grant = Grant("music", "projects/music", L1, 1)
        assert grants_of(b, pair_id).theirs == {"music": grant}
        assert grants_of(a, pair_id) == PairGrants({"music": grant}, {}, frozenset())
        assert len(consent_calls(world)) == 1
        assert await a.pairing.handover.set_grant(pair_id, "music", "projects/music", L1) == (False, "")
        assert len(consent_calls(world)) == 1, "the same word again is none"
        assert await b.pairing.handover.set_grant(pair_id, "projects/music", "music", L0) == (True, "")
        assert await a.pairing.handover.set_grant(pair_id, "music", "projects/music", None) == (True, "")
        await agree(a, b, pair_id)
        assert grants_of(b, pair_id).theirs["music"].level is None
        await a.restart()
        await agree(a, b, pair_id)


async def test_a_view_of_another_form_is_passed_over(tmp_path: Path) -> None:
    """What a peer says of its grants is compared with what we hold, and nothing more."""
    async with scene(tmp_path) as (world, a, _b, pair_id):
        for weight in ("many", [], None, 1.5, True, {}):
            a.pairing.on_view(pair_id, {"head": 1, "consent": weight})
        a.pairing.on_view(pair_id, {"consent": 7})
        assert a.pairing.handover.due() == []
        a.pairing.on_view(pair_id, {"head": 1, "consent": 7})
        await until(lambda: consent_calls(world))


async def test_an_unreachable_peer_gets_the_grant_later_and_nothing_is_sent_under_it_before(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        fault = cut(world)
        assert await a.pairing.handover.set_grant(pair_id, "music", "music", L1) == (True, "disconnected")
        assert grants_of(a, pair_id).waiting == {"music"}
        assert await a.pairing.handover.set_grant(pair_id, "default", "default", L2) == (True, "disconnected")
        pair, spaces = a.home.views.pairs[pair_id], a.home.views.namespaces
        assert consent.outbound(pair, grants_of(a, pair_id), spaces) == ()
        await a.restart()
        assert grants_of(a, pair_id).waiting == {"music", "default"}, "a restart forgets no word"
        world.faults.remove(fault)
        world.time_ms += 600_000
        await agree(a, b, pair_id)
        shares = consent.outbound(a.home.views.pairs[pair_id], grants_of(a, pair_id), a.home.views.namespaces)
        assert [(share.ns, share.level) for share in shares] == [("default", L2), ("music", L1)]


async def test_a_side_that_cannot_be_dialled_asks_when_it_sees_that_it_is_behind(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        cut(world, origin=b.url)
        assert (await a.pairing.handover.set_grant(pair_id, "music", "music", L1))[1] == "disconnected"
        view = {"state": "active", "head": 0, "consent": grants_of(a, pair_id).weight}
        b.pairing.handover.seen(pair_id, {"state": "active", "consent": 9})
        assert b.pairing.handover.due() == [], "a view that is no whole one says nothing"
        b.pairing.handover.seen(pair_id, view)
        await agree(a, b, pair_id)
        count = len(consent_calls(world))
        b.pairing.handover.seen(pair_id, view)
        assert b.pairing.handover.next_s() == float("inf")
        world.time_ms += 5000
        b.pairing.handover.seen(pair_id, {**view, "consent": 77})
        await until(lambda: len([c for c in consent_calls(world) if c.origin == a.url]) > 2)
        b.pairing.handover.seen(pair_id, {**view, "consent": 77})
        assert b.pairing.handover.next_s() == float("inf"), "a peer that always claims news is asked once for each"
        assert len(consent_calls(world)) >= count


@pytest.mark.parametrize("state", ["paused", "paused by peer", "degraded"])
async def test_grants_are_handed_over_whatever_the_pair_does(tmp_path: Path, state: str) -> None:
    async with scene(tmp_path) as (_world, a, b, pair_id):
        if state == "degraded":
            await a.pairing.maintenance.doubt(pair_id, "connect")
        else:
            await (a if state == "paused" else b).pairing.pause(pair_id)
            await until(lambda: a.alive[0].paused_by and b.alive[0].paused_by)
        assert await a.pairing.handover.set_grant(pair_id, "music", "music", L1) == (True, "")
        await agree(a, b, pair_id)


async def test_a_revoked_pair_takes_no_grants_and_its_peer_learns_that_it_is_over(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None if call.path.endswith("/notify-revoke") else call.body)
        await b.pairing.revoke(pair_id)
        with pytest.raises(SplError) as caught:
            await b.pairing.handover.set_grant(pair_id, "music", "music", L1)
        assert code_of(caught) == "pair-revoked"
        news, code = await a.pairing.handover.set_grant(pair_id, "music", "music", L1)
        assert (news, code) == (True, "pair-revoked")
        assert a.home.views.pairs[pair_id].ended
        with pytest.raises(SplError) as caught:
            await a.pairing.handover.set_grant("pair_00000000", "music", "music", L1)
        assert code_of(caught) == "pair-unknown"


@pytest.mark.parametrize("begins", ["set back", "other"])
async def test_a_side_whose_home_was_set_back_gets_its_own_words_again(tmp_path: Path, begins: str) -> None:
    """Also a withdrawal, so that nothing flows that its operator had stopped; and it can go on granting."""
    async with scene(tmp_path) as (_world, a, b, pair_id):
        await a.pairing.handover.set_grant(pair_id, "music", "music", L1)
        old = a.home.views.consents
        await a.pairing.handover.set_grant(pair_id, "music", "music", None)
        await a.pairing.handover.set_grant(pair_id, "projects", "projects", L2)
        await b.pairing.handover.set_grant(pair_id, "music", "music", L2)
        newest = grants_of(a, pair_id)
        set_views(a.home, consents=old)
        if begins == "other":
            view = {"state": "active", "head": 0, "consent": grants_of(a, pair_id).weight}
            b.pairing.handover.seen(pair_id, view)
            await agree(a, b, pair_id)
            assert grants_of(a, pair_id) == newest
        assert await a.pairing.handover.set_grant(pair_id, "music", "projects/music", L1) == (True, "")
        await agree(a, b, pair_id)
        assert grants_of(b, pair_id).theirs["projects"] == newest.ours["projects"]


async def test_a_crash_at_any_write_leaves_both_sides_agreeing_after_the_restart(tmp_path: Path) -> None:
    async with scene(tmp_path) as (world, a, b, pair_id):
        for dying in (a, b):
            for nth in (1, 2, 3):
                dying.disk.dies_after = dying.disk.done + nth
                try:
                    await a.pairing.handover.set_grant(pair_id, "music", "music", 1 + nth % 3)
                except (SplError, OSError):
                    assert dying is a
                await dying.restart()
                world.time_ms += 600_000
                await agree(a, b, pair_id)


async def test_grants_are_weighed_again_only_when_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of any pair asks this of all pairs."""
    async with scene(tmp_path) as (world, a, _b, pair_id):
        handover, weighed = a.pairing.handover, list[str]()
        await handover.set_grant(pair_id, "music", "music", L1)
        handover.due()
        known = handover.grants.of
        monkeypatch.setattr(handover.grants, "of", lambda pair: weighed.append(pair.pair_id) or known(pair))
        assert handover.due() == []
        assert handover.next_s() == float("inf")
        assert weighed == []
        cut(world)
        await handover.set_grant(pair_id, "music", "music", L2)
        assert handover.next_s() < float("inf"), "a grant that changed is handed over"


async def test_a_peer_that_counts_other_grants_each_time_fills_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path) as (world, a, _b, pair_id):
        cut(world)
        with caplog.at_level("INFO", "spl.federation"):
            while (calls := len(consent_calls(world))) < 30:
                a.pairing.handover.seen(pair_id, {"head": 0, "consent": 100 + calls})
                await a.pairing.handover.maintain(pair_id)
                await asyncio.sleep(0)
        assert 1 <= sum(each.message == "consent.not_handed_over" for each in caplog.records) < 15
