"""Promises of background comparison: what every other way forgot arrives, and a pair on demand is left alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spl.core import consent
from spl.core.consent import Grant
from spl.core.limits import Limits
from spl.core.record import namespace
from spl.home.writes import Own, SavedPosition
from spl.sync.changes import whole
from spl.sync.compare import anti_entropy
from spl.sync.compare.anti_entropy import AntiEntropy
from spl.sync.peer import FINGERPRINTS
from spl.sync.source import Query
from tests.nodes import Node, join, nodes
from tests.store_kit import set_views
from tests.waiting import turns, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let comparisons of a pair follow each other at once; what a test does not ask for comes in a day."""
    monkeypatch.setattr(anti_entropy, "APART_S", 0.0)
    monkeypatch.setattr(anti_entropy, "FIRST_S", 86_400.0)
    monkeypatch.setattr(anti_entropy, "BACKOFF_BASE_S", 0.001)


@asynccontextmanager
async def running(*each: Node) -> AsyncIterator[None]:
    """Run the comparisons of these nodes."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    tasks = [loop.create_task(node.anti_entropy.run(stop)) for node in each]
    await turns(3)
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, str]]:
    async with nodes(tmp_path, "ann", "ben") as (ann, ben):
        yield ann, ben, join(ann, ben)


async def skip(ann: Node, ben: Node, pair_id: str) -> None:
    """Move ann's saved position to the end of what ben offers, without the records."""
    page = json.loads(await whole(await ben.feed.page(pair_id, Query(limit=100))))
    ann.write(SavedPosition(pair_id, page["next_cursor"], len(page["records"])))


def asked(ann: Node) -> int:
    """Return how many questions of a comparison went over the network."""
    return ann.network.log.count(("POST", FINGERPRINTS))


async def test_what_a_saved_position_skipped_is_fetched_on_request(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    ben.emit("skipped")
    await skip(ann, ben, pair_id)
    assert await ann.sync.pull(pair_id) == 0, "reading does not bring it"
    async with running(ann):
        assert ann.anti_entropy.last(pair_id) is None
        ann.anti_entropy.request(pair_id)
        last = await until(lambda: ann.anti_entropy.last(pair_id))
    assert ann.ids() == ben.ids()
    assert (last.missing_here, last.missing_there) == (0, 0)


async def test_it_comes_unasked_too_soon_after_the_start(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anti_entropy, "FIRST_S", 0.0)
    ann, ben, pair_id = pair
    ben.emit("skipped")
    await skip(ann, ben, pair_id)
    async with running(ann):
        await until(lambda: ann.ids() == ben.ids())


async def test_a_pair_on_demand_is_compared_on_request_alone(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anti_entropy, "FIRST_S", 0.0)
    ann, ben, pair_id = pair
    join(ann, ben, "pair_00000002")
    ann.change_pair(pair_id, mode="on-demand")
    async with running(ann):
        await until(lambda: ann.anti_entropy.last("pair_00000002"))
        assert ann.anti_entropy.last(pair_id) is None
        ann.anti_entropy.request(pair_id)
        await until(lambda: ann.anti_entropy.last(pair_id))


async def test_a_request_outlives_a_fault_of_our_own(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair on demand has no other comparison, so a crash must not lose the one that was requested."""
    monkeypatch.setattr(anti_entropy, "FIRST_S", 0.0)
    ann, _, pair_id = pair
    ann.change_pair(pair_id, mode="on-demand")
    mend, calls = ann.reconcile.mend, list[str]()

    async def fails_once(pair_id: str, **options: Any) -> Any:
        calls.append(pair_id)
        if len(calls) == 1:
            raise RuntimeError
        return await mend(pair_id, **options)

    monkeypatch.setattr(ann.reconcile, "mend", fails_once)
    async with running(ann):
        ann.anti_entropy.request(pair_id)
        await until(lambda: ann.anti_entropy.last(pair_id))


async def test_a_request_on_demand_outlives_the_process(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    ann.change_pair(pair_id, mode="on-demand")
    ben.emit("skipped")
    await skip(ann, ben, pair_id)
    ann.network.down = "connect"
    note = f"compare.{pair_id}"
    async with running(ann):
        ann.anti_entropy.request(pair_id)
        await until(lambda: ann.home.vault.get(note) is not None)
    ann.network.down = ""
    ann.anti_entropy = AntiEntropy(
        lambda: ann.reconcile, ann.sync, ann.reaches, interval_s=3600.0, now_ms=ann.now_ms,
        random_bytes=ann.random.randbytes,
    )  # fmt: skip
    async with running(ann):
        await until(lambda: ann.ids() == ben.ids())
        await until(lambda: ann.home.vault.get(note) is None)


async def test_a_comparison_that_waits_is_hurried_once_the_peer_was_reached(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anti_entropy, "BACKOFF_BASE_S", 3600.0)
    monkeypatch.setattr(anti_entropy, "BACKOFF_MAX_S", 3600.0)
    ann, _, pair_id = pair
    ann.change_pair(pair_id, mode="on-demand")
    ann.network.down = "connect"
    async with running(ann):
        ann.anti_entropy.hurry(pair_id)
        ann.anti_entropy.request(pair_id)
        await until(lambda: ann.anti_entropy._state(pair_id).backoff.attempt)
        ann.network.down = ""
        ann.anti_entropy.hurry(pair_id)
        await until(lambda: ann.anti_entropy.last(pair_id))


async def test_a_pair_that_was_on_demand_is_compared_like_the_others(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anti_entropy, "FIRST_S", 0.0)
    ann, ben, pair_id = pair
    ben.emit("skipped")
    await skip(ann, ben, pair_id)
    ann.change_pair(pair_id, mode="on-demand")
    async with running(ann):
        ann.change_pair(pair_id, mode="polling")
        ann.anti_entropy._on_change()
        await until(lambda: ann.ids() == ben.ids())


async def test_a_peer_that_cannot_be_read_is_not_dialled_by_comparisons(pair: tuple[Node, Node, str]) -> None:
    """Their attempts would count as failures of reading; a request stands until the peer can be read again."""
    ann, ben, pair_id = pair
    ben.emit("skipped")
    await skip(ann, ben, pair_id)
    ann.network.down = "connect"
    with pytest.raises(Exception, match="test says so"):
        await ann.sync.pull(pair_id)
    attempts = ann.sync.status(pair_id).attempt
    async with running(ann):
        ann.anti_entropy.request(pair_id)
        await until(lambda: ann.anti_entropy._state(pair_id).backoff.attempt > 2)
        assert ann.sync.status(pair_id).attempt == attempts
        ann.network.down = ""
        await ann.sync.pull(pair_id)
        await until(lambda: ann.ids() == ben.ids())


async def test_a_peer_that_cannot_dial_us_is_given_what_it_lacks(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    ann.emit("ben lacks it")
    await skip(ben, ann, pair_id)
    ann.network.walled = {"ann"}
    async with running(ann):
        ann.anti_entropy.request(pair_id)
        await until(lambda: ann.anti_entropy.last(pair_id))
    assert ann.ids() == ben.ids()


async def test_what_the_full_ledger_could_not_hold_comes_when_its_cause_ends(tmp_path: Path) -> None:
    """Archived here while the peer wrote more than the ledger remembers, then brought back."""
    async with nodes(tmp_path, "ann", "ben", limits=Limits(refused_per_pair=3)) as (ann, ben):
        pair_id = join(ann, ben)
        set_views(ann.home, namespaces={"default": namespace.Namespace("default", active=False)})
        async with running(ann):
            for lot in range(4):
                for number in range(5):
                    ben.emit(f"{lot} {number}")
                await ann.sync.pull(pair_id)
            assert ann.home.views.refused[pair_id] == 3
            assert ann.home.views.beyond[pair_id] == {"scope-violation"}
            set_views(ann.home, namespaces={"default": namespace.Namespace("default")})
            ann.anti_entropy._on_change()
            await until(lambda: ann.ids() == ben.ids())


async def test_what_the_gate_refuses_is_not_asked_for_again_and_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, "ann", "ben") as (ann, ben):
        pair_id = join(ann, ben)
        set_views(ann.home, namespaces={"default": namespace.Namespace("default", active=False)})
        ben.emit("refused")
        for _ in range(2):  # the second asks for it once more
            await ann.sync.pull(pair_id)
        fetched = ann.network.log.count(("POST", "/v1/sync/records"))
        async with running(ann):
            ann.anti_entropy.request(pair_id)
            last = await until(lambda: ann.anti_entropy.last(pair_id))
        assert ann.network.log.count(("POST", "/v1/sync/records")) == fetched
        assert last.missing_here == 1


def shown(ann: Node, ben: Node, pair_id: str, count: int) -> None:
    """Let ben grant a namespace at L2, where projections have no id to ask by, and write into it."""
    ben.share("music")
    ann.share("records")
    body = {"pair_id": pair_id, "grant": Grant("music", "records", 2, 1).to_json()}
    ben.write(Own(consent.THREAD, consent.KIND_GRANT, body))
    ann.write(Own(consent.THREAD, consent.KIND_PEER_GRANT, body))
    for number in range(count):
        ben.emit(f"{number}", ns="music")


async def test_projections_that_a_position_skipped_come_and_are_not_missing_then(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    shown(ann, ben, pair_id, 3)
    await skip(ann, ben, pair_id)
    async with running(ann):
        ann.anti_entropy.request(pair_id)
        last = await until(lambda: ann.anti_entropy.last(pair_id))
    assert ann.home.store.index.count(f"x:{pair_id}") == 3
    assert last.missing_here == 0


async def test_projections_that_we_refuse_are_read_once_and_not_at_each_comparison(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no id, so all that the peer offers is read for them."""
    ann, ben, pair_id = pair
    pull, whole_reads = ann.sync.pull, list[str]()

    def counted(pair_id: str, thread: str = "", *, resync: bool = False) -> Coroutine[None, None, int]:
        whole_reads.extend([pair_id] * resync)
        return pull(pair_id, thread, resync=resync)

    monkeypatch.setattr(ann.sync, "pull", counted)
    ann.change_pair(pair_id, actors=("did:sync:user:only",))
    shown(ann, ben, pair_id, 3)
    async with running(ann):
        for _ in range(3):
            before = ann.anti_entropy.last(pair_id)
            ann.anti_entropy.request(pair_id)
            last = await until(lambda before=before: (now := ann.anti_entropy.last(pair_id)) is not before and now)
            assert last.missing_here == 3
            assert whole_reads == [pair_id]
