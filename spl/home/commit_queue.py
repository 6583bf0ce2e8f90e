"""The commit queue: submissions wait here, are taken together, and are answered together.

Under load the writer delays a commit until as many submissions are queued as the last one had, and at most until
limits.commit_delay_s after that one began.  So one sync, one wake of each reader and one ack of each peer serve several
records; measured at 1,000 a second, a record then costs a third less on both sides of a pair.  A lone writer is never
delayed, because its last commit held one submission.

The queue is bounded by items and by bytes, and so is what one commit takes: 40 clients posting 7 MB each once filled
1.7 GB of memory with a queue that counted items alone, and a segment grew to three times its limit.

Both the room and the turns are shared out over principals: tokens, pairs, and the daemon itself.  A commit takes one
submission of each in turn, so one that queues thousands delays another by one commit and not by all of them.  Of a
full queue only a principal that holds more than its equal part is refused, and one that holds nothing always has a
place for one submission, which its caller keeps in memory anyway.  With one line for all, a token that posted pages
over 16 connections had every other write refused, those of pairs and operators too.  Rejected: a fixed part for each
principal, which would leave a lone bulk writer most of the queue unused.

Answers for an event loop, and what listeners have to tell it, are handed over by one call for a whole commit: a wake
costs both threads a turn at the interpreter lock, which is more than the writing.  Two threads that wake each other
contend for that lock unless the waker lets go of it at once: so answers leave when all that is left to the writer is to
sleep, and an event loop wakes the writer at the end of its turn, once for all that the turn brought.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Generic, Protocol, TypeVar

from ..core.errors import SplError
from ..core.limits import Limits
from ..core.value import dataclass

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


Soon = Callable[[Callable[[], None]], object]
"""Runs a call on the thread that calls it, at the end of its turn."""


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
        self._bell = threading.Lock()
        self._bell.acquire()  # released to wake the writer; a ring too many makes it look once more
        self._closed = self._asleep = False
        self._wanted = 1  # the writer is woken once this many submissions are queued
        self._rings = False  # a turn of an event loop will ring at its end
        self._last_count = 1
        self._last_began_s = steady_s()

    def put(self, works: Sequence[Submission[Item, Outcome]], soon: Soon | None = None) -> None:
        """Queue submissions of one principal, all or none; one that has nothing queued is taken whatever its size.

        `soon` makes a call at the end of the caller's turn; without it the writer is woken now.
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
            if self._asleep and self._is_enough():
                if soon is None:
                    self._ring()
                elif not self._rings:
                    self._rings = True
                    soon(self._ring)

    def take(self, block: bool, before: Callable[[], object] = tuple) -> list[Submission[Item, Outcome]]:
        """Return what is queued, at most limits.commit_records items and commit_bytes, but one submission at least.

        One of each principal in turn.  With `block`, calls `before`, waits until something is queued, lingers under
        load, and returns nothing only once closed.
        """
        if block:
            self._linger(before)
        with self._lock:
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
            self._ring()

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

    def _linger(self, before: Callable[[], object]) -> None:
        """Wait until something is queued, then as long as more submissions are likely to share the commit."""
        sleeps = self._lie_down(1)
        before()
        while sleeps:
            self._bell.acquire()
            sleeps = self._lie_down(1)
        end_s = self._last_began_s + self._limits.commit_delay_s
        while self._lie_down(self._last_count) and (left_s := end_s - self._steady_s()) > 0:
            self._bell.acquire(timeout=left_s)
        self._asleep = False

    def _lie_down(self, wanted: int) -> bool:
        """Have the bell rung for so many submissions; return False if they are queued, or no more come."""
        with self._lock:
            self._wanted = wanted
            self._asleep = not self._is_enough()
            return self._asleep

    def _ring(self) -> None:
        with self._lock:
            self._asleep = self._rings = False
            with suppress(RuntimeError):  # it was rung already
                self._bell.release()

    def _is_enough(self) -> bool:
        return self._closed or self._count >= self._wanted or self._bytes >= self._limits.commit_bytes


def answer(works: list[Submission[Item, Outcome]], hops: Sequence[tuple[Post, Callable[[], object]]] = ()) -> None:
    """Make the hops and answer all submissions of a commit: one call for each thread, which makes its hops first.

    The list is emptied: the writer has it at hand while it waits for the next commit, which may be long.
    """
    by_post: dict[Post | None, tuple[list[Callable[[], object]], list[Submission[Item, Outcome]]]] = {}
    for made, call in hops:
        by_post.setdefault(made, ([], []))[0].append(call)
    for work in works:
        by_post.setdefault(work.post, ([], []))[1].append(work)
    for post, (calls, same) in by_post.items():
        if post is None:
            _settle(calls, same)
            continue
        with suppress(RuntimeError):  # a closed event loop awaits nothing
            post(partial(_settle, calls, same))
    works.clear()


def _settle(calls: Sequence[Callable[[], object]], works: Sequence[Submission[Item, Outcome]]) -> None:
    _make_all(chain(calls, (work.settle for work in works)))


def _make_all(calls: Iterator[Callable[[], object]]) -> None:
    """Make the calls; one that breaks leaves no other one out, and no submission unanswered."""
    for call in calls:
        try:
            call()
        except BaseException:
            _make_all(calls)
            raise
