"""Consumer side of sync: when we read from each peer, and how far we are.

One task a pair follows its mode: `polling` at its interval with jitter, `on-demand` only when asked.  Failures back
off with full jitter to at most five minutes; the time of the next attempt is always visible.  One pull (`pull.py`) at
a time runs for a pair, and whoever asks meanwhile joins it.  A pair's fault ends neither its own task nor another's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from .core import when
from .core.backoff import full_jitter_s, spread_s
from .core.errors import SplError
from .core.limits import Limits
from .core.pair import Pair, Phase
from .hub import Commit, Hub
from .net.client import Client, DialPolicy
from .pull import AUTH_CODES, RESET_CODES, STATE_CODES, Ask, Progress, Puller, SyncError, event
from .vault import Vault
from .views import THREAD_PAIRS

RESETS_PER_HOUR_MAX: Final = 3
BACKOFF_BASE_S: Final = 1.0

_HOUR_S: Final = 3600.0
_LOCAL: Final = "LOCAL"
_CLASSES: Final = {
    "connect": "CONNECT_REFUSED",
    "disconnected": "CONNECT_REFUSED",
    "address-refused": "CONNECT_REFUSED",
    "http-plain": "CONNECT_REFUSED",
    "url-invalid": "CONNECT_REFUSED",
    "redirect": "CONNECT_REFUSED",
    "timeout": "TIMEOUT",
    "dns": "DNS_FAILURE",
    "tls-chain": "TLS",
    "peer-5xx": "HTTP_5XX",
    "answer-malformed": "PARSE_ERROR",
    "peer-rewound": "PARSE_ERROR",
    **dict.fromkeys(AUTH_CODES, "AUTH"),
    "chain-broken": "SIGNATURE",
    "chain-fork": "SIGNATURE",
    "did-invalid": "SIGNATURE",
    "manifest-stale": "SIGNATURE",
    "overloaded": _LOCAL,
    "shutting-down": _LOCAL,
    "store-readonly": _LOCAL,
    "store-damaged": _LOCAL,
    "identity-missing": _LOCAL,
    "internal": _LOCAL,
}
"""Code -> class of `last_error`; what is not named here is HTTP_4XX.  LOCAL is our own fault and degrades no pair."""


class Watch(Protocol):
    """Whoever turns the fate of pulls into records: the pairing service, wired by the daemon.  Called on the loop."""

    def on_trouble(self, pair_id: str, code: str) -> None:
        """Errors recur, or the peer refused our credentials."""

    def on_success(self, pair_id: str) -> None:
        """A degraded pair synced."""

    def on_peer_state(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """The peer answered that it paused or revoked the pair; a bare status, so ask for its signed word."""


@dataclass(slots=True)
class _Line:
    """What this process knows of reading from one peer; what a restart must know stands in the log."""

    kick: asyncio.Event = field(default_factory=asyncio.Event)
    attempt: int = 0
    unit: float = 0.5
    last_s: float | None = None
    last_sync_ms: int | None = None
    last_error: dict[str, object] | None = None
    retried: bool = False
    running: "asyncio.Future[int] | None" = None
    asked: tuple[str, bool] = ("", False)
    progress: Progress = field(default_factory=Progress)
    resets_s: "deque[float]" = field(default_factory=deque)


class Sync:
    """Pulls of all pairs.  `dial` says how a peer may be reached."""

    def __init__(
        self,
        hub: Hub,
        vault: Vault,
        client: Client,
        limits: Limits,
        *,
        dial: Callable[[Pair], DialPolicy],
        watch: Watch,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.hub = hub
        self.limits = limits
        self.watch = watch
        self._puller = Puller(hub, vault, client, limits, dial=dial, now_ms=now_ms, random_bytes=random_bytes)
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._lines: dict[str, _Line] = {}
        self._changed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep one task for each pair that may sync, until `stop`; pauses and revocations end theirs at once."""
        loop = asyncio.get_running_loop()

        def heard(commit: Commit) -> None:
            if THREAD_PAIRS in commit.threads:
                loop.call_soon_threadsafe(self._rouse)

        async def watch_stop() -> None:
            await stop.wait()
            self._changed.set()

        silence = self.hub.listen(heard)
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch_stop())
                while not stop.is_set():
                    self._changed.clear()
                    self._arrange(group, tasks)
                    await self._changed.wait()
                for task in tasks.values():
                    task.cancel()
        finally:
            silence()

    def close(self) -> None:
        """End the verifying threads; for after `run` and the last pull."""
        self._puller.close()

    async def pull(self, pair_id: str, thread: str = "", *, resync: bool = False) -> int:
        """Return how many records were new; joins a pull of the same kind that runs.

        With `thread` only that thread's records are fetched, from their beginning, and the saved position stays.
        `resync` reads from the start again.  Raises SyncError, ReachError, PageError, HubError and the store's errors.
        """
        line = self._line(pair_id)
        while line.running is not None:
            running, same = line.running, line.asked == (thread, resync)
            await asyncio.wait([running])
            if same and not running.cancelled():
                return running.result()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        line.running, line.asked = done, (thread, resync)
        try:
            done.set_result(await self._attempt(pair_id, line, thread, resync))
        except SplError as exc:
            done.set_exception(exc)
        finally:
            line.running, line.progress.queue = None, None
            if not done.done():
                done.cancel()
        return done.result()

    def wake(self, pair_id: str) -> None:
        """Take note that the peer was in touch, authenticated: a pull that was backing off is tried at once.

        A healthy pair is not woken, or two peers that poll each other would do so without pause.
        """
        line = self._lines.get(pair_id)
        if line is not None and line.attempt:
            line.attempt, line.last_s = 0, None
            line.kick.set()

    def queue_records(self, pair_id: str) -> int:
        """Return how many records of this peer wait between network and store."""
        line = self._lines.get(pair_id)
        queue = line.progress.queue if line is not None else None
        return queue.records if queue is not None else 0

    def status(self, pair_id: str) -> dict[str, object]:
        """Return last_sync_at, last_error, next_attempt_at, attempt, clock, lag_records, queue_records, peer_view.

        Times are RFC 3339 or None; `clock` and `lag_records` count as the source does, lag None before first contact.
        """
        line, place = self._lines.get(pair_id) or _Line(), self.hub.views.positions.get(pair_id)
        pair = self.hub.views.pairs.get(pair_id)
        wait_s = self._wait_s(pair, line) if pair is not None and pair.sync_allowed else None
        clock = place.count if place is not None else 0
        head = line.progress.view.get("head")
        synced_ms = line.last_sync_ms or (place.at_ms if place is not None else None)
        return {
            "last_sync_at": when.text_of(synced_ms) if synced_ms is not None else None,
            "last_error": line.last_error,
            "next_attempt_at": when.text_of(self._now_ms() + int(wait_s * 1000)) if wait_s is not None else None,
            "attempt": line.attempt,
            "clock": clock,
            "lag_records": max(0, head - clock) if head is not None else None,
            "queue_records": self.queue_records(pair_id),
            "peer_view": dict(line.progress.view) or None,
        }

    # -- one task a pair

    def _rouse(self) -> None:
        self._changed.set()
        for line in self._lines.values():
            line.kick.set()

    def _arrange(self, group: asyncio.TaskGroup, tasks: dict[str, "asyncio.Task[None]"]) -> None:
        wanted = {pair_id for pair_id, pair in self.hub.views.pairs.items() if pair.sync_allowed}
        for pair_id in tasks.keys() - wanted:
            tasks.pop(pair_id).cancel()
        for pair_id in wanted:
            if pair_id not in tasks or tasks[pair_id].done():
                tasks[pair_id] = group.create_task(self._guard(pair_id), name=f"sync {pair_id}")

    async def _guard(self, pair_id: str) -> None:
        """Follow one pair; a fault of our own there is logged and ends neither the others nor this one."""
        crashes = 0
        while True:
            try:
                await self._follow(pair_id)
                return
            except Exception:  # noqa: BLE001 - the task boundary
                crashes += 1
                event(logging.ERROR, "sync.task_died", pair_id, exc_info=True, crashes=crashes)
            await asyncio.sleep(full_jitter_s(crashes, BACKOFF_BASE_S, self.limits.poll_backoff_max_s, self._unit()))

    async def _follow(self, pair_id: str) -> None:
        line = self._line(pair_id)
        while (pair := self.hub.views.pairs.get(pair_id)) is not None and pair.sync_allowed:
            line.kick.clear()
            wait_s = self._wait_s(pair, line)
            if wait_s is None or wait_s > 0:
                await _wait(line.kick, wait_s)
                continue
            try:
                await self.pull(pair_id)
            except SplError as exc:
                # Recorded by the pull itself; the next attempt's time follows from it.
                event(logging.DEBUG, "sync.retry_later", pair_id, code=exc.code, attempt=line.attempt)

    def _wait_s(self, pair: Pair, line: _Line) -> float | None:
        """Return the seconds to the next attempt by mode, interval and failures; None for never by itself."""
        if pair.mode == "on-demand":
            return None
        if line.last_s is None:
            return 0.0
        if line.attempt:
            delay_s = full_jitter_s(line.attempt, BACKOFF_BASE_S, self.limits.poll_backoff_max_s, line.unit)
        else:
            delay_s = spread_s(pair.poll_interval_ms / 1000, line.unit)
        return max(0.0, line.last_s + delay_s - asyncio.get_running_loop().time())

    def _line(self, pair_id: str) -> _Line:
        return self._lines.setdefault(pair_id, _Line())

    def _unit(self) -> float:
        return int.from_bytes(self._random_bytes(4)) / 2**32

    # -- one pull

    async def _attempt(self, pair_id: str, line: _Line, thread: str, resync: bool) -> int:
        """Pull once and take note of how it went."""
        started_ms = self._now_ms()
        try:
            pair = self._puller.pair(pair_id)
            fresh = await self._pull(pair, line, thread, resync)
        except SplError as exc:
            self._failed(pair_id, line, exc)
            raise
        finally:
            line.last_s, line.unit = asyncio.get_running_loop().time(), self._unit()
        line.attempt, line.last_error, line.last_sync_ms = 0, None, self._now_ms()
        level = logging.INFO if fresh else logging.DEBUG
        event(level, "sync.pulled", pair_id, records=fresh, ms=self._now_ms() - started_ms)
        if pair.phase is Phase.DEGRADED:
            self.watch.on_success(pair_id)
        return fresh

    def _failed(self, pair_id: str, line: _Line, exc: SplError) -> None:
        if isinstance(exc, SyncError) and exc.code in STATE_CODES and exc.view is not None:
            line.progress.view, line.attempt = exc.view, 0
            self.watch.on_peer_state(pair_id, exc.view)
            return
        pair = self.hub.views.pairs.get(pair_id)
        if pair is None or not pair.sync_allowed:
            return
        kind = _CLASSES.get(exc.code, "HTTP_4XX")
        line.attempt += 1
        line.last_error = {"class": kind, "code": exc.code, "message": exc.message, "at": when.text_of(self._now_ms())}
        event(logging.WARNING, "sync.failed", pair_id, code=exc.code, error_class=kind, attempt=line.attempt)
        recurs = kind == "AUTH" or (kind != _LOCAL and line.attempt >= self.limits.errors_until_degraded)
        if recurs and pair.phase is not Phase.DEGRADED:
            self.watch.on_trouble(pair_id, exc.code)

    async def _pull(self, pair: Pair, line: _Line, thread: str, resync: bool) -> int:
        """Read pages to the end; where the source's log is another one, begin again, at most thrice an hour."""
        ask = Ask("" if thread or resync else self._puller.since(pair), thread, resync)
        while True:
            try:
                return await self._run(pair, line, ask)
            except SyncError as exc:
                now_s = asyncio.get_running_loop().time()
                while line.resets_s and line.resets_s[0] < now_s - _HOUR_S:
                    line.resets_s.popleft()
                if exc.code not in RESET_CODES:
                    raise
                if len(line.resets_s) >= RESETS_PER_HOUR_MAX:
                    raise SyncError("peer-rewound", f"{exc.message}, again and again") from exc
                line.resets_s.append(now_s)
                event(logging.WARNING, "sync.reset", pair.pair_id, code=exc.code, resets=len(line.resets_s))
            ask = Ask("", thread, resync=True)

    async def _run(self, pair: Pair, line: _Line, ask: Ask) -> int:
        """Read to the end; then ask again for what was refused, once a process and whenever a chain was learnt."""
        had = self.hub.views.refused.get(pair.pair_id, 0)
        fresh = await self._puller.run(pair, line.progress, ask)
        if had and not ask.thread and (line.progress.learnt or not line.retried):
            line.retried = True
            fresh += await self._puller.retry_refused(pair, line.progress)
        return fresh


async def _wait(kick: asyncio.Event, seconds: float | None) -> None:
    """Return when kicked or after so many seconds, whichever is first."""
    try:
        async with asyncio.timeout(seconds):
            await kick.wait()
    except TimeoutError:
        return
