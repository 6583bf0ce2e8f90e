"""The source serves what a pair shares, as it is stored, and gives no hint of anything else."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core import consent
from spl.core.consent import Grant, PairGrants
from spl.core.errors import SplError
from spl.core.identity import did
from spl.core.keys import SecretKey
from spl.core.pair.pair import Phase
from spl.core.record.cursor import Cursor, open_, seal
from spl.core.record.filter import PairFilter
from spl.home.writes import Arrive, Own
from spl.sync import changes
from spl.sync.changes import whole
from spl.sync.scope import Steps
from spl.sync.source import ASKS_MS, Query
from tests.nodes import LIMITS, Node, join, nodes
from tests.store_kit import set_views
from tests.waiting import DEADLINE_S, turns, until, waiters

PAIR = "pair_00000001"
READS = {"mode": "polling", "poll_ms": 300_000, "asks_ms": ASKS_MS}


async def page(node: Node, pair_id: str = PAIR, **query: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await whole(await node.feed.page(pair_id, Query(**query))))
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [env["id"] for env in found["records"]]


async def read_all(node: Node, pair_id: str = PAIR, **query: Any) -> list[str]:
    """Return the ids of all pages."""
    found, since = [], ""
    while True:
        one = await page(node, pair_id, **{**query, "since": since})
        found += ids(one)
        since = one["next_cursor"]
        if not one["has_more"]:
            return found


async def test_a_page_is_stored_bytes_with_their_namespaces(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"é\n{n}") for n in range(3)]
        raw = await alice.feed.changes(PAIR, Query())
        assert raw.startswith(b'{"records":[' + b",".join(env.raw for env in sent) + b'],"ns":["default","default"')
        found = json.loads(raw)
        assert found["peer_view"] == {
            "state": "active", "reason": "", "head": 3, "acked": None, "queue": 0, **READS, "clock": 3,
        }  # fmt: skip
        assert found["has_more"] is False


async def test_pages_follow_arrival_and_end(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit(f"{n}").id for n in range(25)]
        assert await read_all(alice, limit=7) == sent
        first = await page(alice, limit=7)
        assert (len(first["records"]), first["has_more"], first["peer_view"]["clock"]) == (7, True, 7)


async def test_a_page_holds_at_most_its_bytes_and_at_least_one_record(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, page_bytes=2000)) as (alice, bob):
        join(alice, bob)
        sent = [alice.emit("x" * size).id for size in (10, 5000, 10, 600, 600, 600, 10)]
        assert await read_all(alice) == sent
        assert len((await page(alice))["records"]) == 1


@pytest.mark.parametrize("query", [{"limit": 10_001}, {"limit": -1}, {"feed": "continuous"}])
async def test_wrong_parameters_are_refused(tmp_path: Path, query: dict[str, Any]) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        with pytest.raises(SplError) as caught:
            await page(alice, **query)
        assert caught.value.code == "bad-field"


@pytest.mark.parametrize(
    ("phase", "code"),
    [(Phase.PAUSED, "pair-paused"), (Phase.REVOKED, "pair-revoked"), (Phase.ESTABLISHING, "pair-state-conflict")],
)
async def test_a_pair_that_is_not_served_gets_its_state(tmp_path: Path, phase: Phase, code: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = alice.emit("x")
        alice.change_pair(PAIR, phase=phase, serve_allowed=False, reason="because")
        for ask in (alice.feed.changes(PAIR, Query()), alice.feed.fetch(PAIR, [sent.id])):
            with pytest.raises(SplError) as caught:
                await ask
            assert caught.value.code == code
            asks = {name: READS[name] for name in READS if name != "asks_ms" or phase is Phase.PAUSED}
            view = {"state": str(phase), "reason": "because", "head": 0, "acked": None, "queue": 0, **asks}
            assert caught.value.to_json()["peer_view"] == view or code == "pair-unknown"
        with pytest.raises(SplError):
            alice.feed.chains(PAIR, alice.did)


async def test_only_agreed_namespaces_travel_and_nothing_hints_at_others(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("org", "org/secret")
        join(alice, bob, namespaces=("default", "org"))
        alice.emit("1")
        before = await page(alice)
        for n in range(9):
            alice.emit(f"{n}", ns="org/secret")
        alice.write(Own("th_audit_x", "note", {"n": 1}))
        after = await page(alice, since=before["next_cursor"])
        assert (after["records"], after["next_cursor"]) == ([], before["next_cursor"])
        assert after["peer_view"] == before["peer_view"]
        assert (alice.feed.offered(PAIR).head, alice.feed.offered(PAIR).acked) == (1, None)
        sent = alice.emit("2", ns="org")
        found = await page(alice, since=before["next_cursor"])
        assert (ids(found), found["ns"], found["peer_view"]["head"]) == ([sent.id], ["org"], 2)
        opened = open_(found["next_cursor"], alice.home.vault.cursor_key(), PAIR)
        assert sum(lane.count for lane in opened.lanes) == 2


async def test_cursors_look_alike_whatever_else_the_log_holds(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        texts: list[str] = []
        for _ in range(4):
            alice.emit("x")
            alice.write(Own("th_audit_x", "note", {"n": len(texts)}))
            texts.append((await page(alice))["next_cursor"])
        assert len({len(text) for text in texts}) == 1
        assert len(set(texts)) == 4


async def test_a_cursor_serves_its_own_pair_only(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob, "pair_0000000a")
        join(alice, carol, "pair_0000000b")
        alice.emit("x")
        since = (await page(alice, "pair_0000000a"))["next_cursor"]
        with pytest.raises(SplError) as caught:
            await page(alice, "pair_0000000b", since=since)
        assert caught.value.code == "cursor-invalid"
        with pytest.raises(SplError):
            await alice.feed.ack("pair_0000000b", since)


@pytest.mark.parametrize("since", ["x", "A" * 5000, "é", "=" * 10, "A" * 300])
async def test_hostile_cursors_are_refused(tmp_path: Path, since: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        with pytest.raises(SplError) as caught:
            await page(alice, since=since)
        assert caught.value.code == "cursor-invalid"


async def test_what_the_peer_delivered_or_signed_is_left_out_except_on_resync(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob)
        join(alice, carol, "pair_0000000c")
        join(bob, carol, "pair_0000000d")
        theirs = bob.emit("by bob")
        await alice.sync.pull(PAIR)
        await carol.sync.pull("pair_0000000d")
        relayed = carol.emit("by carol, through bob")
        await bob.sync.pull("pair_0000000d")
        await alice.sync.pull(PAIR)
        own = alice.emit("by alice")
        assert alice.ids() == sorted((theirs.id, relayed.id, own.id))
        assert await read_all(alice) == [own.id]
        assert alice.feed.offered(PAIR).head == 1
        assert Counter(await read_all(alice, "pair_0000000c")) == Counter([theirs.id, own.id, relayed.id]) - Counter(
            [relayed.id]
        )
        assert Counter(await read_all(alice, resync=True, limit=1)) == Counter([theirs.id, relayed.id, own.id])
        assert (await page(alice, resync=True))["peer_view"]["clock"] == 1


async def test_a_whole_reading_ends_as_an_ordinary_one(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.emit("1")
        await alice.sync.pull(PAIR)
        since = (await page(alice, resync=True))["next_cursor"]
        bob.emit("2")
        await alice.sync.pull(PAIR)
        assert (await page(alice, since=since))["records"] == []


async def test_a_pair_from_the_present_gets_what_comes_after_it_began(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        old = [alice.emit(f"old {n}") for n in range(5)]
        join(alice, bob, start="present", start_seq=alice.home.store.last_seq)
        new = [alice.emit(f"new {n}").id for n in range(3)]
        assert await read_all(alice, limit=2) == new
        assert await read_all(alice, resync=True) == new
        assert await read_all(alice, thread="th") == new
        assert json.loads(await alice.feed.fetch(PAIR, [old[0].id]))["records"] == []
        view = (await page(alice))["peer_view"]
        assert (view["head"], view["clock"]) == (3, 3)  # what lies before is not even counted
        await bob.sync.pull(PAIR)
        assert alice.feed.offered(PAIR).lag_records == 0


async def test_a_lane_that_is_added_starts_at_its_beginning_and_shares_pages(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("org")
        history = [alice.emit(f"{n}", ns="org").id for n in range(30)]
        join(alice, bob)
        alice.emit("1")
        since = (await page(alice))["next_cursor"]
        alice.change_pair(PAIR, namespaces=("default", "org"))
        live = [alice.emit(f"live {n}").id for n in range(5)]
        found = await page(alice, since=since, limit=10)
        assert set(ids(found)) == set(live) | set(history[:5])
        rest = []
        while found["has_more"]:
            found = await page(alice, since=found["next_cursor"], limit=10)
            rest += ids(found)
        assert rest == history[5:]


async def test_a_lane_that_is_removed_keeps_its_place(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("org")
        join(alice, bob, namespaces=("default", "org"))
        alice.emit("1", ns="org")
        since = (await page(alice))["next_cursor"]
        alice.change_pair(PAIR, namespaces=("default",))
        alice.emit("2", ns="org")
        alice.emit("3")
        found = await page(alice, since=since)
        assert (found["ns"], found["peer_view"]["clock"], found["peer_view"]["head"]) == (["default"], 1, 1)
        alice.change_pair(PAIR, namespaces=("default", "org"))
        again = await page(alice, since=found["next_cursor"])
        assert (again["ns"], again["peer_view"]["clock"]) == (["org"], 3)


async def test_another_log_under_the_cursor_is_a_reset(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        since = (await page(alice))["next_cursor"]
        for name, value in (("epoch", "0" * 32), ("run_at", lambda seq: "1" * 32)):
            real = getattr(alice.home.store, name)
            setattr(alice.home.store, name, value)
            with pytest.raises(SplError) as caught:
                await page(alice, since=since)
            assert caught.value.code == "cursor-reset"
            setattr(alice.home.store, name, real)
        assert (await page(alice, since=since))["records"] == []


async def test_a_cursor_beyond_the_log_is_a_reset(tmp_path: Path) -> None:
    """A home restored from an older copy has the same epoch, and fewer lines."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        key, store = alice.home.vault.cursor_key(), alice.home.store
        ahead = seal(Cursor(store.epoch, 99, "2" * 32), key, bytes(24), PAIR)
        with pytest.raises(SplError) as caught:
            await page(alice, since=ahead)
        assert caught.value.code == "cursor-reset"


async def test_thread_and_namespace_narrow_a_reading_with_places_of_its_own(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("org", "private")
        join(alice, bob, namespaces=("default", "org"))
        one, two = alice.emit("1", thread="a"), alice.emit("2", thread="a", ns="org")
        alice.emit("3", thread="a", ns="private")
        four = alice.emit("4", thread="b", ns="org")
        assert await read_all(alice, thread="a", limit=1) == [one.id, two.id]
        assert await read_all(alice, namespace="org", limit=1) == [two.id, four.id]
        assert await read_all(alice, namespace="private") == []
        assert await read_all(alice, thread="nowhere") == []
        narrow = (await page(alice, thread="a"))["next_cursor"]
        await alice.feed.ack(PAIR, narrow)
        assert alice.feed.offered(PAIR).acked is None


@pytest.mark.parametrize("thread", ["th_federation_pairs", "th_audit_x", "th_api_tokens"])
async def test_reserved_threads_never_leave(tmp_path: Path, thread: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        made = alice.write(Own(thread, "note", {"n": 1}))[0].envelope
        assert made is not None
        assert await read_all(alice) == await read_all(alice, thread=thread) == []
        assert json.loads(await alice.feed.fetch(PAIR, [made.id]))["records"] == []


async def test_fetch_gives_what_is_shared_and_is_silent_on_the_rest(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("private")
        join(alice, bob)
        one, secret = alice.emit("1"), alice.emit("2", ns="private")
        two = alice.emit("3")
        asked = [two.id, secret.id, "0" * 64, "junk", None, one.id, one.id, {"a": 1}]
        found = json.loads(
            await whole(await alice.feed.records(PAIR, [item for item in asked if not isinstance(item, dict)]))
        )
        assert (ids(found), found["ns"], found["has_more"]) == ([one.id, two.id], ["default", "default"], False)
        for wrong in ("x", ["0"] * 1001, None):
            with pytest.raises(SplError) as caught:
                await alice.feed.records(PAIR, wrong)
            assert caught.value.code == "bad-field"


async def test_a_fetch_is_cut_at_a_page(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, page_bytes=1500)) as (alice, bob):
        join(alice, bob)
        sent = [alice.emit("x" * 500).id for _ in range(4)]
        found = json.loads(await whole(await alice.feed.records(PAIR, sent)))
        assert (ids(found), found["has_more"]) == (sent[: len(found["records"])], True)


async def test_chains_of_those_whose_records_are_shared(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        alice.share("private")
        join(alice, bob)
        join(alice, carol, "pair_0000000c", namespaces=("private",))
        assert alice.feed.chains(PAIR, alice.did) == alice.chain.to_json()
        carol.share("private")
        carol.emit("1", ns="private")
        await alice.sync.pull("pair_0000000c")
        # Carol's records are in a namespace that bob does not share: not even her existence shows.
        for who in (carol.did, did.did_of("nobody", SecretKey(bytes(32)).public), "", "x" * 500):
            with pytest.raises(SplError) as caught:
                alice.feed.chains(PAIR, who)
            assert caught.value.code == "not-found"
        alice.change_pair("pair_0000000c", namespaces=("default",))
        carol.change_pair("pair_0000000c", namespaces=("default",))
        carol.emit("2")
        await alice.sync.pull("pair_0000000c")
        assert alice.feed.chains(PAIR, carol.did) == carol.chain.to_json()


async def test_acks_tell_how_far_the_peer_is(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        for n in range(3):
            alice.emit(f"{n}")
        first = await page(alice, limit=2)
        await alice.feed.ack(PAIR, first["next_cursor"])
        assert alice.feed.peer_view(PAIR) == {
            "state": "active",
            "reason": "",
            "head": 3,
            "acked": 2,
            "queue": 0,
            **READS,
        }
        assert alice.feed.offered(PAIR).lag_records == 1
        for wrong in (None, 7, "x"):
            with pytest.raises(SplError):
                await alice.feed.ack(PAIR, wrong)
        await alice.feed.ack(PAIR, "")
        assert alice.feed.offered(PAIR).acked == 2


async def longpoll(
    patch: pytest.MonkeyPatch, node: Node, since: str, during: Callable[[], Awaitable[None]]
) -> tuple[dict[str, Any], int]:
    """Return the page of a longpoll, and how often it looked after `during` was done."""
    looks = [0]
    real = changes.has_news

    def has_news(*args: Any) -> Steps[bool]:
        looks[0] += 1
        return real(*args)

    patch.setattr(changes, "has_news", has_news)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(page(node, since=since, feed="longpoll"))
        await until(lambda: waiters(node.feed.notifier) and looks[0])
        looks[0] = 0
        await during()
    return asked.result(), looks[0]


async def test_a_longpoll_waits_for_a_record_in_scope_and_sleeps_through_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("private")
        join(alice, bob)
        since = (await page(alice))["next_cursor"]
        sent: list[str] = []

        async def write() -> None:
            for n in range(5):
                alice.emit(f"{n}", ns="private")
                await turns(10)
            sent.append(alice.emit("now").id)

        found, looks = await longpoll(monkeypatch, alice, since, write)
        assert ids(found) == sent
        # One wake, by the record in scope; the five others did not even make it look.
        assert looks == 1
        assert not waiters(alice.feed.notifier)


async def test_a_longpoll_is_not_answered_by_what_the_peer_itself_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        since = (await page(alice))["next_cursor"]
        theirs = bob.emit("by bob")

        async def write() -> None:
            alice.write(Arrive(theirs, "default", PAIR))
            alice.emit("by alice")

        found, _ = await longpoll(monkeypatch, alice, since, write)
        assert theirs.id not in ids(found)
        assert len(found["records"]) == 1


async def test_a_longpoll_without_news_ends_empty_with_the_same_cursor(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", limits=replace(LIMITS, longpoll_s=0.01)) as (alice, bob):
        join(alice, bob)
        since = (await page(alice))["next_cursor"]
        found = await page(alice, since=since, feed="longpoll")
        assert (found["records"], found["next_cursor"]) == ([], since)


async def test_a_pause_ends_a_longpoll_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        since = (await page(alice))["next_cursor"]

        async def pause() -> None:
            alice.change_pair(PAIR, phase=Phase.PAUSED, serve_allowed=False)
            alice.write(Own("th_federation_pairs", "note", {"n": 1}))

        with pytest.raises(ExceptionGroup) as caught:
            await longpoll(monkeypatch, alice, since, pause)
        assert [exc.code for exc in caught.value.exceptions if isinstance(exc, SplError)] == ["pair-paused"]


async def test_a_page_says_nothing_of_sequences_or_origins(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        raw = (await alice.feed.changes(PAIR, Query())).decode()
        assert not re.search(r'"(seq|origin|from|run|own|epoch|at)"', raw)
        assert set(json.loads(raw)) == {"records", "ns", "next_cursor", "has_more", "peer_view"}


async def test_what_a_rule_hides_answers_no_longpoll_and_gives_no_signer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob, filters=(PairFilter(thread_allow=("open",)),))
        join(alice, carol, "pair_0000000c")
        since = (await page(alice))["next_cursor"]

        async def write() -> None:
            alice.write(Arrive(carol.emit("hidden"), "default", "pair_0000000c"))
            await turns(200)
            with pytest.raises(SplError):
                alice.feed.chains(PAIR, carol.did)
            alice.write(Arrive(carol.emit("shown", thread="open"), "default", "pair_0000000c"))

        found, _ = await longpoll(monkeypatch, alice, since, write)
        assert [env["record"]["thread"] for env in found["records"]] == ["open"]
        assert alice.feed.chains(PAIR, carol.did) == carol.chain.to_json()


async def test_what_is_granted_while_a_longpoll_waits_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        alice.share("music")
        join(alice, bob)
        alice.emit("song", ns="music")
        since = (await page(alice))["next_cursor"]

        async def share() -> None:
            set_views(alice.home, consents={PAIR: PairGrants(ours={"music": Grant("music", "music", 1, 1)})})
            alice.write(Own(consent.THREAD, "note", {"n": 1}))

        found, _ = await longpoll(monkeypatch, alice, since, share)
        assert (found["ns"], found["records"][0]["projection"]["level"]) == (["music"], "L1")
