"""The names of live pairs in a file, so that a shell completes them without asking anybody."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ..core.identity.did import label_of
from ..core.pair.diff import THREAD_PAIRS
from ..core.pair.pair import Pair, Phase
from ..core.version import PAIR_NAMES
from ..home.disk import Disk
from ..home.tables.lists import by_thread
from ..home.writer import Writer
from ..sync.notify import Notifier


class PairNames:
    """Keeps the file in step with the pairs."""

    def __init__(
        self, writer: Writer, notifier: Notifier, home: Path, disk: Disk, tell: Callable[[Mapping[str, Pair]], object]
    ) -> None:
        """`tell` is called with the pairs at first and after each change."""
        self._writer, self._notifier, self._disk, self._tell = writer, notifier, disk, tell
        self._path = home / PAIR_NAMES

    async def run(self, stop: asyncio.Event) -> None:
        """Write the file now and after each change, until the notifier stops."""
        written: list[str] | None = None
        with self._notifier.listening([by_thread(THREAD_PAIRS)]) as news:
            while not (stop.is_set() or self._notifier.stopping):
                news.clear()
                pairs = self._writer.views.pairs
                self._tell(pairs)
                names = names_of(pairs)
                if names != written:
                    with suppress(OSError):  # a full disk has its own finding, and a shell can do without
                        await asyncio.to_thread(self._write, names)
                        written = names
                await news.wait()

    def _write(self, names: Iterable[str]) -> None:
        self._disk.replace_atomic(self._path, "".join(f"{name}\n" for name in names).encode())


def names_of(pairs: Mapping[str, Pair]) -> list[str]:
    """Return the labels of the peers of live pairs, each once, then the ids."""
    live = [pair for pair in pairs.values() if pair.phase is not Phase.REVOKED]
    return [*dict.fromkeys(label_of(pair.peer_did) for pair in live), *(pair.pair_id for pair in live)]
