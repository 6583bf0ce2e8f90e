"""The one module of this folder that every daemon loads: it imports the others with the first sink or carrier.

A daemon without any pays two waiters: for changes of consent and of pairs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from ..core import consent
from ..core.pair.modes import ENGINE
from ..core.pair.pair import Pair
from ..core.value import Json
from ..home.disk import Disk
from ..home.tables.lists import by_thread
from ..home.views import THREAD_PAIRS
from ..host import program
from ..net.sockets import Verifying
from ..sync.changes import Feed
from ..sync.schedule import Sync
from ..sync.supervise import wait

if TYPE_CHECKING:
    from .carriers import CarrierService
    from .service import SinkService
    from .sinks import Sink


class Engines:
    """The sinks and carriers of one daemon, once there are any."""

    def __init__(
        self, feed: Feed, sync: Sync, disk: Disk, tls: Verifying | None, *,
        now_ms: Callable[[], int], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self._sync = sync
        self._feed, self._disk, self._tls = feed, disk, tls
        self._now_ms, self._random_bytes = now_ms, random_bytes
        self._service: SinkService | None = None
        self._carriers: CarrierService | None = None

    @property
    def configured(self) -> bool:
        """Whether there is a sink."""
        return bool(self._feed.writer.views.sinks)

    @property
    def sinks(self) -> "SinkService":
        """The service of the sinks, made when it is first asked for."""
        if self._service is None:
            made: SinkService = program.load("engine.service").SinkService(
                self._feed, self._disk, self._tls, now_ms=self._now_ms, random_bytes=self._random_bytes
            )
            self._service = made
        return self._service

    @property
    def carrying(self) -> bool:
        """Whether the records of a pair come from an engine."""
        return any(pair.mode == ENGINE for pair in self._feed.writer.views.pairs.values())

    @property
    def carriers(self) -> "CarrierService":
        """The service of the carriers, made when it is first asked for."""
        if self._carriers is None:
            made: CarrierService = program.load("engine.carriers").CarrierService(
                self._sync, self._feed.notifier, self._disk, self._tls, now_ms=self._now_ms,
                random_bytes=self._random_bytes,
            )  # fmt: skip
            self._carriers = made
        return self._carriers

    async def check_carrier(self, fields: Mapping[str, str]) -> None:
        """Raise unless these members {url, creds, ca} are those of a carrier that can be used."""
        await self.carriers.check(program.load("engine.carrier").Carrier(**fields))

    async def left(self, pair: Pair, change: Awaitable[object] | None = None) -> Json:
        """Return {consumers}: what became of those at the server that a pair was read from until now, {} without.

        `change` is what ends this, if it did not end already.
        """
        if pair.mode == ENGINE:
            return {"consumers": (await self.carriers.leave(pair, change)).to_json()}
        if change is not None:
            await change
        return {}

    def all(self) -> "list[Sink]":
        """Return every sink; without one nothing of the engine is loaded."""
        return self.sinks.all() if self.configured else []

    def readers(self, pair_id: str) -> list[dict[str, str]]:
        """Return {sink, url, reader} of each server that may have a user for the pair; its operator removes it."""
        return [
            {"sink": sink.name, "url": sink.url, "reader": pair_id} for sink in self.sinks.all() if not sink.is_program
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Run sinks and carriers, each from the first one on, until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._begin(stop, consent.THREAD, lambda: self.configured, lambda: self.sinks))
            tasks.create_task(self._begin(stop, THREAD_PAIRS, lambda: self.carrying, lambda: self.carriers))

    async def _begin(
        self, stop: asyncio.Event, thread: str, wanted: Callable[[], bool],
        service: "Callable[[], SinkService | CarrierService]",
    ) -> None:  # fmt: skip
        """Run a service once it is wanted, which a record of the thread may bring."""
        notifier = self._feed.notifier
        with notifier.listening([by_thread(thread)]) as news:
            while not wanted() and not stop.is_set() and not notifier.stopping:
                news.clear()
                await wait(news, None)
        if wanted():
            await service().run(stop)

    def close(self) -> None:
        """End the threads, if there are any."""
        if self._service is not None:
            self._service.close()
