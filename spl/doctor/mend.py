"""The store is kept whole: an index that does not fit the log is built again, and pairs give back what was lost.

A log without room, which what is free need not show, is tried every two seconds until there is some.

A reading that meets damage leaves the row out and goes on (`home/tables/rows.py`).  Some seconds later the index is
built again beside the running daemon: what is damaged has an empty row then, lists and counts are right, and what the
index alone had wrong is healed.  At most every ten minutes, or a disk that reads differently each time would keep one
processor busy.

What is lost then is missing in the next comparison with a pair, which fetches it, or is fetched at once if the operator
asks (`spl store check --repair`).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

from ..core.errors import SplError
from ..core.event import event
from ..home.writer import Writer
from ..sync.push import Push
from ..sync.reach import with_way
from ..sync.supervise import wait

if TYPE_CHECKING:
    from ..home.check import Step, StoreCheck
    from ..sync.compare.reconcile import Reconcile

log = logging.getLogger("spl.store")

LOOK_S: Final = 2.0
REBUILD_AGAIN_S: Final = 600.0
PROGRESS_PIECES: Final = 64
"""Pieces of the log, of 512 lines each, that are indexed between two progress steps."""


class StoreMender:
    """Mends the store of one daemon."""

    def __init__(
        self, writer: Writer, reconcile: "Callable[[], Reconcile]", push: Push, *, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._writer, self._reconcile, self._push = writer, reconcile, push
        self._random_bytes = random_bytes
        self._turn = asyncio.Lock()

    async def run(self, stop: asyncio.Event) -> None:
        """Build the index again when a reading doubted it, and look again for what was lost, until `stop` is set."""
        store, now_s, next_s = self._writer.store, asyncio.get_running_loop().time, 0.0
        looked_at = -1
        while not stop.is_set():
            try:
                if store.full:
                    await asyncio.to_thread(store.look_for_room)
                if store.index.doubted and now_s() >= next_s:
                    next_s = now_s() + REBUILD_AGAIN_S
                    await self._rebuild_quietly(stop)
                elif store.lost and store.last_seq != looked_at:
                    # Only a new line can be one that was lost; looking reads all damaged bytes again.
                    looked_at = store.last_seq
                    await asyncio.to_thread(store.look_again)
            except (SplError, OSError) as exc:
                log.warning(**event("store.mend_failed", error=str(exc)[:200]))
            await wait(stop, LOOK_S)

    async def repair(self, found: "StoreCheck") -> "AsyncIterator[Step]":
        """Yield the steps of fetching what a check found to be lost, from each pair in turn until nothing is.

        A step "repair" {pair_id, peer_did, fetched | error} for each pair and at the end "repaired" {lost, fetched,
        still_lost, settled}; fetched are records, the others lines.  Lines are settled, which means no longer missed,
        if their place holds no readable id and each pair that may sync is equal to this home: there is nothing more to
        learn about them.  Raises SplError.
        """
        lost, fetched, settled, lacks = found.lost - found.held, 0, 0, False
        async with self._turn:
            if not await asyncio.to_thread(found.fits_index):
                async for step in self._rebuild():
                    yield step
        pairs = [pair for pair in self._writer.views.pairs.values() if pair.sync_allowed] if lost else []
        for pair in pairs:
            step = {"step": "repair", "pair_id": pair.pair_id, "peer_did": pair.peer_did}
            try:
                compared, effort = await self._reconcile().mend(pair.pair_id)
                lacks = lacks or await asyncio.to_thread(self._reconcile().lacks, pair.pair_id, compared)
            except SplError as exc:
                lacks = True
                command = f"spl federation verify {pair.pair_id} --repair"
                yield {**step, "error": with_way(self._push.reach(pair.pair_id), pair, exc, command).to_json()}
            else:
                fetched += effort.fetched
                yield {**step, "fetched": effort.fetched}
            if not await asyncio.to_thread(found.still_lost):
                break
        still_lost = await asyncio.to_thread(found.still_lost)
        if still_lost and pairs and not lacks:
            await asyncio.to_thread(self._writer.store.settle, found.places)
            before, still_lost = still_lost, await asyncio.to_thread(found.still_lost)
            settled = before - still_lost
        if found.scars:
            await asyncio.to_thread(self._writer.store.settle, found.scars)
        await asyncio.to_thread(self._writer.store.look_again)
        fields = {"lost": lost, "fetched": fetched, "still_lost": still_lost, "settled": settled}
        log.info(**event("store.repaired", **fields))
        yield {"step": "repaired", **fields}

    async def _rebuild_quietly(self, stop: asyncio.Event) -> None:
        async with self._turn:
            if self._writer.store.index.doubted:
                log.warning(**event("store.index_rebuilding"))
                async with aclosing(self._rebuild()) as steps:
                    async for _ in steps:
                        if stop.is_set():
                            return
                log.info(**event("store.index_rebuilt", lost=len(self._writer.store.lost)))

    async def _rebuild(self) -> "AsyncGenerator[Step, None]":
        pieces = self._writer.store.reindex(self._random_bytes)
        try:
            count = 0
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                count += 1
                if count % PROGRESS_PIECES == 0:
                    yield {"step": "index", "bytes": piece[0], "of_bytes": piece[1]}
        finally:
            # While a thread still reads a piece it cannot be closed; it closes with that thread's reference.
            with suppress(ValueError):
                pieces.close()
