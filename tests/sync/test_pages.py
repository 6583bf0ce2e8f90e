"""Pages as they are sent: whole bytes or slices, never more than a slice ahead, never past a withdrawal."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.home.index import Row
from spl.sync import pages
from spl.sync.changes import whole
from spl.sync.pages import READS_MAX, PageRead, ReadPace
from spl.sync.scope import Scope
from spl.sync.source import Query
from tests.nodes import Node, Token, join, nodes
from tests.sync.test_stream import grant
from tests.waiting import until

PAIR = "pair_00000001"


@asynccontextmanager
async def sliced(folder: Path, patch: pytest.MonkeyPatch, count: int = 6) -> AsyncIterator[tuple[Node, list[str]]]:
    """Yield a source whose slices hold one record each, and the ids of its records."""
    patch.setattr(pages, "SLICE_BYTES", 1)
    async with nodes(folder, "alice", "bob") as (alice, bob):
        join(alice, bob)
        yield alice, [alice.emit(f"{n}").id for n in range(count)]


async def long_page(node: Node) -> PageRead:
    """Return a page that is read slice by slice."""
    found = await node.feed.page(PAIR, Query())
    assert isinstance(found, PageRead)
    return found


def running(node: Node) -> int:
    return node.feed._reads.running


async def test_slices_join_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same JSON as of a page in one piece: each record once, its namespaces and members behind them."""
    async with sliced(tmp_path, monkeypatch) as (alice, ids):
        read = await long_page(alice)
        pieces = [piece async for piece in read]
        assert len(pieces) == len(ids)
        found = json.loads(b"".join(pieces))
        assert [each["id"] for each in found["records"]] == ids
        assert found["ns"] == ["default"] * len(ids)
        assert (list(found), found["has_more"]) == (["records", "ns", "next_cursor", "has_more", "peer_view"], False)
        fetched = json.loads(await whole(await alice.feed.records(PAIR, ids[::-1])))
        assert [each["id"] for each in fetched["records"]] == ids
        assert running(alice) == 0


async def test_a_short_page_is_plain_bytes_and_holds_no_place(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        assert isinstance(await alice.feed.page(PAIR, Query()), bytes)
        assert running(alice) == 0


async def test_no_slice_is_read_before_the_last_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does not read costs one slice."""
    async with sliced(tmp_path, monkeypatch) as (alice, ids):
        given: list[int] = []
        real = alice.feed.source.outgoing.envelopes

        def envelopes(pair_id: str, scope: Scope, rows: Sequence[Row]) -> list[tuple[Row, bytes]]:
            given.append(len(rows))
            return real(pair_id, scope, rows)

        monkeypatch.setattr(alice.feed.source.outgoing, "envelopes", envelopes)
        read = await long_page(alice)
        for taken in range(1, len(ids) + 1):
            await anext(read)
            assert given == [1] * taken
        with pytest.raises(StopAsyncIteration):
            await anext(read)


async def test_nothing_is_sent_after_a_withdrawal_and_the_page_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sliced(tmp_path, monkeypatch) as (alice, ids):
        read = await long_page(alice)
        first = await anext(read)
        assert ids[0].encode() in first
        grant(alice, "default", None, 1)
        with pytest.raises(SplError) as caught:
            await anext(read)
        assert caught.value.code == "pair-state-conflict"
        await read.aclose()
        assert running(alice) == 0


async def test_a_credential_that_ends_cuts_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sliced(tmp_path, monkeypatch) as (alice, _):
        token = Token()
        read = await alice.feed.page(PAIR, Query(), token)
        assert isinstance(read, PageRead)
        await anext(read)
        token.valid = False
        with pytest.raises(SplError):
            await anext(read)
        await read.aclose()


async def test_a_pair_has_two_reads_and_further_ones_wait_and_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is given up frees its place at once, whether or not it was begun; another pair is not held up."""
    async with sliced(tmp_path, monkeypatch) as (alice, ids):
        reads = [await long_page(alice) for _ in range(READS_MAX)]
        async with asyncio.TaskGroup() as tasks:
            third = tasks.create_task(long_page(alice))
            await until(lambda: alice.feed._reads._reads[PAIR].waiting)
            assert (await alice.feed._reads.begin("pair_00000002"))._is_open
            assert not third.done()
            await reads[0].aclose()
        object.__setattr__(alice.feed.limits, "check_s", 0.001)
        with pytest.raises(SplError) as caught:
            await long_page(alice)
        assert (caught.value.code, caught.value.status) == ("rate-limited", 429)
        # Our own pushes to the peer do not wait for what it does not read.
        assert ids[0].encode() in await alice.feed.changes(PAIR, Query())
        for read in (reads[1], third.result()):
            await read.aclose()
            await read.aclose()
        await (await long_page(alice)).aclose()
        assert running(alice) == 1, "that of the other pair"


def test_the_pace_of_a_reader_is_its_longest_gap_of_three() -> None:
    """A reading is several pages; one by hand between two polls changes nothing."""
    pace = ReadPace()
    assert pace.interval_s(PAIR, {}) is None
    for begin_s, end_s in ((0, 2), (302, 303), (313, 314), (603, 604)):
        for page_s in (begin_s, begin_s + 0.5, begin_s + 0.7):
            pace.begin(PAIR, page_s)
        pace.end(PAIR, end_s)
    assert pace.interval_s(PAIR, {}) == 300
    for begin_s in (614, 624, 634):
        pace.begin(PAIR, begin_s)
        pace.end(PAIR, begin_s + 1)
    assert pace.interval_s(PAIR, {}) == 10
    assert pace.interval_s(PAIR, {"mode": "polling", "poll_ms": 300_000}) == 300
    assert pace.interval_s(PAIR, {"mode": "continuous", "poll_ms": 300_000}) == 10
