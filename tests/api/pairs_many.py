"""A served daemon with any number of pairs, copies of one that was really made."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from spl.core.pair.pair import Pair
from tests.api.conftest import Served
from tests.pair_world import paired


@asynccontextmanager
async def a_pair(folder: Path) -> AsyncIterator[Pair]:
    """Give an active pair."""
    async with paired(folder) as (_, node, _, pair_id):
        yield node.home.views.pairs[pair_id]


def show(served: Served, *pairs: Pair) -> None:
    """Have the daemon hold these pairs and no other; it runs no task for them."""
    writer = served.home.writer
    writer.views = replace(writer.views, pairs={pair.pair_id: pair for pair in pairs})


def copy(pair: Pair, number: int, **changed: Any) -> Pair:
    return replace(pair, proposal=replace(pair.proposal, pair_id=f"pair_{number:08x}"), **changed)
