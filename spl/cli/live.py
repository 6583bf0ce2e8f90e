"""What the daemon's event stream says, over its restarts: the ground of `spl monitor`, `top` and `wait`.

A thread reads the stream, so that a command can wait for an event, a deadline or a redraw at once.  A daemon that
goes away is asked again until it is back, and then sends its whole state, so nothing is remembered here.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, Final, Self

from ..client.calls import object_of
from ..core.errors import SplError
from ..net.sse import EventParser
from .client import LINE_BYTES, Ctl, CtlError

LOST: Final = frozenset({
    "daemon-down", "disconnected", "timeout", "warming-up", "overloaded", "shutting-down",
})  # fmt: skip
"""Errors of a daemon that may come back by itself; any other ends the command."""
AGAIN_S: Final = 0.25
AGAIN_MAX_S: Final = 2.0
SILENCE_S: Final = 45.0
"""Three heartbeats."""
DOWN: Final = "down"
_WAITING: Final = 64
"""Events that wait for a command whose output stands still; then the daemon waits."""
EVENTS: Final = "/v1/events"

Shown = Mapping[str, Any]
LiveEvent = tuple[str, dict[str, Any]]


class Live:
    """The events of one daemon, from now on; the first is a snapshot, or DOWN with code and message."""

    def __init__(self, ctl: Ctl) -> None:
        self._ctl = ctl
        self._ended = threading.Event()
        self._queue: Queue[LiveEvent | SplError | None] = Queue(_WAITING)
        threading.Thread(target=self._read, name="spl-live", daemon=True).start()

    def next(self, timeout_s: float | None) -> LiveEvent | None:
        """Return the next event, None after `timeout_s`.  Raises the error of a daemon that refuses."""
        try:
            found = self._queue.get(timeout=None if timeout_s is None else max(0.0, timeout_s))
        except Empty:
            return None
        if isinstance(found, SplError):
            raise found
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()

    def nudge(self) -> None:
        """Have `next` return None at once, also from another thread."""
        with suppress(Full):  # then something is there for it
            self._queue.put_nowait(None)

    def _read(self) -> None:
        rest_s, is_down = AGAIN_S, False
        while not self._ended.is_set():
            try:
                for item in self._stream():
                    rest_s, is_down = AGAIN_S, False
                    self._queue.put(item)
                lost = SplError("shutting-down")
            except SplError as exc:
                if exc.code not in LOST:
                    self._queue.put(exc)
                    return
                lost = exc
            if not is_down:
                self._queue.put((DOWN, {"code": lost.code, "message": lost.message, "hint": lost.hint}))
                is_down = True
            self._ended.wait(rest_s)
            rest_s = min(AGAIN_MAX_S, 2 * rest_s)

    def _stream(self) -> Iterator[LiveEvent]:
        """Yield the events of one connection, without heartbeats.

        Raises CtlError if the credential ends; WireError.
        """
        parser = EventParser(LINE_BYTES)
        for piece in self._ctl.stream(EVENTS, silence_s=SILENCE_S):
            for event in parser.feed(piece):
                value = object_of(event.data)
                if event.name == "error":
                    raise CtlError("auth-invalid", str(value.get("message", "")))
                if event.name == "server_shutdown":
                    return
                if event.name != "heartbeat":
                    yield event.name, value


def rows_of(snapshot: Shown) -> dict[str, Shown]:
    """Return the pairs of a snapshot by id."""
    return {row["pair_id"]: row for row in snapshot["pairs"]}
