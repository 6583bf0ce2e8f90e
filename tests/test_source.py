"""Where a reading stands: cursors that survive what they must, and are refused when their log is another one."""

from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.cursor import Lane, lane_key
from spl.core.errors import SplError
from spl.offer import Reading
from spl.source import Query, clock_of, lanes_held
from tests.nodes import join, nodes

PAIR = "pair_00000001"


async def test_a_cursor_that_moved_nothing_keeps_its_text(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        source = alice.feed.source
        scope, cursor = source.open(PAIR, Query())
        assert cursor is None
        text, first = source.next(PAIR, "", None, source.readings(scope, Query(), None), False)
        scope, again = source.open(PAIR, Query(since=text))
        assert again == first
        assert source.next(PAIR, text, again, source.readings(scope, Query(), again), False) == (text, again)


async def test_a_cursor_of_another_log_is_a_reset(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        source = alice.feed.source
        scope, _ = source.open(PAIR, Query())
        _, cursor = source.next(PAIR, "", None, source.readings(scope, Query(), None), False)
        for change in ({"epoch": "f" * 32}, {"run": "0" * 31 + "1"}, {"run_seq": 10**6}):
            text = source.seal(PAIR, replace(cursor, **change))
            with pytest.raises(SplError) as caught:
                source.open(PAIR, Query(since=text))
            assert caught.value.code == "cursor-reset"
            assert "peer_view" in caught.value.facts


def test_lanes_that_consent_took_away_keep_their_place() -> None:
    gone, here = lane_key("gone"), lane_key("here")
    before = type("Cursor", (), {"lanes": (Lane(gone, 7, 3), Lane(here, 1, 1))})()
    readings = [Reading(here, "n:here", 9, 4)]
    assert set(lanes_held(readings, before)) == {Lane(here, 9, 4), Lane(gone, 7, 3)}
    assert clock_of(readings) == 4
