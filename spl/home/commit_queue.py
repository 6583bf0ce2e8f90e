"""The commit queue: submissions wait here, are taken together, and are answered together.

Under load the writer delays a commit until as many submissions are queued as the last one had, and at most until
limits.commit_delay_s after that one began.  So one sync, one wake of each reader and one ack of each peer serve several
records; measured at 1,000 a second, a record then costs a third less on both sides of a pair.  A lone writer is never
delayed, because its last commit held one submission.

The queue is bounded by items and by bytes, and so is what one commit takes: 40 clients posting 7 MB each once filled
1.7 GB of memory with a queue that counted items alone, and a segment grew to three times its limit.

Both the room and the turns are shared out over principals: tokens, pairs, and the daemon itself.  A commit takes one
submission of each in turn, so whoever queues thousands delays another one by a commit and not by all of them.  Of a
full queue only a principal that holds more than its equal part is refused, and one that holds nothing always has a
place for one submission, which its caller keeps in memory anyway.  With one line for all, a token that posted pages
over 16 connections had every other write refused, those of pairs and operators too.  Rejected: a fixed part for each
principal, which would leave a lone bulk writer most of the queue unused.

Answers for an event loop are handed over by one call for a whole commit: a wake for each costs more than the writing.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from ..core.errors import SplError
from ..core.limits import Limits

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class QueueError(SplError):
    """No submission is taken now; nothing of this one was stored."""


class Waiter(Protocol[Outcome]):
    """Where a submission's answer goes: the futures of threads and those of event loops are such places."""

    def cancelled(self) -> bool:
        """Return whether the caller stopped waiting."""

    def done(self) -> bool:
        """Return whether it is answered or cancelled."""

    def set_result(self, result: list[Outcome], /) -> None:
        """Answer with what became of the items."""

    def set_exception(self, exception: SplError, /) -> None:
        """Answer with why they were refused."""


Post = Callable[[Callable[[], None]], object]
"""Runs a call on another thread soon; raises RuntimeError if that thread takes no more."""


@dataclass(slots=True)
class Submission(Generic[Item, Outcome]):
    """One submission: its items, where the answer goes and on which thread (None: at once), and what was found.

    `bytes` is about how much of the log it takes, `principal` who it belongs to: "" is the daemon itself.
    """

    items: tuple[Item, ...]
    answer: Waiter[Outcome]
    post: Post | None
    bytes: int = 0
    principal: str = ""
    found: list[Outcome] | SplError | None = None

    def is_awaited(self) -> bool:
        """Return whether the caller still waits; a future of a thread cannot be cancelled from then on."""
        if isinstance(self.answer, Future):
            return self.answer.set_running_or_notify_cancel()
        return not self.answer.cancelled()

    def settle(self) -> None:
        """Answer, unless the caller stopped waiting; with "internal" if nothing was found, because the writer broke."""
        if self.answer.done():
            return
        if isinstance(self.found, list):
            self.answer.set_result(self.found)
        else:
            self.answer.set_exception(self.found or SplError("internal"))


class _Backlog(Generic[Item, Outcome]):
    """The submissions of one principal, which are never none, and how much they hold."""

    __slots__ = ("bytes", "items", "works")

    def __init__(self) -> None:
        self.works: deque[Submission[Item, Outcome]] = deque()
        self.items = self.bytes = 0


class CommitQueue(Generic[Item, Outcome]):
    """Submissions on their way to one writer.  `steady_s` is a clock that never goes back, in seconds."""

    def __init__(self, limits: Limits, *, steady_s: Callable[[], float]) -> None:
        self._limits = limits
        self._steady_s = steady_s
        self._backlogs: dict[str, _Backlog[Item, Outcome]] = {}
        """By principal, whose turn is next first."""
        self._count = self._items = self._bytes = 0
        self._lock = threading.RLock()
        self._ready = threading.Condition(self._lock)
        self._closed = False
        self._wanted = 1  # the writer is woken once this many submissions are queued
        self._last_count = 1
        self._last_began_s = steady_s()

    def put(self, works: Sequence[Submission[Item, Outcome]]) -> None:
        """Queue submissions of one principal, all or none; one that has nothing queued is taken whatever its size.

        Raises QueueError "overloaded" at limits.waiting_writes and limits.waiting_bytes, or "shutting-down".
        """
        count = size = 0
        for work in works:
            count, size = count + len(work.items), size + work.bytes
        with self._lock:
            if self._closed:
                raise QueueError("shutting-down")
            if not works:
                return
            principal = works[0].principal
            own = self._backlogs.get(principal)
            if own is None:
                own = self._backlogs[principal] = _Backlog()
            else:
                self._check_room(own, count, size)
            own.works.extend(works)
            own.items += count
            own.bytes += size
            self._count += len(works)
            self._items += count
            self._bytes += size
            if self._count >= self._wanted or self._bytes >= self._limits.commit_bytes:
                self._ready.notify()

    def take(self, block: bool) -> list[Submission[Item, Outcome]]:
        """Return what is queued, at most limits.commit_records items and commit_bytes, but one submission at least.

        One of each principal in turn.  With `block`, waits until something is queued, lingers under load, and returns
        nothing only once closed.
        """
        with self._lock:
            if block:
                self._linger()
            works: list[Submission[Item, Outcome]] = []
            items = size = 0
            while self._backlogs:
                principal, backlog = next(iter(self._backlogs.items()))
                work = backlog.works[0]
                if works and not self._fits(items, size, work):
                    break
                self._remove(principal, backlog)
                works.append(work)
                items += len(work.items)
                size += work.bytes
            self._count -= len(works)
            self._items -= items
            self._bytes -= size
            self._last_count, self._last_began_s = len(works), self._steady_s()
        return works

    def close(self) -> None:
        """Take no more submissions; those that are queued are still handed out, without delay."""
        with self._lock:
            self._closed = True
            self._ready.notify_all()

    def abandon(self) -> list[Submission[Item, Outcome]]:
        """Take no more submissions and return all that are queued: the writer is gone, and they must be answered."""
        with self._lock:
            self._closed = True
            works = [work for backlog in self._backlogs.values() for work in backlog.works]
            self._backlogs.clear()
            self._count = self._items = self._bytes = 0
        return works

    def _check_room(self, own: _Backlog[Item, Outcome], count: int, size: int) -> None:
        """Refuse more than an equal part of a full queue."""
        limits, principals = self._limits, len(self._backlogs)
        if self._items + count > limits.waiting_writes and own.items + count > limits.waiting_writes // principals:
            raise QueueError("overloaded", f"{own.items} writes are queued already")
        if self._bytes + size > limits.waiting_bytes and own.bytes + size > limits.waiting_bytes // principals:
            raise QueueError("overloaded", f"writes of {own.bytes} bytes are queued already")

    def _remove(self, principal: str, backlog: _Backlog[Item, Outcome]) -> None:
        """Take the first submission of a principal off the queue; the next turn is another one's."""
        work = backlog.works.popleft()
        backlog.items -= len(work.items)
        backlog.bytes -= work.bytes
        if not backlog.works:
            del self._backlogs[principal]
        elif len(self._backlogs) > 1:
            self._backlogs[principal] = self._backlogs.pop(principal)

    def _fits(self, items: int, size: int, work: Submission[Item, Outcome]) -> bool:
        return (
            items + len(work.items) <= self._limits.commit_records and size + work.bytes <= self._limits.commit_bytes
        )  # fmt: skip

    def _linger(self) -> None:
        """Wait until something is queued, then as long as more submissions are likely to share the commit."""
        self._wanted = 1
        while not self._backlogs and not self._closed:
            self._ready.wait()
        self._wanted = self._last_count
        end_s = self._last_began_s + self._limits.commit_delay_s
        while not self._is_enough() and not self._closed and (left_s := end_s - self._steady_s()) > 0:
            self._ready.wait(left_s)

    def _is_enough(self) -> bool:
        return self._count >= self._wanted or self._bytes >= self._limits.commit_bytes


def answer(works: Sequence[Submission[Item, Outcome]]) -> None:
    """Answer all submissions of a commit, those that another thread awaits by one call there."""
    by_post: dict[Post | None, list[Submission[Item, Outcome]]] = {}
    for work in works:
        by_post.setdefault(work.post, []).append(work)
    for post, same in by_post.items():
        if post is None:
            _settle(same)
            continue
        with suppress(RuntimeError):  # a closed event loop awaits nothing
            post(partial(_settle, same))


def _settle(works: Sequence[Submission[Item, Outcome]]) -> None:
    for work in works:
        work.settle()
