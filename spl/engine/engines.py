"""The one module of this folder that every daemon loads: it imports the others when there is a sink, and not before.

A daemon without a sink pays one waiter for changes of consent.
"""

import asyncio
import importlib
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core import consent
from ..home.disk import Disk
from ..home.tables.lists import by_thread
from ..home.vault import Vault
from ..sync.changes import Feed
from ..sync.supervise import wait

if TYPE_CHECKING:
    from .service import SinkService


class Engines:
    """The sinks of one daemon, once there are any."""

    def __init__(
        self, feed: Feed, vault: Vault, disk: Disk, tls: ssl.SSLContext | None, *, now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self._feed, self._vault, self._disk, self._tls = feed, vault, disk, tls
        self._now_ms, self._random_bytes = now_ms, random_bytes
        self._service: SinkService | None = None

    @property
    def configured(self) -> bool:
        """Whether there is a sink."""
        return bool(self._feed.writer.views.sinks)

    @property
    def sinks(self) -> "SinkService":
        """The service, made when it is first asked for."""
        if self._service is None:
            made: SinkService = importlib.import_module(f"{__package__}.service").SinkService(
                self._feed, self._vault, self._disk, self._tls, now_ms=self._now_ms, random_bytes=self._random_bytes
            )
            self._service = made
        return self._service

    async def run(self, stop: asyncio.Event) -> None:
        """Run the sinks from the first one on, until `stop`."""
        notifier = self._feed.notifier
        with notifier.listening([by_thread(consent.THREAD)]) as news:
            while not self.configured and not stop.is_set() and not notifier.stopping:
                news.clear()
                await wait(news, None)
        if self.configured:
            await self.sinks.run(stop)

    def close(self) -> None:
        """End the threads, if there are any."""
        if self._service is not None:
            self._service.close()
