"""Waking readers: one event per waiter, set when one of the index's lists that it named gets a record.

Lists are named as in the index: `n:<namespace>`, `t:<thread>`.  A waiter is woken for the lists that it named and no
other, and a commit that nobody waits for does not reach the loop: a write to one namespace costs the readers of others
nothing.  Waiters are woken in the order in which they began to wait.  An event per waiter was chosen over a shared
condition, which wakes every reader at each commit, and over a queue, which needs a bound and a policy for readers that
fall behind; a reader here looks at the log itself.

At the stop every waiter is woken once more.  `RecentCommits` holds what streams at the tail send, so that none of them
queries the index for it.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final

from ..core.limits import KIB
from ..home.tables.lists import by_namespace, by_thread
from ..home.writer import Writer
from ..home.writes import Commit, Hop
from .supervise import Kick, wait

RECENT_COMMITS: Final = 32
RECENT_BYTES: Final = 512 * KIB
"""What all streams share in memory; a stream that is further behind reads the index, in a thread."""


class Notifier:
    """The waiters of one daemon, all on one loop."""

    def __init__(self, writer: Writer) -> None:
        self.stopping = False
        self.streams = 0
        """How many event streams are open: those of peers and of clients that watch."""
        self._waiting: dict[str, dict[asyncio.Event, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unsubscribe = writer.listen(self._on_commit)

    def close(self) -> None:
        """Stop listening to commits."""
        self._unsubscribe()

    def stop(self) -> None:
        """Wake all waiters; `stopping` is True from now on."""
        self.stopping = True
        self.notify(self._waiting.copy())

    def notify(self, names: Iterable[str]) -> None:
        """Wake the waiters of these lists."""
        for event in dict.fromkeys(event for name in names for event in self._waiting.get(name, ())):
            event.set()

    @contextmanager
    def listening(self, names: Iterable[str]) -> Iterator[asyncio.Event]:
        """Give an event that is set when one of the lists gets a record."""
        self._loop = asyncio.get_running_loop()
        event, named = Kick(), tuple(dict.fromkeys(names))
        for name in named:
            self._waiting.setdefault(name, {})[event] = None
        try:
            yield event
        finally:
            for name in named:
                events = self._waiting[name]
                del events[event]
                if not events:
                    del self._waiting[name]

    def _on_commit(self, commit: Commit) -> Hop | None:
        """Pass a commit on to the loop if there are waiters for it; runs on the writer's thread."""
        loop = self._loop
        if loop is None:
            return None
        names = [by_namespace(ns) for ns in commit.namespaces] + [by_thread(thread) for thread in commit.threads]
        wanted = [name for name in names if name in self._waiting]
        return (loop.call_soon_threadsafe, partial(self.notify, wanted)) if wanted else None


class Heartbeat:
    """When a reader that waits for an event is to send a heartbeat: at once, and `every_s` after each `sent`.

    One timer for each heartbeat: a deadline for each wait costs more than the wait.  The `with` is the time of
    one event stream, which counts as open in it.
    """

    def __init__(self, notifier: Notifier, news: asyncio.Event, every_s: float) -> None:
        self._notifier, self._news, self._every_s = notifier, news, every_s
        self._timer: asyncio.TimerHandle | None = None
        self.is_due = True

    def sent(self) -> None:
        """Set the event again after `every_s`."""
        self.is_due = False
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._beat)

    def __enter__(self) -> "Heartbeat":
        self._notifier.streams += 1
        return self

    def __exit__(self, *raised: object) -> None:
        self._notifier.streams -= 1
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        self.is_due = True
        self._news.set()


class RecentCommits:
    """The last commits, kept as long as there are streams, which share them.  The writer's thread adds."""

    def __init__(self, last_seq: int) -> None:
        self.state: tuple[tuple[Commit, ...], int] = ((), last_seq)
        """Consecutive commits, and the log's last line; replaced, never changed."""
        self._streams = 0

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Keep commits during the `with`."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams:
                self.state = ((), self.state[1])

    def run_at(self, seq: int) -> str | None:
        """Return the log's running hash after a line if one of the commits kept ends there."""
        return next((commit.run for commit in reversed(self.state[0]) if commit.last_seq == seq), None)

    def add(self, commit: Commit) -> None:
        """Add one commit; drop the oldest beyond RECENT_COMMITS or RECENT_BYTES."""
        kept: tuple[Commit, ...] = ()
        if self._streams:
            kept = (*self.state[0], commit)[-RECENT_COMMITS:]
            while kept and sum(each.fresh_bytes for each in kept) > RECENT_BYTES:
                kept = kept[1:]
        self.state = kept, commit.last_seq


class Acks:
    """Positions in our log up to which peers hold durably what we serve them."""

    def __init__(self) -> None:
        self._positions: dict[str, Mapping[str, int]] = {}
        self._waiting: dict[str, dict[asyncio.Event, None]] = {}
        self._of_all: set[asyncio.Event] = set()

    def note(self, pair_id: str, positions: Mapping[str, int]) -> None:
        """Record an ack: namespace -> the last sequence that it covers there."""
        self._positions[pair_id] = positions
        for event in (*self._waiting.get(pair_id, ()), *self._of_all):
            event.set()

    @contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """Set the event at each ack of any pair."""
        self._of_all.add(event)
        try:
            yield
        finally:
            self._of_all.discard(event)

    def position(self, pair_id: str, namespace: str) -> int | None:
        """Return the last sequence confirmed; None before the first ack of this process."""
        return self._positions.get(pair_id, {}).get(namespace)

    async def beyond(self, pair_id: str, namespace: str, seq: int, timeout_s: float) -> int | None:
        """Return the position once it is past `seq`, at the latest after `timeout_s`."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        self._waiting.setdefault(pair_id, {})[event] = None
        due_s = loop.time() + timeout_s
        try:
            while (self.position(pair_id, namespace) or 0) <= seq and loop.time() < due_s:
                event.clear()
                await wait(event, due_s - loop.time())
        finally:
            del self._waiting[pair_id][event]
            if not self._waiting[pair_id]:
                del self._waiting[pair_id]
        return self.position(pair_id, namespace)
